use std::net::SocketAddr;

use meshnet_proto::Mac;
use meshnet_proto::wire::data::{FLOOD_BYTES, INNER_BYTES, InnerKind, OUTER_BYTES, Offload, TAG_BYTES};
use proptest::prelude::*;

use super::*;
use crate::forward::Inbound;
use crate::forward::join::Joiner;
use crate::forward::send::seal_inner;
use crate::forward::testbed::{Ends, Frames, Testbed, address, frame, mac, superframe};
use crate::session::Cipher;

const ALL: Mac = Mac([0xff; 6]);

fn bed(count: usize, datagram_max: usize) -> (Testbed, Ends) {
    let mut bed = Testbed::new(count, Cipher::Aes256Gcm);
    for (at, to) in (0..count).flat_map(|at| (0..count).map(move |to| (at, to))) {
        limit(&mut bed, at, to, datagram_max);
    }
    // Where the stations are is known: unicast is not flooded.
    let mut ends = Ends::default();
    for at in 0..count {
        let hello = frame(ALL, mac(at, 1), b"hello");
        bed.outbound(at, &Offload::default(), &hello, &mut ends);
        for (to, mut datagram) in ends.wire.take() {
            bed.inbound(machine(to), address(at), &mut datagram, &mut ends);
        }
    }
    ends.wire.clear();
    (bed, ends)
}

fn limit(bed: &mut Testbed, at: usize, to: usize, datagram_max: usize) {
    if let Some(peer) = bed.peer_mut(at, to) {
        (peer.datagram_max, peer.way_max) = (datagram_max, datagram_max);
    }
}

fn machine(to: SocketAddr) -> usize {
    (0..16).find(|i| address(*i) == to).unwrap()
}

/// Machine `at` takes datagrams in, in this order; gives what its TAP gets.
fn take_in(bed: &mut Testbed, at: usize, from: usize, datagrams: &mut [Vec<u8>], ends: &mut Ends) -> Frames {
    let (mut joiner, mut frames) = (Joiner::default(), Frames::default());
    for datagram in datagrams {
        match bed.inbound(at, address(from), datagram, ends) {
            Inbound::Deliver { inner, frame, flow } => joiner.push(datagram, &inner, frame, flow, &mut frames),
            Inbound::Reassembled { inner, frame, flow } => {
                let apart = bed.forwarders[at].reassembled();
                joiner.push_apart(datagram, apart, &inner, frame, flow, &mut frames);
            }
            Inbound::Done | Inbound::Quic { .. } => {}
        }
        joiner.flush(datagram, &mut frames);
    }
    frames
}

fn sent(ends: &mut Ends) -> Vec<Vec<u8>> {
    ends.wire.take().into_iter().map(|(_, datagram)| datagram).collect()
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn frames_of_any_length_arrive_as_they_were() {
    let around = OUTER_BYTES + INNER_BYTES + TAG_BYTES;
    for max in [200, 1_232, 1_452, 8_972] {
        let (mut bed, mut ends) = bed(2, max);
        let fits = max - around;
        for length in [60, fits, fits + 1, fits * 2 - 16, fits * 2, fits * 3 + 5, fits * 50] {
            let bytes = frame(mac(1, 1), mac(0, 1), &payload(length.min(65_600) - 14));
            bed.outbound(0, &Offload::default(), &bytes, &mut ends);
            let mut datagrams = sent(&mut ends);
            assert_eq!(datagrams.len() > 1, length > fits, "{length} of {max}");
            assert!(datagrams.iter().all(|datagram| datagram.len() <= max));
            let (last, others) = datagrams.split_last().unwrap();
            assert!(others.iter().all(|other| other.len() == others[0].len() && other.len() >= last.len()), "one send");
            let frames = take_in(&mut bed, 1, 0, &mut datagrams, &mut ends);
            assert_eq!(frames.all, [(Offload::default(), bytes)], "{length} of {max}");
        }
        assert!(DropReason::ALL.iter().all(|reason| bed.drops(0, *reason) + bed.drops(1, *reason) == 0));
        assert_eq!(bed.forwarders[0].counters.fragmented.value(), 5);
        assert_eq!(bed.forwarders[1].counters.reassembled.value(), 5);
    }
}

#[test]
fn segments_arrive_as_frames_of_their_own() {
    let (mut bed, mut ends) = bed(2, 1_232);
    let (offload, bytes) = superframe(mac(1, 1), mac(0, 1), &payload(2_900), 1_400);
    bed.outbound(0, &offload, &bytes, &mut ends);
    let mut datagrams = sent(&mut ends);
    assert_eq!(datagrams.len(), 5, "twice two, and the last whole");
    let frames = take_in(&mut bed, 1, 0, &mut datagrams, &mut ends);
    let lengths: Vec<usize> = frames.all.iter().map(|(_, frame)| frame.len()).collect();
    assert_eq!(lengths, [1_454, 1_454, 154]);
    let joined: Vec<u8> = frames.all.iter().flat_map(|(_, frame)| frame[54..].to_vec()).collect();
    assert_eq!(joined, payload(2_900));
    assert!(frames.all.iter().all(|(offload, _)| offload.needs_csum && offload.gso_size == 0));
    let sequence = |at: usize| u32::from_be_bytes(frames.all[at].1[38..42].try_into().unwrap());
    assert_eq!((sequence(1) - sequence(0), sequence(2) - sequence(1)), (1_400, 1_400));
}

#[test]
fn through_relays_and_flooded_from_hop_to_hop() {
    let (mut bed, mut ends) = bed(4, 1_232);
    bed.relay(0, &[1, 2], 3);
    limit(&mut bed, 0, 3, 1_232);
    let bytes = frame(mac(3, 1), mac(0, 1), &payload(1_400));
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    for at in 1..3 {
        let mut datagrams = sent(&mut ends);
        assert_eq!(datagrams.len(), 2);
        take_in(&mut bed, at, at - 1, &mut datagrams, &mut ends);
        assert_eq!(bed.forwarders[at].counters.reassembled.value(), 0, "a relay cannot read it");
    }
    let mut datagrams = sent(&mut ends);
    assert_eq!(take_in(&mut bed, 3, 2, &mut datagrams, &mut ends).all, [(Offload::default(), bytes)]);
    // Each hop of a flood cuts as its own path wants.
    bed.flood(0, 0, &[1]);
    bed.flood(0, 1, &[2]);
    bed.flood(0, 2, &[3]);
    limit(&mut bed, 1, 2, 8_972);
    limit(&mut bed, 2, 3, 600);
    let bytes = frame(ALL, mac(0, 1), &payload(1_400));
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    for (at, count) in [(1, 2), (2, 1), (3, 3)] {
        let mut datagrams = sent(&mut ends);
        assert_eq!(datagrams.len(), count, "to {at}");
        let frames = take_in(&mut bed, at, at - 1, &mut datagrams, &mut ends);
        assert_eq!(frames.all, [(Offload::default(), bytes.clone())], "at {at}");
    }
}

#[test]
fn who_reads_no_fragments_gets_none() {
    let (mut bed, mut ends) = bed(2, 1_232);
    bed.peer_mut(0, 1).unwrap().fragments = false;
    bed.outbound(0, &Offload::default(), &frame(mac(1, 1), mac(0, 1), &payload(1_400)), &mut ends);
    assert_eq!((ends.wire.len(), bed.drops(0, DropReason::TooBig)), (0, 1));
    // Nor does a path that has no room for any, or a frame that would be too many.
    bed.peer_mut(0, 1).unwrap().fragments = true;
    for max in [0, 48, 50] {
        limit(&mut bed, 0, 1, max);
        bed.outbound(0, &Offload::default(), &frame(mac(1, 1), mac(0, 1), &payload(1_400)), &mut ends);
    }
    assert_eq!((ends.wire.len(), bed.drops(0, DropReason::TooBig)), (0, 4));
}

#[test]
fn what_stays_incomplete_is_counted_by_frame() {
    let (mut bed, mut ends) = bed(2, 1_232);
    let bytes = frame(mac(1, 1), mac(0, 1), &payload(3_000));
    for lost in 0..3 {
        bed.outbound(0, &Offload::default(), &bytes, &mut ends);
        let mut datagrams = sent(&mut ends);
        datagrams.remove(lost);
        assert!(take_in(&mut bed, 1, 0, &mut datagrams, &mut ends).all.is_empty());
    }
    let small = frame(mac(1, 1), mac(0, 1), b"later");
    for (tick, counted) in [(1, 0), (2, 0), (3, 3), (4, 3)] {
        ends.tick = tick;
        bed.outbound(0, &Offload::default(), &small, &mut ends);
        let mut datagrams = sent(&mut ends);
        take_in(&mut bed, 1, 0, &mut datagrams, &mut ends);
        assert_eq!(bed.drops(1, DropReason::Incomplete), counted, "at {tick}");
    }
}

#[test]
fn a_peer_that_completes_nothing_harms_itself_alone() {
    let (mut bed, mut ends) = bed(4, 1_232);
    let mut rest = Vec::new();
    for from in [1, 2] {
        bed.outbound(from, &Offload::default(), &frame(mac(0, 1), mac(from, 1), &payload(1_400)), &mut ends);
        let mut datagrams = sent(&mut ends);
        rest.push((from, datagrams.split_off(1)));
        take_in(&mut bed, 0, from, &mut datagrams, &mut ends);
    }
    for _ in 0..200 {
        bed.outbound(3, &Offload::default(), &frame(mac(0, 1), mac(3, 1), &payload(1_400)), &mut ends);
        let mut datagrams = sent(&mut ends);
        datagrams.truncate(1);
        take_in(&mut bed, 0, 3, &mut datagrams, &mut ends);
    }
    assert_eq!(bed.drops(0, DropReason::Incomplete), 200 - OPEN_OF_PEER_MAX as u64);
    for (from, mut datagrams) in rest {
        assert_eq!(take_in(&mut bed, 0, from, &mut datagrams, &mut ends).all.len(), 1);
    }
}

#[test]
fn fragments_that_lie() {
    let (mut bed, mut ends) = bed(2, 1_232);
    let session = bed.fibs[0].peer(PeerSlot(1)).unwrap().session.clone().unwrap();
    let put = |bed: &mut Testbed, ends: &mut Ends, inner: Inner, body: &[u8]| {
        let mut datagram = seal_inner(&session, 1, &inner, body).unwrap();
        let before: u64 = DropReason::ALL.iter().map(|reason| bed.drops(1, *reason)).sum();
        let verdict = bed.inbound(1, address(0), &mut datagram, ends);
        let malformed = bed.drops(1, DropReason::Malformed);
        let after: u64 = DropReason::ALL.iter().map(|reason| bed.drops(1, *reason)).sum();
        (verdict, after - before, malformed)
    };
    // The first on this lane: no counter is left for the one before it.
    assert_eq!(put(&mut bed, &mut ends, Inner::fragment(100, 1, 2), &[0; 100]), (Inbound::Done, 1, 1));
    let wrong: &[(Inner, usize)] = &[
        (Inner::fragment(100, 0, 2), 99),
        (Inner::fragment(100, 0, 2), 101),
        (Inner::fragment(100, 1, 2), 101),
        (Inner::fragment(100, 1, 2), 0),
        (Inner::fragment(65_535, 1, 2), 98),
    ];
    for (at, (inner, bytes)) in wrong.iter().enumerate() {
        let got = put(&mut bed, &mut ends, *inner, &vec![0; *bytes]);
        assert_eq!(got, (Inbound::Done, 1, at as u64 + 2), "{inner:?}");
    }
    // The second says other than the first.
    put(&mut bed, &mut ends, Inner::fragment(100, 0, 2), &[0; 100]);
    assert_eq!(put(&mut bed, &mut ends, Inner::fragment(90, 1, 2), &[0; 90]).1, 1);
    // What they give is no frame: a probe, a fragment, nothing known, a frame without addresses.
    for inside in [Inner::plain(InnerKind::Probe), Inner::fragment(10, 0, 2), Inner::plain(InnerKind::Frame)] {
        let bytes = inside.emit();
        put(&mut bed, &mut ends, Inner::fragment(10, 0, 2), &bytes[..10]);
        assert_eq!(put(&mut bed, &mut ends, Inner::fragment(10, 1, 2), &bytes[10..]).1, 1, "{inside:?}");
    }
    assert_eq!(bed.drops(1, DropReason::Malformed), 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Fragments of several frames, mixed, some lost, some doubled: what arrives is what was sent, once, and all that lost nothing arrives.
    #[test]
    fn in_any_order(
        lengths in prop::collection::vec(100usize..6_000, 1..12),
        max in 300usize..1_500,
        fates in prop::collection::vec((any::<u32>(), 0u8..20), 300),
    ) {
        let (mut bed, mut ends) = bed(2, max);
        let (mut all, mut owed) = (Vec::new(), Vec::new());
        let mut fates = fates.into_iter().cycle();
        for (number, length) in lengths.iter().enumerate() {
            let mut body = payload(*length);
            body[0] = number as u8;
            let bytes = frame(mac(1, 1), mac(0, 1), &body);
            bed.outbound(0, &Offload::default(), &bytes, &mut ends);
            let mut lost = false;
            for datagram in sent(&mut ends) {
                let (order, fate) = fates.next().unwrap();
                lost |= fate == 0;
                if fate == 1 {
                    all.push((order.wrapping_mul(31), datagram.clone()));
                }
                if fate != 0 {
                    all.push((order, datagram));
                }
            }
            if !lost {
                owed.push(bytes);
            }
        }
        all.sort();
        let mut datagrams: Vec<Vec<u8>> = all.into_iter().map(|(_, datagram)| datagram).collect();
        let mut got: Vec<Vec<u8>> =
            take_in(&mut bed, 1, 0, &mut datagrams, &mut ends).all.into_iter().map(|(_, frame)| frame).collect();
        got.sort();
        owed.sort();
        prop_assert_eq!(got, owed);
    }
}

#[test]
fn a_frame_as_long_as_any_fits_the_smallest_path() {
    let around = OUTER_BYTES * 2 + INNER_BYTES + TAG_BYTES * 2 + 12 + 8 * 4;
    let longest = meshnet_proto::limits::SUPERFRAME_MAX_BYTES + INNER_BYTES + FLOOD_BYTES;
    assert!(longest <= FRAGMENTED_MAX_BYTES);
    assert!(longest.div_ceil(crate::fib::DATAGRAM_BASE - around) <= FRAGMENTS_MAX);
}
