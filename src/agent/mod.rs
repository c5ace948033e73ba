//! The long-running node process: control socket, supervision of the data planes, sysfs.
//!
//! One thread on tokio-uring. A request from the control socket ([`server`]) goes to the
//! [`node`], which gives it as an order to the [`keeper`] of each resource meant; the keeper
//! talks to its data plane ([`plane`]). Work that may block (opening disks, writing sysfs) runs on
//! threads of its own. When the agent dies its data planes go on; the next agent takes them over.

pub mod calendar;
pub mod channel;
pub mod cluster;
pub mod dirs;
pub mod disks;
pub mod events;
pub mod failover;
pub mod follow;
pub mod front;
pub mod handlers;
pub mod hub;
pub mod keeper;
pub mod kept;
pub mod listen;
pub mod node;
pub mod order;
pub mod plan;
pub mod plane;
pub mod protocol;
pub mod report;
pub mod retry;
pub mod server;
pub mod status;
pub mod syncs;
pub mod users;
pub mod view;

use std::fs::File;
use std::io::{Read, Write};
use std::rc::Rc;

use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use cluster::Cluster;
use dirs::Dirs;
use keeper::Site;
use node::{Loader, Node};
use protocol::{ErrorKind, ErrorReply};

use crate::failover::pulse::PulseConfig;

/// Runs the agent until a signal ends it. `load` reads the configuration of this node; its
/// first failure ends the agent before anything is touched. `cluster`: where reigns need votes.
///
/// Ends with `Ok` when everything is down or was left running on purpose (SIGUSR2), and with
/// `Refused` when SIGTERM found devices in use.
pub fn run(dirs: Dirs, load: Loader, cluster: Option<PulseConfig>) -> Result<(), ErrorReply> {
    let plans = load()?;
    dirs.create()?;
    let _lock = lock(&dirs)?;
    let program = std::env::current_exe().map_err(|error| {
        ErrorReply::new(
            ErrorKind::Failed,
            format!("cannot find my own binary: {error}"),
            "is /proc mounted?",
        )
    })?;
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(|error| {
        ErrorReply::new(
            ErrorKind::Failed,
            format!("io_uring is not available: {error}"),
            "check `sysctl kernel.io_uring_disabled` (0 is needed) and seccomp filters",
        )
    })?;
    runtime.block_on(async {
        let signals = Signals::new()?;
        let listener = server::bind(&dirs.control_socket())?;
        let cluster = cluster
            .map(|config| Cluster::start(&dirs, config))
            .transpose()?;
        let node = Node::new(
            Site {
                dirs: dirs.clone(),
                program,
                cluster,
                clock: calendar::wall(),
            },
            load,
        );
        node.start(plans);
        tokio_uring::spawn(syncs::coordinate(Rc::clone(&node)));
        tokio_uring::spawn(calendar::follow(Rc::clone(&node)));
        tokio_uring::spawn(server::serve(listener, Rc::clone(&node)));
        tell_supervisor(sd_notify::NotifyState::Ready);
        info!(run_dir = %dirs.run().display(), "agent is ready");
        let result = signals.obey(&node).await;
        if let Err(error) = dirs::remove_if_there(&dirs.control_socket()) {
            warn!(%error, "cannot remove the control socket");
        }
        result
    })
}

/// Makes sure that this is the only agent of the run directory. The lock ends with the process.
fn lock(dirs: &Dirs) -> Result<File, ErrorReply> {
    let path = dirs.agent_lock();
    let failed = |error: std::io::Error| {
        ErrorReply::new(
            ErrorKind::Failed,
            format!("cannot lock {}: {error}", path.display()),
            "run the agent as root, or name another place with --run-dir",
        )
    };
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut pid);
            return Err(ErrorReply::new(
                ErrorKind::Refused,
                format!(
                    "another agent (pid {}) runs in {}",
                    pid.trim(),
                    dirs.run().display()
                ),
                "stop it first, or give this node a --run-dir of its own",
            ));
        }
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// Tells systemd how far the agent is, when it asked to be told.
/// Tells the service manager, where there is one.
pub fn tell_supervisor(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot notify the service manager");
    }
}

/// The signals that end or reload the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    leave: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> Result<Signals, ErrorReply> {
        let take = |kind| {
            signal(kind).map_err(|error| {
                ErrorReply::new(
                    ErrorKind::Failed,
                    format!("cannot handle signals: {error}"),
                    "the machine is out of descriptors or memory",
                )
            })
        };
        Ok(Signals {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
            leave: take(SignalKind::user_defined2())?,
            reload: take(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal and does what it says until one ends the agent.
    async fn obey(mut self, node: &Node) -> Result<(), ErrorReply> {
        loop {
            match self.next().await {
                Wanted::Reload => node.reload().await,
                Wanted::Leave => {
                    info!("leaving; data planes go on");
                    return Ok(());
                }
                Wanted::End => {
                    tell_supervisor(sd_notify::NotifyState::Stopping);
                    let kept = node.take_down().await;
                    if kept.is_empty() {
                        info!("everything is down");
                        return Ok(());
                    }
                    return Err(ErrorReply::new(
                        ErrorKind::Refused,
                        format!("kept running: {}", kept.join("; ")),
                        "end what uses the device, start the agent again and stop it, or repeat \
                         `lockstep down`",
                    ));
                }
            }
        }
    }

    async fn next(&mut self) -> Wanted {
        std::future::poll_fn(|context| {
            if self.terminate.poll_recv(context).is_ready()
                || self.interrupt.poll_recv(context).is_ready()
            {
                return std::task::Poll::Ready(Wanted::End);
            }
            if self.leave.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(Wanted::Leave);
            }
            if self.reload.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(Wanted::Reload);
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Take everything down and end.
    End,
    /// End and leave the data planes running.
    Leave,
    /// Read the configuration again.
    Reload,
}
