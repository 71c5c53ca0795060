//! What one visit finds out about a tunnel, in about fifteen seconds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::lab::Host;
use crate::stage::Tunnel;

/// What one visit measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub tcp1_gbps: f64,
    pub tcp4_gbps: f64,
    pub reverse_gbps: f64,
    pub udp_gbps: f64,
    pub udp64_kpps: f64,
    pub rr_p50_us: f64,
    pub rr_p99_us: f64,
    /// Of a round trip while a stream of TCP fills the tunnel.
    pub beside_p50_us: f64,
    /// Of the whole machine, and so of what else runs there.
    pub cpu_s_per_gb: f64,
    /// Of all daemons.
    pub daemons_s_per_gb: f64,
    /// Of the daemon that takes most, after the load.
    pub resident_mib: f64,
    /// Of one daemon at rest.
    pub rest_percent: f64,
    /// Of the whole machine at rest, without the daemons: what else ran.
    pub foreign_cores: f64,
}

pub fn figures(tunnel: &Tunnel, udp: bool) -> Figures {
    let pids = tunnel.pids();
    tunnel.from.await_ping(&tunnel.address, Duration::from_secs(10));
    std::thread::sleep(tunnel.settle);
    let (rr_p50_us, rr_p99_us) = round_trips(tunnel, ROUND_TRIPS, Duration::ZERO);
    let server = tunnel.to.spawn(&["iperf3", "-s"]);
    std::thread::sleep(Duration::from_millis(200));
    let (cpu, own) = (cpu_s(), daemons_s(&pids));
    let (tcp1_gbps, gigabytes) = iperf(tunnel, &["-t", "2"]);
    let (cpu_s_per_gb, daemons_s_per_gb) = ((cpu_s() - cpu) / gigabytes, (daemons_s(&pids) - own) / gigabytes);
    let (tcp4_gbps, _) = iperf(tunnel, &["-t", "1.5", "-P", "4"]);
    let (reverse_gbps, _) = iperf(tunnel, &["-t", "1.5", "-R"]);
    let beside_p50_us = beside(tunnel);
    drop(server);
    let (udp_gbps, udp64_kpps) = match udp {
        true => (udp_rate(tunnel, UDP_BYTES) * UDP_BYTES as f64 * 8.0 / 1e9, udp_rate(tunnel, 64) / 1e3),
        false => (0.0, 0.0),
    };
    let resident_mib = pids.iter().map(|pid| resident_mib(*pid)).fold(0.0, f64::max);
    std::thread::sleep(Duration::from_millis(500));
    let (cpu, own, start) = (cpu_s(), daemons_s(&pids), Instant::now());
    std::thread::sleep(REST);
    let (seconds, own) = (start.elapsed().as_secs_f64(), daemons_s(&pids) - own);
    Figures {
        tcp1_gbps,
        tcp4_gbps,
        reverse_gbps,
        udp_gbps,
        udp64_kpps,
        rr_p50_us,
        rr_p99_us,
        beside_p50_us,
        cpu_s_per_gb,
        daemons_s_per_gb,
        resident_mib,
        rest_percent: own / seconds / pids.len().max(1) as f64 * 100.0,
        foreign_cores: ((cpu_s() - cpu - own) / seconds).max(0.0),
    }
}

/// Request and response of 64 bytes over TCP: median and 99th percentile of the round trip.
fn round_trips(tunnel: &Tunnel, duration: Duration, pause: Duration) -> (f64, f64) {
    let to: SocketAddr = format!("{}:7001", tunnel.address).parse().expect("address");
    let server = inside(&tunnel.to, move || TcpListener::bind(to).expect("listener"));
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("accept");
        stream.set_nodelay(true).expect("nodelay");
        let mut bytes = [0; 64];
        while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
    });
    let mut stream = inside(&tunnel.from, move || TcpStream::connect(to).expect("connect"));
    stream.set_nodelay(true).expect("nodelay");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let mut times = Vec::new();
    let start = Instant::now();
    let mut bytes = [7; 64];
    while start.elapsed() < duration {
        let sent = Instant::now();
        stream.write_all(&bytes).expect("request");
        stream.read_exact(&mut bytes).expect("response");
        times.push(sent.elapsed().as_secs_f64() * 1e6);
        std::thread::sleep(pause);
    }
    drop(stream);
    let _ = answer.join();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// A hundred small requests a second beside a stream of TCP: the median of their round trip.
fn beside(tunnel: &Tunnel) -> f64 {
    let mut load = tunnel.from.spawn(&["iperf3", "-c", &tunnel.address, "-t", "3"]);
    // The stream's start fills every queue.
    std::thread::sleep(Duration::from_secs(1));
    let (median, _) = round_trips(tunnel, BESIDE, Duration::from_millis(10));
    load.finish();
    median
}

/// The highest rate of datagrams of `size` bytes that loses less than 0.5 %: a flood, then a bisection.
fn udp_rate(tunnel: &Tunnel, size: usize) -> f64 {
    let to: SocketAddr = format!("{}:7002", tunnel.address).parse().expect("address");
    let receiver = inside(&tunnel.to, move || UdpSocket::bind(to).expect("receiver"));
    // The path is measured, not how soon the receiver gets a core.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, 8 << 20).expect("receive buffer");
    receiver.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let sender = inside(&tunnel.from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("sender");
        socket.connect(to).expect("connect");
        socket
    });
    let (flood, loss) = trial(&sender, &receiver, size, f64::INFINITY);
    if loss < LOSS {
        return flood;
    }
    let (mut low, mut high) = (0.0, flood * 1.2);
    for _ in 0..BISECTIONS {
        let rate = (low + high) / 2.0;
        if trial(&sender, &receiver, size, rate).1 < LOSS { low = rate } else { high = rate }
    }
    low
}

/// Sends at a rate for a moment: datagrams received a second, and the share lost.
fn trial(sender: &UdpSocket, receiver: &UdpSocket, size: usize, rate: f64) -> (f64, f64) {
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
    while start.elapsed() < UDP_TRIAL {
        if (sent as f64) < rate * start.elapsed().as_secs_f64() {
            sent += u64::from(sender.send(&payload).is_ok());
        } else {
            std::hint::spin_loop();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let received = count.join().expect("count");
    (received as f64 / seconds, 1.0 - received as f64 / sent.max(1) as f64)
}

/// Makes something in a pod's namespace; sockets stay in the namespace where they were made.
fn inside<T: Send + 'static>(pod: &Host, make: impl FnOnce() -> T + Send + 'static) -> T {
    meshnet::sys::netns::Netns::open(&pod.name).and_then(|namespace| namespace.run(make)).expect("enter the pod")
}

/// Gbit/s received, and gigabytes carried.
pub fn iperf(tunnel: &Tunnel, arguments: &[&str]) -> (f64, f64) {
    let report = tunnel.from.run(&[&["iperf3", "-c", &tunnel.address, "-J"], arguments].concat());
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

/// Seconds that these processes have worked, by the scheduler's own clock: ticks of 10 ms would hide what little rest costs.
fn daemons_s(pids: &[u32]) -> f64 {
    let threads = pids.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let ran_ns = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    ran_ns.sum::<f64>() / 1e9
}

fn resident_mib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// Of the large datagrams, one for all: with headers it fits the smallest MTU among the contenders, meshd's 1,370 on plain Ethernet.
pub const UDP_BYTES: usize = 1200;
/// The loss from which on a rate is too high.
const LOSS: f64 = 0.005;
/// Each halves what is left of 1.2 times the flood: the last step is 2 % of it.
const BISECTIONS: u32 = 6;
const UDP_TRIAL: Duration = Duration::from_millis(200);
/// Some ten thousand round trips: the 99th percentile is then of a hundred.
const ROUND_TRIPS: Duration = Duration::from_millis(700);
const BESIDE: Duration = Duration::from_millis(1700);
const REST: Duration = Duration::from_millis(1500);
