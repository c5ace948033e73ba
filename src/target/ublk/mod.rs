//! The ublk front end: a volume as `/dev/ublkbN`, payload copied by the kernel.
//!
//! Two halves that share nothing but a device number:
//!
//! - [`UblkControl`] talks to `/dev/ublk-control`: add, parameters, start, stop, recover, delete.
//!   Its calls block (bounded by a limit), so they belong to a control thread or to the agent.
//! - [`UblkQueue`] is the [`Target`](super::Target): one hardware queue on the reactor's ring.
//!
//! Life of a device, with who does what:
//!
//! | step | who |
//! |---|---|
//! | [`UblkControl::ensure_free`], then the [`DeviceRecord`] written, durable | agent |
//! | [`UblkControl::add`], [`UblkControl::set_params`], [`UblkQueue::open`] | data plane, control thread |
//! | queue handed to the reactor, [`Target::start`](super::Target::start) | data plane, reactor |
//! | [`UblkControl::start`]: returns when the queue has fetched and `/dev/ublkbN` exists | data plane, control thread |
//! | [`apply_queue_settings`]: scheduler, stable pages | agent |
//! | [`UblkControl::try_stop`] (or `stop`), [`UblkControl::delete_async`], record removed | agent |
//!
//! A new data plane after a crash replaces `add`, `set_params` and `start` by
//! [`UblkControl::begin_recovery`] and [`UblkControl::end_recovery`]; the kernel then issues again
//! what its predecessor had not answered. Nothing is stopped or deleted by a drop.
//!
//! Definitions and the feature query come from `libublk`. Its device controller is not used: it
//! cannot ask for a device without partition scan, deletes on drop what it added, can start only
//! a device whose queues it runs itself (one per thread; here several share a ring), reports a
//! failed recovery as success and keeps state of its own under `/run`.

mod command;
mod control;
mod device_record;
mod leftover;
mod queue;
mod sysfs;
mod users;

use std::time::Duration;

use rustix::io::Errno;

pub use command::Command;
pub use control::{DeviceInfo, DeviceState, Features, Geometry, GeometryError, UblkControl};
pub use device_record::{DeviceRecord, RecordDir, RecordError};
pub use leftover::{ErrorPath, Leftover, LeftoverState, fail_device, find_leftovers};
pub use queue::UblkQueue;
pub use sysfs::{SysfsError, apply_queue_settings, queue_settings_in_force};
pub use users::{DeviceUser, device_users, devices_in_use};

/// Requests that a device takes at once unless told otherwise.
pub const DEFAULT_DEPTH: u16 = 128;

/// Largest discard or write-zeroes, bytes: 16 activity-log extents of 4 MiB.
pub const MAX_RANGE: u32 = 64 << 20;

/// Why something about a ublk device could not be done.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    #[error(
        "/dev/ublk-control is missing: load the driver with `modprobe ublk_drv` \
         (the NBD front end works without ublk)"
    )]
    NoDriver,
    #[error("no permission to open /dev/ublk-control: ublk devices need root")]
    NoPermission,
    #[error(
        "io_uring with 128-byte entries is not available ({0}): \
         needs Linux 5.19 and kernel.io_uring_disabled = 0"
    )]
    NoRing(Errno),
    #[error("cannot open /dev/ublk-control: {0}")]
    ControlDevice(Errno),
    #[error(
        "the ublk driver lacks {feature} (Linux {since} has it); \
         the NBD front end works without ublk"
    )]
    FeatureMissing {
        feature: &'static str,
        since: &'static str,
    },
    #[error("there is no ublk device {id}")]
    NoDevice { id: u32 },
    #[error("ublk device {id} exists already")]
    IdTaken { id: u32 },
    #[error("ublk device {id} is not the one that was recorded: somebody else made it")]
    Foreign { id: u32 },
    /// Somebody has the block device open. `users` are those that could be found; a user in a
    /// place that this process cannot see leaves it empty.
    #[error("/dev/ublkb{id} is in use{}", users::list(.users))]
    Busy { id: u32, users: Vec<DeviceUser> },
    #[error("ublk device {id} cannot be recovered, its state is {state}")]
    NotRecoverable { id: u32, state: DeviceState },
    #[error("the old server of ublk device {id} did not end within {}", seconds(.limit))]
    StillServed { id: u32, limit: Duration },
    #[error("ublk {command} of device {id} failed: {errno}")]
    Refused {
        command: Command,
        id: u32,
        errno: Errno,
    },
    #[error("ublk {command} of device {id} did not end within {}", seconds(.limit))]
    Timeout {
        command: Command,
        id: u32,
        limit: Duration,
    },
    #[error("bad parameters for ublk device {id}: {reason}")]
    Geometry { id: u32, reason: GeometryError },
    #[error(
        "ublk device {id} has {queues} queues and requests of up to {max_io_bytes} bytes: \
         this program did not make it"
    )]
    Incompatible {
        id: u32,
        queues: u16,
        max_io_bytes: u32,
    },
    #[error("cannot open /dev/ublkc{id}: {errno}")]
    CharDevice { id: u32, errno: Errno },
    #[error("cannot map memory for ublk device {id}: {errno}")]
    Memory { id: u32, errno: Errno },
    #[error("cannot open /dev/ublkb{id}: {errno}")]
    BlockDevice { id: u32, errno: Errno },
}

/// `1.5 s`, for messages.
fn seconds(limit: &Duration) -> String {
    format!("{:.1} s", limit.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_to_do() {
        let text = UblkError::NoDriver.to_string();
        assert!(text.contains("modprobe ublk_drv") && text.contains("NBD"));
        let busy = UblkError::Busy {
            id: 3,
            users: vec![DeviceUser::Mount {
                path: "/srv".into(),
            }],
        };
        assert_eq!(busy.to_string(), "/dev/ublkb3 is in use: mounted on /srv");
        let hidden = UblkError::Busy {
            id: 3,
            users: Vec::new(),
        };
        assert_eq!(hidden.to_string(), "/dev/ublkb3 is in use");
    }
}
