//! Two engines in a perfect world: the paths that every set-up takes, as unit tests.

use std::collections::{BTreeMap, VecDeque};

use super::*;

mod disks;
mod limits;
mod pause;
mod sessions;
mod thin;
mod totals;
mod verify;

const SIZE: u64 = 64 << 20;

/// A driver without faults: disks hold a stamp per sector, everything completes in order.
struct Node {
    engine: Engine,
    disk: BTreeMap<u64, u64>,
    buffers: BTreeMap<Buffer, Vec<u64>>,
    superblock: Option<Superblock>,
    bitmap: Vec<u64>,
    closed: bool,
    shape: Option<Shape>,
    results: Vec<(CommandId, Result<(), Refusal>)>,
    completed: Vec<(RequestId, Result<(), IoFailure>)>,
    want_link: bool,
    serving: bool,
    notices: Vec<Notice>,
    /// The agent's table of ranges in flight, and whether it says all.
    tracked: BTreeMap<u32, Span>,
    exact: bool,
    /// Data writes, and flushes, that are kept from completing while these are set.
    held: Option<Vec<IoId>>,
    held_flushes: Option<Vec<IoId>>,
}

impl Node {
    /// A data plane that has just been started, for the `life`th time.
    fn new(id: u8, protocol: Protocol, life: u64) -> Node {
        let mut config = config(id, protocol);
        config.seed += u128::from(life) << 64;
        Node {
            engine: Engine::new(config),
            disk: BTreeMap::new(),
            buffers: BTreeMap::new(),
            superblock: None,
            bitmap: Vec::new(),
            closed: false,
            shape: None,
            results: Vec::new(),
            completed: Vec::new(),
            want_link: false,
            serving: false,
            notices: Vec::new(),
            tracked: BTreeMap::new(),
            exact: true,
            held: None,
            held_flushes: None,
        }
    }
}

/// Something on its way to a node, in one queue so that everything stays in order.
enum To {
    Frame(usize, LinkId, Envelope),
    Io(usize, IoId, IoOutcome),
    Closed(usize, LinkId),
}

struct Pair {
    nodes: [Node; 2],
    now: Time,
    wire: VecDeque<(To, Option<Vec<u64>>)>,
    link: Option<LinkId>,
    next: u64,
}

fn image() -> Box<VolumeImage> {
    Box::new(VolumeImage {
        superblock: Superblock::fresh(NodeId(0), 1),
        capacity: SIZE,
        logical_block: 512,
        volatile_cache: true,
        discard: true,
        log: Vec::new(),
        bitmap: Vec::new(),
        in_flight: None,
    })
}

fn config(node: u8, protocol: Protocol) -> Config {
    Config {
        node: NodeId(node),
        peer: NodeId(1 - node),
        volumes: vec![VolumeId(0)],
        limits: Default::default(),
        csums: false,
        guarded: false,
        protocol,
        timeouts: Timeouts::default(),
        vote: VoteMode::Operator,
        al_extents: 7,
        resync_buffers: 4,
        resync_chunk: 1 << 20,
        max_unacked_bytes: 16 << 20,
        boot_id: 1,
        seed: u128::from(node) + 77,
        #[cfg(feature = "sabotage")]
        sabotage: None,
    }
}

impl Node {
    fn store_pages(&mut self, pages: &[(u32, Box<[u8]>)]) {
        self.bitmap.resize((SIZE / 4096 / 64) as usize, 0);
        for (page, bytes) in pages {
            let words = bytes
                .chunks(8)
                .map(|b| b.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b)));
            let at = *page as usize * BITMAP_PAGE_BYTES / 8;
            self.bitmap[at..]
                .iter_mut()
                .zip(words)
                .for_each(|(old, new)| *old = new);
        }
    }

    /// What an attach would read.
    fn stored(&self) -> Box<VolumeImage> {
        Box::new(VolumeImage {
            superblock: self.superblock.clone().expect("written"),
            bitmap: self.bitmap.clone(),
            ..*image()
        })
    }
}

impl Pair {
    fn new(protocol: Protocol) -> Pair {
        Pair {
            nodes: [0, 1].map(|id| Node::new(id, protocol, 0)),
            now: Time(1),
            wire: VecDeque::new(),
            link: None,
            next: 1,
        }
    }

    /// Attached and connected, A primary with an initial sync done.
    fn synced(protocol: Protocol) -> Pair {
        let mut pair = Pair::new(protocol);
        for node in 0..2 {
            assert_eq!(pair.attach(node, image()), Ok(()));
            assert_eq!(
                pair.command(
                    node,
                    Command::Connect {
                        discard_my_data: false
                    }
                ),
                Ok(())
            );
        }
        assert_eq!(
            pair.command(
                0,
                Command::Primary {
                    force: false,
                    ground: Ground::Operator
                }
            ),
            Err(Refusal::DiskInconsistent {
                volume: VolumeId(0)
            })
        );
        let force = Command::Primary {
            force: true,
            ground: Ground::Operator,
        };
        assert_eq!(pair.command(0, force), Ok(()));
        pair.run();
        assert_eq!(
            pair.states(),
            [
                "Primary UpToDate UpToDate Established",
                "Secondary UpToDate UpToDate Established"
            ]
        );
        pair
    }

    fn states(&self) -> [String; 2] {
        [0, 1].map(|node: usize| {
            let status = self.nodes[node].engine.status();
            let peer = &status.connection.peer_devices[0];
            format!(
                "{} {} {} {}",
                status.role, status.devices[0].disk, peer.peer_disk, peer.replication
            )
        })
    }

    /// Sectors that are not zero.
    fn data(&self, node: usize) -> Vec<(u64, u64)> {
        let disk = &self.nodes[node].disk;
        disk.iter()
            .filter(|(_, stamp)| **stamp != 0)
            .map(|(s, stamp)| (*s, *stamp))
            .collect()
    }

    fn attach(&mut self, node: usize, image: Box<VolumeImage>) -> Result<(), Refusal> {
        self.command(
            node,
            Command::Attach {
                volume: VolumeId(0),
                image,
            },
        )
    }

    fn command(&mut self, node: usize, command: Command) -> Result<(), Refusal> {
        let id = self.start_command(node, command);
        self.run();
        let results = &self.nodes[node].results;
        results
            .iter()
            .find(|(c, _)| *c == id)
            .expect("answered")
            .1
            .clone()
    }

    fn start_command(&mut self, node: usize, command: Command) -> CommandId {
        self.next += 1;
        let id = CommandId(self.next);
        self.handle(node, Event::Command { id, command });
        id
    }

    fn request(&mut self, node: usize, op: Op, data: &[u64]) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next as u32);
        self.nodes[node]
            .buffers
            .insert(Buffer::Request(id), data.to_vec());
        let request = Request {
            id,
            volume: VolumeId(0),
            op,
        };
        self.handle(node, Event::Request(request));
        id
    }

    fn result(&self, node: usize, id: RequestId) -> Option<Result<(), IoFailure>> {
        self.nodes[node]
            .completed
            .iter()
            .find(|(r, _)| *r == id)
            .map(|(_, result)| *result)
    }

    fn write(&mut self, node: usize, sector: u64, stamps: &[u64]) -> Result<(), IoFailure> {
        let span = Span::new(sector * 512, stamps.len() as u32 * 512);
        let id = self.request(node, Op::Write { span, fua: false }, stamps);
        self.run();
        self.result(node, id).expect("completed")
    }

    fn cut(&mut self) {
        if let Some(link) = self.link.take() {
            self.wire.retain(|(to, _)| matches!(to, To::Io(..)));
            for node in 0..2 {
                self.handle(
                    node,
                    Event::LinkDown {
                        link,
                        reason: LinkLoss::Closed,
                    },
                );
            }
        }
    }

    fn handle(&mut self, node: usize, event: Event) {
        let mut out = Vec::new();
        self.now = Time(self.now.0 + 1000);
        self.nodes[node].engine.handle(self.now, event, &mut out);
        for action in out {
            self.perform(node, action);
        }
    }

    fn perform(&mut self, node: usize, action: Action) {
        let sectors = |span: Span| span.start / 512..span.end() / 512;
        let n = &mut self.nodes[node];
        let mut io_done = |io, outcome| self.wire.push_back((To::Io(node, io, outcome), None));
        match action {
            Action::Complete { request, result } => n.completed.push((request, result)),
            Action::DiskRead {
                io,
                span,
                buffer,
                note_zeroes,
                ..
            } => {
                let data: Vec<u64> = sectors(span)
                    .map(|s| n.disk.get(&s).copied().unwrap_or(0))
                    .collect();
                let zeroes = note_zeroes && data.iter().all(|stamp| *stamp == 0);
                n.buffers.insert(buffer, data);
                io_done(
                    io,
                    if zeroes {
                        IoOutcome::Zeroes
                    } else {
                        IoOutcome::Done
                    },
                );
            }
            Action::DiskProbe { io, span, .. } => {
                // Sectors that were never written are the holes.
                let data = n.disk.range(span.start / 512..).next();
                let hole = data.map_or(SIZE, |(sector, _)| sector * 512) - span.start;
                let (hole, bytes) = (hole > 0, hole.max(512));
                io_done(io, IoOutcome::Begins { hole, bytes });
            }
            Action::DiskHash {
                io, span, buffer, ..
            } => {
                let data: Vec<u64> = sectors(span)
                    .map(|s| n.disk.get(&s).copied().unwrap_or(0))
                    .collect();
                let bytes: Vec<u8> = data.iter().flat_map(|s| s.to_le_bytes()).collect();
                n.buffers.insert(buffer, data);
                io_done(io, IoOutcome::Hash(*blake3::hash(&bytes).as_bytes()));
            }
            Action::DiskWrite {
                io, span, buffer, ..
            } => {
                let own = matches!(buffer, Buffer::Request(_));
                let noted = !n.exact || n.tracked.values().any(|t| t.overlaps(span));
                assert!(noted || !own, "{span} could differ, and nobody would know");
                let data = n.buffers[&buffer].clone();
                n.disk.extend(sectors(span).zip(data));
                match &mut n.held {
                    Some(held) => held.push(io),
                    None => io_done(io, IoOutcome::Done),
                }
            }
            Action::DiskZeroes { io, span, .. } => {
                n.disk.extend(sectors(span).map(|s| (s, 0)));
                io_done(io, IoOutcome::Done);
            }
            Action::DiskFlush { io, .. } => match &mut n.held_flushes {
                Some(held) => held.push(io),
                None => io_done(io, IoOutcome::Done),
            },
            Action::Meta { io, op, .. } => {
                match op {
                    MetaOp::Superblock(superblock) => n.superblock = Some(*superblock),
                    MetaOp::Bitmap { pages, .. } => n.store_pages(&pages),
                    MetaOp::Log(_) => {}
                }
                io_done(io, IoOutcome::Done);
            }
            Action::Send {
                link,
                envelope,
                payload,
            } => {
                let data =
                    payload.map(|(buffer, len)| n.buffers[&buffer][..len as usize / 512].to_vec());
                self.wire
                    .push_back((To::Frame(1 - node, link, envelope), data));
            }
            Action::Copy { from, to, .. } => {
                let data = n.buffers[&from].clone();
                n.buffers.insert(to, data);
            }
            Action::WantLink { want } => n.want_link = want,
            Action::CloseLink { link } => {
                self.link = None;
                self.wire.push_back((To::Closed(1 - node, link), None));
            }
            Action::CommandDone { command, result } => n.results.push((command, result)),
            Action::Serve { serve, .. } => n.serving = serve,
            Action::Publish(notice) => n.notices.push(notice),
            Action::DiskClosed { .. } => n.closed = true,
            Action::Shape { shape, .. } => n.shape = Some(shape),
            Action::Release { .. } | Action::RecordAtVoter { .. } => {}
            Action::Track { slot, span, .. } => {
                n.tracked.insert(slot, span);
            }
            Action::Untrack { slot } => {
                n.tracked.remove(&slot);
            }
            Action::TrackExact { exact } => n.exact = exact,
        }
    }

    /// Lets everything happen that can, without time passing.
    fn run(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the pair does not come to rest: {:?}", self.states());
    }

    fn connect(&mut self) {
        self.next += 1;
        let link = LinkId(self.next);
        self.link = Some(link);
        for node in 0..2 {
            let peer = NodeId(1 - node as u8);
            self.handle(node, Event::LinkUp { link, peer });
        }
    }

    /// Lets one thing happen; false when there is nothing.
    fn step(&mut self) -> bool {
        if let Some((to, data)) = self.wire.pop_front() {
            self.deliver(to, data);
        } else if self.link.is_none() && self.nodes.iter().all(|n| n.want_link) {
            self.connect();
        } else {
            let due = (0..2)
                .filter_map(|n| self.nodes[n].engine.next_deadline())
                .min();
            let soon = Time(self.now.0 + 2_000_000_000);
            match due {
                Some(at) if at <= soon && self.busy() => {
                    self.now = self.now.max(at);
                    self.handle(0, Event::Tick);
                    self.handle(1, Event::Tick);
                }
                _ => return false,
            }
        }
        true
    }

    /// Waiting for a timer is worth it while something is out of sync or unanswered.
    fn busy(&self) -> bool {
        self.link.is_some()
            && self.nodes.iter().any(|n| {
                let status = n.engine.status();
                status.connection.peer_devices[0].replication != ReplicationState::Established
            })
    }

    fn deliver(&mut self, to: To, data: Option<Vec<u64>>) {
        match to {
            To::Io(node, io, outcome) => self.handle(node, Event::Io { io, outcome }),
            To::Closed(node, link) => {
                let reason = LinkLoss::Closed;
                self.handle(node, Event::LinkDown { link, reason });
            }
            To::Frame(node, link, envelope) => {
                let buffer = data.map(|data| {
                    self.next += 1;
                    let buffer = Buffer::Received(self.next as u32);
                    self.nodes[node].buffers.insert(buffer, data);
                    buffer
                });
                self.handle(
                    node,
                    Event::Message {
                        link,
                        envelope,
                        buffer,
                    },
                );
            }
        }
    }
}

#[test]
fn a_fresh_pair_is_synced_from_the_forced_primary() {
    let pair = Pair::synced(Protocol::C);
    assert!(pair.nodes[0].serving && !pair.nodes[1].serving);
    assert_eq!(
        pair.nodes[0].superblock.as_ref().map(|s| s.current),
        pair.nodes[1].superblock.as_ref().map(|s| s.current)
    );
}

#[test]
fn writes_reach_both_disks_before_they_complete() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = Pair::synced(protocol);
        assert_eq!(pair.write(0, 7, &[11, 12, 13]), Ok(()));
        assert_eq!(pair.nodes[1].disk.get(&8), Some(&12));
        assert_eq!(pair.write(1, 7, &[1]), Err(IoFailure::NotPrimary));
        let flush = pair.request(0, Op::Flush, &[]);
        pair.run();
        assert_eq!(pair.result(0, flush), Some(Ok(())));
    }
}

#[test]
fn a_second_primary_is_refused_and_a_switch_works() {
    let mut pair = Pair::synced(Protocol::C);
    let primary = || Command::Primary {
        force: true,
        ground: Ground::Operator,
    };
    assert_eq!(pair.command(1, primary()), Err(Refusal::PeerIsPrimary));
    assert_eq!(pair.command(0, Command::Secondary), Ok(()));
    let unforced = Command::Primary {
        force: false,
        ground: Ground::Operator,
    };
    assert_eq!(pair.command(1, unforced), Ok(()));
    assert_eq!(pair.states()[1], "Primary UpToDate UpToDate Established");
    assert_eq!(pair.write(1, 0, &[5]), Ok(()));
    assert_eq!(pair.nodes[0].disk.get(&0), Some(&5));
}

#[test]
fn writes_without_the_peer_move_to_a_new_generation_and_are_synced() {
    let mut pair = Pair::synced(Protocol::C);
    let before = pair.nodes[0].engine.status().devices[0].current;
    pair.nodes[1].want_link = false;
    pair.cut();
    assert_eq!(pair.nodes[0].engine.status().devices[0].current, before);
    assert_eq!(pair.write(0, 100, &[21; 16]), Ok(()));
    assert_ne!(pair.nodes[0].engine.status().devices[0].current, before);
    let unforced = Command::Primary {
        force: false,
        ground: Ground::Operator,
    };
    assert_eq!(pair.command(1, unforced), Err(Refusal::NotProvenCurrent));
    pair.nodes[1].want_link = true;
    pair.run();
    assert_eq!(
        pair.states(),
        [
            "Primary UpToDate UpToDate Established",
            "Secondary UpToDate UpToDate Established"
        ]
    );
    assert_eq!(pair.data(0), pair.data(1));
    assert_eq!(
        pair.nodes[0].engine.status().connection.peer_devices[0].out_of_sync,
        0
    );
}

#[test]
fn writes_on_both_sides_are_split_brain_until_one_discards() {
    let mut pair = Pair::synced(Protocol::C);
    pair.nodes[1].want_link = false;
    pair.cut();
    assert_eq!(pair.write(0, 100, &[21]), Ok(()));
    let force = Command::Primary {
        force: true,
        ground: Ground::Operator,
    };
    assert_eq!(pair.command(1, force), Ok(()));
    assert_eq!(pair.write(1, 200, &[31]), Ok(()));
    assert_eq!(pair.command(1, Command::Secondary), Ok(()));
    pair.nodes[1].want_link = true;
    pair.run();
    for node in 0..2 {
        let status = pair.nodes[node].engine.status();
        assert!(
            matches!(status.connection.reason, Some(Refusal::SplitBrain { .. })),
            "{:?}",
            status.connection
        );
        assert_eq!(status.connection.state, ConnectionState::StandAlone);
    }
    assert_eq!(
        pair.command(
            0,
            Command::Connect {
                discard_my_data: true
            }
        ),
        Err(Refusal::IsPrimary)
    );
    assert_eq!(
        pair.command(
            1,
            Command::Connect {
                discard_my_data: true
            }
        ),
        Ok(())
    );
    assert_eq!(
        pair.command(
            0,
            Command::Connect {
                discard_my_data: false
            }
        ),
        Ok(())
    );
    pair.run();
    assert_eq!(pair.states()[1], "Secondary UpToDate UpToDate Established");
    assert_eq!(pair.nodes[1].disk.get(&200).copied().unwrap_or(0), 0);
    assert_eq!(pair.nodes[1].disk.get(&100), Some(&21));
}

#[test]
fn the_last_to_leave_may_start_alone_and_the_other_may_not() {
    let mut pair = Pair::synced(Protocol::C);
    assert_eq!(pair.command(1, Command::Shutdown), Ok(()));
    assert_eq!(pair.command(0, Command::Shutdown), Ok(()));
    let disks = [0, 1].map(|n: usize| pair.nodes[n].superblock.clone().expect("written"));
    for (node, allowed) in [(0usize, true), (1usize, false)] {
        let mut again = Pair::new(Protocol::C);
        let image = VolumeImage {
            superblock: disks[node].clone(),
            ..*image()
        };
        assert_eq!(again.attach(node, Box::new(image)), Ok(()));
        let unforced = Command::Primary {
            force: false,
            ground: Ground::Operator,
        };
        assert_eq!(
            again.command(node, unforced).is_ok(),
            allowed,
            "node {node}"
        );
    }
}

#[test]
fn a_disconnected_secondary_of_a_primary_is_outdated() {
    let mut pair = Pair::synced(Protocol::C);
    assert_eq!(pair.command(0, Command::Disconnect), Ok(()));
    assert_eq!(
        pair.nodes[1].engine.status().devices[0].disk,
        DiskState::Outdated
    );
    assert!(
        pair.nodes[0]
            .superblock
            .as_ref()
            .is_some_and(|s| s.peers[0].outdated)
    );
    assert_eq!(
        pair.command(
            0,
            Command::Connect {
                discard_my_data: false
            }
        ),
        Ok(())
    );
    pair.run();
    assert_eq!(pair.states()[1], "Secondary UpToDate UpToDate Established");
}

#[test]
fn a_handshake_that_fails_after_an_interrupted_sync_does_not_stop_the_next_one() {
    for frames in 0..60 {
        let mut pair = Pair::synced(Protocol::C);
        pair.nodes[1].want_link = false;
        pair.cut();
        for sector in [100, 9_000, 50_000] {
            assert_eq!(pair.write(0, sector, &[sector; 16]), Ok(()));
        }
        pair.nodes[1].want_link = true;
        while pair.states()[1] != "Secondary Inconsistent UpToDate SyncTarget" {
            match pair.wire.pop_front() {
                Some((to, data)) => pair.deliver(to, data),
                None => pair.connect(),
            }
        }
        pair.cut();
        pair.connect();
        for _ in 0..frames {
            if let Some((to, data)) = pair.wire.pop_front() {
                pair.deliver(to, data);
            }
        }
        pair.cut();
        // Not promotable, whatever the handshake had stored.
        assert!(pair.nodes[1].superblock.as_ref().is_some_and(|s| {
            s.inconsistent || s.current.0 == pair.nodes[0].engine.status().devices[0].current
        }));
        pair.run();
        assert_eq!(
            pair.states()[0],
            "Primary UpToDate UpToDate Established",
            "{frames}"
        );
        assert_eq!(
            pair.states()[1],
            "Secondary UpToDate UpToDate Established",
            "{frames}"
        );
        assert_eq!(pair.data(0), pair.data(1), "{frames}");
    }
}

#[test]
fn liveness_limits_change_while_the_link_is_up() {
    let mut pair = Pair::synced(Protocol::C);
    let before = pair.nodes[0].engine.next_deadline().expect("a ping is due");
    let timeouts = Timeouts {
        ping_interval: std::time::Duration::from_secs(1),
        ..Timeouts::default()
    };
    assert_eq!(pair.command(0, Command::Timeouts(timeouts)), Ok(()));
    let after = pair.nodes[0].engine.next_deadline().expect("a ping is due");
    assert!(after < before, "{after:?} {before:?}");
}
