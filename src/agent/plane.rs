//! One running data plane as the agent sees it: a process and the socket that it listens at.
//!
//! The agent binds the socket and hands the listener to the process as its standard input, and
//! the memory that survives the process (the table of ranges in flight) as its standard output;
//! neither needs more than the standard library can do without `unsafe`. A later agent finds a
//! living process through the socket and the pid file and goes on with it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use super::channel::{Channel, ChannelError, MAX_REPLY, blocking, within};
use super::dirs::{Dirs, check_socket_path, remove_if_there};
use super::protocol::{ErrorKind, ErrorReply, Reply, ServeRequest};

/// How long a data plane may take for a command. The engine bounds its own waits below this.
const ANSWER: Duration = Duration::from_secs(60);
/// How long it may take to say how it is: `status` must not hang on a stopped process.
pub const STATUS_ANSWER: Duration = Duration::from_secs(2);
/// Name of the memory that survives a data plane; shows up in `/proc/PID/fd`.
const TABLE_NAME: &str = "lockstep-in-flight";

/// The memory in which a data plane notes the exact ranges in flight.
pub fn new_table() -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create(TABLE_NAME, MemfdFlags::CLOEXEC)?)
}

/// A data plane's process and socket. Dropping it leaves the process alone.
pub struct Plane {
    resource: String,
    socket: PathBuf,
    pid: Pid,
    /// Refers to this very process, whatever becomes of its number.
    pidfd: OwnedFd,
}

impl Plane {
    /// Starts a process for `resource` with `program`, which gets a duplicate of `table`.
    pub fn start(
        program: &Path,
        dirs: &Dirs,
        resource: &str,
        table: &OwnedFd,
    ) -> Result<(Plane, tokio::process::Child), ErrorReply> {
        let socket = dirs.serve_socket(resource);
        check_socket_path(&socket)?;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            ErrorReply::new(
                ErrorKind::Failed,
                format!("cannot start the data plane of {resource}: {what}: {error}"),
                "see the agent's log; `lockstep up` tries again",
            )
        };
        remove_if_there(&socket).map_err(|e| failed("old socket", &e))?;
        let listener = UnixListener::bind(&socket).map_err(|e| failed("socket", &e))?;
        let table = table.try_clone().map_err(|e| failed("memory", &e))?;
        let mut command = tokio::process::Command::new(program);
        command
            .arg("serve")
            .arg(resource)
            .arg("--run-dir")
            .arg(dirs.run())
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::from(table));
        let child = command.spawn().map_err(|e| failed("process", &e))?;
        let plane = child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
            .and_then(|pid| Plane::of(resource, socket, pid).ok())
            .ok_or_else(|| failed("process", &"it ended at once"))?;
        let number = plane.pid.as_raw_nonzero().to_string();
        fs::write(dirs.serve_pid(resource), number).map_err(|e| failed("pid file", &e))?;
        Ok((plane, child))
    }

    fn of(resource: &str, socket: PathBuf, pid: Pid) -> io::Result<Plane> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Plane {
            resource: resource.to_owned(),
            socket,
            pid,
            pidfd,
        })
    }

    /// Finds the living data plane that an earlier agent started, and the memory it uses.
    pub async fn adopt(dirs: &Dirs, resource: &str) -> Option<(Plane, Option<OwnedFd>)> {
        let number = fs::read_to_string(dirs.serve_pid(resource)).ok()?;
        // Unsigned first: a negative number is none, and making a `Pid` of it is not allowed.
        let number: u32 = number.trim().parse().ok()?;
        let pid = Pid::from_raw(i32::try_from(number).ok()?)?;
        let plane = Plane::of(resource, dirs.serve_socket(resource), pid).ok()?;
        // The descriptor is open: from here on the number cannot mean another process, and the
        // command line says whether it is the one.
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        let expected = [&b"serve"[..], resource.as_bytes()];
        if !words.windows(2).any(|pair| pair == expected) {
            return None;
        }
        if let Err(error) = plane.ask(&ServeRequest::Status, STATUS_ANSWER).await
            && error.kind != ErrorKind::Timeout.name()
        {
            // It was never configured, or is ending: it holds nothing worth keeping. One that is
            // stopped or hung holds its disks, and is kept.
            plane.kill();
            plane.ended(Some(STATUS_ANSWER)).await;
            return None;
        }
        let table = inherited_table(pid);
        Some((plane, table))
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until the process has ended, for `limit` at most; says whether it has. The wait goes
    /// on in a thread of its own and needs the plane no more.
    pub fn ended(&self, limit: Option<Duration>) -> impl Future<Output = bool> + use<> {
        let process = self.pidfd.try_clone();
        async move {
            let Ok(process) = process else { return false };
            blocking(move || poll_end(&process, limit))
                .await
                .unwrap_or(false)
        }
    }

    /// Ends the process at once.
    pub fn kill(&self) {
        // Fails only when it has ended.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Sends a command and waits for its end.
    pub async fn command(&self, request: &ServeRequest) -> Result<Value, ErrorReply> {
        self.ask(request, ANSWER).await
    }

    /// As `command`, with another limit.
    pub async fn ask(&self, request: &ServeRequest, limit: Duration) -> Result<Value, ErrorReply> {
        exchange(&self.resource, &self.socket, request, &[], limit).await
    }

    /// As `command`, with descriptors beside the request.
    pub async fn hand(
        &self,
        request: &ServeRequest,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Value, ErrorReply> {
        exchange(&self.resource, &self.socket, request, descriptors, ANSWER).await
    }

    /// Where requests go, for work that outlives a borrow of the plane.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// One request on a connection of its own.
pub async fn exchange(
    resource: &str,
    socket: &Path,
    request: &ServeRequest,
    descriptors: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<Value, ErrorReply> {
    let answer = within(limit, async {
        let mut channel = Channel::open_with(socket, MAX_REPLY, request, descriptors)?;
        loop {
            match channel.receive::<Reply>().await? {
                Reply::Item(_) => {}
                end => return Ok(end),
            }
        }
    })
    .await;
    match answer {
        Ok(Reply::Done(value)) => Ok(value),
        Ok(Reply::Error(error)) => Err(error),
        Ok(Reply::Item(_)) => Ok(Value::Null),
        Err(error @ ChannelError::Timeout(_)) => Err(ErrorReply::new(
            ErrorKind::Timeout,
            format!("the data plane of {resource} does not answer: {error}"),
            format!("is it stopped or is its disk hung? `lockstep status {resource}` shows it"),
        )),
        Err(error) => Err(ErrorReply::new(
            ErrorKind::Failed,
            format!("the data plane of {resource} is gone: {error}"),
            "the agent starts it again; repeat the command",
        )),
    }
}

/// A pidfd becomes readable when its process ends.
fn poll_end(process: &OwnedFd, limit: Option<Duration>) -> bool {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut watched = [PollFd::new(process, PollFlags::IN)];
        match rustix::event::poll(&mut watched, left.as_ref()) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Opens the in-flight memory of a running data plane.
fn inherited_table(pid: Pid) -> Option<OwnedFd> {
    let directory = format!("/proc/{}/fd", pid.as_raw_nonzero());
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target
            .to_string_lossy()
            .starts_with(&format!("/memfd:{TABLE_NAME}"))
        {
            let file = File::options().read(true).write(true).open(entry.path());
            return file.ok().map(OwnedFd::from);
        }
    }
    None
}
