//! Throughput and latency of frames, sealed and by the kernel's fast path, as ratios to kernel VXLAN (unsealed) on the same hosts in the same run.
//!
//! ```text
//!   pod p1 ─ bridge ─ h1 ══ veth, MTU 1500 ══ h2 ─ bridge ─ pod p2
//! ```
//! `cargo bench --bench throughput [-- --rounds N] [--offload nic|on] [--without-udp]`. `nic` (default): no segmentation in the underlay's "hardware",
//! software GSO and GRO on, as on a plain network card. `on`: plain veth, where 64 KiB buffers cross uncut. Rounds are interleaved (A B A B); figures are
//! medians, ratios those of the medians of each round's ratio, so that what else the machine does weighs on both alike. Both hosts and pods share this
//! machine's cores: only ratios mean anything.

#[path = "../netns/lab.rs"]
mod lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::{Host, Lab, Meshd};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let after = |flag: &str| {
        arguments.iter().position(|argument| argument == flag).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let rounds: usize = after("--rounds").and_then(|text| text.parse().ok()).unwrap_or(3);
    let offload = after("--offload").unwrap_or_else(|| "nic".into());
    let udp = !arguments.iter().any(|argument| argument == "--without-udp");
    if !lab::inside() {
        if let Err(error) = lab::install_tools() {
            eprintln!("throughput: {error}");
            return ExitCode::FAILURE;
        }
        let own: Vec<&str> = arguments.iter().map(String::as_str).collect();
        return match lab::enter(&own) {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
    }
    let lab = Lab::new().expect("lab");
    let mut rows: Vec<(&str, Vec<Figures>)> =
        ["kernel VXLAN", "meshd, sealed UDP", "meshd, fast path"].map(|name| (name, Vec::new())).into();
    for round in 0..rounds {
        for (at, (name, figures)) in rows.iter_mut().enumerate() {
            let stage = Stage::new(&lab, &format!("{round}{at}"), &offload, udp);
            let found = match at {
                0 => stage.vxlan(),
                1 => stage.meshd(&lab, &[]),
                _ => stage.meshd(&lab, &["--trusted-subnet", "192.168.77.0/24"]),
            };
            eprintln!("round {} {name}: {found:?}", round + 1);
            figures.push(found);
            stage.clear();
        }
    }
    print(&rows, &offload);
    ExitCode::SUCCESS
}

/// What one visit measured.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    tcp1_gbps: f64,
    tcp4_gbps: f64,
    udp1200_gbps: f64,
    udp64_kpps: f64,
    rr_p50_us: f64,
    rr_p99_us: f64,
    /// Of the whole machine, and so of what else runs there.
    cpu_s_per_gb: f64,
    /// Of both `meshd`.
    daemons_s_per_gb: f64,
    /// Of one `meshd` at rest.
    rest_cpu_percent: f64,
    rest_mib: f64,
}

fn print(rows: &[(&str, Vec<Figures>)], offload: &str) {
    type Get = fn(&Figures) -> f64;
    let columns: [(&str, Get); 10] = [
        ("TCP 1 stream Gbit/s", |f| f.tcp1_gbps),
        ("TCP 4 streams Gbit/s", |f| f.tcp4_gbps),
        ("UDP 1,200 B Gbit/s", |f| f.udp1200_gbps),
        ("UDP 64 B kpps", |f| f.udp64_kpps),
        ("round trip p50 µs", |f| f.rr_p50_us),
        ("p99 µs", |f| f.rr_p99_us),
        ("CPU s/GB", |f| f.cpu_s_per_gb),
        ("of it meshd", |f| f.daemons_s_per_gb),
        ("at rest % of a core", |f| f.rest_cpu_percent),
        ("at rest MiB", |f| f.rest_mib),
    ];
    println!("underlay `{offload}`, {} rounds, medians (ratio to VXLAN)", rows[0].1.len());
    println!("| |{}", columns.iter().map(|column| format!(" {} |", column.0)).collect::<String>());
    println!("|---|{}", "---|".repeat(columns.len()));
    for (name, figures) in rows {
        let cells = columns.iter().map(|(_, get)| {
            let value = median(figures.iter().map(get).collect());
            let ratios = figures.iter().zip(&rows[0].1).map(|(own, base)| get(own) / get(base)).collect();
            match median(ratios) {
                _ if value == 0.0 => " |".to_owned(),
                ratio if ratio.is_finite() => format!(" {value:.2} (×{ratio:.2}) |"),
                _ => format!(" {value:.2} |"),
            }
        });
        println!("| {name} |{}", cells.collect::<String>());
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Two hosts and two pods.
struct Stage {
    hosts: [Host; 2],
    pods: [Host; 2],
    udp: bool,
}

impl Stage {
    fn new(lab: &Lab, tag: &str, offload: &str, udp: bool) -> Stage {
        let hosts = ["h1", "h2"].map(|name| lab.host(&format!("{name}-{tag}")));
        let pods = ["p1", "p2"].map(|name| lab.host(&format!("{name}-{tag}")));
        let wire = lab.wire(&hosts[0], "192.168.77.1/24", &hosts[1], "192.168.77.2/24");
        for host in &hosts {
            // A queue, as on a network card: veth then pushes back instead of dropping.
            host.run(&["tc", "qdisc", "replace", "dev", &wire, "root", "pfifo", "limit", "1000"]);
            if offload == "nic" {
                let switches = "tso off gso on gro on tx-udp-segmentation off tx-udp_tnl-segmentation off \
                    tx-udp_tnl-csum-segmentation off tx-sctp-segmentation off";
                let mut command = vec!["ethtool", "-K", &wire];
                command.extend(switches.split_whitespace());
                host.run(&command);
            }
        }
        Stage { hosts, pods, udp }
    }

    fn clear(self) {
        for host in self.pods.iter().chain(&self.hosts) {
            lab::ok("ip", &["netns", "del", &host.name]);
        }
    }

    fn vxlan(&self) -> Figures {
        for (at, (host, pod)) in self.hosts.iter().zip(&self.pods).enumerate() {
            let (own, other) = (format!("192.168.77.{}", at + 1), format!("192.168.77.{}", 2 - at));
            let dev = ["dev", "vx0"];
            host.run(&["ip", "link", "add", "name", "br0", "type", "bridge"]);
            let vxlan = ["type", "vxlan", "id", "42", "dstport", "4789", "local", &own, "remote", &other];
            host.run(&[&["ip", "link", "add", "name", "vx0"], &vxlan[..]].concat());
            host.run(&[&["ip", "link", "set"], &dev[..], &["mtu", "1450", "master", "br0", "up"]].concat());
            host.run(&["ip", "link", "add", "name", "v0", "type", "veth", "peer", "name", "eth0", "netns", &pod.name]);
            host.run(&["ip", "link", "set", "v0", "mtu", "1450", "master", "br0", "up"]);
            host.run(&["ip", "link", "set", "br0", "up"]);
            pod.run(&["ip", "link", "set", "eth0", "mtu", "1450", "up"]);
            pod.run(&["ip", "address", "add", &format!("10.32.0.{}/12", at + 1), "dev", "eth0"]);
        }
        self.measure(&[])
    }

    fn meshd(&self, lab: &Lab, arguments: &[&str]) -> Figures {
        let peers: Vec<Meshd> = self
            .hosts
            .iter()
            .enumerate()
            .map(|(at, host)| lab.meshd(host, &[&["--peer", &format!("192.168.77.{}", 2 - at)], arguments].concat()))
            .collect();
        for (at, (peer, pod)) in peers.iter().zip(&self.pods).enumerate() {
            peer.await_peers(2, Duration::from_secs(10));
            peer.ctl(&["attach", &pod.name, &format!("10.32.0.{}/12", at + 1)]);
        }
        if !arguments.is_empty() {
            let limit = Duration::from_secs(10);
            peers.iter().for_each(|peer| {
                peer.await_status("by vxlan", limit, |status| status["links"][0]["transport"] == "vxlan");
            });
        }
        let pids: Vec<u32> = peers.iter().map(Meshd::pid).collect();
        let figures = self.measure(&pids);
        std::thread::sleep(Duration::from_secs(1));
        let before = daemons_s(&pids);
        std::thread::sleep(REST);
        let rest = (daemons_s(&pids) - before) / REST.as_secs_f64() / pids.len() as f64;
        let rest_mib = pids.iter().map(|pid| resident_mib(*pid)).fold(0.0, f64::max);
        Figures { rest_cpu_percent: rest * 100.0, rest_mib, ..figures }
    }

    fn measure(&self, daemons: &[u32]) -> Figures {
        let [p1, p2] = &self.pods;
        p1.await_ping("10.32.0.2", Duration::from_secs(10));
        let (rr_p50_us, rr_p99_us) = self.round_trip();
        let (cpu, own) = (cpu_s(), daemons_s(daemons));
        let (tcp1_gbps, gigabytes) = iperf(p1, p2, &["-t", "3"]);
        let (cpu_s_per_gb, daemons_s_per_gb) = ((cpu_s() - cpu) / gigabytes, (daemons_s(daemons) - own) / gigabytes);
        let (tcp4_gbps, _) = iperf(p1, p2, &["-t", "2", "-P", "4"]);
        let figures = Figures {
            tcp1_gbps,
            tcp4_gbps,
            rr_p50_us,
            rr_p99_us,
            cpu_s_per_gb,
            daemons_s_per_gb,
            ..Figures::default()
        };
        if !self.udp {
            return figures;
        }
        let udp1200_gbps = self.udp_rate(1200) * 1200.0 * 8.0 / 1e9;
        let udp64_kpps = self.udp_rate(64) / 1e3;
        Figures { udp1200_gbps, udp64_kpps, ..figures }
    }

    /// Request and response of 64 bytes over TCP for a second: median and 99th percentile of the round trip.
    fn round_trip(&self) -> (f64, f64) {
        let server = inside(&self.pods[1], || TcpListener::bind("10.32.0.2:7001").expect("listener"));
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("accept");
            let mut bytes = [0; 64];
            while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
        });
        let mut stream = inside(&self.pods[0], || TcpStream::connect("10.32.0.2:7001").expect("connect"));
        stream.set_nodelay(true).expect("nodelay");
        let mut times = Vec::new();
        let start = Instant::now();
        let mut bytes = [7; 64];
        while start.elapsed() < Duration::from_secs(1) {
            let sent = Instant::now();
            stream.write_all(&bytes).expect("request");
            stream.read_exact(&mut bytes).expect("response");
            times.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        drop(stream);
        let _ = answer.join();
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() * 99 / 100])
    }

    /// The highest rate of datagrams of `size` bytes that loses less than 0.5 %: a flood, then a bisection of six trials.
    fn udp_rate(&self, size: usize) -> f64 {
        let to: SocketAddr = "10.32.0.2:7002".parse().expect("address");
        let receiver = inside(&self.pods[1], move || UdpSocket::bind(to).expect("receiver"));
        // The path is measured, not how soon the receiver gets a core.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, 8 << 20).expect("receive buffer");
        receiver.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
        let sender = inside(&self.pods[0], move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("sender");
            socket.connect(to).expect("connect");
            socket
        });
        let trial = |rate: f64| -> (f64, f64) {
            let counting = receiver.try_clone().expect("clone");
            let count = std::thread::spawn(move || {
                let (mut bytes, mut count) = ([0; 2048], 0u64);
                while counting.recv(&mut bytes).is_ok() {
                    count += 1;
                }
                count
            });
            let payload = vec![0u8; size];
            let start = Instant::now();
            let mut sent = 0u64;
            while start.elapsed() < Duration::from_millis(300) {
                if (sent as f64) < rate * start.elapsed().as_secs_f64() {
                    sent += u64::from(sender.send(&payload).is_ok());
                } else {
                    std::hint::spin_loop();
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            let received = count.join().expect("count");
            (received as f64 / seconds, 1.0 - received as f64 / sent.max(1) as f64)
        };
        let (flood, loss) = trial(f64::INFINITY);
        if loss < 0.005 {
            return flood;
        }
        let (mut low, mut high) = (0.0, flood * 1.2);
        for _ in 0..6 {
            let rate = (low + high) / 2.0;
            if trial(rate).1 < 0.005 { low = rate } else { high = rate }
        }
        low
    }
}

/// Makes something in a pod's namespace; sockets stay in the namespace where they were made.
fn inside<T: Send + 'static>(pod: &Host, make: impl FnOnce() -> T + Send + 'static) -> T {
    meshnet::sys::netns::Netns::open(&pod.name).and_then(|namespace| namespace.run(make)).expect("enter the pod")
}

/// Gbit/s received, and gigabytes carried.
fn iperf(from: &Host, to: &Host, arguments: &[&str]) -> (f64, f64) {
    let mut server = to.spawn(&["iperf3", "-s", "-1"]);
    std::thread::sleep(Duration::from_millis(300));
    let report = from.run(&[&["iperf3", "-c", "10.32.0.2", "-J"], arguments].concat());
    server.finish();
    let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
    let received = &report["end"]["sum_received"];
    (received["bits_per_second"].as_f64().expect("rate") / 1e9, received["bytes"].as_f64().expect("bytes") / 1e9)
}

/// Seconds that the whole machine's cores have worked.
fn cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let line = text.lines().next().expect("a line");
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / 100.0
}

/// Seconds that these processes have worked.
fn daemons_s(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("meshd runs");
        // After the name in parentheses: state is field 3, utime and stime are 14 and 15.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields[11..13].iter().filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    };
    pids.iter().map(of).sum()
}

fn resident_mib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("meshd runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// How long rest is watched: 10 ms of work, a tick of the kernel's clock, are then 0.2 % of a core.
const REST: Duration = Duration::from_secs(5);
