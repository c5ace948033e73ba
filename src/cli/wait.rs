//! Verbs that wait for a state, for scripts.

use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::agent::view::ResourceView;

use super::client::status;
use super::{Global, Outcome};

/// Between two looks: short beside what a person notices, cheap beside what a look costs.
pub const EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Wait until the connection to the peer is up
    WaitConnect(Wait),
    /// Wait until all copies are up to date
    WaitSync(Wait),
}

#[derive(Args, Debug)]
pub struct Wait {
    /// Resource, or all
    #[arg(value_name = "RES|all")]
    target: String,
    /// Give up after this time (exit 4): seconds, or with a unit such as 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Carries out `verb`.
pub fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::WaitConnect(wait) => wait_for(global, &wait, "connected", ResourceView::connected),
        Verb::WaitSync(wait) => wait_for(global, &wait, "in sync", ResourceView::in_sync),
    }
}

/// A resource that is being brought up stands alone for a moment, without a reason.
const START_GRACE: Duration = Duration::from_secs(2);

fn wait_for(
    global: &Global,
    wait: &Wait,
    what: &str,
    reached: impl Fn(&ResourceView) -> bool,
) -> Outcome {
    let begin = Instant::now();
    loop {
        let views = status(global, &wait.target)?;
        let Some(missing) = views.iter().find(|view| !reached(view)) else {
            return Ok(());
        };
        let starting = begin.elapsed() < START_GRACE;
        if let Some(link) = missing
            .standing_alone()
            .filter(|link| link.reason.is_some() || !starting)
        {
            let why = link.reason.as_deref().or(missing.reason.as_deref());
            return Err(ErrorReply::new(
                ErrorKind::Refused,
                format!(
                    "{} does not try to connect to {}: {}",
                    missing.name,
                    link.name,
                    why.unwrap_or("disconnected by order")
                ),
                link.help.clone().unwrap_or_else(|| {
                    format!(
                        "`lockstep up {0}` or `lockstep connect {0}` starts it",
                        missing.name
                    )
                }),
            ));
        }
        let waited = begin.elapsed();
        if let Some(limit) = wait.timeout
            && waited >= limit
        {
            return Err(ErrorReply::new(
                ErrorKind::Timeout,
                format!(
                    "{} is not {what} after {:.1} s",
                    missing.name,
                    limit.as_secs_f32()
                ),
                format!("`lockstep status {}` shows what it waits for", missing.name),
            ));
        }
        let left = wait
            .timeout
            .map_or(EVERY, |limit| limit.saturating_sub(waited));
        sleep(left.min(EVERY));
    }
}

/// Reads `30`, `30s`, `500ms`, `2m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        unit => return Err(format!("unknown unit '{unit}'; use ms, s or m")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a whole number is needed, with a unit or as seconds".to_owned())?;
    Ok(Duration::from_millis(number.saturating_mul(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "-1", "1.5", "3h", "\u{fc}"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
