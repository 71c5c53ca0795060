//! Datagrams made and sealed: what outbound, inbound and the node share.
//!
//! ```text
//! direct    outer │ head │ body │ tag                                    one copy of head and body, sealed in place
//! relayed   outer │ relay │ hop tag │ outer │ head │ body │ tag          the same, then the hop tag around it
//! ```

use std::net::SocketAddr;

use meshnet_proto::ShortId;
use meshnet_proto::wire::data::{Inner, OUTER_BYTES, Relay, Route, TAG_BYTES, is_quic};

use super::Transmit;
use crate::counters::DropReason;
use crate::fib::{Fib, FibPeer, Path, PeerSlot};
use crate::session::Session;

/// Where a sealed datagram goes.
pub(crate) struct Way<'a> {
    /// Its next address.
    pub to: SocketAddr,
    /// Seals it for the peer that shall read it.
    pub session: &'a Session,
    /// Longest datagram to that address.
    pub datagram_max: usize,
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
                Ok((Way { to, session, datagram_max: peer.datagram_max, hop: None }, peer))
            }
            Path::Relayed { first, route } => {
                let session = session.ok_or(wanted(slot))?;
                let hop = fib.peer(first).ok_or(lost(DropReason::NoRoute))?;
                let to = hop.direct.ok_or(lost(DropReason::NoRoute))?;
                let hop_session = hop.session.as_deref().ok_or(wanted(first))?;
                let way = Way { to, session, datagram_max: hop.datagram_max, hop: Some((hop_session, route)) };
                Ok((way, peer))
            }
        }
    }

    /// To a neighbour on its direct address.
    #[inline]
    pub fn to_neighbour(fib: &'a Fib, slot: PeerSlot) -> Option<Way<'a>> {
        let peer = fib.peer(slot)?;
        let (to, session) = (peer.direct?, peer.session.as_deref()?);
        Some(Way { to, session, datagram_max: peer.datagram_max, hop: None })
    }

    /// Puts `parts`, in this order, into one sealed datagram.
    #[inline]
    pub fn put(&self, me: ShortId, lane: u8, parts: [&[u8]; 3], out: &mut impl Transmit) -> Result<(), DropReason> {
        let wrapped = self.hop.map_or(0, |(_, route)| route.overhead_bytes());
        let plain: usize = parts.iter().map(|part| part.len()).sum();
        let length = wrapped + OUTER_BYTES + plain + TAG_BYTES;
        if length > self.datagram_max {
            return Err(DropReason::TooBig);
        }
        let datagram = out.reserve(self.to, length).ok_or(DropReason::SendFull)?;
        let sealed = datagram.get_mut(wrapped..).ok_or(DropReason::Malformed)?;
        let mut room = sealed.get_mut(OUTER_BYTES..).ok_or(DropReason::Malformed)?;
        for part in parts {
            let (to, rest) = room.split_at_mut_checked(part.len()).ok_or(DropReason::Malformed)?;
            to.copy_from_slice(part);
            room = rest;
        }
        self.session.seal(lane, sealed)?;
        if let Some((session, route)) = self.hop {
            seal_relay(session, lane, &Relay { source: me, route, position: 0 }, datagram)?;
        }
        out.commit();
        Ok(())
    }
}

/// Why there is no way to a peer, and with whom a session is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoWay {
    pub why: DropReason,
    pub wanted: Option<PeerSlot>,
}

/// Writes relay header, outer header and hop tag before a datagram that is in place already.
pub(crate) fn seal_relay(session: &Session, lane: u8, relay: &Relay, datagram: &mut [u8]) -> Result<(), DropReason> {
    let room = datagram.get_mut(OUTER_BYTES..).ok_or(DropReason::Malformed)?;
    let relay_bytes = relay.emit(room).ok_or(DropReason::Malformed)?;
    session.seal_hop(lane, datagram, relay_bytes)
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
    seal_relay(session, lane, &Relay { source: fib.me, route: *route, position: 0 }, out).ok()?;
    Some(to)
}

/// Whether a datagram inside RELAY may be there: QUIC or DATA, never RELAY again.
pub(crate) fn may_be_relayed(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| is_quic(*first) || first & 0xcf == 1)
}
