//! The largest segment that two ends of a TCP connection agree on, lowered to what the path between them takes whole.
//!
//! Each end says in its SYN or SYN-ACK how long the segments are that it takes (RFC 9293, 3.7.1); who reads a lower number there sends shorter ones, and then
//! nothing has to travel in fragments. Both machines on the way do this, with what each of them knows: a path may take less one way than the other.
//!
//! ```text
//! Ethernet │ tags │ IP │ TCP: … checksum … │ options: … 2, 4, size …
//!                                  ▲                         └─ lowered, never raised
//!                                  └─ follows, unless the kernel left it to be done: then only the pseudo header's sum is there yet
//! ```
//! What is not well formed stays as it is. Options of IP and TCP do not count: their sender takes them off the size itself (RFC 6691).

use meshnet_proto::wire::data::Offload;

use super::packet::{Layers, TCP, fold, read16, write16};

/// Whether a frame opens a TCP connection, or answers to that.
#[inline]
pub(super) fn opens(frame: &[u8], layers: &Layers) -> bool {
    layers.protocol == TCP && frame.get(layers.l4 + 13).is_some_and(|flags| flags & SYN != 0)
}

/// Where its TCP header ends, so that nothing beyond need be touched; `None` when that is not in the frame.
pub(super) fn headers_end(frame: &[u8], layers: &Layers) -> Option<usize> {
    let end = layers.l4 + layers.transport_bytes(frame)?;
    (end <= frame.len() && end <= layers.packet_end(frame)?).then_some(end)
}

/// Lowers the size that such a frame names to what fits frames of `frame_max` bytes; true when that was less. `bytes`: the frame, at least its headers up
/// to [`headers_end`].
pub(super) fn clamp(bytes: &mut [u8], layers: &Layers, offload: &Offload, frame_max: usize) -> bool {
    try_clamp(bytes, layers, offload, frame_max).is_some()
}

fn try_clamp(bytes: &mut [u8], layers: &Layers, offload: &Offload, frame_max: usize) -> Option<()> {
    let at = find(bytes, layers)?;
    let fixed = if layers.v6 { 60 } else { 40 };
    let most = frame_max.checked_sub(layers.l3 + fixed)?;
    let most = u16::try_from(most).ok()?.max(LEAST);
    let before = read16(bytes, at)?;
    if before <= most {
        return None;
    }
    let to_do = offload.needs_csum;
    if to_do && usize::from(offload.csum_start) != layers.l4 {
        // The checksum of something else: this one is not understood.
        return None;
    }
    let checksum = layers.l4 + 16;
    let sum = read16(bytes, checksum)?;
    write16(bytes, at, most)?;
    if !to_do {
        // RFC 1624, equation 3. A number that stands across two of the words that are summed counts with its bytes swapped.
        let odd = (at - layers.l4) % 2 == 1;
        let word = |number: u16| if odd { number.swap_bytes() } else { number };
        let sum = fold(u32::from(!sum) + u32::from(!word(before)) + u32::from(word(most)));
        write16(bytes, checksum, !sum)?;
    }
    Some(())
}

/// Where the size stands. `None` when there is none, or two, or when the options are not well formed.
fn find(bytes: &[u8], layers: &Layers) -> Option<usize> {
    let end = layers.l4 + layers.transport_bytes(bytes)?;
    let (mut at, mut found) = (layers.l4 + 20, None);
    while at < end {
        match *bytes.get(at)? {
            END => break,
            NOTHING => at += 1,
            kind => {
                let length = usize::from(*bytes.get(at + 1)?);
                if length < 2 || at + length > end {
                    return None;
                }
                if kind == SEGMENT_SIZE {
                    if length != 4 || found.is_some() {
                        return None;
                    }
                    found = Some(at + 2);
                }
                at += length;
            }
        }
    }
    found
}

const SYN: u8 = 0x02;
const END: u8 = 0;
const NOTHING: u8 = 1;
const SEGMENT_SIZE: u8 = 2;
/// What every host takes (RFC 9293, 3.7.1). No path is known to take less.
const LEAST: u16 = 536;
/// Ethernet, tags, and the longest headers of IPv4 and TCP; more only with rare extension headers of IPv6.
pub(super) const HEADERS_MAX_BYTES: usize = 192;

#[cfg(test)]
mod tests;
