//! What travels between peers.
pub mod control;
pub mod data;
pub mod record;
