//! Hashes over the table of records, kept up to date with each change, so that comparing two tables costs one number.
//!
//! The hash of a set is the XOR of the hashes of its keys: order does not matter, and adding and taking away are the same step.
//! Not a defence: a member of the cluster can make two sets collide, and would only hide its own records by it.

use meshnet_proto::PeerId;
use meshnet_proto::limits::DIGEST_BUCKETS;
use meshnet_proto::wire::record::{RecordKey, Version};

/// The hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    buckets: Vec<u64>,
    root: u64,
}

impl Default for Digest {
    fn default() -> Digest {
        Digest { buckets: vec![0; DIGEST_BUCKETS], root: 0 }
    }
}

impl Digest {
    /// Adds a key that is not in the set, or takes away one that is.
    pub fn toggle(&mut self, key: RecordKey) {
        let hash = hash(&key);
        self.root ^= hash;
        if let Some(bucket) = self.buckets.get_mut(usize::from(bucket_of(&key.peer))) {
            *bucket ^= hash;
        }
    }

    /// Over everything.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// By bucket.
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// The buckets in which `theirs` differs.
    pub fn unequal(&self, theirs: &[u64]) -> Vec<u8> {
        let numbers = 0..=u8::MAX;
        numbers.zip(self.buckets.iter().zip(theirs)).filter(|(_, (a, b))| a != b).map(|(number, _)| number).collect()
    }
}

/// The bucket of a peer: the first byte of its id, so that a bucket is a range of the ordered table.
pub fn bucket_of(peer: &PeerId) -> u8 {
    let [first, ..] = peer.0;
    first
}

fn hash(key: &RecordKey) -> u64 {
    let Version { incarnation, seq } = key.version;
    let [high, low] = [key.peer.short().0, u128::from_be_bytes(key.peer.0) as u64];
    [high, low, incarnation, seq].into_iter().fold(0x6d65_7368_6e65_7421, |state, word| mix(state ^ word))
}

/// The finisher of splitmix64 (Steele et al., 2014): each bit of the input changes half of the output.
pub(crate) fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
