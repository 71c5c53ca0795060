//! Asking on the bridge whether somebody has an address, before it is given out: ARP probes (RFC 5227 §2.1.1).
//!
//! One probe for each address instead of three over seconds: the mesh has its own record of who has what, and this finds what that cannot know, such as a
//! machine that was given its address by hand.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetSlice, PacketBuilder, SlicedPacket};
use meshnet_proto::id::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Error, Netlink};
use crate::sys::packet::PacketSocket;

impl Netlink {
    /// Those of the addresses that the host has itself on the bridge, or that somebody behind it speaks for within a tenth of a second.
    pub async fn taken(&self, bridge: &str, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>, Error> {
        let link = self.bridge(bridge).await?;
        let doing = || format!("ask on {bridge} who has an address");
        let mut taken = BTreeSet::new();
        for net in self.exposed(bridge).await? {
            if let IpAddr::V4(own) = net.addr() {
                taken.extend(addresses.contains(&own).then_some(own));
            }
        }
        let mac = link.mac.unwrap_or(Mac([0; 6]));
        // Opened here, in the namespace of this thread.
        let socket = PacketSocket::open(link.index, EtherType::ARP.0).map_err(|why| Error::io(doing(), why))?;
        let wanted: Vec<Ipv4Addr> = addresses.iter().copied().filter(|address| !taken.contains(address)).collect();
        let asked = tokio::task::spawn_blocking(move || {
            wanted.chunks(BATCH).map(|batch| ask(&socket, mac, batch.iter().copied().collect())).collect()
        });
        let found: io::Result<Vec<_>> = asked.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        taken.extend(found.map_err(|why| Error::io(doing(), why))?.into_iter().flatten());
        Ok(taken.into_iter().collect())
    }
}

/// Those of the wanted that are spoken for. Takes [`WAIT`] at most.
fn ask(socket: &PacketSocket, mac: Mac, mut wanted: BTreeSet<Ipv4Addr>) -> io::Result<Vec<Ipv4Addr>> {
    let until = Instant::now() + WAIT;
    for address in &wanted {
        socket.send(&probe(mac, *address))?;
    }
    let mut taken = Vec::new();
    let mut buffer = [0; FRAME_BYTES];
    while !wanted.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        let limit = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        let ready = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit))?;
        // A bridge full of other ARP must not hold this up.
        if ready == 0 || left.is_zero() {
            break;
        }
        let frame = match socket.receive(&mut buffer) {
            Ok(received) => buffer.get(..received).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if let Some(address) = spoken_for(frame, mac).filter(|address| wanted.remove(address)) {
            taken.push(address);
        }
    }
    Ok(taken)
}

/// "Who has this?", of nobody: a probe changes no cache.
fn probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &mac.0,
        &Ipv4Addr::UNSPECIFIED.octets(),
        &[0; 6],
        &address.octets(),
    );
    let mut frame = Vec::with_capacity(64);
    // Lengths of addresses are those of Ethernet and IPv4, so neither can fail.
    if let Ok(arp) = arp {
        let _ = PacketBuilder::ethernet2(mac.0, [0xff; 6]).arp(arp).write(&mut frame);
    }
    frame
}

/// The address that somebody else says to have, or is about to take, by this frame.
fn spoken_for(frame: &[u8], me: Mac) -> Option<Ipv4Addr> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Arp(arp)) = packet.net else { return None };
    if arp.sender_hw_addr() == me.0 || arp.proto_addr_type() != EtherType::IPV4 {
        return None;
    }
    let ip = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let sender = ip(arp.sender_protocol_addr())?;
    // Another probe: two who want it at once.
    if sender.is_unspecified() { ip(arp.target_protocol_addr()) } else { Some(sender) }
}

/// Addresses asked for at once: a burst that any queue on the way holds.
const BATCH: usize = 64;
/// A container answers within a millisecond; a machine behind a busy switch within some ten.
const WAIT: Duration = Duration::from_millis(100);
/// An ARP packet in a padded frame with two VLAN tags.
const FRAME_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_probe_names_no_sender_and_is_heard_as_a_wish() {
        let frame = probe(ME, ip("10.32.0.5"));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert_eq!(frame[28..32], [0; 4], "nobody's cache may change");
        assert_eq!(spoken_for(&frame, OTHER), Some(ip("10.32.0.5")));
        assert_eq!(spoken_for(&frame, ME), None, "the own probe comes back");
    }

    #[test]
    fn answers_and_announcements_count_and_other_frames_do_not() {
        let mut reply = probe(OTHER, ip("10.32.0.1"));
        reply[28..32].copy_from_slice(&[10, 32, 0, 5]);
        assert_eq!(spoken_for(&reply, ME), Some(ip("10.32.0.5")), "a request of the address");
        reply[21] = 2;
        assert_eq!(spoken_for(&reply, ME), Some(ip("10.32.0.5")));
        for length in 0..42 {
            assert_eq!(spoken_for(&reply[..length], ME), None);
        }
        reply[16..18].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(spoken_for(&reply, ME), None);
    }
}
