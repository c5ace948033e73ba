//! What nodes tell each other with every beat.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::manager::Side;
use super::membership::Echo;

/// Resources in one beat: it stays below the smallest packet that every network carries.
const PER_BEAT: usize = 12;
/// Resources of a peer that are remembered.
const MAX_RESOURCES: usize = 256;
/// Longest name that is taken from the peer.
const MAX_NAME: usize = 255;

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    pub resources: BTreeMap<String, Side>,
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
            resources: resources
                .map(|(name, side)| (name.clone(), *side))
                .collect(),
        }
    }

    /// Takes a part that the peer has told. True if there is news in it.
    pub fn merge(&mut self, part: NodeReport) -> bool {
        let mut news = false;
        for (name, report) in part.resources {
            let room = self.resources.len() < MAX_RESOURCES || self.resources.contains_key(&name);
            if room && name.len() <= MAX_NAME {
                news |= self.resources.insert(name, report) != Some(report);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_report_arrives_in_parts() {
        let mut report = NodeReport::default();
        for number in 0..30 {
            let resource = Side {
                primary: number % 2 == 0,
                ..Side::default()
            };
            report.resources.insert(format!("r{number}"), resource);
        }
        let mut heard = NodeReport::default();
        for number in 0..3 {
            let part = report.part(number);
            assert!(part.resources.len() <= PER_BEAT);
            assert!(heard.merge(part.clone()), "news");
            assert!(!heard.merge(part), "none");
        }
        assert_eq!(heard, report);
        assert_eq!(NodeReport::default().part(7), NodeReport::default());
    }
}
