//! Frames on the wire, and the life of connections between the two drivers.

use std::rc::Rc;

use lockstep::engine::{Buffer, Envelope, Event, LinkId, LinkLoss, Message, NodeId};

use crate::disk::SECTOR;
use crate::network::{Delivery, Frame};
use crate::node::{Node, Received};
use crate::oracle::Check;
use crate::schedule::MILLI;
use crate::world::{Happening, World};

impl World {
    pub fn send(
        &mut self,
        node: usize,
        link: LinkId,
        envelope: Envelope,
        payload: Option<(Buffer, u32)>,
    ) {
        let link = link.0 as usize;
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        if self
            .network
            .links
            .get(link)
            .is_none_or(|l| l.closed[node] || !l.up[node])
        {
            return;
        }
        let payload = match payload {
            None => None,
            Some((buffer, len)) => match process.stamps(buffer, len as usize / SECTOR as usize) {
                Some(stamps) => Some(Rc::from(stamps)),
                None => {
                    let text =
                        format!("node {node} sends {len} bytes of {buffer:?}: gone or short");
                    return self.oracle.report(12, Check::Contract, text);
                }
            },
        };
        if matches!(envelope.message, Message::Ready) {
            self.check_session(node, link);
        }
        self.learn_session(node, link, envelope.session);
        self.note_carrier(node, &envelope);
        let frame = Frame::Message(Box::new(envelope), payload);
        self.put(link, node, frame);
    }

    /// Puts a frame on the wire.
    pub fn put(&mut self, link: usize, direction: usize, frame: Frame) {
        let now = self.schedule.now();
        if let Some(delivery) = self
            .network
            .send(link, direction, frame, now, &mut self.rng)
        {
            self.deliver(delivery);
        }
    }

    pub fn deliver(&mut self, delivery: Delivery) {
        let Delivery {
            link,
            direction,
            at,
        } = delivery;
        self.schedule.at(at, Happening::Arrive { link, direction });
    }

    pub fn arrive(&mut self, link: usize, direction: usize) {
        let side = 1 - direction;
        let Some(frame) = self.network.arrive(link, direction) else {
            return;
        };
        let state = &self.network.links[link];
        // A driver may have read frames before it was told to close their link.
        let late = state.closed[side] && self.nodes[side].process.is_some() && self.rng.chance(300);
        if state.closed[side] && !late {
            if !self.network.links[link].closed[direction] {
                self.put(link, side, Frame::Close);
            }
            return;
        }
        match frame {
            Frame::Close if late => {}
            Frame::Close => {
                self.network.links[link].closed[side] = true;
                let reason = LinkLoss::Closed;
                self.feed(
                    side,
                    Event::LinkDown {
                        link: LinkId(link as u64),
                        reason,
                    },
                );
                self.redial();
            }
            Frame::Message(envelope, payload) => {
                self.learn_session(side, link, envelope.session);
                let Some(process) = &mut self.nodes[side].process else {
                    return;
                };
                let buffer = payload.map(|payload| {
                    let sync = matches!(envelope.message, Message::SyncWrite { .. });
                    let (session, term) = (envelope.session, envelope.term);
                    process.keep(Received {
                        payload,
                        session,
                        term,
                        sync,
                    })
                });
                let link = LinkId(link as u64);
                self.feed(
                    side,
                    Event::Message {
                        link,
                        envelope: *envelope,
                        buffer,
                    },
                );
            }
        }
    }

    /// A process takes a replicated write from a link that it has not given up. What a stopped one
    /// finds in its sockets when it goes on may be of one that it gives up first.
    pub fn note_received(&mut self, node: usize, event: &Event) {
        let Event::Message {
            link,
            envelope,
            buffer: Some(Buffer::Received(slot)),
        } = event
        else {
            return;
        };
        let late = self.network.links[link.0 as usize].closed[node];
        if late || !matches!(envelope.message, Message::Write { .. }) {
            return;
        }
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        if let Some(Some(received)) = process.received.get(*slot as usize) {
            for stamp in received.payload.iter() {
                self.oracle.received(*stamp, process.incarnation);
            }
        }
    }

    pub fn want_link(&mut self, node: usize, want: bool) {
        if let Some(process) = &mut self.nodes[node].process {
            process.want_link = want;
        }
        self.redial();
    }

    /// Makes sure that an attempt to connect is on its way while one is wanted.
    pub fn redial(&mut self) {
        if !self.dialing {
            self.dialing = true;
            let back_off = self.rng.range(20, 600) * MILLI;
            self.schedule.after(back_off, Happening::Dial);
        }
    }

    /// The lower node dials.
    pub fn dial(&mut self) {
        self.dialing = false;
        let wants = |n: &Node| n.process.as_ref().is_some_and(|p| p.want_link);
        if !wants(&self.nodes[0]) {
            return;
        }
        if self.network.current(0).is_some() {
            return;
        }
        let ready = wants(&self.nodes[1]) && self.nodes.iter().all(|n| !n.paused);
        if !ready || !self.network.reachable() {
            return self.redial();
        }
        let now = self.schedule.now();
        let mean = self.plan.network_latency;
        let up_at = [now + self.rng.delay(mean), now + self.rng.delay(mean)];
        let link = self.network.open(up_at);
        for (side, at) in up_at.into_iter().enumerate() {
            self.schedule.at(at, Happening::Up { link, side });
        }
    }

    pub fn link_up(&mut self, link: usize, side: usize) {
        let dead = self.network.links[link].dead || self.network.links[link].closed[side];
        let wanted = self.nodes[side]
            .process
            .as_ref()
            .is_some_and(|p| p.want_link);
        if dead || !wanted {
            self.network.links[link].closed[side] = true;
            self.put(link, side, Frame::Close);
            return self.redial();
        }
        self.network.links[link].up[side] = true;
        let peer = NodeId(1 - side as u8);
        self.feed(
            side,
            Event::LinkUp {
                link: LinkId(link as u64),
                peer,
            },
        );
    }

    pub fn link_broken(&mut self, link: usize, side: usize) {
        let state = &mut self.network.links[link];
        if state.up[side] && !state.closed[side] {
            state.closed[side] = true;
            let reason = LinkLoss::Network(104);
            self.feed(
                side,
                Event::LinkDown {
                    link: LinkId(link as u64),
                    reason,
                },
            );
        }
        self.network.links[link].closed[side] = true;
        self.redial();
    }

    pub fn close_link(&mut self, node: usize, link: LinkId) {
        let link = link.0 as usize;
        if self.network.links.get(link).is_none_or(|l| l.closed[node]) {
            return;
        }
        self.network.links[link].closed[node] = true;
        if let Some(process) = &mut self.nodes[node].process {
            process.parted = true;
        }
        if self.rng.chance(300) {
            // Unsent frames go with the connection; deliveries of theirs find an empty queue.
            self.network.truncate(link, node, &mut self.rng);
        }
        self.put(link, node, Frame::Close);
        self.redial();
    }
}
