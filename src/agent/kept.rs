//! What outlives the processes of a resource: the result of the last verify, the totals of the
//! last sync, and which scheduled time was seen to. One file per resource in the state directory.
//!
//! It is for people: nothing about the data rests on it, so a file that cannot be read is no more
//! than a line in the log. It is written as a whole, on a thread of its own, and replaces the one
//! before when it is durable.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::channel::blocking;
use super::protocol::{Finished, Run};
use super::view::{PeerDeviceView, ResourceView, VerifyView};

/// Version of the file format.
const VERSION: u32 = 1;
/// Some thousand ranges for each of some volumes.
const MAX_FILE: u64 = 64 << 20;

/// The last verify of a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct VerifyRecord {
    pub ended: Timestamp,
    pub algorithm: String,
    pub compared_kib: u64,
    pub seconds: f64,
    /// As `status` shows it.
    pub result: VerifyView,
}

/// The last sync of a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct SyncRecord {
    pub ended: Timestamp,
    pub copied_kib: u64,
    pub equal_kib: u64,
    pub seconds: f64,
    pub rate_kib_s: u64,
}

/// What is kept about a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct VolumeRecord {
    pub verify: Option<VerifyRecord>,
    pub sync: Option<SyncRecord>,
}

/// The contents of a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Record {
    version: u32,
    /// The node that the volumes were compared with.
    peer: String,
    volumes: BTreeMap<u16, VolumeRecord>,
    scheduled: Option<Timestamp>,
}

/// See the module's description.
pub struct Kept {
    path: PathBuf,
    record: RefCell<Record>,
    /// Volumes about which the data plane has told an end; its next picture has the rest.
    ended: RefCell<BTreeMap<u16, Finished>>,
    /// It has changed since it was last written, and somebody writes.
    changed: Cell<bool>,
    writing: Cell<bool>,
}

impl Kept {
    /// What is known about a resource that is compared with `peer`.
    pub fn load(dir: &Path, resource: &str, peer: &str) -> Rc<Kept> {
        let path = dir.join(format!("{resource}.json"));
        let record = match read(&path) {
            Ok(record) => record.filter(|record| record.peer == peer),
            Err(error) => {
                warn!(path = %path.display(), %error, "kept results cannot be read");
                None
            }
        };
        let blank = || Record {
            version: VERSION,
            peer: peer.to_owned(),
            ..Record::default()
        };
        Rc::new(Kept {
            path,
            record: RefCell::new(record.unwrap_or_else(blank)),
            ended: RefCell::default(),
            changed: Cell::new(false),
            writing: Cell::new(false),
        })
    }

    pub fn volume(&self, volume: u16) -> VolumeRecord {
        let record = self.record.borrow();
        record.volumes.get(&volume).cloned().unwrap_or_default()
    }

    /// The scheduled time of a verify that was last seen to.
    pub fn scheduled(&self) -> Option<Timestamp> {
        self.record.borrow().scheduled
    }

    pub fn set_scheduled(self: &Rc<Kept>, at: Timestamp) {
        self.record.borrow_mut().scheduled = Some(at);
        self.save();
    }

    /// Something has ended; the next picture is the one after it.
    pub fn ended(&self, of: &Finished) {
        self.ended.borrow_mut().insert(of.volume, of.clone());
    }

    /// A picture of the data plane: what has ended before it is kept. `algorithm` is what a verify
    /// compares with.
    pub fn pictured(self: &Rc<Kept>, view: &ResourceView, now: Timestamp, algorithm: &str) {
        let ended = std::mem::take(&mut *self.ended.borrow_mut());
        if ended.is_empty() {
            return;
        }
        for of in ended.values() {
            let Some(peer) = view.peer_device(of.volume) else {
                continue;
            };
            let mut record = self.record.borrow_mut();
            let entry = record.volumes.entry(of.volume).or_default();
            match of.run {
                Run::Verify { compared, .. } => {
                    entry.verify = Some(VerifyRecord {
                        ended: now,
                        algorithm: algorithm.to_owned(),
                        compared_kib: compared,
                        seconds: of.seconds,
                        result: peer.verify.clone(),
                    });
                }
                Run::Repair { .. } => entry.refresh(peer),
                Run::Resync { copied, equal } => {
                    entry.sync = Some(SyncRecord {
                        ended: now,
                        copied_kib: copied,
                        equal_kib: equal,
                        seconds: of.seconds,
                        rate_kib_s: of.rate_kib_s,
                    });
                    let size = view.size(of.volume);
                    entry.refresh(peer);
                    entry.synced(size > 0 && copied + equal >= size);
                }
            }
        }
        self.save();
    }

    /// The data plane died: a verify that it ran has come no further.
    pub fn broken_off(self: &Rc<Kept>, view: &ResourceView, now: Timestamp, algorithm: &str) {
        let peers = view.connections.iter().flat_map(|link| &link.peer_devices);
        let running: Vec<&PeerDeviceView> = peers
            .filter(|peer| peer.verify.state == "running")
            .collect();
        for peer in &running {
            let mut result = peer.verify.clone();
            "stopped".clone_into(&mut result.state);
            let mut record = self.record.borrow_mut();
            let entry = record.volumes.entry(peer.volume).or_default();
            entry.verify = Some(VerifyRecord {
                ended: now,
                algorithm: algorithm.to_owned(),
                compared_kib: peer.done_kib.unwrap_or_default(),
                seconds: 0.0,
                result,
            });
        }
        if !running.is_empty() {
            self.save();
        }
    }

    /// Adds what is kept to a picture: everything where the data plane knows of no verify, else
    /// what only this file says.
    pub fn complete(&self, view: &mut ResourceView) {
        let record = self.record.borrow();
        let peers = { view.connections.iter_mut() }.flat_map(|link| &mut link.peer_devices);
        for peer in peers {
            let entry = record.volumes.get(&peer.volume);
            let Some(verify) = entry.and_then(|entry| entry.verify.as_ref()) else {
                continue;
            };
            match peer.verify.state.as_str() {
                "" | "idle" => peer.verify = verify.result.clone(),
                "running" => continue,
                _ => {}
            }
            peer.verify.ended = Some(verify.ended.to_string());
            peer.verify.algorithm = Some(verify.algorithm.clone());
            peer.verify.compared_kib = Some(verify.compared_kib);
        }
    }

    /// Writes the file on a thread, again if something changes meanwhile.
    fn save(self: &Rc<Kept>) {
        self.changed.set(true);
        if self.writing.replace(true) {
            return;
        }
        let kept = Rc::clone(self);
        tokio_uring::spawn(async move {
            while kept.changed.replace(false) {
                let (path, record) = (kept.path.clone(), kept.record.borrow().clone());
                let written = blocking(move || write(&path, &record)).await;
                if let Some(Err(error)) = written {
                    warn!(path = %kept.path.display(), %error, "result cannot be kept");
                }
            }
            kept.writing.set(false);
        });
    }
}

impl VolumeRecord {
    /// What the data plane still knows of the verify that is kept.
    fn refresh(&mut self, peer: &PeerDeviceView) {
        let known = matches!(peer.verify.state.as_str(), "done" | "stopped");
        if let (Some(verify), true) = (&mut self.verify, known) {
            verify.result = peer.verify.clone();
        }
    }

    /// After a sync of everything nothing of what was found is left.
    fn synced(&mut self, all: bool) {
        if let (Some(verify), true) = (&mut self.verify, all) {
            verify.result.found_kib = 0;
            verify
                .result
                .more
                .insert("ranges".to_owned(), Vec::<u8>::new().into());
        }
    }
}

/// None if there is no file.
fn read(path: &Path) -> io::Result<Option<Record>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    let record: Record = serde_json::from_slice(&text)?;
    match record.version {
        VERSION => Ok(Some(record)),
        other => Err(io::Error::other(format!("version {other}, not {VERSION}"))),
    }
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::view::{ConnectionView, DeviceView};
    use serde_json::json;

    fn record() -> Record {
        let mut result = VerifyView {
            state: "done".to_owned(),
            at: 65_536,
            found_kib: 8,
            ..VerifyView::default()
        };
        let ranges = json!([{ "start": 4, "length": 8 }]);
        result.more.insert("ranges".to_owned(), ranges);
        let verify = VerifyRecord {
            ended: "2026-11-29T02:00:07Z".parse().expect("a time"),
            algorithm: "xxh3".to_owned(),
            compared_kib: 65_536,
            seconds: 7.0,
            result,
        };
        let volume = VolumeRecord {
            verify: Some(verify),
            sync: None,
        };
        Record {
            version: VERSION,
            peer: "beta".to_owned(),
            volumes: [(0, volume)].into(),
            scheduled: None,
        }
    }

    fn view(state: &str) -> ResourceView {
        ResourceView {
            devices: vec![DeviceView::default()],
            connections: vec![ConnectionView {
                peer_devices: vec![PeerDeviceView {
                    verify: VerifyView {
                        state: state.to_owned(),
                        found_kib: 1,
                        ..VerifyView::default()
                    },
                    ..PeerDeviceView::default()
                }],
                ..ConnectionView::default()
            }],
            ..ResourceView::default()
        }
    }

    #[test]
    fn a_result_comes_back_as_written_and_only_for_the_same_peer() {
        let dir = tempfile::tempdir().expect("dir");
        write(&dir.path().join("r0.json"), &record()).expect("writes");
        let kept = Kept::load(dir.path(), "r0", "beta");
        assert_eq!(*kept.record.borrow(), record());
        assert_eq!(
            Kept::load(dir.path(), "r0", "gamma").volume(0),
            VolumeRecord::default()
        );
        assert_eq!(
            Kept::load(dir.path(), "r1", "beta").volume(0),
            VolumeRecord::default()
        );
        for bad in ["", "{}", r#"{"version":2,"peer":"beta","volumes":{}}"#] {
            fs::write(dir.path().join("r0.json"), bad).expect("writes");
            assert_eq!(
                Kept::load(dir.path(), "r0", "beta").volume(0),
                VolumeRecord::default()
            );
        }
    }

    #[test]
    fn what_is_kept_shows_until_the_data_plane_knows_better() {
        let dir = tempfile::tempdir().expect("dir");
        write(&dir.path().join("r0.json"), &record()).expect("writes");
        let kept = Kept::load(dir.path(), "r0", "beta");
        let shown = |state: &str| {
            let mut view = view(state);
            kept.complete(&mut view);
            view.connections.remove(0).peer_devices.remove(0).verify
        };
        for state in ["idle", ""] {
            let verify = shown(state);
            assert_eq!((verify.state.as_str(), verify.found_kib), ("done", 8));
            assert_eq!(verify.more["ranges"][0]["start"], 4);
            assert_eq!(verify.ended.as_deref(), Some("2026-11-29T02:00:07Z"));
            assert_eq!(verify.algorithm.as_deref(), Some("xxh3"));
        }
        let verify = shown("running");
        assert_eq!((verify.found_kib, verify.ended), (1, None));
        let verify = shown("done");
        assert_eq!((verify.found_kib, verify.compared_kib), (1, Some(65_536)));
    }

    #[test]
    fn a_sync_of_everything_leaves_nothing_of_what_was_found() {
        let mut entry = record().volumes.remove(&0).expect("there");
        entry.synced(false);
        assert_eq!(entry, record().volumes[&0]);
        entry.synced(true);
        let verify = entry.verify.expect("kept");
        assert_eq!((verify.result.found_kib, verify.compared_kib), (0, 65_536));
        assert_eq!(verify.result.more["ranges"], json!([]));
    }
}
