//! Verbs that change a resource: life cycle, roles, decisions about data. Each is an order to the
//! agent, idempotent, and returns when it is carried out.

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use crate::agent::protocol::ResyncOptions;
use crate::config::disk_number;

use super::client::{ask, flags};
use super::{Global, Outcome, text};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start a resource: data plane, disks, connection
    Up(Target),
    /// Stop a resource; refused while its device is in use
    Down(Target),
    /// Attach the disk of a resource or volume
    Attach(Target),
    /// Detach the disk of a resource or volume
    Detach(Target),
    /// Connect to the peer
    Connect {
        #[command(flatten)]
        target: Target,
        /// After a split brain: give up what this node wrote and sync from the peer
        #[arg(long)]
        discard_my_data: bool,
    },
    /// Disconnect from the peer and do not try again
    Disconnect {
        #[command(flatten)]
        target: Target,
        /// Do not wait for the peer
        #[arg(long)]
        force: bool,
    },
    /// Make this node primary: the device appears
    Primary {
        #[command(flatten)]
        target: Target,
        /// Although nothing proves that this copy is current; also starts the first sync of a pair
        #[arg(long, visible_alias = "overwrite-data-of-peer")]
        force: bool,
    },
    /// Make this node secondary: the device goes away; refused while it is in use
    Secondary {
        #[command(flatten)]
        target: Target,
        /// Although it is in use: what uses it gets errors, and is cut off
        #[arg(long)]
        force: bool,
    },
    /// Declare the local data bad: full sync from the peer
    Invalidate(Target),
    /// Hold back the sync of a resource or volume
    PauseSync(Target),
    /// Let a sync go on that was held back here
    ResumeSync(Target),
    /// Change how fast a resync may go, until the next `adjust`
    DiskOptions {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        options: ResyncArguments,
    },
    /// Take in the changed configuration as far as that works while running
    Adjust {
        /// Resource, or all
        #[arg(value_name = "RES|all", default_value = "all")]
        target: String,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

/// Options of `disk` in the configuration, with the units that they have there.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub struct ResyncArguments {
    /// Hard cap per second; without a unit in KiB
    #[arg(long, value_parser = |text: &str| disk_number("resync-rate", text))]
    resync_rate: Option<u64>,
    /// Another cap; the lower counts, 0 = none
    #[arg(long, value_parser = |text: &str| disk_number("c-max-rate", text))]
    c_max_rate: Option<u64>,
    /// Goes on beside a busy application; without a unit in KiB per second
    #[arg(long, value_parser = |text: &str| disk_number("c-min-rate", text))]
    c_min_rate: Option<u64>,
    /// How long a measurement counts; without a unit in 0.1 s, 0 = no regard for the application
    #[arg(long, value_parser = |text: &str| disk_number("c-plan-ahead", text))]
    c_plan_ahead: Option<u64>,
    /// Queue that may be built while the application is idle; without a unit in 0.1 s
    #[arg(long, value_parser = |text: &str| disk_number("c-delay-target", text))]
    c_delay_target: Option<u64>,
    /// In flight while the application is idle; without a unit in sectors, 0 = by the delay
    #[arg(long, value_parser = |text: &str| disk_number("c-fill-target", text))]
    c_fill_target: Option<u64>,
}

impl ResyncArguments {
    fn given(&self) -> Map<String, Value> {
        let values = [
            self.resync_rate,
            self.c_max_rate,
            self.c_min_rate,
            self.c_plan_ahead,
            self.c_delay_target,
            self.c_fill_target,
        ];
        let named = ResyncOptions::NAMES.into_iter().zip(values);
        named
            .filter_map(|(name, value)| Some((name.to_owned(), Value::from(value?))))
            .collect()
    }
}

/// What a verb is about.
#[derive(Args, Debug)]
pub struct Target {
    /// Resource, volume, connection, or all
    #[arg(value_name = "RES|RES/VOL|RES:PEER|all")]
    target: String,
}

/// Carries out `verb`.
pub fn run(global: &Global, verb: Verb) -> Outcome {
    let (name, target, options) = match verb {
        Verb::Up(target) => ("up", target, Map::new()),
        Verb::Down(target) => ("down", target, Map::new()),
        Verb::Attach(target) => ("attach", target, Map::new()),
        Verb::Detach(target) => ("detach", target, Map::new()),
        Verb::Connect {
            target,
            discard_my_data,
        } => (
            "connect",
            target,
            flags(&[("discard-my-data", discard_my_data)]),
        ),
        Verb::Disconnect { target, force } => ("disconnect", target, flags(&[("force", force)])),
        Verb::Primary { target, force } => ("primary", target, flags(&[("force", force)])),
        Verb::Secondary { target, force } => ("secondary", target, flags(&[("force", force)])),
        Verb::Invalidate(target) => ("invalidate", target, Map::new()),
        Verb::PauseSync(target) => ("pause-sync", target, Map::new()),
        Verb::ResumeSync(target) => ("resume-sync", target, Map::new()),
        Verb::DiskOptions { target, options } => ("disk-options", target, options.given()),
        Verb::Adjust { target, dry_run } => return adjust(global, &target, dry_run),
    };
    ask(global, name, &target.target, options).map(|_| ())
}

fn adjust(global: &Global, target: &str, dry_run: bool) -> Outcome {
    let report = ask(global, "adjust", target, flags(&[("dry-run", dry_run)]))?;
    if global.json {
        text::pretty(&report);
        return Ok(());
    }
    for item in report.as_array().into_iter().flatten() {
        let word = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        if word("action") != "unchanged" || dry_run {
            text::line(&format!("{}: {}", word("resource"), word("action")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Verb as Any};
    use super::*;
    use clap::Parser;

    fn parse(words: &[&str]) -> Verb {
        let line = ["lockstep"].iter().chain(words);
        match Cli::try_parse_from(line).expect("parses").verb {
            Any::Lifecycle(verb) => verb,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn drbd_spelling_of_force_is_taken() {
        for option in ["--force", "--overwrite-data-of-peer"] {
            match parse(&["primary", "r0", option]) {
                Verb::Primary { target, force } => {
                    assert_eq!((target.target.as_str(), force), ("r0", true));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn rates_are_given_as_in_the_configuration() {
        match parse(&[
            "disk-options",
            "r0/1",
            "--resync-rate=50M",
            "--c-plan-ahead",
            "0",
        ]) {
            Verb::DiskOptions { target, options } => {
                assert_eq!(target.target, "r0/1");
                let given = options.given();
                assert_eq!(given["resync-rate"], 50 << 20);
                assert_eq!((&given["c-plan-ahead"], given.len()), (&Value::from(0), 2));
            }
            other => panic!("{other:?}"),
        }
        for bad in [
            &["disk-options", "r0"][..],
            &["disk-options", "r0", "--resync-rate=x"],
        ] {
            let line = ["lockstep"].iter().chain(bad);
            assert!(Cli::try_parse_from(line).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_resource_must_be_named() {
        assert!(Cli::try_parse_from(["lockstep", "down"]).is_err());
    }
}
