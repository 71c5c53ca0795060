//! Golden texts: `src/ctl/golden/NAME` holds what each drawing of the sample documents gives. `REWRITE=1 cargo test -p meshnet ctl::` writes
//! them anew; read the difference.

use std::path::PathBuf;

use meshnet_proto::PeerId;
use meshnet_proto::api::{
    Kubernetes, Lease, LinkState, MacEntry, Peer, Problem, Route, Share, Status, Topology, TopologyLink, TopologyPeer,
    Trace,
};

use super::text::{Style, age, bytes, clean, cut, number, rtt, width};
use super::{Names, graph, ipam, status, table, tree};

const PLAIN: Style = Style { colour: false };
const COLOUR: Style = Style { colour: true };

fn sample() -> Status {
    serde_json::from_str(include_str!("../golden/status.json")).unwrap()
}

fn sample_topology() -> Topology {
    serde_json::from_str(include_str!("../golden/topology.json")).unwrap()
}

fn sample_macs() -> Vec<MacEntry> {
    serde_json::from_str(include_str!("../golden/macs.json")).unwrap()
}

fn sample_trace() -> Trace {
    serde_json::from_str(include_str!("../golden/trace.json")).unwrap()
}

fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/ctl/golden").join(name);
    if std::env::var_os("REWRITE").is_some_and(|value| value == "1") {
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(wanted == text, "{name} differs; REWRITE=1 writes it anew.\nwanted:\n{wanted}\ngot:\n{text}");
}

/// A node of a cluster whose API went away, with nodes that are gone.
fn in_kubernetes() -> Status {
    let mut status = alone();
    status.kubernetes = Some(Kubernetes {
        state: "away".into(),
        api: "https://10.96.0.1:443".into(),
        node: "n1".into(),
        nodes: 12,
        peers: 11,
        reason: "connection refused".into(),
        heard_s: Some(90),
        removing: vec!["n7".into(), "n8".into()],
    });
    status
}

/// A mesh where nothing is wrong and nobody else is there.
fn alone() -> Status {
    let mut status = sample();
    status.links.clear();
    status.peers.retain(|peer| peer.id == status.peer.id);
    status.routes.clear();
    status.problems.clear();
    status.targets.clear();
    status.data.drops.clear();
    status
}

/// Addresses are not given out yet, a newcomer is not admitted, one was removed, two give out one address.
fn waiting() -> Status {
    let mut status = alone();
    let ipam = &mut status.ipam;
    ipam.state = "waiting".into();
    ipam.reason = "2 of 3 peers of the first split are missing: beta, gamma".into();
    ipam.conflicts = vec!["10.32.0.9 (web): beta gives it out too".into()];
    ipam.shares[1].standing = "known".into();
    ipam.shares[1].digest = "aabbccdd00112233".into();
    ipam.shares[2].standing = "removed".into();
    status
}

/// More shares than fit the screen, and addresses that clash.
fn many_shares() -> Status {
    let mut status = alone();
    let pattern = status.ipam.shares[0].clone();
    let share = |n: u64| Share { addresses: 100_000 + n, reachable: n > 1, ..pattern.clone() };
    status.ipam.shares = (0..9).map(share).collect();
    status.ipam.conflicts = (0..7).map(|n| format!("10.32.0.{n} (web): beta gives it out too")).collect();
    status
}

fn leases() -> Vec<Lease> {
    let lease = |id: &str, address: &str, unconfirmed| Lease {
        id: id.into(),
        address: address.into(),
        subnet: "10.32.0.0/12".into(),
        unconfirmed,
    };
    vec![lease("web", "10.32.0.5", false), lease("netns:a name", "10.32.255.255", true)]
}

/// Names as an attacker would choose them, everywhere a name can stand.
fn hostile() -> Status {
    let mut status = sample();
    let name = "\x1b[31mevil\x1b[0m\r\n\u{202e}gnp\u{200b}<&\"'\\>\t\u{9b}";
    status.peer.name = name.into();
    status.peer.software = name.into();
    for link in &mut status.links {
        (link.name, link.reason, link.address) = (name.into(), Some(name.into()), name.into());
    }
    for peer in &mut status.peers {
        (peer.name, peer.software) = (name.into(), name.into());
    }
    for route in &mut status.routes {
        route.kind = name.into();
    }
    for share in &mut status.ipam.shares {
        (share.name, share.digest, share.standing) = (name.into(), name.into(), name.into());
    }
    (status.ipam.reason, status.ipam.digest) = (name.into(), name.into());
    status.ipam.conflicts = vec![name.into()];
    for target in &mut status.targets {
        target.address = name.into();
    }
    for problem in &mut status.problems {
        (problem.what, problem.remedy) = (name.into(), name.into());
    }
    status.data.drops.insert(name.into(), 3);
    status.ipam.range = name.into();
    status.ipam.subnet = name.into();
    status.ipam.state = name.into();
    status.device.bridge = name.into();
    let text = || String::from(name);
    let (state, api, node, reason) = (text(), text(), text(), text());
    status.kubernetes = Some(Kubernetes { state, api, node, reason, removing: vec![text()], ..Kubernetes::default() });
    status.device.exposed = vec![name.into()];
    status
}

fn harmless(text: &str) {
    for letter in text.chars().filter(|letter| *letter != '\n') {
        assert!(!letter.is_control() && !matches!(letter, '\u{200b}' | '\u{202e}'), "{letter:?} in\n{text}");
    }
}

fn whole_tree(style: Style, status: &Status) -> String {
    tree::render(style, status, &Names::of_status(status), usize::MAX)
}

#[test]
fn screens() {
    golden("status.txt", &status::screen(PLAIN, &sample()));
    golden("status-colour.txt", &status::screen(COLOUR, &sample()));
    golden("status-alone.txt", &status::screen(PLAIN, &alone()));
    golden("status-waiting.txt", &status::screen(PLAIN, &waiting()));
    golden("status-kubernetes.txt", &status::screen(PLAIN, &in_kubernetes()));
    golden("status-many.txt", &status::screen(PLAIN, &many_shares()));
    golden("status-hostile.txt", &status::screen(PLAIN, &hostile()));
}

#[test]
fn tables() {
    golden("peers.txt", &table::peers(PLAIN, &sample()));
    golden("links.txt", &table::links(PLAIN, &sample()));
    golden("routes.txt", &table::routes(PLAIN, &sample()));
    golden("ipam.txt", &ipam::table(PLAIN, &sample()));
    golden("ipam-waiting.txt", &ipam::table(PLAIN, &waiting()));
    golden("targets.txt", &table::targets(PLAIN, &sample()));
    golden("leases.txt", &ipam::leases(PLAIN, &leases()));
    golden("macs.txt", &table::macs(PLAIN, &sample_macs()));
    golden("trace.txt", &table::trace(PLAIN, &sample_trace()));
}

#[test]
fn empty_tables_say_so() {
    let mut alone = alone();
    alone.ipam = meshnet_proto::api::Ipam::off();
    for text in [
        table::links(PLAIN, &alone),
        ipam::table(PLAIN, &alone),
        ipam::leases(PLAIN, &[]),
        table::targets(PLAIN, &alone),
        table::macs(PLAIN, &[]),
    ] {
        assert!(text.lines().count() == 1 && text.len() > 10, "{text}");
    }
}

#[test]
fn graphs() {
    golden("tree.txt", &whole_tree(PLAIN, &sample()));
    golden("topology.dot", &graph::dot(&sample_topology(), sample().peer.id));
    golden("topology.svg", &graph::svg(&sample_topology(), sample().peer.id));
}

#[test]
fn many_peers_are_all_in_the_picture() {
    let mut topology = sample_topology();
    let pattern = topology.peers[0].clone();
    let id = |n: u32| PeerId(u128::from(n).to_be_bytes());
    topology.peers = (0..40).map(|n| TopologyPeer { id: id(n), name: format!("p{n}"), ..pattern.clone() }).collect();
    topology.links[0] = TopologyLink { a: id(0), b: id(1_000), ..topology.links[0].clone() };
    let svg = graph::svg(&topology, id(3));
    assert_eq!(svg.matches("<circle ").count(), 40);
    assert_eq!(svg.matches("rotate(").count(), 40);
    assert_eq!(svg.matches("<line ").count(), 0, "a link to a peer that is not there is not drawn");
    assert_eq!(graph::svg(&topology, id(3)), svg);
}

#[test]
fn colour_is_only_added() {
    let coloured = status::screen(COLOUR, &sample());
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    assert_ne!(coloured, plain);
    assert_eq!(plain, status::screen(PLAIN, &sample()));
    harmless(&status::screen(PLAIN, &sample()));
}

#[test]
fn lines_of_the_screen_fit() {
    let mut long = sample();
    for peer in &mut long.peers {
        peer.name = format!("{}-{}", peer.name, "n".repeat(60));
    }
    for screen in [
        status::screen(PLAIN, &sample()),
        status::screen(PLAIN, &waiting()),
        status::screen(PLAIN, &many_shares()),
        status::screen(PLAIN, &hostile()),
        whole_tree(PLAIN, &long),
    ] {
        for line in screen.lines() {
            assert!(width(line) <= super::text::LINE, "{} cells: {line}", width(line));
            assert_eq!(line.trim_end(), line);
        }
    }
}

#[test]
fn hostile_names_reach_no_terminal() {
    let hostile = hostile();
    harmless(&status::screen(PLAIN, &hostile));
    for table in [table::peers, table::links, table::routes, ipam::table, table::targets] {
        harmless(&table(PLAIN, &hostile));
    }
    let mut topology = sample_topology();
    for peer in &mut topology.peers {
        peer.name = hostile.peer.name.clone();
    }
    for link in &mut topology.links {
        link.transport = hostile.peer.name.clone();
    }
    let (dot, svg) = (graph::dot(&topology, hostile.peer.id), graph::svg(&topology, hostile.peer.id));
    harmless(&dot);
    harmless(&svg);
    assert!(dot.contains("\\\"") && !dot.contains("&\"'"));
    assert!(svg.contains("&lt;&amp;&quot;&#39;") && !svg.contains("<&"));
    let mut macs = sample_macs();
    let mut trace = sample_trace();
    for entry in &mut macs {
        (entry.name, entry.mac) = (hostile.peer.name.clone(), hostile.peer.name.clone());
    }
    (trace.name, trace.to, trace.cipher) =
        (hostile.peer.name.clone(), hostile.peer.name.clone(), hostile.peer.name.clone());
    trace.mac = Some(hostile.peer.name.clone());
    trace.hops.iter_mut().for_each(|hop| hop.name = hostile.peer.name.clone());
    let hostile_lease =
        || Lease { id: hostile.peer.name.clone(), address: hostile.peer.name.clone(), ..leases().swap_remove(0) };
    harmless(&ipam::leases(PLAIN, &[hostile_lease()]));
    harmless(&ipam::cidr(&hostile_lease()));
    harmless(&table::macs(PLAIN, &macs));
    harmless(&table::trace(PLAIN, &trace));
    trace.local = true;
    harmless(&table::trace(PLAIN, &trace));
}

#[test]
fn peers_of_one_name_are_told_apart() {
    let mut status = sample();
    let twin = status.peers[1].name.clone();
    status.peers[2].name = twin.clone();
    let text = table::peers(PLAIN, &status);
    for peer in &status.peers[1..3] {
        assert!(text.contains(&format!("{twin}~{}", &peer.id.brief()[..4])), "{text}");
    }
}

#[test]
fn a_tree_of_nonsense_shows_every_peer_once() {
    let mut status = sample();
    let (me, pattern) = (status.peer.id, status.peers[1].clone());
    let id = |n: u8| PeerId([n; 16]);
    let peer = |n: u8, via: Option<u8>| Peer {
        id: id(n),
        name: format!("p{n}"),
        via: via.map(id),
        reachable: true,
        hops: 2,
        ..pattern.clone()
    };
    // A pair that relay for one another, a chain that hangs from them, a relay that is unknown, one's own relay, and me.
    status.peers =
        vec![peer(11, Some(12)), peer(12, Some(11)), peer(13, Some(12)), peer(14, Some(99)), peer(15, Some(15))];
    status.peers.push(Peer { id: me, ..peer(0, None) });
    status.routes.clear();
    let text = whole_tree(PLAIN, &status);
    for n in 11..=15 {
        assert_eq!(text.matches(&format!("p{n} ")).count(), 1, "p{n} in\n{text}");
    }
    assert!(!text.contains("unreachable"), "{text}");
}

#[test]
fn a_long_chain_of_relays_stays_on_the_screen() {
    let mut status = sample();
    let pattern = status.peers[1].clone();
    let id = |n: u32| PeerId(u128::from(n).to_be_bytes());
    status.peers = (1..=1_000)
        .map(|n| Peer {
            id: id(n),
            name: format!("p{n}"),
            via: (n > 1).then(|| id(n - 1)),
            reachable: true,
            hops: n,
            ..pattern.clone()
        })
        .collect();
    status.routes.clear();
    let text = whole_tree(PLAIN, &status);
    assert_eq!(text.lines().count(), 1_001);
    assert!(text.lines().all(|line| width(line) <= super::text::LINE));
    let short = tree::render(PLAIN, &status, &Names::of_status(&status), 60);
    assert_eq!(short.lines().count(), 61);
    assert!(short.ends_with("… and 941 more: meshctl topology\n"), "{short}");
}

#[test]
fn a_peer_behind_two_relays_hangs_from_the_last() {
    let mut status = sample();
    let pattern = status.peers[1].clone();
    let id = |n: u8| PeerId([n; 16]);
    let peer = |n: u8, via: Option<u8>| Peer {
        id: id(n),
        name: format!("p{n}"),
        via: via.map(id),
        reachable: true,
        hops: if via.is_some() { 3 } else { 1 },
        ..pattern.clone()
    };
    status.peers = vec![peer(1, None), peer(2, Some(1)), peer(3, Some(1))];
    status.routes = vec![Route {
        peer: id(3),
        name: "p3".into(),
        kind: "relayed".into(),
        address: None,
        relays: vec![id(1), id(2)],
        rtt_ms: 2.0,
        flood_to: Vec::new(),
    }];
    let text = whole_tree(PLAIN, &status);
    assert!(text.contains("\n  └─ p1"), "{text}");
    assert!(text.contains("\n     └─ p2"), "{text}");
    assert!(text.contains("\n        └─ p3"), "{text}");
}

#[test]
fn the_screen_is_bounded() {
    let mut status = sample();
    let link = status.links.iter().find(|link| link.state == LinkState::Established).unwrap().clone();
    status.links = vec![link; 128];
    status.problems = (0..30).map(|n| Problem { what: format!("thing {n}"), remedy: "mend it".into() }).collect();
    let text = status::screen(PLAIN, &status);
    assert!(text.contains("… and 20 more problems: meshctl status --json"), "{text}");
    assert!(text.contains("… and 88 more: meshctl status links"), "{text}");
    assert!(text.lines().count() < 100);
    assert_eq!(table::links(PLAIN, &status).lines().count(), 129);
}

#[test]
fn figures_for_people() {
    for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(number(n), text);
    }
    for (n, text) in [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (u64::MAX, "18446.7 PB"),
    ] {
        assert_eq!(bytes(n), text);
    }
    for (seconds, text) in [
        (0, "0 s"),
        (89, "89 s"),
        (90, "1 min"),
        (3_600, "1 h"),
        (7_500, "2 h 5 min"),
        (86_400, "1 d"),
        (360_000, "4 d 4 h"),
    ] {
        assert_eq!(age(seconds), text);
    }
    for (ms, text) in
        [(0.0, "-"), (-1.0, "-"), (f64::NAN, "-"), (0.412, "0.41 ms"), (9.996, "10.0 ms"), (123.4, "123 ms")]
    {
        assert_eq!(rtt(ms), text);
    }
}

#[test]
fn cutting_counts_cells() {
    assert_eq!(cut("abcdef", 6), "abcdef");
    assert_eq!(cut("abcdef", 4), "abc…");
    assert_eq!(cut("日本語日本", 6), "日本…");
    assert_eq!(cut("abc", 1), "…");
    assert_eq!(clean("a\u{300}b\u{ad}"), "a\u{fffd}b\u{fffd}");
}
