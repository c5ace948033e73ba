//! Verbs that are processes: the agent and the data plane.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use lockstep_transport::sealed::Key;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::failover::witness::{self, Witness, WitnessError};
use crate::{agent, config, reactor};

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
    let dirs = global.dirs();
    let cluster = offline::pulse(&global, dirs.votes())?;
    agent::run(dirs, Box::new(move || offline::plans(&global)), cluster)
}

#[derive(Args, Debug)]
pub struct WitnessArgs {
    /// Where nodes reach it
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Serve only the clusters with these keys (`lockstep keygen`); otherwise any cluster that
    /// introduces itself
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
}

/// Runs the third vote.
pub fn witness(global: &Global, args: &WitnessArgs) -> Outcome {
    log_to_stderr();
    let mut keys = Vec::new();
    for path in &args.key_file {
        let key = config::read_key(path)
            .map_err(|error| ErrorReply::new(ErrorKind::Config, &error.kind, error.help()))?;
        keys.push(Key::of_witness(key.as_bytes()));
    }
    let folder = global.dirs().witness();
    let witness = Witness::open(&folder, &keys)?;
    let socket = witness::listen(args.listen)?;
    tracing::info!(address = %args.listen, folder = %folder.display(), "witness is ready");
    agent::tell_supervisor(sd_notify::NotifyState::Ready);
    Ok(witness.serve(&socket)?)
}

impl From<WitnessError> for ErrorReply {
    fn from(error: WitnessError) -> ErrorReply {
        let help = match &error {
            WitnessError::State { .. } => "name a folder that this user may write: --state-dir",
            WitnessError::Slots(_) => "is another witness running with the same --state-dir?",
            WitnessError::Listen { .. } => "name an address of this host and a free port: --listen",
            _ => "see `journalctl` for what the host lacks",
        };
        ErrorReply::new(ErrorKind::Failed, error, help)
    }
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
