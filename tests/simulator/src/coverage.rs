//! Which events met which states.
//!
//! A row is a state of the engine (role, connection, disk and replication of the first volume), a
//! column a kind of event. An empty column or a missing row shows what no seed reaches.

use std::collections::BTreeMap;
use std::fmt::Write;

use lockstep::engine::{Command, Event, Message, ResourceStatus};
use lockstep::failover::Denied;

/// Columns, in the order of the table.
const EVENTS: [&str; 14] = [
    "request", "io-ok", "io-fail", "link-up", "link-dn", "state", "write", "sync", "ack", "role",
    "other", "attach", "command", "tick",
];

/// Counts by state and event.
#[derive(Clone, Default)]
pub struct Coverage {
    table: BTreeMap<String, [u64; EVENTS.len()]>,
    /// What happened to the voters and among them.
    votes: BTreeMap<&'static str, u64>,
    row: [Option<String>; 2],
}

fn message_column(message: &Message) -> usize {
    match message {
        Message::State(_) | Message::Agree { .. } | Message::Bitmap(_) | Message::Ready => 5,
        Message::Write { .. } | Message::Barrier { .. } | Message::Flush { .. } => 6,
        Message::SyncWrite { .. }
        | Message::SyncCompare { .. }
        | Message::SyncDone { .. }
        | Message::Verify { .. }
        | Message::Repair { .. } => 7,
        Message::WriteAck { .. }
        | Message::FlushAck { .. }
        | Message::SyncAck { .. }
        | Message::VerifyAck { .. } => 8,
        Message::Promote { .. } | Message::PromoteReply { .. } | Message::Demoted => 9,
        _ => 10,
    }
}

fn column(event: &Event) -> usize {
    use lockstep::engine::IoOutcome;
    match event {
        Event::Request(_) => 0,
        Event::Io {
            outcome: IoOutcome::Failed(_),
            ..
        } => 2,
        Event::Io { .. } => 1,
        Event::LinkUp { .. } => 3,
        Event::LinkDown { .. } => 4,
        Event::Message { envelope, .. } => message_column(&envelope.message),
        Event::Command {
            command: Command::Attach { .. },
            ..
        } => 11,
        Event::Command { .. } | Event::VoterRecorded { .. } | Event::Deposed { .. } => 12,
        Event::Tick => 13,
    }
}

/// The state as one word per part.
pub fn row(status: &ResourceStatus) -> String {
    let disk = status.devices.first().map_or("-", |d| d.disk.name());
    let peer = status.connection.peer_devices.first();
    format!(
        "{} {} {}/{} {}",
        status.role,
        status.connection.state,
        disk,
        peer.map_or("-", |p| p.peer_disk.name()),
        peer.map_or("-", |p| p.replication.name()),
    )
}

impl Coverage {
    /// The state of a node has changed.
    pub fn state(&mut self, node: usize, status: &ResourceStatus) {
        self.row[node] = Some(row(status));
    }

    /// An event is about to be handled.
    pub fn count(&mut self, node: usize, event: &Event) {
        let Some(row) = &self.row[node] else { return };
        match self.table.get_mut(row) {
            Some(counts) => counts[column(event)] += 1,
            None => {
                let mut counts = [0; EVENTS.len()];
                counts[column(event)] = 1;
                self.table.insert(row.clone(), counts);
            }
        }
    }

    /// Something happened to a voter or among them.
    pub fn fault(&mut self, name: &'static str) {
        *self.votes.entry(name).or_default() += 1;
    }

    /// A voter said no.
    pub fn denied(&mut self, denied: &Denied) {
        self.fault(match denied {
            Denied::Held { .. } => "denied: held",
            Denied::Starting { .. } => "denied: starting",
            Denied::Doubt => "denied: doubt",
            Denied::Stale { .. } => "denied: stale",
            Denied::Overtaken => "denied: overtaken",
            Denied::NotRecorded => "denied: not recorded",
            Denied::Behind => "denied: behind",
            Denied::Candidate => "denied: candidate",
            Denied::Stranger => "denied: stranger",
            Denied::Silence => "denied: silence",
        });
    }

    /// Adds the counts of another run.
    pub fn merge(&mut self, other: &Coverage) {
        for (row, counts) in &other.table {
            let mine = self.table.entry(row.clone()).or_insert([0; EVENTS.len()]);
            for (a, b) in mine.iter_mut().zip(counts) {
                *a += b;
            }
        }
        for (name, count) in &other.votes {
            *self.votes.entry(name).or_default() += count;
        }
    }

    /// The table, most visited states first.
    pub fn print(&self) -> String {
        let mut rows: Vec<(&String, &[u64; EVENTS.len()])> = self.table.iter().collect();
        rows.sort_by_key(|(name, counts)| (std::cmp::Reverse(counts.iter().sum::<u64>()), *name));
        let mut out = format!(
            "{:<62}",
            "coverage: state (role connection disk/peer replication)"
        );
        for event in EVENTS {
            let _ = write!(out, "{event:>8}");
        }
        out.push('\n');
        for (name, counts) in rows {
            let _ = write!(out, "{name:<62}");
            for count in counts {
                match count {
                    0 => out.push_str("       ."),
                    n if *n > 999_999 => {
                        let _ = write!(out, "{:>7}k", n / 1000);
                    }
                    n => {
                        let _ = write!(out, "{n:>8}");
                    }
                }
            }
            out.push('\n');
        }
        for (name, count) in &self.votes {
            let _ = writeln!(out, "voters: {name}: {count}");
        }
        let reached = self.table.values().flatten().filter(|n| **n > 0).count();
        let _ = writeln!(
            out,
            "coverage: {} states, {reached} pairs",
            self.table.len()
        );
        out
    }
}
