//! Takes over by itself: for every resource that is managed, looks at both nodes a few times a
//! second and tries to become primary when it is this node's turn.
//!
//! [`decide`] says when; the keeper's `primary` does it, with the voters' word as always. What the
//! node waits for, and why the last attempt failed, is in `status`.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tracing::info;

use super::cluster::Cluster;
use super::front::term_of;
use super::keeper::Input;
use super::order::Order;
use super::plan::Plan;
use super::protocol::ErrorReply;
use super::status::Status;
use super::view::ResourceView;
use crate::failover::manager::{Facts, First, Side, Wait, decide};

/// How often both nodes are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(500);

/// How a resource is managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Managed {
    /// `preferred`: whether that is this node.
    pub preferred_is_me: Option<bool>,
    /// Wait this long after a start for a peer that was not heard of.
    pub boot_wait: Duration,
}

/// See the module's description.
pub struct Failover {
    cluster: Rc<Cluster>,
    status: Rc<Status>,
    orders: UnboundedSender<Input>,
    started: Instant,
    /// Both nodes have been there without a primary since then.
    idle: Option<Instant>,
}

impl Failover {
    /// Begins to look after a resource, for as long as it is configured.
    pub fn spawn(cluster: &Rc<Cluster>, status: &Rc<Status>, orders: &UnboundedSender<Input>) {
        let failover = Failover {
            cluster: Rc::clone(cluster),
            status: Rc::clone(status),
            orders: orders.clone(),
            started: Instant::now(),
            idle: None,
        };
        tokio_uring::spawn(failover.run());
    }

    async fn run(mut self) {
        let mut said = None;
        while !self.status.is_retired() {
            sleep(LOOK).await;
            let plan = self.status.plan();
            let Some(managed) = &plan.managed else {
                continue;
            };
            let view = self.status.view().await;
            let me = self.me(&view);
            self.cluster.say(plan.name(), me);
            match decide(&self.facts(&view, me, (&plan, managed))) {
                Ok(()) => {
                    said = None;
                    self.try_now(plan.name()).await;
                }
                Err(wait) => {
                    if wait == Wait::Connected {
                        self.cluster.probe(plan.name());
                    }
                    if said.replace(wait) != Some(wait) {
                        self.show(wait);
                    }
                }
            }
        }
    }

    fn me(&self, view: &ResourceView) -> Side {
        let usable = |state: &String| matches!(state.as_str(), "UpToDate" | "Consistent");
        Side {
            primary: view.role == "Primary",
            able: !view.devices.is_empty() && view.devices.iter().all(|d| usable(&d.disk_state)),
            resting: self.status.is_resting(),
        }
    }

    fn facts(&mut self, view: &ResourceView, me: Side, of: (&Plan, &Managed)) -> Facts {
        let (plan, managed) = of;
        let picture = self.cluster.picture();
        let told = picture.peer.resources.get(plan.name()).copied();
        let peer = picture.alive.then(|| told.unwrap_or_default());
        let connected = view
            .connections
            .iter()
            .any(|c| c.connection_state == "Connected");
        let nobody = !me.primary && peer.is_some_and(|peer| !peer.primary);
        let now = Instant::now();
        self.idle = nobody.then(|| self.idle.unwrap_or(now));
        let reigned = term_of(&view.term).filter(|term| term.counter > 0);
        Facts {
            automatic: true,
            maintenance: false,
            me,
            peer,
            uptime: now - self.started,
            peer_silent: picture.dead_for.unwrap_or_default(),
            idle: self.idle.map_or(Duration::ZERO, |since| now - since),
            connected,
            boot_wait: managed.boot_wait,
            first: First::choose(
                managed.preferred_is_me,
                reigned.map(|term| term.node.0 == plan.serve.node),
                plan.serve.node < plan.serve.peer,
            ),
        }
    }

    async fn try_now(&self, resource: &str) {
        let (answer, done) = oneshot::channel();
        let order = Order::Primary { force: false };
        // The keeper lives as long as the agent.
        let _ = self.orders.send(Input::Order { order, answer });
        match done.await {
            Ok(Ok(_)) => {
                info!(resource, "has taken over");
                self.status.set_trouble(None);
            }
            Ok(Err(ErrorReply { reason, .. })) => {
                let text = format!("not primary yet: {reason}");
                self.status.set_trouble(Some(text));
                self.status.changed();
                sleep(AGAIN).await;
            }
            Err(_) => sleep(AGAIN).await,
        }
    }

    fn show(&self, wait: Wait) {
        let reason = match wait {
            Wait::Reigning | Wait::PeerReigns => None,
            wait => Some(wait.to_string()),
        };
        self.status.set_trouble(reason);
        self.status.changed();
    }
}
