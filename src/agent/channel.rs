//! The module behind which tokio-uring stands: newline-delimited JSON over Unix sockets, with
//! descriptors beside a line, and work that may block.
//!
//! A [`Channel`] owns its socket. A read that was given up leaves a submission in the ring that
//! holds the socket open; `Drop` shuts the socket down, which ends that submission.

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_uring::net::UnixStream;

/// Longest line taken from the command line: requests are small.
pub const MAX_REQUEST: usize = 64 << 10;
/// Longest line taken from an agent or a data plane: the status of 65,536 volumes would not fit,
/// that of thousands does.
pub const MAX_REPLY: usize = 4 << 20;
/// Descriptors that may travel beside one line: data and metadata device.
pub const MAX_FDS: usize = 2;

/// Why a line could not be taken or given.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the line is longer than {0} bytes")]
    TooLong(usize),
    #[error("the line is not valid: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the other side closed the connection")]
    Closed,
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
}

/// A stream of JSON lines.
pub struct Channel {
    stream: UnixStream,
    /// Bytes received and not handed out yet.
    received: Vec<u8>,
    max_line: usize,
}

impl Channel {
    /// `max_line` bounds what is kept of a line that does not end.
    pub fn new(stream: UnixStream, max_line: usize) -> Channel {
        Channel {
            stream,
            received: Vec::new(),
            max_line,
        }
    }

    /// Connects to the socket at `path`.
    pub async fn connect(path: &Path, max_line: usize) -> Result<Channel, ChannelError> {
        let stream = UnixStream::connect(path).await?;
        Ok(Channel::new(stream, max_line))
    }

    /// The next line without its end; none when the other side closed after a whole line.
    pub async fn line(&mut self) -> Result<Option<Vec<u8>>, ChannelError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.received[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.received.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.received.len();
            if searched > self.max_line {
                return Err(ChannelError::TooLong(self.max_line));
            }
            let (count, buffer) = self.stream.read(Vec::with_capacity(16 << 10)).await;
            match count? {
                0 if self.received.is_empty() => return Ok(None),
                0 => return Err(ChannelError::Closed),
                count => self.received.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// The next line as `T`.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, ChannelError> {
        let line = self.line().await?.ok_or(ChannelError::Closed)?;
        Ok(serde_json::from_slice(&line)?)
    }

    pub async fn send<T: Serialize>(&self, message: &T) -> Result<(), ChannelError> {
        let (result, _) = self.stream.write_all(encode(message)?).await;
        Ok(result?)
    }

    /// Connects to the socket at `path` and sends a line with descriptors beside its first byte.
    pub fn open_with(
        path: &Path,
        max_line: usize,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Channel, ChannelError> {
        // tokio-uring lends no descriptor to sendmsg, so the first line goes out before the
        // stream is handed to it. A fresh connection has room for it: nothing waits here.
        let stream = connect_at_once(path)?;
        let line = encode(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let sent = rustix::net::sendmsg(
            &stream,
            &[IoSlice::new(&line)],
            &mut control,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )
        .map_err(io::Error::from)?;
        if sent != line.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        Ok(Channel::new(UnixStream::from_std(stream), max_line))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Fails only when the other side is gone, which ends the submission as well.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Connects, or fails when the other side takes no connections: a stopped process must not stop
/// the agent.
fn connect_at_once(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// One line: the message and its end.
fn encode(message: &impl Serialize) -> Result<Vec<u8>, ChannelError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Bounds the time of an exchange.
pub async fn within<T>(
    limit: Duration,
    exchange: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ChannelError> {
    match tokio::time::timeout(limit, exchange).await {
        Ok(result) => result,
        Err(_) => Err(ChannelError::Timeout(limit)),
    }
}

/// Runs work that may block on a thread of its own and waits for it without stopping the agent.
/// None when the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (give, take) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // The asker may have given up.
        let _ = give.send(work());
    });
    take.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// Runs `peer` at the other end of a channel with a line limit of 100 bytes.
    fn against(peer: impl FnOnce(std::os::unix::net::UnixStream) + Send + 'static) -> Channel {
        let (mine, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
        std::thread::spawn(move || peer(theirs));
        Channel::new(UnixStream::from_std(mine), 100)
    }

    #[test]
    fn lines_are_cut_and_joined() {
        tokio_uring::start(async {
            let mut channel = against(|mut peer| {
                peer.write_all(b"1\n[2,").expect("first");
                std::thread::sleep(Duration::from_millis(20));
                peer.write_all(b"3]\n\"x\"\n{").expect("second");
            });
            assert_eq!(channel.receive::<u8>().await.expect("one"), 1);
            assert_eq!(channel.receive::<Vec<u8>>().await.expect("two"), [2, 3]);
            assert_eq!(channel.receive::<String>().await.expect("three"), "x");
            assert!(matches!(channel.line().await, Err(ChannelError::Closed)));
        });
    }

    #[test]
    fn endless_lines_and_silence_end_with_an_error() {
        tokio_uring::start(async {
            let mut channel = against(|mut peer| {
                // The reader gives up before it has taken all of it.
                let _ = peer.write_all(&[b'x'; 100_000]);
            });
            assert!(matches!(
                channel.line().await,
                Err(ChannelError::TooLong(100))
            ));
            let mut silent = against(|mut peer| {
                // Ends when the channel is dropped.
                let _ = peer.read(&mut [0]);
            });
            let waited = within(Duration::from_millis(20), silent.line()).await;
            assert!(matches!(waited, Err(ChannelError::Timeout(_))));
        });
    }

    #[test]
    fn a_dropped_channel_closes_although_a_read_was_given_up() {
        let (tell, told) = std::sync::mpsc::channel();
        tokio_uring::start(async move {
            let mut channel = against(move |mut peer| {
                tell.send(peer.read(&mut [0]).ok()).expect("receiver lives");
            });
            let _ = within(Duration::from_millis(20), channel.line()).await;
            drop(channel);
            let read = blocking(move || told.recv_timeout(Duration::from_secs(5))).await;
            assert_eq!(read.expect("ran"), Ok(Some(0)));
        });
    }

    #[test]
    fn descriptors_travel_beside_the_first_line() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        let received = std::thread::spawn(move || {
            use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
            let (peer, _) = listener.accept().expect("accept");
            let mut bytes = [0; 64];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [io::IoSliceMut::new(&mut bytes)];
            let got = recvmsg(&peer, &mut slices, &mut control, RecvFlags::empty()).expect("recv");
            let mut files = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    files.extend(rights.map(std::fs::File::from));
                }
            }
            (bytes[..got.bytes].to_vec(), files)
        });
        let file = std::fs::File::open("/proc/self/stat").expect("open");
        tokio_uring::start(async {
            use std::os::fd::AsFd;
            Channel::open_with(&path, 100, &"x", &[file.as_fd()]).expect("send");
        });
        let (line, files) = received.join().expect("thread");
        assert_eq!((line.as_slice(), files.len()), (&b"\"x\"\n"[..], 1));
    }
}
