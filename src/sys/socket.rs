//! UDP sockets with segmentation on sending (`UDP_SEGMENT`) and joining on receiving (`UDP_GRO`): udp(7).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// What one receive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// From where, as the socket sees it: an IPv6 socket shows IPv4 senders as mapped addresses.
    pub from: SocketAddr,
    /// Bytes in the buffer.
    pub length: usize,
    /// Bytes of each datagram in it but the last, which may be shorter.
    pub stride: usize,
    /// The two ECN bits.
    pub ecn: u8,
}

/// Bytes of control data to send: a segment size and a traffic class.
const SEND_CONTROL_BYTES: usize = 64;
/// Bytes of control data to receive: a stride and a traffic class, with room for one more that the kernel may add.
const RECEIVE_CONTROL_BYTES: usize = 128;

#[repr(align(8))]
struct Control<const N: usize>([u8; N]);

/// Sends `bytes` to `to`, cut into datagrams of `segment_bytes` when given. Never blocks.
pub fn send(socket: BorrowedFd<'_>, to: &SocketAddr, bytes: &[u8], segment: Option<u16>, ecn: u8) -> io::Result<()> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let address_bytes = write_address(to, &mut address);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; SEND_CONTROL_BYTES]);
    // SAFETY: a `msghdr` of zeros is a valid value: null pointers of length zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_mut_ptr().cast();
    message.msg_namelen = address_bytes;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    let mut used = 0;
    if let Some(segment) = segment {
        used = put_control(&mut control, used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    if ecn != 0 {
        let (level, kind) = match to {
            SocketAddr::V6(to) if to.ip().to_ipv4_mapped().is_none() => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            _ => (libc::IPPROTO_IP, libc::IP_TOS),
        };
        used = put_control(&mut control, used, level, kind, &libc::c_int::from(ecn & 3).to_ne_bytes());
    }
    if used > 0 {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = used as _;
    }
    // SAFETY: name, part and control data point to memory of at least the given lengths that lives until the call is over; the kernel only reads it.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one datagram, or several of one sender that the kernel joined. Never blocks.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; RECEIVE_CONTROL_BYTES]);
    // SAFETY: a `msghdr` of zeros is a valid value: null pointers of length zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = RECEIVE_CONTROL_BYTES as _;
    // SAFETY: name, part and control data point to memory of at least the given lengths that is ours to write until the call is over.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the storage was zeroed, and the kernel wrote an address over the start: all of it is initialised.
    let from = read_address(unsafe { address.assume_init_ref() })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a datagram without an internet address"))?;
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a datagram longer than the buffer"));
    }
    let length = length as usize;
    let mut received = Received { from, length, stride: length, ecn: 0 };
    // SAFETY: the kernel filled control data and its length in `message`, whose buffer still lives.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header inside the control data.
    while let Some(found) = unsafe { header.as_ref() } {
        // SAFETY: the data follows its header in the same buffer.
        let data = unsafe { libc::CMSG_DATA(header) };
        // It is narrower with musl.
        #[allow(clippy::unnecessary_cast)]
        let data_bytes = (found.cmsg_len as usize).saturating_sub(data as usize - header as usize);
        // SAFETY: `data_bytes` comes from the header's own length, which the kernel keeps inside the buffer.
        let data = unsafe { std::slice::from_raw_parts(data, data_bytes) };
        match (found.cmsg_level, found.cmsg_type) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let stride = data.first_chunk().map_or(0, |bytes| libc::c_int::from_ne_bytes(*bytes));
                received.stride = usize::try_from(stride).ok().filter(|s| (1..=length).contains(s)).unwrap_or(length);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                received.ecn = data.first().map_or(0, |bits| bits & 3);
            }
            _ => (),
        }
        // SAFETY: `header` is a header inside the control data of `message`.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(received)
}

/// Has the kernel join datagrams of one sender.
pub fn set_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel knows segmented sends. One that does not ignores their control data, and sends all in one datagram.
pub fn knows_segments(socket: BorrowedFd<'_>) -> bool {
    // None by itself, which is how it was.
    set_int(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Sets the "don't fragment" bit on all that is sent, and lets the device's MTU alone limit it, not what ICMP messages from anywhere claim.
pub fn set_probe_mtu(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
    }
    // An IPv6 socket sends to mapped addresses by the IPv4 side of it, with its own switch.
    set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
}

/// Has receives tell the ECN bits.
pub fn set_receive_ecn(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    set_int(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)
}

/// Asks for buffers of these sizes: past the system's limit with the right to it, else up to the limit. Gives what the kernel granted.
pub fn set_buffers(socket: BorrowedFd<'_>, receive: usize, send: usize) -> io::Result<(usize, usize)> {
    use rustix::net::sockopt;
    sockopt::set_socket_recv_buffer_size_force(socket, receive)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, receive))?;
    let bytes = libc::c_int::try_from(send).unwrap_or(libc::c_int::MAX);
    set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))?;
    // The kernel doubles what was asked for, to account for its own structures.
    Ok((sockopt::socket_recv_buffer_size(socket)? / 2, sockopt::socket_send_buffer_size(socket)? / 2))
}

fn set_int(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option is read from one `int` that lives until the call is over.
    let result = unsafe {
        let bytes = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), bytes)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Appends one item at `used`; gives where the next one starts.
fn put_control<const N: usize>(
    control: &mut Control<N>,
    used: usize,
    level: libc::c_int,
    kind: libc::c_int,
    data: &[u8],
) -> usize {
    // SAFETY: both only compute lengths.
    let (space, length) = unsafe { (libc::CMSG_SPACE(data.len() as u32), libc::CMSG_LEN(data.len() as u32)) };
    let end = used + space as usize;
    assert!(end <= N, "control data outgrew its buffer");
    // SAFETY: `used` is 0 or the end of an aligned item, so a header at it is aligned; the assertion keeps header and data inside the buffer.
    unsafe {
        let header = control.0.as_mut_ptr().add(used).cast::<libc::cmsghdr>();
        (*header).cmsg_len = length as _;
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(header), data.len());
    }
    end
}

fn write_address(address: &SocketAddr, storage: &mut MaybeUninit<libc::sockaddr_storage>) -> libc::socklen_t {
    match address {
        SocketAddr::V4(address) => {
            let to = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is as large and as aligned as any socket address.
            unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in>().write(to) };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(address) => {
            let to = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: `sockaddr_storage` is as large and as aligned as any socket address.
            unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in6>().write(to) };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which address it is; the storage is large and aligned enough for each.
            let from = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(from.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(from.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says which address it is; the storage is large and aligned enough for each.
            let from = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(from.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(from.sin6_port), 0, from.sin6_scope_id)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    fn pair(address: &str) -> (UdpSocket, UdpSocket, SocketAddr) {
        let (a, b) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
        let to = b.local_addr().unwrap();
        (a, b, to)
    }

    #[test]
    fn addresses_survive_the_way_to_the_kernel_form_and_back() {
        for address in ["10.1.2.3:6783", "[2001:db8::7]:1", "[fe80::1%3]:9", "[::ffff:10.1.2.3]:6783"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut storage = MaybeUninit::zeroed();
            write_address(&address, &mut storage);
            // SAFETY: zeroed, then written.
            assert_eq!(read_address(unsafe { storage.assume_init_ref() }), Some(address));
        }
        // SAFETY: zeros are a valid storage of no family.
        let nowhere = unsafe { std::mem::zeroed() };
        assert_eq!(read_address(&nowhere), None);
    }

    #[test]
    fn segments_join_again_on_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b, to) = pair(address);
            set_gro(b.as_fd()).unwrap();
            let sent: Vec<u8> = (0..5500u32).map(|i| i as u8).collect();
            send(a.as_fd(), &to, &sent, Some(1000), 0).unwrap();
            let mut buffer = vec![0; 65_536];
            let received = receive(b.as_fd(), &mut buffer).unwrap();
            assert_eq!((received.length, received.stride, received.from), (5500, 1000, a.local_addr().unwrap()));
            assert_eq!(&buffer[..5500], &sent[..]);
            assert_eq!(receive(b.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn ecn_bits_arrive() {
        for (address, v6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let (a, b, to) = pair(address);
            set_receive_ecn(b.as_fd(), v6).unwrap();
            send(a.as_fd(), &to, b"marked", None, 2).unwrap();
            send(a.as_fd(), &to, b"plain", None, 0).unwrap();
            let mut buffer = [0; 100];
            assert_eq!(receive(b.as_fd(), &mut buffer).unwrap().ecn, 2);
            assert_eq!(receive(b.as_fd(), &mut buffer).unwrap().ecn, 0);
        }
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_is_an_error_and_not_a_shorter_one() {
        let (a, b, to) = pair("127.0.0.1:0");
        send(a.as_fd(), &to, &[1; 200], None, 0).unwrap();
        assert_eq!(receive(b.as_fd(), &mut [0; 100]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn buffers_grow() {
        let (_, b, _) = pair("127.0.0.1:0");
        let (receive, send) = set_buffers(b.as_fd(), 100_000, 90_000).unwrap();
        assert!(receive >= 90_000 && send >= 80_000, "{receive} {send}");
    }
}
