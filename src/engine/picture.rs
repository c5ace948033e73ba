//! The picture of the engine that `status` shows.

use super::hold::PauseCause;
use super::resource::Engine;
use super::status::{
    ConnectionStatus, DeviceStatus, PeerDeviceStatus, ReplicationState, ResourceStatus,
};

impl Engine {
    /// The state of the resource as seen from outside.
    pub fn status(&self) -> ResourceStatus {
        ResourceStatus {
            role: self.role,
            term: self.term,
            suspended: self.retake.is_some(),
            devices: (0..self.volumes.len())
                .map(|index| self.device_status(index))
                .collect(),
            connection: ConnectionStatus {
                peer: self.config.peer,
                state: self.connection_state(),
                peer_role: self.peer_role(),
                reason: self.standing.refusal.clone(),
                last_loss: self.standing.last_loss.clone(),
                peer_devices: (0..self.volumes.len())
                    .map(|i| self.peer_device_status(i))
                    .collect(),
            },
        }
    }

    fn device_status(&self, index: usize) -> DeviceStatus {
        let v = &self.volumes[index];
        let upper = self
            .writes
            .values()
            .filter(|write| write.volume == index)
            .count();
        DeviceStatus {
            volume: v.id,
            disk: v.disk,
            size: v.size,
            read: v.counters.read,
            written: v.counters.written,
            al_writes: v.counters.al_writes,
            bm_writes: v.counters.bm_writes,
            upper_pending: u32::try_from(upper).unwrap_or(u32::MAX),
            lower_pending: v.counters.lower_pending,
            current: v.data_generation().0,
            base: v.peer().base.0,
            history: v.ancestry().iter().map(|generation| generation.0).collect(),
        }
    }

    fn peer_device_status(&self, index: usize) -> PeerDeviceStatus {
        let v = &self.volumes[index];
        let out_of_sync = self.out_of_sync(index);
        let synced = |total: u64| {
            let total = total.max(out_of_sync);
            (total - out_of_sync, total)
        };
        let (done, total) = match (v.replication, &v.sync) {
            (ReplicationState::SyncSource, Some(sync)) => synced(sync.total()),
            (ReplicationState::SyncTarget, _) if v.has_disk() => synced(v.counters.sync_total),
            _ => v.verify.progress().unwrap_or_default(),
        };
        let unacked = u32::try_from(self.transfer.unacked.len()).unwrap_or(u32::MAX);
        PeerDeviceStatus {
            volume: v.id,
            replication: v.shown_replication(),
            peer_disk: v.peer_disk,
            received: v.counters.received,
            sent: v.counters.sent,
            out_of_sync,
            pending: unacked,
            unacked,
            sync_done: done,
            sync_total: total,
            paused_by_user: v.paused.by(PauseCause::User),
            paused_for_another: v.paused.by(PauseCause::Dependency),
            paused_by_peer: v.paused.by_peer(),
            verify: v.verify.status(),
        }
    }
}
