//! The node's part in its cluster: the heartbeat thread, and what its news lead to.
//!
//! A keeper asks here for the vote before it promotes, and says when its reign is over. What the
//! data plane wants recorded goes to the voters, and their word back to it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::dirs::Dirs;
use super::plane::{STATUS_ANSWER, exchange};
use super::protocol::{ErrorKind, ErrorReply, ServeRequest, VoterSays};
use crate::engine::{Generation, Term, VolumeId, Vote};
use crate::failover::manager::Side;
use crate::failover::pulse::{News, Order, Picture, Pulse, PulseConfig};
use crate::failover::report::NodeReport;
use crate::failover::witness::random;
use crate::failover::{Copy, Denied, Input};
use crate::reactor::lease::LeaseWord;

/// Who waits for a vote.
type Waiter = oneshot::Sender<Result<Vote, Denied>>;

/// See the module's description.
pub struct Cluster {
    dirs: Dirs,
    pulse: Pulse,
    waiting: RefCell<BTreeMap<String, Waiter>>,
    /// What the peer is told.
    said: RefCell<NodeReport>,
}

impl Cluster {
    /// Starts heartbeats and whatever follows their news.
    pub fn start(dirs: &Dirs, config: PulseConfig) -> Result<Rc<Cluster>, ErrorReply> {
        let (sender, news) = unbounded_channel();
        let pulse = Pulse::start(config, sender).map_err(|error| {
            ErrorReply::new(
                ErrorKind::Failed,
                error,
                "the machine is out of memory or of descriptors",
            )
        })?;
        let cluster = Rc::new(Cluster {
            dirs: dirs.clone(),
            pulse,
            waiting: RefCell::default(),
            said: RefCell::default(),
        });
        tokio_uring::spawn(Rc::clone(&cluster).follow(news));
        Ok(cluster)
    }

    /// How things are.
    pub fn picture(&self) -> Picture {
        self.pulse.picture()
    }

    /// Takes a place among the voters of `resource`; `reign`: its data plane reigns under this
    /// term since before this agent started.
    pub fn enter(&self, resource: &str, reign: Option<Term>) {
        let resource = resource.to_owned();
        self.pulse.give(Order::Add { resource, reign });
    }

    fn give(&self, resource: &str, input: Input) {
        let resource = resource.to_owned();
        self.pulse.give(Order::Give { resource, input });
    }

    /// What the peer is told of a resource from now on.
    pub fn say(&self, resource: &str, side: Side) {
        let mut said = self.said.borrow_mut();
        if said.resources.insert(resource.to_owned(), side) != Some(side) {
            self.pulse.give(Order::Say(said.clone()));
        }
    }

    /// The memory in which the data plane of `resource` looks for its lease.
    pub fn lease(&self, resource: &str, memory: &OwnedFd) -> Result<(), ErrorReply> {
        let word = LeaseWord::open(memory).map_err(|error| {
            ErrorReply::new(
                ErrorKind::Failed,
                format!("no memory for the lease of {resource}: {error}"),
                "the machine is out of memory",
            )
        })?;
        let resource = resource.to_owned();
        self.pulse.give(Order::Lease { resource, word });
        Ok(())
    }

    /// What the resource's own metadata say about the last reign.
    pub fn reigned(&self, resource: &str, term: Term) {
        self.give(resource, Input::Reigned { term });
    }

    /// This node has stopped reigning.
    pub fn release(&self, resource: &str) {
        self.give(resource, Input::Release);
    }

    /// Asks for the vote. `again`: only if this reign is still the last one.
    pub async fn vote(
        &self,
        resource: &str,
        again: Option<Term>,
        copies: Vec<Copy>,
        force: bool,
    ) -> Result<Vote, ErrorReply> {
        let random = random().ok_or_else(|| {
            let reason = "the operating system gives no random numbers";
            ErrorReply::new(ErrorKind::Failed, reason, "repeat the command")
        })?;
        let (sender, answer) = oneshot::channel();
        let name = resource.to_owned();
        self.waiting.borrow_mut().insert(name, sender);
        self.give(
            resource,
            Input::Vote {
                again,
                copies,
                force,
                random: u32::from_le_bytes(random),
            },
        );
        match answer.await {
            Ok(Ok(vote)) => Ok(vote),
            Ok(Err(denied)) => Err(refused(resource, denied)),
            Err(_) => Err(refused(resource, Denied::Candidate)),
        }
    }

    /// The data plane wants a generation recorded.
    pub fn record(&self, resource: &str, volume: VolumeId, generation: Generation, term: Term) {
        let input = Input::Record {
            volume,
            generation,
            term,
        };
        self.give(resource, input);
    }

    async fn follow(self: Rc<Self>, mut news: UnboundedReceiver<News>) {
        while let Some(news) = news.recv().await {
            match news {
                News::Voted { resource, vote } => self.answer(&resource, Ok(vote)),
                News::Denied { resource, denied } => self.answer(&resource, Err(denied)),
                News::Recorded {
                    resource,
                    volume,
                    generation,
                } => self.tell(resource, VoterSays::Recorded { volume, generation }),
                News::Deposed { resource, term } => {
                    warn!(resource, term = term.counter, "another node reigns");
                    self.tell(resource, VoterSays::Deposed { term });
                }
                News::Peer { alive } => info!(alive, "peer"),
            }
        }
    }

    fn answer(&self, resource: &str, answer: Result<Vote, Denied>) {
        let waiter = self.waiting.borrow_mut().remove(resource);
        match (waiter, answer) {
            (Some(waiter), answer) => {
                if let Err(Ok(_)) = waiter.send(answer) {
                    self.release(resource);
                }
            }
            // Nobody waits for it any more.
            (None, Ok(_)) => self.release(resource),
            (None, Err(_)) => {}
        }
    }

    /// Makes sure that a connected peer still answers.
    pub fn probe(&self, resource: &str) {
        self.send(resource.to_owned(), ServeRequest::Probe);
    }

    /// Tells a data plane what the voters have said. One that is gone has a successor that asks
    /// anew.
    fn tell(&self, resource: String, said: VoterSays) {
        self.send(resource, ServeRequest::Voter(said));
    }

    fn send(&self, resource: String, request: ServeRequest) {
        let socket = self.dirs.serve_socket(&resource);
        tokio_uring::spawn(async move {
            let told = exchange(&resource, &socket, &request, &[], STATUS_ANSWER).await;
            if let Err(error) = told {
                tracing::debug!(resource, reason = error.reason, "data plane not reached");
            }
        });
    }
}

fn refused(resource: &str, denied: Denied) -> ErrorReply {
    let help = match denied {
        Denied::Silence => {
            "two of the three voters are needed: bring the other node or the witness back, or \
             check the paths between them"
        }
        Denied::Doubt => {
            "bring the other node up, so that both can say what they know; if it is lost for \
             good, `--force` promotes this copy, and what the other one had more is lost"
        }
        Denied::NotRecorded => {
            "bring the node with the newer copy back; `--force` promotes this one, and what the \
             newer one has more is lost"
        }
        Denied::Held { .. } | Denied::Starting { .. } => "try again when that time is over",
        _ => "`lockstep status` shows who is primary",
    };
    ErrorReply::new(
        ErrorKind::Refused,
        format!("the voters refuse {resource}: {denied}"),
        help,
    )
}
