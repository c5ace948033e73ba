//! The loop of the heartbeat thread, and the writer beside it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use hdrhistogram::Histogram;
use lockstep_transport::sealed::MAX_BODY;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::setpriority_process;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, warn};

use super::net::{Introduction, Wire, session};
use super::{News, Order, Picture, Pulse, PulseConfig, PulseError, SeatPicture, VoterPicture};
use crate::clock;
use crate::engine::{Term, Time};
use crate::failover::letter::{self, Ask, Reply, Terms, kind};
use crate::failover::membership::{Membership, PROBE_EVERY};
use crate::failover::report::{Beat, NodeReport};
use crate::failover::seat::{Input, Memory, Other, Output, Seat, SeatConfig};
use crate::failover::slots::SlotFile;
use crate::reactor::lease::LeaseWord;

/// Length of a probe: what Ethernet carries, less the headers of IPv6 and UDP.
const PROBE_BYTES: usize = 1452;
/// Datagrams that are taken from one socket before the others.
const BATCH: usize = 64;
/// The picture is made at least this often.
const SHOW_EVERY: Duration = Duration::from_millis(250);
/// The longest sleep.
const NAP: Duration = Duration::from_millis(250);
/// How often a record that could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// Over this long the worst delay is shown.
const WORST_FOR: Duration = Duration::from_secs(60);

/// A record to be made durable.
pub struct Write {
    resource: String,
    version: u64,
    memory: Memory,
}

/// Where the record of a resource is.
fn file_of(folder: &Path, resource: &str) -> PathBuf {
    folder.join(format!("{resource}.votes"))
}

/// Starts the thread that makes records durable.
pub fn writer(folder: PathBuf, pulse: Pulse) -> Result<Sender<Write>, PulseError> {
    let (sender, inbox) = channel::<Write>();
    let work = move || {
        let mut files: BTreeMap<String, SlotFile> = BTreeMap::new();
        while let Ok(write) = inbox.recv() {
            while let Err(reason) = put(&folder, &mut files, &write) {
                error!(resource = write.resource, reason, "vote cannot be recorded");
                std::thread::sleep(WRITE_AGAIN);
            }
            pulse.give(Order::Stored {
                resource: write.resource,
                version: write.version,
            });
        }
    };
    std::thread::Builder::new()
        .name("votes".into())
        .spawn(work)?;
    Ok(sender)
}

fn put(folder: &Path, files: &mut BTreeMap<String, SlotFile>, write: &Write) -> Result<(), String> {
    let bytes = postcard::to_stdvec(&write.memory).map_err(|error| error.to_string())?;
    let said = |error: crate::failover::slots::SlotError| error.to_string();
    if !files.contains_key(&write.resource) {
        let (file, _) = SlotFile::open(&file_of(folder, &write.resource)).map_err(said)?;
        files.insert(write.resource.clone(), file);
    }
    match files.get_mut(&write.resource) {
        Some(file) => file.store(&bytes).map_err(said),
        None => Ok(()),
    }
}

/// The memory of a resource, and whether there was none.
fn remembered(folder: &Path, resource: &str) -> Result<(Memory, bool), String> {
    let (_, record) = SlotFile::open(&file_of(folder, resource)).map_err(|e| e.to_string())?;
    let memory = record.and_then(|bytes| postcard::from_bytes(&bytes).ok());
    match memory {
        Some(memory) => Ok((memory, false)),
        None => {
            let store = session().map_err(|error| error.to_string())?;
            Ok((Memory::blank(store), true))
        }
    }
}

struct Place {
    seat: Seat,
    word: Option<LeaseWord>,
}

/// How late the thread woke.
struct Lateness {
    all: Histogram<u64>,
    worst: [(Time, Duration); 2],
}

impl Lateness {
    fn new() -> Result<Lateness, PulseError> {
        let all = Histogram::new(2).map_err(|e| std::io::Error::other(e.to_string()))?;
        Ok(Lateness {
            all,
            worst: [(Time(0), Duration::ZERO); 2],
        })
    }

    fn note(&mut self, now: Time, late: Duration) {
        self.all.saturating_record(late.as_micros() as u64);
        if now.since(self.worst[0].0) >= WORST_FOR {
            self.worst = [(now, Duration::ZERO), self.worst[0]];
        }
        self.worst[0].1 = self.worst[0].1.max(late);
    }
}

pub struct Thread {
    config: PulseConfig,
    inbox: Receiver<Order>,
    news: UnboundedSender<News>,
    pulse: Pulse,
    writer: Sender<Write>,
    wires: Vec<Wire>,
    witness: Option<Wire>,
    introduction: Introduction,
    members: Membership,
    places: BTreeMap<String, Place>,
    said: NodeReport,
    peer: NodeReport,
    alive: bool,
    beats: u64,
    beat_at: Time,
    show_at: Time,
    lateness: Lateness,
    rejected: u64,
}

impl Thread {
    pub fn new(
        config: PulseConfig,
        (inbox, news): (Receiver<Order>, UnboundedSender<News>),
        pulse: Pulse,
        writer: Sender<Write>,
    ) -> Result<Thread, PulseError> {
        let paths = config.paths.iter().enumerate();
        let wires = paths.map(|(number, path)| Wire::path(&config, number, path));
        let now = clock::now();
        Ok(Thread {
            wires: wires.collect::<Result<_, _>>()?,
            witness: config
                .witness
                .map(|address| Wire::witness(&config, address))
                .transpose()?,
            introduction: Introduction::new(&config),
            members: Membership::new(config.paths.len(), config.timing, now),
            places: BTreeMap::new(),
            said: NodeReport::default(),
            peer: NodeReport::default(),
            alive: false,
            beats: 0,
            beat_at: now,
            show_at: now,
            lateness: Lateness::new()?,
            rejected: 0,
            config,
            inbox,
            news,
            pulse,
            writer,
        })
    }

    /// Never returns.
    pub fn run(mut self) {
        let thread = rustix::thread::gettid();
        // Without the right to it the thread runs as others do.
        if let Err(error) = setpriority_process(Some(thread), -20) {
            warn!(%error, "the heartbeat thread cannot be preferred");
        }
        let mut buffer = vec![0; 2 * MAX_BODY];
        loop {
            let due = self.work(&mut buffer);
            self.sleep(due);
        }
    }

    /// Does what is to be done now; when it has to be called again.
    fn work(&mut self, buffer: &mut [u8]) -> Time {
        let now = clock::now();
        let mut next = now.after(NAP);
        for wire in self.wires.iter_mut().chain(&mut self.witness) {
            next = wire.bind(now).map_or(next, |at| next.min(at));
        }
        while let Ok(order) = self.inbox.try_recv() {
            self.obey(now, order);
        }
        for path in 0..self.wires.len() {
            self.receive(now, path, buffer);
        }
        self.receive_from_witness(now, buffer);
        if self.beat_at <= now {
            self.beat(now);
        }
        let names: Vec<String> = self.places.keys().cloned().collect();
        for name in names {
            let due = self.places.get(&name).and_then(|p| p.seat.next_deadline());
            if due.is_some_and(|at| at <= now) {
                self.give(now, &name, Input::Tick);
            }
            let due = self.places.get(&name).and_then(|p| p.seat.next_deadline());
            next = due.map_or(next, |at| next.min(at));
        }
        self.watch_peer(now);
        if self.show_at <= now {
            self.show(now);
        }
        let due = [Some(self.beat_at), self.members.next_deadline(now)];
        due.into_iter().flatten().fold(next, Time::min)
    }

    fn sleep(&mut self, due: Time) {
        let left = due.since(clock::now());
        let waker = &*self.pulse.waker;
        let sockets = self.wires.iter().chain(&self.witness);
        let sockets = sockets.filter_map(|wire| wire.socket.as_ref());
        let mut watched: Vec<PollFd<'_>> = sockets
            .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        watched.push(PollFd::new(waker, PollFlags::IN));
        let limit = Timespec::try_from(left).ok();
        let woken = poll(&mut watched, limit.as_ref());
        if let Ok(0) = woken {
            let now = clock::now();
            self.lateness.note(now, now.since(due));
        }
        let mut count = [0; 8];
        // Empty when nobody has called.
        let _ = rustix::io::read(waker, &mut count);
    }

    fn obey(&mut self, now: Time, order: Order) {
        match order {
            Order::Add { resource, reign } => self.add(now, resource, reign),
            Order::Lease { resource, word } => {
                if let Some(place) = self.places.get_mut(&resource) {
                    word.set(place.seat.serves_until());
                    place.word = Some(word);
                }
            }
            Order::Give { resource, input } => self.give(now, &resource, input),
            Order::Say(report) => {
                self.said = report;
                // The peer shall know at once.
                self.beat_at = now;
            }
            Order::Replication(at) => self.members.replication_heard(at),
            Order::Stored { resource, version } => {
                self.give(now, &resource, Input::Stored { version });
            }
        }
    }

    fn add(&mut self, now: Time, resource: String, reign: Option<Term>) {
        if self.places.contains_key(&resource) {
            return;
        }
        let (memory, blank) = match remembered(&self.config.votes, &resource) {
            Ok(found) => found,
            Err(reason) => {
                error!(resource, reason, "the record of votes cannot be read");
                return;
            }
        };
        let beat = self.config.lease.length / 6;
        let config = SeatConfig {
            me: self.config.me,
            peer: self.config.peer,
            lease: self.config.lease,
            beat,
            retry: (beat / 2).min(Duration::from_millis(200)),
            patience: Duration::from_secs(1),
        };
        let seat = Seat::start(config, memory, blank, now);
        self.places
            .insert(resource.clone(), Place { seat, word: None });
        let first = reign.map_or(Input::Tick, |term| Input::Resume { term });
        self.give(now, &resource, first);
    }

    // ---- seats ----

    fn give(&mut self, now: Time, resource: &str, input: Input) {
        let Some(place) = self.places.get_mut(resource) else {
            return;
        };
        let mut out = Vec::new();
        place.seat.handle(now, input, &mut out);
        if let Some(word) = &place.word {
            word.set(place.seat.serves_until());
        }
        for output in out {
            self.carry(now, resource, output);
        }
    }

    fn carry(&mut self, now: Time, resource: &str, output: Output) {
        let name = resource.to_owned();
        let news = match output {
            Output::Ask {
                to,
                id,
                known,
                question,
            } => {
                let ask = Ask {
                    id,
                    resource: name,
                    terms: self.terms(),
                    known,
                    question,
                };
                return match (to, letter::write(&ask)) {
                    (Other::Peer, Ok(body)) => self.send_peer(now, kind::ASK, &body),
                    (Other::Third, Ok(body)) => self.send_witness(kind::ASK, &body),
                    (_, Err(error)) => error!(%error, resource, "question cannot be put"),
                };
            }
            Output::Reply { id, answer } => {
                let reply = Reply {
                    id,
                    resource: name,
                    answer,
                };
                return match letter::write(&reply) {
                    Ok(body) => self.send_peer(now, kind::ANSWER, &body),
                    Err(error) => error!(%error, resource, "answer cannot be given"),
                };
            }
            Output::Store { version, memory } => {
                // The writer lives as long as this thread.
                let _ = self.writer.send(Write {
                    resource: name,
                    version,
                    memory,
                });
                return;
            }
            Output::Voted { vote, .. } => News::Voted {
                resource: name,
                vote,
            },
            Output::Denied(denied) => News::Denied {
                resource: name,
                denied,
            },
            Output::Recorded { volume, generation } => News::Recorded {
                resource: name,
                volume,
                generation,
            },
            Output::Deposed { term } => News::Deposed {
                resource: name,
                term,
            },
        };
        self.tell(news);
    }

    fn terms(&self) -> Terms {
        let (a, b) = (self.config.me, self.config.peer);
        let ms = |length: Duration| u32::try_from(length.as_millis()).unwrap_or(u32::MAX);
        Terms {
            nodes: [a.min(b), a.max(b)],
            lease_ms: ms(self.config.lease.length),
            margin_ms: ms(self.config.lease.margin),
        }
    }

    fn tell(&self, news: News) {
        // The agent ends with the process.
        let _ = self.news.send(news);
    }

    // ---- datagrams ----

    /// Over every path that works, or over all while none does: the first copy that arrives counts.
    fn send_peer(&mut self, now: Time, kind: u8, body: &[u8]) {
        let works = |path: &usize| self.members.usable(*path, now);
        let any = (0..self.wires.len()).any(|path| works(&path));
        for path in 0..self.wires.len() {
            if !any || self.members.usable(path, now) {
                self.wires[path].send(kind, body, 0);
            }
        }
    }

    fn send_witness(&mut self, kind: u8, body: &[u8]) {
        if let Some(wire) = &mut self.witness {
            wire.send(kind, body, 0);
        }
    }

    fn beat(&mut self, now: Time) {
        self.beats += 1;
        let probe = self.beats.is_multiple_of(PROBE_EVERY);
        for path in 0..self.wires.len() {
            self.beat_over(now, path, probe);
        }
        // Beats that were missed are not made up for.
        self.beat_at = now.after(self.config.timing.interval);
    }

    fn beat_over(&mut self, now: Time, path: usize, probe: bool) {
        let beat = Beat {
            echo: self.members.echo(path, now),
            report: self.said.part(self.beats),
        };
        let Ok(body) = letter::write(&beat) else {
            return;
        };
        let size = if probe { PROBE_BYTES } else { 0 };
        let kind = if probe { kind::PROBE } else { kind::BEAT };
        if let Some(sequence) = self.wires[path].send(kind, &body, size) {
            self.members.sent(path, sequence, probe, now);
        }
    }

    fn receive(&mut self, now: Time, path: usize, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let Some(bytes) = self.wires[path].receive(buffer) else {
                return;
            };
            let opened = match self.wires[path].open(bytes) {
                Ok(opened) => opened,
                Err(_) => {
                    self.rejected += 1;
                    continue;
                }
            };
            if opened.greeting {
                // It may be a recording: the answer tells the peer this node's session.
                self.beat_over(now, path, false);
                continue;
            }
            let (kind, sequence, restarted) = (opened.kind, opened.sequence, opened.restarted);
            let body = opened.body;
            match kind {
                kind::BEAT | kind::PROBE => match letter::read::<Beat>(body) {
                    Ok(beat) => {
                        let meta = (sequence, kind == kind::PROBE, restarted);
                        self.members.heard(path, meta, &beat.echo, now);
                        self.told(beat.report);
                    }
                    Err(_) => self.rejected += 1,
                },
                kind::ASK => match Ask::read(body) {
                    Ok(ask) => self.asked(now, ask),
                    Err(_) => self.rejected += 1,
                },
                kind::ANSWER => match Reply::read(body) {
                    Ok(reply) => self.answered(now, Other::Peer, reply),
                    Err(_) => self.rejected += 1,
                },
                _ => self.rejected += 1,
            }
        }
    }

    fn receive_from_witness(&mut self, now: Time, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let Some(wire) = &mut self.witness else {
                return;
            };
            let Some(bytes) = wire.receive(buffer) else {
                return;
            };
            if self.introduction.answer(wire, bytes, now) {
                continue;
            }
            match wire.open(bytes) {
                Ok(opened) if opened.greeting || opened.kind == kind::BEAT => {}
                Ok(opened) if opened.kind == kind::ANSWER => match Reply::read(opened.body) {
                    Ok(reply) => self.answered(now, Other::Third, reply),
                    Err(_) => self.rejected += 1,
                },
                _ => self.rejected += 1,
            }
        }
    }

    fn told(&mut self, report: NodeReport) {
        if self.peer.merge(report) {
            self.show_at = Time(0);
        }
    }

    fn asked(&mut self, now: Time, ask: Ask) {
        let input = Input::Asked {
            id: ask.id,
            known: ask.known,
            question: ask.question,
        };
        self.give(now, &ask.resource, input);
    }

    fn answered(&mut self, now: Time, from: Other, reply: Reply) {
        let input = Input::Answered {
            from,
            id: reply.id,
            answer: reply.answer,
        };
        self.give(now, &reply.resource, input);
    }

    // ---- the picture ----

    fn watch_peer(&mut self, now: Time) {
        let alive = self.members.alive(now);
        if alive != self.alive {
            self.alive = alive;
            if !alive {
                self.peer = NodeReport::default();
            }
            self.show(now);
            self.tell(News::Peer { alive });
        }
    }

    fn show(&mut self, now: Time) {
        self.show_at = now.after(SHOW_EVERY);
        let unbound = self.wires.iter().enumerate();
        let unbound = unbound.filter_map(|(n, wire)| Some((n, wire.failure.clone()?)));
        let worst = self.lateness.worst.iter().map(|(_, late)| *late).max();
        self.pulse.show(Picture {
            alive: self.alive,
            dead_for: self.members.dead_for(now),
            paths: (0..self.wires.len())
                .filter_map(|path| self.members.picture(path, now))
                .collect(),
            unbound: unbound.collect(),
            peer: self.peer.clone(),
            seats: self
                .places
                .iter()
                .map(|(name, place)| (name.clone(), seat_picture(&place.seat, now)))
                .collect(),
            late_worst: worst.unwrap_or_default(),
            late_p999: Duration::from_micros(self.lateness.all.value_at_quantile(0.999)),
            rejected: self.rejected,
        });
    }
}

fn seat_picture(seat: &Seat, now: Time) -> SeatPicture {
    let voter = |other| VoterPicture {
        age: seat.heard(other).map(|at| now.since(at)),
        denied: seat.denied(other),
    };
    SeatPicture {
        reign: seat.reign(),
        lease_left: seat.serves_until().map(|until| until.since(now)),
        peer: voter(Other::Peer),
        third: voter(Other::Third),
        doubts: seat.doubts(),
    }
}
