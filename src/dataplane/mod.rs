//! The worker threads: a queue of the TAP and a socket of the port each, and the forwarder between them.
//!
//! ```text
//!                  mesh-out-N: read ▶ Forwarder::outbound ▶ SendBatch
//!            ┌───────────────────────────────────────────────────────────▶┐
//! TAP queue N│◀─ Answer                                                  │ UDP socket N
//!            └◀───────────────────────────────────────────────────────────┘
//!                  mesh-in-N:  write ◀ Joiner ◀ Forwarder::inbound ◀ ReceiveBatch, FrameInbox (what came on links: the first thread)
//!                                                  ├▶ own SendBatch: relayed and flooded on
//!                                                  ├▶ QuicInbox  ─ wake ▶ the QUIC endpoint
//!                                                  └▶ PuntRing   ─ wake ▶ the driver of the node
//! ```
//! One thread takes a frame from read to send. Threads are owned by [`Dataplane`] and end with it; one that panics ends the process, because half a data
//! path is worse than none. Both queues are bounded, and drop and count when full.
//!
//! May use `core`, `tap`, `udp`, `sys`, `buf`. Deliberately lacks: tokio, locks and allocation per frame, clocks while there are frames (the tick is the
//! driver's).

mod frames;
mod idle;
mod inbound;
mod outbound;
mod punts;
#[cfg(test)]
mod tests;
mod to_tap;
mod waiting;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use meshnet_core::counters::{Counters, DropReason};
use meshnet_core::fdb::Fdb;
use meshnet_core::fib::Fib;

use crate::sys::wake::Wake;
use crate::tap::{Tap, TapHealth, TapQueue};
use crate::udp::UdpSockets;

pub use crate::udp::{QuicDatagram, QuicInbox, Waker};
pub use frames::FrameInbox;
pub use punts::PuntRing;

/// What the data path is made of.
pub struct Config {
    /// Workers: two threads each.
    pub workers: usize,
    /// The TAP, with a queue for each worker; without one the outbound threads wait for [`Dataplane::replace_tap`].
    pub tap: Option<Tap>,
    /// The port, with a socket for each worker.
    pub sockets: Arc<UdpSockets>,
    /// Learned addresses.
    pub fdb: Arc<Fdb>,
    /// The first snapshot.
    pub fib: Arc<Fib>,
    /// Seconds since the start; the driver sets it.
    pub tick: Arc<AtomicU32>,
    /// Where QUIC datagrams go.
    pub quic: Arc<QuicInbox>,
    /// Where the node's share goes.
    pub punts: Arc<PuntRing>,
    /// Where datagrams come from that travelled on QUIC links.
    pub frames: Arc<FrameInbox>,
    /// Called once when the TAP is found gone.
    pub on_tap_lost: Waker,
}

/// The running data path.
pub struct Dataplane {
    shared: Arc<Shared>,
    seats: Vec<Arc<Seat>>,
    threads: Vec<JoinHandle<()>>,
    sockets: Arc<UdpSockets>,
    tap_health: Mutex<Refusals>,
    fdb: Arc<Fdb>,
}

/// What all threads see.
struct Shared {
    fib: ArcSwap<Fib>,
    tick: Arc<AtomicU32>,
    quic: Arc<QuicInbox>,
    frames: Arc<FrameInbox>,
    punts: Arc<PuntRing>,
    stop: AtomicBool,
    /// Number of the newest TAP given to the threads, from 1.
    tap_newest: AtomicU32,
    /// Number of the newest TAP that was found gone.
    tap_lost: AtomicU32,
    on_tap_lost: Waker,
}

/// What one thread and its owner share.
struct Seat {
    wake: Wake,
    counters: Arc<Counters>,
    /// A TAP queue for the thread to take over. Locked only then.
    new_tap: Mutex<Option<NumberedQueue>>,
    tap_changed: AtomicBool,
    direction: Direction,
    worker: usize,
    /// The kernel's number of the thread, to ask what it costs.
    thread_id: AtomicI32,
}

/// Super-frames refused by this TAP and those before it.
#[derive(Default)]
struct Refusals {
    now: Arc<TapHealth>,
    before: u64,
}

impl Refusals {
    fn follow(&mut self, next: Arc<TapHealth>) {
        self.before = self.count();
        self.now = next;
    }

    fn count(&self) -> u64 {
        self.before + self.now.superframes_refused()
    }
}

/// A queue and the number of its TAP, so that the loss of an old one is not taken for the loss of the new.
struct NumberedQueue {
    number: u32,
    queue: TapQueue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

/// Counters of all threads together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// See [`Counters::tx_frames`].
    pub tx_frames: u64,
    /// See [`Counters::tx_bytes`].
    pub tx_bytes: u64,
    /// See [`Counters::rx_frames`].
    pub rx_frames: u64,
    /// See [`Counters::rx_bytes`].
    pub rx_bytes: u64,
    /// See [`Counters::relayed`].
    pub relayed: u64,
    /// See [`Counters::flooded`].
    pub flooded: u64,
    /// See [`Counters::fragmented`].
    pub fragmented: u64,
    /// See [`Counters::reassembled`].
    pub reassembled: u64,
    /// See [`Counters::clamped`].
    pub clamped: u64,
    /// See [`Counters::told_too_big`].
    pub told_too_big: u64,
    /// See [`Counters::answered`].
    pub answered: u64,
    /// Drops by reason, in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::ALL.len()],
    /// QUIC datagrams that found the inbox full.
    pub quic_dropped: u64,
    /// Segmented sends that the kernel refused.
    pub segmentation_refused: u64,
    /// Super-frames that the kernel refused on the TAP.
    pub superframes_refused: u64,
}

impl Totals {
    /// Drops of one reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        DropReason::ALL.iter().zip(self.drops).find(|(each, _)| **each == reason).map_or(0, |(_, count)| count)
    }
}

impl Dataplane {
    /// Starts the threads.
    pub fn start(config: Config) -> io::Result<Dataplane> {
        let shared = Arc::new(Shared {
            fib: ArcSwap::new(config.fib),
            tick: config.tick,
            quic: config.quic,
            frames: config.frames,
            punts: config.punts,
            stop: AtomicBool::new(false),
            tap_newest: AtomicU32::new(0),
            tap_lost: AtomicU32::new(0),
            on_tap_lost: config.on_tap_lost,
        });
        let mut dataplane = Dataplane {
            shared,
            seats: Vec::new(),
            threads: Vec::new(),
            sockets: config.sockets,
            tap_health: Mutex::default(),
            fdb: config.fdb,
        };
        for worker in 0..config.workers.max(1) {
            for direction in [Direction::Out, Direction::In] {
                dataplane.seats.push(Arc::new(Seat {
                    wake: Wake::new()?,
                    counters: Arc::default(),
                    new_tap: Mutex::new(None),
                    tap_changed: AtomicBool::new(false),
                    direction,
                    worker,
                    thread_id: AtomicI32::new(0),
                }));
            }
        }
        if let Some(tap) = config.tap {
            dataplane.replace_tap(tap);
        }
        if let Some(first) = dataplane.seats.iter().find(|seat| seat.direction == Direction::In) {
            dataplane.shared.frames.belongs_to(first);
        }
        for seat in dataplane.seats.clone() {
            // Should one fail to start, dropping `dataplane` stops those that run.
            let thread = dataplane.spawn(seat)?;
            dataplane.threads.push(thread);
        }
        Ok(dataplane)
    }

    /// Makes `fib` what the threads use from their next batch on.
    pub fn publish(&self, fib: Arc<Fib>) {
        self.shared.fib.store(fib);
    }

    /// What was published last.
    pub fn fib(&self) -> Arc<Fib> {
        self.shared.fib.load_full()
    }

    /// Gives the threads the queues of another TAP.
    pub fn replace_tap(&self, tap: Tap) {
        self.tap_health.lock().unwrap_or_else(PoisonError::into_inner).follow(Arc::clone(tap.health()));
        let number = self.shared.tap_newest.fetch_add(1, Ordering::AcqRel) + 1;
        for seat in &self.seats {
            let queue = tap.queues()[seat.worker % tap.queues().len()].clone();
            *seat.new_tap.lock().unwrap_or_else(PoisonError::into_inner) = Some(NumberedQueue { number, queue });
            seat.tap_changed.store(true, Ordering::Release);
        }
        self.seats.iter().for_each(|seat| seat.wake.wake());
    }

    /// Whether there is no TAP: none was given yet, or the last one was found gone.
    pub fn tap_lost(&self) -> bool {
        self.shared.tap_lost.load(Ordering::Acquire) >= self.shared.tap_newest.load(Ordering::Acquire)
    }

    /// Learned addresses.
    pub fn fdb(&self) -> &Arc<Fdb> {
        &self.fdb
    }

    /// The counters of all threads, summed.
    pub fn counters(&self) -> Totals {
        let mut totals = Totals {
            quic_dropped: self.shared.quic.dropped(),
            segmentation_refused: self.sockets.segmentation_refused(),
            superframes_refused: self.tap_health.lock().unwrap_or_else(PoisonError::into_inner).count(),
            ..Totals::default()
        };
        for seat in &self.seats {
            let counters = &seat.counters;
            totals.tx_frames += counters.tx_frames.value();
            totals.tx_bytes += counters.tx_bytes.value();
            totals.rx_frames += counters.rx_frames.value();
            totals.rx_bytes += counters.rx_bytes.value();
            totals.relayed += counters.relayed.value();
            totals.flooded += counters.flooded.value();
            totals.fragmented += counters.fragmented.value();
            totals.reassembled += counters.reassembled.value();
            totals.clamped += counters.clamped.value();
            totals.told_too_big += counters.told_too_big.value();
            totals.answered += counters.answered.value();
            for (sum, reason) in totals.drops.iter_mut().zip(DropReason::ALL) {
                *sum += counters.drops(reason);
            }
        }
        totals
    }

    /// Stops the threads and waits for them; dropping does the same.
    pub fn stop(self) {
        drop(self);
    }

    fn spawn(&self, seat: Arc<Seat>) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        let fdb = Arc::clone(&self.fdb);
        let send = self.sockets.send_batch(seat.worker, Arc::clone(&seat.counters));
        let worker = seat.worker;
        match seat.direction {
            Direction::Out => {
                let thread = outbound::Outbound::new(shared, seat, fdb, send);
                guarded(format!("mesh-out-{worker}"), move || thread.run())
            }
            Direction::In => {
                let thread = inbound::Inbound::new(shared, seat, fdb, send, self.sockets.receive_batch(worker));
                guarded(format!("mesh-in-{worker}"), move || thread.run())
            }
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.seats.iter().for_each(|seat| seat.wake.wake());
        for thread in self.threads.drain(..) {
            // A panic in it has ended the process already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    /// Tells the owner, once for all threads, that the TAP of this number is gone.
    fn lose_tap(&self, number: u32) {
        if self.tap_lost.fetch_max(number, Ordering::AcqRel) < number {
            (self.on_tap_lost)();
        }
    }
}

impl Seat {
    /// The queue that the owner put there since the last call.
    fn take_tap(&self) -> Option<NumberedQueue> {
        if !self.tap_changed.load(Ordering::Relaxed) {
            return None;
        }
        self.tap_changed.store(false, Ordering::Release);
        self.new_tap.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note_thread(&self) {
        self.thread_id.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    fn lane(&self) -> u8 {
        (2 * self.worker + usize::from(self.direction == Direction::In)) as u8
    }
}

/// Starts a thread that ends the process when it panics.
fn guarded(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let said = name.clone();
    std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            // The panic itself was printed by the hook; whether a log is set up is not known here.
            eprintln!(
                "meshd: thread {said} failed, a fault in meshd: it stops, since half a data path is worse than none"
            );
            std::process::exit(PANIC_EXIT);
        }
    })
}

const _: () =
    assert!(crate::tap::PARTS_MAX > meshnet_core::forward::join::SEGMENTS_MAX, "a joined run must fit one write");
/// Stack of a thread: its buffers are on the heap, and the deepest call, sealing with tables on the stack, needs a few tens of KiB.
const STACK_BYTES: usize = 512 * 1024;
/// What Rust programs exit with after a panic.
const PANIC_EXIT: i32 = 101;
