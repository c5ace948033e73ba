//! The report as one HTML page that needs nothing else: no script, font or style from elsewhere.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::drive::Figures;
use crate::error::BenchError;
use crate::pacing::{self, BIN, BUSY, DISKS, LINKS, Outcome, Point};
use crate::pair::LOOK;
use crate::plan::Case;
use crate::plot::{Bar, Line, bars, escape, lines, number};
use crate::report::{Limits, Measured, Report};
use crate::resync::Sample;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; \
padding: 0 1rem; }
h2 { margin: 2rem 0 0.3rem; font-size: 1.1rem; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; }
svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #333; }
svg .head { font-weight: 600; font-size: 12px; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .grid { stroke: #ddd; }
svg .limit { stroke: #c22; stroke-width: 2; stroke-dasharray: 4 3; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.1rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
";

const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p99.9", "max"];

fn percentiles(figures: &Figures) -> Vec<f64> {
    let f = figures;
    vec![f.p50_us, f.p90_us, f.p99_us, f.p999_us, f.max_us]
}

/// Writes the page.
pub fn write(report: &Report, path: &Path) -> Result<(), BenchError> {
    fs::write(path, page(report)).map_err(BenchError::at(path))
}

/// Writes a page with what each round of each job has moved over time.
pub fn write_rates(
    jobs: &[(String, Vec<Vec<Sample>>)],
    cap: Option<u64>,
    path: &Path,
) -> Result<(), BenchError> {
    fs::write(path, rates(jobs, cap)).map_err(BenchError::at(path))
}

/// Points of a drawing of rates.
const RATE_POINTS: u32 = 50;

fn rates(jobs: &[(String, Vec<Vec<Sample>>)], cap: Option<u64>) -> String {
    let mut html = head();
    for (name, rounds) in jobs {
        let longest = { rounds.iter().filter_map(|round| round.last()) }
            .map(|sample| sample.at)
            .max()
            .unwrap_or_default();
        let step = (longest / RATE_POINTS).max(LOOK);
        let points = longest.as_nanos() / step.as_nanos();
        let mut drawn: Vec<Line> = (1..)
            .zip(rounds)
            .map(|(number, samples)| Line {
                name: format!("round {number}"),
                values: (0..points as u32)
                    .map(|point| rate_in(samples, step * point, step))
                    .collect(),
                reference: false,
            })
            .collect();
        if let Some(cap) = cap {
            drawn.push(Line {
                name: "cap".into(),
                values: vec![cap as f64 / MIB; points as usize],
                reference: true,
            });
        }
        let names: Vec<String> = (0..points as u32)
            .map(|point| match point % 10 {
                0 => format!("{:.1} s", (step * point).as_secs_f64()),
                _ => String::new(),
            })
            .collect();
        let labels: Vec<&str> = names.iter().map(String::as_str).collect();
        html.push_str(&lines(&format!("{name}, MiB/s"), &labels, &drawn));
    }
    html + "</body>\n</html>\n"
}

/// MiB/s of the samples from `from` on.
fn rate_in(samples: &[Sample], from: Duration, time: Duration) -> f64 {
    let until = |at: Duration| {
        let before = samples.iter().rev().find(|sample| sample.at <= at);
        before.map_or(0, |sample| sample.bytes)
    };
    (until(from + time) - until(from)) as f64 / MIB / time.as_secs_f64()
}

fn head() -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>lockstep-bench</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>lockstep-bench</h1>\n"
    )
}

fn page(report: &Report) -> String {
    let mut html = head();
    let _ = write!(
        html,
        "<p>{} on Linux {}, {} cpus. A pair on one machine, its disks two files of one disk, through \
         NBD over a Unix socket; {} s per case, spread over {} MiB.</p>\n\
         <p>The limit is what the raw disk (io_uring, O_DIRECT) and bare TCP sockets did in the same \
         run: nothing built on them can be faster.</p>\n",
        escape(&report.program),
        escape(&report.kernel),
        report.cpus,
        report.seconds,
        report.size >> 20,
    );
    for limits in &report.limits {
        let results: Vec<&Measured> = (report.results.iter())
            .filter(|measured| measured.case == limits.case)
            .collect();
        if !results.is_empty() {
            section(&mut html, limits, &results);
        }
    }
    pace(&mut html);
    html + "</body>\n</html>\n"
}

/// Pairs of disk and link that differ in what bounds them.
const PACED: [(usize, usize); 4] = [(0, 0), (1, 0), (2, 1), (1, 2)];

/// How the sync steps back for an application, on modelled disks and links.
fn pace(html: &mut String) {
    let _ = write!(
        html,
        "<h2>A sync beside an application, modelled</h2>\n\
         <p>The product's own controller with its defaults, in virtual time: the application works \
         from second {} to second {}, 4 KiB at random, seven writes to three reads.</p>\n",
        BUSY.start.as_secs(),
        BUSY.end.as_secs(),
    );
    for (disk, link) in PACED {
        let (disk, link) = (DISKS[disk], LINKS[link]);
        let with = pacing::run(disk, link, Some(Default::default()));
        let alone = pacing::run(disk, link, None);
        let _ = write!(
            html,
            "<p>{} over {}, {} requests per second: idle {} MiB/s, beside the application {} \
             MiB/s; p99 {} ms, without a sync {} ms.</p>\n<div class=\"pair\">\n",
            disk.name,
            link.name,
            disk.load,
            number(with.idle_rate / MIB),
            number(with.busy_rate / MIB),
            number(with.p99.as_secs_f64() * 1e3),
            number(alone.p99.as_secs_f64() * 1e3),
        );
        html.push_str(&over_time(
            "sync, MiB/s and MiB in flight",
            &[
                (
                    "rate",
                    &|p| p.sync_bytes as f64 / BIN.as_secs_f64() / MIB,
                    &with,
                ),
                ("in flight", &|p| p.in_flight as f64 / MIB, &with),
            ],
        ));
        html.push_str(&over_time(
            "slowest request of the application, ms",
            &[
                ("with sync", &|p| p.slowest.as_secs_f64() * 1e3, &with),
                ("alone", &|p| p.slowest.as_secs_f64() * 1e3, &alone),
            ],
        ));
        html.push_str("</div>\n");
    }
}

const MIB: f64 = (1 << 20) as f64;

/// A named curve over a run's timeline.
type Curve<'a> = (&'a str, &'a dyn Fn(&Point) -> f64, &'a Outcome);

fn over_time(title: &str, curves: &[Curve]) -> String {
    let points = curves.first().map_or(0, |(_, _, run)| run.timeline.len());
    let per_second = (1.0 / BIN.as_secs_f64()) as usize;
    let names: Vec<String> = (0..points)
        .map(|bin| match bin % (2 * per_second) {
            0 => format!("{} s", bin / per_second),
            _ => String::new(),
        })
        .collect();
    let labels: Vec<&str> = names.iter().map(String::as_str).collect();
    let drawn: Vec<Line> = (curves.iter())
        .map(|(name, value, run)| Line {
            name: (*name).to_owned(),
            values: run.timeline.iter().map(value).collect(),
            reference: *name == "alone",
        })
        .collect();
    lines(title, &labels, &drawn)
}

fn section(html: &mut String, limits: &Limits, results: &[&Measured]) {
    let name = escape(&describe(limits.case));
    let _ = write!(html, "<h2>{name}</h2>\n<div class=\"pair\">\n");
    let line = |name: String, figures: &Figures, reference: bool| Line {
        name,
        values: percentiles(figures),
        reference,
    };
    let mut all: Vec<Line> = (results.iter())
        .map(|m| line(format!("protocol {:?}", m.protocol), &m.figures, false))
        .collect();
    all.push(line("raw disk".into(), &limits.disk, true));
    html.push_str(&lines("latency, microseconds", &PERCENTILES, &all));
    let columns: Vec<Bar> = (results.iter())
        .map(|measured| Bar {
            name: format!("protocol {:?}", measured.protocol),
            value: measured.figures.iops,
            limit: measured.limit_iops,
        })
        .collect();
    html.push_str(&bars(
        "requests per second, and ratio to the limit",
        &columns,
    ));
    html.push_str("</div>\n<table>\n<tr><th></th><th>IOPS</th><th>MiB/s</th>");
    for percentile in PERCENTILES {
        let _ = write!(html, "<th>{percentile} us</th>");
    }
    html.push_str("<th>ratio</th><th>cpu us, primary + peer</th></tr>\n");
    for measured in results {
        let name = format!("protocol {:?}", measured.protocol);
        row(html, &name, &measured.figures, Some(measured));
    }
    row(html, "raw disk", &limits.disk, None);
    if let Some(wire) = &limits.wire {
        row(html, "bare sockets", wire, None);
    }
    html.push_str("</table>\n");
}

fn row(html: &mut String, name: &str, figures: &Figures, ours: Option<&Measured>) {
    let _ = write!(html, "<tr><td>{name}</td>");
    let cells = [figures.iops, figures.mib_s];
    for value in cells.into_iter().chain(percentiles(figures)) {
        let _ = write!(html, "<td>{}</td>", number(value));
    }
    if let Some(Measured { ratio, cpu_us, .. }) = ours {
        let cpu = cpu_us.map(number).join(" + ");
        let _ = write!(html, "<td>{}</td><td>{cpu}</td>", number(*ratio));
    }
    html.push_str("</tr>\n");
}

fn describe(case: Case) -> String {
    let Case { rw, bs, iodepth } = case;
    format!("{rw}, {} KiB, {iodepth} in flight", bs / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Pattern, Protocol, Transport};
    use crate::report::tests::{figures, limits};

    #[test]
    fn the_page_shows_every_protocol_and_refers_to_nothing_outside() {
        let limits = limits(
            Pattern::RandWrite,
            1,
            figures(10_000.0, 100.0),
            Some(figures(25_000.0, 40.0)),
        );
        let result = |protocol| Measured {
            protocol,
            transport: Transport::Tcp,
            case: limits.case,
            figures: figures(5_000.0, 200.0),
            limit_iops: 7143.0,
            ratio: 0.7,
            cpu_us: [21.0, 17.5],
        };
        let html = page(&Report {
            program: "lockstep <1>".into(),
            kernel: "7.2".into(),
            cpus: 2,
            seconds: 5,
            size: 128 << 20,
            limits: vec![limits],
            results: vec![result(Protocol::A), result(Protocol::C)],
        });
        assert_eq!(html.matches("<svg").count(), 2 + 2 * PACED.len());
        assert_eq!(html.matches("<polyline").count(), 3 + 4 * PACED.len());
        assert_eq!(html.matches("<rect").count(), 2);
        assert_eq!(html.matches("<td>protocol ").count(), 2);
        assert!(html.contains("lockstep &lt;1&gt;"));
        assert!(html.contains("<td>bare sockets</td>"));
        assert!(html.contains("<td>0.70</td><td>21.0 + 17.5</td>"));
        for outside in ["http:", "https:", "<script", "<link", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn rates_are_drawn_beside_their_cap() {
        let samples: Vec<Sample> = (0..100u32)
            .map(|n| Sample {
                at: LOOK * n,
                bytes: u64::from(n) << 20,
            })
            .collect();
        let per_second = 1.0 / LOOK.as_secs_f64();
        assert_eq!(rate_in(&samples, LOOK * 10, LOOK * 5), per_second);
        let html = rates(&[("resync".into(), vec![samples])], Some(50 << 20));
        assert_eq!(html.matches("<polyline").count(), 2);
        assert!(html.contains(">cap<"));
        // Nothing to draw is no reason to fail.
        rates(&[("verify".into(), vec![Vec::new()])], None);
    }
}
