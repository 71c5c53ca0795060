//! Reading of `proto/vectors`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;

/// The vectors of one file, by name. Each is `name hex` on a line of its own, below a line that says what it is.
pub fn vectors(file: &str) -> BTreeMap<String, Vec<u8>> {
    // Tests of two crates include this file.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [root.join("vectors"), root.join("proto/vectors")];
    let folder = folders.iter().find(|folder| folder.exists()).unwrap();
    let text = std::fs::read_to_string(folder.join(file).with_extension("txt")).unwrap();
    let mut vectors = BTreeMap::new();
    let mut explained = false;
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            explained = line.starts_with('#');
            continue;
        }
        let (name, hex) = line.split_once(' ').unwrap_or_else(|| panic!("{file}: '{line}' is no vector"));
        assert!(explained, "{file}: {name} lacks the line that says what it is");
        explained = false;
        let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
        let bytes = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        assert_eq!(vectors.insert(name.to_owned(), bytes), None, "{file}: {name} twice");
    }
    vectors
}
