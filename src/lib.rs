//! meshnet: a mesh router. Shells around the pure core, and the programs `meshd`, `meshctl`, `mesh-cni`.
//!
//! The map is `src/README.md`.

#![deny(unsafe_code)]

pub mod api;
pub mod buf;
pub mod cni;
pub mod ctl;
pub mod daemon;
pub mod dataplane;
pub mod kube;
pub mod netlink;
pub mod quic;
pub mod store;
#[allow(unsafe_code)]
pub mod sys;
pub mod tap;
pub mod telemetry;
pub mod udp;
