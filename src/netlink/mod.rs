//! The bridge, the TAP's place on it, interfaces of containers, addresses: over rtnetlink(7), never by a program.
//!
//! ```text
//! Desired ──┐
//!           ├─► difference (pure) ─► steps ─► kernel ─┐
//! observe ──┘◄────────── until nothing differs ───────┘   run again on each notice of `watch` and on a period
//! ```
//! [`Netlink`] is the door: [`Netlink::ensure`] (bridge and TAP), [`Netlink::underlay`] (own addresses and MTU), [`Netlink::attach`] and
//! [`Netlink::detach`] (containers), [`Netlink::plug`] (containers of a runtime), [`Netlink::expose`] and [`Netlink::hide`] (the host's address),
//! [`Netlink::neighbour`], [`Netlink::taken`] (addresses that somebody on the bridge has), [`vxlan`] and [`nft`] (the kernel's fast path and its guard),
//! [`nat`] (the containers' way out), [`watch::Watch`].
//!
//! May use `sys`. Deliberately lacks: making the TAP (room `tap`; a missing one is told as [`Change::TapMissing`]), changes of rules that others made, any
//! memory of its own: what it knows of earlier runs is written on the devices.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

mod announce;
pub mod attach;
pub mod bridge;
pub mod expose;
mod kernel;
pub mod nat;
pub mod nft;
pub mod plug;
mod probe;
mod rejoin;
pub mod underlay;
pub mod vxlan;
pub mod watch;

#[cfg(test)]
mod tests;

pub use attach::Attached;
pub use bridge::{Change, Desired, stable_mac};
pub use underlay::Underlay;
pub use watch::Watch;

/// A connection to the kernel, for the namespace of the thread that opens it. Cheap to clone.
#[derive(Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Of lists that the kernel makes.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Netlink {
    /// Opens it. Its task runs on the current tokio runtime and ends when the last clone is dropped.
    pub fn open() -> Result<Netlink, Error> {
        let doing = "open a netlink socket";
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|why| Error::Kernel { doing: doing.into(), why })?;
        tokio::spawn(connection);
        Ok(Netlink { handle, turn: Arc::default() })
    }
}

/// 64-bit FNV-1a: marks by which own things are known again. Nothing is proven by it.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Why a change of the machine's network was not made. One line each, with the way out where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name of the bridge is in use.
    #[error("the interface {name} exists and is a {kind}, not a bridge: choose another --bridge, or remove it")]
    NotABridge {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The name of the TAP is in use.
    #[error("the interface {name} exists and is a {kind}, not a TAP: remove it")]
    NotATap {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The name of the device of the fast path is in use.
    #[error("the interface {name} exists and is a {kind} that meshd did not make: remove or rename it")]
    NotOurs {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The bridge is not there.
    #[error("there is no bridge {0}: meshd makes it again within seconds")]
    NoBridge(String),
    /// The namespace is not there.
    #[error("there is no network namespace '{0}': a name of 'ip netns', a path or a process id is wanted")]
    NoNamespace(String),
    /// What is there is something else.
    #[error(
        "'{0}' is not a network namespace: a name of 'ip netns', a path such as /proc/PID/ns/net or a process id is wanted"
    )]
    NotANamespace(String),
    /// It is the one of meshd itself.
    #[error("'{0}' is the namespace of this meshd itself: give the host an address by 'meshctl expose'")]
    OwnNamespace(String),
    /// Nothing of ours is in it.
    #[error("the namespace '{0}' is not attached")]
    NotAttached(String),
    /// No address was given for a new interface.
    #[error("the namespace '{0}' has no address yet: give at least one, such as 10.32.0.5/12")]
    NoAddress(String),
    /// The name of our interface is in use there.
    #[error("the namespace '{namespace}' has an interface {interface} that is not ours: rename or remove it")]
    NameTaken {
        /// Where.
        namespace: String,
        /// Its name.
        interface: String,
    },
    /// The address is in use on this machine or in this namespace.
    #[error("{address} cannot be added: {present} is on {interface} already")]
    AddressTaken {
        /// The wanted one.
        address: IpNet,
        /// The one that is there.
        present: IpNet,
        /// Where.
        interface: String,
    },
    /// There is another route to the same network.
    #[error("the route to {to} by {interface} cannot be added: there is another one to it")]
    RouteTaken {
        /// Where to.
        to: IpNet,
        /// By which interface.
        interface: String,
    },
    /// It is not there.
    #[error("{address} is not on {interface}")]
    NoSuchAddress {
        /// Which.
        address: IpNet,
        /// Where.
        interface: String,
    },
    /// The kernel wants a right that this process lacks.
    #[error(
        "cannot {doing}: not permitted: meshd needs CAP_NET_ADMIN (and CAP_SYS_ADMIN to enter namespaces): run it as root"
    )]
    Permission {
        /// What was tried.
        doing: String,
    },
    /// Anything else that the kernel says.
    #[error("cannot {doing}: {why}")]
    Kernel {
        /// What was tried.
        doing: String,
        /// Its word.
        why: io::Error,
    },
    /// Something else changes the same devices at the same time.
    #[error("cannot bring bridge and TAP into their state: '{0}' does not last; does another program manage them?")]
    Unsettled(Change),
}

impl Error {
    fn io(doing: impl Into<String>, why: io::Error) -> Error {
        let doing = doing.into();
        match why.kind() {
            io::ErrorKind::PermissionDenied => Error::Permission { doing },
            _ => Error::Kernel { doing, why },
        }
    }

    /// The kernel's number, if it gave one.
    fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { why, .. } => why.raw_os_error(),
            _ => None,
        }
    }
}

/// Whether one address is the other, whatever the length of their networks.
fn same_host(a: &IpNet, b: &IpNet) -> bool {
    a.addr() == b.addr()
}

/// Scope of an address that another machine can use: neither loopback nor link-local.
fn is_global(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast()),
    }
}
