//! The sockets of the heartbeat: one per path, and one toward the witness.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use lockstep_transport::sealed::{Key, Opened, Reject, Sealer};

use super::{PathConfig, PulseConfig, PulseError};
use crate::engine::Time;
use crate::failover::enrol;
use crate::failover::letter::kind;
use crate::failover::witness::random;

/// How often a socket that could not be bound is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(1);
/// Between two introductions to a witness.
const ENROL_AGAIN: Duration = Duration::from_secs(1);

pub fn session() -> Result<u64, PulseError> {
    random().map(u64::from_le_bytes).ok_or(PulseError::Random)
}

/// A path, or the way to the witness.
pub struct Wire {
    own: SocketAddr,
    to: SocketAddr,
    pub socket: Option<UdpSocket>,
    pub sealer: Sealer,
    bind_at: Time,
    pub failure: Option<String>,
}

impl Wire {
    pub fn path(
        config: &PulseConfig,
        number: usize,
        path: &PathConfig,
    ) -> Result<Wire, PulseError> {
        let key = Key::of_nodes(&config.key);
        let number = u8::try_from(number).unwrap_or(u8::MAX);
        Ok(Wire {
            own: path.own,
            to: path.peer,
            socket: None,
            sealer: Sealer::new(key, config.me.0, number, session()?),
            bind_at: Time(0),
            failure: None,
        })
    }

    pub fn witness(config: &PulseConfig, to: SocketAddr) -> Result<Wire, PulseError> {
        let any: std::net::IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(Wire {
            own: (any, 0).into(),
            to,
            socket: None,
            sealer: Sealer::new(Key::of_witness(&config.key), config.me.0, 0, session()?),
            bind_at: Time(0),
            failure: None,
        })
    }

    /// Makes the socket if there is none; when to try again.
    pub fn bind(&mut self, now: Time) -> Option<Time> {
        if self.socket.is_some() {
            return None;
        }
        if now < self.bind_at {
            return Some(self.bind_at);
        }
        let bound = UdpSocket::bind(self.own).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match bound {
            Ok(socket) => {
                self.failure = None;
                self.socket = Some(socket);
                None
            }
            Err(error) => {
                let text = format!("cannot listen at {}: {error}", self.own);
                if self.failure.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                }
                self.failure = Some(text);
                self.bind_at = now.after(BIND_AGAIN);
                Some(self.bind_at)
            }
        }
    }

    /// Sends a datagram; the sequence it has, if it left.
    pub fn send(&mut self, kind: u8, body: &[u8], size: usize) -> Option<u64> {
        let bytes = self.sealer.seal(kind, body, size)?;
        self.send_plain(&bytes).then(|| self.sealer.sequence())
    }

    fn send_plain(&self, bytes: &[u8]) -> bool {
        // What does not leave is as good as lost on its way.
        let sent = self.socket.as_ref().map(|s| s.send_to(bytes, self.to));
        matches!(sent, Some(Ok(_)))
    }

    /// The next datagram that has come, and from where it must come.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        loop {
            match self.socket.as_ref()?.recv_from(buffer) {
                Ok((length, from)) if from.ip() == self.to.ip() => return buffer.get(..length),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                // A port that was closed on the other side: said once per datagram sent.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    pub fn open<'a>(&mut self, bytes: &'a [u8]) -> Result<Opened<'a>, Reject> {
        self.sealer.open(bytes)
    }
}

/// The introduction to a witness that does not know the cluster.
pub struct Introduction {
    key: Key,
    next: Time,
    said: bool,
}

impl Introduction {
    pub fn new(config: &PulseConfig) -> Introduction {
        Introduction {
            key: Key::of_witness(&config.key),
            next: Time(0),
            said: false,
        }
    }

    /// Takes what may be a witness's "unknown"; true if it was.
    pub fn answer(&mut self, wire: &Wire, bytes: &[u8], now: Time) -> bool {
        if bytes.get(5) != Some(&kind::UNKNOWN) {
            return false;
        }
        let Some((cluster, public)) = enrol::read_unknown(bytes) else {
            return false;
        };
        if cluster != self.key.cluster() || now < self.next {
            return true;
        }
        self.next = now.after(ENROL_AGAIN);
        let Some(public) = public else {
            if !std::mem::replace(&mut self.said, true) {
                tracing::warn!(
                    "the witness serves given clusters only: start it with this cluster's key file"
                );
            }
            return true;
        };
        tracing::info!("the witness does not know this cluster: introduced");
        if let Some(letter) = random().and_then(|r| enrol::enrol(&self.key, &public, r)) {
            wire.send_plain(&letter);
        }
        true
    }
}
