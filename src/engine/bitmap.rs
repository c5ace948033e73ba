//! The dirty bitmap toward one peer: which 4 KiB blocks may differ.
//!
//! Besides the bits it keeps (a) which 4 KiB pages of it have changed since they were last
//! written to disk, and (b) which bits are *suspect*: set only because the activity log covered
//! them at a crash, so that they are compared before they are copied. Suspicion never affects
//! correctness, only cost.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::Span;
use super::persist::BITMAP_PAGE_BYTES;

/// Bytes of data per bit.
pub(super) const BIT_BYTES: u64 = 4096;
/// Bits per page of the on-disk bitmap.
pub(super) const PAGE_BITS: u64 = BITMAP_PAGE_BYTES as u64 * 8;
/// Words per page; also the size of a chunk on the wire.
pub(super) const PAGE_WORDS: usize = BITMAP_PAGE_BYTES / 8;
/// Bits per activity-log extent.
const EXTENT_BITS: u64 = 1024;
const EXTENT_WORDS: usize = (EXTENT_BITS / 64) as usize;

/// Dirty bits of one volume toward one peer.
pub(super) struct Bitmap {
    words: Vec<u64>,
    bits: u64,
    count: u64,
    suspects: BTreeMap<u32, [u64; EXTENT_WORDS]>,
    /// Every bit is to be compared first.
    all_suspect: bool,
    /// Pages with bits set in memory that the disk may not have.
    set_pages: BTreeSet<u32>,
    /// Pages with bits cleared in memory only; harmless, written when convenient.
    cleared_pages: BTreeSet<u32>,
}

impl Bitmap {
    /// A bitmap of `bytes` of data from the words read from disk (missing ones are zero).
    pub(super) fn new(bytes: u64, mut words: Vec<u64>) -> Bitmap {
        let bits = bytes.div_ceil(BIT_BYTES);
        words.resize(bits.div_ceil(64) as usize, 0);
        if !bits.is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last &= (1u64 << (bits % 64)) - 1;
        }
        let count = words.iter().map(|w| u64::from(w.count_ones())).sum();
        Bitmap {
            words,
            bits,
            count,
            suspects: BTreeMap::new(),
            all_suspect: false,
            set_pages: BTreeSet::new(),
            cleared_pages: BTreeSet::new(),
        }
    }

    /// Number of dirty bits.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn outer(&self, span: Span) -> (u64, u64) {
        let first = span.start / BIT_BYTES;
        let end = span.end().div_ceil(BIT_BYTES).min(self.bits);
        (first.min(end), end)
    }

    /// Marks every block that `span` touches.
    pub(super) fn set_span(&mut self, span: Span) {
        let (first, end) = self.outer(span);
        for bit in first..end {
            self.set_bit(bit);
            if !self.suspects.is_empty() {
                self.unsuspect(bit);
            }
        }
    }

    fn set_bit(&mut self, bit: u64) -> bool {
        let mask = 1u64 << (bit % 64);
        let word = &mut self.words[(bit / 64) as usize];
        if *word & mask != 0 {
            return false;
        }
        *word |= mask;
        self.count += 1;
        self.set_pages.insert((bit / PAGE_BITS) as u32);
        true
    }

    fn unsuspect(&mut self, bit: u64) {
        let extent = (bit / EXTENT_BITS) as u32;
        if let Some(words) = self.suspects.get_mut(&extent) {
            words[((bit % EXTENT_BITS) / 64) as usize] &= !(1u64 << (bit % 64));
            if words.iter().all(|w| *w == 0) {
                self.suspects.remove(&extent);
            }
        }
    }

    /// Marks the whole of a log extent as possibly different.
    pub(super) fn suspect_extent(&mut self, extent: u32) {
        let first = u64::from(extent) * EXTENT_BITS;
        let end = (first + EXTENT_BITS).min(self.bits);
        self.suspect_bits(first.min(end), end);
    }

    /// Marks every block that `span` touches as possibly different.
    pub(super) fn suspect_span(&mut self, span: Span) {
        let (first, end) = self.outer(span);
        self.suspect_bits(first, end);
    }

    fn suspect_bits(&mut self, first: u64, end: u64) {
        for bit in first..end {
            if self.set_bit(bit) {
                let extent = (bit / EXTENT_BITS) as u32;
                let words = self.suspects.entry(extent).or_insert([0; EXTENT_WORDS]);
                words[((bit % EXTENT_BITS) / 64) as usize] |= 1u64 << (bit % 64);
            }
        }
    }

    /// Marks everything; `compare` = blocks are compared before they are copied.
    pub(super) fn set_all(&mut self, compare: bool) {
        self.words.fill(u64::MAX);
        if !self.bits.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last = (1u64 << (self.bits % 64)) - 1;
        }
        self.count = self.bits;
        self.suspects.clear();
        self.all_suspect = compare;
        self.set_pages = (0..self.pages()).collect();
    }

    /// Clears the blocks that `span` covers wholly; a last, partial block of the device counts
    /// as covered when `span` reaches `device_end`.
    pub(super) fn clear_span(&mut self, span: Span, device_end: u64, sabotage_partial: bool) {
        let (mut first, mut end) = (span.start.div_ceil(BIT_BYTES), span.end() / BIT_BYTES);
        if span.end() >= device_end || sabotage_partial {
            end = span.end().div_ceil(BIT_BYTES);
        }
        if sabotage_partial {
            first = span.start / BIT_BYTES;
        }
        for bit in first..end.min(self.bits) {
            let mask = 1u64 << (bit % 64);
            let word = &mut self.words[(bit / 64) as usize];
            if *word & mask != 0 {
                *word &= !mask;
                self.count -= 1;
                self.cleared_pages.insert((bit / PAGE_BITS) as u32);
                self.unsuspect(bit);
            }
        }
        if self.count == 0 {
            self.all_suspect = false;
        }
    }

    /// Clears everything: the whole device was synced.
    pub(super) fn clear_all(&mut self) {
        for page in self.used_pages() {
            self.cleared_pages.insert(page);
        }
        self.words.fill(0);
        self.count = 0;
        self.suspects.clear();
        self.all_suspect = false;
    }

    /// Whether a block that `span` touches is dirty.
    #[cfg(test)]
    pub(super) fn any(&self, span: Span) -> bool {
        let (first, end) = self.outer(span);
        (first..end).any(|bit| self.words[(bit / 64) as usize] & (1u64 << (bit % 64)) != 0)
    }

    fn is_suspect(&self, bit: u64) -> bool {
        self.all_suspect
            || self
                .suspects
                .get(&((bit / EXTENT_BITS) as u32))
                .is_some_and(|words| {
                    words[((bit % EXTENT_BITS) / 64) as usize] & (1u64 << (bit % 64)) != 0
                })
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let mut word = *self.words.get(index)? & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            index += 1;
            word = *self.words.get(index)?;
        }
    }

    /// The first run of dirty blocks at or after byte `from`: at most `max` bytes, not across a
    /// multiple of `max`, all suspect or none. Clipped to `device_end`.
    pub(super) fn next_run(&self, from: u64, max: u32, device_end: u64) -> Option<(Span, bool)> {
        let first = self.next_set(from.div_ceil(BIT_BYTES))?;
        let suspect = self.is_suspect(first);
        let per_run = u64::from(max) / BIT_BYTES;
        let limit = ((first / per_run + 1) * per_run).min(self.bits);
        let mut end = first + 1;
        while end < limit
            && self.words[(end / 64) as usize] & (1u64 << (end % 64)) != 0
            && self.is_suspect(end) == suspect
        {
            end += 1;
        }
        let start = first * BIT_BYTES;
        let stop = (end * BIT_BYTES).min(device_end);
        (stop > start).then(|| (Span::new(start, (stop - start) as u32), suspect))
    }

    fn pages(&self) -> u32 {
        self.bits.div_ceil(PAGE_BITS) as u32
    }

    /// Words and suspect words of a page, or None when it has no bit set.
    pub(super) fn page_words(&self, page: u32) -> Option<(&[u64], Vec<u64>)> {
        let first = page as usize * PAGE_WORDS;
        let words = self
            .words
            .get(first..(first + PAGE_WORDS).min(self.words.len()))?;
        if words.iter().all(|w| *w == 0) {
            return None;
        }
        let suspects = (0..words.len())
            .map(|i| self.suspect_word((first + i) as u64) & words[i])
            .collect::<Vec<_>>();
        let none = suspects.iter().all(|w| *w == 0);
        Some((words, if none { Vec::new() } else { suspects }))
    }

    fn suspect_word(&self, word: u64) -> u64 {
        if self.all_suspect {
            return u64::MAX;
        }
        let extent = (word * 64 / EXTENT_BITS) as u32;
        self.suspects
            .get(&extent)
            .map_or(0, |words| words[(word % EXTENT_WORDS as u64) as usize])
    }

    /// Pages that have at least one bit set.
    pub(super) fn used_pages(&self) -> Vec<u32> {
        (0..self.pages())
            .filter(|page| {
                let first = *page as usize * PAGE_WORDS;
                let end = (first + PAGE_WORDS).min(self.words.len());
                self.words[first..end].iter().any(|w| *w != 0)
            })
            .collect()
    }

    /// Adds the peer's bits of one page (rule 4: the set to sync is the union).
    pub(super) fn merge_page(&mut self, page: u32, words: &[u64], suspects: &[u64]) {
        let first_bit = u64::from(page) * PAGE_BITS;
        for (i, word) in words.iter().enumerate() {
            let suspect = suspects.get(i).copied().unwrap_or(0);
            let mut rest = *word;
            while rest != 0 {
                let bit = first_bit + i as u64 * 64 + u64::from(rest.trailing_zeros());
                let mask = 1u64 << (bit % 64);
                rest &= rest - 1;
                if bit >= self.bits {
                    return;
                }
                if suspect & mask != 0 {
                    self.suspect_bits(bit, bit + 1);
                } else {
                    self.set_bit(bit);
                    self.unsuspect(bit);
                }
            }
        }
    }

    /// Whether the page that holds an extent's bits has bits that the disk may lack.
    pub(super) fn extent_unsaved(&self, extent: u32) -> bool {
        self.set_pages
            .contains(&((u64::from(extent) * EXTENT_BITS / PAGE_BITS) as u32))
    }

    /// Whether the disk has bits that are clear here: harmless, but a restart would sync them.
    pub(super) fn outlived(&self) -> bool {
        !self.cleared_pages.is_empty()
    }

    /// Whether any set bit may be missing on disk.
    pub(super) fn unsaved(&self) -> bool {
        !self.set_pages.is_empty()
    }

    /// Takes up to `max` changed pages to be written, with their contents. Pages whose bits were
    /// set come first; ones that were only cleared are taken when `cleared` is true.
    pub(super) fn take_pages(&mut self, max: usize, cleared: bool) -> Vec<(u32, Box<[u8]>)> {
        let mut pages: Vec<u32> = self.set_pages.iter().copied().take(max).collect();
        if cleared {
            let room = max - pages.len();
            let more: Vec<u32> = self
                .cleared_pages
                .iter()
                .copied()
                .filter(|p| !self.set_pages.contains(p))
                .take(room)
                .collect();
            pages.extend(more);
        }
        for page in &pages {
            self.set_pages.remove(page);
            self.cleared_pages.remove(page);
        }
        pages
            .into_iter()
            .map(|page| (page, self.page_bytes(page)))
            .collect()
    }

    /// A page whose write failed or was not made is unsaved again.
    pub(super) fn return_page(&mut self, page: u32) {
        self.set_pages.insert(page);
    }

    fn page_bytes(&self, page: u32) -> Box<[u8]> {
        let first = page as usize * PAGE_WORDS;
        let mut bytes = vec![0u8; BITMAP_PAGE_BYTES];
        let end = (first + PAGE_WORDS).min(self.words.len());
        for (slot, word) in bytes.chunks_exact_mut(8).zip(&self.words[first..end]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes.into_boxed_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn set_rounds_out_and_clear_rounds_in() {
        let mut map = Bitmap::new(64 * MIB, Vec::new());
        map.set_span(Span::new(4096 - 512, 1024));
        assert_eq!(map.count(), 2);
        map.clear_span(Span::new(512, 8192 - 512), 64 * MIB, false);
        assert_eq!(map.count(), 1);
        assert!(map.any(Span::new(0, 512)));
        map.clear_span(Span::new(0, 4096), 64 * MIB, false);
        assert_eq!(map.count(), 0);
    }

    #[test]
    fn partial_last_block_is_clearable_at_the_end_of_the_device() {
        let size = MIB + 512;
        let mut map = Bitmap::new(size, Vec::new());
        map.set_span(Span::new(MIB, 512));
        assert_eq!(
            map.next_run(0, 65536, size),
            Some((Span::new(MIB, 512), false))
        );
        map.clear_span(Span::new(MIB, 512), size, false);
        assert_eq!(map.count(), 0);
    }

    #[test]
    fn runs_do_not_mix_suspects_and_stop_at_the_chunk() {
        let mut map = Bitmap::new(64 * MIB, Vec::new());
        map.suspect_extent(0);
        assert_eq!(map.count(), 1024);
        map.set_span(Span::new(8192, 4096));
        assert_eq!(
            map.next_run(0, 65536, 64 * MIB),
            Some((Span::new(0, 8192), true))
        );
        assert_eq!(
            map.next_run(8192, 65536, 64 * MIB),
            Some((Span::new(8192, 4096), false))
        );
        assert_eq!(
            map.next_run(12288, 65536, 64 * MIB),
            Some((Span::new(12288, 65536 - 12288), true))
        );
    }

    #[test]
    fn merge_keeps_known_differences_over_suspicion() {
        let mut a = Bitmap::new(256 * MIB, Vec::new());
        let mut b = Bitmap::new(256 * MIB, Vec::new());
        a.set_span(Span::new(0, 4096));
        b.suspect_extent(0);
        b.set_span(Span::new(200 * MIB, 4096));
        for page in b.used_pages() {
            let (words, suspects) = b.page_words(page).expect("used");
            a.merge_page(page, words, &suspects);
        }
        assert_eq!(a.count(), 1025);
        assert_eq!(
            a.next_run(0, 65536, 256 * MIB),
            Some((Span::new(0, 4096), false))
        );
        assert!(a.is_suspect(1));
        assert!(!a.is_suspect(200 * 256));
    }

    #[test]
    fn pages_are_handed_out_once() {
        let mut map = Bitmap::new(256 * MIB, Vec::new());
        map.set_span(Span::new(130 * MIB, 512));
        assert!(map.extent_unsaved(33) && !map.extent_unsaved(0));
        let pages = map.take_pages(8, false);
        assert_eq!(pages.len(), 1);
        assert_eq!(pages[0].0, 1);
        assert!(!map.unsaved());
        map.return_page(1);
        assert!(map.unsaved());
    }
}
