use etherparse::{ArpOperation, NetSlice, SlicedPacket};

use super::*;
use crate::fib::PeerSlot;
use crate::forward::testbed::{arp_request, mac};

const FIRST: u32 = 0x0a20_0000;
const OURS: u32 = FIRST + 1;
const HOST: u32 = FIRST + 2;
const PEERS: u32 = FIRST + 17;
const PEERS_TOO: u32 = FIRST + 18;
const NOBODYS: u32 = FIRST + 33;
/// Unowned, but this machine has it.
const HOST_UNOWNED: u32 = FIRST + 34;
const OUTSIDE: u32 = FIRST + 256;

fn owners() -> Owners {
    Owners {
        first: FIRST,
        last: FIRST + 255,
        runs: vec![(FIRST, Owner::Me), (FIRST + 16, Owner::Peer(PeerSlot(1))), (FIRST + 32, Owner::Nobody)],
        hosts: vec![(HOST, mac(9, 9)), (HOST_UNOWNED, mac(9, 9))],
    }
}

fn reply(sender: u32, target: u32) -> Vec<u8> {
    let mut frame = arp_request(mac(0, 1), sender, target);
    frame[21] = 2;
    frame
}

fn judged(owners: &Owners, frame: &[u8], to_all: bool) -> Verdict {
    Arp::parse(frame).expect("ARP").judge(owners, to_all)
}

#[test]
fn verdicts() {
    let ask = |sender, target| arp_request(mac(0, 1), sender, target);
    let local = Verdict::Drop(DropReason::Local);
    let not_owner = Verdict::Drop(DropReason::NotOwner);
    let unowned = Verdict::Drop(DropReason::Unowned);
    // What, the frame, its end when sent to all, its end when sent to one.
    let table: Vec<(&str, Vec<u8>, Verdict, Verdict)> = vec![
        ("we ask for a peer's", ask(OURS, PEERS), Verdict::Answer, Verdict::Answer),
        ("a station outside does", ask(OUTSIDE, PEERS), Verdict::Answer, Verdict::Answer),
        ("a probe for a peer's", ask(0, PEERS), Verdict::Answer, Verdict::Answer),
        ("an announcement of a peer's", ask(PEERS, PEERS), Verdict::Dispute, Verdict::Dispute),
        ("in the name of a peer's, for another", ask(PEERS, PEERS_TOO), not_owner, not_owner),
        ("in the name of a peer's, for ours", ask(PEERS, OURS), not_owner, not_owner),
        ("in the name of a peer's, for one outside", ask(PEERS, OUTSIDE), not_owner, not_owner),
        ("for ours", ask(OUTSIDE, OURS), local, local),
        ("a probe for ours", ask(0, OURS), local, local),
        ("an announcement of ours", ask(OURS, OURS), local, local),
        ("for our host's", ask(OURS, HOST), local, local),
        ("for our host's that nobody owns", ask(OURS, HOST_UNOWNED), local, local),
        ("for nobody's", ask(OURS, NOBODYS), unowned, Verdict::Pass),
        ("an announcement of nobody's", ask(NOBODYS, NOBODYS), unowned, Verdict::Pass),
        ("a station at nobody's asks for a peer's", ask(NOBODYS, PEERS), Verdict::Answer, Verdict::Answer),
        ("for one outside", ask(OURS, OUTSIDE), Verdict::Pass, Verdict::Pass),
        ("a reply of ours", reply(OURS, PEERS), local, Verdict::Pass),
        ("a reply of a host of ours", reply(HOST, PEERS), local, Verdict::Pass),
        ("a reply of a peer's", reply(PEERS, PEERS), not_owner, not_owner),
        ("a reply of nobody's", reply(NOBODYS, NOBODYS), unowned, Verdict::Pass),
        ("a reply of one outside", reply(OUTSIDE, PEERS), Verdict::Pass, Verdict::Pass),
    ];
    for (what, frame, to_all, to_one) in table {
        assert_eq!((judged(&owners(), &frame, true), judged(&owners(), &frame, false)), (to_all, to_one), "{what}");
        for nothing in [Owners::default(), Owners { runs: vec![], hosts: vec![], ..owners() }] {
            assert_eq!(judged(&nothing, &frame, true), Verdict::Pass, "{what}, when no owner is known");
        }
    }
    let unknown = Owners { runs: vec![(FIRST, Owner::Nobody)], ..owners() };
    assert_eq!(judged(&unknown, &ask(OURS, PEERS), true), Verdict::Pass, "a map of nobody's is as good as none");
}

#[test]
fn what_is_arp() {
    let good = arp_request(mac(0, 1), OURS, PEERS);
    let wanted = Some(Arp { operation: 1, sender_mac: mac(0, 1), sender: OURS, target: PEERS });
    assert_eq!(Arp::parse(&good), wanted);
    let tagged = |tags: &[u8]| [&good[..12], tags, &good[12..]].concat();
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    assert_eq!(Arp::parse(&[&good[..], &[0; 18]].concat()), wanted, "padded");
    assert_eq!(Arp::parse(&with(15, 6)), wanted, "of an IEEE 802 network");
    assert_eq!(Arp::parse(&tagged(&[0x81, 0, 0xe0, 0])), wanted, "with a priority");
    assert_eq!(Arp::parse(&tagged(&[0x88, 0xa8, 0, 0, 0x81, 0, 0, 0])), wanted, "with two");
    let others = [
        ("in a VLAN", tagged(&[0x81, 0, 0, 1])),
        ("in a VLAN behind a priority", tagged(&[0x81, 0, 0, 0, 0x81, 0, 0, 1])),
        ("in a VLAN of a provider", tagged(&[0x88, 0xa8, 0, 1])),
        ("tagged without end", tagged(&[0x81, 0, 0, 0].repeat(20))),
        ("of another link", with(15, 32)),
        ("for IPv6", with(16, 0x86)),
        ("with long addresses", with(18, 8)),
        ("with short ones", with(19, 3)),
        ("not ARP", with(13, 0)),
    ];
    for (what, frame) in others {
        assert_eq!(Arp::parse(&frame), None, "{what}");
    }
    for length in 0..good.len() {
        assert_eq!(Arp::parse(&good[..length]), None, "cut to {length}");
        assert_eq!(Arp::parse(&tagged(&[0x81, 0, 0, 0])[..length]), None, "tagged and cut to {length}");
    }
}

#[test]
fn the_answer_is_a_reply_to_the_asker() {
    let arp = Arp::parse(&arp_request(mac(0, 1), OURS, PEERS)).unwrap();
    let answer = arp.answer(mac(0, 2));
    let packet = SlicedPacket::from_ethernet(&answer).unwrap();
    let Some(NetSlice::Arp(reply)) = packet.net else { panic!("{packet:?}") };
    assert_eq!((&answer[..6], &answer[6..12]), (&mac(0, 2).0[..], &[0x0a, 0x58, 10, 32, 0, 17][..]));
    assert_eq!(reply.operation(), ArpOperation::REPLY);
    assert_eq!((reply.hw_addr_type().0, reply.proto_addr_type().0), (1, 0x0800));
    assert_eq!(reply.sender_hw_addr(), [0x0a, 0x58, 10, 32, 0, 17]);
    assert_eq!(reply.sender_protocol_addr(), PEERS.to_be_bytes());
    assert_eq!(reply.target_hw_addr(), mac(0, 1).0);
    assert_eq!(reply.target_protocol_addr(), OURS.to_be_bytes());
}
