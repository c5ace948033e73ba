//! How fast a resync or a verify is, and how far from what disks and network allow.
//!
//! The pair is a real one. Limits and pair are measured in turn, round by round, so that a drift
//! of the machine drops out of the ratios; the figures are medians. What the pair moves is read
//! from the kernel's account of its processes, not from its own reports.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::disk::{self, RawDisk, RawPair};
use crate::drive::{Lane, Span, drive};
use crate::error::BenchError;
use crate::nbd::Nbd;
use crate::page;
use crate::pair::{NODES, Pair, RESOURCE, Wish};
use crate::plan::{Case, Offsets, Pattern, Protocol, Transport};
use crate::wire::Wire;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// The whole device.
    Resync,
    /// Random blocks of 4 KiB, this share of the device.
    Dirty { percent: f64 },
    /// With one of the names of `verify-alg`.
    Verify { alg: String },
}

/// What to measure and with what.
pub struct Setup {
    pub jobs: Vec<Job>,
    /// Bytes of the volume.
    pub size: u64,
    /// A cap in bytes per second, set while the pair runs.
    pub rate: Option<u64>,
    pub rounds: u32,
    /// The longest time that a round is measured.
    pub seconds: u32,
    /// Where the disks are made.
    pub dir: PathBuf,
    /// The `lockstep` program.
    pub program: PathBuf,
    /// Where the page goes.
    pub html: Option<PathBuf>,
}

/// Measured time of each limit in each round.
const LIMIT_SPAN: Span = Span {
    warm_up: Duration::from_millis(100),
    measured: Duration::from_millis(900),
};

/// Requests in flight for limits, as many blocks as the product has on their way.
const DEPTH: u32 = 16;

/// A resync that has not ended after this is stuck.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A cap is kept within 5 % over any time of this length.
const WINDOW: Duration = Duration::from_secs(2);
const TOLERANCE: f64 = 0.05;

const MIB: f64 = (1 << 20) as f64;

/// Bytes moved up to a time since the beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub at: Duration,
    pub bytes: u64,
}

/// What disk and network do by themselves, MiB/s.
#[derive(Clone, Copy, Debug)]
struct Limits {
    read: f64,
    write: f64,
    link: f64,
    /// Both disks while they work at the same time, as the job uses them: what there is where they
    /// are files of one physical disk.
    disks: f64,
}

impl Limits {
    /// The least of what the job needs, disks and network each by itself.
    fn alone(&self) -> f64 {
        self.read.min(self.write).min(self.link)
    }

    /// The least of what the job needs, both disks in use.
    fn shared(&self) -> f64 {
        self.alone().min(self.disks)
    }
}

/// One round.
struct Round {
    limits: Limits,
    mib_s: f64,
    seconds: f64,
    /// Of both data planes, for each GiB.
    cpu: [f64; 2],
    samples: Vec<Sample>,
}

/// Measures everything; prints a line for each round and one for each job.
pub fn run(setup: &Setup) -> Result<(), BenchError> {
    let mut drawn = Vec::new();
    for job in &setup.jobs {
        let rounds = measure(setup, job)?;
        report(setup, job, &rounds);
        let samples = rounds.into_iter().map(|round| round.samples).collect();
        drawn.push((name(job), samples));
    }
    match &setup.html {
        Some(path) => page::write_rates(&drawn, setup.rate, path),
        None => Ok(()),
    }
}

fn name(job: &Job) -> String {
    match job {
        Job::Resync => "resync".into(),
        Job::Dirty { percent } => format!("resync-dirty-{percent}%"),
        Job::Verify { alg } if alg == "crc32c" => "verify".into(),
        Job::Verify { alg } => format!("verify-{alg}"),
    }
}

/// A file for the limits; it goes with its directory.
struct Scratch {
    /// Holds the files.
    _dir: TempDir,
    images: [PathBuf; 2],
    size: u64,
}

impl Scratch {
    fn new(setup: &Setup) -> Result<Scratch, BenchError> {
        let dir = TempDir::with_prefix_in("lockstep-bench-", &setup.dir)
            .map_err(BenchError::at(&setup.dir))?;
        // A gibibyte is more than anything here goes through in the time of a limit.
        let size = setup.size.min(1 << 30);
        let images = ["raw0.img", "raw1.img"].map(|name| dir.path().join(name));
        for image in &images {
            disk::create(image, size)?;
        }
        Ok(Scratch {
            _dir: dir,
            images,
            size,
        })
    }

    fn disk(&self, index: usize, case: Case) -> Result<f64, BenchError> {
        self.rate(&mut RawDisk::open(&self.images[index], case)?, case)
    }

    fn link(&self, case: Case) -> Result<f64, BenchError> {
        self.rate(&mut Wire::connect(case)?, case)
    }

    fn rate(&self, lane: &mut dyn Lane, case: Case) -> Result<f64, BenchError> {
        Ok(drive(lane, case, self.size, LIMIT_SPAN)?.mib_s)
    }

    /// Each by itself, then both disks at once.
    fn limits(&self, job: &Job) -> Result<Limits, BenchError> {
        let case = |rw| Case {
            rw,
            bs: 1 << 20,
            iodepth: DEPTH,
        };
        let small = |rw| Case {
            bs: 4096,
            ..case(rw)
        };
        let (reads, writes) = match job {
            Job::Dirty { .. } => (small(Pattern::RandRead), small(Pattern::RandWrite)),
            Job::Resync | Job::Verify { .. } => (case(Pattern::Read), case(Pattern::Write)),
        };
        let read = self.disk(0, reads)?;
        let verify = matches!(job, Job::Verify { .. });
        let (write, link) = match verify {
            true => (read, f64::MAX),
            false => (self.disk(1, writes)?, self.link(writes)?),
        };
        let used = if verify { reads } else { writes };
        let disks = self.rate(&mut RawPair::open(&self.images, used)?, used)?;
        Ok(Limits {
            read,
            write,
            link,
            disks,
        })
    }
}

fn measure(setup: &Setup, job: &Job) -> Result<Vec<Round>, BenchError> {
    let scratch = Scratch::new(setup)?;
    let verify_alg = match job {
        Job::Verify { alg } => alg,
        Job::Resync | Job::Dirty { .. } => "crc32c",
    };
    eprintln!("starting a pair for {}", name(job));
    let pair = Pair::start(Wish {
        program: &setup.program,
        below: &setup.dir,
        size: setup.size,
        protocol: Protocol::C,
        transport: Transport::Tcp,
        verify_alg,
    })?;
    if let Some(rate) = setup.rate {
        let option = format!("--resync-rate={}K", rate >> 10);
        for node in NODES {
            pair.run(node, &["disk-options", RESOURCE, &option])?;
        }
    }
    let mut rounds = Vec::new();
    for number in 1..=setup.rounds {
        let limits = scratch.limits(job)?;
        let round = one(setup, job, &pair, limits, number)?;
        println!(
            "ROUND  workload={} round={number} mib_s={:.1} limit_mib_s={:.1} ratio={:.2} \
             seconds={:.2} read_mib_s={:.1} write_mib_s={:.1} link_mib_s={:.1} \
             disks_mib_s={:.1} cpu_s_per_gib={:.2}+{:.2}",
            name(job),
            round.mib_s,
            round.limits.shared(),
            round.mib_s / round.limits.shared(),
            round.seconds,
            limits.read,
            limits.write,
            if limits.link == f64::MAX {
                0.0
            } else {
                limits.link
            },
            limits.disks,
            round.cpu[0],
            round.cpu[1],
        );
        rounds.push(round);
        if setup.rate.is_some() {
            // What is left of it would take as long as the cap says.
            break;
        }
        pair.check()?;
    }
    println!(
        "MEMORY workload={} peak_kib={}+{}",
        name(job),
        pair.peak_kib(NODES[0])?,
        pair.peak_kib(NODES[1])?
    );
    Ok(rounds)
}

/// Starts the job and follows it to its end, or for the measured time where there is a cap.
fn one(
    setup: &Setup,
    job: &Job,
    pair: &Pair,
    limits: Limits,
    number: u32,
) -> Result<Round, BenchError> {
    let [alpha, beta] = NODES;
    let mut events = pair.events(alpha)?;
    let moved = || -> Result<u64, BenchError> {
        Ok(match job {
            Job::Verify { .. } => pair.disk_bytes(alpha)?.read,
            Job::Resync | Job::Dirty { .. } => pair.disk_bytes(beta)?.written,
        })
    };
    let (running, total) = match job {
        Job::Resync => {
            pair.run(beta, &["invalidate", RESOURCE])?;
            ("replication:SyncSource", setup.size)
        }
        Job::Dirty { percent } => {
            pair.run(beta, &["disconnect", RESOURCE])?;
            let bytes = make_dirty(&pair.socket(), *percent, number)?;
            pair.run(beta, &["connect", RESOURCE])?;
            ("replication:SyncSource", bytes)
        }
        Job::Verify { .. } => {
            pair.run(alpha, &["verify", RESOURCE])?;
            ("replication:VerifyS", setup.size)
        }
    };
    let start = moved()?;
    let cpu = pair.cpu()?;
    let begin = events.wait(running, PATIENCE, || Ok(()))?;
    let mut samples = Vec::new();
    let mut look = || {
        let bytes = moved()?.saturating_sub(start);
        let at = begin.elapsed();
        samples.push(Sample { at, bytes });
        Ok(())
    };
    let seconds = match setup.rate {
        None => {
            let end = events.wait("replication:Established", PATIENCE, look)?;
            (end - begin).as_secs_f64()
        }
        Some(_) => {
            let limit = Duration::from_secs(u64::from(setup.seconds));
            let ended = events.wait("replication:Established", limit, &mut look);
            match ended {
                Ok(end) => (end - begin).as_secs_f64(),
                Err(BenchError::NeverSeen { .. }) => limit.as_secs_f64(),
                Err(error) => return Err(error),
            }
        }
    };
    let used = pair.cpu()?;
    let bytes = match setup.rate {
        None => total,
        Some(_) => samples.last().map_or(0, |sample| sample.bytes),
    };
    let gib = bytes.max(1) as f64 / f64::from(1 << 30);
    Ok(Round {
        limits,
        mib_s: bytes as f64 / MIB / seconds.max(1e-9),
        seconds,
        cpu: [0, 1].map(|node| used[node].saturating_sub(cpu[node]).as_secs_f64() / gib),
        samples,
    })
}

/// Writes random blocks while the peer is away; how many bytes it lacks then.
fn make_dirty(socket: &Path, percent: f64, number: u32) -> Result<u64, BenchError> {
    let case = Case {
        rw: Pattern::RandWrite,
        bs: 4096,
        iodepth: 32,
    };
    let begin = Instant::now();
    let mut nbd = loop {
        match Nbd::connect(socket, RESOURCE, case) {
            Ok(nbd) => break nbd,
            Err(error) if begin.elapsed() > Duration::from_secs(5) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let size = nbd.size();
    let count = (size as f64 * percent / 100.0 / f64::from(case.bs)).ceil() as usize;
    let offsets = Offsets::new(case, size).skip(number as usize * count);
    let mut chosen: Vec<u64> = offsets.take(count).collect();
    chosen.sort_unstable();
    chosen.dedup();
    for group in chosen.chunks(case.iodepth as usize) {
        for (slot, offset) in group.iter().enumerate() {
            nbd.queue(slot, *offset)?;
        }
        for _ in group {
            nbd.take()?;
        }
    }
    Ok(chosen.len() as u64 * u64::from(case.bs))
}

fn report(setup: &Setup, job: &Job, rounds: &[Round]) {
    let middle = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
    print!(
        "RESULT workload={} system=lockstep mib_s={:.1} limit_mib_s={:.1} ratio={:.2} seconds={:.2} \
         alone_limit_mib_s={:.1} alone_ratio={:.2}",
        name(job),
        middle(&|round| round.mib_s),
        middle(&|round| round.limits.shared()),
        middle(&|round| round.mib_s / round.limits.shared()),
        middle(&|round| round.seconds),
        middle(&|round| round.limits.alone()),
        middle(&|round| round.mib_s / round.limits.alone()),
    );
    if let (Some(rate), Some(round)) = (setup.rate, rounds.first()) {
        match off(&round.samples, rate) {
            Some((low, high)) => print!(
                " cap_mib_s={:.1} lowest_2s={:+.1}% highest_2s={:+.1}% kept={}",
                rate as f64 / MIB,
                low * 100.0,
                high * 100.0,
                // Below the cap is a fault only where disk and network could have given it.
                match high <= TOLERANCE && low >= -TOLERANCE {
                    true => "yes",
                    false => "no",
                }
            ),
            None => print!(" cap_mib_s={:.1} kept=unknown", rate as f64 / MIB),
        }
    }
    println!();
}

/// How far the slowest and the fastest window lie from the rate, as parts of it; none when it
/// was over too soon to tell.
fn off(samples: &[Sample], rate: u64) -> Option<(f64, f64)> {
    let mut worst: Option<(f64, f64)> = None;
    // The first moves are those of the start.
    let running: Vec<&Sample> = samples.iter().filter(|s| s.bytes > 0).collect();
    let mut first = 0;
    for last in &running {
        while let Some(next) = running.get(first + 1)
            && last.at.saturating_sub(next.at) >= WINDOW
        {
            first += 1;
        }
        let from = running.get(first)?;
        let time = last.at.saturating_sub(from.at);
        if time < WINDOW {
            continue;
        }
        let got = (last.bytes - from.bytes) as f64 / time.as_secs_f64();
        let part = got / rate.max(1) as f64 - 1.0;
        worst = Some(match worst {
            Some((low, high)) => (part.min(low), part.max(high)),
            None => (part, part),
        });
    }
    worst
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(rate: u64, seconds: u64) -> Vec<Sample> {
        let every = Duration::from_millis(20);
        (0..seconds * 50)
            .map(|n| Sample {
                at: every * n as u32,
                bytes: rate * n / 50,
            })
            .collect()
    }

    #[test]
    fn a_steady_rate_is_kept_and_a_burst_is_seen() {
        let rate = 10 << 20;
        let mut samples = steady(rate, 10);
        let (low, high) = off(&samples, rate).unwrap();
        assert!(low.abs() < 0.001 && high.abs() < 0.001, "{low} {high}");
        for sample in samples.iter_mut().skip(250) {
            sample.bytes += rate / 2;
        }
        let (low, high) = off(&samples, rate).unwrap();
        assert!(low.abs() < 0.001 && (high - 0.25).abs() < 0.01, "{high}");
        assert_eq!(off(&steady(rate, 1), rate), None);
        assert_eq!(off(&[], rate), None);
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }
}
