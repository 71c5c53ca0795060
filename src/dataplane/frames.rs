//! The way of datagrams that came on QUIC links to a worker: a bounded ring and a wake.
//!
//! The tasks of the links put, the first inbound thread takes. When full, what was put is lost: its sender counts it.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;

use super::Seat;

/// The ring.
pub struct FrameInbox {
    ring: ArrayQueue<(SocketAddr, Bytes)>,
    seat: OnceLock<Arc<Seat>>,
}

impl Default for FrameInbox {
    fn default() -> FrameInbox {
        FrameInbox { ring: ArrayQueue::new(RING_DATAGRAMS), seat: OnceLock::new() }
    }
}

impl FrameInbox {
    /// Puts one without waking; false when full.
    pub fn put(&self, from: SocketAddr, datagram: Bytes) -> bool {
        self.ring.push((from, datagram)).is_ok()
    }

    /// Wakes the thread: once after a batch.
    pub fn wake(&self) {
        if let Some(seat) = self.seat.get() {
            seat.wake.wake();
        }
    }

    pub(super) fn take(&self) -> Option<(SocketAddr, Bytes)> {
        self.ring.pop()
    }

    /// Says which thread takes. Given once.
    pub(super) fn belongs_to(&self, seat: &Arc<Seat>) {
        // The first stays: an inbox belongs to one data path.
        let _ = self.seat.set(Arc::clone(seat));
    }
}

/// Datagrams in the ring: 3 MB, 24 ms of 1 Gbit/s.
const RING_DATAGRAMS: usize = 2048;
