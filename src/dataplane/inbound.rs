//! Underlay to TAP, one thread for each worker.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use meshnet_core::counters::{Counters, DropReason};
use meshnet_core::fdb::Fdb;
use meshnet_core::fib::Fib;
use meshnet_core::forward::join::Joiner;
use meshnet_core::forward::{self, Forwarder};

use super::idle::Idle;
use super::punts::Punter;
use super::to_tap::ToTap;
use super::{QuicDatagram, Seat, Shared};
use crate::buf::{RECEIVE_MAX_BYTES, strides};
use crate::sys::wake::sleep;
use crate::udp::{ReceiveBatch, Received, SendBatch};

/// The thread's state.
pub(super) struct Inbound {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    forwarder: Forwarder,
    joiner: Joiner,
    /// What is passed on for others.
    send: SendBatch,
    receive: ReceiveBatch,
    buffer: Box<[u8]>,
    tap: ToTap,
}

impl Inbound {
    pub(super) fn new(
        shared: Arc<Shared>,
        seat: Arc<Seat>,
        fdb: Arc<Fdb>,
        send: SendBatch,
        receive: ReceiveBatch,
    ) -> Inbound {
        Inbound {
            forwarder: Forwarder::new(seat.lane(), fdb, Arc::clone(&seat.counters)),
            joiner: Joiner::default(),
            send,
            receive,
            buffer: vec![0; BATCH_BYTES].into_boxed_slice(),
            tap: ToTap::new(Arc::clone(&seat.counters)),
            shared,
            seat,
        }
    }

    pub(super) fn run(mut self) {
        self.seat.note_thread();
        let mut idle = Idle::default();
        while !self.shared.stopping() {
            if let Some(tap) = self.seat.take_tap() {
                self.tap.follow(tap);
            }
            let found = self.batch();
            if self.tap.lost {
                self.tap.lose(&self.shared);
            }
            if found {
                idle.found();
            } else if !idle.look_again() && sleep(Some(self.receive.as_fd()), &self.seat.wake).is_ok_and(|w| w.called) {
                self.seat.wake.reset();
            }
        }
    }

    /// Takes what waits in the socket until the buffer is full; false when nothing did. Segments of one super-frame that came by several receives
    /// lie in the same buffer, so they join.
    fn batch(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let fib = shared.fib.load();
        let tick = shared.tick();
        let mut punter = Punter::new(&shared.punts);
        let mut quic = false;
        let mut found = false;
        let mut used = 0;
        while let Some(room) = self.buffer.get_mut(used..used + RECEIVE_MAX_BYTES) {
            match self.receive.receive(room) {
                Ok(received) => {
                    found = true;
                    quic |= self.take(&fib, tick, &received, used, &mut punter);
                    used += received.length.max(DATAGRAM_COST_BYTES);
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    found = true;
                    used += DATAGRAM_COST_BYTES;
                    Counters::drop(&self.seat.counters, DropReason::Malformed);
                }
                // Nothing more; or an error of an earlier send, which reading has cleared.
                Err(_) => break,
            }
        }
        // What came on links: the first thread's alone.
        while self.seat.worker == 0 && self.buffer.len() - used >= RECEIVE_MAX_BYTES {
            let Some((from, datagram)) = shared.frames.take() else { break };
            found = true;
            let length = datagram.len();
            let Some(room) = self.buffer.get_mut(used..used + length) else { continue };
            room.copy_from_slice(&datagram);
            let received = Received { from, length, stride: length, ecn: 0 };
            quic |= self.take(&fib, tick, &received, used, &mut punter);
            used += length;
        }
        self.joiner.flush(&mut self.buffer, &mut self.tap);
        self.send.flush();
        punter.wake();
        if quic {
            shared.quic.wake();
        }
        found
    }

    /// Deals with the datagrams of one receive, which start at `start` of the buffer; true when QUIC was among them.
    fn take(&mut self, fib: &Fib, tick: u32, received: &Received, start: usize, punter: &mut Punter<'_>) -> bool {
        let (from, buffer, send) = (received.from, &mut self.buffer, &mut self.send);
        let mut quic = false;
        for at in strides(received.length, received.stride) {
            let at = start + at.start..start + at.end;
            match self.forwarder.inbound(fib, tick, from, buffer, at, send, punter) {
                forward::Inbound::Done => (),
                forward::Inbound::Deliver { inner, frame, flow } => {
                    self.joiner.push(buffer, &inner, frame, flow, &mut self.tap);
                }
                forward::Inbound::Reassembled { inner, frame, flow } => {
                    let apart = self.forwarder.reassembled();
                    self.joiner.push_apart(buffer, apart, &inner, frame, flow, &mut self.tap);
                }
                forward::Inbound::Quic { source, datagram } => {
                    // The one allocation of the inbound way, for control traffic alone.
                    let bytes = buffer[datagram].to_vec();
                    quic |= self.shared.quic.put(QuicDatagram { source, from, ecn: received.ecn, bytes });
                }
            }
        }
        quic
    }
}

/// Of the buffer, and so of one batch: several super-frames, so that streams that come interleaved still join, and small enough for the second-level cache.
const BATCH_BYTES: usize = 4 * RECEIVE_MAX_BYTES;
/// What a receive counts at least: a batch of small datagrams ends too.
const DATAGRAM_COST_BYTES: usize = 1024;
