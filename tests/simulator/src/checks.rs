//! The checks that need more than the oracle's history: both disks, their durable metadata, and
//! what an engine was told. Each is called from the place where the rule could break.

use lockstep::engine::Protocol;
use lockstep::engine::{
    Buffer, ConnectionState, DiskState, Envelope, Generation, LogTransaction, Message, Role,
    Session, Span, Superblock, Term, VolumeId, VolumeImage,
};
use lockstep::failover::Data;

use crate::disk::{Pages, SECTOR};
use crate::node::{Carrier, EXTENT, Origin, Request, Target, Wish};
use crate::oracle::{Check, Outcome, WriteId, stamp_of};
use crate::verify::{in_step, is_target};
use crate::world::{Phase, World};

/// Sectors per bit of the bitmap.
pub const BIT_SECTORS: u64 = 8;
/// Sectors per extent of the activity log.
const EXTENT_SECTORS: u64 = EXTENT / SECTOR;

/// What one node's durable metadata says may differ.
struct Cover {
    image: VolumeImage,
    /// Replaces the log after the mere death of a data plane.
    exact: Option<Vec<Span>>,
}

impl Cover {
    fn covers(&self, sector: u64) -> bool {
        let bit = sector / BIT_SECTORS;
        let word = self
            .image
            .bitmap
            .get((bit / 64) as usize)
            .copied()
            .unwrap_or(0);
        if word >> (bit % 64) & 1 == 1 {
            return true;
        }
        match &self.exact {
            Some(spans) => {
                let span = Span::new(sector * SECTOR, SECTOR as u32);
                spans.iter().any(|s| s.overlaps(span))
            }
            None => self.image.log.contains(&((sector / EXTENT_SECTORS) as u32)),
        }
    }
}

impl World {
    // ---- rule 1: completions ----

    /// A request left the engine.
    pub fn completed(&mut self, node: usize, request: Request, ok: bool) {
        self.note(Some(node), "complete", || {
            let stamp = request.write.map(stamp_of);
            format!(
                "{:?} {}+{} ok {ok} stamp {stamp:?}",
                request.wish, request.start, request.count
            )
        });
        if let Some(id) = request.write {
            let outcome = if ok { Outcome::Ok } else { Outcome::Failed };
            self.oracle.end(id, outcome);
            if ok {
                self.check_write_completed(node, &request, id);
            }
            return;
        }
        match request.wish {
            Wish::Read if ok && self.plan.scenario.weights.silent == 0 => {
                let Request {
                    volume,
                    start,
                    submitted,
                    data,
                    ..
                } = &request;
                self.oracle.read(node, *volume, *start, *submitted, data);
            }
            Wish::Flush if ok => self.check_flush_completed(node, &request),
            _ => {}
        }
    }

    /// Whether a node's own copy takes part in its I/O.
    fn local_copy(&self, node: usize, volume: usize) -> bool {
        self.nodes[node]
            .process
            .as_ref()
            .and_then(|p| p.engine.status().devices.get(volume).map(|d| d.disk))
            .is_some_and(|disk| disk == DiskState::UpToDate)
    }

    fn check_write_completed(&mut self, node: usize, request: &Request, id: WriteId) {
        let volume = request.volume;
        let peer = 1 - node;
        if let Some(generation) = self.nodes[node].generation(volume)
            && self.local_copy(node, volume)
        {
            self.truth[volume] = Some(generation);
        }
        if self.plan.scenario.weights.silent > 0 {
            return;
        }
        let fua = matches!(request.wish, Wish::Write { fua: true })
            || matches!(request.wish, Wish::Zeroes { fua: true, .. });
        if self.local_copy(node, volume) {
            let disk = &self.nodes[node].disks[volume];
            let pages = if fua { disk.stable() } else { disk.view() };
            if let Some(sector) = self.oracle.missing(id, pages) {
                let text = format!(
                    "write {} completed on node {node}, whose own copy lacks volume {volume} \
                     sector {sector}",
                    stamp_of(id)
                );
                self.oracle.report(1, Check::Completion, text);
            }
        } else if self.options.voter
            && self
                .oracle
                .missing(id, self.nodes[node].disks[volume].view())
                .is_some()
            && self.promotable(node, volume)
        {
            let text = format!(
                "write {} completed on node {node} without its own disk of volume {volume}, which \
                 the voters still take for current",
                stamp_of(id)
            );
            self.oracle.report(6, Check::Completion, text);
        }
        self.check_peer_has(node, peer, request, id, fua);
    }

    /// The peer has what the protocol promises, or is provably left behind (rule 6).
    fn check_peer_has(
        &mut self,
        node: usize,
        peer: usize,
        request: &Request,
        id: WriteId,
        fua: bool,
    ) {
        let volume = request.volume;
        let submitted = self.oracle.write(id).map_or(0, |w| w.submitted);
        if self.oracle.nodes[peer].power_lost > submitted {
            return;
        }
        let disk = &self.nodes[peer].disks[volume];
        let strict = self.options.protocol == Protocol::C;
        let pages = if fua && strict {
            disk.stable()
        } else {
            disk.view()
        };
        let Some(sector) = self.oracle.missing(id, pages) else {
            return;
        };
        match self.options.protocol {
            // In flight to a connected peer when the engine completed it: a lease that held it back
            // makes the application hear of it later, and nothing else.
            Protocol::A if request.connected => return,
            // Zeroes leave no stamp in the frame by which their arrival could be seen.
            Protocol::B if self.oracle.was_received(id) => return,
            Protocol::B if request.connected && self.oracle.write(id).is_some_and(|w| w.zero) => {
                return;
            }
            _ => {}
        }
        if self.promotable(peer, volume) {
            let text = format!(
                "write {} completed on node {node} without node {peer} (volume {volume} sector \
                 {sector}), whose copy still has the same generation",
                stamp_of(id)
            );
            let rule = if self.options.voter { 6 } else { 1 };
            self.oracle.report(rule, Check::Completion, text);
        }
    }

    /// Whether a copy that lacks a completed write could be promoted, by what is on record
    /// durably: the voters' records decide where there are any, the other node's superblock
    /// otherwise.
    fn promotable(&self, node: usize, volume: usize) -> bool {
        let Some(generation) = self.nodes[node].generation(volume) else {
            return false;
        };
        if self.nodes[node].unfit(volume).is_some() {
            return false;
        }
        if self.options.voter {
            let id = VolumeId(volume as u16);
            let allows = |data: &Data| data.generations.get(&id) == Some(&generation);
            let [own, other] = [node, 1 - node].map(|n| &self.nodes[n].agent.durable().data);
            return allows(own) && (allows(other) || allows(&self.witness.best.data));
        }
        let superblock = self.nodes[1 - node].superblock(volume);
        let outdated = |s: &Superblock| s.peers.first().is_some_and(|p| p.outdated);
        superblock.is_some_and(|s| s.current == generation && !outdated(&s))
    }

    /// Whether a node was connected, as far as it could know, when it completed a request: its
    /// engine may be past that.
    pub fn connected(&self, node: usize) -> bool {
        let process = self.nodes[node].process.as_ref();
        process
            .is_some_and(|p| p.status.connection.state == ConnectionState::Connected && !p.parted)
    }

    fn check_flush_completed(&mut self, node: usize, request: &Request) {
        if self.plan.scenario.weights.silent > 0 {
            return;
        }
        let (volume, peer) = (request.volume, 1 - node);
        let mut holders = Vec::new();
        let alone = !self.local_copy(node, volume);
        if !alone {
            holders.push(node);
        }
        let status = self.nodes[node].process.as_ref().map(|p| p.engine.status());
        let replicating = status.is_some_and(|s| {
            s.connection.peer_devices.get(volume).is_some_and(|d| {
                // A primary that takes its disk back rests on the peer's.
                let follows = in_step(d.replication) || is_target(d.replication);
                follows && d.peer_disk == DiskState::UpToDate
            })
        });
        if replicating && (self.options.protocol == Protocol::C || alone) {
            holders.push(peer);
        }
        let stable: Vec<(usize, Pages)> = holders
            .into_iter()
            .map(|n| (n, self.nodes[n].disks[volume].stable().clone()))
            .collect();
        let stable: Vec<(usize, &Pages)> = stable.iter().map(|(n, p)| (*n, p)).collect();
        self.oracle
            .flushed(node, volume, request.submitted, &stable);
    }

    // ---- rules 4 and 7: submissions ----

    /// A data write leaves the engine for the disk.
    pub fn check_write(
        &mut self,
        node: usize,
        volume: usize,
        span: Span,
        buffer: Option<Buffer>,
        origin: Origin,
        term: Option<Term>,
    ) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        if let Some(Buffer::Request(_)) = buffer {
            let last = (span.end() - 1) / EXTENT;
            let cold = (span.start / EXTENT..=last)
                .map(|e| e as u32)
                .find(|extent| {
                    !process.logged[volume].contains(extent)
                        || process.logging[volume]
                            .as_ref()
                            .is_some_and(|t| !t.contains(extent))
                });
            if let Some(extent) = cold {
                let text = format!(
                    "node {node} submits {span} of volume {volume}, extent {extent} is not \
                     durable in its log"
                );
                self.oracle.report(4, Check::Logged, text);
            }
        }
        let Origin::Peer { session, sync } = origin else {
            return;
        };
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let accepted = process.session;
        let target = process.status.connection.peer_devices.get(volume);
        let target = target.is_some_and(|p| is_target(p.replication));
        let marked = self.nodes[node]
            .superblock(volume)
            .is_none_or(|s| s.inconsistent);
        if sync && target && !marked {
            let text = format!(
                "node {node} writes a sync block to volume {volume}, whose superblock does not \
                 say Inconsistent"
            );
            self.oracle.report(5, Check::Marked, text);
        }
        if session != accepted {
            let text = format!(
                "node {node} submits {span} of session {:x}, it accepted session {:x}",
                session.0, accepted.0
            );
            self.oracle.report(7, Check::Fence, text);
        }
        let known = (0..self.plan.volumes)
            .filter_map(|v| self.nodes[node].superblock(v).map(|s| s.term))
            .max();
        if let (Some(term), Some(known)) = (term, known)
            && term < known
            // A source that is promoted in the middle of a sync stays the source.
            && !sync
        {
            let text = format!("node {node} submits {span} of term {term}, it knows term {known}");
            self.oracle.report(7, Check::Fence, text);
        }
    }

    /// A node accepts a new session: nothing of an older one may be on its way to the disk.
    pub fn check_session(&mut self, node: usize, link: usize) {
        let from = self.nodes[node].process.as_ref().and_then(|p| {
            p.requests
                .values()
                .filter_map(|r| r.write)
                .filter_map(|id| self.oracle.write(id))
                .map(|w| w.submitted)
                .min()
        });
        let now = self.oracle.now();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.session = Session::default();
        process.session_link = link;
        process.session_from = from.unwrap_or(now);
        process.landed.clear();
        self.check_drained(node, "accepts a session");
    }

    /// The handshake names no session; the first frame after it does.
    pub fn learn_session(&mut self, node: usize, link: usize, session: Session) {
        if let Some(process) = &mut self.nodes[node].process
            && process.session_link == link
            && process.session == Session::default()
        {
            process.session = session;
        }
    }

    fn check_drained(&mut self, node: usize, what: &str) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let late = process.ios.values().any(|t| {
            matches!(
                t,
                Target::Write {
                    origin: Origin::Peer { .. },
                    ..
                }
            )
        });
        if late {
            let text = format!("node {node} {what} while a write of an older session is in flight");
            self.oracle.report(7, Check::Fence, text);
        }
    }

    /// A write reaches the disk: rule 9 for sync blocks.
    pub fn check_landing(
        &mut self,
        node: usize,
        volume: usize,
        origin: Origin,
        start: u64,
        stamps: &[u64],
    ) {
        let Origin::Peer { session, sync } = origin else {
            // A primary that takes its disk back writes beside the sync blocks.
            if let Some(process) = &mut self.nodes[node].process {
                let session = process.session;
                let own = (start..)
                    .zip(stamps)
                    .map(|(s, stamp)| ((volume, s), (session, *stamp)));
                process.landed.extend(own);
            }
            return;
        };
        if self.options.protocol != Protocol::C && self.rng.chance(50) {
            self.check_causal(node);
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if !sync {
            let landed = (start..)
                .zip(stamps)
                .map(|(s, stamp)| ((volume, s), (session, *stamp)));
            process.landed.extend(landed);
            return;
        }
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let source = self.nodes[1 - node].disks[volume].view();
        let newer = (start..).zip(stamps).find_map(|(sector, stamp)| {
            let (s, newer) = process.landed.get(&(volume, sector))?;
            let older = *s == session && newer > stamp && source.get(sector) != *stamp;
            older.then_some((sector, *stamp, *newer))
        });
        if let Some((sector, stamp, newer)) = newer {
            let text = format!(
                "node {node}: a sync block puts {stamp} over the newer {newer} in volume \
                 {volume} sector {sector}"
            );
            self.oracle.report(9, Check::Order, text);
        }
    }

    // ---- rules 5, 6 and 8: promotion ----

    /// A superblock is about to be stored.
    pub fn check_superblock(&mut self, node: usize, volume: usize, next: &Superblock) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        // A primary that takes a disk back was promoted before.
        let (forcing, reigns) = (process.forcing, process.status.role == Role::Primary);
        if let Some(before) = self.nodes[node].generation(volume)
            && before != next.current
        {
            let lineage = &mut self.lineage[volume];
            lineage.entry(before).or_insert(before);
            lineage.entry(next.current).or_insert(before);
            if forcing {
                self.nodes[node].forced.insert(volume, next.current);
            }
        }
        // A sync ends without the mark of a reign, and is stored before anybody builds on it.
        let reign = next.primary && !next.inconsistent && !reigns;
        if reign && !forcing && self.nodes[node].unfit(volume) == Some("Inconsistent") {
            let text = format!(
                "node {node} becomes primary on volume {volume}, which its disk calls Inconsistent"
            );
            self.oracle.report(5, Check::Promote, text);
        }
    }

    /// A node starts to serve.
    pub fn check_promotion(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let forced = process.forcing;
        let connected = process.status.connection.state == ConnectionState::Connected;
        let local = process
            .status
            .devices
            .iter()
            .all(|d| d.disk == DiskState::UpToDate);
        self.note(Some(node), "serve", || {
            format!("forced {forced} connected {connected}")
        });
        self.check_drained(node, "starts to serve");
        if !forced {
            for volume in 0..self.plan.volumes {
                self.check_current(node, volume);
            }
        }
        let other_serves = self.reigns(1 - node);
        // After a forced promotion a node's own record may say that the other is out.
        // And a primary without any disk has left the data to its peer.
        let other_has = self
            .disk_states(1 - node)
            .values()
            .any(|d| *d == DiskState::UpToDate);
        let plain = !forced && self.plan.scenario.weights.force == 0;
        if other_serves && other_has && plain && self.plan.volumes == 1 {
            let text = format!("node {node} serves while node {} does", 1 - node);
            self.oracle.report(6, Check::Promote, text);
        }
        if !forced {
            // By force what a sync has left half done is served too.
            self.check_causal(node);
        }
        let contents = local.then(|| {
            self.nodes[node]
                .disks
                .iter()
                .map(|d| d.view().clone())
                .collect()
        });
        let both = [0, 1];
        let either = connected || self.oracle.nodes[node].blended;
        let sources: &[usize] = if either { &both } else { &both[node..=node] };
        self.oracle
            .promoted(node, forced, contents, sources, other_serves);
    }

    fn check_current(&mut self, node: usize, volume: usize) {
        let attached = self.nodes[node]
            .process
            .as_ref()
            .and_then(|p| p.status.devices.get(volume))
            .is_some_and(|d| d.disk > DiskState::Negotiating);
        if !attached {
            return;
        }
        if let Some(state) = self.nodes[node].unfit(volume) {
            let text = format!("node {node} serves volume {volume}, which its disk calls {state}");
            return self.oracle.report(6, Check::Promote, text);
        }
        if self.oracle.undecided() || self.oracle.authority() == node {
            return;
        }
        let (Some(truth), Some(superblock)) =
            (self.truth[volume], self.nodes[node].superblock(volume))
        else {
            return;
        };
        if !self.descends(volume, superblock.current, truth) {
            let text = format!(
                "node {node} serves volume {volume} at generation {}, writes were completed under \
                 {truth}",
                superblock.current
            );
            self.oracle.report(8, Check::Promote, text);
        }
    }

    /// Whether a generation is another one or was made from it, however often.
    fn descends(&self, volume: usize, generation: Generation, from: Generation) -> bool {
        let parent = |g: &Generation| {
            let parent = self.lineage[volume].get(g)?;
            (parent != g).then_some(*parent)
        };
        std::iter::successors(Some(generation), parent).any(|g| g == from)
    }

    /// Rule 5 on a node's disks as they are; not on what is becoming a history of its own by force.
    pub fn check_causal(&mut self, node: usize) {
        if !self.nodes[node].forced.is_empty()
            || (0..self.plan.volumes).any(|v| self.nodes[node].unfit(v) == Some("Inconsistent"))
            || self.plan.scenario.weights.silent > 0
            || self.plan.volumes > 1 && self.nodes[node].left_alone
        {
            return;
        }
        let views: Vec<&Pages> = self.nodes[node].disks.iter().map(|d| d.view()).collect();
        self.oracle.inspect(node, &views);
    }

    // ---- rules 2 to 4: dirty bits ----

    /// A frame with data, or about it, goes to the peer.
    pub fn note_carrier(&mut self, node: usize, envelope: &Envelope) {
        let (volume, span, sync) = match &envelope.message {
            Message::Write { volume, span, .. } => (volume, span, false),
            Message::SyncWrite { volume, span, .. } | Message::SyncCompare { volume, span, .. } => {
                (volume, span, true)
            }
            _ => return,
        };
        let carrier = Carrier {
            node,
            incarnation: self.nodes[node].incarnations,
            session: envelope.session,
            sync,
        };
        let bit_bytes = BIT_SECTORS * SECTOR;
        let bits = span.start / bit_bytes..span.end().div_ceil(bit_bytes);
        if let Some(blocks) =
            self.carried[usize::from(volume.0)].get_mut(bits.start as usize..bits.end as usize)
        {
            blocks.fill(Some(carrier));
        }
    }

    fn carrier(&self, volume: usize, sector: u64) -> Option<Carrier> {
        self.carried[volume][(sector / BIT_SECTORS) as usize]
    }

    /// Whether the session of a frame goes on at its sender.
    fn goes_on(&self, carrier: Carrier) -> bool {
        self.is(carrier.node, carrier.incarnation)
            && self.nodes[carrier.node]
                .process
                .as_ref()
                .is_some_and(|p| p.session == carrier.session)
    }

    /// The rule that is broken when a difference has no dirty bit: a sync cleared it (2), the
    /// end of a session did not set it (3), or the log did not stand in for it (4).
    fn dirty_rule(&self, volume: usize, sector: u64) -> u8 {
        match self.carrier(volume, sector) {
            Some(carrier) if carrier.sync => 2,
            Some(c) if self.is(c.node, c.incarnation) && !self.goes_on(c) => 3,
            _ => 4,
        }
    }

    /// The rule that is broken when copies differ that are marked equal: a block that was
    /// carried in this session lost its bit too early (2), or the session left it out (4).
    pub fn equal_rule(&self, volume: usize, sector: u64) -> u8 {
        match self.carrier(volume, sector) {
            Some(carrier) if self.goes_on(carrier) => 2,
            _ => 4,
        }
    }

    fn cover(&self, node: usize, volume: usize) -> Option<Cover> {
        let image = self.nodes[node].recover(volume)?;
        Some(Cover {
            image,
            exact: self.exact(node, volume),
        })
    }

    /// The ranges that the agent would hand to the next data plane.
    pub fn exact(&self, node: usize, volume: usize) -> Option<Vec<Span>> {
        let n = &self.nodes[node];
        let tracked = n
            .tracked
            .as_ref()
            .filter(|t| t.exact && n.process.is_none())?;
        Some(
            tracked
                .slots
                .values()
                .filter(|(v, _)| *v == volume)
                .map(|(_, s)| *s)
                .collect(),
        )
    }

    /// Every difference between the disks is known to the bitmaps and logs on them.
    pub fn check_dirty(&mut self, when: &str) {
        for volume in 0..self.plan.volumes {
            self.check_dirty_volume(volume, when, None);
        }
    }

    fn check_dirty_volume(&mut self, volume: usize, when: &str, extents: Option<&[u32]>) {
        if self.plan.scenario.weights.silent > 0 {
            return;
        }
        let (a, b) = (&self.nodes[0].disks[volume], &self.nodes[1].disks[volume]);
        let differing = a.view().difference(b.view());
        if differing.is_empty() {
            return;
        }
        let (Some(left), Some(right)) = (self.cover(0, volume), self.cover(1, volume)) else {
            return;
        };
        if !related(&left.image, &right.image) {
            return;
        }
        let found = differing.into_iter().find(|sector| {
            let wanted = extents.is_none_or(|e| e.contains(&((sector / EXTENT_SECTORS) as u32)));
            wanted && !left.covers(*sector) && !right.covers(*sector)
        });
        if let Some(sector) = found {
            let text = format!(
                "{when}: volume {volume} sector {sector} holds {} on node 0 and {} on node 1, and \
                 neither bitmap nor log says so",
                a.view().get(sector),
                b.view().get(sector)
            );
            let rule = self.dirty_rule(volume, sector);
            self.oracle.report(rule, Check::Dirty, text);
        }
    }

    /// Extents left the durable log of a node.
    pub fn check_evicted(&mut self, node: usize, volume: usize, extents: &[u32]) {
        let extents: Vec<u32> = extents
            .iter()
            .copied()
            .filter(|e| *e != LogTransaction::FREE)
            .collect();
        if !extents.is_empty() {
            self.check_stable_equal(node, volume, &extents);
            self.check_dirty_volume(volume, "extent left the log", Some(&extents));
        }
    }

    /// Rule 4 at the exit of an extent: what is stable must be equal, or a bit must be set.
    fn check_stable_equal(&mut self, node: usize, volume: usize, extents: &[u32]) {
        if self.plan.scenario.weights.silent > 0 {
            return;
        }
        let peer = 1 - node;
        let (a, b) = (
            &self.nodes[node].disks[volume],
            &self.nodes[peer].disks[volume],
        );
        let differing = a.stable().difference(b.stable());
        let Some(first) = differing
            .iter()
            .copied()
            .find(|sector| extents.contains(&((sector / EXTENT_SECTORS) as u32)))
        else {
            return;
        };
        let (Some(mut mine), Some(mut theirs)) =
            (self.cover(node, volume), self.cover(peer, volume))
        else {
            return;
        };
        // What is stable shows only after a power loss, and that takes the agent's table along.
        (mine.exact, theirs.exact) = (None, None);
        if !related(&mine.image, &theirs.image) || self.nodes[peer].unfit(volume).is_some() {
            return;
        }
        let bare = differing.into_iter().find(|sector| {
            let inside = extents.contains(&((sector / EXTENT_SECTORS) as u32));
            inside && !mine.covers(*sector) && !theirs.covers(*sector)
        });
        if let Some(sector) = bare {
            let text = format!(
                "an extent of volume {volume} left the log of node {node} while sector {sector} \
                 (first {first}) is not durable on both"
            );
            let rule = self.dirty_rule(volume, sector);
            self.oracle.report(rule, Check::Dirty, text);
        }
    }

    // ---- rest ----

    /// Called after a node's state was read again: did it get into sync?
    pub fn check_established(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let connection = &process.status.connection;
        let now = connection
            .peer_devices
            .iter()
            .all(|p| in_step(p.replication) && p.peer_disk == DiskState::UpToDate)
            && process
                .status
                .devices
                .iter()
                .all(|d| d.disk == DiskState::UpToDate);
        let before = std::mem::replace(&mut process.established, now);
        let (serving, from) = (process.serving, process.session_from);
        let diskless = process
            .status
            .devices
            .iter()
            .any(|d| d.disk == DiskState::Diskless);
        let connected = connection.state == ConnectionState::Connected;
        let lost = connected && diskless;
        let cut_off = !connected && diskless && process.status.role == Role::Primary;
        // A volume without its disk stands still while the others follow the primary, and so
        // does the peer's copy of it when its primary has neither disk nor link: until all is
        // synced the node as a whole cannot be promoted, and rule 5 binds each volume alone.
        let n = &mut self.nodes[node];
        n.left_alone = !now && (n.left_alone || lost);
        self.nodes[1 - node].left_alone |= cut_off;
        if now && !before && serving {
            self.oracle.synced(1 - node, from);
        } else if now && !before && !self.nodes[1 - node].serving() {
            self.oracle.blended();
        }
    }

    /// Both nodes say that both copies are up to date, and nothing is on its way.
    pub fn quiet(&self) -> bool {
        self.network.idle()
            && self.network.sound()
            && self.nodes.iter().all(|node| {
                !node.paused
                    && !node.busy()
                    && node.orphans.is_empty()
                    && node.process.as_ref().is_some_and(|p| {
                        p.established
                            && p.requests.is_empty()
                            && p.meta.iter().all(|m| m.current.is_none())
                            // On a link that died unnoticed, writes that A and B have completed
                            // may still be on their way.
                            && p.engine
                                .status()
                                .connection
                                .peer_devices
                                .iter()
                                .all(|device| device.unacked == 0)
                    })
            })
    }

    /// EQUAL, when the moment allows it.
    pub fn check_equal(&mut self) {
        if !self.quiet() || self.plan.scenario.weights.silent > 0 {
            return;
        }
        for volume in 0..self.plan.volumes {
            let [a, b] = [0, 1].map(|n: usize| self.nodes[n].disks[volume].view());
            if let Some(sector) = a.difference(b).first().copied() {
                let text = format!(
                    "both UpToDate, but volume {volume} sector {sector} holds {} on node 0 and {} \
                     on node 1",
                    a.get(sector),
                    b.get(sector)
                );
                let rule = self.equal_rule(volume, sector);
                return self.oracle.report(rule, Check::Equal, text);
            }
        }
        let serving = (0..2).find(|n| self.nodes[*n].serving());
        let disks = &self.nodes[0].disks;
        self.oracle
            .settled(serving, || disks.iter().map(|d| d.view().clone()).collect());
        for volume in 0..self.plan.volumes {
            self.truth[volume] = self.truth[volume].and(self.nodes[0].generation(volume));
        }
    }

    /// The run has reached its goal.
    pub fn recovered(&self) -> bool {
        matches!(self.phase, Phase::Liveness { .. })
            && self.requests_left == 0
            && self.nodes.iter().any(|n| n.serving())
            && self.quiet()
    }

    /// The last comparison of both disks.
    pub fn finish(&mut self) {
        let silent = self.plan.scenario.weights.silent > 0;
        for volume in 0..self.plan.volumes {
            let differing = self.nodes[0].disks[volume]
                .view()
                .difference(self.nodes[1].disks[volume].view());
            if let Some(sector) = differing.first().filter(|_| !silent) {
                let text = format!("at the end volume {volume} sector {sector} differs");
                let rule = self.equal_rule(volume, *sector);
                self.oracle.report(rule, Check::Equal, text);
            }
            let strange = differing
                .iter()
                .find(|s| !self.atlas.spoiled.contains(&(volume, **s)));
            if let Some(sector) = strange.filter(|_| silent) {
                let text =
                    format!("volume {volume} sector {sector} differs although no fault touched it");
                self.oracle.report(4, Check::Compare, text);
            }
            if silent {
                self.check_compare(volume, &differing);
            }
        }
        self.check_equal();
    }

    /// Every sector that a silent fault left wrong is among the differences.
    fn check_compare(&mut self, volume: usize, differing: &[u64]) {
        let weak = self.atlas.weak_node;
        let disk = &self.nodes[weak].disks[volume];
        let missed = self.atlas.spoiled.iter().find(|(v, sector)| {
            *v == volume
                && !differing.contains(sector)
                && self
                    .oracle
                    .is_stale(volume, *sector, disk.view().get(*sector))
        });
        if let Some((_, sector)) = missed.copied() {
            let text = format!("the comparison missed volume {volume} sector {sector}");
            self.oracle.report(4, Check::Compare, text);
        }
    }
}

/// Whether two copies would be synced by bitmap: the bits must then say everything.
fn related(a: &VolumeImage, b: &VolumeImage) -> bool {
    let (sa, sb) = (&a.superblock, &b.superblock);
    let base = |s: &Superblock| s.peers.first().map(|p| p.base);
    let full = |s: &Superblock| s.peers.first().is_some_and(|p| p.want_full);
    if sa.current.is_fresh() || sb.current.is_fresh() || full(sa) || full(sb) {
        return false;
    }
    sa.current == sb.current || base(sa) == Some(sb.current) || base(sb) == Some(sa.current)
}
