//! Options of the TCP socket that carries frames.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io;
use rustix::net::sockopt;

/// What the socket is tuned for: the replication protocols of DRBD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuning {
    /// Protocol A: writes complete before they have left; a long queue is welcome.
    A,
    /// Protocols B and C: somebody waits for every frame.
    Synchronous,
}

/// Settings of a data socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketProfile {
    pub tuning: Tuning,
    /// How long sent bytes may stay unacknowledged, and an idle connection unanswered, before the
    /// kernel gives the connection up. Whole milliseconds count.
    pub timeout: Duration,
    /// Bytes; 0 leaves it to the kernel's tuning, which is best on all but long fat links.
    pub send_buffer: u32,
    /// Bytes; 0 as above.
    pub receive_buffer: u32,
}

/// Unanswered probes after which an idle connection is given up.
const KEEPALIVE_PROBES: u32 = 3;
/// Unsent bytes in the kernel up to which a synchronous socket asks for more. What waits in the
/// kernel cannot be overtaken: an acknowledgement stays behind at most this much data.
const SYNCHRONOUS_LOW_WATER: u32 = 64 << 10;

impl SocketProfile {
    /// Applies the settings to a connected socket.
    ///
    /// The low-water mark of unsent bytes is set by the link when it starts, through its ring.
    pub fn apply(&self, socket: impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd();
        sockopt::set_tcp_nodelay(socket, true)?;
        if self.tuning == Tuning::Synchronous {
            sockopt::set_tcp_quickack(socket, true)?;
        }
        let millis = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, millis)?;
        sockopt::set_socket_keepalive(socket, true)?;
        // The kernel counts these in whole seconds; parts are rounded up.
        let step = (self.timeout / KEEPALIVE_PROBES).max(Duration::from_secs(1));
        sockopt::set_tcp_keepidle(socket, step)?;
        sockopt::set_tcp_keepintvl(socket, step)?;
        sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
        if self.send_buffer > 0 {
            sockopt::set_socket_send_buffer_size(socket, self.send_buffer as usize)?;
        }
        if self.receive_buffer > 0 {
            sockopt::set_socket_recv_buffer_size(socket, self.receive_buffer as usize)?;
        }
        Ok(())
    }

    /// TCP_NOTSENT_LOWAT in bytes; `None` keeps the kernel's.
    pub fn low_water(&self) -> Option<u32> {
        match self.tuning {
            Tuning::A => None,
            Tuning::Synchronous => Some(SYNCHRONOUS_LOW_WATER),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_settings_arrive_at_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let socket = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let profile = SocketProfile {
            tuning: Tuning::Synchronous,
            timeout: Duration::from_millis(4500),
            send_buffer: 1 << 16,
            receive_buffer: 0,
        };
        profile.apply(&socket).expect("applies");
        assert!(sockopt::tcp_nodelay(&socket).expect("option"));
        assert!(sockopt::socket_keepalive(&socket).expect("option"));
        assert_eq!(sockopt::tcp_user_timeout(&socket), Ok(4500));
        assert_eq!(sockopt::tcp_keepcnt(&socket), Ok(KEEPALIVE_PROBES));
        let idle = sockopt::tcp_keepidle(&socket).expect("option");
        assert_eq!(idle, Duration::from_secs(2));
        // The kernel doubles what it is given, for its own book-keeping.
        assert_eq!(sockopt::socket_send_buffer_size(&socket), Ok(1 << 17));
    }
}
