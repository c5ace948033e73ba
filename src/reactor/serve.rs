//! The process `lockstep serve RES`: set-up, then two threads for the rest of its life.
//!
//! 1. The agent's listener and the memory for ranges in flight are inherited.
//! 2. The configuration is awaited, on a plain runtime: nothing of io_uring exists yet.
//! 3. The process leaves the host's file system for a root that holds only `/dev`: a data plane
//!    that kept a mount of its own device alive could never be stopped. What lies elsewhere, disks
//!    that are files and sockets of NBD exports, the agent opens and passes.
//! 4. The ring thread starts, allocates everything and runs; this thread becomes the control
//!    thread, on tokio-uring.
//!
//! Nothing here forks, and descriptors are all close-on-exec. SIGKILL at any time is a normal
//! event; whoever starts the process again finds its traces on the disk and in the agent's memory.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::buffers::protect_from_reclaim;
use super::control::Control;
use super::lines::{LineError, Lines};
use super::orders::{Reports, orders};
use super::ring::waker;
use super::root::enter_private_root;
use super::run::{Reactor, Setup};
use crate::agent::protocol::{ErrorKind, ErrorReply, Reply, ServeConfig, ServeRequest};
use crate::engine::{Config, NodeId, Protocol, Timeouts, VolumeId, VoteMode};
use crate::store::Layout;
use crate::target::MAX_DATA;

/// How long a connection may take to bring the configuration.
const CONFIGURE_LIMIT: Duration = Duration::from_secs(10);

/// Buffers for blocks of a sync and for what the peer reads: what is on its way fills a fast link.
const RESYNC_BUFFERS: u32 = 16;

/// Their size: the largest read of a front end, which a peer without a disk passes on as a whole.
const RESYNC_CHUNK: u32 = MAX_DATA;

/// Bytes of writes on their way to the peer without an acknowledgement, unless `sndbuf-size` says
/// otherwise, and the most that it may say (DRBD's limit).
const MAX_UNACKED: u64 = 24 << 20;
const MAX_SEND_BUFFER: u64 = 128 << 20;

/// Volumes of one resource; bounds the request numbers and the handshake.
const MAX_VOLUMES: usize = 64;

/// Why a data plane did not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("standard input is not the agent's socket: {0}")]
    Listener(io::Error),
    #[error("the agent sent no usable configuration: {0}")]
    Line(#[from] LineError),
    #[error("address {0} is not IP:PORT")]
    Address(String),
    #[error("protocol {0} is not A, B or C")]
    Protocol(char),
    #[error("a resource has 1 to {MAX_VOLUMES} volumes, not {0}")]
    Volumes(usize),
    #[error("node ids {0} and {1} must differ and be below 16")]
    Nodes(u8, u8),
    #[error("io_uring cannot be used: {0}; check kernel.io_uring_disabled and the memory limits")]
    Ring(io::Error),
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<ServeError> for ErrorReply {
    fn from(error: ServeError) -> ErrorReply {
        let (kind, help) = match &error {
            ServeError::Listener(_) => (ErrorKind::Usage, "the agent starts it: `lockstep up`"),
            ServeError::Address(_)
            | ServeError::Protocol(_)
            | ServeError::Volumes(_)
            | ServeError::Nodes(..) => (ErrorKind::Config, "`lockstep check` shows the place"),
            _ => (ErrorKind::Failed, "the log of the agent says more"),
        };
        ErrorReply::new(kind, error, help)
    }
}

/// Where the replication connection goes from and to.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub own: SocketAddr,
    pub peer: SocketAddr,
}

/// A configuration that has been checked.
struct Ready {
    config: ServeConfig,
    engine: Config,
    addresses: Addresses,
}

/// Runs the data plane of `resource`; returns only when it could not start or must end. The
/// listening socket is standard input, the memory for ranges in flight standard output.
pub fn serve(resource: &str) -> Result<(), ServeError> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let accepts = rustix::net::sockopt::socket_acceptconn(&listener);
    if !accepts.map_err(|errno| ServeError::Listener(errno.into()))? {
        return Err(ServeError::Listener(io::ErrorKind::InvalidInput.into()));
    }
    let table = inherited_table();
    protect_from_reclaim();
    let boot_id = boot_id()?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let (ready, first) = configured(resource, listener.try_clone()?, boot_id)?;
    enter_private_root();
    run(ready, listener, first, table)
}

/// Standard output, if it is the agent's memory and not a terminal or a log.
fn inherited_table() -> Option<OwnedFd> {
    let table = io::stdout().as_fd().try_clone_to_owned().ok()?;
    // Only a memfd has seals.
    if rustix::fs::fcntl_get_seals(&table).is_err() {
        tracing::info!("no memory for ranges in flight: a crash is repaired from the log");
        return None;
    }
    Some(table)
}

/// A number for the boot of this machine.
fn boot_id() -> io::Result<u64> {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    let hash = blake3::hash(&text);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// Waits for a configuration of the agent that can be used.
fn configured(
    resource: &str,
    listener: UnixListener,
    boot_id: u64,
) -> Result<(Ready, UnixStream), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        loop {
            let mut lines = Lines::new(listener.accept().await?.0);
            let Ok(came) = tokio::time::timeout(CONFIGURE_LIMIT, lines.next()).await else {
                continue;
            };
            let error = match came {
                Ok(Some((ServeRequest::Configure(config), _))) if config.resource == resource => {
                    match prepare(*config, boot_id) {
                        Ok(ready) => return Ok((ready, lines.into_socket()?)),
                        Err(error) => ErrorReply::from(error),
                    }
                }
                Ok(Some(_)) => ErrorReply::new(
                    ErrorKind::Refused,
                    format!("the data plane of {resource} is not configured yet"),
                    "the agent configures it first",
                ),
                Ok(None) => continue,
                Err(error) => ErrorReply::from(ServeError::Line(error)),
            };
            // The agent may have left.
            let _ = lines.send(&Reply::Error(error)).await;
        }
    })
}

fn prepare(config: ServeConfig, boot_id: u64) -> Result<Ready, ServeError> {
    let engine = engine_config(&config, boot_id)?;
    let address = |text: &str| {
        text.parse()
            .map_err(|_| ServeError::Address(text.to_owned()))
    };
    let addresses = Addresses {
        own: address(&config.address)?,
        peer: address(&config.peer_address)?,
    };
    Ok(Ready {
        engine,
        addresses,
        config,
    })
}

/// The engine's liveness limits.
pub fn timeouts(config: &ServeConfig) -> Timeouts {
    Timeouts {
        ping_interval: Duration::from_millis(config.ping_interval),
        ping_timeout: Duration::from_millis(config.ping_timeout),
        timeout: Duration::from_millis(config.timeout),
        ko_count: config.ko_count,
        ..Timeouts::default()
    }
}

/// The engine's configuration.
fn engine_config(config: &ServeConfig, boot_id: u64) -> Result<Config, ServeError> {
    let count = config.volumes.len();
    if !(1..=MAX_VOLUMES).contains(&count) {
        return Err(ServeError::Volumes(count));
    }
    if config.node == config.peer || config.node >= 16 || config.peer >= 16 {
        return Err(ServeError::Nodes(config.node, config.peer));
    }
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(Config {
        node: NodeId(config.node),
        peer: NodeId(config.peer),
        volumes: config
            .volumes
            .iter()
            .map(|entry| VolumeId(entry.volume))
            .collect(),
        limits: config
            .volumes
            .iter()
            .map(|entry| (VolumeId(entry.volume), entry.resync.into()))
            .collect(),
        csums: config.csums,
        guarded: config.guarded,
        protocol: match config.protocol {
            'A' => Protocol::A,
            'B' => Protocol::B,
            'C' => Protocol::C,
            other => return Err(ServeError::Protocol(other)),
        },
        timeouts: timeouts(config),
        vote: match config.votes {
            true => VoteMode::Voter,
            false => VoteMode::Operator,
        },
        // The log on disk has room for this many.
        al_extents: config.al_extents.min(Layout::max_al_extents()),
        resync_buffers: RESYNC_BUFFERS,
        resync_chunk: RESYNC_CHUNK,
        max_unacked_bytes: match u64::from(config.send_buffer) {
            0 => MAX_UNACKED,
            bytes => bytes.clamp(u64::from(MAX_DATA), MAX_SEND_BUFFER),
        },
        boot_id,
        seed: u128::from_le_bytes(seed),
        #[cfg(feature = "sabotage")]
        sabotage: None,
    })
}

/// Starts the ring thread and becomes the control thread.
fn run(
    ready: Ready,
    listener: UnixListener,
    first: UnixStream,
    table: Option<OwnedFd>,
) -> Result<(), ServeError> {
    let waker = waker()?;
    let (orders, inbox) = orders(waker.clone());
    let reports = Reports::new();
    let control = Control {
        config: ready.config.clone(),
        addresses: ready.addresses,
        orders: orders.clone(),
        early: reports.notices.subscribe(),
        notices: reports.notices.clone(),
        wish: reports.wish.subscribe(),
        listener,
        first,
    };
    let setup = Setup {
        config: ready.config,
        engine: ready.engine,
        table,
        waker,
        orders,
        inbox,
        reports,
    };
    let (begun, result) = mpsc::channel();
    thread::Builder::new()
        .name("ring".into())
        .spawn(move || ring_thread(setup, &begun))?;
    // An error means that the thread ended without a word: it has panicked.
    let started = result.recv().unwrap_or(Err(io::ErrorKind::Other.into()));
    started.map_err(ServeError::Ring)?;
    Ok(tokio_uring::start(control.run())?)
}

/// The ring thread: never returns while the process lives.
fn ring_thread(setup: Setup, begun: &mpsc::Sender<io::Result<()>>) {
    match Reactor::new(setup) {
        Ok(reactor) => {
            // The control thread waits for it.
            let _ = begun.send(Ok(()));
            let error = reactor.run();
            tracing::error!(%error, "the ring has failed");
            // As after a kill: the agent starts another process.
            std::process::exit(1);
        }
        Err(error) => {
            let _ = begun.send(Err(error));
        }
    }
}
