//! Wire formats, limits and control API of meshnet.
//!
//! `SPEC.md` beside this crate is the description that other implementations would need; it changes in the same commit as this code.
//!
//! * [`id`]: peer ids, MAC addresses.
//! * [`wire::data`]: headers of datagrams, as checked views over bytes. [`wire::control`]: messages on a link. [`wire::record`]: what a peer floods
//!   about itself.
//! * [`api`]: what `meshctl` and `meshd` say to each other over the control socket.
//! * [`limits`]: the largest of everything.
//! * [`codec`]: the one place that knows the encoding of control messages.
//!
//! May use nothing else of this project. Deliberately lacks: any IO, any state, any panic on input.

pub mod api;
pub mod codec;
pub mod id;
pub mod limits;
pub mod wire;

pub use id::{Mac, PeerId, ShortId};
