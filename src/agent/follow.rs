//! Following a data plane: its stream of notices goes into the status, and a block device that has
//! appeared gets its queue settings.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;
use tracing::{error, warn};

use super::channel::{Channel, MAX_REPLY};
use super::front::Fronts;
use super::protocol::{Reply, ServeNotice, ServeRequest};
use super::status::Status;

/// How often the queue settings of a device are tried, and the pause: as long as `primary` waits.
const CONFIRM_TRIES: u32 = 30;
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

/// Between attempts to begin the stream.
const AGAIN: Duration = Duration::from_millis(100);

/// Follows the data plane at `socket` for ever; whoever started this ends it with the process.
pub async fn follow(socket: PathBuf, fronts: Option<Fronts>, status: Rc<Status>) {
    loop {
        let begin = ServeRequest::Events;
        if let Ok(mut channel) = Channel::open_with(&socket, MAX_REPLY, &begin, &[]) {
            catch_up(fronts.as_ref(), &socket, &status).await;
            while let Ok(Reply::Item(notice)) = channel.receive().await {
                on_notice(fronts.as_ref(), &socket, &status, notice);
            }
        }
        // The process is dying, or did not take the stream yet.
        sleep(AGAIN).await;
    }
}

/// Makes the settings of devices that appeared before the stream of notices began.
async fn catch_up(fronts: Option<&Fronts>, socket: &Path, status: &Rc<Status>) {
    let Some(fronts) = fronts else { return };
    if fronts.volumes().is_empty() {
        return;
    }
    let view = status.view().await;
    for device in view.devices.iter().filter(|device| device.serving) {
        confirm(
            fronts.clone(),
            socket.to_owned(),
            Rc::clone(status),
            device.volume,
        );
    }
}

/// A data plane has told something.
fn on_notice(fronts: Option<&Fronts>, socket: &Path, status: &Rc<Status>, notice: Value) {
    match serde_json::from_value(notice) {
        Ok(ServeNotice::DeviceStarted { volume, .. }) => {
            if let Some(fronts) = fronts {
                confirm(fronts.clone(), socket.to_owned(), Rc::clone(status), volume);
            }
        }
        // Deleted by the order that stopped it.
        Ok(ServeNotice::DeviceStopped { .. }) => {}
        Ok(ServeNotice::Transition(step)) => status.step(&step),
        Ok(ServeNotice::Finished(of)) => status.finished(&of),
        Ok(ServeNotice::Happened(what)) => tracing::debug!(what),
        Ok(ServeNotice::Picture(picture)) => match serde_json::from_value(picture) {
            Ok(view) => status.pictured(view),
            Err(error) => warn!(%error, "picture not understood"),
        },
        Err(error) => warn!(%error, "notice not understood"),
    }
}

/// Makes the queue settings beside whatever the keeper does: `primary` waits for them.
fn confirm(fronts: Fronts, socket: PathBuf, status: Rc<Status>, volume: u16) {
    tokio_uring::spawn(async move {
        for attempt in 1..=CONFIRM_TRIES {
            match fronts.confirm(socket.clone(), volume).await {
                Ok(()) if attempt == 1 => return,
                Ok(()) => return status.set_disk_trouble(volume, None),
                Err(error) => {
                    error!(reason = error.reason, attempt, "queue settings");
                    status.set_disk_trouble(volume, Some(error.reason));
                    sleep(CONFIRM_EVERY).await;
                }
            }
        }
    });
}
