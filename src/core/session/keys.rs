//! Keys of a session, and sealing and opening with them.
//!
//! # Key schedule
//! All by HKDF-SHA256 (RFC 5869). A session starts from 64 bytes, `secret(0)`: the TLS exporter of the QUIC connection between the two ends
//! (label `EXPORTER-meshnet-session-v1`). For each direction, epoch and lane:
//!
//! ```text
//! prk     = HKDF-Extract(salt = "meshnet data v1", ikm = secret(epoch))
//! key‖iv  = HKDF-Expand(prk, info = "meshnet lane v1" ‖ cipher ‖ direction ‖ epoch ‖ lane, 32 + 12 bytes)
//!             cipher: 1 byte, its number in a hello    direction: 1 byte, 0 from the end that dialled, 1 to it
//!             epoch: 4 bytes, network order            lane: 1 byte, of the end that seals
//! nonce   = iv, its last 8 bytes XORed with the counter in network order
//! secret(epoch + 1) = HKDF-Expand(HKDF-Extract(salt = secret(epoch), ikm = dh), info = "meshnet rekey v1", 64 bytes)
//! ```
//! `dh` is the shared secret of the X25519 exchange in Rekey and RekeyAck. Both ends derive the same and each uses one half to seal.
//!
//! # What is sealed
//! DATA: the associated data is the outer header; what follows it is encrypted, the 16-byte tag last.
//! RELAY: nothing is encrypted; the tag covers outer header ‖ relay header ‖ first 16 bytes of the datagram inside, and stands between the relay header and
//! that datagram. Both kinds take counters from the same lane, so no nonce occurs twice.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use meshnet_proto::wire::control::cipher;
use meshnet_proto::wire::data::{
    OUTER_BYTES, Outer, OuterKind, RELAY_FIXED_BYTES, RELAY_MAX_BYTES, TAG_BYTES, is_urgent,
};

use super::window::COUNTER_MAX;
use super::{ReplayWindow, Session};
use crate::counters::DropReason;

/// 64 bytes of TLS exporter: the start of a session's keys.
#[derive(Clone)]
pub struct SessionSecret(pub [u8; 64]);

impl std::fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

impl Drop for SessionSecret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Cipher of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Cipher {
    /// The number in a hello.
    pub fn number(self) -> u8 {
        match self {
            Cipher::Aes256Gcm => cipher::AES_256_GCM,
            Cipher::ChaCha20Poly1305 => cipher::CHACHA20_POLY1305,
        }
    }

    /// The cipher of two peers that told each other these numbers, best first. AES only when both put it first, which they do when they have it in hardware:
    /// without that it is several times slower than ChaCha20. Gives the same with the arguments exchanged.
    pub fn choose(mine: &[u8], theirs: &[u8]) -> Option<Cipher> {
        let both = |number: u8| mine.contains(&number) && theirs.contains(&number);
        if mine.first() == Some(&cipher::AES_256_GCM) && theirs.first() == Some(&cipher::AES_256_GCM) {
            return Some(Cipher::Aes256Gcm);
        }
        if both(cipher::CHACHA20_POLY1305) {
            return Some(Cipher::ChaCha20Poly1305);
        }
        both(cipher::AES_256_GCM).then_some(Cipher::Aes256Gcm)
    }

    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Cipher::Aes256Gcm => &aead::AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

/// The derivation of keys from secrets.
#[derive(Debug)]
pub struct SessionKeys;

impl SessionKeys {
    /// The keys of one epoch: to seal with on our `tx_lanes`, to open with on the other end's `rx_lanes`. `initiator`: this end dialled.
    pub fn derive(
        secret: &[u8],
        epoch: u32,
        cipher: Cipher,
        initiator: bool,
        tx_lanes: u8,
        rx_lanes: u8,
    ) -> (TxKeys, RxKeys) {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
        let key = |direction: u8, lane: u8| LaneKey::derive(&prk, cipher, direction, epoch, lane);
        let (ours, theirs) = if initiator { (0, 1) } else { (1, 0) };
        let tx = (0..tx_lanes).map(|lane| TxLane { counter: AtomicU64::new(0), key: key(ours, lane) }).collect();
        let rx = (0..rx_lanes).map(|lane| RxLane { window: ReplayWindow::default(), key: key(theirs, lane) }).collect();
        (TxKeys { epoch, lanes: tx }, RxKeys { epoch, lanes: rx })
    }

    /// The secret of the next epoch, from this one's and a fresh exchange.
    pub fn chain(secret: &[u8], dh: &[u8]) -> SessionSecret {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, secret).extract(dh);
        let mut next = SessionSecret([0; 64]);
        expand(&prk, &[REKEY], &mut next.0);
        next
    }
}

/// Keys to seal with, in one epoch.
#[derive(Debug)]
pub struct TxKeys {
    /// The epoch, whole.
    pub epoch: u32,
    /// By lane number.
    pub lanes: Vec<TxLane>,
}

impl TxKeys {
    /// The largest counter that some lane has reached: rekeying is due long before [`COUNTER_MAX`].
    pub fn counter_most(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.counter.load(Relaxed)).max().unwrap_or(0)
    }
}

/// One lane's key and counter. Sealed on by one thread.
#[derive(Debug)]
pub struct TxLane {
    /// Next counter.
    pub counter: AtomicU64,
    key: LaneKey,
}

/// Keys to open with, in one epoch.
#[derive(Debug)]
pub struct RxKeys {
    /// The epoch, whole.
    pub epoch: u32,
    /// By lane number.
    pub lanes: Vec<RxLane>,
}

/// One lane's key and window.
#[derive(Debug)]
pub struct RxLane {
    /// Counters seen.
    pub window: ReplayWindow,
    key: LaneKey,
}

/// The key of one lane in one direction, the nonce's fixed part beside it.
#[derive(Debug)]
struct LaneKey {
    key: LessSafeKey,
    iv_head: [u8; 4],
    iv_tail: u64,
}

impl LaneKey {
    fn derive(prk: &hkdf::Prk, cipher: Cipher, direction: u8, epoch: u32, lane: u8) -> LaneKey {
        let mut bytes = [0; KEY_BYTES + IV_BYTES];
        expand(prk, &[LANE, &[cipher.number(), direction], &epoch.to_be_bytes(), &[lane]], &mut bytes);
        let (key, iv) = bytes.split_at(KEY_BYTES);
        let Ok(unbound) = UnboundKey::new(cipher.algorithm(), key) else {
            unreachable!("both ciphers take keys of 32 bytes");
        };
        let &[h0, h1, h2, h3, t0, t1, t2, t3, t4, t5, t6, t7] = iv else { unreachable!("the iv has 12 bytes") };
        let lane_key = LaneKey {
            key: LessSafeKey::new(unbound),
            iv_head: [h0, h1, h2, h3],
            iv_tail: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
        };
        wipe(&mut bytes);
        lane_key
    }

    #[inline]
    fn nonce(&self, counter: u64) -> Nonce {
        let [h0, h1, h2, h3] = self.iv_head;
        let [t0, t1, t2, t3, t4, t5, t6, t7] = (self.iv_tail ^ counter).to_be_bytes();
        Nonce::assume_unique_for_key([h0, h1, h2, h3, t0, t1, t2, t3, t4, t5, t6, t7])
    }
}

impl Drop for LaneKey {
    fn drop(&mut self) {
        self.iv_tail = 0;
        wipe(&mut self.iv_head);
    }
}

/// What a sender says of a datagram in its outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// A busy receiver takes it before others.
    pub urgent: bool,
    /// It leaves from another source port than the main one.
    pub aside: bool,
}

impl Session {
    /// Seals a datagram in place: 16 bytes of room for the outer header, the plaintext, 16 bytes of room for the tag.
    #[inline]
    pub fn seal(&self, lane: u8, datagram: &mut [u8]) -> Result<(), DropReason> {
        self.seal_as(lane, Marks::default(), datagram)
    }

    /// The same, marked.
    #[inline]
    pub fn seal_as(&self, lane: u8, marks: Marks, datagram: &mut [u8]) -> Result<(), DropReason> {
        let (key, outer) = self.next(lane, OuterKind::Data, marks)?;
        let (header, rest) = datagram.split_first_chunk_mut::<OUTER_BYTES>().ok_or(DropReason::Malformed)?;
        let (plain, room) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(DropReason::Malformed)?;
        *header = outer.emit();
        let tag = key.key.seal_in_place_separate_tag(key.nonce(outer.counter), Aad::from(&*header), plain);
        room.copy_from_slice(tag.map_err(|_| DropReason::TooBig)?.as_ref());
        Ok(())
    }

    /// Opens a DATA datagram in place and gives its plaintext. `outer` is its header, parsed. Marks the counter as seen only once the tag proved right.
    #[inline]
    pub fn open<'a>(&self, outer: &Outer, datagram: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        let lane = self.rx_lane(outer)?;
        let (header, rest) = datagram.split_first_chunk_mut::<OUTER_BYTES>().ok_or(DropReason::Malformed)?;
        let (sealed, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(DropReason::Malformed)?;
        let nonce = lane.key.nonce(outer.counter);
        let plain = lane.key.key.open_in_place_separate_tag(nonce, Aad::from(&*header), &*tag, sealed);
        let plain = plain.map_err(|_| DropReason::Forged)?;
        if lane.window.accept(outer.counter) { Ok(plain) } else { Err(DropReason::Replayed) }
    }

    /// Writes outer header and tag of a RELAY datagram: 16 bytes of room, the relay header of `relay_bytes`, 16 bytes of room for the tag, the datagram inside.
    /// It is as urgent as what is inside; `aside`: see [`Marks::aside`].
    pub fn seal_hop(&self, lane: u8, aside: bool, datagram: &mut [u8], relay_bytes: usize) -> Result<(), DropReason> {
        let inside = datagram.get(OUTER_BYTES + relay_bytes + TAG_BYTES..).ok_or(DropReason::Malformed)?;
        let (key, outer) = self.next(lane, OuterKind::Relay, Marks { urgent: is_urgent(inside), aside })?;
        *datagram.first_chunk_mut::<OUTER_BYTES>().ok_or(DropReason::Malformed)? = outer.emit();
        let mut covered = [0; COVERED_MAX_BYTES];
        let covered = hop_covered(datagram, relay_bytes, &mut covered).ok_or(DropReason::Malformed)?;
        let tag = key.key.seal_in_place_separate_tag(key.nonce(outer.counter), Aad::from(&*covered), &mut []);
        let tag = tag.map_err(|_| DropReason::TooBig)?;
        let at = OUTER_BYTES + relay_bytes;
        datagram.get_mut(at..at + TAG_BYTES).ok_or(DropReason::Malformed)?.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Checks the hop tag of a RELAY datagram, and then that it was not seen before.
    pub fn open_hop(&self, outer: &Outer, datagram: &[u8], relay_bytes: usize) -> Result<(), DropReason> {
        let lane = self.rx_lane(outer)?;
        let mut covered = [0; COVERED_MAX_BYTES];
        let covered = hop_covered(datagram, relay_bytes, &mut covered).ok_or(DropReason::Malformed)?;
        let at = OUTER_BYTES + relay_bytes;
        let tag = datagram.get(at..at + TAG_BYTES).ok_or(DropReason::Malformed)?;
        let nonce = lane.key.nonce(outer.counter);
        lane.key
            .key
            .open_in_place_separate_tag(nonce, Aad::from(&*covered), tag, &mut [])
            .map_err(|_| DropReason::Forged)?;
        if lane.window.accept(outer.counter) { Ok(()) } else { Err(DropReason::Replayed) }
    }

    /// The key of `lane` and a header with its next counter. An atomic addition although one thread owns the lane: were two to share it by mistake, equal
    /// nonces would give the key away.
    #[inline]
    fn next(&self, lane: u8, kind: OuterKind, marks: Marks) -> Result<(&LaneKey, Outer), DropReason> {
        let tx = self.tx.lanes.get(usize::from(lane)).ok_or(DropReason::NoSession)?;
        let counter = tx.counter.fetch_add(1, Relaxed);
        if counter >= COUNTER_MAX {
            return Err(DropReason::Exhausted);
        }
        let epoch = (self.tx.epoch & 3) as u8;
        let Marks { urgent, aside } = marks;
        Ok((&tx.key, Outer { kind, epoch, lane, urgent, aside, index: self.remote_index, counter }))
    }

    #[inline]
    fn rx_lane(&self, outer: &Outer) -> Result<&RxLane, DropReason> {
        let keys = self.rx.get(usize::from(outer.epoch & 3)).and_then(Option::as_ref);
        let keys = keys.ok_or(DropReason::UnknownEpoch)?;
        keys.lanes.get(usize::from(outer.lane)).ok_or(DropReason::Malformed)
    }
}

/// What a hop tag covers: outer header, relay header, the first 16 bytes after the tag. `None` when the datagram is too short for that.
fn hop_covered<'a>(datagram: &[u8], relay_bytes: usize, out: &'a mut [u8; COVERED_MAX_BYTES]) -> Option<&'a mut [u8]> {
    let head = OUTER_BYTES.checked_add(relay_bytes)?;
    let covered = out.get_mut(..head + HOP_INNER_BYTES)?;
    let (first, second) = covered.split_at_mut_checked(head)?;
    first.copy_from_slice(datagram.get(..head)?);
    second.copy_from_slice(datagram.get(head + TAG_BYTES..)?.first_chunk::<HOP_INNER_BYTES>()?);
    Some(covered)
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(prk: &hkdf::Prk, info: &[&[u8]], out: &mut [u8]) {
    let done = prk.expand(info, Length(out.len())).and_then(|okm| okm.fill(out));
    assert!(done.is_ok(), "HKDF-SHA256 gives up to 8,160 bytes");
}

/// Zeroes bytes; the black box keeps the compiler from leaving it out because nobody reads them again.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

const SALT: &[u8] = b"meshnet data v1";
const LANE: &[u8] = b"meshnet lane v1";
const REKEY: &[u8] = b"meshnet rekey v1";
const KEY_BYTES: usize = 32;
const IV_BYTES: usize = 12;
/// Of the datagram inside a RELAY datagram: its whole outer header, or enough of a QUIC header to tell packets apart. All QUIC packets are longer.
pub const HOP_INNER_BYTES: usize = 16;
const COVERED_MAX_BYTES: usize = RELAY_MAX_BYTES - TAG_BYTES + HOP_INNER_BYTES;
const _: () = assert!(COVERED_MAX_BYTES >= OUTER_BYTES + RELAY_FIXED_BYTES + HOP_INNER_BYTES);

#[cfg(test)]
mod tests;
