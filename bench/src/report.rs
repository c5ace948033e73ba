//! What a run has found, as it is written to JSON, and the limit that each figure is held against.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::drive::Figures;
use crate::error::BenchError;
use crate::plan::{Case, Protocol, Transport};

/// Everything of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What `lockstep --version` says.
    pub program: String,
    /// Kernel release of the machine.
    pub kernel: String,
    pub cpus: usize,
    /// Measured seconds per case.
    pub seconds: u32,
    /// Bytes that requests were spread over.
    pub size: u64,
    pub limits: Vec<Limits>,
    pub results: Vec<Measured>,
}

/// What disk and network do by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub case: Case,
    pub disk: Figures,
    /// Of writes only.
    pub wire: Option<Figures>,
}

/// What the pair does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub protocol: Protocol,
    pub transport: Transport,
    pub case: Case,
    pub figures: Figures,
    /// Requests per second that nothing built on this disk and network can exceed.
    pub limit_iops: f64,
    /// `figures.iops` / `limit_iops`.
    pub ratio: f64,
    /// Processor time per request of the data planes, microseconds: of the primary, and of the
    /// peer. What the kernel does for them on other threads is not in it.
    pub cpu_us: [f64; 2],
}

/// The limit of a case.
///
/// A read is one on the local disk. A write takes at least as long as both copies need when they
/// are written at the same time: the local one `Lw`, the other one the way there and back `P`,
/// and in protocol C the peer's disk besides, which is as fast as ours. With more requests in
/// flight, disk and network each have a rate of their own that bounds it too.
pub fn limit_iops(protocol: Protocol, limits: &Limits, single: &Limits) -> f64 {
    let Some((wire, single_wire)) = limits.wire.zip(single.wire) else {
        return limits.disk.iops;
    };
    let (local, way) = (single.disk.mean_us, single_wire.mean_us);
    let latency_us = match protocol {
        Protocol::A => local,
        Protocol::B => local.max(way),
        Protocol::C => local.max(way + local),
    };
    let closed_loop = f64::from(limits.case.iodepth) * 1e6 / latency_us;
    closed_loop.min(limits.disk.iops).min(wire.iops)
}

impl Report {
    pub fn read(path: &Path) -> Result<Report, BenchError> {
        let text = fs::read_to_string(path).map_err(BenchError::at(path))?;
        serde_json::from_str(&text).map_err(|source| BenchError::Json {
            path: path.to_owned(),
            source,
        })
    }

    pub fn write(&self, path: &Path) -> Result<(), BenchError> {
        let text = serde_json::to_string_pretty(self).map_err(|source| BenchError::Json {
            path: path.to_owned(),
            source,
        })?;
        fs::write(path, text + "\n").map_err(BenchError::at(path))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::plan::Pattern;

    pub fn figures(iops: f64, mean_us: f64) -> Figures {
        Figures {
            requests: 1000,
            iops,
            mib_s: iops / 256.0,
            mean_us,
            p50_us: mean_us,
            p90_us: mean_us * 1.5,
            p99_us: mean_us * 2.0,
            p999_us: mean_us * 4.0,
            max_us: mean_us * 9.0,
        }
    }

    pub fn limits(rw: Pattern, iodepth: u32, disk: Figures, wire: Option<Figures>) -> Limits {
        let case = Case {
            rw,
            bs: 4096,
            iodepth,
        };
        Limits { case, disk, wire }
    }

    #[test]
    fn the_limit_of_a_write_is_the_slower_way() {
        let single = limits(
            Pattern::RandWrite,
            1,
            figures(10_000.0, 100.0),
            Some(figures(25_000.0, 40.0)),
        );
        let limit = |protocol| limit_iops(protocol, &single, &single).round();
        assert_eq!(limit(Protocol::A), 10_000.0);
        assert_eq!(limit(Protocol::B), 10_000.0);
        assert_eq!(limit(Protocol::C), 7143.0);
        // Deeper, the disk does not scale as the latency would allow.
        let deep = limits(
            Pattern::RandWrite,
            32,
            figures(90_000.0, 350.0),
            Some(figures(200_000.0, 160.0)),
        );
        assert_eq!(limit_iops(Protocol::C, &deep, &single), 90_000.0);
    }

    #[test]
    fn the_limit_of_a_read_is_the_disk() {
        let read = limits(Pattern::RandRead, 1, figures(9000.0, 110.0), None);
        assert_eq!(limit_iops(Protocol::C, &read, &read), 9000.0);
    }
}
