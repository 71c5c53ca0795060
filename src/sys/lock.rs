//! Locks on single bytes of a file (fcntl(2), "open file description locks"): as many turns as there are numbers, and the end of a process gives its back.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Locks one byte for this open file, which need not be as long. Waits for others when asked to; else false when one of them has it.
/// It ends with the last descriptor of the open file.
pub fn lock_byte(file: BorrowedFd<'_>, at: u64, wait: bool) -> io::Result<bool> {
    // SAFETY: a `flock` of zeros is a valid value: plain numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    lock.l_len = 1;
    let how = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    loop {
        // SAFETY: the structure lives until the call is over; the kernel only reads it.
        if unsafe { libc::fcntl(file.as_raw_fd(), how, &raw const lock) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EACCES) if !wait => return Ok(false),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn each_byte_is_one_turn_and_ends_with_its_file() {
        let path = std::env::temp_dir().join(format!("meshnet-lock-{}", std::process::id()));
        let open = || File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        let (one, two) = (open(), open());
        assert!(lock_byte(one.as_fd(), 7, false).unwrap());
        assert!(lock_byte(one.as_fd(), 7, true).unwrap(), "the same file has it already");
        assert!(!lock_byte(two.as_fd(), 7, false).unwrap());
        assert!(lock_byte(two.as_fd(), 8, true).unwrap());
        drop(one);
        assert!(lock_byte(two.as_fd(), 7, true).unwrap());
        assert!(lock_byte(two.as_fd(), u64::MAX, false).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
