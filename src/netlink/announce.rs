//! Telling the neighbours of a new address: gratuitous ARP (RFC 5227 §3) and unsolicited neighbour advertisement (RFC 4861 §7.2.6), so that
//! bridges learn the MAC address and caches that hold an older one are corrected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use meshnet_proto::id::Mac;

use crate::sys::packet;

/// Sends the announcement out of an interface of this thread's namespace. An interface that is still without carrier loses it: nobody listens
/// there yet, and the first ARP request will do the same.
pub(super) fn from_here(index: u32, mac: Option<Mac>, ip: IpAddr) {
    let Some(mac) = mac else { return };
    let frame = match ip {
        IpAddr::V4(ip) => arp(mac, ip).to_vec(),
        IpAddr::V6(ip) => advertisement(mac, ip),
    };
    if let Err(error) = packet::send_frame(index, &frame) {
        tracing::debug!(%error, address = %ip, "announcement not sent");
    }
}

/// An ARP request from and for the same address.
fn arp(mac: Mac, ip: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    // EtherType ARP; Ethernet, IPv4, lengths of both, request.
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac.0);
    frame[28..32].copy_from_slice(&ip.octets());
    frame[38..42].copy_from_slice(&ip.octets());
    frame
}

fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    // Type 136, flag "override", the address, option 2: target's MAC address.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    let sum = checksum(ip, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 4443 §2.3: over pseudo header and message, which is of even length.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let mut sum =
        words(&from.octets()) + words(&to.octets()) + words(message) + message.len() as u32 + u32::from(ICMPV6);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

const ICMPV6: u8 = 58;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    const MAC: Mac = Mac([0x0a, 0x58, 10, 32, 0, 5]);

    #[test]
    fn the_arp_announces_its_sender() {
        let frame = arp(MAC, Ipv4Addr::new(10, 32, 0, 5));
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("{packet:?}") };
        assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&MAC.0[..], &[10, 32, 0, 5][..]));
        assert_eq!(arp.target_protocol_addr(), [10, 32, 0, 5]);
    }

    #[test]
    fn the_advertisement_has_the_right_checksum() {
        let ip: Ipv6Addr = "fd00:32::5".parse().unwrap();
        let frame = advertisement(MAC, ip);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Icmpv6(message)) = packet.transport else { panic!("{packet:?}") };
        assert_eq!(message.type_u8(), 136);
        assert!(message.is_checksum_valid(ip.octets(), ALL_NODES.octets()));
        assert!(frame.ends_with(&MAC.0));
    }
}
