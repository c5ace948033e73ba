//! Disks: opened so that nobody else can, and what they can do.
//!
//! The exclusive right lives with the open file description that the I/O uses, and nowhere else:
//! a block device is claimed by `O_EXCL`, a regular file by `flock`. Both end with the last
//! reference to the description, and requests in flight hold one; so a successor gets the disk
//! only when the last write of its predecessor has ended, even after `kill -9`, and passing the
//! descriptor to another process passes the right along. (`fcntl` record locks would belong to
//! the process and end at any close in it.)

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::metadata::Step;
use super::probe::{self, User};
use super::recover::ReadAt;

/// Alignment of buffers for direct I/O: enough for every device.
const ALIGN: usize = 4096;
/// Bytes moved at a time.
const CHUNK: usize = 1 << 20;

/// Why a disk cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is neither a block device nor a regular file")]
    NotADisk { path: PathBuf },
    #[error("{path} is read-only")]
    ReadOnly { path: PathBuf },
    #[error("{path} is in use: {}", probe::list(users))]
    Busy { path: PathBuf, users: Vec<User> },
    #[error("{path} is locked by another process (is the volume attached already?)")]
    Locked { path: PathBuf },
    #[error(
        "the file system of {path} does not support direct I/O; put the file on one that does, \
         such as ext4 or xfs, or use a block device"
    )]
    NoDirectIo { path: PathBuf },
}

/// What kind of disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskKind {
    Block { major: u32, minor: u32 },
    File,
}

/// What a disk can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTraits {
    pub kind: DiskKind,
    pub bytes: u64,
    /// Unit and alignment of direct I/O, bytes.
    pub logical_block: u32,
    /// Completed writes may be lost at power loss until they are flushed. True when unknown.
    pub volatile_cache: bool,
    /// Discard requests are possible.
    pub discard: bool,
    /// Space can be given back by an operation that is defined to read as zeroes afterwards
    /// (hole punching; write-zeroes that unmaps). False when unknown.
    pub discard_zeroes: bool,
    pub rotational: bool,
}

/// How a disk is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Reading and writing, and nobody else.
    Exclusive,
    /// Reading, beside whoever uses it.
    Shared,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    fd: OwnedFd,
    path: PathBuf,
    traits: DiskTraits,
    bounce: Bounce,
}

impl Disk {
    /// Opens `path` for reading and writing with direct I/O, exclusively.
    pub fn open(path: &Path) -> Result<Disk, OpenError> {
        Disk::open_as(path, Access::Exclusive)
    }

    /// Opens `path` for reading only, also when it is in use; for looking at metadata.
    pub fn open_shared(path: &Path) -> Result<Disk, OpenError> {
        Disk::open_as(path, Access::Shared)
    }

    fn open_as(path: &Path, access: Access) -> Result<Disk, OpenError> {
        let stat = rustix::fs::stat(path).map_err(|e| io_error(path, e))?;
        let kind = kind_of(&stat).ok_or_else(|| OpenError::NotADisk {
            path: path.to_path_buf(),
        })?;
        let fd = open_fd(path, kind, access)?;
        if access == Access::Exclusive && kind == DiskKind::File {
            lock_file(path, fd.as_fd())?;
        }
        Disk::examined(fd, path, kind).map_err(|errno| open_error(path, kind, errno))
    }

    /// Takes over a disk that another process has opened with [`Disk::open`]. Where sysfs cannot
    /// be reached, what it would tell counts as unknown.
    pub fn from_fd(fd: OwnedFd) -> Result<Disk, OpenError> {
        // For messages only.
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let path = std::fs::read_link(&path).unwrap_or(path);
        let stat = rustix::fs::fstat(&fd).map_err(|e| io_error(&path, e))?;
        let Some(kind) = kind_of(&stat) else {
            return Err(OpenError::NotADisk { path });
        };
        Disk::examined(fd, &path, kind).map_err(|errno| io_error(&path, errno))
    }

    fn examined(fd: OwnedFd, path: &Path, kind: DiskKind) -> Result<Disk, Errno> {
        let mut bounce = Bounce::new();
        let traits = match kind {
            DiskKind::Block { major, minor } => block_traits(fd.as_fd(), major, minor),
            DiskKind::File => file_traits(fd.as_fd(), &mut bounce),
        }?;
        Ok(Disk {
            fd,
            path: path.to_path_buf(),
            traits,
            bounce,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn traits(&self) -> &DiskTraits {
        &self.traits
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives up the descriptor, with the exclusive right, to whoever does the I/O.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Carries out a plan. Not for attached volumes: their driver does it asynchronously.
    pub fn execute(&mut self, steps: &[Step]) -> Result<(), Errno> {
        for step in steps {
            match step {
                Step::Write { offset, bytes } => self.write_at(*offset, bytes)?,
                Step::Flush => self.flush()?,
            }
        }
        Ok(())
    }

    /// Makes all completed writes durable.
    pub fn flush(&self) -> Result<(), Errno> {
        rustix::fs::fdatasync(&self.fd)
    }

    /// Writes `bytes`; offset and length are multiples of the logical block.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut at = offset;
        for part in bytes.chunks(CHUNK) {
            let buf = self.bounce.get(part.len());
            buf.copy_from_slice(part);
            let mut done = 0;
            while done < buf.len() {
                match rustix::io::pwrite(&self.fd, &buf[done..], at + done as u64)? {
                    0 => return Err(Errno::NOSPC),
                    n => done += n,
                }
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeroes, leaving holes of a file where they are and space allocated
    /// where it was.
    pub fn zero(&mut self, range: std::ops::Range<u64>) -> Result<(), Errno> {
        let mut at = range.start;
        while let Some(start) = self.next_data(at).filter(|start| *start < range.end) {
            let start = start.max(at) / ALIGN as u64 * ALIGN as u64;
            let end = match rustix::fs::seek(&self.fd, SeekFrom::Hole(start)) {
                Ok(hole) if self.traits.kind == DiskKind::File => {
                    hole.next_multiple_of(ALIGN as u64).min(range.end)
                }
                _ => range.end,
            };
            self.zero_data(start, end)?;
            at = end;
        }
        Ok(())
    }

    fn zero_data(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.fd, flags, start, end - start) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                let zeroes = vec![0; CHUNK];
                let mut at = start;
                while at < end {
                    let len = (end - at).min(CHUNK as u64) as usize;
                    self.write_at(at, &zeroes[..len])?;
                    at += len as u64;
                }
                Ok(())
            }
            other => other,
        }
    }
}

impl ReadAt for Disk {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
        let mut at = offset;
        for part in buf.chunks_mut(CHUNK) {
            let bounce = self.bounce.get(part.len());
            read_full(self.fd.as_fd(), at, bounce).map_err(Errno::raw_os_error)?;
            part.copy_from_slice(bounce);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Option<u64> {
        match self.traits.kind {
            DiskKind::Block { .. } => Some(offset),
            DiskKind::File => match rustix::fs::seek(&self.fd, SeekFrom::Data(offset)) {
                Ok(data) => Some(data),
                Err(Errno::NXIO) => None,
                Err(_) => Some(offset),
            },
        }
    }
}

/// An aligned buffer of [`CHUNK`] bytes.
#[derive(Debug)]
struct Bounce {
    raw: Vec<u8>,
    start: usize,
}

impl Bounce {
    fn new() -> Bounce {
        let raw = vec![0; CHUNK + ALIGN];
        let start = raw.as_ptr().align_offset(ALIGN);
        Bounce { raw, start }
    }

    /// The first `len` bytes; `len` is at most [`CHUNK`].
    fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.raw[self.start..self.start + len]
    }
}

fn read_full(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(fd, &mut buf[done..], offset + done as u64)? {
            0 => return Err(Errno::NODATA),
            n => done += n,
        }
    }
    Ok(())
}

fn io_error(path: &Path, errno: Errno) -> OpenError {
    OpenError::Io {
        path: path.to_path_buf(),
        source: errno.into(),
    }
}

/// `None` for what is no disk.
fn kind_of(stat: &rustix::fs::Stat) -> Option<DiskKind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Some(DiskKind::Block {
            major: rustix::fs::major(stat.st_rdev),
            minor: rustix::fs::minor(stat.st_rdev),
        }),
        FileType::RegularFile => Some(DiskKind::File),
        _ => None,
    }
}

fn open_fd(path: &Path, kind: DiskKind, access: Access) -> Result<OwnedFd, OpenError> {
    let mut flags = OFlags::DIRECT | OFlags::CLOEXEC;
    match access {
        Access::Exclusive => flags |= OFlags::RDWR,
        Access::Shared => flags |= OFlags::RDONLY,
    }
    if let DiskKind::Block { major, minor } = kind
        && access == Access::Exclusive
    {
        flags |= OFlags::EXCL;
        if probe::queue_value(major, minor, "ro").as_deref() == Some("1") {
            return Err(open_error(path, kind, Errno::ROFS));
        }
    }
    match rustix::fs::open(path, flags, Mode::empty()) {
        // Only looking: through the page cache where there is no other way.
        Err(Errno::INVAL) if access == Access::Shared => {
            rustix::fs::open(path, flags - OFlags::DIRECT, Mode::empty())
        }
        other => other,
    }
    .map_err(|errno| open_error(path, kind, errno))
}

fn open_error(path: &Path, kind: DiskKind, errno: Errno) -> OpenError {
    let owned = path.to_path_buf();
    match errno {
        Errno::BUSY => OpenError::Busy {
            users: probe::users(path),
            path: owned,
        },
        Errno::ROFS => OpenError::ReadOnly { path: owned },
        Errno::INVAL if kind == DiskKind::File => OpenError::NoDirectIo { path: owned },
        other => io_error(path, other),
    }
}

fn lock_file(path: &Path, fd: BorrowedFd<'_>) -> Result<(), OpenError> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(OpenError::Locked {
                path: path.to_path_buf(),
            });
        }
        Err(errno) => return Err(io_error(path, errno)),
    }
    // Loop devices and swap take no lock.
    let users = probe::users(path);
    if users.is_empty() {
        return Ok(());
    }
    let path = path.to_path_buf();
    Err(OpenError::Busy { path, users })
}

fn block_traits(fd: BorrowedFd<'_>, major: u32, minor: u32) -> Result<DiskTraits, Errno> {
    let queue = |name: &str| probe::queue_value(major, minor, &format!("queue/{name}"));
    let positive = |name: &str| queue(name).is_some_and(|v| v.parse::<u64>().is_ok_and(|n| n > 0));
    Ok(DiskTraits {
        kind: DiskKind::Block { major, minor },
        bytes: rustix::fs::seek(fd, SeekFrom::End(0))?,
        logical_block: rustix::fs::ioctl_blksszget(fd)?,
        volatile_cache: queue("write_cache").as_deref() != Some("write through"),
        discard: positive("discard_max_bytes"),
        discard_zeroes: positive("write_zeroes_unmap_max_bytes"),
        rotational: queue("rotational").as_deref() == Some("1"),
    })
}

fn file_traits(fd: BorrowedFd<'_>, bounce: &mut Bounce) -> Result<DiskTraits, Errno> {
    let bytes = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
    // Punching behind the end changes nothing and tells whether it can be done.
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let end = bytes.next_multiple_of(ALIGN as u64);
    let punch = rustix::fs::fallocate(fd, flags, end, ALIGN as u64);
    let discard = matches!(punch, Ok(()) | Err(Errno::BADF));
    Ok(DiskTraits {
        kind: DiskKind::File,
        bytes,
        logical_block: file_block(fd, bounce)?,
        volatile_cache: true,
        discard,
        discard_zeroes: discard,
        rotational: false,
    })
}

/// Alignment of direct I/O on a file: what the kernel says (6.1 and later), else what works.
fn file_block(fd: BorrowedFd<'_>, bounce: &mut Bounce) -> Result<u32, Errno> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(stat) = stat
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && stat.stx_dio_offset_align != 0
    {
        return Ok(stat.stx_dio_offset_align.max(512));
    }
    for block in [512, 4096] {
        match rustix::io::pread(fd, &mut *bounce.get(block as usize), 0) {
            Ok(_) => return Ok(block),
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::INVAL)
}
