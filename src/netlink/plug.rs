//! An interface for a container as a runtime wants it: with the name and the routes that are asked for, found again by its owner.
//!
//! ```text
//! bridge ── PORT (hairpin; alias: meshnet BRIDGE OWNER) ═══ INTERFACE (in the namespace: MAC, addresses, routes, up)
//! ```
//! Every step finds what an earlier, interrupted run left: the name of the port follows from its owner, and the kernel makes both ends in one step, the
//! inner one in its namespace. What carries another owner's alias is never touched.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use meshnet_proto::id::Mac;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoVeth, LinkAttribute,
};
use rtnetlink::{LinkBridgePort, LinkMessageBuilder, LinkUnspec};
use std::os::fd::{AsFd, AsRawFd};

use super::attach::{inside, mac_of, of, open, other_end, port_alias};
use super::kernel::{Kind, Link};
use super::{Error, Netlink};
use crate::sys::netns::Netns;

/// An interface as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// The bridge.
    pub bridge: String,
    /// Name of the end on the bridge.
    pub port: String,
    /// Whose it is.
    pub owner: String,
    /// The namespace: name, path or process id.
    pub namespace: String,
    /// Its name there.
    pub interface: String,
    /// Of both ends.
    pub mtu: u32,
    /// All of them; the MAC address follows from the first of IPv4.
    pub addresses: Vec<IpNet>,
    /// In the namespace.
    pub routes: Vec<Way>,
    /// Frames may leave the port that they came in by.
    pub hairpin: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Where to.
    pub to: IpNet,
    /// By which router; none: on the link.
    pub via: Option<IpAddr>,
    /// Left out where the namespace has one to there by another interface.
    pub yields: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// Of the interface.
    pub mac: Mac,
    /// Of its other end.
    pub port_mac: Mac,
    /// Of the bridge.
    pub bridge_mac: Mac,
    /// Routes that it has.
    pub routes: Vec<Way>,
}

/// What is there, for a check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The end on the host.
    pub port: bool,
    /// It is up and on the bridge.
    pub joined: bool,
    /// Frames may leave it where they came in.
    pub hairpin: bool,
    /// The interface's MAC address, when it is there and the other end of the port.
    pub mac: Option<Mac>,
    /// It is up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Routes by it: to where, by which router.
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
}

impl Netlink {
    /// Makes the interface, or what of it is missing. A new one that cannot be finished is removed as a whole.
    pub async fn plug(&self, plug: &Plug) -> Result<Plugged, Error> {
        let bridge = self.bridge(&plug.bridge).await?;
        let netns = Arc::new(open(&plug.namespace)?.0);
        let mut port = self.port(plug).await?;
        let mut made = false;
        if let Some(stale) = port.clone()
            && !self.leads_into(&stale, &netns, &plug.interface).await?
        {
            // Of an earlier namespace, or its other end was moved or renamed.
            self.remove_link(&stale).await?;
            port = None;
        }
        if port.is_none() {
            self.make(plug, &netns).await?;
            made = true;
            port = self.link(&plug.port).await?;
        }
        let port = port.ok_or_else(|| Error::io(format!("find {}", plug.port), std::io::ErrorKind::NotFound.into()))?;
        match self.finish(plug, &bridge, &port, &netns).await {
            Ok((mac, routes)) => Ok(Plugged {
                mac,
                port_mac: port.mac.unwrap_or_default(),
                bridge_mac: bridge.mac.unwrap_or_default(),
                routes,
            }),
            Err(error) => {
                if made && let Err(second) = self.remove_link(&port).await {
                    tracing::warn!(interface = %port.name, error = %second, "cannot remove a half made interface");
                }
                Err(error)
            }
        }
    }

    /// Removes the interface of this owner by its port; true when there was one. What somebody else has under that name stays.
    pub async fn unplug(&self, port: &str, owner: &str) -> Result<bool, Error> {
        match self.link(port).await? {
            Some(link) if belongs(&link, owner) => self.remove_link(&link).await.map(|()| true),
            _ => Ok(false),
        }
    }

    /// Removes all that was ever made around a bridge: ports with their interfaces, what is left of TAP and VXLAN device, and the bridge if it is ours.
    /// Gives the names of what was there.
    pub async fn uproot(&self, bridge: &str) -> Result<Vec<String>, Error> {
        let mark = port_alias(bridge);
        // As long as a name may be (IFNAMSIZ).
        let stem: String = bridge.chars().take(11).collect();
        let (tap, vxlan) = (format!("{stem}-tap"), super::vxlan::name_of(bridge));
        let ours = |link: &Link| match (&link.kind, &link.alias) {
            (Kind::Veth, Some(alias)) => {
                *alias == mark || alias.strip_prefix(&mark).is_some_and(|rest| rest.starts_with(' '))
            }
            (Kind::Bridge, Some(alias)) => link.name == bridge && alias == super::bridge::ALIAS,
            (Kind::Tun, _) => link.name == tap,
            (Kind::Other(kind), _) => kind == "vxlan" && link.name == vxlan,
            _ => false,
        };
        let mut gone = Vec::new();
        for link in self.links().await?.into_iter().filter(ours) {
            self.remove_link(&link).await?;
            gone.push(link.name);
        }
        Ok(gone)
    }

    /// Whether there is one.
    pub async fn is_plugged(&self, port: &str, owner: &str) -> Result<bool, Error> {
        Ok(self.link(port).await?.is_some_and(|link| belongs(&link, owner)))
    }

    /// Ports and their owners, of those whose owner begins so.
    pub async fn plugged(&self, prefix: &str) -> Result<Vec<(String, String)>, Error> {
        let links = self.links().await?.into_iter().filter(|link| link.kind == Kind::Veth);
        let owned = links.filter_map(|link| {
            let owner = owner_of(&link).filter(|owner| owner.starts_with(prefix))?.to_owned();
            Some((link.name, owner))
        });
        Ok(owned.collect())
    }

    /// What of the interface is there.
    pub async fn seen(&self, plug: &Plug) -> Result<Seen, Error> {
        let bridge = self.bridge(&plug.bridge).await?;
        let netns = Arc::new(open(&plug.namespace)?.0);
        let Some(port) = self.port(plug).await? else { return Ok(Seen::default()) };
        let (index, name, joined, hairpin) =
            (port.index, plug.interface.clone(), port.up && port.master == Some(bridge.index), port.hairpin);
        inside(&netns, async move |netlink| {
            let mut seen = Seen { port: true, joined, hairpin, ..Seen::default() };
            let Some(end) = netlink.link(&name).await? else { return Ok(seen) };
            if Some(end.index) != port.below || end.below != Some(index) {
                return Ok(seen);
            }
            (seen.mac, seen.up) = (end.mac, end.up);
            seen.addresses = of(&netlink.addresses().await?, end.index);
            let routes = netlink.routes().await?.into_iter().filter(|route| route.index == Some(end.index));
            seen.routes = routes.map(|route| (route.net, route.via)).collect();
            Ok(seen)
        })
        .await
    }

    async fn port(&self, plug: &Plug) -> Result<Option<Link>, Error> {
        match self.link(&plug.port).await? {
            Some(link) if !belongs(&link, &plug.owner) => Err(not_ours(&link)),
            port => Ok(port),
        }
    }

    /// Whether the other end is the interface of this name in this namespace.
    async fn leads_into(&self, port: &Link, netns: &Arc<Netns>, interface: &str) -> Result<bool, Error> {
        let (port, interface) = (port.clone(), interface.to_owned());
        inside(netns, async move |netlink| {
            let links = netlink.links().await?;
            Ok(other_end(&port, &links).is_some_and(|end| end.name == interface))
        })
        .await
    }

    async fn make(&self, plug: &Plug, netns: &Netns) -> Result<(), Error> {
        let mut end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(plug.interface.clone())
            .mtu(plug.mtu)
            .setns_by_fd(netns.as_fd().as_raw_fd());
        if let Some(mac) = mac_of(&plug.addresses) {
            end = end.address(mac.0.to_vec());
        }
        let pair = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(plug.port.clone())
            .mtu(plug.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(end.build())));
        match self.add_link(pair.build(), format!("make {} in '{}'", plug.interface, plug.namespace)).await {
            // The port's name was free a moment ago, and its owner has the turn.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                Err(Error::NameTaken { namespace: plug.namespace.clone(), interface: plug.interface.clone() })
            }
            other => other,
        }
    }

    /// Both ends as they should be, and all told of the addresses.
    async fn finish(
        &self,
        plug: &Plug,
        bridge: &Link,
        port: &Link,
        netns: &Arc<Netns>,
    ) -> Result<(Mac, Vec<Way>), Error> {
        let name = format!("{} {}", port_alias(&bridge.name), plug.owner);
        let silent = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let marked = LinkUnspec::new_with_index(port.index)
            .alias(name)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![silent]));
        if self.change_link(marked, format!("mark {}", port.name)).await.is_err() {
            // Without IPv6 in the kernel there is nothing to silence.
            let marked =
                LinkUnspec::new_with_index(port.index).alias(format!("{} {}", port_alias(&bridge.name), plug.owner));
            self.change_link(marked, format!("mark {}", port.name)).await?;
        }
        let joined = LinkUnspec::new_with_index(port.index).controller(bridge.index).mtu(plug.mtu).up();
        self.change_link(joined, format!("put {} on {}", port.name, bridge.name)).await?;
        if port.hairpin != plug.hairpin || port.master != Some(bridge.index) {
            let setting = InfoBridgePort::HairpinMode(plug.hairpin);
            let change = LinkBridgePort::new(port.index).append_info_data(setting);
            self.change(change.build(), format!("set up the port {}", port.name)).await?;
        }
        let (wanted, index) = (plug.clone(), port.below);
        let (end, routes) = inside(netns, async move |netlink| fill(&netlink, &wanted, index).await).await?;
        let mac = end.mac.unwrap_or_default();
        self.make_known(port, end, netns).await;
        Ok((mac, routes))
    }

    /// Has the kernel tell the neighbours of the addresses, as soon as the bridge passes frames of the port: within a millisecond as a rule.
    async fn make_known(&self, port: &Link, end: Link, netns: &Arc<Netns>) {
        for _ in 0..FORWARDING_TRIES {
            match self.link(&port.name).await {
                Ok(Some(link)) if !link.forwarding => tokio::time::sleep(FORWARDING_WAIT).await,
                _ => break,
            }
        }
        // A MAC address that is set is announced with every address behind it (`arp_notify`, `ndisc_notify`), be it the same as before. A packet socket
        // would do as well, but closing one waits for the kernel's other processors: 15 ms.
        let told = inside(netns, async move |netlink| {
            let mac = end.mac.unwrap_or_default();
            let change = LinkUnspec::new_with_index(end.index).address(mac.0.to_vec());
            netlink.change_link(change, format!("announce {}", end.name)).await
        });
        if let Err(error) = told.await {
            tracing::debug!(%error, interface = %port.name, "announcement not sent");
        }
    }
}

/// Inside the namespace: settings, addresses, up, routes. Gives the interface and the routes that it has.
async fn fill(netlink: &Netlink, plug: &Plug, index: Option<u32>) -> Result<(Link, Vec<Way>), Error> {
    let name = &plug.interface;
    let end = netlink.link(name).await?.filter(|end| Some(end.index) == index);
    let end = end.ok_or_else(|| Error::io(format!("find {name}"), std::io::ErrorKind::NotFound.into()))?;
    settle(name, &plug.addresses);
    if end.mtu != plug.mtu {
        let change = LinkUnspec::new_with_index(end.index).mtu(plug.mtu);
        netlink.change_link(change, format!("set the MTU of {name}")).await?;
    }
    let there = of(&netlink.addresses().await?, end.index);
    for net in plug.addresses.iter().filter(|net| !there.contains(net)) {
        netlink.add_address(&end, *net).await?;
    }
    if !end.up {
        netlink.change_link(LinkUnspec::new_with_index(end.index).up(), format!("bring {name} up")).await?;
    }
    let before = netlink.routes().await?;
    let mut routes = Vec::with_capacity(plug.routes.len());
    for way in &plug.routes {
        let same = |route: &&super::kernel::Route| route.net == way.to;
        let other = before.iter().filter(same).find(|route| route.index != Some(end.index));
        if way.yields && other.is_some() {
            continue;
        }
        let had = before.iter().filter(same).any(|route| route.index == Some(end.index) && route.via == way.via);
        if !had && !netlink.add_route(&end, way.to, way.via).await? {
            return Err(Error::RouteTaken { to: way.to, interface: name.clone() });
        }
        routes.push(way.clone());
    }
    if !plug.routes.iter().any(|way| way.to.prefix_len() == 0) {
        netlink.route_multicast(&end).await?;
    }
    Ok((end, routes))
}

/// Settings of the interface that are files. None is worth failing for: where `/proc/sys` cannot be written, the kernel's defaults serve.
fn settle(interface: &str, addresses: &[IpNet]) {
    let set = |family: &str, key: &str, value: &str| {
        let _ = std::fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{key}"), value);
    };
    // The neighbours are told of the addresses by the kernel: see `make_known`, and when the link comes back.
    set("ipv4", "arp_notify", "1");
    set("ipv6", "ndisc_notify", "1");
    // The host, being the router, tells of shorter ways on the link; behind the address of a service there is none.
    set("ipv4", "accept_redirects", "0");
    let _ = std::fs::write("/proc/sys/net/ipv4/conf/all/accept_redirects", "0");
    if addresses.iter().any(|net| net.addr().is_ipv6()) {
        set("ipv6", "disable_ipv6", "0");
    }
    // Addresses are agreed elsewhere: nobody waits a second for duplicates to answer. Routers are told, not found.
    set("ipv6", "accept_dad", "0");
    set("ipv6", "accept_ra", "0");
}

/// Whether a port is the one of this owner: it says so, or it says nothing yet, because whoever made it was interrupted.
fn belongs(link: &Link, owner: &str) -> bool {
    link.kind == Kind::Veth && (link.alias.is_none() || owner_of(link) == Some(owner))
}

/// The last word of the alias.
fn owner_of(link: &Link) -> Option<&str> {
    let (_, owner) = link.alias.as_deref()?.strip_prefix("meshnet ")?.split_once(' ')?;
    Some(owner)
}

fn not_ours(link: &Link) -> Error {
    Error::NotOurs { name: link.name.clone(), kind: link.kind.to_string() }
}

/// The port of an owner: at most 15 bytes, the same at each call.
pub fn port_name(owner: &str) -> String {
    let hash = super::fnv1a(owner.bytes());
    // 48 bits: of 250 containers on a machine, two meet in one of 10^10 cases, and then the alias tells them apart.
    format!("{PREFIX}{:012x}", hash & 0xffff_ffff_ffff)
}

/// How names of ports begin.
pub(super) const PREFIX: &str = "mp-";
/// Together 50 ms: without spanning tree the bridge passes frames within a millisecond; where it does not, ARP finds the address all the same.
const FORWARDING_TRIES: u32 = 50;
const FORWARDING_WAIT: Duration = Duration::from_millis(1);
