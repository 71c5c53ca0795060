//! A datagram from the underlay gives a frame for the TAP, more datagrams, or something for the node.
//!
//! ```text
//! datagram ─┬─ QUIC ──────────────────────────────────────────────────────▶ to the node's sockets
//!           ├─ DATA ── open ─┬─ probe ────────────────────────────────────▶ punt
//!           │                ├─ fragment ── the last one? ── as the others
//!           │                ├─ frame, segment ── source: may it? learn ──▶ Deliver
//!           │                └─ flooded ── seen? budget? ── pass it on ───▶ and the same
//!           └─ RELAY ─ hop tag ─ am I the hop? ─┬─ the last: QUIC or DATA inside
//!                                               └─ else ── tag for the next hop ▶ send
//! ```

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use meshnet_proto::ShortId;
use meshnet_proto::limits::SUPERFRAME_MAX_BYTES;
use meshnet_proto::wire::data::{
    FLOOD_BYTES, Flood, INNER_BYTES, Inner, InnerKind, OUTER_BYTES, Outer, OuterKind, PROBE_BYTES, Relay, TAG_BYTES,
    is_quic,
};

use super::arp::Arp;
use super::fragments::Key;
use super::packet::Layers;
use super::send::{Way, leaves_aside, may_be_relayed, seal_relay};
use super::{Forwarder, Inbound, Punt, Punted, Transmit, addresses, mss};
use crate::counters::DropReason;
use crate::fdb::Owner;
use crate::fib::owners::address_of;
use crate::fib::{self, Fib, FibPeer, PeerSlot, is_link};
use crate::session::keys::HOP_INNER_BYTES;

/// A datagram of a session that proved genuine.
struct Opened {
    slot: PeerSlot,
    /// Inner header and what follows, as a range of the whole buffer.
    plain: Range<usize>,
    flow: u64,
}

impl Forwarder {
    /// Takes the datagram at `at` of `buffer`, which came from `from`. It is opened in place; what it gives refers to the same buffer. Drops are counted here.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub fn inbound(
        &mut self,
        fib: &Fib,
        tick: u32,
        from: SocketAddr,
        buffer: &mut [u8],
        at: Range<usize>,
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Inbound {
        let arrival = Arrival { fib, tick, from, relayed: None };
        self.try_inbound(arrival, buffer, at, out, punt).unwrap_or_else(|reason| {
            self.drop(reason);
            Inbound::Done
        })
    }

    #[inline]
    fn try_inbound(
        &mut self,
        arrival: Arrival<'_>,
        buffer: &mut [u8],
        at: Range<usize>,
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Result<Inbound, DropReason> {
        let datagram = buffer.get(at.clone()).ok_or(DropReason::Malformed)?;
        if is_quic(*datagram.first().ok_or(DropReason::Malformed)?) {
            return Ok(Inbound::Quic { source: None, datagram: at });
        }
        let outer = Outer::parse(datagram).ok_or(DropReason::Malformed)?;
        match outer.kind {
            OuterKind::Data => self.data(arrival, &outer, buffer, at, out, punt),
            OuterKind::Relay => self.relay(arrival, &outer, buffer, at, out, punt),
        }
    }

    #[inline]
    fn data(
        &mut self,
        arrival: Arrival<'_>,
        outer: &Outer,
        buffer: &mut [u8],
        at: Range<usize>,
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Result<Inbound, DropReason> {
        let fib = arrival.fib;
        let entry = fib.session(outer.index).ok_or(DropReason::UnknownSession)?;
        let peer = fib.peer(entry.slot).ok_or(DropReason::UnknownSession)?;
        if arrival.relayed.is_some_and(|source| source != peer.id.short()) {
            return Err(DropReason::Malformed);
        }
        let datagram = buffer.get_mut(at.clone()).ok_or(DropReason::Malformed)?;
        let plain = entry.session.open(outer, datagram)?;
        self.fragments.expire(arrival.tick, &self.counters);
        let inner = Inner::parse(plain).ok_or(DropReason::Malformed)?;
        if arrival.relayed.is_some() {
            peer.traffic.rx_relayed.fetch_add(1, Relaxed);
        } else if !outer.aside {
            self.came_directly(&arrival, entry.slot, peer, punt);
        }
        let plain = at.start + OUTER_BYTES..at.end - TAG_BYTES;
        let flow = u64::from(outer.index) << 8 | u64::from(outer.lane);
        let opened = Opened { slot: entry.slot, plain, flow };
        match inner.kind {
            InnerKind::Probe | InnerKind::ProbeReply if inner.flood => Err(DropReason::Malformed),
            InnerKind::Probe | InnerKind::ProbeReply => {
                if !peer.traffic.may_punt() {
                    return Err(DropReason::PuntFull);
                }
                let (slot, relayed) = (entry.slot, arrival.relayed.is_some());
                // Nobody reads at the port that an aside one came from.
                let from = if outer.aside { peer.direct.ok_or(DropReason::NoRoute)? } else { arrival.from };
                let plaintext = buffer.get(opened.plain).ok_or(DropReason::Malformed)?;
                // What follows is padding: it has served its purpose by being here.
                let plaintext = plaintext.get(..INNER_BYTES + PROBE_BYTES).unwrap_or(plaintext).to_vec();
                self.punt(punt, Punted::Probe { slot, from, relayed, plaintext });
                Ok(Inbound::Done)
            }
            InnerKind::Frame | InnerKind::Segment => self.framed(&arrival, inner, opened, buffer, out),
            InnerKind::Fragment => self.fragment(&arrival, outer, inner, opened, buffer, out),
        }
    }

    #[inline]
    fn framed(
        &mut self,
        arrival: &Arrival<'_>,
        inner: Inner,
        opened: Opened,
        buffer: &mut [u8],
        out: &mut impl Transmit,
    ) -> Result<Inbound, DropReason> {
        if !inner.flood {
            let frame = opened.plain.start + INNER_BYTES..opened.plain.end;
            return self.deliver(arrival, inner, opened.slot, opened.flow, buffer, frame);
        }
        if arrival.relayed.is_some() {
            return Err(DropReason::Malformed);
        }
        self.flooded(arrival, inner, opened, buffer, out)
    }

    /// A piece of a frame: the last one that comes makes it whole, and then it is as any other.
    #[cold]
    fn fragment(
        &mut self,
        arrival: &Arrival<'_>,
        outer: &Outer,
        inner: Inner,
        opened: Opened,
        buffer: &mut [u8],
        out: &mut impl Transmit,
    ) -> Result<Inbound, DropReason> {
        let first = outer.counter.checked_sub(u64::from(inner.index)).ok_or(DropReason::Malformed)?;
        let key = Key { session: outer.index, lane: outer.lane, epoch: outer.epoch, first };
        let piece = buffer.get(opened.plain.start + INNER_BYTES..opened.plain.end).ok_or(DropReason::Malformed)?;
        if !self.fragments.add(key, opened.slot, &inner, piece, arrival.tick, &self.counters)? {
            return Ok(Inbound::Done);
        }
        let (mut room, bytes) = self.fragments.take_whole();
        let end = self.whole(arrival, Opened { plain: 0..bytes, ..opened }, &mut room, out);
        self.fragments.give_back(room);
        match end? {
            Inbound::Deliver { inner, frame, flow } => Ok(Inbound::Reassembled { inner, frame, flow }),
            other => Ok(other),
        }
    }

    fn whole(
        &mut self,
        arrival: &Arrival<'_>,
        opened: Opened,
        buffer: &mut [u8],
        out: &mut impl Transmit,
    ) -> Result<Inbound, DropReason> {
        let inner = buffer.get(opened.plain.clone()).and_then(Inner::parse).ok_or(DropReason::Malformed)?;
        if !matches!(inner.kind, InnerKind::Frame | InnerKind::Segment) {
            return Err(DropReason::Malformed);
        }
        self.counters.reassembled.add(1);
        self.framed(arrival, inner, opened, buffer, out)
    }

    /// Marks genuine traffic on the direct path, and tells the node when it came from elsewhere than that path leads.
    #[inline]
    fn came_directly(&mut self, arrival: &Arrival<'_>, slot: PeerSlot, peer: &FibPeer, punt: &mut impl Punt) {
        let (from, tick) = (arrival.from, arrival.tick);
        let mark = if is_link(from) { &peer.traffic.rx_link } else { &peer.traffic.rx_direct };
        mark.fetch_add(1, Relaxed);
        if peer.direct != Some(from) && self.roamed != Some((slot, from, tick)) {
            self.roamed = Some((slot, from, tick));
            if !peer.traffic.may_punt() {
                return self.drop(DropReason::PuntFull);
            }
            self.punt(punt, Punted::Roamed { slot, from });
        }
    }

    /// A frame for this machine: checks that it is one and that its origin may send it, and learns its source.
    #[inline]
    fn deliver(
        &mut self,
        arrival: &Arrival<'_>,
        inner: Inner,
        origin: PeerSlot,
        flow: u64,
        buffer: &mut [u8],
        frame: Range<usize>,
    ) -> Result<Inbound, DropReason> {
        let bytes = buffer.get_mut(frame.clone()).ok_or(DropReason::Malformed)?;
        let (destination, source) = addresses(bytes).ok_or(DropReason::Malformed)?;
        if !agrees(&inner, bytes.len()) {
            return Err(DropReason::Malformed);
        }
        if destination.is_link_local_group() {
            return Err(DropReason::LinkLocal);
        }
        let owners = &*arrival.fib.owners;
        let derived = owners.of_mac(source).map(|(_, owner)| owner);
        let said = Arp::parse(bytes).and_then(|arp| arp.speaks_for(owners));
        if !may_speak(derived, origin) || !may_speak(said, origin) {
            return Err(DropReason::NotOwner);
        }
        if !matches!(derived, Some(fib::Owner::Peer(_))) {
            self.learn(source, Owner::Peer(origin), arrival.tick)?;
        }
        // This machine answers for its own addresses by another MAC address than the one that follows from them.
        if !owners.hosts.is_empty()
            && let Some(real) = address_of(destination).and_then(|address| owners.host(address))
            && let Some(field) = bytes.first_chunk_mut()
        {
            *field = real.0;
        }
        if inner.kind == InnerKind::Frame
            && let Some(layers) = Layers::parse(bytes).filter(|layers| mss::opens(bytes, layers))
        {
            self.opening(arrival.fib, origin, &inner, &layers, bytes);
        }
        self.counters.rx_frames.add(1);
        self.counters.rx_bytes.add(bytes.len() as u64);
        Ok(Inbound::Deliver { inner, frame, flow })
    }

    /// What opens a TCP connection says how long segments may be that go back to its origin.
    #[cold]
    fn opening(&self, fib: &Fib, origin: PeerSlot, inner: &Inner, layers: &Layers, frame: &mut [u8]) {
        let Ok((way, _)) = Way::to_peer(fib, origin) else { return };
        let whole = mss::headers_end(frame, layers).is_some();
        if way.settled && whole && mss::clamp(frame, layers, &inner.offload, way.frame_max()) {
            self.counters.clamped.add(1);
        }
    }

    /// A flooded frame: once for each number, within its origin's budget, on along the tree, then for this machine.
    fn flooded(
        &mut self,
        arrival: &Arrival<'_>,
        inner: Inner,
        opened: Opened,
        buffer: &mut [u8],
        out: &mut impl Transmit,
    ) -> Result<Inbound, DropReason> {
        let fib = arrival.fib;
        let plain = buffer.get_mut(opened.plain.clone()).ok_or(DropReason::Malformed)?;
        let (_, rest) = plain.split_first_chunk_mut::<INNER_BYTES>().ok_or(DropReason::Malformed)?;
        let (header, frame) = rest.split_first_chunk_mut::<FLOOD_BYTES>().ok_or(DropReason::Malformed)?;
        let flood = Flood::parse(header).ok_or(DropReason::Malformed)?;
        if flood.origin == fib.me {
            return Err(DropReason::Duplicate);
        }
        let slot = fib.slot(flood.origin).ok_or(DropReason::UnknownOrigin)?;
        let origin = fib.peer(slot).ok_or(DropReason::UnknownOrigin)?;
        if origin.incarnation != flood.incarnation {
            return Err(DropReason::UnknownOrigin);
        }
        if flood.hops == 0 {
            return Err(DropReason::HopLimit);
        }
        // Judged before it is passed on: what no peer will take need not travel.
        let (destination, source) = addresses(frame).ok_or(DropReason::Malformed)?;
        if !agrees(&inner, frame.len()) || source.is_group() {
            return Err(DropReason::Malformed);
        }
        if destination.is_link_local_group() {
            return Err(DropReason::LinkLocal);
        }
        if !origin.flood_window.accept_wrapping(flood.sequence) {
            return Err(DropReason::Duplicate);
        }
        if !origin.storm.take(1) {
            return Err(DropReason::StormBudget);
        }
        // Whether the origin may speak for the sender's address is judged by each for itself, below: the next one's map may be newer than ours.
        *header = Flood { hops: flood.hops - 1, ..flood }.emit();
        let next = if fib.flood_all { &fib.neighbours } else { &origin.flood_on };
        let last_hop = opened.slot;
        for to in next.iter().filter(|to| **to != last_hop && **to != slot) {
            self.flood_on(fib, *to, flood.hops - 1, plain, out);
        }
        let frame = opened.plain.start + INNER_BYTES + FLOOD_BYTES..opened.plain.end;
        // Not the last hop's session: copies of one super-frame may come by several.
        let flow = flood.origin.0 | 1 << 63;
        self.deliver(arrival, Inner { flood: false, ..inner }, slot, flow, buffer, frame)
    }

    fn flood_on(&self, fib: &Fib, to: PeerSlot, hops: u8, plain: &[u8], out: &mut impl Transmit) {
        if hops == 0 {
            return self.drop(DropReason::HopLimit);
        }
        let Some(way) = Way::to_neighbour(fib, to) else { return self.drop(DropReason::NoNextHop) };
        match way.put(fib.me, self.lane, [plain, &[], &[]], out) {
            Ok(datagrams) => {
                self.counters.flooded.add(1);
                self.counters.fragmented.add(u64::from(datagrams > 1));
            }
            Err(reason) => self.drop(reason),
        }
    }

    /// A RELAY datagram: for this peer, or on to the next hop. The route is the sender's, so tables that differ cannot make a loop, and a route that
    /// names a peer twice is refused.
    fn relay(
        &mut self,
        arrival: Arrival<'_>,
        outer: &Outer,
        buffer: &mut [u8],
        at: Range<usize>,
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Result<Inbound, DropReason> {
        let fib = arrival.fib;
        let datagram = buffer.get(at.clone()).ok_or(DropReason::Malformed)?;
        let entry = fib.session(outer.index).ok_or(DropReason::UnknownSession)?;
        let hop = fib.peer(entry.slot).ok_or(DropReason::UnknownSession)?;
        let header = datagram.get(OUTER_BYTES..).ok_or(DropReason::Malformed)?;
        let (relay, relay_bytes) = Relay::parse(header).ok_or(DropReason::Malformed)?;
        entry.session.open_hop(outer, datagram, relay_bytes)?;
        if !outer.aside {
            self.came_directly(&arrival, entry.slot, hop, punt);
        }
        let hops = relay.route.hops();
        let position = usize::from(relay.position);
        let before = position.checked_sub(1).map_or(Some(&relay.source), |before| hops.get(before));
        // The hop tag proves who sent it: nobody may speak in the name of another, or leave out a relay.
        if hops.get(position) != Some(&fib.me) || before != Some(&hop.id.short()) || repeats(relay.source, hops) {
            return Err(DropReason::Malformed);
        }
        let inside = at.start + OUTER_BYTES + relay_bytes + TAG_BYTES..at.end;
        let datagram_inside = buffer.get(inside.clone()).ok_or(DropReason::Malformed)?;
        if datagram_inside.len() < HOP_INNER_BYTES || !may_be_relayed(datagram_inside) {
            return Err(DropReason::Malformed);
        }
        if let Some(next) = hops.get(position + 1) {
            let relay = Relay { position: relay.position + 1, ..relay };
            self.pass_on(fib, *next, &relay, buffer.get(at).ok_or(DropReason::Malformed)?, out)?;
            return Ok(Inbound::Done);
        }
        if datagram_inside.first().is_some_and(|first| is_quic(*first)) {
            return Ok(Inbound::Quic { source: Some(relay.source), datagram: inside });
        }
        let outer = Outer::parse(datagram_inside).ok_or(DropReason::Malformed)?;
        self.data(Arrival { relayed: Some(relay.source), ..arrival }, &outer, buffer, inside, out, punt)
    }

    fn pass_on(
        &self,
        fib: &Fib,
        next: ShortId,
        relay: &Relay,
        datagram: &[u8],
        out: &mut impl Transmit,
    ) -> Result<(), DropReason> {
        let way = fib.slot(next).and_then(|slot| Way::to_neighbour(fib, slot)).ok_or(DropReason::NoNextHop)?;
        way.traffic.note_length(datagram.len());
        if datagram.len() > way.datagram_max {
            return Err(DropReason::TooBig);
        }
        let room = out.reserve(way.to, datagram.len()).ok_or(DropReason::SendFull)?;
        let room = room.get_mut(..datagram.len()).ok_or(DropReason::SendFull)?;
        room.copy_from_slice(datagram);
        seal_relay(way.session, self.lane, way.spread && leaves_aside(self.lane), relay, room)?;
        out.commit();
        self.counters.relayed.add(1);
        Ok(())
    }
}

/// Under what circumstances a datagram came.
struct Arrival<'a> {
    fib: &'a Fib,
    tick: u32,
    from: SocketAddr,
    /// Who sent it, when it came by relays.
    relayed: Option<ShortId>,
}

/// Whether `origin` may speak for an address of this owner: its own, what nobody owns, and what is not managed.
#[inline]
fn may_speak(owner: Option<fib::Owner>, origin: PeerSlot) -> bool {
    match owner {
        None | Some(fib::Owner::Nobody) => true,
        Some(fib::Owner::Me) => false,
        Some(fib::Owner::Peer(slot)) => slot == origin,
    }
}

/// Whether any peer stands twice in a route, its start included.
fn repeats(source: ShortId, hops: &[ShortId]) -> bool {
    let mut rest = hops;
    let mut one = source;
    while !rest.contains(&one) {
        let Some((first, others)) = rest.split_first() else { return false };
        (one, rest) = (*first, others);
    }
    true
}

/// Whether a frame of `bytes` can be what its inner header says. The kernel would refuse it later, and the joiner relies on it.
#[inline]
fn agrees(inner: &Inner, bytes: usize) -> bool {
    let offload = &inner.offload;
    let checksum = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2;
    if inner.kind != InnerKind::Segment {
        return bytes <= SUPERFRAME_MAX_BYTES && (!offload.needs_csum || checksum <= bytes);
    }
    let (header, size) = (usize::from(offload.header_len), usize::from(offload.gso_size));
    let payload = bytes.saturating_sub(header);
    let whole = header + usize::from(inner.index) * size + payload;
    let last = inner.index + 1 == inner.count;
    let sized = if last { payload > 0 && payload <= size } else { payload == size };
    sized && whole <= SUPERFRAME_MAX_BYTES && offload.needs_csum && checksum <= header
}

#[cfg(test)]
mod tests;
