//! The flight recorder: the last events and actions, printed when the ring thread panics, and by
//! `lockstep report --flight-recorder`.
//!
//! A panic of the ring thread ends the process like a kill does: after the dump nothing else is
//! dropped, because the ring may still name what would be freed.
//!
//! It sits on the path of every request, so an entry is a few words; text is made at the dump.

use std::collections::VecDeque;
use std::fmt;

use crate::engine::{Action, CommandId, Event, IoId, IoOutcome, LinkId, Message, Request, Time};

/// Entries kept: some hundred requests with all that they cause.
const CAPACITY: usize = 4096;

#[derive(Clone, Copy, Debug)]
enum Entry {
    Request(Request),
    Io(IoId, IoOutcome),
    Link(LinkId, &'static str),
    Received(LinkId, u64, &'static str),
    Command(CommandId),
    Tick,
    /// Name of the action and the number that identifies its object.
    Action(&'static str, u64),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Request(request) => write!(f, "event {request:?}"),
            Entry::Io(io, outcome) => write!(f, "event {io:?} {outcome:?}"),
            Entry::Link(link, what) => write!(f, "event {link:?} {what}"),
            Entry::Received(link, frame, kind) => {
                write!(f, "event {link:?} frame {frame} {kind}")
            }
            Entry::Command(command) => write!(f, "event {command:?}"),
            Entry::Tick => f.write_str("event tick"),
            Entry::Action(name, number) => write!(f, "  action {name} {number}"),
        }
    }
}

/// The last events and actions of one engine.
pub struct Recorder {
    entries: VecDeque<(Time, Entry)>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            entries: VecDeque::with_capacity(CAPACITY),
        }
    }
}

impl Recorder {
    fn push(&mut self, now: Time, entry: Entry) {
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
        }
        self.entries.push_back((now, entry));
    }

    /// Notes an event before the engine sees it.
    pub fn event(&mut self, now: Time, event: &Event) {
        let entry = match event {
            Event::Request(request) => Entry::Request(*request),
            Event::Io { io, outcome } => Entry::Io(*io, *outcome),
            Event::LinkUp { link, .. } => Entry::Link(*link, "up"),
            Event::LinkDown { link, .. } => Entry::Link(*link, "down"),
            Event::Message { link, envelope, .. } => {
                Entry::Received(*link, envelope.frame, message_name(&envelope.message))
            }
            Event::Command { id, .. } => Entry::Command(*id),
            Event::VoterRecorded { .. } => Entry::Action("voter recorded", 0),
            Event::Deposed { .. } => Entry::Action("deposed", 0),
            Event::Tick => Entry::Tick,
        };
        self.push(now, entry);
    }

    /// Notes an action before it is carried out.
    pub fn action(&mut self, now: Time, action: &Action) {
        let (name, number) = describe(action);
        self.push(now, Entry::Action(name, number));
    }

    /// Everything kept, oldest first.
    pub fn dump(&self, mut line: impl FnMut(fmt::Arguments<'_>)) {
        for (time, entry) in &self.entries {
            line(format_args!("{:>18} {entry}", time.0));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dump(|line| eprintln!("{line}"));
            std::process::abort();
        }
    }
}

fn describe(action: &Action) -> (&'static str, u64) {
    match action {
        Action::Complete {
            request,
            result: Ok(()),
        } => ("complete", u64::from(request.0)),
        Action::Complete {
            request,
            result: Err(_),
        } => ("fail", u64::from(request.0)),
        Action::DiskRead { io, .. } => ("read", io.0),
        Action::DiskProbe { io, .. } => ("probe", io.0),
        Action::DiskHash { io, .. } => ("hash", io.0),
        Action::DiskWrite { io, .. } => ("write", io.0),
        Action::DiskZeroes { io, .. } => ("zeroes", io.0),
        Action::DiskFlush { io, .. } => ("flush", io.0),
        Action::Meta { io, .. } => ("meta", io.0),
        Action::Send { envelope, .. } => (message_name(&envelope.message), envelope.frame),
        Action::Copy { len, .. } => ("copy", u64::from(*len)),
        Action::Release { .. } => ("release", 0),
        Action::WantLink { want } => ("want link", u64::from(*want)),
        Action::CloseLink { link } => ("close link", link.0),
        Action::CommandDone {
            command,
            result: Ok(()),
        } => ("command done", command.0),
        Action::CommandDone {
            command,
            result: Err(_),
        } => ("command refused", command.0),
        Action::Serve { serve, .. } => ("serve", u64::from(*serve)),
        Action::Shape { shape, .. } => ("shape", shape.bytes),
        Action::DiskClosed { volume } => ("disk closed", u64::from(volume.0)),
        Action::RecordAtVoter { volume, .. } => ("record at voter", u64::from(volume.0)),
        Action::Track { slot, .. } => ("track", u64::from(*slot)),
        Action::Untrack { slot } => ("untrack", u64::from(*slot)),
        Action::TrackExact { exact } => ("track exact", u64::from(*exact)),
        Action::Publish(_) => ("publish", 0),
    }
}

/// The name of a message.
pub fn message_name(message: &Message) -> &'static str {
    match message {
        Message::State(_) => "State",
        Message::Agree { .. } => "Agree",
        Message::Bitmap(_) => "Bitmap",
        Message::Stored => "Stored",
        Message::Ready => "Ready",
        Message::Write { .. } => "Write",
        Message::WriteAck { .. } => "WriteAck",
        Message::Barrier { .. } => "Barrier",
        Message::Flush { .. } => "Flush",
        Message::FlushAck { .. } => "FlushAck",
        Message::Read { .. } => "Read",
        Message::ReadReply { .. } => "ReadReply",
        Message::SyncWrite { .. } => "SyncWrite",
        Message::SyncCompare { .. } => "SyncCompare",
        Message::SyncAck { .. } => "SyncAck",
        Message::SyncDone { .. } => "SyncDone",
        Message::SyncAdopted { .. } => "SyncAdopted",
        Message::PauseSync { .. } => "PauseSync",
        Message::Verifying { .. } => "Verifying",
        Message::Verify { .. } => "Verify",
        Message::VerifyAck { .. } => "VerifyAck",
        Message::Repair { .. } => "Repair",
        Message::RepairDone { .. } => "RepairDone",
        Message::Promote { .. } => "Promote",
        Message::PromoteReply { .. } => "PromoteReply",
        Message::Demoted => "Demoted",
        Message::NewGeneration { .. } => "NewGeneration",
        Message::NewGenerationAck { .. } => "NewGenerationAck",
        Message::DiskState { .. } => "DiskState",
        Message::Goodbye { .. } => "Goodbye",
        Message::Outdated => "Outdated",
        Message::Ping => "Ping",
        Message::Pong => "Pong",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept() {
        let mut recorder = Recorder::default();
        for number in 0..(CAPACITY as u64 + 10) {
            recorder.event(Time(number), &Event::Tick);
        }
        let mut lines = Vec::new();
        recorder.dump(|line| lines.push(line.to_string()));
        assert_eq!(lines.len(), CAPACITY);
        assert!(lines[0].trim_start().starts_with("10 "));
        assert!(lines[CAPACITY - 1].ends_with("event tick"));
    }
}
