//! What travels between peers.
pub mod control;
pub mod data;
pub mod fast;
pub mod ipam;
pub mod record;
