//! TAP to underlay, one thread for each worker; what the forwarder answers itself goes back into the same queue. Flows that send little go first.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use meshnet_core::counters::{Counters, DropReason};
use meshnet_core::fdb::Fdb;
use meshnet_core::fib::Fib;
use meshnet_core::forward::{Deliver, Forwarder};
use meshnet_proto::wire::data::Offload;

use super::idle::Idle;
use super::punts::Punter;
use super::to_tap::ToTap;
use super::waiting::{PLACES, Waiting};
use super::{Seat, Shared};
use crate::sys::wake::sleep;
use crate::tap::{READ_BYTES, ReadError};
use crate::udp::SendBatch;

/// The thread's state.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    forwarder: Forwarder,
    send: SendBatch,
    tap: ToTap,
    buffer: Box<[u8]>,
    waiting: Waiting<(Offload, Range<usize>)>,
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batch {
    Some,
    None,
    TapLost,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, seat: Arc<Seat>, fdb: Arc<Fdb>, send: SendBatch) -> Outbound {
        let forwarder = Forwarder::new(seat.lane(), fdb, Arc::clone(&seat.counters));
        let tap = ToTap::new(Arc::clone(&seat.counters));
        let buffer = vec![0; PLACES * READ_BYTES].into_boxed_slice();
        Outbound { shared, seat, forwarder, send, tap, buffer, waiting: Waiting::new(READ_BYTES) }
    }

    pub(super) fn run(mut self) {
        self.seat.note_thread();
        let mut idle = Idle::default();
        while !self.shared.stopping() {
            if let Some(tap) = self.seat.take_tap() {
                self.tap.follow(tap);
            }
            match self.batch() {
                Batch::Some => idle.found(),
                Batch::None if idle.look_again() => (),
                Batch::None => self.sleep(),
                Batch::TapLost => self.tap.lose(&self.shared),
            }
        }
    }

    /// Reads what waits in the TAP, sends what is urgent of it, and then a share of the rest: [`BATCH_BYTES`] at most.
    fn batch(&mut self) -> Batch {
        let shared = Arc::clone(&self.shared);
        let fib = shared.fib.load();
        let tick = shared.tick();
        let mut punter = Punter::new(&shared.punts);
        let (mut bytes, mut end) = (0, Batch::None);
        while bytes < BATCH_BYTES
            && let Some(tap) = &mut self.tap.tap
            && let Some(room) = self.waiting.room()
        {
            match tap.queue.read(&mut self.buffer[room.clone()]) {
                Ok((offload, at)) => {
                    end = Batch::Some;
                    let at = room.start + at.start..room.start + at.end;
                    if self.forwarder.is_urgent(tick, &offload, &self.buffer[at.clone()]) {
                        bytes += at.len().max(FRAME_COST_BYTES);
                        self.send(&fib, tick, true, &offload, at, &mut punter);
                    } else {
                        self.waiting.push((offload, at));
                    }
                }
                Err(ReadError::Malformed) => {
                    end = Batch::Some;
                    bytes += FRAME_COST_BYTES;
                    Counters::drop(&self.seat.counters, DropReason::Malformed);
                }
                Err(ReadError::Empty) => break,
                Err(ReadError::Lost) => {
                    end = Batch::TapLost;
                    break;
                }
            }
        }
        while bytes < BATCH_BYTES
            && let Some((offload, at)) = self.waiting.pop()
        {
            bytes += at.len().max(FRAME_COST_BYTES);
            end = if end == Batch::None { Batch::Some } else { end };
            self.send(&fib, tick, false, &offload, at, &mut punter);
        }
        self.send.flush();
        punter.wake();
        if self.tap.lost { Batch::TapLost } else { end }
    }

    fn send(
        &mut self,
        fib: &Fib,
        tick: u32,
        urgent: bool,
        offload: &Offload,
        at: Range<usize>,
        punter: &mut Punter<'_>,
    ) {
        let frame = &self.buffer[at];
        let answer = self.forwarder.outbound_as(fib, tick, urgent, offload, frame, &mut self.send, punter);
        if let Some(answer) = answer {
            self.tap.deliver(&Offload::default(), &[answer]);
        }
    }

    fn sleep(&self) {
        let fd = self.tap.tap.as_ref().map(|tap| tap.queue.as_fd());
        if sleep(fd, &self.seat.wake).is_ok_and(|woken| woken.called) {
            self.seat.wake.reset();
        }
    }
}

/// Bytes of one batch: four super-frames, so that a new snapshot and the end of the process are never far.
const BATCH_BYTES: usize = 4 * 65_536;
/// What a frame counts at least: 256 small ones are a batch.
const FRAME_COST_BYTES: usize = 1024;
