//! What is on a disk, and who uses it.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde::Serialize;

use super::layout::BLOCK;
use super::recover::ReadAt;
use super::superblock;

/// Somebody who uses a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum User {
    /// A file system on it, or on one of its partitions, is mounted there.
    Mounted(PathBuf),
    /// Another block device is built on it.
    Holder(String),
    /// The kernel swaps to it.
    Swap,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mounted(at) => write!(f, "mounted at {}", at.display()),
            User::Holder(name) => write!(f, "held by {name}"),
            User::Swap => f.write_str("used as swap"),
        }
    }
}

/// A list for messages.
pub(super) fn list(users: &[User]) -> String {
    match users {
        [] => "opened exclusively by another program".into(),
        some => some
            .iter()
            .map(User::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// A value from a block device's directory in sysfs; of the whole disk where a partition has
/// none of its own.
pub(super) fn queue_value(major: u32, minor: u32, name: &str) -> Option<String> {
    let dir = sysfs(major, minor);
    let own = std::fs::read_to_string(dir.join(name));
    let value = own.or_else(|_| std::fs::read_to_string(dir.join("..").join(name)));
    value.ok().map(|v| v.trim().to_string())
}

fn sysfs(major: u32, minor: u32) -> PathBuf {
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // Resolved, so that ".." is the whole disk.
    std::fs::canonicalize(&link).unwrap_or(link)
}

/// Who uses `path`: mounts, devices built on it, swap. Programs that merely opened it are not
/// found.
pub fn users(path: &Path) -> Vec<User> {
    let Ok(stat) = rustix::fs::stat(path) else {
        return Vec::new();
    };
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut users = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => {
            let major = rustix::fs::major(stat.st_rdev);
            block_users(major, rustix::fs::minor(stat.st_rdev))
        }
        FileType::RegularFile => loops_on(path),
        _ => Vec::new(),
    };
    if swaps_to(&swaps, |file| same_file(file, &stat)) {
        users.push(User::Swap);
    }
    users
}

fn swaps_to(swaps: &str, same: impl Fn(&Path) -> bool) -> bool {
    let lines = swaps.lines().skip(1);
    let mut files = lines.filter_map(|l| l.split_ascii_whitespace().next());
    files.any(|f| same(&unescape(f)))
}

fn same_file(path: &Path, stat: &rustix::fs::Stat) -> bool {
    rustix::fs::stat(path).is_ok_and(|other| {
        let block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        if block {
            other.st_rdev == stat.st_rdev
        } else {
            (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino)
        }
    })
}

fn block_users(major: u32, minor: u32) -> Vec<User> {
    let dir = sysfs(major, minor);
    let mut devices = vec![(major, minor)];
    let mut users = holders(&dir);
    // Partitions are directories with a file of that name.
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        let part = entry.path();
        if part.join("partition").exists() {
            users.extend(holders(&part));
            devices.extend(
                std::fs::read_to_string(part.join("dev"))
                    .ok()
                    .and_then(|d| numbers(&d)),
            );
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    users.extend(mounts_of(&mounts, &devices, device_numbers));
    users
}

fn holders(dir: &Path) -> Vec<User> {
    let entries = std::fs::read_dir(dir.join("holders"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|e| User::Holder(format!("/dev/{}", e.file_name().to_string_lossy())))
        .collect()
}

fn loops_on(path: &Path) -> Vec<User> {
    let Ok(path) = std::fs::canonicalize(path) else {
        return Vec::new();
    };
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
    {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file"));
        if file.is_ok_and(|f| Path::new(f.trim_end()) == path) {
            let name = entry.file_name().to_string_lossy().into_owned();
            users.push(User::Holder(format!("/dev/{name}")));
        }
    }
    users
}

fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn device_numbers(path: &Path) -> Option<(u32, u32)> {
    let stat = rustix::fs::stat(path).ok()?;
    let block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    block.then(|| {
        (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        )
    })
}

/// Mount points of `devices`. Some file systems (btrfs) show a device number of their own: for
/// these the source counts.
fn mounts_of(
    mountinfo: &str,
    devices: &[(u32, u32)],
    number_of: impl Fn(&Path) -> Option<(u32, u32)>,
) -> Vec<User> {
    let mut users = Vec::new();
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(at)) = (fields.nth(2), fields.nth(1)) else {
            continue;
        };
        let source = fields.skip_while(|f| *f != "-").nth(2).unwrap_or("");
        let source = source.starts_with("/dev/").then(|| unescape(source));
        let ours = |n: (u32, u32)| devices.contains(&n);
        if numbers(device).is_some_and(ours) || source.and_then(|s| number_of(&s)).is_some_and(ours)
        {
            users.push(User::Mounted(unescape(at)));
        }
    }
    users
}

/// Undoes the octal escapes of the tables in /proc.
fn unescape(field: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(code) if byte == b'\\' => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from(
        String::from_utf8_lossy(&out).into_owned(),
    ))
}

/// Something known that was found on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signature {
    pub name: &'static str,
    /// Where its mark lies, bytes from the start of the disk.
    pub offset: u64,
}

impl Signature {
    /// Our own metadata, which no other tool knows.
    pub fn is_ours(&self) -> bool {
        self.name.starts_with(OURS)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (offset {})", self.name, self.offset)
    }
}

/// A mark at a fixed place; negative offsets count from the end of the disk, rounded down to
/// `unit`.
struct Mark {
    name: &'static str,
    offset: i64,
    unit: u64,
    bytes: &'static [u8],
}

const fn mark(name: &'static str, offset: i64, bytes: &'static [u8]) -> Mark {
    Mark {
        name,
        offset,
        unit: 4096,
        bytes,
    }
}

/// How the names of our own marks begin.
const OURS: &str = "Lockstep metadata";

/// Little-endian marks are written as they lie on disk.
const MARKS: &[Mark] = &[
    mark("ext2/ext3/ext4 file system", 0x438, &[0x53, 0xef]),
    mark("xfs file system", 0, b"XFSB"),
    mark("btrfs file system", 0x10040, b"_BHRfS_M"),
    mark("NTFS file system", 3, b"NTFS    "),
    mark("exFAT file system", 3, b"EXFAT   "),
    mark("FAT file system", 0x36, b"FAT1"),
    mark("FAT file system", 0x52, b"FAT32   "),
    mark("LVM physical volume", 0x218, b"LVM2 001"),
    mark("LVM physical volume", 0x018, b"LVM2 001"),
    mark("LUKS volume", 0, b"LUKS\xba\xbe"),
    mark("swap space", 4086, b"SWAPSPACE2"),
    mark("swap space", 4086, b"SWAP-SPACE"),
    mark("Linux RAID member (1.1)", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    mark("Linux RAID member (1.2)", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    mark("Linux RAID member (1.0)", -8192, &[0xfc, 0x4e, 0x2b, 0xa9]),
    Mark {
        name: "Linux RAID member (0.90)",
        offset: -65536,
        unit: 65536,
        bytes: &[0xfc, 0x4e, 0x2b, 0xa9],
    },
    mark("GPT partition table", 512, b"EFI PART"),
    mark("GPT partition table", 4096, b"EFI PART"),
    // The magic number of DRBD's superblock: 60 bytes of fields come before it in v08, and its
    // last byte is the version.
    mark("DRBD 8 metadata", -4096 + 60, &[0x83, 0x74, 0x02, 0x6b]),
    mark(
        "DRBD 8 metadata (unclean)",
        -4096 + 60,
        &[0x83, 0x74, 0x02, 0x6c],
    ),
    mark("DRBD 9 metadata", -4096 + 60, &[0x83, 0x74, 0x02, 0x6d]),
    mark("DRBD 8 external metadata", 60, &[0x83, 0x74, 0x02, 0x6b]),
    mark(
        "DRBD 8 external metadata (unclean)",
        60,
        &[0x83, 0x74, 0x02, 0x6c],
    ),
    mark("Lockstep metadata", -4096, &superblock::MAGIC),
    mark(
        "Lockstep metadata (second copy)",
        -36864,
        &superblock::MAGIC,
    ),
    mark("Lockstep metadata", 0, &superblock::MAGIC),
    mark("Lockstep metadata (second copy)", 4096, &superblock::MAGIC),
];

/// Looks for everything known on a disk of `bytes` bytes. Errors are errno values.
pub fn signatures(disk: &mut impl ReadAt, bytes: u64) -> Result<Vec<Signature>, i32> {
    let mut found = Vec::new();
    for m in MARKS {
        let base = if m.offset < 0 {
            bytes / m.unit * m.unit
        } else {
            0
        };
        let Some(offset) = base.checked_add_signed(m.offset) else {
            continue;
        };
        if has(disk, bytes, offset, m.bytes)? {
            let name = m.name;
            found.push(Signature { name, offset });
        }
    }
    if let Some(offset) = partition_table(disk, bytes)? {
        let name = "MBR partition table or boot sector";
        found.push(Signature { name, offset });
    }
    if let Some(offset) = zfs_label(disk, bytes)? {
        let name = "ZFS label";
        found.push(Signature { name, offset });
    }
    Ok(found)
}

fn block_of(disk: &mut impl ReadAt, bytes: u64, offset: u64) -> Result<Option<Vec<u8>>, i32> {
    let start = offset / BLOCK * BLOCK;
    if start + BLOCK > bytes {
        return Ok(None);
    }
    let mut block = vec![0; BLOCK as usize];
    disk.read_at(start, &mut block)?;
    Ok(Some(block))
}

fn has(disk: &mut impl ReadAt, bytes: u64, offset: u64, mark: &[u8]) -> Result<bool, i32> {
    let block = block_of(disk, bytes, offset)?;
    let at = (offset % BLOCK) as usize;
    Ok(block.is_some_and(|b| b.get(at..at + mark.len()) == Some(mark)))
}

/// A boot signature with at least one partition entry that makes sense.
fn partition_table(disk: &mut impl ReadAt, bytes: u64) -> Result<Option<u64>, i32> {
    let Some(block) = block_of(disk, bytes, 0)? else {
        return Ok(None);
    };
    let entries = block[446..510].chunks_exact(16);
    let used = entries
        .filter(|e| e[4] != 0 && (e[0] == 0 || e[0] == 0x80))
        .count();
    let signed = block[510..512] == [0x55, 0xaa];
    Ok((signed && used > 0).then_some(510))
}

/// One of the uberblocks of the first two labels, in either byte order.
fn zfs_label(disk: &mut impl ReadAt, bytes: u64) -> Result<Option<u64>, i32> {
    const UBERBLOCK: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();
    let mut swapped = UBERBLOCK;
    swapped.reverse();
    for label in [0, 256 << 10] {
        for slot in 0..32 {
            let offset = label + (128 << 10) + slot * BLOCK;
            let block = block_of(disk, bytes, offset)?.unwrap_or_default();
            // Uberblocks may be 1 KiB apart.
            for at in (0..block.len()).step_by(1024) {
                if block[at..].starts_with(&UBERBLOCK) || block[at..].starts_with(&swapped) {
                    return Ok(Some(offset + at as u64));
                }
            }
        }
    }
    Ok(None)
}
