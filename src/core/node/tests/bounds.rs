//! One node against ends that misbehave, without a network between.

use super::super::*;
use crate::identity::Identity;
use crate::session::SessionSecret;
use meshnet_proto::wire::control::{Hello, PROTOCOL_VERSION};
use meshnet_proto::wire::record::{Record, Version};

fn at(ms: u64) -> Time {
    Time::from_us(1_000_000 + ms * 1_000)
}

fn remote(n: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, (n >> 8) as u8], 1024 + n))
}

/// An identity that sorts behind that of [`node`].
fn identity(n: u32) -> Identity {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    Identity::from_seed(seed)
}

fn node(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::new(identity(0), "me");
    change(&mut config);
    Node::new(config, at(0))
}

fn drain(node: &mut Node) -> Vec<Output> {
    std::iter::from_fn(|| node.poll()).collect()
}

fn closes(outputs: &[Output]) -> Vec<(LinkId, CloseReason)> {
    let close = |output: &Output| match output {
        Output::Close { link, reason } => Some((*link, *reason)),
        _ => None,
    };
    outputs.iter().filter_map(close).collect()
}

fn dials(outputs: &[Output]) -> Vec<DialId> {
    let dial = |output: &Output| match output {
        Output::Dial { dial, .. } => Some(*dial),
        _ => None,
    };
    outputs.iter().filter_map(dial).collect()
}

fn open(node: &mut Node, now: Time, link: u64, peer: PeerId, dial: Option<DialId>) -> Vec<Output> {
    let secret = SessionSecret([link as u8; 64]);
    let remote = remote(link as u16);
    node.handle(now, Input::LinkOpened { link: LinkId(link), dial, peer, remote, secret });
    drain(node)
}

fn message(node: &mut Node, now: Time, link: u64, message: &Control) -> Vec<Output> {
    let bytes = message.emit().unwrap()[4..].to_vec();
    node.handle(now, Input::Message { link: LinkId(link), bytes });
    drain(node)
}

fn hello(node: &mut Node, now: Time, link: u64) -> Vec<Output> {
    let hello = Hello {
        version: PROTOCOL_VERSION,
        cluster: String::new(),
        incarnation: 1,
        instance: 7,
        name: "x".into(),
        session_index: 1,
        lanes: 1,
        control: true,
        ciphers: vec![2],
        max_links: 0,
        extensions: Vec::new(),
    };
    message(node, now, link, &Control::Hello(hello))
}

/// Runs the timers for `ms`; gives what came out.
fn run(node: &mut Node, from: u64, ms: u64) -> Vec<Output> {
    let mut outputs = Vec::new();
    for now in (from..from + ms).step_by(50) {
        node.handle_timeout(at(now));
        outputs.extend(drain(node));
    }
    outputs
}

#[test]
fn a_dial_that_finds_no_room_for_its_link_is_tried_again() {
    let mut node = node(|config| config.targets = vec!["192.0.2.9:6783".into()]);
    let dial = dials(&drain(&mut node))[0];
    // Strangers of the cluster that say nothing take all places.
    for n in 0..200 {
        open(&mut node, at(1), 100 + n, identity(100 + n as u32).id(), None);
    }
    let outputs = open(&mut node, at(2), 1, identity(1).id(), Some(dial));
    assert_eq!(closes(&outputs), [(LinkId(1), CloseReason::Full)]);
    let again = dials(&run(&mut node, 100, 60_000));
    assert!(!again.is_empty(), "the target is never dialled again");
}

#[test]
fn one_peer_cannot_take_the_places_of_others() {
    let mut node = node(|_| ());
    let greedy = identity(1).id();
    for link in 1..=1_000 {
        open(&mut node, at(link), link, greedy, None);
        if link % 2 == 0 {
            hello(&mut node, at(link), link);
        }
    }
    assert!(node.links.of(greedy).count() <= 8);
    let outputs = open(&mut node, at(2_000), 5_000, identity(2).id(), None);
    assert!(closes(&outputs).is_empty(), "an honest peer is turned away");
    hello(&mut node, at(2_000), 5_000);
    assert!(node.links.current(identity(2).id(), false).is_some());
}

#[test]
fn a_table_larger_than_the_queue_of_a_link_goes_out_in_parts() {
    let mut node = node(|_| ());
    open(&mut node, at(0), 1, identity(1).id(), None);
    hello(&mut node, at(0), 1);
    // A member makes up peers with the longest records.
    for n in 0..600 {
        let other = identity(1_000 + n);
        let record = Record {
            public_key: other.public_key(),
            version: Version { incarnation: 1, seq: 1 },
            instance: 1,
            name: format!("n{n}"),
            software: String::new(),
            endpoints: Vec::new(),
            links: Vec::new(),
            flags: 0,
            mtu: 1310,
            extensions: vec![(900, vec![0; 12_000])],
        };
        let admitted = other.sign_record(&record).unwrap();
        message(&mut node, at(1_000 + u64::from(n) * 20), 1, &Control::Records(vec![admitted.signed.emit()]));
    }
    assert_eq!(node.topology.len(), 601);
    let sent = |outputs: &[Output]| -> usize {
        let bytes = |output: &Output| match output {
            Output::Send { link: LinkId(2), bytes } => bytes.len(),
            _ => 0,
        };
        outputs.iter().map(bytes).sum()
    };
    // Another peer comes and asks for all of it.
    open(&mut node, at(20_000), 2, identity(2).id(), None);
    hello(&mut node, at(20_000), 2);
    let all: Vec<PeerId> = node.topology.entries().map(|(id, _)| *id).collect();
    let mut most = sent(&message(&mut node, at(20_000), 2, &Control::Want(all)));
    let mut total = most;
    for ms in (20_100..25_000).step_by(100) {
        node.handle_timeout(at(ms));
        let now = sent(&drain(&mut node));
        most = most.max(now);
        total += now;
    }
    assert!(total > 600 * 12_000, "{total} bytes in all");
    assert!(most < 2 * 1024 * 1024, "{most} bytes at once");
}

#[test]
fn peers_that_come_and_go_do_not_use_up_the_slots() {
    let mut node = node(|_| ());
    for n in 0..2_000_u64 {
        let now = n * 1_000;
        let peer = identity(1_000 + n as u32).id();
        open(&mut node, at(now), n + 1, peer, None);
        hello(&mut node, at(now), n + 1);
        node.handle(at(now + 100), Input::LinkClosed { link: LinkId(n + 1), why: LinkEnd::Timeout });
        run(&mut node, now + 200, 200);
    }
    assert!(node.peers.len() < 600, "{} slots", node.peers.len());
    let fib = node.compile();
    assert!(fib.by_short.len() < 60, "{} peers are still in the snapshot", fib.by_short.len());
}

#[test]
fn a_node_asks_to_be_woken_only_when_there_is_something_to_do() {
    let mut node = node(|config| config.targets = vec!["192.0.2.9:6783".into(), "nowhere.example:1".into()]);
    drain(&mut node);
    open(&mut node, at(0), 1, identity(1).id(), None);
    hello(&mut node, at(0), 1);
    message(&mut node, at(0), 1, &Control::RekeyDone(0));
    let mut now = at(1);
    let mut wakes = 0;
    while now < at(120_000) {
        node.handle_timeout(now);
        drain(&mut node);
        let next = node.next_deadline();
        assert!(next > now, "woken at {now:?} and again at {next:?}");
        // As a driver does: never less than its grain, and sometimes late.
        now = next.max(now + Duration::from_millis(1)) + Duration::from_millis(u64::from(wakes % 97 == 0) * 300);
        wakes += 1;
    }
    assert!(wakes < 2_500, "{wakes} wakes in two minutes");
}

#[test]
fn a_peer_whose_address_is_in_no_record_is_dialled_where_its_link_led() {
    let mut node = node(|_| ());
    let peer = identity(1);
    open(&mut node, at(0), 1, peer.id(), None);
    hello(&mut node, at(0), 1);
    let record = Record {
        public_key: peer.public_key(),
        version: Version { incarnation: 1, seq: 1 },
        instance: 7,
        name: "x".into(),
        software: String::new(),
        endpoints: vec!["10.0.0.1:6783".parse().unwrap()],
        links: Vec::new(),
        flags: 0,
        mtu: 1310,
        extensions: Vec::new(),
    };
    let record = peer.sign_record(&record).unwrap().signed.emit();
    message(&mut node, at(10), 1, &Control::Records(vec![record]));
    run(&mut node, 100, 11_000);
    node.handle(at(12_000), Input::LinkClosed { link: LinkId(1), why: LinkEnd::Timeout });
    let outputs = run(&mut node, 12_050, 5_000);
    let led = |output: &Output| matches!(output, Output::Dial { remote: to, .. } if *to == remote(1));
    assert!(outputs.iter().any(led), "{:?}", dials(&outputs));
}
