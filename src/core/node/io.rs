//! What goes into a node and what comes out of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::wire::control::CloseReason;
use meshnet_proto::wire::fast::FastProbe;
use meshnet_proto::{Mac, PeerId};

use crate::fib::{Fib, PeerSlot};
use crate::session::SessionSecret;

/// A QUIC connection, numbered by the shell; never reused in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// An attempt to make one, numbered by the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A QUIC connection is up and the other end's certificate is good. The node sends its hello on it; the link counts after the other's.
    LinkOpened {
        /// Its number.
        link: LinkId,
        /// The dial it answers; none when the other end dialled.
        dial: Option<DialId>,
        /// From the certificate, proven.
        peer: PeerId,
        /// Where it leads; a [`crate::peer::virtual_address`] when it runs through relays.
        remote: SocketAddr,
        /// 64 bytes of TLS exporter, label `EXPORTER-meshnet-session-v1`.
        secret: SessionSecret,
    },
    /// It is gone.
    LinkClosed {
        /// Which.
        link: LinkId,
        /// Why.
        why: LinkEnd,
    },
    /// A dial came to nothing.
    DialFailed {
        /// Which.
        dial: DialId,
        /// Why.
        why: DialError,
    },
    /// One control message, `type ‖ body`.
    Message {
        /// On which link.
        link: LinkId,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// The link takes messages, or does not until further notice: its queue is full. What it is to be told merges meanwhile.
    Writable {
        /// Which.
        link: LinkId,
        /// Whether it takes messages.
        writable: bool,
    },
    /// The longest QUIC datagram that a link takes changed.
    DatagramMax {
        /// Which.
        link: LinkId,
        /// Bytes; 0: it takes none.
        bytes: u16,
        /// The link's own search for it has had its time.
        settled: bool,
    },
    /// Answer to [`Output::Resolve`].
    Resolved {
        /// As asked.
        target: String,
        /// The addresses, or the resolver's words.
        result: Result<Vec<SocketAddr>, String>,
    },
    /// A sealed probe or probe reply arrived: plaintext of the datagram, inner header first.
    Probe {
        /// Of whom.
        slot: PeerSlot,
        /// From which underlay address (of the last relay, when relayed).
        from: SocketAddr,
        /// Through relays.
        relayed: bool,
        /// Inner header and body.
        plaintext: Vec<u8>,
    },
    /// A genuine datagram of this peer came from an address that is not its path's: it moved.
    Roamed {
        /// Who.
        slot: PeerSlot,
        /// The new address.
        from: SocketAddr,
    },
    /// A probe came by the kernel's fast path, from whoever it says.
    FastProbe(FastProbe),
    /// The kernel's fast path to this peer carries frames, or none any more.
    FastUsed {
        /// Who.
        slot: PeerSlot,
        /// Whether.
        used: bool,
    },
    /// The frame path wants a session with this peer and has none.
    SessionWanted(PeerSlot),
    /// The underlay addresses of this machine, most useful first.
    Addresses(Vec<SocketAddr>),
    /// The overlay's MTU here changed.
    Mtu(u16),
    /// About addresses: a request, what became of a write, of a probe.
    Ipam(crate::ipam::Input),
    /// Addresses of the host itself on the bridge, and the MAC address that has them.
    HostAddresses(Vec<(u32, Mac)>),
}

/// Why a dial came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialError {
    /// Nothing answered.
    Timeout,
    /// TLS refused: the other end's certificate, or ours, is not from this cluster's secret.
    Secret,
    /// The other end speaks no version that we speak.
    Version,
    /// Someone else answered.
    WrongPeer,
    /// The other end closed it with this reason.
    Closed(CloseReason),
    /// The kernel's word: no route, refused.
    Unreachable(String),
    /// Anything else.
    Other(String),
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEnd {
    /// We closed it.
    Local,
    /// The other end closed it, with this reason if it is one of ours.
    Remote(Option<CloseReason>),
    /// Nothing heard for too long.
    Timeout,
    /// The other end did not take our certificate: it has another secret.
    Secret,
    /// Anything else.
    Other(String),
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Output {
    /// Make a QUIC connection; answer with `LinkOpened` or `DialFailed`, within 5 s.
    Dial {
        /// Its number.
        dial: DialId,
        /// Where.
        remote: SocketAddr,
        /// Refuse anybody else.
        expect: Option<PeerId>,
    },
    /// Look up `host:port`.
    Resolve {
        /// As configured.
        target: String,
    },
    /// Send a control message (`length ‖ type ‖ body`) in order.
    Send {
        /// On which link.
        link: LinkId,
        /// Its bytes.
        bytes: Arc<[u8]>,
    },
    /// Close a link with this reason.
    Close {
        /// Which.
        link: LinkId,
        /// The reason told to the other end.
        reason: CloseReason,
    },
    /// Send these bytes as one UDP datagram, or on a link as one QUIC datagram: a sealed probe.
    Datagram {
        /// Where; a [`crate::peer::link_address`] means the link.
        to: SocketAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
    /// Send these bytes as several UDP datagrams of this length, in one segmented send even to addresses of [`Output::Singly`]: sealed probes that
    /// prove whether such sends arrive.
    Train {
        /// Where.
        to: SocketAddr,
        /// All of them.
        bytes: Vec<u8>,
        /// Of each.
        segment_bytes: usize,
    },
    /// Send these bytes as one UDP datagram from a source port of this number besides the main one: a sealed probe.
    Aside {
        /// From 1.
        port: u8,
        /// Where.
        to: SocketAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
    /// To these addresses, and no others, datagrams go one by one: segmented sends do not arrive there.
    Singly(Arc<[SocketAddr]>),
    /// Send this frame out of the VXLAN device: a probe of the kernel's fast path.
    FastProbe {
        /// To whom.
        slot: PeerSlot,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// The frame path shall use this from now on.
    Publish(Arc<Fib>),
    /// Forget every MAC address learned from this peer.
    FlushMacs(PeerSlot),
    /// Keep this for the next start.
    Persist(Saved),
    /// An echo for [`crate::node::Node::ping`] came back, or did not.
    Pong {
        /// As given out.
        token: u64,
        /// Round trip and the way it took, or nothing within 2 s.
        result: Option<(Duration, String)>,
    },
    /// About addresses: what is to be kept, answered, probed.
    Ipam(crate::ipam::Output),
    /// Worth a line in the log.
    Event(Event),
}

/// What outlives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Saved {
    /// Targets by `connect`, less those forgotten.
    pub targets: Vec<String>,
    /// Targets of flag or file that `forget` switched off.
    pub forgotten: Vec<String>,
    /// Peers seen, and where.
    pub known: Vec<(PeerId, Vec<SocketAddr>)>,
}

/// Something an operator may care about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// How much.
    pub level: Level,
    /// In a few words, lower case.
    pub what: &'static str,
    /// Who it is about.
    pub peer: Option<PeerId>,
    /// Particulars.
    pub detail: String,
}

/// Level of an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Worth waking someone.
    Warn,
    /// A state change that an operator cares about.
    Info,
    /// A branch off the happy path.
    Debug,
}
