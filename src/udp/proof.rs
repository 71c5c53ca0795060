//! What the kernel claims of segmented sends, and whether it does it: tried over loopback before anything relies on it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::socket;
use crate::sys::wake::readable;

/// Whether the kernel cuts segmented sends, and cuts them right. Where that cannot be tried, it is believed until a path shows otherwise.
pub(super) fn segments(asked: &Socket) -> bool {
    if !socket::knows_segments(asked.as_fd()) {
        return false;
    }
    match LENGTHS.into_iter().map(cuts).collect::<io::Result<Vec<bool>>>() {
        Ok(right) => {
            let right = right.into_iter().all(|right| right);
            if !right {
                tracing::info!("the kernel spoils segmented UDP sends: datagrams go one by one");
            }
            right
        }
        // Loopback is down, or no memory: nothing is known.
        Err(_) => true,
    }
}

/// Sends so many bytes in segments to a socket that does not join, so that it is the kernel that cuts them. An error: it could not be tried.
pub(super) fn cuts(length: usize) -> io::Result<bool> {
    let [from, to] = [loopback()?, loopback()?];
    let address = to.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let sent: Vec<u8> = (0..length).map(|at| (at ^ at >> 8) as u8).collect();
    socket::send(from.as_fd(), &address, &sent, Some(SEGMENT_BYTES as u16), 0)?;
    let mut buffer = vec![0; length + 1];
    for piece in sent.chunks(SEGMENT_BYTES) {
        match next(to.as_fd(), &mut buffer)? {
            Some(length) if buffer.get(..length) == Some(piece) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The length of the next datagram; none when it does not come.
fn next(to: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match socket::receive(to, buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(if readable(to, PATIENCE) {
            socket::receive(to, buffer).ok().map(|received| received.length)
        } else {
            None
        }),
        other => other.map(|received| Some(received.length)),
    }
}

fn loopback() -> io::Result<Socket> {
    let opened = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    opened.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Ok(opened)
}

/// A short last segment, and one as long as the others: some kernels spoil the one, some the other.
const LENGTHS: [usize; 2] = [5 * SEGMENT_BYTES + 1, 5 * SEGMENT_BYTES];
const SEGMENT_BYTES: usize = 1_200;
/// Loopback delivers within the send; this is for a kernel that does otherwise.
const PATIENCE: Duration = Duration::from_millis(20);
