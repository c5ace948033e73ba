//! Deliberate defects, each breaking one safety rule.
//!
//! They exist so that the simulator can prove that it would find such a defect. Without the
//! feature `sabotage` no switch exists and every check below is the constant `false`.

/// A planted defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sabotage {
    /// Completes a protocol C write before the peer has written it.
    AckBeforePeer,
    /// Completes a write before the local disk has.
    AckBeforeLocal,
    /// Submits a write into an extent that is not in the activity log.
    SkipAl,
    /// Lets an extent leave the log although its writes are not durable everywhere.
    EarlyEvict,
    /// Clears a dirty bit for an application write that covers it only in part.
    PartialClear,
    /// Syncs from the source's bitmap alone.
    OneSidedBitmap,
    /// Clears dirty bits when a sync block is sent.
    ClearBitOnSend,
    /// Keeps bits clear for writes that were in flight when the link broke.
    NoDirtyOnLinkLoss,
    /// The secondary does not wait at barriers.
    SkipEpochBarrier,
    /// Answers flushes without flushing.
    ForgetFlush,
    /// Sync blocks and application writes do not exclude each other.
    ResyncOverwritesNewer,
    /// Promotes inconsistent data without force.
    PromoteInconsistent,
    /// Takes its own data for current after a crash.
    TrustOwnUptodate,
    /// Accepts writes of an older term, and a primary of an older term.
    IgnoreTerm,
    /// Accepts a new session, and frames of the old one, before the old one is drained.
    StaleSession,
    /// Becomes primary while writes of the old primary are on their way to the disk.
    PromoteWithoutDrain,
    /// The first blocks of a sync are written before the disk is recorded as inconsistent.
    InconsistentLate,
    /// A sync ends, and its target adopts the generation, without a flush of the target's disk.
    FinishBeforeFlush,
    /// A verify takes blocks that differ for equal.
    VerifySkipsDifferences,
    /// Dirty bits are cleared on the word of a short hash.
    WeakHashClears,
    /// Writes that the peer lacks complete before the voters know of the new generation.
    DegradeUnrecorded,
    /// Writes that the own, detached disk lacks complete before the voters know of it.
    DetachUnrecorded,
    /// A voter votes while the lease of another lasts.
    DoubleLease,
    /// A voter that restarts does not wait for leases that it may have granted.
    VoterForgets,
    /// A voter answers that a generation is on record, and does not keep it.
    WitnessForgets,
    /// A voter without a record takes every copy for the current one.
    BlankWitnessGrants,
}

impl Sabotage {
    /// Every defect with its name on the command line.
    pub const ALL: &'static [(Sabotage, &'static str)] = &[
        (Sabotage::AckBeforePeer, "ack-before-peer"),
        (Sabotage::AckBeforeLocal, "ack-before-local"),
        (Sabotage::SkipAl, "skip-al"),
        (Sabotage::EarlyEvict, "early-evict"),
        (Sabotage::PartialClear, "partial-clear"),
        (Sabotage::OneSidedBitmap, "one-sided-bitmap"),
        (Sabotage::ClearBitOnSend, "clear-bit-on-send"),
        (Sabotage::NoDirtyOnLinkLoss, "no-dirty-on-link-loss"),
        (Sabotage::SkipEpochBarrier, "skip-epoch-barrier"),
        (Sabotage::ForgetFlush, "forget-flush"),
        (Sabotage::ResyncOverwritesNewer, "resync-overwrites-newer"),
        (Sabotage::PromoteInconsistent, "promote-inconsistent"),
        (Sabotage::TrustOwnUptodate, "trust-own-uptodate"),
        (Sabotage::IgnoreTerm, "ignore-term"),
        (Sabotage::StaleSession, "stale-session"),
        (Sabotage::PromoteWithoutDrain, "promote-without-drain"),
        (Sabotage::InconsistentLate, "inconsistent-late"),
        (Sabotage::FinishBeforeFlush, "finish-before-flush"),
        (Sabotage::VerifySkipsDifferences, "verify-skips-differences"),
        (Sabotage::WeakHashClears, "weak-hash-clears"),
        (Sabotage::DegradeUnrecorded, "degrade-unrecorded"),
        (Sabotage::DetachUnrecorded, "detach-unrecorded"),
        (Sabotage::DoubleLease, "double-lease"),
        (Sabotage::VoterForgets, "voter-forgets"),
        (Sabotage::WitnessForgets, "witness-forgets"),
        (Sabotage::BlankWitnessGrants, "blank-witness-grants"),
    ];
}
