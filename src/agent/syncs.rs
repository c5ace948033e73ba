//! Which syncs of a node run and which wait: `resync-after` and `max-parallel-resyncs`.
//!
//! [`waits`] decides from what the data planes tell. Both nodes of a pair decide by themselves, and
//! one that waits pauses the sync for both, so the decision depends on nothing that the two could
//! see in different order: all syncs have one fixed order (those that others come after, then by
//! name), and the first ones run. So the first sync of all is held back by nobody, and none waits
//! for ever. What an operator or the peer holds back takes no place.
//!
//! The task [`coordinate`] carries it out: a volume whose turn it is not yet is paused, before a
//! sync of it begins where that can be seen coming. A pause is a lease of the data plane: it ends
//! with the agent that gave it.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::node::Node;
use super::plan::Upkeep;
use super::plane::{self, STATUS_ANSWER};
use super::protocol::ServeRequest;
use super::status::Status;
use super::view::{PeerDeviceView, ResourceView};
use crate::config::After;

/// How long a data plane holds a sync back without hearing from an agent, and how often it hears.
const LEASE: Duration = Duration::from_secs(5);
const RENEW: Duration = Duration::from_secs(1);

/// A volume of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub resource: String,
    pub volume: u16,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.resource, self.volume)
    }
}

/// What counts about a volume.
#[derive(Clone, Debug)]
struct Entry {
    id: Id,
    after: Option<After>,
    /// A sync has begun and not ended.
    syncs: bool,
    /// An operator holds it back, or the peer.
    stopped: bool,
}

/// Why a sync waits.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wait {
    /// This one comes first.
    For(Id),
    /// So many run already.
    Full(u32),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::For(id) => write!(
                f,
                "the sync waits until that of {id} has ended (resync-after)"
            ),
            Wait::Full(limit) => write!(
                f,
                "the sync waits until one of those before it has ended (max-parallel-resyncs \
                 {limit})"
            ),
        }
    }
}

/// Whether the syncs of `entries` have to wait, in their order. One that has not begun is told
/// what would become of it.
fn waits(entries: &[Entry], limit: u32) -> Vec<Option<Wait>> {
    let mut waits: Vec<Option<Wait>> = (0..entries.len())
        .map(|index| {
            let syncing = { ahead(entries, index).into_iter() }.filter(|i| entries[*i].syncs);
            let first = syncing.min_by_key(|other| place(entries, *other))?;
            Some(Wait::For(entries[first].id.clone()))
        })
        .collect();
    if limit == 0 {
        return waits;
    }
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|index| place(entries, *index));
    let mut running = 0;
    for index in order {
        if waits[index].is_some() {
            continue;
        }
        if running >= limit {
            waits[index] = Some(Wait::Full(limit));
        } else if entries[index].syncs && !entries[index].stopped {
            running += 1;
        }
    }
    waits
}

/// The place of a volume in the order of all.
fn place(entries: &[Entry], index: usize) -> (usize, &Id) {
    (ahead(entries, index).len(), &entries[index].id)
}

/// Every volume that comes before that of `index`, also by way of others. Where rules go in a
/// circle, as they can while only some resources have been adjusted, those of the circle do not
/// count.
fn ahead(entries: &[Entry], index: usize) -> Vec<usize> {
    let mine = reach(entries, index);
    let back = |other: &usize| reach(entries, *other).contains(&index);
    mine.into_iter().filter(|other| !back(other)).collect()
}

/// Where the rules lead from one volume.
fn reach(entries: &[Entry], from: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let mut next = vec![from];
    while let Some(index) = next.pop() {
        let Some(after) = &entries[index].after else {
            continue;
        };
        for (other, entry) in entries.iter().enumerate() {
            if after.means(&entry.id.resource, entry.id.volume) && !found.contains(&other) {
                found.push(other);
                next.push(other);
            }
        }
    }
    found.sort_unstable();
    found
}

/// The volumes of one resource.
fn entries(view: &ResourceView, upkeep: &Upkeep) -> Vec<Entry> {
    let peers = view.connections.iter().flat_map(|link| &link.peer_devices);
    let entry = |peer: &PeerDeviceView| {
        let causes = peer.resync_suspended.split(',');
        Entry {
            id: Id {
                resource: view.name.clone(),
                volume: peer.volume,
            },
            after: upkeep.after.get(&peer.volume).cloned(),
            syncs: peer.syncs(),
            stopped: causes
                .into_iter()
                .any(|cause| matches!(cause, "user" | "peer")),
        }
    };
    peers.map(entry).collect()
}

/// Keeps the syncs of a node in order for as long as the agent lives.
pub async fn coordinate(node: Rc<Node>) {
    let mut holds = Holds::default();
    loop {
        // What a status tells wakes this task; the rest is about leases.
        let _ = timeout(RENEW, node.pulse().notified()).await;
        holds.look(&node);
    }
}

/// What is held back, and when that was said last.
#[derive(Default)]
struct Holds {
    said: BTreeMap<Id, Instant>,
}

impl Holds {
    fn look(&mut self, node: &Node) {
        let mut all = Vec::new();
        let mut limit = 0;
        for status in node.statuses() {
            let plan = status.plan();
            limit = limit.max(plan.upkeep.max_syncs);
            let Some(view) = status.told() else { continue };
            for entry in entries(&view, &plan.upkeep) {
                let held = view.is_held(entry.id.volume);
                all.push((entry, held, Rc::clone(&status)));
            }
        }
        all.sort_by(|(a, ..), (b, ..)| a.id.cmp(&b.id));
        let plain: Vec<Entry> = all.iter().map(|(entry, ..)| entry.clone()).collect();
        for (wait, (entry, held, status)) in waits(&plain, limit).into_iter().zip(all) {
            self.apply(&entry, wait.as_ref(), held, &status);
        }
        self.said
            .retain(|id, _| plain.iter().any(|entry| entry.id == *id));
    }

    /// Tells the data plane what it has not been told, or not for a while.
    fn apply(&mut self, entry: &Entry, wait: Option<&Wait>, held: bool, status: &Rc<Status>) {
        let id = &entry.id;
        let reason = wait.filter(|_| entry.syncs).map(ToString::to_string);
        if status.set_wait(id.volume, reason.clone())
            && let Some(reason) = &reason
        {
            info!(
                resource = id.resource,
                volume = id.volume,
                reason,
                "sync held back"
            );
        }
        let lease = match (wait, self.said.get(id)) {
            (Some(_), Some(said)) if said.elapsed() < RENEW && held => return,
            (Some(_), _) => {
                self.said.insert(id.clone(), Instant::now());
                LEASE
            }
            // An agent before this one may have held it back.
            (None, None) if !held => return,
            (None, _) => {
                self.said.remove(id);
                Duration::ZERO
            }
        };
        let (socket, id) = (status.socket().to_owned(), id.clone());
        tokio_uring::spawn(async move {
            let request = ServeRequest::HoldSync {
                volume: id.volume,
                millis: lease.as_millis() as u64,
            };
            let told = plane::exchange(&id.resource, &socket, &request, &[], STATUS_ANSWER).await;
            if let Err(error) = told {
                warn!(
                    resource = id.resource,
                    reason = error.reason,
                    "order of syncs"
                );
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Id {
        let (resource, volume) = name.split_once('/').expect("RES/VOL");
        Id {
            resource: resource.to_owned(),
            volume: volume.parse().expect("a number"),
        }
    }

    /// `r0/0 after r1`, with `+` for one that syncs and `-` for one that is stopped as well.
    fn entry(text: &str) -> Entry {
        let syncs = text.starts_with(['+', '-']);
        let stopped = text.starts_with('-');
        let words = text.trim_start_matches(['+', '-']);
        let (name, after) = match words.split_once(" after ") {
            Some((name, after)) => (name, After::parse(after)),
            None => (words, None),
        };
        let id = id(name);
        Entry {
            id,
            after,
            syncs,
            stopped,
        }
    }

    /// Of each volume: what it waits for, `full`, or nothing.
    fn verdicts(texts: &[&str], limit: u32) -> Vec<String> {
        let entries: Vec<Entry> = texts.iter().map(|text| entry(text)).collect();
        let word = |wait: Option<Wait>| match wait {
            None => String::new(),
            Some(Wait::For(id)) => id.to_string(),
            Some(Wait::Full(_)) => "full".to_owned(),
        };
        waits(&entries, limit).into_iter().map(word).collect()
    }

    #[test]
    fn a_sync_waits_for_all_that_come_before_it_and_for_nothing_else() {
        let chain = ["+a/0", "b/0 after a", "+c/0 after b/0", "+d/0"];
        assert_eq!(verdicts(&chain, 0), ["", "a/0", "a/0", ""]);
        let both = ["+a/0 after b", "+b/0 after c", "+c/0"];
        assert_eq!(verdicts(&both, 0), ["c/0", "c/0", ""]);
        let later = ["a/0", "+b/0 after a", "+c/0 after b/0", "+d/0"];
        assert_eq!(verdicts(&later, 0), ["", "", "b/0", ""]);
        let over = ["a/0", "b/0 after a", "+c/0 after b/0", "d/0"];
        assert_eq!(verdicts(&over, 0), ["", "", "", ""]);
        // One volume of two, and one that nobody here has.
        let part = [
            "a/0",
            "+a/1",
            "+b/0 after a/0",
            "+c/0 after a",
            "+d/0 after x",
        ];
        assert_eq!(verdicts(&part, 0), ["", "", "", "a/1", ""]);
    }

    #[test]
    fn a_circle_keeps_nobody_waiting() {
        let circle = [
            "+a/0 after c",
            "+b/0 after a",
            "+c/0 after b",
            "+d/0 after a",
        ];
        assert_eq!(verdicts(&circle, 0), ["", "", "", "a/0"]);
        assert_eq!(verdicts(&["+a/0 after a"], 1), [""]);
    }

    #[test]
    fn the_first_ones_run_and_the_rest_waits_for_a_place() {
        let all = ["+a/0", "+b/0", "c/0", "+d/0"];
        assert_eq!(verdicts(&all, 0), ["", "", "", ""]);
        assert_eq!(verdicts(&all, 2), ["", "", "full", "full"]);
        assert_eq!(verdicts(&all, 3), ["", "", "", ""]);
        // What comes first gets its place at once.
        assert_eq!(verdicts(&["a/0", "+b/0", "+c/0"], 1), ["", "", "full"]);
        // What does not move takes none, and waits all the same: otherwise two nodes that both
        // hold it back would both let it go, again and again.
        assert_eq!(verdicts(&["-a/0", "+b/0", "+c/0"], 1), ["", "", "full"]);
        assert_eq!(verdicts(&["+a/0", "-b/0"], 1), ["", "full"]);
        let after = ["+a/0 after d", "+b/0", "+c/0", "+d/0"];
        assert_eq!(verdicts(&after, 2), ["d/0", "", "", "full"]);
        assert_eq!(verdicts(&["+a/0 after d", "+d/0"], 1), ["d/0", ""]);
    }

    /// Two nodes that see the same syncs, each with its own limit, never wait for each other.
    #[test]
    fn whatever_waits_there_is_one_that_runs() {
        let rules = ["", " after a", " after b", " after c/0"];
        for code in 0..4usize.pow(3) * 8 {
            let digit = |n: u32| code / 8 / 4usize.pow(n) % 4;
            let names = ["a/0", "b/0", "c/0"];
            let texts: Vec<String> = (0..3)
                .map(|n| {
                    let mark = if code >> n & 1 == 1 { "+" } else { "" };
                    format!("{mark}{}{}", names[n], rules[digit(n as u32)])
                })
                .collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            for (mine, theirs) in [(0, 0), (1, 1), (1, 2), (2, 0)] {
                let [mine, theirs] = [mine, theirs].map(|limit| verdicts(&texts, limit));
                let runs = |n: usize| texts[n].starts_with('+') && mine[n].is_empty();
                let here_and_there = |n: usize| runs(n) && theirs[n].is_empty();
                let any = texts.iter().any(|text| text.starts_with('+'));
                assert_eq!(
                    (0..3).any(here_and_there),
                    any,
                    "{texts:?} {mine:?} {theirs:?}"
                );
            }
        }
    }
}
