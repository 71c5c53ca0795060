//! The socket that quinn sees: a bounded inbox that the threads of the data plane fill, and a sender of datagrams that they own.
//!
//! Sealed data and QUIC share one UDP port, so the data plane reads the socket and passes QUIC's datagrams on by [`Inbox::push`]. Peers that are reached
//! through relays have a virtual address ([`virtual_address`]): what QUIC sends there leaves by [`DatagramIo::send_relayed`], and what comes back is pushed
//! as from there.
//! quinn sees IPv6 only; IPv4 addresses are mapped at this border, both ways.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use meshnet_proto::ShortId;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

/// What QUIC needs of the owner of the UDP socket. Never blocks.
pub trait DatagramIo: Send + Sync + 'static {
    /// Sends `bytes` to a real address, cut into datagrams of `segment` bytes (the last may be shorter) if that is given.
    /// `WouldBlock`: tried again after a moment. Other errors: the datagrams are lost, and dials to that address fail.
    fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> io::Result<()>;

    /// Sends one datagram, of at most [`RELAYED_MAX_BYTES`], to a peer by way of relays.
    fn send_relayed(&self, dest: ShortId, bytes: &[u8]) -> io::Result<()>;

    /// True when the kernel may fragment what is sent (no DF): then QUIC does not look for larger datagrams than 1,200 bytes.
    fn may_fragment(&self) -> bool {
        false
    }
}

/// One datagram of QUIC from the network.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Who sent it; a [`virtual_address`] when it came through relays.
    pub from: SocketAddr,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Datagrams on their way from the data plane to QUIC.
///
/// Filled by any thread, emptied by quinn's endpoint task. When full, the newest is dropped and counted: QUIC repeats what is lost.
pub struct Inbox {
    queue: ArrayQueue<Inbound>,
    waker: AtomicWaker,
    dropped: AtomicU64,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox { queue: ArrayQueue::new(INBOX_DATAGRAMS), waker: AtomicWaker::new(), dropped: AtomicU64::new(0) }
    }
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Inbox {
        Inbox::default()
    }

    /// Hands a datagram to QUIC. False: dropped, because the inbox is full or the datagram cannot be QUIC's by its size.
    pub fn push(&self, datagram: Inbound) -> bool {
        let fits = (1..=DATAGRAM_MAX_BYTES).contains(&datagram.bytes.len());
        let taken = fits && self.queue.push(datagram).is_ok();
        if taken {
            self.waker.wake();
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// How many datagrams were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn take(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(datagram) = self.queue.pop() else { break };
            let len = datagram.bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram.bytes[..len]);
            *meta = RecvMeta { addr: mapped(datagram.from), len, stride: len, ..RecvMeta::default() };
            count += 1;
        }
        count
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("queued", &self.queue.len()).finish_non_exhaustive()
    }
}

/// The address by which QUIC knows a peer behind relays.
pub fn virtual_address(peer: ShortId) -> SocketAddr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&VIRTUAL_PREFIX);
    octets[8..].copy_from_slice(&peer.0.to_be_bytes());
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(octets), VIRTUAL_PORT, 0, 0))
}

/// The peer behind relays whom an address of [`virtual_address`] means.
pub fn virtual_peer(address: SocketAddr) -> Option<ShortId> {
    let IpAddr::V6(ip) = address.ip() else { return None };
    let bits = u128::from(ip);
    let ours = (bits >> 64) as u64 == u64::from_be_bytes(VIRTUAL_PREFIX) && address.port() == VIRTUAL_PORT;
    ours.then_some(ShortId(bits as u64))
}

/// As quinn shall see it: IPv6, and equal for equal senders.
pub(super) fn mapped(address: SocketAddr) -> SocketAddr {
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => (*v6.ip(), v6.scope_id()),
        SocketAddr::V6(v6) => (*v6.ip(), 0),
    };
    SocketAddr::V6(SocketAddrV6::new(ip, address.port(), 0, scope))
}

/// As people and the kernel see it.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

/// quinn's view of both directions.
pub(super) struct Socket {
    inbox: Arc<Inbox>,
    io: Arc<dyn DatagramIo>,
    /// How often the kernel had no room: a poller that sees a new count waits a moment.
    blocked: AtomicU64,
    /// Datagrams that the kernel refused.
    send_errors: AtomicU64,
    /// Dials that want to hear of a refused datagram; one entry a dial.
    dials: Mutex<Vec<(SocketAddr, oneshot::Sender<String>)>>,
}

impl Socket {
    pub(super) fn new(inbox: Arc<Inbox>, io: Arc<dyn DatagramIo>) -> Socket {
        Socket { inbox, io, blocked: AtomicU64::new(0), send_errors: AtomicU64::new(0), dials: Mutex::default() }
    }

    pub(super) fn send_errors(&self) -> u64 {
        self.send_errors.load(Ordering::Relaxed)
    }

    /// Tells when the kernel refuses to send to `remote`.
    pub(super) fn watch(&self, remote: SocketAddr) -> oneshot::Receiver<String> {
        let (sender, receiver) = oneshot::channel();
        let mut dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
        dials.retain(|(_, sender)| !sender.is_closed());
        dials.push((unmapped(remote), sender));
        receiver
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(dest) = virtual_peer(transmit.destination) else {
            return self.io.send(unmapped(transmit.destination), transmit.contents, transmit.segment_size);
        };
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        transmit.contents.chunks(size).try_for_each(|datagram| self.io.send_relayed(dest, datagram))
    }

    fn on_error(&self, to: SocketAddr, error: &io::Error) {
        self.send_errors.fetch_add(1, Ordering::Relaxed);
        if !is_lasting(error) {
            return;
        }
        let mut dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, sender) in dials.extract_if(.., |(address, _)| *address == to) {
            let _ = sender.send(error.to_string());
        }
    }
}

/// True for errors that another try in the next seconds would meet again.
fn is_lasting(error: &io::Error) -> bool {
    match error.raw_os_error() {
        // Too long for the path: an answer to QUIC's own search for the MTU. No buffers, interrupted: passing. Refused: of an earlier datagram.
        Some(code) => ![libc::EMSGSIZE, libc::ENOBUFS, libc::ENOMEM, libc::EINTR, libc::ECONNREFUSED].contains(&code),
        None => true,
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let seen = self.blocked.load(Ordering::Relaxed);
        Box::pin(Poller { socket: self, seen, sleep: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.send(transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
            // An error here would end the connection, although a route may be back in a second: lost datagrams are QUIC's daily work.
            Err(error) => {
                self.on_error(unmapped(transmit.destination), &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = self.inbox.take(bufs, meta);
        if count == 0 {
            // Register first and look again: a push between the two would otherwise wake nobody.
            self.inbox.waker.register(cx.waker());
            count = self.inbox.take(bufs, meta);
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // quinn takes only the family from it: IPv6, so that both can be dialled.
        Ok(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)))
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS_MAX
    }

    fn may_fragment(&self) -> bool {
        self.io.may_fragment()
    }
}

/// Waits a moment after the kernel had no room. The socket belongs to threads outside tokio, so there is no readiness to wait for.
struct Poller {
    socket: Arc<Socket>,
    seen: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let count = self.socket.blocked.load(Ordering::Relaxed);
        if count == self.seen {
            return Poll::Ready(Ok(()));
        }
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + BLOCKED_WAIT)));
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.sleep = None;
        self.seen = count;
        Poll::Ready(Ok(()))
    }
}

/// Datagrams that wait for QUIC: 1.5 MB at most, which is 100 ms of control traffic at 120 Mbit/s.
const INBOX_DATAGRAMS: usize = 1024;
/// The longest datagram that quinn announces to take.
const DATAGRAM_MAX_BYTES: usize = 1472;
/// The longest datagram that QUIC sends through relays: QUIC's least (RFC 9000, 14.1), so that it fits any path with the relay header on top.
pub const RELAYED_MAX_BYTES: usize = 1200;
/// Datagrams in one send: enough to make bulk gossip cheap, short enough not to hold the socket against data.
const SEGMENTS_MAX: usize = 10;
/// How long to wait when the kernel's send buffer is full; a gigabit link drains 125 kB in that time.
const BLOCKED_WAIT: Duration = Duration::from_millis(1);
/// `fd6d:6573:686e:0`: a unique local prefix that spells "meshn", never seen on a wire.
const VIRTUAL_PREFIX: [u8; 8] = [0xfd, b'm', b'e', b's', b'h', b'n', 0, 0];
/// Port of all virtual addresses.
const VIRTUAL_PORT: u16 = 1;
