//! What a run tells about itself: the trace, and both nodes in one line.

use std::fmt::Write as _;

use lockstep::engine::{Action, Command, Event, Message, MetaOp};

use crate::schedule::{MICRO, SECOND};
use crate::world::World;

impl World {
    /// Adds a line to the trace. Columns: time in seconds, node, kind, text.
    pub fn note(&mut self, node: Option<usize>, kind: &str, text: impl FnOnce() -> String) {
        if self.options.trace {
            let now = self.schedule.now();
            let who = node.map_or("-".to_string(), |n| n.to_string());
            let (whole, micros) = (now / SECOND, now % SECOND / MICRO);
            let _ = writeln!(
                self.trace,
                "{whole:>4}.{micros:06} {who} {kind:<9} {}",
                text()
            );
        }
    }

    /// Both nodes in one line.
    pub fn picture(&self) -> String {
        let mut parts = Vec::new();
        for node in &self.nodes {
            let text = match &node.process {
                Some(process) => {
                    let c = &process.status.connection;
                    let disks: Vec<String> = process
                        .status
                        .devices
                        .iter()
                        .zip(&c.peer_devices)
                        .map(|(d, p)| format!("{}/{} {}", d.disk, p.peer_disk, p.replication))
                        .collect();
                    let open = process.requests.len();
                    format!(
                        "node {} {} {} [{}] open {open} reason {:?}",
                        node.id,
                        process.status.role,
                        c.state,
                        disks.join(", "),
                        c.reason
                    )
                }
                None => format!("node {} down", node.id),
            };
            parts.push(text);
        }
        parts.push(format!(
            "requests to make {}, disks busy {:?}, wire idle {}",
            self.requests_left,
            [self.nodes[0].busy(), self.nodes[1].busy()],
            self.network.idle()
        ));
        parts.join("; ")
    }

    pub fn trace_event(&mut self, node: usize, event: &Event) {
        let text = match event {
            Event::Message { link, envelope, .. } => {
                let message = brief(&envelope.message);
                format!(
                    "link {} session {:x} term {} {message}",
                    link.0, envelope.session.0, envelope.term
                )
            }
            Event::Command {
                id,
                command: Command::Attach { volume, image },
            } => {
                format!("command {} attach {volume} {:?}", id.0, image.superblock)
            }
            other => format!("{other:?}"),
        };
        self.note(Some(node), "event", || text);
    }

    pub fn trace_action(&mut self, node: usize, action: &Action) {
        let text = match action {
            Action::Publish(_)
            | Action::Release { .. }
            | Action::Track { .. }
            | Action::Untrack { .. } => return,
            Action::Send { link, envelope, .. } => {
                let message = brief(&envelope.message);
                format!(
                    "send on {} session {:x} term {} {message}",
                    link.0, envelope.session.0, envelope.term
                )
            }
            Action::Meta { io, volume, op } => match op {
                MetaOp::Superblock(s) => format!("superblock {io:?} {volume} {s:?}"),
                MetaOp::Log(t) => format!("log {io:?} {volume} {:?}", t.changes),
                MetaOp::Bitmap { pages, .. } => {
                    let pages: Vec<u32> = pages.iter().map(|p| p.0).collect();
                    format!("bitmap {io:?} {volume} {pages:?}")
                }
            },
            other => format!("{other:?}"),
        };
        self.note(Some(node), "action", || text);
    }
}

/// A message without the words of a bitmap.
fn brief(message: &Message) -> String {
    match message {
        Message::Bitmap(chunk) => format!("Bitmap {} {}", chunk.volume, chunk.index),
        Message::SyncCompare {
            id, volume, span, ..
        } => format!("SyncCompare {id} {volume} {span}"),
        Message::Verify {
            id, volume, span, ..
        } => format!("Verify {id} {volume} {span}"),
        other => format!("{other:?}"),
    }
}
