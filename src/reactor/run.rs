//! The loop of the ring thread: completions and orders become events, the engine's actions become
//! ring entries. Everything that one wake-up brought goes out with one submit.
//!
//! [`Reactor`] owns all that lives on this thread. It ends only with its process: what the ring
//! names is never freed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::{Value, json};

use super::attach::OpenedDisk;
use super::buffers::{Memory, ResyncPool};
use super::counters::{Counters, Measure};
use super::disk::{Disks, Finished, Work};
use super::fronts::Fronts;
use super::lease::{Completed, Gate, LeaseWord};
use super::links::Links;
use super::meta::Metas;
use super::orders::{LinkWish, Order, Orders, Reply, Reports};
use super::progress::{self, Progress};
use super::reason::{Names, of_notice, of_refusal};
use super::recorder::Recorder;
use super::ring::{Completion, Owner, Ring, Waker};
use super::status::{DiskFailure, Snapshot, VolumeFacts, finished, transition};
use super::track::{Leftover, TrackTable};
use crate::agent::protocol::{ErrorKind, ErrorReply, ServeConfig, ServeNotice, VoterSays};
use crate::clock;
use crate::engine::{
    Action, Buffer, Command, CommandId, Config, DiskState, Engine, Event, IoId, IoOutcome, Message,
    NodeId, Notice, Refusal, ResourceStatus, Time, VolumeId,
};

/// How long front ends may take to open or close before a command that waits for them fails.
const FRONT_LIMIT: Duration = Duration::from_secs(30);

/// How long clients of NBD exports that are about to leave are waited for before the role is kept.
const CLIENT_GRACE: Duration = Duration::from_secs(2);

/// How long the last frames may take to leave before the process ends.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// The sleep while work waits for room in the ring.
const RING_FULL_PAUSE: Duration = Duration::from_millis(1);

/// What the ring thread starts with.
pub struct Setup {
    pub config: ServeConfig,
    pub engine: Config,
    /// Memory of the agent for the ranges in flight.
    pub table: Option<OwnedFd>,
    pub waker: Waker,
    pub orders: Orders,
    pub inbox: Receiver<Order>,
    pub reports: Reports,
}

/// What becomes of a command when the engine is done with it.
enum Waiting {
    /// Answer at once.
    Reply(Reply),
    /// As above; a disk that the engine refused is closed again.
    Attach(usize, Reply),
    /// Answer when the front ends are where they should be.
    Fronts(Reply),
    /// Answer when the last frames have left.
    End(Reply),
}

impl Waiting {
    fn into_reply(self) -> Reply {
        match self {
            Waiting::Reply(reply)
            | Waiting::Attach(_, reply)
            | Waiting::Fronts(reply)
            | Waiting::End(reply) => reply,
        }
    }
}

/// A command that the engine has done, and what it still waits for.
struct Tail {
    waiting: Waiting,
    deadline: Time,
}

/// An order to give up the role that waits for clients to leave.
struct Leaving {
    reply: Reply,
    until: Time,
}

/// Everything on the ring thread.
pub struct Reactor {
    /// First, so that a panic is recorded before anything is dropped.
    recorder: Recorder,
    config: ServeConfig,
    volumes: Vec<VolumeId>,
    engine: Engine,
    ring: Ring,
    disks: Disks,
    metas: Metas,
    links: Links,
    fronts: Fronts,
    resync: ResyncPool,
    table: Option<TrackTable>,
    gate: Gate,
    leftover: Leftover,
    /// Volumes that have had a disk in this process.
    attached: Vec<bool>,
    counters: Counters,
    /// The sync or verify of each volume, and when it was measured last.
    progress: Vec<Progress>,
    measured: Time,
    /// How a volume lost its disk.
    disk_failures: Vec<Option<DiskFailure>>,
    commands: HashMap<CommandId, Waiting>,
    next_command: u64,
    tails: Vec<Tail>,
    leaving: Vec<Leaving>,
    wish: LinkWish,
    orders: Orders,
    inbox: Receiver<Order>,
    reports: Reports,
    now: Time,
    events: VecDeque<Event>,
    fresh: Vec<Event>,
    actions: Vec<Action>,
    finished: Vec<Finished>,
    meta_done: Vec<(IoId, IoOutcome)>,
}

impl Reactor {
    /// Allocates everything. Runs on the ring thread.
    pub fn new(setup: Setup) -> io::Result<Reactor> {
        let Setup {
            config,
            engine,
            table,
            waker,
            orders,
            inbox,
            reports,
        } = setup;
        let count = config.volumes.len();
        // Writes, sync blocks and what answers the peer's own.
        let resync_bytes = u64::from(engine.resync_buffers) * u64::from(engine.resync_chunk);
        let send_buffer = 2 * (engine.max_unacked_bytes + resync_bytes) as usize + SEND_SLACK;
        let gate = gate(config.votes, table.as_ref())?;
        let (table, leftover) = match table {
            Some(memory) => {
                let (table, leftover) = TrackTable::open(memory, engine.boot_id)?;
                (Some(table), leftover)
            }
            None => (None, Leftover::default()),
        };
        Ok(Reactor {
            recorder: Recorder::default(),
            volumes: engine.volumes.clone(),
            ring: Ring::new(&waker)?,
            disks: Disks::new(count)?,
            metas: Metas::new(count),
            links: Links::new(send_buffer).map_err(io::Error::other)?,
            fronts: Fronts::new(&config),
            resync: ResyncPool::new(engine.resync_buffers, engine.resync_chunk)?,
            table,
            gate,
            leftover,
            attached: vec![false; count],
            counters: Counters::new(count),
            progress: vec![Progress::new(); count],
            measured: Time(0),
            disk_failures: vec![None; count],
            engine: Engine::new(engine),
            config,
            commands: HashMap::new(),
            next_command: 1,
            tails: Vec::new(),
            leaving: Vec::new(),
            wish: LinkWish::default(),
            orders,
            inbox,
            reports,
            now: clock::now(),
            events: VecDeque::new(),
            fresh: Vec::new(),
            actions: Vec::new(),
            finished: Vec::new(),
            meta_done: Vec::new(),
        })
    }

    /// Runs until the process ends; returns only when the ring itself fails.
    pub fn run(mut self) -> io::Error {
        let mut completions = Vec::new();
        loop {
            self.settle();
            let timeout = self.timeout();
            if let Err(error) = self.ring.wait(timeout, &mut completions) {
                return error;
            }
            self.now = clock::now();
            for completion in completions.drain(..) {
                self.on_completion(completion);
            }
            for completed in self.gate.renewed() {
                self.complete(completed);
            }
            while let Ok(order) = self.inbox.try_recv() {
                self.on_order(order);
            }
            if self.engine.next_deadline().is_some_and(|at| at <= self.now) {
                self.events.push_back(Event::Tick);
            }
        }
    }

    /// How long the ring may sleep.
    fn timeout(&self) -> Option<Duration> {
        if self.disks.wants_room() || self.metas.wants_room() {
            return Some(RING_FULL_PAUSE);
        }
        let engine = self.engine.next_deadline();
        let tails = self.tails.iter().map(|tail| tail.deadline).min();
        let leaving = self.leaving.iter().map(|leaving| leaving.until).min();
        let fronts = self.fronts.next_deadline();
        let gate = self.gate.next_deadline(self.now);
        let parts = tails.into_iter().chain(leaving).chain(fronts).chain(gate);
        let next = engine.into_iter().chain(parts).min()?;
        Some(next.since(clock::now()))
    }

    /// Works until there is nothing left to do without the outside.
    fn settle(&mut self) {
        self.leave();
        loop {
            while let Some(event) = self.events.pop_front() {
                self.recorder.event(self.now, &event);
                self.measure_event(&event);
                let mut actions = std::mem::take(&mut self.actions);
                self.engine.handle(self.now, event, &mut actions);
                for action in actions.drain(..) {
                    self.recorder.action(self.now, &action);
                    self.perform(action);
                }
                self.actions = actions;
                self.gather();
            }
            self.disks.retry(&mut self.ring.port(Owner::DISK));
            self.metas.retry(&mut self.ring.port(Owner::META));
            self.links.pump(&mut self.ring, &mut self.fresh);
            self.fronts
                .settle(&mut self.ring, &self.orders, self.now, &mut self.fresh);
            self.gather();
            if self.events.is_empty() {
                break;
            }
        }
        self.measure_progress();
        self.report();
        self.finish_tails();
    }

    /// Moves what the parts have produced into the event queue.
    fn gather(&mut self) {
        for done in self.finished.drain(..) {
            if let (Work::Write { .. }, IoOutcome::Done) = (done.work, done.outcome) {
                let (volume, since) = (done.volume, done.started);
                self.counters
                    .record(volume, Measure::Local, since, self.now);
            }
            self.events.push_back(Event::Io {
                io: done.io,
                outcome: done.outcome,
            });
        }
        for (io, outcome) in self.meta_done.drain(..) {
            self.events.push_back(Event::Io { io, outcome });
        }
        self.events.extend(self.fresh.drain(..));
    }

    fn on_completion(&mut self, completion: Completion) {
        let Completion {
            owner,
            token,
            result,
            flags,
        } = completion;
        match owner {
            Owner::DISK => {
                let mut port = self.ring.port(owner);
                self.disks
                    .on_completion(&mut port, token, result, &mut self.finished);
            }
            Owner::META => {
                let mut port = self.ring.port(owner);
                self.metas
                    .on_completion(&mut port, token, result, &mut self.meta_done);
            }
            Owner(number) if number >= Owner::LINK => {
                let done = (owner, token, result, flags);
                self.links
                    .on_completion(&mut self.ring, done, &mut self.fresh);
            }
            Owner(number) => {
                let index = number.saturating_sub(Owner::FRONT) as usize;
                let done = (token, result, flags);
                self.fronts
                    .on_completion(&mut self.ring, index, done, self.now, &mut self.fresh);
            }
        }
        self.gather();
    }

    fn index(&self, volume: VolumeId) -> Option<usize> {
        self.volumes.iter().position(|id| *id == volume)
    }

    // ---- orders ----

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Command { command, reply } => {
                let waiting = match command {
                    Command::Primary { .. } => Waiting::Fronts(reply),
                    Command::Shutdown => Waiting::End(reply),
                    _ => Waiting::Reply(reply),
                };
                self.command(command, waiting);
            }
            Order::Secondary { force: true, reply } => {
                self.command(Command::Secondary, Waiting::Fronts(reply));
            }
            Order::Secondary { reply, .. } => self.leaving.push(Leaving {
                reply,
                until: self.now.after(CLIENT_GRACE),
            }),
            Order::Attach {
                volume,
                disk,
                reply,
            } => self.attach(volume, *disk, reply),
            Order::Link {
                socket,
                peer,
                low_water,
                features,
                taken,
            } => self.link_up((socket, peer), low_water, features, taken),
            Order::Listen {
                volume,
                listener,
                reply,
            } => {
                if let Some(index) = self.index(volume) {
                    self.fronts.listen(index, listener);
                }
                // The asker may have left.
                let _ = reply.send(Ok(Value::Null));
            }
            Order::FlightRecorder { reply } => {
                let mut lines = Vec::new();
                self.recorder.dump(|line| lines.push(line.to_string()));
                // The asker may have left.
                let _ = reply.send(lines);
            }
            Order::Status { reply } => {
                // The asker may have left.
                let _ = reply.send(self.snapshot());
            }
            Order::QueueFreezes { volume, reply } => {
                if let Some(index) = self.index(volume) {
                    self.fronts.expect_freeze(index);
                }
                // The asker may have left.
                let _ = reply.send(Ok(Value::Null));
            }
            Order::QueueConfirmed { volume, reply } => {
                if let Some(index) = self.index(volume) {
                    self.fronts.confirm(index, self.now, &mut self.fresh);
                    self.gather();
                }
                // The asker may have left.
                let _ = reply.send(Ok(Value::Null));
            }
            Order::Voter(said) => self.voter(said),
            Order::Device(order) => self.fronts.on_device(&mut self.ring, order),
        }
    }

    fn command(&mut self, command: Command, waiting: Waiting) {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.commands.insert(id, waiting);
        self.events.push_back(Event::Command { id, command });
    }

    /// Gives up the role when no client has an export open. Nothing that a client sends is looked
    /// at between this and the engine's order to stop serving, so none can slip in.
    fn leave(&mut self) {
        for leaving in std::mem::take(&mut self.leaving) {
            if !self.fronts.in_use() {
                self.command(Command::Secondary, Waiting::Fronts(leaving.reply));
            } else if leaving.until > self.now {
                self.leaving.push(leaving);
            } else {
                // The asker may have left.
                let _ = leaving.reply.send(Ok(json!(self.fronts.users())));
            }
        }
    }

    fn attach(&mut self, volume: VolumeId, disk: OpenedDisk, reply: Reply) {
        let OpenedDisk {
            data,
            meta,
            recovered,
        } = disk;
        let Some(index) = self.index(volume) else {
            return self.refuse(reply, &Refusal::UnknownVolume { volume });
        };
        if self.metas.has(index) {
            return self.refuse(reply, &Refusal::AlreadyAttached { volume });
        }
        let mut image = Box::new(recovered.image);
        // Only the first disk of this life was in use by the one before.
        if !self.attached[index] {
            image.in_flight = self.leftover.of(volume);
        }
        if let Err(error) = self.metas.attach(index, recovered.metadata, meta) {
            let help = "free some memory, then `lockstep attach` again";
            // The asker may have left.
            let _ = reply.send(Err(ErrorReply::new(ErrorKind::Failed, error, help)));
            return;
        }
        self.disks.attach(index, data, 0);
        let waiting = Waiting::Attach(index, reply);
        self.command(Command::Attach { volume, image }, waiting);
    }

    fn close_disk(&mut self, index: usize) {
        self.disks.close(index);
        self.metas.close(index);
    }

    fn refuse(&self, reply: Reply, refusal: &Refusal) {
        // The asker may have left.
        let _ = reply.send(Err(of_refusal(refusal, self.names()).into()));
    }

    fn link_up(
        &mut self,
        (socket, peer): (OwnedFd, NodeId),
        low_water: Option<u32>,
        features: u64,
        taken: tokio::sync::oneshot::Sender<()>,
    ) {
        let link = self.links.add(&mut self.ring, socket, low_water, features);
        self.events.push_back(Event::LinkUp { link, peer });
        self.settle();
        // The asker may have left.
        let _ = taken.send(());
    }

    // ---- actions ----

    fn perform(&mut self, action: Action) {
        match action {
            Action::Complete { request, result } => {
                if let Some(completed) = self.gate.pass((request, result)) {
                    self.complete(completed);
                }
            }
            Action::Send {
                link,
                envelope,
                payload,
            } => {
                if let Message::Write {
                    volume, sequence, ..
                } = envelope.message
                    && let Some(index) = self.index(volume)
                {
                    self.counters.sent(sequence, index, self.now);
                }
                let data = payload.and_then(|(buffer, len)| self.memory(buffer)?.first(len));
                // SAFETY: the engine owns the buffer and has nothing in flight that writes it;
                // the bytes are copied before the next action.
                let data = data.map_or(&[][..], |data| unsafe { data.bytes() });
                self.links.send(link, envelope, data, &mut self.fresh);
            }
            Action::Copy { from, to, len } => self.copy(from, to, len),
            Action::Release { buffer } => {
                if let Buffer::Received(slot) = buffer {
                    self.links.release(slot);
                }
            }
            Action::WantLink { want } => self.wish.want = want,
            Action::CloseLink { link } => self.links.close(link),
            Action::CommandDone { command, result } => self.command_done(command, result),
            Action::Serve { serve, .. } => self.fronts.serve(serve),
            Action::Shape { volume, shape } => {
                if let Some(index) = self.index(volume) {
                    self.fronts.shape(index, shape);
                }
            }
            Action::DiskClosed { volume } => {
                if let Some(index) = self.index(volume) {
                    self.close_disk(index);
                }
            }
            Action::RecordAtVoter {
                volume,
                generation,
                term,
            } => self.reports.notice(ServeNotice::RecordAtVoter {
                volume,
                generation,
                term,
            }),
            Action::Track { slot, volume, span } => {
                if let Some(table) = &mut self.table {
                    table.track(slot, volume, span);
                }
            }
            Action::Untrack { slot } => {
                if let Some(table) = &mut self.table {
                    table.untrack(slot);
                }
            }
            Action::TrackExact { exact } => {
                if let Some(table) = &mut self.table {
                    table.exact(exact);
                }
            }
            Action::Publish(notice) => self.publish(notice),
            other => self.perform_io(other),
        }
    }

    fn complete(&mut self, completed: Completed) {
        let (ring, counters) = (&mut self.ring, &mut self.counters);
        self.fronts.complete(ring, completed, self.now, counters);
    }

    /// The agent says what the voters have answered.
    fn voter(&mut self, said: VoterSays) {
        match said {
            VoterSays::Recorded { volume, generation } => {
                self.events
                    .push_back(Event::VoterRecorded { volume, generation });
            }
            VoterSays::Deposed { term } => {
                for completed in self.gate.deposed() {
                    self.complete(completed);
                }
                self.events.push_back(Event::Deposed { term });
            }
        }
    }

    /// Disk and metadata operations.
    fn perform_io(&mut self, action: Action) {
        let (io, volume, work) = match action {
            Action::DiskRead {
                io,
                volume,
                span,
                buffer,
                note_zeroes,
            } => {
                let memory = self.memory(buffer);
                let work = memory.map(|memory| Work::Read {
                    span,
                    memory,
                    note_zeroes,
                });
                (io, volume, work)
            }
            Action::DiskProbe { io, volume, span } => (io, volume, Some(Work::Probe { span })),
            Action::DiskHash {
                io,
                volume,
                span,
                buffer,
                digest,
            } => {
                let memory = self.memory(buffer);
                let work = memory.map(|memory| Work::Hash {
                    span,
                    memory,
                    digest,
                });
                (io, volume, work)
            }
            Action::DiskWrite {
                io,
                volume,
                span,
                buffer,
                fua,
            } => {
                let memory = self.memory(buffer);
                let work = memory.map(|memory| Work::Write { span, memory, fua });
                (io, volume, work)
            }
            Action::DiskZeroes {
                io,
                volume,
                span,
                unmap,
                fua,
            } => (io, volume, Some(Work::Zeroes { span, unmap, fua })),
            Action::DiskFlush { io, volume } => (io, volume, Some(Work::Flush)),
            Action::Meta { io, volume, op } => {
                let index = self.index(volume).unwrap_or(usize::MAX);
                let mut port = self.ring.port(Owner::META);
                self.metas
                    .start(&mut port, index, (io, op), &mut self.meta_done);
                return;
            }
            _ => return,
        };
        let index = self.index(volume).unwrap_or(usize::MAX);
        let Some(work) = work else {
            tracing::error!("the engine names a buffer that does not exist");
            let outcome = IoOutcome::Failed(rustix::io::Errno::FAULT.raw_os_error());
            self.meta_done.push((io, outcome));
            return;
        };
        let mut port = self.ring.port(Owner::DISK);
        self.disks
            .start(&mut port, self.now, (io, index, work), &mut self.finished);
    }

    /// Where a buffer lies.
    fn memory(&mut self, buffer: Buffer) -> Option<Memory> {
        match buffer {
            Buffer::Request(request) => self.fronts.memory(request),
            Buffer::Received(slot) => self.links.memory(slot),
            Buffer::Resync(number) => self.resync.buffer(number),
        }
    }

    fn copy(&mut self, from: Buffer, to: Buffer, len: u32) {
        let from = self.memory(from).and_then(|memory| memory.first(len));
        let to = self.memory(to).and_then(|memory| memory.first(len));
        if let (Some(from), Some(to)) = (from, to) {
            // SAFETY: both buffers are the engine's and have this length; different buffers do
            // not overlap, and `copy` would not mind.
            unsafe { std::ptr::copy(from.start, to.start, len as usize) };
        } else {
            tracing::error!("the engine copies between buffers that do not exist");
        }
    }

    fn names(&self) -> Names<'_> {
        Names {
            resource: &self.config.resource,
            peer: &self.config.peer_name,
        }
    }

    fn command_done(&mut self, command: CommandId, result: Result<(), Refusal>) {
        let Some(waiting) = self.commands.remove(&command) else {
            return;
        };
        if let Err(refusal) = result {
            if let Waiting::Attach(index, _) = waiting {
                self.close_disk(index);
            }
            return self.refuse(waiting.into_reply(), &refusal);
        }
        let limit = match &waiting {
            Waiting::Reply(_) => Duration::ZERO,
            Waiting::Attach(index, _) => {
                self.attached[*index] = true;
                if let (Some(table), true) = (&mut self.table, self.attached.iter().all(|a| *a)) {
                    table.all_attached();
                }
                Duration::ZERO
            }
            Waiting::Fronts(_) => {
                self.fronts.reopen();
                FRONT_LIMIT
            }
            Waiting::End(_) => GOODBYE_LIMIT,
        };
        let deadline = self.now.after(limit);
        self.tails.push(Tail { waiting, deadline });
    }

    /// Answers commands that have nothing more to wait for.
    fn finish_tails(&mut self) {
        let fronts = self.fronts.arrived();
        let gone = self.links.all_over();
        let now = self.now;
        let over = |tail: &mut Tail| match &tail.waiting {
            Waiting::Reply(_) | Waiting::Attach(..) => true,
            Waiting::Fronts(_) => fronts.is_some() || tail.deadline <= now,
            Waiting::End(_) => (gone && fronts.is_some()) || tail.deadline <= now,
        };
        for tail in self.tails.extract_if(.., over) {
            let answer = match (&tail.waiting, &fronts) {
                (Waiting::Fronts(_), Some(Err(failure))) => Err(front_failed(failure)),
                (Waiting::Fronts(_), None) => Err(front_late()),
                _ => Ok(Value::Null),
            };
            // The asker may have left.
            let _ = tail.waiting.into_reply().send(answer);
        }
    }

    // ---- what others see ----

    fn publish(&mut self, notice: Notice) {
        if let Notice::Replication { volume, to } = &notice
            && let Some(index) = self.index(*volume)
        {
            self.progress[index].state(self.now, *to);
        }
        match &notice {
            Notice::DiskError { volume, errno } => self.note_disk(*volume, Some(*errno)),
            Notice::Disk { volume, to, .. } if *to > DiskState::Failed => {
                self.note_disk(*volume, None);
            }
            _ => {}
        }
        let ran = self.ran(&notice);
        let what = of_notice(&notice, ran, self.names());
        tracing::info!(resource = self.config.resource, "{what}");
        self.reports
            .notice(match (transition(&notice), finished(&notice, ran)) {
                (Some(step), _) => ServeNotice::Transition(step),
                (None, Some(totals)) => ServeNotice::Finished(totals),
                (None, None) => ServeNotice::Happened(what),
            });
    }

    /// How long what has ended took.
    fn ran(&mut self, notice: &Notice) -> Duration {
        let (Notice::SyncDone { volume, .. }
        | Notice::VerifyDone { volume, .. }
        | Notice::Repaired { volume, .. }) = notice
        else {
            return Duration::ZERO;
        };
        let index = self.index(*volume);
        index.map_or(Duration::ZERO, |index| self.progress[index].lap(self.now))
    }

    fn note_disk(&mut self, volume: VolumeId, failure: Option<i32>) {
        let Some(index) = self.index(volume) else {
            return;
        };
        self.disk_failures[index] = failure.map(|errno| {
            let shorter = self.disks.is_shorter(index) || self.metas.is_shorter(index);
            if shorter {
                tracing::error!(%volume, "a file below it is shorter than when it was attached");
            }
            DiskFailure { errno, shorter }
        });
    }

    /// Tells the control thread what has changed.
    fn report(&mut self) {
        for notice in self.fronts.notices() {
            self.reports.notice(notice);
        }
        self.wish.up = self.links.open() > 0;
        let wish = self.wish;
        self.reports
            .wish
            .send_if_modified(|shown| std::mem::replace(shown, wish) != wish);
    }

    fn measure_event(&mut self, event: &Event) {
        if let Event::Message { envelope, .. } = event
            && let Message::WriteAck { sequence, .. } = envelope.message
        {
            self.counters.acked(sequence, self.now);
        }
    }

    /// Looks now and then at how far syncs and verifies are. They cannot advance without waking
    /// this thread, so that no timer is needed.
    fn measure_progress(&mut self) {
        let moves = self.progress.iter().any(Progress::moves);
        if moves && self.now.since(self.measured) >= progress::EVERY {
            let engine = self.engine.status();
            self.measure(&engine);
        }
    }

    fn measure(&mut self, engine: &ResourceStatus) {
        let peers = engine.connection.peer_devices.iter();
        for (progress, peer) in self.progress.iter_mut().zip(peers) {
            progress.sample(self.now, peer.sync_done);
        }
        self.measured = self.now;
    }

    fn snapshot(&mut self) -> Snapshot {
        let engine = self.engine.status();
        // What stalls wakes nobody: it is seen here that time has passed.
        self.measure(&engine);
        let facts = |index: usize| VolumeFacts {
            latencies: self.counters.percentiles(index),
            serving: self.fronts.serving(index),
            open: self.fronts.open(index),
            listening: self.fronts.listening(index),
            front_failure: self.fronts.failure(index).map(str::to_owned),
            front_note: self.fronts.note(index),
            disk_failure: self.disk_failures[index],
            rate: self.progress[index].rate(),
        };
        Snapshot {
            engine,
            notices: self.reports.sent(),
            volumes: (0..self.volumes.len()).map(facts).collect(),
        }
    }
}

/// What completions have to pass.
fn gate(votes: bool, memory: Option<&OwnedFd>) -> io::Result<Gate> {
    match memory {
        _ if !votes => Ok(Gate::default()),
        Some(memory) => Ok(Gate::leased(LeaseWord::open(memory)?)),
        // Nothing could ever pass.
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Room in a send queue for acknowledgements, bitmap pages and control frames.
const SEND_SLACK: usize = 8 << 20;

fn front_failed(failure: &str) -> ErrorReply {
    ErrorReply::new(
        ErrorKind::Failed,
        failure,
        "the resource is primary all the same; `lockstep secondary` undoes it",
    )
}

fn front_late() -> ErrorReply {
    ErrorReply::new(
        ErrorKind::Timeout,
        "the front end did not get ready in time",
        "`lockstep status` shows what it waits for",
    )
}
