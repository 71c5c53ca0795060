//! Segmented sends, super-frames and other source ports that a device or a machine on the way does not take, with real `meshd` processes.

#[path = "netns/lab.rs"]
mod lab;

use std::time::Duration;

use lab::{Host, Lab, Meshd};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

/// ```text
/// c1 ─ a ──wire0── router ──wire1── b ─ c2
/// ```
/// A segmented send crosses each wire in one piece, so the router can lose it and nothing else.
struct Routed {
    a: Meshd,
    b: Meshd,
    one: Host,
    two: Host,
    router: Host,
}

impl Routed {
    fn new(lab: &Lab, extra: [&[&str]; 2], before: impl FnOnce(&Host)) -> Routed {
        let [a, b, router] = ["a", "b", "router"].map(|name| lab.host(name));
        lab.wire(&a, "192.168.70.1/24", &router, "192.168.70.2/24");
        lab.wire(&b, "192.168.71.1/24", &router, "192.168.71.2/24");
        router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        a.run(&["ip", "route", "add", "192.168.71.0/24", "via", "192.168.70.2"]);
        b.run(&["ip", "route", "add", "192.168.70.0/24", "via", "192.168.71.2"]);
        before(&router);
        let first = lab.meshd(&a, extra[0]);
        let second = lab.meshd(&b, &[&["--peer", "192.168.70.1"], extra[1]].concat());
        first.await_peers(2, 15 * SECOND);
        second.await_peers(2, 15 * SECOND);
        let one = lab.container(&first, "c1", "10.32.0.1/12");
        let two = lab.container(&second, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        Routed { a: first, b: second, one, two, router }
    }

    /// Bytes that a stream of this many seconds brought over.
    fn stream(&self, seconds: u32, extra: &[&str]) -> f64 {
        let server = self.two.spawn(&["iperf3", "-s", "-1"]);
        std::thread::sleep(Duration::from_millis(300));
        let time = seconds.to_string();
        let report = self.one.run(&[&["iperf3", "-c", "10.32.0.2", "-J", "-t", &time], extra].concat());
        drop(server);
        let report: Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
        report["end"]["sum_received"]["bytes"].as_f64().expect("bytes")
    }

    fn carries_all(&self) {
        assert_eq!(self.one.pings("10.32.0.2", 50, 100), 50);
        self.one.run(&["ping", "-n", "-q", "-c", "3", "-s", "20000", "10.32.0.2"]);
        for extra in [&[][..], &["-R"]] {
            let bytes = self.stream(1, extra);
            assert!(bytes > 5e6, "{extra:?}: {bytes}");
        }
    }
}

/// Loses each segmented send, whatever is in it. What crosses by itself has no more than 1,500 bytes.
fn lose_trains(router: &Host) {
    router.run(&["nft", "add table inet wall; add chain inet wall way { type filter hook forward priority 0; }"]);
    router.run(&["nft", "add rule inet wall way meta length > 2000 counter drop"]);
}

fn lost(router: &Host) -> u64 {
    let rules = router.run(&["nft", "list", "table", "inet", "wall"]);
    let packets = rules.split("packets ").nth(1).and_then(|rest| rest.split_whitespace().next());
    packets.and_then(|count| count.parse().ok()).expect("a counter")
}

fn is_off(status: &Value) -> bool {
    status["links"][0]["reason"].as_str().is_some_and(|reason| reason.contains("segmented sends"))
}

#[test]
fn a_way_that_never_took_segmented_sends() {
    lab::test("a_way_that_never_took_segmented_sends", |lab| {
        let net = Routed::new(lab, [&[], &[]], lose_trains);
        // Found out before anything large was sent.
        for peer in [&net.a, &net.b] {
            peer.await_status("segmented sends off", 10 * SECOND, is_off);
        }
        assert!(lost(&net.router) > 0, "this kernel cuts segmented sends before the router: nothing was tried");
        net.carries_all();
        for peer in [&net.a, &net.b] {
            let status = peer.status();
            assert!(is_off(&status) && status["links"][0]["transport"] == "udp", "{status}");
            assert!(peer.ctl(&["status", "links"]).contains("segmented sends (UDP GSO) do not arrive"));
            assert_eq!(peer.log_text().matches("segmented sends do not arrive").count(), 1);
        }
    });
}

#[test]
fn a_way_that_stops_taking_them_under_load() {
    lab::test("a_way_that_stops_taking_them_under_load", |lab| {
        let net = Routed::new(lab, [&[], &[]], |_| ());
        let before = net.stream(1, &[]);
        assert!(![&net.a, &net.b].iter().any(|peer| is_off(&peer.status())), "a sound way: {before}");
        let server = net.two.spawn(&["iperf3", "-s", "-1"]);
        std::thread::sleep(Duration::from_millis(300));
        let mut load = net.one.spawn(&["iperf3", "-c", "10.32.0.2", "-t", "10", "-J", "-C", "reno"]);
        std::thread::sleep(2 * SECOND);
        lose_trains(&net.router);
        net.a.await_status("segmented sends off", 10 * SECOND, is_off);
        // The stream that was under way goes on. (BBR takes what it saw meanwhile for the path's rate, and needs longer.)
        let report: Value = serde_json::from_str(&load.finish()).expect("iperf3 prints JSON");
        let last = report["intervals"].as_array().and_then(|all| all.last()).expect("intervals");
        assert!(last["sum"]["bytes"].as_f64().expect("bytes") > 1e6, "{last}");
        drop(server);
        net.carries_all();
    });
}

const OFF: &[&str] = &["--offload", "off"];

fn works_without(net: &Routed) {
    let offloads = |peer: &Meshd| peer.status()["device"]["offloads"].as_array().map_or(0, Vec::len);
    assert_eq!(offloads(&net.a), 0);
    net.carries_all();
    assert!(![&net.a, &net.b].iter().any(|peer| is_off(&peer.status())));
}

#[test]
fn one_end_without_any_offload() {
    lab::test("one_end_without_any_offload", |lab| {
        let net = Routed::new(lab, [OFF, &[]], |_| ());
        works_without(&net);
        assert_eq!(net.b.status()["device"]["offloads"].as_array().map(Vec::len), Some(5));
    });
}

#[test]
fn both_ends_without_any_offload() {
    lab::test("both_ends_without_any_offload", |lab| works_without(&Routed::new(lab, [OFF, OFF], |_| ())));
}

#[test]
fn several_source_ports_and_a_firewall_that_knows_one() {
    lab::test("several_source_ports_and_a_firewall_that_knows_one", |lab| {
        const THREE: &[&str] = &["--workers", "3"];
        let net = Routed::new(lab, [THREE, THREE], |router| {
            router
                .run(&["nft", "add table inet wall; add chain inet wall way { type filter hook forward priority 0; }"]);
            router.run(&["nft", "add rule inet wall way udp dport 6783 udp sport != 6783 counter"]);
        });
        let ports = |status: &Value| status["links"][0]["ports"].as_u64();
        assert_eq!(ports(&net.a.status()), Some(1), "at rest");
        let server = net.two.spawn(&["iperf3", "-s", "-1"]);
        std::thread::sleep(Duration::from_millis(300));
        let mut load = net.one.spawn(&["iperf3", "-c", "10.32.0.2", "-t", "8", "-P", "8", "-J", "-C", "reno"]);
        net.a.await_status("three ports", 5 * SECOND, |status| ports(status) == Some(3));
        lab::wait("frames from other ports", 3 * SECOND, || lost(&net.router) > 1_000);
        net.router.run(&["nft", "add rule inet wall way udp dport 6783 udp sport != 6783 drop"]);
        net.a.await_status("one port", 3 * SECOND, |status| ports(status) == Some(1));
        let report: Value = serde_json::from_str(&load.finish()).expect("iperf3 prints JSON");
        let last = report["intervals"].as_array().and_then(|all| all.last()).expect("intervals");
        assert!(last["sum"]["bytes"].as_f64().expect("bytes") > 1e6, "{last}");
        drop(server);
        net.carries_all();
        assert_eq!(ports(&net.a.status()), Some(1), "not tried again so soon");
        assert!(!net.b.log_text().contains("peer moved"), "other ports are no move");
    });
}
