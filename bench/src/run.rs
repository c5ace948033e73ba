//! The whole run: limits first, then a pair per protocol.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::disk::{self, RawDisk};
use crate::drive::{Span, drive};
use crate::error::BenchError;
use crate::nbd::Nbd;
use crate::pair::{Pair, RESOURCE, Wish};
use crate::plan::{Case, Protocol, Transport};
use crate::report::{Limits, Measured, Report, limit_iops};
use crate::wire::Wire;

/// What to measure and with what.
pub struct Setup {
    pub cases: Vec<Case>,
    pub protocols: Vec<Protocol>,
    pub transports: Vec<Transport>,
    pub seconds: u32,
    /// Bytes of the volume.
    pub size: u64,
    /// Where the disks are made.
    pub dir: PathBuf,
    /// The `lockstep` program.
    pub program: PathBuf,
}

/// Measures everything; prints a line per figure as it is there.
pub fn run(setup: &Setup) -> Result<Report, BenchError> {
    let mut report = Report {
        program: version(&setup.program)?,
        kernel: kernel(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        seconds: setup.seconds,
        size: setup.size,
        limits: limits(setup)?,
        results: Vec::new(),
    };
    for &transport in &setup.transports {
        for &protocol in &setup.protocols {
            eprintln!("starting a pair with protocol {protocol:?}");
            let pair = Pair::start(Wish {
                program: &setup.program,
                below: &setup.dir,
                size: setup.size,
                protocol,
                transport,
                verify_alg: "crc32c",
            })?;
            for &case in &setup.cases {
                let measured = measure(setup, &pair, (protocol, transport, case), &report.limits)?;
                print(&measured);
                report.results.push(measured);
            }
            pair.check()?;
        }
    }
    // Those that were measured for the latency alone have served.
    report
        .limits
        .retain(|limits| setup.cases.contains(&limits.case));
    Ok(report)
}

/// Raw figures for every case, and for the same with one request in flight.
fn limits(setup: &Setup) -> Result<Vec<Limits>, BenchError> {
    let dir = TempDir::with_prefix_in("lockstep-bench-", &setup.dir)
        .map_err(BenchError::at(&setup.dir))?;
    let image = dir.path().join("raw.img");
    disk::create(&image, setup.size)?;
    let span = Span::of_seconds(setup.seconds);
    let mut all: Vec<Limits> = Vec::new();
    for &asked in &setup.cases {
        for case in [asked.single(), asked] {
            if all.iter().any(|limits| limits.case == case) {
                continue;
            }
            let mut raw = RawDisk::open(&image, case)?;
            let disk = drive(&mut raw, case, setup.size, span)?;
            let wire = match case.rw.writes() {
                true => Some(drive(&mut Wire::connect(case)?, case, setup.size, span)?),
                false => None,
            };
            println!(
                "LIMIT  workload={case} disk_iops={:.0} disk_p50_us={:.0} wire_iops={:.0} \
                 wire_p50_us={:.0}",
                disk.iops,
                disk.p50_us,
                wire.map_or(0.0, |wire| wire.iops),
                wire.map_or(0.0, |wire| wire.p50_us),
            );
            all.push(Limits { case, disk, wire });
        }
    }
    Ok(all)
}

fn measure(
    setup: &Setup,
    pair: &Pair,
    (protocol, transport, case): (Protocol, Transport, Case),
    limits: &[Limits],
) -> Result<Measured, BenchError> {
    let mut nbd = Nbd::connect(&pair.socket(), RESOURCE, case)?;
    let size = setup.size.min(nbd.size());
    let before = pair.cpu()?;
    let figures = drive(&mut nbd, case, size, Span::of_seconds(setup.seconds))?;
    let after = pair.cpu()?;
    let of = |case: Case| limits.iter().find(|limits| limits.case == case);
    let limit_iops = match (of(case), of(case.single())) {
        (Some(limits), Some(single)) => limit_iops(protocol, limits, single),
        _ => figures.iops,
    };
    Ok(Measured {
        protocol,
        transport,
        case,
        figures,
        limit_iops,
        ratio: figures.iops / limit_iops,
        cpu_us: [0, 1].map(|node| {
            let used = after[node].saturating_sub(before[node]);
            used.as_secs_f64() * 1e6 / figures.requests as f64
        }),
    })
}

fn print(measured: &Measured) {
    let figures = &measured.figures;
    println!(
        "RESULT workload={} system=lockstep protocol={:?} transport={} iops={:.0} mib_s={:.1} \
         p50_us={:.0} p99_us={:.0} limit_iops={:.0} ratio={:.2} cpu_us={:.1}+{:.1}",
        measured.case,
        measured.protocol,
        match measured.transport {
            Transport::Tcp => "tcp",
        },
        figures.iops,
        figures.mib_s,
        figures.p50_us,
        figures.p99_us,
        measured.limit_iops,
        measured.ratio,
        measured.cpu_us[0],
        measured.cpu_us[1],
    );
}

fn version(program: &Path) -> Result<String, BenchError> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(BenchError::at(program))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn kernel() -> String {
    let uname = rustix::system::uname();
    uname.release().to_string_lossy().into_owned()
}
