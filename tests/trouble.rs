//! What users meet when something is wrong, with real `meshd` on hosts made of network namespaces: every case says what and what to do, and leaves nothing.

#[path = "netns/lab.rs"]
mod lab;

use std::process::Command;
use std::time::Duration;

use lab::{Host, Lab, Meshd};
use meshnet::sys::netns::Netns;
use meshnet::sys::packet::send_frame;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

fn reasons(status: &Value) -> String {
    status["links"]
        .as_array()
        .map(|links| links.iter().map(|link| link["reason"].to_string() + "\n").collect())
        .unwrap_or_default()
}

/// Targets that can never work: each has its state and reason, and nothing spins.
#[test]
fn targets_that_cannot_work() {
    lab::test("targets_that_cannot_work", |lab| {
        let (a, b) = (lab.host("a"), lab.host("b"));
        lab.wire(&a, "192.168.77.1/24", &b, "192.168.77.2/24");
        let targets =
            ["--peer", "192.168.77.1", "--peer", "nowhere.invalid", "--peer", "192.168.77.99", "--peer", "203.0.113.7"];
        let peer = lab.meshd(&a, &targets);
        let status = peer.await_status("four reasons", 30 * SECOND, |status| {
            let reasons = reasons(status);
            reasons.contains("own address")
                && reasons.contains("resolve")
                && reasons.contains("answer")
                && reasons.contains("reached")
        });
        assert_eq!(lab::established(&status), 0);
        assert!(status["problems"].as_array().is_some_and(|problems| !problems.is_empty()), "{status}");
        let before = lab::cpu_ms(peer.pid());
        std::thread::sleep(3 * SECOND);
        let used = lab::cpu_ms(peer.pid()) - before;
        assert!(used < 150, "{used} ms of CPU in 3 s with nothing to do");
    });
}

/// Two machines cloned with one key on one switch with a third: all is told, nobody's link falls for good.
#[test]
fn cloned_identity() {
    lab::test("cloned_identity", |lab| {
        let switch = lab.switch("switch");
        let hosts = ["a", "b", "c"].map(|name| lab.host(name));
        for (at, host) in hosts.iter().enumerate() {
            switch.plug(host, &format!("192.168.77.{}/24", at + 1));
        }
        let mut first = lab.meshd(&hosts[0], &[]);
        first.await_up();
        first.stop("TERM");
        lab::ok("cp", &["-a", "/run/lab/a.state", "/run/lab/b.state"]);
        let first = lab.meshd(&hosts[0], &["--peer", "192.168.77.2"]);
        let second = lab.meshd(&hosts[1], &["--peer", "192.168.77.1"]);
        for peer in [&first, &second] {
            peer.await_status("the clone is told", 20 * SECOND, |status| {
                let text = status["problems"].to_string() + &reasons(status);
                text.contains("identity") || text.contains("clone")
            });
        }
        let third = lab.meshd(&hosts[2], &["--peer", "192.168.77.1"]);
        third.await_status("one of them is linked", 20 * SECOND, |status| lab::established(status) >= 1);
    });
}

/// `--no-secret`: two peers meet without a file, and say so loudly.
#[test]
fn no_secret_is_loud() {
    lab::test("no_secret_is_loud", |lab| {
        let (a, b) = (lab.host("a"), lab.host("b"));
        lab.wire(&a, "192.168.77.1/24", &b, "192.168.77.2/24");
        let first = lab.meshd_bare(&a, &["--no-secret"]);
        let second = lab.meshd_bare(&b, &["--no-secret", "--peer", "192.168.77.1"]);
        second.await_peers(2, 10 * SECOND);
        assert!(first.log_text().contains("anyone who reaches the port may join"), "{}", first.log_text());
        assert!(first.status()["problems"].to_string().contains("secret"));
        // One with a secret does not mix with them.
        let c = lab.host("c");
        lab.wire(&a, "192.168.78.1/24", &c, "192.168.78.2/24");
        let third = lab.meshd(&c, &["--peer", "192.168.78.1"]);
        third.await_status("refused", 10 * SECOND, |status| reasons(status).contains("secret"));
    });
}

/// Starts that fail: one line that names the culprit, the exit code, and nothing half made.
#[test]
fn starts_that_fail() {
    lab::test("starts_that_fail", |lab| {
        let host = lab.host("a");
        host.run(&["ip", "link", "add", "name", "taken", "type", "veth", "peer", "name", "other"]);
        host.run(&["ip", "link", "add", "name", "occupied", "type", "bridge"]);
        let dir = lab.dir.to_string_lossy().into_owned();
        let file = |name: &str| format!("{dir}/{name}");
        std::fs::write(file("plain"), "x").expect("file");
        std::fs::write(file("empty"), "").expect("file");
        std::fs::write(file("weak"), "short\n").expect("file");
        std::fs::write(file("wrong.toml"), "listen = \"[::]:6783\"\nbrdge = \"x\"\n").expect("file");
        let secret = lab.secret.to_string_lossy().into_owned();
        let running = lab.meshd(&lab.host("other"), &[]);
        running.await_up();
        let cases: Vec<(Vec<&str>, i32, &str)> = vec![
            (vec![], 1, "meshctl secret"),
            (vec!["--secret-file", "/nowhere/secret"], 1, "/nowhere/secret"),
            (vec!["--secret-file", "PLAIN/empty"], 1, "empty"),
            (vec!["--secret-file", "PLAIN/weak"], 1, "weak"),
            (vec!["--secret-file", &secret, "--no-secret"], 2, "--no-secret"),
            (vec!["--secret-file", &secret, "--brdge", "x"], 2, "--bridge"),
            (vec!["--secret-file", &secret, "--listen", "nonsense"], 2, "--listen"),
            (vec!["--secret-file", &secret, "--ipam-range", "10.32.0.0/99"], 2, "--ipam-range"),
            (vec!["--secret-file", &secret, "--bridge", "a-name-that-is-far-too-long"], 2, "--bridge"),
            (vec!["--secret-file", &secret, "--bridge", "taken"], 1, "taken"),
            (vec!["--secret-file", &secret, "--config", "PLAIN/wrong.toml"], 2, "brdge"),
            (vec!["--secret-file", &secret, "--state-dir", "PLAIN/plain"], 1, "PLAIN/plain"),
            (vec!["--secret-file", &secret, "--listen", "192.0.2.1:6783"], 1, "192.0.2.1"),
            (vec!["--secret-file", &secret, "--socket", "/run/lab/other.sock"], 1, "other.sock"),
        ];
        let links_before = host.run(&["ip", "-br", "link"]);
        for (arguments, code, culprit) in cases {
            let mut arguments: Vec<String> = arguments.iter().map(|text| text.replace("PLAIN", &dir)).collect();
            for (flag, value) in
                [("--state-dir", file("fresh.state")), ("--socket", file("fresh.sock")), ("--http", "none".into())]
            {
                if !arguments.iter().any(|argument| argument == flag) {
                    arguments.extend([flag.to_owned(), value]);
                }
            }
            let mut command = Command::new("ip");
            command.args(["netns", "exec", "a"]).arg(lab::program("meshd")).args(&arguments);
            let output = command.output().expect("meshd");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
            let last = said.lines().last().unwrap_or_default();
            let culprit = culprit.replace("PLAIN", &dir);
            assert!(last.starts_with("meshd: ") && last.contains(&culprit), "{arguments:?}: {said}");
            assert_eq!(said.lines().filter(|line| line.starts_with("meshd: ")).count(), 1, "{said}");
        }
        assert_eq!(host.run(&["ip", "-br", "link"]), links_before, "a start that failed left an interface");
    });
}

/// `c1 ─ a ── b ── c ─ c3`: any EtherType, tagged and untagged, to one and to all, comes once; spanning tree and pause frames never.
#[test]
fn everything_ethernet_carries() {
    lab::test("everything_ethernet_carries", |lab| {
        let hosts = ["a", "b", "c"].map(|name| lab.host(name));
        lab.wire(&hosts[0], "192.168.1.1/24", &hosts[1], "192.168.1.2/24");
        lab.wire(&hosts[1], "192.168.2.1/24", &hosts[2], "192.168.2.2/24");
        let peers = [
            lab.meshd(&hosts[0], &["--peer", "192.168.1.2"]),
            lab.meshd(&hosts[1], &[]),
            lab.meshd(&hosts[2], &["--peer", "192.168.2.1"]),
        ];
        for peer in &peers {
            peer.await_peers(3, 15 * SECOND);
        }
        let one = lab.container(&peers[0], "c1", "10.32.0.1/12");
        let three = lab.container(&peers[2], "c3", "10.32.0.3/12");
        one.await_ping("10.32.0.3", 15 * SECOND);
        // For 2 s after a change of topology floods go over every link; the steady state is what is asked.
        std::thread::sleep(3 * SECOND);
        let capture = three.capture("ethmesh", "/run/lab/frames.pcap", "");
        let to_all = [0xff; 6];
        let to_one = [0x0a, 0x58, 10, 32, 0, 3];
        let group = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];
        let cases: [(&str, [u8; 6], &[u8]); 7] = [
            ("broadcast", to_all, &[0x88, 0xb5]),
            ("unicast", to_one, &[0x88, 0xb5]),
            ("multicast", group, &[0x88, 0xb6]),
            ("tagged broadcast", to_all, &[0x81, 0x00, 0x00, 0x2a, 0x88, 0xb5]),
            ("tagged unicast", to_one, &[0x81, 0x00, 0x00, 0x2a, 0x88, 0xb5]),
            ("spanning tree", [0x01, 0x80, 0xc2, 0, 0, 0], &[0x00, 0x26, 0x42, 0x42, 0x03]),
            ("pause", [0x01, 0x80, 0xc2, 0, 0, 1], &[0x88, 0x08, 0x00, 0x01]),
        ];
        for (at, (_, destination, types)) in cases.iter().enumerate() {
            let mut frame = destination.to_vec();
            frame.extend_from_slice(&[0x0a, 0x58, 10, 32, 0, 1]);
            frame.extend_from_slice(types);
            frame.extend_from_slice(format!("marker {at} of the test").as_bytes());
            frame.resize(200, at as u8);
            inject(&one, &frame);
        }
        std::thread::sleep(SECOND);
        capture.stop();
        let seen = std::fs::read("/run/lab/frames.pcap").expect("capture");
        for (at, (name, ..)) in cases.iter().enumerate() {
            let marker = format!("marker {at} of the test");
            let count = seen.windows(marker.len()).filter(|bytes| *bytes == marker.as_bytes()).count();
            assert_eq!(count, usize::from(at < 5), "{name} frames seen");
        }
    });
}

fn inject(host: &Host, frame: &[u8]) {
    let text = host.run(&["cat", "/sys/class/net/ethmesh/ifindex"]);
    let index: u32 = text.trim().parse().expect("index");
    let frame = frame.to_vec();
    let sent = Netns::open(&host.name).and_then(|namespace| namespace.run(move || send_frame(index, &frame)));
    sent.and_then(|sent| sent).expect("frame sent");
}

/// Every command of `meshctl` against a running mesh, right and wrong.
#[test]
fn commands() {
    lab::test("commands", |lab| {
        let (a, b) = (lab.host("a"), lab.host("b"));
        lab.wire(&a, "192.168.77.1/24", &b, "192.168.77.2/24");
        let first = lab.meshd(&a, &[]);
        let second = lab.meshd(&b, &[]);
        first.await_up();
        second.await_up();
        second.ctl(&["connect", "192.168.77.1"]);
        first.await_peers(2, 10 * SECOND);
        first.ctl(&["expose", "10.32.0.1/12"]);
        second.ctl(&["expose", "10.32.0.2/12"]);
        a.await_ping("10.32.0.2", 5 * SECOND);
        for table in ["peers", "links", "routes", "macs", "targets", "ipam"] {
            first.ctl(&["status", table]);
            json(&first, &["status", table, "--json"]);
        }
        for format in ["tree", "dot", "json", "svg"] {
            assert!(!first.ctl(&["topology", "--format", format]).is_empty());
        }
        assert_eq!(json(&first, &["topology", "--json"])["links"].as_array().map(Vec::len), Some(1));
        assert!(first.ctl(&["ping", "b", "-c", "2"]).contains("ms"));
        let trace = first.ctl(&["trace", "10.32.0.2"]);
        assert!(trace.contains('b'), "{trace}");
        assert_eq!(json(&first, &["report"])["status"]["peer"]["name"], "a");
        assert!(!std::fs::read_to_string(&lab.secret).expect("secret").trim().is_empty());
        let secret = std::fs::read_to_string(&lab.secret).expect("secret");
        assert!(!first.ctl(&["report"]).contains(secret.trim()), "a report holds no secrets");
        first.ctl(&["watch", "--count", "1"]);
        assert!(first.ctl(&["completions", "bash"]).contains("meshctl"));
        let container = lab.container(&first, "c1", "10.32.0.10/12");
        first.ctl(&["attach", "c1", "10.32.0.10/12"]);
        first.ctl(&["attach", "c1", "10.32.0.11/12"]);
        container.await_ping("10.32.0.2", 5 * SECOND);
        first.ctl(&["detach", "c1", "10.32.0.11/12"]);
        first.ctl(&["detach", "c1"]);
        assert!(!container.run(&["ip", "-o", "link"]).contains("ethmesh"));
        first.ctl(&["hide", "10.32.0.1/12"]);
        assert!(!a.run(&["ip", "-o", "addr"]).contains("10.32.0.1"));
        refused(&first, &["attach", "nowhere", "10.32.0.12/12"], "nowhere");
        refused(&first, &["attach", "c1", "10.32.0.12/99"], "10.32.0.12/99");
        refused(&first, &["ping", "nobody"], "nobody");
        refused(&first, &["detach", "c1"], "c1");
        refused(&first, &["hide", "10.32.0.77/12"], "10.32.0.77");
        // Connected by command: remembered across a restart, and forgotten by command.
        drop(second);
        let second = lab.meshd(&b, &[]);
        second.await_peers(2, 10 * SECOND);
        assert!(second.ctl(&["status", "targets"]).contains("192.168.77.1"));
        second.ctl(&["forget", "192.168.77.1"]);
        assert!(!second.ctl(&["status", "targets"]).contains("192.168.77.1"));
        let gone = Command::new(lab::program("meshctl"))
            .args(["--socket", "/run/lab/none.sock", "status"])
            .output()
            .expect("meshctl");
        assert_eq!(gone.status.code(), Some(3));
    });
}

fn json(peer: &Meshd, arguments: &[&str]) -> Value {
    serde_json::from_str(&peer.ctl(arguments)).expect("JSON")
}

fn refused(peer: &Meshd, arguments: &[&str], culprit: &str) {
    let output = peer.ctl_output(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {said}");
    assert!(said.trim().lines().count() == 1 && said.contains(culprit), "{arguments:?}: {said}");
}

/// HTTP: health, readiness, metrics and the status are there for programs that watch.
#[test]
fn http_for_watchers() {
    lab::test("http_for_watchers", |lab: &Lab| {
        let host = lab.host("a");
        let secret = lab.secret.to_string_lossy().into_owned();
        let state = lab.dir.join("http.state").to_string_lossy().into_owned();
        let socket = lab.dir.join("http.sock").to_string_lossy().into_owned();
        let meshd = lab::program("meshd").to_string_lossy().into_owned();
        let arguments = [
            &meshd,
            "--secret-file",
            &secret,
            "--state-dir",
            &state,
            "--socket",
            &socket,
            "--ipam-range",
            "none",
            "--name",
            "a",
        ];
        let _peer = host.spawn(&arguments);
        let get = |path: &str| {
            let path = path.to_owned();
            let asked = Netns::open("a").and_then(|namespace| namespace.run(move || fetch(&path)));
            asked.ok().flatten().unwrap_or_default()
        };
        lab::wait("ready", 10 * SECOND, || get("/readyz").contains("200 OK"));
        assert!(get("/healthz").contains("200 OK"));
        assert!(get("/metrics").contains("mesh_peer_info"));
        assert!(get("/v1/status").contains("\"version\":1"));
        assert!(get("/v1/report").contains("\"kernel\""));
        assert!(get("/nothing").contains("404"));
    });
}

fn fetch(path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect("127.0.0.1:6784").ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}
