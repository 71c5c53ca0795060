//! How QUIC sends: by the sockets of the data plane, or through relays by the current snapshot. And how frames get onto links and off them.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use meshnet_core::fib::Fib;
use meshnet_core::forward::wrap_relayed;
use meshnet_proto::ShortId;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::dataplane::FrameInbox;
use crate::quic::{DatagramIo, FrameSink, Frames};
use crate::udp::{Carrier, UdpSockets};

/// The way out of QUIC.
pub struct Wire {
    /// The sockets, shared with the workers.
    pub sockets: Arc<UdpSockets>,
    /// The snapshot that the workers use.
    pub fib: Arc<ArcSwap<Fib>>,
    /// The node's own lane.
    pub lane: u8,
}

thread_local! {
    /// Room to wrap a datagram in, kept so that relayed links do not allocate for each.
    static WRAPPED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl DatagramIo for Wire {
    fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
        self.sockets.send(to, bytes, segment)
    }

    fn send_relayed(&self, dest: ShortId, bytes: &[u8]) -> io::Result<()> {
        WRAPPED.with_borrow_mut(|wrapped| {
            wrapped.clear();
            let fib = self.fib.load();
            let no_way = || io::Error::new(io::ErrorKind::NetworkUnreachable, "no relay leads there");
            let to = wrap_relayed(&fib, self.lane, dest, bytes, wrapped).ok_or_else(no_way)?;
            self.sockets.send(to, wrapped, None)
        })
    }
}

/// What came on links, for the workers.
pub struct Received(pub Arc<FrameInbox>);

impl FrameSink for Received {
    fn put(&self, from: SocketAddr, datagram: Bytes) -> bool {
        self.0.put(from, datagram)
    }

    fn wake(&self) {
        self.0.wake();
    }
}

/// What links need to carry frames.
pub struct Carried {
    /// Where those go that come.
    pub received: Arc<FrameInbox>,
    /// The way of those that leave.
    pub frames: Arc<Frames>,
    /// Where the tasks of links run.
    pub runtime: Handle,
}

/// The thread on which the links live. It ends when this is dropped, and with it what still runs there.
pub struct LinksThread {
    _stop: oneshot::Sender<()>,
}

/// Starts that thread, and lets the sockets' users send on links too.
pub fn carry(sockets: &UdpSockets) -> io::Result<(Carried, LinksThread)> {
    let executor = Builder::new_current_thread().enable_all().build()?;
    let (frames, runtime) = (Arc::new(Frames::default()), executor.handle().clone());
    let carried = Arc::clone(&frames);
    sockets.set_carrier(Carrier(Box::new(move |to, bytes, segment| carried.send(to, bytes, segment))));
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::Builder::new().name("mesh-links".into()).stack_size(STACK_BYTES).spawn(move || {
        // An error means that the other end is dropped, which is the sign to stop.
        let _ = executor.block_on(stopped);
    })?;
    Ok((Carried { received: Arc::default(), frames, runtime }, LinksThread { _stop: stop }))
}

/// Stack of the thread: handshakes are what goes deepest, some tens of KiB.
const STACK_BYTES: usize = 1 << 20;
