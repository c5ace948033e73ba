//! The sending half that links share: one buffer to fill while the other one leaves.

use crate::frame::{FrameWriter, QueueError};
use crate::packet::Envelope;

/// Frames on their way out, in order.
#[derive(Debug)]
pub(crate) struct Outbound {
    writer: FrameWriter,
    leaving: Vec<u8>,
    /// Bytes of `leaving` that have left.
    sent: usize,
}

impl Outbound {
    /// Two buffers of `limit` bytes each, allocated now.
    pub fn new(limit: usize) -> Outbound {
        let writer = FrameWriter::new(limit);
        Outbound {
            leaving: Vec::with_capacity(writer.room()),
            writer,
            sent: 0,
        }
    }

    pub fn queue(&mut self, envelope: &Envelope, data: &[u8]) -> Result<usize, QueueError> {
        self.writer.append(envelope, data)
    }

    /// The bytes to send next. They stay where they are until [`Outbound::sent`] says that they
    /// have left.
    pub fn front(&mut self) -> &[u8] {
        if self.sent == self.leaving.len() && self.writer.queued() > 0 {
            self.writer.swap(&mut self.leaving);
            self.sent = 0;
        }
        self.leaving.get(self.sent..).unwrap_or(&[])
    }

    /// The first `count` bytes of the front have left.
    pub fn sent(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count).min(self.leaving.len());
    }

    pub fn queued(&self) -> usize {
        self.writer.queued() + self.leaving.len() - self.sent
    }

    pub fn room(&self) -> usize {
        self.writer.room()
    }

    /// Gives up the memory of the front without freeing it: the kernel may still read it.
    pub fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.leaving));
        self.sent = 0;
    }
}
