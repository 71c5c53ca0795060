//! The frame path allocates nothing: counted, for each way a frame can take.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use meshnet_core::fib::{Fib, PeerSlot};
use meshnet_core::forward::join::Joiner;
use meshnet_core::forward::testbed::{Ends, Testbed, address, frame, mac, superframe};
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
            if let Inbound::Deliver { inner, frame, flow } = verdict {
                joiner.push(buffer, &inner, frame, flow, sink);
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
    let out = allocations(|| (0..ROUNDS).for_each(|_| bed.outbound(0, &Offload::default(), &bytes, &mut ends)));
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
    let out = allocations(|| (0..ROUNDS).for_each(|_| bed.outbound(0, &offload, &bytes, &mut ends)));
    assert_eq!((out, ends.wire.len()), (0, ROUNDS * 50));
    let (mut buffer, mut places) = received(&mut ends, 1);
    places.remove(70);
    let mut sink = Sink::default();
    let taken = take_in(&mut bed.forwarders[1], &bed.fibs[1], address(0), &mut buffer, &places, &mut ends, &mut sink);
    assert_eq!((taken, sink.frames), (0, ROUNDS + 1), "one hole makes two of one");
}

#[test]
fn relayed_there_and_passed_on() {
    let (mut bed, mut ends) = bed(4);
    bed.relay(0, &[1, 2], 3);
    let bytes = frame(mac(3, 1), mac(0, 1), &[7; 1_000]);
    let out = allocations(|| (0..ROUNDS).for_each(|_| bed.outbound(0, &Offload::default(), &bytes, &mut ends)));
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
    let out = allocations(|| (0..ROUNDS).for_each(|_| bed.outbound(0, &Offload::default(), &bytes, &mut ends)));
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
    let wished = allocations(|| (0..ROUNDS).for_each(|_| bed.outbound(0, &Offload::default(), &bytes, &mut ends)));
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
