use meshnet_proto::Mac;

use super::*;
use crate::forward::Inbound;
use crate::forward::packet::sum16;
use crate::forward::testbed::{Ends, Testbed, address, frame, mac};
use crate::session::Cipher;

/// Ethernet with `tags`, IPv4 or IPv6 and a SYN with these options, its checksum complete or only begun.
fn syn(v6: bool, tags: usize, options: &[u8], data: &[u8], to_do: bool) -> (Offload, Vec<u8>) {
    let mut frame = vec![2; 12];
    for _ in 0..tags {
        frame.extend_from_slice(&[0x81, 0, 0, 7]);
    }
    let tcp_bytes = 20 + options.len();
    let l4_bytes = (tcp_bytes + data.len()) as u16;
    let pseudo: Vec<u8> = if v6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend_from_slice(&l4_bytes.to_be_bytes());
        frame.extend_from_slice(&[6, 64]);
        frame.extend_from_slice(&[0xfd; 32]);
        vec![0xfd; 32]
    } else {
        frame.extend_from_slice(&[0x08, 0, 0x45, 0]);
        frame.extend_from_slice(&(20 + l4_bytes).to_be_bytes());
        frame.extend_from_slice(&[0, 1, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2]);
        vec![10, 32, 0, 1, 10, 32, 0, 2]
    };
    let l4 = frame.len();
    frame.extend_from_slice(&[0x30, 0x39, 0x14, 0x51, 1, 2, 3, 4, 0, 0, 0, 0, (tcp_bytes as u8 / 4) << 4, 2, 9, 9]);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(options);
    frame.extend_from_slice(data);
    let [a, b] = l4_bytes.to_be_bytes();
    let pseudo = [&pseudo[..], &[0, 6, a, b]].concat();
    let sum = if to_do { sum16(&pseudo) } else { !sum16(&[&pseudo, &frame[l4..]].concat()) };
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    let offload = Offload { needs_csum: to_do, csum_start: l4 as u16, csum_offset: 16, ..Offload::default() };
    (if to_do { offload } else { Offload::default() }, frame)
}

#[test]
fn the_size_is_lowered_and_the_checksum_follows() {
    // At an even place, behind others, and across two words of the sum.
    let options: [&[u8]; 4] =
        [&[2, 4, 5, 0xb4], &[1, 1, 4, 2, 2, 4, 5, 0xb4], &[1, 2, 4, 5, 0xb4, 1, 1, 0], &[3, 3, 7, 2, 4, 5, 0xb4, 0]];
    for (v6, tags) in [(false, 0), (true, 0), (false, 1), (true, 1), (false, 2)] {
        for options in options {
            for (data, to_do) in [(&b""[..], false), (b"", true), (b"fast open", false)] {
                let (offload, before) = syn(v6, tags, options, data, to_do);
                let layers = Layers::parse(&before).unwrap();
                assert!(opens(&before, &layers));
                assert_eq!(headers_end(&before, &layers), Some(before.len() - data.len()));
                let mut bytes = before.clone();
                assert!(clamp(&mut bytes, &layers, &offload, 1_214));
                let most = 1_214 - (14 + 4 * tags) - if v6 { 60 } else { 40 };
                let wanted = (most as u16).to_be_bytes();
                let changed: Vec<u8> = options.to_vec();
                let at = changed.windows(2).position(|pair| pair == [5, 0xb4]).unwrap();
                let mut options = changed.clone();
                options[at..at + 2].copy_from_slice(&wanted);
                // As if it had been made so: all but the one number and its checksum are as they were.
                assert_eq!(bytes, syn(v6, tags, &options, data, to_do).1, "v6 {v6} tags {tags} {options:?} {to_do}");
                assert!(!clamp(&mut bytes, &layers, &offload, 1_214), "once");
            }
        }
    }
}

#[test]
fn what_is_not_understood_stays_as_it_is() {
    let cases: [(&str, &[u8]); 9] = [
        ("nothing is said", &[1, 1, 1, 1]),
        ("less already", &[2, 4, 4, 0x00]),
        ("behind the end", &[0, 2, 4, 5, 0xb4, 0, 0, 0]),
        ("an option without length", &[2, 4, 5, 0xb4, 1, 1, 1, 3]),
        ("an option of length 0", &[3, 0, 0, 0, 2, 4, 5, 0xb4]),
        ("an option beyond the header", &[2, 4, 5, 0xb4, 3, 9, 0, 0]),
        ("a size of another length", &[2, 6, 5, 0xb4, 0, 0, 0, 0]),
        ("two sizes", &[2, 4, 5, 0xb4, 2, 4, 5, 0xb4]),
        ("cut short", &[1, 1, 1, 2]),
    ];
    for (what, options) in cases {
        let (offload, before) = syn(false, 0, options, b"", false);
        let layers = Layers::parse(&before).unwrap();
        let mut bytes = before.clone();
        assert!(!clamp(&mut bytes, &layers, &offload, 1_214), "{what}");
        assert_eq!(bytes, before, "{what}");
    }
    // The checksum to be done is not that of this header.
    let (offload, before) = syn(false, 0, &[2, 4, 5, 0xb4], b"", true);
    let layers = Layers::parse(&before).unwrap();
    let mut bytes = before.clone();
    assert!(!clamp(&mut bytes, &layers, &Offload { csum_start: 60, ..offload }, 1_214));
    assert_eq!(bytes, before);
    // Its header ends beyond the frame, or beyond the packet.
    assert_eq!(headers_end(&before[..56], &layers), None);
    bytes[17] = 40;
    assert_eq!(headers_end(&bytes, &layers), None);
}

#[test]
fn no_path_is_told_to_take_less_than_every_host_does() {
    let (offload, mut bytes) = syn(false, 0, &[2, 4, 5, 0xb4], b"", false);
    let layers = Layers::parse(&bytes).unwrap();
    assert!(clamp(&mut bytes, &layers, &offload, 300));
    assert_eq!(read16(&bytes, 56), Some(LEAST));
    assert!(!clamp(&mut bytes, &layers, &offload, 50), "nor from one that takes no packet at all");
}

#[test]
fn only_what_opens_a_connection() {
    let (_, syn) = syn(false, 0, &[2, 4, 5, 0xb4], b"", false);
    let layers = Layers::parse(&syn).unwrap();
    for (flags, is) in [(0x02, true), (0x12, true), (0x10, false), (0x18, false), (0x04, false), (0xc2, true)] {
        let mut bytes = syn.clone();
        bytes[47] = flags;
        assert_eq!(opens(&bytes, &layers), is, "{flags:x}");
    }
    assert!(!opens(&syn, &Layers { protocol: 17, ..layers }));
    assert!(!opens(&syn[..47], &layers));
}

/// What machine 1 gives to its TAP of a frame that machine 0 reads from its own.
fn across(bed: &mut Testbed, ends: &mut Ends, offload: &Offload, bytes: &[u8]) -> Vec<u8> {
    assert_eq!(bed.outbound(0, offload, bytes, ends), None);
    let mut sent = ends.wire.take();
    assert_eq!(sent.len(), 1);
    let datagram = &mut sent[0].1;
    match bed.inbound(1, address(0), datagram, ends) {
        Inbound::Deliver { inner, frame, .. } => {
            assert_eq!(inner.offload.needs_csum, offload.needs_csum);
            datagram[frame].to_vec()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_machines_on_the_way_lower_it() {
    let options = [2, 4, 0x22, 0x38, 4, 2, 1, 1];
    // What the two of them know of the path, and the size that is left of 8,760: frames of 1,182 and 1,382 bytes.
    for (ours, theirs, left) in [
        ((1_230, true), (8_000, true), 1_182 - 54),
        ((8_900, true), (1_230, true), 1_182 - 54),
        ((1_430, true), (1_230, true), 1_182 - 54),
        ((1_230, true), (1_430, true), 1_182 - 54),
        ((8_900, true), (8_900, true), 8_760),
        ((1_230, false), (1_230, false), 8_760),
        ((1_230, false), (1_430, true), 1_382 - 54),
    ] {
        for flooded in [false, true] {
            for (data, to_do) in [(&b""[..], false), (b"", true), (b"fast open", false)] {
                let (mut bed, mut ends) = (Testbed::new(2, Cipher::Aes256Gcm), Ends::default());
                if !flooded {
                    bed.outbound(1, &Offload::default(), &frame(Mac([0xff; 6]), mac(1, 1), b"hello"), &mut ends);
                    for (_, mut datagram) in ends.wire.take() {
                        bed.inbound(0, address(1), &mut datagram, &mut ends);
                    }
                }
                for (at, to, (most, settled)) in [(0, 1, ours), (1, 0, theirs)] {
                    let peer = bed.peer_mut(at, to).unwrap();
                    (peer.way_max, peer.datagram_max) = (most, most);
                    (peer.way_settled, peer.settled) = (settled, settled);
                }
                let addressed = |mut bytes: Vec<u8>| {
                    bytes[..12].copy_from_slice(&[mac(1, 1).0, mac(0, 1).0].concat());
                    bytes
                };
                let (offload, before) = syn(false, 0, &options, data, to_do);
                let got = across(&mut bed, &mut ends, &offload, &addressed(before));
                let [a, b] = u16::try_from(left).unwrap().to_be_bytes();
                let wanted = addressed(syn(false, 0, &[2, 4, a, b, 4, 2, 1, 1], data, to_do).1);
                assert_eq!(got, wanted, "{ours:?} {theirs:?} flooded {flooded} {to_do}");
                let counted = bed.forwarders.iter().map(|forwarder| forwarder.counters.clamped.value()).sum::<u64>();
                assert_eq!(counted > 0, left != 8_760);
            }
        }
    }
}
