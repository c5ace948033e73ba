//! What the agent needs to know about one resource, made from the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::failover::Managed;
use super::protocol::{ErrorKind, ErrorReply, ServeConfig, Target};
use crate::config::{After, HandlerOptions, Schedule};

/// One resource as this node runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the data plane is told.
    pub serve: ServeConfig,
    /// One per volume, in the order of `serve.volumes`.
    pub disks: Vec<DiskPlan>,
    /// `start-policy auto`: started with the agent.
    pub auto: bool,
    /// What the configuration asks for and this agent does not do: it starts no such resource.
    pub unsupported: Option<&'static str>,
    /// Who takes over by itself; none = the operator promotes.
    pub managed: Option<Managed>,
    pub upkeep: Upkeep,
}

/// What the agent does about the copies by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// By volume, the syncs that come before its own.
    pub after: BTreeMap<u16, After>,
    /// Syncs of this node that run at once; 0 = no limit.
    pub max_syncs: u32,
    pub schedule: Option<Schedule>,
    pub handlers: HandlerOptions,
}

/// Where a volume's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    pub volume: u16,
    /// Block device or regular file.
    pub data: PathBuf,
    /// Device or file of external metadata; none = at the end of `data`.
    pub meta: Option<PathBuf>,
    /// `meta` is an index of a device, not the whole of it.
    pub indexed: bool,
}

impl Plan {
    pub fn name(&self) -> &str {
        &self.serve.resource
    }

    /// Refuses to start what would not be kept as the configuration says.
    pub fn startable(&self) -> Result<(), ErrorReply> {
        match self.unsupported {
            None => Ok(()),
            Some(what) => Err(ErrorReply::new(
                ErrorKind::Refused,
                format!("{}: {what}: not in this version", self.name()),
                "without it the resource is promoted by hand: `lockstep check` reads both",
            )),
        }
    }

    /// Whether a running resource can get from `old` to this plan as it is.
    pub fn follows(&self, old: &Plan) -> bool {
        let with_options = Plan {
            serve: old.serve.with_options_of(&self.serve),
            auto: self.auto,
            managed: self.managed.clone(),
            upkeep: self.upkeep.clone(),
            ..old.clone()
        };
        *self == with_options
    }

    /// Sets options of [`ResyncOptions`](super::protocol::ResyncOptions) for the volumes meant.
    pub fn set_resync(
        &mut self,
        target: &Target,
        options: &Map<String, Value>,
    ) -> Result<(), ErrorReply> {
        let only = match target {
            Target::Volume(_, volume) => Some(*volume),
            _ => None,
        };
        if let Some(volume) = only {
            self.known(volume)?;
        }
        for entry in &mut self.serve.volumes {
            if only.is_some_and(|volume| volume != entry.volume) {
                continue;
            }
            for (option, value) in options {
                let known = value
                    .as_u64()
                    .is_some_and(|value| entry.resync.set(option, value));
                if !known {
                    return Err(ErrorReply::new(
                        ErrorKind::Usage,
                        format!("the agent cannot set `{option}`"),
                        "command line and agent may be of different versions: restart the agent",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Refuses a volume that the resource does not have.
    pub fn known(&self, volume: u16) -> Result<(), ErrorReply> {
        if self.disk(volume).is_some() {
            return Ok(());
        }
        let name = self.name();
        Err(ErrorReply::new(
            ErrorKind::Usage,
            format!("{name} has no volume {volume}"),
            format!("`lockstep dump {name}` shows its volumes"),
        ))
    }

    pub fn disk(&self, volume: u16) -> Option<&DiskPlan> {
        self.disks.iter().find(|disk| disk.volume == volume)
    }

    /// The volumes' numbers.
    pub fn volumes(&self) -> Vec<u16> {
        self.disks.iter().map(|disk| disk.volume).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::agent::protocol::{FrontEnd, ServeVolume};

    /// A resource with one volume behind `front`.
    pub fn plan(name: &str, front: FrontEnd) -> Plan {
        Plan {
            serve: ServeConfig {
                resource: name.to_owned(),
                node: 0,
                peer: 1,
                node_name: "alpha".to_owned(),
                peer_name: "beta".to_owned(),
                protocol: 'C',
                address: "127.0.0.1:7789".to_owned(),
                peer_address: "127.0.0.2:7789".to_owned(),
                shared_secret: Default::default(),
                ping_interval: 10_000,
                ping_timeout: 500,
                timeout: 6_000,
                ko_count: 7,
                connect_interval: 10_000,
                al_extents: 1237,
                csums: false,
                guarded: false,
                verify_alg: "crc32c".to_owned(),
                verify_repair: false,
                votes: false,
                send_buffer: 0,
                volumes: vec![ServeVolume {
                    volume: 0,
                    front,
                    internal_meta: true,
                    indexed_meta: false,
                    resync: Default::default(),
                    cookie: 0,
                }],
            },
            disks: vec![DiskPlan {
                volume: 0,
                data: "/nonexistent".into(),
                meta: None,
                indexed: false,
            }],
            auto: false,
            unsupported: None,
            managed: None,
            upkeep: Upkeep::default(),
        }
    }
}
