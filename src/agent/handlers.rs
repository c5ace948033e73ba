//! Handlers: commands of the administrator that the agent runs when something happens to a volume.
//!
//! One after the other for each resource, by `/bin/sh -c`, with a limit of time; the data plane
//! never waits for one except before a sync that it asked about. How a handler ended is in the log,
//! and what it prints as well. When the agent dies in the middle, the next one begins the handler
//! that a sync waits for anew, so that one must be able to run twice.

use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::Command;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tracing::{info, warn};

use super::plan::Plan;
use super::plane::{self, STATUS_ANSWER};
use super::protocol::{FrontEnd, ServeRequest};
use super::status::Status;
use super::view::ResourceView;

/// How long a handler may take before it is killed, and with it what it has started.
const LIMIT: Duration = Duration::from_secs(300);

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A sync onto the volume is about to begin, and waits.
    BeforeResyncTarget,
    AfterResyncTarget,
    /// A verify has found differences.
    OutOfSync {
        found_kib: u64,
        skipped_kib: u64,
    },
}

impl Occasion {
    /// The option that says what to run.
    pub fn name(&self) -> &'static str {
        match self {
            Occasion::BeforeResyncTarget => "before-resync-target",
            Occasion::AfterResyncTarget => "after-resync-target",
            Occasion::OutOfSync { .. } => "out-of-sync",
        }
    }

    fn command(&self, plan: &Plan) -> Option<String> {
        let handlers = &plan.upkeep.handlers;
        match self {
            Occasion::BeforeResyncTarget => handlers.before_resync_target.clone(),
            Occasion::AfterResyncTarget => handlers.after_resync_target.clone(),
            Occasion::OutOfSync { .. } => handlers.out_of_sync.clone(),
        }
    }
}

/// A handler that is to be run.
#[derive(Clone, Debug)]
pub struct Job {
    pub volume: u16,
    pub occasion: Occasion,
}

/// Where jobs of one resource are given.
pub type Jobs = UnboundedSender<Job>;

/// Why a handler did not end well.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("could not be started: {0}")]
    Start(io::Error),
    #[error("ended with {0}")]
    Ended(std::process::ExitStatus),
    #[error("was killed after {} s", LIMIT.as_secs())]
    Late,
}

/// Runs the handlers of a resource; jobs go to the sender until it is dropped.
pub fn spawn(start: impl FnOnce(Jobs) -> Rc<Status>) -> Rc<Status> {
    let (give, take) = unbounded_channel();
    let status = start(give);
    tokio_uring::spawn(run(Rc::downgrade(&status), take));
    status
}

async fn run(status: std::rc::Weak<Status>, mut jobs: UnboundedReceiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let Some(status) = status.upgrade() else {
            return;
        };
        let plan = status.plan();
        let view = status.told().unwrap_or_default();
        let ended = match job.occasion.command(&plan) {
            // The configuration has changed since: there is nothing to wait for.
            None => Ok(()),
            Some(command) => call(&command, &plan, &view, &job).await,
        };
        if job.occasion == Occasion::BeforeResyncTarget {
            conclude(&status, plan.name(), job.volume, ended).await;
        }
    }
}

/// Lets the sync that waits begin, or says why it does not.
async fn conclude(status: &Status, resource: &str, volume: u16, ended: Result<(), Failure>) {
    let failed = ended.err().map(|failure| {
        format!("the handler before-resync-target of volume {volume} {failure}: the sync onto this node does not begin")
    });
    let approved = failed.is_none();
    status.set_asked(volume, failed);
    if approved {
        let request = ServeRequest::Approve { volume };
        let told = plane::exchange(resource, status.socket(), &request, &[], STATUS_ANSWER).await;
        if let Err(error) = told {
            // Its successor asks again.
            warn!(resource, volume, reason = error.reason, "sync not approved");
        }
    }
}

async fn call(command: &str, plan: &Plan, view: &ResourceView, job: &Job) -> Result<(), Failure> {
    let (resource, volume, handler) = (plan.name(), job.volume, job.occasion.name());
    info!(resource, volume, handler, command, "handler begins");
    let ended = execute(command, environment(plan, view, job)).await;
    match &ended {
        Ok(()) => info!(resource, volume, handler, "handler ended with exit code 0"),
        Err(failure) => warn!(resource, volume, handler, %failure, "handler failed"),
    }
    ended
}

async fn execute(command: &str, environment: Vec<(String, String)>) -> Result<(), Failure> {
    // What it prints belongs in the log.
    let log = io::stderr().as_fd().try_clone_to_owned();
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(log.map_err(Failure::Start)?)
        .process_group(0)
        .spawn()
        .map_err(Failure::Start)?;
    let group = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    match timeout(LIMIT, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Failure::Ended(status)),
        Ok(Err(error)) => Err(Failure::Start(error)),
        Err(_) => {
            if let Some(group) = group {
                // Fails only where nothing is left of it.
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            Err(Failure::Late)
        }
    }
}

/// What a handler is told: DRBD's variables, and ours.
fn environment(plan: &Plan, view: &ResourceView, job: &Job) -> Vec<(String, String)> {
    let serve = &plan.serve;
    let front = serve
        .volumes
        .iter()
        .find(|v| v.volume == job.volume)
        .map(|v| &v.front);
    let minor = match front {
        Some(FrontEnd::Ublk { minor }) => minor.to_string(),
        _ => String::new(),
    };
    let device = front.map_or(String::new(), FrontEnd::path);
    let disk = plan
        .disk(job.volume)
        .map_or(String::new(), |disk| disk.data.display().to_string());
    let link = view.connections.first();
    let state = link.map_or(String::new(), |link| link.connection_state.clone());
    let family = |address: &str| {
        if address.starts_with('[') {
            "ipv6"
        } else {
            "ipv4"
        }
    };
    let ip = |address: &str| {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        host.trim_matches(['[', ']']).to_owned()
    };
    let mut variables: Vec<(String, String)> = [
        ("DRBD_RESOURCE", serve.resource.clone()),
        ("DRBD_VOLUME", job.volume.to_string()),
        ("DRBD_MINOR", minor.clone()),
        ("DRBD_PEER", serve.peer_name.clone()),
        ("DRBD_PEERS", serve.peer_name.clone()),
        ("DRBD_MY_ADDRESS", ip(&serve.address)),
        ("DRBD_MY_AF", family(&serve.address).to_owned()),
        ("DRBD_PEER_ADDRESS", ip(&serve.peer_address)),
        ("DRBD_PEER_AF", family(&serve.peer_address).to_owned()),
        ("DRBD_MY_NODE_ID", serve.node.to_string()),
        ("DRBD_PEER_NODE_ID", serve.peer.to_string()),
        ("DRBD_BACKING_DEV", disk.clone()),
        ("DRBD_LL_DISK", disk.clone()),
        ("DRBD_CSTATE", state),
        ("LOCKSTEP_HANDLER", job.occasion.name().to_owned()),
        ("LOCKSTEP_RESOURCE", serve.resource.clone()),
        ("LOCKSTEP_VOLUME", job.volume.to_string()),
        ("LOCKSTEP_MINOR", minor),
        ("LOCKSTEP_DEVICE", device),
        ("LOCKSTEP_DISK", disk),
        ("LOCKSTEP_ROLE", view.role.clone()),
        ("LOCKSTEP_NODE", serve.node_name.clone()),
        ("LOCKSTEP_PEER", serve.peer_name.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for (id, name) in [
        (serve.node, &serve.node_name),
        (serve.peer, &serve.peer_name),
    ] {
        variables.push((format!("DRBD_NODE_ID_{id}"), name.clone()));
    }
    if let Occasion::OutOfSync {
        found_kib,
        skipped_kib,
    } = job.occasion
    {
        variables.push(("LOCKSTEP_FOUND_KIB".to_owned(), found_kib.to_string()));
        variables.push(("LOCKSTEP_SKIPPED_KIB".to_owned(), skipped_kib.to_string()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::tests::plan;

    fn run_it(command: &str, environment: Vec<(String, String)>) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let work = execute(command, environment);
        let ended = runtime.expect("runtime").block_on(work);
        ended.map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_handler_is_told_what_it_is_about() {
        let mut plan = plan("r0", FrontEnd::Ublk { minor: 7 });
        plan.serve.peer_address = "[fd00::2]:7789".to_owned();
        let occasion = Occasion::OutOfSync {
            found_kib: 4108,
            skipped_kib: 0,
        };
        let job = Job {
            volume: 0,
            occasion,
        };
        let environment = environment(&plan, &ResourceView::default(), &job);
        let check = "test $DRBD_RESOURCE.$DRBD_VOLUME.$DRBD_MINOR.$DRBD_PEER = r0.0.7.beta &&
             test $DRBD_PEER_ADDRESS,$DRBD_PEER_AF = fd00::2,ipv6 &&
             test $DRBD_MY_ADDRESS,$DRBD_MY_AF = 127.0.0.1,ipv4 &&
             test $DRBD_NODE_ID_0,$DRBD_NODE_ID_1,$DRBD_MY_NODE_ID = alpha,beta,0 &&
             test $DRBD_BACKING_DEV,$LOCKSTEP_DISK = /nonexistent,/nonexistent &&
             test $LOCKSTEP_HANDLER,$LOCKSTEP_FOUND_KIB = out-of-sync,4108 &&
             test $LOCKSTEP_DEVICE,$LOCKSTEP_NODE = /dev/ublkb7,alpha";
        assert_eq!(run_it(check, environment), Ok(()));
    }

    #[test]
    fn how_it_ended_is_said() {
        assert_eq!(run_it("exit 0", Vec::new()), Ok(()));
        let failed = run_it("exit 3", Vec::new());
        assert_eq!(failed, Err("ended with exit status: 3".to_owned()));
        let killed = run_it("kill -9 $$", Vec::new()).expect_err("killed");
        assert!(killed.contains("signal: 9"), "{killed}");
    }
}
