//! Opening the disks of a volume for its data plane.
//!
//! A disk is opened exclusively, and the right travels with the descriptor: after a crash the disk
//! is busy until the last request of the dead process has ended, so a busy disk is tried again for
//! a while.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::channel::blocking;
use super::plan::DiskPlan;
use super::protocol::{ErrorKind, ErrorReply};
use crate::store::device::{Disk, OpenError};

/// Between two tries of a busy disk.
const RETRY: Duration = Duration::from_millis(20);

/// Opens the data device of a volume, and its metadata device if it has one, in this order.
/// A disk that is busy with nobody known to use it is waited for during `drain`.
pub async fn open(disk: &DiskPlan, drain: Duration) -> Result<Vec<OwnedFd>, ErrorReply> {
    let disk = disk.clone();
    let opened = blocking(move || {
        let deadline = Instant::now() + drain;
        let paths = std::iter::once(&disk.data).chain(&disk.meta);
        paths.map(|path| open_one(path, deadline)).collect()
    });
    opened.await.unwrap_or_else(|| {
        Err(ErrorReply::new(
            ErrorKind::Failed,
            "opening the disk was broken off",
            "see the agent's log",
        ))
    })
}

fn open_one(path: &Path, deadline: Instant) -> Result<OwnedFd, ErrorReply> {
    loop {
        match Disk::open(path) {
            Ok(disk) => return Ok(disk.into_fd()),
            Err(error) if may_drain(&error) && Instant::now() < deadline => sleep(RETRY),
            Err(error) => return Err(refusal(&error)),
        }
    }
}

/// Whether waiting may help: a mount or a holder does not go by itself.
fn may_drain(error: &OpenError) -> bool {
    match error {
        OpenError::Locked { .. } => true,
        OpenError::Busy { users, .. } => users.is_empty(),
        OpenError::Io { .. }
        | OpenError::NotADisk { .. }
        | OpenError::ReadOnly { .. }
        | OpenError::NoDirectIo { .. } => false,
    }
}

/// An open error for the operator.
pub fn refusal(error: &OpenError) -> ErrorReply {
    let (kind, help) = match error {
        OpenError::Io { .. } => (
            ErrorKind::Failed,
            "check `disk` and `meta-disk` in the configuration, and that this runs as root",
        ),
        OpenError::Busy { .. } => (
            ErrorKind::Refused,
            "unmount it or take it out of use; only Lockstep may write to it",
        ),
        OpenError::Locked { .. } => (
            ErrorKind::Refused,
            "is the resource up (also under another run directory)? `lockstep down` frees it",
        ),
        OpenError::NotADisk { .. } | OpenError::ReadOnly { .. } | OpenError::NoDirectIo { .. } => (
            ErrorKind::Refused,
            "name another `disk` or `meta-disk` in the configuration",
        ),
    };
    ErrorReply::new(kind, error, help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).expect("create");
        file.set_len(1 << 20).expect("size");
        path
    }

    #[test]
    fn a_busy_disk_is_waited_for_and_a_missing_one_is_not() {
        let dir = tempfile::tempdir().expect("dir");
        let data = file(&dir, "data");
        let meta = Some(file(&dir, "meta"));
        let plan = DiskPlan {
            volume: 0,
            data,
            meta,
            indexed: false,
        };
        let predecessor = Disk::open(&plan.data).expect("opens");
        tokio_uring::start(async {
            let error = open(&plan, Duration::ZERO).await.expect_err("locked");
            assert_eq!(error.exit, 3, "{error:?}");
            let release = std::thread::spawn(move || {
                sleep(Duration::from_millis(100));
                drop(predecessor);
            });
            let opened = open(&plan, Duration::from_secs(10)).await;
            assert_eq!(opened.expect("drained").len(), 2);
            release.join().expect("thread");
            let missing = DiskPlan {
                data: dir.path().join("missing"),
                ..plan
            };
            let begin = Instant::now();
            let error = open(&missing, Duration::from_secs(10)).await;
            assert_eq!(error.expect_err("missing").exit, 1);
            assert!(begin.elapsed() < Duration::from_secs(5));
        });
    }
}
