//! System calls that the standard library and the safe crates do not offer. The only room with `unsafe`.
//!
//! [`tun`]: TAP devices. [`socket`]: UDP with segmentation and joining by the kernel. [`netns`]: network namespaces.
//! [`lock`]: turns of processes. [`iptables`]: tables of the old iptables.
//! [`packet`]: single frames past the IP stack. [`wake`]: waking a thread that sleeps on descriptors.
//!
//! May use nothing of ours. Deliberately lacks: policy, state, retries, logs. Each function is one system call or the few that belong together, and
//! gives back what the kernel said.

pub mod iptables;
#[cfg(test)]
pub(crate) mod lab;
pub mod lock;
pub mod netns;
pub mod packet;
pub mod socket;
pub mod tun;
pub mod wake;
