//! What the fuzz targets run. `cargo test` runs the same over the committed corpus.

pub mod decoders;
pub mod forward;
