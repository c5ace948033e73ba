//! `lockstep verify`: begins an online verify, and waits for its result when asked to.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Map, Value};

use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::agent::view::{ResourceView, VerifyView};
use crate::config::size_in_bytes;

use super::client::{ask, status};
use super::wait::{EVERY, duration};
use super::{Global, text};

#[derive(Args, Debug)]
pub struct Verify {
    /// Resource, volume, or all
    #[arg(value_name = "RES|RES/VOL|all")]
    target: String,
    /// Where to begin, with a unit (64M) or in sectors; else at the beginning, or where the last
    /// one was stopped
    #[arg(long, value_name = "SIZE", value_parser = size_in_bytes)]
    start: Option<u64>,
    /// Where to end
    #[arg(long, value_name = "SIZE", value_parser = size_in_bytes)]
    stop: Option<u64>,
    /// Afterwards copy what differs from the primary, or from the node that --from names
    #[arg(long)]
    repair: bool,
    /// The node with the good data
    #[arg(long, value_name = "NODE", requires = "repair")]
    from: Option<String>,
    /// Wait for the result: 0 = equal or repaired, 1 = differences are left, 4 = not in time
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this time; the verify goes on
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    timeout: Option<Duration>,
}

/// What was found on one volume.
struct Found {
    volume: String,
    verify: VerifyView,
}

/// Carries out the verb; the exit code says what was found.
pub fn run(global: &Global, verify: &Verify) -> Result<ExitCode, ErrorReply> {
    let begin = Instant::now();
    ask(global, "verify", &verify.target, options(verify))?;
    if !verify.wait {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let all = look(global, &verify.target)?;
        if !all.iter().any(|found| found.verify.state == "running") {
            return report(&all);
        }
        let waited = begin.elapsed();
        if verify.timeout.is_some_and(|limit| waited >= limit) {
            return Err(ErrorReply::new(
                ErrorKind::Timeout,
                format!("the verify of {} is still running", verify.target),
                format!(
                    "it goes on; `lockstep status {}` shows how far",
                    verify.target
                ),
            ));
        }
        sleep(EVERY);
    }
}

fn options(verify: &Verify) -> Map<String, Value> {
    let mut options = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            options.insert(name.to_owned(), value);
        }
    };
    set("start", verify.start.map(Value::from));
    set("stop", verify.stop.map(Value::from));
    set("repair", verify.repair.then_some(Value::Bool(true)));
    set("from", verify.from.clone().map(Value::from));
    options
}

/// The volumes of the target and what is known of them.
fn look(global: &Global, target: &str) -> Result<Vec<Found>, ErrorReply> {
    let (resource, volume) = match target.split_once('/') {
        Some((resource, volume)) => (resource, volume.parse::<u16>().ok()),
        None => (target, None),
    };
    let views = status(global, resource)?;
    Ok(views
        .iter()
        .flat_map(|view| of_view(view, volume))
        .collect())
}

fn of_view(view: &ResourceView, volume: Option<u16>) -> Vec<Found> {
    let peers = view.connections.iter().flat_map(|link| &link.peer_devices);
    peers
        .filter(|peer| volume.is_none_or(|volume| peer.volume == volume))
        .map(|peer| Found {
            volume: format!("{}/{}", view.name, peer.volume),
            verify: peer.verify.clone(),
        })
        .collect()
}

/// One line per volume, and the exit code.
fn report(all: &[Found]) -> Result<ExitCode, ErrorReply> {
    let mut left = 0;
    for Found { volume, verify } in all {
        if verify.state == "stopped" {
            return Err(ErrorReply::new(
                ErrorKind::Failed,
                format!("the verify of {volume} was stopped at {} KiB", verify.at),
                "`lockstep status` shows why; `lockstep verify` goes on from there",
            ));
        }
        text::line(&format!(
            "{volume}: {} KiB differ, {} KiB repaired, {} KiB in use all the time",
            verify.found_kib, verify.repaired_kib, verify.skipped_kib
        ));
        left += verify.found_kib;
    }
    Ok(ExitCode::from(u8::from(left > 0)))
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Verb};
    use super::*;
    use clap::Parser;

    fn parse(words: &[&str]) -> Option<Verify> {
        let line = ["lockstep", "verify"].iter().chain(words);
        match Cli::try_parse_from(line).ok()?.verb {
            Verb::Verify(verify) => Some(verify),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ranges_have_units_or_are_in_sectors() {
        let verify = parse(&["r0/1", "--start", "8", "--stop=64M"]).expect("parses");
        let options = options(&verify);
        assert_eq!(
            (&options["start"], &options["stop"]),
            (&4096.into(), &(64 << 20).into())
        );
        assert!(!options.contains_key("repair"));
    }

    #[test]
    fn options_that_need_another_one_say_so() {
        assert!(parse(&["r0", "--from", "alpha"]).is_none());
        assert!(parse(&["r0", "--timeout", "5"]).is_none());
        assert!(parse(&["r0", "--repair", "--from", "alpha", "--wait"]).is_some());
    }
}
