//! Replays the corpus of the fuzz targets (`tests/fuzz`) and the golden vectors through the same functions that the targets run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::path::Path;

mod common;
#[path = "../../tests/fuzz/src/decoders.rs"]
mod decoders;

#[test]
fn the_corpus_changes_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    for (name, decode) in decoders::DECODERS {
        let mut inputs = 0;
        for entry in std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
            decode(&std::fs::read(entry.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs >= 2, "the corpus of {name} holds {inputs} inputs: run it as tests/fuzz/README.md says");
    }
}

/// Each vector through every decoder, whole, cut anywhere, and with each byte changed.
#[test]
fn damaged_vectors_change_nothing() {
    for file in ["addresses", "headers", "messages", "records", "refused"] {
        for bytes in common::vectors(file).values() {
            for (_, decode) in decoders::DECODERS {
                for start in [0, 4] {
                    let mut bytes = bytes.get(start..).unwrap_or_default().to_vec();
                    decode(&bytes);
                    for at in 0..bytes.len().min(160) {
                        decode(&bytes[..at]);
                        for change in [1, 0x80, 0xff] {
                            bytes[at] ^= change;
                            decode(&bytes);
                            bytes[at] ^= change;
                        }
                    }
                }
            }
        }
    }
}
