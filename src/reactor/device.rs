//! Block devices: added, started, recovered and stopped beside the ring thread, because each of
//! these calls waits, some of them for the ring thread to serve the device's first requests.

use std::thread;
use std::time::Duration;

use super::orders::{Order, Orders};
use crate::engine::Shape;
use crate::target::ublk::{DEFAULT_DEPTH, DeviceInfo, Geometry, UblkControl, UblkError, UblkQueue};

/// How long the driver may take for a step.
const LIMIT: Duration = Duration::from_secs(10);

/// The device to make.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Index of the volume, and the number of the attempt, which come back in every order.
    pub index: usize,
    pub attempt: u64,
    pub minor: u32,
    pub cookie: u64,
    pub shape: Shape,
}

/// What a helper thread tells the ring thread.
pub enum DeviceOrder {
    /// The queue is to be driven from now on.
    Opened {
        index: usize,
        attempt: u64,
        queue: Box<UblkQueue>,
    },
    /// The block device exists.
    Started { index: usize, attempt: u64 },
    /// There will be no device.
    Failed {
        index: usize,
        attempt: u64,
        reason: String,
    },
}

/// How the device comes to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Added,
    /// It outlived an earlier data plane.
    Recovered,
}

/// Makes a device, or takes over the one that an earlier data plane of the volume left.
pub fn open(wanted: Wanted, orders: Orders) {
    let Wanted { index, attempt, .. } = wanted;
    let fallback = orders.clone();
    let work = move || {
        if let Err(error) = make(wanted, &orders) {
            orders.send(Order::Device(DeviceOrder::Failed {
                index,
                attempt,
                reason: error.to_string(),
            }));
        }
    };
    let spawned = thread::Builder::new().name("device".into()).spawn(work);
    if let Err(error) = spawned {
        fallback.send(Order::Device(DeviceOrder::Failed {
            index,
            attempt,
            reason: format!("no thread for the block device: {error}"),
        }));
    }
}

fn make(wanted: Wanted, orders: &Orders) -> Result<(), UblkError> {
    let mut control = UblkControl::open()?;
    let (info, way) = prepare(&mut control, wanted)?;
    let result = bring_up(&mut control, wanted, &info, way, orders);
    if result.is_err() && way == Way::Added {
        // Nobody has seen it yet; a failure to delete leaves it to the agent's record.
        let _ = control.delete_async(wanted.minor);
    }
    result
}

fn prepare(control: &mut UblkControl, wanted: Wanted) -> Result<(DeviceInfo, Way), UblkError> {
    let id = wanted.minor;
    match control.info(id) {
        Ok(info) if info.cookie == wanted.cookie => {
            let info = control.begin_recovery(id, LIMIT)?;
            Ok((info, Way::Recovered))
        }
        Ok(_) => Err(UblkError::IdTaken { id }),
        Err(UblkError::NoDevice { .. }) => {
            let info = control.add(id, DEFAULT_DEPTH, wanted.cookie)?;
            Ok((info, Way::Added))
        }
        Err(error) => Err(error),
    }
}

fn bring_up(
    control: &mut UblkControl,
    wanted: Wanted,
    info: &DeviceInfo,
    way: Way,
    orders: &Orders,
) -> Result<(), UblkError> {
    let Wanted {
        index,
        attempt,
        minor,
        shape,
        ..
    } = wanted;
    if way == Way::Added {
        let geometry = Geometry {
            size: shape.bytes,
            logical_block: shape.logical_block,
            physical_block: 4096,
            io_opt: 4096,
            discard: shape.discard.then_some(4096),
        };
        control.set_params(minor, &geometry)?;
    }
    let queue = Box::new(UblkQueue::open(info, shape.bytes, LIMIT)?);
    orders.send(Order::Device(DeviceOrder::Opened {
        index,
        attempt,
        queue,
    }));
    match way {
        Way::Added => control.start(minor, LIMIT)?,
        Way::Recovered => control.end_recovery(minor, LIMIT)?,
    }
    orders.send(Order::Device(DeviceOrder::Started { index, attempt }));
    Ok(())
}

/// Stops a device whoever uses it; its queue then comes to its end. One that is gone already is
/// left alone.
pub fn stop(minor: u32) {
    let work = move || {
        let stopped = UblkControl::open().and_then(|mut control| control.stop(minor, LIMIT));
        match stopped {
            Ok(()) | Err(UblkError::NoDevice { .. }) => {}
            Err(error) => tracing::warn!(minor, %error, "block device not stopped"),
        }
    };
    if let Err(error) = thread::Builder::new().name("device".into()).spawn(work) {
        tracing::error!(minor, %error, "no thread to stop the block device");
    }
}
