//! Other peers: whom to dial, the links that come of it, and which path frames take.
//!
//! ```text
//!            targets (dials, back-off) ──▶ link (hello, checks, duplicates) ──▶ path (probes, fail-over, return), mtu (its size), fast (VXLAN beside it)
//! ```
//! Each file is one machine that is told the time and what happened and answers with what is to be done; none knows the others, the node ties them
//! together. May use: proto, `session`, `fib` (marks of traffic). Deliberately lacks: topology, gossip, routes, bytes of datagrams.

pub mod fast;
pub mod link;
pub mod mtu;
pub mod path;
pub mod targets;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use meshnet_proto::ShortId;

/// The first half of every virtual address: the ASCII of "meshn" behind the prefix for unique local addresses (RFC 4193).
const VIRTUAL_PREFIX: [u16; 4] = [0xfd6d, 0x6573, 0x686e, 0];
/// The port of every virtual address.
const VIRTUAL_PORT: u16 = 1;

/// The address under which QUIC knows a peer that is reached through relays.
pub fn virtual_address(peer: ShortId) -> SocketAddr {
    let [a, b, c, d] = VIRTUAL_PREFIX;
    let part = |shift: u32| (peer.0 >> shift) as u16;
    let address = Ipv6Addr::new(a, b, c, d, part(48), part(32), part(16), part(0));
    SocketAddr::new(IpAddr::V6(address), VIRTUAL_PORT)
}

/// The peer of a virtual address; none for any other address.
pub fn from_virtual(address: SocketAddr) -> Option<ShortId> {
    let IpAddr::V6(ip) = address.ip() else { return None };
    let [a, b, c, d, e, f, g, h] = ip.segments();
    if [a, b, c, d] != VIRTUAL_PREFIX || address.port() != VIRTUAL_PORT {
        return None;
    }
    Some(ShortId([e, f, g, h].into_iter().fold(0, |id, part| id << 16 | u64::from(part))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_addresses_lead_back_and_others_lead_nowhere() {
        let peer = ShortId(0x0123_4567_89ab_cdef);
        assert_eq!(virtual_address(peer).to_string(), "[fd6d:6573:686e:0:123:4567:89ab:cdef]:1");
        assert_eq!(from_virtual(virtual_address(peer)), Some(peer));
        for other in ["[fd6d:6573:686e:0:123:4567:89ab:cdef]:2", "[fd6d:6573:686f::1]:1", "10.0.0.1:1"] {
            assert_eq!(from_virtual(other.parse().unwrap()), None);
        }
    }
}
