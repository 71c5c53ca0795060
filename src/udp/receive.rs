//! Receiving: one call, one buffer, up to 64 datagrams of one sender.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::Port;
use crate::sys::socket;
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

    /// Bytes that wait in the socket; 0 when the kernel does not say.
    pub fn backlog(&self) -> usize {
        socket::backlog(self.port.socket.as_fd()).unwrap_or(0)
    }
}

impl AsFd for ReceiveBatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.socket.as_fd()
    }
}
