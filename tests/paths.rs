//! Paths that take less than their ends believe, change, lose, double and reorder: real `meshd` processes, and a router between them that tells nobody.

#[path = "netns/lab.rs"]
mod lab;

use std::collections::BTreeMap;
use std::time::Duration;

use lab::{Host, Lab, Meshd};
use meshnet::sys::netns::Netns;
use meshnet::sys::packet::send_frame;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

/// ```text
/// c1 ─ a ──wire0── router ──wire1── b ─ c2
///        own    own    path    own
/// ```
/// The MTU of each end of a wire. What is longer than `path` is lost at the router both ways, and no ICMP says so.
struct Narrow {
    a: Meshd,
    b: Meshd,
    one: Host,
    two: Host,
    router: Host,
}

impl Narrow {
    fn new(lab: &Lab, own: u32, path: u32, v6: bool) -> Narrow {
        let [a, b, router] = ["a", "b", "router"].map(|name| lab.host(name));
        let net = |wire: u32, host: u32| {
            if v6 { format!("fd00:{wire}::{host}") } else { format!("192.168.{wire}.{host}") }
        };
        let bits = if v6 { 64 } else { 24 };
        let with_bits = |wire, host| format!("{}/{bits}", net(wire, host));
        lab.wire(&a, &with_bits(0, 1), &router, &with_bits(0, 2));
        lab.wire(&b, &with_bits(1, 1), &router, &with_bits(1, 2));
        router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        router.run(&["nft", MUTE]);
        for (host, wire, mtu) in
            [(&a, "wire0", own), (&b, "wire1", own), (&router, "wire0", own), (&router, "wire1", path)]
        {
            set_mtu(host, wire, mtu);
        }
        for (host, wire) in [(&a, 0), (&b, 1)] {
            let far = format!("{}/{bits}", net(1 - wire, 0).trim_end_matches(|digit| v6 && digit == '0'));
            host.run(&["ip", "route", "add", &far, "via", &net(wire, 2)]);
        }
        let first = lab.meshd(&a, &[]);
        let second = lab.meshd(&b, &["--peer", &net(0, 1)]);
        first.await_peers(2, 10 * SECOND);
        second.await_peers(2, 10 * SECOND);
        let one = lab.container(&first, "c1", "10.32.0.1/12");
        let two = lab.container(&second, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        Narrow { a: first, b: second, one, two, router }
    }

    /// Waits until both ends know what the path takes, and until they tell those who send more.
    fn await_found(&self, path: u32) {
        for (peer, from, to) in [(&self.a, &self.one, "10.32.0.2"), (&self.b, &self.two, "10.32.0.1")] {
            peer.await_status(&format!("a path of {path}"), 20 * SECOND, |status| found(status, path));
            let mtu = mtu(peer);
            if mtu > path - 90 {
                let size = (mtu - 28).to_string();
                peer.await_status("tells", 10 * SECOND, |status| {
                    from.output(&["ping", "-n", "-q", "-c", "1", "-W", "0.2", "-M", "do", "-s", &size, to]);
                    status["data"]["told_too_big"].as_u64() > Some(0)
                });
            }
        }
    }

    /// Pings of these sizes both ways: each comes back, or who sent it hears why not.
    fn assert_pings(&self, sizes: &[u32]) {
        for (from, to) in [(&self.one, "10.32.0.2"), (&self.two, "10.32.0.1")] {
            let each = sizes.iter().flat_map(|size| [(*size, "dont"), (*size, "do")]);
            let sent: Vec<_> = each
                .map(|(size, divide)| {
                    (
                        size,
                        divide,
                        from.spawn(&ping_words(to, size, divide).iter().map(String::as_str).collect::<Vec<_>>()),
                    )
                })
                .collect();
            for (size, divide, mut ping) in sent {
                let text = ping.finish();
                let told = divide == "do" && (text.contains("too long") || text.contains("Frag needed"));
                assert!(told || lab::received(&text) == 1, "{} {size} {divide}: {text}", from.name);
            }
        }
    }

    /// TCP both ways in segments that fit: hardly anything travels in fragments.
    fn assert_streams_fit(&self) {
        // What the ends were told is forgotten, so that they name the segments of a whole packet.
        for container in [&self.one, &self.two] {
            container.run(&["ip", "route", "flush", "cache"]);
        }
        let before = self.sums();
        stream(&self.one, &self.two, "10.32.0.2", &["-t", "1"]);
        stream(&self.one, &self.two, "10.32.0.2", &["-t", "1", "-R"]);
        let after = self.sums();
        let grown = |key: &str| after[key] - before[key];
        println!("frames {} fragmented {} clamped {}", grown("tx_frames"), grown("fragmented"), grown("clamped"));
        assert!(grown("fragmented") <= grown("tx_frames") / 50, "{before:?} {after:?}");
    }

    /// Counters of both ends together.
    fn sums(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for peer in [&self.a, &self.b] {
            let status = peer.status();
            let data = status["data"].as_object().expect("data");
            let drops = data["drops"].as_object().expect("drops");
            for (key, value) in data.iter().chain(drops) {
                *sums.entry(key.clone()).or_insert(0) += value.as_u64().unwrap_or(0);
            }
        }
        sums
    }

    fn drops(&self, reason: &str) -> u64 {
        self.sums().get(reason).copied().unwrap_or(0)
    }
}

const MUTE: &str = "add table inet mute; add chain inet mute out { type filter hook output priority 0; }; \
    add rule inet mute out icmp type destination-unreachable drop; add rule inet mute out icmpv6 type packet-too-big drop";

fn set_mtu(host: &Host, device: &str, mtu: u32) {
    host.run(&["ip", "link", "set", device, "mtu", &mtu.to_string()]);
}

fn found(status: &Value, path: u32) -> bool {
    let found = status["links"][0]["mtu"].as_u64().unwrap_or(0) as u32;
    // A veth takes four bytes more than its MTU, for a tag.
    (path - 8..=path + 4).contains(&found)
}

/// Of the overlay.
fn mtu(peer: &Meshd) -> u32 {
    peer.status()["device"]["mtu"].as_u64().expect("mtu") as u32
}

fn ping(from: &Host, to: &str, size: u32, divide: &str) -> String {
    from.spawn(&ping_words(to, size, divide).iter().map(String::as_str).collect::<Vec<_>>()).finish()
}

/// Not quiet: it would not say why nothing was sent.
fn ping_words(to: &str, size: u32, divide: &str) -> Vec<String> {
    let size = size.to_string();
    let words = ["ping", "-n", "-c", "1", "-W", "1", "-M", divide, "-s", &size, to];
    words.map(str::to_owned).to_vec()
}

/// TCP between two containers; gives what `iperf3` says of it.
fn stream(from: &Host, to: &Host, address: &str, more: &[&str]) -> Value {
    let server = serve(to);
    let report = from.run(&[&["iperf3", "-c", address, "-J"], more].concat());
    drop(server);
    let report: Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
    assert!(report["end"]["sum_received"]["bytes"].as_f64() > Some(100_000.0), "{report}");
    report
}

fn serve(on: &Host) -> lab::Background {
    let server = on.spawn(&["iperf3", "-s", "-1"]);
    lab::wait("iperf3 listens", 5 * SECOND, || on.run(&["ss", "-Hltn", "sport = :5201"]).contains("5201"));
    server
}

/// Sizes of pings on either side of where a packet fills the smallest unit of the path, two and three of them, and the MTU of the overlay.
fn sizes(path: u32, v6: bool, mtu: u32) -> Vec<u32> {
    let whole = path - if v6 { 48 } else { 28 } - 48 - 14 - 28;
    let edges = [whole, whole + 16, 2 * whole, 3 * whole, mtu - 28];
    let mut sizes: Vec<u32> =
        edges.iter().flat_map(|edge| edge - 1..=edge + 1).filter(|size| size + 28 <= mtu).collect();
    sizes.extend([0, 1, 17, 1_000.min(mtu - 28), mtu - 28]);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn a_path_of(lab: &Lab, own: u32, path: u32, v6: bool) {
    let narrow = Narrow::new(lab, own, path, v6);
    // Before anything is known of the path: in fragments, if need be.
    let mtu = mtu(&narrow.a);
    narrow.assert_pings(&[100, mtu - 28]);
    narrow.await_found(path);
    narrow.assert_pings(&sizes(path, v6, mtu));
    // Longer than the overlay's MTU: the sender's own kernel cuts it.
    assert_eq!(narrow.one.pings("10.32.0.2", 5, 100), 5);
    assert_eq!(lab::received(&ping(&narrow.one, "10.32.0.2", 3 * mtu, "dont")), 1);
    narrow.assert_streams_fit();
    let clamped = narrow.sums()["clamped"];
    assert_eq!(clamped > 0, mtu > path - 90, "{clamped} clamped");
    assert_eq!((narrow.drops("too_big"), narrow.drops("incomplete")), (0, 0));
}

#[test]
fn a_path_of_1280() {
    lab::test("a_path_of_1280", |lab| a_path_of(lab, 1_500, 1_280, false));
}

#[test]
fn a_path_of_1280_over_ipv6() {
    lab::test("a_path_of_1280_over_ipv6", |lab| a_path_of(lab, 9_000, 1_280, true));
}

#[test]
fn an_underlay_of_1280_throughout() {
    lab::test("an_underlay_of_1280_throughout", |lab| a_path_of(lab, 1_280, 1_280, true));
}

#[test]
fn a_path_of_1400() {
    lab::test("a_path_of_1400", |lab| a_path_of(lab, 9_000, 1_400, false));
}

#[test]
fn a_path_of_1500() {
    lab::test("a_path_of_1500", |lab| a_path_of(lab, 9_000, 1_500, false));
}

#[test]
fn a_path_of_9000() {
    lab::test("a_path_of_9000", |lab| a_path_of(lab, 9_000, 9_000, false));
}

/// A stream that runs while the path shrinks and grows again.
#[test]
fn a_stream_outlives_a_change_of_its_path() {
    lab::test("a_stream_outlives_a_change_of_its_path", |lab| {
        let narrow = Narrow::new(lab, 9_000, 9_000, false);
        narrow.await_found(9_000);
        let server = serve(&narrow.two);
        let mut stream = narrow.one.spawn(&["iperf3", "-c", "10.32.0.2", "-t", "10", "-i", "0.5", "-J"]);
        let pings = ["ping", "-n", "-q", "-i", "0.02", "-c", "500", "-W", "1", "-s", "5000", "10.32.0.2"];
        let mut pings = narrow.one.spawn(&pings);
        std::thread::sleep(SECOND);
        set_mtu(&narrow.router, "wire1", 1_400);
        for peer in [&narrow.a, &narrow.b] {
            peer.await_status("a path of 1400", 10 * SECOND, |status| found(status, 1_400));
        }
        // The sender's kernel hears of it, and its segments fit.
        lab::wait("segments fit", 10 * SECOND, || {
            let before = narrow.sums();
            std::thread::sleep(SECOND / 2);
            let after = narrow.sums();
            let fragments = after["fragmented"] - before["fragmented"];
            // The pings, 50 a second both ways, stay too long.
            after["tx_frames"] - before["tx_frames"] > 500 && fragments < 100
        });
        set_mtu(&narrow.router, "wire1", 9_000);
        let lost = 500 - lab::received(&pings.finish());
        let report: Value = serde_json::from_str(&stream.finish()).expect("iperf3 prints JSON");
        drop(server);
        let rates = report["intervals"].as_array().expect("intervals").iter();
        let rates: Vec<f64> = rates.map(|each| each["sum"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6).collect();
        println!(
            "pings of 5,000 bytes lost by the change: {lost} of 500, 50 a second; Mbit/s each half second: {rates:.0?}"
        );
        assert!(lost <= 150, "{lost} pings lost");
        assert!(rates.iter().rev().take(4).all(|rate| *rate > 0.0), "the stream did not recover: {rates:?}");
        assert_eq!(lab::received(&ping(&narrow.one, "10.32.0.2", 8_000, "dont")), 1);
    });
}

/// `c1 ─ a ── relay ── b ─ c2`: the second wire takes less than a full packet of the overlay.
#[test]
fn a_narrow_wire_behind_a_relay() {
    lab::test("a_narrow_wire_behind_a_relay", |lab| {
        let [a, relay, b] = ["a", "relay", "b"].map(|name| lab.host(name));
        lab.wire(&a, "192.168.0.1/24", &relay, "192.168.0.2/24");
        let wire = lab.wire(&relay, "192.168.1.2/24", &b, "192.168.1.1/24");
        set_mtu(&relay, &wire, 1_400);
        set_mtu(&b, &wire, 1_400);
        let first = lab.meshd(&a, &["--mtu", "1310"]);
        let middle = lab.meshd(&relay, &["--mtu", "1310", "--peer", "192.168.0.1"]);
        let last = lab.meshd(&b, &["--mtu", "1310", "--peer", "192.168.1.2"]);
        for peer in [&first, &middle, &last] {
            peer.await_peers(3, 10 * SECOND);
        }
        let one = lab.container(&first, "c1", "10.32.0.1/12");
        let two = lab.container(&last, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        for size in [100, 1_050, 1_150, 1_282] {
            let text = ping(&one, "10.32.0.2", size, "dont");
            assert_eq!(lab::received(&text), 1, "{size}: {text}");
        }
        for (peer, from, to) in [(&first, &one, "10.32.0.2"), (&last, &two, "10.32.0.1")] {
            peer.await_status("tells", 15 * SECOND, |status| {
                from.output(&["ping", "-n", "-q", "-c", "1", "-W", "0.2", "-M", "do", "-s", "1282", to]);
                status["data"]["told_too_big"].as_u64() > Some(0)
            });
            from.run(&["ip", "route", "flush", "cache"]);
        }
        let figure = |key: &str| {
            [&first, &last].map(|peer| peer.status()["data"][key].as_u64().unwrap_or(0)).iter().sum::<u64>()
        };
        let before = ["tx_frames", "fragmented", "clamped"].map(figure);
        stream(&one, &two, "10.32.0.2", &["-t", "1"]);
        stream(&one, &two, "10.32.0.2", &["-t", "1", "-R"]);
        let after = ["tx_frames", "fragmented", "clamped"].map(figure);
        println!(
            "by a relay, before and after: {before:?} {after:?}; the relay's drops: {}",
            middle.status()["data"]["drops"]
        );
        assert!(after[2] > before[2] && after[1] - before[1] <= (after[0] - before[0]) / 50, "{before:?} {after:?}");
        for size in [100, 1_050, 1_150, 1_282] {
            let text = ping(&one, "10.32.0.2", size, "dont");
            assert_eq!(lab::received(&text), 1, "{size}: {text}");
        }
    });
}

/// `c1 ─ a ── b ─ c2`, where b's overlay takes less than a's: a packet that the path takes, but the bridge at its end does not.
#[test]
fn an_overlay_of_two_lengths() {
    lab::test("an_overlay_of_two_lengths", |lab| {
        let (a, b) = (lab.host("a"), lab.host("b"));
        lab.wire(&a, "192.168.77.1/24", &b, "192.168.77.2/24");
        let first = lab.meshd(&a, &["--mtu", "1400"]);
        let second = lab.meshd(&b, &["--mtu", "1200", "--peer", "192.168.77.1"]);
        first.await_peers(2, 10 * SECOND);
        let one = lab.container(&first, "c1", "10.32.0.1/12");
        let two = lab.container(&second, "c2", "10.32.0.2/12");
        one.await_ping("10.32.0.2", 5 * SECOND);
        assert_eq!(lab::received(&ping(&one, "10.32.0.2", 1_172, "do")), 1);
        let text = ping(&one, "10.32.0.2", 1_173, "do");
        assert!(text.contains("mtu = 1200") || text.contains("mtu=1200"), "{text}");
        stream(&one, &two, "10.32.0.2", &["-n", "5M"]);
        stream(&one, &two, "10.32.0.2", &["-n", "5M", "-R"]);
        first.await_status("says so", 5 * SECOND, |status| status["problems"].to_string().contains("MTU of 1200"));
    });
}

/// `c1 c3 ─ a ── b ─ c2 c4`: the wire's MTU grows, so that the overlay's does, and shrinks again under those who have got used to it.
#[test]
fn the_overlay_follows_the_underlay() {
    lab::test("the_overlay_follows_the_underlay", |lab| {
        let (a, b) = (lab.host("a"), lab.host("b"));
        let wire = lab.wire(&a, "192.168.77.1/24", &b, "192.168.77.2/24");
        let first = lab.meshd(&a, &[]);
        let second = lab.meshd(&b, &["--peer", "192.168.77.1"]);
        first.await_peers(2, 10 * SECOND);
        let one = lab.container(&first, "c1", "10.32.0.1/12");
        let follow = |underlay: u32| {
            set_mtu(&a, &wire, underlay);
            set_mtu(&b, &wire, underlay);
            for (host, peer) in [(&a, &first), (&b, &second)] {
                peer.await_status("the overlay follows", 5 * SECOND, |status| {
                    status["device"]["mtu"].as_u64() == Some(u64::from(underlay - 130))
                });
                lab::wait("the bridge follows", 5 * SECOND, || link_mtu(host, "mesh0") == underlay - 130);
                peer.await_status("the path follows", 10 * SECOND, |status| found(status, underlay));
            }
        };
        follow(9_000);
        let three = lab.container(&first, "c3", "10.32.0.3/12");
        let four = lab.container(&second, "c4", "10.32.0.4/12");
        assert_eq!([&one, &three, &four].map(|host| link_mtu(host, "ethmesh")), [1_370, 8_870, 8_870]);
        three.await_ping("10.32.0.4", 5 * SECOND);
        let text = ping(&three, "10.32.0.4", 8_842, "do");
        assert_eq!(lab::received(&text), 1, "{text}");
        follow(1_400);
        assert_eq!([&one, &three, &four].map(|host| link_mtu(host, "ethmesh")), [1_370, 8_870, 8_870], "as it was");
        for size in [1_100, 1_242, 1_300, 5_000, 8_842] {
            let text = ping(&three, "10.32.0.4", size, "dont");
            assert_eq!(lab::received(&text), 1, "{size}: {text}");
        }
        first.await_status("tells", 5 * SECOND, |status| {
            ping(&three, "10.32.0.4", 8_842, "do");
            status["data"]["told_too_big"].as_u64() > Some(0)
        });
        stream(&three, &four, "10.32.0.4", &["-t", "1"]);
        let after = lab.container(&first, "c5", "10.32.0.5/12");
        assert_eq!(link_mtu(&after, "ethmesh"), 1_270);
    });
}

fn link_mtu(host: &Host, device: &str) -> u32 {
    let text = host.run(&["cat", &format!("/sys/class/net/{device}/mtu")]);
    text.trim().parse().expect("an MTU")
}

/// Lost, doubled and reordered underlay packets: links stay, sizes stay, and the overlay doubles nothing.
#[test]
fn loss_duplication_and_reordering() {
    lab::test("loss_duplication_and_reordering", |lab| {
        let narrow = Narrow::new(lab, 1_500, 1_500, false);
        narrow.await_found(1_500);
        let chain = "add table ip bad; add chain ip bad f { type filter hook forward priority 0; }; ";
        for percent in [1, 5] {
            narrow.router.run(&["nft", &format!("{chain} add rule ip bad f numgen random mod 100 < {percent} drop")]);
            let back = narrow.one.pings("10.32.0.2", 200, 200);
            println!("{back} of 200 pings came back at {percent} % loss each way");
            assert!(back >= 150, "{back}");
            stream(&narrow.one, &narrow.two, "10.32.0.2", &["-t", "1"]);
            narrow.router.run(&["nft", "delete table ip bad"]);
        }
        for peer in [&narrow.a, &narrow.b] {
            let status = peer.status();
            assert!(lab::established(&status) == 1 && found(&status, 1_500), "{}", status["links"]);
        }
        let twice = "add rule ip bad f ip daddr 192.168.0.1 numgen random mod 100 < 30 dup to 192.168.0.1 device wire0; \
            add rule ip bad f ip daddr 192.168.1.1 numgen random mod 100 < 30 dup to 192.168.1.1 device wire1";
        narrow.router.run(&["nft", &format!("{chain} {twice}")]);
        let output = narrow.one.output(&["ping", "-n", "-q", "-i", "0.005", "-c", "200", "-W", "1", "10.32.0.2"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(lab::received(&text) == 200 && !text.contains("duplicates"), "{text}");
        assert!(narrow.drops("replayed") > 50, "{:?}", narrow.sums());
        stream(&narrow.one, &narrow.two, "10.32.0.2", &["-t", "1"]);
        narrow.router.run(&["nft", "delete table ip bad"]);
        // One in ten waits in a slow queue.
        for wire in ["wire0", "wire1"] {
            for line in [
                "qdisc add dev WIRE root handle 1: htb default 1",
                "class add dev WIRE parent 1: classid 1:1 htb rate 10gbit",
                "class add dev WIRE parent 1: classid 1:2 htb rate 100mbit burst 1500 cburst 1500",
            ] {
                let line = line.replace("WIRE", wire);
                narrow.router.run(&[&["tc"], line.split(' ').collect::<Vec<_>>().as_slice()].concat());
            }
        }
        let late = "add rule ip bad f numgen random mod 10 < 1 meta priority set 1:2";
        narrow.router.run(&["nft", &format!("{chain} {late}")]);
        assert_eq!(narrow.one.pings("10.32.0.2", 100, 200), 100);
        stream(&narrow.one, &narrow.two, "10.32.0.2", &["-t", "1"]);
        let sums = narrow.sums();
        assert_eq!((narrow.drops("forged"), narrow.drops("malformed"), narrow.drops("too_big")), (0, 0, 0), "{sums:?}");
    });
}

/// Frames of all kinds: what goes in comes out, once, byte by byte.
fn frames(lab: &Lab, path: u32) {
    let narrow = Narrow::new(lab, 9_000, path, false);
    narrow.await_found(path);
    // Where the kernel's bridge filter is loaded, it drops IP and ARP that are none. That it is not there is as good.
    for peer in [&narrow.a, &narrow.b] {
        for what in ["iptables", "ip6tables", "arptables"] {
            let _ = peer.host.output(&["sysctl", "-qw", &format!("net.bridge.bridge-nf-call-{what}=0")]);
        }
    }
    let mac = |host: &Host| {
        let text = host.run(&["cat", "/sys/class/net/ethmesh/address"]);
        let bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC address"));
        bytes.collect::<Vec<u8>>()
    };
    let macs = [mac(&narrow.one), mac(&narrow.two)];
    for (at, (from, to)) in [(&narrow.one, &narrow.two), (&narrow.two, &narrow.one)].into_iter().enumerate() {
        let (source, destination) = (&macs[at], &macs[1 - at]);
        let file = format!("/run/lab/frames-{at}.pcap");
        let capture = to.capture("ethmesh", &file, "inbound");
        // A capture may miss the first that comes.
        from.await_ping(["10.32.0.2", "10.32.0.1"][at], SECOND);
        let sent: Vec<Vec<u8>> = bodies().iter().map(|body| [destination.as_slice(), source, body].concat()).collect();
        let text = from.run(&["cat", "/sys/class/net/ethmesh/ifindex"]);
        let index: u32 = text.trim().parse().expect("index");
        let (frames, name) = (sent.clone(), from.name.clone());
        let done = Netns::open(&name).and_then(|namespace| {
            namespace.run(move || {
                for frame in &frames {
                    send_frame(index, frame).unwrap_or_else(|error| panic!("{} bytes: {error}", frame.len()));
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        });
        done.expect("frames sent");
        std::thread::sleep(SECOND / 2);
        capture.stop();
        let seen = pcap(&std::fs::read(&file).expect("capture"));
        assert!(seen.len() >= sent.len() / 2, "{} frames of {} seen", seen.len(), sent.len());
        let times = |frame: &Vec<u8>| seen.iter().filter(|other| *other == frame).count();
        let wrong = sent.iter().filter(|frame| times(frame) != 1);
        let wrong: Vec<String> =
            wrong.map(|f| format!("{} bytes of {:02x?}: {}", f.len(), &f[12..14], times(f))).collect();
        assert!(wrong.is_empty(), "over {path}, seen other than once: {wrong:?}; {:?}", narrow.sums());
    }
    assert_eq!((narrow.drops("too_big"), narrow.drops("incomplete")), (0, 0));
}

/// What follows the addresses: tagged, jumbo, tiny, of many types, and IP that is none.
fn bodies() -> Vec<Vec<u8>> {
    let filled = |head: &[u8], bytes: usize, mark: u8| {
        let mut body = head.to_vec();
        body.extend((body.len()..bytes).map(|at| (at as u8).wrapping_mul(7) ^ mark));
        body
    };
    let ipv4 = [0x08, 0, 0x45, 0, 0xff, 0xff, 1, 2, 0x40, 0, 64, 17, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2];
    let syn = [
        &[0x08, 0, 0x45, 0, 0, 44, 1, 2, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2, 0, 9, 0, 9][..],
        // Its option has length 0.
        &[0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 1, 2, 0, 0, 2, 0, 0x22, 0x38],
    ];
    let mut all = vec![
        filled(&[0x88, 0xb6], 48, 1),
        vec![0x88, 0xb5],
        vec![0x88, 0xb5, 1],
        filled(&[0x08, 0], 3, 2),
        filled(&[0x08, 0, 0x4f], 20, 3),
        filled(&[0x08, 0, 0x41, 0, 0, 1], 40, 4),
        filled(&[0x08, 0, 0xf5], 400, 5),
        filled(&ipv4, 1_000, 6),
        filled(&[0x86, 0xdd, 0x60], 30, 7),
        filled(&[0x86, 0xdd, 0x60, 0, 0, 0, 0xff, 0xff, 0, 64], 300, 8),
        filled(&[0x08, 0x06, 0, 1], 9, 9),
        filled(&[0, 40, 0xaa, 0xaa, 3], 60, 10),
        syn.concat(),
        filled(&syn.concat()[..38], 38, 11),
    ];
    for (at, bytes) in [1_200, 1_312, 1_364, 1_500, 2_800, 5_000, 8_812].into_iter().enumerate() {
        let mark = at as u8 + 20;
        all.push(filled(&[0x88, 0xb5], bytes, mark));
        all.push(filled(&[0x81, 0, 0, 5, 0x88, 0xb5], bytes, mark));
        all.push(filled(&[0x88, 0xa8, 0, 6, 0x81, 0, 0, 5, 0x88, 0xb5], bytes, mark));
    }
    all
}

fn pcap(file: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = file.get(24..).unwrap_or_default();
    while let Some((head, more)) = rest.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((frame, next)) = more.split_at_checked(length) else { break };
        frames.push(frame.to_vec());
        rest = next;
    }
    frames
}

#[test]
fn frames_of_all_kinds() {
    lab::test("frames_of_all_kinds", |lab| frames(lab, 9_000));
}

#[test]
fn frames_of_all_kinds_in_fragments() {
    lab::test("frames_of_all_kinds_in_fragments", |lab| frames(lab, 1_400));
}

/// One end leaves checksums and segments to others, the other end does all itself: no checksum is ever wrong.
#[test]
fn offloads_at_one_end_only() {
    lab::test("offloads_at_one_end_only", |lab| {
        let narrow = Narrow::new(lab, 1_500, 1_300, false);
        narrow.await_found(1_300);
        for (container, host) in [(&narrow.one, &narrow.a.host), (&narrow.two, &narrow.b.host)] {
            let switch = |to: &str| {
                let features = ["rx", "tx", "sg", "tso", "gso", "gro"].iter().flat_map(|feature| [*feature, to]);
                let list: Vec<&str> = features.collect();
                container.run(&[&["ethtool", "-K", "ethmesh"], list.as_slice()].concat());
                let wire = if host.name == "a" { "wire0" } else { "wire1" };
                host.run(&[&["ethtool", "-K", wire], list.as_slice()].concat());
            };
            switch("off");
            for more in [&["-n", "5M"][..], &["-n", "5M", "-R"]] {
                stream(&narrow.one, &narrow.two, "10.32.0.2", more);
            }
            let server = serve(&narrow.two);
            narrow.one.run(&["iperf3", "-c", "10.32.0.2", "-u", "-b", "20M", "-l", "3000", "-n", "1M"]);
            drop(server);
            assert_eq!(narrow.one.pings("10.32.0.2", 20, 200), 20);
            switch("on");
        }
        for container in [&narrow.one, &narrow.two] {
            let text = container.run(&["cat", "/proc/net/snmp"]);
            for protocol in ["Tcp: ", "Udp: "] {
                let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(protocol)).collect();
                let mut columns = lines[0].split_whitespace().zip(lines[1].split_whitespace());
                let wrong = columns.find(|(name, _)| *name == "InCsumErrors");
                assert_eq!(wrong.map(|(_, count)| count), Some("0"), "{}: {protocol}", container.name);
            }
        }
        assert!(narrow.sums()["clamped"] > 0);
    });
}
