//! Importers: files of DRBD, Heartbeat and Keepalived become one configuration of ours.
//!
//! Each source is read strictly, so that a mistake in it is found at its line, into what it says
//! ([`drbd`], [`heartbeat`], [`keepalived`]). [`build`] makes the model from all of them and from
//! what the administrator has chosen; what the sources do not say is asked for, by the option that
//! answers it. The text that comes out is parsed again before anybody sees it.
//!
//! What is not carried over, or means something else here, is told in a note.

mod build;
mod drbd;
mod heartbeat;
#[cfg(test)]
mod import_tests;
mod keepalived;
mod nfs;
mod words;

use std::net::SocketAddr;
use std::path::PathBuf;

use super::cluster::Arbiter;
use super::diagnostic::Diagnostic;
use super::source::SourceMap;
use super::{Config, dump};

/// What is to be imported, and what was chosen.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Files of DRBD.
    pub drbd: Vec<PathBuf>,
    /// Folder with `ha.cf`, `haresources` and `authkeys`, of which `haresources` must be there.
    pub heartbeat: Option<PathBuf>,
    pub keepalived: Option<PathBuf>,
    /// Who gets the third vote.
    pub vote: Option<Arbiter>,
    /// Where each node hears heartbeats, in the order given.
    pub addresses: Vec<(String, SocketAddr)>,
    /// Disk of each node, where no source names one, in the order given.
    pub disks: Vec<(String, PathBuf)>,
    /// The node that the files of Keepalived are from.
    pub node: String,
}

/// Where connections and heartbeats get their key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// From a file that is there.
    File(PathBuf),
    /// The file is not there and could not be made: connections get this one.
    Secret(PathBuf, String),
}

/// A finished import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The configuration.
    pub text: String,
    /// What was not carried over or means something else, one line each.
    pub notes: Vec<String>,
}

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A source is wrong, or the choices do not go together.
    Wrong(Vec<Diagnostic>),
    /// Something has to be chosen.
    Needs {
        /// `--OPTION VALUE`, one each.
        needs: Vec<String>,
        notes: Vec<String>,
    },
}

/// Reads all sources, without having a key yet.
pub fn import(request: &Request) -> Result<Prepared, Failure> {
    let mut sources = SourceMap::new();
    let mut errors = Vec::new();
    let mut notes = Vec::new();
    let drbd = drbd::read(&request.drbd, &mut notes, &mut errors);
    let heartbeat = request
        .heartbeat
        .as_deref()
        .map(|folder| heartbeat::read(&mut sources, folder, &mut notes, &mut errors));
    let keepalived = request
        .keepalived
        .as_deref()
        .map(|file| keepalived::read(&mut sources, file, &mut notes, &mut errors));
    if !errors.is_empty() {
        return Err(Failure::Wrong(errors));
    }
    let mut builder = build::Builder::new(request, drbd, sources, notes);
    if let Some(heartbeat) = heartbeat {
        builder.heartbeat(heartbeat);
    }
    if let Some(keepalived) = keepalived {
        builder.keepalived(keepalived);
    }
    let prepared = Prepared(builder.finish()?);
    // With any key: which it is changes nothing that could be wrong.
    let trial = prepared.clone().with_key(&Key::File(PathBuf::from("/key")));
    match Config::parse_str("import", &trial.text) {
        Ok(_) => Ok(prepared),
        Err(errors) => Err(Failure::Wrong(errors)),
    }
}

/// An import that only lacks its key.
#[derive(Clone, Debug)]
pub struct Prepared(build::Built);

impl Prepared {
    /// Writes the configuration.
    pub fn with_key(self, key: &Key) -> Imported {
        let build::Built {
            mut config,
            mut notes,
        } = self.0;
        let (Key::File(path) | Key::Secret(path, _)) = key;
        config.cluster.key_file = Some(path.clone());
        if let Key::Secret(path, secret) = key {
            notes.push(format!(
                "{} does not exist and could not be made: connections have a secret of their own; \
                 heartbeats and votes need the file: `lockstep keygen` makes it",
                path.display()
            ));
            for resource in &mut config.resources {
                resource.net.shared_secret.get_or_insert(secret.clone());
            }
        } else {
            notes.push(format!(
                "{} is the key of heartbeats, votes and connections: copy it to the other nodes, \
                 readable for root alone",
                path.display()
            ));
        }
        let text = dump::brief(&config);
        Imported { text, notes }
    }
}
