//! Who owns which addresses, and which of its own this peer has given out.
mod io;

pub use io::*;
