//! Who syncs from whom: the decision made for every volume when two nodes meet.
//!
//! Both nodes feed the same two descriptions into [`decide`], each with itself first, and reach
//! mirrored verdicts; a test walks the whole space. Generations decide, terms never do, and no
//! verdict clears a dirty bit.
//!
//! | relation of the generations                  | verdict for the first side            |
//! |----------------------------------------------|---------------------------------------|
//! | a side has no disk                           | no sync                               |
//! | both just created                            | no sync                               |
//! | one just created                             | full sync toward it                   |
//! | equal, one inconsistent                      | sync toward that one                  |
//! | equal, nothing dirty, nobody crashed         | no sync                               |
//! | equal otherwise                              | from the live primary, else from the crashed primary, else (sessions differ) from the later session, else from the side with dirty bits, else from the lower node |
//! | mine is the other's base                     | I am target, by bitmap                |
//! | mine is in the other's history               | I am target, whole device             |
//! | same base, or a common ancestor              | split brain, unless one side discards |
//! | nothing in common                            | refused                               |
//!
//! Then: a live primary is a target only for a disk that it takes back, whose data it has left with
//! the other side, and never a source of that; a source must not be inconsistent; sessions that do
//! not match (a restored snapshot, a cloned disk) turn the sync into a comparison of everything.

use super::ids::{Generation, NodeId, Session};
use super::message::{NodeState, VolumeState};
use super::status::{DiskState, Role};

/// How much a sync looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Extent {
    /// Blocks that either bitmap marks.
    Bitmap,
    /// Everything, copied.
    Full,
    /// Everything, compared by strong hash first.
    Compare,
}

/// Why two volumes do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Misfit {
    SplitBrain,
    Unrelated,
    PrimaryIsOlder,
    NoSource,
}

/// What happens with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    NoSync,
    Source(Extent),
    Target(Extent),
    Refuse(Misfit),
}

impl Verdict {
    /// The same verdict as the other side sees it.
    pub(super) fn mirror(self) -> Verdict {
        match self {
            Verdict::Source(extent) => Verdict::Target(extent),
            Verdict::Target(extent) => Verdict::Source(extent),
            other => other,
        }
    }

    /// Code on the wire.
    pub(super) fn code(self) -> u8 {
        let extent = |e| match e {
            Extent::Bitmap => 0,
            Extent::Full => 1,
            Extent::Compare => 2,
        };
        match self {
            Verdict::NoSync => 0,
            Verdict::Source(e) => 1 + extent(e),
            Verdict::Target(e) => 4 + extent(e),
            Verdict::Refuse(_) => 7,
        }
    }
}

/// A volume of one node, as the decision sees it.
#[derive(Clone, Debug)]
pub(super) struct Side<'a> {
    pub(super) node: NodeId,
    pub(super) primary: bool,
    pub(super) discard: bool,
    pub(super) volume: &'a VolumeState,
}

impl<'a> Side<'a> {
    pub(super) fn new(node: &'a NodeState, volume: &'a VolumeState) -> Side<'a> {
        Side {
            node: node.node,
            primary: node.role == Role::Primary,
            discard: node.discard_my_data,
            volume,
        }
    }

    fn current(&self) -> Generation {
        self.volume.current
    }

    fn base(&self) -> Generation {
        self.volume.base
    }

    fn inconsistent(&self) -> bool {
        self.volume.disk == DiskState::Inconsistent
    }

    /// A primary that takes a disk back: its data is on the other side.
    fn works_there(&self) -> bool {
        self.primary && self.volume.disk <= DiskState::Outdated
    }

    fn knows(&self, generation: Generation) -> bool {
        self.base() == generation || self.volume.history.contains(&generation)
    }
}

/// How the generations of two sides relate, seen from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    BothFresh,
    MeFresh,
    PeerFresh,
    Equal,
    /// The peer's bitmap starts where my data is.
    MeBase,
    PeerBase,
    MeAncestor,
    PeerAncestor,
    /// Both went on from the same base.
    SameBase,
    CommonAncestor,
    Unrelated,
}

fn relate(me: &Side, peer: &Side) -> Relation {
    let (mine, theirs) = (me.current(), peer.current());
    match (mine.is_fresh(), theirs.is_fresh()) {
        (true, true) => return Relation::BothFresh,
        (true, false) => return Relation::MeFresh,
        (false, true) => return Relation::PeerFresh,
        (false, false) => {}
    }
    if mine == theirs {
        return Relation::Equal;
    }
    let me_older = peer.base() == mine;
    let peer_older = me.base() == theirs;
    if me_older != peer_older {
        return if me_older {
            Relation::MeBase
        } else {
            Relation::PeerBase
        };
    }
    let me_ancestor = peer.volume.history.contains(&mine);
    let peer_ancestor = me.volume.history.contains(&theirs);
    if me_ancestor != peer_ancestor {
        return if me_ancestor {
            Relation::MeAncestor
        } else {
            Relation::PeerAncestor
        };
    }
    if !me.base().is_fresh() && me.base() == peer.base() {
        return Relation::SameBase;
    }
    let common = me
        .volume
        .history
        .iter()
        .any(|g| !g.is_fresh() && peer.knows(*g))
        || (!me.base().is_fresh() && peer.knows(me.base()));
    if common || me_ancestor {
        Relation::CommonAncestor
    } else {
        Relation::Unrelated
    }
}

/// The verdict for `me` meeting `peer`.
pub(super) fn decide(me: &Side, peer: &Side) -> Verdict {
    let diskless = |side: &Side| side.volume.disk < DiskState::Inconsistent;
    let relation = relate(me, peer);
    if diskless(me) || diskless(peer) {
        return match relation {
            // A diskless primary works on data that the other side must still have.
            Relation::Equal | Relation::BothFresh => Verdict::NoSync,
            _ if me.primary || peer.primary => Verdict::Refuse(Misfit::NoSource),
            _ => Verdict::NoSync,
        };
    }
    let verdict = match relation {
        Relation::BothFresh => Verdict::NoSync,
        Relation::MeFresh => Verdict::Target(Extent::Full),
        Relation::PeerFresh => Verdict::Source(Extent::Full),
        Relation::Equal => decide_equal(me, peer),
        Relation::MeBase => Verdict::Target(Extent::Bitmap),
        Relation::PeerBase => Verdict::Source(Extent::Bitmap),
        Relation::MeAncestor => Verdict::Target(Extent::Compare),
        Relation::PeerAncestor => Verdict::Source(Extent::Compare),
        Relation::SameBase | Relation::CommonAncestor => {
            let extent = if relation == Relation::SameBase {
                Extent::Bitmap
            } else {
                Extent::Compare
            };
            match (me.discard, peer.discard) {
                (true, false) => Verdict::Target(extent),
                (false, true) => Verdict::Source(extent),
                _ => Verdict::Refuse(Misfit::SplitBrain),
            }
        }
        Relation::Unrelated => Verdict::Refuse(Misfit::Unrelated),
    };
    restrict(me, peer, relation, verdict)
}

fn decide_equal(me: &Side, peer: &Side) -> Verdict {
    let first_of = |mine: bool, theirs: bool| match (mine, theirs) {
        (true, false) => Some(Verdict::Source(Extent::Bitmap)),
        (false, true) => Some(Verdict::Target(Extent::Bitmap)),
        _ => None,
    };
    let (mine, theirs) = (me.volume, peer.volume);
    if me.works_there() || peer.works_there() {
        return first_of(!me.works_there(), !peer.works_there()).unwrap_or(Verdict::NoSync);
    }
    if me.inconsistent() || peer.inconsistent() {
        return first_of(!me.inconsistent(), !peer.inconsistent()).unwrap_or(Verdict::NoSync);
    }
    let clean = |v: &VolumeState| v.dirty_bits == 0 && !v.crashed_primary && !v.want_full;
    if clean(mine) && clean(theirs) && sessions_match(mine, theirs) {
        return Verdict::NoSync;
    }
    first_of(me.primary, peer.primary)
        .or_else(|| first_of(mine.crashed_primary, theirs.crashed_primary))
        .or_else(|| {
            let newer = mine.session > theirs.session;
            first_of(newer, !newer).filter(|_| !sessions_match(mine, theirs))
        })
        .or_else(|| first_of(mine.dirty_bits > 0, theirs.dirty_bits > 0))
        .or_else(|| first_of(me.node < peer.node, peer.node < me.node))
        .unwrap_or(Verdict::NoSync)
}

/// Whether the two sides last stored the same session, or one that only one of them finished.
fn sessions_match(mine: &VolumeState, theirs: &VolumeState) -> bool {
    let none = Session::default();
    (mine.session == none && theirs.session == none)
        || mine.session == theirs.session
        || (mine.session == theirs.session_pending && mine.session != none)
        || (theirs.session == mine.session_pending && theirs.session != none)
}

fn restrict(me: &Side, peer: &Side, relation: Relation, verdict: Verdict) -> Verdict {
    let (source, target, extent) = match verdict {
        Verdict::Source(extent) => (me, peer, extent),
        Verdict::Target(extent) => (peer, me, extent),
        other => return other,
    };
    if target.primary && !target.works_there() {
        return Verdict::Refuse(Misfit::PrimaryIsOlder);
    }
    if source.inconsistent() || source.works_there() {
        return Verdict::Refuse(Misfit::NoSource);
    }
    let fresh = matches!(relation, Relation::MeFresh | Relation::PeerFresh);
    let extent = if extent == Extent::Full || fresh || target.volume.want_full {
        Extent::Full
    } else if source.volume.want_full || !sessions_match(me.volume, peer.volume) {
        Extent::Compare
    } else {
        extent
    };
    match verdict {
        Verdict::Source(_) => Verdict::Source(extent),
        _ => Verdict::Target(extent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::VolumeId;

    fn volume(disk: DiskState, current: u64, base: u64, history: &[u64]) -> VolumeState {
        VolumeState {
            volume: VolumeId(0),
            capacity: 1 << 20,
            agreed_size: 0,
            logical_block: 512,
            discard: true,
            disk,
            current: Generation(current),
            base: Generation(base),
            history: history.iter().map(|g| Generation(*g)).collect(),
            dirty_bits: 0,
            crashed_primary: false,
            want_full: false,
            session: Session(1),
            session_pending: Session::default(),
        }
    }

    fn side(node: u8, primary: bool, discard: bool, volume: &VolumeState) -> Side<'_> {
        Side {
            node: NodeId(node),
            primary,
            discard,
            volume,
        }
    }

    /// Every combination of a small space of generations, states and flags.
    fn every_side() -> Vec<(VolumeState, bool, bool)> {
        let mut sides = Vec::new();
        let disks = [
            DiskState::Diskless,
            DiskState::Inconsistent,
            DiskState::Outdated,
            DiskState::Consistent,
            DiskState::UpToDate,
        ];
        for disk in disks {
            for (current, base, history) in [
                (0, 0, &[][..]),
                (1, 0, &[]),
                (2, 1, &[]),
                (3, 1, &[]),
                (2, 0, &[1]),
                (4, 2, &[1]),
                (9, 0, &[]),
            ] {
                // Data that never was is inconsistent, or there is no disk.
                if current == 0 && disk > DiskState::Inconsistent {
                    continue;
                }
                for flags in 0..64u32 {
                    let mut v = volume(disk, current, base, history);
                    v.dirty_bits = u64::from(flags & 1);
                    v.crashed_primary = flags & 2 != 0;
                    v.want_full = flags & 4 != 0;
                    v.session = Session(1 + u64::from(flags >> 3 & 1));
                    sides.push((v, flags & 16 != 0, flags & 32 != 0));
                }
            }
        }
        sides
    }

    #[test]
    fn both_sides_reach_the_mirrored_verdict() {
        let sides = every_side();
        for (a, a_primary, a_discard) in &sides {
            for (b, b_primary, b_discard) in &sides {
                let left = side(0, *a_primary, *a_discard, a);
                let right = side(1, *b_primary, *b_discard, b);
                let verdict = decide(&left, &right);
                assert_eq!(
                    verdict.mirror(),
                    decide(&right, &left),
                    "{left:?} {right:?}"
                );
                if let Verdict::Source(_) = verdict {
                    assert!(
                        !b_primary || b.disk <= DiskState::Outdated,
                        "a live primary is never a target for a disk that counts"
                    );
                    assert!(
                        !a_primary || a.disk > DiskState::Outdated,
                        "data that is elsewhere is not copied from here"
                    );
                    assert_ne!(a.disk, DiskState::Inconsistent, "sources are consistent");
                }
                if verdict == Verdict::NoSync
                    && a.disk >= DiskState::Consistent
                    && b.disk >= DiskState::Consistent
                {
                    assert_eq!(
                        a.current, b.current,
                        "no sync only between equal generations"
                    );
                    assert_eq!(
                        (a.dirty_bits, b.dirty_bits),
                        (0, 0),
                        "bits are never dropped"
                    );
                }
            }
        }
    }

    #[test]
    fn independent_writes_are_split_brain_until_one_side_discards() {
        let (a, b) = (
            volume(DiskState::UpToDate, 2, 1, &[]),
            volume(DiskState::UpToDate, 3, 1, &[]),
        );
        let verdict = |da, db| decide(&side(0, false, da, &a), &side(1, false, db, &b));
        assert_eq!(verdict(false, false), Verdict::Refuse(Misfit::SplitBrain));
        assert_eq!(verdict(true, true), Verdict::Refuse(Misfit::SplitBrain));
        assert_eq!(verdict(true, false), Verdict::Target(Extent::Bitmap));
        assert_eq!(verdict(false, true), Verdict::Source(Extent::Bitmap));
    }

    #[test]
    fn an_older_session_is_compared_toward_the_older_side() {
        let mut a = volume(DiskState::Consistent, 1, 0, &[]);
        let b = volume(DiskState::UpToDate, 1, 0, &[]);
        a.session = Session(7);
        assert_eq!(
            decide(&side(0, false, false, &a), &side(1, false, false, &b)),
            Verdict::Source(Extent::Compare)
        );
        assert_eq!(
            decide(&side(0, false, false, &a), &side(1, true, false, &b)),
            Verdict::Target(Extent::Compare)
        );
    }

    #[test]
    fn a_session_that_one_side_did_not_finish_storing_matches() {
        let mut a = volume(DiskState::UpToDate, 1, 0, &[]);
        let mut b = volume(DiskState::UpToDate, 1, 0, &[]);
        a.session = Session(7);
        b.session = Session(6);
        b.session_pending = Session(7);
        let verdict = decide(&side(0, false, false, &a), &side(1, false, false, &b));
        assert_eq!(verdict, Verdict::NoSync);
    }
}
