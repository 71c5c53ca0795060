//! What a thread has read and not dealt with yet, so that what is urgent among it can go first.
//!
//! ```text
//! read ─▶ a free place ─┬─ urgent: dealt with at once, the place is free again
//!                       └─ queue, in order ─▶ a share of it ─▶ read again
//! ```
//! A fixed buffer in places of equal size; nothing is allocated after the start. When no place is free the kernel's queue holds what comes.

use std::collections::VecDeque;
use std::ops::Range;

/// The queue, and the places that nothing lies in.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    place_bytes: usize,
    queue: VecDeque<(T, usize)>,
    /// The one used last is used first, while it is in the processor's cache.
    free: Vec<usize>,
    /// Of what was taken out since the last read: what deals with it may still refer to them.
    taken: Vec<usize>,
}

impl<T> Waiting<T> {
    /// For a buffer of [`PLACES`] places.
    pub fn new(place_bytes: usize) -> Waiting<T> {
        Waiting {
            place_bytes,
            queue: VecDeque::with_capacity(PLACES),
            free: (0..PLACES).rev().collect(),
            taken: Vec::with_capacity(PLACES),
        }
    }

    /// Where the next read may go; the same until something is pushed.
    pub fn room(&mut self) -> Option<Range<usize>> {
        self.free.append(&mut self.taken);
        let start = self.free.last()? * self.place_bytes;
        Some(start..start + self.place_bytes)
    }

    /// Keeps what lies in the place that [`Waiting::room`] gave.
    pub fn push(&mut self, what: T) {
        if let Some(place) = self.free.pop() {
            self.queue.push_back((what, place));
        }
    }

    /// The oldest.
    pub fn pop(&mut self) -> Option<T> {
        let (what, place) = self.queue.pop_front()?;
        self.taken.push(place);
        Some(what)
    }
}

/// Reads that may wait: 2 MB, some milliseconds of work.
pub(super) const PLACES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_only_after_the_next_read_begins() {
        let mut waiting = Waiting::new(10);
        assert_eq!(waiting.room(), Some(0..10));
        waiting.push('a');
        assert_eq!(waiting.room(), Some(10..20));
        waiting.push('b');
        assert_eq!((waiting.pop(), waiting.pop(), waiting.pop()), (Some('a'), Some('b'), None));
        assert_eq!(waiting.room(), Some(10..20), "the one used last");
        for number in 0..PLACES {
            assert!(waiting.room().is_some(), "{number}");
            waiting.push('c');
        }
        assert_eq!(waiting.room(), None);
        assert_eq!(waiting.pop(), Some('c'));
        assert!(waiting.room().is_some());
    }
}
