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

/// Pings ten seconds long while `during` happens; gives how many of a thousand came back, and whether any came twice.
fn thousand_pings(from: &Host, address: &str, during: impl FnOnce()) -> (u32, bool) {
    let mut pings = from.spawn(&["ping", "-n", "-i", "0.01", "-c", "1000", "-W", "2", address]);
    during();
    let text = pings.finish();
    (lab::received(&text), text.contains("DUP!"))
}

/// A filter in front of everything that comes to a host.
fn block(host: &Host, what: &str) {
    let chain = "type filter hook prerouting priority -400; policy accept;";
    host.run(&[
        "nft",
        &format!("add table ip trouble; add chain ip trouble in {{ {chain} }}; add rule ip trouble in {what} drop"),
    ]);
}

fn unblock(host: &Host) {
    host.run(&["nft", "delete table ip trouble"]);
}

/// Only probes are held back, so the path ends and returns while it works: nothing is lost or doubled by the switch itself, in either direction.
#[test]
fn no_ping_is_lost_or_doubled_by_a_switch() {
    lab::test("no_ping_is_lost_or_doubled_by_a_switch", |lab| {
        let [(host_a, a), (host_b, b)] = two(lab, &TRUST, &TRUST);
        await_fast(&a);
        await_fast(&b);
        let one = lab.container(&a, "c1", "10.32.0.1/12");
        let two = lab.container(&b, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        for (from, to, held) in [(&one, "10.32.0.2", &host_b), (&two, "10.32.0.1", &host_a)] {
            await_fast(&a);
            await_fast(&b);
            let (received, doubled) = thousand_pings(from, to, || {
                std::thread::sleep(SECOND);
                assert_eq!(transport(&a.status()), ("vxlan", false));
                block(held, "udp dport 6784 @th,224,16 0x88b5");
                let sealed = |status: &Value| transport(status) == ("udp", true);
                a.await_status("sealed", 6 * SECOND, sealed);
                unblock(held);
                await_fast(&a);
            });
            assert_eq!((received, doubled), (1000, false), "from {}", from.name);
        }
    });
}

/// VXLAN is filtered while our own port is open: frames go on by the TAP within a second, the reason is told, and all returns with the port.
#[test]
fn a_closed_port_moves_frames_back() {
    lab::test("a_closed_port_moves_frames_back", |lab| {
        let [(_, a), (host_b, b)] = two(lab, &TRUST, &TRUST);
        await_fast(&a);
        await_fast(&b);
        let one = lab.container(&a, "c1", "10.32.0.1/12");
        lab.container(&b, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        let (received, doubled) = thousand_pings(&one, "10.32.0.2", || {
            std::thread::sleep(2 * SECOND);
            block(&host_b, "udp dport 6784");
        });
        assert!((900..1000).contains(&received) && !doubled, "{received} of 1000");
        let reason = |status: &Value| status["links"][0]["reason"].as_str().unwrap_or_default().to_owned();
        let told = a.await_status("says why", 8 * SECOND, |status| reason(status).contains("does not pass"));
        assert_eq!(transport(&told), ("udp", true));
        assert!(reason(&told).contains("6784"), "{}", reason(&told));
        unblock(&host_b);
        await_fast(&a);
        await_fast(&b);
        assert_eq!(one.pings("10.32.0.2", 50, 100), 50);
    });
}

/// Trust of one side alone is none: everything stays sealed, both say so, and no VXLAN is on the wire.
#[test]
fn one_side_alone_stays_sealed() {
    lab::test("one_side_alone_stays_sealed", |lab| {
        let [(host_a, a), (_, b)] = two(lab, &TRUST, &[]);
        let reason = |status: &Value| status["links"][0]["reason"].as_str().unwrap_or_default().to_owned();
        a.await_status("says why", 5 * SECOND, |status| reason(status).contains("b does not name this subnet"));
        b.await_status("says why", 5 * SECOND, |status| reason(status).contains("this peer does not"));
        let one = lab.container(&a, "c1", "10.32.0.1/12");
        lab.container(&b, "c2", "10.32.0.2/12");
        let file = lab.dir.join("wire.pcap").to_string_lossy().into_owned();
        let capture = host_a.capture("wire0", &file, "udp port 6784");
        one.await_ping("10.32.0.2", 5 * SECOND);
        assert_eq!(one.pings("10.32.0.2", 100, 100), 100);
        capture.stop();
        let seen = host_a.run(&["sh", "-c", &format!("tcpdump -r {file} -n 2>/dev/null | wc -l")]);
        assert_eq!(seen.trim(), "0");
        for status in [a.status(), b.status()] {
            assert_eq!(transport(&status), ("udp", true));
        }
    });
}

/// A peer that is killed: nothing leads there any more. Started again, it finds its own leftovers and removes them.
#[test]
fn a_killed_peer_leaves_nothing_behind() {
    lab::test("a_killed_peer_leaves_nothing_behind", |lab| {
        let [(host_a, a), (host_b, mut b)] = two(lab, &TRUST, &TRUST);
        await_fast(&a);
        await_fast(&b);
        let one = lab.container(&a, "c1", "10.32.0.1/12");
        lab.container(&b, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        await_switched(&host_a, 1);
        await_switched(&host_b, 1);
        b.stop("KILL");
        await_switched(&host_a, 0);
        assert_eq!(switched(&host_b).len(), 1, "nobody is there to remove it");
        let before = host_b.run(&["cat", "/sys/class/net/mesh0-vx/ifindex"]);
        // Without trust now: device and guard of the run before must go all the same.
        let b = lab.meshd(&host_b, &["--peer", "192.168.77.1"]);
        b.await_peers(2, 10 * SECOND);
        assert!(!host_b.run(&["ip", "-o", "link"]).contains("mesh0-vx"), "{before}");
        assert!(!host_b.run(&["nft", "list", "tables"]).contains("meshnet"));
        one.await_ping("10.32.0.2", 5 * SECOND);
    });
}

/// `c` reaches the port of VXLAN but is no peer: what it sends there comes to no container. Without the guard it would.
#[test]
fn strangers_are_kept_out() {
    lab::test("strangers_are_kept_out", |lab| {
        let switch = lab.switch("switch");
        let hosts = ["a", "b", "c"].map(|name| lab.host(name));
        for (host, address) in hosts.iter().zip(["192.168.77.1/24", "192.168.77.2/24", "192.168.77.3/24"]) {
            switch.plug(host, address);
        }
        let mut a = lab.meshd(&hosts[0], &TRUST);
        let b = lab.meshd(&hosts[1], &[&TRUST[..], &["--peer", "192.168.77.1"]].concat());
        a.await_peers(2, 10 * SECOND);
        await_fast(&a);
        await_fast(&b);
        let one = lab.container(&a, "c1", "10.32.0.1/12");
        let text = hosts[0].run(&["ip", "-d", "link", "show", "mesh0-vx"]);
        let words: Vec<&str> = text.split_whitespace().collect();
        let network = words.windows(2).find(|pair| pair[0] == "id").map(|pair| pair[1].to_owned()).expect("a network");
        let stranger = &hosts[2];
        stranger.run(&[
            "ip",
            "link",
            "add",
            "forged",
            "type",
            "vxlan",
            "id",
            &network,
            "dstport",
            "6784",
            "remote",
            "192.168.77.1",
        ]);
        stranger.run(&["ip", "address", "add", "10.32.0.9/12", "dev", "forged"]);
        stranger.run(&["ip", "link", "set", "forged", "up"]);
        stranger.run(&["ip", "neigh", "add", "10.32.0.1", "lladdr", "0a:58:0a:20:00:01", "dev", "forged"]);
        let file = lab.dir.join("c1.pcap").to_string_lossy().into_owned();
        let heard = |expected: bool| {
            let capture = one.capture("ethmesh", &file, "icmp and src 10.32.0.9");
            stranger.output(&["ping", "-n", "-q", "-c", "5", "-i", "0.2", "-W", "1", "10.32.0.1"]);
            capture.stop();
            let seen = one.run(&["sh", "-c", &format!("tcpdump -r {file} -n 2>/dev/null | wc -l")]);
            assert_eq!(seen.trim() != "0", expected, "{seen}");
        };
        heard(false);
        // A firewall that is loaded anew takes the guard away for a second at most.
        hosts[0].run(&["nft", "flush", "ruleset"]);
        let guarded = || hosts[0].run(&["nft", "list", "tables"]).contains("ip meshnet-mesh0");
        lab::wait("the guard is back", 4 * SECOND, guarded);
        heard(false);
        await_fast(&a);
        // The same with the guard away and nobody to put it back, or this test would prove nothing.
        a.stop("KILL");
        hosts[0].run(&["nft", "delete", "table", "ip", "meshnet-mesh0"]);
        heard(true);
    });
}

/// A station that moves from `b` to `c` is found there, and later at home.
#[test]
fn a_station_that_moves_is_followed() {
    lab::test("a_station_that_moves_is_followed", |lab| {
        let switch = lab.switch("switch");
        let hosts = ["a", "b", "c"].map(|name| lab.host(name));
        for (host, address) in hosts.iter().zip(["192.168.77.1/24", "192.168.77.2/24", "192.168.77.3/24"]) {
            switch.plug(host, address);
        }
        let a = lab.meshd(&hosts[0], &TRUST);
        let [b, c] = [1, 2].map(|at| lab.meshd(&hosts[at], &[&TRUST[..], &["--peer", "192.168.77.1"]].concat()));
        for peer in [&a, &b, &c] {
            peer.await_peers(3, 10 * SECOND);
            peer.await_status("both by vxlan", 10 * SECOND, |status| {
                let links = status["links"].as_array().cloned().unwrap_or_default();
                links.len() == 2 && links.iter().all(|link| link["transport"] == "vxlan")
            });
        }
        let one = lab.container(&a, "c1", "10.32.0.1/12");
        let two = lab.container(&b, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        await_switched(&hosts[0], 1);
        b.ctl(&["detach", "c2"]);
        c.ctl(&["attach", "c2", "10.32.0.2/12"]);
        one.await_ping("10.32.0.2", 5 * SECOND);
        await_switched(&hosts[0], 1);
        let fdb = hosts[0].run(&["bridge", "fdb", "show", "dev", "mesh0-vx"]);
        assert!(
            fdb.lines().any(|line| line.contains("0a:58:0a:20:00:02") && line.contains("dst 192.168.77.3")),
            "{fdb}"
        );
        assert_eq!(one.pings("10.32.0.2", 50, 100), 50);
        c.ctl(&["detach", "c2"]);
        a.ctl(&["attach", "c2", "10.32.0.2/12"]);
        one.await_ping("10.32.0.2", 5 * SECOND);
        await_switched(&hosts[0], 0);
        drop(two);
    });
}

/// With managed addresses: the host's own, whose MAC address is another than the one that follows from it, is reached by VXLAN, and whoever speaks in the
/// name of another peer's address is not heard.
#[test]
fn managed_addresses_keep_their_rules() {
    lab::test("managed_addresses_keep_their_rules", |lab| {
        let arguments =
            [&TRUST[..], &["--ipam-range", "10.32.0.0/12", "--ipam-init", "seed=a,b", "--expose", "auto"]].concat();
        let [(host_a, a), (_, b)] = two(lab, &arguments, &arguments);
        let exposed = |meshd: &Meshd| {
            let status = meshd.await_status("the host's address", 10 * SECOND, |status| {
                status["device"]["exposed"].as_array().is_some_and(|exposed| exposed.len() == 1)
            });
            plain(status["device"]["exposed"][0].as_str().unwrap_or_default())
        };
        let host_address = exposed(&b);
        await_fast(&a);
        await_fast(&b);
        let (one, two) = (lab.host("c1"), lab.host("c2"));
        let own = plain(&a.ctl(&["attach", "c1"]));
        let other = plain(&b.ctl(&["attach", "c2"]));
        one.await_ping(&host_address, 5 * SECOND);
        one.await_ping(&other, 5 * SECOND);
        let wanted = [mac_of(&host_address), mac_of(&other)];
        lab::wait("both are switched", 5 * SECOND, || wanted.iter().all(|mac| switched(&host_a).contains(mac)));
        assert_eq!(one.pings(&host_address, 50, 100), 50);
        assert_eq!(one.pings(&other, 50, 100), 50);
        // In the name of the other machine, to one of its containers.
        let file = lab.dir.join("c2.pcap").to_string_lossy().into_owned();
        let heard = |from: &str| {
            one.run(&["ip", "link", "set", "ethmesh", "address", from]);
            one.run(&["ip", "neigh", "replace", &other, "lladdr", &mac_of(&other), "dev", "ethmesh"]);
            let capture = two.capture("ethmesh", &file, &format!("icmp and src {own}"));
            one.output(&["ping", "-n", "-q", "-c", "5", "-i", "0.2", "-W", "1", &other]);
            capture.stop();
            two.run(&["sh", "-c", &format!("tcpdump -r {file} -n 2>/dev/null | wc -l")]).trim() != "0"
        };
        assert!(!heard(&mac_of(&host_address)), "a spoke for an address of b");
        assert!(heard(&mac_of(&own)));
    });
}

/// Without its prefix, and without what follows it.
fn plain(text: &str) -> String {
    let word = text.split_whitespace().find(|word| word.contains("10.")).unwrap_or_default();
    word.split('/').next().unwrap_or_default().to_owned()
}

fn mac_of(address: &str) -> String {
    let parts: Vec<u8> = address.split('.').filter_map(|part| part.parse().ok()).collect();
    format!("0a:58:{:02x}:{:02x}:{:02x}:{:02x}", parts[0], parts[1], parts[2], parts[3])
}
