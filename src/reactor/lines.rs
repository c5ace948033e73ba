//! The one module that does readiness instead of completion: newline-delimited JSON over a Unix
//! stream, with descriptors beside a line, and outgoing connections from a chosen address.
//!
//! tokio-uring can neither receive descriptors nor bind before it connects, and a wait for a
//! connection cannot be given up there; the runtime that it runs on can.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::task::Poll;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::{TcpSocket, UnixStream};

use crate::agent::protocol::{Reply, ServeRequest};

/// Longest request line; requests are small.
const MAX_LINE: usize = 64 << 10;

/// Descriptors that may travel beside a line: data and metadata device.
pub const MAX_FDS: usize = 2;

/// Why a line could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("more than {MAX_FDS} descriptors beside a line")]
    TooManyFds,
    #[error("the line is not a request: {0}")]
    Json(#[from] serde_json::Error),
}

/// A request and the descriptors that came with it.
pub type Request = (ServeRequest, Vec<OwnedFd>);

/// A connection of the agent.
pub struct Lines {
    socket: UnixStream,
    received: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Lines {
    /// Takes a connected stream.
    pub fn new(socket: UnixStream) -> Lines {
        Lines {
            socket,
            received: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Gives the stream back, for another runtime. Bytes of further requests are dropped: the
    /// agent sends the next one after the reply.
    pub fn into_socket(self) -> io::Result<std::os::unix::net::UnixStream> {
        self.socket.into_std()
    }

    /// The next request; `None` when the agent has closed.
    pub async fn next(&mut self) -> Result<Option<Request>, LineError> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(end + 1);
                let line = std::mem::replace(&mut self.received, rest);
                let descriptors = std::mem::take(&mut self.descriptors);
                return Ok(Some((serde_json::from_slice(&line)?, descriptors)));
            }
            if self.received.len() > MAX_LINE {
                return Err(LineError::TooLong);
            }
            if !self.receive().await? {
                return Ok(None);
            }
        }
    }

    /// Takes what has arrived; false at the end of the stream.
    async fn receive(&mut self) -> Result<bool, LineError> {
        loop {
            self.socket.readable().await?;
            let socket = &self.socket;
            let done = socket.try_io(Interest::READABLE, || Ok(receive_some(socket)?));
            let (bytes, descriptors) = match done {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                done => done?,
            };
            self.descriptors.extend(descriptors);
            if self.descriptors.len() > MAX_FDS {
                return Err(LineError::TooManyFds);
            }
            self.received.extend_from_slice(&bytes);
            return Ok(!bytes.is_empty());
        }
    }

    /// Sends a reply.
    pub async fn send(&self, reply: &Reply) -> Result<(), LineError> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            self.socket.writable().await?;
            match self.socket.try_write(rest) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => rest = rest.get(sent?..).unwrap_or(&[]),
            }
        }
        Ok(())
    }

    /// Returns when the agent has closed the connection or says anything more.
    pub async fn closed(&mut self) {
        // An error means closed as well.
        let _ = self.receive().await;
    }
}

fn receive_some(socket: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut bytes = vec![0; 16 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(socket, &mut slices, &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    bytes.truncate(got.bytes);
    Ok((bytes, descriptors))
}

/// Connects to `to` from the address (not the port) of `from`.
pub async fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<std::net::TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(from.ip(), 0))?;
    socket.connect(to).await?.into_std()
}

/// Which of two futures ended first.
pub enum First<A, B> {
    One(A),
    Other(B),
}

/// Waits for whichever ends first; the other one is dropped.
pub async fn first<A, B>(
    one: impl Future<Output = A>,
    other: impl Future<Output = B>,
) -> First<A, B> {
    let mut one = std::pin::pin!(one);
    let mut other = std::pin::pin!(other);
    std::future::poll_fn(|context| {
        if let Poll::Ready(value) = one.as_mut().poll(context) {
            return Poll::Ready(First::One(value));
        }
        other.as_mut().poll(context).map(First::Other)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::io::{IoSlice, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream as Plain;

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(work)
    }

    fn pair() -> (Plain, Lines) {
        let (near, far) = Plain::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        (near, Lines::new(UnixStream::from_std(far).unwrap()))
    }

    fn send_with(socket: &Plain, line: &[u8], count: usize) {
        let files: Vec<_> = (0..count)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        let slices = [IoSlice::new(line)];
        rustix::net::sendmsg(socket, &slices, &mut control, SendFlags::empty()).unwrap();
    }

    #[test]
    fn requests_arrive_with_their_descriptors() {
        run(async {
            let (mut near, mut lines) = pair();
            send_with(&near, b"{\"do\":\"attach\",\"volume\":3}\n", 2);
            let (request, fds) = lines.next().await.unwrap().unwrap();
            assert!(matches!(request, ServeRequest::Attach { volume: 3 }));
            assert_eq!(fds.len(), 2);
            near.write_all(b"{\"do\":\"sta").unwrap();
            near.write_all(b"tus\"}\n{\"do\":\"disconnect\"}\n")
                .unwrap();
            let (request, fds) = lines.next().await.unwrap().unwrap();
            assert!(matches!(request, ServeRequest::Status));
            assert!(fds.is_empty());
            let (request, _) = lines.next().await.unwrap().unwrap();
            assert!(matches!(request, ServeRequest::Disconnect));
            lines
                .send(&Reply::Done(serde_json::Value::Null))
                .await
                .unwrap();
            let mut answer = [0; 64];
            let count = near.read(&mut answer).unwrap();
            assert_eq!(&answer[..count], b"{\"done\":null}\n");
            drop(near);
            assert!(lines.next().await.unwrap().is_none());
        });
    }

    #[test]
    fn bad_lines_are_typed_errors() {
        run(async {
            let (mut near, mut lines) = pair();
            near.write_all(b"nonsense\n").unwrap();
            assert!(matches!(lines.next().await, Err(LineError::Json(_))));
            let (near, mut lines) = pair();
            let writer = std::thread::spawn(move || {
                let mut near = near;
                // Fails when the reader gives up.
                let _ = near.write_all(&vec![b'x'; 1 << 20]);
            });
            assert!(matches!(lines.next().await, Err(LineError::TooLong)));
            drop(lines);
            writer.join().unwrap();
            let (near, mut lines) = pair();
            send_with(&near, b"{", 3);
            assert!(matches!(lines.next().await, Err(LineError::TooManyFds)));
        });
    }

    #[test]
    fn connections_come_from_the_configured_address() {
        run(async {
            let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let listener = std::net::TcpListener::bind(any).unwrap();
            let place = listener.local_addr().unwrap();
            let near = connect("127.0.0.5:1".parse().unwrap(), place)
                .await
                .unwrap();
            let (far, _) = listener.accept().unwrap();
            assert_eq!(far.peer_addr().unwrap().ip().to_string(), "127.0.0.5");
            drop((near, far, listener));
            assert!(connect(any, place).await.is_err());
            assert!(
                connect("192.0.2.1:0".parse().unwrap(), place)
                    .await
                    .is_err()
            );
        });
    }
}
