//! The pace of a sync beside an application, on modelled disks and links in virtual time: the
//! controller is the product's own, the rest is arithmetic.
//!
//! A block is read at the source, sent, written at the target and answered. A request of the
//! application is a 4 KiB read at the source, or a write there and at the target. Both share
//! disks and link. Requests arrive at random, at a fixed mean rate, whether or not earlier ones
//! are done; so what a sync delays is counted in full.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use hdrhistogram::Histogram;
use lockstep::engine::pace::{Admit, Claim, Limits, Load, Pace, Work};
use lockstep::engine::{RequestId, Time};

/// The application starts and stops here; before and after it is idle.
pub const BUSY: std::ops::Range<Duration> = Duration::from_secs(4)..Duration::from_secs(12);
/// End of the run.
pub const END: Duration = Duration::from_secs(14);
/// Width of a point of the timeline.
pub const BIN: Duration = Duration::from_millis(100);
/// What the sync yields within, so that the application's figures begin here.
const YIELD: Duration = Duration::from_millis(100);
/// Bytes of an application request.
const SMALL: u64 = 4096;
/// Where the application works, far from the sync.
const FAR: u64 = 1 << 40;

/// A disk: `slots` requests at once, each with `latency` of its own, one data path of `rate`.
#[derive(Clone, Copy, Debug)]
pub struct DiskModel {
    pub name: &'static str,
    /// Bytes per second.
    pub rate: u64,
    /// Before each transfer.
    pub latency: Duration,
    /// Only where the last request did not end.
    pub seeks: bool,
    pub slots: usize,
    /// Requests per second of the application that make it busy but not full.
    pub load: u32,
}

/// 200 MB/s with seeks of 8 ms; SATA SSD; NVMe.
pub const DISKS: [DiskModel; 3] = [
    DiskModel {
        name: "HDD",
        rate: 200_000_000,
        latency: Duration::from_millis(8),
        seeks: true,
        slots: 1,
        load: 30,
    },
    DiskModel {
        name: "SATA SSD",
        rate: 500_000_000,
        latency: Duration::from_micros(100),
        seeks: false,
        slots: 32,
        load: 1_000,
    },
    DiskModel {
        name: "NVMe",
        rate: 3_000_000_000,
        latency: Duration::from_micros(70),
        seeks: false,
        slots: 64,
        load: 3_000,
    },
];

/// A link: bytes per second, one way.
#[derive(Clone, Copy, Debug)]
pub struct LinkModel {
    pub name: &'static str,
    pub rate: u64,
    pub delay: Duration,
}

/// 1 GbE, 25 GbE, 100 Mbit/s over 20 ms.
pub const LINKS: [LinkModel; 3] = [
    LinkModel {
        name: "1 GbE",
        rate: 117_000_000,
        delay: Duration::from_micros(50),
    },
    LinkModel {
        name: "25 GbE",
        rate: 2_900_000_000,
        delay: Duration::from_micros(15),
    },
    LinkModel {
        name: "100 Mbit/s, 20 ms",
        rate: 11_700_000,
        delay: Duration::from_millis(10),
    },
];

/// A point of the timeline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Point {
    pub sync_bytes: u64,
    pub in_flight: u64,
    /// Slowest request of the application that ended here.
    pub slowest: Duration,
}

/// What a run has found.
pub struct Outcome {
    pub timeline: Vec<Point>,
    /// 99th percentile of the application's latency from [`YIELD`] after its start.
    pub p99: Duration,
    /// Bytes per second of the sync, application idle and busy.
    pub idle_rate: f64,
    pub busy_rate: f64,
}

#[derive(Debug)]
struct Disk {
    model: DiskModel,
    slots: Vec<Time>,
    bus: Time,
    head: u64,
}

impl Disk {
    fn new(model: DiskModel) -> Disk {
        Disk {
            model,
            slots: vec![Time(0); model.slots],
            bus: Time(0),
            head: 0,
        }
    }

    /// When a request that comes now is done.
    fn submit(&mut self, now: Time, at: u64, bytes: u64) -> Time {
        let free = (0..self.slots.len())
            .min_by_key(|slot| self.slots[*slot])
            .unwrap_or(0);
        let mut ready = self.slots[free].max(now);
        if !self.model.seeks || at != self.head {
            ready = ready.after(self.model.latency);
        }
        let done = ready.max(self.bus).after(transfer(bytes, self.model.rate));
        self.bus = done;
        self.slots[free] = done;
        self.head = at + bytes;
        done
    }
}

fn transfer(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes * 1_000_000_000 / rate)
}

/// Where something on its way has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The pace is asked.
    Ask,
    Arrival,
    /// At the source's disk; sent next.
    Read(u64),
    /// At the target.
    Received(u64),
    /// Answer on its way back.
    Answered(u64),
    /// One leg of a request of the application.
    Leg(u32),
    LegReceived(u32),
}

struct Block {
    claim: Claim,
    at: u64,
    bytes: u64,
}

struct Request {
    began: Time,
    legs: u32,
}

struct Model {
    now: Time,
    queue: BinaryHeap<Reverse<(Time, u64, Step)>>,
    order: u64,
    source: Disk,
    target: Disk,
    link: LinkModel,
    wire: Time,
    pace: Option<Pace>,
    load: Load,
    /// When the pace is asked next, if nothing ends before.
    wake: Option<Time>,
    cursor: u64,
    blocks: HashMap<u64, Block>,
    requests: HashMap<u32, Request>,
    next: u64,
    random: u64,
    timeline: Vec<Point>,
    latencies: Histogram<u64>,
}

/// Runs a sync of unlimited length and an application in [`BUSY`]; without limits the application
/// alone.
pub fn run(disk: DiskModel, link: LinkModel, limits: Option<Limits>) -> Outcome {
    let bins = END.as_nanos() / BIN.as_nanos();
    let mut model = Model {
        now: Time(0),
        queue: BinaryHeap::new(),
        order: 0,
        source: Disk::new(disk),
        target: Disk::new(disk),
        link,
        wire: Time(0),
        pace: limits.map(|limits| Pace::new(limits, Time(0))),
        load: Load::default(),
        wake: None,
        cursor: 0,
        blocks: HashMap::new(),
        requests: HashMap::new(),
        next: 0,
        random: 1,
        timeline: vec![Point::default(); bins as usize],
        latencies: Histogram::new(3).expect("three digits are allowed"),
    };
    model.ask();
    model.at(Time(0).after(BUSY.start), Step::Arrival);
    while let Some(Reverse((at, _, step))) = model.queue.pop() {
        if at >= Time(0).after(END) {
            break;
        }
        model.now = at;
        model.step(step);
    }
    model.outcome()
}

impl Model {
    fn at(&mut self, time: Time, step: Step) {
        self.order += 1;
        self.queue.push(Reverse((time, self.order, step)));
    }

    /// Sends on the wire; when it is there.
    fn send(&mut self, bytes: u64) -> Time {
        self.wire = self
            .wire
            .max(self.now)
            .after(transfer(bytes, self.link.rate));
        self.wire.after(self.link.delay)
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask if self.wake == Some(self.now) => self.ask(),
            Step::Ask => {}
            Step::Arrival => self.arrival(),
            Step::Read(id) => {
                let there = self.send(self.blocks[&id].bytes);
                self.at(there, Step::Received(id));
            }
            Step::Received(id) => {
                let (at, bytes) = (self.blocks[&id].at, self.blocks[&id].bytes);
                let written = self.target.submit(self.now, at, bytes);
                self.at(written.after(self.link.delay), Step::Answered(id));
            }
            Step::Answered(id) => self.answered(id),
            Step::LegReceived(id) => {
                let place = FAR + self.draw() % FAR;
                let written = self.target.submit(self.now, place, SMALL);
                self.at(written.after(self.link.delay), Step::Leg(id));
            }
            Step::Leg(id) => self.leg_done(id),
        }
    }

    /// Claims what the pace allows.
    fn ask(&mut self) {
        loop {
            let Some(pace) = self.pace.as_mut() else {
                return;
            };
            let bytes = match pace.admit(self.now, &self.load) {
                Admit::Now(bytes) => u64::from(bytes),
                Admit::At(at) if self.wake == Some(at) => return,
                Admit::At(at) => {
                    self.wake = Some(at);
                    return self.at(at, Step::Ask);
                }
                Admit::Later => return,
            };
            let claim = pace.claim(self.now, &self.load, bytes);
            let in_flight = pace.in_flight();
            let (id, at) = (self.next, self.cursor);
            self.next += 1;
            self.cursor += bytes;
            self.blocks.insert(id, Block { claim, at, bytes });
            let point = self.point();
            point.in_flight = point.in_flight.max(in_flight);
            let read = self.source.submit(self.now, at, bytes);
            self.at(read, Step::Read(id));
        }
    }

    fn answered(&mut self, id: u64) {
        if let Some(block) = self.blocks.remove(&id)
            && let Some(pace) = self.pace.as_mut()
        {
            pace.done(self.now, block.claim);
            self.point().sync_bytes += block.bytes;
        }
        self.ask();
    }

    fn point(&mut self) -> &mut Point {
        let bin = u128::from(self.now.0) / BIN.as_nanos();
        &mut self.timeline[bin as usize]
    }

    fn arrival(&mut self) {
        let unit = (self.draw() >> 11) as f64 / (1u64 << 53) as f64;
        let pause = -(1.0 - unit).ln() / f64::from(self.source.model.load);
        let next = self.now.after(Duration::from_secs_f64(pause));
        if next < Time(0).after(BUSY.end) {
            self.at(next, Step::Arrival);
        }
        let id = self.next as u32;
        self.next += 1;
        self.load.begin(self.now, Work::Request(RequestId(id)));
        let write = self.draw() % 10 < 7;
        let request = Request {
            began: self.now,
            legs: 1 + u32::from(write),
        };
        self.requests.insert(id, request);
        let place = FAR + self.draw() % FAR;
        let local = self.source.submit(self.now, place, SMALL);
        self.at(local, Step::Leg(id));
        if write {
            let there = self.send(SMALL);
            self.at(there, Step::LegReceived(id));
        }
    }

    fn leg_done(&mut self, id: u32) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        request.legs -= 1;
        if request.legs > 0 {
            return;
        }
        let took = self.now.since(request.began);
        let counts = Time(0).after(BUSY.start + YIELD);
        if request.began >= counts {
            self.latencies.saturating_record(took.as_nanos() as u64);
        }
        self.requests.remove(&id);
        self.load.end(self.now, Work::Request(RequestId(id)));
        let point = self.point();
        point.slowest = point.slowest.max(took);
        self.ask();
    }

    fn outcome(self) -> Outcome {
        let rate = |from: Duration, to: Duration| {
            let bin = |time: Duration| (time.as_nanos() / BIN.as_nanos()) as usize;
            let points = &self.timeline[bin(from)..bin(to)];
            let bytes: u64 = points.iter().map(|point| point.sync_bytes).sum();
            bytes as f64 / (to - from).as_secs_f64()
        };
        let second = Duration::from_secs(1);
        Outcome {
            p99: Duration::from_nanos(self.latencies.value_at_quantile(0.99)),
            idle_rate: rate(second, BUSY.start),
            busy_rate: rate(BUSY.start + second, BUSY.end),
            timeline: self.timeline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(mut check: impl FnMut(DiskModel, LinkModel, &Outcome)) {
        for disk in DISKS {
            for link in LINKS {
                check(disk, link, &run(disk, link, Some(Limits::default())));
            }
        }
    }

    #[test]
    fn an_idle_pair_syncs_at_nine_tenths_of_disk_or_link() {
        every(|disk, link, outcome| {
            let limit = disk.rate.min(link.rate) as f64;
            let ratio = outcome.idle_rate / limit;
            assert!(ratio >= 0.9, "{} over {}: {ratio:.2}", disk.name, link.name);
        });
    }

    #[test]
    fn the_application_keeps_its_latency() {
        every(|disk, link, outcome| {
            let alone = run(disk, link, None).p99;
            let ratio = outcome.p99.as_secs_f64() / alone.as_secs_f64();
            assert!(
                ratio <= 2.0,
                "{} over {}: {:?} instead of {alone:?}, {ratio:.2}",
                disk.name,
                link.name,
                outcome.p99
            );
        });
    }

    #[test]
    fn a_busy_pair_syncs_at_the_floor_at_least() {
        every(|disk, link, outcome| {
            let floor = (10 << 20).min(disk.rate.min(link.rate) / 4) as f64;
            let ratio = outcome.busy_rate / floor;
            assert!(ratio >= 0.9, "{} over {}: {ratio:.2}", disk.name, link.name);
        });
    }
}
