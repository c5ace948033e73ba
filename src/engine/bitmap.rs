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

/// The words that bits `first` to `end` (excluded) lie in, each with the bits that are meant.
fn masks(first: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    let words = if first < end {
        first / 64..end.div_ceil(64)
    } else {
        0..0
    };
    words.map(move |index| {
        let low = first.saturating_sub(index * 64);
        let high = (end - index * 64).min(64);
        (
            index as usize,
            (u64::MAX >> (64 - high)) & (u64::MAX << low),
        )
    })
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
        for (index, mask) in masks(first, end) {
            self.set_bits(index, mask);
            self.unsuspect(index, mask);
        }
    }

    /// Sets bits of a word; returns those that were clear.
    fn set_bits(&mut self, index: usize, mask: u64) -> u64 {
        let word = &mut self.words[index];
        let fresh = mask & !*word;
        if fresh != 0 {
            *word |= fresh;
            self.count += u64::from(fresh.count_ones());
            self.set_pages.insert((index / PAGE_WORDS) as u32);
        }
        fresh
    }

    fn unsuspect(&mut self, index: usize, mask: u64) {
        if self.suspects.is_empty() {
            return;
        }
        let extent = (index / EXTENT_WORDS) as u32;
        if let Some(words) = self.suspects.get_mut(&extent) {
            words[index % EXTENT_WORDS] &= !mask;
            if words.iter().all(|w| *w == 0) {
                self.suspects.remove(&extent);
            }
        }
    }

    /// Sets bits of a word; those that were clear are suspect.
    fn suspect_bits(&mut self, index: usize, mask: u64) {
        let fresh = self.set_bits(index, mask);
        if fresh != 0 {
            let extent = (index / EXTENT_WORDS) as u32;
            let words = self.suspects.entry(extent).or_insert([0; EXTENT_WORDS]);
            words[index % EXTENT_WORDS] |= fresh;
        }
    }

    /// Marks the whole of a log extent as possibly different.
    pub(super) fn suspect_extent(&mut self, extent: u32) {
        let first = u64::from(extent) * EXTENT_BITS;
        let end = (first + EXTENT_BITS).min(self.bits);
        for (index, mask) in masks(first.min(end), end) {
            self.suspect_bits(index, mask);
        }
    }

    /// Marks every block that `span` touches as possibly different.
    pub(super) fn suspect_span(&mut self, span: Span) {
        let (first, end) = self.outer(span);
        for (index, mask) in masks(first, end) {
            self.suspect_bits(index, mask);
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
        for (index, mask) in masks(first, end.min(self.bits)) {
            let word = &mut self.words[index];
            let gone = *word & mask;
            if gone != 0 {
                *word &= !gone;
                self.count -= u64::from(gone.count_ones());
                self.cleared_pages.insert((index / PAGE_WORDS) as u32);
                self.unsuspect(index, gone);
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
        let end = self.run_end(first, limit, suspect);
        let start = first * BIT_BYTES;
        let stop = (end * BIT_BYTES).min(device_end);
        (stop > start).then(|| (Span::new(start, (stop - start) as u32), suspect))
    }

    /// Where the run of set bits of one sort that begins at `first` ends, at most `limit`.
    fn run_end(&self, first: u64, limit: u64, suspect: bool) -> u64 {
        let mut at = first;
        while at < limit {
            let index = at / 64;
            let sort = self.suspect_word(index);
            let run = self.words[index as usize] & if suspect { sort } else { !sort };
            let ones = u64::from((!(run >> (at % 64))).trailing_zeros()).min(64 - at % 64);
            at += ones;
            if ones == 0 || !at.is_multiple_of(64) {
                break;
            }
        }
        at.min(limit)
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
        let first = page as usize * PAGE_WORDS;
        for (i, word) in words.iter().enumerate() {
            let index = first + i;
            let inside = match self.bits.saturating_sub(index as u64 * 64) {
                0 => return,
                left @ 1..64 => (1u64 << left) - 1,
                _ => u64::MAX,
            };
            let suspect = suspects.get(i).copied().unwrap_or(0) & word & inside;
            let sure = word & inside & !suspect;
            self.suspect_bits(index, suspect);
            self.set_bits(index, sure);
            self.unsuspect(index, sure);
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

    /// Bits one by one, as they should be.
    struct Model {
        set: Vec<bool>,
        suspect: Vec<bool>,
    }

    impl Model {
        fn runs(&self, max: u64) -> Vec<(u64, u64, bool)> {
            let mut runs: Vec<(u64, u64, bool)> = Vec::new();
            for bit in (0..self.set.len()).filter(|bit| self.set[*bit]) {
                let at = bit as u64;
                match runs.last_mut() {
                    Some((_, end, sort))
                        if *end == at && *sort == self.suspect[bit] && !at.is_multiple_of(max) =>
                    {
                        *end += 1;
                    }
                    _ => runs.push((at, at + 1, self.suspect[bit])),
                }
            }
            runs
        }
    }

    #[test]
    fn words_hold_what_bits_one_by_one_would() {
        let bits = 3000u64;
        let (size, max) = (bits * BIT_BYTES, 256);
        let mut seed = 7u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut map = Bitmap::new(size, Vec::new());
        let count = bits as usize;
        let mut model = Model {
            set: vec![false; count],
            suspect: vec![false; count],
        };
        for _ in 0..600 {
            let first = next(bits);
            let end = (first + 1 + next(200)).min(bits);
            let span = Span::new(first * BIT_BYTES, ((end - first) * BIT_BYTES) as u32);
            let range = first as usize..end as usize;
            match next(4) {
                0 => {
                    map.set_span(span);
                    model.set[range.clone()].fill(true);
                    model.suspect[range].fill(false);
                }
                1 => {
                    map.clear_span(span, size, false);
                    model.set[range.clone()].fill(false);
                    model.suspect[range].fill(false);
                }
                2 => {
                    map.suspect_span(span);
                    for bit in range {
                        model.suspect[bit] |= !model.set[bit];
                        model.set[bit] = true;
                    }
                }
                _ => {
                    // The peer's words: some bits sure, some suspect.
                    let words: Vec<u64> = (0..4)
                        .map(|_| next(u64::MAX) << 20 & next(u64::MAX))
                        .collect();
                    let suspects: Vec<u64> =
                        words.iter().map(|w| w & 0x0f0f_0f0f_0f0f_0f0f).collect();
                    map.merge_page(0, &words, &suspects);
                    for bit in 0..256 {
                        let is = |words: &[u64]| words[bit / 64] >> (bit % 64) & 1 == 1;
                        if is(&suspects) {
                            model.suspect[bit] |= !model.set[bit];
                            model.set[bit] = true;
                        } else if is(&words) {
                            (model.set[bit], model.suspect[bit]) = (true, false);
                        }
                    }
                }
            }
            let mut runs = Vec::new();
            let mut from = 0;
            while let Some((span, suspect)) = map.next_run(from, (max * BIT_BYTES) as u32, size) {
                runs.push((span.start / BIT_BYTES, span.end() / BIT_BYTES, suspect));
                from = span.end();
            }
            assert_eq!(runs, model.runs(max));
            let set = model.set.iter().filter(|set| **set).count();
            assert_eq!(map.count(), set as u64);
        }
    }
}
