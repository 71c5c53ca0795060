//! Packet sockets (packet(7)): one frame out of an interface, past the IP stack.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Sends a whole Ethernet frame out of the interface of this number, in the network namespace of the calling thread. Needs CAP_NET_RAW.
pub fn send_frame(index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: socket() takes plain numbers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: a `sockaddr_ll` of zeros is a valid value: plain numbers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as libc::sa_family_t;
    to.sll_ifindex = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: frame and address live until the call is over, and their lengths are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::Netns;

    #[test]
    fn a_frame_leaves_and_a_missing_interface_is_told() {
        let netns = Netns::new().expect("network namespaces need root: run the tests as root or by `unshare -rUn`");
        let (lo, none) = netns.run(|| (send_frame(1, &[0; 60]), send_frame(99, &[0; 60]))).unwrap();
        // The loopback device of a new namespace is down.
        assert_eq!(lo.unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
        assert_eq!(none.unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }
}
