//! Reading a volume's disk at attach: on a thread of its own, because a large bitmap takes time.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::thread;

use rustix::fs::{FileType, SeekFrom, fstat, seek};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::buffers::Region;
use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::store::{Medium, Placement, ReadAt, RecoverError, Recovered, recover};

/// Bytes read at a time.
const READ: usize = 1 << 20;

/// A disk whose metadata has been read.
pub struct OpenedDisk {
    pub data: OwnedFd,
    /// Where the metadata lies: the data device's own open file description, or another device.
    pub meta: OwnedFd,
    pub recovered: Recovered,
}

/// Why a disk cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the agent sent {got} descriptors, {want} are needed")]
    Descriptors { got: usize, want: usize },
    #[error("the disk cannot be examined: {0}")]
    Examine(#[from] io::Error),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error("no thread to read the disk: {0}")]
    Thread(io::Error),
}

impl From<AttachError> for ErrorReply {
    fn from(error: AttachError) -> ErrorReply {
        let help = match &error {
            AttachError::Recover(RecoverError::NoMetadata { .. }) => {
                "`lockstep create-md` makes metadata on a new disk"
            }
            _ => "check the disk and the kernel's log, then `lockstep attach` again",
        };
        ErrorReply::new(ErrorKind::Failed, error, help)
    }
}

/// Reads the metadata of a disk on a thread of its own. `descriptors`: the data device, then the
/// metadata device unless the metadata is internal.
pub async fn open(
    descriptors: Vec<OwnedFd>,
    internal_meta: bool,
) -> Result<OpenedDisk, AttachError> {
    let (give, take) = oneshot::channel();
    let work = move || {
        // The asker may have left.
        let _ = give.send(read(descriptors, internal_meta));
    };
    thread::Builder::new()
        .name("attach".into())
        .spawn(work)
        .map_err(AttachError::Thread)?;
    match take.await {
        Ok(result) => result,
        Err(_) => Err(AttachError::Thread(io::ErrorKind::BrokenPipe.into())),
    }
}

/// Reads the metadata of a disk.
pub fn read(descriptors: Vec<OwnedFd>, internal_meta: bool) -> Result<OpenedDisk, AttachError> {
    let got = descriptors.len();
    let want = if internal_meta { 1 } else { 2 };
    let mut descriptors = descriptors.into_iter();
    let (Some(data), meta, None) = (descriptors.next(), descriptors.next(), descriptors.next())
    else {
        return Err(AttachError::Descriptors { got, want });
    };
    let facts = facts(&data)?;
    let device_bytes = facts.bytes;
    let (placement, meta) = match meta {
        None if internal_meta => (Placement::Internal { device_bytes }, data.try_clone()?),
        Some(meta) if !internal_meta => {
            let meta_bytes = self::facts(&meta)?.bytes;
            let data_bytes = device_bytes;
            let placement = Placement::External {
                data_bytes,
                meta_bytes,
            };
            (placement, meta)
        }
        _ => return Err(AttachError::Descriptors { got, want }),
    };
    let medium = Medium {
        placement,
        logical_block: facts.logical_block,
        volatile_cache: facts.volatile_cache,
    };
    let recovered = recover(&mut Reader::new(meta.try_clone()?)?, &medium)?;
    Ok(OpenedDisk {
        data,
        meta,
        recovered,
    })
}

/// What a descriptor says about its disk.
struct Facts {
    bytes: u64,
    logical_block: u32,
    volatile_cache: bool,
}

fn facts(fd: &OwnedFd) -> io::Result<Facts> {
    let bytes = seek(fd, SeekFrom::End(0))?;
    let status = fstat(fd)?;
    let logical_block = match FileType::from_raw_mode(status.st_mode) {
        FileType::BlockDevice => rustix::fs::ioctl_blksszget(fd)?,
        _ => FILE_BLOCK,
    };
    Ok(Facts {
        bytes,
        logical_block,
        // Nothing that a descriptor says proves the contrary.
        volatile_cache: true,
    })
}

/// Logical block of regular files: what every file system can do O_DIRECT with.
const FILE_BLOCK: u32 = 4096;

/// Reads of the metadata device, through aligned memory.
struct Reader {
    file: File,
    buffer: Region,
}

impl Reader {
    fn new(fd: OwnedFd) -> io::Result<Reader> {
        Ok(Reader {
            file: File::from(fd),
            buffer: Region::new(READ)?,
        })
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())
}

impl ReadAt for Reader {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), i32> {
        let mut offset = offset;
        for piece in out.chunks_mut(READ) {
            let buffer = self.buffer.bytes_mut(piece.len());
            self.file
                .read_exact_at(buffer, offset)
                .map_err(|error| errno_of(&error))?;
            piece.copy_from_slice(buffer);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Option<u64> {
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(found) => Some(found),
            // Nothing but a hole follows.
            Err(Errno::NXIO) => None,
            // A device that cannot tell.
            Err(_) => Some(offset),
        }
    }
}
