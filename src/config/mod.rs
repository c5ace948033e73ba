//! The configuration file: DRBD's grammar plus the sections `cluster` and `failover`.
//!
//! `source` reads files, `lexer` and `parser` make a tree with spans (`syntax`), `read` checks each
//! statement against the words of [`schema`] and makes a draft in the shape of the file, `resolve`
//! applies inheritance and defaults and makes the typed [`Config`] (`cluster` and `failover` are
//! the parts of it that failover needs), `check` finds clashes, and [`dump`] writes it back.
//! [`import`] makes a configuration from the files of others.
//!
//! A `Config` owns all that it says and does not change; the files are read once, by
//! [`Config::load`]. Every fault is a typed [`Diagnostic`] with its place; several are reported in
//! one go. What a version does not implement is refused by name, never ignored.
//!
//! ```
//! let text = r#"
//!     resource r0 {
//!         device /dev/ublkb0;
//!         disk   /dev/vg0/r0;
//!         net { shared-secret "long and random"; }
//!         on alpha { address 10.0.0.1:7789; node-id 0; }
//!         on beta  { address 10.0.0.2:7789; node-id 1; }
//!     }
//! "#;
//! let config = lockstep::config::Config::parse_str("example", text).unwrap();
//! let local = config.resource("r0").unwrap().for_node("alpha").unwrap();
//! assert_eq!(local.peer.name(), "beta");
//! ```

mod after;
mod check;
mod cluster;
mod diagnostic;
pub mod dump;
mod failover;
#[cfg(test)]
mod failover_tests;
pub mod import;
mod lexer;
mod local;
mod model;
mod options;
mod parser;
mod place;
mod read;
mod resolve;
mod schedule;
pub mod schema;
mod source;
mod syntax;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use after::After;
pub use cluster::{
    Arbiter, Cluster, ClusterNode, Facility, FenceCommand, Heartbeat, NodePath, Notify, TimerFault,
    Watchdog, Witness,
};
pub use diagnostic::{AddressFault, DeviceFault, Diagnostic, DiagnosticKind, Severity};
pub use failover::{
    CheckOptions, Control, Failback, Failover, Fsck, LastResort, Monitor, MonitorOptions, Mount,
    Service, Step, StopLadder, Vip,
};
pub use local::{LocalResource, read_key};
pub use model::{
    Config, DataPath, DiskOptions, GlobalOptions, HandlerOptions, Host, MetaDisk, NetOptions,
    Protocol, Resource, Spanned, StartPolicy, Volume,
};
pub use options::{disk_number, size_in_bytes};
pub use place::{MAX_MINOR, MAX_SOCKET_PATH};
pub use read::MAX_NODE_ID;
pub use schedule::Schedule;
pub use schema::VERIFY_ALGS;
pub use source::{Location, Span};

use diagnostic::MAX_MESSAGES;
use source::SourceMap;
use syntax::Item;

/// Our own file.
const OWN_FILE: &str = "/etc/lockstep/lockstep.conf";
/// The file of a DRBD installation, read if there is none of our own.
const DRBD_FILE: &str = "/etc/drbd.conf";

/// The file that is read when none is given.
pub fn default_path() -> Result<PathBuf, Diagnostic> {
    first_existing([Path::new(OWN_FILE), Path::new(DRBD_FILE)])
}

fn first_existing([own, other]: [&Path; 2]) -> Result<PathBuf, Diagnostic> {
    // A file that is there but cannot be read must not be passed over for the other.
    let there = |path: &&Path| path.symlink_metadata().is_ok();
    match [own, other].into_iter().find(there) {
        Some(path) => Ok(path.to_owned()),
        None => Err(Diagnostic::new(DiagnosticKind::NoFile(
            own.display().to_string(),
            other.display().to_string(),
        ))),
    }
}

impl Config {
    /// Reads a file and all that it includes. Errors are in the order of the files; warnings are
    /// in [`Config::warnings`] of a configuration that can be used.
    pub fn load(path: &Path) -> Result<Config, Vec<Diagnostic>> {
        let mut sources = SourceMap::new();
        let mut notes = Vec::new();
        let items = parser::parse_file(&mut sources, path, &mut notes);
        Config::from_tree(sources, &items, notes)
    }

    /// Reads a text; `name` stands for the file in messages, and includes are relative to its
    /// folder.
    pub fn parse_str(name: &str, text: &str) -> Result<Config, Vec<Diagnostic>> {
        let mut sources = SourceMap::new();
        let mut notes = Vec::new();
        let file = sources.add(name, text.to_owned());
        let items = parser::parse_text(&mut sources, file, Path::new(name), &mut notes);
        Config::from_tree(sources, &items, notes)
    }

    fn from_tree(
        sources: SourceMap,
        items: &[Item],
        mut notes: Vec<Diagnostic>,
    ) -> Result<Config, Vec<Diagnostic>> {
        // With its structure broken, most of what could be said of a file would be wrong.
        if !notes.is_empty() {
            notes.truncate(MAX_MESSAGES);
            return Err(notes);
        }
        let draft = read::read(&sources, items, &mut notes);
        let mut config = resolve::resolve(sources, draft, &mut notes);
        notes.extend(check::clashes(&config));
        // These look at how sections fit together: with one refused they would mislead.
        if notes.is_empty() {
            notes.extend(check::failover(&config));
        }
        notes.extend(after::faults(&config));
        if !notes.is_empty() {
            notes.truncate(MAX_MESSAGES);
            return Err(notes);
        }
        let unauthenticated = check::unauthenticated(&config);
        config.warnings.extend(unauthenticated);
        let manual = check::manual(&config);
        config.warnings.extend(manual);
        Ok(config)
    }
}
