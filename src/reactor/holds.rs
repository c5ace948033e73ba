//! Syncs that the agent keeps behind others, each for a limited time: when the agent is gone or
//! hangs, nobody would let them go on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::orders::{Answer, Order, Orders};
use crate::engine::{Command, PauseCause, VolumeId};

/// Until when syncs of volumes are held back.
#[derive(Clone, Default)]
pub struct Holds {
    ends: Rc<RefCell<BTreeMap<VolumeId, Instant>>>,
}

impl Holds {
    /// Holds syncs of `volume` back from now on, for `lease`; zero lets them go on.
    pub async fn hold(&self, volume: VolumeId, lease: Duration, orders: &Orders) -> Answer {
        if lease.is_zero() {
            self.ends.borrow_mut().remove(&volume);
            return pause(orders, volume, false).await;
        }
        let end = Instant::now() + lease;
        if self.ends.borrow_mut().insert(volume, end).is_some() {
            // The one who watches it sees the new end.
            return Ok(Value::Null);
        }
        let (holds, watcher) = (self.clone(), orders.clone());
        tokio_uring::spawn(async move { holds.watch(volume, &watcher).await });
        pause(orders, volume, true).await
    }

    /// Lets syncs of `volume` go on at the end, unless somebody did before.
    async fn watch(&self, volume: VolumeId, orders: &Orders) {
        loop {
            let Some(end) = self.ends.borrow().get(&volume).copied() else {
                return;
            };
            if end <= Instant::now() {
                break;
            }
            sleep_until(end).await;
        }
        self.ends.borrow_mut().remove(&volume);
        tracing::warn!(volume = volume.0, "no agent holds the sync back any more");
        // Refused only when the process ends.
        let _ = pause(orders, volume, false).await;
    }
}

async fn pause(orders: &Orders, volume: VolumeId, on: bool) -> Answer {
    let (reply, answer) = oneshot::channel();
    let cause = PauseCause::Dependency;
    let command = Command::PauseSync { volume, cause, on };
    orders.send(Order::Command { command, reply });
    answer.await.unwrap_or_else(|_| Err(super::control::gone()))
}
