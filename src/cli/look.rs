//! Verbs that look: status, states, events.

use clap::Subcommand;

use crate::agent::events::Event;
use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::agent::view::ResourceView;

use super::client::{Conversation, Progress, flags, full_status, status};
use super::render::{Style, render};
use super::watch::watch;
use super::{Global, Outcome, text};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show resources, disks, connections, and why something waits
    Status {
        /// Only this resource
        #[arg(value_name = "RES", default_value = "all")]
        target: String,
        /// Every key, counters included
        #[arg(long)]
        verbose: bool,
        /// The same, in DRBD's word
        #[arg(long)]
        statistics: bool,
        /// Show it again every second, with progress bars; where the output is no terminal, when a
        /// state has changed, and every few seconds how far syncs and verifies are
        #[arg(long)]
        watch: bool,
    },
    /// Follow changes: a first picture, then a line per change
    Events {
        /// Only the first picture
        #[arg(long)]
        now: bool,
    },
    /// Print the role of this node
    Role(Of),
    /// Print the state of the connection
    Cstate(Of),
    /// Print the disk states of this node and the peer, one line per volume
    Dstate(Of),
}

#[derive(clap::Args, Debug)]
pub struct Of {
    /// Resource, or all
    #[arg(value_name = "RES|all")]
    target: String,
}

/// Carries out `verb`.
pub fn run(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::Status {
            target,
            verbose,
            statistics,
            watch: true,
        } => watch(global, &target, verbose || statistics),
        Verb::Status {
            target,
            verbose,
            statistics,
            watch: false,
        } => show(global, &target, verbose || statistics),
        Verb::Events { now } => events(global, now),
        Verb::Role(of) => each(global, &of.target, |view| vec![view.role.clone()]),
        Verb::Cstate(of) => each(global, &of.target, |view| {
            let links = view.connections.iter();
            links.map(|link| link.connection_state.clone()).collect()
        }),
        Verb::Dstate(of) => each(global, &of.target, disk_states),
    }
}

fn show(global: &Global, target: &str, verbose: bool) -> Outcome {
    let views = full_status(global, target)?;
    if global.json {
        let value = serde_json::to_value(&views)
            .map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))?;
        text::pretty(&value);
    } else {
        let bars = false;
        text::out(&render(&views, Style { verbose, bars }));
    }
    Ok(())
}

fn events(global: &Global, now: bool) -> Outcome {
    let options = flags(&[("now", now)]);
    let mut conversation = Conversation::begin(global, "events", "", options)?;
    while let Progress::Item(value) = conversation.next()? {
        let event: Event = serde_json::from_value(value).map_err(|error| {
            ErrorReply::new(
                ErrorKind::Failed,
                format!("the agent's event makes no sense: {error}"),
                "command line and agent may be of different versions: restart the agent",
            )
        })?;
        let is_read = match global.json {
            true => text::line(&event.json().to_string()),
            false => text::line(&event.text()),
        };
        if !is_read {
            break;
        }
    }
    Ok(())
}

/// Prints the lines of each resource.
fn each(global: &Global, target: &str, lines: impl Fn(&ResourceView) -> Vec<String>) -> Outcome {
    for view in status(global, target)? {
        for line in lines(&view) {
            text::line(&line);
        }
    }
    Ok(())
}

/// `mine/peer` per volume.
fn disk_states(view: &ResourceView) -> Vec<String> {
    let peer_disk = |volume| {
        let mut peers = view.connections.iter().flat_map(|link| &link.peer_devices);
        let peer = peers.find(|peer| peer.volume == volume);
        peer.map_or("DUnknown", |peer| peer.peer_disk_state.as_str())
    };
    view.devices
        .iter()
        .map(|device| format!("{}/{}", device.disk_state, peer_disk(device.volume)))
        .collect()
}
