//! The frame path allocates nothing: counted, for each way a frame can take.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use meshnet_core::counters::DropReason;
use meshnet_core::fib::owners::mac_of;
use meshnet_core::fib::{Fib, PeerSlot};
use meshnet_core::forward::join::Joiner;
use meshnet_core::forward::testbed::{Ends, Testbed, address, arp_request, frame, mac, superframe};
use meshnet_core::forward::{Deliver, Forwarder, Inbound};
use meshnet_core::session::Cipher;
use meshnet_proto::Mac;
use meshnet_proto::wire::data::Offload;

const ALL: Mac = Mac([0xff; 6]);
const ROUNDS: usize = 50;

/// Takes frames and keeps nothing.
#[derive(Default)]
struct Sink {
    frames: usize,
    bytes: usize,
}

impl Deliver for Sink {
    fn deliver(&mut self, _: &Offload, parts: &[&[u8]]) {
        self.frames += 1;
        self.bytes += parts.iter().map(|part| part.len()).sum::<usize>();
    }
}

/// The datagrams sent to machine `to`, one after the other, and where each is.
fn received(ends: &mut Ends, to: usize) -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut buffer, mut places) = (Vec::new(), Vec::new());
    for (_, datagram) in ends.wire.datagrams().filter(|(at, _)| *at == address(to)) {
        places.push(buffer.len()..buffer.len() + datagram.len());
        buffer.extend_from_slice(datagram);
    }
    ends.wire.clear();
    (buffer, places)
}

fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

/// Machine 0 takes a frame from its TAP, again and again.
fn sent(bed: &mut Testbed, offload: &Offload, frame: &[u8], ends: &mut Ends) {
    for _ in 0..ROUNDS {
        bed.outbound(0, offload, frame, ends);
    }
}

/// Takes all of a buffer in, and delivers; gives the allocations.
fn take_in(
    forwarder: &mut Forwarder,
    fib: &Fib,
    from: SocketAddr,
    buffer: &mut [u8],
    places: &[Range<usize>],
    ends: &mut Ends,
    sink: &mut Sink,
) -> u64 {
    let mut joiner = Joiner::default();
    allocations(|| {
        for place in places {
            let place = place.clone();
            let Ends { wire, punts, tick } = ends;
            let verdict = forwarder.inbound(fib, *tick, from, buffer, place, wire, punts);
            match verdict {
                Inbound::Deliver { inner, frame, flow } => joiner.push(buffer, &inner, frame, flow, sink),
                Inbound::Reassembled { inner, frame, flow } => {
                    joiner.push_apart(buffer, forwarder.reassembled(), &inner, frame, flow, sink);
                }
                Inbound::Done | Inbound::Quic { .. } => {}
            }
        }
        joiner.flush(buffer, sink);
    })
}

/// A bed in which machine 0 has sent and heard once, so that addresses are learned: the first frame of an address may allocate.
fn bed(count: usize) -> (Testbed, Ends) {
    let (mut bed, mut ends) = (Testbed::new(count, Cipher::Aes256Gcm), Ends::default());
    for origin in 0..count {
        bed.outbound(origin, &Offload::default(), &frame(ALL, mac(origin, 1), b"hello"), &mut ends);
        for (to, mut datagram) in ends.wire.take() {
            for at in (0..count).filter(|at| address(*at) == to) {
                bed.inbound(at, address(origin), &mut datagram, &mut ends);
            }
        }
    }
    ends.wire.clear();
    (bed, ends)
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8]))), 1);
}

#[test]
fn unicast_there_and_delivered() {
    let (mut bed, mut ends) = bed(2);
    let bytes = frame(mac(1, 1), mac(0, 1), &[7; 1_000]);
    let out = allocations(|| sent(&mut bed, &Offload::default(), &bytes, &mut ends));
    assert_eq!((out, ends.wire.len()), (0, ROUNDS));
    let (mut buffer, places) = received(&mut ends, 1);
    let mut sink = Sink::default();
    let taken = take_in(&mut bed.forwarders[1], &bed.fibs[1], address(0), &mut buffer, &places, &mut ends, &mut sink);
    assert_eq!((taken, sink.frames, sink.bytes), (0, ROUNDS, ROUNDS * bytes.len()));
}

#[test]
fn super_frames_there_and_joined() {
    let (mut bed, mut ends) = bed(2);
    let (offload, bytes) = superframe(mac(1, 1), mac(0, 1), &[7; 60_000], 1_200);
    let out = allocations(|| sent(&mut bed, &offload, &bytes, &mut ends));
    assert_eq!((out, ends.wire.len()), (0, ROUNDS * 50));
    let (mut buffer, mut places) = received(&mut ends, 1);
    places.remove(70);
    let mut sink = Sink::default();
    let taken = take_in(&mut bed.forwarders[1], &bed.fibs[1], address(0), &mut buffer, &places, &mut ends, &mut sink);
    assert_eq!((taken, sink.frames), (0, ROUNDS + 1), "one hole makes two of one");
}

#[test]
fn in_fragments_there_and_whole_again() {
    let (mut bed, mut ends) = bed(2);
    let bytes = frame(mac(1, 1), mac(0, 1), &[7; 4_000]);
    // The first round opens rooms for frames, one of which stays incomplete until its time is over.
    for round in 0..3 {
        ends.tick += 1;
        let out = allocations(|| sent(&mut bed, &Offload::default(), &bytes, &mut ends));
        assert_eq!((out, ends.wire.len()), (0, ROUNDS * 3));
        let (mut buffer, mut places) = received(&mut ends, 1);
        places.remove(4);
        places.swap(7, 10);
        let mut sink = Sink::default();
        let (forwarder, fib) = (&mut bed.forwarders[1], &bed.fibs[1]);
        let taken = take_in(forwarder, fib, address(0), &mut buffer, &places, &mut ends, &mut sink);
        assert_eq!((sink.frames, sink.bytes), (ROUNDS - 1, (ROUNDS - 1) * bytes.len()));
        assert!(round < 2 || taken == 0, "{taken} in round {round}");
    }
    assert_eq!(bed.drops(1, DropReason::Incomplete), 1);
}

#[test]
fn relayed_there_and_passed_on() {
    let (mut bed, mut ends) = bed(4);
    bed.relay(0, &[1, 2], 3);
    let bytes = frame(mac(3, 1), mac(0, 1), &[7; 1_000]);
    let out = allocations(|| sent(&mut bed, &Offload::default(), &bytes, &mut ends));
    assert_eq!((out, ends.wire.len()), (0, ROUNDS));
    let mut sink = Sink::default();
    for at in 1..4 {
        let (mut buffer, places) = received(&mut ends, at);
        assert_eq!(places.len(), ROUNDS);
        let from = address(at - 1);
        let taken = take_in(&mut bed.forwarders[at], &bed.fibs[at], from, &mut buffer, &places, &mut ends, &mut sink);
        assert_eq!(taken, 0, "at {at}");
    }
    assert_eq!(sink.frames, ROUNDS);
}

#[test]
fn flooded_there_and_on() {
    let (mut bed, mut ends) = bed(4);
    bed.flood(0, 0, &[1]);
    bed.flood(0, 1, &[2, 3]);
    let bytes = frame(ALL, mac(0, 1), &[7; 1_000]);
    let out = allocations(|| sent(&mut bed, &Offload::default(), &bytes, &mut ends));
    assert_eq!((out, ends.wire.len()), (0, ROUNDS));
    let (mut buffer, places) = received(&mut ends, 1);
    let mut sink = Sink::default();
    let taken = take_in(&mut bed.forwarders[1], &bed.fibs[1], address(0), &mut buffer, &places, &mut ends, &mut sink);
    assert_eq!((taken, sink.frames, ends.wire.len()), (0, ROUNDS, 2 * ROUNDS));
}

#[test]
fn drops_and_wishes() {
    let (mut bed, mut ends) = bed(3);
    if let Some(peer) = bed.peer_mut(0, 1) {
        peer.session = None;
    }
    ends.punts.all.reserve(8);
    let bytes = frame(mac(1, 1), mac(0, 1), &[7; 1_000]);
    let wished = allocations(|| sent(&mut bed, &Offload::default(), &bytes, &mut ends));
    assert_eq!((wished, ends.punts.all.len()), (0, 1));
    let session = Arc::clone(bed.fibs[0].peer(PeerSlot(2)).and_then(|peer| peer.session.as_ref()).expect("a session"));
    let mut forged = vec![0; 200];
    session.seal(0, &mut forged).expect("room");
    forged[100] ^= 1;
    let dropped = allocations(|| {
        bed.inbound(2, address(0), &mut forged, &mut ends);
    });
    assert_eq!(dropped, 0);
}

/// Two machines and a range of 1,000 runs, of which every other one is machine 1's.
fn owned() -> (Testbed, Ends) {
    let (mut bed, ends) = bed(2);
    bed.own(FIRST, 16_000, 16);
    (bed, ends)
}

const FIRST: u32 = 0x0a20_0000;

#[test]
fn by_the_map_there_and_to_a_host() {
    let (mut bed, mut ends) = owned();
    let host = FIRST + 10_000;
    for fib in &mut bed.fibs {
        let mut owners = (*fib.owners).clone();
        owners.hosts = vec![(host, mac(1, 9))];
        fib.owners = Arc::new(owners);
    }
    let bytes = frame(mac_of(host), mac_of(FIRST), &[7; 1_000]);
    let out = allocations(|| sent(&mut bed, &Offload::default(), &bytes, &mut ends));
    assert_eq!((out, ends.wire.len()), (0, ROUNDS));
    let (mut buffer, places) = received(&mut ends, 1);
    let mut sink = Sink::default();
    let taken = take_in(&mut bed.forwarders[1], &bed.fibs[1], address(0), &mut buffer, &places, &mut ends, &mut sink);
    assert_eq!((taken, sink.frames), (0, ROUNDS));
}

#[test]
fn arp_answered_dropped_and_disputed() {
    let (mut bed, mut ends) = owned();
    let (ours, peers) = (FIRST, FIRST + 16);
    let cases = [
        (arp_request(mac_of(ours), ours, peers), true, None),
        (arp_request(mac_of(ours), ours, ours + 1), false, Some(DropReason::Local)),
        (arp_request(mac(0, 1), peers, peers), true, Some(DropReason::NotOwner)),
        (arp_request(mac(0, 1), peers, ours), false, Some(DropReason::NotOwner)),
        (frame(ALL, mac_of(peers), b"x"), false, Some(DropReason::NotOwner)),
    ];
    for (frame, answered, dropped) in cases {
        let before = dropped.map_or(0, |reason| bed.drops(0, reason));
        let mut answers = 0;
        let out = allocations(|| {
            for _ in 0..ROUNDS {
                answers += usize::from(bed.outbound(0, &Offload::default(), &frame, &mut ends).is_some());
            }
        });
        assert_eq!((out, answers, ends.wire.len()), (0, if answered { ROUNDS } else { 0 }, 0));
        assert!(dropped.is_none_or(|reason| bed.drops(0, reason) == before + ROUNDS as u64));
    }
}

#[test]
fn what_others_say_in_the_name_of_a_third() {
    let (mut bed, mut ends) = bed(3);
    bed.own(FIRST, 48, 16);
    // Machine 0 believes that nothing is owned, so it lets everything out.
    bed.fibs[0].owners = Arc::default();
    for bytes in [frame(mac(1, 1), mac_of(FIRST + 32), b"x"), arp_request(mac(0, 1), FIRST + 32, FIRST + 16)] {
        sent(&mut bed, &Offload::default(), &bytes, &mut ends);
        let (mut buffer, places) = received(&mut ends, 1);
        let before = bed.drops(1, DropReason::NotOwner);
        let mut sink = Sink::default();
        let (forwarder, fib) = (&mut bed.forwarders[1], &bed.fibs[1]);
        let taken = take_in(forwarder, fib, address(0), &mut buffer, &places, &mut ends, &mut sink);
        assert_eq!((taken, sink.frames, bed.drops(1, DropReason::NotOwner) - before), (0, 0, ROUNDS as u64));
    }
}

#[test]
fn what_opens_a_connection_and_what_is_too_long() {
    let (mut bed, mut ends) = bed(2);
    for (at, to) in [(0, 1), (1, 0)] {
        bed.peer_mut(at, to).unwrap().way_max = 1_232;
    }
    let tcp = [0x30, 0x39, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4];
    let ipv4 = [0x45, 0, 0, 44, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2];
    let syn = [&mac(1, 1).0[..], &mac(0, 1).0, &[0x08, 0], &ipv4, &tcp].concat();
    let out = allocations(|| sent(&mut bed, &Offload::default(), &syn, &mut ends));
    assert_eq!((out, bed.forwarders[0].counters.clamped.value()), (0, ROUNDS as u64));
    // A wider way out, so that only the way in has something to do.
    bed.peer_mut(0, 1).unwrap().way_max = 8_900;
    ends.wire.clear();
    sent(&mut bed, &Offload::default(), &syn, &mut ends);
    let (mut buffer, places) = received(&mut ends, 1);
    let mut sink = Sink::default();
    let (forwarder, fib) = (&mut bed.forwarders[1], &bed.fibs[1]);
    let taken = take_in(forwarder, fib, address(0), &mut buffer, &places, &mut ends, &mut sink);
    assert_eq!((taken, sink.frames, bed.forwarders[1].counters.clamped.value()), (0, ROUNDS, ROUNDS as u64));
    bed.peer_mut(0, 1).unwrap().way_max = 1_232;
    let (offload, long) = superframe(mac(1, 1), mac(0, 1), &[7; 4_000], 1_400);
    let told = allocations(|| {
        for tick in 1..=ROUNDS as u32 {
            (ends.tick, _) = (tick, ends.wire.clear());
            assert!(bed.outbound(0, &offload, &long, &mut ends).is_some());
        }
    });
    assert_eq!(told, 0);
}
