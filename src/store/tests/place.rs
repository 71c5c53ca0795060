//! Directories for the tests.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// A directory that goes with the test.
pub struct Place {
    path: PathBuf,
    mounted: bool,
}

impl Place {
    pub fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("meshnet-store-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Place { path, mounted: false }
    }

    /// With a file system in memory of its own, in a mount namespace of the calling thread: the machine does not see it.
    pub fn mounted(options: &str) -> Place {
        let mut place = Place::new();
        crate::sys::lab::private_mounts()
            .expect("mount namespaces need root: run the tests as root or by `unshare -rUnm`");
        let options = CString::new(options).unwrap();
        mount("none", &place.path, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        place.mounted = true;
        place
    }

    /// `ro` or `rw`.
    pub fn remount(&self, how: &str) {
        let flags = if how == "ro" { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_remount(&self.path, flags, "").unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self) -> PathBuf {
        self.path.join("ipam.redb")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
