//! Buffers of the frame path: fixed memory, allocated once for each thread.
//!
//! [`SegmentRun`] gathers datagrams that can leave in one send; [`strides`] takes apart what one receive brought.
//!
//! ```text
//! SegmentRun   │ datagram │ datagram │ datagram │ last │ room ...
//!              └ equal lengths, one address ────┘ may be shorter, then nothing follows
//! ```
//! May use `sys`. Deliberately lacks: devices, sockets, growing.

use std::net::SocketAddr;
use std::ops::Range;

/// Datagrams to one address, of equal length but for the last, in one piece of memory.
#[derive(Debug)]
pub struct SegmentRun {
    memory: Box<[u8]>,
    to: SocketAddr,
    /// Length of all but the last.
    segment_bytes: usize,
    used_bytes: usize,
    count: usize,
    /// The last datagram is shorter than the others: it stays the last.
    closed: bool,
    reserved_bytes: usize,
}

impl Default for SegmentRun {
    fn default() -> SegmentRun {
        SegmentRun {
            memory: vec![0; RUN_MAX_BYTES].into_boxed_slice(),
            to: SocketAddr::from(([0, 0, 0, 0], 0)),
            segment_bytes: 0,
            used_bytes: 0,
            count: 0,
            closed: false,
            reserved_bytes: 0,
        }
    }
}

impl SegmentRun {
    /// Whether a datagram of `length` bytes to `to` can join.
    pub fn takes(&self, to: SocketAddr, length: usize) -> bool {
        if self.count == 0 {
            return length > 0 && length <= self.memory.len();
        }
        !self.closed
            && length > 0
            && length <= self.segment_bytes
            && self.count < RUN_MAX_SEGMENTS
            && self.used_bytes + length <= self.memory.len()
            && to == self.to
    }

    /// Room for a datagram that it [takes](SegmentRun::takes), `None` otherwise. It is kept by [`SegmentRun::commit`].
    pub fn reserve(&mut self, to: SocketAddr, length: usize) -> Option<&mut [u8]> {
        if !self.takes(to, length) {
            return None;
        }
        self.to = to;
        self.reserved_bytes = length;
        self.memory.get_mut(self.used_bytes..self.used_bytes + length)
    }

    /// Keeps what was reserved last.
    pub fn commit(&mut self) {
        let length = std::mem::take(&mut self.reserved_bytes);
        if length == 0 {
            return;
        }
        if self.count == 0 {
            self.segment_bytes = length;
        }
        self.closed = length < self.segment_bytes;
        self.used_bytes += length;
        self.count += 1;
    }

    /// Datagrams in it.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where they go.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// Length of all but the last.
    pub fn segment_bytes(&self) -> usize {
        self.segment_bytes
    }

    /// All of them, one after the other.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.used_bytes]
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.used_bytes = 0;
        self.count = 0;
        self.closed = false;
        self.reserved_bytes = 0;
    }
}

/// The datagrams in `length` bytes that were received with this stride.
pub fn strides(length: usize, stride: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(stride.max(1)).map(move |start| start..(start + stride.max(1)).min(length))
}

/// Segments of one send: what every kernel with `UDP_SEGMENT` takes (64 until Linux 6.9, 128 after).
pub const RUN_MAX_SEGMENTS: usize = 64;
/// Bytes of one send. The kernel's limit is 65,507 over IPv4 and 20 more over IPv6; some of it is left for options.
pub const RUN_MAX_BYTES: usize = 65_000;
/// Bytes of a receive buffer: the most that the kernel joins.
pub const RECEIVE_MAX_BYTES: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    const A: ([u8; 4], u16) = ([10, 0, 0, 1], 1);
    const B: ([u8; 4], u16) = ([10, 0, 0, 2], 1);

    fn put(run: &mut SegmentRun, to: ([u8; 4], u16), length: usize) -> bool {
        let Some(room) = run.reserve(to.into(), length) else { return false };
        assert_eq!(room.len(), length);
        room.fill(7);
        run.commit();
        true
    }

    #[test]
    fn equal_lengths_join_and_a_shorter_one_ends_the_run() {
        let mut run = SegmentRun::default();
        assert!(put(&mut run, A, 1000) && put(&mut run, A, 1000));
        assert!(!put(&mut run, B, 1000), "another address");
        assert!(!put(&mut run, A, 1001), "longer than the first");
        assert!(put(&mut run, A, 900));
        assert!(!put(&mut run, A, 900), "after a shorter one");
        assert_eq!((run.count(), run.segment_bytes(), run.bytes().len()), (3, 1000, 2900));
        run.clear();
        assert!(put(&mut run, B, 1001));
        assert_eq!((run.count(), run.segment_bytes(), run.to()), (1, 1001, B.into()));
    }

    #[test]
    fn what_is_not_committed_is_taken_back() {
        let mut run = SegmentRun::default();
        run.reserve(A.into(), 500).unwrap();
        assert!(put(&mut run, B, 700), "nothing was kept, so the address is free");
        run.reserve(B.into(), 600).unwrap();
        assert!(put(&mut run, B, 700), "the shorter one was not kept");
        run.commit();
        assert_eq!((run.count(), run.bytes().len()), (2, 1400), "a second commit keeps nothing");
    }

    #[test]
    fn a_run_is_bounded_in_segments_and_bytes() {
        let mut run = SegmentRun::default();
        assert!(!put(&mut run, A, RUN_MAX_BYTES + 1) && !put(&mut run, A, 0));
        assert_eq!((0..100).filter(|_| put(&mut run, A, 10)).count(), RUN_MAX_SEGMENTS);
        run.clear();
        assert_eq!((0..100).filter(|_| put(&mut run, A, 1500)).count(), RUN_MAX_BYTES / 1500);
    }

    #[test]
    fn strides_cover_all_bytes() {
        assert_eq!(strides(2500, 1000).collect::<Vec<_>>(), [0..1000, 1000..2000, 2000..2500]);
        assert_eq!(strides(10, 10).count(), 1);
        assert_eq!(strides(0, 10).count(), 0);
        assert_eq!(strides(3, 0).count(), 3);
    }
}
