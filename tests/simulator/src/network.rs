//! Connections between the two data nodes.
//!
//! A link is one transport connection. Each direction is a FIFO of frames with its own delays;
//! frames of different links overtake each other freely. A cut direction holds its frames back
//! (as retransmission would) until it heals or the connection dies. The ends of a link learn of
//! its death separately or not at all: half-open connections need no special case.

use std::collections::VecDeque;
use std::rc::Rc;

use lockstep::engine::Envelope;

use crate::rng::Rng;
use crate::schedule::{Instant, MICRO};

/// Payload of a frame: one stamp per sector.
pub type Payload = Rc<[u64]>;

/// What travels on a link.
pub enum Frame {
    Message(Box<Envelope>, Option<Payload>),
    /// The sender's end is closed (FIN or RST).
    Close,
}

/// One connection. Side 0 is node 0. Direction `d` leads from side `d` to side `1 - d`.
#[derive(Default)]
pub struct Link {
    queues: [VecDeque<Frame>; 2],
    /// Deliveries that met a cut direction.
    stalled: [u32; 2],
    last: [Instant; 2],
    /// The side has been told that the link is up.
    pub up: [bool; 2],
    /// The side has closed its end or was told of the end.
    pub closed: [bool; 2],
    /// Nothing travels any more (lost connection).
    pub dead: bool,
}

/// A delivery that the world shall schedule.
pub struct Delivery {
    pub link: usize,
    pub direction: usize,
    pub at: Instant,
}

/// Every link ever made and the state of the wire between the nodes.
pub struct Network {
    pub links: Vec<Link>,
    /// Nothing passes in this direction.
    pub cut: [bool; 2],
    /// Mean delay of a frame.
    pub latency: Instant,
}

impl Network {
    pub fn new(latency: Instant) -> Network {
        Network {
            links: Vec::new(),
            cut: [false; 2],
            latency,
        }
    }

    /// Whether a new connection can be made now.
    pub fn reachable(&self) -> bool {
        self.cut == [false; 2]
    }

    /// A new link; side `s` is told at `up_at[s]`, and no frame reaches it earlier.
    pub fn open(&mut self, up_at: [Instant; 2]) -> usize {
        self.links.push(Link {
            last: [up_at[1], up_at[0]],
            ..Link::default()
        });
        self.links.len() - 1
    }

    /// Queues a frame and says when its direction delivers one more. `None`: it is lost.
    pub fn send(
        &mut self,
        link: usize,
        direction: usize,
        frame: Frame,
        now: Instant,
        rng: &mut Rng,
    ) -> Option<Delivery> {
        let latency = self.latency;
        let l = &mut self.links[link];
        if l.dead {
            return None;
        }
        let at = (now + rng.delay(latency)).max(l.last[direction] + MICRO);
        l.last[direction] = at;
        l.queues[direction].push_back(frame);
        Some(Delivery {
            link,
            direction,
            at,
        })
    }

    /// Takes the frame whose delivery is due, unless the direction is cut.
    pub fn arrive(&mut self, link: usize, direction: usize) -> Option<Frame> {
        let l = &mut self.links[link];
        if self.cut[direction] && !l.dead {
            l.stalled[direction] += 1;
            return None;
        }
        l.queues[direction].pop_front()
    }

    /// Loses a random tail of what a closing or dying side had sent.
    pub fn truncate(&mut self, link: usize, direction: usize, rng: &mut Rng) {
        let queue = &mut self.links[link].queues[direction];
        let keep = rng.below(queue.len() as u64 + 1) as usize;
        queue.truncate(keep);
    }

    /// The connection is lost in both directions; nobody is told by this.
    pub fn kill(&mut self, link: usize) {
        let l = &mut self.links[link];
        l.dead = true;
        l.queues.iter_mut().for_each(VecDeque::clear);
    }

    /// Ends cuts; held-back frames are delivered in their order.
    pub fn heal(&mut self, directions: [bool; 2], now: Instant) -> Vec<Delivery> {
        let mut out = Vec::new();
        for direction in (0..2).filter(|d| directions[*d]) {
            self.cut[direction] = false;
            for (index, l) in self.links.iter_mut().enumerate() {
                for n in 0..std::mem::take(&mut l.stalled[direction]) {
                    let at = now + MICRO * (1 + u64::from(n));
                    l.last[direction] = l.last[direction].max(at);
                    out.push(Delivery {
                        link: index,
                        direction,
                        at,
                    });
                }
            }
        }
        out
    }

    /// The newest link that `side` believes to be up.
    pub fn current(&self, side: usize) -> Option<usize> {
        self.links
            .iter()
            .rposition(|l| l.up[side] && !l.closed[side])
    }

    /// Whether both sides are on the same link and it works. Under protocols A and B a link that
    /// died unnoticed may have taken completed writes along.
    pub fn sound(&self) -> bool {
        let both = (self.current(0), self.current(1));
        matches!(both, (Some(a), Some(b)) if a == b && !self.links[a].dead)
    }

    /// Whether frames with replicated data or acknowledgements are on their way.
    pub fn idle(&self) -> bool {
        self.links
            .iter()
            .all(|l| l.dead || l.queues.iter().all(VecDeque::is_empty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep::engine::{Message, Session, Term};

    fn frame(number: u64) -> Frame {
        let envelope = Envelope {
            session: Session(0),
            term: Term::ZERO,
            frame: number,
            message: Message::Ping,
        };
        Frame::Message(Box::new(envelope), None)
    }

    fn number(frame: Option<Frame>) -> Option<u64> {
        match frame {
            Some(Frame::Message(envelope, _)) => Some(envelope.frame),
            _ => None,
        }
    }

    #[test]
    fn a_direction_is_a_fifo() {
        let mut rng = Rng::new(5);
        let mut network = Network::new(1000);
        let link = network.open([0, 500]);
        let times: Vec<Instant> = (0..50)
            .filter_map(|n| network.send(link, 0, frame(n), n, &mut rng))
            .map(|d| d.at)
            .collect();
        assert_eq!(times.len(), 50);
        assert!(times[0] > 500, "nothing arrives before the link is up");
        assert!(times.is_sorted());
        assert!((0..50).all(|n| number(network.arrive(link, 0)) == Some(n)));
        assert!(network.idle());
    }

    #[test]
    fn a_cut_direction_holds_frames_until_it_heals() {
        let mut rng = Rng::new(5);
        let mut network = Network::new(1000);
        let link = network.open([0, 0]);
        network.cut[0] = true;
        for n in 0..3 {
            network.send(link, 0, frame(n), 0, &mut rng);
            assert!(network.arrive(link, 0).is_none());
        }
        network.send(link, 1, frame(9), 0, &mut rng);
        assert_eq!(number(network.arrive(link, 1)), Some(9));
        let deliveries = network.heal([true, false], 10_000);
        assert_eq!(deliveries.len(), 3);
        assert!((0..3).all(|n| number(network.arrive(link, 0)) == Some(n)));
    }

    #[test]
    fn a_dead_link_delivers_nothing() {
        let mut rng = Rng::new(5);
        let mut network = Network::new(1000);
        let link = network.open([0, 0]);
        network.send(link, 0, frame(1), 0, &mut rng);
        network.kill(link);
        assert!(network.arrive(link, 0).is_none());
        assert!(network.send(link, 1, frame(2), 0, &mut rng).is_none());
    }
}
