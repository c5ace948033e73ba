//! The receiving half that links share: a [`FrameReader`] and the payload slot it is filling.

use crate::frame::{FrameReader, Step};
use crate::link::{LinkEvent, Payload};
use crate::payloads::{BadSlot, PayloadPool, Slot};
use crate::wire::WireError;

/// Owns the slot that is being filled until the frame is handed out or [`Inbound::abandon`].
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    reader: FrameReader,
    slot: Option<Slot>,
}

/// Where the rest of the current data goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub start: *mut u8,
    pub len: usize,
}

impl Inbound {
    /// Takes frames from `input` and returns the bytes used: fewer than there are when no slot is
    /// free. Frames before a violation are delivered, nothing after.
    pub fn feed(
        &mut self,
        input: &[u8],
        pool: &mut PayloadPool,
        events: &mut Vec<LinkEvent>,
    ) -> Result<usize, WireError> {
        let mut rest = input;
        loop {
            let buffer = self.slot.and_then(|slot| pool.bytes_mut(slot).ok());
            match self.reader.advance(&mut rest, buffer)? {
                Step::More => break,
                Step::Data(len) => match pool.take(len) {
                    Some(slot) => self.slot = Some(slot),
                    None => break,
                },
                step @ Step::Frame { .. } => self.deliver(step, events),
            }
        }
        Ok(input.len() - rest.len())
    }

    /// The rest of the current data, when a slot for it has been taken.
    pub fn target(&self, pool: &PayloadPool) -> Result<Option<Target>, BadSlot> {
        let (Some(slot), Some(missing)) = (self.slot, self.reader.missing()) else {
            return Ok(None);
        };
        let (start, size) = pool.raw(slot)?;
        if missing.end > size as usize {
            return Err(BadSlot(slot));
        }
        Ok(Some(Target {
            // In bounds: the slot has at least `missing.end` bytes.
            start: start.wrapping_add(missing.start),
            len: missing.len(),
        }))
    }

    /// `count` bytes were received straight into the target.
    pub fn received(
        &mut self,
        count: usize,
        pool: &PayloadPool,
        events: &mut Vec<LinkEvent>,
    ) -> Result<(), WireError> {
        let bytes = self.slot.and_then(|slot| pool.bytes(slot).ok());
        let step = self.reader.direct(count, bytes.unwrap_or(&[]))?;
        self.deliver(step, events);
        Ok(())
    }

    fn deliver(&mut self, step: Step, events: &mut Vec<LinkEvent>) {
        if let Step::Frame { envelope, data_len } = step {
            let payload = self.slot.take().map(|slot| Payload {
                slot,
                len: data_len,
            });
            events.push(LinkEvent::Frame { envelope, payload });
        }
    }

    /// Gives the slot of an incomplete frame back. The kernel does not use it any more.
    pub fn abandon(&mut self, pool: &mut PayloadPool) {
        if let Some(slot) = self.slot.take() {
            // A slot that we hold is in use.
            let _ = pool.release(slot);
        }
    }

    /// True while a slot is held.
    pub fn holds_slot(&self) -> bool {
        self.slot.is_some()
    }

    /// True when the stream may end here.
    pub fn at_boundary(&self) -> bool {
        self.reader.at_boundary()
    }
}
