//! Sending: datagrams gather in a run and leave in one call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use meshnet_core::counters::{Counters, DropReason};
use meshnet_core::fib::is_link;
use meshnet_core::forward::Transmit;
use meshnet_proto::wire::data::is_aside;

use super::{Port, blames_segmentation};
use crate::buf::SegmentRun;
use crate::sys::wake::writable;

/// The sending side of one thread. Datagrams that cannot join those before them send those first; [`SendBatch::flush`] sends the rest.
#[derive(Debug)]
pub struct SendBatch {
    port: Arc<Port>,
    run: SegmentRun,
    counters: Arc<Counters>,
    /// Runs to send one datagram at a time, after the kernel refused one whole.
    one_by_one_runs: u32,
    /// Behave as if the kernel refused every segmented send.
    #[cfg(test)]
    pub(super) refuse: bool,
}

impl SendBatch {
    pub(super) fn new(port: Arc<Port>, counters: Arc<Counters>) -> SendBatch {
        SendBatch {
            port,
            run: SegmentRun::default(),
            counters,
            one_by_one_runs: 0,
            #[cfg(test)]
            refuse: false,
        }
    }

    /// Sends what is in the batch.
    pub fn flush(&mut self) {
        if self.run.count() == 0 {
            return;
        }
        if self.run.count() == 1 {
            self.send_each();
        } else if self.one_by_one_runs > 0 {
            self.one_by_one_runs -= 1;
            self.send_each();
        } else if !self.port.joins_to(self.run.to()) && !is_link(self.run.to()) {
            self.send_each();
        } else {
            self.send_whole();
        }
        self.run.clear();
    }

    fn send_whole(&mut self) {
        let segment = self.run.segment_bytes() as u16;
        match self.send_patiently(self.run.bytes(), Some(segment)) {
            Err(error) if blames_segmentation(&error) => {
                // Only when each goes by itself, it was the segmentation.
                if self.send_each() {
                    self.one_by_one_runs = RUNS_AFTER_REFUSAL;
                    self.port.health.note_refusal(&error);
                }
            }
            Err(error) => self.count(&error, self.run.count()),
            Ok(()) => (),
        }
    }

    /// Sends the datagrams one at a time; true when the kernel took all.
    fn send_each(&self) -> bool {
        let mut all = true;
        for one in self.run.bytes().chunks(self.run.segment_bytes().max(1)) {
            if let Err(error) = self.send_patiently(one, None) {
                self.count(&error, 1);
                all = false;
            }
        }
        all
    }

    /// Sends, waiting a moment when the socket is full: frames behind wait in the TAP's queue, where there is more room.
    fn send_patiently(&self, bytes: &[u8], segment: Option<u16>) -> io::Result<()> {
        #[cfg(test)]
        if self.refuse && segment.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        // All that is in one run says the same: it has one address, and was sealed by one snapshot.
        let (aside, to) = (is_aside(bytes), self.run.to());
        match self.port.send_from(aside, to, bytes, segment, 0) {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    && writable(self.port.socket(aside).as_fd(), FULL_WAIT) =>
            {
                self.port.send_from(aside, to, bytes, segment, 0)
            }
            other => other,
        }
    }

    fn count(&self, error: &io::Error, datagrams: usize) {
        let reason = match error.raw_os_error() {
            Some(libc::EMSGSIZE) => DropReason::TooBig,
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL) => DropReason::NoRoute,
            None if error.kind() == io::ErrorKind::OutOfMemory => DropReason::SendFull,
            None => DropReason::NoRoute,
            Some(_) => DropReason::SendFull,
        };
        self.counters.drop_many(reason, datagrams as u64);
    }
}

impl Transmit for SendBatch {
    fn reserve(&mut self, to: SocketAddr, length: usize) -> Option<&mut [u8]> {
        if !self.run.takes(to, length) {
            self.flush();
        }
        self.run.reserve(to, length)
    }

    fn commit(&mut self) {
        self.run.commit();
    }
}

/// How long a full socket is waited for: the time that a device of 1 Gbit/s needs for four full runs.
const FULL_WAIT: Duration = Duration::from_millis(2);
/// Runs sent one by one before segmentation is tried again: rare enough to cost nothing, often enough that a changed device is noticed.
const RUNS_AFTER_REFUSAL: u32 = 10_000;
