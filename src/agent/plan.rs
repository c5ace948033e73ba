//! What the agent needs to know about one resource, made from the configuration.

use std::path::PathBuf;

use super::protocol::ServeConfig;

/// One resource as this node runs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What the data plane is told.
    pub serve: ServeConfig,
    /// One per volume, in the order of `serve.volumes`.
    pub disks: Vec<DiskPlan>,
    /// `start-policy auto`: started with the agent.
    pub auto: bool,
}

/// Where a volume's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    pub volume: u16,
    /// Block device or regular file.
    pub data: PathBuf,
    /// Device or file of external metadata; none = at the end of `data`.
    pub meta: Option<PathBuf>,
}

impl Plan {
    pub fn name(&self) -> &str {
        &self.serve.resource
    }

    pub fn disk(&self, volume: u16) -> Option<&DiskPlan> {
        self.disks.iter().find(|disk| disk.volume == volume)
    }

    /// The volumes' numbers.
    pub fn volumes(&self) -> Vec<u16> {
        self.disks.iter().map(|disk| disk.volume).collect()
    }
}
