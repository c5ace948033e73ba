//! What a run may show and what it may not.
//!
//! The oracle is omniscient: it sees every request, every completion and both disks, but none of
//! the engine's memory. It keeps a [`Model`] per serving node: the content that the node started
//! to serve with, and for every sector the writes since then with the moments of their submission
//! and completion. A sector may hold a version unless another completed write certainly came
//! later. When a node starts to serve, its disk is compared with the model of the reign before:
//! what is missing must be covered by the losses that rule 1 permits; then the disk is the truth.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use lockstep::engine::Protocol;

use crate::disk::{Pages, ZERO};

/// A moment in the order of the run.
pub type Moment = u64;

/// Stamps of writes start here; smaller ones are initial contents.
const FIRST_STAMP: u64 = 1_000;

/// Which check objected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// A read returned what no legal history explains.
    Read,
    /// A completion promised more than the disks held, or a promised write is gone.
    Completion,
    /// A secondary holds a write but not one that was completed before it was submitted.
    Causal,
    /// Replicas that are marked equal differ.
    Equal,
    /// A sector differs and neither bitmap nor log says so.
    Dirty,
    /// A copy that is not provably current was promoted without force.
    Promote,
    /// A write of an old term or session reached the disk.
    Fence,
    /// A sync block overwrote newer data.
    Order,
    /// A sync block was written to a disk that was not recorded as inconsistent.
    Marked,
    /// A data write was submitted before its extent was durable in the log.
    Logged,
    /// Two nodes reigned at once, or one was deposed that did.
    Lease,
    /// The cluster did not recover after the faults stopped.
    Live,
    /// The final comparison missed a difference.
    Compare,
    /// The engine or its contract broke down.
    Contract,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Check::Read => "READ",
            Check::Completion => "COMPLETION",
            Check::Causal => "CAUSAL",
            Check::Equal => "EQUAL",
            Check::Dirty => "DIRTY",
            Check::Promote => "PROMOTE",
            Check::Fence => "FENCE",
            Check::Order => "ORDER",
            Check::Marked => "MARKED",
            Check::Logged => "LOGGED",
            Check::Lease => "LEASE",
            Check::Live => "LIVE",
            Check::Compare => "COMPARE",
            Check::Contract => "CONTRACT",
        })
    }
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: u8,
    pub check: Check,
    pub text: String,
}

impl Violation {
    pub fn new(rule: u8, check: Check, text: String) -> Violation {
        Violation { rule, check, text }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}: {}: {}", self.rule, self.check, self.text)
    }
}

/// How a write ended, as far as the application knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Ok,
    Failed,
    /// Its node died first.
    Unknown,
}

/// Index of a write in the oracle's table.
pub type WriteId = usize;

/// One application write. Ranges are in sectors.
#[derive(Clone, Debug)]
pub struct Write {
    pub volume: usize,
    pub start: u64,
    pub count: u64,
    /// Zeroes or a discard instead of data.
    pub zero: bool,
    pub fua: bool,
    /// The node that served it.
    pub node: usize,
    pub submitted: Moment,
    pub ended: Option<Moment>,
    pub outcome: Outcome,
    /// A later completed flush covers it.
    flushed: bool,
    /// Which incarnation of the peer's process has it in memory.
    received: Option<u32>,
}

impl Write {
    fn ended_before(&self, moment: Moment) -> bool {
        self.ended.is_some_and(|ended| ended < moment)
    }
}

/// The stamp that a data write leaves in its sectors.
pub fn stamp_of(id: WriteId) -> u64 {
    FIRST_STAMP + id as u64
}

/// The write that left a stamp; `None` for initial contents and zeroes.
pub fn write_of(stamp: u64) -> Option<WriteId> {
    stamp.checked_sub(FIRST_STAMP).map(|id| id as usize)
}

/// What has happened to a node's copy. All zero: nothing yet.
#[derive(Clone, Debug, Default)]
pub struct NodeHistory {
    /// Last power loss.
    pub power_lost: Moment,
    /// Last end of the process, and the incarnation that ended.
    pub died: Moment,
    pub dead_incarnation: u32,
    /// Last moment at which both copies were known equal or fully in sync.
    pub healed: Moment,
    /// Start of the session that led there.
    pub healed_from: Moment,
    /// It served since then.
    pub served: bool,
    /// Since then the copies were synced while nobody served: it may be made of either.
    pub blended: bool,
}

/// The reign of one node: base content and the writes since.
#[derive(Clone)]
struct Model {
    base: Vec<Pages>,
    versions: Vec<BTreeMap<u64, Vec<WriteId>>>,
    /// Completed writes that no flush has covered, per volume.
    unflushed: Vec<Vec<WriteId>>,
    /// The serving node lost power during the reign: its order of writes is gone.
    torn: bool,
    /// The reign before: where this one has completed no write in a volume, copies that it did
    /// not reach are still as good.
    prior: Option<Rc<Model>>,
    completed: Vec<bool>,
}

impl Model {
    fn new(base: Vec<Pages>) -> Model {
        Model {
            completed: vec![false; base.len()],
            versions: vec![BTreeMap::new(); base.len()],
            unflushed: vec![Vec::new(); base.len()],
            base,
            torn: false,
            prior: None,
        }
    }

    fn versions(&self, volume: usize, sector: u64) -> &[WriteId] {
        self.versions[volume]
            .get(&sector)
            .map_or(&[], Vec::as_slice)
    }
}

/// The judge of one run.
pub struct Oracle {
    pub protocol: Protocol,
    /// A node may be promoted alone although the other copy is not known to be out: a third voter
    /// says so.
    pub votes: bool,
    writes: Vec<Write>,
    moment: Moment,
    models: [Option<Model>; 2],
    /// Whose model is the truth when nobody serves.
    authority: usize,
    /// Both sides served without each other: nobody can say which history counts.
    ambiguous: bool,
    pub nodes: [NodeHistory; 2],
    pub violations: Vec<Violation>,
}

/// A sector for messages.
fn place(volume: usize, sector: u64) -> String {
    format!("volume {volume} sector {sector}")
}

impl Oracle {
    /// A judge for volumes whose initial contents are `base`.
    pub fn new(protocol: Protocol, base: Vec<Pages>) -> Oracle {
        Oracle {
            protocol,
            votes: false,
            writes: Vec::new(),
            moment: 1,
            models: [Some(Model::new(base)), None],
            authority: 0,
            ambiguous: false,
            nodes: Default::default(),
            violations: Vec::new(),
        }
    }

    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    pub fn report(&mut self, rule: u8, check: Check, text: String) {
        if !self
            .violations
            .iter()
            .any(|v| v.check == check && v.rule == rule)
        {
            self.violations.push(Violation::new(rule, check, text));
        }
    }

    pub fn write(&self, id: WriteId) -> Option<&Write> {
        self.writes.get(id)
    }

    /// A write enters the serving node. Returns its identity.
    #[allow(clippy::too_many_arguments)]
    pub fn submit(
        &mut self,
        node: usize,
        volume: usize,
        start: u64,
        count: u64,
        zero: bool,
        fua: bool,
    ) -> WriteId {
        let id = self.writes.len();
        let submitted = self.tick();
        self.writes.push(Write {
            volume,
            start,
            count,
            zero,
            fua,
            node,
            submitted,
            ended: None,
            outcome: Outcome::Pending,
            flushed: false,
            received: None,
        });
        if let Some(model) = &mut self.models[node] {
            for sector in start..start + count {
                model.versions[volume].entry(sector).or_default().push(id);
            }
        }
        id
    }

    /// The next data plane of `node` takes up a write that its predecessor left behind.
    pub fn resubmit(&mut self, id: WriteId, node: usize) {
        let submitted = self.tick();
        let write = &mut self.writes[id];
        write.submitted = submitted;
        write.received = None;
        let (volume, start, end) = (write.volume, write.start, write.start + write.count);
        if let Some(model) = &mut self.models[node] {
            for sector in start..end {
                let versions = model.versions[volume].entry(sector).or_default();
                versions.retain(|v| *v != id);
                versions.push(id);
            }
        }
    }

    /// Whether a stamp in a sector is certainly not what the reign that counts left there.
    pub fn is_stale(&self, volume: usize, sector: u64, stamp: u64) -> bool {
        let Some(model) = &self.models[self.authority] else {
            return false;
        };
        let base = model.base[volume].get(sector);
        let ok = |u: WriteId| self.writes[u].outcome == Outcome::Ok;
        !self.admissible(model.versions(volume, sector), base, stamp, ok)
    }

    /// The peer's process has the payload of a write in memory.
    pub fn received(&mut self, stamp: u64, incarnation: u32) {
        if let Some(write) = write_of(stamp).and_then(|id| self.writes.get_mut(id)) {
            write.received = Some(incarnation);
        }
    }

    /// Ends a write in the application's eyes.
    pub fn end(&mut self, id: WriteId, outcome: Outcome) {
        let moment = self.tick();
        let write = &mut self.writes[id];
        write.ended = Some(moment);
        write.outcome = outcome;
        let (node, volume, fua) = (write.node, write.volume, write.fua);
        if let (Outcome::Ok, Some(model)) = (outcome, &mut self.models[node]) {
            model.completed[volume] = true;
        }
        if outcome == Outcome::Ok
            && !fua
            && let Some(model) = &mut self.models[node]
        {
            model.unflushed[volume].push(id);
        }
    }

    fn value(&self, id: WriteId) -> u64 {
        if self.writes[id].zero {
            ZERO
        } else {
            stamp_of(id)
        }
    }

    /// Whether `stamp` in a sector of `node`'s reign is the given write or one that need not be
    /// older.
    fn holds(&self, node: usize, id: WriteId, sector: u64, stamp: u64) -> bool {
        let write = &self.writes[id];
        let Some(model) = &self.models[node] else {
            return true;
        };
        model.versions(write.volume, sector).iter().any(|other| {
            self.value(*other) == stamp
                && (*other == id || !self.writes[*other].ended_before(write.submitted))
        })
    }

    /// First sector of a write that `pages` does not hold in this or a later version.
    pub fn missing(&self, id: WriteId, pages: &Pages) -> Option<u64> {
        let write = &self.writes[id];
        (write.start..write.start + write.count)
            .find(|s| !self.holds(write.node, id, *s, pages.get(*s)))
    }

    /// Whether the peer has the payload of a write in memory.
    pub fn was_received(&self, id: WriteId) -> bool {
        self.writes[id].received.is_some()
    }

    /// A completed flush: everything that was completed before it was submitted must be stable.
    /// `stable` are the copies that have to have it.
    pub fn flushed(
        &mut self,
        node: usize,
        volume: usize,
        submitted: Moment,
        stable: &[(usize, &Pages)],
    ) {
        let Some(model) = &mut self.models[node] else {
            return;
        };
        let all = std::mem::take(&mut model.unflushed[volume]);
        let (covered, rest): (Vec<WriteId>, Vec<WriteId>) = all
            .into_iter()
            .partition(|id| self.writes[*id].ended_before(submitted));
        model.unflushed[volume] = rest;
        for (holder, pages) in stable {
            let lost = covered.iter().find_map(|id| {
                let after_loss = self.writes[*id].submitted > self.nodes[*holder].power_lost;
                self.missing(*id, pages)
                    .filter(|_| after_loss)
                    .map(|s| (*id, s))
            });
            if let Some((id, sector)) = lost {
                let text = format!(
                    "flush completed on node {node}, write {} at {} is not stable on node {holder}",
                    stamp_of(id),
                    place(volume, sector)
                );
                self.report(1, Check::Completion, text);
            }
        }
        for id in covered {
            self.writes[id].flushed = true;
        }
    }

    /// Judges what a completed read returned.
    pub fn read(
        &mut self,
        node: usize,
        volume: usize,
        start: u64,
        submitted: Moment,
        stamps: &[u64],
    ) {
        let Some(model) = &self.models[node] else {
            return;
        };
        for (sector, stamp) in (start..).zip(stamps) {
            let versions = model.versions(volume, sector);
            let base = model.base[volume].get(sector);
            let must = |u: WriteId| {
                let u = &self.writes[u];
                u.outcome == Outcome::Ok && u.ended_before(submitted)
            };
            if !self.admissible(versions, base, *stamp, must) {
                let text = format!(
                    "node {node} read {stamp} from {}, expected {}",
                    place(volume, sector),
                    self.expected(versions, base, must)
                );
                self.report(1, Check::Read, text);
                return;
            }
        }
    }

    /// Whether a sector may hold `stamp` when the writes for which `must` holds are certain.
    fn admissible(
        &self,
        versions: &[WriteId],
        base: u64,
        stamp: u64,
        must: impl Fn(WriteId) -> bool,
    ) -> bool {
        let overwritten = |end: Option<Moment>| {
            versions
                .iter()
                .any(|u| must(*u) && end.is_some_and(|end| end < self.writes[*u].submitted))
        };
        if stamp == base && !overwritten(Some(0)) {
            return true;
        }
        versions
            .iter()
            .any(|v| self.value(*v) == stamp && !overwritten(self.writes[*v].ended))
    }

    fn expected(&self, versions: &[WriteId], base: u64, must: impl Fn(WriteId) -> bool) -> String {
        let mut stamps: Vec<u64> = versions.iter().map(|v| self.value(*v)).collect();
        stamps.push(base);
        stamps.retain(|s| self.admissible(versions, base, *s, &must));
        stamps.sort_unstable();
        stamps.dedup();
        format!("{stamps:?}")
    }

    /// Whether rule 1 permits that a copy on `node` lacks a completed write.
    fn may_be_lost(&self, id: WriteId, node: usize) -> bool {
        let (write, history) = (&self.writes[id], &self.nodes[node]);
        let ended = write.ended.unwrap_or(Moment::MAX);
        let both = self.protocol == Protocol::C;
        let stable = (write.fua || write.flushed) && (both || write.node == node);
        if !stable && history.power_lost > ended && history.healed < history.power_lost {
            return true;
        }
        if write.node == node || both {
            return false;
        }
        if write.submitted < history.healed_from {
            return false;
        }
        match write.received {
            None => self.protocol == Protocol::A,
            Some(incarnation) => {
                history.dead_incarnation >= incarnation
                    && history.died > write.submitted
                    && history.healed < history.died
            }
        }
    }

    /// An operator's force for `node` took effect: unless nothing had been written anywhere,
    /// nobody can say which history counts.
    pub fn forced(&mut self, node: usize, other_serves: bool) {
        self.ambiguous |= other_serves || self.authority != node || !self.writes.is_empty();
    }

    /// A node starts to serve with these contents (`None`: it reads through its peer, so the
    /// model goes on). `sources` are the nodes whose copies it may be made of.
    pub fn promoted(
        &mut self,
        node: usize,
        forced: bool,
        contents: Option<Vec<Pages>>,
        sources: &[usize],
        other_serves: bool,
    ) {
        self.tick();
        if forced {
            self.forced(node, other_serves);
        }
        let before = self.authority;
        if let Some(contents) = contents {
            if !forced && !self.ambiguous {
                self.judge_takeover(node, &contents, sources);
            }
            let alone = self.votes && sources == [node];
            let prior = self.models[before].clone().filter(|_| alone).map(Rc::new);
            self.models[node] = Some(Model {
                prior,
                ..Model::new(contents)
            });
        } else if before != node {
            self.models[node] = self.models[before].clone();
        }
        self.authority = node;
        self.nodes[node].served = true;
    }

    fn judge_takeover(&mut self, node: usize, contents: &[Pages], sources: &[usize]) {
        let Some(model) = &self.models[self.authority] else {
            return;
        };
        let must = |u: WriteId| {
            self.writes[u].outcome == Outcome::Ok
                && !sources.iter().any(|s| self.may_be_lost(u, *s))
        };
        let mut found = None;
        for (volume, pages) in contents.iter().enumerate() {
            let base = &model.base[volume];
            let touched = model.versions[volume].keys().copied();
            let strange = base.difference(pages);
            let bad = touched.chain(strange).find(|sector| {
                let mut reigns = std::iter::successors(Some(model), |m| {
                    m.prior.as_deref().filter(|_| !m.completed[volume])
                });
                !reigns.any(|m| {
                    let (versions, base) = (m.versions(volume, *sector), &m.base[volume]);
                    self.admissible(versions, base.get(*sector), pages.get(*sector), must)
                })
            });
            if let Some(sector) = bad {
                let versions = model.versions(volume, sector);
                found = Some(format!(
                    "node {node} serves {} at {}, promised {}",
                    pages.get(sector),
                    place(volume, sector),
                    self.expected(versions, base.get(sector), must)
                ));
                break;
            }
        }
        if let Some(text) = found {
            self.report(1, Check::Completion, text);
        }
    }

    /// Both copies are marked up to date, nothing is in flight, and they are equal. `serving`
    /// names the node that serves, if any; otherwise the common content becomes the truth.
    pub fn settled(&mut self, serving: Option<usize>, common: impl FnOnce() -> Vec<Pages>) {
        let moment = self.tick();
        match serving {
            Some(node) => {
                self.authority = node;
                if let Some(model) = &mut self.models[node] {
                    model.prior = None;
                }
            }
            None => {
                let common = common();
                if !self.ambiguous {
                    self.judge_takeover(self.authority, &common, &[0, 1]);
                }
                self.models = [None, None];
                self.models[self.authority] = Some(Model::new(common));
            }
        }
        self.ambiguous = false;
        for (node, history) in self.nodes.iter_mut().enumerate() {
            history.healed = moment;
            history.healed_from = moment;
            history.served = serving == Some(node);
            history.blended = false;
        }
    }

    /// A session began while `node` served: once it is in sync, the peer has all that was
    /// submitted before `from`.
    pub fn synced(&mut self, peer: usize, from: Moment) {
        let moment = self.tick();
        let history = &mut self.nodes[peer];
        history.healed = moment;
        history.healed_from = history.healed_from.max(from);
        history.served = false;
        if let Some(model) = &mut self.models[1 - peer] {
            model.prior = None;
        }
    }

    /// The copies were synced while nobody served.
    pub fn blended(&mut self) {
        self.nodes.iter_mut().for_each(|n| n.blended = true);
    }

    pub fn now(&self) -> Moment {
        self.moment
    }

    /// The process of a node ended.
    pub fn died(&mut self, node: usize, incarnation: u32) {
        let moment = self.tick();
        self.nodes[node].died = moment;
        self.nodes[node].dead_incarnation = incarnation;
    }

    /// A node lost power.
    pub fn power_lost(&mut self, node: usize) {
        let moment = self.tick();
        self.nodes[node].power_lost = moment;
        if let Some(model) = &mut self.models[node] {
            model.torn = true;
        }
    }

    /// The operator decided a split brain against `node`.
    pub fn discarded(&mut self, node: usize) {
        if self.models[1 - node].is_some() {
            self.authority = 1 - node;
        }
        self.ambiguous = true;
    }

    /// Whether a legal loss or a split history makes claims about currency impossible.
    pub fn undecided(&self) -> bool {
        self.ambiguous
    }

    /// The node whose history counts.
    pub fn authority(&self) -> usize {
        self.authority
    }

    /// Rule 5 on a secondary's content (all volumes together).
    pub fn inspect(&mut self, node: usize, contents: &[&Pages]) {
        let source = self.authority;
        let Some(model) = &self.models[source] else {
            return;
        };
        if source == node || model.torn || self.ambiguous || self.nodes[node].served {
            return;
        }
        // The earliest completion among the missing, the latest submission among the present.
        let mut missing: Option<(Moment, WriteId, u64)> = None;
        let mut present: Option<(Moment, WriteId, u64)> = None;
        for (volume, pages) in contents.iter().enumerate() {
            for (sector, versions) in &model.versions[volume] {
                let stamp = pages.get(*sector);
                let found = versions.iter().rev().find(|v| self.value(**v) == stamp);
                let ended = match found {
                    Some(v) => self.writes[*v].ended,
                    None if stamp == model.base[volume].get(*sector) => Some(0),
                    None => continue,
                };
                if let Some(v) = found.filter(|v| !self.writes[**v].zero) {
                    let entry = (self.writes[*v].submitted, *v, *sector);
                    present = present.max(Some(entry));
                }
                for u in versions {
                    let write = &self.writes[*u];
                    let (Outcome::Ok, Some(done), Some(end)) = (write.outcome, write.ended, ended)
                    else {
                        continue;
                    };
                    if end < write.submitted && missing.is_none_or(|m| done < m.0) {
                        missing = Some((done, *u, *sector));
                    }
                }
            }
        }
        if let (Some((done, absent, at)), Some((sent, there, _))) = (missing, present)
            && done < sent
        {
            let text = format!(
                "node {node} holds write {} but lacks write {} ({}) that was completed before it",
                stamp_of(there),
                stamp_of(absent),
                place(self.writes[absent].volume, at)
            );
            self.report(5, Check::Causal, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: u64 = 64;

    fn pages() -> Pages {
        Pages::new(N, 7)
    }

    fn oracle(protocol: Protocol) -> Oracle {
        let mut oracle = Oracle::new(protocol, vec![pages()]);
        oracle.promoted(0, true, Some(vec![pages()]), &[0], false);
        oracle
    }

    fn done(oracle: &mut Oracle, start: u64, fua: bool) -> WriteId {
        let id = oracle.submit(0, 0, start, 1, false, fua);
        oracle.end(id, Outcome::Ok);
        id
    }

    fn checks(oracle: &Oracle) -> Vec<Check> {
        oracle.violations.iter().map(|v| v.check).collect()
    }

    #[test]
    fn a_read_must_see_the_last_completed_write() {
        let mut o = oracle(Protocol::C);
        let old = done(&mut o, 3, false);
        let new = done(&mut o, 3, false);
        let at = o.tick();
        o.read(0, 0, 3, at, &[stamp_of(new)]);
        assert!(o.violations.is_empty());
        o.read(0, 0, 3, at, &[stamp_of(old)]);
        assert_eq!(checks(&o), vec![Check::Read]);
    }

    #[test]
    fn a_read_beside_a_write_may_see_either() {
        let mut o = oracle(Protocol::C);
        let old = done(&mut o, 3, false);
        let new = o.submit(0, 0, 3, 1, false, false);
        let at = o.tick();
        o.read(0, 0, 3, at, &[stamp_of(old)]);
        o.read(0, 0, 3, at, &[stamp_of(new)]);
        o.end(new, Outcome::Ok);
        o.read(0, 0, 3, at, &[stamp_of(old)]);
        assert!(o.violations.is_empty());
        let later = o.tick();
        o.read(0, 0, 3, later, &[stamp_of(old)]);
        assert_eq!(checks(&o), vec![Check::Read]);
    }

    #[test]
    fn initial_contents_and_foreign_stamps_are_told_apart() {
        let mut o = oracle(Protocol::C);
        o.read(0, 0, 5, 10, &[7, 7]);
        assert!(o.violations.is_empty());
        o.read(0, 0, 5, 10, &[7, 8]);
        assert_eq!(checks(&o), vec![Check::Read]);
    }

    #[test]
    fn protocol_c_survives_takeover() {
        let mut o = oracle(Protocol::C);
        done(&mut o, 3, false);
        o.died(0, 1);
        o.promoted(1, false, Some(vec![pages()]), &[1], false);
        assert_eq!(checks(&o), vec![Check::Completion]);
    }

    #[test]
    fn protocol_a_may_lose_what_the_peer_never_got_but_nothing_else() {
        let mut o = oracle(Protocol::A);
        let got = done(&mut o, 3, false);
        o.received(stamp_of(got), 1);
        done(&mut o, 4, false);
        let mut there = pages();
        there.set(3, stamp_of(got));
        let mut legal = oracle_clone(&o);
        legal.promoted(1, false, Some(vec![there]), &[1], false);
        assert!(legal.violations.is_empty());
        o.promoted(1, false, Some(vec![pages()]), &[1], false);
        assert_eq!(checks(&o), vec![Check::Completion]);
    }

    #[test]
    fn a_reign_that_completed_nothing_leaves_the_other_copy_as_good() {
        for (write, legal) in [(false, true), (true, false)] {
            let mut o = oracle(Protocol::C);
            o.votes = true;
            let failed = o.submit(0, 0, 3, 1, false, false);
            o.end(failed, Outcome::Failed);
            o.promoted(1, false, Some(vec![pages()]), &[1], false);
            if write {
                let id = o.submit(1, 0, 9, 1, false, false);
                o.end(id, Outcome::Ok);
            }
            let mut there = pages();
            there.set(3, stamp_of(failed));
            o.promoted(0, false, Some(vec![there]), &[0], false);
            assert_eq!(o.violations.is_empty(), legal, "write {write}");
        }
    }

    #[test]
    fn power_loss_excuses_only_what_was_not_stable() {
        for (fua, flush, excused) in [
            (false, false, true),
            (true, false, false),
            (false, true, false),
        ] {
            let mut o = oracle(Protocol::C);
            let id = done(&mut o, 3, fua);
            if flush {
                let mut stable = pages();
                stable.set(3, stamp_of(id));
                let at = o.tick();
                o.flushed(0, 0, at, &[(0, &stable), (1, &stable)]);
            }
            o.power_lost(1);
            o.promoted(1, false, Some(vec![pages()]), &[1], false);
            assert_eq!(o.violations.is_empty(), excused, "fua {fua} flush {flush}");
        }
    }

    #[test]
    fn a_flush_that_left_something_behind_is_reported() {
        let mut o = oracle(Protocol::C);
        done(&mut o, 3, false);
        let at = o.tick();
        o.flushed(0, 0, at, &[(1, &pages())]);
        assert_eq!(checks(&o), vec![Check::Completion]);
    }

    #[test]
    fn a_gap_in_the_secondary_is_reported() {
        let mut o = oracle(Protocol::A);
        let first = done(&mut o, 3, false);
        let second = done(&mut o, 4, false);
        let mut copy = pages();
        copy.set(3, stamp_of(first));
        o.inspect(1, &[&copy]);
        assert!(o.violations.is_empty());
        copy.set(3, 7);
        copy.set(4, stamp_of(second));
        o.inspect(1, &[&copy]);
        assert_eq!(checks(&o), vec![Check::Causal]);
    }

    #[test]
    fn writes_that_were_in_flight_together_have_no_order() {
        let mut o = oracle(Protocol::A);
        let first = o.submit(0, 0, 3, 1, false, false);
        let second = o.submit(0, 0, 4, 1, false, false);
        o.end(first, Outcome::Ok);
        o.end(second, Outcome::Ok);
        let mut copy = pages();
        copy.set(4, stamp_of(second));
        o.inspect(1, &[&copy]);
        assert!(o.violations.is_empty());
    }

    fn oracle_clone(o: &Oracle) -> Oracle {
        Oracle {
            protocol: o.protocol,
            votes: o.votes,
            writes: o.writes.clone(),
            moment: o.moment,
            models: o.models.clone(),
            authority: o.authority,
            ambiguous: o.ambiguous,
            nodes: o.nodes.clone(),
            violations: Vec::new(),
        }
    }
}
