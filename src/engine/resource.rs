//! The engine's entry points.

use super::action::Action;
use super::config::Config;
use super::event::Event;
use super::ids::Time;
use super::status::ResourceStatus;

/// The replication state machine of one resource on one node.
pub struct Engine {
    #[allow(dead_code)]
    config: Config,
}

impl Engine {
    /// A resource with no disk attached, no link and the role Secondary.
    pub fn new(config: Config) -> Engine {
        Engine { config }
    }

    /// Applies one event and appends what must be done, in order.
    pub fn handle(&mut self, _now: Time, _event: Event, _out: &mut Vec<Action>) {}

    /// When `Event::Tick` is wanted next.
    pub fn next_deadline(&self) -> Option<Time> {
        None
    }

    /// The picture that `status` shows.
    pub fn status(&self) -> ResourceStatus {
        unreachable!()
    }
}
