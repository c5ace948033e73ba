//! Connections to the peer, until they carry frames: the node with the lower id dials, the other
//! one listens. When the handshake has succeeded, the descriptor goes to the ring thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use lockstep_transport::hello::{
    Agreed, Direction, Handshake, HelloConfig, HelloError, Progress, Refusal, Secret,
};
use lockstep_transport::socket::{SocketProfile, Tuning};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_uring::buf::BoundedBuf;

use super::lines::{First, connect, first};
use super::orders::{LinkWish, Order, Orders};
use super::wire::FEATURES;
use crate::agent::protocol::ServeConfig;
use crate::engine::NodeId;

/// How long a connection may take to be made and agreed on.
const HANDSHAKE: Duration = Duration::from_secs(4);

/// The pause after the first failed try; it doubles up to `connect-int`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A link that lived this long was a success: the next try is quick again.
const STABLE: Duration = Duration::from_secs(5);

/// The pause before listening is tried again.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// Handshakes at once; further connections are closed.
const MAX_GUESTS: usize = 8;

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("cannot connect to {address}: {error}")]
    Dial {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot listen at {address}: {error}")]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("the connection broke during the handshake: {0}")]
    Socket(#[from] io::Error),
    #[error("the peer closed the connection during the handshake")]
    Closed,
    #[error("the handshake did not end within {} s", HANDSHAKE.as_secs())]
    Timeout,
    #[error("{0}")]
    Hello(#[from] HelloError),
}

/// What the last try met, for `status`.
pub type Failure = Rc<RefCell<Option<String>>>;

/// Makes connections as long as the engine wants one.
#[derive(Clone)]
pub struct Connector {
    own: SocketAddr,
    peer: SocketAddr,
    hello: HelloParts,
    options: SharedOptions,
    orders: Orders,
    wish: watch::Receiver<LinkWish>,
    failure: Failure,
}

/// What every handshake of the resource has in common.
#[derive(Clone)]
struct HelloParts {
    resource: String,
    node: u8,
    peer: u8,
}

/// What may change while the resource runs; the next connection is made with it.
pub struct LinkOptions {
    secret: Option<Secret>,
    profile: SocketProfile,
    /// Upper bound of the pause between two tries.
    interval: Duration,
}

/// Changed by whoever takes the agent's orders.
pub type SharedOptions = Rc<RefCell<LinkOptions>>;

impl LinkOptions {
    pub fn new(config: &ServeConfig) -> LinkOptions {
        LinkOptions {
            secret: Secret::new(config.shared_secret.as_bytes()),
            profile: SocketProfile {
                tuning: match config.protocol {
                    'A' => Tuning::A,
                    _ => Tuning::Synchronous,
                },
                timeout: Duration::from_millis(config.timeout),
                send_buffer: config.send_buffer,
                receive_buffer: 0,
            },
            interval: Duration::from_millis(config.connect_interval).max(FIRST_PAUSE),
        }
    }
}

impl Connector {
    /// For a configuration whose addresses have been checked.
    pub fn new(
        config: &ServeConfig,
        options: SharedOptions,
        (own, peer): (SocketAddr, SocketAddr),
        orders: Orders,
        wish: watch::Receiver<LinkWish>,
        failure: Failure,
    ) -> Connector {
        Connector {
            own,
            peer,
            hello: HelloParts {
                resource: config.resource.clone(),
                node: config.node,
                peer: config.peer,
            },
            options,
            orders,
            wish,
            failure,
        }
    }

    /// Dials or listens for ever.
    pub async fn run(self) {
        if self.hello.node < self.hello.peer {
            self.dial_for_ever().await;
        } else {
            self.listen_for_ever().await;
        }
    }

    /// True when a link is wanted, and, with `missing`, there is none; false when the ring thread
    /// is gone.
    async fn wanted(&mut self, missing: bool) -> bool {
        let wanted = |wish: &LinkWish| wish.want && !(missing && wish.up);
        self.wish.wait_for(wanted).await.is_ok()
    }

    async fn dial_for_ever(mut self) {
        let mut pause = Duration::ZERO;
        let mut last_up: Option<Instant> = None;
        while self.wanted(true).await {
            if last_up.is_some_and(|up| up.elapsed() > STABLE) {
                pause = Duration::ZERO;
            }
            sleep(pause).await;
            let longest = self.options.borrow().interval;
            pause = (pause * 2).clamp(FIRST_PAUSE, longest);
            let wish = *self.wish.borrow();
            if !wish.want || wish.up {
                continue;
            }
            match self.dial().await {
                Ok(()) => last_up = Some(Instant::now()),
                Err(error) => self.failed(&error),
            }
        }
    }

    async fn dial(&self) -> Result<(), ConnectError> {
        let address = self.peer;
        let failed = |error| ConnectError::Dial { address, error };
        let socket = match timeout(HANDSHAKE, connect(self.own, address)).await {
            Ok(socket) => socket.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        self.greet(socket, Direction::Dialer).await
    }

    async fn listen_for_ever(mut self) {
        while self.wanted(false).await {
            match TcpListener::bind(self.own).await {
                Ok(listener) => self.accept_while_wanted(&listener).await,
                Err(error) => {
                    let address = self.own;
                    self.failed(&ConnectError::Listen { address, error });
                    sleep(LISTEN_PAUSE).await;
                }
            }
        }
    }

    async fn accept_while_wanted(&mut self, listener: &TcpListener) {
        let guests = Rc::new(Cell::new(0));
        let mut wish = self.wish.clone();
        loop {
            let unwanted = wish.wait_for(|wish| !wish.want);
            let accepted = match first(listener.accept(), unwanted).await {
                First::Other(_) => return,
                First::One(accepted) => accepted,
            };
            match accepted.and_then(|(stream, from)| Ok((stream.into_std()?, from))) {
                Ok((stream, from)) => self.welcome(stream, from, &guests),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the peer");
                    sleep(LISTEN_PAUSE).await;
                }
            }
        }
    }

    /// Runs the handshake with a guest beside others.
    fn welcome(&self, stream: TcpStream, from: SocketAddr, guests: &Rc<Cell<usize>>) {
        if from.ip() != self.peer.ip() {
            tracing::warn!(%from, "connection from an address that is not the peer's");
            return;
        }
        if guests.get() >= MAX_GUESTS {
            return;
        }
        guests.set(guests.get() + 1);
        let guests = Rc::clone(guests);
        let myself = self.clone();
        tokio_uring::spawn(async move {
            if let Err(error) = myself.greet(stream, Direction::Listener).await {
                myself.failed(&error);
            }
            guests.set(guests.get() - 1);
        });
    }

    fn failed(&self, error: &ConnectError) {
        let text = error.to_string();
        let mut failure = self.failure.borrow_mut();
        if failure.as_ref() != Some(&text) {
            tracing::warn!(resource = self.hello.resource, "{text}");
            *failure = Some(text);
        }
    }

    /// Runs the handshake, within its limit, and hands the connection over.
    async fn greet(&self, socket: TcpStream, direction: Direction) -> Result<(), ConnectError> {
        let profile = self.options.borrow().profile;
        profile.apply(&socket).map_err(io::Error::from)?;
        // Reads of the ring shall wait, not ask to try again.
        socket.set_nonblocking(false)?;
        let Ok(done) = timeout(HANDSHAKE, self.shake(&socket, direction)).await else {
            // Ends the read that is still in the ring. It fails only on a broken connection.
            let _ = socket.shutdown(Shutdown::Both);
            return Err(ConnectError::Timeout);
        };
        let features = done?.features;
        let (taken, answer) = oneshot::channel();
        self.orders.send(Order::Link {
            socket: socket.into(),
            peer: NodeId(self.hello.peer),
            low_water: profile.low_water(),
            features,
            taken,
        });
        // An error means that the ring thread is ending.
        let _ = answer.await;
        *self.failure.borrow_mut() = None;
        Ok(())
    }

    async fn shake(
        &self,
        socket: &TcpStream,
        direction: Direction,
    ) -> Result<Agreed, ConnectError> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
        let mut handshake = Handshake::new(HelloConfig {
            direction,
            resource: self.hello.resource.clone(),
            node: self.hello.node,
            peer: self.hello.peer,
            secret: self.options.borrow().secret.clone(),
            features: FEATURES,
            nonce,
        })?;
        // A duplicate: tokio-uring gives no descriptor back.
        let stream = tokio_uring::net::TcpStream::from_std(socket.try_clone()?);
        loop {
            if !self.wish.borrow().want {
                handshake.refuse(Refusal::Busy);
            }
            send(&stream, handshake.output()).await?;
            let wants = handshake.wants();
            let (count, bytes) = stream.read(vec![0; wants].slice(..wants)).await;
            let bytes = bytes.into_inner();
            let came = bytes.get(..count?).unwrap_or(&[]);
            if came.is_empty() && wants > 0 {
                return Err(ConnectError::Closed);
            }
            let progress = handshake.input(came);
            let last_words = handshake.output();
            match progress {
                Ok(Progress::More) => send(&stream, last_words).await?,
                Ok(Progress::Done(agreed)) => {
                    send(&stream, last_words).await?;
                    return Ok(agreed);
                }
                Err(error) => {
                    // The peer may have left; our reason is the one to report.
                    let _ = send(&stream, last_words).await;
                    return Err(error.into());
                }
            }
        }
    }
}

async fn send(stream: &tokio_uring::net::TcpStream, bytes: Vec<u8>) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    stream.write_all(bytes).await.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::orders::orders;
    use crate::reactor::ring::waker;
    use crate::reactor::status::tests::config;
    use std::sync::mpsc::Receiver;

    struct Node {
        inbox: Receiver<Order>,
        failure: Failure,
        /// Held, because a connector ends with it.
        _wish: watch::Sender<LinkWish>,
    }

    impl Node {
        /// Starts the connector of a node whose id is `node`.
        fn start(node: u8, secret: &str, (own, peer): (SocketAddr, SocketAddr)) -> Node {
            let mut config = config();
            config.node = node;
            config.peer = 1 - node;
            config.shared_secret = secret.to_owned().into();
            let (orders, inbox) = orders(waker().unwrap());
            let failure: Failure = Rc::default();
            let (wish, watched) = watch::channel(LinkWish {
                want: true,
                up: false,
            });
            let shown = Rc::clone(&failure);
            let options = Rc::new(RefCell::new(LinkOptions::new(&config)));
            let connector = Connector::new(&config, options, (own, peer), orders, watched, shown);
            tokio_uring::spawn(connector.run());
            Node {
                inbox,
                failure,
                _wish: wish,
            }
        }

        /// True when a connection has been handed over.
        fn met(&self) -> bool {
            matches!(self.inbox.try_recv(), Ok(Order::Link { .. }))
        }
    }

    fn pair(secrets: [&str; 2]) -> [Node; 2] {
        let free = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
        let far = free.local_addr().unwrap();
        drop(free);
        let near: SocketAddr = "127.0.0.3:1".parse().unwrap();
        [
            Node::start(0, secrets[0], (near, far)),
            Node::start(1, secrets[1], (far, near)),
        ]
    }

    /// Polls for up to ten seconds.
    async fn eventually(mut condition: impl FnMut() -> bool) -> bool {
        for _ in 0..1000 {
            if condition() {
                return true;
            }
            sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[test]
    fn nodes_with_the_same_secret_meet() {
        tokio_uring::start(async {
            let [near, far] = pair(["abc", "abc"]);
            assert!(eventually(|| near.met()).await);
            assert!(eventually(|| far.met()).await);
        });
    }

    #[test]
    fn a_wrong_secret_is_reported_and_nothing_is_handed_over() {
        tokio_uring::start(async {
            let [near, far] = pair(["abc", "xyz"]);
            let said = |node: &Node| {
                let failure = node.failure.borrow();
                failure.as_ref().is_some_and(|text| text.contains("secret"))
            };
            assert!(eventually(|| said(&near) && said(&far)).await);
            assert!(!near.met() && !far.met());
        });
    }
}
