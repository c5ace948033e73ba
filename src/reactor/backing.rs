//! Files as disks: one that is made shorter while it is attached.
//!
//! A block device ends where it ends. A write behind the end of a file makes the file longer
//! instead, with zeroes where data were, and all would look well afterwards. So a file is looked at
//! before it is written to, data or metadata, and one that is shorter than when it was attached has
//! failed as a disk with an I/O error has. The look is a system call of well under a microsecond,
//! and block devices need none. A file that is cut between the look and the write can get longer
//! by that write; the next look finds it.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

/// What there is to know about the end of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Backing {
    /// Bytes of a regular file when it was attached.
    bytes: Option<u64>,
}

impl Backing {
    /// Looks at a disk that is being attached.
    pub fn of(disk: impl AsFd) -> Backing {
        let bytes = file_bytes(disk);
        Backing { bytes }
    }

    /// Whether the file has been made shorter. One that cannot be looked at is left to its I/O.
    pub fn is_shorter(self, disk: impl AsFd) -> bool {
        let now = || file_bytes(disk);
        self.bytes
            .is_some_and(|bytes| now().is_some_and(|now| now < bytes))
    }
}

/// The size of a regular file, as far as this machine knows without asking a file server.
fn file_bytes(disk: impl AsFd) -> Option<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(disk, "", flags, StatxFlags::TYPE | StatxFlags::SIZE).ok()?;
    let kind = FileType::from_raw_mode(u32::from(found.stx_mode));
    (kind == FileType::RegularFile).then_some(found.stx_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_is_noticed_and_one_that_grows_is_fine() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let backing = Backing::of(&file);
        assert!(!backing.is_shorter(&file));
        file.set_len(2 << 20).unwrap();
        assert!(!backing.is_shorter(&file));
        file.set_len((1 << 20) - 1).unwrap();
        assert!(backing.is_shorter(&file));
        file.set_len(1 << 20).unwrap();
        assert!(!backing.is_shorter(&file));
    }

    #[test]
    fn what_is_no_file_has_no_end_to_look_at() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Backing::of(&null).bytes.is_none());
        assert!(!Backing::of(&null).is_shorter(&null));
    }
}
