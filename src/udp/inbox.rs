//! The way of QUIC datagrams from the worker threads to the QUIC endpoint: a bounded queue and a wake.
//!
//! Many threads put, one takes. When full, the datagram is dropped and counted: QUIC repairs losses, and a flood must not grow memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_queue::ArrayQueue;
use meshnet_proto::ShortId;

/// Wakes whoever takes from a queue; must not block.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// One QUIC datagram that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicDatagram {
    /// Who sent it, when it came through relays.
    pub source: Option<ShortId>,
    /// The underlay address that it came from: the sender's, or the last relay's.
    pub from: SocketAddr,
    /// The two ECN bits.
    pub ecn: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The queue.
pub struct QuicInbox {
    queue: ArrayQueue<QuicDatagram>,
    waker: Waker,
    dropped: AtomicU64,
}

impl QuicInbox {
    /// An empty one; `waker` is called after datagrams were put.
    pub fn new(waker: Waker) -> QuicInbox {
        QuicInbox { queue: ArrayQueue::new(INBOX_DATAGRAMS), waker, dropped: AtomicU64::new(0) }
    }

    /// Puts one without waking; false, and counted, when full.
    pub fn put(&self, datagram: QuicDatagram) -> bool {
        let put = self.queue.push(datagram).is_ok();
        if !put {
            self.dropped.fetch_add(1, Relaxed);
        }
        put
    }

    /// Wakes the taker: once after a batch.
    pub fn wake(&self) {
        (self.waker)();
    }

    /// Takes the oldest.
    pub fn take(&self) -> Option<QuicDatagram> {
        self.queue.pop()
    }

    /// Datagrams dropped because it was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

impl std::fmt::Debug for QuicInbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicInbox").field("queued", &self.queue.len()).field("dropped", &self.dropped()).finish()
    }
}

/// Datagrams in the queue: a start of 30 links at once, and 1.5 MB at most.
const INBOX_DATAGRAMS: usize = 1024;
