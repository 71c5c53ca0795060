//! Datagrams made and sealed: what outbound, inbound and the node share.
//!
//! ```text
//! direct    outer │ head │ body │ tag                                    one copy of head and body, sealed in place
//! relayed   outer │ relay │ hop tag │ outer │ head │ body │ tag          the same, then the hop tag around it
//! too long  the same several times, each with a fragment header and a piece of head and body
//! ```

use std::net::SocketAddr;

use meshnet_proto::ShortId;
use meshnet_proto::limits::{FRAGMENTED_MAX_BYTES, FRAGMENTS_MAX};
use meshnet_proto::wire::data::{INNER_BYTES, Inner, OUTER_BYTES, Relay, Route, TAG_BYTES, is_quic};

use super::Transmit;
use crate::counters::DropReason;
use crate::fib::{Fib, FibPeer, Path, PeerSlot, Traffic};
use crate::session::{Marks, Session};

/// Where a sealed datagram goes.
pub(crate) struct Way<'a> {
    /// Its next address.
    pub to: SocketAddr,
    /// Seals it for the peer that shall read it.
    pub session: &'a Session,
    /// Longest datagram that passes on it.
    pub datagram_max: usize,
    /// Whether that was found out. Until then it is what every path takes, and no reason to tell anybody to send less.
    pub settled: bool,
    /// Whether who opens it reads fragments.
    pub fragments: bool,
    /// Of a flow that sends little: a busy receiver takes it first.
    pub urgent: bool,
    /// Its next address takes datagrams from all source ports of this machine.
    pub spread: bool,
    /// Marks of who opens it.
    pub traffic: &'a Traffic,
    /// The first relay's session and the route, when relayed.
    pub hop: Option<(&'a Session, Route)>,
}

impl<'a> Way<'a> {
    /// To `peer` along its path.
    #[inline]
    pub fn to_peer(fib: &'a Fib, slot: PeerSlot) -> Result<(Way<'a>, &'a FibPeer), NoWay> {
        let lost = |why| NoWay { why, wanted: None };
        let peer = fib.peer(slot).ok_or(lost(DropReason::NoRoute))?;
        let wanted = |slot| NoWay { why: DropReason::NoSession, wanted: Some(slot) };
        let session = peer.session.as_deref();
        match peer.path {
            Path::None => Err(lost(DropReason::NoRoute)),
            Path::Direct(to) => {
                let session = session.ok_or(wanted(slot))?;
                Ok((Way::new(peer, to, session, (peer.way_max, peer.way_settled)), peer))
            }
            Path::Relayed { first, route } => {
                let session = session.ok_or(wanted(slot))?;
                let hop = fib.peer(first).ok_or(lost(DropReason::NoRoute))?;
                let to = hop.direct.ok_or(lost(DropReason::NoRoute))?;
                let hop_session = hop.session.as_deref().ok_or(wanted(first))?;
                let way_max = peer.way_max.min(hop.datagram_max);
                let way = Way::new(peer, to, session, (way_max, peer.way_settled));
                Ok((Way { hop: Some((hop_session, route)), spread: hop.spread, ..way }, peer))
            }
        }
    }

    /// To a neighbour on its direct address.
    #[inline]
    pub fn to_neighbour(fib: &'a Fib, slot: PeerSlot) -> Option<Way<'a>> {
        let peer = fib.peer(slot)?;
        let (to, session) = (peer.direct?, peer.session.as_deref()?);
        Some(Way::new(peer, to, session, (peer.datagram_max, peer.settled)))
    }

    #[inline]
    fn new(peer: &'a FibPeer, to: SocketAddr, session: &'a Session, size: (usize, bool)) -> Way<'a> {
        let (datagram_max, settled) = size;
        let FibPeer { fragments, spread, .. } = *peer;
        let traffic = &*peer.traffic;
        Way { to, session, datagram_max, settled, fragments, urgent: false, spread, traffic, hop: None }
    }

    /// The longest frame for one peer that passes on it whole.
    pub fn frame_max(&self) -> usize {
        self.datagram_max.saturating_sub(self.wrapped() + OUTER_BYTES + INNER_BYTES + TAG_BYTES)
    }

    /// Puts `parts`, in this order, into one sealed datagram, or into several when they are too long for one; gives how many.
    #[inline]
    pub fn put(&self, me: ShortId, lane: u8, parts: [&[u8]; 3], out: &mut impl Transmit) -> Result<usize, DropReason> {
        let wrapped = self.wrapped();
        let plain: usize = parts.iter().map(|part| part.len()).sum();
        let length = wrapped + OUTER_BYTES + plain + TAG_BYTES;
        self.traffic.note_length(length);
        if length > self.datagram_max {
            return self.put_fragments(me, lane, parts, plain, out);
        }
        let datagram = out.reserve(self.to, length).ok_or(DropReason::SendFull)?;
        let sealed = datagram.get_mut(wrapped..).ok_or(DropReason::Malformed)?;
        let mut room = sealed.get_mut(OUTER_BYTES..).ok_or(DropReason::Malformed)?;
        for part in parts {
            let (to, rest) = room.split_at_mut_checked(part.len()).ok_or(DropReason::Malformed)?;
            to.copy_from_slice(part);
            room = rest;
        }
        self.seal(me, lane, datagram)?;
        out.commit();
        Ok(1)
    }

    /// The same in pieces of equal length, so that they still leave in one send. Their counters follow each other, by which the receiver knows that they
    /// belong together.
    #[cold]
    fn put_fragments(
        &self,
        me: ShortId,
        lane: u8,
        parts: [&[u8]; 3],
        plain: usize,
        out: &mut impl Transmit,
    ) -> Result<usize, DropReason> {
        let wrapped = self.wrapped();
        let around = wrapped + OUTER_BYTES + INNER_BYTES + TAG_BYTES;
        let room = self.datagram_max.checked_sub(around).filter(|room| *room > 0).ok_or(DropReason::TooBig)?;
        let size = plain.div_ceil(plain.div_ceil(room).max(1)).max(1);
        let count = plain.div_ceil(size);
        if !self.fragments || plain > FRAGMENTED_MAX_BYTES || !(2..=FRAGMENTS_MAX).contains(&count) {
            return Err(DropReason::TooBig);
        }
        for index in 0..count {
            let piece = size.min(plain - index * size);
            let datagram = out.reserve(self.to, around + piece).ok_or(DropReason::SendFull)?;
            let inside = datagram.get_mut(wrapped + OUTER_BYTES..).ok_or(DropReason::Malformed)?;
            let (header, rest) = inside.split_first_chunk_mut::<INNER_BYTES>().ok_or(DropReason::Malformed)?;
            *header = Inner::fragment(size as u16, index as u16, count as u16).emit();
            copy_from(&parts, index * size, rest.get_mut(..piece).ok_or(DropReason::Malformed)?);
            self.seal(me, lane, datagram)?;
            out.commit();
        }
        Ok(count)
    }

    #[inline]
    fn seal(&self, me: ShortId, lane: u8, datagram: &mut [u8]) -> Result<(), DropReason> {
        let sealed = datagram.get_mut(self.wrapped()..).ok_or(DropReason::Malformed)?;
        let (urgent, aside) = (self.urgent, self.spread && leaves_aside(lane));
        match self.hop {
            None => self.session.seal_as(lane, Marks { urgent, aside }, sealed),
            Some((session, route)) => {
                self.session.seal_as(lane, Marks { urgent, aside: false }, sealed)?;
                seal_relay(session, lane, aside, &Relay { source: me, route, position: 0 }, datagram)
            }
        }
    }

    #[inline]
    fn wrapped(&self) -> usize {
        self.hop.map_or(0, |(_, route)| route.overhead_bytes())
    }
}

/// Fills `to` from what the parts are together, from byte `at` on.
fn copy_from(parts: &[&[u8]], mut at: usize, mut to: &mut [u8]) {
    for part in parts {
        let from = part.get(at..).unwrap_or_default();
        let bytes = from.len().min(to.len());
        let Some((room, rest)) = to.split_at_mut_checked(bytes) else { return };
        room.copy_from_slice(from.get(..bytes).unwrap_or_default());
        to = rest;
        at = at.saturating_sub(part.len());
    }
}

/// Why there is no way to a peer, and with whom a session is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoWay {
    pub why: DropReason,
    pub wanted: Option<PeerSlot>,
}

/// Writes relay header, outer header and hop tag before a datagram that is in place already.
pub(crate) fn seal_relay(
    session: &Session,
    lane: u8,
    aside: bool,
    relay: &Relay,
    datagram: &mut [u8],
) -> Result<(), DropReason> {
    let room = datagram.get_mut(OUTER_BYTES..).ok_or(DropReason::Malformed)?;
    let relay_bytes = relay.emit(room).ok_or(DropReason::Malformed)?;
    session.seal_hop(lane, aside, datagram, relay_bytes)
}

/// Whether what is sealed on this lane may leave from a port of its own: the two lanes of the first worker and the node's take the main one.
pub(crate) fn leaves_aside(lane: u8) -> bool {
    lane >= 2
}

/// The lane of the node itself: the last, after two for each worker.
pub fn lane_node(workers: usize) -> u8 {
    u8::try_from(workers.saturating_mul(2)).unwrap_or(u8::MAX)
}

/// A sealed DATA datagram with this inner header and body: a probe. `None` when the session's lane is used up. Allocates: not for the frame path.
pub fn seal_inner(session: &Session, lane: u8, inner: &Inner, body: &[u8]) -> Option<Vec<u8>> {
    let mut datagram = vec![0; OUTER_BYTES];
    datagram.extend_from_slice(&inner.emit());
    datagram.extend_from_slice(body);
    datagram.resize(datagram.len() + TAG_BYTES, 0);
    session.seal(lane, &mut datagram).ok()?;
    Some(datagram)
}

/// Wraps a datagram (QUIC, or DATA sealed for `dest`) into RELAY along the relayed path to `dest`; gives the address to send it to. `None` when its path is
/// not relayed, or the first relay has no session or direct link.
pub fn wrap_relayed(fib: &Fib, lane: u8, dest: ShortId, datagram: &[u8], out: &mut Vec<u8>) -> Option<SocketAddr> {
    let slot = fib.slot(dest)?;
    let Path::Relayed { first, route } = &fib.peer(slot)?.path else { return None };
    wrap_route(fib, lane, *first, route, datagram, out)
}

/// The same along a route of one's own choice.
pub fn wrap_route(
    fib: &Fib,
    lane: u8,
    first: PeerSlot,
    route: &Route,
    datagram: &[u8],
    out: &mut Vec<u8>,
) -> Option<SocketAddr> {
    let hop = fib.peer(first)?;
    let (to, session) = (hop.direct?, hop.session.as_deref()?);
    out.clear();
    out.resize(route.overhead_bytes(), 0);
    out.extend_from_slice(datagram);
    seal_relay(session, lane, false, &Relay { source: fib.me, route: *route, position: 0 }, out).ok()?;
    Some(to)
}

/// Whether a datagram inside RELAY may be there: QUIC or DATA, never RELAY again.
pub(crate) fn may_be_relayed(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| is_quic(*first) || first & 0xcf == 1)
}
