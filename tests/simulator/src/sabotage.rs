//! The planted defects: which rule each one breaks, which check must object, and under which
//! conditions it can show.

use lockstep::engine::{Protocol, Sabotage};

use crate::oracle::{Check, Violation};

/// What there is to know about one defect.
pub struct Plant {
    pub defect: Sabotage,
    pub rule: u8,
    pub check: Check,
    /// Protocol when the command line names none.
    pub protocol: Protocol,
    /// Whether the third voter is there when the command line does not say.
    pub voter: bool,
    /// Scenarios that can bring it out.
    pub scenarios: &'static [&'static str],
}

/// The row of a defect.
pub fn plant(defect: Sabotage) -> Plant {
    use Check::{
        Causal, Compare, Completion, Dirty, Equal, Fence, Lease, Logged, Marked, Order, Promote,
    };
    use Protocol::{A, C};
    let (rule, check, protocol, scenarios): (u8, Check, Protocol, &'static [&'static str]) =
        match defect {
            Sabotage::AckBeforePeer => (1, Completion, C, &["calm", "links"]),
            Sabotage::AckBeforeLocal => (1, Completion, C, &["calm", "links"]),
            Sabotage::SkipAl => (4, Logged, C, &["calm", "kills"]),
            Sabotage::EarlyEvict => (4, Dirty, C, &["kills", "power", "links", "storm"]),
            Sabotage::PartialClear => (2, Equal, C, &["syncing", "links"]),
            Sabotage::OneSidedBitmap => (4, Equal, C, &["takeover", "force", "storm"]),
            Sabotage::ClearBitOnSend => (2, Dirty, C, &["links", "kills", "storm"]),
            Sabotage::NoDirtyOnLinkLoss => (3, Dirty, C, &["links", "storm", "kills"]),
            Sabotage::SkipEpochBarrier => (5, Causal, A, &["links", "kills", "storm"]),
            Sabotage::ForgetFlush => (1, Completion, C, &["calm", "power"]),
            Sabotage::ResyncOverwritesNewer => (9, Order, C, &["links", "kills", "storm"]),
            Sabotage::PromoteInconsistent => (5, Promote, C, &["takeover", "links", "storm"]),
            Sabotage::TrustOwnUptodate => (8, Promote, C, &["takeover"]),
            Sabotage::IgnoreTerm => (7, Fence, C, &["deposed"]),
            Sabotage::StaleSession => (7, Fence, C, &["links", "flapping"]),
            Sabotage::PromoteWithoutDrain => (7, Fence, A, &["overtaken", "flapping"]),
            Sabotage::InconsistentLate => (5, Marked, C, &["links", "kills"]),
            Sabotage::FinishBeforeFlush => (2, Dirty, C, &["power", "storm"]),
            Sabotage::VerifySkipsDifferences => (4, Compare, C, &["silent"]),
            Sabotage::WeakHashClears => (2, Equal, C, &["links", "kills"]),
            Sabotage::DegradeUnrecorded => (6, Completion, C, &["links", "takeover"]),
            Sabotage::DetachUnrecorded => (6, Completion, C, &["disks"]),
            Sabotage::DoubleLease => (6, Lease, C, &["witness", "deposed"]),
            Sabotage::VoterForgets => (6, Lease, C, &["witness"]),
            Sabotage::WitnessForgets => (6, Completion, C, &["witness", "takeover"]),
            Sabotage::BlankWitnessGrants => (6, Lease, C, &["witness"]),
        };
    // Without a voter a second reign begins with a new generation, and that alone keeps the first
    // one out.
    let voter = matches!(
        defect,
        Sabotage::IgnoreTerm
            | Sabotage::DegradeUnrecorded
            | Sabotage::DetachUnrecorded
            | Sabotage::DoubleLease
            | Sabotage::VoterForgets
            | Sabotage::WitnessForgets
            | Sabotage::BlankWitnessGrants
    );
    Plant {
        defect,
        rule,
        check,
        protocol,
        voter,
        scenarios,
    }
}

/// Whether a violation is the one that the defect must be found by.
pub fn is_meant(defect: Sabotage, violation: &Violation) -> bool {
    let plant = plant(defect);
    (violation.rule, violation.check) == (plant.rule, plant.check)
}

/// The defect of a name.
pub fn by_name(name: &str) -> Option<Sabotage> {
    Sabotage::ALL
        .iter()
        .find(|(_, other)| *other == name)
        .map(|(defect, _)| *defect)
}

/// `NAME rule R ORACLE` for every defect.
pub fn list() -> String {
    Sabotage::ALL
        .iter()
        .map(|(defect, name)| {
            let plant = plant(*defect);
            format!("{name} rule {} {}\n", plant.rule, plant.check)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_has_a_name_and_known_scenarios() {
        assert_eq!(list().lines().count(), Sabotage::ALL.len());
        for (defect, name) in Sabotage::ALL {
            assert_eq!(by_name(name), Some(*defect));
            for scenario in plant(*defect).scenarios {
                assert!(crate::scenario::by_name(scenario).is_some(), "{scenario}");
            }
        }
        assert_eq!(by_name("nothing"), None);
    }
}
