//! Following a data plane: its stream of notices goes into the status, a block device that has
//! appeared gets its queue settings, and what shall be on record goes to the voters.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;
use tracing::{error, warn};

use super::channel::{Channel, MAX_REPLY};
use super::cluster::Cluster;
use super::front::Fronts;
use super::protocol::{Reply, ServeNotice, ServeRequest};
use super::status::Status;

/// How often the queue settings of a device are tried, and the pause: as long as `primary` waits.
const CONFIRM_TRIES: u32 = 30;
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

/// Between attempts to begin the stream.
const AGAIN: Duration = Duration::from_millis(100);

/// See the module's description.
pub struct Follower {
    pub resource: String,
    /// Of the data plane.
    pub socket: PathBuf,
    pub fronts: Option<Fronts>,
    pub status: Rc<Status>,
    pub cluster: Option<Rc<Cluster>>,
}

impl Follower {
    /// Follows the data plane for ever; whoever started this ends it with the process.
    pub async fn follow(self) {
        loop {
            let begin = ServeRequest::Events;
            if let Ok(mut channel) = Channel::open_with(&self.socket, MAX_REPLY, &begin, &[]) {
                self.catch_up().await;
                while let Ok(Reply::Item(notice)) = channel.receive().await {
                    self.on_notice(notice);
                }
            }
            // The process is dying, or did not take the stream yet.
            sleep(AGAIN).await;
        }
    }

    /// Makes the settings of devices that appeared before the stream of notices began.
    async fn catch_up(&self) {
        let Some(fronts) = &self.fronts else { return };
        if fronts.volumes().is_empty() {
            return;
        }
        let view = self.status.view().await;
        for device in view.devices.iter().filter(|device| device.serving) {
            self.confirm(fronts, device.volume);
        }
    }

    fn confirm(&self, fronts: &Fronts, volume: u16) {
        let (socket, status) = (self.socket.clone(), Rc::clone(&self.status));
        confirm(fronts.clone(), socket, status, volume);
    }

    /// A data plane has told something.
    fn on_notice(&self, notice: Value) {
        let status = &self.status;
        match serde_json::from_value(notice) {
            Ok(ServeNotice::DeviceStarted { volume, .. }) => {
                if let Some(fronts) = &self.fronts {
                    self.confirm(fronts, volume);
                }
            }
            // Deleted by the order that stopped it.
            Ok(ServeNotice::DeviceStopped { .. }) => {}
            Ok(ServeNotice::Transition(step)) => status.step(&step),
            Ok(ServeNotice::Finished(of)) => status.finished(&of),
            Ok(ServeNotice::Happened(what)) => tracing::debug!(what),
            Ok(ServeNotice::RecordAtVoter {
                volume,
                generation,
                term,
            }) => {
                if let Some(cluster) = &self.cluster {
                    cluster.record(&self.resource, volume, generation, term);
                }
            }
            Ok(ServeNotice::Picture(picture)) => match serde_json::from_value(picture) {
                Ok(view) => status.pictured(view),
                Err(error) => warn!(%error, "picture not understood"),
            },
            Err(error) => warn!(%error, "notice not understood"),
        }
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
