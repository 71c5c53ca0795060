//! The kernel's fast path between peers that trust the network below: what a hello says of it, and the probe that travels in VXLAN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::id::{Mac, ShortId};

/// Number of the hello's extension field that says where the sender takes VXLAN, and in which subnets: see [`Trust`].
pub const TRUST: u16 = 3;
/// EtherType of the probe: IEEE 802 Local Experimental 1.
pub const ETHERTYPE: u16 = 0x88b5;
/// Subnets that one hello names.
pub const SUBNETS_MAX: usize = 16;
/// Bytes of a probe's frame without padding.
pub const PROBE_FRAME_BYTES: usize = 14 + 4 + 8 + 8;
/// What the body of a probe begins with: EtherTypes for experiments belong to everybody.
const MARK: [u8; 4] = *b"mshf";

/// A subnet of the network below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Any address of it.
    pub address: IpAddr,
    /// Bits that all its addresses have in common.
    pub prefix: u8,
}

impl Subnet {
    /// Whether the address lies in it. IPv4 in IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32_u32.saturating_sub(self.prefix.into());
                u32::from(net).checked_shr(shift) == u32::from(ip).checked_shr(shift)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128_u32.saturating_sub(self.prefix.into());
                u128::from(net).checked_shr(shift) == u128::from(ip).checked_shr(shift)
            }
            _ => false,
        }
    }
}

/// Where a peer takes VXLAN, and the subnets within which it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// UDP port.
    pub port: u16,
    /// VXLAN network identifier: 24 bits.
    pub network: u32,
    /// The subnets.
    pub subnets: Vec<Subnet>,
}

impl Trust {
    /// Whether the address lies in one of its subnets.
    pub fn names(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(address))
    }

    /// The field's bytes: port, network, then each subnet; those above [`SUBNETS_MAX`] are left out.
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = self.port.to_be_bytes().to_vec();
        bytes.extend(self.network.to_be_bytes().get(1..).unwrap_or_default());
        for subnet in self.subnets.iter().take(SUBNETS_MAX) {
            match subnet.address {
                IpAddr::V4(ip) => {
                    bytes.extend([4, subnet.prefix]);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.extend([6, subnet.prefix]);
                    bytes.extend(ip.octets());
                }
            }
        }
        bytes
    }

    /// Reads the field; `None` when it is none of ours: then nothing is trusted.
    pub fn parse(bytes: &[u8]) -> Option<Trust> {
        let (&[p0, p1, n0, n1, n2], mut rest) = bytes.split_first_chunk::<5>()?;
        let mut subnets = Vec::new();
        while let Some((&[family, prefix], tail)) = rest.split_first_chunk::<2>() {
            let (address, most, tail) = match family {
                4 => tail.split_first_chunk::<4>().map(|(ip, tail)| (IpAddr::from(Ipv4Addr::from(*ip)), 32, tail))?,
                6 => tail.split_first_chunk::<16>().map(|(ip, tail)| (IpAddr::from(Ipv6Addr::from(*ip)), 128, tail))?,
                _ => return None,
            };
            if prefix > most || subnets.len() == SUBNETS_MAX {
                return None;
            }
            subnets.push(Subnet { address, prefix });
            rest = tail;
        }
        let trust = Trust { port: u16::from_be_bytes([p0, p1]), network: u32::from_be_bytes([0, n0, n1, n2]), subnets };
        (rest.is_empty() && trust.port != 0).then_some(trust)
    }
}

/// The MAC address under which a peer takes probes on its bridge: 06 and the last five bytes of its short id.
pub fn station(peer: ShortId) -> Mac {
    let [_, _, _, a, b, c, d, e] = peer.0.to_be_bytes();
    Mac([0x06, a, b, c, d, e])
}

/// A probe of the fast path: a frame in VXLAN. Not proven: its answer, which comes sealed, is what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastProbe {
    /// Who asks.
    pub from: ShortId,
    /// Drawn by the sender; the sealed answer repeats it.
    pub token: u64,
}

impl FastProbe {
    /// The frame to a peer, padded to `length` bytes at least.
    pub fn emit(&self, to: ShortId, length: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(length.max(PROBE_FRAME_BYTES));
        frame.extend(station(to).0);
        frame.extend(station(self.from).0);
        frame.extend(ETHERTYPE.to_be_bytes());
        frame.extend(MARK);
        frame.extend(self.from.0.to_be_bytes());
        frame.extend(self.token.to_be_bytes());
        frame.resize(length.max(frame.len()), 0);
        frame
    }

    /// Reads a frame; padding is skipped. `None` when it is no probe for `me`.
    pub fn parse(me: ShortId, frame: &[u8]) -> Option<FastProbe> {
        let (to, rest) = frame.split_first_chunk::<6>()?;
        let (_, rest) = rest.split_first_chunk::<6>()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (mark, rest) = rest.split_first_chunk::<4>()?;
        let (from, rest) = rest.split_first_chunk::<8>()?;
        let token = rest.first_chunk::<8>()?;
        let ours = *to == station(me).0 && *kind == ETHERTYPE.to_be_bytes() && *mark == MARK;
        ours.then_some(FastProbe { from: ShortId(u64::from_be_bytes(*from)), token: u64::from_be_bytes(*token) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        let (address, prefix) = text.split_once('/').unwrap();
        Subnet { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    fn trust() -> Trust {
        Trust { port: 6784, network: 0x0012_3456, subnets: vec![subnet("10.1.0.0/16"), subnet("fd00::/8")] }
    }

    #[test]
    fn a_subnet_holds_its_addresses() {
        let cases = [
            ("10.1.0.0/16", "10.1.255.255", true),
            ("10.1.0.0/16", "10.2.0.0", false),
            ("10.1.0.0/16", "::ffff:10.1.0.9", true),
            ("10.1.0.7/32", "10.1.0.7", true),
            ("10.1.0.7/32", "10.1.0.6", false),
            ("0.0.0.0/0", "255.1.2.3", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("::/0", "fd00::1", true),
            ("fd00::/8", "fe00::1", false),
        ];
        for (net, ip, inside) in cases {
            assert_eq!(subnet(net).contains(ip.parse().unwrap()), inside, "{ip} in {net}");
        }
    }

    #[test]
    fn trust_survives_its_bytes_and_nothing_else_is_trust() {
        let bytes = trust().emit();
        assert_eq!(Trust::parse(&bytes), Some(trust()));
        for cut in 0..bytes.len() {
            // A cut between subnets is a shorter list.
            let whole = cut == 5 || cut == 11;
            assert_eq!(Trust::parse(&bytes[..cut]).is_some(), whole, "{cut}");
        }
        let mut many = trust();
        many.subnets = vec![subnet("10.0.0.0/8"); SUBNETS_MAX + 1];
        assert_eq!(Trust::parse(&many.emit()).unwrap().subnets.len(), SUBNETS_MAX, "the rest is left out");
        let mut long = many.emit();
        long.extend([4, 8, 10, 0, 0, 0]);
        for wrong in [&long[..], &[0x1a, 0x80, 0, 0, 1, 4, 33, 10, 0, 0, 0], &[0x1a, 0x80, 0, 0, 1, 5, 1], &[0; 5]] {
            assert_eq!(Trust::parse(wrong), None, "{wrong:02x?}");
        }
    }

    #[test]
    fn a_probe_is_for_one_peer_and_may_be_padded() {
        let (me, other) = (ShortId(0x0102_0304_0506_0708), ShortId(9));
        let probe = FastProbe { from: other, token: 77 };
        for length in [0, PROBE_FRAME_BYTES, 1_400] {
            let frame = probe.emit(me, length);
            assert_eq!(frame.len(), length.max(PROBE_FRAME_BYTES));
            assert_eq!(FastProbe::parse(me, &frame), Some(probe));
            assert_eq!(FastProbe::parse(other, &frame), None);
            assert_eq!(FastProbe::parse(me, &frame[..PROBE_FRAME_BYTES - 1]), None);
        }
        assert_eq!(station(me), Mac([6, 4, 5, 6, 7, 8]));
    }
}
