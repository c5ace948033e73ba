//! Queue settings of a started device, written by the agent: only it may touch sysfs.
//!
//! To make a setting the kernel freezes the queue: nothing new gets in, and what is in must end
//! first. The server of the device is told before, so that it keeps nothing back meanwhile; what
//! it does then is described where it holds requests (`reactor::fronts`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a queue setting could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    #[error("cannot write {value} to {path}: {source}")]
    Write {
        path: PathBuf,
        value: &'static str,
        source: io::Error,
    },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// The kernel took the write and has something else.
    #[error("{path} is {found} after writing {value} to it")]
    NotTaken {
        path: PathBuf,
        value: &'static str,
        found: String,
    },
}

/// Every setting and its value.
const SETTINGS: [(&str, &str); 2] = [("scheduler", "none"), ("stable_writes", "1")];

/// Whether `/dev/ublkbN` has its settings already, as after a recovery.
pub fn queue_settings_in_force(id: u32) -> bool {
    in_force(Path::new("/sys/block"), id)
}

fn in_force(block: &Path, id: u32) -> bool {
    let queue = block.join(format!("ublkb{id}/queue"));
    SETTINGS
        .iter()
        .all(|(file, value)| is_set(&queue.join(file), value))
}

fn is_set(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| chosen(&text) == value)
}

/// Gives `/dev/ublkbN` the settings that it must have before data is taken, and reads them back:
/// no I/O scheduler (it costs more than half the speed), and stable pages (data must not change
/// while it is on its way to two disks). Needed after every start; a recovery keeps them.
pub fn apply_queue_settings(id: u32) -> Result<(), SysfsError> {
    apply_in(Path::new("/sys/block"), id)
}

fn apply_in(block: &Path, id: u32) -> Result<(), SysfsError> {
    let queue = block.join(format!("ublkb{id}/queue"));
    SETTINGS
        .iter()
        .try_for_each(|(file, value)| set(&queue.join(file), value))
}

/// A value that is in force is not written again: a write waits until the queue is empty, and
/// after a recovery the queue holds requests that wait for this very confirmation.
fn set(path: &Path, value: &'static str) -> Result<(), SysfsError> {
    let path = path.to_path_buf();
    if is_set(&path, value) {
        return Ok(());
    }
    if let Err(source) = fs::write(&path, value) {
        return Err(SysfsError::Write {
            path,
            value,
            source,
        });
    }
    match fs::read_to_string(&path) {
        Ok(text) if chosen(&text) == value => Ok(()),
        Ok(text) => Err(SysfsError::NotTaken {
            found: chosen(&text).to_owned(),
            path,
            value,
        }),
        Err(source) => Err(SysfsError::Read { path, source }),
    }
}

/// The value in force: the word in brackets where the file lists the choices.
fn chosen(text: &str) -> &str {
    let bracketed = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    match bracketed {
        Some((value, _)) => value,
        None => text.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_value_is_read() {
        assert_eq!(chosen("[none] mq-deadline\n"), "none");
        assert_eq!(chosen("none [mq-deadline] \n"), "mq-deadline");
        assert_eq!(chosen("1\n"), "1");
    }

    #[test]
    fn settings_are_confirmed() {
        let block = tempfile::tempdir().unwrap();
        assert!(matches!(
            apply_in(block.path(), 4),
            Err(SysfsError::Write { .. })
        ));
        let queue = block.path().join("ublkb4/queue");
        fs::create_dir_all(&queue).unwrap();
        fs::write(queue.join("scheduler"), "none [mq-deadline]\n").unwrap();
        assert!(!in_force(block.path(), 4));
        apply_in(block.path(), 4).unwrap();
        assert!(in_force(block.path(), 4));
        assert_eq!(fs::read(queue.join("stable_writes")).unwrap(), b"1");
        // What is in force already, as the kernel shows it, is not written again.
        for (file, text) in [
            ("scheduler", "[none] mq-deadline\n"),
            ("stable_writes", "1\n"),
        ] {
            fs::write(queue.join(file), text).unwrap();
            apply_in(block.path(), 4).unwrap();
            assert_eq!(fs::read_to_string(queue.join(file)).unwrap(), text);
        }
        // A file that takes every write and reads back as nothing.
        fs::remove_file(queue.join("scheduler")).unwrap();
        std::os::unix::fs::symlink("/dev/null", queue.join("scheduler")).unwrap();
        assert!(matches!(
            apply_in(block.path(), 4),
            Err(SysfsError::NotTaken { .. })
        ));
    }
}
