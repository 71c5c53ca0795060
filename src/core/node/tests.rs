//! What a node says and takes, without a network. Networks of nodes: `crate::sim`.
mod bounds;

use super::*;
use crate::identity::Identity;

fn node(change: impl FnOnce(&mut Config)) -> Node {
    let mut config = Config::new(Identity::from_seed([7; 32]), "one");
    change(&mut config);
    Node::new(config, Time::ZERO)
}

fn outputs(node: &mut Node) -> Vec<Output> {
    std::iter::from_fn(|| node.poll()).collect()
}

#[test]
fn targets_in_every_form() {
    let good = [
        ("192.0.2.1", "192.0.2.1:6783"),
        ("192.0.2.1:7000", "192.0.2.1:7000"),
        ("2001:db8::1", "[2001:db8::1]:6783"),
        ("[2001:db8::1]", "[2001:db8::1]:6783"),
        ("[2001:db8::1]:7000", "[2001:db8::1]:7000"),
        ("Node1.example", "node1.example:6783"),
        ("node1:7000", "node1:7000"),
    ];
    for (text, expected) in good {
        assert_eq!(target_address(text).as_deref(), Ok(expected));
        assert_eq!(target_address(expected).as_deref(), Ok(expected), "the normal form of itself");
    }
    for text in ["", ":7000", "node1:", "node1:0", "node1:70000", "192.0.2.1:0", "a b", "http://node1", "a:b:c"] {
        assert!(target_address(text).is_err_and(|error| error.contains(text)), "{text}");
    }
}

#[test]
fn a_new_node_dials_addresses_and_asks_for_names() {
    let mut node = node(|config| config.targets = vec!["192.0.2.1".into(), "node1".into(), "not an address".into()]);
    let outputs = outputs(&mut node);
    let dials = outputs
        .iter()
        .any(|output| matches!(output, Output::Dial { remote, expect: None, .. } if remote.port() == 6783));
    let asks = outputs.iter().any(|output| matches!(output, Output::Resolve { target } if target == "node1:6783"));
    assert!(dials && asks, "{outputs:#?}");
    assert_eq!(node.targets().len(), 2);
}

#[test]
fn what_comes_for_links_and_peers_that_are_not_there_changes_nothing() {
    let mut node = node(|_| {});
    outputs(&mut node);
    let (link, slot) = (LinkId(9), crate::fib::PeerSlot(9));
    let from: SocketAddr = "192.0.2.1:1".parse().unwrap();
    for input in [
        Input::LinkClosed { link, why: LinkEnd::Timeout },
        Input::DialFailed { dial: DialId(9), why: DialError::Timeout },
        Input::Message { link, bytes: vec![0, 1, 2] },
        Input::Writable { link, writable: false },
        Input::Resolved { target: "nobody:1".into(), result: Ok(vec![from]) },
        Input::Probe { slot, from, relayed: false, plaintext: vec![3; 40] },
        Input::Roamed { slot, from },
        Input::SessionWanted(slot),
    ] {
        let text = format!("{input:?}");
        node.handle(Time::from_us(1), input);
        assert!(outputs(&mut node).is_empty(), "{text}");
    }
}

#[test]
fn garbage_on_a_link_closes_it() {
    for (bytes, reason) in [
        (vec![0, 1, 0xff], CloseReason::Protocol),
        (vec![], CloseReason::Protocol),
        (Control::Digest(1).emit().unwrap()[4..].to_vec(), CloseReason::Protocol),
        (Control::Goodbye.emit().unwrap()[4..].to_vec(), CloseReason::Stopping),
    ] {
        let mut node = node(|_| {});
        let (link, remote) = (LinkId(1), "192.0.2.1:1".parse().unwrap());
        let secret = crate::session::SessionSecret([1; 64]);
        let peer = PeerId([9; 16]);
        node.handle(Time::from_us(1), Input::LinkOpened { link, dial: None, peer, remote, secret });
        outputs(&mut node);
        node.handle(Time::from_us(2), Input::Message { link, bytes: bytes.clone() });
        let closed = outputs(&mut node)
            .iter()
            .any(|output| matches!(output, Output::Close { reason: why, .. } if *why == reason));
        assert!(closed, "{bytes:?}");
    }
}

#[test]
fn a_link_without_a_hello_is_closed_after_five_seconds() {
    let mut node = node(|_| {});
    let (link, remote) = (LinkId(1), "192.0.2.1:1".parse().unwrap());
    let secret = crate::session::SessionSecret([1; 64]);
    node.handle(Time::ZERO, Input::LinkOpened { link, dial: None, peer: PeerId([9; 16]), remote, secret });
    let mut now = Time::ZERO;
    while now < Time::from_us(4_900_000) {
        now = node.next_deadline().max(now + Duration::from_millis(1));
        node.handle_timeout(now);
    }
    assert!(!outputs(&mut node).iter().any(|output| matches!(output, Output::Close { .. })));
    node.handle_timeout(Time::from_us(5_100_000));
    assert!(
        outputs(&mut node).iter().any(|output| matches!(output, Output::Close { reason: CloseReason::Silent, .. }))
    );
}

#[test]
fn storm_budgets_are_filled_by_the_time_that_passed() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut node = node(|_| {});
    let budget = node.publisher.own_flood.clone();
    budget.storm.tokens.store(-50, Relaxed);
    node.refill(Duration::from_millis(100));
    assert_eq!(budget.storm.tokens.load(Relaxed), 350);
    for _ in 0..1000 {
        node.refill(Duration::from_secs(10));
    }
    assert_eq!(budget.storm.tokens.load(Relaxed), crate::fib::STORM_BURST_FRAMES);
}

#[test]
fn no_secret_is_a_problem_that_says_what_to_do() {
    let node = node(|config| config.secret = false);
    let problems = node.problems(Time::ZERO);
    assert!(problems.len() == 1 && problems[0].remedy.contains("--secret-file"), "{problems:?}");
}
