//! Refusals and link losses in words: what is the case, and what to do next.

use std::time::Duration;

use super::progress::mean;
use crate::agent::protocol::ErrorReply;
use crate::engine::{ConnectionState, Generation, LinkLoss, Notice, Refusal};

/// Whom the texts speak about.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub resource: &'a str,
    pub peer: &'a str,
}

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// `refused`, `timeout` or `failed`.
    pub kind: &'static str,
    pub reason: String,
    pub help: String,
    /// Exit code of the command line.
    pub exit: u8,
}

impl From<Reason> for ErrorReply {
    fn from(reason: Reason) -> ErrorReply {
        ErrorReply {
            kind: reason.kind.to_owned(),
            reason: reason.reason,
            help: reason.help,
            exit: reason.exit,
        }
    }
}

/// Something that has happened, for the log. `ran` is how long what has ended took.
pub fn of_notice(notice: &Notice, ran: Duration, names: Names<'_>) -> String {
    let peer = names.peer;
    match notice {
        Notice::Role { from, to } => format!("role {from} -> {to}"),
        Notice::PeerRole { to } => format!("{peer}: role {to}"),
        Notice::Disk { volume, from, to } => format!("volume {volume}: disk {from} -> {to}"),
        Notice::PeerDisk { volume, to } => format!("volume {volume}: disk of {peer} {to}"),
        Notice::DiskError { volume, errno } => {
            let error = std::io::Error::from_raw_os_error(*errno);
            format!("volume {volume}: the disk failed and is detached: {error}")
        }
        Notice::Connection { to, reason, loss } => {
            let why = match (reason, loss) {
                (Some(refusal), _) => Some(of_refusal(refusal, names).reason),
                (None, Some(loss)) => Some(of_loss(loss, names)),
                (None, None) => None,
            };
            match why.filter(|_| *to != ConnectionState::Connected) {
                Some(why) => format!("connection {to}: {why}"),
                None => format!("connection {to}"),
            }
        }
        Notice::Replication { volume, to } => format!("volume {volume}: replication {to}"),
        Notice::Paused { volume, on: true } => {
            format!("volume {volume}: a sync would be held back from now on")
        }
        Notice::Paused { volume, .. } => format!("volume {volume}: a sync would not be held back"),
        Notice::SyncDone {
            volume,
            copied,
            compared,
        } => {
            let speed = speed(copied + compared, ran);
            let [copied, compared] = [copied, compared].map(|bytes| bytes / 1024);
            format!(
                "volume {volume}: in sync; {copied} KiB copied, {compared} KiB found equal, {speed}"
            )
        }
        Notice::VerifyDone {
            volume,
            complete,
            checked,
            found,
            skipped,
        } => {
            let speed = speed(*checked, ran);
            let [checked, found, skipped] = [checked, found, skipped].map(|bytes| bytes / 1024);
            let how = if *complete { "done" } else { "stopped" };
            format!(
                "volume {volume}: verify {how}; {checked} KiB compared, {found} KiB differ, \
                 {skipped} KiB in use all the time, {speed}"
            )
        }
        Notice::Repaired { volume, bytes } => {
            let speed = speed(*bytes, ran);
            format!("volume {volume}: {} KiB repaired, {speed}", bytes / 1024)
        }
        Notice::NewGeneration { volume, generation } => {
            format!("volume {volume}: new generation {generation}")
        }
        Notice::SplitBrain { volume } => format!("volume {volume}: split brain"),
    }
}

fn speed(bytes: u64, ran: Duration) -> String {
    let rate = mean(bytes, ran) / 1024;
    format!("in {:.1} s, {rate} KiB/s", ran.as_secs_f64())
}

/// Refused by the state of the resource.
fn refused(reason: String, help: String) -> Reason {
    Reason {
        kind: "refused",
        reason,
        help,
        exit: 3,
    }
}

/// Something outside did not work.
fn failed(reason: String, help: String) -> Reason {
    Reason {
        kind: "failed",
        exit: 1,
        ..refused(reason, help)
    }
}

/// Did not end in time.
fn timed_out(reason: String, help: String) -> Reason {
    Reason {
        kind: "timeout",
        exit: 4,
        ..refused(reason, help)
    }
}

fn list(generations: &[Generation]) -> String {
    let all: Vec<String> = generations.iter().map(ToString::to_string).collect();
    all.join(" ")
}

/// Why a command or a connection was refused.
pub fn of_refusal(refusal: &Refusal, names: Names<'_>) -> Reason {
    of_role_refusal(refusal, names)
        .or_else(|| of_data_refusal(refusal, names))
        .unwrap_or_else(|| of_other_refusal(refusal, names))
}

/// Refusals that are about roles and promotion.
fn of_role_refusal(refusal: &Refusal, names: Names<'_>) -> Option<Reason> {
    let Names { resource, peer } = names;
    Some(match refusal {
        Refusal::PeerIsPrimary => refused(
            format!("{peer} is primary"),
            format!("run `lockstep secondary {resource}` on {peer} first"),
        ),
        Refusal::PeerPromotes => refused(
            format!("{peer} is being promoted at this moment and asked first"),
            format!("`lockstep status {resource}` shows who is primary"),
        ),
        Refusal::NotProvenCurrent => refused(
            format!("{peer} is not reachable, and nothing proves that this copy is current"),
            format!(
                "if {peer} is down and stays down, `lockstep primary --force {resource}` goes on \
                 with this copy; writes that only {peer} has are then lost, and if it is still \
                 writing, the copies diverge"
            ),
        ),
        Refusal::NoVote => refused(
            "the third voter has not said that this node may be primary".to_owned(),
            "it names one owner at a time, until that one's lease has ended; try again".to_owned(),
        ),
        Refusal::NotRecorded { volume } => refused(
            format!("the voter has recorded a newer generation of volume {volume} than this disk"),
            format!("bring {peer} up and let it sync to this node"),
        ),
        Refusal::IsPrimary => refused(
            "not while this node is primary".to_owned(),
            format!("run `lockstep secondary {resource}` first"),
        ),
        Refusal::NotPrimary => refused(
            "this node is not primary".to_owned(),
            format!("run it on the primary, or `lockstep primary {resource}` first"),
        ),
        Refusal::BothPrimary => refused(
            "both nodes are primary".to_owned(),
            format!(
                "make the one whose writes can be given up secondary \
                 (`lockstep secondary {resource}`), then \
                 `lockstep connect --discard-my-data {resource}` on it"
            ),
        ),
        Refusal::StaleTerm => refused(
            format!("{peer} acts under an older term than the one known here"),
            format!("run `lockstep secondary {resource}` on {peer}, then connect again"),
        ),
        _ => return None,
    })
}

/// Refusals that are about the state of the data.
fn of_data_refusal(refusal: &Refusal, names: Names<'_>) -> Option<Reason> {
    let Names { resource, peer } = names;
    Some(match refusal {
        Refusal::DiskInconsistent { volume } => refused(
            format!(
                "the disk of volume {volume} is Inconsistent: it was never synced, or a sync onto \
                 it is unfinished"
            ),
            format!(
                "a new pair: `lockstep primary --force {resource}`, once, on the node whose data \
                 is the first; otherwise connect {peer} and let the sync end (`lockstep wait-sync \
                 {resource}`); --force uses this copy as it is"
            ),
        ),
        Refusal::DiskOutdated { volume } => refused(
            format!("the disk of volume {volume} is Outdated: {peer} has newer data"),
            format!(
                "connect {peer} and let it sync; to go on with the older data, \
                 `lockstep primary --force {resource}`"
            ),
        ),
        Refusal::NoDisk { volume } => refused(
            format!("volume {volume} has no disk on this node"),
            format!("run `lockstep attach {resource}`; the log says why a disk was detached"),
        ),
        Refusal::PeerNotUpToDate { volume } => refused(
            format!("the copy of volume {volume} on {peer} is not UpToDate"),
            format!("wait for the sync (`lockstep wait-sync {resource}`)"),
        ),
        Refusal::SplitBrain {
            volume,
            mine,
            theirs,
        } => refused(
            format!(
                "split brain in volume {volume}: both nodes wrote without each other \
                 (here: {}; {peer}: {})",
                list(mine),
                list(theirs)
            ),
            format!(
                "decide whose writes are given up; on that node run \
                 `lockstep disconnect {resource}` and \
                 `lockstep connect --discard-my-data {resource}`, on the other \
                 `lockstep connect {resource}`"
            ),
        ),
        Refusal::UnrelatedData {
            volume,
            mine,
            theirs,
        } => refused(
            format!(
                "the disks of volume {volume} never had anything in common \
                 (here: {mine}; {peer}: {theirs})"
            ),
            format!(
                "check that both nodes name the right disks; to give up one copy, run \
                 `lockstep connect --discard-my-data {resource}` on its node"
            ),
        ),
        Refusal::PrimaryIsOlder { volume } => refused(
            format!("the primary holds older data of volume {volume} than the other node"),
            format!(
                "run `lockstep secondary {resource}` on the primary and connect again: it then \
                 gets the newer data; or give up the newer data with \
                 `lockstep connect --discard-my-data {resource}` on the other node"
            ),
        ),
        Refusal::AsksFirst { volume } => refused(
            format!(
                "a sync onto volume {volume} is about to begin: the handler before-resync-target \
                 comes first"
            ),
            "the connection is made when the handler has ended with exit code 0".to_owned(),
        ),
        Refusal::NoSource { volume } => refused(
            format!("neither node has usable data of volume {volume}"),
            format!(
                "on the node whose disk shall be the source: `lockstep primary --force {resource}`"
            ),
        ),
        _ => return None,
    })
}

/// The rest: configuration, sizes, limits of time and of this version.
fn of_other_refusal(refusal: &Refusal, names: Names<'_>) -> Reason {
    let Names { resource, peer } = names;
    let status = format!("`lockstep status {resource}` shows the state");
    match refusal {
        Refusal::NotConnected => refused(
            format!("not connected to {peer}"),
            format!("`lockstep connect {resource}`, then `lockstep wait-connect {resource}`"),
        ),
        Refusal::AlreadyAttached { volume } => {
            refused(format!("volume {volume} has its disk already"), status)
        }
        Refusal::EmptyRange { volume } => refused(
            format!("nothing of volume {volume} lies in that range"),
            format!("{status}, with the volume's size"),
        ),
        Refusal::VerifyRuns { volume } => refused(
            format!("a verify of volume {volume} is running"),
            format!("{status}; `lockstep verify {resource} --wait` waits for its end"),
        ),
        Refusal::UnknownVolume { volume } => refused(
            format!("there is no volume {volume}"),
            format!("`lockstep dump {resource}` shows the volumes"),
        ),
        Refusal::Busy => timed_out(
            "a handshake or another change of role is running and did not end in time".to_owned(),
            format!("{status}; try again"),
        ),
        Refusal::LinkLost => refused(
            format!("the connection to {peer} broke while it was asked"),
            format!("{status}; try again"),
        ),
        Refusal::PeerTooSmall { volume, need, have } => refused(
            format!("volume {volume}: the disk of {peer} has {have} bytes, {need} are needed"),
            format!("enlarge the disk of {peer}, or use another one"),
        ),
        Refusal::DiskTooSmall { volume, need, have } => refused(
            format!("volume {volume}: the disk has {have} bytes, {need} are needed"),
            "enlarge the disk, or use another one".to_owned(),
        ),
        Refusal::ProtocolMismatch => refused(
            format!("this node and {peer} are configured with different protocols"),
            "make the `protocol` lines of both nodes equal, then connect again".to_owned(),
        ),
        Refusal::BlockSizeMismatch { volume } => refused(
            format!(
                "volume {volume}: the device in use has smaller logical blocks than the disk of \
                 the other node"
            ),
            format!(
                "`lockstep secondary {resource}` on the primary, then connect: the device is \
                 made anew with the larger blocks"
            ),
        ),
        Refusal::VolumeMismatch => refused(
            format!("this node and {peer} are configured with different volumes"),
            "make the configuration of both nodes equal, then connect again".to_owned(),
        ),
        Refusal::Metadata { errno } => failed(
            format!("metadata cannot be written (errno {errno})"),
            "check the disk; the kernel log names the fault".to_owned(),
        ),
        Refusal::ShuttingDown => refused(
            "the resource is going down".to_owned(),
            format!("`lockstep up {resource}` when it is down"),
        ),
        Refusal::Unsupported(what) => failed(
            format!("{what} is not supported"),
            "both nodes must run a version that has it".to_owned(),
        ),
        // The two tables before this one take every other refusal.
        Refusal::PeerIsPrimary
        | Refusal::PeerPromotes
        | Refusal::NotProvenCurrent
        | Refusal::NoVote
        | Refusal::NotRecorded { .. }
        | Refusal::IsPrimary
        | Refusal::NotPrimary
        | Refusal::BothPrimary
        | Refusal::StaleTerm
        | Refusal::DiskInconsistent { .. }
        | Refusal::DiskOutdated { .. }
        | Refusal::NoDisk { .. }
        | Refusal::PeerNotUpToDate { .. }
        | Refusal::SplitBrain { .. }
        | Refusal::UnrelatedData { .. }
        | Refusal::PrimaryIsOlder { .. }
        | Refusal::AsksFirst { .. }
        | Refusal::NoSource { .. } => refused(format!("{refusal:?}"), status),
    }
}

/// How the last link ended.
pub fn of_loss(loss: &LinkLoss, names: Names<'_>) -> String {
    let peer = names.peer;
    match loss {
        LinkLoss::Closed => format!("{peer} or the network closed the connection; trying again"),
        LinkLoss::Network(errno) => {
            let error = std::io::Error::from_raw_os_error(*errno);
            format!("network error: {error}; check the path to {peer}; trying again")
        }
        LinkLoss::PingTimeout => {
            format!("{peer} was silent for too long; check the network and whether it runs")
        }
        LinkLoss::KoCount => {
            format!("{peer} answered pings but did not finish a write in time; check its disk")
        }
        LinkLoss::HandshakeTimeout => {
            format!("{peer} did not finish the handshake in time; check its log and its load")
        }
        LinkLoss::Protocol(what) => format!(
            "{peer} sent something that makes no sense ({what}); check its version and the \
             network for damaged packets"
        ),
        LinkLoss::Replaced => format!("a newer connection of {peer} took over"),
        LinkLoss::Goodbye => format!(
            "{peer} disconnected; `lockstep connect {}` there brings it back",
            names.resource
        ),
        LinkLoss::Local => format!(
            "disconnected here; `lockstep connect {}` brings it back",
            names.resource
        ),
        LinkLoss::OtherReign => {
            format!("{peer} is primary as well: the earlier of the two reigns ends; trying again")
        }
        LinkLoss::Renegotiate => "a disk has changed; the handshake is done again".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::VolumeId;

    const NAMES: Names<'static> = Names {
        resource: "r0",
        peer: "beta",
    };

    /// One of each.
    fn every_refusal() -> Vec<Refusal> {
        let volume = VolumeId(3);
        vec![
            Refusal::PeerIsPrimary,
            Refusal::PeerPromotes,
            Refusal::NotProvenCurrent,
            Refusal::DiskInconsistent { volume },
            Refusal::DiskOutdated { volume },
            Refusal::NoDisk { volume },
            Refusal::NoVote,
            Refusal::NotRecorded { volume },
            Refusal::IsPrimary,
            Refusal::NotPrimary,
            Refusal::NotConnected,
            Refusal::PeerNotUpToDate { volume },
            Refusal::AlreadyAttached { volume },
            Refusal::UnknownVolume { volume },
            Refusal::Busy,
            Refusal::LinkLost,
            Refusal::SplitBrain {
                volume,
                mine: vec![Generation(0xaa), Generation(0xbb)],
                theirs: vec![Generation(0xcc)],
            },
            Refusal::UnrelatedData {
                volume,
                mine: Generation(0xaa),
                theirs: Generation(0xcc),
            },
            Refusal::BothPrimary,
            Refusal::PrimaryIsOlder { volume },
            Refusal::StaleTerm,
            Refusal::PeerTooSmall {
                volume,
                need: 2,
                have: 1,
            },
            Refusal::DiskTooSmall {
                volume,
                need: 2,
                have: 1,
            },
            Refusal::ProtocolMismatch,
            Refusal::BlockSizeMismatch { volume },
            Refusal::VolumeMismatch,
            Refusal::AsksFirst { volume },
            Refusal::NoSource { volume },
            Refusal::Metadata { errno: 5 },
            Refusal::ShuttingDown,
            Refusal::Unsupported("x"),
        ]
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for refusal in every_refusal() {
            let reason = of_refusal(&refusal, NAMES);
            assert!(!reason.help.is_empty(), "{refusal:?}");
            assert!(!reason.reason.contains("Refusal"), "{refusal:?}");
            assert_ne!(
                reason.reason,
                format!("{refusal:?}"),
                "only its name is said"
            );
            let expected = match reason.kind {
                "refused" => 3,
                "timeout" => 4,
                "failed" => 1,
                other => panic!("{other}"),
            };
            assert_eq!(reason.exit, expected);
        }
    }

    #[test]
    fn split_brain_shows_both_histories() {
        let split = every_refusal()
            .into_iter()
            .find(|refusal| matches!(refusal, Refusal::SplitBrain { .. }))
            .expect("one of each");
        let text = of_refusal(&split, NAMES).reason;
        for part in [
            "volume 3",
            "00000000000000AA",
            "00000000000000BB",
            "00000000000000CC",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_lost_connection_says_why_and_one_that_is_up_does_not() {
        let notice = |to| Notice::Connection {
            to,
            reason: None,
            loss: Some(LinkLoss::KoCount),
        };
        let lost = of_notice(&notice(ConnectionState::Connecting), Duration::ZERO, NAMES);
        assert!(
            lost.starts_with("connection Connecting: beta answered pings"),
            "{lost}"
        );
        let up = of_notice(&notice(ConnectionState::Connected), Duration::ZERO, NAMES);
        assert_eq!(up, "connection Connected");
    }

    #[test]
    fn what_has_ended_says_how_much_it_did_and_how_fast() {
        let volume = VolumeId(0);
        let ran = Duration::from_millis(2500);
        let done = Notice::SyncDone {
            volume,
            copied: 4 << 20,
            compared: 1 << 20,
        };
        assert_eq!(
            of_notice(&done, ran, NAMES),
            "volume 0: in sync; 4096 KiB copied, 1024 KiB found equal, in 2.5 s, 2048 KiB/s"
        );
        let bytes = 5 << 20;
        let repaired = of_notice(&Notice::Repaired { volume, bytes }, ran, NAMES);
        assert!(
            repaired.ends_with("5120 KiB repaired, in 2.5 s, 2048 KiB/s"),
            "{repaired}"
        );
    }

    #[test]
    fn every_loss_names_the_peer_or_the_way_back() {
        let losses = [
            LinkLoss::Closed,
            LinkLoss::Network(111),
            LinkLoss::PingTimeout,
            LinkLoss::KoCount,
            LinkLoss::HandshakeTimeout,
            LinkLoss::Protocol("bad"),
            LinkLoss::Replaced,
            LinkLoss::Goodbye,
            LinkLoss::Local,
            LinkLoss::OtherReign,
        ];
        for loss in losses {
            let text = of_loss(&loss, NAMES);
            assert!(
                text.contains("beta") || text.contains("r0"),
                "{loss:?}: {text}"
            );
        }
    }
}
