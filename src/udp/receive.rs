//! Receiving: one call, one buffer, up to 64 datagrams of one sender.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::Port;
pub use crate::sys::socket::Received;

/// The receiving side of one socket. Used by one thread.
#[derive(Debug)]
pub struct ReceiveBatch {
    port: Arc<Port>,
}

impl ReceiveBatch {
    pub(super) fn new(port: Arc<Port>) -> ReceiveBatch {
        ReceiveBatch { port }
    }

    /// Fills `buffer` (of [`crate::buf::RECEIVE_MAX_BYTES`]) with what came next from one sender: see [`crate::buf::strides`]. Never blocks.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        self.port.receive(buffer)
    }
}

impl AsFd for ReceiveBatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.socket.as_fd()
    }
}
