//! The event stream: every change that a data plane or the agent publishes, to every listener.
//!
//! A listener that does not keep up is dropped: memory stays bounded and no resource waits.

use std::cell::RefCell;
use std::rc::Rc;

use serde_json::Value;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events that may wait for one listener: a few seconds of a flapping link on a hundred resources.
const BACKLOG: usize = 4096;
/// Listeners at a time.
const MAX_LISTENERS: usize = 64;

/// Where events are published. Clones share their listeners.
#[derive(Clone, Default)]
pub struct Hub {
    listeners: Rc<RefCell<Vec<Sender<Value>>>>,
    pulse: Rc<Notify>,
}

impl Hub {
    /// Hands `event` to every listener.
    pub fn publish(&self, event: &Value) {
        self.listeners
            .borrow_mut()
            .retain(|listener| listener.try_send(event.clone()).is_ok());
    }

    /// Rung at every change, for the one task that compares resources.
    pub fn pulse(&self) -> &Notify {
        &self.pulse
    }

    /// A new listener; none when there are too many. Its stream ends when it falls behind.
    pub fn listen(&self) -> Option<Receiver<Value>> {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|listener| !listener.is_closed());
        if listeners.len() >= MAX_LISTENERS {
            return None;
        }
        let (give, take) = channel(BACKLOG);
        listeners.push(give);
        Some(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_listener_is_dropped_and_others_go_on() {
        let hub = Hub::default();
        let mut slow = hub.listen().expect("room");
        for n in 0..BACKLOG + 1 {
            hub.publish(&Value::from(n));
        }
        let mut fresh = hub.listen().expect("room");
        hub.publish(&Value::from("new"));
        assert_eq!(fresh.try_recv(), Ok(Value::from("new")));
        let mut count = 0;
        while slow.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, BACKLOG);
    }

    #[test]
    fn listeners_are_bounded() {
        let hub = Hub::default();
        let mut kept: Vec<_> = (0..MAX_LISTENERS)
            .map(|_| hub.listen().expect("room"))
            .collect();
        assert!(hub.listen().is_none());
        kept.pop();
        assert!(hub.listen().is_some());
    }
}
