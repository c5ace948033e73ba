//! Repair of what a verify has found: the ranges are copied from one side to the other while both
//! copies stay in use.
//!
//! The side with the good data sends the blocks as a sync does: a block is claimed, read when no
//! write over it is open, and free again with the other side's answer; a primary that receives it
//! refuses it over a write of its own, and it comes again (rule 9). So the other copy gets, range
//! by range, exactly what it should have had, and needs no state of its own meanwhile: if the
//! repair ends half way, what is left of the list is still wrong, and still listed.
//!
//! The node that ran the verify keeps the list. If the good data is the peer's, it asks for the
//! ranges, a batch at a time.

use super::action::Notice;
use super::ids::{NodeId, Span};
use super::message::Message;
use super::pace::Pace;
use super::reason::LinkLoss;
use super::resource::Engine;
use super::sync::Sync;

/// Ranges that are under way at a time.
const BATCH: usize = 1024;
/// The longest range of a list, bytes: what a frame may span.
const LONGEST: u64 = 64 << 20;

/// The repair that follows a verify of this node.
#[derive(Debug)]
pub(super) struct Repair {
    from: NodeId,
    batch: Vec<Span>,
    bytes: u64,
}

/// Ranges that are to be sent to the peer.
#[derive(Debug, Default)]
pub(super) struct Order {
    spans: Vec<Span>,
    /// The list is whole.
    whole: bool,
    /// For the peer, that is told when it is done.
    of_peer: bool,
}

/// A range in pieces that fit a frame.
fn pieces(range: std::ops::Range<u64>) -> impl Iterator<Item = Span> {
    let end = range.end;
    range
        .step_by(LONGEST as usize)
        .map(move |start| Span::new(start, LONGEST.min(end - start) as u32))
}

impl Engine {
    pub(super) fn begin_repair(&mut self, volume: usize, from: NodeId) {
        self.volumes[volume].verify.repair = Some(Repair {
            from,
            batch: Vec::new(),
            bytes: 0,
        });
        self.next_batch(volume);
    }

    fn next_batch(&mut self, volume: usize) {
        let own = self.config.node;
        let v = &mut self.volumes[volume];
        let (id, batch): (_, Vec<Span>) = (
            v.id,
            v.verify.found.iter().flat_map(pieces).take(BATCH).collect(),
        );
        let Some(repair) = v.verify.repair.as_mut() else {
            return;
        };
        if batch.is_empty() {
            let bytes = repair.bytes;
            v.verify.repair = None;
            self.publish(Notice::Repaired { volume: id, bytes });
            return self.end_verify(volume);
        }
        repair.batch.clone_from(&batch);
        if repair.from == own {
            v.order = Order {
                spans: batch,
                whole: true,
                of_peer: false,
            };
        } else {
            let count = batch.len();
            for (n, span) in (1..).zip(batch) {
                let last = n == count;
                let message = Message::Repair {
                    volume: id,
                    span,
                    last,
                };
                self.send(message, None);
            }
        }
        self.progress = true;
    }

    /// The ranges of the batch are equal now, durably.
    pub(super) fn batch_repaired(&mut self, volume: usize) {
        let known = &mut self.volumes[volume].verify;
        let Some(repair) = known.repair.as_mut() else {
            return;
        };
        for span in std::mem::take(&mut repair.batch) {
            known.found.remove(&(span.start..span.end()));
            repair.bytes += u64::from(span.len);
            known.repaired += u64::from(span.len);
        }
        self.next_batch(volume);
    }

    /// The peer asks for a range of ours.
    pub(super) fn on_repair_asked(&mut self, volume: usize, span: Span, last: bool) {
        let order = &mut self.volumes[volume].order;
        if order.whole || order.spans.len() >= BATCH {
            return self.drop_link(LinkLoss::Protocol("a second list of ranges to repair"));
        }
        order.spans.push(span);
        order.whole = last;
        order.of_peer = true;
        self.progress = true;
    }

    pub(super) fn settle_repair(&mut self) {
        for volume in 0..self.volumes.len() {
            if !self.verifiable(volume) {
                self.stop_repair(volume);
            } else if self.volumes[volume].order.whole {
                self.follow_order(volume);
            }
        }
    }

    /// A copy does not take part any more: what is left stays on the list.
    fn stop_repair(&mut self, volume: usize) {
        let v = &mut self.volumes[volume];
        v.verify.repair = None;
        v.order = Order::default();
        if v.sync.as_ref().is_some_and(Sync::is_repair) {
            self.abandon_sync(volume);
        }
    }

    fn follow_order(&mut self, volume: usize) {
        let now = self.now;
        let v = &mut self.volumes[volume];
        match &v.sync {
            None => {
                let spans = std::mem::take(&mut v.order.spans);
                v.sync = Some(Sync::of_ranges(spans, Pace::new(v.limits, now)));
                self.progress = true;
            }
            Some(sync) if sync.is_sent() && sync.last_sent() <= self.transfer.durable() => {
                let (id, of_peer) = (v.id, v.order.of_peer);
                v.order = Order::default();
                self.abandon_sync(volume);
                match of_peer {
                    true => self.send(Message::RepairDone { volume: id }, None),
                    false => self.batch_repaired(volume),
                }
            }
            Some(sync) if sync.is_sent() => self.want_peer_flush(),
            Some(_) => {}
        }
    }
}
