//! New generations, and what the third voter has to say about them and about a reign.
//!
//! Before a write completes that a promotable copy lacks, the data moves to a new generation that
//! is known to a majority of the voters: this node, the peer, the third (rule 6).
//!
//! With a third voter it is asked first, and the superblock follows its answer: a generation that
//! the voter refuses has then never existed, and a primary that was overtaken behind a cut link
//! is simply behind. While the voter can be asked, nothing else needs the answer: when the peer
//! comes back first, the question is dropped, and should the voter have heard it, it is told what
//! counts instead.
//!
//! The voter names one owner at a time. A primary that it does not name any more is *deposed*: it
//! stops serving, fails what waits for the voter, ends what is under way, and becomes secondary.

use super::action::{Action, Notice};
use super::config::VoteMode;
use super::event::{Ground, Vote};
use super::ids::{Generation, Term, VolumeId};
use super::reason::Refusal;
use super::resource::{Engine, broken};
use super::roles::Step;
use super::status::{DiskState, Role};
use super::volume::{Mint, OwnDisk};

impl Engine {
    pub(super) fn has_voter(&self) -> bool {
        self.config.vote == VoteMode::Voter
    }

    /// The vote that a promotion rests on, where one is needed.
    pub(super) fn vote_of<'a>(&self, ground: &'a Ground) -> Option<&'a Vote> {
        match ground {
            Ground::Voter(vote) if self.has_voter() => Some(vote),
            _ => None,
        }
    }

    // ---- new generations ----

    /// Begins to move the data to a new generation that the peer's copy does not have.
    pub(super) fn begin_mint(&mut self, index: usize) {
        // Between the agreement on a sync and its start the generations must stand still; the
        // handshake has a deadline.
        if self.volumes[index].mint.is_some() || self.handshake_committed() {
            return;
        }
        // Without a disk that counts nothing can be recorded here; the writes fail or are the
        // peer's.
        if self.volumes[index].disk != DiskState::UpToDate || self.deposed.is_some() {
            return;
        }
        let generation = self.fresh_generation();
        if self.has_voter() && !broken!(self, DegradeUnrecorded) {
            self.volumes[index].mint = Some(Mint::Asked(generation));
            self.record_at_voter(index, generation);
        } else {
            self.move_on(index, generation);
        }
        self.progress = true;
    }

    fn move_on(&mut self, index: usize, generation: Generation) {
        let v = &mut self.volumes[index];
        v.new_generation(generation);
        let version = v.change_peer(|peer| peer.outdated = true);
        v.mint = Some(Mint::Storing {
            version,
            counts: true,
        });
        let volume = v.id;
        self.publish(Notice::NewGeneration { volume, generation });
    }

    pub(super) fn record_at_voter(&mut self, index: usize, generation: Generation) {
        let (volume, term) = (self.volumes[index].id, self.term);
        self.out.push(Action::RecordAtVoter {
            volume,
            generation,
            term,
        });
    }

    pub(super) fn on_voter_recorded(&mut self, id: VolumeId, generation: Generation) {
        let Some(index) = self.index(id) else { return };
        self.progress = true;
        let v = &mut self.volumes[index];
        if v.mint == Some(Mint::Asked(generation)) {
            return self.move_on(index, generation);
        }
        if v.own_disk == OwnDisk::Recording(generation) {
            v.own_disk = OwnDisk::Left(generation);
            self.recheck = true;
            return;
        }
        // The question was dropped meanwhile.
        let current = v.superblock.current;
        let settled = v.mint.is_none() && v.own_disk == OwnDisk::Current;
        let reigns = self.role == Role::Primary && self.deposed.is_none();
        if reigns && settled && current != generation {
            self.record_at_voter(index, current);
        }
    }

    /// The peer is back before the voter has answered: nothing has to move on.
    pub(super) fn drop_questions(&mut self) {
        for v in &mut self.volumes {
            if matches!(v.mint, Some(Mint::Asked(_))) {
                v.mint = None;
            }
        }
    }

    pub(super) fn settle_mints(&mut self) {
        for v in &mut self.volumes {
            if let Some(Mint::Storing { version, counts }) = v.mint
                && v.stored(version)
            {
                v.mint = None;
                v.peer_current &= !counts;
                self.recheck = true;
                self.progress = true;
            }
        }
    }

    // ---- the end of a reign ----

    /// The voter does not name this node any more: `term` is another's.
    pub(super) fn on_deposed(&mut self, term: Term) {
        if term <= self.term {
            return;
        }
        self.deposed = self.deposed.max(Some(term));
        self.stop_serving();
        self.drop_questions();
        self.recheck = true;
        self.progress = true;
    }

    /// Takes the next step down; called until nothing moves.
    pub(super) fn settle_deposed(&mut self) {
        let Some(term) = self.deposed else { return };
        match self.change.as_ref().map(|change| &change.step) {
            // What is being stored says that we are primary: that has to be undone in order.
            Some(Step::Storing { .. }) => {}
            Some(step) if step.is_question() => self.give_up_promotion(Refusal::StaleTerm),
            _ if self.role == Role::Secondary => {
                self.deposed = None;
                self.follow_term(term);
            }
            Some(_) => {}
            None => self.step_down(),
        }
    }

    /// Nothing proves any more that a copy is current which another may have overtaken.
    pub(super) fn doubt_copies(&mut self) {
        if self.deposed.is_none() || self.replicating().is_some() {
            return;
        }
        for index in 0..self.volumes.len() {
            if self.volumes[index].disk == DiskState::UpToDate {
                self.set_disk(index, DiskState::Consistent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        Command, CommandId, Config, Event, IoFailure, IoOutcome, MetaOp, NodeId, Op, PeerRecord,
        Protocol, Request, RequestId, Span, Superblock, Time, Timeouts, VolumeImage,
    };

    /// A node whose peer is away and whose disk answers at once.
    struct Lone {
        engine: Engine,
        stored: Option<Superblock>,
        asked: Vec<(Generation, Term)>,
        completed: Vec<Result<(), IoFailure>>,
        answers: Vec<Result<(), Refusal>>,
        serving: bool,
    }

    fn term(counter: u64) -> Term {
        Term {
            counter,
            node: NodeId(0),
            random: 1,
        }
    }

    fn vote(counter: u64, recorded: u64) -> Ground {
        Ground::Voter(Vote {
            term: term(counter),
            recorded: vec![Some(Generation(recorded))],
        })
    }

    impl Lone {
        /// With generation 5 on its disk.
        fn new() -> Lone {
            let superblock = Superblock {
                agreed_size: 8 << 20,
                current: Generation(5),
                inconsistent: false,
                peers: vec![PeerRecord {
                    known: true,
                    ..PeerRecord::default()
                }],
                ..Superblock::fresh(NodeId(0), 1)
            };
            let config = Config {
                node: NodeId(0),
                peer: NodeId(1),
                volumes: vec![VolumeId(0)],
                limits: Default::default(),
                csums: false,
                guarded: false,
                protocol: Protocol::C,
                timeouts: Timeouts::default(),
                vote: VoteMode::Voter,
                al_extents: 7,
                resync_buffers: 2,
                resync_chunk: 1 << 16,
                max_unacked_bytes: 1 << 20,
                boot_id: 1,
                seed: 7,
                #[cfg(feature = "sabotage")]
                sabotage: None,
            };
            let mut node = Lone {
                engine: Engine::new(config),
                stored: None,
                asked: Vec::new(),
                completed: Vec::new(),
                answers: Vec::new(),
                serving: false,
            };
            let image = VolumeImage {
                superblock,
                capacity: 8 << 20,
                logical_block: 512,
                discard: true,
                volatile_cache: false,
                log: Vec::new(),
                bitmap: Vec::new(),
                in_flight: None,
            };
            let volume = VolumeId(0);
            let image = Box::new(image);
            assert_eq!(node.command(Command::Attach { volume, image }), Ok(()));
            node
        }

        fn handle(&mut self, event: Event) {
            let mut out = Vec::new();
            self.engine.handle(Time(1), event, &mut out);
            for action in out {
                match action {
                    Action::Meta { io, op, .. } => {
                        if let MetaOp::Superblock(superblock) = op {
                            self.stored = Some(*superblock);
                        }
                        self.io(io);
                    }
                    Action::DiskWrite { io, .. } | Action::DiskFlush { io, .. } => self.io(io),
                    Action::RecordAtVoter {
                        generation, term, ..
                    } => self.asked.push((generation, term)),
                    Action::Complete { result, .. } => self.completed.push(result),
                    Action::CommandDone { result, .. } => self.answers.push(result),
                    Action::Serve { serve, .. } => self.serving = serve,
                    _ => {}
                }
            }
        }

        fn io(&mut self, io: crate::engine::IoId) {
            let outcome = IoOutcome::Done;
            self.handle(Event::Io { io, outcome });
        }

        fn command(&mut self, command: Command) -> Result<(), Refusal> {
            let id = CommandId(1);
            self.handle(Event::Command { id, command });
            self.answers.pop().expect("answered at once")
        }

        fn primary(&mut self, force: bool, ground: Ground) -> Result<(), Refusal> {
            self.command(Command::Primary { force, ground })
        }

        fn write(&mut self) {
            let (id, volume) = (RequestId(1), VolumeId(0));
            let span = Span::new(4096, 4096);
            let op = Op::Write { span, fua: false };
            self.handle(Event::Request(Request { id, volume, op }));
        }

        fn current(&self) -> u64 {
            self.stored.as_ref().map_or(0, |s| s.current.0)
        }
    }

    #[test]
    fn every_promotion_needs_a_vote_and_a_copy_that_is_on_record_or_force() {
        let mut node = Lone::new();
        for force in [false, true] {
            let refused = node.primary(force, Ground::Operator);
            assert_eq!(refused, Err(Refusal::NoVote));
        }
        let volume = VolumeId(0);
        let refused = node.primary(false, vote(2, 6));
        assert_eq!(refused, Err(Refusal::NotRecorded { volume }));
        assert_eq!(node.primary(false, vote(3, 5)), Ok(()));
        assert!(node.serving);
        assert_eq!(node.stored.as_ref().map(|s| s.term), Some(term(3)));
        assert_eq!(node.command(Command::Secondary), Ok(()));
        let refused = node.primary(true, vote(3, 5));
        assert_eq!(refused, Err(Refusal::StaleTerm));
    }

    #[test]
    fn a_write_that_the_peer_lacks_waits_for_the_voter_and_then_for_the_superblock() {
        let mut node = Lone::new();
        assert_eq!(node.primary(false, vote(1, 5)), Ok(()));
        node.write();
        assert!(node.completed.is_empty());
        let (generation, under) = node.asked.pop().expect("asked");
        assert_eq!((under, node.current()), (term(1), 5));
        let volume = VolumeId(0);
        node.handle(Event::VoterRecorded { volume, generation });
        assert_eq!(node.completed, [Ok(())]);
        assert_eq!(node.current(), generation.0);
    }

    #[test]
    fn a_deposed_primary_fails_what_waits_and_is_merely_behind() {
        let mut node = Lone::new();
        assert_eq!(node.primary(false, vote(1, 5)), Ok(()));
        node.write();
        node.handle(Event::Deposed { term: term(1) });
        assert!(node.serving, "its own term is no news");
        node.handle(Event::Deposed { term: term(2) });
        assert_eq!(node.completed, [Err(IoFailure::NotPrimary)]);
        assert!(!node.serving);
        let status = node.engine.status();
        assert_eq!(status.role, Role::Secondary);
        assert_eq!(status.devices[0].disk, DiskState::Consistent);
        let stored = node.stored.as_ref().expect("stored");
        assert_eq!((stored.current, stored.primary), (Generation(5), false));
        assert_eq!(node.primary(true, vote(2, 5)), Err(Refusal::StaleTerm));
        assert_eq!(node.primary(false, vote(3, 5)), Ok(()));
    }

    #[test]
    fn force_reigns_over_another_copy_and_records_it_with_the_first_write() {
        let mut node = Lone::new();
        assert_eq!(node.primary(true, vote(1, 9)), Ok(()));
        let forced = node.current();
        assert_ne!(forced, 5);
        assert!(node.asked.is_empty());
        node.write();
        let (generation, _) = node.asked.pop().expect("asked");
        assert_ne!(generation.0, forced);
        assert!(node.completed.is_empty());
    }
}
