//! Key schedule, sealing and identity against the golden vectors of `proto/vectors/sessions.txt`, which another implementation computed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use meshnet_core::identity::{Identity, Verifier, Verify, peer_id};
use meshnet_core::session::{Cipher, Session, SessionKeys, SessionSecret};
use meshnet_proto::wire::data::{OUTER_BYTES, Outer, Relay, TAG_BYTES};
use meshnet_proto::wire::record::SignedRecord;

#[path = "../proto/tests/common/mod.rs"]
mod common;

type Vectors = BTreeMap<String, Vec<u8>>;

/// The session of the end that dialled, or of the other.
fn session(secret: &[u8], epoch: u32, cipher: Cipher, dialled: bool, remote_index: u32) -> Session {
    let (tx, rx) = SessionKeys::derive(secret, epoch, cipher, dialled, 3, 3);
    let mut opened = [None, None, None, None];
    opened[(epoch & 3) as usize] = Some(Arc::new(rx));
    Session { local_index: 0, remote_index, cipher, tx: Arc::new(tx), rx: opened }
}

/// DATA both ways: sealed as in the vector, and the vector opened.
fn check_data(vectors: &Vectors, name: &str, sealing: &Session, opening: &Session) {
    let (expected, plain) = (&vectors[name], &vectors["plaintext"]);
    let outer = Outer::parse(expected).unwrap();
    sealing.tx.lanes[usize::from(outer.lane)].counter.store(outer.counter, Relaxed);
    let mut datagram = [&[0; OUTER_BYTES][..], plain, &[0; TAG_BYTES]].concat();
    sealing.seal(outer.lane, &mut datagram).unwrap();
    assert_eq!(datagram, *expected, "{name}");
    assert_eq!(opening.open(&outer, &mut datagram).unwrap(), plain, "{name}");
}

/// RELAY both ways.
fn check_relay(vectors: &Vectors, name: &str, sealing: &Session, opening: &Session) {
    let expected = &vectors[name];
    let outer = Outer::parse(expected).unwrap();
    let (_, relay_bytes) = Relay::parse(&expected[OUTER_BYTES..]).unwrap();
    sealing.tx.lanes[usize::from(outer.lane)].counter.store(outer.counter, Relaxed);
    let mut datagram = expected.clone();
    datagram[..OUTER_BYTES].fill(0);
    datagram[OUTER_BYTES + relay_bytes..][..TAG_BYTES].fill(0);
    sealing.seal_hop(outer.lane, outer.aside, &mut datagram, relay_bytes).unwrap();
    assert_eq!(datagram, *expected, "{name}");
    opening.open_hop(&outer, &datagram, relay_bytes).unwrap();
}

#[test]
fn datagrams() {
    let vectors = common::vectors("sessions");
    for (cipher, name) in [(Cipher::Aes256Gcm, "aes-256-gcm"), (Cipher::ChaCha20Poly1305, "chacha20-poly1305")] {
        let dialler = session(&vectors["secret-0"], 0, cipher, true, 0x0102_0304);
        let other = session(&vectors["secret-0"], 0, cipher, false, 0);
        check_data(&vectors, &format!("{name}-data"), &dialler, &other);
        check_relay(&vectors, &format!("{name}-relay"), &dialler, &other);
    }
}

#[test]
fn the_next_epoch() {
    let vectors = common::vectors("sessions");
    let next: SessionSecret = SessionKeys::chain(&vectors["secret-0"], &vectors["x25519-shared"]);
    assert_eq!(next.0[..], vectors["secret-1"]);
    let dialler = session(&next.0, 1, Cipher::Aes256Gcm, true, 0);
    let other = session(&next.0, 1, Cipher::Aes256Gcm, false, 7);
    check_data(&vectors, "epoch-1-data", &other, &dialler);
}

#[test]
fn identity() {
    let vectors = common::vectors("sessions");
    let identity = Identity::from_seed(vectors["identity-seed"][..].try_into().unwrap());
    assert_eq!(identity.public_key()[..], vectors["identity-public"]);
    assert_eq!(identity.id().0[..], vectors["peer-id"]);
}

#[test]
fn signed_records() {
    let id = &common::vectors("sessions")["peer-id"];
    for (name, bytes) in common::vectors("records") {
        let (signed, record) = SignedRecord::parse(&bytes).unwrap();
        assert!(Verifier.verify(&signed, &record), "{name}");
        assert_eq!(peer_id(&record.public_key).0[..], id[..], "{name}");
    }
    let identity = Identity::from_seed(common::vectors("sessions")["identity-seed"][..].try_into().unwrap());
    let bytes = &common::vectors("records")["record"];
    let (_, record) = SignedRecord::parse(bytes).unwrap();
    assert_eq!(
        identity.sign_record(&record).unwrap().signed.emit(),
        *bytes,
        "signatures are deterministic (RFC 8032, 5.1.6)"
    );
}
