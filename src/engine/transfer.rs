//! What is on its way to the peer: every replicated write from its submission until it is known
//! to be durable there (rule 3), and sync blocks whose dirty bits wait for the same (rule 2).

use std::collections::{BTreeMap, VecDeque};

use super::ids::{Span, Time};

/// Entries kept; beyond it writes wait for a flush of the peer. Bounds memory and the time to
/// mark everything dirty when the link breaks.
pub(super) const MAX_ENTRIES: usize = 8192;

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An application write by its key; the slot in the agent's table of ranges in flight.
    Write { key: u64, track: u32 },
    /// A sync block that the target has written or found equal.
    Sync,
}

/// One range not known durable on the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) position: u64,
    pub(super) volume: usize,
    pub(super) span: Span,
    pub(super) kind: Kind,
    pub(super) since: Time,
}

/// A flush that the peer was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerFlush {
    /// Everything up to this position is durable when it succeeds.
    mark: u64,
    /// Application flushes that wait for it.
    pub(super) waiters: Vec<u64>,
}

/// The transfer log of one session.
pub(super) struct Transfer {
    entries: VecDeque<Entry>,
    next_position: u64,
    durable: u64,
    flushes: BTreeMap<u64, PeerFlush>,
    next_flush: u64,
    tracks: Vec<u32>,
    /// Sequence numbers of writes that the peer has not finished, with the write's key and the
    /// time it was sent.
    pub(super) unacked: BTreeMap<u64, (u64, Time)>,
    pub(super) unacked_bytes: u64,
    next_sequence: u64,
    /// A write completed to the application before the peer had written it: the next write must
    /// not overtake it there (rule 5).
    pub(super) barrier_due: bool,
}

impl Transfer {
    pub(super) fn new() -> Transfer {
        Transfer {
            entries: VecDeque::new(),
            next_position: 1,
            durable: 0,
            flushes: BTreeMap::new(),
            next_flush: 1,
            tracks: (0..MAX_ENTRIES as u32).rev().collect(),
            unacked: BTreeMap::new(),
            unacked_bytes: 0,
            next_sequence: 1,
            barrier_due: false,
        }
    }

    /// Whether another write may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < MAX_ENTRIES && !self.tracks.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Position up to which everything is durable on the peer.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// The sequence number that the next write of the session gets.
    pub(super) fn take_sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence - 1
    }

    /// Last sequence number given out.
    pub(super) fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Adds an application write; returns its position and its slot in the tracking table.
    pub(super) fn push_write(
        &mut self,
        key: u64,
        volume: usize,
        span: Span,
        now: Time,
    ) -> (u64, u32) {
        let track = self.tracks.pop().unwrap_or(u32::MAX);
        let kind = Kind::Write { key, track };
        (self.push(volume, span, kind, now), track)
    }

    /// A slot of the tracking table can be used again.
    pub(super) fn free_track(&mut self, track: u32) {
        self.tracks.push(track);
    }

    /// Adds a sync block that is complete at the target; returns its position.
    pub(super) fn push_sync(&mut self, volume: usize, span: Span, now: Time) -> u64 {
        self.push(volume, span, Kind::Sync, now)
    }

    fn push(&mut self, volume: usize, span: Span, kind: Kind, since: Time) -> u64 {
        let position = self.next_position;
        self.next_position += 1;
        self.entries.push_back(Entry {
            position,
            volume,
            span,
            kind,
            since,
        });
        position
    }

    /// Whether enough has gathered that the peer should make it durable.
    pub(super) fn is_long(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES / 2
    }

    /// A write failed at the peer: sync blocks over the same range must not clear its bits.
    pub(super) fn void_syncs(&mut self, volume: usize, span: Span) {
        self.entries.retain(|entry| {
            entry.kind != Kind::Sync || entry.volume != volume || !entry.span.overlaps(span)
        });
    }

    /// A flush that covers everything so far: a new one to send, or None when the newest one
    /// under way covers it already. `waiter` is told when it is done.
    pub(super) fn flush(&mut self, waiter: Option<u64>, must_be_new: bool) -> Option<u64> {
        let mark = self.next_position - 1;
        if !must_be_new
            && let Some(newest) = self.flushes.values_mut().next_back()
            && newest.mark == mark
        {
            newest.waiters.extend(waiter);
            return None;
        }
        let id = self.next_flush;
        self.next_flush += 1;
        self.flushes.insert(
            id,
            PeerFlush {
                mark,
                waiters: waiter.into_iter().collect(),
            },
        );
        Some(id)
    }

    pub(super) fn flush_under_way(&self) -> bool {
        !self.flushes.is_empty()
    }

    /// A flush was answered. Returns its waiters and, when it succeeded, the entries that it made
    /// durable.
    pub(super) fn flush_done(&mut self, id: u64, ok: bool) -> Option<(Vec<u64>, Vec<Entry>)> {
        let flush = self.flushes.remove(&id)?;
        if !ok {
            return Some((flush.waiters, Vec::new()));
        }
        self.durable = self.durable.max(flush.mark);
        let mut done = Vec::new();
        while let Some(entry) = self.entries.front()
            && entry.position <= flush.mark
        {
            done.push(*entry);
            self.entries.pop_front();
        }
        Some((flush.waiters, done))
    }

    /// When the oldest entry was made.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.entries.front().map(|entry| entry.since)
    }

    /// When the oldest unfinished write was sent.
    pub(super) fn oldest_unacked(&self) -> Option<Time> {
        self.unacked.values().next().map(|(_, since)| *since)
    }

    /// The peer's disk of one volume is gone: hands out that volume's entries.
    pub(super) fn end_volume(&mut self, volume: usize) -> Vec<Entry> {
        let ended: Vec<Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.volume == volume)
            .copied()
            .collect();
        self.entries.retain(|entry| entry.volume != volume);
        ended
    }

    /// The session is over: hands out the entries, the keys of unfinished writes and the
    /// application flushes that waited.
    pub(super) fn end(&mut self) -> (Vec<Entry>, Vec<u64>, Vec<u64>) {
        let ended = std::mem::replace(self, Transfer::new());
        let writes = ended.unacked.into_values().map(|(key, _)| key).collect();
        let waiters = ended
            .flushes
            .into_values()
            .flat_map(|flush| flush.waiters)
            .collect();
        (ended.entries.into(), writes, waiters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_came_before_it_only() {
        let mut log = Transfer::new();
        log.push_write(1, 0, Span::new(0, 512), Time(1));
        let flush = log.flush(Some(9), false).expect("new");
        log.push_write(1, 0, Span::new(512, 512), Time(2));
        let (waiters, done) = log.flush_done(flush, true).expect("known");
        assert_eq!((waiters, done.len(), log.durable()), (vec![9], 1, 1));
        assert!(!log.is_empty());
        assert!(log.flush_done(flush, true).is_none());
    }

    #[test]
    fn a_failed_flush_makes_nothing_durable() {
        let mut log = Transfer::new();
        log.push_write(1, 0, Span::new(0, 512), Time(1));
        let flush = log.flush(None, false).expect("new");
        assert_eq!(
            log.flush_done(flush, false).map(|(_, done)| done.len()),
            Some(0)
        );
        assert_eq!((log.durable(), log.is_empty()), (0, false));
    }

    #[test]
    fn a_failed_write_voids_sync_blocks_over_it() {
        let mut log = Transfer::new();
        log.push_sync(0, Span::new(0, 65536), Time(1));
        log.push_sync(0, Span::new(65536, 65536), Time(1));
        log.void_syncs(0, Span::new(4096, 512));
        let flush = log.flush(None, false).expect("new");
        let (_, done) = log.flush_done(flush, true).expect("known");
        assert_eq!(
            done.iter().map(|e| e.span.start).collect::<Vec<_>>(),
            vec![65536]
        );
    }
}
