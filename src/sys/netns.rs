//! Network namespaces (namespaces(7)): opening one by name, path or process, and running code inside.
//!
//! A namespace belongs to a thread. Code runs inside one on a thread of its own that ends with it, so no other code ever finds itself elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// An open network namespace: it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// By name (`/run/netns/NAME`, as `ip netns` keeps them), by path (anything with a `/`) or by process id.
    /// A name of digits alone that exists under `/run/netns` is taken before a process.
    pub fn open(spec: &str) -> io::Result<Netns> {
        if spec.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a network namespace is empty"));
        }
        let named = PathBuf::from("/run/netns").join(spec);
        let path = if spec.contains('/') {
            PathBuf::from(spec)
        } else if !named.exists() && spec.bytes().all(|b| b.is_ascii_digit()) {
            PathBuf::from(format!("/proc/{spec}/ns/net"))
        } else {
            named
        };
        let netns = Netns { file: open_plain(&path)? };
        // Entering is the one check that says whether it is a network namespace, and ours to enter.
        netns.run(|| ())?;
        Ok(netns)
    }

    /// The one that this thread is in.
    pub fn current() -> io::Result<Netns> {
        Ok(Netns { file: File::open("/proc/thread-self/ns/net")? })
    }

    /// A new, empty one without a name.
    pub fn new() -> io::Result<Netns> {
        in_thread(|| {
            // SAFETY: CLONE_NEWNET moves this thread alone, and changes no descriptor table and no memory of the process.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
            Netns::current()
        })
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_thread(|| {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })
    }

    /// A path to it that other processes can open while this lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens a file but never waits for one (a path from a user may name a pipe).
fn open_plain(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Runs `work` on a new thread; a panic in it goes on in the caller.
fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mesh-netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> usize {
        std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count()
    }

    #[test]
    fn code_runs_inside_and_the_caller_stays_outside() {
        let netns = Netns::new().expect("network namespaces need root: run the tests as root or by `unshare -rUn`");
        let outside = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let inside = netns.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_ne!(outside, inside);
        assert_eq!(outside, std::fs::read_link("/proc/thread-self/ns/net").unwrap());
        // Two lines of heading and the loopback device alone.
        assert_eq!(netns.run(links).unwrap(), 3);
        let by_path = Netns::open(netns.path().to_str().unwrap()).unwrap();
        assert_eq!(inside, by_path.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap());
    }

    #[test]
    fn a_process_id_names_its_namespace() {
        let netns = Netns::open(&std::process::id().to_string()).unwrap();
        let there = netns.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_eq!(there, std::fs::read_link("/proc/self/ns/net").unwrap());
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        assert!(Netns::open("").is_err());
        assert_eq!(Netns::open("no-such-namespace").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Netns::open("/proc/self/ns/uts").is_err());
        assert!(Netns::open("/dev/null").is_err());
    }
}
