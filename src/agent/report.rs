//! What `lockstep report` shows of a resource: the results that are kept, when the next verify is,
//! what has changed lately.

use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use super::calendar;
use super::kept::VolumeRecord;
use super::status::Status;

/// One resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    pub resource: String,
    pub node: String,
    pub peer: String,
    /// `verify-schedule` and the next time that it means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_verify: Option<String>,
    pub volumes: Vec<VolumeReport>,
    /// Oldest first.
    pub recent: Vec<Change>,
    /// The last events and actions of the data plane, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flight_recorder: Vec<String>,
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeReport {
    pub volume: u16,
    #[serde(flatten)]
    pub kept: VolumeRecord,
}

/// A line of `lockstep events`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    pub at: Timestamp,
    pub what: String,
}

/// The report of one resource, without its flight recorder.
pub fn of(status: &Status, now: &Zoned) -> Report {
    let plan = status.plan();
    let schedule = plan.upkeep.schedule;
    let next = schedule.and_then(|schedule| calendar::next(&schedule, now));
    let volumes = plan.volumes().into_iter();
    let recent = status.recent().into_iter();
    Report {
        resource: plan.name().to_owned(),
        node: plan.serve.node_name.clone(),
        peer: plan.serve.peer_name.clone(),
        schedule: schedule.map(|schedule| schedule.to_string()),
        next_verify: next.map(|at| at.strftime("%a %F %H:%M").to_string()),
        volumes: volumes
            .map(|volume| VolumeReport {
                volume,
                kept: status.kept().volume(volume),
            })
            .collect(),
        recent: recent.map(|(at, what)| Change { at, what }).collect(),
        flight_recorder: Vec::new(),
    }
}
