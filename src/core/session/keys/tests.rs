use std::sync::Arc;

use meshnet_proto::ShortId;
use meshnet_proto::wire::data::{Relay, Route};

use super::*;

fn pair(cipher: Cipher, epoch: u32) -> (Session, Session) {
    let (at, ar) = SessionKeys::derive(&[7; 64], epoch, cipher, true, 3, 2);
    let (bt, br) = SessionKeys::derive(&[7; 64], epoch, cipher, false, 2, 3);
    let session = |local, remote, tx, rx: RxKeys| {
        let mut slots = [None, None, None, None];
        slots[(epoch & 3) as usize] = Some(Arc::new(rx));
        Session { local_index: local, remote_index: remote, cipher, tx: Arc::new(tx), rx: slots }
    };
    (session(1, 2, at, ar), session(2, 1, bt, br))
}

fn sealed(session: &Session, lane: u8, plain: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; OUTER_BYTES];
    datagram.extend_from_slice(plain);
    datagram.resize(datagram.len() + TAG_BYTES, 0);
    session.seal(lane, &mut datagram).unwrap();
    datagram
}

fn open(session: &Session, datagram: &mut [u8]) -> Result<Vec<u8>, DropReason> {
    let outer = Outer::parse(datagram).unwrap();
    session.open(&outer, datagram).map(|plain| plain.to_vec())
}

#[test]
fn both_ends_derive_the_same() {
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        for epoch in [0, 1, 6] {
            let (a, b) = pair(cipher, epoch);
            for lane in 0..3 {
                assert_eq!(open(&b, &mut sealed(&a, lane, b"frame")).unwrap(), b"frame");
            }
            for lane in 0..2 {
                assert_eq!(open(&a, &mut sealed(&b, lane, b"back")).unwrap(), b"back");
            }
            assert_eq!(Outer::parse(&sealed(&a, 2, b"")).unwrap().counter, 1);
        }
    }
}

#[test]
fn keys_differ_by_all_that_they_are_for() {
    let prk = |secret: &[u8]| hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
    let mut seen = std::collections::BTreeSet::new();
    for secret in [[1; 64], [2; 64]] {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            for direction in 0..2 {
                for epoch in 0..3 {
                    for lane in 0..4 {
                        let key = LaneKey::derive(&prk(&secret), cipher, direction, epoch, lane);
                        assert!(seen.insert((key.iv_head, key.iv_tail)), "two lanes share key material");
                    }
                }
            }
        }
    }
}

/// Computed once by another implementation of HKDF and AES-256-GCM; a change here is a change of the wire.
#[test]
fn known_answer() {
    let (a, _) = pair(Cipher::Aes256Gcm, 0);
    let datagram = sealed(&a, 1, b"known plaintext");
    let hex: String = datagram.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, KNOWN);
    let next: String = SessionKeys::chain(&[7; 64], &[9; 32]).0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(next, KNOWN_CHAIN);
}

const KNOWN: &str = "0101000000000002000000000000000019501a478e82d4fc8fcfb756490b3cd463e916995dd318694f26fe629b04ec";
const KNOWN_CHAIN: &str = "63a2130997c70f35d30adc8d4b60b2e36409c5a4af09c9b7d88db21eb704a17d394b550fb4510e0043ec8b58a49622f76ed69a30d6014697ca852590f63aaea5";

#[test]
fn nonce_is_iv_xor_counter() {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&[1; 64]);
    let key = LaneKey::derive(&prk, Cipher::Aes256Gcm, 0, 0, 0);
    let zero = *key.nonce(0).as_ref();
    let other = *key.nonce(0x0102_0304_0506_0708).as_ref();
    let difference: Vec<u8> = zero.iter().zip(other).map(|(a, b)| a ^ b).collect();
    assert_eq!(difference, [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn every_changed_byte_is_caught() {
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        let (a, b) = pair(cipher, 0);
        let good = sealed(&a, 0, b"a frame of some bytes");
        for at in 0..good.len() {
            for flip in [0x01, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                if let Some(outer) = Outer::parse(&bad) {
                    assert!(b.open(&outer, &mut bad).is_err(), "byte {at}");
                }
            }
        }
        assert!(open(&b, &mut good.clone()).is_ok(), "forgeries must not use up the counter");
        assert_eq!(open(&b, &mut good.clone()), Err(DropReason::Replayed));
    }
}

#[test]
fn unknown_epochs_lanes_and_short_datagrams() {
    let (a, b) = pair(Cipher::Aes256Gcm, 5);
    let mut datagram = sealed(&a, 0, b"x");
    assert_eq!(Outer::parse(&datagram).unwrap().epoch, 1, "modulo 4");
    datagram[0] = datagram[0] & !0x30 | 2 << 4;
    assert_eq!(open(&b, &mut datagram), Err(DropReason::UnknownEpoch));
    let mut datagram = sealed(&a, 0, b"x");
    datagram[1] = 3;
    assert_eq!(open(&b, &mut datagram), Err(DropReason::Malformed));
    let outer = Outer::parse(&sealed(&a, 0, b"")).unwrap();
    for length in 0..32 {
        assert_eq!(b.open(&outer, &mut vec![0; length]).unwrap_err(), DropReason::Malformed);
    }
    assert_eq!(a.seal(0, &mut [0; 31]), Err(DropReason::Malformed));
    assert_eq!(a.seal(9, &mut [0; 64]), Err(DropReason::NoSession));
}

#[test]
fn a_used_up_lane_seals_no_more() {
    let (a, b) = pair(Cipher::Aes256Gcm, 0);
    a.tx.lanes[0].counter.store(COUNTER_MAX - 1, Relaxed);
    let mut last = sealed(&a, 0, b"last");
    assert!(open(&b, &mut last).is_ok());
    for _ in 0..3 {
        assert_eq!(a.seal(0, &mut [0; 64]), Err(DropReason::Exhausted));
    }
    assert!(a.tx.counter_most() >= COUNTER_MAX);
    assert_eq!(a.seal(1, &mut [0; 64]), Ok(()), "other lanes go on");
}

#[test]
fn hop_tags() {
    let (a, b) = pair(Cipher::ChaCha20Poly1305, 0);
    for hops in 2..=4 {
        let ids: Vec<ShortId> = (0..hops).map(ShortId).collect();
        let relay = Relay { source: ShortId(77), route: Route::new(&ids).unwrap(), position: 0 };
        let mut datagram = vec![0; OUTER_BYTES + 200];
        let relay_bytes = relay.emit(&mut datagram[OUTER_BYTES..]).unwrap();
        datagram.truncate(OUTER_BYTES + relay_bytes + TAG_BYTES + 40);
        a.seal_hop(1, false, &mut datagram, relay_bytes).unwrap();
        let covered = OUTER_BYTES + relay_bytes + TAG_BYTES + HOP_INNER_BYTES;
        for at in 0..covered {
            let mut bad = datagram.clone();
            bad[at] ^= 1;
            if let Some(outer) = Outer::parse(&bad) {
                assert!(b.open_hop(&outer, &bad, relay_bytes).is_err(), "byte {at}");
            }
        }
        let outer = Outer::parse(&datagram).unwrap();
        assert_eq!(outer.kind, OuterKind::Relay);
        let short = &datagram[..covered - 1];
        assert_eq!(b.open_hop(&outer, short, relay_bytes), Err(DropReason::Malformed));
        assert_eq!(b.open_hop(&outer, &datagram, relay_bytes), Ok(()));
        assert_eq!(b.open_hop(&outer, &datagram, relay_bytes), Err(DropReason::Replayed));
        assert_eq!(b.open_hop(&outer, &datagram, 9999), Err(DropReason::Malformed));
    }
}

#[test]
fn choice_of_cipher() {
    const A: u8 = cipher::AES_256_GCM;
    const C: u8 = cipher::CHACHA20_POLY1305;
    let table: &[(&[u8], &[u8], Option<Cipher>)] = &[
        (&[A, C], &[A, C], Some(Cipher::Aes256Gcm)),
        (&[A, C], &[C, A], Some(Cipher::ChaCha20Poly1305)),
        (&[C, A], &[C, A], Some(Cipher::ChaCha20Poly1305)),
        (&[A], &[C, A], Some(Cipher::Aes256Gcm)),
        (&[A], &[A], Some(Cipher::Aes256Gcm)),
        (&[A], &[C], None),
        (&[], &[A, C], None),
        (&[9, A, C], &[A, C, 9], Some(Cipher::ChaCha20Poly1305)),
        (&[9], &[9], None),
    ];
    for (mine, theirs, wanted) in table {
        assert_eq!(Cipher::choose(mine, theirs), *wanted, "{mine:?} {theirs:?}");
        assert_eq!(Cipher::choose(theirs, mine), *wanted, "{theirs:?} {mine:?}");
    }
}

#[test]
fn chained_secrets_differ() {
    let first = SessionKeys::chain(&[7; 64], &[9; 32]);
    assert_ne!(first.0, SessionKeys::chain(&[7; 64], &[8; 32]).0);
    assert_ne!(first.0, SessionKeys::chain(&[6; 64], &[9; 32]).0);
    assert_ne!(first.0, SessionKeys::chain(&first.0, &[9; 32]).0);
}
