//! `meshctl`: asks and commands the local peer through its socket.
//!
//! ```text
//! args (clap) ─ run ─┬─ client ── unix socket ── meshd
//!                    ├─ render: Status → text, tree, dot, svg   (pure: the same document gives the same text)
//!                    ├─ watch: the same text each second
//!                    └─ ping, trace, addresses
//! ```
//!
//! May use: proto (types of the API), telemetry (version). Lacks on purpose: anything that meshd must decide. Names and addresses go to it as typed.
//! Whatever comes back may hold names that a stranger chose: `render::text::clean` makes them harmless before they reach a terminal.

mod addresses;
mod args;
mod client;
mod ping;
pub mod render;
mod run;
pub mod secret;
pub mod usage;
mod watch;

pub use client::{Client, Failure};
pub use run::main;

/// Exit codes, fixed by the interface.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// The peer said no, or did not answer.
    pub const REFUSED: u8 = 1;
    /// A wrong flag or value.
    pub const USAGE: u8 = 2;
    /// Nobody at the socket.
    pub const NO_PEER: u8 = 3;
}
