use std::net::SocketAddr;

use meshnet_proto::wire::data::{OUTER_BYTES, Outer, OuterKind, Relay, TAG_BYTES};

use super::*;
use crate::fib::owners::mac_of;
use crate::fib::{Owners, Path, STORM_BURST_FRAMES};
use crate::forward::testbed::*;
use crate::forward::{Inbound, Punted};
use crate::session::Cipher;

fn bed(count: usize) -> (Testbed, Ends) {
    (Testbed::new(count, Cipher::Aes256Gcm), Ends::default())
}

/// Machine `at` knows address `n` of machine `of`.
fn knows(bed: &mut Testbed, at: usize, of: usize, n: u8) {
    let forwarder = &mut bed.forwarders[at];
    forwarder.fdb.learn(&mut forwarder.cache, mac(of, n), Owner::Peer(PeerSlot(of as u32)), 1);
}

/// Opens a DATA datagram at machine `at`; gives inner header and what follows.
fn opened(bed: &Testbed, at: usize, datagram: &[u8]) -> (Inner, Vec<u8>) {
    let mut datagram = datagram.to_vec();
    let outer = Outer::parse(&datagram).unwrap();
    assert_eq!(outer.kind, OuterKind::Data);
    let session = bed.fibs[at].session(outer.index).unwrap().session.clone();
    let plain = session.open(&outer, &mut datagram).unwrap();
    (Inner::parse(plain).unwrap(), plain[INNER_BYTES..].to_vec())
}

fn udp(port: u16, source: [u8; 4], destination: [u8; 4], vlan: bool) -> Vec<u8> {
    let mut payload = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    payload.extend_from_slice(&source);
    payload.extend_from_slice(&destination);
    payload.extend_from_slice(&[0x99, 0x99]);
    payload.extend_from_slice(&port.to_be_bytes());
    payload.extend_from_slice(&[0, 12, 0, 0, 1, 2, 3, 4]);
    let mut frame = [mac(1, 1).0, mac(0, 1).0].concat();
    if vlan {
        frame.extend_from_slice(&[0x81, 0, 0, 5]);
    }
    [&frame[..], &[0x08, 0], &payload].concat()
}

#[test]
fn verdicts() {
    let group = Mac([0x01, 0, 0x5e, 0, 0, 1]);
    let plain = Offload::default();
    let csum = Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..plain };
    let gso = |size, header_len| Offload { gso: Gso::Tcp4, gso_size: size, header_len, ..csum };
    let known = frame(mac(1, 1), mac(0, 1), &[7; 200]);
    let table: Vec<(&str, Offload, Vec<u8>, Option<DropReason>)> = vec![
        ("a known address", plain, known.clone(), None),
        ("an unknown address", plain, frame(mac(2, 9), mac(0, 1), b"x"), None),
        ("broadcast", plain, frame(Mac([0xff; 6]), mac(0, 1), b"x"), None),
        ("shorter than a header", plain, known[..13].to_vec(), Some(DropReason::Malformed)),
        ("nothing", plain, vec![], Some(DropReason::Malformed)),
        (
            "spanning tree",
            plain,
            frame("01:80:c2:00:00:00".parse().unwrap(), mac(0, 1), b"x"),
            Some(DropReason::LinkLocal),
        ),
        ("LLDP", plain, frame("01:80:c2:00:00:0e".parse().unwrap(), mac(0, 1), b"x"), Some(DropReason::LinkLocal)),
        ("just above link-local", plain, frame("01:80:c2:00:00:10".parse().unwrap(), mac(0, 1), b"x"), None),
        ("our own machine", plain, frame(mac(0, 2), mac(0, 1), b"x"), Some(DropReason::Local)),
        ("a group as source", plain, frame(mac(1, 1), group, b"x"), Some(DropReason::Malformed)),
        ("the underlay, to a peer", plain, udp(PORT, [9, 9, 9, 9], [192, 0, 2, 2], false), Some(DropReason::Underlay)),
        ("the same in a VLAN", plain, udp(PORT, [9, 9, 9, 9], [192, 0, 2, 2], true), Some(DropReason::Underlay)),
        ("another port", plain, udp(PORT + 1, [9, 9, 9, 9], [192, 0, 2, 2], false), None),
        ("another address", plain, udp(PORT, [192, 0, 2, 2], [9, 9, 9, 9], false), None),
        ("the largest that fits", plain, frame(mac(1, 1), mac(0, 1), &vec![0; 1_472 - 48 - 14]), None),
        ("one more", plain, frame(mac(1, 1), mac(0, 1), &vec![0; 1_472 - 48 - 13]), None),
        ("more than goes into fragments", plain, frame(mac(4, 1), mac(0, 1), &[0; 900]), Some(DropReason::TooBig)),
        ("a checksum to do", csum, known.clone(), None),
        ("a checksum outside", Offload { csum_start: 213, ..csum }, known.clone(), Some(DropReason::Malformed)),
        ("a super-frame", gso(50, 54), known.clone(), None),
        ("of size 0", gso(0, 54), known.clone(), Some(DropReason::Malformed)),
        ("with a header longer than itself", gso(50, 215), known.clone(), Some(DropReason::Malformed)),
        ("without payload", gso(50, 214), known.clone(), Some(DropReason::Malformed)),
        ("whose header nobody knows", gso(50, 0), known.clone(), Some(DropReason::Malformed)),
        (
            "with a checksum that is done",
            Offload { needs_csum: false, ..gso(50, 54) },
            known.clone(),
            Some(DropReason::Malformed),
        ),
        ("of segments that do not fit", gso(1_400, 54), frame(mac(1, 1), mac(0, 1), &vec![0; 4_000]), None),
        ("of too many segments", gso(1, 54), frame(mac(1, 1), mac(0, 1), &vec![0; 4_000]), Some(DropReason::Malformed)),
        ("longer than any", plain, vec![0; 70_000], Some(DropReason::Malformed)),
    ];
    for (what, offload, bytes, wanted) in table {
        let (mut bed, mut ends) = bed(3);
        knows(&mut bed, 0, 1, 1);
        let forwarder = &mut bed.forwarders[0];
        forwarder.fdb.learn(&mut forwarder.cache, mac(0, 2), Owner::Local, 1);
        forwarder.fdb.learn(&mut forwarder.cache, mac(4, 1), Owner::Peer(PeerSlot(2)), 1);
        bed.peer_mut(0, 2).unwrap().way_max = 60;
        bed.outbound(0, &offload, &bytes, &mut ends);
        for reason in DropReason::ALL {
            let drops = bed.drops(0, reason);
            assert_eq!(drops > 0, wanted == Some(reason), "{what}: {reason:?} {drops}");
        }
        assert_eq!(ends.wire.is_empty(), wanted.is_some(), "{what}");
    }
}

#[test]
fn the_underlay_over_ipv6() {
    let (mut bed, mut ends) = bed(2);
    bed.fibs[0].underlay = vec!["::ffff:192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()];
    let mut payload = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
    payload.extend_from_slice(&"2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    payload.extend_from_slice(&[7; 16]);
    payload.extend_from_slice(&PORT.to_be_bytes());
    payload.extend_from_slice(&[1, 1, 0, 12, 0, 0, 1, 2, 3, 4]);
    let frame = [&mac(1, 1).0[..], &mac(0, 1).0, &[0x86, 0xdd], &payload].concat();
    bed.outbound(0, &Offload::default(), &frame, &mut ends);
    bed.outbound(0, &Offload::default(), &udp(PORT, [9, 9, 9, 9], [192, 0, 2, 2], false), &mut ends);
    assert_eq!(bed.drops(0, DropReason::Underlay), 2, "by its source, and by an address in the form for both families");
}

#[test]
fn a_known_address_by_the_direct_path() {
    let (mut bed, mut ends) = bed(3);
    knows(&mut bed, 0, 1, 1);
    let offload = Offload { needs_csum: true, data_valid: true, csum_start: 14, csum_offset: 2, ..Offload::default() };
    let bytes = frame(mac(1, 1), mac(0, 1), b"hello over there");
    bed.outbound(0, &offload, &bytes, &mut ends);
    let sent = ends.wire.take();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, address(1));
    let (inner, rest) = opened(&bed, 1, &sent[0].1);
    assert_eq!((inner.kind, inner.flood, inner.offload, inner.count), (InnerKind::Frame, false, offload, 1));
    assert_eq!(rest, bytes);
    let counters = &bed.forwarders[0].counters;
    assert_eq!((counters.tx_frames.value(), counters.tx_bytes.value()), (1, bytes.len() as u64));
    let traffic = &bed.fibs[0].peer(PeerSlot(1)).unwrap().traffic;
    assert_eq!((traffic.tx_direct.load(Relaxed), traffic.tx_relayed.load(Relaxed)), (1, 0));
}

#[test]
fn a_super_frame_is_cut_on_its_segments() {
    for (payload, pieces) in [(5_000, 4), (4_104, 3), (1, 1), (1_368, 1), (1_369, 2)] {
        let (mut bed, mut ends) = bed(2);
        knows(&mut bed, 0, 1, 1);
        let payload: Vec<u8> = (0..payload).map(|i| i as u8).collect();
        let (offload, bytes) = superframe(mac(1, 1), mac(0, 1), &payload, 1_368);
        bed.outbound(0, &Offload { header_len: 0, ..offload }, &bytes, &mut ends);
        bed.outbound(0, &offload, &bytes, &mut ends);
        let sent = ends.wire.take();
        assert_eq!(sent.len(), 2 * pieces);
        for (number, sent) in sent.chunks(pieces).enumerate() {
            let mut joined = bytes[..54].to_vec();
            for (index, (_, datagram)) in sent.iter().enumerate() {
                let (inner, rest) = opened(&bed, 1, datagram);
                assert_eq!((inner.kind, inner.offload), (InnerKind::Segment, offload));
                assert_eq!((inner.superframe, inner.index, inner.count), (number as u16, index as u16, pieces as u16));
                assert_eq!(rest[..54], bytes[..54]);
                joined.extend_from_slice(&rest[54..]);
            }
            assert_eq!(joined, bytes);
        }
        assert_eq!(bed.forwarders[0].counters.tx_frames.value(), 2 * pieces as u64);
        assert_eq!(bed.forwarders[0].counters.tx_bytes.value(), 2 * (pieces * 54 + payload.len()) as u64);
    }
}

#[test]
fn by_relays_it_is_sealed_for_the_destination_and_tagged_for_the_first_hop() {
    let (mut bed, mut ends) = bed(4);
    knows(&mut bed, 0, 3, 1);
    bed.relay(0, &[1, 2], 3);
    let bytes = frame(mac(3, 1), mac(0, 1), b"the long way");
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    let sent = ends.wire.take();
    assert_eq!(sent[0].0, address(1));
    let outer = Outer::parse(&sent[0].1).unwrap();
    let (relay, relay_bytes) = Relay::parse(&sent[0].1[OUTER_BYTES..]).unwrap();
    assert_eq!((outer.kind, relay.position, relay.source), (OuterKind::Relay, 0, peer_id(0).short()));
    assert_eq!(relay.route.hops(), [1, 2, 3].map(|hop| peer_id(hop).short()));
    bed.fibs[1].session(outer.index).unwrap().session.open_hop(&outer, &sent[0].1, relay_bytes).unwrap();
    let inside = &sent[0].1[OUTER_BYTES + relay_bytes + TAG_BYTES..];
    assert_eq!(opened(&bed, 3, inside).1, bytes);
    let mut tampered = inside.to_vec();
    let outer = Outer::parse(inside).unwrap();
    for entry in bed.fibs[1].sessions.iter().flatten() {
        assert!(entry.session.open(&outer, &mut tampered).is_err(), "no relay can read it");
    }
    let traffic = &bed.fibs[0].peer(PeerSlot(3)).unwrap().traffic;
    assert_eq!((traffic.tx_direct.load(Relaxed), traffic.tx_relayed.load(Relaxed)), (0, 1));
    let long = frame(mac(3, 1), mac(0, 1), &vec![0; 1_472 - 48 - 14 - 67]);
    ends.wire.clear();
    bed.outbound(0, &Offload::default(), &long, &mut ends);
    assert_eq!(ends.wire.len(), 2, "with its relay header it is too long for one");
}

#[test]
fn without_a_way() {
    let frame = frame(mac(1, 1), mac(0, 1), b"x");
    type Case = (&'static str, fn(&mut Testbed), DropReason, Vec<Punted>);
    let cases: [Case; 5] = [
        ("no path", |bed| bed.peer_mut(0, 1).unwrap().path = Path::None, DropReason::NoRoute, vec![]),
        ("no peer", |bed| bed.fibs[0].peers[1] = None, DropReason::NoRoute, vec![]),
        (
            "no session",
            |bed| bed.peer_mut(0, 1).unwrap().session = None,
            DropReason::NoSession,
            vec![Punted::SessionWanted(PeerSlot(1))],
        ),
        (
            "no session with the first relay",
            |bed| {
                bed.relay(0, &[2], 1);
                bed.peer_mut(0, 2).unwrap().session = None;
            },
            DropReason::NoSession,
            vec![Punted::SessionWanted(PeerSlot(2))],
        ),
        (
            "no link to the first relay",
            |bed| {
                bed.relay(0, &[2], 1);
                bed.peer_mut(0, 2).unwrap().direct = None;
            },
            DropReason::NoRoute,
            vec![],
        ),
    ];
    for (what, change, wanted, punted) in cases {
        let (mut bed, mut ends) = bed(3);
        knows(&mut bed, 0, 1, 1);
        change(&mut bed);
        for _ in 0..5 {
            bed.outbound(0, &Offload::default(), &frame, &mut ends);
        }
        assert_eq!(bed.drops(0, wanted), 5, "{what}");
        assert_eq!(ends.punts.all, punted, "{what}: once a tick");
        assert!(ends.wire.is_empty());
    }
}

#[test]
fn full_rings_and_batches_are_counted() {
    let (mut bed, mut ends) = bed(2);
    knows(&mut bed, 0, 1, 1);
    let (offload, bytes) = superframe(mac(1, 1), mac(0, 1), &[0; 5_000], 1_000);
    ends.wire = Wire::with_room(3_000);
    bed.outbound(0, &offload, &bytes, &mut ends);
    assert_eq!((ends.wire.len(), bed.drops(0, DropReason::SendFull)), (2, 3));
    assert_eq!(bed.forwarders[0].counters.tx_frames.value(), 2);
    ends.punts.limit = 0;
    bed.peer_mut(0, 1).unwrap().session = None;
    bed.outbound(0, &offload, &bytes, &mut ends);
    assert_eq!(bed.drops(0, DropReason::PuntFull), 1);
}

#[test]
fn a_used_up_lane() {
    let (mut bed, mut ends) = bed(2);
    knows(&mut bed, 0, 1, 1);
    let session = bed.fibs[0].peer(PeerSlot(1)).unwrap().session.clone().unwrap();
    session.tx.lanes[0].counter.store(crate::session::window::COUNTER_MAX, Relaxed);
    bed.outbound(0, &Offload::default(), &frame(mac(1, 1), mac(0, 1), b"x"), &mut ends);
    assert_eq!(bed.drops(0, DropReason::Exhausted), 1);
    assert!(ends.wire.is_empty());
}

#[test]
fn floods_go_along_the_tree_or_over_all_links() {
    let (mut bed, mut ends) = bed(5);
    bed.flood(0, 0, &[2, 4]);
    let bytes = frame(Mac([0xff; 6]), mac(0, 1), b"who has");
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    let tree = ends.wire.take();
    assert_eq!(tree.iter().map(|sent| sent.0).collect::<Vec<SocketAddr>>(), [address(2), address(4)]);
    bed.fibs[0].flood_all = true;
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    let all = ends.wire.take();
    assert_eq!(all.iter().map(|sent| sent.0).collect::<Vec<SocketAddr>>(), [1, 2, 3, 4].map(address));
    for (number, at, datagram) in [(0, 2, &tree[0].1), (0, 4, &tree[1].1), (1, 1, &all[0].1), (1, 4, &all[3].1)] {
        let (inner, rest) = opened(&bed, at, datagram);
        assert!(inner.flood);
        let flood = Flood::parse(&rest).unwrap();
        let wanted = Flood { origin: peer_id(0).short(), incarnation: 7, hops: FLOOD_HOPS_MAX, sequence: number };
        assert_eq!(flood, wanted);
        assert_eq!(rest[FLOOD_BYTES..], bytes);
    }
    let counters = &bed.forwarders[0].counters;
    assert_eq!((counters.tx_frames.value(), counters.flooded.value()), (2, 6));
    bed.peer_mut(0, 3).unwrap().direct = None;
    bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    assert_eq!((ends.wire.len(), bed.drops(0, DropReason::NoNextHop)), (3, 1));
}

#[test]
fn a_flooded_super_frame_numbers_its_segments() {
    let (mut bed, mut ends) = bed(3);
    let (offload, bytes) = superframe(Mac([0x01, 0, 0x5e, 0, 0, 9]), mac(0, 1), &[3; 2_500], 1_000);
    bed.outbound(0, &offload, &bytes, &mut ends);
    bed.outbound(0, &Offload::default(), &frame(Mac([0xff; 6]), mac(0, 1), b"x"), &mut ends);
    let sent = ends.wire.take();
    let numbers: Vec<u32> = sent
        .iter()
        .map(|(to, datagram)| {
            let at = if *to == address(1) { 1 } else { 2 };
            Flood::parse(&opened(&bed, at, datagram).1).unwrap().sequence
        })
        .collect();
    assert_eq!(numbers, [0, 1, 2, 0, 1, 2, 3, 3]);
}

/// Three machines that own 16 addresses each, in turn.
fn owned() -> (Testbed, Ends) {
    let (mut bed, ends) = bed(3);
    bed.own(FIRST, 48, 16);
    (bed, ends)
}

const FIRST: u32 = 0x0a20_0000;
const ALL: Mac = Mac([0xff; 6]);

#[test]
fn a_managed_address_leads_to_its_owner() {
    let (mut bed, mut ends) = owned();
    let station = mac_of(FIRST + 3);
    for (to, wanted) in [(FIRST + 16, 1), (FIRST + 31, 1), (FIRST + 32, 2)] {
        bed.outbound(0, &Offload::default(), &frame(mac_of(to), station, b"x"), &mut ends);
        let sent = ends.wire.take();
        assert_eq!(sent.iter().map(|sent| sent.0).collect::<Vec<_>>(), [address(wanted)], "{to:x}: never flooded");
    }
    let (offload, bytes) = superframe(mac_of(FIRST + 20), station, &[7; 5_000], 1_000);
    bed.outbound(0, &offload, &bytes, &mut ends);
    assert_eq!(ends.wire.take().len(), 5);
    bed.relay(0, &[2], 1);
    bed.outbound(0, &Offload::default(), &frame(mac_of(FIRST + 16), station, b"x"), &mut ends);
    assert_eq!(ends.wire.take()[0].0, address(2), "by a relay");
    assert!(bed.forwarders[0].fdb.is_empty(), "nothing is learned of a managed address");
    bed.outbound(0, &Offload::default(), &frame(mac_of(FIRST + 4), station, b"x"), &mut ends);
    assert_eq!((ends.wire.len(), bed.drops(0, DropReason::Local)), (0, 1), "the bridge delivers it, or nobody has it");
}

#[test]
fn what_was_learned_of_an_address_before_does_not_count() {
    let (mut bed, mut ends) = owned();
    for to in [FIRST + 4, FIRST + 20] {
        let forwarder = &mut bed.forwarders[0];
        forwarder.fdb.learn(&mut forwarder.cache, mac_of(to), Owner::Peer(PeerSlot(2)), 1);
        bed.outbound(0, &Offload::default(), &frame(mac_of(to), mac(0, 1), b"x"), &mut ends);
    }
    assert_eq!(ends.wire.take().iter().map(|sent| sent.0).collect::<Vec<_>>(), [address(1)]);
    assert_eq!(bed.drops(0, DropReason::Local), 1);
}

#[test]
fn what_nobody_owns_is_learned_and_flooded() {
    let (mut bed, mut ends) = owned();
    let mut owners = (*bed.fibs[0].owners).clone();
    owners.runs[1].1 = fib::Owner::Nobody;
    bed.fibs[0].owners = owners.into();
    let to = frame(mac_of(FIRST + 20), mac_of(FIRST + 21), b"x");
    bed.outbound(0, &Offload::default(), &to, &mut ends);
    assert_eq!((ends.wire.take().len(), bed.forwarders[0].fdb.len()), (2, 1));
    let forwarder = &mut bed.forwarders[0];
    forwarder.fdb.learn(&mut forwarder.cache, mac_of(FIRST + 20), Owner::Peer(PeerSlot(2)), 1);
    bed.outbound(0, &Offload::default(), &to, &mut ends);
    assert_eq!(ends.wire.take()[0].0, address(2), "where it was learned");
}

#[test]
fn no_station_speaks_for_the_address_of_a_peer() {
    let (mut bed, mut ends) = owned();
    let peers = mac_of(FIRST + 16);
    let frames = [
        frame(mac_of(FIRST + 32), peers, b"x"),
        frame(ALL, peers, b"x"),
        arp_request(peers, FIRST + 3, FIRST + 32),
        arp_request(mac(0, 1), FIRST + 16, FIRST + 32),
    ];
    for (at, frame) in frames.iter().enumerate() {
        assert_eq!(bed.outbound(0, &Offload::default(), frame, &mut ends), None);
        assert_eq!((bed.drops(0, DropReason::NotOwner), ends.wire.len()), (at as u64 + 1, 0));
    }
    let mut tagged = frames[3].clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    bed.outbound(0, &Offload::default(), &tagged, &mut ends);
    assert_eq!(ends.wire.take().len(), 2, "a VLAN is another network");
    // An exposed host speaks for its address with its own MAC address.
    bed.outbound(0, &Offload::default(), &frame(mac_of(FIRST + 32), mac(0, 9), b"x"), &mut ends);
    assert_eq!(ends.wire.take().len(), 1);
}

#[test]
fn arp_for_the_range_ends_here() {
    let (mut bed, mut ends) = owned();
    let (asker, me) = (mac_of(FIRST + 3), FIRST + 3);
    for sender in [me, 0] {
        let answer = bed.outbound(0, &Offload::default(), &arp_request(asker, sender, FIRST + 40), &mut ends).unwrap();
        assert_eq!((&answer[..6], &answer[6..12]), (&asker.0[..], &mac_of(FIRST + 40).0[..]));
        assert_eq!(answer[38..], sender.to_be_bytes());
    }
    let counters = bed.forwarders[0].counters.clone();
    let counted = |bed: &Testbed| {
        [DropReason::Local, DropReason::NotOwner, DropReason::Unowned].map(|reason| bed.drops(0, reason))
    };
    assert_eq!((counters.answered.value(), counted(&bed)), (2, [0; 3]));
    for target in [FIRST + 4, me] {
        assert_eq!(bed.outbound(0, &Offload::default(), &arp_request(asker, me, target), &mut ends), None);
    }
    assert_eq!((counters.answered.value(), counted(&bed)), (2, [2, 0, 0]), "ours, and the announcement of ours");
    let squatter = bed.outbound(0, &Offload::default(), &arp_request(mac(0, 7), FIRST + 40, FIRST + 40), &mut ends);
    assert_eq!(squatter.unwrap()[6..12], mac_of(FIRST + 40).0, "who takes a peer's address hears of it");
    assert_eq!((counters.answered.value(), counted(&bed)), (3, [2, 1, 0]));
    assert!(ends.wire.is_empty(), "nothing crossed");
    bed.outbound(0, &Offload::default(), &arp_request(asker, me, FIRST + 48), &mut ends);
    assert_eq!(ends.wire.take().len(), 2, "outside the range: flooded");
    let mut owners = (*bed.fibs[0].owners).clone();
    owners.runs.truncate(2);
    owners.runs.push((FIRST + 32, fib::Owner::Nobody));
    bed.fibs[0].owners = owners.into();
    assert_eq!(bed.outbound(0, &Offload::default(), &arp_request(asker, me, FIRST + 40), &mut ends), None);
    assert_eq!((ends.wire.len(), counted(&bed)), (0, [2, 1, 1]));
}

#[test]
fn arp_is_as_ever_when_nobody_owns_anything() {
    for owners in [Owners::default(), Owners { first: FIRST, last: FIRST + 47, ..Owners::default() }] {
        let (mut bed, mut ends) = bed(3);
        bed.fibs[0].owners = owners.into();
        for (sender, target) in [(3, 40), (40, 40), (0, 3)] {
            let frame = arp_request(mac_of(FIRST + 3), FIRST + sender, FIRST + target);
            assert_eq!(bed.outbound(0, &Offload::default(), &frame, &mut ends), None);
            assert_eq!(ends.wire.take().len(), 2);
        }
        assert_eq!(bed.forwarders[0].fdb.len(), 1);
        assert!(DropReason::ALL.iter().all(|reason| bed.drops(0, *reason) == 0));
    }
}

#[test]
fn arp_of_a_group_is_not_answered() {
    let (mut bed, mut ends) = owned();
    let frame = arp_request(Mac([0x01, 0, 0x5e, 0, 0, 1]), FIRST + 3, FIRST + 40);
    assert_eq!(bed.outbound(0, &Offload::default(), &frame, &mut ends), None);
    assert_eq!(bed.drops(0, DropReason::Malformed), 1);
}

#[test]
fn the_kernel_is_offered_an_address_once_a_tick_while_the_fast_path_is_on() {
    let (mut bed, mut ends) = bed(3);
    for n in 1..4 {
        knows(&mut bed, 0, 1, n);
    }
    knows(&mut bed, 0, 2, 1);
    let fast = |on| {
        let address = std::net::Ipv4Addr::new(192, 0, 2, 1);
        vec![fib::FastPeer { slot: PeerSlot(1), id: peer_id(1), address, port: 6784, on }]
    };
    let mut offered = |fast: Vec<fib::FastPeer>, tick: u32, to: &[Mac]| {
        bed.fibs[0].fast = fast;
        ends.tick = tick;
        for to in to {
            bed.outbound(0, &Offload::default(), &frame(*to, mac_of(77), b"x"), &mut ends);
        }
        std::mem::take(&mut ends.punts.all)
    };
    let offer = |n| Punted::Fast { slot: PeerSlot(1), mac: mac(1, n) };
    let all = [mac(1, 1), mac(1, 2), mac(1, 1), mac(1, 2), mac(2, 1)];
    assert_eq!(offered(vec![], 5, &all), []);
    assert_eq!(offered(fast(false), 5, &all), [], "agreed, not proven");
    assert_eq!(offered(fast(true), 5, &all), [offer(1), offer(2)]);
    assert_eq!(offered(fast(true), 5, &all), [], "told");
    assert_eq!(offered(fast(true), 6, &all), [offer(1), offer(2)], "should it have been lost");
    // Broadcast and unknown addresses are never offered.
    assert_eq!(offered(fast(true), 7, &[Mac([0xff; 6]), mac(1, 9)]), []);
}

#[test]
fn own_storms_end_at_the_budget() {
    let (mut bed, mut ends) = bed(2);
    let bytes = frame(Mac([0xff; 6]), mac(0, 1), b"x");
    for _ in 0..STORM_BURST_FRAMES + 10 {
        bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    }
    assert_eq!(ends.wire.len(), STORM_BURST_FRAMES as usize);
    assert_eq!(bed.drops(0, DropReason::StormBudget), 10);
    assert!(bed.fibs[0].own_flood.exceeded.load(Relaxed));
    bed.fibs[0].own_flood.storm.refill(5);
    for _ in 0..10 {
        bed.outbound(0, &Offload::default(), &bytes, &mut ends);
    }
    assert_eq!(ends.wire.len(), STORM_BURST_FRAMES as usize + 5);
}

#[test]
fn an_address_that_moves_too_often() {
    let (mut bed, mut ends) = bed(2);
    bed.outbound(0, &Offload::default(), &frame(Mac([0xff; 6]), mac(0, 1), b"x"), &mut ends);
    for _ in 0..6 {
        let forwarder = &mut bed.forwarders[0];
        forwarder.fdb.learn(&mut forwarder.cache, mac(0, 1), Owner::Peer(PeerSlot(1)), 1);
        bed.outbound(0, &Offload::default(), &frame(Mac([0xff; 6]), mac(0, 1), b"x"), &mut ends);
    }
    assert!(bed.drops(0, DropReason::Damped) > 0);
    assert!(ends.wire.len() <= 4);
}

#[test]
fn the_node_wraps_what_it_sends_by_relays() {
    use crate::forward::{seal_inner, wrap_relayed};
    let (mut bed, mut ends) = bed(3);
    bed.relay(0, &[1], 2);
    let mut wrapped = Vec::new();
    let quic = [0xc0; 1_200];
    let to = wrap_relayed(&bed.fibs[0], 2, peer_id(2).short(), &quic, &mut wrapped);
    assert_eq!(to, Some(address(1)));
    assert_eq!(bed.inbound(1, address(0), &mut wrapped, &mut ends), Inbound::Done);
    let (to, mut last) = ends.wire.take().remove(0);
    assert_eq!(to, address(2));
    let Inbound::Quic { source, datagram } = bed.inbound(2, address(1), &mut last, &mut ends) else { panic!() };
    assert_eq!((source, &last[datagram]), (Some(peer_id(0).short()), &quic[..]));
    assert_eq!(wrap_relayed(&bed.fibs[0], 2, peer_id(1).short(), &quic, &mut wrapped), None, "direct");
    assert_eq!(wrap_relayed(&bed.fibs[0], 2, peer_id(9).short(), &quic, &mut wrapped), None, "unknown");

    let session = bed.fibs[0].peer(PeerSlot(2)).unwrap().session.clone().unwrap();
    let probe = seal_inner(&session, 2, &Inner::plain(InnerKind::Probe), &[5; 24]).unwrap();
    wrap_relayed(&bed.fibs[0], 2, peer_id(2).short(), &probe, &mut wrapped).unwrap();
    bed.inbound(1, address(0), &mut wrapped, &mut ends);
    let (_, mut last) = ends.wire.take().remove(0);
    assert_eq!(bed.inbound(2, address(1), &mut last, &mut ends), Inbound::Done);
    let plaintext = [&Inner::plain(InnerKind::Probe).emit()[..], &[5; 24]].concat();
    let wanted = Punted::Probe { slot: PeerSlot(0), from: address(1), relayed: true, plaintext };
    assert_eq!(ends.punts.all, [wanted]);
    assert_eq!(crate::forward::lane_node(1), 2);
}

#[test]
fn other_workers_than_the_first_send_aside_where_that_passes() {
    let (mut bed, mut ends) = bed(3);
    knows(&mut bed, 0, 1, 1);
    let bytes = frame(mac(1, 1), mac(0, 1), b"x");
    let sent = |bed: &mut Testbed, ends: &mut Ends| {
        bed.outbound(0, &Offload::default(), &bytes, ends);
        let (to, datagram) = ends.wire.take().pop().unwrap();
        (to, Outer::parse(&datagram).unwrap().aside, datagram)
    };
    for (lane, spread, aside) in
        [(0, false, false), (0, true, false), (1, true, false), (2, false, false), (2, true, true)]
    {
        bed.forwarders[0].lane = lane;
        bed.peer_mut(0, 1).unwrap().spread = spread;
        assert_eq!(sent(&mut bed, &mut ends).1, aside, "lane {lane}, spread {spread}");
    }
    // Through a relay: the first hop counts, and only the outermost header says so.
    bed.relay(0, &[2], 1);
    assert!(!sent(&mut bed, &mut ends).1);
    bed.peer_mut(0, 2).unwrap().spread = true;
    let (to, aside, mut datagram) = sent(&mut bed, &mut ends);
    assert_eq!((to, aside), (address(2), true));
    assert_eq!(bed.inbound(2, address(7), &mut datagram, &mut ends), Inbound::Done);
    assert!(ends.punts.all.is_empty(), "the relay does not take it for a move");
    let (to, mut passed) = ends.wire.take().pop().unwrap();
    assert_eq!((to, Outer::parse(&passed).unwrap().aside), (address(1), false), "of the relay's first worker");
    assert!(matches!(bed.inbound(1, address(2), &mut passed, &mut ends), Inbound::Deliver { .. }));
    // And a relay's other workers send aside as well.
    let (_, _, mut datagram) = sent(&mut bed, &mut ends);
    bed.forwarders[2].lane = 2;
    bed.peer_mut(2, 1).unwrap().spread = true;
    bed.inbound(2, address(0), &mut datagram, &mut ends);
    assert!(Outer::parse(&ends.wire.take().pop().unwrap().1).unwrap().aside);
}
