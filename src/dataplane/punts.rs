//! The way from the worker threads to the node: a bounded ring and a wake.
//!
//! Many threads put, the driver takes. When full, what was put is dropped and the forwarder counts it: probes and requests repeat by themselves.

use crossbeam_queue::ArrayQueue;
use meshnet_core::forward::{Punt, Punted};

use super::Waker;

/// The ring.
pub struct PuntRing {
    ring: ArrayQueue<Punted>,
    waker: Waker,
}

impl PuntRing {
    /// An empty one; `waker` is called after something was put, once for each batch of frames.
    pub fn new(waker: Waker) -> PuntRing {
        PuntRing { ring: ArrayQueue::new(RING_PUNTS), waker }
    }

    /// Takes the oldest.
    pub fn take(&self) -> Option<Punted> {
        self.ring.pop()
    }
}

/// One thread's end of the ring.
pub(super) struct Punter<'a> {
    ring: &'a PuntRing,
    put: bool,
}

impl<'a> Punter<'a> {
    pub(super) fn new(ring: &'a PuntRing) -> Punter<'a> {
        Punter { ring, put: false }
    }

    /// Wakes the driver when something was put since the last call.
    pub(super) fn wake(&mut self) {
        if std::mem::take(&mut self.put) {
            (self.ring.waker)();
        }
    }
}

impl Punt for Punter<'_> {
    fn punt(&mut self, punted: Punted) -> bool {
        // A full ring wakes too: its owner is late.
        self.put = true;
        self.ring.ring.push(punted).is_ok()
    }
}

/// Probes of 1,000 peers fit, and a burst of wishes beside them.
const RING_PUNTS: usize = 2048;
