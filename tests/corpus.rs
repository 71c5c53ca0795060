//! Replays the corpus of the fuzz target `forward` (`tests/fuzz`) through the same function that the target runs.

use std::path::Path;

#[path = "fuzz/src/forward.rs"]
mod forward;

#[test]
fn hostile_datagrams_change_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/forward");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        forward::inbound(&std::fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 20, "{inputs} inputs: run the target as tests/fuzz/README.md says");
}
