use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::forward::packet::{header_len, sum16};
use crate::forward::testbed::Frames;

#[derive(Debug, Clone, Copy)]
struct Shape {
    v6: bool,
    vlan: bool,
    gso: Gso,
}

const SHAPES: [Shape; 6] = [
    Shape { v6: false, vlan: false, gso: Gso::Tcp4 },
    Shape { v6: false, vlan: true, gso: Gso::Tcp4 },
    Shape { v6: true, vlan: false, gso: Gso::Tcp6 },
    Shape { v6: true, vlan: true, gso: Gso::Tcp6 },
    Shape { v6: false, vlan: false, gso: Gso::Udp },
    Shape { v6: true, vlan: false, gso: Gso::Udp },
];

/// A packet by etherparse, all checksums right. `skipped` bytes of its stream and `index` segments went before it.
fn packet(shape: Shape, payload: &[u8], skipped: u32, index: u16, first: bool, last: bool) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut bytes = Vec::new();
    macro_rules! transport {
        ($step:expr) => {{
            let step = $step;
            if shape.gso == Gso::Udp {
                step.udp(7, 9).write(&mut bytes, payload).unwrap();
            } else {
                let mut step = step.tcp(7, 9, 0xffff_f000u32.wrapping_add(skipped), 500).ack(1);
                if last {
                    step = step.psh().fin();
                }
                if first {
                    step = step.cwr();
                }
                step.write(&mut bytes, payload).unwrap();
            }
        }};
    }
    macro_rules! network {
        ($step:expr) => {
            if shape.v6 {
                transport!($step.ipv6([0x11; 16], [0x22; 16], 64))
            } else {
                let mut header = etherparse::Ipv4Header::new(0, 64, 0.into(), [10, 32, 0, 1], [10, 32, 0, 2]).unwrap();
                header.identification = 0xfffeu16.wrapping_add(index);
                transport!($step.ip(etherparse::IpHeaders::Ipv4(header, Default::default())))
            }
        };
    }
    if shape.vlan {
        network!(ethernet.single_vlan(5.try_into().unwrap()))
    } else {
        network!(ethernet)
    }
    bytes
}

/// The super-frame as a TAP gives it: the checksum field holds the pseudo header's sum.
fn superframe(shape: Shape, payload: &[u8], gso_size: u16) -> (Offload, Vec<u8>) {
    let mut bytes = packet(shape, payload, 0, 0, true, true);
    let header = header_len(&bytes, shape.gso).unwrap();
    let tcp = shape.gso != Gso::Udp;
    let l4 = usize::from(header) - if tcp { 20 } else { 8 };
    let at = l4 + if tcp { 16 } else { 6 };
    bytes[at..at + 2].fill(0);
    let partial = pseudo(shape, bytes.len() - l4);
    bytes[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    let offload = Offload {
        needs_csum: true,
        data_valid: false,
        ecn: tcp,
        gso: shape.gso,
        header_len: header,
        gso_size,
        csum_start: l4 as u16,
        csum_offset: (at - l4) as u16,
    };
    (offload, bytes)
}

fn pseudo(shape: Shape, l4_bytes: usize) -> u16 {
    let protocol = if shape.gso == Gso::Udp { 17 } else { 6 };
    let length = (l4_bytes as u32).to_be_bytes();
    let addresses = if shape.v6 { [[0x11; 16], [0x22; 16]].concat() } else { vec![10, 32, 0, 1, 10, 32, 0, 2] };
    sum16(&[&addresses[..], &length, &[0, 0, 0, protocol]].concat())
}

/// What a kernel does with a frame whose checksum is still to be done.
fn completed(offload: &Offload, frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let start = usize::from(offload.csum_start);
    let at = start + usize::from(offload.csum_offset);
    let sum = !sum16(&bytes[start..]);
    bytes[at..at + 2].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    bytes
}

/// Software segmentation of a delivered super-frame, by the rules of the kernel: what leaves the far bridge.
fn segmented(shape: Shape, offload: &Offload, frame: &[u8]) -> Vec<Vec<u8>> {
    if offload.gso == Gso::None {
        return vec![completed(offload, frame)];
    }
    let header = usize::from(offload.header_len);
    let count = (frame.len() - header).div_ceil(usize::from(offload.gso_size));
    let l4 = usize::from(offload.csum_start);
    // The kernel takes it for granted that lengths and partial checksum are those of the whole.
    check_whole(shape, offload, frame);
    let pieces = frame[header..].chunks(usize::from(offload.gso_size)).enumerate();
    let cut = pieces.map(|(index, payload)| {
        let mut bytes = [&frame[..header], payload].concat();
        let l3 = if shape.vlan { 18 } else { 14 };
        let l4_bytes = bytes.len() - l4;
        if shape.v6 {
            bytes[l3 + 4..l3 + 6].copy_from_slice(&(l4_bytes as u16).to_be_bytes());
        } else {
            bytes[l3 + 2..l3 + 4].copy_from_slice(&((l4_bytes + 20) as u16).to_be_bytes());
            let id = u16::from_be_bytes([bytes[l3 + 4], bytes[l3 + 5]]).wrapping_add(index as u16);
            bytes[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
            bytes[l3 + 10..l3 + 12].fill(0);
            let sum = !sum16(&bytes[l3..l4]);
            bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let at = l4 + usize::from(offload.csum_offset);
        if shape.gso == Gso::Udp {
            bytes[l4 + 4..l4 + 6].copy_from_slice(&(l4_bytes as u16).to_be_bytes());
        } else {
            let sequence = u32::from_be_bytes(bytes[l4 + 4..l4 + 8].try_into().unwrap());
            let sequence = sequence.wrapping_add(index as u32 * u32::from(offload.gso_size));
            bytes[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 < count {
                bytes[l4 + 13] &= !0x09;
            }
            if index > 0 {
                bytes[l4 + 13] &= !0x80;
            }
        }
        bytes[at..at + 2].copy_from_slice(&pseudo(shape, l4_bytes).to_be_bytes());
        completed(offload, &bytes)
    });
    cut.collect()
}

fn check_whole(shape: Shape, offload: &Offload, frame: &[u8]) {
    let parsed = SlicedPacket::from_ethernet(frame).expect("a valid packet");
    let l4 = usize::from(offload.csum_start);
    let at = l4 + usize::from(offload.csum_offset);
    let partial = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let wanted = pseudo(shape, frame.len() - l4);
    // Both forms of zero are the same sum.
    assert_eq!(partial % 0xffff, wanted % 0xffff, "the pseudo header's sum over the whole length");
    let payload = match parsed.transport.unwrap() {
        TransportSlice::Tcp(tcp) => tcp.payload().len(),
        TransportSlice::Udp(udp) => udp.payload().len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(payload, frame.len() - usize::from(offload.header_len), "lengths are those of the whole");
}

type Delivered = (Offload, Vec<u8>);

/// Cuts a super-frame, lets only `pass`ing segments through, in order, joins, and gives the deliveries.
fn joined(shape: Shape, payload: &[u8], gso_size: u16, pass: impl Fn(usize) -> bool) -> (Vec<Delivered>, Vec<Vec<u8>>) {
    let (offload, bytes) = superframe(shape, payload, gso_size);
    let header = usize::from(offload.header_len);
    let count = payload.len().div_ceil(usize::from(gso_size));
    let (mut buffer, mut places, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
    for (index, piece) in payload.chunks(usize::from(gso_size)).enumerate().filter(|(index, _)| pass(*index)) {
        buffer.extend_from_slice(&[0xee; 9]);
        let start = buffer.len();
        buffer.extend_from_slice(&bytes[..header]);
        buffer.extend_from_slice(piece);
        let inner = Inner {
            kind: InnerKind::Segment,
            flood: false,
            offload,
            superframe: 3,
            index: index as u16,
            count: count as u16,
        };
        places.push((inner, start..buffer.len()));
        let skipped = (index * usize::from(gso_size)) as u32;
        wanted.push(packet(shape, piece, skipped, index as u16, index == 0, index + 1 == count));
    }
    let (mut joiner, mut frames) = (Joiner::default(), Frames::default());
    for (inner, place) in places {
        joiner.push(&mut buffer, &inner, place, 1, &mut frames);
    }
    joiner.flush(&mut buffer, &mut frames);
    (frames.all, wanted)
}

#[test]
fn all_segments_give_the_super_frame_as_it_was() {
    for shape in SHAPES {
        let payload: Vec<u8> = (0..9_500u32).map(|i| (i * 7) as u8).collect();
        let (frames, wanted) = joined(shape, &payload, 1_200, |_| true);
        let (offload, bytes) = superframe(shape, &payload, 1_200);
        assert_eq!(frames, [(offload, bytes)], "{shape:?}");
        let (offload, bytes) = &frames[0];
        assert_eq!(segmented(shape, offload, bytes), wanted, "{shape:?}");
    }
}

#[test]
fn with_holes_each_run_is_what_segmentation_would_give() {
    for shape in SHAPES {
        let payload: Vec<u8> = (0..9_500u32).map(|i| (i * 7) as u8).collect();
        for mask in 0..1u32 << 8 {
            let (frames, wanted) = joined(shape, &payload, 1_200, |index| mask >> index & 1 == 1);
            let runs =
                (0..8).filter(|index| mask >> index & 1 == 1 && (*index == 0 || mask >> (index - 1) & 1 == 0)).count();
            assert_eq!(frames.len(), runs, "one delivery for each run");
            let given: Vec<Vec<u8>> =
                frames.iter().flat_map(|(offload, bytes)| segmented(shape, offload, bytes)).collect();
            assert_eq!(given, wanted, "{shape:?} {mask:b}");
            for (offload, bytes) in &frames {
                let alone = offload.gso == Gso::None;
                let cwr = shape.gso != Gso::Udp && bytes[usize::from(offload.csum_start) + 13] & 0x80 != 0;
                assert_eq!(offload.ecn, cwr && !alone, "goes with CWR");
                assert_eq!(alone, offload.header_len == 0 && offload.gso_size == 0);
                assert!(offload.needs_csum);
            }
        }
    }
}

#[test]
fn long_super_frames_come_in_several_deliveries() {
    let shape = SHAPES[0];
    let payload: Vec<u8> = (0..60_000u32).map(|i| (i / 3) as u8).collect();
    let (frames, wanted) = joined(shape, &payload, 200, |_| true);
    assert_eq!(frames.len(), 300usize.div_ceil(SEGMENTS_MAX));
    let given: Vec<Vec<u8>> = frames.iter().flat_map(|(offload, bytes)| segmented(shape, offload, bytes)).collect();
    assert_eq!(given, wanted);
}

/// One segment of a super-frame of three, at `start` of the buffer.
fn segment(buffer: &mut Vec<u8>, superframe_number: u16, index: u16, mark: u8) -> (Inner, Range<usize>) {
    let (offload, mut bytes) = superframe(SHAPES[0], &[mark; 300], 100);
    bytes[19] = superframe_number as u8;
    let start = buffer.len();
    buffer.extend_from_slice(&bytes[..154]);
    let inner =
        Inner { kind: InnerKind::Segment, flood: false, offload, superframe: superframe_number, index, count: 3 };
    (inner, start..start + 154)
}

#[test]
fn interleaved_flows_join_and_keep_their_order() {
    let mut buffer = Vec::new();
    let mut pushes = Vec::new();
    for index in 0..3 {
        for flow in 0..RUNS_MAX as u64 {
            pushes.push((segment(&mut buffer, 1, index, flow as u8), flow));
        }
    }
    let (mut joiner, mut frames) = (Joiner::default(), Frames::default());
    for ((inner, place), flow) in pushes {
        joiner.push(&mut buffer, &inner, place, flow, &mut frames);
    }
    joiner.flush(&mut buffer, &mut frames);
    assert_eq!(frames.all.len(), RUNS_MAX);
    assert!(frames.all.iter().all(|(_, bytes)| bytes.len() == 54 + 300));

    let mut buffer = Vec::new();
    let first = segment(&mut buffer, 1, 0, 1);
    let start = buffer.len();
    buffer.extend_from_slice(&[9; 60]);
    let plain = (Inner::plain(InnerKind::Frame), start..start + 60);
    let mut frames = Frames::default();
    for ((inner, place), flow) in [(first.clone(), 1), (plain.clone(), 2), (plain.clone(), 1)] {
        joiner.push(&mut buffer, &inner, place, flow, &mut frames);
    }
    let lengths: Vec<usize> = frames.all.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [60, 154, 60], "another flow does not wait; in one flow, what came first goes first");
    joiner.flush(&mut buffer, &mut frames);
    assert_eq!(frames.all.len(), 3);
}

#[test]
fn more_flows_than_places() {
    let (mut joiner, mut frames, mut buffer) = (Joiner::default(), Frames::default(), Vec::new());
    let pushes: Vec<_> = (0..20u64).map(|flow| (segment(&mut buffer, 1, 0, flow as u8), flow)).collect();
    for ((inner, place), flow) in pushes {
        joiner.push(&mut buffer, &inner, place, flow, &mut frames);
    }
    assert_eq!(frames.all.len(), 20 - RUNS_MAX);
    joiner.flush(&mut buffer, &mut frames);
    let marks: Vec<u8> = frames.all.iter().map(|(_, bytes)| bytes[60]).collect();
    assert_eq!(marks, (0..20).collect::<Vec<u8>>(), "oldest first");
}

#[test]
fn strangers_do_not_join() {
    // Another super-frame; the same number but another template; the same segment again; an earlier one.
    for (number, index, mark, template) in [(2, 1, 1, Some(19)), (1, 1, 1, Some(20)), (1, 0, 1, None), (1, 2, 1, None)]
    {
        let (mut joiner, mut frames, mut buffer) = (Joiner::default(), Frames::default(), Vec::new());
        let (inner, place) = segment(&mut buffer, 1, 0, 1);
        let (other, other_place) = segment(&mut buffer, number, index, mark);
        if let Some(at) = template {
            // In place 19 stands the number, which `segment` writes: 2 becomes 1 and the templates are alike.
            buffer[other_place.start + at] ^= if at == 19 { 3 } else { 1 };
        }
        joiner.push(&mut buffer, &inner, place, 1, &mut frames);
        joiner.push(&mut buffer, &other, other_place, 1, &mut frames);
        joiner.flush(&mut buffer, &mut frames);
        assert_eq!(frames.all.len(), 2, "{number} {index} {template:?}");
    }
}

proptest! {
    /// Whatever a genuine peer claims, nothing panics and no byte outside is delivered.
    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 60..200),
        segments in prop::collection::vec((0u16..4, 14u8..60, 1u16..80, 0u16..2, 0u64..6), 1..12),
    ) {
        let (mut joiner, mut frames, mut buffer) = (Joiner::default(), Frames::default(), bytes);
        buffer[12..15].copy_from_slice(&[8, 0, 0x45]);
        for (index, header_len, gso_size, superframe, flow) in segments {
            let offload = Offload { needs_csum: true, gso: Gso::Tcp4, header_len, gso_size, ..Offload::default() };
            let inner = Inner { kind: InnerKind::Segment, flood: false, offload, superframe, index, count: 4 };
            let all = 0..buffer.len();
            joiner.push(&mut buffer, &inner, all, flow, &mut frames);
        }
        joiner.flush(&mut buffer, &mut frames);
        prop_assert!(!frames.all.is_empty());
    }
}
