//! Other peers: whom to dial, the links that come of it, and which path frames take.
//!
//! ```text
//!            targets (dials, back-off) ──▶ link (hello, checks, duplicates) ──▶ path (probes, fail-over, return), mtu (its size), transport (UDP or QUIC),
//!                                                                                fast (VXLAN beside it), offload (segmented sends)
//! ```
//! Each file is one machine that is told the time and what happened and answers with what is to be done; none knows the others, the node ties them
//! together. May use: proto, `session`, `fib` (marks of traffic). Deliberately lacks: topology, gossip, routes, bytes of datagrams.

pub mod fast;
pub mod link;
pub mod mtu;
pub mod offload;
pub mod path;
pub mod spread;
pub mod targets;
pub mod transport;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use meshnet_proto::ShortId;

use crate::fib::{LINK_PORT, LINK_PREFIX};
use crate::node::LinkId;

/// The first half of every virtual address: the ASCII of "meshn" behind the prefix for unique local addresses (RFC 4193).
const VIRTUAL_PREFIX: [u16; 4] = [0xfd6d, 0x6573, 0x686e, 0];
/// The port of every virtual address.
const VIRTUAL_PORT: u16 = 1;

/// The address under which QUIC knows a peer that is reached through relays.
pub fn virtual_address(peer: ShortId) -> SocketAddr {
    made_up(VIRTUAL_PREFIX, peer.0, VIRTUAL_PORT)
}

/// The peer of a virtual address; none for any other address.
pub fn from_virtual(address: SocketAddr) -> Option<ShortId> {
    meant(VIRTUAL_PREFIX, address, VIRTUAL_PORT).map(ShortId)
}

/// The address that stands for the QUIC datagrams of a link: what is sent there leaves on it, and what came on it is said to come from there. No address of
/// the underlay is meant, and it is never told to anybody.
pub fn link_address(link: LinkId) -> SocketAddr {
    made_up(LINK_PREFIX, link.0, LINK_PORT)
}

/// The link of such an address; none for any other address.
#[inline]
pub fn from_link(address: SocketAddr) -> Option<LinkId> {
    meant(LINK_PREFIX, address, LINK_PORT).map(LinkId)
}

fn made_up(prefix: [u16; 4], number: u64, port: u16) -> SocketAddr {
    let [a, b, c, d] = prefix;
    let part = |shift: u32| (number >> shift) as u16;
    let address = Ipv6Addr::new(a, b, c, d, part(48), part(32), part(16), part(0));
    SocketAddr::new(IpAddr::V6(address), port)
}

#[inline]
fn meant(prefix: [u16; 4], address: SocketAddr, port: u16) -> Option<u64> {
    let IpAddr::V6(ip) = address.ip() else { return None };
    let [a, b, c, d, e, f, g, h] = ip.segments();
    if [a, b, c, d] != prefix || address.port() != port {
        return None;
    }
    Some([e, f, g, h].into_iter().fold(0, |id, part| id << 16 | u64::from(part)))
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
            assert_eq!(from_link(other.parse().unwrap()), None);
        }
        let link = link_address(LinkId(0x1_0000_0007));
        assert_eq!(link.to_string(), "[fd6d:6573:686e:1:0:1:0:7]:2");
        assert_eq!((from_link(link), from_virtual(link)), (Some(LinkId(0x1_0000_0007)), None));
    }
}
