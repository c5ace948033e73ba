//! The control half: devices are added, described, started, stopped, recovered and deleted here.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use libublk::ctrl::UblkCtrl;
use libublk::sys;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::command::{Command, CommandRing};
use super::users::device_users;
use super::{MAX_RANGE, UblkError};
use crate::target::MAX_DATA;

/// Commands that only read or note something; they never wait for anybody.
const QUICK: Duration = Duration::from_secs(5);
/// Pause between two tries of something that somebody else has to end first.
const RETRY: Duration = Duration::from_millis(20);

/// Feature bits of the loaded driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u64);

/// What this front end cannot work without.
const REQUIRED: [(u32, &str, &str); 3] = [
    (
        sys::UBLK_F_CMD_IOCTL_ENCODE,
        "ioctl-encoded commands",
        "6.4",
    ),
    (sys::UBLK_F_USER_RECOVERY, "user recovery", "6.1"),
    (
        sys::UBLK_F_USER_RECOVERY_REISSUE,
        "re-issue of requests at recovery",
        "6.1",
    ),
];

impl Features {
    /// The bits as the driver reports them.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// `TRY_STOP_DEV`: stop only if nobody has the device open, without a race.
    pub fn try_stop(self) -> bool {
        self.has(sys::UBLK_F_SAFE_STOP_DEV)
    }

    /// Devices can be had without a partition scan at each start.
    pub fn no_partition_scan(self) -> bool {
        self.has(sys::UBLK_F_NO_AUTO_PART_SCAN)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & u64::from(bit) != 0
    }

    fn check(self) -> Result<Features, UblkError> {
        for (bit, feature, since) in REQUIRED {
            if !self.has(bit) {
                return Err(UblkError::FeatureMissing { feature, since });
            }
        }
        Ok(self)
    }
}

/// State of a device in the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Added but not started, or stopped: no block device.
    Dead,
    /// Started. Says nothing about whether its server still runs.
    Live,
    /// The server is gone; requests wait for recovery or for a stop.
    Quiesced,
    /// The server is gone and requests fail.
    FailIo,
    /// A state that this program does not know.
    Other(u16),
}

impl DeviceState {
    fn from_raw(state: u16) -> DeviceState {
        match u32::from(state) {
            sys::UBLK_S_DEV_DEAD => DeviceState::Dead,
            sys::UBLK_S_DEV_LIVE => DeviceState::Live,
            sys::UBLK_S_DEV_QUIESCED => DeviceState::Quiesced,
            sys::UBLK_S_DEV_FAIL_IO => DeviceState::FailIo,
            _ => DeviceState::Other(state),
        }
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceState::Dead => f.write_str("dead"),
            DeviceState::Live => f.write_str("live"),
            DeviceState::Quiesced => f.write_str("quiesced"),
            DeviceState::FailIo => f.write_str("fail-io"),
            DeviceState::Other(state) => write!(f, "unknown ({state})"),
        }
    }
}

/// What the driver says about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub id: u32,
    pub state: DeviceState,
    /// Process that serves it; none when that process is gone.
    pub server: Option<u32>,
    pub depth: u16,
    pub queues: u16,
    /// Largest read or write, bytes.
    pub max_io_bytes: u32,
    /// The number given to [`UblkControl::add`]; identifies the device as ours.
    pub cookie: u64,
}

impl DeviceInfo {
    fn from_raw(raw: &sys::ublksrv_ctrl_dev_info) -> DeviceInfo {
        DeviceInfo {
            id: raw.dev_id,
            state: DeviceState::from_raw(raw.state),
            server: u32::try_from(raw.ublksrv_pid).ok().filter(|&pid| pid > 0),
            depth: raw.queue_depth,
            queues: raw.nr_hw_queues,
            max_io_bytes: raw.max_io_buf_bytes,
            cookie: raw.ublksrv_flags,
        }
    }
}

/// Size and limits of a block device. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// A multiple of `logical_block`.
    pub size: u64,
    /// Power of two, 512 to 4096.
    pub logical_block: u32,
    /// Power of two, `logical_block` to 65536.
    pub physical_block: u32,
    /// Power of two, at least `physical_block`; larger I/O is worth it up to here.
    pub io_opt: u32,
    /// Whether discard is offered, and in which granularity (a multiple of `logical_block`).
    pub discard: Option<u32>,
}

/// What is wrong with a [`Geometry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    #[error("the logical block size must be a power of two from 512 to 4096, not {0}")]
    LogicalBlock(u32),
    #[error(
        "the physical block size must be a power of two from the logical one to 65536, not {0}"
    )]
    PhysicalBlock(u32),
    #[error(
        "the optimal I/O size must be a power of two from the physical block size to 1 MiB, not {0}"
    )]
    OptimalIo(u32),
    #[error("the size must be a multiple of the logical block size and not zero, not {0}")]
    Size(u64),
    #[error("the discard granularity must be a multiple of the logical block size, not {0}")]
    Discard(u32),
    #[error("the depth must be 1 to 4096, not {0}")]
    Depth(u16),
}

impl Geometry {
    fn check(&self) -> Result<(), GeometryError> {
        let power_in = |value: u32, low: u32, high: u32| {
            value.is_power_of_two() && (low..=high).contains(&value)
        };
        if !power_in(self.logical_block, 512, 4096) {
            return Err(GeometryError::LogicalBlock(self.logical_block));
        }
        if !power_in(self.physical_block, self.logical_block, 1 << 16) {
            return Err(GeometryError::PhysicalBlock(self.physical_block));
        }
        if !power_in(self.io_opt, self.physical_block, MAX_DATA) {
            return Err(GeometryError::OptimalIo(self.io_opt));
        }
        if self.size == 0 || !self.size.is_multiple_of(u64::from(self.logical_block)) {
            return Err(GeometryError::Size(self.size));
        }
        match self.discard {
            Some(bytes) if bytes == 0 || !bytes.is_multiple_of(self.logical_block) => {
                Err(GeometryError::Discard(bytes))
            }
            _ => Ok(()),
        }
    }

    fn params(&self) -> sys::ublk_params {
        let shift = |bytes: u32| bytes.trailing_zeros() as u8;
        sys::ublk_params {
            len: size_of::<sys::ublk_params>() as u32,
            types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
            basic: sys::ublk_param_basic {
                // Without the first the kernel never sends a flush; FUA needs it too.
                attrs: sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA,
                logical_bs_shift: shift(self.logical_block),
                physical_bs_shift: shift(self.physical_block),
                io_opt_shift: shift(self.io_opt),
                io_min_shift: shift(self.physical_block),
                max_sectors: MAX_DATA >> 9,
                dev_sectors: self.size >> 9,
                ..Default::default()
            },
            // Zeroes are always offered; a discard limit of 0 switches discard off.
            discard: sys::ublk_param_discard {
                discard_granularity: self.discard.unwrap_or(self.logical_block),
                max_discard_sectors: self.discard.map_or(0, |_| MAX_RANGE >> 9),
                max_write_zeroes_sectors: MAX_RANGE >> 9,
                max_discard_segments: u16::from(self.discard.is_some()),
                ..Default::default()
            },
            ..Default::default()
        }
    }
}

/// The driver's control device.
///
/// Every call blocks the calling thread, at most for the limit that it takes (five seconds where
/// it takes none). Dropping it changes no device.
pub struct UblkControl {
    commands: CommandRing,
    features: Features,
}

impl UblkControl {
    /// Opens the control device and checks that the driver can do what this front end needs.
    pub fn open() -> Result<UblkControl, UblkError> {
        let commands = CommandRing::open()?;
        let bits = UblkCtrl::get_features().ok_or(UblkError::FeatureMissing {
            feature: "the feature query",
            since: "6.5",
        })?;
        let features = Features(bits).check()?;
        Ok(UblkControl { commands, features })
    }

    pub fn features(&self) -> Features {
        self.features
    }

    /// What the driver knows about device `id`.
    pub fn info(&mut self, id: u32) -> Result<DeviceInfo, UblkError> {
        let raw = sys::ublksrv_ctrl_dev_info::default();
        let raw = self.known(id, Command::GetInfo, 0, raw, QUICK)?;
        Ok(DeviceInfo::from_raw(&raw))
    }

    /// Fails when there is a device `id`. Asked before a record of a new device replaces the
    /// record of an older one that still exists.
    pub fn ensure_free(&mut self, id: u32) -> Result<(), UblkError> {
        match self.info(id) {
            Ok(_) => Err(UblkError::IdTaken { id }),
            Err(UblkError::NoDevice { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Adds device `id`: one queue, recoverable, not started. `/dev/ublkcN` exists afterwards.
    ///
    /// `cookie` stays with the device as long as it exists ([`DeviceInfo::cookie`]).
    pub fn add(&mut self, id: u32, depth: u16, cookie: u64) -> Result<DeviceInfo, UblkError> {
        if depth == 0 || u32::from(depth) > sys::UBLK_MAX_QUEUE_DEPTH {
            let reason = GeometryError::Depth(depth);
            return Err(UblkError::Geometry { id, reason });
        }
        let mut flags = sys::UBLK_F_CMD_IOCTL_ENCODE
            | sys::UBLK_F_USER_RECOVERY
            | sys::UBLK_F_USER_RECOVERY_REISSUE;
        if self.features.no_partition_scan() {
            flags |= sys::UBLK_F_NO_AUTO_PART_SCAN;
        }
        let raw = sys::ublksrv_ctrl_dev_info {
            nr_hw_queues: 1,
            queue_depth: depth,
            max_io_buf_bytes: MAX_DATA,
            dev_id: id,
            ublksrv_pid: -1,
            flags: u64::from(flags),
            ublksrv_flags: cookie,
            ..Default::default()
        };
        match self.commands.run(Command::Add, id, 0, raw, QUICK) {
            Ok(raw) => Ok(DeviceInfo::from_raw(&raw)),
            Err(UblkError::Refused { errno, .. }) if errno == Errno::EXIST => {
                Err(UblkError::IdTaken { id })
            }
            Err(error) => Err(error),
        }
    }

    /// Describes a device that was added and not started.
    pub fn set_params(&mut self, id: u32, geometry: &Geometry) -> Result<(), UblkError> {
        geometry
            .check()
            .map_err(|reason| UblkError::Geometry { id, reason })?;
        self.known(id, Command::SetParams, 0, geometry.params(), QUICK)?;
        Ok(())
    }

    /// Makes `/dev/ublkbN` appear. Waits until the queue, driven by another thread of this
    /// process, has fetched all its tags, and then until it has served a partition scan where the
    /// kernel insists on one.
    pub fn start(&mut self, id: u32, limit: Duration) -> Result<(), UblkError> {
        let server = u64::from(std::process::id());
        self.known(id, Command::Start, server, (), limit)?;
        Ok(())
    }

    /// Takes over a device whose server died. Waits until the driver has noticed the death: it
    /// does when the last descriptor of `/dev/ublkcN` is gone. Afterwards the device has no
    /// server; open a queue, start it on its ring and call [`UblkControl::end_recovery`].
    pub fn begin_recovery(&mut self, id: u32, limit: Duration) -> Result<DeviceInfo, UblkError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.known(id, Command::StartRecovery, 0, (), limit) {
                Ok(()) => return self.info(id),
                Err(UblkError::Refused { errno, .. }) if errno == Errno::BUSY => {}
                Err(error) => return Err(error),
            }
            // Busy means "not without a server yet", which a stopped device never will be.
            let info = self.info(id)?;
            if info.state == DeviceState::Dead {
                let state = info.state;
                return Err(UblkError::NotRecoverable { id, state });
            }
            if Instant::now() >= deadline {
                return Err(UblkError::StillServed { id, limit });
            }
            thread::sleep(RETRY);
        }
    }

    /// Lets requests flow again. Waits until the queue of this process has fetched all its tags.
    pub fn end_recovery(&mut self, id: u32, limit: Duration) -> Result<(), UblkError> {
        let server = u64::from(std::process::id());
        self.known(id, Command::EndRecovery, server, (), limit)?;
        Ok(())
    }

    /// Stops the device unless somebody has it open; [`UblkError::Busy`] names who.
    ///
    /// Short-lived openers (udev looks at a device whenever a writer closes it) are waited for
    /// during `grace`. On a kernel without `TRY_STOP_DEV` the block device is claimed
    /// exclusively first, which no mount, swap, device-mapper or md user allows, and the openers
    /// of all visible processes are looked up: a plain open between that look and the stop, or
    /// by a process that cannot be seen, goes unnoticed and gets I/O errors.
    pub fn try_stop(&mut self, id: u32, grace: Duration) -> Result<(), UblkError> {
        let deadline = Instant::now() + grace;
        loop {
            let stopped = if self.features.try_stop() {
                self.try_stop_in_kernel(id)
            } else {
                self.try_stop_by_claim(id)
            };
            match stopped {
                Err(UblkError::Busy { .. }) if Instant::now() < deadline => thread::sleep(RETRY),
                stopped => return stopped,
            }
        }
    }

    fn try_stop_in_kernel(&mut self, id: u32) -> Result<(), UblkError> {
        match self.known(id, Command::TryStop, 0, (), QUICK) {
            Err(UblkError::Refused { errno, .. }) if errno == Errno::BUSY => {
                let users = device_users(id);
                Err(UblkError::Busy { id, users })
            }
            stopped => stopped,
        }
    }

    fn try_stop_by_claim(&mut self, id: u32) -> Result<(), UblkError> {
        if self.info(id)?.state == DeviceState::Dead {
            return Ok(());
        }
        let users = device_users(id);
        if !users.is_empty() {
            return Err(UblkError::Busy { id, users });
        }
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        // The claim is held over the stop, so that nobody can mount in between.
        let _claim = match rustix::fs::open(format!("/dev/ublkb{id}"), flags, Mode::empty()) {
            Ok(claim) => claim,
            Err(Errno::BUSY) => return Err(UblkError::Busy { id, users }),
            Err(errno) => return Err(UblkError::BlockDevice { id, errno }),
        };
        self.stop(id, QUICK)
    }

    /// Stops the device whoever uses it: requests fail, `/dev/ublkbN` disappears, a file system
    /// on it shuts down. A server that lives must answer what it has taken, or this waits for it.
    pub fn stop(&mut self, id: u32, limit: Duration) -> Result<(), UblkError> {
        self.known(id, Command::Stop, 0, (), limit)
    }

    /// Removes the device without waiting for those who still have it open; its number is free
    /// when the last of them is gone. A device that still runs is stopped. Linux 6.9 and later
    /// have it; there is no feature bit.
    pub fn delete_async(&mut self, id: u32) -> Result<(), UblkError> {
        self.known(id, Command::DeleteAsync, 0, (), QUICK)
    }

    /// Runs a command on a device that should exist.
    fn known<B: super::command::Body>(
        &mut self,
        id: u32,
        command: Command,
        data: u64,
        body: B,
        limit: Duration,
    ) -> Result<B, UblkError> {
        match self.commands.run(command, id, data, body, limit) {
            Err(UblkError::Refused { errno, .. }) if errno == Errno::NODEV => {
                Err(UblkError::NoDevice { id })
            }
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Geometry = Geometry {
        size: 1 << 30,
        logical_block: 512,
        physical_block: 4096,
        io_opt: 1 << 20,
        discard: Some(4096),
    };

    #[test]
    fn bad_geometry_is_refused_before_the_kernel_sees_it() {
        assert_eq!(GOOD.check(), Ok(()));
        let cases = [
            (
                Geometry {
                    logical_block: 768,
                    ..GOOD
                },
                GeometryError::LogicalBlock(768),
            ),
            (
                Geometry {
                    logical_block: 8192,
                    ..GOOD
                },
                GeometryError::LogicalBlock(8192),
            ),
            (
                Geometry {
                    logical_block: 4096,
                    physical_block: 512,
                    ..GOOD
                },
                GeometryError::PhysicalBlock(512),
            ),
            (
                Geometry {
                    io_opt: 2 << 20,
                    ..GOOD
                },
                GeometryError::OptimalIo(2 << 20),
            ),
            (Geometry { size: 0, ..GOOD }, GeometryError::Size(0)),
            (Geometry { size: 1000, ..GOOD }, GeometryError::Size(1000)),
            (
                Geometry {
                    discard: Some(0),
                    ..GOOD
                },
                GeometryError::Discard(0),
            ),
        ];
        for (geometry, reason) in cases {
            assert_eq!(geometry.check(), Err(reason));
        }
    }

    #[test]
    fn parameters_carry_cache_fua_and_discard() {
        let params = GOOD.params();
        assert_eq!(params.basic.attrs, 4 | 8);
        assert_eq!(params.basic.max_sectors, 2048);
        assert_eq!(params.basic.dev_sectors, 1 << 21);
        assert_eq!(
            (params.basic.logical_bs_shift, params.basic.io_min_shift),
            (9, 12)
        );
        assert_eq!(params.discard.max_discard_segments, 1);
        assert_eq!(params.discard.max_discard_sectors, 131_072);
        let without = Geometry {
            discard: None,
            ..GOOD
        }
        .params();
        assert_eq!(without.discard.max_discard_sectors, 0);
        assert_eq!(without.discard.max_write_zeroes_sectors, 131_072);
    }

    #[test]
    fn missing_features_are_named() {
        let without_reissue = Features(u64::from(
            sys::UBLK_F_CMD_IOCTL_ENCODE | sys::UBLK_F_USER_RECOVERY,
        ));
        let error = without_reissue.check().unwrap_err().to_string();
        assert!(error.contains("re-issue"), "{error}");
        assert!(Features(0x1fe).check().is_ok());
        assert!(!Features(0x1fe).try_stop());
        assert!(Features(0xfffff).try_stop() && Features(0xfffff).no_partition_scan());
    }
}
