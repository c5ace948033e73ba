//! `create-md`: writes fresh metadata, or refuses and says what is in the way.
//!
//! A mounted or held disk is always refused. A known signature on it is refused unless forced.
//! Nothing is written before every check has passed, and what was written is read back. The two
//! steps are apart, so that several volumes are checked before the first is written.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;
use thiserror::Error;

use super::device::{Disk, OpenError};
use super::layout::{Layout, LayoutError, Placement};
use super::metadata::Metadata;
use super::probe::{self, Signature, User};
use super::recover::{Medium, RecoverError, recover};
use crate::engine::NodeId;

/// What to create.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    pub data: PathBuf,
    /// A metadata device of its own; `None` keeps the metadata at the end of `data`.
    pub meta: Option<PathBuf>,
    /// `meta` is an index of a device, not the whole of it.
    pub indexed: bool,
    pub node: NodeId,
    /// Bitmap slots, 1 to 15.
    pub max_peers: u8,
    /// Overwrite what is known to be on the disk. Mounts and holders stay in the way.
    pub force: bool,
}

/// What was created.
#[derive(Clone, Debug, Serialize)]
pub struct CreateReport {
    /// Bytes of the data device that hold data.
    pub usable: u64,
    /// Bytes of the data device.
    pub device: u64,
    /// Bytes of metadata, and where they begin on the metadata device.
    pub metadata_bytes: u64,
    pub metadata_offset: u64,
    pub max_peers: u8,
    /// Signatures that were overwritten or ignored because of `force`.
    pub forced: Vec<Signature>,
}

/// Why no metadata was created. The disk is unchanged, except after [`CreateError::Write`] and
/// [`CreateError::Verify`].
#[derive(Debug, Error)]
pub enum CreateError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{path} is in use: {}", probe::list(users))]
    InUse { path: PathBuf, users: Vec<User> },
    #[error("{path}: {source}")]
    Layout { path: PathBuf, source: LayoutError },
    #[error("{path} carries {}", found(signatures))]
    Signature {
        path: PathBuf,
        signatures: Vec<Signature>,
        contents: Contents,
    },
    #[error("{path} cannot be read: {errno}")]
    Read { path: PathBuf, errno: Errno },
    #[error("{path} cannot be written: {errno}; it holds no usable metadata now")]
    Write { path: PathBuf, errno: Errno },
    #[error("{path}: the metadata does not read back: {source}")]
    Unverified { path: PathBuf, source: RecoverError },
    #[error("{path}: the metadata reads back damaged; the disk is not reliable")]
    Verify { path: PathBuf },
    #[error("no random numbers from the operating system: {0}")]
    Random(getrandom::Error),
}

fn found(signatures: &[Signature]) -> String {
    let names: Vec<String> = signatures.iter().map(Signature::to_string).collect();
    names.join(", ")
}

/// Metadata that can be written: the disks are open, nobody uses them and nothing on them is in the
/// way. Until [`Creation::write`] nothing is changed.
#[derive(Debug)]
pub struct Creation {
    data: Disk,
    meta: Option<Disk>,
    medium: Medium,
    layout: Layout,
    node: NodeId,
    max_peers: u8,
    forced: Vec<Signature>,
}

impl Creation {
    /// Opens the disks and checks everything.
    pub fn prepare(options: &CreateOptions) -> Result<Creation, CreateError> {
        let mut data = open(&options.data)?;
        let mut meta = options.meta.as_deref().map(open).transpose()?;
        let placement = match &meta {
            None => Placement::Internal {
                device_bytes: data.traits().bytes,
            },
            Some(meta) => Placement::External {
                data_bytes: data.traits().bytes,
                meta_bytes: meta.traits().bytes,
            },
        };
        let medium = Medium {
            placement,
            logical_block: data.traits().logical_block,
            volatile_cache: data.traits().volatile_cache,
            discard: data.traits().discard_zeroes,
        };
        let path = options.meta.as_ref().unwrap_or(&options.data);
        let layout = Layout::new(placement, options.max_peers, medium.logical_block);
        let layout = layout.and_then(|layout| match options.indexed {
            true => layout.fits_index().map(|()| layout),
            false => Ok(layout),
        });
        let layout = layout.map_err(|source| CreateError::Layout {
            path: path.clone(),
            source,
        })?;
        let usable = match placement {
            Placement::Internal { .. } => Some(layout.usable()),
            Placement::External { .. } => None,
        };
        let mut forced = check(&mut data, options.force, Contents::Data { usable })?;
        if let Some(meta) = &mut meta {
            forced.extend(check(meta, options.force, Contents::Metadata)?);
        }
        Ok(Creation {
            data,
            meta,
            medium,
            layout,
            node: options.node,
            max_peers: options.max_peers,
            forced,
        })
    }

    /// Writes the metadata, flushes it and reads it back.
    pub fn write(mut self) -> Result<CreateReport, CreateError> {
        let id = getrandom::u64().map_err(CreateError::Random)?;
        let target = self.meta.as_mut().unwrap_or(&mut self.data);
        write(target, self.layout, id, self.node)?;
        verify(target, &self.medium)?;
        let range = self.layout.metadata_range();
        Ok(CreateReport {
            usable: self.layout.usable(),
            device: self.medium.placement.data_bytes(),
            metadata_bytes: range.end - range.start,
            metadata_offset: range.start,
            max_peers: self.max_peers,
            forced: self.forced,
        })
    }
}

/// What a disk is to hold, as far as it matters for what is on it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Data. Bytes that remain for them when the metadata follows on the same disk; all if `None`.
    Data { usable: Option<u64> },
    /// Metadata alone.
    Metadata,
}

/// Opens a disk that nobody uses.
fn open(path: impl AsRef<Path>) -> Result<Disk, CreateError> {
    let path = path.as_ref();
    let in_use = |users| CreateError::InUse {
        path: path.to_path_buf(),
        users,
    };
    let disk = match Disk::open(path) {
        Err(OpenError::Busy { users, .. }) => return Err(in_use(users)),
        other => other?,
    };
    // The exclusive open finds mounts already, except those of other mount namespaces' partitions
    // and file systems that claim their device under another number.
    match probe::users(path) {
        users if users.is_empty() => Ok(disk),
        users => Err(in_use(users)),
    }
}

fn check(disk: &mut Disk, force: bool, contents: Contents) -> Result<Vec<Signature>, CreateError> {
    let path = disk.path().to_path_buf();
    let bytes = disk.traits().bytes;
    let signatures = probe::signatures(disk, bytes).map_err(|errno| CreateError::Read {
        path: path.clone(),
        errno: Errno::from_raw_os_error(errno),
    })?;
    if signatures.is_empty() || force {
        return Ok(signatures);
    }
    Err(CreateError::Signature {
        path,
        signatures,
        contents,
    })
}

fn write(disk: &mut Disk, layout: Layout, id: u64, node: NodeId) -> Result<(), CreateError> {
    let (_, format) = Metadata::create(layout, id, node);
    let done = disk.execute(&format.wipe);
    let done = done.and_then(|()| disk.zero(format.zero));
    let done = done.and_then(|()| disk.flush());
    let done = done.and_then(|()| disk.execute(&format.write));
    done.map_err(|errno| CreateError::Write {
        path: disk.path().to_path_buf(),
        errno,
    })
}

fn verify(disk: &mut Disk, medium: &Medium) -> Result<(), CreateError> {
    let path = disk.path().to_path_buf();
    match recover(disk, medium) {
        Err(source) => Err(CreateError::Unverified { path, source }),
        Ok(found) if found.damage == Default::default() && found.image.log.is_empty() => Ok(()),
        Ok(_) => Err(CreateError::Verify { path }),
    }
}
