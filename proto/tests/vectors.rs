//! The golden vectors of `proto/vectors`, both ways: the bytes give the value, the value gives the bytes. What is released there never changes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use meshnet_proto::codec;
use meshnet_proto::wire::control::{Control, Hello, LENGTH_BYTES, READS, Rekey, Routed, cipher};
use meshnet_proto::wire::data::*;
use meshnet_proto::wire::fast::{FastProbe, PROBE_FRAME_BYTES, Subnet, TRUST, Trust};
use meshnet_proto::wire::ipam;
use meshnet_proto::wire::record::{COST_LAST_RESORT, Record, RecordKey, RecordLink, SignedRecord, Version, flags};
use meshnet_proto::{PeerId, ShortId, limits};

mod common;
use common::vectors;

const A: ShortId = ShortId(0x1122_3344_5566_7788);
const B: ShortId = ShortId(0x99aa_bbcc_ddee_ff00);
const C: ShortId = ShortId(0x0102_0304_0506_0708);
const D: ShortId = ShortId(0x5a5a_5a5a_5a5a_5a5a);
const SOURCE: ShortId = ShortId(0xfedc_ba98_7654_3210);

fn csum(start: u16, offset: u16) -> Offload {
    Offload { needs_csum: true, csum_start: start, csum_offset: offset, ..Offload::default() }
}

fn outers() -> Vec<(&'static str, Outer)> {
    let data = OuterKind::Data;
    vec![
        ("outer-data", Outer { kind: data, epoch: 0, lane: 0, urgent: false, aside: false, index: 1, counter: 0 }),
        (
            "outer-data-all-fields",
            Outer {
                kind: data,
                epoch: 3,
                lane: 32,
                urgent: true,
                aside: true,
                index: 0xdead_beef,
                counter: 0xf_ffff_ffff,
            },
        ),
        (
            "outer-relay",
            Outer {
                kind: OuterKind::Relay,
                epoch: 2,
                lane: 7,
                urgent: false,
                aside: false,
                index: 0x0102_0304,
                counter: 0x0506_0708_090a_0b0c,
            },
        ),
    ]
}

fn inners() -> Vec<(&'static str, Inner)> {
    let frame = Inner::plain(InnerKind::Frame);
    let segment = |gso, header_len, gso_size, csum: Offload| Inner {
        kind: InnerKind::Segment,
        offload: Offload { gso, header_len, gso_size, ..csum },
        ..frame
    };
    let ecn = Offload { ecn: true, ..csum(54, 16) };
    vec![
        ("inner-frame", frame),
        ("inner-frame-flood-csum", Inner { flood: true, offload: csum(34, 16), ..frame }),
        ("inner-frame-valid", Inner { offload: Offload { data_valid: true, ..Offload::default() }, ..frame }),
        (
            "inner-segment-tcp4",
            Inner { superframe: 0x1234, index: 2, count: 53, ..segment(Gso::Tcp4, 54, 1256, csum(34, 16)) },
        ),
        ("inner-segment-tcp6-ecn", Inner { superframe: 65535, ..segment(Gso::Tcp6, 86, 1224, ecn) }),
        ("inner-segment-udp", Inner { superframe: 1, index: 3, count: 4, ..segment(Gso::Udp, 42, 1200, csum(34, 6)) }),
        ("inner-probe", Inner::plain(InnerKind::Probe)),
        ("inner-probe-reply", Inner::plain(InnerKind::ProbeReply)),
        ("inner-fragment", Inner::fragment(1184, 1, 3)),
        ("inner-fragment-last", Inner::fragment(1041, 63, 64)),
    ]
}

#[test]
fn headers() {
    let vectors = vectors("headers");
    let mut named = Vec::new();
    let mut check = |name: &str, parsed: bool, emitted: &[u8]| {
        assert!(parsed, "{name} is not read as it should");
        assert_eq!(emitted, vectors[name], "{name} is not written as it should");
        named.push(name.to_owned());
    };
    for (name, value) in outers() {
        check(name, Outer::parse(&vectors[name]) == Some(value), &value.emit());
    }
    for (name, value) in inners() {
        check(name, Inner::parse(&vectors[name]) == Some(value), &value.emit());
    }
    let floods = [
        ("flood", Flood { origin: A, incarnation: 0xabcd, hops: limits::FLOOD_HOPS_MAX, sequence: 0x0102_0304 }),
        ("flood-last-hop", Flood { origin: ShortId(0), incarnation: 0, hops: 0, sequence: u32::MAX }),
    ];
    for (name, value) in floods {
        check(name, Flood::parse(&vectors[name]) == Some(value), &value.emit());
    }
    let relays = [
        ("relay-one", Relay { source: SOURCE, route: Route::new(&[A, B]).unwrap(), position: 0 }),
        ("relay-three", Relay { source: SOURCE, route: Route::new(&[A, B, C, D]).unwrap(), position: 3 }),
    ];
    for (name, value) in relays {
        let mut emitted = [0; 64];
        let length = value.emit(&mut emitted).unwrap();
        check(name, Relay::parse(&vectors[name]) == Some((value, length)), &emitted[..length]);
    }
    let probes = [
        ("probe-direct", Probe { token: C.0, sent_us: 0x1112_1314_1516_1718, path: 0 }),
        ("probe-relayed", Probe { token: u64::MAX, sent_us: 0, path: 1 }),
        ("probe-fast", Probe { token: A.0, sent_us: 0, path: 2 }),
    ];
    for (name, value) in probes {
        check(name, Probe::parse(&vectors[name]) == Some(value), &value.emit());
    }
    let padded = [&probes[0].1.emit()[..], &[0; 16]].concat();
    check("probe-padded", Probe::parse(&vectors["probe-padded"]) == Some(probes[0].1), &padded);
    let fast = FastProbe { from: SOURCE, token: A.0 };
    for (name, length) in [("fast-probe", 0), ("fast-probe-padded", PROBE_FRAME_BYTES + 26)] {
        check(name, FastProbe::parse(C, &vectors[name]) == Some(fast), &fast.emit(C, length));
    }
    named.sort();
    assert!(named.iter().eq(vectors.keys()), "vectors that nothing looks at");
}

fn trust() -> Trust {
    let subnet = |address: &str, prefix| Subnet { address: address.parse().unwrap(), prefix };
    Trust { port: 6784, network: 0x12_3456, subnets: vec![subnet("10.1.0.0", 16), subnet("fd00::", 8)] }
}

fn messages() -> Vec<(&'static str, Control)> {
    let up = PeerId(std::array::from_fn(|at| at as u8));
    let down = PeerId(std::array::from_fn(|at| 255 - at as u8));
    let key = |peer, incarnation, seq| RecordKey { peer, version: Version { incarnation, seq } };
    let rekey = |epoch| Rekey { epoch, public_key: std::array::from_fn(|at| at as u8) };
    let hello = Hello {
        version: 1,
        cluster: "mesh".into(),
        incarnation: 1_766_000_000,
        instance: 0x1122_3344_5566_7788,
        name: "alpha".into(),
        session_index: 7,
        lanes: 5,
        control: true,
        ciphers: vec![cipher::AES_256_GCM, cipher::CHACHA20_POLY1305],
        max_links: 128,
        extensions: Vec::new(),
    };
    let bare = Hello {
        version: 2,
        cluster: String::new(),
        incarnation: 0,
        instance: 0,
        name: String::new(),
        session_index: 0,
        lanes: 1,
        control: false,
        ciphers: Vec::new(),
        max_links: 0,
        extensions: vec![(1, Vec::new()), (300, vec![255; 3])],
    };
    vec![
        ("hello", Control::Hello(hello)),
        ("hello-reads", Control::Hello(Hello { extensions: vec![(READS, vec![FRAGMENT])], ..bare.clone() })),
        ("hello-trust", Control::Hello(Hello { extensions: vec![(TRUST, trust().emit())], ..bare.clone() })),
        ("hello-extensions", Control::Hello(bare)),
        ("records", Control::Records(vec![vec![1, 2, 3], Vec::new()])),
        ("digest", Control::Digest(0x0123_4567_89ab_cdef)),
        ("digest-empty", Control::Digest(0)),
        ("buckets", Control::Buckets((0..256).collect())),
        ("keys", Control::Keys { buckets: vec![0, 255], keys: vec![key(up, 1, 2), key(down, 251, 65536)] }),
        ("want", Control::Want(vec![up, down])),
        ("rekey", Control::Rekey(rekey(1))),
        ("rekey-ack", Control::RekeyAck(rekey(250))),
        ("rekey-done", Control::RekeyDone(251)),
        ("rekey-done-zero", Control::RekeyDone(0)),
        ("goodbye", Control::Goodbye),
        ("ipam-neighbour", Control::Ipam(vec![4; 17])),
        ("routed", Control::Routed(Routed { to: A, from: B, hops: 16, body: vec![18, 1, 2] })),
    ]
}

fn ipam_messages() -> Vec<(&'static str, ipam::Message)> {
    use ipam::*;
    let cluster: [u8; 16] = std::array::from_fn(|at| at as u8);
    let ballot = Ballot { round: 7, by: A };
    let span = |first, len| Span { first, len };
    let run = |span, owner, giver| Run { span, ballot: Ballot::default(), version: 1, owner, giver };
    let member = |id, standing| Member { id, standing };
    let range = span(0x0a20_0000, 1 << 20);
    let members = vec![member(C, Standing::Known), member(A, Standing::Admitted), member(B, Standing::Removed)];
    let runs = vec![
        run(span(0x0a20_0000, 1 << 19), B, A),
        Run { ballot, version: 300, ..run(span(0x0a28_0000, 10), A, A) },
        run(span(0x0a28_0100, 1), D, B),
    ];
    let state = State { members, runs };
    let decree = Decree { uuid: cluster, seeds: vec![A, B] };
    let genesis = Genesis { uuid: cluster, kind: GenesisKind::Election, range };
    let some = vec![A, B];
    let list = state.members.clone();
    vec![
        ("state", Message::State { genesis, full: true, state: state.clone() }),
        ("digest", Message::Digest { cluster, hash: 0x0123_4567_89ab_cdef }),
        ("ask", Message::Ask { cluster, ask: Ask { token: 5, within: range, want: 256 } }),
        ("answer", Message::Answer { cluster, token: 5, outcome: Outcome::NotNow, state: state.clone() }),
        ("join", Message::Join { cluster, attempt: 5 }),
        ("add", Message::Add { cluster, joiners: some.clone(), hash: 1, members: list.clone() }),
        ("add-yes", Message::AddYes { cluster, joiners: some.clone(), hash: 1 }),
        ("add-no", Message::AddNo { cluster, hash: 2, members: list }),
        ("prepare", Message::Prepare { cluster, ballot, gone: some.clone() }),
        ("promise", Message::Promise { cluster, ballot, admitted: true, state: state.clone() }),
        ("refuse", Message::Refuse { cluster, ballot, higher: Ballot::default(), alive: true }),
        ("withdraw", Message::Withdraw { cluster, ballot, gone: some.clone() }),
        ("stand", Message::Stand(Stand { electors: 3, range, any: false, listed: some })),
        ("elect", Message::Elect { ballot, electors: 3 }),
        ("elected", Message::Elected { ballot, accepted: Some((ballot, decree.clone())) }),
        ("elected-none", Message::Elected { ballot, accepted: None }),
        ("accept", Message::Accept { ballot, decree }),
        ("accepted", Message::Accepted { ballot }),
        ("leaving", Message::Leaving { cluster, state: State::default() }),
        ("left", Message::Left { cluster }),
        ("turn", Message::Turn { cluster, attempt: 300 }),
    ]
}

#[test]
fn messages_about_addresses() {
    let vectors = vectors("addresses");
    let mut named = Vec::new();
    for (name, value) in ipam_messages() {
        let bytes = &vectors[name];
        assert_eq!(value.emit().as_ref(), Ok(bytes), "{name}");
        assert_eq!(ipam::Message::parse(bytes), Ok(Some(value.clone())), "{name}");
        let newer = [bytes.as_slice(), b"fields of a newer version"].concat();
        assert_eq!(ipam::Message::parse(&newer), Ok(Some(value)), "{name}");
        named.push(name);
    }
    named.sort_unstable();
    assert!(named.iter().eq(vectors.keys()), "vectors that nothing looks at");
    assert_eq!(ipam::Message::parse(&[20, 0]), Ok(None), "a kind of a newer version");
}

#[test]
fn control_messages() {
    let vectors = vectors("messages");
    let mut named = Vec::new();
    for (name, value) in messages() {
        let bytes = &vectors[name];
        assert_eq!(value.emit().as_ref(), Ok(bytes), "{name}");
        assert_eq!(Control::parse(&bytes[LENGTH_BYTES..]), Ok(Some(value)), "{name}");
        named.push(name);
    }
    named.sort_unstable();
    assert!(named.iter().eq(vectors.keys()), "vectors that nothing looks at");
}

#[test]
fn records() {
    let vectors = vectors("records");
    let public_key = <[u8; 32]>::try_from(&common::vectors("sessions")["identity-public"][..]).unwrap();
    let usual = Record {
        public_key,
        version: Version { incarnation: 1_766_000_000, seq: 3 },
        instance: 0x1122_3344_5566_7788,
        name: "alpha".into(),
        software: "meshd 0.1.0".into(),
        endpoints: vec!["192.0.2.1:6783".parse().unwrap(), "[2001:db8::1]:6783".parse().unwrap()],
        links: vec![RecordLink { peer: A, cost: 25 }, RecordLink { peer: B, cost: COST_LAST_RESORT }],
        flags: flags::RELAY,
        mtu: 1310,
        extensions: Vec::new(),
    };
    let empty = Record {
        public_key,
        version: Version { incarnation: 1, seq: 0 },
        instance: 0,
        name: String::new(),
        software: String::new(),
        endpoints: Vec::new(),
        links: Vec::new(),
        flags: 0,
        mtu: 0,
        extensions: Vec::new(),
    };
    let largest = Record {
        public_key,
        version: Version { incarnation: limits::VERSION_MAX, seq: limits::VERSION_MAX },
        instance: u64::MAX,
        name: "n".repeat(limits::NAME_MAX_BYTES),
        software: "s".repeat(limits::SOFTWARE_MAX_BYTES),
        endpoints: vec!["0.0.0.0:0".parse().unwrap()],
        links: vec![RecordLink { peer: ShortId(0), cost: 1 }, RecordLink { peer: ShortId(u64::MAX), cost: 300 }],
        flags: u32::MAX,
        mtu: u16::MAX,
        extensions: vec![(7, b"later".to_vec()), (65535, Vec::new())],
    };
    let all =
        [("record", &usual), ("record-empty", &empty), ("record-largest-numbers", &largest), ("record-newer", &usual)];
    assert_eq!(vectors.len(), all.len());
    for (name, value) in all {
        let bytes = &vectors[name];
        let (signed, record) = SignedRecord::parse(bytes).unwrap();
        assert_eq!(record, *value, "{name}");
        assert_eq!(signed.emit(), *bytes, "{name}");
        let body = codec::encode(value).unwrap();
        assert!(signed.body.starts_with(&body), "{name}: {body:02x?}");
        assert_eq!(signed.body.len() - body.len(), if name == "record-newer" { 3 } else { 0 });
    }
}

#[test]
fn refused() {
    let vectors = vectors("refused");
    assert!(vectors.len() > 40);
    for (name, bytes) in &vectors {
        let read = match name.split('-').next().unwrap() {
            "outer" => Outer::parse(bytes).is_some(),
            "inner" => Inner::parse(bytes).is_some(),
            "flood" => Flood::parse(bytes).is_some(),
            "relay" => Relay::parse(bytes).is_some(),
            "probe" => Probe::parse(bytes).is_some(),
            "control" => Control::parse(bytes).is_ok(),
            "record" => SignedRecord::parse(bytes).is_ok(),
            other => panic!("no decoder is called {other}"),
        };
        assert!(!read, "{name} was read");
    }
}

/// Messages of a newer version: trailing bytes and unknown types change nothing.
#[test]
fn newer_messages() {
    for (name, value) in messages() {
        let mut bytes = vectors("messages")[name][LENGTH_BYTES..].to_vec();
        bytes.extend_from_slice(b"fields of a newer version");
        // Its bytes are another message's, which has its own rules.
        if matches!(value, Control::Ipam(_)) {
            continue;
        }
        assert_eq!(Control::parse(&bytes), Ok(Some(value)), "{name}");
    }
    for kind in [0, 13, 0x7fff, 0xffff_u16] {
        assert_eq!(Control::parse(&kind.to_be_bytes()), Ok(None));
    }
}
