//! What the agent remembers about the devices that it has: one small file each.
//!
//! The record is written before the device is added and removed after it is deleted, so a device
//! without a record was made by somebody else. The cookie ties the two together: the driver keeps
//! it with the device, so a record that outlived its device never leads to another's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::{NodeId, Term};

/// Version of the file format.
const VERSION: u32 = 1;
/// A record is a few hundred bytes; more than this is none of ours.
const MAX_FILE: u64 = 64 << 10;

/// A device of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    version: u32,
    /// N of `/dev/ublkbN`.
    pub id: u32,
    pub resource: String,
    pub volume: u16,
    term: (u64, u8, u32),
    /// Random; also kept by the driver.
    pub cookie: u64,
}

impl DeviceRecord {
    /// A record for a device that is about to be added under `term`.
    pub fn new(id: u32, resource: &str, volume: u16, term: Term, cookie: u64) -> DeviceRecord {
        DeviceRecord {
            version: VERSION,
            id,
            resource: resource.to_owned(),
            volume,
            term: (term.counter, term.node.0, term.random),
            cookie,
        }
    }

    /// The reign under which the device was added.
    pub fn term(&self) -> Term {
        let (counter, node, random) = self.term;
        Term {
            counter,
            node: NodeId(node),
            random,
        }
    }
}

/// Why a record could not be kept or understood.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is not a device record: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} has version {found}, this program knows version {VERSION}")]
    Version { path: PathBuf, found: u32 },
    #[error("{path} describes device {found}")]
    WrongName { path: PathBuf, found: u32 },
}

/// The folder of the records, in the agent's state directory.
#[derive(Clone, Debug)]
pub struct RecordDir {
    dir: PathBuf,
}

impl RecordDir {
    /// Opens `dir`, which is made where it is missing.
    pub fn open(dir: &Path) -> Result<RecordDir, RecordError> {
        fs::create_dir_all(dir).map_err(|source| io_error("create", dir, source))?;
        Ok(RecordDir {
            dir: dir.to_path_buf(),
        })
    }

    /// Stores a record; durable on return. Replaces an older one of the same device as a whole.
    pub fn write(&self, record: &DeviceRecord) -> Result<(), RecordError> {
        let path = self.path(record.id);
        let draft = path.with_extension("new");
        let text = serde_json::to_vec(record).map_err(|error| RecordError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let written = File::create(&draft).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.map_err(|source| io_error("write", &draft, source))?;
        fs::rename(&draft, &path).map_err(|source| io_error("replace", &path, source))?;
        self.sync()
    }

    /// Forgets a device. Nothing to forget is no error.
    pub fn remove(&self, id: u32) -> Result<(), RecordError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io_error("remove", &path, source)),
        }
    }

    /// All records, by device number; what cannot be understood is reported and left alone.
    pub fn load(&self) -> Result<(Vec<DeviceRecord>, Vec<RecordError>), RecordError> {
        let list = fs::read_dir(&self.dir).map_err(|e| io_error("read", &self.dir, e))?;
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for entry in list {
            let path = entry
                .map_err(|source| io_error("read", &self.dir, source))?
                .path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                match self.read(&path) {
                    Ok(record) => records.push(record),
                    Err(error) => errors.push(error),
                }
            }
        }
        records.sort_by_key(|record| record.id);
        Ok((records, errors))
    }

    fn read(&self, path: &Path) -> Result<DeviceRecord, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let damaged = |reason: serde_json::Error| RecordError::Damaged {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        };
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE).read_to_end(&mut text))
            .map_err(|source| io_error("read", path, source))?;
        let Versioned { version } = serde_json::from_slice(&text).map_err(damaged)?;
        if version != VERSION {
            return Err(RecordError::Version {
                path: path.to_path_buf(),
                found: version,
            });
        }
        let record: DeviceRecord = serde_json::from_slice(&text).map_err(damaged)?;
        if self.path(record.id) != path {
            return Err(RecordError::WrongName {
                path: path.to_path_buf(),
                found: record.id,
            });
        }
        Ok(record)
    }

    fn path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("ublk-{id}.json"))
    }

    fn sync(&self) -> Result<(), RecordError> {
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| io_error("sync", &self.dir, source))
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> RecordError {
    RecordError::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u32) -> DeviceRecord {
        let term = Term {
            counter: 7,
            node: NodeId(1),
            random: 9,
        };
        DeviceRecord::new(id, "r0", 2, term, 0xfeed_beef_0102_0304)
    }

    #[test]
    fn records_come_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let records = RecordDir::open(&dir.path().join("ublk")).unwrap();
        records.write(&record(5)).unwrap();
        records.write(&record(3)).unwrap();
        records.write(&record(3)).unwrap();
        let (found, errors) = records.load().unwrap();
        assert_eq!(found, [record(3), record(5)]);
        assert_eq!(found[0].term(), record(3).term());
        assert!(errors.is_empty());
        records.remove(3).unwrap();
        records.remove(3).unwrap();
        assert_eq!(records.load().unwrap().0, [record(5)]);
    }

    #[test]
    fn damaged_records_are_reported_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let records = RecordDir::open(dir.path()).unwrap();
        records.write(&record(1)).unwrap();
        let good = fs::read(records.path(1)).unwrap();
        fs::write(records.path(2), &good).unwrap();
        fs::write(records.path(3), &good[..good.len() / 2]).unwrap();
        fs::write(records.path(4), br#"{"version":2}"#).unwrap();
        fs::write(records.path(5), b"").unwrap();
        let (found, errors) = records.load().unwrap();
        assert_eq!(found, [record(1)]);
        assert_eq!(errors.len(), 4);
        let is = |check: fn(&RecordError) -> bool| errors.iter().filter(|e| check(e)).count();
        assert_eq!(
            is(|e| matches!(e, RecordError::WrongName { found: 1, .. })),
            1
        );
        assert_eq!(
            is(|e| matches!(e, RecordError::Version { found: 2, .. })),
            1
        );
        assert_eq!(is(|e| matches!(e, RecordError::Damaged { .. })), 2);
        assert!(records.path(4).exists());
    }
}
