//! Where a node keeps its sockets, process ids and records.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::protocol::{ErrorKind, ErrorReply};

/// Longest path that fits a Unix socket address (108 bytes with the final zero).
const MAX_SOCKET_PATH: usize = 107;

/// The two directories of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    run: PathBuf,
    state: PathBuf,
}

impl Dirs {
    /// `state` defaults to `run`'s `state` folder when `run` is given, so that several nodes on
    /// one machine do not share records by accident.
    pub fn new(run: Option<&Path>, state: Option<&Path>) -> Dirs {
        let default_state = match run {
            Some(dir) => dir.join("state"),
            None => PathBuf::from("/var/lib/lockstep"),
        };
        Dirs {
            run: run.map_or_else(|| PathBuf::from("/run/lockstep"), Path::to_path_buf),
            state: state.map_or(default_state, Path::to_path_buf),
        }
    }

    pub fn run(&self) -> &Path {
        &self.run
    }

    /// What the agent listens at.
    pub fn control_socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// Held locked by a living agent.
    pub fn agent_lock(&self) -> PathBuf {
        self.run.join("agent.lock")
    }

    /// What the data plane of `resource` listens at.
    pub fn serve_socket(&self, resource: &str) -> PathBuf {
        self.run.join(format!("{resource}.serve.sock"))
    }

    /// Process id of the data plane of `resource`.
    pub fn serve_pid(&self, resource: &str) -> PathBuf {
        self.run.join(format!("{resource}.pid"))
    }

    /// One record per block device that this node created.
    pub fn device_records(&self) -> PathBuf {
        self.state.join("devices")
    }

    /// Records of this node's own votes.
    pub fn votes(&self) -> PathBuf {
        self.state.join("votes")
    }

    /// Records of a witness.
    pub fn witness(&self) -> PathBuf {
        self.state.join("witness")
    }

    /// One file per resource: results that outlive its processes.
    pub fn kept(&self) -> PathBuf {
        self.state.join("kept")
    }

    /// Creates what is missing, for root's eyes only.
    pub fn create(&self) -> Result<(), ErrorReply> {
        for dir in [
            &self.run,
            &self.state,
            &self.device_records(),
            &self.votes(),
            &self.kept(),
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|error| {
                    ErrorReply::new(
                        ErrorKind::Failed,
                        format!("cannot create {}: {error}", dir.display()),
                        "run the agent as root, or name other places with --run-dir and --state-dir",
                    )
                })?;
        }
        Ok(())
    }
}

/// Refuses a path that does not fit a Unix socket address.
pub fn check_socket_path(path: &Path) -> Result<(), ErrorReply> {
    let length = path.as_os_str().len();
    if length <= MAX_SOCKET_PATH {
        return Ok(());
    }
    Err(ErrorReply::new(
        ErrorKind::Failed,
        format!(
            "the socket path {} has {length} bytes; the kernel takes {MAX_SOCKET_PATH}",
            path.display()
        ),
        "choose a shorter --run-dir",
    ))
}

/// Removes a file that may be missing.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_follows_the_run_directory() {
        let plain = Dirs::new(None, None);
        assert_eq!(plain.run(), Path::new("/run/lockstep"));
        assert_eq!(
            plain.device_records(),
            Path::new("/var/lib/lockstep/devices")
        );
        let own = Dirs::new(Some(Path::new("/tmp/a")), None);
        assert_eq!(own.device_records(), Path::new("/tmp/a/state/devices"));
        assert_eq!(own.serve_socket("r0"), Path::new("/tmp/a/r0.serve.sock"));
        let both = Dirs::new(Some(Path::new("/tmp/a")), Some(Path::new("/tmp/b")));
        assert_eq!(both.device_records(), Path::new("/tmp/b/devices"));
    }

    #[test]
    fn long_socket_paths_are_refused() {
        let fits = format!("/{}", "x".repeat(106));
        assert!(check_socket_path(Path::new(&fits)).is_ok());
        let error = check_socket_path(Path::new(&format!("{fits}x"))).expect_err("too long");
        assert!(error.help.contains("--run-dir"));
    }
}
