//! What travels between peers.
pub mod control;
pub mod data;
pub mod ipam;
pub mod record;
