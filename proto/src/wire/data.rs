//! Headers of datagrams, as values with `parse` and `emit`. All numbers in network byte order; diagrams in SPEC.md.
//!
//! ```text
//! DATA   outer (16) │ sealed: inner (16) [flood (16)] frame, segment, probe or fragment │ tag (16)
//! RELAY  outer (16) │ relay (12 + 8n) │ tag (16) over all before it and the next 16 bytes │ a datagram for the destination
//! ```
//! The first byte of QUIC (RFC 9000, 17.2) has bit 6 set (greasing of it, RFC 9287, is off); ours has bits 7 and 6 clear.

use crate::id::ShortId;
use crate::limits;

/// Bytes of the outer header.
pub const OUTER_BYTES: usize = 16;
/// Bytes of the inner header.
pub const INNER_BYTES: usize = 16;
/// Bytes of the flood header.
pub const FLOOD_BYTES: usize = 16;
/// Bytes of the AEAD tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of a relay header before the ids of the route.
pub const RELAY_FIXED_BYTES: usize = 12;
/// Bytes that the longest route adds to a datagram: outer header, relay header, tag.
pub const RELAY_MAX_BYTES: usize = OUTER_BYTES + RELAY_FIXED_BYTES + 8 * (limits::RELAYS_MAX + 1) + TAG_BYTES;
/// Bytes of a probe's body, without padding.
pub const PROBE_BYTES: usize = 24;
/// The kind of a fragment, as a peer's hello names it when it reads them ([`super::control::READS`]).
pub const FRAGMENT: u8 = 5;
/// Bytes of an Ethernet header without tags: the shortest header of a segment.
const ETHERNET_BYTES: usize = 14;

/// True when a datagram with this first byte belongs to QUIC.
pub fn is_quic(first: u8) -> bool {
    first & 0xc0 != 0
}

/// True when a datagram says of itself that it is urgent. Nothing is proven by that.
#[inline]
pub fn is_urgent(datagram: &[u8]) -> bool {
    says(datagram, URGENT)
}

/// True when a datagram is one to send from another source port than the main one.
#[inline]
pub fn is_aside(datagram: &[u8]) -> bool {
    says(datagram, ASIDE)
}

#[inline]
fn says(datagram: &[u8], flag: u8) -> bool {
    matches!(datagram.first_chunk(), Some([first, _, 0, flags]) if !is_quic(*first) && *flags <= FLAGS && flags & flag != 0)
}

/// Flag of an outer header.
const URGENT: u8 = 1;
/// Flag of an outer header.
const ASIDE: u8 = 2;
/// All that there are.
const FLAGS: u8 = URGENT | ASIDE;

/// What an outer header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OuterKind {
    /// Sealed data for the receiver.
    Data,
    /// A datagram to pass on, or one that was passed on to its destination.
    Relay,
}

/// The outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// What follows.
    pub kind: OuterKind,
    /// Key epoch, modulo 4.
    pub epoch: u8,
    /// Lane of the sender.
    pub lane: u8,
    /// Of a flow that sends little: a busy receiver may take it before others.
    pub urgent: bool,
    /// Sent from another source port than the sender's main one: where it came from says nothing about where its sender is to be reached.
    pub aside: bool,
    /// The receiver's session index.
    pub index: u32,
    /// Counter of that lane in that epoch, from 0.
    pub counter: u64,
}

impl Outer {
    /// Reads a header; `None` for QUIC, unknown kinds, unknown flags and short datagrams.
    pub fn parse(bytes: &[u8]) -> Option<Outer> {
        let &[first, lane, f0, f1, i0, i1, i2, i3, c0, c1, c2, c3, c4, c5, c6, c7] =
            bytes.first_chunk::<OUTER_BYTES>()?;
        let kind = match first & 0xcf {
            1 => OuterKind::Data,
            2 => OuterKind::Relay,
            _ => return None,
        };
        if f0 != 0 || f1 > FLAGS {
            return None;
        }
        Some(Outer {
            kind,
            epoch: first >> 4 & 3,
            lane,
            urgent: f1 & URGENT != 0,
            aside: f1 & ASIDE != 0,
            index: u32::from_be_bytes([i0, i1, i2, i3]),
            counter: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        })
    }

    /// The header's bytes.
    pub fn emit(&self) -> [u8; OUTER_BYTES] {
        let kind = match self.kind {
            OuterKind::Data => 1,
            OuterKind::Relay => 2,
        };
        let [i0, i1, i2, i3] = self.index.to_be_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.counter.to_be_bytes();
        let flags = if self.urgent { URGENT } else { 0 } | if self.aside { ASIDE } else { 0 };
        [(self.epoch & 3) << 4 | kind, self.lane, 0, flags, i0, i1, i2, i3, c0, c1, c2, c3, c4, c5, c6, c7]
    }
}

/// What an inner header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InnerKind {
    /// A whole frame.
    Frame,
    /// One segment of a super-frame: the header template of `header_len` bytes, then this segment's payload.
    Segment,
    /// A probe of the path; answered by `ProbeReply` with the same body.
    Probe,
    /// The answer to a probe.
    ProbeReply,
    /// A piece of what would make a datagram longer than the path takes: inner header, flood header, frame or segment.
    Fragment,
}

/// Segmentation of a super-frame, numbered as in virtio (VIRTIO 1.2, 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// Not a super-frame.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl Gso {
    /// The virtio number.
    pub fn number(self) -> u8 {
        match self {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        }
    }

    /// From the virtio number, without the ECN bit.
    pub fn from_number(number: u8) -> Option<Gso> {
        match number {
            0 => Some(Gso::None),
            1 => Some(Gso::Tcp4),
            4 => Some(Gso::Tcp6),
            5 => Some(Gso::Udp),
            _ => None,
        }
    }
}

/// Checksum and segmentation state of a frame: the part of virtio's header that must cross the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The checksum at `csum_start + csum_offset` holds only the pseudo header's sum.
    pub needs_csum: bool,
    /// The checksum was verified by hardware on the way.
    pub data_valid: bool,
    /// TCP with ECN: the first segment alone carries CWR.
    pub ecn: bool,
    /// Kind of super-frame.
    pub gso: Gso,
    /// Bytes of Ethernet, IP and transport headers; 0 when `gso` is none.
    pub header_len: u8,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksummed part starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum is, from `csum_start`.
    pub csum_offset: u16,
}

/// The inner header, first part of what is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// What follows.
    pub kind: InnerKind,
    /// A flood header follows this one.
    pub flood: bool,
    /// Checksum and segmentation state.
    pub offload: Offload,
    /// Number of the super-frame on its lane.
    pub superframe: u16,
    /// Place of this segment in it.
    pub index: u16,
    /// Segments in it.
    pub count: u16,
}

impl Inner {
    /// An inner header for a whole frame or probe.
    pub fn plain(kind: InnerKind) -> Inner {
        Inner { kind, flood: false, offload: Offload::default(), superframe: 0, index: 0, count: 1 }
    }

    /// An inner header for one of `count` fragments, all but the last of `size` bytes.
    pub fn fragment(size: u16, index: u16, count: u16) -> Inner {
        let offload = Offload { gso_size: size, ..Offload::default() };
        Inner { offload, index, count, ..Inner::plain(InnerKind::Fragment) }
    }

    /// Reads a header and checks that its fields agree with each other; `None` otherwise.
    pub fn parse(bytes: &[u8]) -> Option<Inner> {
        let &[kind, flags, gso, header_len, s0, s1, o0, o1, z0, z1, n0, n1, i0, i1, c0, c1] =
            bytes.first_chunk::<INNER_BYTES>()?;
        let kind = match kind {
            1 => InnerKind::Frame,
            2 => InnerKind::Segment,
            3 => InnerKind::Probe,
            4 => InnerKind::ProbeReply,
            FRAGMENT => InnerKind::Fragment,
            _ => return None,
        };
        if flags & 0xf0 != 0 {
            return None;
        }
        let inner = Inner {
            kind,
            flood: flags & 1 != 0,
            offload: Offload {
                needs_csum: flags & 2 != 0,
                data_valid: flags & 4 != 0,
                ecn: flags & 8 != 0,
                gso: Gso::from_number(gso)?,
                header_len,
                gso_size: u16::from_be_bytes([z0, z1]),
                csum_start: u16::from_be_bytes([s0, s1]),
                csum_offset: u16::from_be_bytes([o0, o1]),
            },
            superframe: u16::from_be_bytes([n0, n1]),
            index: u16::from_be_bytes([i0, i1]),
            count: u16::from_be_bytes([c0, c1]),
        };
        inner.is_consistent().then_some(inner)
    }

    /// Whether the fields agree with each other, so that nobody after this has to ask again: sums of them do not overflow, and no super-frame is longer than
    /// [`limits::SUPERFRAME_MAX_BYTES`].
    fn is_consistent(&self) -> bool {
        let o = &self.offload;
        let csum_end = usize::from(o.csum_start) + usize::from(o.csum_offset) + 2;
        match self.kind {
            InnerKind::Frame => {
                let whole = self.index == 0 && self.count == 1;
                let no_segments = o.gso == Gso::None && o.header_len == 0 && o.gso_size == 0 && !o.ecn;
                whole && no_segments && csum_end <= limits::SUPERFRAME_MAX_BYTES
            }
            InnerKind::Segment => {
                let header = usize::from(o.header_len);
                let before_last = usize::from(self.count.saturating_sub(1)) * usize::from(o.gso_size);
                self.index < self.count
                    && o.gso != Gso::None
                    && o.gso_size > 0
                    && header >= ETHERNET_BYTES
                    && header + before_last < limits::SUPERFRAME_MAX_BYTES
                    && (if o.needs_csum { csum_end <= header } else { csum_end <= limits::SUPERFRAME_MAX_BYTES })
                    && (!o.ecn || matches!(o.gso, Gso::Tcp4 | Gso::Tcp6))
            }
            InnerKind::Probe | InnerKind::ProbeReply => *self == Inner::plain(self.kind),
            InnerKind::Fragment => {
                let (size, count) = (usize::from(o.gso_size), usize::from(self.count));
                *self == Inner::fragment(o.gso_size, self.index, self.count)
                    && size > 0
                    && self.index < self.count
                    && (2..=limits::FRAGMENTS_MAX).contains(&count)
                    && (count - 1) * size < limits::FRAGMENTED_MAX_BYTES
            }
        }
    }

    /// The header's bytes.
    pub fn emit(&self) -> [u8; INNER_BYTES] {
        let kind = match self.kind {
            InnerKind::Frame => 1,
            InnerKind::Segment => 2,
            InnerKind::Probe => 3,
            InnerKind::ProbeReply => 4,
            InnerKind::Fragment => FRAGMENT,
        };
        let o = &self.offload;
        let flags =
            u8::from(self.flood) | u8::from(o.needs_csum) << 1 | u8::from(o.data_valid) << 2 | u8::from(o.ecn) << 3;
        let [s0, s1] = o.csum_start.to_be_bytes();
        let [o0, o1] = o.csum_offset.to_be_bytes();
        let [z0, z1] = o.gso_size.to_be_bytes();
        let [n0, n1] = self.superframe.to_be_bytes();
        let [i0, i1] = self.index.to_be_bytes();
        let [c0, c1] = self.count.to_be_bytes();
        [kind, flags, o.gso.number(), o.header_len, s0, s1, o0, o1, z0, z1, n0, n1, i0, i1, c0, c1]
    }
}

/// The flood header: which flooded frame this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// The peer where the frame entered the mesh.
    pub origin: ShortId,
    /// Low 16 bits of its incarnation: another one starts another window.
    pub incarnation: u16,
    /// Hops left.
    pub hops: u8,
    /// Number of this datagram among the origin's floods in this incarnation.
    pub sequence: u32,
}

impl Flood {
    /// Reads a header; `None` when short or of an unknown form.
    pub fn parse(bytes: &[u8]) -> Option<Flood> {
        let &[o0, o1, o2, o3, o4, o5, o6, o7, n0, n1, hops, zero, s0, s1, s2, s3] =
            bytes.first_chunk::<FLOOD_BYTES>()?;
        if zero != 0 || hops > limits::FLOOD_HOPS_MAX {
            return None;
        }
        Some(Flood {
            origin: ShortId(u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7])),
            incarnation: u16::from_be_bytes([n0, n1]),
            hops,
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        })
    }

    /// The header's bytes.
    pub fn emit(&self) -> [u8; FLOOD_BYTES] {
        let [o0, o1, o2, o3, o4, o5, o6, o7] = self.origin.0.to_be_bytes();
        let [n0, n1] = self.incarnation.to_be_bytes();
        let [s0, s1, s2, s3] = self.sequence.to_be_bytes();
        [o0, o1, o2, o3, o4, o5, o6, o7, n0, n1, self.hops, 0, s0, s1, s2, s3]
    }
}

/// The route of a relayed datagram: up to [`limits::RELAYS_MAX`] relays, then the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Route {
    hops: [ShortId; limits::RELAYS_MAX + 1],
    count: u8,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.hops()).finish()
    }
}

impl Route {
    /// A route through `hops`, the destination last: two hops (one relay) at least, four at most, each peer once.
    pub fn new(hops: &[ShortId]) -> Option<Route> {
        if hops.len() < 2 || hops.len() > limits::RELAYS_MAX + 1 {
            return None;
        }
        let mut rest = hops;
        while let Some((first, later)) = rest.split_first() {
            if later.contains(first) {
                return None;
            }
            rest = later;
        }
        let mut route = Route { hops: [ShortId(0); limits::RELAYS_MAX + 1], count: hops.len() as u8 };
        route.hops.iter_mut().zip(hops).for_each(|(to, from)| *to = *from);
        Some(route)
    }

    /// The hops in order, the destination last.
    pub fn hops(&self) -> &[ShortId] {
        self.hops.get(..usize::from(self.count)).unwrap_or_default()
    }

    /// Bytes that this route puts before a datagram: outer header, relay header, tag.
    pub fn overhead_bytes(&self) -> usize {
        OUTER_BYTES + RELAY_FIXED_BYTES + 8 * usize::from(self.count) + TAG_BYTES
    }
}

/// The relay header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relay {
    /// Who sent the datagram first.
    pub source: ShortId,
    /// The way, the destination last.
    pub route: Route,
    /// The place in `route` of the peer that receives this datagram.
    pub position: u8,
}

impl Relay {
    /// Reads a relay header; gives it and its length. `None` when short, over-long, with a position outside the route, or when a peer occurs twice.
    pub fn parse(bytes: &[u8]) -> Option<(Relay, usize)> {
        let &[count, position, z0, z1, s0, s1, s2, s3, s4, s5, s6, s7] = bytes.first_chunk::<RELAY_FIXED_BYTES>()?;
        if z0 | z1 != 0 || position >= count {
            return None;
        }
        let length = RELAY_FIXED_BYTES + 8 * usize::from(count);
        let ids = bytes.get(RELAY_FIXED_BYTES..length)?;
        let mut hops = [ShortId(0); limits::RELAYS_MAX + 1];
        let used = hops.get_mut(..usize::from(count))?;
        for (hop, id) in used.iter_mut().zip(ids.as_chunks::<8>().0) {
            *hop = ShortId(u64::from_be_bytes(*id));
        }
        let source = ShortId(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]));
        if used.contains(&source) {
            return None;
        }
        let route = Route::new(used)?;
        Some((Relay { source, route, position }, length))
    }

    /// Writes the header into `out`, which must hold it; gives its length.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let length = RELAY_FIXED_BYTES + 8 * self.route.hops().len();
        let (fixed, ids) = out.get_mut(..length)?.split_first_chunk_mut::<RELAY_FIXED_BYTES>()?;
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.source.0.to_be_bytes();
        *fixed = [self.route.count, self.position, 0, 0, s0, s1, s2, s3, s4, s5, s6, s7];
        for (hop, id) in self.route.hops().iter().zip(ids.as_chunks_mut::<8>().0) {
            *id = hop.0.to_be_bytes();
        }
        Some(length)
    }
}

/// Body of a probe; the reply repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Drawn by the sender; means something to it alone.
    pub token: u64,
    /// The sender's clock, in microseconds.
    pub sent_us: u64,
    /// Which of the sender's paths it took: 0 direct, 1 relayed.
    pub path: u8,
}

impl Probe {
    /// Reads a body.
    pub fn parse(bytes: &[u8]) -> Option<Probe> {
        let &[t0, t1, t2, t3, t4, t5, t6, t7, s0, s1, s2, s3, s4, s5, s6, s7, path, ..] =
            bytes.first_chunk::<PROBE_BYTES>()?;
        Some(Probe {
            token: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            sent_us: u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            path,
        })
    }

    /// The body's bytes.
    pub fn emit(&self) -> [u8; PROBE_BYTES] {
        let [t0, t1, t2, t3, t4, t5, t6, t7] = self.token.to_be_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.sent_us.to_be_bytes();
        [t0, t1, t2, t3, t4, t5, t6, t7, s0, s1, s2, s3, s4, s5, s6, s7, self.path, 0, 0, 0, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests;
