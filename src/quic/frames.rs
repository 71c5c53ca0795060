//! Frames on links: sealed datagrams that travel as QUIC datagrams (RFC 9221), because sealed UDP does not pass or is not wanted.
//!
//! ```text
//! workers ─▶ Frames::send ─▶ queue of the link (bounded) ─▶ link task ─▶ quinn ⇒ network ⇒ quinn ─▶ link task ─▶ FrameSink ─▶ a worker
//!                            full: the run is lost, counted                                                      full: lost, counted
//! ```
//! What is lost is not repeated: those who talk through the tunnel do that. For the same reason the tunnel does not slow down by itself ([`Steady`]): as
//! sealed UDP it leaves that to the flows in it, which would else be governed twice.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use dashmap::DashMap;
use futures_util::FutureExt;
use meshnet_core::node::{Input, LinkId};
use meshnet_core::peer::{from_link, link_address};
use quinn::congestion::{Controller, ControllerFactory};
use quinn::{AckFrequencyConfig, Connection, SendDatagramError, TransportConfig, VarInt};
use tokio::sync::{Notify, mpsc};

/// Where frames that came on links go. Never blocks.
pub trait FrameSink: Send + Sync + 'static {
    /// Takes one datagram; false when there is no room, and it is lost.
    fn put(&self, from: SocketAddr, datagram: Bytes) -> bool;
    /// Some were put.
    fn wake(&self);
}

/// The way of frames onto links, for any thread.
#[derive(Debug, Default)]
pub struct Frames {
    links: DashMap<LinkId, Arc<Queue>>,
    lost: AtomicU64,
}

impl Frames {
    /// Sends datagrams of `segment` bytes (the last may be shorter; without it all is one) on the link that `to` means; `None` when it means none. One
    /// allocation and one short lock for all of them together.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> Option<io::Result<()>> {
        let link = from_link(to)?;
        let Some(queue) = self.links.get(&link).map(|queue| Arc::clone(&queue)) else {
            return Some(Err(io::ErrorKind::NetworkUnreachable.into()));
        };
        let run = Run { bytes: Bytes::copy_from_slice(bytes), segment: segment.unwrap_or(bytes.len()).max(1) };
        let sent = queue.runs.push(run).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory));
        queue.ready.notify_one();
        Some(sent)
    }

    /// Datagrams that QUIC did not take, or that found no room on arrival.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    pub(super) fn open(self: &Arc<Self>, link: LinkId) -> Carried {
        let queue = Arc::new(Queue { runs: ArrayQueue::new(RUNS), ready: Notify::new() });
        self.links.insert(link, Arc::clone(&queue));
        Carried { frames: Arc::clone(self), link, queue }
    }
}

#[derive(Debug)]
struct Run {
    bytes: Bytes,
    segment: usize,
}

#[derive(Debug)]
struct Queue {
    runs: ArrayQueue<Run>,
    ready: Notify,
}

/// The frames of one link, for as long as its task lives.
pub(super) struct Carried {
    frames: Arc<Frames>,
    link: LinkId,
    queue: Arc<Queue>,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.frames.links.remove(&self.link);
    }
}

impl Carried {
    /// Sends what is queued; never returns. How much one datagram may hold is told whenever it changes.
    pub(super) async fn send_all(&self, connection: &Connection, events: &mpsc::Sender<Input>) {
        // Of a connection that has sent none yet: a little less than its buffer.
        let empty = connection.datagram_send_buffer_space();
        let mut told = (0, false);
        let mut looked = Instant::now();
        let mut wait = SIZE_SOON;
        loop {
            self.tell_size(connection, events, &mut told, wait >= SIZE_SETTLED).await;
            // A path's size is searched in the first seconds and seldom changes later.
            let next = tokio::time::sleep(wait);
            tokio::pin!(next);
            loop {
                let run = match self.queue.runs.pop() {
                    Some(run) => run,
                    None => tokio::select! {
                        () = self.queue.ready.notified() => continue,
                        () = &mut next => break,
                    },
                };
                let too_long = self.send_run(connection, empty, &run).await;
                if too_long || looked.elapsed() > wait {
                    break;
                }
            }
            looked = Instant::now();
            wait = (wait * 2).min(SIZE_LATE);
        }
    }

    /// True when some were longer than the link takes.
    async fn send_run(&self, connection: &Connection, empty: usize, run: &Run) -> bool {
        emptied(connection, empty).await;
        let mut too_long = false;
        let mut at = 0;
        while at < run.bytes.len() {
            let end = (at + run.segment).min(run.bytes.len());
            match connection.send_datagram(run.bytes.slice(at..end)) {
                Ok(()) => {}
                Err(error) => {
                    too_long |= matches!(error, SendDatagramError::TooLarge);
                    self.frames.lost.fetch_add(1, Relaxed);
                }
            }
            at = end;
        }
        too_long
    }

    async fn tell_size(
        &self,
        connection: &Connection,
        events: &mpsc::Sender<Input>,
        told: &mut (u16, bool),
        settled: bool,
    ) {
        let bytes = connection.max_datagram_size().map_or(0, |bytes| u16::try_from(bytes).unwrap_or(u16::MAX));
        if std::mem::replace(told, (bytes, settled)) != (bytes, settled) {
            // Without a driver nobody needs it.
            let _ = events.send(Input::DatagramMax { link: self.link, bytes, settled }).await;
        }
    }

    /// Hands over what comes; returns when the connection ends.
    pub(super) async fn take_all(&self, connection: &Connection, sink: &dyn FrameSink) {
        let from = link_address(self.link);
        let put = |datagram| {
            if !sink.put(from, datagram) {
                self.frames.lost.fetch_add(1, Relaxed);
            }
        };
        while let Ok(datagram) = connection.read_datagram().await {
            put(datagram);
            for _ in 0..TAKEN_AT_ONCE {
                let Some(Ok(datagram)) = connection.read_datagram().now_or_never() else { break };
                put(datagram);
            }
            sink.wake();
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until quinn has sent all datagrams before. It sends them before streams, so only then the messages of the control plane have their turn.
async fn emptied(connection: &Connection, empty: usize) {
    for look in 0.. {
        if connection.datagram_send_buffer_space() >= empty {
            return;
        }
        if look < LOOKS_MAX {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(FULL_WAIT).await;
        }
    }
}

/// What frames on links ask of a connection.
pub(super) fn configure(config: &mut TransportConfig) {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_DELAY));
    config
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES))
        .datagram_send_buffer_size(SEND_BUFFER_BYTES)
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(Steady));
}

/// Congestion control of a tunnel: none but a bound on what is under way.
#[derive(Debug, Clone, Copy)]
struct Steady;

impl ControllerFactory for Steady {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for Steady {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Runs that wait for one link, each up to 65,000 bytes: 2 MB, 16 ms of 1 Gbit/s. More would only make frames old.
const RUNS: usize = 32;
/// Datagrams in quinn's hands: two runs.
const SEND_BUFFER_BYTES: usize = 130_000;
/// Datagrams that came and were not yet taken: 30 ms of 500 Mbit/s, for a link's task that waits for its turn.
const RECEIVE_BUFFER_BYTES: usize = 2 << 20;
/// Datagrams handed over before others have their turn.
const TAKEN_AT_ONCE: usize = 256;
/// Turns given to quinn, which sends 20 datagrams in each, before this waits by the clock.
const LOOKS_MAX: u32 = 16;
/// The grain of tokio's clock.
const FULL_WAIT: Duration = Duration::from_millis(1);
/// Packets for which one acknowledgement is enough: every second, as QUIC has it by itself, costs a third of the processor's time.
const ACK_EVERY: u32 = 24;
/// Longest wait for an acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// Under way at most: 10 Gbit/s at 12 ms, 1 Gbit/s at 130 ms.
const WINDOW_BYTES: u64 = 16 << 20;
/// When the size that a link takes is looked at first.
const SIZE_SOON: Duration = Duration::from_millis(250);
/// By then, after 1.75 s, the search is over on all but the slowest paths.
const SIZE_SETTLED: Duration = Duration::from_secs(2);
/// And later.
const SIZE_LATE: Duration = Duration::from_secs(10);
