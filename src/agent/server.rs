//! The control socket: one request per connection, answered by the node.
//!
//! What arrives is not trusted: lines are bounded, idle connections end, and nonsense is answered
//! with an error.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::Mode;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::time::sleep;
use tokio_uring::net::UnixStream;
use tracing::warn;

use super::channel::{Channel, ChannelError, MAX_REQUEST, within};
use super::dirs::{check_socket_path, remove_if_there};
use super::events::Event;
use super::node::{Node, Response};
use super::protocol::{ControlRequest, ErrorKind, ErrorReply, Reply};

/// Connections at a time; further ones are told so.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may take to say what it wants, and to take its answer.
const REQUEST: Duration = Duration::from_secs(10);

/// Binds the control socket for root alone. The caller holds the agent's lock, so a socket that
/// is there belongs to an agent that is gone.
pub fn bind(path: &Path) -> Result<UnixListener, ErrorReply> {
    check_socket_path(path)?;
    let failed = |error: std::io::Error| {
        ErrorReply::new(
            ErrorKind::Failed,
            format!("cannot listen at {}: {error}", path.display()),
            "run the agent as root, or name another place with --run-dir",
        )
    };
    remove_if_there(path).map_err(failed)?;
    // The mode of a socket is set at bind alone: a later chmod would leave a gap.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    // tokio-uring's own bind asks for SO_REUSEPORT, which newer kernels refuse for Unix sockets.
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener.map_err(failed)
}

/// The next connection, as one of the ring.
async fn accept(listener: &UnixListener) -> std::io::Result<UnixStream> {
    let (stream, _) = listener.accept().await?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(UnixStream::from_std(stream))
}

/// Takes connections for as long as the agent lives.
pub async fn serve(listener: UnixListener, node: Rc<Node>) {
    let open = Rc::new(Cell::new(0));
    loop {
        match accept(&listener).await {
            Ok(stream) => {
                let node = Rc::clone(&node);
                let guard = Guard::new(&open);
                tokio_uring::spawn(async move {
                    let full = guard.count() > MAX_CONNECTIONS;
                    if let Err(error) = converse(stream, &node, full).await {
                        tracing::debug!(%error, "control connection ended");
                    }
                    drop(guard);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others end meanwhile.
                warn!(%error, "cannot take a control connection");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Counts a connection while it lives.
struct Guard(Rc<Cell<usize>>);

impl Guard {
    fn new(open: &Rc<Cell<usize>>) -> Guard {
        open.set(open.get() + 1);
        Guard(Rc::clone(open))
    }

    fn count(&self) -> usize {
        self.0.get()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One connection from request to answer.
async fn converse(stream: UnixStream, node: &Node, full: bool) -> Result<(), ChannelError> {
    let mut channel = Channel::new(stream, MAX_REQUEST);
    let result = match read_request(&mut channel, full).await? {
        None => return Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(request)) => node.answer(&request).await,
    };
    match result {
        Ok(Response::Done(value)) => within(REQUEST, channel.send(&Reply::Done(value))).await,
        Err(error) => within(REQUEST, channel.send(&Reply::Error(error))).await,
        Ok(Response::Stream(picture, follow)) => {
            stream_events(&channel, picture).await?;
            if let Some(mut follow) = follow {
                while let Some(line) = follow.recv().await {
                    within(REQUEST, channel.send(&Reply::Item(line))).await?;
                }
                let behind = ErrorReply::new(
                    ErrorKind::Failed,
                    "the listener did not keep up with the events",
                    "start `lockstep events` again: it begins with the whole picture",
                );
                return channel.send(&Reply::Error(behind)).await;
            }
            channel.send(&Reply::Done(Value::Null)).await
        }
    }
}

/// The request; none when the other side said nothing and left.
async fn read_request(
    channel: &mut Channel,
    full: bool,
) -> Result<Option<Result<ControlRequest, ErrorReply>>, ChannelError> {
    let usage = |reason: String| {
        ErrorReply::new(
            ErrorKind::Usage,
            reason,
            "the control socket takes one JSON object per line, as the command line sends it",
        )
    };
    if full {
        return Ok(Some(Err(ErrorReply::new(
            ErrorKind::Refused,
            format!("more than {MAX_CONNECTIONS} control connections are open"),
            "end some of the commands that wait",
        ))));
    }
    let line = match within(REQUEST, channel.line()).await {
        Ok(None) => return Ok(None),
        Ok(Some(line)) => line,
        Err(error @ ChannelError::TooLong(_)) => return Ok(Some(Err(usage(error.to_string())))),
        Err(error) => return Err(error),
    };
    Ok(Some(serde_json::from_slice(&line).map_err(|error| {
        usage(format!("the request makes no sense: {error}"))
    })))
}

async fn stream_events(channel: &Channel, picture: Vec<Event>) -> Result<(), ChannelError> {
    for event in picture {
        let line = serde_json::to_value(&event)?;
        within(REQUEST, channel.send(&Reply::Item(line))).await?;
    }
    Ok(())
}
