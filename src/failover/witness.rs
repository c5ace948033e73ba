//! The third vote: a process on a third host that keeps no data.
//!
//! One socket, one thread; one witness serves many clusters. For each it keeps a file of two slots
//! ([`SlotFile`]) with the record of every resource; an answer that changes a record leaves after
//! the one flush that makes it durable. Leases are in memory alone. What can be decided is in
//! [`Voter`]; here are sockets, files and keys.

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_transport::sealed::{self, Key, MAX_BODY, Reject, Sealer, WITNESS};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{info, warn};
use x25519_dalek::{PublicKey, StaticSecret};

use super::enrol;
use super::letter::{self, Ask, Reply, Terms, kind};
use super::slots::{SlotError, SlotFile};
use super::voter::{Lease, Record, Voter, VoterConfig};
use crate::clock;
use crate::engine::{NodeId, Time};

/// Clusters that are taken without having been told of them.
const MAX_CLUSTERS: usize = 1000;
/// Resources of a cluster.
const MAX_RESOURCES: usize = 256;
/// Numbers of nodes end below this.
const MAX_NODES: u8 = 16;

/// Why there is no witness.
#[derive(Debug, Error)]
pub enum WitnessError {
    #[error("cannot use {}: {error}", .path.display())]
    State {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error(transparent)]
    Slots(#[from] SlotError),
    #[error("cannot listen at {address}: {error}")]
    Listen {
        address: SocketAddr,
        error: std::io::Error,
    },
    #[error("cannot receive: {0}")]
    Receive(std::io::Error),
    #[error("the operating system gives no random numbers")]
    Random,
    #[error("a record cannot be written down: {0}")]
    Encode(#[from] postcard::Error),
}

/// What is durable of a cluster.
#[derive(Serialize, Deserialize)]
struct Kept {
    cluster: u64,
    secret: [u8; 32],
    resources: BTreeMap<String, (Terms, Record)>,
}

struct Resource {
    terms: Terms,
    voter: Voter,
}

struct Cluster {
    key: Key,
    slots: SlotFile,
    resources: BTreeMap<String, Resource>,
    /// By node and path.
    sealers: HashMap<(u8, u8), Sealer>,
}

/// See the module's description.
pub struct Witness {
    folder: PathBuf,
    clusters: HashMap<u64, Cluster>,
    /// None: only clusters whose key it was given.
    own: Option<StaticSecret>,
}

/// Random bytes.
pub fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

fn lease(terms: &Terms) -> Lease {
    Lease {
        length: Duration::from_millis(terms.lease_ms.into()),
        margin: Duration::from_millis(terms.margin_ms.into()),
    }
}

fn start(terms: &Terms, record: Record, blank: bool, now: Time) -> Resource {
    let config = VoterConfig {
        nodes: terms.nodes,
        lease: lease(terms),
    };
    Resource {
        terms: *terms,
        voter: Voter::start(config, record, blank, now),
    }
}

impl Witness {
    /// A witness with its records in `folder`. With `keys` it serves these clusters alone and
    /// takes no introductions.
    pub fn open(folder: &Path, keys: &[Key]) -> Result<Witness, WitnessError> {
        let failed = |error| WitnessError::State {
            path: folder.to_owned(),
            error,
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let own = random::<32>().ok_or(WitnessError::Random)?;
        let mut witness = Witness {
            folder: folder.to_owned(),
            clusters: HashMap::new(),
            own: keys.is_empty().then(|| StaticSecret::from(own)),
        };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|end| end == "votes") {
                witness.load(&path)?;
            }
        }
        for key in keys {
            if !witness.clusters.contains_key(&key.cluster()) {
                witness.add(key.clone())?;
            }
        }
        Ok(witness)
    }

    fn load(&mut self, path: &Path) -> Result<(), WitnessError> {
        let (slots, record) = SlotFile::open(path)?;
        let kept: Option<Kept> = record.and_then(|bytes| postcard::from_bytes(&bytes).ok());
        let Some(kept) = kept else {
            // Its cluster introduces itself again, and then both nodes have to come.
            warn!(file = %path.display(), "no record in it can be read: it is as good as blank");
            return Ok(());
        };
        let now = clock::now();
        let resources = kept.resources.into_iter();
        let cluster = Cluster {
            key: Key::from_parts(kept.cluster, kept.secret),
            slots,
            resources: resources
                .map(|(name, (terms, record))| (name, start(&terms, record, false, now)))
                .collect(),
            sealers: HashMap::new(),
        };
        self.clusters.insert(kept.cluster, cluster);
        Ok(())
    }

    fn add(&mut self, key: Key) -> Result<(), WitnessError> {
        let path = self.folder.join(format!("{:016x}.votes", key.cluster()));
        let (slots, _) = SlotFile::open(&path)?;
        let mut cluster = Cluster {
            key: key.clone(),
            slots,
            resources: BTreeMap::new(),
            sealers: HashMap::new(),
        };
        cluster.store()?;
        info!(cluster = format!("{:016x}", key.cluster()), "new cluster");
        self.clusters.insert(key.cluster(), cluster);
        Ok(())
    }

    /// Serves until the process is ended.
    pub fn serve(mut self, socket: &UdpSocket) -> Result<(), WitnessError> {
        let mut buffer = vec![0; 2 * MAX_BODY];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                // An answer that went to a port that is closed now comes back as an error.
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::Interrupted | std::io::ErrorKind::ConnectionRefused
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(WitnessError::Receive(error)),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            match self.take(clock::now(), bytes) {
                // A lost answer is asked for again.
                Ok(Some(answer)) => drop(socket.send_to(&answer, from)),
                Ok(None) => {}
                Err(Refused::Record(error)) => warn!(%error, "a record cannot be kept"),
                Err(error) => tracing::debug!(%error, %from, "datagram not taken"),
            }
        }
    }

    /// Takes a datagram; what comes back goes to its sender.
    fn take(&mut self, now: Time, bytes: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        if let Some(own) = &self.own
            && let Some(key) = enrol::read_enrol(bytes, own)
        {
            let full = self.clusters.len() >= MAX_CLUSTERS;
            if !full && !self.clusters.contains_key(&key.cluster()) {
                self.add(key).map_err(Refused::from)?;
            }
            return Ok(None);
        }
        let header = sealed::peek(bytes)?;
        let Some(cluster) = self.clusters.get_mut(&header.cluster) else {
            let public = self.own.as_ref().map(PublicKey::from);
            return Ok(Some(enrol::unknown(header.cluster, public.as_ref())));
        };
        if header.sender >= MAX_NODES {
            return Err(Refused::Sender(header.sender));
        }
        cluster.take(now, &header, bytes)
    }
}

/// Why a datagram leads to nothing.
#[derive(Debug, Error)]
enum Refused {
    #[error(transparent)]
    Sealed(#[from] Reject),
    #[error(transparent)]
    Letter(#[from] letter::LetterError),
    #[error("{0} is no node's number")]
    Sender(u8),
    #[error("a kind of datagram that a witness does not take")]
    Kind,
    #[error("more resources than a witness keeps for one cluster")]
    Resources,
    #[error(transparent)]
    Record(WitnessError),
    #[error("the operating system gives no random numbers")]
    Random,
}

impl From<WitnessError> for Refused {
    fn from(error: WitnessError) -> Refused {
        Refused::Record(error)
    }
}

impl Cluster {
    fn take(
        &mut self,
        now: Time,
        header: &sealed::Header,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, Refused> {
        let place = (header.sender, header.path);
        let mut sealer = match self.sealers.remove(&place) {
            Some(sealer) => sealer,
            None => {
                let session = random().ok_or(Refused::Random)?;
                let session = u64::from_le_bytes(session);
                Sealer::new(self.key.clone(), WITNESS, header.path, session)
            }
        };
        let opened = sealer.open(bytes);
        let answer = match opened {
            // It did not come from a node: nothing is remembered of it.
            Err(error @ (Reject::Forged | Reject::Length)) if !sealer.met() => {
                return Err(error.into());
            }
            Err(error) => Err(error.into()),
            Ok(opened) if opened.greeting => Ok((kind::BEAT, Vec::new())),
            Ok(opened) => self.answer(now, NodeId(header.sender), opened.kind, opened.body),
        };
        let answer = answer.map(|(kind, body)| sealer.seal(kind, &body, 0));
        self.sealers.insert(place, sealer);
        answer
    }

    fn answer(
        &mut self,
        now: Time,
        from: NodeId,
        kind: u8,
        body: &[u8],
    ) -> Result<(u8, Vec<u8>), Refused> {
        if kind != kind::ASK {
            return Err(Refused::Kind);
        }
        let ask = Ask::read(body)?;
        let resource = self.resource(now, &ask)?;
        let before = resource.voter.clone();
        resource.follow(now, &ask.terms);
        let (answer, changed) = resource.voter.handle(now, from, &ask.known, &ask.question);
        if changed && let Err(error) = self.store() {
            // What is not durable has not happened.
            if let Some(resource) = self.resources.get_mut(&ask.resource) {
                resource.voter = before;
            }
            return Err(error.into());
        }
        let reply = Reply {
            id: ask.id,
            resource: ask.resource,
            answer,
        };
        Ok((kind::ANSWER, letter::write(&reply)?))
    }

    fn resource(&mut self, now: Time, ask: &Ask) -> Result<&mut Resource, Refused> {
        if self.resources.len() >= MAX_RESOURCES && !self.resources.contains_key(&ask.resource) {
            return Err(Refused::Resources);
        }
        let store = u64::from_le_bytes(random().ok_or(Refused::Random)?);
        let name = ask.resource.clone();
        let fresh = || start(&ask.terms, Record::blank(store), true, now);
        Ok(self.resources.entry(name).or_insert_with(fresh))
    }

    fn store(&mut self) -> Result<(), WitnessError> {
        let resources = self.resources.iter();
        let kept = Kept {
            cluster: self.key.cluster(),
            secret: *self.key.secret(),
            resources: resources
                .map(|(name, r)| (name.clone(), (r.terms, r.voter.record().clone())))
                .collect(),
        };
        Ok(self.slots.store(&postcard::to_stdvec(&kept)?)?)
    }
}

impl Resource {
    /// Takes the lengths that nodes are configured with: longer ones at once, shorter ones when no
    /// lease is outstanding.
    fn follow(&mut self, now: Time, terms: &Terms) {
        let longer = terms.lease_ms >= self.terms.lease_ms;
        let same = *terms == self.terms || terms.nodes != self.terms.nodes;
        if !same && (longer || self.voter.lease_until() <= now) {
            self.terms = *terms;
            self.voter.set_lease(lease(terms));
        }
    }
}

/// Binds the socket of a witness.
pub fn listen(address: SocketAddr) -> Result<UdpSocket, WitnessError> {
    UdpSocket::bind(address).map_err(|error| WitnessError::Listen { address, error })
}
