//! The front ends of all volumes, and their requests' way to the engine and back.
//!
//! A request's number is the volume's index and the target's tag, so nothing is looked up. What a
//! front end should be (serving, refusing, nothing) follows from the role and the volume's size;
//! [`Fronts::settle`] moves what is there toward it. A target is dropped only when it has said
//! that nothing of it is in the ring or at the engine any more.
//!
//! A ublk device is added and started by a helper thread, because these calls wait, also for this
//! very thread ([`super::device`]). Until the agent has made the device's queue settings no
//! changing request passes, so that both copies get the same bytes. What can arrive before is a
//! write of somebody who opened the node between START_DEV and the answer to `primary` (before
//! START_DEV there is no node, udev only reads), or after a recovery what the predecessor left.
//! Making a setting freezes the queue: the kernel lets nothing new in and waits for what is in.
//! So the order is:
//!
//! 1. The node appears: changing requests are *held*; reads and flushes go on.
//! 2. The agent finds the settings in force, as after a recovery: what is held goes on.
//! 3. Otherwise it announces the freeze: what is held fails, and so does what still comes. The
//!    freeze then waits only for reads and flushes, which wait for nobody, so it ends; and with it
//!    the settings, after which everything goes on. How many writes failed is in the device's
//!    `reason`.
//! 4. An agent that does neither is waited for for [`HOLD_LIMIT`]; then what is held fails.

use std::os::fd::OwnedFd;
use std::time::Duration;

use lockstep_transport::ring::RingFull;

use super::buffers::Memory;
use super::counters::{Counters, Measure};
use super::device::{self, DeviceOrder};
use super::orders::Orders;
use super::ring::{Owner, Ring};
use crate::agent::protocol::{FrontEnd, InUse, ServeConfig, ServeNotice, ServeVolume};
use crate::engine::{Event, IoFailure, Op, Request, RequestId, Shape, Time, VolumeId};
use crate::target::nbd::{Export, NbdOptions, NbdServer, NbdSetupError};
use crate::target::ublk::UblkQueue;
use crate::target::{Target, TargetEvent};

/// How long a changing request waits for the agent.
const HOLD_LIMIT: Duration = Duration::from_secs(30);

/// What a request gets that came too early.
const TOO_EARLY: IoFailure = IoFailure::Disk(5);

/// Bits of a request's number that are the tag.
const TAG_BITS: u32 = 16;

/// What the target of a front end does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// There is none.
    Nothing,
    /// Tells clients that this node is not primary.
    Refusing,
    /// Hands requests to the engine; size in bytes.
    Serving { size: u64 },
}

/// What becomes of changing requests: see the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// The oldest that is held came then.
    Holding {
        since: Option<Time>,
    },
    Failing,
    Open,
}

/// A request at the engine.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    since: Time,
    measure: Option<Measure>,
}

struct Front {
    index: usize,
    config: ServeVolume,
    /// Of an NBD export, once the agent has made it; every server gets a duplicate.
    listener: Option<OwnedFd>,
    shape: Shape,
    target: Option<Box<dyn Target>>,
    mode: Mode,
    stopping: bool,
    /// `start` found the ring full.
    unstarted: bool,
    /// The helper thread is at work for this attempt.
    opening: bool,
    attempt: u64,
    /// The block device exists.
    started: bool,
    gate: Gate,
    /// It has failed, or was stopped from outside: not opened again by itself.
    gone: bool,
    failure: Option<String>,
    held: Vec<(u32, Op)>,
    /// Tags to be failed, and how many have been.
    turned_away: Vec<u32>,
    early: u64,
    running: Vec<Running>,
}

/// The front ends of a resource.
pub struct Fronts {
    fronts: Vec<Front>,
    /// Volumes are to be served.
    want: bool,
    /// What clients are told while they are not.
    refusal: String,
    notices: Vec<ServeNotice>,
    scratch: Vec<TargetEvent>,
}

/// The number of a request.
fn number(index: usize, tag: u32) -> RequestId {
    RequestId((index as u32) << TAG_BITS | tag)
}

/// Index of the volume and tag of a request.
fn parts(request: RequestId) -> (usize, u32) {
    let tag = request.0 & ((1 << TAG_BITS) - 1);
    ((request.0 >> TAG_BITS) as usize, tag)
}

impl Fronts {
    /// Front ends for the configured volumes. NBD exports begin when they are given their sockets.
    pub fn new(config: &ServeConfig) -> Fronts {
        let fronts = config.volumes.iter().enumerate();
        Fronts {
            fronts: fronts
                .map(|(index, volume)| Front::new(index, volume.clone()))
                .collect(),
            want: false,
            refusal: format!(
                "{} is not primary on this node; its peer is {}; `lockstep status {}` says more",
                config.resource, config.peer_name, config.resource
            ),
            notices: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Whether the volumes are to be served.
    pub fn serve(&mut self, want: bool) {
        self.want = want;
        for front in &mut self.fronts {
            front.gone = false;
            front.failure = None;
            front.early = 0;
        }
    }

    /// Front ends that were stopped from outside shall come back, if they are to serve.
    pub fn reopen(&mut self) {
        if self.want {
            self.serve(true);
        }
    }

    /// Gives the export with this index its listening socket, which it keeps.
    pub fn listen(&mut self, index: usize, listener: OwnedFd) {
        if let Some(front) = self.fronts.get_mut(index)
            && front.listener.is_none()
        {
            front.listener = Some(listener);
            front.gone = false;
            front.failure = None;
        }
    }

    /// The export with this index has its listening socket.
    pub fn listening(&self, index: usize) -> bool {
        let front = self.fronts.get(index);
        front.is_some_and(|front| front.listener.is_some())
    }

    /// What a volume looks like from its next opening on.
    pub fn shape(&mut self, index: usize, shape: Shape) {
        if let Some(front) = self.fronts.get_mut(index) {
            front.shape = shape;
        }
    }

    /// The agent has made the queue settings of a volume's device.
    pub fn confirm(&mut self, index: usize, now: Time, events: &mut Vec<Event>) {
        if let Some(front) = self.fronts.get_mut(index) {
            front.gate = Gate::Open;
            for (tag, op) in std::mem::take(&mut front.held) {
                front.hand_on(tag, op, now, events);
            }
        }
    }

    /// The agent is about to make the queue settings, which waits for every open request.
    pub fn expect_freeze(&mut self, index: usize) {
        if let Some(front) = self.fronts.get_mut(index) {
            front.gate = Gate::Failing;
            front.turn_held_away();
        }
    }

    /// When `settle` has something to do without news.
    pub fn next_deadline(&self) -> Option<Time> {
        let limits = self.fronts.iter().filter_map(Front::held_until);
        limits.min()
    }

    /// What the administrator may want to know about the volume with this index.
    pub fn note(&self, index: usize) -> Option<String> {
        let early = self.fronts.get(index)?.early;
        (early > 0).then(|| {
            format!(
                "{early} writes came before the device was ready and have failed: use it after \
                 `primary` has succeeded"
            )
        })
    }

    /// What the agent must know since the last call.
    pub fn notices(&mut self) -> std::vec::Drain<'_, ServeNotice> {
        self.notices.drain(..)
    }

    /// The volume with this index takes requests.
    pub fn serving(&self, index: usize) -> bool {
        self.fronts
            .get(index)
            .is_some_and(Front::complete_and_serving)
    }

    /// Somebody has the export with this index open.
    pub fn open(&self, index: usize) -> bool {
        self.fronts.get(index).is_some_and(Front::in_use)
    }

    /// Somebody has an export open.
    pub fn in_use(&self) -> bool {
        self.fronts.iter().any(Front::in_use)
    }

    /// Who has which export open.
    pub fn users(&self) -> Vec<InUse> {
        let used = self.fronts.iter().filter(|front| front.in_use());
        used.map(|front| InUse {
            volume: front.config.volume,
            clients: front.target.iter().flat_map(|t| t.clients()).collect(),
        })
        .collect()
    }

    /// Why the volume with this index has no front end although it should.
    pub fn failure(&self, index: usize) -> Option<&str> {
        self.fronts.get(index)?.failure.as_deref()
    }

    /// `None` while front ends are on their way to where they should be; then whether they are.
    pub fn arrived(&self) -> Option<Result<(), String>> {
        for front in &self.fronts {
            if let Some(failure) = &front.failure {
                return Some(Err(failure.clone()));
            }
            let there = match front.goal(self.want) {
                Mode::Serving { .. } => front.complete_and_serving(),
                goal => front.mode == goal && !front.stopping && !front.opening,
            };
            if !there {
                return None;
            }
        }
        Some(Ok(()))
    }

    /// Takes a completion of a front end.
    pub fn on_completion(
        &mut self,
        ring: &mut Ring,
        index: usize,
        (token, result, flags): (u32, i32, u32),
        now: Time,
        events: &mut Vec<Event>,
    ) {
        let Some(front) = self.fronts.get_mut(index) else {
            return;
        };
        let owner = front.owner();
        let Some(target) = &mut front.target else {
            return;
        };
        let news = &mut self.scratch;
        target.on_completion(&mut ring.port(owner), token, result, flags, news);
        front.take(news, now, events, &mut self.notices);
    }

    /// The buffer of a request.
    pub fn memory(&mut self, request: RequestId) -> Option<Memory> {
        let (index, tag) = parts(request);
        let target = self.fronts.get_mut(index)?.target.as_mut()?;
        Some(Memory::of(target.buffer(tag)))
    }

    /// Ends a request.
    pub fn complete(
        &mut self,
        ring: &mut Ring,
        (request, result): (RequestId, Result<(), IoFailure>),
        now: Time,
        counters: &mut Counters,
    ) {
        let (index, tag) = parts(request);
        let Some(front) = self.fronts.get_mut(index) else {
            return;
        };
        let running = front.running.get(tag as usize).copied().unwrap_or_default();
        if let (Some(measure), Ok(())) = (running.measure, result) {
            counters.record(index, measure, running.since, now);
        }
        let owner = front.owner();
        if let Some(target) = &mut front.target {
            target.complete(&mut ring.port(owner), tag, result);
        }
    }

    /// News of a helper thread.
    pub fn on_device(&mut self, ring: &mut Ring, order: DeviceOrder) {
        match order {
            DeviceOrder::Opened {
                index,
                attempt,
                queue,
            } => {
                let Some(front) = self.current(index, attempt) else {
                    return;
                };
                front.begin(ring, queue);
            }
            DeviceOrder::Started { index, attempt } => {
                let Some(front) = self.current(index, attempt) else {
                    return;
                };
                front.opening = false;
                front.started = true;
                if let FrontEnd::Ublk { minor } = front.config.front {
                    let volume = front.config.volume;
                    self.notices
                        .push(ServeNotice::DeviceStarted { volume, minor });
                }
            }
            DeviceOrder::Failed {
                index,
                attempt,
                reason,
            } => {
                if let Some(front) = self.current(index, attempt) {
                    front.opening = false;
                    front.fail(reason);
                }
            }
        }
    }

    fn current(&mut self, index: usize, attempt: u64) -> Option<&mut Front> {
        let front = self.fronts.get_mut(index)?;
        (front.attempt == attempt).then_some(front)
    }

    /// Moves every front end toward what it should be.
    pub fn settle(&mut self, ring: &mut Ring, orders: &Orders, now: Time, events: &mut Vec<Event>) {
        for front in &mut self.fronts {
            front.retry_start(ring);
            front.turn_away(ring, now);
            let goal = front.goal(self.want);
            if front.mode == goal || front.stopping || front.opening {
                continue;
            }
            let owner = front.owner();
            if let Some(target) = &mut front.target {
                front.stopping = true;
                target.stop(&mut ring.port(owner), &mut self.scratch);
                front.stop_device();
                front.take(&mut self.scratch, now, events, &mut self.notices);
            } else if !front.gone {
                front.open(ring, goal, &self.refusal, orders);
            }
        }
    }
}

impl Front {
    fn new(index: usize, config: ServeVolume) -> Front {
        Front {
            index,
            config,
            listener: None,
            shape: Shape {
                bytes: 0,
                logical_block: 512,
                discard: false,
            },
            target: None,
            mode: Mode::Nothing,
            stopping: false,
            unstarted: false,
            opening: false,
            attempt: 0,
            started: false,
            gate: Gate::Open,
            gone: false,
            failure: None,
            held: Vec::new(),
            turned_away: Vec::new(),
            early: 0,
            running: Vec::new(),
        }
    }

    fn owner(&self) -> Owner {
        Owner(Owner::FRONT + self.index as u32)
    }

    fn is_device(&self) -> bool {
        matches!(self.config.front, FrontEnd::Ublk { .. })
    }

    fn goal(&self, want: bool) -> Mode {
        let size = self.shape.bytes;
        match (want && size > 0, self.is_device()) {
            (true, true) => match self.mode {
                // A device that exists keeps its size.
                serving @ Mode::Serving { .. } => serving,
                _ => Mode::Serving { size },
            },
            (true, false) => Mode::Serving { size },
            (false, true) => Mode::Nothing,
            (false, false) if self.listener.is_none() => Mode::Nothing,
            (false, false) => Mode::Refusing,
        }
    }

    fn complete_and_serving(&self) -> bool {
        let ready = !self.is_device() || (self.started && self.gate == Gate::Open);
        matches!(self.mode, Mode::Serving { .. }) && ready && !self.stopping
    }

    fn in_use(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.in_use())
    }

    fn fail(&mut self, reason: String) {
        tracing::error!(volume = self.config.volume, reason, "front end");
        self.failure = Some(reason);
        self.gone = true;
    }

    /// Begins to make what should be there; there is no target.
    fn open(&mut self, ring: &mut Ring, goal: Mode, refusal: &str, orders: &Orders) {
        self.attempt += 1;
        let Mode::Serving { size } = goal else {
            self.begin_nbd(ring, goal, refusal);
            return;
        };
        let FrontEnd::Ublk { minor } = self.config.front else {
            self.begin_nbd(ring, goal, refusal);
            return;
        };
        self.opening = true;
        self.started = false;
        self.gate = Gate::Holding { since: None };
        let wanted = device::Wanted {
            index: self.index,
            attempt: self.attempt,
            minor,
            cookie: self.config.cookie,
            shape: Shape {
                bytes: size,
                ..self.shape
            },
        };
        device::open(wanted, orders.clone());
    }

    fn begin_nbd(&mut self, ring: &mut Ring, goal: Mode, refusal: &str) {
        match self.nbd(goal, refusal) {
            Ok(server) => {
                self.mode = goal;
                self.gate = Gate::Open;
                self.run(ring, Box::new(server));
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn nbd(&self, goal: Mode, refusal: &str) -> Result<NbdServer, NbdSetupError> {
        let listener = self.listener.as_ref().ok_or(NbdSetupError::NoSocket)?;
        let listener = listener.try_clone().map_err(NbdSetupError::System)?;
        let Mode::Serving { size } = goal else {
            return NbdServer::refusing(listener, refusal);
        };
        let (FrontEnd::NbdUnix { export, .. } | FrontEnd::NbdTcp { export, .. }) =
            &self.config.front
        else {
            return Err(NbdSetupError::System(std::io::ErrorKind::NotFound.into()));
        };
        let export = Export {
            name: export.clone(),
            description: format!("lockstep volume {}", self.config.volume),
            size,
            min_block: self.shape.logical_block,
            discard: self.shape.discard,
            read_only: false,
        };
        NbdServer::new(listener, export, NbdOptions::default())
    }

    /// The helper thread has made the queue of a device.
    fn begin(&mut self, ring: &mut Ring, queue: Box<UblkQueue>) {
        self.mode = Mode::Serving {
            size: self.shape.bytes,
        };
        self.run(ring, queue);
    }

    fn run(&mut self, ring: &mut Ring, target: Box<dyn Target>) {
        self.running = vec![Running::default(); target.depth() as usize];
        self.target = Some(target);
        self.unstarted = true;
        self.retry_start(ring);
    }

    fn retry_start(&mut self, ring: &mut Ring) {
        let owner = self.owner();
        if let (Some(target), true) = (&mut self.target, self.unstarted) {
            self.unstarted = matches!(target.start(&mut ring.port(owner)), Err(RingFull));
        }
    }

    /// Ends the block device itself, in case the agent has not.
    fn stop_device(&self) {
        if let FrontEnd::Ublk { minor } = self.config.front {
            device::stop(minor);
        }
    }

    /// Takes what the target said.
    fn take(
        &mut self,
        news: &mut Vec<TargetEvent>,
        now: Time,
        events: &mut Vec<Event>,
        notices: &mut Vec<ServeNotice>,
    ) {
        for event in news.drain(..) {
            match event {
                TargetEvent::Request { tag, op } => match &mut self.gate {
                    _ if matches!(op, Op::Read { .. } | Op::Flush) => {
                        self.hand_on(tag, op, now, events);
                    }
                    Gate::Open => self.hand_on(tag, op, now, events),
                    Gate::Failing => self.turned_away.push(tag),
                    Gate::Holding { since } => {
                        since.get_or_insert(now);
                        self.held.push((tag, op));
                    }
                },
                TargetEvent::Stopped => {
                    // Stopped without our asking: by the agent, before it demotes.
                    self.gone = !self.stopping;
                    self.stopping = false;
                    self.target = None;
                    self.mode = Mode::Nothing;
                    self.held.clear();
                    self.turned_away.clear();
                    if let FrontEnd::Ublk { minor } = self.config.front {
                        let volume = self.config.volume;
                        notices.push(ServeNotice::DeviceStopped { volume, minor });
                    }
                }
            }
        }
    }

    fn turn_held_away(&mut self) {
        let held = self.held.drain(..).map(|(tag, _)| tag);
        self.turned_away.extend(held);
    }

    fn held_until(&self) -> Option<Time> {
        match self.gate {
            Gate::Holding { since } => since.map(|since| since.after(HOLD_LIMIT)),
            Gate::Failing | Gate::Open => None,
        }
    }

    /// Fails what came too early or was held too long.
    fn turn_away(&mut self, ring: &mut Ring, now: Time) {
        if self.held_until().is_some_and(|until| until <= now) {
            self.gate = Gate::Holding { since: None };
            self.turn_held_away();
        }
        let owner = self.owner();
        if let Some(target) = &mut self.target {
            for tag in self.turned_away.drain(..) {
                self.early += 1;
                target.complete(&mut ring.port(owner), tag, Err(TOO_EARLY));
            }
        }
    }

    fn hand_on(&mut self, tag: u32, op: Op, now: Time, events: &mut Vec<Event>) {
        let measure = match op {
            Op::Read { .. } => Some(Measure::Read),
            Op::Write { .. } => Some(Measure::Write),
            Op::WriteZeroes { .. } | Op::Discard { .. } | Op::Flush => None,
        };
        if let Some(running) = self.running.get_mut(tag as usize) {
            *running = Running {
                since: now,
                measure,
            };
        }
        events.push(Event::Request(Request {
            id: number(self.index, tag),
            volume: VolumeId(self.config.volume),
            op,
        }));
    }
}

#[cfg(test)]
mod tests {
    use lockstep_transport::ring::Submitter;

    use super::*;

    #[test]
    fn a_request_number_is_index_and_tag() {
        for (index, tag) in [(0, 0), (63, 127), (1, 65_535)] {
            assert_eq!(parts(number(index, tag)), (index, tag));
        }
    }

    /// Tags and results, in the order in which they were completed.
    type Completed = std::rc::Rc<std::cell::RefCell<Vec<(u32, Result<(), IoFailure>)>>>;

    /// A target that only notes what it is told.
    #[derive(Default)]
    struct Fake {
        completed: Completed,
        buffer: [u8; 8],
    }

    impl Target for Fake {
        fn depth(&self) -> u32 {
            8
        }

        fn start(&mut self, _: &mut dyn Submitter) -> Result<(), RingFull> {
            Ok(())
        }

        fn on_completion(
            &mut self,
            _: &mut dyn Submitter,
            _: u32,
            _: i32,
            _: u32,
            _: &mut Vec<TargetEvent>,
        ) {
        }

        fn buffer(&mut self, _: u32) -> &mut [u8] {
            &mut self.buffer
        }

        fn complete(&mut self, _: &mut dyn Submitter, tag: u32, result: Result<(), IoFailure>) {
            self.completed.borrow_mut().push((tag, result));
        }

        fn stop(&mut self, _: &mut dyn Submitter, events: &mut Vec<TargetEvent>) {
            events.push(TargetEvent::Stopped);
        }
    }

    const SECOND: u64 = 1_000_000_000;

    /// A block device that has just appeared, with one request of each sort that arrived.
    fn young(ring: &mut Ring) -> (Fronts, Vec<Event>, Fake) {
        let config = crate::reactor::status::tests::config();
        let mut fronts = Fronts::new(&config);
        let fake = Fake::default();
        let shown = Fake {
            completed: std::rc::Rc::clone(&fake.completed),
            ..Fake::default()
        };
        let front = &mut fronts.fronts[0];
        front.mode = Mode::Serving { size: 4096 };
        front.started = true;
        front.gate = Gate::Holding { since: None };
        front.run(ring, Box::new(fake));
        let mut events = Vec::new();
        arrive(&mut fronts, 0, &mut events);
        (fronts, events, shown)
    }

    fn arrive(fronts: &mut Fronts, now: u64, events: &mut Vec<Event>) {
        let span = crate::engine::Span::new(0, 512);
        let ops = [
            Op::Read { span },
            Op::Flush,
            Op::Write { span, fua: false },
            Op::Discard { span },
        ];
        let mut news: Vec<_> = ops
            .into_iter()
            .zip(0..)
            .map(|(op, tag)| TargetEvent::Request { tag, op })
            .collect();
        let mut notices = Vec::new();
        fronts.fronts[0].take(&mut news, Time(now), events, &mut notices);
    }

    #[test]
    fn a_young_device_holds_changes_until_its_settings_are_confirmed() {
        let mut ring = Ring::new(&crate::reactor::ring::waker().unwrap()).unwrap();
        let (mut fronts, mut events, fake) = young(&mut ring);
        assert_eq!(events.len(), 2, "reads and flushes go on");
        assert!(!fronts.serving(0) && fronts.next_deadline().is_some());
        // In force already, as after a recovery: nothing fails.
        fronts.confirm(0, Time(1), &mut events);
        assert_eq!(events.len(), 4);
        assert!(fronts.serving(0) && fronts.note(0).is_none() && fronts.next_deadline().is_none());
        assert!(fake.completed.borrow().is_empty());
    }

    #[test]
    fn nothing_that_a_freeze_would_wait_for_is_kept() {
        let mut ring = Ring::new(&crate::reactor::ring::waker().unwrap()).unwrap();
        let (mut fronts, mut events, fake) = young(&mut ring);
        fronts.expect_freeze(0);
        // What slips in between the announcement and the freeze.
        arrive(&mut fronts, 1, &mut events);
        let orders = crate::reactor::orders::orders(crate::reactor::ring::waker().unwrap()).0;
        fronts.want = true;
        fronts.fronts[0].shape.bytes = 4096;
        fronts.settle(&mut ring, &orders, Time(2), &mut events);
        let failed = Err(TOO_EARLY);
        assert_eq!(
            *fake.completed.borrow(),
            [(2, failed), (3, failed), (2, failed), (3, failed)]
        );
        assert_eq!(events.len(), 4, "reads and flushes of both rounds");
        assert!(fronts.note(0).unwrap().starts_with("4 writes"));
        fronts.confirm(0, Time(3), &mut events);
        arrive(&mut fronts, 4, &mut events);
        assert_eq!(events.len(), 8, "everything passes");
    }

    #[test]
    fn an_agent_that_never_comes_is_not_waited_for_for_ever() {
        let mut ring = Ring::new(&crate::reactor::ring::waker().unwrap()).unwrap();
        let (mut fronts, mut events, fake) = young(&mut ring);
        let orders = crate::reactor::orders::orders(crate::reactor::ring::waker().unwrap()).0;
        fronts.want = true;
        fronts.fronts[0].shape.bytes = 4096;
        fronts.settle(&mut ring, &orders, Time(29 * SECOND), &mut events);
        assert!(fake.completed.borrow().is_empty());
        let due = fronts.next_deadline().unwrap();
        fronts.settle(&mut ring, &orders, due, &mut events);
        assert_eq!(fake.completed.borrow().len(), 2);
        assert_eq!(fronts.next_deadline(), None);
    }
}
