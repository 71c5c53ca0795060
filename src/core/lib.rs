//! The pure core of meshnet: the whole control plane and the forwarding of frames, as state machines.
//!
//! Given time, seed and input, it gives back outputs as data. It may use `meshnet-proto` and crates that only compute.
//! It deliberately lacks: clocks, random sources, files, sockets, threads, the environment, logs. `clippy.toml` beside this file says so.
//!
//! # The contract
//! `handle(now, input)`, `handle_timeout(now)`, `next_deadline()`, `poll() -> Option<Output>`.
//! **Change it, drain `poll` until it gives `None`, then change it again.** Equal seeds and inputs give equal outputs.
//!
//! # Rooms
//! [`node`] dispatches and holds no logic of its own. [`peer`]: dials, links, liveness and paths. [`session`]: keys, replay, rekeying.
//! [`topology`]: the records of all peers. [`gossip`]: who is told what. [`route`]: paths and flood trees from a topology.
//! [`fib`]: the compiled, immutable snapshot that workers read. [`fdb`]: learned MAC addresses. [`forward`]: a frame and a snapshot give a verdict.
//! [`ipam`]: who owns which addresses. [`sim`]: a simulated network of nodes.

pub mod counters;
pub mod fdb;
pub mod fib;
pub mod forward;
pub mod gossip;
pub mod identity;
pub mod ipam;
pub mod node;
pub mod peer;
pub mod route;
pub mod session;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod time;
pub mod topology;
