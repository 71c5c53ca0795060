//! The one UDP port of this machine: sockets that share it, one for each worker, with segmentation on sending and joining on receiving.
//!
//! ```text
//! Forwarder ──▶ SendBatch (Transmit) ──▶ one UDP_SEGMENT send ──┐
//! quic, node ─▶ UdpSockets::send ────────────────────────────────┼─▶ port ──▶ ReceiveBatch (UDP_GRO) ──▶ datagrams, and QuicInbox
//! ```
//! IPv4 addresses are plain to users of this room, also where the socket is an IPv6 one.
//! May use `sys`, `buf`, and the core's contract [`Transmit`](meshnet_core::forward::Transmit). Deliberately lacks: knowledge of what it carries.

mod inbox;
mod proof;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use meshnet_core::fib::is_link;
use socket2::{Domain, Protocol, Socket, Type};

use crate::buf::{RUN_MAX_BYTES, RUN_MAX_SEGMENTS};
use crate::sys::socket;

pub use inbox::{QuicDatagram, QuicInbox, Waker};
pub use receive::{ReceiveBatch, Received};
pub use send::SendBatch;

/// Why the port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Another program has the port.
    #[error("UDP port {0} is taken: stop the other program or give another --listen ADDR:PORT")]
    Taken(SocketAddr),
    /// Not an address of this machine.
    #[error("{0} is not an address of this machine: give --listen an address that `ip address` shows, or [::]:PORT")]
    NotHere(SocketAddr),
    /// Anything else.
    #[error("cannot listen on UDP {0}: {1}")]
    Io(SocketAddr, #[source] io::Error),
}

/// All sockets of the port.
#[derive(Debug)]
pub struct UdpSockets {
    sockets: Vec<Arc<Port>>,
    address: SocketAddr,
    carrier: Arc<OnceLock<Carrier>>,
    abilities: Abilities,
}

/// What the kernel does with many datagrams in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// It cuts what is sent (`UDP_SEGMENT`, Linux 4.18).
    pub segments: bool,
    /// It joins what comes (`UDP_GRO`, Linux 5.0).
    pub joins: bool,
}

impl Abilities {
    /// Both, as far as the kernel has them.
    pub const ALL: Abilities = Abilities { segments: true, joins: true };
    /// One datagram a call, as on a kernel that knows neither.
    pub const NONE: Abilities = Abilities { segments: false, joins: false };

    /// For people.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        [("udp-gso", self.segments), ("udp-gro", self.joins)].into_iter().filter(|(_, has)| *has).map(|(name, _)| name)
    }
}

/// One socket.
#[derive(Debug)]
pub(crate) struct Port {
    socket: Socket,
    /// Of all but the first: sends from a port of its own what says so.
    aside: Option<Socket>,
    v6: bool,
    health: Arc<Health>,
    carrier: Arc<OnceLock<Carrier>>,
}

/// Takes datagrams to addresses that are none of the underlay: `None` when an address is not one of those. Never blocks.
pub struct Carrier(pub Box<Carry>);

/// See [`Carrier`]: to whom, the bytes, the length of each datagram when they are several.
pub type Carry = dyn Fn(SocketAddr, &[u8], Option<usize>) -> Option<io::Result<()>> + Send + Sync;

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Carrier")
    }
}

/// What the sockets report, shared by all of them.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Joined sends that the kernel refused though it took their datagrams one by one.
    gso_refused: AtomicU64,
    said: AtomicBool,
    /// The kernel cuts segmented sends.
    segments: bool,
    /// There are addresses in `singly`.
    any_singly: AtomicBool,
    /// Segmented sends do not arrive there.
    singly: ArcSwap<Box<[SocketAddr]>>,
}

impl UdpSockets {
    /// Binds `count` sockets to `listen`, with all that the kernel has. `[::]` takes IPv4 as well; on a machine without IPv6 it means `0.0.0.0`.
    pub fn bind(listen: SocketAddr, count: usize) -> Result<UdpSockets, UdpError> {
        UdpSockets::bind_with(listen, count, Abilities::ALL)
    }

    /// The same with these abilities of the kernel at most.
    pub fn bind_with(listen: SocketAddr, count: usize, wanted: Abilities) -> Result<UdpSockets, UdpError> {
        let (first, listen) = match open(listen, false) {
            Err(error) if listen.is_ipv6() && listen.ip().is_unspecified() && no_ipv6(&error) => {
                let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()));
                (open(listen, false), listen)
            }
            other => (other, listen),
        };
        let wrap = |error: io::Error| UdpError::from_io(listen, error);
        // The first is bound alone, so that a port in use is noticed; only then the port is opened to our other sockets.
        let first = first.map_err(wrap)?;
        first.set_reuse_port(true).map_err(wrap)?;
        let address = first.local_addr().map_err(wrap)?.as_socket().unwrap_or(listen);
        let mut opened = vec![first];
        for _ in 1..count {
            opened.push(open(address, true).map_err(wrap)?);
        }
        let joins = wanted.joins && opened.iter().all(|socket| socket::set_gro(socket.as_fd()).is_ok());
        let segments = wanted.segments && proof::segments(&opened[0]);
        let health = Arc::new(Health { segments, ..Health::default() });
        let carrier = Arc::new(OnceLock::new());
        let v6 = address.is_ipv6();
        let mut sockets = Vec::with_capacity(opened.len());
        for socket in opened {
            let aside = if sockets.is_empty() { None } else { Some(open_aside(address).map_err(wrap)?) };
            let (health, carrier) = (Arc::clone(&health), Arc::clone(&carrier));
            sockets.push(Arc::new(Port { socket, aside, v6, health, carrier }));
        }
        Ok(UdpSockets { sockets, address, carrier, abilities: Abilities { segments, joins } })
    }

    /// Who takes datagrams to addresses that are none of the underlay. Given once.
    pub fn set_carrier(&self, carrier: Carrier) {
        // A second one would be the same.
        let _ = self.carrier.set(carrier);
    }

    /// The address that was bound.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What the kernel does with many datagrams in one call.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// To these addresses, and no others, datagrams go one by one from now on.
    pub fn go_singly(&self, addresses: &[SocketAddr]) {
        let health = &self.sockets[0].health;
        health.singly.store(Arc::new(addresses.into()));
        health.any_singly.store(!addresses.is_empty(), Relaxed);
    }

    /// Sends datagrams of this length in one segmented send, even where others go one by one: to see whether it arrives.
    pub fn send_train(&self, to: SocketAddr, bytes: &[u8], segment_bytes: usize) -> io::Result<()> {
        self.send_runs(to, bytes, segment_bytes, 0, self.abilities.segments)
    }

    /// Sends one datagram from the other port of this worker.
    pub fn send_aside(&self, worker: usize, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.sockets.get(worker).ok_or(io::ErrorKind::NotFound)?.send_from(true, to, bytes, None, 0)
    }

    /// How many sockets there are.
    pub fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Sends one datagram, or with `segment_size` several of that length (the last may be shorter), from any thread. Never blocks.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        self.send_marked(to, bytes, segment_size, 0)
    }

    /// As [`UdpSockets::send`], with ECN bits.
    pub fn send_marked(&self, to: SocketAddr, bytes: &[u8], segment_size: Option<usize>, ecn: u8) -> io::Result<()> {
        let segment = segment_size.filter(|size| *size < bytes.len());
        let Some(size) = segment else { return self.sockets[0].send(to, bytes, None, ecn) };
        self.send_runs(to, bytes, size, ecn, self.sockets[0].joins_to(to))
    }

    fn send_runs(&self, to: SocketAddr, bytes: &[u8], size: usize, ecn: u8, joined: bool) -> io::Result<()> {
        let port = &self.sockets[0];
        let most = (RUN_MAX_BYTES / size.max(1)).min(RUN_MAX_SEGMENTS) * size;
        if size == 0 || most == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // What is carried by a link is never handed to the kernel in one piece.
        if !joined && !is_link(to) {
            return bytes.chunks(size).try_for_each(|one| port.send(to, one, None, ecn));
        }
        for run in bytes.chunks(most) {
            let segment = u16::try_from(size).ok().filter(|_| run.len() > size);
            match port.send(to, run, segment, ecn) {
                Err(error) if segment.is_some() && blames_segmentation(&error) => {
                    run.chunks(size).try_for_each(|one| port.send(to, one, None, ecn))?;
                    port.health.note_refusal(&error);
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// The send batch of one worker's thread.
    pub fn send_batch(&self, worker: usize, counters: Arc<meshnet_core::counters::Counters>) -> SendBatch {
        SendBatch::new(Arc::clone(&self.sockets[worker % self.sockets.len()]), counters)
    }

    /// The receiving side of one worker's socket.
    pub fn receive_batch(&self, worker: usize) -> ReceiveBatch {
        ReceiveBatch::new(Arc::clone(&self.sockets[worker % self.sockets.len()]))
    }

    /// Joined sends that the kernel refused though it took their datagrams one by one.
    pub fn segmentation_refused(&self) -> u64 {
        self.sockets[0].health.gso_refused.load(Relaxed)
    }
}

/// The socket that [`UdpSockets::send`] uses, to wait until it takes more.
impl AsFd for UdpSockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sockets[0].socket.as_fd()
    }
}

impl Port {
    /// Whether a segmented send to this address may leave.
    fn joins_to(&self, to: SocketAddr) -> bool {
        let health = &*self.health;
        health.segments && !(health.any_singly.load(Relaxed) && health.singly.load().contains(&to))
    }

    /// The socket that datagrams leave from which are marked as `aside`, or are not.
    fn socket(&self, aside: bool) -> &Socket {
        self.aside.as_ref().filter(|_| aside).unwrap_or(&self.socket)
    }

    fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<u16>, ecn: u8) -> io::Result<()> {
        self.send_from(false, to, bytes, segment, ecn)
    }

    fn send_from(&self, aside: bool, to: SocketAddr, bytes: &[u8], segment: Option<u16>, ecn: u8) -> io::Result<()> {
        if to.is_ipv6()
            && let Some(Carrier(carry)) = self.carrier.get()
            && let Some(sent) = carry(to, bytes, segment.map(usize::from))
        {
            return sent;
        }
        let to = match (to, self.v6) {
            (SocketAddr::V4(to), true) => SocketAddr::V6(SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0)),
            (SocketAddr::V6(_), false) => return Err(io::ErrorKind::AddrNotAvailable.into()),
            (to, _) => to,
        };
        socket::send(self.socket(aside).as_fd(), &to, bytes, segment, ecn)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut received = socket::receive(self.socket.as_fd(), buffer)?;
        if let SocketAddr::V6(from) = received.from
            && let Some(ip) = from.ip().to_ipv4_mapped()
        {
            received.from = SocketAddr::new(IpAddr::V4(ip), from.port());
        }
        Ok(received)
    }
}

impl Health {
    /// Counts a refusal, and says so the first time: a device below lies about what it can, and speed suffers.
    fn note_refusal(&self, error: &io::Error) {
        self.gso_refused.fetch_add(1, Relaxed);
        if !self.said.swap(true, Relaxed) {
            tracing::info!(%error, "the kernel refused a segmented UDP send; datagrams go one by one for a while");
        }
    }
}

impl UdpError {
    fn from_io(listen: SocketAddr, error: io::Error) -> UdpError {
        match error.kind() {
            io::ErrorKind::AddrInUse => UdpError::Taken(listen),
            io::ErrorKind::AddrNotAvailable => UdpError::NotHere(listen),
            _ => UdpError::Io(listen, error),
        }
    }
}

/// Errors of a segmented send that one datagram by itself may not meet: EIO (the device cannot make checksums), EINVAL and EMSGSIZE
/// (segments against the device's MTU, by age of the kernel), EOPNOTSUPP.
fn blames_segmentation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let v6 = address.is_ipv6();
    let opened = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if v6 {
        opened.set_only_v6(false)?;
    }
    opened.set_reuse_port(shared)?;
    opened.bind(&address.into())?;
    // DF on both families: no router on the way may cut a sealed datagram, since pieces defeat joining and one lost piece loses all. And no ICMP message
    // shrinks the path, since anybody can send one: the overlay's MTU leaves room by itself, and QUIC probes for its own.
    socket::set_probe_mtu(opened.as_fd(), v6)?;
    socket::set_receive_ecn(opened.as_fd(), v6)?;
    socket::set_buffers(opened.as_fd(), RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES)?;
    Ok(opened)
}

/// A port of its own that is only sent from: what comes there is not read, and little of it is kept.
fn open_aside(main: SocketAddr) -> io::Result<Socket> {
    let opened = open(SocketAddr::new(main.ip(), 0), false)?;
    socket::set_buffers(opened.as_fd(), ASIDE_RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES)?;
    Ok(opened)
}

/// The least that a kernel gives.
const ASIDE_RECEIVE_BUFFER_BYTES: usize = 1;
/// Of each socket: 50 ms of 1 Gbit/s as the kernel accounts for it, so that a thread that lost its core for a while loses no frames.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// Of each socket: several full runs for each of a few slow devices.
const SEND_BUFFER_BYTES: usize = 4 << 20;
