//! Which flows send so little that they may go before others: a ping, a question to a name server, keys typed into a shell.
//!
//! ```text
//! frame ─▶ flow by its addresses and ports ─▶ bytes of it lately ─┬─ few ──▶ urgent: a busy receiver takes it first
//!                                                                  └─ many, or a super-frame ──▶ in its turn
//! ```
//! A flow that was busy counts as busy for some seconds more, until hardly anything of it can be waiting anywhere: so its frames do not overtake each other.
//! Flows that share a place in the table are one: they lose the privilege, never their order.

use super::packet::{Layers, TCP, UDP};

/// Bytes by flow, of one thread.
#[derive(Debug)]
pub(super) struct Sparse {
    bytes: Box<[u32; PLACES]>,
    tick: u32,
}

impl Default for Sparse {
    fn default() -> Sparse {
        Sparse { bytes: Box::new([0; PLACES]), tick: 0 }
    }
}

impl Sparse {
    /// Counts a frame, or a super-frame; whether it may go first.
    #[inline]
    pub fn is_urgent(&mut self, frame: &[u8], layers: Option<&Layers>, super_frame: bool, tick: u32) -> bool {
        if self.tick != tick {
            self.forget(tick);
        }
        let Some(place) = self.bytes.get_mut(flow(frame, layers) as usize % PLACES) else { return false };
        let now = place.saturating_add(frame.len() as u32);
        let begins = *place <= SPARSE_BYTES && now > SPARSE_BYTES;
        *place = if super_frame || begins { BUSY } else { now.min(BUSY) };
        *place <= SPARSE_BYTES
    }

    /// What was sent in the last second counts half of what is sent in this one.
    #[cold]
    fn forget(&mut self, tick: u32) {
        self.tick = tick;
        for place in self.bytes.iter_mut() {
            *place /= 2;
        }
    }
}

/// A number for the flow of a frame.
#[inline]
fn flow(frame: &[u8], layers: Option<&Layers>) -> u32 {
    let (addresses, ports) = match layers {
        Some(layers) => {
            let addresses = if layers.v6 { layers.l3 + 8..layers.l3 + 40 } else { layers.l3 + 12..layers.l3 + 20 };
            let ports = matches!(layers.protocol, TCP | UDP).then_some(layers.l4..layers.l4 + 4);
            (frame.get(addresses), ports.and_then(|ports| frame.get(ports)))
        }
        None => (frame.get(..ETHERNET_BYTES), None),
    };
    let words = [addresses.unwrap_or_default(), ports.unwrap_or_default()];
    let words = words.into_iter().flat_map(|bytes| bytes.as_chunks::<4>().0);
    let hash =
        words.fold(0u32, |hash, word| (hash ^ u32::from_le_bytes(*word)).wrapping_mul(0x9e37_79b1).rotate_left(15));
    hash ^ hash >> 16
}

/// So many flows are told apart by one thread; 4 KiB.
const PLACES: usize = 1024;
/// Of a flow that may go first, this second's and half of what was before: 4 Mbit/s, above which frames are a stream.
const SPARSE_BYTES: u32 = 1 << 20;
/// A busy flow: below the bound again after six seconds without.
const BUSY: u32 = SPARSE_BYTES << 6;
/// Addresses and type.
const ETHERNET_BYTES: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(port: u8, bytes: usize) -> Vec<u8> {
        let mut frame = vec![0; bytes.max(42)];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = 17;
        frame[26..34].copy_from_slice(&[10, 32, 0, 1, 10, 32, 0, 2]);
        frame[34..38].copy_from_slice(&[0, port, 1, 1]);
        frame
    }

    fn urgent(sparse: &mut Sparse, frame: &[u8], super_frame: bool, tick: u32) -> bool {
        sparse.is_urgent(frame, Layers::parse(frame).as_ref(), super_frame, tick)
    }

    #[test]
    fn a_flow_that_sends_much_waits_its_turn_and_others_do_not() {
        let mut sparse = Sparse::default();
        let first = (0..2_000).filter(|_| urgent(&mut sparse, &udp(1, 1_000), false, 0)).count();
        assert_eq!(first, 1_048);
        assert!(urgent(&mut sparse, &udp(2, 1_000), false, 0));
        // 400 kB each second are few for ever.
        assert!((1..100).all(|tick| (0..400).all(|_| urgent(&mut sparse, &udp(3, 1_000), false, tick))));
    }

    #[test]
    fn a_second_that_ends_makes_no_stream_urgent() {
        let mut sparse = Sparse::default();
        while urgent(&mut sparse, &udp(1, 1_000), false, 0) {}
        assert!((1..6).all(|tick| !urgent(&mut sparse, &udp(1, 1_000), false, tick)), "its frames may still wait");
    }

    #[test]
    fn what_came_in_super_frames_is_busy_for_seconds() {
        let mut sparse = Sparse::default();
        assert!(urgent(&mut sparse, &udp(1, 60), false, 10), "as it begins");
        assert!(!urgent(&mut sparse, &udp(1, 60_000), true, 10));
        let again = (10..30).find(|tick| urgent(&mut sparse, &udp(1, 60), false, *tick));
        assert_eq!(again, Some(17));
    }

    #[test]
    fn what_is_no_ip_is_told_apart_by_its_stations() {
        let mut sparse = Sparse::default();
        let frame = |station: u8| [[station; 14].as_slice(), &[0; 1_000]].concat();
        while urgent(&mut sparse, &frame(1), false, 0) {}
        assert!(urgent(&mut sparse, &frame(2), false, 0));
        assert!(urgent(&mut sparse, &[1, 2, 3], false, 0), "shorter than any header");
    }
}
