//! A peer's own identity: the key that signs its records, and the check of others' signatures.
//!
//! The key pair is ed25519 (RFC 8032); the id is the first 16 bytes of SHA-256 of the public key, so that an id cannot be taken without the key.
//! May use: `proto`, aws-lc-rs. Deliberately lacks: reading or making the seed (the daemon does), certificates (the QUIC room does).
//!
//! ```text
//! bytes ── parse ──▶ id of the key ── admit: signature good? ──▶ Arc<Admitted> ──▶ topology
//! ```

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use meshnet_proto::PeerId;
use meshnet_proto::codec::{self, CodecError};
use meshnet_proto::limits;
use meshnet_proto::wire::record::{Record, SIGNATURE_CONTEXT, SignedRecord};

/// The key pair of this peer.
pub struct Identity {
    key: Ed25519KeyPair,
    public_key: [u8; 32],
    id: PeerId,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.id).finish()
    }
}

impl Identity {
    /// The identity of this seed: equal seeds give equal peers.
    pub fn from_seed(seed: [u8; 32]) -> Identity {
        let Ok(key) = Ed25519KeyPair::from_seed_unchecked(&seed) else {
            unreachable!("any 32 bytes are an ed25519 seed (RFC 8032, 5.1.5)")
        };
        let Ok(public_key) = <[u8; 32]>::try_from(key.public_key().as_ref()) else {
            unreachable!("an ed25519 public key has 32 bytes (RFC 8032, 5.1.5)")
        };
        Identity { key, public_key, id: peer_id(&public_key) }
    }

    /// Who this is.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The public half.
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    /// Encodes and signs a record. It fails only for one that is over its limits, which nobody else would take either.
    pub fn sign_record(&self, record: &Record) -> Result<Arc<Admitted>, CodecError> {
        if !record.within_limits() {
            return Err(CodecError::Malformed("record over its limits".into()));
        }
        let body = codec::encode(record)?;
        if body.len() + 64 > limits::RECORD_MAX_BYTES {
            return Err(CodecError::TooLong(body.len() + 64, limits::RECORD_MAX_BYTES));
        }
        let signature = self.key.sign(&signed_bytes(&body));
        let signature = <[u8; 64]>::try_from(signature.as_ref())
            .map_err(|_| CodecError::Malformed("signature of an odd length".into()))?;
        Ok(Arc::new(Admitted { id: self.id, signed: SignedRecord { signature, body }, record: record.clone() }))
    }
}

/// The id of a public key.
pub fn peer_id(public_key: &[u8; 32]) -> PeerId {
    let hash = digest(&SHA256, public_key);
    let mut id = PeerId::default();
    id.0.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    id
}

/// A record whose signature is good: as it travels, and decoded. Shared, because topology and simulation hold many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Hash of the record's key.
    pub id: PeerId,
    /// As it travels.
    pub signed: SignedRecord,
    /// What it says.
    pub record: Record,
}

/// The check of signatures. A simulation shares one that remembers, so that a thousand nodes do not check a million times.
pub trait Verify: fmt::Debug + Send + Sync {
    /// Whether the signature is that of the key in the record.
    fn verify(&self, signed: &SignedRecord, record: &Record) -> bool;

    /// Makes a parsed record one to rely on; `None` when its signature is wrong.
    fn admit(&self, signed: SignedRecord, record: Record) -> Option<Arc<Admitted>> {
        self.verify(&signed, &record).then(|| Arc::new(Admitted { id: peer_id(&record.public_key), signed, record }))
    }
}

/// Checks every signature.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verifier;

impl Verify for Verifier {
    fn verify(&self, signed: &SignedRecord, record: &Record) -> bool {
        UnparsedPublicKey::new(&ED25519, &record.public_key)
            .verify(&signed_bytes(&signed.body), &signed.signature)
            .is_ok()
    }
}

fn signed_bytes(body: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, body].concat()
}

/// Checks each record once for all simulated nodes that share this value, and keeps one copy of it for them.
#[cfg(any(test, feature = "sim"))]
#[derive(Debug, Default)]
pub struct SharedVerifier {
    seen: std::sync::Mutex<std::collections::BTreeMap<[u8; 32], Option<Arc<Admitted>>>>,
}

#[cfg(any(test, feature = "sim"))]
impl Verify for SharedVerifier {
    fn verify(&self, signed: &SignedRecord, record: &Record) -> bool {
        self.admit(signed.clone(), record.clone()).is_some()
    }

    fn admit(&self, signed: SignedRecord, record: Record) -> Option<Arc<Admitted>> {
        let mut hash = aws_lc_rs::digest::Context::new(&SHA256);
        hash.update(&signed.signature);
        hash.update(&signed.body);
        let mut key = [0; 32];
        key.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.len() >= SHARED_MAX {
            seen.clear();
        }
        seen.entry(key).or_insert_with(|| Verifier.admit(signed, record)).clone()
    }
}

/// Records remembered by [`SharedVerifier`]: a thousand peers and thirty versions of each; then it starts anew.
#[cfg(any(test, feature = "sim"))]
const SHARED_MAX: usize = 32_768;

#[cfg(test)]
mod tests {
    use super::*;
    use meshnet_proto::wire::record::Version;

    fn record(identity: &Identity) -> Record {
        Record {
            public_key: identity.public_key(),
            version: Version { incarnation: 7, seq: 1 },
            instance: 3,
            name: "one".into(),
            software: "0".into(),
            endpoints: Vec::new(),
            links: Vec::new(),
            flags: 0,
            mtu: 1310,
            extensions: Vec::new(),
        }
    }

    #[test]
    fn equal_seeds_are_equal_peers() {
        assert_eq!(Identity::from_seed([1; 32]).id(), Identity::from_seed([1; 32]).id());
        assert_ne!(Identity::from_seed([1; 32]).id(), Identity::from_seed([2; 32]).id());
    }

    #[test]
    fn the_id_is_the_start_of_the_hash() {
        // RFC 8032 7.1, test 1: secret key, public key; the hash by sha256sum.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
            0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let identity = Identity::from_seed(seed);
        assert_eq!(identity.public_key()[..4], [0xd7, 0x5a, 0x98, 0x01]);
        assert_eq!(identity.id().to_string(), "21fe31dfa154a261626bf854046fd227");
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let identity = Identity::from_seed([1; 32]);
        let good = identity.sign_record(&record(&identity)).unwrap().signed.emit();
        let (signed, decoded) = SignedRecord::parse(&good).unwrap();
        assert!(Verifier.verify(&signed, &decoded) && SharedVerifier::default().verify(&signed, &decoded));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            if let Ok((signed, decoded)) = SignedRecord::parse(&bad) {
                assert!(!Verifier.verify(&signed, &decoded), "byte {at}");
                assert!(!SharedVerifier::default().verify(&signed, &decoded), "byte {at}, remembered");
            }
        }
    }

    #[test]
    fn a_record_over_its_limits_is_not_signed() {
        let identity = Identity::from_seed([1; 32]);
        let mut long = record(&identity);
        long.name = "x".repeat(limits::NAME_MAX_BYTES + 1);
        assert!(identity.sign_record(&long).is_err());
        let mut long = record(&identity);
        long.extensions = vec![(1, vec![0; limits::RECORD_MAX_BYTES])];
        assert!(identity.sign_record(&long).is_err());
    }
}
