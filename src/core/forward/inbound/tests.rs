use meshnet_proto::Mac;
use meshnet_proto::wire::data::{Gso, Offload};
use proptest::prelude::*;

use super::*;
use crate::fib::owners::mac_of;
use crate::fib::{PUNTS_PER_REFILL, STORM_BURST_FRAMES};
use crate::forward::seal_inner;
use crate::forward::testbed::*;
use crate::session::{Cipher, Marks};

const ALL: Mac = Mac([0xff; 6]);

fn bed(count: usize) -> (Testbed, Ends) {
    (Testbed::new(count, Cipher::ChaCha20Poly1305), Ends::default())
}

/// What machine `from` seals for machine `to`: an inner header and a body.
fn sealed(bed: &Testbed, from: usize, to: usize, inner: &Inner, body: &[u8]) -> Vec<u8> {
    let session = bed.fibs[from].peer(PeerSlot(to as u32)).unwrap().session.clone().unwrap();
    seal_inner(&session, 1, inner, body).unwrap()
}

fn flooded(origin: usize, sequence: u32, hops: u8, frame: &[u8]) -> (Inner, Vec<u8>) {
    let flood = Flood { origin: peer_id(origin).short(), incarnation: 7, hops, sequence };
    (Inner { flood: true, ..Inner::plain(InnerKind::Frame) }, [&flood.emit()[..], frame].concat())
}

/// Moves all that was sent to where it goes, until nothing is; gives what was delivered where.
fn settle(bed: &mut Testbed, from: usize, ends: &mut Ends) -> Vec<(usize, Vec<u8>)> {
    let mut delivered = Vec::new();
    let mut moving: Vec<_> = ends.wire.take().into_iter().map(|(to, datagram)| (from, to, datagram)).collect();
    while let Some((from, to, mut datagram)) = moving.pop() {
        let at = (0..bed.fibs.len()).find(|at| address(*at) == to).unwrap();
        if let Inbound::Deliver { frame, .. } = bed.inbound(at, address(from), &mut datagram, ends) {
            delivered.push((at, datagram[frame].to_vec()));
        }
        moving.extend(ends.wire.take().into_iter().map(|(to, datagram)| (at, to, datagram)));
    }
    delivered.sort();
    delivered
}

#[test]
fn verdicts() {
    let plain = Inner::plain(InnerKind::Frame);
    let offload = superframe(mac(1, 1), mac(0, 1), &[0; 3_000], 1_000).0;
    let segment = |index, count| Inner { kind: InnerKind::Segment, flood: false, offload, superframe: 1, index, count };
    let ok = frame(mac(1, 1), mac(0, 1), b"some payload");
    let body = |payload: usize| [&frame(mac(1, 1), mac(0, 1), &[0; 40])[..], &vec![1; payload]].concat();
    let csum = Offload { needs_csum: true, csum_start: 14, csum_offset: 10, ..Offload::default() };
    let link_local = frame("01:80:c2:00:00:02".parse().unwrap(), mac(0, 1), b"x");
    let no_csum = Offload { needs_csum: false, ..offload };
    let table: Vec<(&str, Inner, Vec<u8>, Option<DropReason>)> = vec![
        ("a frame", plain, ok.clone(), None),
        ("too short for Ethernet", plain, ok[..13].to_vec(), Some(DropReason::Malformed)),
        ("a group as source", plain, frame(mac(1, 1), ALL, b"x"), Some(DropReason::Malformed)),
        ("spanning tree", plain, link_local.clone(), Some(DropReason::LinkLocal)),
        ("a checksum to do", Inner { offload: csum, ..plain }, ok.clone(), None),
        ("a checksum outside", Inner { offload: csum, ..plain }, ok[..25].to_vec(), Some(DropReason::Malformed)),
        ("a segment", segment(0, 3), body(1_000), None),
        ("a short one in the middle", segment(1, 3), body(999), Some(DropReason::Malformed)),
        ("a short one at the end", segment(2, 3), body(999), None),
        ("one too long", segment(2, 3), body(1_001), Some(DropReason::Malformed)),
        ("one without payload", segment(2, 3), body(0), Some(DropReason::Malformed)),
        ("one cut in its header", segment(2, 3), ok.clone(), Some(DropReason::Malformed)),
        ("one beyond any super-frame", segment(70, 71), body(1_000), Some(DropReason::Malformed)),
        (
            "one with its checksum done",
            Inner { offload: no_csum, ..segment(0, 3) },
            body(1_000),
            Some(DropReason::Malformed),
        ),
        ("an index outside", segment(3, 3), body(1_000), Some(DropReason::Malformed)),
        ("a flooded frame of 0", flooded(0, 5, 3, &ok).0, flooded(0, 5, 3, &ok).1, None),
        ("of an unknown origin", flooded(9, 5, 3, &ok).0, flooded(9, 5, 3, &ok).1, Some(DropReason::UnknownOrigin)),
        ("of ourselves", flooded(1, 5, 3, &ok).0, flooded(1, 5, 3, &ok).1, Some(DropReason::Duplicate)),
        ("without hops", flooded(2, 5, 0, &ok).0, flooded(2, 5, 0, &ok).1, Some(DropReason::HopLimit)),
        ("with too many", flooded(2, 5, 17, &ok).0, flooded(2, 5, 17, &ok).1, Some(DropReason::Malformed)),
        ("cut in its header", flooded(2, 5, 3, &ok).0, vec![0; 15], Some(DropReason::Malformed)),
        (
            "a flooded link-local one",
            flooded(2, 5, 3, &link_local).0,
            flooded(2, 5, 3, &link_local).1,
            Some(DropReason::LinkLocal),
        ),
        (
            "a flooded probe",
            Inner { flood: true, ..Inner::plain(InnerKind::Probe) },
            vec![0; 40],
            Some(DropReason::Malformed),
        ),
    ];
    for (what, inner, body, wanted) in table {
        let (mut bed, mut ends) = bed(3);
        let mut datagram = sealed(&bed, 0, 1, &inner, &body);
        let verdict = bed.inbound(1, address(0), &mut datagram, &mut ends);
        for reason in DropReason::ALL {
            assert_eq!(bed.drops(1, reason) > 0, wanted == Some(reason), "{what}: {reason:?}");
        }
        assert_eq!(verdict == Inbound::Done, wanted.is_some(), "{what}: {verdict:?}");
        if let Inbound::Deliver { frame, .. } = verdict {
            assert!(body.ends_with(&datagram[frame]), "{what}");
            let counters = &bed.forwarders[1].counters;
            assert_eq!(counters.rx_frames.value(), 1);
        }
    }
}

#[test]
fn outer_verdicts() {
    let (mut bed, mut ends) = bed(3);
    let good = sealed(&bed, 0, 1, &Inner::plain(InnerKind::Frame), &frame(mac(1, 1), mac(0, 1), b"x"));
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let cases = [
        (vec![], DropReason::Malformed),
        (good[..15].to_vec(), DropReason::Malformed),
        (good[..31].to_vec(), DropReason::Malformed),
        (changed(0, 0x0f), DropReason::Malformed),
        (changed(2, 1), DropReason::Malformed),
        (changed(7, 9), DropReason::UnknownSession),
        (changed(4, 9), DropReason::UnknownSession),
        (changed(0, 0x11), DropReason::UnknownEpoch),
        (changed(1, 200), DropReason::Malformed),
        (changed(20, 9), DropReason::Forged),
    ];
    for (mut bytes, wanted) in cases {
        let before = bed.drops(1, wanted);
        assert_eq!(bed.inbound(1, address(0), &mut bytes, &mut ends), Inbound::Done);
        assert_eq!(bed.drops(1, wanted), before + 1, "{wanted:?}");
    }
    let mut quic = vec![0x40; 50];
    let wanted = Inbound::Quic { source: None, datagram: 0..50 };
    assert_eq!(bed.inbound(1, address(0), &mut quic, &mut ends), wanted);
    assert!(matches!(bed.inbound(1, address(0), &mut good.clone(), &mut ends), Inbound::Deliver { .. }));
    bed.inbound(1, address(0), &mut good.clone(), &mut ends);
    assert_eq!(bed.drops(1, DropReason::Replayed), 1);
    assert!(ends.punts.all.is_empty() && ends.wire.is_empty());
    let mut beyond = [0; 10];
    let (forwarder, fib) = (&mut bed.forwarders[1], &bed.fibs[1]);
    let range = 5..11;
    let end = forwarder.inbound(fib, 1, address(0), &mut beyond, range, &mut ends.wire, &mut ends.punts);
    assert_eq!(end, Inbound::Done);
}

#[test]
fn a_datagram_within_a_buffer_of_many() {
    let (mut bed, mut ends) = bed(2);
    let bytes = frame(mac(1, 1), mac(0, 1), b"x");
    let datagram = sealed(&bed, 0, 1, &Inner::plain(InnerKind::Frame), &bytes);
    let mut buffer = vec![0xee; 300];
    buffer[100..100 + datagram.len()].copy_from_slice(&datagram);
    let (forwarder, fib) = (&mut bed.forwarders[1], &bed.fibs[1]);
    let at = 100..100 + datagram.len();
    let verdict = forwarder.inbound(fib, 1, address(0), &mut buffer, at, &mut ends.wire, &mut ends.punts);
    let Inbound::Deliver { frame, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(buffer[frame], bytes);
    assert!(buffer[..100].iter().chain(&buffer[100 + datagram.len()..]).all(|byte| *byte == 0xee));
}

#[test]
fn sources_are_learned_from_what_comes() {
    let (mut bed, mut ends) = bed(4);
    bed.outbound(0, &Offload::default(), &frame(ALL, mac(0, 1), b"who has"), &mut ends);
    bed.flood(0, 0, &[1]);
    settle(&mut bed, 0, &mut ends);
    for at in 1..4 {
        let forwarder = &mut bed.forwarders[at];
        let owner = forwarder.fdb.lookup(&mut forwarder.cache, mac(0, 1), 1);
        assert_eq!(owner, Some(Owner::Peer(PeerSlot(0))), "the origin, whoever passed it on");
    }
    bed.outbound(2, &Offload::default(), &frame(mac(0, 1), mac(2, 1), b"me"), &mut ends);
    assert_eq!(settle(&mut bed, 2, &mut ends).len(), 1, "no flood any more");
    let forwarder = &mut bed.forwarders[0];
    assert_eq!(forwarder.fdb.lookup(&mut forwarder.cache, mac(2, 1), 1), Some(Owner::Peer(PeerSlot(2))));
}

#[test]
fn an_address_that_moves_too_often() {
    let (mut bed, mut ends) = bed(4);
    for round in 0..8 {
        let from = 1 + round % 2;
        let mut datagram = sealed(&bed, from, 0, &Inner::plain(InnerKind::Frame), &frame(mac(0, 1), mac(9, 1), b"x"));
        bed.inbound(0, address(from), &mut datagram, &mut ends);
    }
    assert!(bed.drops(0, DropReason::Damped) > 0);
}

#[test]
fn floods_reach_everybody_once_along_a_tree() {
    let (mut bed, mut ends) = bed(6);
    // 0 ── 1 ── 3 ── 5, 1 ── 4, 0 ── 2
    bed.flood(0, 0, &[1, 2]);
    bed.flood(0, 1, &[3, 4]);
    bed.flood(0, 3, &[5]);
    let bytes = frame(ALL, mac(0, 1), b"who has");
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    let delivered = settle(&mut bed, 0, &mut ends);
    assert_eq!(delivered, (1..6).map(|at| (at, bytes.clone())).collect::<Vec<_>>());
    let copies: u64 = bed.forwarders.iter().map(|forwarder| forwarder.counters.flooded.value()).sum();
    assert_eq!(copies, 5, "as many as there are others");
    for at in 0..6 {
        assert_eq!(DropReason::ALL.iter().map(|reason| bed.drops(at, *reason)).sum::<u64>(), 0);
    }
}

#[test]
fn floods_over_all_links_still_reach_everybody_once() {
    let (mut bed, mut ends) = bed(6);
    bed.fibs.iter_mut().for_each(|fib| fib.flood_all = true);
    let bytes = frame(ALL, mac(0, 1), b"who has");
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    let delivered = settle(&mut bed, 0, &mut ends);
    assert_eq!(delivered, (1..6).map(|at| (at, bytes.clone())).collect::<Vec<_>>());
    let duplicates: u64 = (0..6).map(|at| bed.drops(at, DropReason::Duplicate)).sum();
    assert!(duplicates > 0);
    assert_eq!(bed.drops(0, DropReason::Duplicate), 0, "nobody sends it back to its origin");
}

#[test]
fn a_loop_of_trees_ends() {
    let (mut bed, mut ends) = bed(4);
    // Tables that disagree: 1 → 2 → 3 → 1 and back to 0.
    bed.flood(0, 0, &[1]);
    bed.flood(0, 1, &[2]);
    bed.flood(0, 2, &[3]);
    bed.flood(0, 3, &[1, 0]);
    bed.outbound(0, &Offload::default(), &frame(ALL, mac(0, 1), b"x"), &mut ends);
    assert_eq!(settle(&mut bed, 0, &mut ends).len(), 3);
    assert_eq!(bed.drops(1, DropReason::Duplicate), 1);
}

#[test]
fn hops_end() {
    let (mut bed, mut ends) = bed(4);
    bed.flood(0, 1, &[2]);
    let (inner, body) = flooded(0, 0, 1, &frame(ALL, mac(0, 1), b"x"));
    let mut datagram = sealed(&bed, 0, 1, &inner, &body);
    assert!(matches!(bed.inbound(1, address(0), &mut datagram, &mut ends), Inbound::Deliver { .. }));
    assert_eq!((bed.drops(1, DropReason::HopLimit), ends.wire.len()), (1, 0));
    let (inner, body) = flooded(0, 1, 3, &frame(ALL, mac(0, 1), b"x"));
    bed.inbound(1, address(0), &mut sealed(&bed, 0, 1, &inner, &body), &mut ends);
    let (_, mut on) = ends.wire.take().remove(0);
    let outer = Outer::parse(&on).unwrap();
    let plain = bed.fibs[2].session(outer.index).unwrap().session.open(&outer, &mut on).unwrap();
    let flood = Flood::parse(&plain[INNER_BYTES..]).unwrap();
    assert_eq!(
        (flood.hops, flood.sequence, flood.origin),
        (2, 1, peer_id(0).short()),
        "one hop less, the rest as it was"
    );
}

#[test]
fn storms_of_others_end_at_their_budget() {
    let (mut bed, mut ends) = bed(3);
    let bytes = frame(ALL, mac(0, 1), b"x");
    for sequence in 0..STORM_BURST_FRAMES as u32 + 10 {
        let (inner, body) = flooded(0, sequence, 3, &bytes);
        let mut datagram = sealed(&bed, 0, 1, &inner, &body);
        bed.inbound(1, address(0), &mut datagram, &mut ends);
    }
    assert_eq!(bed.drops(1, DropReason::StormBudget), 10);
    let (inner, body) = flooded(2, 0, 3, &bytes);
    let mut datagram = sealed(&bed, 2, 1, &inner, &body);
    assert!(matches!(bed.inbound(1, address(2), &mut datagram, &mut ends), Inbound::Deliver { .. }), "of others");
}

#[test]
fn another_incarnation_is_another_origin() {
    let (mut bed, mut ends) = bed(3);
    bed.peer_mut(1, 0).unwrap().incarnation = 8;
    let (inner, body) = flooded(0, 0, 3, &frame(ALL, mac(0, 1), b"x"));
    let mut datagram = sealed(&bed, 0, 1, &inner, &body);
    bed.inbound(1, address(0), &mut datagram, &mut ends);
    assert_eq!(bed.drops(1, DropReason::UnknownOrigin), 1);
}

const FIRST: u32 = 0x0a20_0000;

/// `count` machines that own 16 addresses each, in turn.
fn owned(count: usize) -> (Testbed, Ends) {
    let (mut bed, ends) = bed(count);
    bed.own(FIRST, 16 * count as u32, 16);
    (bed, ends)
}

#[test]
fn nobody_speaks_for_the_address_of_another() {
    let nobodys = FIRST + 32;
    let table = [
        ("by its own address", frame(mac(1, 1), mac_of(FIRST + 5), b"x"), true),
        ("by a third one's", frame(mac(1, 1), mac_of(FIRST + 50), b"x"), false),
        ("by ours", frame(mac(1, 1), mac_of(FIRST + 16), b"x"), false),
        ("by nobody's", frame(mac(1, 1), mac_of(nobodys), b"x"), true),
        ("by one outside", frame(mac(1, 1), mac_of(FIRST + 64), b"x"), true),
        ("ARP for its own", arp_request(mac(0, 1), FIRST + 5, FIRST + 16), true),
        ("ARP in the name of a third one", arp_request(mac(0, 1), FIRST + 50, FIRST + 16), false),
        ("the same as an announcement", arp_request(mac(0, 1), FIRST + 50, FIRST + 50), false),
        ("ARP in our name", arp_request(mac(0, 1), FIRST + 16, FIRST + 17), false),
        ("ARP from nobody's", arp_request(mac(0, 1), nobodys, FIRST + 16), true),
        ("ARP from outside", arp_request(mac(0, 1), FIRST + 64, FIRST + 16), true),
        ("a probe", arp_request(mac(0, 1), 0, FIRST + 16), true),
    ];
    for (what, frame, taken) in table {
        for how in ["sent", "flooded", "relayed"] {
            let (mut bed, mut ends) = owned(4);
            for fib in &mut bed.fibs {
                let mut owners = (*fib.owners).clone();
                owners.runs[2].1 = fib::Owner::Nobody;
                fib.owners = owners.into();
            }
            let verdict = match how {
                "sent" => {
                    let mut datagram = sealed(&bed, 0, 1, &Inner::plain(InnerKind::Frame), &frame);
                    bed.inbound(1, address(0), &mut datagram, &mut ends)
                }
                "flooded" => {
                    // It comes by machine 3, whose addresses are no matter.
                    bed.flood(0, 1, &[2]);
                    let (inner, body) = flooded(0, 1, 5, &frame);
                    let mut datagram = sealed(&bed, 3, 1, &inner, &body);
                    let verdict = bed.inbound(1, address(3), &mut datagram, &mut ends);
                    assert_eq!(ends.wire.take().len(), 1, "{what}: passed on, as the next judges by its own map");
                    verdict
                }
                _ => {
                    let inside = sealed(&bed, 0, 1, &Inner::plain(InnerKind::Frame), &frame);
                    let mut datagram = relayed_by(&bed, 3, 0, &[3, 1], 1, &inside);
                    bed.inbound(1, address(3), &mut datagram, &mut ends)
                }
            };
            assert_eq!(matches!(verdict, Inbound::Deliver { .. }), taken, "{what}, {how}");
            assert_eq!(bed.drops(1, DropReason::NotOwner), u64::from(!taken), "{what}, {how}");
            assert!(taken || bed.forwarders[1].fdb.is_empty(), "{what}, {how}: learned of what was dropped");
        }
    }
}

#[test]
fn of_managed_addresses_nothing_is_learned() {
    let (mut bed, mut ends) = owned(3);
    for (source, learned) in [(mac_of(FIRST + 5), 0), (mac(0, 1), 1), (mac_of(FIRST + 48), 2)] {
        let plain = Inner::plain(InnerKind::Frame);
        let mut datagram = sealed(&bed, 0, 1, &plain, &frame(mac(1, 1), source, b"x"));
        assert!(matches!(bed.inbound(1, address(0), &mut datagram, &mut ends), Inbound::Deliver { .. }));
        assert_eq!(bed.forwarders[1].fdb.len(), learned, "{source}");
    }
}

#[test]
fn hosts_are_reached_by_the_address_that_follows_from_theirs() {
    let (mut bed, mut ends) = owned(2);
    let (host, real) = (FIRST + 17, mac(1, 9));
    let mut owners = (*bed.fibs[1].owners).clone();
    owners.hosts = vec![(host, real), (FIRST + 90, real)];
    bed.fibs[1].owners = owners.into();
    let station = mac_of(FIRST + 3);
    for (to, wanted) in [(host, real), (FIRST + 18, mac_of(FIRST + 18)), (FIRST + 90, mac_of(FIRST + 90))] {
        let (offload, bytes) = superframe(mac_of(to), station, &[7; 3_000], 1_000);
        bed.outbound(0, &offload, &bytes, &mut ends);
        bed.outbound(0, &Offload::default(), &frame(mac_of(to), station, b"x"), &mut ends);
        let mut frames = Frames::default();
        let mut joiner = crate::forward::join::Joiner::default();
        let mut buffer = Vec::new();
        let mut places = Vec::new();
        for (_, datagram) in ends.wire.take().iter().filter(|(at, _)| *at == address(1)) {
            places.push(buffer.len()..buffer.len() + datagram.len());
            buffer.extend_from_slice(datagram);
        }
        for place in places {
            let (forwarder, fib) = (&mut bed.forwarders[1], &bed.fibs[1]);
            let Ends { wire, punts, tick } = &mut ends;
            match forwarder.inbound(fib, *tick, address(0), &mut buffer, place, wire, punts) {
                Inbound::Deliver { inner, frame, flow } => joiner.push(&mut buffer, &inner, frame, flow, &mut frames),
                other => panic!("{other:?}"),
            }
        }
        joiner.flush(&mut buffer, &mut frames);
        let wanted = [[&wanted.0, &bytes[6..]].concat(), frame(wanted, station, b"x")];
        assert_eq!(frames.all.iter().map(|frame| frame.1.clone()).collect::<Vec<_>>(), wanted, "{to:x}");
    }
}

#[test]
fn relays_pass_on_what_they_cannot_read() {
    let (mut bed, mut ends) = bed(5);
    for via in [&[1][..], &[1, 2], &[1, 2, 3]] {
        bed.relay(0, via, 4);
        let forwarder = &mut bed.forwarders[0];
        forwarder.fdb.learn(&mut forwarder.cache, mac(4, 1), Owner::Peer(PeerSlot(4)), 1);
        let bytes = frame(mac(4, 1), mac(0, 1), b"the long way");
        bed.outbound(0, &Offload::default(), &bytes, &mut ends);
        assert_eq!(settle(&mut bed, 0, &mut ends), [(4, bytes)]);
    }
    let relayed: Vec<u64> = bed.forwarders.iter().map(|forwarder| forwarder.counters.relayed.value()).collect();
    assert_eq!(relayed, [0, 3, 2, 1, 0]);
    let traffic = |at: usize, of: u32| bed.fibs[at].peer(PeerSlot(of)).unwrap().traffic.clone();
    assert_eq!(traffic(4, 0).rx_relayed.load(Relaxed), 3);
    assert_eq!(traffic(4, 0).rx_direct.load(Relaxed), 0);
    assert_eq!(traffic(1, 0).rx_direct.load(Relaxed), 3, "its datagrams to the first relay are direct");
    assert!(ends.punts.all.is_empty(), "nobody moved");
}

#[test]
fn tampering_with_a_relayed_datagram() {
    let (mut bed, mut ends) = bed(3);
    bed.relay(0, &[1], 2);
    let forwarder = &mut bed.forwarders[0];
    forwarder.fdb.learn(&mut forwarder.cache, mac(2, 1), Owner::Peer(PeerSlot(2)), 1);
    bed.outbound(0, &Offload::default(), &frame(mac(2, 1), mac(0, 1), b"x"), &mut ends);
    let (_, good) = ends.wire.take().remove(0);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x04;
        let verdict = bed.inbound(1, address(0), &mut bad, &mut ends);
        assert_eq!(verdict, Inbound::Done, "byte {at}");
        let delivered = settle(&mut bed, 1, &mut ends);
        assert!(delivered.is_empty(), "byte {at}");
        // What the hop tag does not cover, the relay passes on, and the destination finds out.
        let covered = OUTER_BYTES + 12 + 16 + TAG_BYTES + HOP_INNER_BYTES;
        assert_eq!(bed.forwarders[1].counters.relayed.value() > 0, at >= covered, "byte {at}");
        if at >= covered {
            assert_eq!(bed.drops(2, DropReason::Forged), 1);
            return;
        }
    }
}

/// A RELAY datagram of machine 0 for machine 1, with this route, position and content. By hand, since no honest route can be as wrong as some.
fn relayed(bed: &Testbed, source: usize, hops: &[usize], position: u8, inside: &[u8]) -> Vec<u8> {
    relayed_by(bed, 0, source, hops, position, inside)
}

fn relayed_by(bed: &Testbed, by: usize, source: usize, hops: &[usize], position: u8, inside: &[u8]) -> Vec<u8> {
    let mut header = vec![hops.len() as u8, position, 0, 0];
    for peer in [&[source], hops].concat() {
        header.extend_from_slice(&peer_id(peer).short().0.to_be_bytes());
    }
    let mut datagram = [&[0; OUTER_BYTES][..], &header, &[0; TAG_BYTES], inside].concat();
    let before = datagram.len() - inside.len();
    let session = bed.fibs[by].peer(PeerSlot(1)).unwrap().session.clone().unwrap();
    // A tag over less than 16 bytes cannot be made: such a datagram is cut afterwards.
    datagram.resize(datagram.len().max(before + 16), 0);
    session.seal_hop(1, false, &mut datagram, header.len()).unwrap();
    datagram.truncate(before + inside.len());
    datagram
}

#[test]
fn relay_verdicts() {
    let data = [1; 64];
    type Row = (&'static str, usize, &'static [usize], u8, Vec<u8>, Option<DropReason>);
    let table: Vec<Row> = vec![
        ("passed on", 0, &[1, 2], 0, data.to_vec(), None),
        ("passed on from the middle", 3, &[0, 1, 2], 1, data.to_vec(), None),
        ("QUIC", 0, &[1, 2], 0, vec![0xc0; 1_200], None),
        ("not my place", 0, &[2, 1], 0, data.to_vec(), Some(DropReason::Malformed)),
        ("a hop twice", 0, &[1, 2, 1], 0, data.to_vec(), Some(DropReason::Malformed)),
        ("a later hop twice", 0, &[1, 2, 3, 2], 0, data.to_vec(), Some(DropReason::Malformed)),
        ("back to its source", 2, &[1, 2], 0, data.to_vec(), Some(DropReason::Malformed)),
        ("in the name of another", 3, &[1, 2], 0, data.to_vec(), Some(DropReason::Malformed)),
        ("a relay left out", 0, &[3, 1, 2], 1, data.to_vec(), Some(DropReason::Malformed)),
        ("an unknown next hop", 0, &[1, 9], 0, data.to_vec(), Some(DropReason::NoNextHop)),
        ("RELAY in RELAY", 0, &[1, 2], 0, vec![2; 64], Some(DropReason::Malformed)),
        ("RELAY in RELAY for me", 3, &[0, 1], 1, vec![2; 64], Some(DropReason::Malformed)),
        ("something else", 0, &[1, 2], 0, vec![0x0e; 64], Some(DropReason::Malformed)),
        ("too short inside", 0, &[1, 2], 0, vec![1; 15], Some(DropReason::Malformed)),
        ("an unknown session inside", 3, &[0, 1], 1, data.to_vec(), Some(DropReason::Malformed)),
        ("too long for the next hop", 0, &[1, 2], 0, vec![1; 1_500], Some(DropReason::TooBig)),
    ];
    for (what, source, hops, position, inside, wanted) in table {
        let (mut bed, mut ends) = bed(4);
        let mut datagram = relayed(&bed, source, hops, position, &inside);
        let verdict = bed.inbound(1, address(0), &mut datagram, &mut ends);
        assert_eq!(verdict, Inbound::Done, "{what}");
        for reason in DropReason::ALL {
            assert_eq!(bed.drops(1, reason) > 0, wanted == Some(reason), "{what}: {reason:?}");
        }
        assert_eq!(ends.wire.is_empty(), wanted.is_some(), "{what}");
    }
    let (mut bed, mut ends) = bed(4);
    bed.peer_mut(1, 2).unwrap().direct = None;
    let mut datagram = relayed(&bed, 0, &[1, 2], 0, &data);
    bed.inbound(1, address(0), &mut datagram, &mut ends);
    assert_eq!(bed.drops(1, DropReason::NoNextHop), 1, "no link to it");
}

#[test]
fn what_comes_by_relays_must_be_of_its_source_and_no_flood() {
    let (mut bed, mut ends) = bed(4);
    let bytes = frame(mac(1, 1), mac(3, 1), b"x");
    let of_three = sealed(&bed, 3, 1, &Inner::plain(InnerKind::Frame), &bytes);
    let mut lie = relayed(&bed, 2, &[0, 1], 1, &of_three);
    assert_eq!(bed.inbound(1, address(0), &mut lie, &mut ends), Inbound::Done);
    assert_eq!(bed.drops(1, DropReason::Malformed), 1);
    let mut truth = relayed(&bed, 3, &[0, 1], 1, &of_three);
    assert!(matches!(bed.inbound(1, address(0), &mut truth, &mut ends), Inbound::Deliver { .. }));
    let (inner, body) = flooded(3, 0, 3, &frame(ALL, mac(3, 1), b"x"));
    let flood = sealed(&bed, 3, 1, &inner, &body);
    let mut flood = relayed(&bed, 3, &[0, 1], 1, &flood);
    assert_eq!(bed.inbound(1, address(0), &mut flood, &mut ends), Inbound::Done);
    assert_eq!(bed.drops(1, DropReason::Malformed), 2);
}

#[test]
fn the_node_hears_of_probes_and_of_peers_that_moved() {
    let (mut bed, mut ends) = bed(2);
    for kind in [InnerKind::Probe, InnerKind::ProbeReply] {
        let mut datagram = sealed(&bed, 0, 1, &Inner::plain(kind), &[3; 24]);
        assert_eq!(bed.inbound(1, address(0), &mut datagram, &mut ends), Inbound::Done);
        let plaintext = [&Inner::plain(kind).emit()[..], &[3; 24]].concat();
        let probe = Punted::Probe { slot: PeerSlot(0), from: address(0), relayed: false, plaintext };
        assert_eq!(ends.punts.all.pop(), Some(probe));
    }
    assert!(ends.wire.is_empty(), "answered by the node alone");
    let bytes = frame(mac(1, 1), mac(0, 1), b"x");
    for (from, tick, told) in [(5, 1, true), (5, 1, false), (6, 1, true), (0, 1, false), (6, 2, true), (6, 2, false)] {
        let mut datagram = sealed(&bed, 0, 1, &Inner::plain(InnerKind::Frame), &bytes);
        ends.tick = tick;
        bed.inbound(1, address(from), &mut datagram, &mut ends);
        let roamed = Punted::Roamed { slot: PeerSlot(0), from: address(from) };
        assert_eq!(ends.punts.all.pop(), told.then_some(roamed), "from {from} at {tick}");
    }
    let mut forged = sealed(&bed, 0, 1, &Inner::plain(InnerKind::Frame), &bytes);
    forged[40] ^= 1;
    bed.inbound(1, address(7), &mut forged, &mut ends);
    assert!(ends.punts.all.is_empty(), "only the genuine can move a peer");
    ends.punts.limit = 0;
    let mut datagram = sealed(&bed, 0, 1, &Inner::plain(InnerKind::Probe), &[3; 24]);
    bed.inbound(1, address(0), &mut datagram, &mut ends);
    assert_eq!(bed.drops(1, DropReason::PuntFull), 1);
}

#[test]
fn segments_of_a_super_frame_have_one_flow() {
    let (mut bed, mut ends) = bed(3);
    let (offload, bytes) = superframe(ALL, mac(0, 1), &[1; 3_000], 1_000);
    bed.outbound(0, &offload, &bytes, &mut ends);
    let sent = ends.wire.take();
    let mut flows: Vec<u64> = Vec::new();
    for (to, mut datagram) in sent {
        if to == address(1)
            && let Inbound::Deliver { flow, inner, .. } = bed.inbound(1, address(0), &mut datagram, &mut ends)
        {
            assert_eq!((inner.flood, inner.offload.gso), (false, Gso::Tcp4));
            flows.push(flow);
        }
    }
    assert!(flows.len() == 3 && flows.iter().all(|flow| *flow == flows[0]));
}

proptest! {
    #[test]
    fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..200), first in 0u8..=3, index in 0u8..4) {
        let (mut bed, mut ends) = bed(3);
        if bytes.len() > 8 {
            bytes[0] = first;
            bytes[2..8].copy_from_slice(&[0, 0, 0xab, 0xcd, 0, index]);
        }
        bed.inbound(1, address(0), &mut bytes, &mut ends);
    }

    /// A genuine peer may write any plaintext.
    #[test]
    fn garbage_of_a_genuine_peer_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..6, flags in 0u8..16, gso in 0u8..6, origin in 0u16..4,
    ) {
        let (mut bed, mut ends) = bed(4);
        let mut plain = bytes;
        if plain.len() > 32 {
            [plain[0], plain[1], plain[2]] = [kind, flags, gso];
            plain[16..24].copy_from_slice(&peer_id(origin as usize).short().0.to_be_bytes());
            plain[24..28].copy_from_slice(&[0, 7, 3, 0]);
        }
        let mut datagram = [&[0; 16][..], &plain, &[0; 16]].concat();
        bed.fibs[0].peer(PeerSlot(1)).unwrap().session.clone().unwrap().seal(0, &mut datagram).unwrap();
        bed.inbound(1, address(0), &mut datagram, &mut ends);
        let mut outside = relayed(&bed, 0, &[1, 2], 0, &plain);
        bed.inbound(1, address(0), &mut outside, &mut ends);
    }
}

#[test]
fn one_peer_cannot_fill_the_way_to_the_node() {
    let (mut bed, mut ends) = bed(3);
    let probe = |bed: &Testbed, from: usize| sealed(bed, from, 1, &Inner::plain(InnerKind::Probe), &[0; 24]);
    for n in 0..5_000 {
        // Each from another port, so that each would also tell of a move.
        let from = SocketAddr::new(address(0).ip(), 10_000 + n);
        bed.inbound(1, from, &mut probe(&bed, 0), &mut ends);
    }
    assert!(ends.punts.all.len() <= PUNTS_PER_REFILL as usize, "{} went to the node", ends.punts.all.len());
    ends.punts.all.clear();
    bed.inbound(1, address(2), &mut probe(&bed, 2), &mut ends);
    assert_eq!(ends.punts.all.len(), 1, "another peer's probe");
}

#[test]
fn from_where_an_aside_datagram_came_says_nothing() {
    let (mut bed, mut ends) = bed(2);
    let bytes = frame(mac(1, 1), mac(0, 1), b"x");
    let aside = |bed: &Testbed, to: usize, inner: &Inner, body: &[u8]| {
        let session = bed.fibs[0].peer(PeerSlot(to as u32)).unwrap().session.clone().unwrap();
        let mut datagram = [&[0; OUTER_BYTES][..], &inner.emit(), body, &[0; TAG_BYTES]].concat();
        session.seal_as(2, Marks { urgent: false, aside: true }, &mut datagram).unwrap();
        datagram
    };
    let mut data = aside(&bed, 1, &Inner::plain(InnerKind::Frame), &bytes);
    assert!(matches!(bed.inbound(1, address(7), &mut data, &mut ends), Inbound::Deliver { .. }));
    assert!(ends.punts.all.is_empty(), "nobody moved");
    assert_eq!(bed.peer_mut(1, 0).unwrap().traffic.rx_direct.load(Relaxed), 0, "the main port may be dead");
    // A probe is answered to where the sender listens.
    let plain = Inner::plain(InnerKind::Probe);
    let mut probe = aside(&bed, 1, &plain, &[3; 24]);
    assert_eq!(bed.inbound(1, address(7), &mut probe, &mut ends), Inbound::Done);
    let plaintext = [&plain.emit()[..], &[3; 24]].concat();
    let punted = Punted::Probe { slot: PeerSlot(0), from: address(0), relayed: false, plaintext };
    assert_eq!(ends.punts.all.pop(), Some(punted));
    bed.peer_mut(1, 0).unwrap().direct = None;
    let mut probe = aside(&bed, 1, &plain, &[3; 24]);
    bed.inbound(1, address(7), &mut probe, &mut ends);
    assert_eq!((ends.punts.all.len(), bed.drops(1, DropReason::NoRoute)), (0, 1));
}
