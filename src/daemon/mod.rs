//! To come.
pub mod secret;
pub mod state;
