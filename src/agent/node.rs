//! The node: its resources and the requests that the command line sends about them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{Receiver, UnboundedSender};
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use super::calendar::Clock;
use super::events::Event;
use super::failover::Failover;
use super::handlers;
use super::hub::Hub;
use super::keeper::{Input, Keeper, Site};
use super::order::Order;
use super::plan::Plan;
use super::plane::{STATUS_ANSWER, exchange};
use super::protocol::{
    AUTHENTICATE, ControlRequest, ErrorKind, ErrorReply, ServeRequest, Target, VerifyOptions,
};
use super::report;
use super::status::{Phase, Status};
use super::users;

/// Reads the configuration of this node; called at start and whenever it may have changed.
pub type Loader = Box<dyn Fn() -> Result<Vec<Plan>, ErrorReply>>;

/// One resource: its keeper and what is known about it.
struct Resource {
    orders: UnboundedSender<Input>,
    status: Rc<Status>,
}

/// Everything the agent keeps. Shared by the tasks of its one thread.
pub struct Node {
    site: Rc<Site>,
    hub: Hub,
    load: Loader,
    resources: RefCell<BTreeMap<String, Resource>>,
}

/// What a request leads to.
pub enum Response {
    Done(Value),
    /// A first picture, then lines as they come.
    Stream(Vec<Event>, Option<Receiver<Value>>),
}

impl Node {
    pub fn new(site: Site, load: Loader) -> Rc<Node> {
        Rc::new(Node {
            site: Rc::new(site),
            hub: Hub::default(),
            load,
            resources: RefCell::default(),
        })
    }

    /// Starts the supervisors of `plans`, and with them every resource that starts by itself.
    /// None of them makes another wait.
    pub fn start(&self, plans: Vec<Plan>) {
        for plan in plans {
            let up = plan.auto;
            self.add(plan, up);
        }
    }

    fn add(&self, plan: Plan, up: bool) {
        let name = plan.name().to_owned();
        if plan.serve.shared_secret.is_empty() {
            warn!(
                resource = name,
                help = AUTHENTICATE,
                "unauthenticated: any host that reaches the port can replicate"
            );
        }
        let status = handlers::spawn(|jobs| Status::new(&self.site, &plan, self.hub.clone(), jobs));
        let orders = Keeper::spawn(Rc::clone(&self.site), plan, Rc::clone(&status), up);
        if let Some(cluster) = &self.site.cluster {
            Failover::spawn(cluster, &status, &orders);
        }
        let resource = Resource { orders, status };
        self.resources.borrow_mut().insert(name, resource);
    }

    /// Wakes whoever follows what the data planes tell.
    pub fn pulse(&self) -> &Notify {
        self.hub.pulse()
    }

    pub fn clock(&self) -> &Clock {
        &self.site.clock
    }

    /// Begins a verify of a whole resource, as the configuration wants it.
    pub async fn verify(&self, resource: &str) -> Result<Value, ErrorReply> {
        let target = Target::Resource(resource.to_owned());
        let order = Order::Verify(None, VerifyOptions::default());
        self.give(&target, &order).await
    }

    pub fn statuses(&self) -> Vec<Rc<Status>> {
        let resources = self.resources.borrow();
        resources.values().map(|r| Rc::clone(&r.status)).collect()
    }

    /// Answers one request of the command line.
    pub async fn answer(&self, request: &ControlRequest) -> Result<Response, ErrorReply> {
        let done = |result: Result<Value, ErrorReply>| result.map(Response::Done);
        match request.verb.as_str() {
            "status" => {
                let openers = flag(&request.options, "openers");
                done(self.status(&request.target, openers).await)
            }
            "events" => self.events(flag(&request.options, "now")),
            "adjust" => {
                let dry = flag(&request.options, "dry-run");
                done(self.adjust(&request.target, dry).await)
            }
            "disk-options" => {
                let target = Target::parse(&request.target)?;
                done(self.disk_options(&target, &request.options).await)
            }
            "report" => {
                let recorder = flag(&request.options, "flight-recorder");
                done(self.report(&request.target, recorder).await)
            }
            verb => {
                let target = Target::parse(&request.target)?;
                let order = order(verb, &target, &request.options)?;
                if order == Order::Up {
                    self.reread()?;
                }
                done(self.give(&target, &order).await)
            }
        }
    }

    /// Status of one resource, or of all in the order of their names; on demand with whether
    /// somebody has a block device open.
    async fn status(&self, target: &str, openers: bool) -> Result<Value, ErrorReply> {
        let wanted = match target {
            "" => Target::All,
            text => Target::parse(text)?,
        };
        let mut views = Vec::new();
        for (_, status, _) in self.chosen(&wanted)? {
            let mut view = status.view().await;
            if let Target::Volume(_, volume) = &wanted {
                view.keep_volume(*volume);
            }
            views.push(view);
        }
        if openers {
            users::find_openers(&mut views).await;
        }
        serde_json::to_value(views)
            .map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))
    }

    /// What is kept of one resource, or of all.
    async fn report(&self, target: &str, recorder: bool) -> Result<Value, ErrorReply> {
        let wanted = Target::parse(target)?;
        wanted.of_resource("report")?;
        let now = (self.site.clock)();
        let mut reports = Vec::new();
        for (name, status, _) in self.chosen(&wanted)? {
            let mut report = report::of(&status, &now);
            if recorder && status.phase() == Phase::Running {
                let request = ServeRequest::FlightRecorder;
                let told = exchange(&name, status.socket(), &request, &[], STATUS_ANSWER).await?;
                report.flight_recorder = serde_json::from_value(told).unwrap_or_default();
            }
            reports.push(report);
        }
        serde_json::to_value(reports)
            .map_err(|error| ErrorReply::new(ErrorKind::Failed, error, "report this"))
    }

    fn events(&self, now: bool) -> Result<Response, ErrorReply> {
        let follow = match now {
            true => None,
            false => Some(self.hub.listen().ok_or_else(|| {
                ErrorReply::new(
                    ErrorKind::Refused,
                    "too many listeners of events",
                    "end some of the `lockstep events` that run",
                )
            })?),
        };
        let resources = self.resources.borrow();
        let mut picture: Vec<Event> = resources
            .values()
            .flat_map(|resource| resource.status.picture())
            .collect();
        picture.push(Event::end_of_picture());
        Ok(Response::Stream(picture, follow))
    }

    /// The resources that `target` means.
    fn chosen(&self, target: &Target) -> Result<Vec<Chosen>, ErrorReply> {
        let resources = self.resources.borrow();
        let chosen = |name: &String, resource: &Resource| {
            let status = Rc::clone(&resource.status);
            (name.clone(), status, resource.orders.clone())
        };
        let Some(name) = target.resource() else {
            return Ok(resources.iter().map(|(n, r)| chosen(n, r)).collect());
        };
        let Some((name, resource)) = resources.get_key_value(name) else {
            return Err(unknown(name, resources.keys()));
        };
        if let Target::Volume(_, volume) = target {
            resource.status.plan().known(*volume)?;
        }
        if let Target::Peer(_, peer) = target
            && *peer != resource.status.plan().serve.peer_name
        {
            return Err(ErrorReply::new(
                ErrorKind::Usage,
                format!("{name} has no peer '{peer}'"),
                format!("its peer is {}", resource.status.plan().serve.peer_name),
            ));
        }
        Ok(vec![chosen(name, resource)])
    }

    /// Gives an order to every resource meant and waits for all; the first failure is the answer.
    async fn give(&self, target: &Target, order: &Order) -> Result<Value, ErrorReply> {
        let mut waiting = Vec::new();
        for (name, _, orders) in self.chosen(target)? {
            waiting.push((name, send(&orders, order)));
        }
        let mut result = Ok(Value::Null);
        for (name, answer) in waiting {
            result = result.and(answer.await.unwrap_or_else(|_| Err(lost(&name))));
        }
        result
    }

    /// Takes in the configuration for every resource that is down, and new resources as down.
    fn reread(&self) -> Result<(), ErrorReply> {
        for plan in (self.load)()? {
            let name = plan.name().to_owned();
            let known = self.resources.borrow().contains_key(&name);
            if known {
                self.replan(&name, plan);
            } else {
                self.add(plan, false);
            }
        }
        Ok(())
    }

    /// Replaces the plan of a resource; the keeper takes it only while the resource is down.
    fn replan(&self, name: &str, plan: Plan) {
        if let Some(resource) = self.resources.borrow().get(name) {
            // The keeper lives as long as the agent.
            let _ = resource.orders.send(Input::Replan(Box::new(plan)));
        }
    }

    /// Brings the node to the configuration on disk as far as that works without taking a
    /// resource down, and says of the rest what it needs.
    async fn adjust(&self, target: &str, dry: bool) -> Result<Value, ErrorReply> {
        let wanted = match target {
            "" => Target::All,
            text => Target::parse(text)?,
        };
        wanted.of_resource("adjust")?;
        let meant = |name: &str| wanted.resource().is_none_or(|only| only == name);
        let plans = (self.load)()?;
        self.configured_or_here(&wanted, &plans)?;
        let mut report = Vec::new();
        let mut left = Vec::new();
        for plan in plans.iter().filter(|plan| meant(plan.name())) {
            let name = plan.name();
            let (action, refused) = self.adjust_one(plan, dry).await?;
            left.extend(refused);
            report.push(json!({"resource": name, "action": action}));
        }
        let gone: Vec<String> = self
            .resources
            .borrow()
            .keys()
            .filter(|name| meant(name) && !plans.iter().any(|plan| plan.name() == name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            let action = self.drop_unconfigured(&name, dry).unwrap_or_else(|| {
                left.push(format!("{name} (no longer configured)"));
                "no longer configured: needs down".to_owned()
            });
            report.push(json!({"resource": name, "action": action}));
        }
        if left.is_empty() || dry {
            return Ok(json!(report));
        }
        Err(ErrorReply::new(
            ErrorKind::Refused,
            format!(
                "changed, and not to be changed while running: {}",
                left.join(", ")
            ),
            "run `lockstep down` and then `lockstep up` for each",
        ))
    }

    /// Refuses a resource that is neither among `plans` nor one of this node's.
    fn configured_or_here(&self, wanted: &Target, plans: &[Plan]) -> Result<(), ErrorReply> {
        let resources = self.resources.borrow();
        match wanted.resource() {
            Some(name)
                if !resources.contains_key(name) && plans.iter().all(|p| p.name() != name) =>
            {
                Err(unknown(name, resources.keys()))
            }
            _ => Ok(()),
        }
    }

    /// Sets options of disks until the next `adjust`.
    async fn disk_options(
        &self,
        target: &Target,
        options: &Map<String, Value>,
    ) -> Result<Value, ErrorReply> {
        for (_, status, _) in self.chosen(target)? {
            let mut plan = status.plan();
            plan.set_resync(target, options)?;
            let resource = Target::Resource(plan.name().to_owned());
            self.give(&resource, &Order::Adjust(Box::new(plan))).await?;
        }
        Ok(Value::Null)
    }

    /// What was done for a resource, and what of it cannot be done while it runs.
    async fn adjust_one(
        &self,
        plan: &Plan,
        dry: bool,
    ) -> Result<(String, Option<String>), ErrorReply> {
        let name = plan.name();
        let known = self
            .resources
            .borrow()
            .get(name)
            .map(|resource| (resource.status.plan(), resource.status.phase()));
        match known {
            None => {
                if !dry {
                    self.add(plan.clone(), plan.auto);
                }
                let action = if plan.auto { "new: started" } else { "new" };
                Ok((action.to_owned(), None))
            }
            Some((old, _)) if old == *plan => Ok(("unchanged".to_owned(), None)),
            Some((_, Phase::Down)) => {
                if !dry {
                    self.replan(name, plan.clone());
                }
                Ok(("changed; it is down".to_owned(), None))
            }
            Some((old, _)) => {
                let parts = differences(&old, plan).join(", ");
                if !plan.follows(&old) {
                    let action = format!("changed ({parts}): needs down and up");
                    return Ok((action, Some(format!("{name} ({parts})"))));
                }
                if !dry {
                    let target = Target::Resource(name.to_owned());
                    self.give(&target, &Order::Adjust(Box::new(plan.clone())))
                        .await?;
                }
                Ok((format!("changed ({parts}): taken over"), None))
            }
        }
    }

    /// Forgets a resource that is down and not configured any more.
    fn drop_unconfigured(&self, name: &str, dry: bool) -> Option<String> {
        let mut resources = self.resources.borrow_mut();
        let down = resources.get(name)?.status.phase() == Phase::Down;
        if !down {
            return None;
        }
        if !dry && let Some(resource) = resources.remove(name) {
            resource.status.retire();
        }
        Some("no longer configured: dropped".to_owned())
    }

    /// Takes every resource down. Names what was kept because it is in use or refuses to go.
    pub async fn take_down(&self) -> Vec<String> {
        let all = self.chosen(&Target::All).unwrap_or_default();
        let waiting: Vec<_> = all
            .into_iter()
            .map(|(name, _, orders)| (name, send(&orders, &Order::Down)))
            .collect();
        let mut kept = Vec::new();
        for (name, answer) in waiting {
            if let Err(error) = answer.await.unwrap_or_else(|_| Err(lost(&name))) {
                kept.push(format!("{name}: {}", error.reason));
            }
        }
        kept
    }

    /// Checks the configuration and takes it in: `SIGHUP`.
    pub async fn reload(&self) {
        match self.adjust("", false).await {
            Ok(report) => tracing::info!(%report, "configuration taken in"),
            Err(error) => warn!(
                reason = error.reason,
                "configuration not taken in as a whole"
            ),
        }
    }
}

/// A resource picked for a request.
type Chosen = (String, Rc<Status>, UnboundedSender<Input>);

fn send(
    orders: &UnboundedSender<Input>,
    order: &Order,
) -> oneshot::Receiver<Result<Value, ErrorReply>> {
    let (answer, take) = oneshot::channel();
    // A keeper that is gone drops the answer, which the receiver sees.
    let _ = orders.send(Input::Order {
        order: order.clone(),
        answer,
    });
    take
}

fn lost(name: &str) -> ErrorReply {
    ErrorReply::new(
        ErrorKind::Failed,
        format!("the supervisor of {name} ended"),
        "restart the agent (its data planes go on meanwhile)",
    )
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> ErrorReply {
    let known: Vec<&str> = known.map(String::as_str).collect();
    ErrorReply::new(
        ErrorKind::Usage,
        format!("this node has no resource '{name}'"),
        match known.as_slice() {
            [] => "the configuration names no resource of this node".to_owned(),
            _ => format!(
                "it has {}; `lockstep adjust` takes in new ones",
                known.join(", ")
            ),
        },
    )
}

fn flag(options: &Map<String, Value>, name: &str) -> bool {
    options.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn verify_options(options: &Map<String, Value>) -> Result<VerifyOptions, ErrorReply> {
    serde_json::from_value(Value::Object(options.clone())).map_err(|error| {
        ErrorReply::new(
            ErrorKind::Usage,
            format!("the options of verify make no sense: {error}"),
            "command line and agent may be of different versions: restart the agent",
        )
    })
}

/// The order that a verb with its options means.
fn order(verb: &str, target: &Target, options: &Map<String, Value>) -> Result<Order, ErrorReply> {
    let volume = match target {
        Target::Volume(_, volume) => Some(*volume),
        _ => None,
    };
    let order = match verb {
        "up" => Order::Up,
        "down" => Order::Down,
        "attach" => Order::Attach(volume),
        "detach" => Order::Detach(volume),
        "connect" => Order::Connect {
            discard_my_data: flag(options, "discard-my-data"),
        },
        "disconnect" => Order::Disconnect,
        "primary" => Order::Primary {
            force: flag(options, "force"),
        },
        "secondary" => Order::Secondary {
            force: flag(options, "force"),
        },
        "invalidate" => Order::Invalidate(volume),
        "pause-sync" | "resume-sync" => Order::PauseSync {
            volume,
            on: verb == "pause-sync",
        },
        "verify" => Order::Verify(volume, verify_options(options)?),
        _ => {
            return Err(ErrorReply::new(
                ErrorKind::Usage,
                format!("the agent knows no verb '{verb}'"),
                "command line and agent may be of different versions: restart the agent",
            ));
        }
    };
    let by_volume = matches!(
        order,
        Order::Attach(_)
            | Order::Detach(_)
            | Order::Invalidate(_)
            | Order::PauseSync { .. }
            | Order::Verify(..)
    );
    if !by_volume {
        target.of_resource(verb)?;
    }
    Ok(order)
}

/// Which parts of a resource differ, in words for the operator.
fn differences(old: &Plan, new: &Plan) -> Vec<&'static str> {
    let (a, b) = (&old.serve, &new.serve);
    let parts = [
        (old.disks != new.disks, "disks"),
        (
            a.with_options_of(b).volumes != b.volumes,
            "volumes or devices",
        ),
        (
            a.with_options_of(b).volumes != a.volumes,
            "speed of a resync",
        ),
        (
            (&a.verify_alg, a.verify_repair) != (&b.verify_alg, b.verify_repair),
            "verify-alg, verify-repair",
        ),
        (
            (&a.address, &a.peer_address) != (&b.address, &b.peer_address),
            "addresses",
        ),
        (
            (a.node, a.peer, &a.peer_name) != (b.node, b.peer, &b.peer_name),
            "nodes",
        ),
        (a.protocol != b.protocol, "protocol"),
        (a.shared_secret != b.shared_secret, "shared-secret"),
        (a.al_extents != b.al_extents, "al-extents"),
        (a.send_buffer != b.send_buffer, "sndbuf-size"),
        (
            a.ping_interval != b.ping_interval || a.ping_timeout != b.ping_timeout,
            "ping-int, ping-timeout",
        ),
        (
            a.timeout != b.timeout || a.ko_count != b.ko_count,
            "timeout, ko-count",
        ),
        (a.connect_interval != b.connect_interval, "connect-int"),
        (old.auto != new.auto, "start-policy"),
        (
            old.upkeep.after != new.upkeep.after || old.upkeep.max_syncs != new.upkeep.max_syncs,
            "resync-after, max-parallel-resyncs",
        ),
        (
            old.upkeep.schedule != new.upkeep.schedule,
            "verify-schedule",
        ),
        (old.upkeep.handlers != new.upkeep.handlers, "handlers"),
    ];
    let named = parts.into_iter();
    named
        .filter_map(|(differs, name)| differs.then_some(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::tests::plan;
    use crate::agent::protocol::FrontEnd;
    use crate::config::Schedule;

    fn ask(verb: &str, target: &str, options: Value) -> Result<Order, ErrorReply> {
        let options = options.as_object().cloned().unwrap_or_default();
        order(verb, &Target::parse(target).expect("a target"), &options)
    }

    #[test]
    fn verbs_become_orders() {
        let force = json!({"force": true});
        assert_eq!(
            ask("primary", "r0", force),
            Ok(Order::Primary { force: true })
        );
        let odd = json!({"force": "yes"});
        assert_eq!(
            ask("primary", "r0", odd),
            Ok(Order::Primary { force: false })
        );
        assert_eq!(ask("attach", "r0/2", json!({})), Ok(Order::Attach(Some(2))));
        assert_eq!(ask("attach", "all", json!({})), Ok(Order::Attach(None)));
        for (verb, target) in [("primary", "r0/2"), ("resize", "r0"), ("", "r0")] {
            let error = ask(verb, target, json!({})).expect_err(verb);
            assert_eq!(error.exit, 2, "{verb} {target}");
        }
    }

    #[test]
    fn differences_are_named() {
        let old = plan("r0", FrontEnd::Ublk { minor: 1 });
        let mut new = plan("r0", FrontEnd::Ublk { minor: 2 });
        new.serve.protocol = 'A';
        new.disks.clear();
        assert_eq!(
            differences(&old, &new),
            ["disks", "volumes or devices", "protocol"]
        );
        let mut slower = old.clone();
        slower.serve.timeout = 1;
        assert_eq!(differences(&old, &slower), ["timeout, ko-count"]);
    }

    #[test]
    fn every_difference_has_a_name_and_some_are_followed() {
        let old = plan("r0", FrontEnd::Ublk { minor: 1 });
        let online: [fn(&mut Plan); 11] = [
            |p| p.upkeep.max_syncs = 7,
            |p| p.upkeep.schedule = Schedule::parse("daily 1:00").ok(),
            |p| p.upkeep.handlers.out_of_sync = Some("x".to_owned()),
            |p| p.serve.volumes[0].resync.fill_target += 1,
            |p| p.auto = true,
            |p| p.serve.shared_secret = "x".to_owned().into(),
            |p| p.serve.ping_interval += 1,
            |p| p.serve.ping_timeout += 1,
            |p| p.serve.timeout += 1,
            |p| p.serve.ko_count += 1,
            |p| p.serve.connect_interval += 1,
        ];
        let never: [fn(&mut Plan); 8] = [
            |p| p.disks.clear(),
            |p| p.serve.volumes.clear(),
            |p| p.serve.address.push('1'),
            |p| p.serve.peer_address.push('1'),
            |p| p.serve.node = 3,
            |p| p.serve.protocol = 'A',
            |p| p.serve.al_extents += 1,
            |p| p.serve.send_buffer += 1,
        ];
        let all = online
            .into_iter()
            .map(|e| (e, true))
            .chain(never.into_iter().map(|e| (e, false)));
        for (index, (edit, follows)) in all.enumerate() {
            let mut new = old.clone();
            edit(&mut new);
            assert_eq!(differences(&old, &new).len(), 1, "{index}");
            assert_eq!(new.follows(&old), follows, "{index}");
        }
    }
}
