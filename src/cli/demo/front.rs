//! How the demo reaches a volume: through the block device where there is ublk, else over NBD.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

use super::nbd_client::{NbdClient, NbdError};

/// Alignment that direct I/O needs at most.
const ALIGN: usize = 4096;
/// Where the driver is asked for block devices.
const UBLK_CONTROL: &str = "/dev/ublk-control";

/// Why a request to a volume has no result.
#[derive(Debug, Error)]
pub enum FrontError {
    #[error(transparent)]
    Nbd(#[from] NbdError),
    #[error(transparent)]
    Device(#[from] io::Error),
}

/// Where a volume is found while its node is primary.
#[derive(Clone, Debug)]
pub enum Place {
    Device(u32),
    Nbd { socket: PathBuf, export: String },
}

/// Whether this process may create block devices.
pub fn ublk_is_there() -> bool {
    rustix::process::geteuid().is_root() && Path::new(UBLK_CONTROL).exists()
}

/// `count` numbers that no ublk device has.
pub fn free_minors(count: usize) -> Vec<u32> {
    let taken = |minor: &u32| {
        let there = |kind: &str| Path::new(&format!("/dev/ublk{kind}{minor}")).exists();
        there("b") || there("c")
    };
    // Away from the first ones, which administrators use.
    (100..).filter(|minor| !taken(minor)).take(count).collect()
}

impl Place {
    /// The `device` of the configuration.
    pub fn configured(&self) -> String {
        match self {
            Place::Device(minor) => format!("/dev/ublkb{minor}"),
            Place::Nbd { socket, export } => {
                format!("nbd+unix:///{export}?socket={}", socket.display())
            }
        }
    }

    pub fn is_device(&self) -> bool {
        matches!(self, Place::Device(_))
    }

    pub fn open(&self) -> Result<Front, FrontError> {
        match self {
            Place::Device(_) => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(OFlags::DIRECT.bits().cast_signed())
                    .open(self.configured())?;
                Ok(Front::Device(file, Aligned::default()))
            }
            Place::Nbd { socket, export } => Ok(Front::Nbd(NbdClient::connect(socket, export)?)),
        }
    }
}

/// An open volume; one request at a time.
pub enum Front {
    Device(File, Aligned),
    Nbd(NbdClient),
}

impl Front {
    /// Bytes of the volume.
    pub fn size(&mut self) -> Result<u64, FrontError> {
        match self {
            Front::Device(file, _) => Ok(file.seek(SeekFrom::End(0))?),
            Front::Nbd(client) => Ok(client.size()),
        }
    }

    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), FrontError> {
        match self {
            Front::Device(file, aligned) => {
                let buffer = aligned.of(data.len());
                file.read_exact_at(buffer, offset)?;
                data.copy_from_slice(buffer);
            }
            Front::Nbd(client) => client.read(offset, data)?,
        }
        Ok(())
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FrontError> {
        match self {
            Front::Device(file, aligned) => {
                let buffer = aligned.of(data.len());
                buffer.copy_from_slice(data);
                file.write_all_at(buffer, offset)?;
            }
            Front::Nbd(client) => client.write(offset, data)?,
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), FrontError> {
        match self {
            Front::Device(file, _) => file.sync_data()?,
            Front::Nbd(client) => client.flush()?,
        }
        Ok(())
    }
}

/// Memory for direct I/O, grown as needed.
#[derive(Default)]
pub struct Aligned {
    bytes: Vec<u8>,
}

impl Aligned {
    /// `length` bytes at an aligned address.
    fn of(&mut self, length: usize) -> &mut [u8] {
        let needed = length + ALIGN;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        let start = self.bytes.as_ptr().align_offset(ALIGN);
        &mut self.bytes[start..start + length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_as_long_as_asked() {
        let mut aligned = Aligned::default();
        for length in [1, 4096, 512, 1 << 17] {
            let bytes = aligned.of(length);
            assert_eq!(bytes.len(), length);
            assert_eq!(bytes.as_ptr().align_offset(ALIGN), 0);
        }
    }
}
