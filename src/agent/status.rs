//! What `status` shows of one resource, kept beside its keeper so that looking never waits for an
//! order that is being carried out.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;

use super::calendar::Clock;
use super::events::{self, Event};
use super::handlers::{Job, Jobs, Occasion};
use super::hub::Hub;
use super::keeper::Site;
use super::kept::Kept;
use super::plan::Plan;
use super::plane::{self, STATUS_ANSWER};
use super::protocol::{Finished, FrontEnd, Run, ServeRequest, Transition};
use super::view::{ConnectionView, DeviceView, PeerDeviceView, ResourceView};

/// Event lines that a report shows.
const RECENT: usize = 50;

/// How far the data plane is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not wanted.
    #[default]
    Down,
    Starting,
    Running,
    /// It died or could not be started; tried again after `pause`.
    Failing {
        reason: String,
        pause: Duration,
    },
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Phase::Down => f.write_str("it is down"),
            Phase::Starting => f.write_str("it is starting"),
            Phase::Running => f.write_str("it is running"),
            Phase::Failing { reason, pause } => {
                write!(f, "{reason}; started again after {} s", pause.as_secs_f32())
            }
        }
    }
}

/// A question of the data plane before a sync onto a volume.
#[derive(Clone, Debug)]
struct Asked {
    volume: u16,
    state: Asking,
}

#[derive(Clone, Debug)]
enum Asking {
    /// The handler runs, or waits for its turn.
    Running,
    Approved,
    /// The sync must not begin, for this reason.
    Refused(String),
}

/// The agent's knowledge of one resource.
pub struct Status {
    socket: PathBuf,
    plan: RefCell<Plan>,
    clock: Clock,
    kept: Rc<Kept>,
    jobs: Jobs,
    /// The sync that the data plane has asked about, and whether it has refused again since.
    asked: RefCell<Option<Asked>>,
    asks_anew: Cell<bool>,
    /// Volumes that were a sync target last.
    targets: RefCell<BTreeSet<u16>>,
    /// The last event lines with their times, oldest first.
    recent: RefCell<VecDeque<(Timestamp, String)>>,
    phase: RefCell<Phase>,
    trouble: RefCell<Option<String>>,
    disk_troubles: RefCell<BTreeMap<u16, String>>,
    front_troubles: RefCell<BTreeMap<u16, String>>,
    /// By volume, why its sync waits for others.
    waits: RefCell<BTreeMap<u16, String>>,
    /// The role in the last answer of the data plane: it outlives the process.
    last_role: RefCell<String>,
    /// What the data plane's stream has told so far; none while there is no stream.
    told: RefCell<Option<ResourceView>>,
    /// The picture that the last event lines led to.
    published: RefCell<Option<ResourceView>>,
    hub: Hub,
    gone: Cell<bool>,
    /// An operator has made this node secondary, or has taken the resource down: it does not take
    /// over by itself.
    resting: Cell<bool>,
    /// The keeper is bringing the resource to the wish: what it has not come to yet is not how
    /// the operator wants it.
    settling: Cell<bool>,
}

impl Status {
    /// Publishes changes on `hub` from now on.
    pub fn new(site: &Site, plan: &Plan, hub: Hub, jobs: Jobs) -> Rc<Status> {
        let dirs = &site.dirs;
        let status = Rc::new(Status {
            socket: dirs.serve_socket(plan.name()),
            plan: RefCell::new(plan.clone()),
            clock: Rc::clone(&site.clock),
            kept: Kept::load(&dirs.kept(), plan.name(), &plan.serve.peer_name),
            jobs,
            asked: RefCell::default(),
            asks_anew: Cell::new(false),
            targets: RefCell::default(),
            recent: RefCell::default(),
            phase: RefCell::default(),
            trouble: RefCell::default(),
            disk_troubles: RefCell::default(),
            front_troubles: RefCell::default(),
            waits: RefCell::default(),
            last_role: RefCell::default(),
            told: RefCell::default(),
            published: RefCell::default(),
            hub,
            gone: Cell::new(false),
            resting: Cell::new(false),
            settling: Cell::new(false),
        });
        status.changed();
        status
    }

    pub fn kept(&self) -> &Rc<Kept> {
        &self.kept
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)().timestamp()
    }

    /// The last changes, oldest first.
    pub fn recent(&self) -> Vec<(Timestamp, String)> {
        self.recent.borrow().iter().cloned().collect()
    }

    /// What the stream of the data plane has told, while there is one.
    pub fn told(&self) -> Option<ResourceView> {
        self.told.borrow().clone()
    }

    /// Where the data plane is asked.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the sync of `volume` waits for on this node; says whether that is new.
    pub fn set_wait(&self, volume: u16, reason: Option<String>) -> bool {
        let mut waits = self.waits.borrow_mut();
        if waits.get(&volume) == reason.as_ref() {
            return false;
        }
        match reason {
            Some(reason) => waits.insert(volume, reason),
            None => waits.remove(&volume),
        };
        drop(waits);
        self.changed();
        true
    }

    pub fn plan(&self) -> Plan {
        self.plan.borrow().clone()
    }

    pub fn replan(&self, plan: &Plan) {
        *self.plan.borrow_mut() = plan.clone();
    }

    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub fn set_phase(&self, phase: Phase) {
        if matches!(phase, Phase::Down | Phase::Failing { .. })
            && let Some(view) = self.told.borrow_mut().take()
        {
            self.kept.broken_off(&view, self.now(), &self.algorithm());
            self.targets.borrow_mut().clear();
        }
        *self.phase.borrow_mut() = phase;
        self.changed();
    }

    /// While the keeper brings the resource up, a connection that was not asked for yet is shown
    /// as about to be made, so that nobody takes it for one that was given up.
    pub fn set_settling(&self, settling: bool) {
        self.settling.set(settling);
    }

    /// Why the resource is not as the operator wants it.
    pub fn set_trouble(&self, reason: Option<String>) {
        *self.trouble.borrow_mut() = reason;
    }

    /// Why the disk of `volume` is not attached.
    pub fn set_disk_trouble(&self, volume: u16, reason: Option<String>) {
        set(&self.disk_troubles, volume, reason);
    }

    /// Why clients cannot reach `volume`. Logged when it is news.
    pub fn set_front_trouble(&self, volume: u16, reason: Option<String>) {
        if let Some(reason) = &reason
            && self.front_troubles.borrow().get(&volume) != Some(reason)
        {
            let resource = self.plan.borrow().name().to_owned();
            tracing::warn!(resource, volume, reason, "front end; tried again");
        }
        set(&self.front_troubles, volume, reason);
    }

    pub fn clear_troubles(&self) {
        self.set_trouble(None);
        self.disk_troubles.borrow_mut().clear();
        self.front_troubles.borrow_mut().clear();
    }

    /// The role in the last answer of a data plane.
    pub fn last_role(&self) -> String {
        self.last_role.borrow().clone()
    }

    /// Something may look different now: event lines follow at once, so that each step has its own.
    pub fn changed(&self) {
        let view = match (self.gone.get(), self.told.borrow().clone()) {
            (true, _) => None,
            (false, Some(told)) => Some(self.completed(told)),
            // The stream of a data plane that was found alive begins with its picture.
            (false, None) if self.phase() == Phase::Running => return,
            (false, None) => {
                let phase = self.phase();
                Some(self.completed(self.without_plane(Some(phase.to_string()), &phase)))
            }
        };
        self.hub.pulse().notify_one();
        let lines = events::changes(self.published.borrow().as_ref(), view.as_ref());
        *self.published.borrow_mut() = view;
        lines.iter().for_each(|line| self.tell(line));
    }

    fn tell(&self, line: &Event) {
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back((self.now(), line.text()));
        drop(recent);
        if let Ok(value) = serde_json::to_value(line) {
            self.hub.publish(&value);
        }
    }

    /// What a verify compares with.
    fn algorithm(&self) -> String {
        self.plan.borrow().serve.verify_alg.clone()
    }

    /// A new data plane: its stream tells every step from here on.
    pub fn begins(&self) {
        let blank = self.without_plane(None, &Phase::Starting);
        *self.told.borrow_mut() = Some(blank);
        self.changed();
    }

    /// The data plane has taken a step.
    pub fn step(&self, step: &Transition) {
        let mut told = self.told.borrow_mut();
        let Some(view) = told.as_mut() else { return };
        view.step(step);
        match step {
            Transition::Connection { to } if to == "StandAlone" => self.asks_anew.set(true),
            Transition::Replication { volume, to } => self.note_target(*volume, to),
            _ => {}
        }
        view.role.clone_into(&mut self.last_role.borrow_mut());
        drop(told);
        self.changed();
    }

    /// The data plane has ended a sync, verify or repair.
    pub fn finished(&self, of: &Finished) {
        let published = self.published.borrow();
        let line = published
            .as_ref()
            .and_then(|view| events::finished(view, of));
        drop(published);
        if let Some(line) = line {
            self.tell(&line);
        }
        self.kept.ended(of);
        let volume = of.volume;
        match of.run {
            Run::Verify {
                found: found_kib,
                skipped: skipped_kib,
                ..
            } if found_kib > 0 => self.call(
                volume,
                Occasion::OutOfSync {
                    found_kib,
                    skipped_kib,
                },
            ),
            Run::Resync { .. } if self.targets.borrow_mut().remove(&volume) => {
                self.call(volume, Occasion::AfterResyncTarget);
            }
            _ => {}
        }
    }

    fn call(&self, volume: u16, occasion: Occasion) {
        // The one who runs handlers lives as long as this.
        let _ = self.jobs.send(Job { volume, occasion });
    }

    fn note_target(&self, volume: u16, replication: &str) {
        let mut targets = self.targets.borrow_mut();
        match replication {
            "SyncTarget" | "PausedSyncT" => {
                targets.insert(volume);
            }
            // Its end is told after the state that it leads to.
            "Established" => {}
            _ => {
                targets.remove(&volume);
            }
        }
    }

    /// What has become of the question about `volume`: the reason why its sync does not begin.
    pub fn set_asked(&self, volume: u16, refused: Option<String>) {
        let state = refused.map_or(Asking::Approved, Asking::Refused);
        *self.asked.borrow_mut() = Some(Asked { volume, state });
        self.changed();
    }

    /// The data plane asks before a sync, or does not any more.
    fn follow_question(&self, asks: Option<u16>) {
        let anew = self.asks_anew.replace(false);
        let mut asked = self.asked.borrow_mut();
        let runs = matches!(
            &*asked,
            Some(Asked {
                state: Asking::Running,
                ..
            })
        );
        match asks {
            None if !runs => *asked = None,
            Some(volume) if !runs => {
                let known = asked.as_ref().is_some_and(|asked| asked.volume == volume);
                if anew || !known {
                    let state = Asking::Running;
                    *asked = Some(Asked { volume, state });
                    self.call(volume, Occasion::BeforeResyncTarget);
                }
            }
            _ => {}
        }
    }

    /// The data plane's whole picture, after every step that it has told.
    pub fn pictured(&self, view: ResourceView) {
        view.role.clone_into(&mut self.last_role.borrow_mut());
        self.kept.pictured(&view, self.now(), &self.algorithm());
        for peer in view.connections.iter().flat_map(|link| &link.peer_devices) {
            self.note_target(peer.volume, &peer.replication_state);
        }
        self.follow_question(view.asks_before_sync());
        *self.told.borrow_mut() = Some(view);
        self.changed();
    }

    /// The resource has left the configuration: its objects are destroyed.
    pub fn retire(&self) {
        self.gone.set(true);
        self.changed();
    }

    /// See [`Status::retire`].
    pub fn is_retired(&self) -> bool {
        self.gone.get()
    }

    pub fn set_resting(&self, resting: bool) {
        self.resting.set(resting);
    }

    pub fn is_resting(&self) -> bool {
        self.resting.get()
    }

    /// The picture that listeners of events know.
    pub fn picture(&self) -> Vec<Event> {
        let published = self.published.borrow();
        published.as_ref().map_or(Vec::new(), events::picture)
    }

    /// How the resource is now, as others see it.
    pub async fn view(&self) -> ResourceView {
        self.completed(self.asked().await)
    }

    /// How the resource is now.
    pub async fn found(&self) -> ResourceView {
        let mut view = self.asked().await;
        self.add_troubles(&mut view);
        view
    }

    async fn asked(&self) -> ResourceView {
        let phase = self.phase();
        if phase != Phase::Running {
            return self.without_plane(Some(phase.to_string()), &phase);
        }
        match self.ask().await {
            Ok(view) => {
                view.role.clone_into(&mut self.last_role.borrow_mut());
                view
            }
            Err(reason) => self.without_plane(Some(reason), &phase),
        }
    }

    /// With what only the agent knows.
    fn completed(&self, mut view: ResourceView) -> ResourceView {
        self.add_troubles(&mut view);
        self.add_waits(&mut view);
        self.add_question(&mut view);
        self.kept.complete(&mut view);
        if self.settling.get() {
            for link in &mut view.connections {
                if link.connection_state == "StandAlone" && link.reason.is_none() {
                    "Unconnected".clone_into(&mut link.connection_state);
                }
            }
        }
        view
    }

    fn add_troubles(&self, view: &mut ResourceView) {
        if let Some(trouble) = self.trouble.borrow().as_ref() {
            view.reason.get_or_insert_with(|| trouble.clone());
        }
        for device in &mut view.devices {
            if device.reason.is_none() {
                let (disk, front) = (self.disk_troubles.borrow(), self.front_troubles.borrow());
                let of = &device.volume;
                device.reason = disk.get(of).or_else(|| front.get(of)).cloned();
            }
        }
    }

    /// The data plane knows that a sync waits for another one, but not for which.
    fn add_waits(&self, view: &mut ResourceView) {
        let waits = self.waits.borrow();
        for (volume, reason) in waits.iter() {
            let user = |causes: &str| causes.split(',').any(|cause| cause == "user");
            let held = view.is_held(*volume);
            let mut peers = view.peer_devices(*volume);
            if let Some(peer) = peers.find(|peer| held && !user(&peer.resync_suspended)) {
                peer.reason = Some(reason.clone());
            }
        }
    }

    /// While the handler runs that a sync waits for, the connection is about to be made.
    fn add_question(&self, view: &mut ResourceView) {
        let Some(volume) = view.asks_before_sync() else {
            return;
        };
        let name = self.plan.borrow().name().to_owned();
        let asked = self.asked.borrow();
        let state = asked.as_ref().filter(|asked| asked.volume == volume);
        for link in &mut view.connections {
            match state.map(|asked| &asked.state) {
                Some(Asking::Refused(reason)) => {
                    link.reason = Some(reason.clone());
                    link.help = Some(format!(
                        "the agent's log has what it said; `lockstep connect {name}` runs it again"
                    ));
                }
                _ => "Unconnected".clone_into(&mut link.connection_state),
            }
        }
    }

    async fn ask(&self) -> Result<ResourceView, String> {
        let name = self.plan.borrow().name().to_owned();
        let value = plane::exchange(
            &name,
            &self.socket,
            &ServeRequest::Status,
            &[],
            STATUS_ANSWER,
        )
        .await
        .map_err(|error| error.reason)?;
        serde_json::from_value(value)
            .map_err(|error| format!("the data plane's status makes no sense: {error}"))
    }

    /// The picture of a resource whose data plane says nothing.
    fn without_plane(&self, reason: Option<String>, phase: &Phase) -> ResourceView {
        let plan = self.plan.borrow();
        let serve = &plan.serve;
        let state = match phase {
            Phase::Down => "StandAlone",
            _ => "Unconnected",
        };
        ResourceView {
            name: serve.resource.clone(),
            node_id: serve.node,
            role: "Secondary".to_owned(),
            write_ordering: "flush".to_owned(),
            reason,
            devices: serve
                .volumes
                .iter()
                .map(|volume| DeviceView {
                    volume: volume.volume,
                    minor: minor(&volume.front),
                    path: volume.front.path(),
                    disk_state: "Diskless".to_owned(),
                    ..DeviceView::default()
                })
                .collect(),
            connections: vec![ConnectionView {
                peer_node_id: serve.peer,
                name: serve.peer_name.clone(),
                connection_state: state.to_owned(),
                peer_role: "Unknown".to_owned(),
                transport: "tcp".to_owned(),
                peer_devices: serve
                    .volumes
                    .iter()
                    .map(|volume| PeerDeviceView {
                        volume: volume.volume,
                        replication_state: "Off".to_owned(),
                        peer_disk_state: "DUnknown".to_owned(),
                        resync_suspended: "no".to_owned(),
                        ..PeerDeviceView::default()
                    })
                    .collect(),
                ..ConnectionView::default()
            }],
            ..ResourceView::default()
        }
    }
}

fn set(troubles: &RefCell<BTreeMap<u16, String>>, volume: u16, reason: Option<String>) {
    let mut troubles = troubles.borrow_mut();
    match reason {
        Some(reason) => troubles.insert(volume, reason),
        None => troubles.remove(&volume),
    };
}

fn minor(front: &FrontEnd) -> i64 {
    match front {
        FrontEnd::Ublk { minor } => i64::from(*minor),
        FrontEnd::NbdUnix { .. } | FrontEnd::NbdTcp { .. } => -1,
    }
}
