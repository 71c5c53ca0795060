//! What it costs that all peers know all: bytes, messages, time, processor and memory, for meshes of 10, 100 and 1,000 real nodes in the simulator.
//!
//! `cargo bench --bench gossip [-- 10 100 1000]`. Peers are 5 to 60 ms apart (one way), as over several continents. Times and bytes are those of the
//! simulation, the same in each run; processor and memory are those of the process that simulates, the network's queue included, by the number of peers;
//! simulated peers share the records that they hold. What a thousand peers add to the memory of one that shares nothing stands below the table.
//! The run that they stand for: a start of all at once, 200 s to settle, a change, 10 s of rest, halves apart for 40 s, healing. Not in those 10 s is the
//! refreshing of records: one of them every 30 s, whatever the size, at the bytes of a change.

use std::process::{Command, ExitCode};
use std::time::Duration;

use meshnet_core::sim::figures::{Figures, measure, one_of_many};

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == ALONE) {
        let mut before = 0;
        let _sim = one_of_many(ALONE_PEERS, || before = memory_kib("VmRSS:"));
        println!("A peer that knows {ALONE_PEERS} others holds {} KiB for them.", memory_kib("VmRSS:") - before);
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [flag, count] = arguments.as_slice()
        && flag == ONE
    {
        println!("{}", row(&measure(SEED, count.parse().expect("a number of peers"))));
        return ExitCode::SUCCESS;
    }
    let counts = if arguments.is_empty() { vec!["10".into(), "100".into(), "1000".into()] } else { arguments };
    println!(
        "| peers | links each | all know all after | a change known after | bytes for it, each | messages | at rest B/s each | the busiest | records seen \
         twice | healed after | CPU ms each | memory KiB each |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    let ran = counts.iter().all(|count| run_self(&[ONE, count]));
    println!();
    if ran && run_self(&[ALONE]) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// In a process of its own, so that memory is counted from nothing.
fn run_self(arguments: &[&str]) -> bool {
    let own = std::env::current_exe().expect("own path");
    let output = Command::new(own).args(arguments).output().expect("runs itself");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        eprintln!("gossip: {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn row(figures: &Figures) -> String {
    let peers = figures.peers as u64;
    let time = |time: Option<Duration>| time.map_or("never".into(), |time| format!("{:.2} s", time.as_secs_f64()));
    let twice = figures.records_redundant as f64 * 100.0 / figures.records.max(1) as f64;
    let (cpu_ms, memory_kib) = own_cost();
    [
        peers.to_string(),
        figures.links.to_string(),
        time(figures.joined),
        time(figures.told),
        figures.told_bytes.to_string(),
        format!("{:.1}", figures.told_messages as f64 / peers as f64),
        figures.idle.to_string(),
        figures.idle_most.to_string(),
        format!("{twice:.0} %"),
        time(figures.healed),
        (cpu_ms / peers).to_string(),
        (memory_kib / peers).to_string(),
    ]
    .iter()
    .fold("|".to_owned(), |row, cell| row + " " + cell + " |")
}

/// Milliseconds that this process has worked, and the most kibibytes that it held.
fn own_cost() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    let ticks: u64 = fields[11..13].iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    (ticks * 10, memory_kib("VmHWM:"))
}

fn memory_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field of /proc/self/status");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

const ONE: &str = "--one";
const ALONE: &str = "--alone";
const ALONE_PEERS: u32 = 1000;
const SEED: u64 = 1;
