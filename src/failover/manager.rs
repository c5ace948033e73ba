//! Whether this node should try to become primary of a resource now.
//!
//! A decision to try is no more than that: the voters decide who reigns, and the engine whether
//! the copy is good enough. So two nodes that try at once, or one that is wrong about the other,
//! cost a refusal and nothing else; what is here keeps that rare and the takeover quick.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a resource is on a node, as far as it matters here. Rides in every beat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    pub primary: bool,
    /// Its data plane runs with every disk UpToDate or Consistent.
    pub able: bool,
    /// An operator has taken it out of service, or has made it secondary by hand.
    pub resting: bool,
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Promotions are made without an operator.
    pub automatic: bool,
    /// An operator looks after the cluster.
    pub maintenance: bool,
    pub me: Side,
    /// None while nothing is heard of it.
    pub peer: Option<Side>,
    /// Since this agent has started.
    pub uptime: Duration,
    /// For how long nothing has been heard of the peer.
    pub peer_silent: Duration,
    /// For how long both have been there with neither primary.
    pub idle: Duration,
    /// The copies are connected.
    pub connected: bool,
    /// Wait this long after a start for a peer that has not been heard of.
    pub boot_wait: Duration,
    pub first: First,
}

/// Which node begins where both could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Me,
    Peer,
}

impl First {
    /// The preferred node, else the one that reigned last, else the one with the lower number.
    pub fn choose(
        preferred_is_me: Option<bool>,
        reigned_is_me: Option<bool>,
        lower: bool,
    ) -> First {
        match preferred_is_me.or(reigned_is_me).unwrap_or(lower) {
            true => First::Me,
            false => First::Peer,
        }
    }
}

/// Why it does not try now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    #[error("the operator is the vote: `lockstep primary` promotes")]
    Manual,
    #[error("maintenance: nothing is moved")]
    Maintenance,
    #[error("this node was taken out of service")]
    Resting,
    #[error("this copy cannot be used")]
    Unable,
    #[error("the other node is primary")]
    PeerReigns,
    #[error("nothing was heard of the other node since the start: it is waited for")]
    Boot,
    /// The replication link is a path as well: the peer is asked over it.
    #[error("no heartbeat of the other node comes, but the copies are connected: no failover")]
    Connected,
    #[error("the other node begins")]
    PeerFirst,
    #[error("this node is primary")]
    Reigning,
}

/// How long the node that is not first waits for the other.
const SECOND_AFTER: Duration = Duration::from_secs(5);
/// How long two nodes that hear each other wait for the connection of their copies.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// Whether to try now, or what it waits for.
pub fn decide(facts: &Facts) -> Result<(), Wait> {
    if facts.me.primary {
        return Err(Wait::Reigning);
    }
    if !facts.automatic {
        return Err(Wait::Manual);
    }
    if facts.maintenance {
        return Err(Wait::Maintenance);
    }
    if facts.me.resting {
        return Err(Wait::Resting);
    }
    if !facts.me.able {
        return Err(Wait::Unable);
    }
    let Some(peer) = facts.peer else {
        if facts.connected {
            return Err(Wait::Connected);
        }
        // What was heard of before is silent; what never was may be booting as well.
        let heard_before = facts.peer_silent < facts.uptime;
        return match heard_before || facts.uptime >= facts.boot_wait {
            true => Ok(()),
            false => Err(Wait::Boot),
        };
    };
    if peer.primary {
        return Err(Wait::PeerReigns);
    }
    if !facts.connected && facts.idle < CONNECT_WAIT {
        return Err(Wait::PeerFirst);
    }
    let mine = facts.first == First::Me || peer.resting || !peer.able;
    match mine || facts.idle >= SECOND_AFTER {
        true => Ok(()),
        false => Err(Wait::PeerFirst),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABLE: Side = Side {
        primary: false,
        able: true,
        resting: false,
    };

    fn facts() -> Facts {
        Facts {
            automatic: true,
            maintenance: false,
            me: ABLE,
            peer: Some(ABLE),
            uptime: Duration::from_secs(100),
            peer_silent: Duration::ZERO,
            idle: Duration::from_secs(1),
            connected: true,
            boot_wait: Duration::from_secs(10),
            first: First::Me,
        }
    }

    #[test]
    fn a_peer_that_falls_silent_is_followed_at_once_and_one_never_heard_of_is_waited_for() {
        let mut f = facts();
        f.peer = None;
        assert_eq!(decide(&f), Err(Wait::Connected));
        f.connected = false;
        f.peer_silent = Duration::from_millis(1);
        assert_eq!(decide(&f), Ok(()));
        f.uptime = Duration::from_secs(3);
        f.peer_silent = f.uptime;
        assert_eq!(decide(&f), Err(Wait::Boot));
        f.uptime = Duration::from_secs(10);
        f.peer_silent = f.uptime;
        assert_eq!(decide(&f), Ok(()));
    }

    #[test]
    fn one_of_two_begins_and_the_other_only_when_it_does_not() {
        let mut f = facts();
        assert_eq!(decide(&f), Ok(()));
        f.first = First::Peer;
        assert_eq!(decide(&f), Err(Wait::PeerFirst));
        f.idle = SECOND_AFTER;
        assert_eq!(decide(&f), Ok(()));
        f.idle = Duration::ZERO;
        f.peer = Some(Side {
            resting: true,
            ..ABLE
        });
        assert_eq!(decide(&f), Ok(()));
        f.connected = false;
        assert_eq!(decide(&f), Err(Wait::PeerFirst), "they may be connecting");
        assert_eq!(First::choose(Some(false), Some(true), true), First::Peer);
        assert_eq!(First::choose(None, Some(true), false), First::Me);
        assert_eq!(First::choose(None, None, false), First::Peer);
    }

    /// Every combination: nothing is tried beside a primary that is heard of, by a copy that
    /// cannot be used, or against the operator; and with an able copy here, no primary and nobody
    /// resting, something is tried in the end.
    #[test]
    fn every_situation_is_safe_and_moves() {
        let flags = |n: u32, bit: u32| n >> bit & 1 == 1;
        for n in 0..1 << 10 {
            let side = |at| Side {
                primary: flags(n, at),
                able: flags(n, at + 1),
                resting: flags(n, at + 2),
            };
            let mut f = Facts {
                automatic: flags(n, 0),
                maintenance: flags(n, 1),
                me: side(2),
                peer: flags(n, 5).then(|| side(6)),
                connected: flags(n, 9),
                first: First::Peer,
                ..facts()
            };
            let tries = decide(&f).is_ok();
            let may = f.automatic && !f.maintenance && !f.me.primary && !f.me.resting && f.me.able;
            let free = match f.peer {
                Some(peer) => !peer.primary,
                None => !f.connected,
            };
            assert!(!tries || may && free, "{f:?}");
            f.idle = Duration::from_secs(60);
            assert_eq!(decide(&f).is_ok(), may && free, "{f:?}");
        }
    }
}
