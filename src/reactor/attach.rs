//! Reading a volume's disk at attach: on a thread of its own, because a large bitmap takes time.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use tokio::sync::oneshot;

use crate::agent::protocol::{ErrorKind, ErrorReply, ServeVolume};
use crate::store::device::{Disk, OpenError};
use crate::store::{Medium, Placement, RecoverError, Recovered, recover};

/// Where a volume's metadata is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaPlace {
    Internal,
    External,
    /// On an index of another device.
    Indexed,
}

impl From<&ServeVolume> for MetaPlace {
    fn from(volume: &ServeVolume) -> MetaPlace {
        match (volume.internal_meta, volume.indexed_meta) {
            (true, _) => MetaPlace::Internal,
            (false, true) => MetaPlace::Indexed,
            (false, false) => MetaPlace::External,
        }
    }
}

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
    #[error(transparent)]
    Disk(#[from] OpenError),
    #[error("no descriptor for the metadata: {0}")]
    Duplicate(io::Error),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error("the disk cannot be flushed: {0}")]
    Flush(io::Error),
    #[error("no thread to read the disk: {0}")]
    Thread(io::Error),
    #[error("the disk carries metadata of node {found}, this is node {own}")]
    OtherNode { found: u8, own: u8 },
}

impl From<AttachError> for ErrorReply {
    fn from(error: AttachError) -> ErrorReply {
        let (kind, help) = match &error {
            AttachError::Recover(error) => {
                let kind = match error.is_failure() {
                    true => ErrorKind::Failed,
                    false => ErrorKind::Refused,
                };
                (kind, error.help().to_owned())
            }
            AttachError::OtherNode { found, .. } => (
                ErrorKind::Refused,
                format!(
                    "if another node's disk was named by mistake, name this node's own. Ids that \
                     the configuration leaves out follow from the addresses: if these were \
                     changed, write `node-id {found};` in the `on` section of this node, and the \
                     other id in that of the peer"
                ),
            ),
            _ => (
                ErrorKind::Failed,
                "check the disk and the kernel's log, then `lockstep attach` again".to_owned(),
            ),
        };
        ErrorReply::new(kind, error, help)
    }
}

/// Reads the metadata of a disk on a thread of its own. `descriptors`: the data device, then the
/// metadata device unless the metadata is internal.
pub async fn open(descriptors: Vec<OwnedFd>, place: MetaPlace) -> Result<OpenedDisk, AttachError> {
    let (give, take) = oneshot::channel();
    let work = move || {
        // The asker may have left.
        let _ = give.send(read(descriptors, place));
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

/// What a predecessor that was killed has left in the disk's cache becomes durable before anything
/// rests on it: the next write of the superblock goes over the older copy, which may be the only
/// one that a power loss would leave.
fn settle(metadata: &Disk) -> Result<(), AttachError> {
    metadata
        .flush()
        .map_err(|errno| AttachError::Flush(errno.into()))
}

/// Reads the metadata of a disk.
fn read(descriptors: Vec<OwnedFd>, place: MetaPlace) -> Result<OpenedDisk, AttachError> {
    let got = descriptors.len();
    let internal = place == MetaPlace::Internal;
    let want = if internal { 1 } else { 2 };
    if got != want {
        return Err(AttachError::Descriptors { got, want });
    }
    let mut disks = descriptors.into_iter().map(Disk::from_fd);
    let mut next = || {
        let missing = AttachError::Descriptors { got, want };
        disks.next().ok_or(missing)?.map_err(AttachError::from)
    };
    let mut data = next()?;
    let traits = *data.traits();
    let medium = |placement| Medium {
        placement,
        logical_block: traits.logical_block,
        volatile_cache: traits.volatile_cache,
        discard: traits.discard_zeroes,
    };
    if internal {
        let device_bytes = traits.bytes;
        settle(&data)?;
        let recovered = recover(&mut data, &medium(Placement::Internal { device_bytes }))?;
        let data = data.into_fd();
        return Ok(OpenedDisk {
            meta: data.try_clone().map_err(AttachError::Duplicate)?,
            data,
            recovered,
        });
    }
    let mut meta = next()?;
    let placement = Placement::External {
        data_bytes: traits.bytes,
        meta_bytes: meta.traits().bytes,
    };
    settle(&meta)?;
    let recovered = recover(&mut meta, &medium(placement))?;
    if place == MetaPlace::Indexed {
        let fits = recovered.metadata.layout().fits_index();
        fits.map_err(RecoverError::Layout)?;
    }
    Ok(OpenedDisk {
        data: data.into_fd(),
        meta: meta.into_fd(),
        recovered,
    })
}
