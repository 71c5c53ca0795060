//! Packet sockets (packet(7)): frames out of an interface and into one, past the IP stack.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sends a whole Ethernet frame out of the interface of this number, in the network namespace of the calling thread. Needs CAP_NET_RAW.
pub fn send_frame(index: u32, frame: &[u8]) -> io::Result<()> {
    send(socket()?.as_fd(), &address(index, 0)?, frame)
}

/// A socket on one interface, for whole frames of one EtherType. Never blocks.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    to: libc::sockaddr_ll,
}

impl PacketSocket {
    /// On the interface of this number, in the network namespace of the calling thread. Needs CAP_NET_RAW.
    pub fn open(index: u32, ethertype: u16) -> io::Result<PacketSocket> {
        // Bound before it hears anything: with protocol 0 it would get frames of all interfaces until then.
        let (socket, to) = (socket()?, address(index, ethertype)?);
        // SAFETY: the address lives until the call is over, and its length is given.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const to).cast(), ADDRESS_BYTES) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(PacketSocket { socket, to }) }
    }

    /// The same, to be waited for on the tokio runtime of the calling thread.
    pub fn watched(self) -> io::Result<AsyncFd<PacketSocket>> {
        // SAFETY: the socket owns its descriptor, always gives out the same one, and closes it only when dropped, which is after the registration ends.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.socket.as_fd(), &self.to, frame)
    }

    /// Receives one; longer ones are cut.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.socket, buffer, rustix::net::RecvFlags::DONTWAIT)?.0)
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket() takes plain numbers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn address(index: u32, ethertype: u16) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: a `sockaddr_ll` of zeros is a valid value: plain numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(address)
}

fn send(socket: BorrowedFd<'_>, to: &libc::sockaddr_ll, frame: &[u8]) -> io::Result<()> {
    // SAFETY: frame and address live until the call is over, and their lengths are given.
    let sent = unsafe {
        let bytes = frame.as_ptr().cast();
        libc::sendto(socket.as_raw_fd(), bytes, frame.len(), libc::MSG_DONTWAIT, (&raw const *to).cast(), ADDRESS_BYTES)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

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

    #[test]
    fn a_socket_hears_its_interface_and_its_ethertype_alone() {
        let netns = crate::sys::lab::netns();
        netns
            .run(|| {
                crate::sys::lab::ip("link add one type veth peer name two");
                crate::sys::lab::ip("link set one up");
                crate::sys::lab::ip("link set two up");
                let index = |name: &str| rustix::net::netdevice::name_to_index(socket().unwrap(), name).unwrap();
                let open = |name: &str| PacketSocket::open(index(name), 0x88b5).unwrap();
                let (one, two, lo) = (open("one"), open("two"), open("lo"));
                let mut frame = [0xff; 60];
                frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                one.send(&frame).unwrap();
                let mut other = frame;
                other[13] = 0xb6;
                one.send(&other).unwrap();
                let mut buffer = [0; 100];
                assert_eq!(two.receive(&mut buffer).unwrap(), 60);
                assert_eq!(buffer[..60], frame);
                for quiet in [&two, &lo] {
                    assert_eq!(quiet.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
                }
            })
            .unwrap();
    }
}
