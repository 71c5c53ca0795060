//! Which super-frames the kernel takes, tried before the device is up: it then checks them as always and delivers nothing.
//!
//! Some kernels refuse a short last segment, others a kind that they ask for themselves. What comes out of the device cannot be tried so: a super-frame that is
//! read is checked field by field, and what the kernel writes wrong a transport's checksum shows.

use meshnet_proto::wire::data::{Gso, Offload};

use super::{TapQueue, bit};

/// A bit for each kind that is refused, in some length.
pub(super) fn refused_kinds(queue: &mut TapQueue) -> u8 {
    let mut refused = 0;
    for gso in [Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
        for payload in PAYLOADS {
            let (offload, frame) = superframe(gso, payload);
            // Any other error is that of a device that is down.
            if queue.write_whole(&offload, &[&frame]) == Err(rustix::io::Errno::INVAL) {
                refused |= bit(gso);
            }
        }
        if refused & bit(gso) != 0 {
            tracing::info!(kind = ?gso, "the kernel refuses such super-frames: meshd cuts them itself");
        }
    }
    refused
}

/// To an address that no bridge passes on (IEEE 802.1Q, 8.6.3), between addresses for documentation.
fn superframe(gso: Gso, payload: usize) -> (Offload, Vec<u8>) {
    let (tcp, v6) = (gso != Gso::Udp, gso == Gso::Tcp6);
    let transport_bytes = if tcp { 20 } else { 8 };
    let length = (transport_bytes + payload) as u16;
    let mut frame = vec![0x01, 0x80, 0xc2, 0, 0, 0x0e, 2, 0, 0, 0, 0, 1];
    let protocol = if tcp { 6 } else { 17 };
    if v6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&[protocol, 1]);
        for host in [1, 2] {
            frame.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
    } else {
        frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
        frame.extend_from_slice(&(20 + length).to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0x40, 0, 1, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    }
    let transport = frame.len();
    // Ports, then what little of the rest is not nought: the length of the headers, or of the datagram.
    frame.extend_from_slice(&[0, 9, 0, 9]);
    if tcp {
        frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
    }
    frame.resize(frame.len() + payload, 0);
    let offload = Offload {
        needs_csum: true,
        gso,
        header_len: (transport + transport_bytes) as u8,
        gso_size: SEGMENT_BYTES as u16,
        csum_start: transport as u16,
        csum_offset: if tcp { 16 } else { 6 },
        ..Offload::default()
    };
    (offload, frame)
}

const SEGMENT_BYTES: usize = 1_000;
/// A last segment of one byte, and one like the others.
const PAYLOADS: [usize; 2] = [2 * SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES];
