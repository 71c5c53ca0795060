//! Waking a thread that sleeps on descriptors: an eventfd beside what it waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Wakes one sleeper; waking twice before it looks is waking once.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A new one, not woken.
    pub fn new() -> io::Result<Wake> {
        Ok(Wake(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the sleeper, now or when it next sleeps.
    pub fn wake(&self) {
        // It fails only when 2^64 - 2 wakes stand already, and then the sleeper wakes too.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Forgets past wakes.
    pub fn reset(&self) {
        // It fails only when there were none.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What ended a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// The descriptor can be read, or has an error that reading will tell.
    pub ready: bool,
    /// Somebody called [`Wake::wake`].
    pub called: bool,
}

/// Sleeps until `fd` can be read or `wake` is called. Without `fd` only a call ends it.
pub fn sleep(fd: Option<BorrowedFd<'_>>, wake: &Wake) -> io::Result<Woken> {
    let call = PollFd::new(wake, PollFlags::IN);
    let result = match fd {
        Some(fd) => {
            let mut fds = [call, PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            poll(&mut fds, None).map(|_| (!fds[1].revents().is_empty(), !fds[0].revents().is_empty()))
        }
        None => {
            let mut fds = [call];
            poll(&mut fds, None).map(|_| (false, !fds[0].revents().is_empty()))
        }
    };
    match result {
        Ok((ready, called)) => Ok(Woken { ready, called }),
        Err(Errno::INTR) => Ok(Woken { ready: false, called: false }),
        Err(error) => Err(error.into()),
    }
}

/// Waits until `fd` takes more, `longest` at most. False when it still does not.
pub fn writable(fd: BorrowedFd<'_>, longest: Duration) -> bool {
    let longest = Timespec::try_from(longest).ok();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    matches!(poll(&mut fds, longest.as_ref()), Ok(1..)) && fds[0].revents().contains(PollFlags::OUT)
}

/// Waits until `fd` has something to read, `longest` at most. False when it still has not.
pub fn readable(fd: BorrowedFd<'_>, longest: Duration) -> bool {
    let longest = Timespec::try_from(longest).ok();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, longest.as_ref()), Ok(1..)) && fds[0].revents().contains(PollFlags::IN)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_call_before_the_sleep_ends_it_and_a_reset_forgets() {
        let wake = Wake::new().unwrap();
        wake.wake();
        wake.wake();
        assert_eq!(sleep(None, &wake).unwrap(), Woken { ready: false, called: true });
        wake.reset();
        let (read, write) = UnixStream::pair().unwrap();
        (&write).write_all(b"x").unwrap();
        assert_eq!(sleep(Some(read.as_fd()), &wake).unwrap(), Woken { ready: true, called: false });
    }

    #[test]
    fn a_call_from_another_thread_ends_the_sleep() {
        let wake = Wake::new().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| wake.wake());
            assert!(sleep(None, &wake).unwrap().called);
        });
    }

    #[test]
    fn a_full_stream_is_not_writable_and_an_empty_one_is() {
        let (read, write) = UnixStream::pair().unwrap();
        write.set_nonblocking(true).unwrap();
        assert!(writable(write.as_fd(), Duration::ZERO));
        while (&write).write(&[0; 4096]).is_ok() {}
        assert!(!writable(write.as_fd(), Duration::from_millis(1)));
        drop(read);
    }
}
