//! Where the processors' time goes while one stream of TCP flows, as sampled by perf: places by the innermost known function of the
//! call chain, kinds of work by the function itself.
//!
//! The clock that samples is an interrupt: work done with interrupts off counts where they come on again, which is mostly
//! `_raw_spin_unlock_irqrestore`, among "waking". Samples of other processes do not count, but for softirqs that ran on top of them.

use std::process::Command;

use crate::measure;
use crate::stage::Tunnel;

/// Samples a stream through the tunnel and prints milliseconds of processor time per gigabyte.
pub fn print(title: &str, tunnel: &Tunnel) -> Result<(), String> {
    tunnel.from.await_ping(&tunnel.address, std::time::Duration::from_secs(10));
    std::thread::sleep(tunnel.settle);
    let server = tunnel.to.spawn(&["iperf3", "-s"]);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let data = std::env::temp_dir().join(format!("meshnet-profile-{}", std::process::id()));
    let file = data.to_string_lossy().into_owned();
    let record = ["record", "-q", "-a", "-g", "-e", "cpu-clock", "-F", "1999", "-o", &file];
    let mut perf =
        Command::new("perf").args(record).spawn().map_err(|error| format!("perf: {error}; install linux-perf"))?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (gbps, gigabytes) = measure::iperf(tunnel, &["-t", "4"]);
    let _ = crate::lab::run("kill", &["-INT", &perf.id().to_string()]);
    let _ = perf.wait();
    drop(server);
    let script = crate::lab::run("perf", &["script", "--no-inline", "-i", &file, "-F", "comm,pid,ip,sym"]);
    let _ = std::fs::remove_file(&data);
    let mut places: Vec<(&str, [f64; KINDS.len() + 1])> = Vec::new();
    for sample in script?.split("\n\n") {
        let Some((place, kind)) = classify(sample) else { continue };
        let at = places.iter().position(|(name, _)| *name == place).unwrap_or_else(|| {
            places.push((place, [0.0; KINDS.len() + 1]));
            places.len() - 1
        });
        places[at].1[kind] += 1000.0 / 1999.0 / gigabytes;
    }
    let total = |kinds: &[f64]| kinds.iter().sum::<f64>();
    places.sort_by(|a, b| total(&b.1).total_cmp(&total(&a.1)));
    let sums: [f64; KINDS.len() + 1] = std::array::from_fn(|kind| places.iter().map(|(_, kinds)| kinds[kind]).sum());
    places.push(("all", sums));
    let cores = total(&sums) / 1000.0 * gbps / 8.0;
    println!("{title}, one stream of TCP at {gbps:.2} Gbit/s, {cores:.2} cores busy: ms of processor time per GB\n");
    let heads = KINDS.iter().map(|(name, _)| format!(" {name} |")).collect::<String>();
    println!("| |{heads} rest | all |\n|---|{}", "---:|".repeat(KINDS.len() + 2));
    for (place, kinds) in places {
        let cells = kinds.iter().chain([&total(&kinds)]).map(|ms| format!(" {ms:.0} |")).collect::<String>();
        println!("| {place} |{cells}");
    }
    println!();
    Ok(())
}

/// Where a sample was taken, and which kind of work (an index, past the end for the rest); `None` for idle cores and strangers.
fn classify(sample: &str) -> Option<(&'static str, usize)> {
    let mut lines = sample.trim_start_matches('\n').lines();
    let (comm, pid) = lines.next()?.trim().rsplit_once(' ')?;
    let frames: Vec<&str> = lines.filter_map(|line| line.trim().split_once(' ').map(|(_, name)| name)).collect();
    let leaf = *frames.first()?;
    // Strangers have no pid in the lab's namespace.
    let own = pid.parse::<i64>().is_ok_and(|pid| pid > 0) && !comm.starts_with("perf");
    let softirq = frames.iter().any(|frame| frame.contains("net_rx_action") || frame.contains("net_tx_action"));
    if !own && !softirq {
        return None;
    }
    let holds = |frame: &str, words: &[&str]| words.iter().any(|word| frame.contains(word));
    let place = frames.iter().find_map(|frame| PLACES.iter().find(|(_, words)| holds(frame, words)));
    let place = place.map(|(name, _)| *name).unwrap_or(if comm.starts_with("iperf3") { PODS } else { "daemons" });
    let kind = KINDS.iter().position(|(_, words)| holds(leaf, words)).unwrap_or(KINDS.len());
    Some((place, kind))
}

const PODS: &str = "pods: iperf3, TCP";

/// Functions of the kernel by which a place is known; the innermost of a chain decides.
const PLACES: [(&str, &[&str]); 8] = [
    ("TAP write", &["tun_get_user", "tun_chr_write"]),
    ("TAP read", &["tun_do_read", "tun_chr_read"]),
    (PODS, &["tcp_v4_rcv", "tcp_sendmsg", "tcp_recvmsg", "tcp_write_xmit", "tcp_tasklet", "tcp_rcv"]),
    ("VXLAN", &["vxlan_"]),
    ("UDP receive", &["udp_recvmsg", "udpv6_recvmsg"]),
    ("UDP send", &["udp_sendmsg", "udpv6_sendmsg"]),
    ("softirq: veth, bridge, IP, GRO", &["net_rx_action", "net_tx_action"]),
    ("waiting, waking", &["futex", "epoll", "poll_schedule", "do_sys_poll", "eventfd", "schedule"]),
];

/// Kinds of work by the function that runs; the first that fits.
const KINDS: [(&str, &[&str]); 6] = [
    ("AES-GCM", &["gcm", "ghash", "aead_", "init_IV", "CRYPTO_", "aws_lc_"]),
    ("copies", &["copy", "memcpy", "memmove", "rep_movs", "memset", "clear_page"]),
    ("checksums", &["csum", "checksum"]),
    ("segments", &["gso", "gro", "skb_segment"]),
    ("buffers", &["kmem", "kfree", "kmalloc", "slab", "alloc", "free", "page_frag", "put_page", "folio"]),
    (
        "waking",
        &[
            "sched",
            "switch",
            "wake",
            "futex",
            "epoll",
            "ttwu",
            "spin_unlock_irq",
            "enqueue_task",
            "dequeue",
            "pick_",
            "finish_task",
        ],
    ),
];
