//! How QUIC sends: by the sockets of the data plane, or through relays by the current snapshot.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use meshnet_core::fib::Fib;
use meshnet_core::forward::wrap_relayed;
use meshnet_proto::ShortId;

use crate::quic::DatagramIo;
use crate::udp::UdpSockets;

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
