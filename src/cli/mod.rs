//! The command line: one file per verb family.
//!
//! Metadata verbs, `dump` and `check` work on files alone; every other verb is one request to the
//! agent's control socket. A verb ends with an exit code from [`ErrorKind`]; its error is one
//! `error:` line with the reason and one `help:` line with the next step, or JSON with `--json`.

mod client;
mod demo;
mod import;
mod lifecycle;
mod look;
mod metadata;
mod metrics;
mod offline;

mod processes;
mod progress;
mod render;
mod report;
mod text;
mod verify;
mod wait;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind as ClapKind;
use clap::{Args, Parser, Subcommand};

use crate::agent::dirs::Dirs;
use crate::agent::protocol::{ErrorKind, ErrorReply};

/// Replicated block devices: every write reaches two servers before it counts.
#[derive(Debug, Parser)]
#[command(
    name = "lockstep",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Args, Debug)]
struct Global {
    /// Configuration file [default: /etc/lockstep/lockstep.conf, else /etc/drbd.conf]
    #[arg(short = 'c', long = "config", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Name of this node in the configuration [default: uname -n]
    #[arg(long, value_name = "NAME", global = true)]
    node: Option<String>,
    /// Sockets and process ids [default: /run/lockstep]
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,
    /// Device records [default: /var/lib/lockstep, or RUN_DIR/state with --run-dir]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// Results and errors as JSON
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    fn dirs(&self) -> Dirs {
        Dirs::new(self.run_dir.as_deref(), self.state_dir.as_deref())
    }

    /// The name under which this node appears in the configuration.
    fn node(&self) -> String {
        self.node.clone().unwrap_or_else(|| {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        })
    }
}

/// What every verb returns.
type Outcome = Result<(), ErrorReply>;

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the node process in the foreground
    Agent,
    /// Data plane of one resource, started by the agent
    #[command(hide = true)]
    Serve(processes::ServeArgs),
    /// Run the third vote, on a host that has no data; one witness serves many clusters
    Witness(processes::WitnessArgs),
    /// Show what a replicated disk does, on this machine, with two nodes of its own
    Demo(demo::DemoArgs),
    #[command(flatten)]
    Metadata(metadata::Verb),
    #[command(flatten)]
    Lifecycle(lifecycle::Verb),
    #[command(flatten)]
    Look(look::Verb),
    #[command(flatten)]
    Wait(wait::Verb),
    /// Compare the copies while they are in use, and repair what differs
    Verify(verify::Verify),
    /// Show what verifies and syncs have found and done, and the last changes
    Report(report::Arguments),
    /// Print what status knows as OpenMetrics text
    Metrics,
    #[command(flatten)]
    Offline(offline::Verb),
    /// Make a configuration from files of DRBD, Heartbeat and Keepalived
    Import(import::Import),
}

/// Verbs of later versions: known, so that the answer is not "misspelt".
const LATER: &[&str] = &[
    "apply-al",
    "cluster",
    "config",
    "devices",
    "doctor",
    "export-md",
    "get-gi",
    "invalidate-remote",
    "maintenance",
    "monitor-check",
    "net-options",
    "new-current-uuid",
    "online",
    "outdate",
    "overview",
    "peer-device-options",
    "proc",
    "resize",
    "resource",
    "resource-options",
    "resume-io",
    "setup",
    "show-gi",
    "standby",
    "suspend-io",
    "switchover",
    "upgrade",
    "wait-role",
    "wipe",
    "wipe-md",
];

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let outcome = match Cli::try_parse_from(&arguments) {
        Ok(cli) => run(cli),
        Err(error) if !error.use_stderr() => {
            text::out(&error.render().to_string());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(usage_error(&error)),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            text::report(&error, json);
            ExitCode::from(error.exit)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, ErrorReply> {
    let global = &cli.global;
    let outcome = match cli.verb {
        // Tells its failures itself.
        Verb::Demo(args) => return Ok(demo::run(&args)),
        Verb::Agent => processes::agent(global),
        Verb::Serve(args) => processes::serve(&args),
        Verb::Witness(args) => processes::witness(global, &args),
        Verb::Metadata(verb) => metadata::run(global, verb),
        Verb::Lifecycle(verb) => lifecycle::run(global, verb),
        Verb::Look(verb) => look::run(global, verb),
        Verb::Wait(verb) => wait::run(global, verb),
        // Has a result of its own besides the errors.
        Verb::Verify(verify) => return verify::run(global, &verify),
        Verb::Report(arguments) => report::run(global, &arguments),
        Verb::Metrics => metrics::run(global),
        Verb::Offline(verb) => offline::run(global, verb),
        // Tells what is missing before its error.
        Verb::Import(args) => return import::run(global, &args),
    };
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Turns the parser's message into ours: reason first, then the next step.
fn usage_error(error: &clap::Error) -> ErrorReply {
    use clap::error::{ContextKind, ContextValue};

    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        // The likeliest comes last.
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        _ => None,
    };
    if error.kind() == ClapKind::InvalidSubcommand
        && let Some(verb) = context(ContextKind::InvalidSubcommand)
        && LATER.contains(&verb.as_str())
    {
        return ErrorReply::new(
            ErrorKind::Usage,
            format!("{verb}: not in this version"),
            "`lockstep --help` lists the verbs that this version has",
        );
    }
    let rendered = error.render().to_string();
    let reason = rendered
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ");
    let reason = match error.kind() {
        ClapKind::DisplayHelpOnMissingArgumentOrSubcommand | ClapKind::MissingSubcommand => {
            "no verb given".to_owned()
        }
        _ => reason,
    };
    let near = context(ContextKind::SuggestedSubcommand).or(context(ContextKind::SuggestedArg));
    let help = match near {
        Some(word) => format!("did you mean `{word}`? `lockstep --help` lists all verbs"),
        None => {
            "`lockstep --help` lists all verbs, `lockstep VERB --help` their options".to_owned()
        }
    };
    ErrorReply::new(ErrorKind::Usage, reason, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound_and_leaves_out_what_is_not_there() {
        let command = Cli::command();
        command.clone().debug_assert();
        for verb in LATER {
            assert!(command.find_subcommand(verb).is_none(), "{verb} exists");
            let error = Cli::try_parse_from(["lockstep", verb]).expect_err(verb);
            let reply = usage_error(&error);
            assert_eq!(reply.exit, 2);
            assert!(reply.reason.ends_with("not in this version"), "{reply:?}");
        }
    }

    #[test]
    fn misspelt_verbs_get_a_suggestion() {
        let error = Cli::try_parse_from(["lockstep", "statsu"]).expect_err("misspelt");
        let reply = usage_error(&error);
        assert!(reply.reason.contains("statsu"), "{reply:?}");
        assert!(reply.help.contains("status"), "{reply:?}");
        let error = Cli::try_parse_from(["lockstep"]).expect_err("nothing");
        assert_eq!(usage_error(&error).reason, "no verb given");
    }

    #[test]
    fn global_options_stand_before_and_after_the_verb() {
        for line in [
            ["lockstep", "--node", "alpha", "--json", "status"],
            ["lockstep", "status", "--json", "--node", "alpha"],
        ] {
            let cli = Cli::try_parse_from(line).expect("parses");
            assert!(cli.global.json);
            assert_eq!(cli.global.node(), "alpha");
        }
    }
}
