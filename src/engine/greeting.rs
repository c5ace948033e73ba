//! The handshake on a fresh link: what the nodes tell each other, what they record before the first
//! write is replicated, and how the sync between them begins.
//!
//! A [`Link`] owns its [`Greeting`] until `Ready` was sent and received; the stages are in the text
//! of that module. The verdicts themselves are a pure table ([`super::handshake`]).

use super::action::Notice;
use super::bitmap::PAGE_WORDS;
use super::handshake::{Extent, Misfit, Side, Verdict, decide};
use super::ids::{Generation, Session, Term};
use super::link::{Link, Stage};
use super::message::{BitmapChunk, Message, NodeState, VolumeState};
use super::pace::Pace;
use super::persist::BITMAP_PAGE_BYTES;
use super::reason::{LinkLoss, Refusal};
use super::resource::{Engine, broken};
use super::status::{ConnectionState, DiskState, ReplicationState, Role};
use super::sync::Sync;
use super::volume::{DiskTraits, Mint, OwnDisk};

/// Handshake data.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    mine: Option<NodeState>,
    theirs: Option<NodeState>,
    verdicts: Vec<Verdict>,
    session: Session,
    /// The pending session is being stored / was announced.
    pending: Option<Vec<u64>>,
    agree_sent: bool,
    agree_received: bool,
    source_versions: Option<Vec<u64>>,
    stored_sent: bool,
    stored_received: bool,
    target_versions: Option<Vec<u64>>,
    ready_sent: bool,
    ready_received: bool,
}

impl Engine {
    pub(super) fn on_handshake(&mut self, message: Message) {
        match message {
            Message::State(state) => self.on_state(*state),
            Message::Agree {
                round,
                peer_round,
                verdicts,
            } => {
                let codes: Vec<u8> = verdicts.into_iter().map(|(_, code)| code).collect();
                self.on_agree(round, peer_round, &codes);
            }
            Message::Stored => self.greeting(|g| g.stored_received = true),
            Message::Bitmap(chunk) => self.on_bitmap(&chunk),
            Message::PauseSync { volume, on } => {
                if let Some(index) = self.index(volume) {
                    self.on_peer_pause(index, on);
                }
            }
            Message::Ready => self.greeting(|g| g.ready_received = true),
            Message::Ping => self.send(Message::Pong, None),
            Message::Pong => {}
            Message::Goodbye { .. } => self.drop_link(LinkLoss::Goodbye),
            _ => self.drop_link(LinkLoss::Protocol("replication before the handshake")),
        }
    }

    fn greeting(&mut self, edit: impl FnOnce(&mut Greeting)) {
        if let Some(Link {
            stage: Stage::Greeting(greeting),
            ..
        }) = self.link.as_mut()
        {
            edit(greeting);
            self.progress = true;
        }
    }

    /// Whether the generations must stand still until replication starts or the link is lost.
    pub(super) fn handshake_committed(&self) -> bool {
        match &self.link {
            Some(Link {
                stage: Stage::Greeting(greeting),
                ..
            }) => greeting.agree_sent || (self.has_voter() && greeting.pending.is_some()),
            _ => false,
        }
    }

    fn describe(&self, round: u32) -> NodeState {
        NodeState {
            round,
            node: self.config.node,
            role: self.role,
            term: self.term,
            nonce: self.link.as_ref().map_or(0, |link| link.nonce),
            protocol: self.config.protocol,
            discard_my_data: self.discard_my_data,
            volumes: (0..self.volumes.len())
                .map(|index| self.describe_volume(index))
                .collect(),
        }
    }

    fn describe_volume(&self, index: usize) -> VolumeState {
        let v = &self.volumes[index];
        let peer = v.peer();
        VolumeState {
            volume: v.id,
            capacity: if v.has_disk() { v.capacity } else { 0 },
            agreed_size: v.superblock.agreed_size,
            logical_block: match self.role {
                Role::Primary => v.live_block,
                _ => v.logical_block,
            },
            discard: v.discard,
            disk: v.disk,
            current: v.data_generation(),
            base: peer.base,
            history: v.ancestry(),
            dirty_bits: v.bitmap.count(),
            crashed_primary: v.crashed && self.role == Role::Secondary,
            want_full: peer.want_full,
            session: peer.session,
            session_pending: peer.session_pending,
        }
    }

    fn on_state(&mut self, state: NodeState) {
        let replaces = |old: &NodeState| state.round > old.round;
        let Some(Link { stage, .. }) = self.link.as_mut() else {
            return;
        };
        if let Stage::Draining = stage {
            *stage = Stage::Greeting(Box::default());
        }
        let Stage::Greeting(greeting) = stage else {
            return;
        };
        if greeting.theirs.as_ref().is_none_or(replaces) {
            greeting.theirs = Some(state);
            // The peer changed before it agreed: what we agreed to is void.
            greeting.agree_received = false;
            greeting.agree_sent = false;
            greeting.pending = None;
        }
        self.progress = true;
    }

    fn on_agree(&mut self, round: u32, peer_round: u32, codes: &[u8]) {
        let Some(Link {
            stage: Stage::Greeting(greeting),
            ..
        }) = self.link.as_mut()
        else {
            return;
        };
        let current = greeting.mine.as_ref().map(|s| s.round) == Some(peer_round)
            && greeting.theirs.as_ref().map(|s| s.round) == Some(round);
        if !current {
            return;
        }
        let mirrored: Vec<u8> = greeting
            .verdicts
            .iter()
            .map(|v| v.mirror().code())
            .collect();
        if greeting.pending.is_some() && mirrored != codes {
            return self.drop_link(LinkLoss::Protocol("the two nodes disagree on the sync"));
        }
        // Where ours is not computed yet, it will come from the same pair of states, mirrored.
        greeting.agree_received = true;
        self.progress = true;
    }

    pub(super) fn settle_handshake(&mut self) {
        self.settle_farewell();
        if self.link.is_none() || self.replicating().is_some() {
            return;
        }
        if !self.replica.is_drained() && !broken!(self, StaleSession) {
            return;
        }
        if !self.handovers.is_empty() {
            return;
        }
        if let Some(link) = self.link.as_mut()
            && let Stage::Draining = link.stage
        {
            link.stage = Stage::Greeting(Box::default());
        }
        self.send_state();
        self.reach_verdict();
        self.send_agree();
        self.store_source();
        self.store_target();
        self.start_replication();
    }

    fn take_greeting(&mut self) -> Option<Box<Greeting>> {
        match self.link.as_mut().map(|link| &mut link.stage) {
            Some(Stage::Greeting(greeting)) => Some(std::mem::take(greeting)),
            _ => None,
        }
    }

    fn put_greeting(&mut self, greeting: Box<Greeting>) {
        if let Some(link) = self.link.as_mut() {
            link.stage = Stage::Greeting(greeting);
        }
    }

    /// Sends our state, and again when it has changed before we agreed.
    fn send_state(&mut self) {
        let Some(mut greeting) = self.take_greeting() else {
            return;
        };
        let round = greeting.mine.as_ref().map_or(0, |mine| mine.round);
        let now = self.describe(round);
        let same = greeting
            .mine
            .as_ref()
            .is_some_and(|mine| same_state(mine, &now));
        if !greeting.agree_sent && !same && self.change_allows_greeting() {
            let state = NodeState {
                round: round + 1,
                ..now
            };
            greeting.mine = Some(state.clone());
            greeting.pending = None;
            greeting.agree_received = false;
            self.put_greeting(greeting);
            self.send(Message::State(Box::new(state)), None);
            self.progress = true;
        } else {
            self.put_greeting(greeting);
        }
    }

    /// A promotion or shutdown that is being recorded must end before we describe ourselves.
    fn change_allows_greeting(&self) -> bool {
        use super::roles::Step;
        self.change
            .as_ref()
            .is_none_or(|change| matches!(change.step, Step::Meeting { .. }))
            && self.attaching.is_empty()
    }

    fn reach_verdict(&mut self) {
        let Some(mut greeting) = self.take_greeting() else {
            return;
        };
        let ready =
            greeting.pending.is_none() && !greeting.agree_sent && self.change_allows_greeting();
        let pair = (greeting.mine.clone(), greeting.theirs.clone());
        let (Some(mine), Some(theirs)) = pair else {
            return self.put_greeting(greeting);
        };
        if !ready {
            return self.put_greeting(greeting);
        }
        if self.has_voter() && reign_twice(&mine, &theirs) {
            // One of them woke too late: it steps down, and then they can meet.
            self.put_greeting(greeting);
            self.on_deposed(theirs.term);
            return self.drop_link(LinkLoss::OtherReign);
        }
        match self.judge(&mine, &theirs) {
            Err(refusal) => {
                self.put_greeting(greeting);
                if let Refusal::SplitBrain { volume, .. } = refusal {
                    self.publish(Notice::SplitBrain { volume });
                }
                self.send(Message::Goodbye { outdate: false }, None);
                self.stand_alone(Some(refusal));
            }
            Ok(verdicts) => {
                greeting.verdicts = verdicts;
                let newest = |state: &NodeState| {
                    state
                        .volumes
                        .iter()
                        .map(|v| v.session.max(v.session_pending))
                        .max()
                        .unwrap_or_default()
                };
                let session =
                    later_session(newest(&mine), newest(&theirs), mine.nonce ^ theirs.nonce);
                greeting.session = session;
                let versions = self
                    .volumes
                    .iter_mut()
                    .map(|v| v.change_peer(|peer| peer.session_pending = session))
                    .collect();
                self.drop_questions();
                // `mine` stays what the peer was told: should it start over, both must find the
                // same verdicts and session in the same two states.
                greeting.pending = Some(versions);
                self.put_greeting(greeting);
                self.progress = true;
            }
        }
    }

    /// The verdict of every volume, or why the nodes do not fit together.
    fn judge(&self, mine: &NodeState, theirs: &NodeState) -> Result<Vec<Verdict>, Refusal> {
        if mine.protocol != theirs.protocol {
            return Err(Refusal::ProtocolMismatch);
        }
        let ids = |state: &NodeState| state.volumes.iter().map(|v| v.volume).collect::<Vec<_>>();
        if ids(mine) != ids(theirs) {
            return Err(Refusal::VolumeMismatch);
        }
        let verdicts = mine
            .volumes
            .iter()
            .zip(&theirs.volumes)
            .map(|(m, t)| {
                check_sizes(m, t)?;
                check_blocks(mine, theirs, m, t)?;
                match decide(&Side::new(mine, m), &Side::new(theirs, t)) {
                    Verdict::Refuse(misfit) => Err(misfit_refusal(misfit, m, t)),
                    // Only with the data that it has left there may a primary be a target.
                    verdict @ Verdict::Target(_) if mine.role == Role::Primary => {
                        let index = self.index(m.volume);
                        if index.is_some_and(|index| self.data_is_at(index, t)) {
                            return Ok(verdict);
                        }
                        let volume = m.volume;
                        Err(Refusal::PrimaryIsOlder { volume })
                    }
                    verdict => Ok(verdict),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        if mine.role == Role::Primary && theirs.role == Role::Primary {
            return Err(Refusal::BothPrimary);
        }
        // A reign that another has followed is over, unless the operator discards the other and
        // is the one who decides.
        let over = |other: &NodeState| self.has_voter() || !other.discard_my_data;
        let stale = |primary: &NodeState, other: &NodeState| {
            primary.role == Role::Primary && primary.term < other.term && over(other)
        };
        if (stale(mine, theirs) || stale(theirs, mine)) && !broken!(self, IgnoreTerm) {
            return Err(Refusal::StaleTerm);
        }
        let target = |index: &usize| matches!(verdicts[*index], Verdict::Target(_));
        let asks = |index: &usize| target(index) && self.asks_first(*index);
        match (0..verdicts.len()).find(asks) {
            Some(index) => Err(Refusal::AsksFirst {
                volume: self.volumes[index].id,
            }),
            None => Ok(verdicts),
        }
    }

    fn send_agree(&mut self) {
        let Some(mut greeting) = self.take_greeting() else {
            return;
        };
        let stored = greeting
            .pending
            .as_ref()
            .is_some_and(|versions| self.all_at(versions));
        if !stored || greeting.agree_sent || self.volumes.iter().any(|v| v.mint.is_some()) {
            return self.put_greeting(greeting);
        }
        greeting.agree_sent = true;
        let round = greeting.mine.as_ref().map_or(0, |s| s.round);
        let peer_round = greeting.theirs.as_ref().map_or(0, |s| s.round);
        let verdicts = self
            .volumes
            .iter()
            .map(|v| v.id)
            .zip(greeting.verdicts.iter().map(|v| v.code()))
            .collect();
        self.put_greeting(greeting);
        self.send(
            Message::Agree {
                round,
                peer_round,
                verdicts,
            },
            None,
        );
        self.progress = true;
    }

    fn all_at(&self, versions: &[u64]) -> bool {
        versions
            .iter()
            .zip(&self.volumes)
            .all(|(version, volume)| volume.stored(*version))
    }

    /// Records the session, and on a sync source that the peer is behind.
    fn store_source(&mut self) {
        let Some(mut greeting) = self.take_greeting() else {
            return;
        };
        if greeting.agree_sent && greeting.agree_received && greeting.source_versions.is_none() {
            let theirs = greeting.theirs.clone();
            let term = theirs
                .as_ref()
                .map_or(Term::ZERO, |s| s.term)
                .max(self.term);
            self.term = self.reign_after(term);
            let session = greeting.session;
            let mut versions = Vec::new();
            for (index, verdict) in greeting.verdicts.iter().enumerate() {
                let theirs = theirs.as_ref().map(|state| &state.volumes[index]);
                versions.push(self.record_session(index, session, *verdict, theirs));
            }
            greeting.source_versions = Some(versions);
            self.progress = true;
        }
        let stored = greeting
            .source_versions
            .as_ref()
            .is_some_and(|versions| self.all_at(versions));
        let send = stored && !greeting.stored_sent;
        greeting.stored_sent |= send;
        self.put_greeting(greeting);
        if send {
            self.send(Message::Stored, None);
            self.progress = true;
        }
    }

    /// The term from here on: a primary whose peer has known a later one begins a new reign, where
    /// that is not the voter's to say.
    fn reign_after(&mut self, highest: Term) -> Term {
        match self.role {
            Role::Primary if self.has_voter() => self.term,
            Role::Primary if highest > self.term => self.next_term(highest),
            _ => highest,
        }
    }

    fn record_session(
        &mut self,
        index: usize,
        session: Session,
        verdict: Verdict,
        theirs: Option<&VolumeState>,
    ) -> u64 {
        let term = self.term;
        let voter = self.has_voter();
        let generation = self.fresh_generation();
        let v = &mut self.volumes[index];
        let agreed = theirs.map_or(v.size, |t| {
            agreed_size(v.superblock.agreed_size, v.capacity, t)
        });
        if agreed > 0 {
            v.size = agreed;
        }
        if let Some(theirs) = theirs.filter(|t| t.capacity > 0) {
            v.peer_disk_traits = Some(DiskTraits {
                logical_block: theirs.logical_block,
                discard: theirs.discard,
            });
        }
        if v.size > 0 {
            self.tell_shape(index);
        }
        let v = &mut self.volumes[index];
        v.change(|superblock| {
            superblock.term = term;
            if superblock.agreed_size == 0 {
                superblock.agreed_size = agreed;
            }
        });
        if let Verdict::Source(extent) = verdict {
            if theirs.is_some_and(|t| t.current == v.superblock.current) {
                // The target is about to become inconsistent: what we have must be told apart
                // from it, should it be promoted by force. A voter is not told, for what is on
                // record is its ancestor; so no write may rest on it.
                let version = v.new_generation(generation);
                v.mint = Some(Mint::Storing {
                    version,
                    counts: !voter,
                });
            }
            if extent != Extent::Bitmap {
                let stub = stub_generation(session);
                let old = v.peer().base;
                v.remember(old);
                v.change_peer(|peer| peer.base = stub);
            }
            v.change_peer(|peer| peer.outdated = true);
        }
        self.volumes[index].change_peer(|peer| {
            peer.known = true;
            peer.session = session;
            peer.session_pending = Session::default();
        })
    }

    /// Records, on a sync target, that its data is inconsistent, and sends its bitmap.
    fn store_target(&mut self) {
        let Some(mut greeting) = self.take_greeting() else {
            return;
        };
        if greeting.stored_sent && greeting.stored_received && greeting.target_versions.is_none() {
            let mut versions = Vec::new();
            for (index, verdict) in greeting.verdicts.clone().into_iter().enumerate() {
                versions.push(match verdict {
                    Verdict::Target(extent) => self.record_target(index, greeting.session, extent),
                    _ => 0,
                });
            }
            greeting.target_versions = Some(versions);
            self.progress = true;
        }
        let stored = greeting
            .target_versions
            .as_ref()
            .is_some_and(|versions| self.all_at(versions))
            && self.target_bits_saved(&greeting.verdicts);
        if !stored || greeting.ready_sent {
            return self.put_greeting(greeting);
        }
        greeting.ready_sent = true;
        let targets: Vec<usize> = (0..self.volumes.len())
            .filter(|index| matches!(greeting.verdicts.get(*index), Some(Verdict::Target(_))))
            .collect();
        self.put_greeting(greeting);
        for index in targets {
            self.volumes[index].change_peer(|peer| peer.want_full = false);
            self.send_bitmap(index);
        }
        for index in 0..self.volumes.len() {
            self.volumes[index].approved = false;
            self.tell_pause(index);
        }
        self.send(Message::Ready, None);
        self.progress = true;
    }

    fn record_target(&mut self, index: usize, session: Session, extent: Extent) -> u64 {
        let v = &mut self.volumes[index];
        if extent != Extent::Bitmap {
            // The bits say what is left to do, even if both nodes restart in between.
            v.bitmap.set_all(extent == Extent::Compare);
            v.save_bitmap = true;
            let old = v.superblock.current;
            v.remember(old);
            v.change(|superblock| superblock.current = stub_generation(session));
        }
        v.change_peer(|peer| {
            // Until the bits are on disk, the superblock must say that they do not count.
            peer.want_full = extent != Extent::Bitmap;
            peer.outdated = false;
        });
        // The mark of a crashed reign stays until the end: with it stays the log that says what
        // may differ.
        let late = broken!(self, InconsistentLate);
        let version = self.volumes[index].change(|superblock| {
            superblock.inconsistent |= !late;
            superblock.outdated = false;
        });
        self.set_disk(index, DiskState::Inconsistent);
        version
    }

    fn target_bits_saved(&self, verdicts: &[Verdict]) -> bool {
        verdicts
            .iter()
            .enumerate()
            .all(|(index, verdict)| match verdict {
                Verdict::Target(Extent::Full | Extent::Compare) => self.metadata_stored(index),
                _ => true,
            })
    }

    fn send_bitmap(&mut self, index: usize) {
        let volume = self.volumes[index].id;
        for page in self.volumes[index].bitmap.used_pages() {
            let Some((words, suspects)) = self.volumes[index].bitmap.page_words(page) else {
                continue;
            };
            let words = words.to_vec();
            debug_assert!(words.len() <= PAGE_WORDS && PAGE_WORDS * 8 == BITMAP_PAGE_BYTES);
            self.send(
                Message::Bitmap(BitmapChunk {
                    volume,
                    index: page,
                    words,
                    suspects,
                }),
                None,
            );
        }
    }

    fn on_bitmap(&mut self, chunk: &BitmapChunk) {
        let Some(index) = self.index(chunk.volume) else {
            return;
        };
        let source = match &self.link {
            Some(Link {
                stage: Stage::Greeting(greeting),
                ..
            }) => {
                matches!(greeting.verdicts.get(index), Some(Verdict::Source(_)))
            }
            _ => false,
        };
        if !source {
            return self.drop_link(LinkLoss::Protocol(
                "bitmap from a node that is not sync target",
            ));
        }
        if !broken!(self, OneSidedBitmap) {
            self.volumes[index]
                .bitmap
                .merge_page(chunk.index, &chunk.words, &chunk.suspects);
        }
    }

    fn start_replication(&mut self) {
        let Some(greeting) = self.take_greeting() else {
            return;
        };
        if !(greeting.ready_sent && greeting.ready_received) {
            return self.put_greeting(greeting);
        }
        let Some(theirs) = greeting.theirs else {
            return;
        };
        let floor = self.term;
        if let Some(link) = self.link.as_mut() {
            link.stage = Stage::Replicating;
            link.session = greeting.session;
            link.floor = floor;
        }
        self.set_peer_role(theirs.role);
        self.discard_my_data = false;
        self.standing.refusal = None;
        for (index, verdict) in greeting.verdicts.into_iter().enumerate() {
            let v = &mut self.volumes[index];
            let peer = &theirs.volumes[index];
            v.compared =
                peer.disk >= DiskState::Inconsistent || peer.current == v.data_generation();
            // Its answer was lost with the last link.
            self.on_new_generation_ack(index, peer.current);
            self.start_volume(index, verdict, peer.disk);
            self.tell_pause(index);
        }
        self.publish_connection(ConnectionState::Connected);
        self.recheck = true;
        self.progress = true;
    }

    fn start_volume(&mut self, index: usize, verdict: Verdict, peer_disk: DiskState) {
        let now = self.now;
        match verdict {
            Verdict::NoSync => self.start_without_sync(index, peer_disk),
            Verdict::Source(extent) => {
                let v = &mut self.volumes[index];
                if extent != Extent::Bitmap {
                    v.bitmap.set_all(extent == Extent::Compare);
                }
                let total = (v.bitmap.count() * super::bitmap::BIT_BYTES).min(v.size);
                v.sync = Some(Sync::new(total, Pace::new(v.limits, now)));
                v.change(|superblock| superblock.outdated = false);
                v.peer_current = false;
                self.set_disk(index, DiskState::UpToDate);
                self.set_peer_disk(index, DiskState::Inconsistent);
                self.set_replication(index, ReplicationState::SyncSource);
            }
            Verdict::Target(_) => {
                let total = self.out_of_sync(index);
                self.volumes[index].crashed = false;
                self.volumes[index].counters.sync_total = total;
                self.set_peer_disk(index, DiskState::UpToDate);
                self.set_replication(index, ReplicationState::SyncTarget);
            }
            Verdict::Refuse(_) => {}
        }
    }

    fn start_without_sync(&mut self, index: usize, peer_disk: DiskState) {
        self.set_replication(index, ReplicationState::Established);
        let v = &self.volumes[index];
        let both = v.disk > DiskState::Inconsistent && peer_disk > DiskState::Inconsistent;
        if !both {
            // One disk is missing, or neither has data: what there is stays what it is.
            if v.disk == DiskState::Consistent && peer_disk < DiskState::Inconsistent {
                let proven = v.proven_current();
                self.set_disk(
                    index,
                    if proven {
                        DiskState::UpToDate
                    } else {
                        DiskState::Consistent
                    },
                );
            }
            self.set_peer_disk(index, peer_disk);
            let v = &self.volumes[index];
            let alone = self.role == Role::Primary && !v.has_disk();
            if alone && v.own_disk == OwnDisk::Current && peer_disk == DiskState::UpToDate {
                // The disk was lost while the peer was away.
                self.leave_own_disk(index);
            }
            return;
        }
        let v = &mut self.volumes[index];
        // The finish of an earlier sync may have been missed by either side.
        v.drop_base();
        v.change(|superblock| superblock.outdated = false);
        v.peer_current = true;
        self.clear_crash_flag(index);
        self.set_disk(index, DiskState::UpToDate);
        self.set_peer_disk(index, DiskState::UpToDate);
    }
}

/// Whether both nodes are primary, each by a vote.
fn reign_twice(mine: &NodeState, theirs: &NodeState) -> bool {
    let primary = |state: &NodeState| state.role == Role::Primary;
    primary(mine) && primary(theirs) && mine.term != theirs.term
}

/// Equal but for what may change while the nodes talk.
fn same_state(old: &NodeState, new: &NodeState) -> bool {
    let volume = |v: &VolumeState| {
        (
            v.disk,
            v.current,
            v.base,
            v.agreed_size,
            v.want_full,
            v.crashed_primary,
            v.capacity,
        )
    };
    old.role == new.role
        && old.term == new.term
        && old.discard_my_data == new.discard_my_data
        && old
            .volumes
            .iter()
            .map(volume)
            .eq(new.volumes.iter().map(volume))
}

/// Later sessions are greater: the high half counts, the low half tells incarnations apart.
fn later_session(mine: Session, theirs: Session, nonces: u64) -> Session {
    let counter = (mine.0 >> 32).max(theirs.0 >> 32) + 1;
    Session(counter << 32 | ((nonces ^ (nonces >> 32)) & 0xFFFF_FFFF))
}

/// The generation that a target's data has until a sync of everything ends: it belongs to this
/// one sync.
fn stub_generation(session: Session) -> Generation {
    Generation(session.0 ^ 0x5354_5542_5354_5542)
}

/// The size both sides use: an agreed one stays, otherwise the smaller disk decides.
fn agreed_size(mine: u64, capacity: u64, theirs: &VolumeState) -> u64 {
    match (mine, theirs.agreed_size) {
        (0, 0) if theirs.capacity == 0 => 0,
        (0, 0) => capacity.min(theirs.capacity),
        (0, agreed) => agreed,
        (agreed, _) => agreed,
    }
}

fn check_sizes(mine: &VolumeState, theirs: &VolumeState) -> Result<(), Refusal> {
    let volume = mine.volume;
    let agreed = mine.agreed_size.max(theirs.agreed_size);
    let too_small = |side: &VolumeState| side.capacity > 0 && side.capacity < agreed;
    if too_small(theirs) {
        return Err(Refusal::PeerTooSmall {
            volume,
            need: agreed,
            have: theirs.capacity,
        });
    }
    if too_small(mine) {
        return Err(Refusal::DiskTooSmall {
            volume,
            need: agreed,
            have: mine.capacity,
        });
    }
    Ok(())
}

/// A device in use keeps its block size: a disk with larger blocks cannot follow it.
fn check_blocks(
    mine: &NodeState,
    theirs: &NodeState,
    my_volume: &VolumeState,
    their_volume: &VolumeState,
) -> Result<(), Refusal> {
    let unfit = |node: &NodeState, device: &VolumeState, disk: &VolumeState| {
        node.role == Role::Primary && disk.capacity > 0 && disk.logical_block > device.logical_block
    };
    if unfit(mine, my_volume, their_volume) || unfit(theirs, their_volume, my_volume) {
        let volume = my_volume.volume;
        return Err(Refusal::BlockSizeMismatch { volume });
    }
    Ok(())
}

fn misfit_refusal(misfit: Misfit, mine: &VolumeState, theirs: &VolumeState) -> Refusal {
    let volume = mine.volume;
    let ancestry = |side: &VolumeState| {
        [side.current, side.base]
            .into_iter()
            .chain(side.history.iter().copied())
            .filter(|generation| !generation.is_fresh())
            .collect::<Vec<_>>()
    };
    match misfit {
        Misfit::SplitBrain => Refusal::SplitBrain {
            volume,
            mine: ancestry(mine),
            theirs: ancestry(theirs),
        },
        Misfit::Unrelated => Refusal::UnrelatedData {
            volume,
            mine: mine.current,
            theirs: theirs.current,
        },
        Misfit::PrimaryIsOlder => Refusal::PrimaryIsOlder { volume },
        Misfit::NoSource => Refusal::NoSource { volume },
    }
}
