//! What the command line says to the agent, and the agent to a data plane.
//!
//! Both are newline-delimited JSON over Unix stream sockets, one request and one or more replies
//! per line. File descriptors travel beside a line (SCM_RIGHTS).

use serde::{Deserialize, Serialize};

/// A request of the command line to the agent (`RUN_DIR/control.sock`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlRequest {
    /// `up`, `down`, `primary`, `status`, ...
    pub verb: String,
    /// Resource, `RES/VOL`, `RES:PEER` or `all`; empty for the node.
    #[serde(default)]
    pub target: String,
    /// Options of the verb: `force`, `timeout`, `discard-my-data`, ...
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// A reply of the agent, and of a data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The request is done; its result, null when there is nothing to say.
    Done(serde_json::Value),
    /// One item of a stream (`events`); more follow.
    Item(serde_json::Value),
    /// The request failed.
    Error(ErrorReply),
}

/// Why a request failed, with the exit code of the command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorReply {
    /// A stable word: `refused`, `timeout`, `usage`, `config`, `failed`.
    pub kind: String,
    pub reason: String,
    pub help: String,
    pub exit: u8,
}

/// What the agent hands to a data plane when it starts (first line on descriptor 3's socket).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServeConfig {
    pub resource: String,
    pub node: u8,
    pub peer: u8,
    pub peer_name: String,
    /// `A`, `B` or `C`.
    pub protocol: char,
    /// Own and peer's `address`, `IP:PORT`.
    pub address: String,
    pub peer_address: String,
    /// Key of the connection's authentication; empty = unauthenticated.
    pub shared_secret: String,
    /// Milliseconds.
    pub ping_interval: u64,
    pub ping_timeout: u64,
    pub timeout: u64,
    pub ko_count: u32,
    pub connect_interval: u64,
    pub al_extents: u16,
    pub volumes: Vec<ServeVolume>,
}

/// One volume of a data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServeVolume {
    pub volume: u16,
    pub front: FrontEnd,
    /// Metadata inside the data device, or on a device of its own.
    pub internal_meta: bool,
}

/// How applications reach a volume.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FrontEnd {
    Ublk { minor: u32 },
    NbdUnix { path: String, export: String },
    NbdTcp { address: String, export: String },
}

/// A request of the agent to a data plane (`RUN_DIR/RES.serve.sock`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum ServeRequest {
    Configure(Box<ServeConfig>),
    /// Descriptors beside the line: data device, then metadata device if external, both opened
    /// exclusively.
    Attach {
        volume: u16,
    },
    Detach {
        volume: u16,
    },
    Connect {
        discard_my_data: bool,
    },
    Disconnect,
    Primary {
        force: bool,
    },
    Secondary,
    Invalidate {
        volume: u16,
    },
    Status,
    /// Streams notices as `Reply::Item` until the socket closes.
    Events,
    /// The agent has set `stable_writes` and the scheduler of the volume's block device.
    QueueConfirmed {
        volume: u16,
    },
    /// Clean end; the process exits after the reply.
    Shutdown,
}
