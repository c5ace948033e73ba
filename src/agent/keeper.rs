//! The supervisor of one resource: carries out orders one after the other and keeps the data
//! plane running as they left it.
//!
//! What the operator asked for is the [`Wish`]. A data plane that dies is started again and
//! brought back to the wish: disks, connection, and the role that it had. The keeper owns the
//! process handle and the in-flight memory; `status` reads [`Status`] beside it and never waits
//! for an order that is being carried out.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::calendar::Clock;
use super::cluster::Cluster;
use super::dirs::{Dirs, remove_if_there};
use super::disks;
use super::follow::Follower;
use super::front::{Fronts, term_of};
use super::listen;
use super::order::Order;
use super::plan::Plan;
use super::plane::{self, Plane};
use super::protocol::{ErrorKind, ErrorReply, ServeRequest};
use super::retry::{Backoff, Regain, Relisten};
use super::status::{Phase, Status};
use super::users;
use super::view::ResourceView;
use crate::engine::{Term, Vote};
use crate::failover::Copy;
use crate::target::ublk::DeviceRecord;

/// How long a data plane may take to leave after a clean end before it is killed.
const LEAVE: Duration = Duration::from_secs(10);
/// How long opening a disk may be refused as busy: the I/O of a predecessor drains meanwhile.
const DRAIN: Duration = Duration::from_secs(30);
/// The same for an operator who waits for the answer.
const DRAIN_ORDERED: Duration = Duration::from_secs(5);
/// How long the socket of an NBD export may be taken: when a data plane starts, whose predecessor
/// may just have died, and for an operator who waits for the role.
const LISTEN_START: Duration = Duration::from_secs(1);
const LISTEN_ORDERED: Duration = Duration::from_secs(2);

/// Where the answer of an order goes.
pub type Answer = oneshot::Sender<Result<Value, ErrorReply>>;

/// What reaches a keeper.
pub enum Input {
    Order {
        order: Order,
        answer: Answer,
    },
    /// The configuration changed while the resource was down.
    Replan(Box<Plan>),
    /// The process of this incarnation has ended.
    Ended {
        incarnation: u64,
        how: String,
    },
}

/// What the operator wants of the resource.
#[derive(Clone, Debug, Default)]
struct Wish {
    up: bool,
    attached: BTreeSet<u16>,
    connected: bool,
    primary: bool,
}

/// What all keepers of a node share.
pub struct Site {
    pub dirs: Dirs,
    /// The binary that is started as a data plane.
    pub program: PathBuf,
    /// None: the operator is the vote.
    pub cluster: Option<Rc<Cluster>>,
    pub clock: Clock,
}

/// A data plane with the tasks that watch it.
struct Running {
    plane: Plane,
    events: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.events.abort();
    }
}

/// See the module's description.
pub struct Keeper {
    site: Rc<Site>,
    plan: Plan,
    status: Rc<Status>,
    inputs: UnboundedReceiver<Input>,
    myself: UnboundedSender<Input>,
    running: Option<Running>,
    incarnation: u64,
    /// Handed to every successor of a data plane that died.
    table: Option<OwnedFd>,
    wish: Wish,
    backoff: Backoff,
    /// Block devices of this incarnation.
    fronts: Option<Fronts>,
    /// The term under which this node was last primary.
    reign: Option<Term>,
    regain: Option<Regain>,
    relisten: Relisten,
}

impl Keeper {
    /// Starts the supervisor of `plan`; `up` starts the resource as well unless its data plane is
    /// found alive. Orders go to the sender returned.
    pub fn spawn(
        site: Rc<Site>,
        plan: Plan,
        status: Rc<Status>,
        up: bool,
    ) -> UnboundedSender<Input> {
        let (myself, inputs) = unbounded_channel();
        status.set_settling(up);
        let keeper = Keeper {
            site,
            plan,
            status,
            inputs,
            myself: myself.clone(),
            running: None,
            incarnation: 0,
            table: None,
            wish: Wish::default(),
            backoff: Backoff::default(),
            fronts: None,
            reign: None,
            regain: None,
            relisten: Relisten::default(),
        };
        tokio_uring::spawn(keeper.run(up));
        myself
    }

    async fn run(mut self, up: bool) {
        self.begin(up).await;
        self.status.set_settling(false);
        loop {
            let regain = self.regain.as_ref().map(|regain| regain.at);
            let times = [self.backoff.at, regain, self.relisten.at];
            let due = times.into_iter().flatten().min();
            let input = match due {
                None => self.inputs.recv().await,
                Some(at) => match timeout_at(at, self.inputs.recv()).await {
                    Ok(input) => input,
                    Err(_) => {
                        self.on_timer().await;
                        continue;
                    }
                },
            };
            match input {
                None => return,
                Some(Input::Order { order, answer }) => {
                    let result = self.obey(&order).await;
                    self.log(&order, &result);
                    // The asker may have gone away.
                    let _ = answer.send(result);
                }
                Some(Input::Replan(plan)) => {
                    if self.running.is_none() {
                        self.plan = *plan;
                        self.status.replan(&self.plan);
                    }
                }
                Some(Input::Ended { incarnation, how }) if incarnation == self.incarnation => {
                    self.on_end(&how);
                }
                Some(Input::Ended { .. }) => {}
            }
            self.status.changed();
        }
    }

    fn name(&self) -> &str {
        self.plan.name()
    }

    fn log(&self, order: &Order, result: &Result<Value, ErrorReply>) {
        let resource = self.name();
        match result {
            Ok(_) => info!(resource, %order, "done"),
            Err(error) => warn!(resource, %order, reason = error.reason, "not done"),
        }
    }

    /// Goes on with a data plane that an earlier agent left, or starts one.
    async fn begin(&mut self, up: bool) {
        if let Some((plane, table)) = Plane::adopt(&self.site.dirs, self.name()).await {
            info!(
                resource = self.name(),
                pid = plane.pid(),
                "data plane taken over"
            );
            self.table = table;
            self.find_fronts();
            self.watch_process(&plane, None);
            self.attend(plane);
            self.status.set_phase(Phase::Running);
            let view = self.status.view().await;
            self.wish = wish_of(&view);
            self.reign = term_of(&view.term);
            // As at a start.
            let _ = self.listen(LISTEN_START).await;
            self.resume();
        } else {
            self.begin_anew(up).await;
        }
        self.status.changed();
    }

    /// A data plane that an earlier agent left may reign: its lease has to be renewed.
    fn resume(&self) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        let reign = self.reign.filter(|_| self.wish.primary);
        cluster.enter(self.name(), reign);
        if let Some(Err(error)) = self
            .table
            .as_ref()
            .map(|table| cluster.lease(self.name(), table))
        {
            error!(resource = self.name(), reason = error.reason, "lease");
        }
    }

    /// There is no data plane. Its block devices may be there still.
    async fn begin_anew(&mut self, up: bool) {
        self.find_fronts();
        let orphans = self.orphans().await;
        let allowed = self.plan.startable();
        if let Err(refused) = &allowed
            && up
        {
            error!(
                resource = self.name(),
                reason = refused.reason,
                "not started"
            );
            self.status.set_trouble(Some(refused.reason.clone()));
        }
        let up = up && allowed.is_ok();
        if up {
            self.want_everything();
            if let Err(error) = self.bring_up(DRAIN).await {
                error!(resource = self.name(), reason = error.reason, "not started");
            }
        }
        let Some(orphan) = orphans.iter().max_by_key(|record| record.term()) else {
            return;
        };
        // They may be served again if nobody has reigned since: the data plane knows its own
        // superblock at once and the peer's term when it is connected.
        self.reign = Some(orphan.term());
        self.wish.primary = true;
        if up {
            self.regain = Some(Regain::begin(false));
        } else {
            self.abandon("the resource is not started by itself").await;
        }
    }

    fn find_fronts(&mut self) {
        match Fronts::new(&self.plan, &self.site.dirs.device_records()) {
            Ok(fronts) => self.fronts = Some(fronts),
            Err(error) => {
                error!(
                    resource = self.name(),
                    reason = error.reason,
                    "device records"
                );
                self.status.set_trouble(Some(error.reason));
            }
        }
    }

    /// Block devices that nobody serves.
    async fn orphans(&self) -> Vec<DeviceRecord> {
        let Some(fronts) = &self.fronts else {
            return Vec::new();
        };
        fronts.orphans().await.unwrap_or_else(|error| {
            error!(
                resource = self.name(),
                reason = error.reason,
                "leftover devices"
            );
            Vec::new()
        })
    }

    fn want_everything(&mut self) {
        self.wish.up = true;
        self.wish.connected = true;
        self.wish.attached = self.plan.volumes().into_iter().collect();
    }

    async fn obey(&mut self, order: &Order) -> Result<Value, ErrorReply> {
        match order {
            Order::Up => {
                self.plan.startable()?;
                self.votes_are_to_be_had()?;
                self.status.set_resting(false);
                self.want_everything();
                self.status.set_trouble(None);
                let dead = self.running.is_none();
                let up = self.bring_up(DRAIN_ORDERED).await;
                if dead && self.wish.primary && self.running.is_some() {
                    self.regain = Some(Regain::begin(false));
                }
                up?;
            }
            Order::Down => {
                self.down().await?;
                self.status.set_resting(true);
            }
            Order::Attach(volume) => {
                let volumes = self.volumes(*volume)?;
                self.running()?;
                for volume in volumes {
                    self.attach(volume, DRAIN_ORDERED).await?;
                    self.wish.attached.insert(volume);
                }
            }
            Order::Detach(volume) => {
                for volume in self.volumes(*volume)? {
                    self.detach(volume).await?;
                }
            }
            Order::Connect { discard_my_data } => {
                self.connect(*discard_my_data).await?;
            }
            Order::Disconnect => {
                // Without a data plane there is no connection, and none must be made with the next.
                if self.running.is_some() {
                    self.command(&ServeRequest::Disconnect).await?;
                }
                self.wish.connected = false;
            }
            Order::Primary { force } => {
                self.promote(*force, false, false).await?;
                self.status.set_resting(false);
                self.regain = None;
            }
            Order::Secondary { force } => {
                self.secondary(*force).await?;
                self.status.set_resting(true);
            }
            Order::Adjust(plan) => self.adjust(plan).await?,
            Order::Invalidate(volume) => {
                self.command_volumes(*volume, |volume| ServeRequest::Invalidate { volume })
                    .await?;
            }
            Order::PauseSync { volume, on } => {
                let on = *on;
                self.command_volumes(*volume, |volume| ServeRequest::PauseSync { volume, on })
                    .await?;
            }
            Order::Verify(volume, scope) => {
                let request = |volume| ServeRequest::Verify {
                    volume,
                    scope: scope.clone(),
                };
                self.command_volumes(*volume, request).await?;
            }
        }
        Ok(Value::Null)
    }

    async fn adjust(&mut self, plan: &Plan) -> Result<(), ErrorReply> {
        if self.running.is_some() {
            let mut config = Box::new(plan.serve.clone());
            if let Some(fronts) = &self.fronts {
                fronts.name_devices(&mut config);
            }
            self.command(&ServeRequest::Adjust(config)).await?;
        }
        self.plan = plan.clone();
        self.status.replan(plan);
        Ok(())
    }

    /// The volume named, or all.
    fn volumes(&self, volume: Option<u16>) -> Result<Vec<u16>, ErrorReply> {
        match volume {
            None => Ok(self.plan.volumes()),
            Some(number) => self.plan.known(number).map(|()| vec![number]),
        }
    }

    fn running(&self) -> Result<&Plane, ErrorReply> {
        match &self.running {
            Some(running) => Ok(&running.plane),
            None => Err(ErrorReply::new(
                ErrorKind::Refused,
                format!("{} is not running: {}", self.name(), self.status.phase()),
                format!("`lockstep up {}` starts it", self.name()),
            )),
        }
    }

    async fn command(&self, request: &ServeRequest) -> Result<Value, ErrorReply> {
        self.running()?.command(request).await
    }

    /// A request about the volume named, or about each, one after the other.
    async fn command_volumes(
        &self,
        volume: Option<u16>,
        request: impl Fn(u16) -> ServeRequest,
    ) -> Result<(), ErrorReply> {
        for volume in self.volumes(volume)? {
            self.command(&request(volume)).await?;
        }
        Ok(())
    }

    /// Starts the data plane if there is none, and does what the wish lacks.
    async fn bring_up(&mut self, drain: Duration) -> Result<(), ErrorReply> {
        self.status.set_settling(true);
        let result = self.reach_wish(drain).await;
        self.status.set_settling(false);
        result
    }

    async fn reach_wish(&mut self, drain: Duration) -> Result<(), ErrorReply> {
        if self.running.is_none() {
            self.status.set_phase(Phase::Starting);
            if let Err(error) = self.launch().await {
                self.running = None;
                let pause = self.backoff.schedule();
                self.status.set_phase(Phase::Failing {
                    reason: error.reason.clone(),
                    pause,
                });
                return Err(error);
            }
            self.status.set_phase(Phase::Running);
        }
        // What is missing is in the status, and tried again: replication needs no front end.
        let _ = self.listen(LISTEN_START).await;
        let view = self.status.found().await;
        let mut first = Ok(());
        for volume in self.wish.attached.clone() {
            if !has_disk(&view, volume) {
                first = first.and(self.attach(volume, drain).await);
            }
        }
        if self.wish.connected && stands_alone(&view) {
            let request = ServeRequest::Connect {
                discard_my_data: false,
            };
            first = first.and(self.command(&request).await.map(|_| ()));
        }
        first
    }

    /// Starts a process and tells it its configuration.
    async fn launch(&mut self) -> Result<(), ErrorReply> {
        if self.table.is_none() {
            let table = plane::new_table().map_err(|error| {
                ErrorReply::new(
                    ErrorKind::Failed,
                    format!("no memory for the table of {}: {error}", self.name()),
                    "the machine is out of memory or of descriptors",
                )
            })?;
            self.table = Some(table);
        }
        if let (Some(cluster), Some(table)) = (self.cluster(), &self.table) {
            cluster.enter(self.name(), None);
            cluster.lease(self.name(), table)?;
        }
        self.find_fronts();
        let mut config = self.plan.serve.clone();
        if let Some(fronts) = &self.fronts {
            fronts.enlist()?;
            fronts.name_devices(&mut config);
        }
        let Some(table) = &self.table else {
            return Ok(());
        };
        let (plane, child) =
            Plane::start(&self.site.program, &self.site.dirs, self.plan.name(), table)?;
        info!(
            resource = self.name(),
            pid = plane.pid(),
            "data plane started"
        );
        self.backoff.started();
        self.status.begins();
        self.watch_process(&plane, Some(child));
        self.attend(plane);
        let configure = ServeRequest::Configure(Box::new(config));
        let told = self.command(&configure).await;
        if told.is_err()
            && let Some(running) = &self.running
        {
            running.plane.kill();
        }
        told.map(|_| ())
    }

    /// Reports the end of the process as an input, and reaps it if it is a child.
    fn watch_process(&mut self, plane: &Plane, child: Option<tokio::process::Child>) {
        self.incarnation += 1;
        let incarnation = self.incarnation;
        let myself = self.myself.clone();
        let ended = plane.ended(None);
        tokio_uring::spawn(async move {
            let how = match child {
                Some(mut child) => match child.wait().await {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                },
                None => {
                    ended.await;
                    "ended".to_owned()
                }
            };
            // The keeper lives as long as the agent.
            let _ = myself.send(Input::Ended { incarnation, how });
        });
    }

    /// Makes `plane` the one in charge and follows its notices.
    fn attend(&mut self, plane: Plane) {
        let follower = Follower {
            resource: self.name().to_owned(),
            socket: plane.socket().to_owned(),
            fronts: self.fronts.clone(),
            status: Rc::clone(&self.status),
            cluster: self.cluster().cloned(),
        };
        let events = tokio_uring::spawn(follower.follow());
        self.running = Some(Running { plane, events });
    }

    /// Makes the sockets of NBD exports that have none; the first that cannot be made is the
    /// answer.
    async fn listen(&mut self, patience: Duration) -> Result<(), ErrorReply> {
        let view = self.status.found().await;
        let mut result = Ok(());
        for device in &view.devices {
            if device.listening == Some(false) {
                let listening = self.listen_for(device.volume, patience).await;
                let reason = listening.as_ref().err().map(|error| error.reason.clone());
                self.status.set_front_trouble(device.volume, reason);
                result = result.and(listening);
            }
        }
        self.relisten.schedule(result.is_err());
        result
    }

    async fn listen_for(&self, volume: u16, patience: Duration) -> Result<(), ErrorReply> {
        let mut volumes = self.plan.serve.volumes.iter();
        let Some(entry) = volumes.find(|entry| entry.volume == volume) else {
            return Ok(());
        };
        // The agent's copy is closed here: the data plane's alone keeps the place.
        let socket = listen::listen(&entry.front, patience).await?;
        let request = ServeRequest::Listen { volume };
        self.running()?.hand(&request, &[socket.as_fd()]).await?;
        Ok(())
    }

    async fn attach(&mut self, volume: u16, drain: Duration) -> Result<(), ErrorReply> {
        let Some(disk) = self.plan.disk(volume).cloned() else {
            return Ok(());
        };
        if has_disk(&self.status.view().await, volume) {
            return Ok(());
        }
        let plane = self.running()?;
        let attached = async {
            let opened = disks::open(&disk, drain).await?;
            let descriptors: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
            plane
                .hand(&ServeRequest::Attach { volume }, &descriptors)
                .await
        }
        .await;
        // The agent's copies are closed here, whatever came of it: the data plane's own
        // descriptor alone keeps the disk.
        self.status
            .set_disk_trouble(volume, attached.as_ref().err().map(|e| e.reason.clone()));
        attached.map(|_| ())
    }

    async fn detach(&mut self, volume: u16) -> Result<(), ErrorReply> {
        let view = self.status.view().await;
        if self.running.is_some() && has_disk(&view, volume) {
            self.command(&ServeRequest::Detach { volume }).await?;
        }
        self.wish.attached.remove(&volume);
        self.status.set_disk_trouble(volume, None);
        Ok(())
    }

    async fn connect(&mut self, discard_my_data: bool) -> Result<(), ErrorReply> {
        self.running()?;
        let view = self.status.view().await;
        if discard_my_data || stands_alone(&view) {
            self.command(&ServeRequest::Connect { discard_my_data })
                .await?;
        }
        self.wish.connected = true;
        Ok(())
    }

    /// Refuses a resource whose reigns need votes, when this agent has not begun to ask for any.
    fn votes_are_to_be_had(&self) -> Result<(), ErrorReply> {
        if !self.plan.serve.votes || self.site.cluster.is_some() {
            return Ok(());
        }
        Err(ErrorReply::new(
            ErrorKind::Refused,
            format!(
                "{} needs the votes of a cluster that was configured after this agent's start: \
                 restart the agent",
                self.name()
            ),
            "`kill -USR2` of the agent leaves data planes running for the next one",
        ))
    }

    /// The cluster, where this resource's reigns need votes.
    fn cluster(&self) -> Option<&Rc<Cluster>> {
        let cluster = self.site.cluster.as_ref();
        cluster.filter(|_| self.plan.serve.votes)
    }

    /// The voters' word for the reign that is to begin; none where the operator is the vote.
    async fn vote(&self, force: bool, again: bool) -> Result<Option<Box<Vote>>, ErrorReply> {
        let Some(cluster) = self.cluster() else {
            return Ok(None);
        };
        let copies = self.copies().await?;
        if let Some(term) = term_of(&self.status.view().await.term) {
            cluster.reigned(self.name(), term);
        }
        let again = self.reign.filter(|_| again);
        let vote = cluster.vote(self.name(), again, copies, force).await?;
        Ok(Some(Box::new(vote)))
    }

    async fn copies(&self) -> Result<Vec<Copy>, ErrorReply> {
        let copies = self.command(&ServeRequest::Copies).await?;
        serde_json::from_value(copies).map_err(|error| {
            let help = "agent and data plane must be of the same version";
            ErrorReply::new(ErrorKind::Failed, error, help)
        })
    }

    /// The first reign over a volume puts its generation on record: until then no copy can be
    /// promoted without force, because nobody knows which is current.
    async fn record_first(&self, vote: &Vote) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        for (copy, recorded) in self
            .copies()
            .await
            .unwrap_or_default()
            .iter()
            .zip(&vote.recorded)
        {
            if recorded.is_none() {
                cluster.record(self.name(), copy.volume, copy.current, vote.term);
            }
        }
    }

    /// Becomes primary. The devices are recorded before the data plane may add them. `again`: only
    /// if nobody has reigned since this node did.
    async fn promote(
        &mut self,
        force: bool,
        recovered: bool,
        again: bool,
    ) -> Result<(), ErrorReply> {
        self.running()?;
        self.listen(LISTEN_ORDERED).await?;
        let vote = self.vote(force, again).await?;
        let promoted = self.promote_with(force, recovered, vote.clone()).await;
        match (&promoted, vote, self.cluster()) {
            (Ok(()), Some(vote), _) => self.record_first(&vote).await,
            (Err(_), Some(_), Some(cluster)) => cluster.release(self.name()),
            _ => {}
        }
        promoted
    }

    async fn promote_with(
        &mut self,
        force: bool,
        recovered: bool,
        vote: Option<Box<Vote>>,
    ) -> Result<(), ErrorReply> {
        let plane = self.running()?;
        let term = term_of(&self.status.view().await.term).unwrap_or(Term::ZERO);
        if let Some(fronts) = &self.fronts {
            fronts.prepare(term).await?;
        }
        let request = ServeRequest::Primary {
            force,
            recovered,
            vote,
        };
        plane.command(&request).await?;
        self.wish.primary = true;
        self.reign = term_of(&self.status.view().await.term);
        if let Some(fronts) = &self.fronts {
            fronts.record(self.reign.unwrap_or(term)).await?;
        }
        self.status.set_trouble(None);
        Ok(())
    }

    /// Gives up the role. Refused while a volume is in use, unless with `force`: then whoever uses
    /// it gets errors and is cut off.
    async fn secondary(&mut self, force: bool) -> Result<(), ErrorReply> {
        let mut held = Vec::new();
        if self.running.is_some() {
            match self.give_up(force).await {
                Ok(users) => held = users,
                Err(error) => {
                    self.bring_back().await;
                    return Err(error);
                }
            }
            if let Some(cluster) = self.cluster() {
                cluster.release(self.name());
            }
            if let Some(fronts) = &self.fronts {
                fronts.delete().await?;
            }
        } else if self.wish.primary {
            self.abandon("made secondary before it was back").await;
        }
        if !held.is_empty() {
            let held = held.join(", ");
            self.status
                .set_trouble(Some(format!("ended by force and still open: {held}")));
        }
        self.wish.primary = false;
        self.regain = None;
        Ok(())
    }

    /// Takes the devices away and makes the data plane secondary. Its own look at who uses an NBD
    /// export comes last, in one step with giving up the role. Says who still has a device open
    /// whose use was ended by force.
    async fn give_up(&self, force: bool) -> Result<Vec<String>, ErrorReply> {
        let mut held = Vec::new();
        match &self.fronts {
            Some(fronts) if force => held = fronts.cut().await?,
            Some(fronts) => fronts.release().await?,
            None => {}
        }
        let answer = self.command(&ServeRequest::Secondary { force }).await?;
        users::refuse_if_used(&self.plan.serve, answer)?;
        Ok(held)
    }

    /// The role stays, and devices that were stopped before that was known come back.
    async fn bring_back(&self) {
        let Some(fronts) = &self.fronts else { return };
        let again = ServeRequest::Primary {
            force: false,
            recovered: true,
            vote: None,
        };
        let back = async {
            if fronts.delete().await? > 0 {
                self.command(&again).await?;
            }
            Ok::<_, ErrorReply>(())
        };
        if let Err(error) = back.await {
            error!(
                resource = self.name(),
                reason = error.reason,
                "devices stay away"
            );
            self.status.set_trouble(Some(error.reason));
        }
    }

    /// Takes the resource down in order. Refused, with everything left as it is, while the device
    /// is in use.
    async fn down(&mut self) -> Result<(), ErrorReply> {
        self.backoff.at = None;
        self.secondary(false).await?;
        if self.running.is_some() {
            // From here on nothing is in use: what does not end in order is ended by force.
            self.wish.up = false;
            // The data plane leaves the peer and its disks by itself, and with both still there it
            // records who may start alone and stores what differs.
            let _ = self.command(&ServeRequest::Shutdown).await;
            self.wait_for_end().await;
        }
        if let Some(fronts) = self.fronts.take() {
            fronts.forget().await?;
        }
        self.wish = Wish::default();
        self.regain = None;
        self.running = None;
        // The table is about a life that has ended in order.
        self.table = None;
        self.clear_files();
        self.status.clear_troubles();
        self.status.set_phase(Phase::Down);
        Ok(())
    }

    async fn wait_for_end(&self) {
        let Some(running) = &self.running else { return };
        if !running.plane.ended(Some(LEAVE)).await {
            warn!(resource = self.name(), "data plane does not leave: killed");
            running.plane.kill();
            // A process in the kernel's hands may take longer; the next attach waits for its I/O.
            running.plane.ended(Some(LEAVE)).await;
        }
    }

    fn clear_files(&self) {
        let dirs = &self.site.dirs;
        for path in [dirs.serve_socket(self.name()), dirs.serve_pid(self.name())] {
            if let Err(error) = remove_if_there(&path) {
                warn!(path = %path.display(), %error, "cannot remove");
            }
        }
    }

    /// The data plane has died.
    fn on_end(&mut self, how: &str) {
        if self.running.take().is_none() {
            return;
        }
        self.clear_files();
        if self.regain.is_none() && self.status.last_role() != "Primary" {
            // It had given up the role by itself: not ours to take back.
            self.wish.primary = false;
        }
        self.regain = None;
        if !self.wish.up {
            self.status.set_phase(Phase::Down);
            return;
        }
        let pause = self.backoff.schedule();
        warn!(
            resource = self.name(),
            how,
            ?pause,
            "data plane died: starting it again"
        );
        self.status.set_phase(Phase::Failing {
            reason: format!("the data plane died ({how})"),
            pause,
        });
    }

    async fn on_timer(&mut self) {
        let now = Instant::now();
        if self.backoff.at.is_some_and(|at| at <= now) {
            self.backoff.at = None;
            match self.bring_up(DRAIN).await {
                Ok(()) => info!(resource = self.name(), "recovered"),
                Err(error) => {
                    error!(
                        resource = self.name(),
                        reason = error.reason,
                        "not recovered"
                    );
                }
            }
            if self.wish.primary && self.running.is_some() {
                self.regain = Some(Regain::begin(true));
            }
        }
        if self.relisten.at.is_some_and(|at| at <= now) {
            // What is still missing is in the status.
            let _ = self.listen(Duration::ZERO).await;
        }
        if self.regain.as_ref().is_some_and(|regain| regain.at <= now) {
            self.try_regain().await;
        }
        self.status.changed();
    }

    /// One attempt to get back the role that the data plane had when it died. Only this node's
    /// own last reign is taken up again: nothing may have been written elsewhere since.
    async fn try_regain(&mut self) {
        let Some(mut regain) = self.regain.take() else {
            return;
        };
        if self.running.is_none() || !self.wish.primary {
            return;
        }
        let view = self.status.view().await;
        // This node's own term also rises without another reign between: at reconnects.
        let newer = !regain.watched
            && term_of(&view.term)
                .is_some_and(|term| term.node.0 != self.plan.serve.node && Some(term) > self.reign);
        let peer_reigns = view.connections.iter().any(|c| c.peer_role == "Primary");
        if newer || peer_reigns {
            return self.abandon("another node has been primary since").await;
        }
        match self.promote(false, regain.watched, true).await {
            Ok(()) => info!(resource = self.name(), "primary again"),
            Err(error) if regain.again() => {
                self.status
                    .set_trouble(Some(format!("not primary again yet: {}", error.reason)));
                self.regain = Some(regain);
            }
            Err(error) => self.abandon(&error.reason).await,
        }
    }

    /// The role is not taken up again: devices that wait for it are ended.
    async fn abandon(&mut self, why: &str) {
        warn!(resource = self.name(), why, "not primary again");
        self.wish.primary = false;
        let orphans = self.orphans().await;
        let mut trouble = format!("not primary again after the data plane died: {why}");
        if let Some(fronts) = &self.fronts {
            match fronts.fail(orphans).await {
                Ok(held) if held.is_empty() => {}
                Ok(held) => trouble.push_str(&format!("; still open: {}", held.join(", "))),
                Err(error) => trouble.push_str(&format!("; {}", error.reason)),
            }
        }
        self.status.set_trouble(Some(trouble));
    }
}

/// What a data plane found alive was last asked for.
fn wish_of(view: &ResourceView) -> Wish {
    Wish {
        up: true,
        attached: view
            .devices
            .iter()
            .map(|device| device.volume)
            .filter(|volume| has_disk(view, *volume))
            .collect(),
        connected: !stands_alone(view) || view.asks_before_sync().is_some(),
        primary: view.role == "Primary",
    }
}

fn has_disk(view: &ResourceView, volume: u16) -> bool {
    view.devices
        .iter()
        .any(|d| d.volume == volume && d.disk_state != "Diskless")
}

fn stands_alone(view: &ResourceView) -> bool {
    view.connections.is_empty() || view.standing_alone().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::view::{ConnectionView, DeviceView};

    #[test]
    fn the_wish_of_a_data_plane_found_alive_is_what_it_does() {
        let mut view = ResourceView {
            role: "Primary".to_owned(),
            devices: ["UpToDate", "Diskless"]
                .iter()
                .zip(0..)
                .map(|(state, volume)| DeviceView {
                    volume,
                    disk_state: (*state).to_owned(),
                    ..DeviceView::default()
                })
                .collect(),
            connections: vec![ConnectionView {
                connection_state: "Connecting".to_owned(),
                ..ConnectionView::default()
            }],
            ..ResourceView::default()
        };
        let wish = wish_of(&view);
        assert!(wish.up && wish.connected && wish.primary);
        assert_eq!(wish.attached, BTreeSet::from([0]));
        view.connections[0].connection_state = "StandAlone".to_owned();
        view.role = "Secondary".to_owned();
        let wish = wish_of(&view);
        assert!(wish.up && !wish.connected && !wish.primary);
    }
}
