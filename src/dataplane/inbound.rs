//! Underlay to TAP, one thread for each worker.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use meshnet_core::counters::{Counters, DropReason};
use meshnet_core::fdb::Fdb;
use meshnet_core::fib::Fib;
use meshnet_core::forward::join::Joiner;
use meshnet_core::forward::{self, Forwarder};
use meshnet_proto::wire::data::is_urgent;

use super::idle::Idle;
use super::punts::Punter;
use super::to_tap::ToTap;
use super::waiting::{PLACES, Waiting};
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
    /// With where each lies.
    waiting: Waiting<(Received, usize)>,
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
            buffer: vec![0; PLACES * RECEIVE_MAX_BYTES].into_boxed_slice(),
            waiting: Waiting::new(RECEIVE_MAX_BYTES),
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

    /// Takes what waits in the socket, urgent datagrams first, and deals with a share of it; false when there is nothing. Segments of one super-frame that
    /// came by several receives lie in the same buffer, so they join.
    fn batch(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let fib = shared.fib.load();
        let tick = shared.tick();
        let mut punter = Punter::new(&shared.punts);
        let (mut quic, mut found) = (false, false);
        // What came on links: the first thread's alone. Half of the places, so that the socket is read as well.
        for _ in 0..PLACES / 2 {
            let Some(room) = self.waiting.room().filter(|_| self.seat.worker == 0) else { break };
            let Some((from, datagram)) = shared.frames.take() else { break };
            found = true;
            let length = datagram.len();
            let Some(to) = self.buffer.get_mut(room.start..room.start + length) else { continue };
            to.copy_from_slice(&datagram);
            self.waiting.push((Received { from, length, stride: length, ecn: 0 }, room.start));
        }
        // Bounded, as what is urgent fills no place: the rest must have its turn, and a new snapshot.
        for _ in 0..READS_MAX {
            let Some(room) = self.waiting.room() else { break };
            match self.receive.receive(&mut self.buffer[room.clone()]) {
                Ok(received) => {
                    found = true;
                    if let Some(rest) = self.take_urgent(&fib, tick, received, room.start, &mut punter, &mut quic) {
                        self.waiting.push(rest);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    found = true;
                    Counters::drop(&self.seat.counters, DropReason::Malformed);
                }
                // Nothing more; or an error of an earlier send, which reading has cleared.
                Err(_) => break,
            }
        }
        let mut bytes = 0;
        while bytes < SHARE_BYTES
            && let Some((received, start)) = self.waiting.pop()
        {
            found = true;
            bytes += received.length.max(DATAGRAM_COST_BYTES);
            quic |= self.take(&fib, tick, &received, start, &mut punter);
        }
        self.joiner.flush(&mut self.buffer, &mut self.tap);
        self.send.flush();
        punter.wake();
        if quic {
            shared.quic.wake();
        }
        found
    }

    /// Deals with those datagrams of one receive that are urgent: the first and the last can be, as the kernel joins equal ones and ends with a shorter one.
    /// Gives what is left.
    fn take_urgent(
        &mut self,
        fib: &Fib,
        tick: u32,
        received: Received,
        start: usize,
        punter: &mut Punter<'_>,
        quic: &mut bool,
    ) -> Option<(Received, usize)> {
        let Received { length, stride, .. } = received;
        let urgent = |at: usize| is_urgent(self.buffer.get(start + at..start + length).unwrap_or_default());
        // An empty datagram has neither.
        let (first, last) = (0, length.saturating_sub(1) / stride.max(1) * stride);
        let (begin, end) =
            (if urgent(first) { stride.min(length) } else { 0 }, if urgent(last) { last } else { length });
        if begin > 0 {
            *quic |= self.take(fib, tick, &Received { length: begin, ..received }, start, punter);
        }
        if end < length && end >= begin {
            *quic |= self.take(fib, tick, &Received { length: length - end, ..received }, start + end, punter);
        }
        if begin > 0 || end < length {
            // The place may be used again at once, and nobody keeps who calls segments urgent from doing so.
            self.joiner.flush(&mut self.buffer, &mut self.tap);
        }
        (begin < end).then(|| (Received { length: end - begin, ..received }, start + begin))
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

/// Receives in a row: twice what may wait.
const READS_MAX: usize = 2 * PLACES;
/// Dealt with before the socket is looked at again: several super-frames, so that streams that come interleaved still join, and half a millisecond at most
/// for an urgent datagram to wait.
const SHARE_BYTES: usize = 3 * RECEIVE_MAX_BYTES;
/// What a receive counts at least: a batch of small datagrams ends too.
const DATAGRAM_COST_BYTES: usize = 1024;
