//! Telling a sender that its packets are too large for the path: ICMP "fragmentation needed" (RFC 792, 1191) and ICMPv6 "packet too big" (RFC 4443, 3.2;
//! RFC 8201), as frames for the TAP.
//!
//! ```text
//! too long for the path ─┬─ carried in fragments, or lost and counted
//!                        └─ IPv4 that may not be fragmented, IPv6 ── told within this tick? ── Ethernet │ tags │ IP │ ICMP: size, its first bytes
//! ```
//! The message comes from the packet's own destination. This machine need not have an address in that network, and to the sender it is as if the station
//! there had said so: its route back exists, and its firewall knows the pair. What travels in fragments arrives all the same, so one answer that is lost or
//! not believed costs speed alone.
//!
//! Never an answer to a group, to an ICMP error, or to a fragment other than the first (RFC 1122, 3.2.2; RFC 4443, 2.4). Nor to IPv6 of no more than 1,280
//! bytes, which every path has to take (RFC 8200, 5).

use meshnet_proto::wire::data::{Gso, Offload};

use super::packet::{ICMP, ICMPV6, Layers, Run, read16, retarget, sum16_from, write16};

/// What was too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLong<'a> {
    /// The frame or super-frame, as it came from the TAP.
    pub frame: &'a [u8],
    pub layers: &'a Layers,
    pub offload: &'a Offload,
    /// The longest frame that passes whole.
    pub frame_max: usize,
}

/// Writes the answer into `room`; gives its length, or `None` when there must be none.
pub(super) fn answer(what: &TooLong<'_>, room: &mut [u8; ANSWER_MAX_BYTES]) -> Option<usize> {
    let l3 = what.layers.l3;
    let most = u16::try_from(what.frame_max.checked_sub(l3)?).unwrap_or(u16::MAX);
    let (first, bytes) = first_packet(what)?;
    let packet = first.packet();
    let v6 = what.layers.v6;
    let most = most.max(if v6 { IPV6_MTU_MIN } else { IPV4_MTU_MIN });
    if bytes <= usize::from(most) || !may_be_answered(packet, what.layers) {
        return None;
    }
    let (ethernet, rest) = room.split_at_mut_checked(l3)?;
    ethernet.copy_from_slice(what.frame.get(..l3)?);
    let (to, from) = (what.frame.get(..6)?, what.frame.get(6..12)?);
    ethernet.get_mut(..6)?.copy_from_slice(from);
    ethernet.get_mut(6..12)?.copy_from_slice(to);
    let length = if v6 { icmpv6(&first, most, rest)? } else { icmp(&first, most, rest)? };
    Some(l3 + length)
}

/// A packet in two parts that follow each other.
struct Parts<'a> {
    /// The first segment's headers, of a super-frame.
    headers: [u8; 256],
    header_bytes: usize,
    rest: &'a [u8],
}

impl Parts<'_> {
    /// As far as its addresses and the start of what it carries.
    fn packet(&self) -> &[u8] {
        if self.header_bytes > 0 { self.headers.get(..self.header_bytes).unwrap_or_default() } else { self.rest }
    }

    /// Fills `to` with its start; gives how much that was.
    fn copy(&self, to: &mut [u8]) -> usize {
        let headers = self.headers.get(..self.header_bytes).unwrap_or_default();
        let all = headers.iter().chain(self.rest);
        to.iter_mut().zip(all).map(|(to, from)| *to = *from).count()
    }
}

/// The packet that is too large, without Ethernet, and its length: of a super-frame, the first that it would be cut into.
fn first_packet<'a>(what: &TooLong<'a>) -> Option<(Parts<'a>, usize)> {
    let (l3, mut headers) = (what.layers.l3, [0; 256]);
    if what.offload.gso == Gso::None {
        let end = what.layers.packet_end(what.frame)?;
        let rest = what.frame.get(l3..end.min(what.frame.len()))?;
        return Some((Parts { headers, header_bytes: 0, rest }, end - l3));
    }
    let header = usize::from(what.offload.header_len);
    let (from, payload) = what.frame.split_at_checked(header)?;
    let size = payload.len().min(usize::from(what.offload.gso_size));
    let room = headers.get_mut(..header)?;
    room.copy_from_slice(from);
    retarget(room, what.offload, Run { first: 0, last: size == payload.len(), payload_bytes: size })?;
    room.copy_within(l3.., 0);
    let header_bytes = header - l3;
    Some((Parts { headers, header_bytes, rest: payload.get(..size)? }, header_bytes + size))
}

fn may_be_answered(packet: &[u8], layers: &Layers) -> bool {
    if layers.v6 { may_be_answered_v6(packet, layers) } else { may_be_answered_v4(packet, layers) }.unwrap_or(false)
}

fn may_be_answered_v4(packet: &[u8], layers: &Layers) -> Option<bool> {
    let (fragment, first, to) = (read16(packet, 6)?, *packet.get(12)?, *packet.get(16)?);
    let sane = !matches!(first, 0 | 127) && first < CLASS_D && to < CLASS_D;
    if fragment & DONT_FRAGMENT == 0 || fragment & FRAGMENT_OFFSET != 0 || !sane {
        return Some(false);
    }
    if layers.protocol != ICMP {
        return Some(true);
    }
    let kind = *packet.get(layers.l4 - layers.l3)?;
    // Unreachable, quench, redirect, time exceeded, parameter problem.
    Some(!matches!(kind, 3 | 4 | 5 | 11 | 12))
}

fn may_be_answered_v6(packet: &[u8], layers: &Layers) -> Option<bool> {
    let (from, to) = (packet.get(8..24)?, *packet.get(24)?);
    let sane = from.iter().any(|byte| *byte != 0) && from.first() != Some(&0xff) && to != 0xff;
    let at = layers.l4 - layers.l3;
    Some(match layers.protocol {
        _ if !sane => false,
        ICMPV6 => {
            let kind = *packet.get(at)?;
            kind >= ICMPV6_INFORMATION && kind != ICMPV6_REDIRECT
        }
        FRAGMENT => read16(packet, at + 2)? & 0xfff8 == 0 && *packet.get(at)? != ICMPV6,
        _ => true,
    })
}

fn icmp(first: &Parts<'_>, most: u16, room: &mut [u8]) -> Option<usize> {
    let (header, message) = room.get_mut(..IPV4_QUOTE_BYTES)?.split_first_chunk_mut::<20>()?;
    let (head, quote) = message.split_first_chunk_mut::<8>()?;
    let length = 8 + first.copy(quote);
    let [m0, m1] = most.to_be_bytes();
    *head = [3, 4, 0, 0, 0, 0, m0, m1];
    let message = message.get_mut(..length)?;
    write16(message, 2, !sum16_from(0, message))?;
    let [t0, t1] = u16::try_from(20 + length).ok()?.to_be_bytes();
    *header = [0x45, 0xc0, t0, t1, 0, 0, 0, 0, HOPS, ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let packet = first.packet();
    header.get_mut(12..16)?.copy_from_slice(packet.get(16..20)?);
    header.get_mut(16..20)?.copy_from_slice(packet.get(12..16)?);
    let sum = sum16_from(0, header);
    write16(header, 10, !sum)?;
    Some(20 + length)
}

fn icmpv6(first: &Parts<'_>, most: u16, room: &mut [u8]) -> Option<usize> {
    let (header, message) = room.get_mut(..usize::from(IPV6_MTU_MIN))?.split_first_chunk_mut::<40>()?;
    let (head, quote) = message.split_first_chunk_mut::<8>()?;
    let length = 8 + first.copy(quote);
    let [m0, m1] = most.to_be_bytes();
    *head = [2, 0, 0, 0, 0, 0, m0, m1];
    let message = message.get_mut(..length)?;
    let short = u16::try_from(length).ok()?;
    let [t0, t1] = short.to_be_bytes();
    let packet = first.packet();
    header.get_mut(..8)?.copy_from_slice(&[0x60, 0, 0, 0, t0, t1, ICMPV6, HOPS]);
    header.get_mut(8..24)?.copy_from_slice(packet.get(24..40)?);
    header.get_mut(24..40)?.copy_from_slice(packet.get(8..24)?);
    // The pseudo header of RFC 8200, 8.1: addresses, length, next header.
    let pseudo = sum16_from(u32::from(short) + u32::from(ICMPV6), header.get(8..40)?);
    write16(message, 2, !sum16_from(u32::from(pseudo), message))?;
    Some(40 + length)
}

/// Whom this thread told lately: each pair of stations is told once a tick.
#[derive(Debug)]
pub(super) struct Told([u32; PLACES]);

impl Default for Told {
    fn default() -> Told {
        Told([u32::MAX; PLACES])
    }
}

impl Told {
    /// Whether it is time to tell the sender of this frame, and from now on it is not. Pairs that share a place wait for each other.
    pub fn may_tell(&mut self, frame: &[u8], tick: u32) -> bool {
        let pair = frame.get(..12).unwrap_or_default();
        let number = pair.iter().fold(0u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        let Some(place) = self.0.get_mut((number >> 16) as usize % PLACES) else { return false };
        std::mem::replace(place, tick) != tick
    }
}

/// So many answers a second at most, of one thread.
const PLACES: usize = 64;
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Groups, and what is reserved: from here on.
const CLASS_D: u8 = 224;
/// The next header of a fragment.
const FRAGMENT: u8 = 44;
/// From here on ICMPv6 is no error.
const ICMPV6_INFORMATION: u8 = 128;
const ICMPV6_REDIRECT: u8 = 137;
const IPV6_MTU_MIN: u16 = 1_280;
/// What every host takes (RFC 791), and the least that `--mtu` can be.
const IPV4_MTU_MIN: u16 = 576;
/// Of an answer, with as much of the packet as fits (RFC 1812, 4.3.2.3).
const IPV4_QUOTE_BYTES: usize = 576;
const HOPS: u8 = 64;
/// Ethernet with tags, and the longest answer: of IPv6.
pub(super) const ANSWER_MAX_BYTES: usize = 26 + IPV6_MTU_MIN as usize;

#[cfg(test)]
mod tests;
