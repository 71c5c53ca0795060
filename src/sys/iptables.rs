//! Reading a table of the old iptables (x_tables): what `iptables-legacy` changes and nftables does not show.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A table's rules as the kernel keeps them, and where in them the last rule of FORWARD begins: its policy.
#[derive(Debug)]
pub struct Table {
    /// All chains.
    pub rules: Vec<u8>,
    /// Offset of the policy of FORWARD.
    pub forward_policy: usize,
}

/// The table `filter` of IPv4, in the network namespace of the calling thread. Asking loads it where it is not: look into `/proc/net/ip_tables_names` first.
/// Needs CAP_NET_ADMIN.
pub fn filter() -> io::Result<Table> {
    // SAFETY: socket() takes plain numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut info = [0_u8; INFO_BYTES];
    put(&mut info, 0, b"filter");
    get(&socket, GET_INFO, &mut info)?;
    let number =
        |at: usize| info.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes) as usize;
    let (policy, size) = (number(UNDERFLOW_AT + 4 * FORWARD), number(SIZE_AT));
    if size > RULES_MAX_BYTES {
        return Err(io::Error::other("the table is too large to be read"));
    }
    // Longer by what the structure is padded with at its end.
    let mut entries = vec![0_u8; HEAD_BYTES + size];
    put(&mut entries, 0, b"filter");
    put(&mut entries, NAME_BYTES, &u32::try_from(size).unwrap_or(0).to_ne_bytes());
    get(&socket, GET_ENTRIES, &mut entries)?;
    Ok(Table { rules: entries.split_off(HEAD_BYTES), forward_policy: policy })
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

fn get(socket: &OwnedFd, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into the buffer, which lives until the call is over.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Of linux/netfilter_ipv4/ip_tables.h: `ipt_getinfo` is a name, the valid hooks, five entries, five underflows, a count and a size.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const NAME_BYTES: usize = 32;
const UNDERFLOW_AT: usize = NAME_BYTES + 4 + 5 * 4;
const SIZE_AT: usize = UNDERFLOW_AT + 5 * 4 + 4;
const INFO_BYTES: usize = SIZE_AT + 4;
/// `ipt_get_entries`: a name and a size, aligned to 8.
const HEAD_BYTES: usize = NAME_BYTES + 8;
const FORWARD: usize = 2;
/// Some 100,000 rules; a kube-proxy that has more of them is in the table `nat`.
const RULES_MAX_BYTES: usize = 16 * 1024 * 1024;
