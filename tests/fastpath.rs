//! The kernel's fast path between real `meshd` processes: VXLAN where both ends trust the network, and the sealed path wherever that is not so.

#[path = "netns/lab.rs"]
mod lab;

use std::time::Duration;

use lab::{Host, Lab, Meshd};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
const TRUST: [&str; 2] = ["--trusted-subnet", "192.168.77.0/24"];

/// `a ── b`, with these arguments each.
fn two(lab: &Lab, of_a: &[&str], of_b: &[&str]) -> [(Host, Meshd); 2] {
    let (a, b) = (lab.host("a"), lab.host("b"));
    lab.wire(&a, "192.168.77.1/24", &b, "192.168.77.2/24");
    let first = lab.meshd(&a, of_a);
    let second = lab.meshd(&b, &[of_b, &["--peer", "192.168.77.1"]].concat());
    first.await_peers(2, 10 * SECOND);
    second.await_peers(2, 10 * SECOND);
    [(a, first), (b, second)]
}

fn transport(status: &Value) -> (&str, bool) {
    let link = &status["links"][0];
    (link["transport"].as_str().unwrap_or_default(), link["encrypted"] == true)
}

fn await_fast(meshd: &Meshd) {
    meshd.await_status("by vxlan", 10 * SECOND, |status| transport(status) == ("vxlan", false));
}

/// Addresses that the bridge sends into the VXLAN device.
fn switched(host: &Host) -> Vec<String> {
    let text = host.run(&["bridge", "fdb", "show", "dev", "mesh0-vx"]);
    text.lines()
        .filter(|line| line.contains("sticky"))
        .map(|line| line.split(' ').next().unwrap_or("").into())
        .collect()
}

fn await_switched(host: &Host, count: usize) {
    lab::wait(&format!("{}: {count} addresses switched", host.name), 5 * SECOND, || switched(host).len() == count);
}

/// `c1 ─ a ══ b ─ c2`: known unicast goes by VXLAN, the rest by the TAP, and the figures show it.
#[test]
fn known_unicast_goes_by_vxlan() {
    lab::test("known_unicast_goes_by_vxlan", |lab| {
        let [(host_a, mut a), (host_b, b)] = two(lab, &TRUST, &TRUST);
        await_fast(&a);
        await_fast(&b);
        let one = lab.container(&a, "c1", "10.32.0.1/12");
        let two = lab.container(&b, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        await_switched(&host_a, 1);
        await_switched(&host_b, 1);
        let file = lab.dir.join("wire.pcap").to_string_lossy().into_owned();
        let capture = host_a.capture("wire0", &file, "udp");
        let before = a.status()["data"]["tx_frames"].as_u64().unwrap_or(0);
        assert_eq!(one.pings("10.32.0.2", 100, 200), 100);
        // Broadcast and multicast stay sealed, and come once.
        let text = one.output(&["ping", "-n", "-b", "-c", "3", "-i", "0.3", "-W", "1", "10.47.255.255"]);
        assert!(!String::from_utf8_lossy(&text.stdout).contains("DUP!"));
        capture.stop();
        let count = |filter: &str| {
            host_a
                .run(&["sh", "-c", &format!("tcpdump -r {file} -n '{filter}' 2>/dev/null | wc -l")])
                .trim()
                .parse::<u32>()
        };
        assert!(count("udp port 6784").unwrap_or(0) >= 200, "pings and replies in VXLAN");
        lab::wait("the figures follow", 2 * SECOND, || a.status()["data"]["tx_frames"].as_u64() >= Some(before + 100));
        let trace = a.ctl(&["trace", "b"]);
        assert!(trace.contains("vxlan"), "{trace}");
        // Large frames, and super-frames.
        one.run(&["ping", "-n", "-q", "-c", "3", "-s", "20000", "10.32.0.2"]);
        let server = two.spawn(&["iperf3", "-s", "-1"]);
        std::thread::sleep(Duration::from_millis(300));
        one.run(&["iperf3", "-c", "10.32.0.2", "-t", "2"]);
        drop(server);
        // A clean stop leaves nothing.
        assert!(a.stop("TERM").success());
        assert!(!host_a.run(&["ip", "-o", "link"]).contains("mesh0-vx"));
        assert!(!host_a.run(&["nft", "list", "tables"]).contains("meshnet"));
        // And the other end lets go at once.
        await_switched(&host_b, 0);
    });
}
