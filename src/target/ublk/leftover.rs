//! Devices that an earlier agent or data plane left behind.
//!
//! Whether one may be served again is decided elsewhere (does the vote still belong to this
//! node?). Here they are found, and if the answer is no, taken to the end where nothing waits any
//! more: queued requests fail, mounts are detached, the device goes when its last opener does.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::UblkError;
use super::control::{DeviceInfo, DeviceState, UblkControl};
use super::device_record::DeviceRecord;
use super::users::{BlockNames, DeviceUser};

/// How long the driver is given to drop a device that nobody has open.
const REMOVAL: Duration = Duration::from_secs(1);

/// A recorded device and what has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub record: DeviceRecord,
    pub state: LeftoverState,
}

/// What has become of a recorded device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftoverState {
    /// It does not exist: the record can go.
    Gone,
    /// The number belongs to a device that somebody else made: hands off, the record can go.
    Foreign,
    /// A process serves it.
    Served { server: u32 },
    /// Its server is gone; requests wait for [`UblkControl::begin_recovery`] or
    /// [`fail_device`].
    Orphaned,
    /// Stopped or never started: only the deletion is missing.
    Stopped,
}

/// Looks up every recorded device; touches nothing.
pub fn find_leftovers(
    control: &mut UblkControl,
    records: Vec<DeviceRecord>,
) -> Result<Vec<Leftover>, UblkError> {
    let look = |record: DeviceRecord| match control.info(record.id) {
        Ok(info) => Ok(Leftover {
            state: classify(&record, &info, process_exists),
            record,
        }),
        Err(UblkError::NoDevice { .. }) => Ok(Leftover {
            state: LeftoverState::Gone,
            record,
        }),
        Err(error) => Err(error),
    };
    records.into_iter().map(look).collect()
}

fn classify(
    record: &DeviceRecord,
    info: &DeviceInfo,
    exists: impl Fn(u32) -> bool,
) -> LeftoverState {
    if info.cookie != record.cookie {
        return LeftoverState::Foreign;
    }
    match (info.state, info.server) {
        (DeviceState::Dead, None) => LeftoverState::Stopped,
        // The driver forgets the server only when its last descriptor is gone.
        (_, Some(server)) if exists(server) => LeftoverState::Served { server },
        (DeviceState::Dead, Some(_)) => LeftoverState::Stopped,
        _ => LeftoverState::Orphaned,
    }
}

fn process_exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What [`fail_device`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPath {
    /// Mounts that were detached.
    pub detached: Vec<PathBuf>,
    /// Who still has the device open, as far as can be seen. The device goes when they do;
    /// until then its number is taken.
    pub remaining: Vec<DeviceUser>,
    /// Whether the device is gone.
    pub deleted: bool,
}

/// Ends the device of `record`: its requests fail within `limit`, its mounts in this namespace
/// are detached, and it is deleted without waiting for who still has it open.
///
/// A server that lives must answer what it has taken, or the stop waits for it until `limit`.
pub fn fail_device(
    control: &mut UblkControl,
    record: &DeviceRecord,
    limit: Duration,
) -> Result<ErrorPath, UblkError> {
    let id = record.id;
    if control.info(id)?.cookie != record.cookie {
        return Err(UblkError::Foreign { id });
    }
    // Before the stop: the numbers are gone afterwards.
    let names = BlockNames::of(id);
    control.stop(id, limit)?;
    let detached = detach(&names);
    control.delete_async(id)?;
    let deleted = wait_until_gone(control, id)?;
    let remaining = match deleted {
        true => Vec::new(),
        false => names.users(),
    };
    Ok(ErrorPath {
        detached,
        remaining,
        deleted,
    })
}

/// Detaches every mount, stacked ones one after the other. One that cannot be detached stays and
/// is found among the users.
fn detach(names: &BlockNames) -> Vec<PathBuf> {
    let mut detached = Vec::new();
    for path in names.mounts() {
        match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => detached.push(path),
            Err(errno) => tracing::warn!("cannot detach {}: {errno}", path.display()),
        }
    }
    detached
}

fn wait_until_gone(control: &mut UblkControl, id: u32) -> Result<bool, UblkError> {
    let deadline = Instant::now() + REMOVAL;
    loop {
        match control.info(id) {
            Err(UblkError::NoDevice { .. }) => return Ok(true),
            Err(error) => return Err(error),
            Ok(_) if Instant::now() >= deadline => return Ok(false),
            Ok(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Term;

    #[test]
    fn every_state_of_a_recorded_device_has_its_name() {
        let record = DeviceRecord::new(3, "r0", 0, Term::ZERO, 77);
        let info = |state, server, cookie| DeviceInfo {
            id: 3,
            state,
            server,
            depth: 128,
            queues: 1,
            max_io_bytes: 1 << 20,
            cookie,
        };
        let state = |info: DeviceInfo| classify(&record, &info, |pid| pid == 10);
        let served = LeftoverState::Served { server: 10 };
        let cases = [
            (
                info(DeviceState::Live, Some(10), 78),
                LeftoverState::Foreign,
            ),
            (info(DeviceState::Quiesced, None, 0), LeftoverState::Foreign),
            (info(DeviceState::Live, Some(10), 77), served),
            (
                info(DeviceState::Live, Some(11), 77),
                LeftoverState::Orphaned,
            ),
            (info(DeviceState::Live, None, 77), LeftoverState::Orphaned),
            (
                info(DeviceState::Quiesced, None, 77),
                LeftoverState::Orphaned,
            ),
            (info(DeviceState::FailIo, None, 77), LeftoverState::Orphaned),
            (info(DeviceState::Dead, None, 77), LeftoverState::Stopped),
            (
                info(DeviceState::Dead, Some(11), 77),
                LeftoverState::Stopped,
            ),
        ];
        for (info, expected) in cases {
            assert_eq!(state(info), expected, "{info:?}");
        }
    }
}
