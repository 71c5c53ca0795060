//! Random schedules for the machine of addresses (`meshnet_core::ipam::sim`), as many as wanted: `cargo bench --bench addresses -- 1000000 [FIRST_SEED]`.
//! Every tenth ends with everything healed, and is counted when it does not come to rest then. Fails when a rule of safety is broken, and prints the seeds.

use std::process::ExitCode;
use std::time::Instant;

use meshnet_core::ipam::sim::{Counts, Plan, run};

/// Steps of one schedule.
const STEPS: usize = 400;
/// One in so many is healed at its end.
const HEALED: u64 = 10;
/// Faults that are printed.
const SHOWN: usize = 10;

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (count, first) = (numbers.first().copied().unwrap_or(10_000), numbers.get(1).copied().unwrap_or(0));
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let began = Instant::now();
    let parts: Vec<_> = (0..threads)
        .map(|part| {
            std::thread::spawn(move || some((first..first + count).skip(part as usize).step_by(threads as usize)))
        })
        .collect();
    let mut total = Counts::default();
    let mut faults = Vec::new();
    for part in parts {
        let (counts, found) = part.join().expect("a schedule does not panic");
        total.add(&counts);
        faults.extend(found);
    }
    let restless = |fault: &String| fault.contains("does not come to rest") || fault.contains("messages without end");
    let (rest, faults): (Vec<String>, Vec<String>) = faults.into_iter().partition(restless);
    let seconds = began.elapsed().as_secs_f64();
    println!("{count} schedules of {STEPS} steps, {} violations, {seconds:.0} s", faults.len());
    println!("{} of {} healed ones did not come to rest", rest.len(), count / HEALED);
    println!("{total:?}");
    rest.iter().filter_map(|fault| fault.lines().next()).take(SHOWN).for_each(|fault| println!("{fault}"));
    faults.iter().take(SHOWN).for_each(|fault| println!("{fault}"));
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn some(seeds: impl Iterator<Item = u64>) -> (Counts, Vec<String>) {
    let mut total = Counts::default();
    let mut faults = Vec::new();
    for seed in seeds {
        let (counts, fault) = run(seed, Plan { steps: STEPS, heal: seed % HEALED == 0, ..Plan::default() });
        total.add(&counts);
        faults.extend(fault);
    }
    (total, faults)
}
