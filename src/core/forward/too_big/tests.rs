use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder};

use meshnet_proto::Mac;

use super::*;
use crate::counters::DropReason;
use crate::forward::packet::sum16;
use crate::forward::testbed::{Ends, Testbed, address, frame, mac, superframe};
use crate::session::Cipher;

const FRAME_MAX: usize = 1_182;

fn v4(payload: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(0, 1).0, mac(1, 1).0).ipv4([10, 32, 0, 1], [10, 32, 0, 2], 64);
    let mut frame = Vec::new();
    builder.udp(7, 9).write(&mut frame, payload).unwrap();
    frame[20] = 0x40;
    change(&mut frame);
    frame
}

fn v6(payload: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut to = [0xfd; 16];
    to[15] = 9;
    let builder = PacketBuilder::ethernet2(mac(0, 1).0, mac(1, 1).0).ipv6([0xfd; 16], to, 64);
    let mut frame = Vec::new();
    builder.udp(7, 9).write(&mut frame, payload).unwrap();
    change(&mut frame);
    frame
}

fn answered(frame: &[u8], offload: &Offload) -> Option<Vec<u8>> {
    let layers = Layers::parse(frame)?;
    let what = TooLong { frame, layers: &layers, offload, frame_max: FRAME_MAX };
    let mut room = [0xee; ANSWER_MAX_BYTES];
    answer(&what, &mut room).map(|length| room[..length].to_vec())
}

fn plain(frame: &[u8]) -> Option<Vec<u8>> {
    answered(frame, &Offload::default())
}

#[test]
fn fragmentation_needed() {
    let payload: Vec<u8> = (0..1_300).map(|at| at as u8).collect();
    for tag in [&[][..], &[0x81, 0, 0x60, 5]] {
        let frame = v4(&payload, |frame| drop(frame.splice(12..12, tag.iter().copied())));
        let answer = plain(&frame).unwrap();
        let l3 = 14 + tag.len();
        assert_eq!((&answer[..6], &answer[6..12]), (&mac(0, 1).0[..], &mac(1, 1).0[..]));
        assert_eq!(answer[12..l3], frame[12..l3], "in the same VLAN");
        let ip = Ipv4HeaderSlice::from_slice(&answer[l3..]).unwrap();
        assert_eq!((ip.source_addr().octets(), ip.destination_addr().octets()), ([10, 32, 0, 2], [10, 32, 0, 1]));
        assert_eq!((usize::from(ip.total_len()), answer.len() - l3), (576, 576));
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        let icmp = Icmpv4Slice::from_slice(&answer[l3 + 20..]).unwrap();
        let [m0, m1] = ((FRAME_MAX - l3) as u16).to_be_bytes();
        assert_eq!((icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()), (3, 4, [0, 0, m0, m1]));
        assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
        assert_eq!(icmp.payload(), &frame[l3..l3 + 548]);
    }
}

#[test]
fn packet_too_big() {
    let payload: Vec<u8> = (0..2_300).map(|at| at as u8).collect();
    let frame = v6(&payload, |_| {});
    let answer = plain(&frame).unwrap();
    assert_eq!((&answer[..6], &answer[6..14]), (&mac(0, 1).0[..], &[&mac(1, 1).0[..], &[0x86, 0xdd]].concat()[..]));
    let ip = Ipv6HeaderSlice::from_slice(&answer[14..]).unwrap();
    assert_eq!((ip.source(), ip.destination()), (frame[38..54].try_into().unwrap(), frame[22..38].try_into().unwrap()));
    assert_eq!((usize::from(ip.payload_length()), answer.len()), (1_240, 1_294), "as much as surely passes");
    let icmp = Icmpv6Slice::from_slice(&answer[54..]).unwrap();
    assert_eq!((icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()), (2, 0, [0, 0, 5, 0]), "never less than 1,280");
    assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
    assert_eq!(icmp.payload(), &frame[14..14 + 1_232]);
}

/// Byte by byte, so that a change of the form is seen.
#[test]
fn golden() {
    let frame = v4(&[0x55; 1_200], |frame| frame.truncate(14 + 28));
    let what = plain(&frame).unwrap();
    let text: String = what.iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = [
        "020000000001",
        "020000000101",
        "0800",
        "45c0003800000000400165c30a2000020a200001",
        "0304117800000490",
        "450004cc00004000401121df0a2000010a200002",
    ];
    let wanted = wanted.concat();
    assert_eq!(&text[..wanted.len()], &wanted);
    assert_eq!(what.len(), 14 + 20 + 8 + 28);
}

#[test]
fn a_super_frame_counts_by_its_segments() {
    for (size, told) in [(1_400, true), (1_200, true), (1_128, false), (500, false)] {
        let (offload, frame) = superframe(mac(1, 1), mac(0, 1), &[7; 4_000], size);
        let Some(answer) = answered(&frame, &offload) else {
            assert!(!told, "{size}");
            continue;
        };
        assert!(told, "{size}");
        let quoted = Ipv4HeaderSlice::from_slice(&answer[42..]).unwrap();
        assert_eq!(usize::from(quoted.total_len()), 40 + usize::from(size), "the first of them");
        assert_eq!(quoted.header_checksum(), quoted.to_header().calc_header_checksum());
        assert_eq!(
            answer[62..70],
            frame[34..42],
            "ports and sequence number, by which the kernel knows the connection"
        );
        assert_eq!(answer.len(), 14 + 576);
        let icmp = &answer[34..];
        assert_eq!(sum16(icmp), 0xffff);
    }
}

#[test]
fn who_is_not_told() {
    let long = [1; 1_400];
    let icmp = |kind: u8| {
        v4(&long, move |frame| {
            frame[23] = 1;
            frame[34] = kind;
        })
    };
    let icmpv6 = |kind: u8| {
        v6(&long, move |frame| {
            frame[20] = 58;
            frame[54] = kind;
        })
    };
    let extension = |fragment: [u8; 2], next: u8| {
        v6(&long, move |frame| {
            frame[20] = 44;
            frame[54..62].copy_from_slice(&[next, 0, fragment[0], fragment[1], 0, 0, 0, 1]);
        })
    };
    let cases = [
        ("echo", icmp(8), true),
        ("echo's reply", icmp(0), true),
        ("unreachable", icmp(3), false),
        ("redirect", icmp(5), false),
        ("time exceeded", icmp(11), false),
        ("parameter problem", icmp(12), false),
        ("may be fragmented", v4(&long, |frame| frame[20] = 0), false),
        ("a first fragment", v4(&long, |frame| frame[20] = 0x60), true),
        ("a later fragment", v4(&long, |frame| frame[21] = 1), false),
        ("to a group", v4(&long, |frame| frame[30] = 224), false),
        ("to all", v4(&long, |frame| frame[30..34].fill(255)), false),
        ("from a group", v4(&long, |frame| frame[26] = 239), false),
        ("from nobody", v4(&long, |frame| frame[26..30].fill(0)), false),
        ("from loopback", v4(&long, |frame| frame[26] = 127), false),
        ("fits", v4(&[1; 1_140], |_| {}), false),
        ("one more", v4(&[1; 1_141], |_| {}), true),
        ("padded", v4(&[1; 1_140], |frame| frame.extend_from_slice(&[0; 40])), false),
        ("echo of IPv6", icmpv6(128), true),
        ("too big of IPv6", icmpv6(2), false),
        ("an unknown error of IPv6", icmpv6(127), false),
        ("a redirect of IPv6", icmpv6(137), false),
        ("a first fragment of IPv6", extension([0, 1], 17), true),
        ("a later fragment of IPv6", extension([1, 1], 17), false),
        ("a fragment of ICMPv6, of which nobody knows whether it is an error", extension([0, 1], 58), false),
        ("to a group of IPv6", v6(&long, |frame| frame[38] = 0xff), false),
        ("from nobody of IPv6", v6(&long, |frame| frame[22..38].fill(0)), false),
        ("1,280 of IPv6", v6(&[1; 1_232], |_| {}), false),
        ("1,281 of IPv6", v6(&[1; 1_233], |_| {}), true),
    ];
    for (what, frame, told) in cases {
        assert_eq!(plain(&frame).is_some(), told, "{what}");
    }
}

#[test]
fn no_length_of_anything_panics() {
    for frame in
        [v4(&[1; 1_400], |_| {}), v6(&[1; 1_400], |_| {}), superframe(mac(1, 1), mac(0, 1), &[7; 2_800], 1_400).1]
    {
        let offload = superframe(mac(1, 1), mac(0, 1), &[7; 2_800], 1_400).0;
        for length in 0..frame.len().min(200) {
            for offload in [Offload::default(), offload] {
                answered(&frame[..length], &offload);
                answered(&frame, &Offload { header_len: length as u8, ..offload });
            }
        }
    }
}

/// Two machines; the path from the first takes frames of [`FRAME_MAX`] bytes.
fn bed() -> (Testbed, Ends) {
    let (mut bed, mut ends) = (Testbed::new(2, Cipher::Aes256Gcm), Ends::default());
    bed.outbound(1, &Offload::default(), &frame(Mac([0xff; 6]), mac(1, 1), b"hello"), &mut ends);
    for (_, mut datagram) in ends.wire.take() {
        bed.inbound(0, address(1), &mut datagram, &mut ends);
    }
    bed.peer_mut(0, 1).unwrap().way_max = FRAME_MAX + 48;
    (bed, ends)
}

#[test]
fn what_is_too_long_is_carried_and_told_of_once_a_tick() {
    let long = v4(&[3; 1_400], |_| {});
    let (offload, stream) = superframe(mac(1, 1), mac(0, 1), &[7; 4_000], 1_400);
    for (offload, frame, datagrams) in [(Offload::default(), &long, 2), (offload, &stream, 2 + 2 + 2)] {
        let (mut bed, mut ends) = bed();
        for (tick, told) in [(1, true), (1, false), (2, true)] {
            ends.tick = tick;
            let answer = bed.outbound(0, &offload, frame, &mut ends).map(<[u8]>::to_vec);
            assert_eq!(answer, answered(frame, &offload).filter(|_| told));
            assert_eq!(ends.wire.take().len(), datagrams, "carried all the same");
        }
        let counters = &bed.forwarders[0].counters;
        assert_eq!((counters.told_too_big.value(), bed.drops(0, DropReason::TooBig)), (2, 0));
    }
}

#[test]
fn nobody_is_told_before_it_is_sure_unless_it_is_lost() {
    let (mut bed, mut ends) = bed();
    let peer = bed.peer_mut(0, 1).unwrap();
    peer.way_settled = false;
    let long = v4(&[3; 1_400], |_| {});
    assert_eq!(bed.outbound(0, &Offload::default(), &long, &mut ends), None);
    assert_eq!(ends.wire.take().len(), 2);
    // The other end reads no fragments.
    bed.peer_mut(0, 1).unwrap().fragments = false;
    assert!(bed.outbound(0, &Offload::default(), &long, &mut ends).is_some());
    assert_eq!((ends.wire.len(), bed.drops(0, DropReason::TooBig)), (0, 1));
    // What fits is nobody's business.
    assert_eq!(bed.outbound(0, &Offload::default(), &v4(&[3; 1_100], |_| {}), &mut ends), None);
    assert_eq!(bed.outbound(0, &Offload::default(), &frame(mac(1, 1), mac(0, 1), &[9; 1_400]), &mut ends), None);
    assert_eq!((ends.wire.len(), bed.drops(0, DropReason::TooBig)), (1, 2), "not IP: counted alone");
}

#[test]
fn what_the_overlay_at_the_end_does_not_take_is_told_of() {
    let (mut bed, mut ends) = bed();
    let peer = bed.peer_mut(0, 1).unwrap();
    (peer.way_max, peer.overlay_mtu) = (8_900, 1_310);
    let stream = |size| superframe(mac(1, 1), mac(0, 1), &[7; 4_000], size);
    let tagged = |bytes: usize| v4(&vec![3; bytes], |frame| drop(frame.splice(12..12, [0x81, 0, 0, 5])));
    let plain = Offload::default();
    let cases = [
        ((plain, v4(&[3; 1_282], |_| {})), None),
        ((plain, v4(&[3; 1_283], |_| {})), Some(1_310)),
        ((plain, v6(&[3; 1_263], |_| {})), Some(1_310)),
        ((plain, tagged(1_282)), None),
        ((plain, tagged(1_283)), Some(1_310)),
        (stream(1_270), None),
        (stream(1_271), Some(1_310)),
    ];
    for (at, ((offload, frame), told)) in cases.into_iter().enumerate() {
        ends.tick += 1;
        let l3 = Layers::parse(&frame).unwrap().l3;
        let answer = bed.outbound(0, &offload, &frame, &mut ends);
        let said = answer.map(|answer| read16(answer, l3 + if answer[l3] >> 4 == 6 { 46 } else { 26 }).unwrap());
        assert_eq!(said, told, "case {at}");
        assert_eq!(ends.wire.take().len(), if offload.gso == Gso::None { 1 } else { 4 }, "carried all the same");
    }
}

#[test]
fn each_pair_once_a_tick() {
    let mut told = Told::default();
    let (one, other) = (v4(&[], |_| {}), v4(&[], |frame| frame[5] = 9));
    assert!(told.may_tell(&one, 1));
    assert!(!told.may_tell(&one, 1));
    assert!(told.may_tell(&other, 1));
    assert!(told.may_tell(&one, 2));
    let many = (0..=255).flat_map(|a| (0..=255).map(move |b| [a, b]));
    let count = many.filter(|pair| told.may_tell(&[&pair[..], &[0; 12]].concat(), 3)).count();
    assert_eq!(count, PLACES, "all places are used, each once");
}
