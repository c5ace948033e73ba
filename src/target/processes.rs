//! The processes of this machine, as far as they can be seen from here: who has something open.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A process that is not this one.
pub struct Process {
    pub pid: u32,
    folder: PathBuf,
    /// The first that was seen of another mount namespace.
    elsewhere: bool,
}

/// All processes but this one.
pub fn processes() -> impl Iterator<Item = Process> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen = BTreeSet::from([namespace("self")]);
    let pids = names_in(Path::new("/proc")).filter_map(|name| name.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .map(move |pid| Process {
            pid,
            folder: PathBuf::from(format!("/proc/{pid}")),
            elsewhere: seen.insert(namespace(&pid.to_string())),
        })
}

impl Process {
    /// What its descriptors name, by the text of the links alone: looking through one could wait
    /// for a hanging file system.
    pub fn opened(&self) -> impl Iterator<Item = String> {
        let folder = self.folder.join("fd");
        names_in(&folder).filter_map(move |name| {
            let target = fs::read_link(folder.join(name)).ok()?;
            Some(target.to_string_lossy().into_owned())
        })
    }

    /// The mount table of another namespace that nobody has looked at yet.
    pub fn other_mounts(&self) -> Option<PathBuf> {
        self.elsewhere.then(|| self.folder.join("mountinfo"))
    }
}

/// The name of a process; empty when it has ended, or lives where it cannot be seen.
pub fn command(pid: u32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    command.trim().to_owned()
}

/// A process in a message: `fio (1234)`.
pub fn name(pid: u32) -> String {
    match command(pid).as_str() {
        "" => format!("process {pid}"),
        command => format!("{command} ({pid})"),
    }
}

/// The names in a folder; none where it cannot be read.
pub fn names_in(folder: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen_with_what_it_has_open() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("input");
        fs::write(&path, "").expect("writes");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(fs::File::open(&path).expect("opens"))
            .spawn()
            .expect("starts");
        let found = processes().find(|process| process.pid == child.id());
        let opened = found.map(|process| process.opened().any(|name| Path::new(&name) == path));
        let named = name(child.id());
        child.kill().expect("ends");
        child.wait().expect("ends");
        assert_eq!(opened, Some(true));
        assert!(named.ends_with(&format!("({})", child.id())), "{named}");
        assert!(processes().all(|process| process.pid != std::process::id()));
        assert_eq!(name(u32::MAX), format!("process {}", u32::MAX));
    }
}
