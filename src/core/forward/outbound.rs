//! A frame from the TAP gives sealed datagrams.
//!
//! ```text
//! frame ─▶ link-local? underlay? ─▶ source: may it? learn it ─▶ ARP for the range? ─▶ destination ─┬─ here            drop
//!                                                                 ([`super::arp`])                 ├─ a peer's        its path: direct, or by relays
//!                                                                                                  └─ group, unknown  a copy to each hop of our flood tree
//! ```
//! Where a destination is says the map of owners, when the address follows from one that is owned; else what was learned.
//!
//! A super-frame is cut on the boundaries of its segments: each datagram has the header template and one segment's payload, and is of use alone
//! (in fragments, when it is too long for the path). Nothing in
//! the template changes on the way; what differs from segment to segment is put right where they are joined or end alone ([`super::join`]).
//!
//! What opens a TCP connection has its segment size made to fit the path ([`super::mss`]), in a copy of its headers: the frame itself is never written to.
//! The sender of what does not fit is told ([`super::too_big`]).

use std::sync::atomic::Ordering::Relaxed;

use meshnet_proto::Mac;
use meshnet_proto::limits::{FLOOD_HOPS_MAX, SUPERFRAME_MAX_BYTES};
use meshnet_proto::wire::data::{FLOOD_BYTES, Flood, Gso, INNER_BYTES, Inner, InnerKind, Offload};

use super::arp::{Arp, Verdict};
use super::packet::{self, Layers};
use super::send::Way;
use super::too_big::{self, TooLong};
use super::{Forwarder, Punt, Transmit, addresses, mss};
use crate::counters::DropReason;
use crate::fdb::Owner;
use crate::fib::{self, Fib, PeerSlot};

/// A frame as it is cut: the inner header of all its datagrams, the header template (empty for an ordinary frame), the payload.
#[derive(Clone, Copy)]
struct Cut<'a> {
    /// All of it.
    frame: &'a [u8],
    /// Where its headers lie, when it is IP.
    layers: Option<&'a Layers>,
    inner: Inner,
    template: &'a [u8],
    payload: &'a [u8],
    /// Payload bytes of each datagram but the last.
    size: usize,
}

impl<'a> Cut<'a> {
    /// `None` when the frame is not what `offload` says.
    #[inline]
    fn new(frame: &'a [u8], layers: Option<&'a Layers>, offload: &Offload, superframe: u16) -> Option<Cut<'a>> {
        if frame.len() > SUPERFRAME_MAX_BYTES || offload.needs_csum && checksum_end(offload) > frame.len() {
            return None;
        }
        if offload.gso == Gso::None {
            let offload = Offload { header_len: 0, gso_size: 0, ecn: false, ..*offload };
            let inner = Inner { offload, ..Inner::plain(InnerKind::Frame) };
            return Some(Cut { frame, layers, inner, template: &[], payload: frame, size: frame.len() });
        }
        let mut offload = *offload;
        if offload.header_len == 0 {
            offload.header_len = packet::header_len(frame, offload.gso)?;
        }
        let header = usize::from(offload.header_len);
        let size = usize::from(offload.gso_size);
        let (template, payload) = frame.split_at_checked(header)?;
        // A checksum over the whole super-frame cannot be that of a segment: the kernel always leaves it to be done, and so must whoever wrote this.
        if header < super::ETHERNET_BYTES || size == 0 || payload.is_empty() || !offload.needs_csum {
            return None;
        }
        let count = payload.len().div_ceil(size);
        if checksum_end(&offload) > header || count > SEGMENTS_MAX {
            return None;
        }
        let inner =
            Inner { kind: InnerKind::Segment, flood: false, offload, superframe, index: 0, count: count as u16 };
        Some(Cut { frame, layers, inner, template, payload, size })
    }

    /// Whether it opens a TCP connection, and where its headers lie.
    #[inline]
    fn opening(&self) -> Option<&'a Layers> {
        self.layers.filter(|layers| self.template.is_empty() && mss::opens(self.frame, layers))
    }

    /// The same with a segment size that fits frames of `frame_max` bytes; `None` when it does. `room` is for its headers.
    fn clamped<'b>(
        &self,
        layers: &Layers,
        frame_max: usize,
        room: &'b mut [u8; mss::HEADERS_MAX_BYTES],
    ) -> Option<Cut<'b>>
    where
        'a: 'b,
    {
        let end = mss::headers_end(self.frame, layers)?;
        let (headers, rest) = self.frame.split_at_checked(end)?;
        let room = room.get_mut(..end)?;
        room.copy_from_slice(headers);
        if !mss::clamp(room, layers, &self.inner.offload, frame_max) {
            return None;
        }
        let (template, payload): (&[u8], &[u8]) = if rest.is_empty() { (&[], room) } else { (room, rest) };
        Some(Cut { template, payload, size: payload.len(), ..*self })
    }

    /// The longest frame that it is cut into.
    #[inline]
    fn longest(&self) -> usize {
        self.template.len() + self.size
    }

    fn count(&self) -> u64 {
        u64::from(self.inner.count)
    }

    fn bytes(&self) -> u64 {
        self.count() * self.template.len() as u64 + self.payload.len() as u64
    }
}

fn checksum_end(offload: &Offload) -> usize {
    usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2
}

impl Forwarder {
    /// Whether a frame or super-frame read from the TAP may be sent before others that were read earlier: see [`super::sparse`]. To be asked once for each,
    /// in the order in which they were read.
    #[inline]
    pub fn is_urgent(&mut self, tick: u32, offload: &Offload, frame: &[u8]) -> bool {
        let layers = Layers::parse(frame);
        self.sparse.is_urgent(frame, layers.as_ref(), offload.gso != Gso::None, tick)
    }

    /// Sends a frame or super-frame read from the TAP to where it belongs. Drops are counted here. What it gives is to be written into the same TAP.
    #[inline]
    pub fn outbound(
        &mut self,
        fib: &Fib,
        tick: u32,
        offload: &Offload,
        frame: &[u8],
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Option<&[u8]> {
        let urgent = self.is_urgent(tick, offload, frame);
        self.outbound_as(fib, tick, urgent, offload, frame, out, punt)
    }

    /// The same, of which [`Forwarder::is_urgent`] was asked already.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub fn outbound_as(
        &mut self,
        fib: &Fib,
        tick: u32,
        urgent: bool,
        offload: &Offload,
        frame: &[u8],
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Option<&[u8]> {
        self.urgent = urgent;
        let answer = self.try_outbound(fib, tick, offload, frame, out, punt).unwrap_or_else(|reason| {
            self.drop(reason);
            0
        });
        if answer == 0 { None } else { self.answer.get(..answer) }
    }

    /// Gives the length of the answer; 0: none.
    #[inline]
    fn try_outbound(
        &mut self,
        fib: &Fib,
        tick: u32,
        offload: &Offload,
        frame: &[u8],
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Result<usize, DropReason> {
        let (destination, source) = addresses(frame).ok_or(DropReason::Malformed)?;
        if destination.is_link_local_group() {
            return Err(DropReason::LinkLocal);
        }
        let layers = Layers::parse(frame);
        if packet::is_underlay(frame, layers.as_ref(), &fib.underlay, fib.underlay_port) {
            return Err(DropReason::Underlay);
        }
        let cut = Cut::new(frame, layers.as_ref(), offload, self.superframe).ok_or(DropReason::Malformed)?;
        if offload.gso != Gso::None {
            self.superframe = self.superframe.wrapping_add(1);
        }
        match fib.owners.of_mac(source) {
            Some((_, fib::Owner::Peer(_))) => return Err(DropReason::NotOwner),
            Some((_, fib::Owner::Me)) => {}
            Some((_, fib::Owner::Nobody)) | None => self.learn(source, Owner::Local, tick)?,
        }
        if let Some(arp) = Arp::parse(frame)
            && let answer @ 1.. = self.arp(fib, &arp, destination, source)?
        {
            return Ok(answer);
        }
        if destination.is_group() {
            self.flood(fib, &cut, out)?;
            return Ok(0);
        }
        let owner = match fib.owners.of_mac(destination) {
            Some((_, fib::Owner::Peer(slot))) => Some(Owner::Peer(slot)),
            Some((_, fib::Owner::Me)) => Some(Owner::Local),
            Some((_, fib::Owner::Nobody)) | None => self.fdb.lookup(&mut self.cache, destination, tick),
        };
        match owner {
            Some(Owner::Peer(slot)) => {
                let told = self.unicast(fib, slot, tick, &cut, out, punt)?;
                if fib.fast(slot).is_some() {
                    self.offer_fast(slot, destination, tick, punt);
                }
                Ok(told)
            }
            Some(Owner::Local) => Err(DropReason::Local),
            None => self.flood(fib, &cut, out).map(|()| 0),
        }
    }

    /// ARP from the TAP: the answer's length, or 0 when it goes its way.
    #[cold]
    fn arp(&mut self, fib: &Fib, arp: &Arp, destination: Mac, source: Mac) -> Result<usize, DropReason> {
        match arp.judge(&fib.owners, destination.is_group()) {
            Verdict::Pass => return Ok(0),
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Dispute => self.drop(DropReason::NotOwner),
            Verdict::Answer => {}
        }
        self.counters.answered.add(1);
        let answer = arp.answer(source);
        if let Some(room) = self.answer.first_chunk_mut() {
            *room = answer;
        }
        Ok(answer.len())
    }

    #[inline]
    fn unicast(
        &mut self,
        fib: &Fib,
        slot: PeerSlot,
        tick: u32,
        cut: &Cut<'_>,
        out: &mut impl Transmit,
        punt: &mut impl Punt,
    ) -> Result<usize, DropReason> {
        let (mut way, peer) = match Way::to_peer(fib, slot) {
            Ok(way) => way,
            Err(none) => {
                if let Some(wanted) = none.wanted {
                    self.want_session(wanted, tick, punt);
                }
                return Err(none.why);
            }
        };
        way.urgent = self.urgent;
        let put = self.put(fib, &way, cut, None, out);
        if put.frames > 0 {
            self.counters.tx_frames.add(put.frames);
            self.counters.tx_bytes.add(put.bytes);
            let mark = if way.hop.is_some() { &peer.traffic.tx_relayed } else { &peer.traffic.tx_direct };
            mark.fetch_add(put.frames, Relaxed);
        }
        // What is lost is told at once; what is carried only when it is sure that the path takes no more.
        let tell = put.too_long && (way.settled || put.frames == 0);
        let there = usize::from(peer.overlay_mtu);
        if !tell && cut.longest() <= there + super::ETHERNET_BYTES {
            return Ok(0);
        }
        let way_max = if tell { way.frame_max() } else { usize::MAX };
        Ok(self.tell_too_big(way_max, there, tick, cut))
    }

    /// Tells who sent this that the path, or the overlay at its end, takes less; gives the length of the answer, or 0.
    #[cold]
    fn tell_too_big(&mut self, way_max: usize, packet_max: usize, tick: u32, cut: &Cut<'_>) -> usize {
        let Some(layers) = cut.layers else { return 0 };
        let frame_max = way_max.min(layers.l3 + packet_max);
        let what = TooLong { frame: cut.frame, layers, offload: &cut.inner.offload, frame_max };
        let Some(length) = too_big::answer(&what, &mut self.answer) else { return 0 };
        if !self.told.may_tell(cut.frame, tick) {
            return 0;
        }
        self.counters.told_too_big.add(1);
        length
    }

    /// A copy to each next hop, numbered alike so that a receiver knows copies for what they are.
    fn flood(&mut self, fib: &Fib, cut: &Cut<'_>, out: &mut impl Transmit) -> Result<(), DropReason> {
        let hops = if fib.flood_all { &fib.neighbours } else { &fib.flood_out };
        if hops.is_empty() {
            // Alone: nobody to miss it.
            return Ok(());
        }
        if !fib.own_flood.storm.take(i64::from(cut.inner.count)) {
            fib.own_flood.exceeded.store(true, Relaxed);
            return Err(DropReason::StormBudget);
        }
        let sequence = fib.own_flood.sequence.fetch_add(u32::from(cut.inner.count), Relaxed);
        let first = Flood { origin: fib.me, incarnation: fib.incarnation, hops: FLOOD_HOPS_MAX, sequence };
        let mut anywhere = false;
        for slot in hops {
            let Some(way) = Way::to_neighbour(fib, *slot) else {
                self.drop(DropReason::NoNextHop);
                continue;
            };
            let put = self.put(fib, &way, cut, Some(first), out);
            self.counters.flooded.add(put.frames);
            anywhere |= put.frames > 0;
        }
        if anywhere {
            self.counters.tx_frames.add(cut.count());
            self.counters.tx_bytes.add(cut.bytes());
        }
        Ok(())
    }

    /// Seals all datagrams of a frame for one way.
    #[inline]
    fn put(&self, fib: &Fib, way: &Way<'_>, cut: &Cut<'_>, flood: Option<Flood>, out: &mut impl Transmit) -> Put {
        match cut.opening() {
            Some(layers) if way.settled => self.put_opening(fib, way, cut, layers, flood, out),
            _ => self.put_all(fib, way, cut, flood, out),
        }
    }

    #[cold]
    fn put_opening(
        &self,
        fib: &Fib,
        way: &Way<'_>,
        cut: &Cut<'_>,
        layers: &Layers,
        flood: Option<Flood>,
        out: &mut impl Transmit,
    ) -> Put {
        let mut room = [0; mss::HEADERS_MAX_BYTES];
        let clamped = cut.clamped(layers, way.frame_max(), &mut room);
        self.counters.clamped.add(u64::from(clamped.is_some()));
        self.put_all(fib, way, clamped.as_ref().unwrap_or(cut), flood, out)
    }

    /// The first that fails ends it, as the others would fail alike.
    #[inline]
    fn put_all(&self, fib: &Fib, way: &Way<'_>, cut: &Cut<'_>, flood: Option<Flood>, out: &mut impl Transmit) -> Put {
        let mut head = [0; INNER_BYTES + FLOOD_BYTES];
        let mut inner = Inner { flood: flood.is_some(), ..cut.inner };
        let mut put = Put::default();
        for piece in cut.payload.chunks(cut.size) {
            let (first, second) = head.split_at_mut(INNER_BYTES);
            first.copy_from_slice(&inner.emit());
            let head_bytes = match flood {
                None => INNER_BYTES,
                Some(flood) => {
                    let sequence = flood.sequence.wrapping_add(u32::from(inner.index));
                    second.copy_from_slice(&Flood { sequence, ..flood }.emit());
                    INNER_BYTES + FLOOD_BYTES
                }
            };
            let head = head.get(..head_bytes).unwrap_or_default();
            match way.put(fib.me, self.lane, [head, cut.template, piece], out) {
                Ok(1) => {}
                Ok(_) => {
                    self.counters.fragmented.add(1);
                    put.too_long = true;
                }
                Err(reason) => {
                    put.too_long |= reason == DropReason::TooBig;
                    self.counters.drop_many(reason, cut.count() - put.frames);
                    break;
                }
            }
            inner.index = inner.index.wrapping_add(1);
            put.frames += 1;
            put.bytes += (cut.template.len() + piece.len()) as u64;
        }
        put
    }
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, Default)]
struct Put {
    /// Sent; of a super-frame, its segments.
    frames: u64,
    bytes: u64,
    /// Some did not pass whole.
    too_long: bool,
}

/// Segments of one super-frame: 64 KiB in the smallest that TCP is left with when every option is used.
const SEGMENTS_MAX: usize = 2_048;

#[cfg(test)]
mod tests;
