//! For tests of several rooms: namespaces with devices in them.

use std::process::Command;

use super::netns::Netns;

/// An empty namespace with loopback up and without IPv6's own chatter.
pub(crate) fn netns() -> Netns {
    let netns = Netns::new().expect("network namespaces need root: run the tests as root or by `unshare -rUn`");
    netns
        .run(|| {
            for which in ["all", "default"] {
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
            }
            ip("link set lo up");
        })
        .unwrap();
    netns
}

/// Runs `ip` in the namespace of this thread.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("the tests need iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Mounts of this thread from now on are seen by nobody else.
pub(crate) fn private_mounts() -> std::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: only the mount namespace and the working directory of this thread part from those of the others; no descriptor table does.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}
