//! Verbs that are processes: the agent and the data plane.

use std::path::{Path, PathBuf};

use clap::Args;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::{agent, reactor};

use super::{Global, Outcome, offline};

#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Resource to serve
    resource: String,
}

/// Runs the node process.
pub fn agent(global: &Global) -> Outcome {
    log_to_stderr();
    // Later reads come from wherever the agent runs then.
    let global = Global {
        config: global.config.as_deref().map(absolute).transpose()?,
        run_dir: global.run_dir.as_deref().map(absolute).transpose()?,
        state_dir: global.state_dir.as_deref().map(absolute).transpose()?,
        node: global.node.clone(),
        json: global.json,
    };
    agent::run(global.dirs(), Box::new(move || offline::plans(&global)))
}

fn absolute(path: &Path) -> Result<PathBuf, ErrorReply> {
    std::path::absolute(path).map_err(|error| {
        ErrorReply::new(
            ErrorKind::Usage,
            format!("{}: {error}", path.display()),
            "give a path that is not empty",
        )
    })
}

/// Runs a data plane. The listener that the agent bound is standard input, the memory of ranges in
/// flight is standard output.
pub fn serve(args: &ServeArgs) -> Outcome {
    log_to_stderr();
    Ok(reactor::serve(&args.resource)?)
}

/// What the process has to say goes to its standard error: the journal, under systemd.
fn log_to_stderr() {
    // The driver's library tells of every look at the driver.
    let quiet = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("libublk", LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .compact();
    tracing_subscriber::registry()
        .with(lines)
        .with(quiet)
        .init();
}
