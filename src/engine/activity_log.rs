//! The activity log: which 4 MiB extents may be written without a metadata write.
//!
//! An extent is *hot* once its entry is durable. A write holds its extents from before its
//! submission until it has ended; an extent without holders may leave when it is *settled*
//! (rule 4). What settled means is known to the caller: it passes a judge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ids::Span;
use super::persist::{LogTransaction, SlotChange};

/// Bytes of data per extent.
pub(super) const EXTENT_BYTES: u64 = 4 << 20;

/// What is needed to know whether the writes of an extent are durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LastWrite {
    /// Local write number of the volume.
    pub(super) local: u64,
    /// Position in the transfer log; 0 = nothing on its way to the peer.
    pub(super) transfer: u64,
}

#[derive(Clone, Debug)]
struct Slot {
    extent: u32,
    holders: u32,
    /// The entry is on disk.
    durable: bool,
    idle_since: u64,
    last: LastWrite,
}

/// Outcome of [`ActivityLog::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acquire {
    /// All extents are hot and held.
    Hot,
    /// All extents have slots and are held; hot after transaction `.0`.
    AfterTransaction(u64),
    /// Nothing is held: the slots that could leave are not settled.
    Unsettled,
    /// Nothing is held: every slot is in use by writes.
    Full,
}

/// Slot table with its pending changes.
pub(super) struct ActivityLog {
    slots: Vec<Slot>,
    by_extent: BTreeMap<u32, u16>,
    free: Vec<u16>,
    /// Slots without holders, oldest first.
    idle: BTreeSet<(u64, u16)>,
    clock: u64,
    pending: Vec<SlotChange>,
    /// Transactions handed out, and known durable.
    issued: u64,
    durable: u64,
}

impl ActivityLog {
    /// A table of `slots`, filled with the extents found in the log at attach.
    pub(super) fn new(slots: u16, recovered: &[u32]) -> ActivityLog {
        let count = usize::from(slots).max(recovered.len());
        let mut log = ActivityLog {
            slots: vec![
                Slot {
                    extent: LogTransaction::FREE,
                    holders: 0,
                    durable: true,
                    idle_since: 0,
                    last: LastWrite::default(),
                };
                count
            ],
            by_extent: BTreeMap::new(),
            free: Vec::new(),
            idle: BTreeSet::new(),
            clock: 0,
            pending: Vec::new(),
            issued: 0,
            durable: 0,
        };
        for index in (0..count).rev() {
            let extent = recovered
                .get(index)
                .copied()
                .unwrap_or(LogTransaction::FREE);
            let slot = index as u16;
            // A damaged table may name an extent twice; the second slot is simply free.
            if extent == LogTransaction::FREE || log.by_extent.contains_key(&extent) {
                log.free.push(slot);
            } else {
                log.slots[index].extent = extent;
                log.by_extent.insert(extent, slot);
                log.idle.insert((0, slot));
            }
        }
        log
    }

    /// First and last extent of a span.
    pub(super) fn extents(span: Span) -> std::ops::RangeInclusive<u32> {
        let last = span.end().saturating_sub(1).max(span.start);
        (span.start / EXTENT_BYTES) as u32..=(last / EXTENT_BYTES) as u32
    }

    /// Takes hold of all extents of `span`, or of none.
    pub(super) fn acquire(
        &mut self,
        span: Span,
        settled: impl Fn(u32, LastWrite) -> bool,
    ) -> Acquire {
        let extents = ActivityLog::extents(span);
        let missing: Vec<u32> = extents
            .clone()
            .filter(|e| !self.by_extent.contains_key(e))
            .collect();
        let need = missing.len().saturating_sub(self.free.len());
        let victims: Vec<(u64, u16)> = self
            .idle
            .iter()
            .filter(|(_, slot)| {
                let slot = &self.slots[usize::from(*slot)];
                slot.durable && !extents.contains(&slot.extent) && settled(slot.extent, slot.last)
            })
            .take(need)
            .copied()
            .collect();
        if victims.len() < need {
            return if self.idle.is_empty() {
                Acquire::Full
            } else {
                Acquire::Unsettled
            };
        }
        for victim in victims {
            self.idle.remove(&victim);
            self.by_extent
                .remove(&self.slots[usize::from(victim.1)].extent);
            self.free.push(victim.1);
        }
        for extent in missing {
            self.activate(extent);
        }
        let mut hot = true;
        for extent in extents {
            let index = self.by_extent[&extent];
            let slot = &mut self.slots[usize::from(index)];
            if slot.holders == 0 {
                self.idle.remove(&(slot.idle_since, index));
            }
            slot.holders += 1;
            hot &= slot.durable;
        }
        if hot {
            Acquire::Hot
        } else {
            Acquire::AfterTransaction(self.target())
        }
    }

    fn activate(&mut self, extent: u32) {
        let Some(index) = self.free.pop() else { return };
        let slot = &mut self.slots[usize::from(index)];
        slot.extent = extent;
        slot.durable = false;
        slot.holders = 0;
        slot.last = LastWrite::default();
        slot.idle_since = 0;
        self.by_extent.insert(extent, index);
        self.pending.retain(|change| change.slot != index);
        self.pending.push(SlotChange {
            slot: index,
            extent,
        });
    }

    /// The transaction after which everything that is pending now is durable.
    fn target(&self) -> u64 {
        self.issued + self.pending.len().div_ceil(LogTransaction::MAX_CHANGES) as u64
    }

    /// Notes where the last write of the span's extents stands.
    pub(super) fn note(&mut self, span: Span, last: LastWrite) {
        for extent in ActivityLog::extents(span) {
            if let Some(index) = self.by_extent.get(&extent) {
                let slot = &mut self.slots[usize::from(*index)];
                slot.last.local = slot.last.local.max(last.local);
                slot.last.transfer = slot.last.transfer.max(last.transfer);
            }
        }
    }

    /// Notes the same for every slot.
    pub(super) fn note_all(&mut self, last: LastWrite) {
        for slot in &mut self.slots {
            slot.last = last;
        }
    }

    /// The link is gone: what was on its way to the peer is in the bitmap now.
    pub(super) fn forget_transfers(&mut self) {
        for slot in &mut self.slots {
            slot.last.transfer = 0;
        }
    }

    /// Gives up the hold of a write.
    pub(super) fn release(&mut self, span: Span) {
        for extent in ActivityLog::extents(span) {
            if let Some(index) = self.by_extent.get(&extent) {
                let slot = &mut self.slots[usize::from(*index)];
                slot.holders = slot.holders.saturating_sub(1);
                if slot.holders == 0 {
                    self.clock += 1;
                    slot.idle_since = self.clock;
                    self.idle.insert((self.clock, *index));
                }
            }
        }
    }

    /// The next transaction to write, when there is something pending.
    pub(super) fn next_transaction(&mut self) -> Option<(u64, LogTransaction)> {
        if self.pending.is_empty() {
            return None;
        }
        let count = self.pending.len().min(LogTransaction::MAX_CHANGES);
        let changes: Vec<SlotChange> = self.pending.drain(..count).collect();
        self.issued += 1;
        let table = self.slots.iter().map(|slot| slot.extent).collect();
        Some((
            self.issued,
            LogTransaction {
                changes,
                table: Arc::new(table),
            },
        ))
    }

    /// A transaction is durable.
    pub(super) fn transaction_done(&mut self, number: u64, changes: &[SlotChange]) {
        self.durable = self.durable.max(number);
        for change in changes {
            let slot = &mut self.slots[usize::from(change.slot)];
            if slot.extent == change.extent {
                slot.durable = true;
            }
        }
    }

    /// Whether transaction `number` is durable.
    pub(super) fn is_durable(&self, number: u64) -> bool {
        self.durable >= number
    }

    /// Whether every extent of the span is hot.
    #[cfg(test)]
    fn hot(&self, span: Span) -> bool {
        ActivityLog::extents(span).all(|e| {
            self.by_extent
                .get(&e)
                .is_some_and(|i| self.slots[usize::from(*i)].durable)
        })
    }

    /// Extents in the table.
    pub(super) fn active(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_extent.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(extent: u64) -> Span {
        Span::new(extent * EXTENT_BYTES, 4096)
    }

    fn commit(log: &mut ActivityLog) {
        while let Some((number, transaction)) = log.next_transaction() {
            log.transaction_done(number, &transaction.changes);
        }
    }

    #[test]
    fn an_extent_is_hot_only_after_its_transaction() {
        let mut log = ActivityLog::new(4, &[]);
        let Acquire::AfterTransaction(number) = log.acquire(span(7), |_, _| true) else {
            panic!("first use needs a transaction")
        };
        assert!(!log.is_durable(number) && !log.hot(span(7)));
        commit(&mut log);
        assert!(log.is_durable(number) && log.hot(span(7)));
        assert_eq!(log.acquire(span(7), |_, _| true), Acquire::Hot);
    }

    #[test]
    fn slots_are_taken_all_or_none() {
        let mut log = ActivityLog::new(2, &[]);
        assert!(matches!(
            log.acquire(span(0), |_, _| true),
            Acquire::AfterTransaction(_)
        ));
        let two = Span::new(EXTENT_BYTES * 2 - 4096, 8192);
        assert_eq!(log.acquire(two, |_, _| true), Acquire::Full);
        commit(&mut log);
        log.release(span(0));
        assert_eq!(log.acquire(two, |_, _| false), Acquire::Unsettled);
        assert!(matches!(
            log.acquire(two, |_, _| true),
            Acquire::AfterTransaction(_)
        ));
        assert_eq!(log.active().collect::<Vec<_>>(), vec![1, 2]);
    }

    #[test]
    fn a_held_extent_never_leaves() {
        let mut log = ActivityLog::new(2, &[]);
        log.acquire(span(0), |_, _| true);
        log.acquire(span(1), |_, _| true);
        commit(&mut log);
        log.release(span(1));
        log.acquire(span(2), |_, _| true);
        commit(&mut log);
        assert_eq!(log.active().collect::<Vec<_>>(), vec![0, 2]);
        assert_eq!(log.acquire(span(3), |_, _| true), Acquire::Full);
    }

    #[test]
    fn a_reused_slot_is_not_hot_because_of_its_former_extent() {
        let mut log = ActivityLog::new(1, &[]);
        log.acquire(span(0), |_, _| true);
        let (number, first) = log.next_transaction().expect("pending");
        log.transaction_done(number, &first.changes);
        log.release(span(0));
        assert!(matches!(
            log.acquire(span(1), |_, _| true),
            Acquire::AfterTransaction(_)
        ));
        log.transaction_done(number, &first.changes);
        assert!(!log.hot(span(1)));
    }

    #[test]
    fn recovered_extents_stay_in_the_log() {
        let log = ActivityLog::new(4, &[5, LogTransaction::FREE, 9, 5]);
        assert_eq!(log.active().collect::<Vec<_>>(), vec![5, 9]);
    }
}
