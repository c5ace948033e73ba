//! The control thread: talks JSON with the agent and hands what it asks for to the ring thread.
//!
//! Each connection of the agent is served by a task of its own, one request after the other. When
//! the agent dies its connections end and the listener stays: a later agent goes on.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, oneshot, watch};

use super::attach::{self, AttachError};
use super::connect::{Connector, Failure, LinkOptions, SharedOptions};
use super::digest;
use super::holds::Holds;
use super::lines::{First, LineError, Lines, Request, first};
use super::orders::{Answer, LinkWish, Order, Orders};
use super::serve::{Addresses, timeouts};
use super::status::{Snapshot, copies, render};
use crate::agent::protocol::{
    ErrorKind, ErrorReply, Reply, ServeConfig, ServeNotice, ServeRequest, VerifyOptions,
};
use crate::engine::{Command, Digest, Ground, NodeId, PauseCause, Role, VerifyScope, VolumeId};

/// Connections of agents at once; commands and streams of one agent are a handful.
const MAX_CONNECTIONS: usize = 64;

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Where numbered notices come from.
type Notices = broadcast::Sender<(u64, ServeNotice)>;

/// What the control thread starts with.
pub struct Control {
    pub config: ServeConfig,
    pub addresses: Addresses,
    pub orders: Orders,
    pub notices: Notices,
    /// Everything since the process began, for the first agent that listens.
    pub early: broadcast::Receiver<(u64, ServeNotice)>,
    pub wish: watch::Receiver<LinkWish>,
    /// The agent's listening socket.
    pub listener: std::os::unix::net::UnixListener,
    /// The connection on which the configuration came; it waits for its reply.
    pub first: std::os::unix::net::UnixStream,
}

/// What the tasks share.
struct Shared {
    config: RefCell<Rc<ServeConfig>>,
    options: SharedOptions,
    orders: Orders,
    notices: Notices,
    early: RefCell<Option<broadcast::Receiver<(u64, ServeNotice)>>>,
    failure: Failure,
    holds: Holds,
}

impl Control {
    /// Serves the agent and keeps the connection to the peer; ends with the process.
    pub async fn run(self) -> std::io::Result<()> {
        // Held so that these signals do nothing: the agent orders the end.
        let _ignored = ignore_signals()?;
        let failure: Failure = Rc::new(RefCell::new(None));
        let Addresses { own, peer } = self.addresses;
        let options = Rc::new(RefCell::new(LinkOptions::new(&self.config)));
        let connector = Connector::new(
            &self.config,
            Rc::clone(&options),
            (own, peer),
            self.orders.clone(),
            self.wish,
            Rc::clone(&failure),
        );
        tokio_uring::spawn(connector.run());
        let shared = Rc::new(Shared {
            config: RefCell::new(Rc::new(self.config)),
            options,
            orders: self.orders,
            notices: self.notices,
            early: RefCell::new(Some(self.early)),
            failure,
            holds: Holds::default(),
        });
        let lines = Lines::new(UnixStream::from_std(self.first)?);
        if let Err(error) = lines.send(&Reply::Done(Value::Null)).await {
            tracing::warn!(%error, "the agent left before it heard that it is configured");
        }
        let open = Rc::new(());
        tokio_uring::spawn(serve(Rc::clone(&shared), lines, Rc::clone(&open)));
        let listener = UnixListener::from_std(self.listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) if Rc::strong_count(&open) <= MAX_CONNECTIONS => {
                    let lines = Lines::new(stream);
                    tokio_uring::spawn(serve(Rc::clone(&shared), lines, Rc::clone(&open)));
                }
                Ok(_) => tracing::warn!("too many connections of the agent"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the agent");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Takes over the signals that would end the process.
fn ignore_signals() -> std::io::Result<Vec<tokio::signal::unix::Signal>> {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    kinds.into_iter().map(signal).collect()
}

/// Serves one connection. `_open` counts it.
async fn serve(shared: Rc<Shared>, mut lines: Lines, _open: Rc<()>) {
    loop {
        let request = match lines.next().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                // The agent may have left.
                let _ = lines.send(&Reply::Error(bad_line(&error))).await;
                return;
            }
        };
        let more = match request {
            (ServeRequest::Events, _) => {
                shared.stream(&mut lines).await;
                false
            }
            (ServeRequest::Shutdown, _) => shared.shut_down(&lines).await,
            request => {
                let reply = match shared.answer(request).await {
                    Ok(value) => Reply::Done(value),
                    Err(error) => Reply::Error(error),
                };
                lines.send(&reply).await.is_ok()
            }
        };
        if !more {
            return;
        }
    }
}

fn bad_line(error: &LineError) -> ErrorReply {
    ErrorReply::new(
        ErrorKind::Usage,
        error,
        "agent and data plane must be of the same version",
    )
}

/// Sends an item of a stream; false when the agent has left.
async fn pass_on(lines: &Lines, notice: &ServeNotice) -> bool {
    match serde_json::to_value(notice) {
        Ok(item) => lines.send(&Reply::Item(item)).await.is_ok(),
        Err(_) => false,
    }
}

fn another_configuration(name: &str) -> ErrorReply {
    ErrorReply::new(
        ErrorKind::Refused,
        format!("{name} runs with another configuration"),
        format!("`lockstep down {name}`, then `lockstep up {name}`"),
    )
}

/// The ring thread does not answer any more.
pub(super) fn gone() -> ErrorReply {
    ErrorReply::new(
        ErrorKind::Failed,
        "the data plane is ending",
        "the agent starts it again; repeat the command",
    )
}

impl Shared {
    async fn answer(&self, (request, descriptors): Request) -> Answer {
        match request {
            ServeRequest::Configure(config) => self.configure(&config),
            ServeRequest::Adjust(config) => self.adjust(*config).await,
            ServeRequest::Attach { volume } => self.attach(volume, descriptors).await,
            ServeRequest::Detach { volume } => {
                let volume = VolumeId(volume);
                self.command(Command::Detach { volume }).await
            }
            ServeRequest::Listen { volume } => self.listen(VolumeId(volume), descriptors).await,
            ServeRequest::Connect { discard_my_data } => {
                self.command(Command::Connect { discard_my_data }).await
            }
            ServeRequest::Disconnect => self.command(Command::Disconnect).await,
            ServeRequest::Primary {
                force,
                recovered,
                vote,
            } => {
                let ground = match vote {
                    Some(vote) => Ground::Voter(*vote),
                    None if recovered => Ground::Recovered,
                    None => Ground::Operator,
                };
                self.command(Command::Primary { force, ground }).await
            }
            ServeRequest::Secondary { force } => {
                self.ask(|reply| Order::Secondary { force, reply }).await
            }
            ServeRequest::Invalidate { volume } => {
                let volume = VolumeId(volume);
                self.command(Command::Invalidate { volume }).await
            }
            ServeRequest::PauseSync { volume, on } => {
                let (volume, cause) = (VolumeId(volume), PauseCause::User);
                self.command(Command::PauseSync { volume, cause, on }).await
            }
            ServeRequest::HoldSync { volume, millis } => {
                let lease = Duration::from_millis(millis);
                self.holds.hold(VolumeId(volume), lease, &self.orders).await
            }
            ServeRequest::Approve { volume } => {
                let volume = VolumeId(volume);
                self.command(Command::Approve { volume }).await
            }
            ServeRequest::Verify { volume, scope } => self.verify(VolumeId(volume), &scope).await,
            ServeRequest::Probe => self.command(Command::Probe).await,
            ServeRequest::Status => self.status().await,
            ServeRequest::Copies => self.copies().await,
            ServeRequest::Voter(said) => {
                self.orders.send(Order::Voter(said));
                Ok(Value::Null)
            }
            ServeRequest::FlightRecorder => self.flight_recorder().await,
            ServeRequest::QueueFreezes { volume } => {
                let volume = VolumeId(volume);
                self.ask(|reply| Order::QueueFreezes { volume, reply })
                    .await
            }
            ServeRequest::QueueConfirmed { volume } => {
                let volume = VolumeId(volume);
                self.ask(|reply| Order::QueueConfirmed { volume, reply })
                    .await
            }
            ServeRequest::Shutdown => self.command(Command::Shutdown).await,
            // Has a reply of its own kind.
            ServeRequest::Events => Ok(Value::Null),
        }
    }

    /// The same configuration again is fine; another one needs another process.
    fn configure(&self, config: &ServeConfig) -> Answer {
        let current = self.config();
        if *config == *current {
            return Ok(Value::Null);
        }
        Err(another_configuration(&current.resource))
    }

    /// Takes over the options that can change.
    async fn adjust(&self, config: ServeConfig) -> Answer {
        let current = self.config();
        if current.with_options_of(&config) != config {
            return Err(another_configuration(&current.resource));
        }
        *self.options.borrow_mut() = LinkOptions::new(&config);
        let config = Rc::new(config);
        *self.config.borrow_mut() = Rc::clone(&config);
        for entry in &config.volumes {
            let (volume, limits) = (VolumeId(entry.volume), entry.resync.into());
            self.command(Command::Limits { volume, limits }).await?;
        }
        self.command(Command::Guard(config.guarded)).await?;
        self.command(Command::Timeouts(timeouts(&config))).await
    }

    fn config(&self) -> Rc<ServeConfig> {
        Rc::clone(&self.config.borrow())
    }

    /// Begins an online verify. What is repaired comes from the node that is named, else from the
    /// primary.
    async fn verify(&self, volume: VolumeId, options: &VerifyOptions) -> Answer {
        let config = self.config();
        let digest = digest::of_name(&config.verify_alg).unwrap_or(Digest::Crc32c);
        let repair = options.repair || config.verify_repair || options.from.is_some();
        let repair_from = match &options.from {
            _ if !repair => None,
            Some(name) => Some(self.node_of(name)?),
            None => match self.primary().await {
                Ok(node) => Some(node),
                Err(error) if options.repair => return Err(error),
                // The configuration alone wants it: what differs is told all the same.
                Err(_) => None,
            },
        };
        let scope = VerifyScope {
            start: options.start,
            stop: options.stop,
            digest,
            repair_from,
        };
        self.command(Command::Verify { volume, scope }).await
    }

    fn node_of(&self, name: &str) -> Result<NodeId, ErrorReply> {
        let config = self.config();
        match name {
            _ if name == config.peer_name => Ok(NodeId(config.peer)),
            _ if name == config.node_name => Ok(NodeId(config.node)),
            _ => Err(ErrorReply::new(
                ErrorKind::Usage,
                format!("{} has no node {name}", config.resource),
                format!(
                    "its nodes are {} and {}",
                    config.node_name, config.peer_name
                ),
            )),
        }
    }

    /// The node whose data counts when nobody says otherwise.
    async fn primary(&self) -> Result<NodeId, ErrorReply> {
        let status = self.snapshot().await?.engine;
        let config = self.config();
        match (status.role, status.connection.peer_role) {
            (Role::Primary, _) => Ok(NodeId(config.node)),
            (_, Role::Primary) => Ok(NodeId(config.peer)),
            _ => Err(ErrorReply::new(
                ErrorKind::Refused,
                format!(
                    "no node of {} is primary, so neither copy counts more",
                    config.resource
                ),
                "name the node with the good data: `--from NODE`",
            )),
        }
    }

    async fn ask(&self, order: impl FnOnce(super::orders::Reply) -> Order) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply));
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn command(&self, command: Command) -> Answer {
        self.ask(|reply| Order::Command { command, reply }).await
    }

    async fn attach(&self, volume: u16, descriptors: Vec<OwnedFd>) -> Answer {
        let config = self.config();
        let mut volumes = config.volumes.iter();
        let Some(configured) = volumes.find(|entry| entry.volume == volume) else {
            let name = &config.resource;
            return Err(ErrorReply::new(
                ErrorKind::Usage,
                format!("{name} has no volume {volume}"),
                format!("`lockstep dump {name}` shows its volumes"),
            ));
        };
        let disk = attach::open(descriptors, configured.into()).await?;
        let (found, own) = (disk.recovered.image.superblock.node.0, config.node);
        if found != own {
            // Its bitmap and its record of the peer are about the other node.
            return Err(AttachError::OtherNode { found, own }.into());
        }
        let damage = &disk.recovered.damage;
        if *damage != crate::store::Damage::default() {
            tracing::warn!(
                volume,
                ?damage,
                "metadata was damaged; what it covers is dirty"
            );
        }
        let (volume, disk) = (VolumeId(volume), Box::new(disk));
        self.ask(|reply| Order::Attach {
            volume,
            disk,
            reply,
        })
        .await
    }

    async fn listen(&self, volume: VolumeId, mut descriptors: Vec<OwnedFd>) -> Answer {
        let listener = descriptors.pop().filter(|listener| {
            descriptors.is_empty() && rustix::net::sockopt::socket_acceptconn(listener) == Ok(true)
        });
        let Some(listener) = listener else {
            return Err(ErrorReply::new(
                ErrorKind::Usage,
                "exactly one listening socket is needed",
                "agent and data plane must be of the same version",
            ));
        };
        self.ask(|reply| Order::Listen {
            volume,
            listener,
            reply,
        })
        .await
    }

    async fn status(&self) -> Answer {
        Ok(self.picture().await?.0)
    }

    /// What the voters are told about this node's copies.
    async fn copies(&self) -> Answer {
        let copies = copies(&self.snapshot().await?.engine);
        serde_json::to_value(copies)
            .map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))
    }

    async fn flight_recorder(&self) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::FlightRecorder { reply });
        answer.await.map(Value::from).map_err(|_| gone())
    }

    async fn snapshot(&self) -> Result<Snapshot, ErrorReply> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Status { reply });
        answer.await.map_err(|_| gone())
    }

    /// The status, and the number of the last notice that led to it.
    async fn picture(&self) -> Result<(Value, u64), ErrorReply> {
        let snapshot = self.snapshot().await?;
        let failure = self.failure.borrow();
        let status = render(&self.config(), &snapshot, failure.as_deref());
        Ok((status, snapshot.notices))
    }

    /// Streams notices until the agent closes, and a picture after what one wake-up brought.
    async fn stream(&self, lines: &mut Lines) {
        let early = self.early.borrow_mut().take();
        let mut notices = early.unwrap_or_else(|| self.notices.subscribe());
        let mut said = 0;
        loop {
            let Ok((picture, last)) = self.picture().await else {
                return;
            };
            // What led to the picture comes before it: a listener sees every step.
            while said < last {
                match notices.try_recv() {
                    Ok((number, notice)) => {
                        said = number;
                        if !pass_on(lines, &notice).await {
                            return;
                        }
                    }
                    // It was slow: the picture tells the rest.
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            if !pass_on(lines, &ServeNotice::Picture(picture)).await {
                return;
            }
            match first(notices.recv(), lines.closed()).await {
                First::One(Ok((number, notice))) => {
                    said = number;
                    if !pass_on(lines, &notice).await {
                        return;
                    }
                }
                First::One(Err(RecvError::Lagged(_))) => {}
                First::One(Err(RecvError::Closed)) | First::Other(()) => return,
            }
        }
    }

    /// Ends the resource in order, and with it the process. Returns when that was refused: whether
    /// the connection goes on.
    async fn shut_down(&self, lines: &Lines) -> bool {
        match self.command(Command::Shutdown).await {
            Ok(value) => {
                // The agent may have left; the order stands.
                let _ = lines.send(&Reply::Done(value)).await;
                tracing::info!(resource = self.config().resource, "ends in order");
                std::process::exit(0);
            }
            Err(error) => lines.send(&Reply::Error(error)).await.is_ok(),
        }
    }
}
