//! A small durable record with one flush per change.
//!
//! The file has two slots; a change goes into the one that does not hold the present record, and
//! one `fdatasync` makes it count. All of its space is there from the beginning, so a full file
//! system does not stop a vote. A slot:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `LSVOTES1` |
//! | 8..16 | number of the change, little endian |
//! | 16..20 | length of the record |
//! | 20..24 | crc32 of number, length and record |
//! | 24.. | the record |

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"LSVOTES1";
const HEAD: usize = 24;
/// Bytes of a slot.
const SLOT: u64 = 32 << 10;

/// Why a record cannot be kept.
#[derive(Debug, Error)]
pub enum SlotError {
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: another process uses it", .path.display())]
    Held { path: PathBuf },
    #[error("{}: a record of {length} bytes has no room", .path.display())]
    TooLong { path: PathBuf, length: usize },
}

/// See the module's description.
#[derive(Debug)]
pub struct SlotFile {
    path: PathBuf,
    file: File,
    /// Number of the last change; its slot is the number's lowest bit.
    change: u64,
}

impl SlotFile {
    /// Opens or makes the file, for this process alone, with the record that counts. None: it is
    /// new, or neither slot can be read.
    pub fn open(path: &Path) -> Result<(SlotFile, Option<Vec<u8>>), SlotError> {
        let failed = |error: io::Error| SlotError::Io {
            path: path.to_owned(),
            error,
        };
        let new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let path = path.to_owned();
                return Err(SlotError::Held { path });
            }
            Err(error) => return Err(failed(error.into())),
        }
        match fallocate(&file, FallocateFlags::empty(), 0, 2 * SLOT) {
            Ok(()) => {}
            // A file system that cannot: then a change may meet a full disk, and is refused.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(2 * SLOT).map_err(failed)?,
            Err(error) => return Err(failed(error.into())),
        }
        if new {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = File::open(folder.unwrap_or(Path::new(".")));
            file.sync_all()
                .and_then(|()| folder?.sync_all())
                .map_err(failed)?;
        }
        let found = [0, 1].map(|slot| read_slot(&file, slot));
        let latest = found
            .into_iter()
            .flatten()
            .max_by_key(|(change, _)| *change);
        let (change, record) = latest.map_or((0, None), |(change, record)| (change, Some(record)));
        let slots = SlotFile {
            path: path.to_owned(),
            file,
            change,
        };
        Ok((slots, record))
    }

    /// Makes `record` the one that counts; durable when this returns.
    pub fn store(&mut self, record: &[u8]) -> Result<(), SlotError> {
        if record.len() > SLOT as usize - HEAD {
            return Err(SlotError::TooLong {
                path: self.path.clone(),
                length: record.len(),
            });
        }
        let change = self.change + 1;
        let mut bytes = Vec::with_capacity(HEAD + record.len());
        bytes.extend(MAGIC);
        bytes.extend(change.to_le_bytes());
        bytes.extend((record.len() as u32).to_le_bytes());
        bytes.extend(checksum(change, record).to_le_bytes());
        bytes.extend(record);
        self.file
            .write_all_at(&bytes, (change & 1) * SLOT)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| SlotError::Io {
                path: self.path.clone(),
                error,
            })?;
        self.change = change;
        Ok(())
    }
}

fn checksum(change: u64, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&change.to_le_bytes());
    hasher.update(&(record.len() as u32).to_le_bytes());
    hasher.update(record);
    hasher.finalize()
}

/// Number and record of a slot that can be read.
fn read_slot(file: &File, slot: u64) -> Option<(u64, Vec<u8>)> {
    let mut bytes = vec![0; SLOT as usize];
    let read = file.read_at(&mut bytes, slot * SLOT).ok()?;
    let bytes = bytes.get(..read)?;
    let change = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    let length = u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(bytes.get(20..24)?.try_into().ok()?);
    let record = bytes.get(HEAD..HEAD.checked_add(length)?)?;
    let whole = bytes.starts_with(MAGIC) && change & 1 == slot && checksum(change, record) == sum;
    whole.then(|| (change, record.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &Path) -> Option<Vec<u8>> {
        SlotFile::open(path).unwrap().1
    }

    #[test]
    fn the_last_record_counts_and_a_torn_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("votes");
        let (mut slots, none) = SlotFile::open(&path).unwrap();
        assert_eq!(none, None);
        for change in 1..=5u8 {
            slots.store(&[change; 100]).unwrap();
        }
        assert!(matches!(SlotFile::open(&path), Err(SlotError::Held { .. })));
        assert!(matches!(
            slots.store(&vec![0; SLOT as usize]),
            Err(SlotError::TooLong { .. })
        ));
        drop(slots);
        assert_eq!(record(&path), Some(vec![5; 100]));
        // The fifth change is torn: the fourth counts.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 7], SLOT + 60).unwrap();
        assert_eq!(record(&path), Some(vec![4; 100]));
        let (mut slots, _) = SlotFile::open(&path).unwrap();
        slots.store(b"next").unwrap();
        drop(slots);
        assert_eq!(record(&path).as_deref(), Some(&b"next"[..]));
        file.write_all_at(&[1; 9], 0).unwrap();
        file.write_all_at(&[1; 9], SLOT).unwrap();
        assert_eq!(record(&path), None);
    }

    #[test]
    fn what_is_no_folder_or_not_ours_is_said_with_its_name() {
        let error = SlotFile::open(Path::new("/nonexistent/votes")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/votes"));
    }
}
