//! TAP devices: `/dev/net/tun` and its ioctls (Documentation/networking/tuntap.rst).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of `struct virtio_net_hdr` without the later fields: what stands before each frame.
pub const VNET_HEADER_BYTES: usize = 10;
/// Bytes of an interface's name without the closing zero.
pub const NAME_MAX_BYTES: usize = libc::IFNAMSIZ - 1;

/// What the reader of a TAP takes from the kernel, most first: with segmentation of UDP (Linux 6.2), of TCP, checksums only, nothing.
pub const OFFLOADS: [u32; 4] = [
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN | libc::TUN_F_USO4 | libc::TUN_F_USO6,
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN,
    libc::TUN_F_CSUM,
    0,
];

/// Opens one queue of the TAP `name`, making the device when it is missing; it goes when its last queue is closed.
/// Reads and writes do not block, and carry [`VNET_HEADER_BYTES`] before the frame when headers are wanted and the kernel has them, which is what comes back.
pub fn open_queue(name: &str, headers: bool) -> io::Result<(OwnedFd, bool)> {
    if name.is_empty() || name.len() > NAME_MAX_BYTES || name.bytes().any(|b| b == 0 || b == b'/' || b == b'%') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} cannot be an interface's name")));
    }
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one `unsigned int`, which lives until the call is over.
    let asked = check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES as _, &mut features) });
    // A kernel that cannot be asked is tried.
    let headers = headers && (asked.is_err() || features & libc::IFF_VNET_HDR as libc::c_uint != 0);
    // SAFETY: an `ifreq` of zeros is a valid value: an empty name and a union of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let with_headers = if headers { libc::IFF_VNET_HDR } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | with_headers;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives until the call is over.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    if headers {
        let bytes = VNET_HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, which lives until the call is over.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &bytes) })?;
    }
    let persist: libc::c_ulong = 0;
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST as _, persist) })?;
    Ok((file.into(), headers))
}

/// Tells the kernel what a reader of the device understands (`TUN_F_*`).
pub fn set_offload(queue: &OwnedFd, offload: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offload)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_mangle_are_refused() {
        for name in ["", "sixteen-letters!", "a/b", "tap%d", "nul\0"] {
            assert_eq!(open_queue(name, true).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
