//! Talks to the agent: one connection, one request, and its answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::agent::channel::MAX_REPLY;
use crate::agent::dirs::check_socket_path;
use crate::agent::protocol::{ControlRequest, ErrorKind, ErrorReply, Reply};
use crate::agent::view::ResourceView;

use super::Global;

/// A request under way.
pub struct Conversation {
    socket: PathBuf,
    replies: BufReader<UnixStream>,
}

impl Conversation {
    /// Sends a request to the agent of this node.
    pub fn begin(
        global: &Global,
        verb: &str,
        target: &str,
        options: Map<String, Value>,
    ) -> Result<Conversation, ErrorReply> {
        let socket = global.dirs().control_socket();
        check_socket_path(&socket)?;
        let unreachable = |error: io::Error| unreachable(&socket, &error);
        let mut stream = UnixStream::connect(&socket).map_err(unreachable)?;
        let request = ControlRequest {
            verb: verb.to_owned(),
            target: target.to_owned(),
            options,
        };
        let mut line = serde_json::to_vec(&request)
            .map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(unreachable)?;
        Ok(Conversation {
            replies: BufReader::new(stream),
            socket,
        })
    }

    /// The next item of a stream; the end of the request is `Err` or `Ok(Done)`.
    pub fn next(&mut self) -> Result<Progress, ErrorReply> {
        let mut line = Vec::new();
        let limit = MAX_REPLY as u64 + 1;
        let read = (&mut self.replies).take(limit).read_until(b'\n', &mut line);
        read.map_err(|error| unreachable(&self.socket, &error))?;
        if line.is_empty() {
            let gone = io::Error::other("the agent ended before it answered");
            return Err(unreachable(&self.socket, &gone));
        }
        match serde_json::from_slice(&line) {
            Ok(Reply::Item(value)) => Ok(Progress::Item(value)),
            Ok(Reply::Done(value)) => Ok(Progress::Done(value)),
            Ok(Reply::Error(error)) => Err(error),
            Err(error) => Err(not_understood(&error)),
        }
    }
}

/// What came next.
pub enum Progress {
    Item(Value),
    Done(Value),
}

/// Sends a request and waits for its result.
pub fn ask(
    global: &Global,
    verb: &str,
    target: &str,
    options: Map<String, Value>,
) -> Result<Value, ErrorReply> {
    let mut conversation = Conversation::begin(global, verb, target, options)?;
    loop {
        if let Progress::Done(value) = conversation.next()? {
            return Ok(value);
        }
    }
}

/// The status of `target`, or of every resource when it is empty; without a look at who has block
/// devices open.
pub fn status(global: &Global, target: &str) -> Result<Vec<ResourceView>, ErrorReply> {
    views(global, target, Map::new())
}

/// The same with all that can be found out, for those who look at it.
pub fn full_status(global: &Global, target: &str) -> Result<Vec<ResourceView>, ErrorReply> {
    views(global, target, flags(&[("openers", true)]))
}

fn views(
    global: &Global,
    target: &str,
    options: Map<String, Value>,
) -> Result<Vec<ResourceView>, ErrorReply> {
    let value = ask(global, "status", target, options)?;
    serde_json::from_value(value).map_err(|error| not_understood(&error))
}

/// Options of a request from its flags.
pub fn flags(set: &[(&str, bool)]) -> Map<String, Value> {
    set.iter()
        .filter(|(_, on)| *on)
        .map(|(name, on)| ((*name).to_owned(), Value::from(*on)))
        .collect()
}

fn unreachable(socket: &std::path::Path, error: &io::Error) -> ErrorReply {
    let help = match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root",
        _ => "start it with `systemctl start lockstep` or `lockstep agent`; another --run-dir?",
    };
    ErrorReply::new(
        ErrorKind::Unreachable,
        format!("no agent answers at {}: {error}", socket.display()),
        help,
    )
}

fn not_understood(error: &serde_json::Error) -> ErrorReply {
    ErrorReply::new(
        ErrorKind::Failed,
        format!("the agent's answer makes no sense: {error}"),
        "command line and agent may be of different versions: restart the agent",
    )
}
