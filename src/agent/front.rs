//! What the agent does for front ends that are block devices.
//!
//! A record is durable before the data plane may add a device and goes after the device is
//! deleted, so only devices that this node created are ever touched. Queue settings are made here
//! because only the agent writes sysfs. Devices whose data plane died are recovered by its
//! successor; those that may not be served again are taken to the end where nothing waits.
//!
//! Calls of the driver block, so they run on threads of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use super::channel::blocking;
use super::plan::Plan;
use super::plane;
use super::protocol::{ErrorKind, ErrorReply, FrontEnd, ServeConfig, ServeRequest};
use crate::engine::{NodeId, Term};
use crate::target::processes;
use crate::target::ublk::{
    DeviceRecord, DeviceState, ErrorPath, Leftover, LeftoverState, RecordDir, UblkControl,
    UblkError, apply_queue_settings, fail_device, find_leftovers, queue_settings_in_force,
};

/// How long short-lived openers (udev) are waited for before a device counts as in use.
const GRACE: Duration = Duration::from_secs(2);
/// How long the stop of an orphaned device may take.
const STOP: Duration = Duration::from_secs(10);
/// How long a data plane may take to note that its queue is ready.
const CONFIRM: Duration = Duration::from_secs(5);

/// A volume whose front end is a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    volume: u16,
    minor: u32,
    cookie: u64,
}

/// The block devices of one resource.
#[derive(Clone, Debug)]
pub struct Fronts {
    resource: String,
    records: PathBuf,
    devices: Vec<Device>,
}

/// Why something could not be done for a device.
#[derive(Debug, thiserror::Error)]
enum FrontError {
    #[error(transparent)]
    Ublk(#[from] UblkError),
    #[error(transparent)]
    Record(#[from] crate::target::ublk::RecordError),
    #[error("/dev/ublkb{id} is taken: {owner}")]
    Taken { id: u32, owner: String },
    #[error("the operating system gives no random numbers")]
    Random,
    #[error("the work on a device was broken off")]
    Broken,
}

impl From<FrontError> for ErrorReply {
    fn from(error: FrontError) -> ErrorReply {
        let (kind, help) = match &error {
            FrontError::Ublk(UblkError::Busy { .. }) => (
                ErrorKind::Refused,
                "unmount it or end what has it open, then repeat the command; `lockstep secondary \
                 --force` does not wait: its requests fail and its mounts are detached",
            ),
            FrontError::Taken { .. } => (
                ErrorKind::Refused,
                "give the volume another minor (`device /dev/ublkbN`), or end the other owner",
            ),
            FrontError::Record(_) => (
                ErrorKind::Failed,
                "check the state directory (--state-dir): is it writable and not full?",
            ),
            _ => (
                ErrorKind::Failed,
                "`device nbd+unix:///...` is the front end that works without ublk",
            ),
        };
        ErrorReply::new(kind, error, help)
    }
}

impl Fronts {
    /// The devices of `plan`; their records are in `records`. Cookies of recorded devices are kept.
    pub fn new(plan: &Plan, records: &Path) -> Result<Fronts, ErrorReply> {
        let mut fronts = Fronts {
            resource: plan.name().to_owned(),
            records: records.to_owned(),
            devices: Vec::new(),
        };
        for volume in &plan.serve.volumes {
            if let FrontEnd::Ublk { minor } = volume.front {
                fronts.devices.push(Device {
                    volume: volume.volume,
                    minor,
                    cookie: fresh_cookie()?,
                });
            }
        }
        for record in fronts.recorded()? {
            for device in &mut fronts.devices {
                if (device.volume, device.minor) == (record.volume, record.id) {
                    device.cookie = record.cookie;
                }
            }
        }
        Ok(fronts)
    }

    /// Tells the data plane which devices are its own.
    pub fn name_devices(&self, config: &mut ServeConfig) {
        for volume in &mut config.volumes {
            let device = self.devices.iter().find(|d| d.volume == volume.volume);
            volume.cookie = device.map_or(0, |device| device.cookie);
        }
    }

    /// The records of this resource.
    fn recorded(&self) -> Result<Vec<DeviceRecord>, FrontError> {
        if self.devices.is_empty() && !self.records.exists() {
            return Ok(Vec::new());
        }
        let (records, damaged) = RecordDir::open(&self.records)?.load()?;
        for error in damaged {
            warn!(%error, "device record left alone");
        }
        let mine = |record: &DeviceRecord| record.resource == self.resource;
        Ok(records.into_iter().filter(mine).collect())
    }

    /// Makes sure that the devices may be added, and records them under `term`.
    pub async fn prepare(&self, term: Term) -> Result<(), ErrorReply> {
        self.work(move |fronts| {
            let mut control = UblkControl::open()?;
            for device in &fronts.devices {
                match control.info(device.minor) {
                    Err(UblkError::NoDevice { .. }) => {}
                    Err(error) => return Err(error.into()),
                    Ok(info) if info.cookie != device.cookie => {
                        return Err(FrontError::Taken {
                            id: device.minor,
                            owner: owner(info.server),
                        });
                    }
                    Ok(info) if info.state == DeviceState::Dead => {
                        control.delete_async(device.minor)?;
                    }
                    Ok(_) => {}
                }
            }
            fronts.write_records(&fronts.devices, term)
        })
        .await
    }

    /// Records the devices under the term that the promotion led to.
    pub async fn record(&self, term: Term) -> Result<(), ErrorReply> {
        self.work(move |fronts| fronts.write_records(&fronts.devices, term))
            .await
    }

    fn write_records<'a>(
        &self,
        devices: impl IntoIterator<Item = &'a Device>,
        term: Term,
    ) -> Result<(), FrontError> {
        for device in devices {
            RecordDir::open(&self.records)?.write(&self.record_of(device, term))?;
        }
        Ok(())
    }

    fn record_of(&self, device: &Device, term: Term) -> DeviceRecord {
        let Device {
            volume,
            minor,
            cookie,
        } = *device;
        DeviceRecord::new(minor, &self.resource, volume, term, cookie)
    }

    /// Takes the block devices away, unless somebody uses one: then nothing is changed for it and
    /// the error names the user.
    pub async fn release(&self) -> Result<(), ErrorReply> {
        self.work(|fronts| {
            let Some(mut control) = driver()? else {
                return Ok(());
            };
            for device in &fronts.devices {
                match control.info(device.minor) {
                    Ok(info) if info.cookie == device.cookie => {
                        control.try_stop(device.minor, GRACE)?;
                    }
                    Ok(_) | Err(UblkError::NoDevice { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        })
        .await
    }

    /// Ends the use of the block devices, whoever uses them: their requests fail and their mounts
    /// are detached. Says who still has one open.
    pub async fn cut(&self) -> Result<Vec<String>, ErrorReply> {
        self.work(|fronts| {
            let Some(mut control) = driver()? else {
                return Ok(Vec::new());
            };
            let mut held = Vec::new();
            for device in &fronts.devices {
                match control.info(device.minor) {
                    Ok(info) if info.cookie == device.cookie => {
                        let record = fronts.record_of(device, Term::ZERO);
                        held.extend(fail(&mut control, &record)?);
                    }
                    Ok(_) | Err(UblkError::NoDevice { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(held)
        })
        .await
    }

    /// Deletes devices that are stopped, and says how many.
    pub async fn delete(&self) -> Result<usize, ErrorReply> {
        self.work(|fronts| {
            let Some(mut control) = driver()? else {
                return Ok(0);
            };
            let mut deleted = 0;
            for device in &fronts.devices {
                match control.info(device.minor) {
                    Ok(info) if info.cookie == device.cookie => {
                        if info.state == DeviceState::Dead {
                            control.delete_async(device.minor)?;
                            deleted += 1;
                        }
                    }
                    Ok(_) | Err(UblkError::NoDevice { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(deleted)
        })
        .await
    }

    /// Forgets devices that were deleted and that no data plane will add any more.
    pub async fn forget(&self) -> Result<(), ErrorReply> {
        self.work(|fronts| {
            let records = RecordDir::open(&fronts.records)?;
            for device in &fronts.devices {
                records.remove(device.minor)?;
            }
            Ok(())
        })
        .await
    }

    /// Records devices that are not recorded yet, so that a later agent knows the cookies that the
    /// data plane was told.
    pub fn enlist(&self) -> Result<(), ErrorReply> {
        let recorded = self.recorded()?;
        let missing = |device: &&Device| recorded.iter().all(|r| r.cookie != device.cookie);
        self.write_records(self.devices.iter().filter(missing), Term::ZERO)?;
        Ok(())
    }

    /// Devices that an earlier data plane left with nobody serving them; the record of one that
    /// is gone or somebody else's is dropped.
    pub async fn orphans(&self) -> Result<Vec<DeviceRecord>, ErrorReply> {
        let records = self.recorded()?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        self.with_control(move |fronts, control| {
            let directory = RecordDir::open(&fronts.records)?;
            let mut orphans = Vec::new();
            for Leftover { record, state } in find_leftovers(control, records)? {
                match state {
                    LeftoverState::Gone | LeftoverState::Foreign => directory.remove(record.id)?,
                    LeftoverState::Stopped => {
                        control.delete_async(record.id)?;
                        directory.remove(record.id)?;
                    }
                    LeftoverState::Orphaned => orphans.push(record),
                    LeftoverState::Served { server } => {
                        warn!(
                            id = record.id,
                            server, "recorded device is served elsewhere"
                        );
                    }
                }
            }
            Ok(orphans)
        })
        .await
    }

    /// Ends devices that may not be served again: queued requests fail, mounts are detached.
    /// Says who still has one open; its number stays taken until they let go.
    pub async fn fail(&self, orphans: Vec<DeviceRecord>) -> Result<Vec<String>, ErrorReply> {
        if orphans.is_empty() {
            return Ok(Vec::new());
        }
        self.with_control(move |fronts, control| {
            let directory = RecordDir::open(&fronts.records)?;
            let mut held = Vec::new();
            for record in orphans {
                held.extend(fail(control, &record)?);
                directory.remove(record.id)?;
            }
            Ok(held)
        })
        .await
    }

    /// Makes the queue settings of a device and tells the data plane, which takes no writes so long.
    pub async fn confirm(&self, socket: PathBuf, volume: u16) -> Result<(), ErrorReply> {
        let Some(device) = self.devices.iter().find(|d| d.volume == volume) else {
            return Ok(());
        };
        let minor = device.minor;
        let exchange = async |request: ServeRequest| {
            plane::exchange(&self.resource, &socket, &request, &[], CONFIRM).await
        };
        let in_force = blocking(move || queue_settings_in_force(minor)).await;
        if in_force != Some(true) {
            exchange(ServeRequest::QueueFreezes { volume }).await?;
        }
        let settings = blocking(move || apply_queue_settings(minor)).await;
        match settings {
            None => return Err(FrontError::Broken.into()),
            Some(Err(error)) => {
                return Err(ErrorReply::new(
                    ErrorKind::Failed,
                    format!("/dev/ublkb{minor} takes no writes yet: {error}"),
                    "is /sys mounted and writable?",
                ));
            }
            Some(Ok(())) => {}
        }
        exchange(ServeRequest::QueueConfirmed { volume }).await?;
        info!(
            resource = self.resource,
            volume, minor, "queue settings made"
        );
        Ok(())
    }

    /// Volumes with a block device.
    pub fn volumes(&self) -> Vec<u16> {
        self.devices.iter().map(|device| device.volume).collect()
    }

    /// Runs work that may block, if there is any device to work on.
    async fn work<T: Default + Send + 'static>(
        &self,
        work: impl FnOnce(&Fronts) -> Result<T, FrontError> + Send + 'static,
    ) -> Result<T, ErrorReply> {
        if self.devices.is_empty() {
            return Ok(T::default());
        }
        let fronts = self.clone();
        let done = blocking(move || work(&fronts)).await;
        Ok(done.unwrap_or(Err(FrontError::Broken))?)
    }

    /// Runs work on the driver, whether devices are configured now or were once. Without a driver
    /// there is nothing to work on.
    async fn with_control<T: Default + Send + 'static>(
        &self,
        work: impl FnOnce(&Fronts, &mut UblkControl) -> Result<T, FrontError> + Send + 'static,
    ) -> Result<T, ErrorReply> {
        let fronts = self.clone();
        let done = blocking(move || match driver()? {
            Some(mut control) => work(&fronts, &mut control),
            None => Ok(T::default()),
        })
        .await;
        Ok(done.unwrap_or(Err(FrontError::Broken))?)
    }
}

/// Ends a device; who still has it open.
fn fail(control: &mut UblkControl, record: &DeviceRecord) -> Result<Vec<String>, UblkError> {
    let id = record.id;
    let ErrorPath {
        detached,
        remaining,
        deleted,
    } = fail_device(control, record, STOP)?;
    warn!(id, ?detached, deleted, "device ended: its requests fail");
    let held = remaining
        .iter()
        .map(|user| format!("/dev/ublkb{id} {user}"));
    Ok(held.collect())
}

/// The driver, to look after devices that may exist; none where it is not loaded, or too old, and
/// there is no device at all.
fn driver() -> Result<Option<UblkControl>, UblkError> {
    match UblkControl::open() {
        Ok(control) => Ok(Some(control)),
        Err(UblkError::NoDriver | UblkError::FeatureMissing { .. }) if !any_device() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the driver has any device, whoever made it.
fn any_device() -> bool {
    let devices = std::fs::read_dir("/sys/class/ublk-char");
    devices.is_ok_and(|mut devices| devices.next().is_some())
}

fn fresh_cookie() -> Result<u64, FrontError> {
    getrandom::u64().map_err(|_| FrontError::Random)
}

/// Who serves a device, for a message.
fn owner(server: Option<u32>) -> String {
    let Some(pid) = server else {
        return "its server is gone and it is not ours".to_owned();
    };
    format!("{} serves it", processes::name(pid))
}

/// Reads a term as `status` shows it.
pub fn term_of(text: &str) -> Option<Term> {
    let mut parts = text.splitn(3, '.');
    Some(Term {
        counter: parts.next()?.parse().ok()?,
        node: NodeId(parts.next()?.parse().ok()?),
        random: u32::from_str_radix(parts.next()?, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::tests::plan;

    #[test]
    fn terms_are_read_as_they_are_shown() {
        let term = Term {
            counter: 7,
            node: NodeId(1),
            random: 0xabc,
        };
        assert_eq!(term_of(&term.to_string()), Some(term));
        for bad in ["", "1", "1.2", "1.2.x", "x.1.0"] {
            assert_eq!(term_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_recorded_cookie_is_kept_and_handed_down() {
        let dir = tempfile::tempdir().expect("dir");
        let mut plan = plan("r0", FrontEnd::Ublk { minor: 5 });
        let first = Fronts::new(&plan, dir.path()).expect("fronts");
        first.enlist().expect("writes");
        let second = Fronts::new(&plan, dir.path()).expect("fronts");
        assert_eq!(first.devices, second.devices);
        second.name_devices(&mut plan.serve);
        assert_eq!(plan.serve.volumes[0].cookie, first.devices[0].cookie);
        assert_ne!(plan.serve.volumes[0].cookie, 0);
        // A record of another minor is about another device.
        plan.serve.volumes[0].front = FrontEnd::Ublk { minor: 6 };
        let moved = Fronts::new(&plan, dir.path()).expect("fronts");
        assert_ne!(moved.devices[0].cookie, first.devices[0].cookie);
    }

    #[test]
    fn without_a_driver_there_is_no_device_to_look_after() {
        if Path::new("/dev/ublk-control").exists() {
            return;
        }
        let plan = plan("r0", FrontEnd::Ublk { minor: 5 });
        tokio_uring::start(async {
            let dir = tempfile::tempdir().expect("dir");
            let fronts = Fronts::new(&plan, dir.path()).expect("fronts");
            fronts.enlist().expect("writes");
            let refused = fronts.prepare(Term::ZERO).await.expect_err("no driver");
            assert!(refused.reason.contains("modprobe ublk_drv"), "{refused:?}");
            fronts.release().await.expect("nothing to do");
            fronts.delete().await.expect("nothing to do");
            assert_eq!(fronts.orphans().await, Ok(Vec::new()));
        });
    }

    #[test]
    fn other_front_ends_need_no_driver() {
        let plan = plan(
            "r0",
            FrontEnd::NbdTcp {
                address: "127.0.0.1:1".to_owned(),
                export: "r0".to_owned(),
            },
        );
        tokio_uring::start(async {
            let dir = tempfile::tempdir().expect("dir");
            let fronts = Fronts::new(&plan, dir.path()).expect("fronts");
            fronts.prepare(Term::ZERO).await.expect("nothing to do");
            fronts.release().await.expect("nothing to do");
            fronts.delete().await.expect("nothing to do");
            fronts.enlist().expect("nothing to do");
            assert_eq!(fronts.orphans().await, Ok(Vec::new()));
        });
    }
}
