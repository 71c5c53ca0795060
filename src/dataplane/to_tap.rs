//! The TAP as the end of frames: what came from the underlay, and answers to what came from the TAP itself.

use std::sync::Arc;

use meshnet_core::counters::{Counters, DropReason};
use meshnet_core::forward::Deliver;
use meshnet_proto::wire::data::Offload;

use super::{NumberedQueue, Shared};
use crate::tap::WriteError;

/// A thread's queue of the TAP.
pub(super) struct ToTap {
    /// None before the first is given, and after one was lost.
    pub tap: Option<NumberedQueue>,
    /// Whether the device was found gone.
    pub lost: bool,
    counters: Arc<Counters>,
}

impl ToTap {
    pub fn new(counters: Arc<Counters>) -> ToTap {
        ToTap { tap: None, lost: false, counters }
    }

    /// Takes over a queue of another TAP.
    pub fn follow(&mut self, next: NumberedQueue) {
        self.tap = Some(next);
        self.lost = false;
    }

    /// Lets go of a TAP that is gone, and tells its owner.
    pub fn lose(&mut self, shared: &Shared) {
        self.lost = false;
        if let Some(lost) = self.tap.take() {
            shared.lose_tap(lost.number);
        }
    }
}

impl Deliver for ToTap {
    fn deliver(&mut self, offload: &Offload, parts: &[&[u8]]) {
        let Some(tap) = &mut self.tap else { return Counters::drop(&self.counters, DropReason::TapFull) };
        let reason = match tap.queue.write(offload, parts) {
            Ok(()) => return,
            Err(WriteError::Full) => DropReason::TapFull,
            Err(WriteError::Malformed) => DropReason::Malformed,
            Err(WriteError::Lost) => {
                self.lost = true;
                DropReason::TapFull
            }
        };
        Counters::drop(&self.counters, reason);
    }
}
