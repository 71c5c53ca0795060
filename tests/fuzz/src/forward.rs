//! Datagrams of strangers and of members that lie, into the frame path of `meshnet-core`: it must not panic, deliver nothing that contradicts itself, and
//! never send more than it was given.
//!
//! The input is a run of datagrams, each `kind (1) ‖ length (2) ‖ bytes`; what a member would send is sealed here with real keys, so that the bytes reach
//! what lies behind the seal. Some are frames of this machine's own TAP instead.

use meshnet_core::fib::owners::mac_of;
use meshnet_core::fib::{Owner, Owners};
use meshnet_core::forward::join::Joiner;
use meshnet_core::forward::testbed::{Ends, Frames, Testbed, address};
use meshnet_core::forward::{Deliver, Inbound};
use meshnet_core::session::Cipher;
use meshnet_proto::Mac;
use meshnet_proto::limits::{FRAGMENTS_MAX, SUPERFRAME_MAX_BYTES};
use meshnet_proto::wire::data::{OUTER_BYTES, Offload, Relay, TAG_BYTES};

/// Datagrams of one input: more find nothing that fewer do not.
const DATAGRAMS_MAX: usize = 16;
/// Machines: this one (0), the sender (1), two more to relay and flood to.
const MACHINES: usize = 4;

/// [`meshnet_core::forward::Forwarder::inbound`] and the joiner behind it.
pub fn inbound(bytes: &[u8]) {
    let mut testbed = Testbed::new(MACHINES, Cipher::ChaCha20Poly1305);
    testbed.flood(1, 0, &[2]);
    testbed.flood(2, 0, &[1, 3]);
    testbed.own(FIRST, 4 * MACHINES as u32, 4);
    let owners = Owners { hosts: vec![(FIRST + 1, HOST)], ..(*testbed.fibs[0].owners).clone() };
    testbed.fibs[0].owners = owners.into();
    let mut ends = Ends::default();
    let (mut buffer, mut delivered) = (Vec::new(), Vec::new());
    for (kind, bytes) in datagrams(bytes) {
        if kind & 0x0f == 3 {
            from_tap(&mut testbed, bytes, &mut ends);
            continue;
        }
        let Some(mut datagram) = sealed(&testbed, kind, bytes) else { continue };
        let length = datagram.len();
        let before = testbed.forwarders[0].counters.reassembled.value();
        let verdict = testbed.inbound(0, address(1), &mut datagram, &mut ends);
        let sent = ends.wire.take();
        // What was put together is longer than what came last, and goes on in fragments again.
        let reassembled = testbed.forwarders[0].counters.reassembled.value() > before;
        let copies = if reassembled { FRAGMENTS_MAX } else { 1 };
        assert!(sent.len() <= (MACHINES - 1) * copies, "{} datagrams sent for one", sent.len());
        assert!(reassembled || sent.iter().all(|(_, bytes)| bytes.len() <= length), "more sent than came");
        match verdict {
            Inbound::Reassembled { inner, frame, flow } => {
                let whole = testbed.forwarders[0].reassembled();
                assert!(frame.start <= frame.end && frame.end <= whole.len());
                checked_station(&whole[frame.clone()]);
                let start = buffer.len();
                buffer.extend_from_slice(whole);
                delivered.push((inner, start + frame.start..start + frame.end, flow));
            }
            Inbound::Done => {}
            Inbound::Quic { datagram: range, .. } => assert!(range.start <= range.end && range.end <= length),
            Inbound::Deliver { inner, frame, flow } => {
                assert!(frame.start <= frame.end && frame.end <= length);
                checked_station(&datagram[frame.clone()]);
                let start = buffer.len();
                buffer.extend_from_slice(&datagram);
                delivered.push((inner, start + frame.start..start + frame.end, flow));
            }
        }
    }
    let mut frames = Checked::default();
    let mut joiner = Joiner::default();
    let given: usize = delivered.iter().map(|(_, frame, _)| frame.len()).sum();
    for (inner, frame, flow) in delivered {
        joiner.push(&mut buffer, &inner, frame, flow, &mut frames);
    }
    joiner.flush(&mut buffer, &mut frames);
    let written: usize = frames.0.all.iter().map(|(_, frame)| frame.len()).sum();
    assert!(written <= given, "{written} bytes delivered of {given}");
}

/// A frame of a local station: whose question about an address is answered has no datagram sent, and hears of one that another machine owns.
fn from_tap(testbed: &mut Testbed, frame: &[u8], ends: &mut Ends) {
    let answer = testbed.outbound(0, &Offload::default(), frame, ends).map(<[u8]>::to_vec);
    let sent = ends.wire.take();
    assert!(sent.len() <= (MACHINES - 1) * FRAGMENTS_MAX, "{} datagrams sent for one frame", sent.len());
    if let Some(answer) = answer {
        assert_eq!(answer[..6], frame[6..12], "answered to another");
        if answer[12..14] != [0x08, 0x06] {
            // Too large for the path: it was carried, and comes from whom it was for.
            assert!(answer[6..12] == frame[..6] && sent.len() != 1, "told without need");
            return;
        }
        assert!(sent.is_empty(), "answered and sent");
        let owner = testbed.fibs[0].owners.of_mac(Mac(answer[6..12].try_into().expect("six bytes")));
        assert!(matches!(owner, Some((_, Owner::Peer(_)))), "answered for {owner:?}");
    }
}

/// What no peer may send: a frame in the name of an address of this machine. What it does not receive: one to the address that follows from its host's.
fn checked_station(frame: &[u8]) {
    assert!(frame[..6] != mac_of(FIRST + 1).0, "not rewritten");
    let ours = (FIRST..FIRST + 4).any(|address| frame[6..12] == mac_of(address).0);
    assert!(!ours, "in our name");
}

/// First address of the range; each machine owns four, in order.
const FIRST: u32 = 0x0a20_0000;
/// What has the second address.
const HOST: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// Frames for the TAP, each checked as the kernel would.
#[derive(Default)]
struct Checked(Frames);

impl Deliver for Checked {
    fn deliver(&mut self, offload: &Offload, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        assert!((14..=SUPERFRAME_MAX_BYTES).contains(&length), "a frame of {length} bytes");
        let checksum = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2;
        assert!(!offload.needs_csum || checksum <= length, "a checksum outside the frame: {offload:?}");
        assert!(usize::from(offload.header_len) <= length, "headers longer than the frame: {offload:?}");
        self.0.deliver(offload, parts);
    }
}

fn datagrams(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let next = move || {
        let (&[kind, high, low], rest) = bytes.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (datagram, left) = rest.split_at(length);
        bytes = left;
        Some((kind, datagram))
    };
    std::iter::from_fn(next).take(DATAGRAMS_MAX)
}

/// The datagram that machine 0 receives: of a stranger as it is, or sealed by machine 1 or 2 for machine 0.
fn sealed(testbed: &Testbed, kind: u8, bytes: &[u8]) -> Option<Vec<u8>> {
    let sender = 1 + usize::from(kind >> 6 & 1);
    let session = testbed.fibs[sender].peers[0].as_ref()?.session.clone()?;
    let lane = kind >> 4 & 1;
    match kind & 0x0f {
        // The plaintext of DATA: inner header first.
        1 => {
            let mut datagram = [&[0; OUTER_BYTES][..], bytes, &[0; TAG_BYTES]].concat();
            session.seal(lane, &mut datagram).ok()?;
            Some(datagram)
        }
        // A relay header and the datagram inside.
        2 => {
            let (_, relay_bytes) = Relay::parse(bytes)?;
            let (header, inside) = bytes.split_at(relay_bytes);
            let mut datagram = [&[0; OUTER_BYTES][..], header, &[0; TAG_BYTES], inside].concat();
            session.seal_hop(lane, false, &mut datagram, relay_bytes).ok()?;
            Some(datagram)
        }
        _ => Some(bytes.to_vec()),
    }
}
