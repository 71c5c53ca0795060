//! By what frames travel, with real `meshd` processes: QUIC by choice, and because a firewall lets nothing else pass.
//! All tests have `container 1 ─ a ── b ─ container 2`.

#[path = "netns/lab.rs"]
mod lab;

use std::time::Duration;

use lab::{Host, Lab, Meshd};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

/// Sealed datagrams are those whose first byte has neither of QUIC's first two bits (RFC 9000, 17).
const SEALED: &str = "udp dport 6783 @th,64,8 & 0xc0 == 0";
const QUIC: &str = "udp dport 6783 @th,64,8 & 0xc0 != 0";

struct Pair {
    hosts: [Host; 2],
    peers: [Meshd; 2],
    containers: [Host; 2],
}

fn pair(lab: &Lab, extra: [&[&str]; 2], before: impl FnOnce(&[Host; 2])) -> Pair {
    let hosts = [lab.host("a"), lab.host("b")];
    lab.wire(&hosts[0], "192.168.77.1/24", &hosts[1], "192.168.77.2/24");
    before(&hosts);
    let peers =
        [lab.meshd(&hosts[0], extra[0]), lab.meshd(&hosts[1], &[&["--peer", "192.168.77.1"], extra[1]].concat())];
    peers.iter().for_each(|peer| drop(peer.await_peers(2, 10 * SECOND)));
    let containers = [lab.container(&peers[0], "c1", "10.32.0.1/12"), lab.container(&peers[1], "c2", "10.32.0.2/12")];
    Pair { hosts, peers, containers }
}

/// Drops what matches, as a firewall between the two would.
fn block(host: &Host, what: &str) {
    host.run(&["nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; }"]);
    host.run(&["nft", "flush chain inet wall in"]);
    host.run(&["nft", &format!("add rule inet wall in {what} counter drop")]);
}

fn open(host: &Host) {
    host.run(&["nft", "delete table inet wall"]);
}

fn transport(status: &Value) -> &str {
    status["links"][0]["transport"].as_str().unwrap_or_default()
}

fn await_transport(pair: &Pair, by: &str, limit: Duration) {
    for peer in &pair.peers {
        peer.await_status(by, limit, |status| transport(status) == by);
    }
}

/// Everything that frames are: small, large, fragments of IP, streams both ways.
fn carries_all(pair: &Pair) {
    let [one, two] = &pair.containers;
    one.await_ping("10.32.0.2", 5 * SECOND);
    assert_eq!(one.pings("10.32.0.2", 50, 100), 50);
    let mtu = pair.peers[0].status()["device"]["mtu"].as_u64().expect("mtu") - 28;
    one.run(&["ping", "-n", "-q", "-c", "3", "-M", "do", "-s", &mtu.to_string(), "10.32.0.2"]);
    one.run(&["ping", "-n", "-q", "-c", "3", "-s", "20000", "10.32.0.2"]);
    for reverse in [&[][..], &["-R"][..]] {
        let server = two.spawn(&["iperf3", "-s", "-1"]);
        std::thread::sleep(Duration::from_millis(300));
        let report = one.run(&[&["iperf3", "-c", "10.32.0.2", "-t", "1", "-J"], reverse].concat());
        let report: Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
        assert!(report["end"]["sum_received"]["bytes"].as_f64().expect("bytes") > 5e6, "{reverse:?}");
        drop(server);
    }
}

#[test]
fn quic_by_choice_carries_everything_and_nothing_else_is_seen() {
    lab::test("quic_by_choice_carries_everything_and_nothing_else_is_seen", |lab| {
        let quic: &[&str] = &["--transport", "quic"];
        let pair = pair(lab, [quic, quic], |_| ());
        await_transport(&pair, "quic", SECOND);
        // From here on a sealed datagram would be counted.
        pair.hosts.iter().for_each(|host| block(host, SEALED));
        carries_all(&pair);
        for host in &pair.hosts {
            let rules = host.run(&["nft", "list", "table", "inet", "wall"]);
            assert!(rules.contains("packets 0 "), "{rules}");
        }
        let status = pair.peers[0].status();
        assert_eq!((&status["links"][0]["encrypted"], &status["links"][0]["reason"]), (&true.into(), &Value::Null));
        assert!(pair.peers[0].ctl(&["ping", "b"]).contains("QUIC"));
        assert_eq!(status["links"][0]["address"], "192.168.77.2:6783");
    });
}

#[test]
fn frames_fall_back_to_quic_and_return() {
    lab::test("frames_fall_back_to_quic_and_return", |lab| {
        let pair = pair(lab, [&[], &[]], |_| ());
        let one = &pair.containers[0];
        one.await_ping("10.32.0.2", 5 * SECOND);
        assert_eq!(transport(&pair.peers[0].status()), "udp");
        let mut pings = one.spawn(&["ping", "-n", "-q", "-i", "0.01", "-c", "400", "-W", "1", "10.32.0.2"]);
        std::thread::sleep(SECOND);
        pair.hosts.iter().for_each(|host| block(host, SEALED));
        let text = pings.finish();
        assert!(lab::received(&text) >= 280, "{text}");
        await_transport(&pair, "quic", 5 * SECOND);
        let status = pair.peers[0].status();
        let said = |text: &Value| text.as_str().is_some_and(|text| text.contains("sealed UDP does not pass"));
        assert!(said(&status["links"][0]["reason"]) && said(&status["problems"][0]["what"]), "{status}");
        carries_all(&pair);
        // Opened again, they return, and nothing is lost or doubled by it.
        let mut pings = one.spawn(&["ping", "-n", "-q", "-i", "0.01", "-c", "600", "-W", "1", "10.32.0.2"]);
        pair.hosts.iter().for_each(open);
        await_transport(&pair, "udp", 10 * SECOND);
        let text = pings.finish();
        assert!(text.contains("600 received") && !text.contains("duplicates"), "{text}");
        let status = pair.peers[0].status();
        assert_eq!(
            (&status["links"][0]["reason"], status["problems"].as_array().map(Vec::len)),
            (&Value::Null, Some(0))
        );
    });
}

#[test]
fn a_network_that_never_let_sealed_udp_pass() {
    lab::test("a_network_that_never_let_sealed_udp_pass", |lab| {
        let pair = pair(lab, [&[], &[]], |hosts| hosts.iter().for_each(|host| block(host, SEALED)));
        pair.containers[0].await_ping("10.32.0.2", 10 * SECOND);
        await_transport(&pair, "quic", 10 * SECOND);
        carries_all(&pair);
    });
}

#[test]
fn udp_heals_while_quic_breaks() {
    lab::test("udp_heals_while_quic_breaks", |lab| {
        let pair = pair(lab, [&[], &[]], |_| ());
        let one = &pair.containers[0];
        one.await_ping("10.32.0.2", 5 * SECOND);
        pair.hosts.iter().for_each(|host| block(host, SEALED));
        await_transport(&pair, "quic", 10 * SECOND);
        // The other way round at one stroke.
        pair.hosts.iter().for_each(|host| block(host, QUIC));
        one.await_ping("10.32.0.2", 5 * SECOND);
        assert!(one.pings("10.32.0.2", 50, 50) >= 48);
        pair.hosts.iter().for_each(open);
        await_transport(&pair, "udp", 10 * SECOND);
        assert_eq!(one.pings("10.32.0.2", 50, 100), 50);
    });
}

#[test]
fn one_end_has_only_udp_and_one_only_quic() {
    lab::test("one_end_has_only_udp_and_one_only_quic", |lab| {
        let pair = pair(lab, [&["--transport", "udp"], &["--transport", "quic"]], |_| ());
        carries_all(&pair);
        assert_eq!(transport(&pair.peers[0].status()), "udp");
        assert_eq!(transport(&pair.peers[1].status()), "quic");
    });
}
