//! `lockstep report`: what verifies and syncs have found and done, and what has changed lately.

use std::fmt::Write;

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::agent::kept::{SyncRecord, VerifyRecord};
use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::agent::report::Report;

use super::client::{ask, flags};
use super::{Global, Outcome, text};

/// Ranges that are listed for people; `--json` has all that are kept.
const SHOWN: usize = 16;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Resource, or all
    #[arg(value_name = "RES|all", default_value = "all")]
    target: String,
    /// With the last events and actions of the data plane, for a report of a fault
    #[arg(long)]
    flight_recorder: bool,
}

/// Carries out the verb.
pub fn run(global: &Global, arguments: &Arguments) -> Outcome {
    let options = flags(&[("flight-recorder", arguments.flight_recorder)]);
    let value = ask(global, "report", &arguments.target, options)?;
    if global.json {
        text::pretty(&value);
        return Ok(());
    }
    let reports: Vec<Report> = serde_json::from_value(value).map_err(|error| {
        ErrorReply::new(
            ErrorKind::Failed,
            format!("the agent's answer makes no sense: {error}"),
            "command line and agent may be of different versions: restart the agent",
        )
    })?;
    let zone = TimeZone::system();
    let texts: Vec<String> = { reports.iter() }
        .map(|report| render(report, &zone))
        .collect();
    text::out(&texts.join("\n"));
    Ok(())
}

fn render(report: &Report, zone: &TimeZone) -> String {
    let mut text = format!("{} with {}\n", report.resource, report.peer);
    // Writing to a string does not fail.
    let _ = match (&report.next_verify, &report.schedule) {
        (Some(next), Some(schedule)) => writeln!(text, "  next verify: {next} ({schedule})"),
        _ => writeln!(text, "  next verify: by order only (no verify-schedule)"),
    };
    for volume in &report.volumes {
        let _ = writeln!(text, "  volume {}", volume.volume);
        match &volume.kept.verify {
            None => text.push_str("    last verify: none is known here\n"),
            Some(record) => verify(&mut text, record, zone),
        }
        match &volume.kept.sync {
            None => text.push_str("    last sync: none is known here\n"),
            Some(record) => sync(&mut text, record, zone),
        }
    }
    if !report.recent.is_empty() {
        text.push_str("  changes since the agent was started, the last ones\n");
    }
    for change in &report.recent {
        let _ = writeln!(text, "    {} {}", when(change.at, zone), change.what);
    }
    if !report.flight_recorder.is_empty() {
        text.push_str("  flight recorder, nanoseconds since the boot\n");
    }
    for line in &report.flight_recorder {
        let _ = writeln!(text, "    {line}");
    }
    text
}

fn when(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone())
        .strftime("%F %H:%M:%S")
        .to_string()
}

fn verify(text: &mut String, record: &VerifyRecord, zone: &TimeZone) {
    let found = &record.result;
    let _ = writeln!(
        text,
        "    last verify: {}, {}, {}: {} KiB differ, {} KiB repaired, {} KiB in use all the time; \
         {} KiB compared in {:.1} s",
        when(record.ended, zone),
        found.state,
        record.algorithm,
        found.found_kib,
        found.repaired_kib,
        found.skipped_kib,
        record.compared_kib,
        record.seconds,
    );
    let ranges = found.more.get("ranges").and_then(Value::as_array);
    let ranges = ranges.map_or(&[][..], Vec::as_slice);
    for range in ranges.iter().take(SHOWN) {
        let number = |key: &str| range[key].as_u64().unwrap_or_default();
        let (start, length) = (number("start"), number("length"));
        let _ = writeln!(text, "      differs: {length} KiB at {start} KiB");
    }
    if ranges.len() > SHOWN {
        let more = ranges.len() - SHOWN;
        let _ = writeln!(text, "      and {more} more ranges: --json lists them");
    }
}

fn sync(text: &mut String, record: &SyncRecord, zone: &TimeZone) {
    let _ = writeln!(
        text,
        "    last sync: {}: {} KiB copied, {} KiB found equal, in {:.1} s, {} KiB/s",
        when(record.ended, zone),
        record.copied_kib,
        record.equal_kib,
        record.seconds,
        record.rate_kib_s,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(value: &Value) -> String {
        let report: Report = serde_json::from_value(value.clone()).expect("a report");
        render(&report, &TimeZone::UTC)
    }

    #[test]
    fn what_is_not_known_is_said() {
        let empty = json!({
            "resource": "r0", "node": "alpha", "peer": "beta",
            "volumes": [{ "volume": 0, "verify": null, "sync": null }], "recent": [],
        });
        let expected = "r0 with beta\n  next verify: by order only (no verify-schedule)\n  \
                        volume 0\n    last verify: none is known here\n    \
                        last sync: none is known here\n";
        assert_eq!(report(&empty), expected);
    }

    #[test]
    fn results_are_lines_for_people() {
        let ranges: Vec<Value> = (0..18)
            .map(|n| json!({ "start": n * 8, "length": 4 }))
            .collect();
        let full = json!({
            "resource": "r0", "node": "alpha", "peer": "beta",
            "schedule": "Sun 03:00", "next-verify": "Sun 2026-11-29 03:00",
            "volumes": [{
                "volume": 3,
                "verify": {
                    "ended": "2026-11-22T03:00:07Z", "algorithm": "crc32c",
                    "compared-kib": 65_496, "seconds": 7.25,
                    "result": { "state": "done", "found-kib": 72, "ranges": ranges },
                },
                "sync": {
                    "ended": "2026-11-22T04:00:00Z", "copied-kib": 8, "equal-kib": 4,
                    "seconds": 0.5, "rate-kib-s": 24,
                },
            }],
            "recent": [{ "at": "2026-11-22T04:00:00Z", "what": "change resource name:r0" }],
        });
        let text = report(&full);
        for line in [
            "  next verify: Sun 2026-11-29 03:00 (Sun 03:00)\n",
            "    last verify: 2026-11-22 03:00:07, done, crc32c: 72 KiB differ, 0 KiB repaired, \
             0 KiB in use all the time; 65496 KiB compared in 7.2 s\n",
            "      differs: 4 KiB at 120 KiB\n      and 2 more ranges: --json lists them\n",
            "    last sync: 2026-11-22 04:00:00: 8 KiB copied, 4 KiB found equal, in 0.5 s, \
             24 KiB/s\n",
            "    2026-11-22 04:00:00 change resource name:r0\n",
        ] {
            assert!(text.contains(line), "no {line:?} in:\n{text}");
        }
    }
}
