//! A primary takes a disk back while applications go on.
//!
//! A primary whose own disk is gone works on its peer's. A disk that is attached to it becomes
//! the target of a sync from the peer: until its end reads and promises rest on the peer's copy,
//! and writes go to both. What is to be synced is found out in a new handshake; between two
//! sessions nobody can serve what only the peer has, so such requests are *held* meanwhile:
//!
//! | step     | waits for                            | when it is late                       |
//! |----------|--------------------------------------|---------------------------------------|
//! | Draining | requests under way at the peer       | the attach is refused                 |
//! | Storing  | the disk's record that it is behind  | the disk counts as failed             |
//! | Meeting  | the new session                      | requests go on, and fail where nobody |
//! |          |                                      | has the data                          |
//!
//! Rule 9 has two sources here, and the order of the stream between them decides. The peer lets a
//! write wait while it reads a sync block over the same range, and reads a block only when no
//! write over it is open; so a write that a block does not contain is answered after that block
//! was sent. The primary refuses a block over a write that is not answered yet (its bits stay and
//! it comes again), and lets a write wait while a block over the same range is on its way to the
//! disk.

use std::time::Duration;

use super::event::Request;
use super::ids::{CommandId, Generation, Time};
use super::message::VolumeState;
use super::persist::VolumeImage;
use super::reason::{LinkLoss, Refusal};
use super::resource::Engine;
use super::status::{DiskState, Role};
use super::volume::OwnDisk;

/// How long requests under way at the peer may take.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the disk may take for its superblock.
const STORE: Duration = Duration::from_secs(5);
/// Errno of a disk that failed while it was attached, and of one that does not answer.
const EIO: i32 = 5;
const ETIMEDOUT: i32 = 110;
/// Generations of a lost disk, newest first, that may still be what it holds: a step to a newer
/// one may have been lost with it.
const LAST_STEPS: usize = 2;

/// A disk on its way back to a primary.
pub(super) struct Retake {
    command: CommandId,
    volume: usize,
    deadline: Time,
    step: Step,
}

enum Step {
    Draining(Box<VolumeImage>),
    Storing(u64),
    Meeting,
}

impl Engine {
    /// An attach to the primary.
    pub(super) fn begin_retake(
        &mut self,
        command: CommandId,
        index: usize,
        image: Box<VolumeImage>,
    ) {
        if let Some(refusal) = self.retake_refusal(index, &image) {
            return self.refuse(command, refusal);
        }
        self.retake = Some(Retake {
            command,
            volume: index,
            deadline: self.now.after(DRAIN),
            step: Step::Draining(image),
        });
        self.progress = true;
    }

    /// Why the primary cannot take this disk now. The peer must know it for an older copy: a
    /// handshake that fails would cost the only copy that is in use.
    fn retake_refusal(&self, index: usize, image: &VolumeImage) -> Option<Refusal> {
        let v = &self.volumes[index];
        let volume = v.id;
        if self.retake.is_some() || self.change.is_some() {
            return Some(Refusal::Busy);
        }
        if self.replicating().is_none() {
            return Some(Refusal::NotConnected);
        }
        if v.peer_disk != DiskState::UpToDate {
            return Some(Refusal::PeerNotUpToDate { volume });
        }
        let OwnDisk::Left(theirs) = v.own_disk else {
            return Some(Refusal::Busy);
        };
        let mine = image.superblock.current;
        let steps = v.superblock.history.iter().take(LAST_STEPS);
        let known =
            mine.is_fresh() || mine == v.superblock.current || { steps }.any(|g| *g == mine);
        if !known {
            return Some(Refusal::UnrelatedData {
                volume,
                mine,
                theirs,
            });
        }
        if image.logical_block > v.live_block {
            return Some(Refusal::BlockSizeMismatch { volume });
        }
        let have = match image.superblock.agreed_size {
            0 => image.capacity,
            agreed => agreed.min(image.capacity),
        };
        (have < v.size).then_some(Refusal::DiskTooSmall {
            volume,
            need: v.size,
            have,
        })
    }

    pub(super) fn settle_retake(&mut self) {
        let late = self.now >= self.retake.as_ref().map_or(Time(u64::MAX), |r| r.deadline);
        let Some(retake) = self.retake.take() else {
            return;
        };
        let Retake {
            command, volume, ..
        } = retake;
        // Nobody waits for the applications any more once they are sent away.
        let useless = self.role != Role::Primary || !self.serving;
        match retake.step {
            Step::Draining(_) if late || useless => self.end_retake(command, Err(Refusal::Busy)),
            Step::Draining(_) if self.replicating().is_none() => {
                self.end_retake(command, Err(Refusal::LinkLost));
            }
            Step::Draining(image) if !self.held_io_open() => {
                let version = self.load_behind(volume, *image);
                self.retake = Some(Retake {
                    step: Step::Storing(version),
                    deadline: self.now.after(STORE),
                    ..retake
                });
                self.progress = true;
            }
            Step::Storing(_) | Step::Meeting if !self.volumes[volume].has_disk() => {
                self.end_retake(command, Err(Refusal::Metadata { errno: EIO }));
            }
            Step::Storing(version) if self.volumes[volume].stored(version) => {
                self.retake = Some(Retake {
                    step: Step::Meeting,
                    deadline: self.now.after(self.config.timeouts.handshake),
                    ..retake
                });
                // The peer learns of the disk in a new handshake.
                self.drop_link(LinkLoss::Renegotiate);
                self.progress = true;
            }
            Step::Storing(_) if late => {
                self.fail_disk(volume, ETIMEDOUT);
                self.end_retake(command, Err(Refusal::Metadata { errno: ETIMEDOUT }));
            }
            Step::Meeting
                if late || useless || self.replicating().is_some() || !self.standing.wanted =>
            {
                let refused = self.standing.refusal.clone();
                self.end_retake(command, refused.map_or(Ok(()), Err));
            }
            step => self.retake = Some(Retake { step, ..retake }),
        }
    }

    /// Loads the disk as one that a newer copy exists of, durably.
    fn load_behind(&mut self, index: usize, image: VolumeImage) -> u64 {
        // The log is a new one: what waits holds nothing in it.
        self.forget_extents(index);
        let (node, term, size) = (self.config.node, self.term, self.volumes[index].size);
        self.load(index, image);
        let v = &mut self.volumes[index];
        v.size = size;
        v.change(|superblock| {
            superblock.node = node;
            superblock.term = term;
            superblock.agreed_size = size;
            superblock.primary = true;
            superblock.outdated = !superblock.inconsistent;
        })
    }

    /// Held requests go on, and the command is answered.
    fn end_retake(&mut self, command: CommandId, result: Result<(), Refusal>) {
        match result {
            Ok(()) => self.done(command),
            Err(refusal) => self.refuse(command, refusal),
        }
        for request in std::mem::take(&mut self.held) {
            self.on_request(request);
        }
        self.recheck = true;
        self.progress = true;
    }

    /// Whether requests for a volume are held.
    pub(super) fn holds(&self, volume: usize) -> bool {
        self.retake.is_some() && self.rests_on_peer(volume)
    }

    fn rests_on_peer(&self, volume: usize) -> bool {
        self.volumes[volume].disk != DiskState::UpToDate
    }

    pub(super) fn hold(&mut self, request: Request) {
        self.held.push(request);
    }

    fn held_io_open(&self) -> bool {
        (0..self.volumes.len())
            .any(|volume| self.rests_on_peer(volume) && self.volume_io_open(volume))
    }

    /// When the step under way is late.
    pub(super) fn retake_deadline(&self) -> Option<Time> {
        self.retake.as_ref().map(|retake| retake.deadline)
    }

    /// Whether the peer still has the data that this node, which is primary, works with.
    pub(super) fn data_is_at(&self, index: usize, theirs: &VolumeState) -> bool {
        let knows = |live: Generation| {
            theirs.current == live || theirs.base == live || theirs.history.contains(&live)
        };
        match self.volumes[index].own_disk {
            OwnDisk::Left(live) | OwnDisk::Asked(live) | OwnDisk::Recording(live) => knows(live),
            OwnDisk::Current => false,
        }
    }
}
