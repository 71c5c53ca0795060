//! The thread that writes: a sync takes from a tenth of a millisecond to many, and the driver must not wait for it.
//!
//! Owner: whoever holds [`Keeper`]; dropping it writes what waits and ends the thread. Full: the write is refused at once, and its maker repeats it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use meshnet_core::ipam::Write;

use super::Store;

/// Told what became of a write, by its number: done, or the words of the system.
pub type Report = Box<dyn Fn(u64, Result<(), String>) + Send>;

type Job = (u64, Vec<Write>);

/// The thread and the way to it.
pub struct Keeper {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts it.
    pub fn start(store: Store, report: Report) -> std::io::Result<Keeper> {
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let thread = thread::Builder::new().name("store".into()).spawn(move || run(store, &waiting, &report))?;
        Ok(Keeper { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has these written; what becomes of it is reported. An error, with the reason, when it was not even taken.
    pub fn keep(&self, seq: u64, writes: Vec<Write>) -> Result<(), String> {
        let Some(jobs) = &self.jobs else { return Err("the store is closed".into()) };
        jobs.try_send((seq, writes)).map_err(|error| format!("the store takes no writes ({error})"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The thread ends when it has written what waits.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It aborts the process rather than panic.
            let _ = thread.join();
        }
    }
}

fn run(mut store: Store, waiting: &Receiver<Job>, report: &Report) {
    let _bomb = Bomb;
    while let Ok((seq, mut writes)) = waiting.recv() {
        let mut seqs = vec![seq];
        // One sync for all that waits.
        while let Ok((seq, more)) = waiting.try_recv() {
            seqs.push(seq);
            writes.extend(more);
        }
        let result = store.apply(&writes).map_err(|error| error.to_string());
        seqs.into_iter().for_each(|seq| report(seq, result.clone()));
    }
}

/// Without this thread nothing is kept any more and nobody would be told: the process ends and is started again, which reads what the disk has.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// The machine of addresses has one write under way at a time; others may use the same store some day.
const WAITING_MAX: usize = 16;
