//! Who has a ublk block device open, as far as this process can see.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::target::processes::{self, names_in, processes};

/// Enough for a message; a machine with more users than this has been understood.
const MAX_USERS: usize = 32;

/// Somebody who has the device or a partition of it open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceUser {
    /// Mounted where this process sees it.
    Mount { path: PathBuf },
    /// Mounted in the mount namespace of this process, at a path seen from there.
    OtherNamespace { pid: u32, path: PathBuf },
    /// Swap space.
    Swap,
    /// A device on top: device-mapper, md.
    Holder { name: String },
    /// A process with an open descriptor.
    Process { pid: u32, command: String },
}

impl fmt::Display for DeviceUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceUser::Mount { path } => write!(f, "mounted on {}", path.display()),
            DeviceUser::OtherNamespace { pid, path } => {
                let path = path.display();
                write!(
                    f,
                    "mounted on {path} in the mount namespace of process {pid}"
                )
            }
            DeviceUser::Swap => f.write_str("used as swap"),
            DeviceUser::Holder { name } => write!(f, "held by {name}"),
            DeviceUser::Process { pid, command } => write!(f, "opened by {command} ({pid})"),
        }
    }
}

/// `: a, b` for messages; nothing for nobody.
pub(super) fn list(users: &[DeviceUser]) -> String {
    let text: Vec<String> = users.iter().map(DeviceUser::to_string).collect();
    match text.is_empty() {
        true => String::new(),
        false => format!(": {}", text.join(", ")),
    }
}

/// A block device and its partitions, recognisable after the nodes are gone.
#[derive(Clone, Debug)]
pub(super) struct BlockNames {
    id: u32,
    /// `major:minor` of the disk and its partitions.
    numbers: BTreeSet<String>,
}

impl BlockNames {
    /// Takes down the numbers of `/dev/ublkbN` while it exists.
    pub(super) fn of(id: u32) -> BlockNames {
        let disk = disk_folder(id);
        let numbers = [disk.clone()]
            .into_iter()
            .chain(partitions(&disk, id))
            .filter_map(|folder| fs::read_to_string(folder.join("dev")).ok())
            .map(|number| number.trim().to_owned())
            .collect();
        BlockNames { id, numbers }
    }

    /// Mount points in this namespace, the newest first: the order in which they can be undone.
    pub(super) fn mounts(&self) -> Vec<PathBuf> {
        let mut mounts = self.mounts_in(Path::new("/proc/self/mountinfo"));
        mounts.reverse();
        mounts
    }

    fn mounts_in(&self, file: &Path) -> Vec<PathBuf> {
        // Lossless where it matters: the table escapes only white space and backslashes.
        let table = fs::read(file).unwrap_or_default();
        let lines = table.split(|&byte| byte == b'\n');
        lines.filter_map(|line| self.mount_point(line)).collect()
    }

    /// The mount point of a line of mountinfo that is about this device.
    fn mount_point(&self, line: &[u8]) -> Option<PathBuf> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let number = std::str::from_utf8(fields.get(2)?).ok()?;
        // Optional fields end with a dash; type and source follow.
        let dash = fields.iter().position(|field| field == b"-")?;
        let source = std::str::from_utf8(fields.get(dash + 2)?).unwrap_or_default();
        if self.numbers.contains(number) || self.is_node(source) {
            Some(PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))))
        } else {
            None
        }
    }

    /// Whether a path names the device or a partition, also as the kernel shows a removed node.
    fn is_node(&self, path: &str) -> bool {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let name = path.rsplit('/').next().unwrap_or_default();
        path.starts_with('/') && is_disk_or_partition(name, self.id)
    }

    /// Everybody who can be found.
    pub(super) fn users(&self) -> Vec<DeviceUser> {
        let mut users = self.kernel_users();
        for process in processes() {
            if process.opened().any(|path| self.is_node(&path)) {
                users.push(DeviceUser::Process {
                    pid: process.pid,
                    command: processes::command(process.pid),
                });
            }
            let pid = process.pid;
            let mounts = process.other_mounts().map(|table| self.mounts_in(&table));
            let others = mounts.into_iter().flatten();
            users.extend(others.map(|path| DeviceUser::OtherNamespace { pid, path }));
            if users.len() >= MAX_USERS {
                break;
            }
        }
        users.truncate(MAX_USERS);
        users
    }

    /// Users that are no process: mounts in this namespace, swap, devices on top.
    fn kernel_users(&self) -> Vec<DeviceUser> {
        let mounts = self.mounts();
        let mut users: Vec<DeviceUser> = mounts
            .into_iter()
            .map(|path| DeviceUser::Mount { path })
            .collect();
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        if swaps.lines().any(|line| {
            line.split(' ')
                .next()
                .is_some_and(|path| self.is_node(path))
        }) {
            users.push(DeviceUser::Swap);
        }
        let disk = disk_folder(self.id);
        for folder in [disk.clone()].into_iter().chain(partitions(&disk, self.id)) {
            users.extend(names_in(&folder.join("holders")).map(|name| DeviceUser::Holder { name }));
        }
        users
    }
}

/// Everybody who has `/dev/ublkbN` or a partition of it open, as far as it can be seen from here.
pub fn device_users(id: u32) -> Vec<DeviceUser> {
    BlockNames::of(id).users()
}

/// Those of the devices that somebody has open, as far as it can be seen from here. All processes
/// are looked at once, and not at all when the kernel alone tells.
pub fn devices_in_use(ids: &[u32]) -> BTreeSet<u32> {
    let mut used = BTreeSet::new();
    let names = ids.iter().map(|id| BlockNames::of(*id));
    let (taken, mut free): (Vec<_>, Vec<_>) = names.partition(|n| !n.kernel_users().is_empty());
    used.extend(taken.iter().map(|names| names.id));
    let mut processes = processes();
    while !free.is_empty()
        && let Some(process) = processes.next()
    {
        let mut found = BTreeSet::new();
        for path in process.opened().filter(|path| path.starts_with('/')) {
            found.extend(free.iter().filter(|n| n.is_node(&path)).map(|n| n.id));
        }
        if let Some(table) = process.other_mounts() {
            let mounted = free.iter().filter(|n| !n.mounts_in(&table).is_empty());
            found.extend(mounted.map(|names| names.id));
        }
        free.retain(|names| !found.contains(&names.id));
        used.extend(found);
    }
    used
}

fn disk_folder(id: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/ublkb{id}"))
}

fn partitions(disk: &Path, id: u32) -> impl Iterator<Item = PathBuf> {
    names_in(disk)
        .filter(move |name| is_disk_or_partition(name, id))
        .map(|name| disk.join(name))
}

/// `ublkb3` or `ublkb3p1`, but not `ublkb31`.
fn is_disk_or_partition(name: &str, id: u32) -> bool {
    let Some(rest) = name.strip_prefix(&format!("ublkb{id}")) else {
        return false;
    };
    match rest.strip_prefix('p') {
        Some(number) => !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()),
        None => rest.is_empty(),
    }
}

/// Undoes the `\040` escapes of mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> BlockNames {
        BlockNames {
            id: 3,
            numbers: BTreeSet::from(["259:7".to_owned()]),
        }
    }

    #[test]
    fn nodes_are_recognised() {
        let names = names();
        for path in [
            "/dev/ublkb3",
            "/dev/ublkb3p12",
            "/ublkb3",
            "/dev/ublkb3 (deleted)",
        ] {
            assert!(names.is_node(path), "{path}");
        }
        for path in [
            "/dev/ublkb31",
            "/dev/ublkb3px",
            "/dev/ublkc3",
            "ublkb3",
            "/dev/ublkb3p",
        ] {
            assert!(!names.is_node(path), "{path}");
        }
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source() {
        let names = names();
        let line = |text: &str| names.mount_point(text.as_bytes());
        assert_eq!(
            line(r"36 35 259:7 / /srv/my\040data rw,noatime shared:1 - ext4 /dev/root rw"),
            Some(PathBuf::from("/srv/my data"))
        );
        assert_eq!(
            line("36 35 0:55 / /b rw - btrfs /dev/ublkb3p1 rw"),
            Some(PathBuf::from("/b"))
        );
        assert_eq!(line("36 35 259:8 / /c rw - ext4 /dev/ublkb4 rw"), None);
        assert_eq!(line(""), None);
        assert_eq!(line("36 35 259:7 / /c rw"), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(br"a\134b\011\0"), b"a\\b\t\\0");
        assert_eq!(unescape(br"\777"), br"\777");
    }

    #[test]
    fn a_device_that_does_not_exist_has_no_users() {
        assert!(device_users(4_000_000).is_empty());
        assert!(devices_in_use(&[4_000_000, 4_000_001]).is_empty());
        assert!(devices_in_use(&[]).is_empty());
    }
}
