//! What can go wrong with a measurement.

use std::io;
use std::path::{Path, PathBuf};

/// Why a run gives no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A file, socket or process.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// A `lockstep` command did not succeed.
    #[error("`lockstep {words}` failed: {message}")]
    Command { words: String, message: String },
    /// An agent ended, or never answered.
    #[error("the agent of node {node} does not answer; its log: {log}")]
    Agent { node: &'static str, log: String },
    /// The other side of a socket broke the protocol.
    #[error("the server at {} broke the NBD protocol: {what}", path.display())]
    Protocol { path: PathBuf, what: &'static str },
    /// A request was answered with an error.
    #[error("a request failed with error {errno}")]
    Request { errno: i32 },
    /// Nothing finished within the measured time.
    #[error("no request finished within the measured time; give more --seconds")]
    NothingMeasured,
    /// The peer was lost on the way, so the figures are those of a single copy.
    #[error("the pair was not replicating any more at the end of the run: {state}")]
    NotReplicating { state: String },
    /// An event that should have come.
    #[error("no event with `{what}` came in time")]
    NeverSeen { what: String },
    /// Figures that are no report of this program.
    #[error("{}: {source}", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl BenchError {
    /// For `map_err`: says what was attempted.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> BenchError {
        let what = what.into();
        |source| BenchError::Io { what, source }
    }

    /// For `map_err`: names the file.
    pub fn at(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
        BenchError::io(path.display().to_string())
    }
}
