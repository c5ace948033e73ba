//! The front ends of all volumes, and their requests' way to the engine and back.
//!
//! A request's number is the volume's index and the target's tag, so nothing is looked up. What a
//! front end should be (serving, refusing, nothing) follows from the role and the volume's size;
//! [`Fronts::settle`] moves what is there toward it. A target is dropped only when it has said
//! that nothing of it is in the ring or at the engine any more.
//!
//! A ublk device is added and started by a helper thread, because these calls wait, also for this
//! very thread ([`super::device`]). Until the agent has made the device's queue settings, changing
//! requests are held here, so that both copies get the same bytes.

use std::os::fd::OwnedFd;

use lockstep_transport::ring::RingFull;

use super::buffers::Memory;
use super::counters::{Counters, Measure};
use super::device::{self, DeviceOrder};
use super::orders::Orders;
use super::ring::{Owner, Ring};
use crate::agent::protocol::{FrontEnd, ServeConfig, ServeNotice, ServeVolume};
use crate::engine::{Event, IoFailure, Op, Request, RequestId, Time, VolumeId};
use crate::target::nbd::{Export, NbdOptions, NbdServer, NbdSetupError};
use crate::target::ublk::UblkQueue;
use crate::target::{Target, TargetEvent};

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

/// A request at the engine.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    since: Time,
    measure: Option<Measure>,
}

struct Front {
    index: usize,
    config: ServeVolume,
    /// Of an NBD export; every server gets a duplicate.
    listener: Option<OwnedFd>,
    size: u64,
    logical_block: u32,
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
    /// The agent has made the queue settings.
    confirmed: bool,
    /// It has failed, or was stopped from outside: not opened again by itself.
    gone: bool,
    failure: Option<String>,
    held: Vec<(u32, Op)>,
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
    /// Front ends for the configured volumes; `listeners` holds the socket of each NBD export.
    pub fn new(config: &ServeConfig, listeners: Vec<Option<OwnedFd>>) -> Fronts {
        let fronts = config.volumes.iter().zip(listeners).enumerate();
        Fronts {
            fronts: fronts
                .map(|(index, (volume, listener))| Front::new(index, volume.clone(), listener))
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
        }
    }

    /// Front ends that were stopped from outside shall come back, if they are to serve.
    pub fn reopen(&mut self) {
        if self.want {
            self.serve(true);
        }
    }

    /// The usable size of a volume, bytes.
    pub fn size(&mut self, index: usize, bytes: u64) {
        if let Some(front) = self.fronts.get_mut(index) {
            front.size = bytes;
        }
    }

    /// The smallest unit of the volume's disk, bytes.
    pub fn logical_block(&mut self, index: usize, bytes: u32) {
        if let Some(front) = self.fronts.get_mut(index) {
            front.logical_block = bytes;
        }
    }

    /// The agent has made the queue settings of a volume's device.
    pub fn confirm(&mut self, index: usize, now: Time, events: &mut Vec<Event>) {
        if let Some(front) = self.fronts.get_mut(index) {
            front.confirmed = true;
            for (tag, op) in std::mem::take(&mut front.held) {
                front.hand_on(tag, op, now, events);
            }
        }
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
    fn new(index: usize, config: ServeVolume, listener: Option<OwnedFd>) -> Front {
        Front {
            index,
            config,
            listener,
            size: 0,
            logical_block: 512,
            target: None,
            mode: Mode::Nothing,
            stopping: false,
            unstarted: false,
            opening: false,
            attempt: 0,
            started: false,
            confirmed: false,
            gone: false,
            failure: None,
            held: Vec::new(),
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
        match (want && self.size > 0, self.is_device()) {
            (true, true) => match self.mode {
                // A device that exists keeps its size.
                serving @ Mode::Serving { .. } => serving,
                _ => Mode::Serving { size: self.size },
            },
            (true, false) => Mode::Serving { size: self.size },
            (false, true) => Mode::Nothing,
            (false, false) => Mode::Refusing,
        }
    }

    fn complete_and_serving(&self) -> bool {
        let ready = !self.is_device() || (self.started && self.confirmed);
        matches!(self.mode, Mode::Serving { .. }) && ready && !self.stopping
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
        self.confirmed = false;
        let wanted = device::Wanted {
            index: self.index,
            attempt: self.attempt,
            minor,
            cookie: self.config.cookie,
            size,
            logical_block: self.logical_block,
        };
        device::open(wanted, orders.clone());
    }

    fn begin_nbd(&mut self, ring: &mut Ring, goal: Mode, refusal: &str) {
        match self.nbd(goal, refusal) {
            Ok(server) => {
                self.mode = goal;
                self.confirmed = true;
                self.run(ring, Box::new(server));
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn nbd(&self, goal: Mode, refusal: &str) -> Result<NbdServer, NbdSetupError> {
        let listener = match &self.listener {
            Some(listener) => listener.try_clone().map_err(NbdSetupError::System)?,
            None => return Err(NbdSetupError::System(std::io::ErrorKind::NotFound.into())),
        };
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
            min_block: self.logical_block,
            read_only: false,
        };
        NbdServer::new(listener, export, NbdOptions::default())
    }

    /// The helper thread has made the queue of a device.
    fn begin(&mut self, ring: &mut Ring, queue: Box<UblkQueue>) {
        self.mode = Mode::Serving { size: self.size };
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
                TargetEvent::Request { tag, op } => {
                    if self.confirmed || matches!(op, Op::Read { .. } | Op::Flush) {
                        self.hand_on(tag, op, now, events);
                    } else {
                        self.held.push((tag, op));
                    }
                }
                TargetEvent::Stopped => {
                    // Stopped without our asking: by the agent, before it demotes.
                    self.gone = !self.stopping;
                    self.stopping = false;
                    self.target = None;
                    self.mode = Mode::Nothing;
                    self.held.clear();
                    if let FrontEnd::Ublk { minor } = self.config.front {
                        let volume = self.config.volume;
                        notices.push(ServeNotice::DeviceStopped { volume, minor });
                    }
                }
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
    use super::*;

    #[test]
    fn a_request_number_is_index_and_tag() {
        for (index, tag) in [(0, 0), (63, 127), (1, 65_535)] {
            assert_eq!(parts(number(index, tag)), (index, tag));
        }
    }
}
