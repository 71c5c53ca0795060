//! Keeps the queue before a thread short, so that a ping beside a bulk transfer does not wait behind megabytes of it.
//!
//! ```text
//! backlog of the socket ÷ rate of the thread = wait.  Longer than 1 ms for 10 ms on end:
//! one datagram of a train is dropped, then ever more often, until it is short.
//! ```
//! CoDel (RFC 8289), with the backlog in place of times of arrival, as the kernel tells none for free. Who sends trains is a bulk flow, and slows down when it
//! misses a segment; datagrams that come alone are never dropped. Told once a batch, not once a frame; while the queue runs empty between batches nothing is
//! looked at.

use std::time::{Duration, Instant};

/// The state of one thread's queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// When the last batch ended, while there was a backlog since.
    last: Option<Instant>,
    /// Bytes a second, smoothed.
    rate: f64,
    /// When the wait will have been too long for long enough.
    overdue: Option<Instant>,
    /// While dropping: when the next one is due.
    next: Option<Instant>,
    /// Drops of this spell.
    count: u32,
}

impl Queue {
    /// The queue ran empty.
    pub fn empty(&mut self) {
        if self.last.take().is_some() {
            self.relax();
        }
    }

    /// A batch of `bytes` is done and left `backlog` bytes waiting. True: drop one datagram of the next train.
    pub fn after(&mut self, now: Instant, bytes: usize, backlog: usize) -> bool {
        let Some(last) = self.last.replace(now) else { return false };
        let elapsed = now.saturating_duration_since(last).as_secs_f64().max(1e-6);
        let rate = bytes as f64 / elapsed;
        self.rate = if self.rate == 0.0 { rate } else { self.rate * 0.875 + rate * 0.125 };
        if backlog as f64 <= self.rate * TARGET.as_secs_f64() {
            self.relax();
            return false;
        }
        let overdue = *self.overdue.get_or_insert(now + INTERVAL);
        match self.next {
            None if now < overdue => false,
            None => {
                // A spell soon after another goes on where that ended: the flows are the same.
                self.count = if self.count > 2 { self.count - 2 } else { 1 };
                self.next = Some(now + self.pause());
                true
            }
            Some(next) if now < next => false,
            Some(next) => {
                self.count = self.count.saturating_add(1);
                self.next = Some(next.max(now - INTERVAL) + self.pause());
                true
            }
        }
    }

    fn relax(&mut self) {
        if self.next.take().is_none() && self.overdue.is_none() {
            self.count = 0;
        }
        self.overdue = None;
    }

    fn pause(&self) -> Duration {
        INTERVAL.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

/// Wait that is nobody's concern: below it a transfer keeps the thread busy, and no more.
const TARGET: Duration = Duration::from_millis(1);
/// How long the wait may be longer, for a burst: some round trips of a LAN.
const INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of 250 kB, each 0.5 ms after the last, with this backlog; gives how many drops were asked for.
    fn drops(queue: &mut Queue, at: &mut Instant, batches: usize, backlog: usize) -> usize {
        let mut ask = || {
            *at += Duration::from_micros(500);
            queue.after(*at, 250_000, backlog)
        };
        (0..batches).filter(|_| ask()).count()
    }

    #[test]
    fn a_short_queue_and_a_burst_lose_nothing() {
        let (mut queue, mut at) = (Queue::default(), Instant::now());
        assert_eq!(drops(&mut queue, &mut at, 1_000, 450_000), 0, "0.9 ms");
        assert_eq!(drops(&mut queue, &mut at, 18, 5_000_000), 0, "for 9 ms");
        queue.empty();
        assert_eq!(drops(&mut queue, &mut at, 18, 5_000_000), 0, "it was empty between");
    }

    #[test]
    fn a_standing_queue_loses_ever_more_until_it_is_short() {
        let (mut queue, mut at) = (Queue::default(), Instant::now());
        let first = drops(&mut queue, &mut at, 200, 2_000_000);
        let second = drops(&mut queue, &mut at, 200, 2_000_000);
        assert!((8..20).contains(&first) && second > first * 2, "{first} {second}");
        assert_eq!(drops(&mut queue, &mut at, 100, 100_000), 0);
        assert_eq!(drops(&mut queue, &mut at, 19, 2_000_000), 0, "a new spell begins with patience");
    }
}
