//! Checksums of the bitmap: one sum per page in memory, one per group of pages in the superblock.
//!
//! A page's sum is a mixed CRC-32 of its bytes, keyed with its number; an all-zero page has the
//! sum 0, so that a fresh, sparse bitmap needs no writing. A group's sum is the XOR of its pages'
//! sums and follows a page write without reading the other pages. CRCs alone are linear: two
//! pages that changed places, or two equal errors, would cancel out; the mixing prevents that.

use super::layout::Layout;

/// Group sums that a superblock has room for.
pub const MAX_GROUPS: usize = 512;

/// The in-flux marks: a group whose pages are being written; its sum does not count.
pub type Flux = [u8; MAX_GROUPS / 8];

/// How pages are gathered into groups. Groups do not span slots, so that damage to one peer's
/// bitmap costs the others nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    pages: u32,
    group_pages: u32,
    per_slot: u32,
    slots: u8,
}

impl Grouping {
    pub fn new(layout: &Layout) -> Grouping {
        let slots = layout.max_peers();
        let room = (MAX_GROUPS as u32 / u32::from(slots)).max(1);
        let pages = layout.pages();
        let group_pages = pages.div_ceil(room).max(1);
        Grouping {
            pages,
            group_pages,
            per_slot: pages.div_ceil(group_pages),
            slots,
        }
    }

    /// Groups in use.
    pub fn count(&self) -> usize {
        self.per_slot as usize * usize::from(self.slots)
    }

    /// Pages per group; the last group of a slot may have fewer.
    pub fn group_pages(&self) -> u32 {
        self.group_pages
    }

    /// Pages of all slots.
    pub fn total_pages(&self) -> usize {
        self.pages as usize * usize::from(self.slots)
    }

    /// Number of a page among all slots' pages.
    pub fn page_number(&self, slot: u8, page: u32) -> u32 {
        u32::from(slot) * self.pages + page
    }

    pub fn group_of(&self, slot: u8, page: u32) -> usize {
        (u32::from(slot) * self.per_slot + page / self.group_pages) as usize
    }

    /// The pages of a group: its slot, and page numbers within the slot.
    pub fn pages_of(&self, group: usize) -> (u8, std::ops::Range<u32>) {
        let slot = group as u32 / self.per_slot;
        let start = group as u32 % self.per_slot * self.group_pages;
        let end = (start + self.group_pages).min(self.pages);
        (slot as u8, start..end)
    }
}

/// True when every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(64)
        .all(|c| c.iter().fold(0, |all, b| all | b) == 0)
}

/// A bijection of 32 bits in which every input bit moves every output bit.
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The sum of page `number` (see [`Grouping::page_number`]).
pub fn page_sum(number: u32, bytes: &[u8]) -> u32 {
    if is_zero(bytes) {
        return 0;
    }
    mix(crc32fast::hash(bytes) ^ mix(number.wrapping_add(0x9e37_79b9)))
}

/// The sums of all pages and groups: 4 bytes of memory per page, zero pages untouched.
#[derive(Clone, Debug)]
pub struct Sums {
    grouping: Grouping,
    pages: Vec<u32>,
    groups: Vec<u32>,
}

impl Sums {
    /// The sums of an all-zero bitmap.
    pub fn zero(grouping: Grouping) -> Sums {
        Sums {
            grouping,
            pages: vec![0; grouping.total_pages()],
            groups: vec![0; grouping.count()],
        }
    }

    pub fn grouping(&self) -> &Grouping {
        &self.grouping
    }

    /// The group sums for the superblock.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Replaces a page's sum. Pages that do not exist are ignored.
    pub fn set(&mut self, slot: u8, page: u32, bytes: &[u8]) {
        let number = self.grouping.page_number(slot, page);
        let group = self.grouping.group_of(slot, page);
        let sum = page_sum(number, bytes);
        let Some(group) = self.groups.get_mut(group) else {
            return;
        };
        if let Some(old) = self.pages.get_mut(number as usize)
            && *old != sum
        {
            *group ^= *old ^ sum;
            *old = sum;
        }
    }
}

/// Sets the mark of `group`.
pub fn mark(flux: &mut Flux, group: usize) {
    if let Some(byte) = flux.get_mut(group / 8) {
        *byte |= 1 << (group % 8);
    }
}

/// Reads the mark of `group`.
pub fn marked(flux: &Flux, group: usize) -> bool {
    flux.get(group / 8)
        .is_some_and(|byte| byte & (1 << (group % 8)) != 0)
}
