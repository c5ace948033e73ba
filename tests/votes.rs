//! Two nodes' heartbeat threads and a witness, over real sockets on loopback.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lockstep::engine::{Generation, NodeId, Term, VolumeId};
use lockstep::failover::membership::{PathState, Timing};
use lockstep::failover::pulse::{News, Order, PathConfig, Pulse, PulseConfig};
use lockstep::failover::witness::{self, Witness};
use lockstep::failover::{Copy, Denied, Input, Lease};
use lockstep::reactor::lease::LeaseWord;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const KEY: &[u8] = b"the key of this cluster";
const RESOURCE: &str = "r0";

/// An address that nobody else has at this moment.
fn free(host: u8) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, host), 0)).expect("a port");
    socket.local_addr().expect("an address")
}

fn config(
    me: u8,
    paths: &[(SocketAddr, SocketAddr)],
    witness: SocketAddr,
    votes: &TempDir,
) -> PulseConfig {
    let own = |(a, b): &(SocketAddr, SocketAddr)| match me {
        0 => PathConfig { own: *a, peer: *b },
        _ => PathConfig { own: *b, peer: *a },
    };
    PulseConfig {
        key: KEY.to_vec(),
        me: NodeId(me),
        peer: NodeId(1 - me),
        paths: paths.iter().map(own).collect(),
        witness: Some(witness),
        timing: Timing {
            interval: Duration::from_millis(100),
            warn_after: Duration::from_millis(250),
            dead_after: Duration::from_millis(1000),
        },
        lease: Lease {
            length: Duration::from_millis(2000),
            margin: Duration::from_millis(400),
        },
        votes: votes.path().to_owned(),
    }
}

struct Node {
    pulse: Pulse,
    news: UnboundedReceiver<News>,
}

impl Node {
    fn start(config: PulseConfig) -> Node {
        let (sender, news) = unbounded_channel();
        let pulse = Pulse::start(config, sender).expect("a heartbeat");
        let resource = RESOURCE.to_owned();
        let reign = None;
        pulse.give(Order::Add { resource, reign });
        Node { pulse, news }
    }

    fn give(&self, input: Input) {
        let resource = RESOURCE.to_owned();
        self.pulse.give(Order::Give { resource, input });
    }

    fn next(&mut self) -> News {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            match self.news.try_recv() {
                Ok(News::Peer { .. }) => {}
                Ok(news) => return news,
                Err(_) => {
                    assert!(
                        Instant::now() < limit,
                        "no news: {:?}",
                        self.pulse.picture()
                    );
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// Asks for the vote with a copy of this generation.
    fn ask(&mut self, current: u64, force: bool) -> Result<Term, Denied> {
        self.give(Input::Vote {
            again: None,
            copies: vec![Copy {
                volume: VolumeId(0),
                current: Generation(current),
                ancestry: Vec::new(),
                agreed: false,
            }],
            force,
            random: 5,
        });
        match self.next() {
            News::Voted { vote, .. } => Ok(vote.term),
            News::Denied { denied, .. } => Err(denied),
            other => panic!("{other:?}"),
        }
    }

    /// Asks until something else than time is wrong.
    fn vote(&mut self, current: u64, force: bool) -> Result<Term, Denied> {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            match self.ask(current, force) {
                Err(Denied::NotRecorded) => return Err(Denied::NotRecorded),
                Err(_) if Instant::now() < limit => std::thread::sleep(Duration::from_millis(50)),
                answer => return answer,
            }
        }
    }

    fn record(&mut self, generation: u64, term: Term) {
        self.give(Input::Record {
            volume: VolumeId(0),
            generation: Generation(generation),
            term,
        });
        match self.next() {
            News::Recorded { generation: g, .. } => assert_eq!(g, Generation(generation)),
            other => panic!("{other:?}"),
        }
    }

    fn until(&self, what: &str, holds: impl Fn(&Node) -> bool) {
        let limit = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < limit, "{what}: {:?}", self.pulse.picture());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn alive(&self) -> bool {
        self.pulse.picture().alive
    }
}

fn start_witness(address: SocketAddr, folder: &TempDir) {
    let socket = witness::listen(address).expect("a socket");
    let witness = Witness::open(folder.path(), &[]).expect("a witness");
    std::thread::spawn(move || witness.serve(&socket));
}

#[test]
fn a_reign_is_voted_leased_recorded_and_ends_with_its_voters() {
    let folders: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let paths = [(free(2), free(3)), (free(4), free(5))];
    let address = free(1);
    start_witness(address, &folders[2]);
    let mut a = Node::start(config(0, &paths, address, &folders[0]));
    let mut b = Node::start(config(1, &paths, address, &folders[1]));
    for node in [&a, &b] {
        node.until("both paths", |node| {
            let paths = node.pulse.picture().paths;
            node.alive() && paths.iter().all(|path| path.state == PathState::Up)
        });
    }
    // Nothing is on record yet: the word of an operator.
    let term = a.vote(7, true).expect("voted");
    a.record(7, term);
    let memory = rustix::fs::memfd_create("lease", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let word = LeaseWord::open(&memory).unwrap();
    let resource = RESOURCE.to_owned();
    a.pulse.give(Order::Lease { resource, word });
    let seen = LeaseWord::open(&memory).unwrap();
    let first = seen.until();
    std::thread::sleep(Duration::from_millis(1_000));
    assert!(seen.until() > first, "renewed");
    assert!(matches!(b.ask(7, true), Err(Denied::Held { .. })));
    a.give(Input::Release);
    assert_eq!(b.vote(6, false), Err(Denied::NotRecorded));
    let second = b.vote(7, false).expect("released");
    assert!(second > term);
    let picture = b.pulse.picture();
    assert_eq!(picture.rejected, 0);
    assert!(picture.seats[RESOURCE].third.age.is_some());
}

#[test]
fn a_peer_that_goes_silent_is_dead_and_one_path_is_enough_to_live() {
    let folders: Vec<TempDir> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    // Of the second path nobody is at the other end.
    let paths = [(free(6), free(7)), (free(8), free(9))];
    let nobody = free(10);
    let a = Node::start(config(0, &paths, nobody, &folders[0]));
    a.until("nobody is there", |a| !a.alive());
    let mut other = config(1, &paths, nobody, &folders[1]);
    other.paths[1].own = free(11);
    let b = Node::start(other);
    a.until("the peer", Node::alive);
    b.until("the peer", Node::alive);
    let states: Vec<PathState> = a.pulse.picture().paths.iter().map(|p| p.state).collect();
    assert_eq!(states, [PathState::Up, PathState::Waiting]);
}
