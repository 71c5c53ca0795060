//! Segments of one super-frame, joined again without a copy of their payload.
//!
//! Contiguous segments that come within one receive batch become one delivery: the header template of the first, and the payload of each, where they lie in the
//! buffer. All of them: the template is as it was read. A run (others are missing, or were delivered before): lengths, sequence number, flags and partial
//! checksum are put right (`packet::retarget`). One alone becomes an ordinary frame.
//!
//! ```text
//! buffer   [.. template │ payload 4 ..][.. template │ payload 5 ..][.. template │ payload 6 ..]
//! delivery     template │ payload 4 ───────────────── payload 5 ──────────────── payload 6          one super-frame of 3 segments
//! ```
//! A few flows are held open at a time, so that streams that come interleaved still join; within a flow, order is kept. What is held refers to the buffer:
//! flush before it is used again.

use std::ops::Range;

use meshnet_proto::limits::SUPERFRAME_MAX_BYTES;
use meshnet_proto::wire::data::{Gso, Inner, InnerKind, Offload};

use super::Deliver;
use super::packet::{Run, retarget};

/// Runs being joined, in order of their start.
#[derive(Debug, Default)]
pub struct Joiner {
    runs: [Held; RUNS_MAX],
    used: usize,
}

/// Contiguous segments of one super-frame.
#[derive(Debug)]
struct Held {
    flow: u64,
    /// The first segment's.
    inner: Inner,
    header: Range<usize>,
    payloads: [(u32, u32); SEGMENTS_MAX],
    count: usize,
    bytes: usize,
    /// Whether the last segment of the super-frame is in it.
    last: bool,
}

impl Default for Held {
    fn default() -> Held {
        Held {
            flow: 0,
            inner: Inner::plain(InnerKind::Frame),
            header: 0..0,
            payloads: [(0, 0); SEGMENTS_MAX],
            count: 0,
            bytes: 0,
            last: false,
        }
    }
}

impl Joiner {
    /// Takes what [`super::Inbound::Deliver`] gave. `buffer` is the same one until the next [`Joiner::flush`].
    #[inline]
    pub fn push(&mut self, buffer: &mut [u8], inner: &Inner, frame: Range<usize>, flow: u64, out: &mut impl Deliver) {
        let open = self.runs.iter().take(self.used).position(|held| held.flow == flow);
        if inner.kind != InnerKind::Segment {
            if let Some(at) = open {
                self.close(at, buffer, out);
            }
            if let Some(bytes) = buffer.get(frame) {
                out.deliver(&inner.offload, &[bytes]);
            }
            return;
        }
        let payload = frame.start + usize::from(inner.offload.header_len)..frame.end;
        if let Some(at) = open {
            if let Some(held) = self.runs.get_mut(at)
                && held.takes(buffer, inner, &frame)
            {
                held.add(inner, payload);
                return;
            }
            self.close(at, buffer, out);
        }
        if self.used == RUNS_MAX {
            self.close(0, buffer, out);
        }
        if let Some(held) = self.runs.get_mut(self.used) {
            held.flow = flow;
            held.inner = *inner;
            held.header = frame.start..payload.start;
            (held.count, held.bytes) = (0, 0);
            held.add(inner, payload);
            self.used += 1;
        }
    }

    /// The same for a frame or segment that is not in the buffer but in `apart`: it goes out at once, behind what is held of its flow.
    pub fn push_apart(
        &mut self,
        buffer: &mut [u8],
        apart: &mut [u8],
        inner: &Inner,
        frame: Range<usize>,
        flow: u64,
        out: &mut impl Deliver,
    ) {
        if let Some(at) = self.runs.iter().take(self.used).position(|held| held.flow == flow) {
            self.close(at, buffer, out);
        }
        let mut alone = Joiner::default();
        alone.push(apart, inner, frame, flow, out);
        alone.flush(apart, out);
    }

    /// Delivers all that is held.
    pub fn flush(&mut self, buffer: &mut [u8], out: &mut impl Deliver) {
        for held in self.runs.iter().take(self.used) {
            held.deliver(buffer, out);
        }
        self.used = 0;
    }

    fn close(&mut self, at: usize, buffer: &mut [u8], out: &mut impl Deliver) {
        if let Some(held) = self.runs.get(at) {
            held.deliver(buffer, out);
        }
        if let Some(rest) = self.runs.get_mut(at..self.used) {
            rest.rotate_left(1);
            self.used -= 1;
        }
    }
}

impl Held {
    /// Whether a segment is the next one. The templates are compared, as numbers of super-frames start anew and, for floods, are those of several threads.
    #[inline]
    fn takes(&self, buffer: &[u8], inner: &Inner, frame: &Range<usize>) -> bool {
        let next = usize::from(self.inner.index) + self.count;
        let template = frame.start..frame.start + self.header.len();
        !self.last
            && self.count < SEGMENTS_MAX
            && usize::from(inner.index) == next
            && inner.superframe == self.inner.superframe
            && inner.count == self.inner.count
            && inner.offload == self.inner.offload
            && self.bytes + frame.len() <= SUPERFRAME_MAX_BYTES
            && buffer.get(template).is_some_and(|other| Some(other) == buffer.get(self.header.clone()))
    }

    #[inline]
    fn add(&mut self, inner: &Inner, payload: Range<usize>) {
        if let Some(place) = self.payloads.get_mut(self.count) {
            self.bytes += payload.len();
            *place = (payload.start as u32, payload.end as u32);
            self.count += 1;
            self.last = inner.index + 1 == inner.count;
        }
    }

    fn deliver(&self, buffer: &mut [u8], out: &mut impl Deliver) {
        let mut offload = self.inner.offload;
        let whole = self.inner.index == 0 && self.last;
        if !whole {
            let run = Run { first: self.inner.index, last: self.last, payload_bytes: self.bytes };
            let Some(header) = buffer.get_mut(self.header.clone()) else { return };
            // A header that is no TCP or UDP after all stays as it is; the far kernel will refuse it, as it would the super-frame.
            let _ = retarget(header, &offload, run);
            offload.ecn &= self.inner.index == 0;
        }
        if self.count == 1 {
            offload = Offload { gso: Gso::None, gso_size: 0, header_len: 0, ecn: false, ..offload };
        }
        let mut parts: [&[u8]; SEGMENTS_MAX + 1] = [&[]; SEGMENTS_MAX + 1];
        let payloads = self.payloads.iter().take(self.count).map(|(start, end)| *start as usize..*end as usize);
        for (part, range) in parts.iter_mut().zip(std::iter::once(self.header.clone()).chain(payloads)) {
            *part = buffer.get(range).unwrap_or_default();
        }
        out.deliver(&offload, parts.get(..=self.count).unwrap_or_default());
    }
}

/// Segments in one delivery: a super-frame of 64 KiB in segments of 512 bytes, and far below what one vectored write takes (1,024).
pub const SEGMENTS_MAX: usize = 128;
/// Flows held open at a time: as many streams as share one receive batch of a few hundred KiB at full rate.
const RUNS_MAX: usize = 4;

#[cfg(test)]
mod tests;
