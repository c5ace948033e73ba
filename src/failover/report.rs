//! What nodes tell each other with every beat.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::membership::Echo;
use crate::engine::Term;

/// Resources in one beat: it stays below the smallest packet that every network carries.
const PER_BEAT: usize = 12;
/// Resources of a peer that are remembered.
const MAX_RESOURCES: usize = 256;
/// Longest name that is taken from the peer.
const MAX_NAME: usize = 255;

/// How a resource is on the node that tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReport {
    pub primary: bool,
    /// The last reign that this node knows, if any.
    pub term: Option<Term>,
    /// Its data plane runs, and its copy could be used.
    pub able: bool,
    /// All its disks are UpToDate.
    pub current: bool,
    /// An operator has taken it out of service here.
    pub resting: bool,
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    pub standby: bool,
    pub maintenance: bool,
    /// Since the agent started.
    pub uptime_ms: u64,
    pub resources: BTreeMap<String, ResourceReport>,
}

/// The body of a beat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub echo: Echo,
    /// Some of the resources, in turn.
    pub report: NodeReport,
}

impl NodeReport {
    /// The part of the report that the beat of this number carries.
    pub fn part(&self, number: u64) -> NodeReport {
        let parts = self.resources.len().div_ceil(PER_BEAT).max(1);
        let skip = (number as usize % parts) * PER_BEAT;
        let resources = self.resources.iter().skip(skip).take(PER_BEAT);
        NodeReport {
            resources: resources.map(|(n, r)| (n.clone(), r.clone())).collect(),
            ..*self
        }
    }

    /// Takes a part that the peer has told.
    pub fn merge(&mut self, part: NodeReport) {
        (self.standby, self.maintenance) = (part.standby, part.maintenance);
        self.uptime_ms = part.uptime_ms;
        for (name, report) in part.resources {
            let room = self.resources.len() < MAX_RESOURCES || self.resources.contains_key(&name);
            if room && name.len() <= MAX_NAME {
                self.resources.insert(name, report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_report_arrives_in_parts() {
        let mut report = NodeReport {
            standby: true,
            ..NodeReport::default()
        };
        for number in 0..30 {
            let resource = ResourceReport {
                primary: number % 2 == 0,
                ..ResourceReport::default()
            };
            report.resources.insert(format!("r{number}"), resource);
        }
        let mut heard = NodeReport::default();
        for number in 0..3 {
            let part = report.part(number);
            assert!(part.resources.len() <= PER_BEAT);
            heard.merge(part);
        }
        assert_eq!(heard, report);
        assert_eq!(NodeReport::default().part(7), NodeReport::default());
    }
}
