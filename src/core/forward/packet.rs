//! Just enough of Ethernet, IP, TCP and UDP for super-frames: where the headers lie, and their repair when a super-frame arrives in pieces.
//! Checked reads only; whoever needs more of a packet uses etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use meshnet_proto::wire::data::{Gso, Offload};

/// Where the headers of a frame lie, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layers {
    /// IPv6, else IPv4.
    pub v6: bool,
    /// The IP header.
    pub l3: usize,
    /// The transport header, after any extension headers.
    pub l4: usize,
    /// TCP, UDP, or what the last header says.
    pub protocol: u8,
}

impl Layers {
    /// Finds them; `None` when this is not IP, is cut short, or is a fragment other than the first.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Layers> {
        let mut at = 12;
        let mut ethertype = read16(frame, at)?;
        for _ in 0..VLANS_MAX {
            if ethertype != VLAN && ethertype != SERVICE_VLAN {
                break;
            }
            at += 4;
            ethertype = read16(frame, at)?;
        }
        let l3 = at + 2;
        match ethertype {
            IPV4 => {
                let first = *frame.get(l3)?;
                let fragment = read16(frame, l3 + 6)? & 0x1fff;
                let header = usize::from(first & 0x0f) * 4;
                let protocol = *frame.get(l3 + 9)?;
                (first >> 4 == 4 && header >= 20 && fragment == 0).then_some(Layers {
                    v6: false,
                    l3,
                    l4: l3 + header,
                    protocol,
                })
            }
            IPV6 => {
                let mut protocol = *frame.get(l3 + 6)?;
                let mut l4 = l3 + 40;
                for _ in 0..EXTENSIONS_MAX {
                    if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION) {
                        break;
                    }
                    protocol = *frame.get(l4)?;
                    l4 += 8 + 8 * usize::from(*frame.get(l4 + 1)?);
                }
                (*frame.get(l3)? >> 4 == 6).then_some(Layers { v6: true, l3, l4, protocol })
            }
            _ => None,
        }
    }

    /// Where the IP packet ends, by its own word.
    pub fn packet_end(&self, frame: &[u8]) -> Option<usize> {
        let bytes = |at: usize| read16(frame, self.l3 + at).map(usize::from);
        Some(self.l3 + if self.v6 { 40 + bytes(4)? } else { bytes(2)? })
    }

    /// Bytes of the transport header.
    pub fn transport_bytes(&self, frame: &[u8]) -> Option<usize> {
        match self.protocol {
            TCP => {
                let bytes = usize::from(*frame.get(self.l4 + 12)? >> 4) * 4;
                (bytes >= 20).then_some(bytes)
            }
            UDP => Some(8),
            _ => None,
        }
    }
}

/// Bytes of Ethernet, IP and transport headers of a super-frame; `None` when it is not of the kind that `gso` says. A TAP's own figure for this is only a
/// hint: the kernel gives what happens to lie in the first buffer.
pub fn header_len(frame: &[u8], gso: Gso) -> Option<u8> {
    let layers = Layers::parse(frame)?;
    let fits = match gso {
        Gso::None => false,
        Gso::Tcp4 => !layers.v6 && layers.protocol == TCP,
        Gso::Tcp6 => layers.v6 && layers.protocol == TCP,
        Gso::Udp => layers.protocol == UDP,
    };
    let length = layers.l4 + layers.transport_bytes(frame)?;
    if fits && length <= frame.len() { u8::try_from(length).ok() } else { None }
}

/// Whether a frame is a UDP packet to or from one of `addresses` on `port`: the underlay, seen on the bridge. Later fragments pass: ours are never fragmented.
#[inline]
pub(crate) fn is_underlay(frame: &[u8], layers: Option<&Layers>, addresses: &[IpAddr], port: u16) -> bool {
    let Some(layers) = layers.filter(|layers| layers.protocol == UDP) else { return false };
    let (Some(source), Some(destination)) = (read16(frame, layers.l4), read16(frame, layers.l4 + 2)) else {
        return false;
    };
    let ours = |field: u16, at: usize| {
        field == port && ip_at(frame, layers, at).is_some_and(|ip| addresses.iter().any(|own| own.to_canonical() == ip))
    };
    let (from, to, bytes) = if layers.v6 { (8, 24, 16) } else { (12, 16, 4) };
    debug_assert_eq!(to - from, bytes);
    ours(source, layers.l3 + from) || ours(destination, layers.l3 + to)
}

fn ip_at(frame: &[u8], layers: &Layers, at: usize) -> Option<IpAddr> {
    let bytes = frame.get(at..)?;
    Some(match layers.v6 {
        true => IpAddr::V6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)).to_canonical(),
        false => IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
    })
}

/// A run of segments that is less than its super-frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Place of its first segment in the super-frame.
    pub first: u16,
    /// Whether it holds the last one.
    pub last: bool,
    /// Bytes of payload in it.
    pub payload_bytes: usize,
}

/// Makes a super-frame's header template that of a run of its segments: lengths, IPv4 identification and checksum, TCP sequence number and flags, and the
/// pseudo header's sum in the transport checksum, as software segmentation would. `None` when the header is not what `offload` says.
pub(crate) fn retarget(header: &mut [u8], offload: &Offload, run: Run) -> Option<()> {
    let layers = Layers::parse(header)?;
    let transport = layers.transport_bytes(header)?;
    if layers.l4 + transport != header.len() {
        return None;
    }
    let l4_bytes = u16::try_from(transport + run.payload_bytes).ok()?;
    let old_l4_bytes = if layers.v6 {
        let extensions = u16::try_from(layers.l4 - layers.l3 - 40).ok()?;
        let old = read16(header, layers.l3 + 4)?.wrapping_sub(extensions);
        write16(header, layers.l3 + 4, l4_bytes.checked_add(extensions)?)?;
        old
    } else {
        let ip = u16::try_from(layers.l4 - layers.l3).ok()?;
        let old = read16(header, layers.l3 + 2)?.wrapping_sub(ip);
        write16(header, layers.l3 + 2, l4_bytes.checked_add(ip)?)?;
        let id = read16(header, layers.l3 + 4)?.wrapping_add(run.first);
        write16(header, layers.l3 + 4, id)?;
        write16(header, layers.l3 + 10, 0)?;
        let sum = sum16(header.get(layers.l3..layers.l4)?);
        write16(header, layers.l3 + 10, !sum)?;
        old
    };
    let checksum = match layers.protocol {
        TCP => {
            let sequence = read32(header, layers.l4 + 4)?;
            let skipped = u32::from(run.first).wrapping_mul(u32::from(offload.gso_size));
            let bytes = sequence.wrapping_add(skipped).to_be_bytes();
            header.get_mut(layers.l4 + 4..layers.l4 + 8)?.copy_from_slice(&bytes);
            let flags = header.get_mut(layers.l4 + 13)?;
            if !run.last {
                *flags &= !(TCP_FIN | TCP_PSH);
            }
            if run.first > 0 {
                *flags &= !TCP_CWR;
            }
            layers.l4 + 16
        }
        _ => {
            write16(header, layers.l4 + 4, l4_bytes)?;
            layers.l4 + 6
        }
    };
    // RFC 1624, on a sum that is not complemented: what stands there is the pseudo header alone.
    let sum = u32::from(read16(header, checksum)?) + u32::from(!old_l4_bytes) + u32::from(l4_bytes);
    write16(header, checksum, fold(sum))
}

/// The ones' complement sum of 16-bit words (RFC 1071), not complemented.
pub(crate) fn sum16(bytes: &[u8]) -> u16 {
    sum16_from(0, bytes)
}

/// The same, on top of `sum`.
pub(super) fn sum16_from(sum: u32, bytes: &[u8]) -> u16 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u32::from(*byte) << 8);
    fold(pairs.iter().fold(sum + last, |sum, pair| sum + u32::from(u16::from_be_bytes(*pair))))
}

pub(super) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline]
pub(super) fn read16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|pair| u16::from_be_bytes(*pair))
}

fn read32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_be_bytes(*word))
}

pub(super) fn write16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut::<2>()? = value.to_be_bytes();
    Some(())
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(super) const VLAN: u16 = 0x8100;
pub(super) const SERVICE_VLAN: u16 = 0x88a8;
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
/// A service tag, a customer tag, and one to spare.
const VLANS_MAX: usize = 3;
/// Extension headers before TCP or UDP; real packets have two at most.
const EXTENSIONS_MAX: usize = 4;

#[cfg(test)]
mod tests;
