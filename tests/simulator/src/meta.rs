//! TEMPORARY adapter until the store lands.
use lockstep::engine::{MetaOp, Superblock};
use crate::disk::Disk;

pub struct Recovered { pub superblock: Superblock, pub log: Vec<u32>, pub bitmap: Vec<u64> }
pub struct Step { pub offset: u64, pub bytes: Vec<u8> }
pub struct Store;
thread_local!(static M: std::cell::RefCell<std::collections::BTreeMap<usize, (Superblock, Vec<u32>, Vec<u64>)>> = const { std::cell::RefCell::new(std::collections::BTreeMap::new()) });
fn key(d: &Disk) -> usize { d.meta().as_ptr() as usize }
pub const META_BYTES: u64 = 4096;
pub fn recover(disk: &Disk) -> Option<Recovered> {
    M.with_borrow(|m| m.get(&key(disk)).map(|(s, l, b)| Recovered { superblock: s.clone(), log: l.clone(), bitmap: b.clone() }))
}
pub fn format(disk: &mut Disk, sb: &Superblock) {
    let n = (disk.sectors() / 8).div_ceil(64) as usize;
    M.with_borrow_mut(|m| m.insert(key(disk), (sb.clone(), vec![], vec![0; n])));
}
pub fn open(_disk: &Disk) -> Option<Store> { Some(Store) }
impl Store {
    pub fn plan(&mut self, _op: &MetaOp) -> Vec<Step> { vec![Step { offset: 0, bytes: vec![0; 512] }] }
}
pub fn temp_apply(disk: &Disk, op: &MetaOp) {
    M.with_borrow_mut(|m| { let e = m.get_mut(&key(disk)).unwrap();
        match op {
            MetaOp::Superblock(s) => e.0 = (**s).clone(),
            MetaOp::Log(t) => e.1 = t.table.as_ref().clone(),
            MetaOp::Bitmap { pages, .. } => for (p, bytes) in pages {
                for (i, c) in bytes.chunks(8).enumerate() { let w = *p as usize * 512 + i; if w < e.2.len() { e.2[w] = u64::from_le_bytes(c.try_into().unwrap()); } }
            }
        }});
}
