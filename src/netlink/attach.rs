//! Containers: a veth pair between the bridge and a network namespace.
//!
//! ```text
//! bridge ── mesh-<inode> ═══ ethmesh (in the namespace: MAC 0a:58 + IPv4, addresses, up)
//! ```
//! The name of the bridge's end follows from the namespace's inode, and the kernel says which interface is its other end: asking again finds what
//! is there. A new pair that cannot be finished is removed as a whole; of an old one, only addresses that were added now.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use meshnet_proto::id::Mac;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::kernel::{Address, Kind, Link};
use super::{Error, Netlink, announce, is_global, same_host};
use crate::sys::netns::Netns;

/// The interface that a namespace has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name in the namespace.
    pub interface: String,
    /// The name of the end on the bridge.
    pub port: String,
    /// Its MAC address.
    pub mac: Mac,
    /// All its addresses.
    pub addresses: Vec<IpNet>,
    /// Whether anything had to be done.
    pub changed: bool,
}

impl Netlink {
    /// Gives a namespace (name, path or process id) an interface on `bridge` with these addresses; what is there already stays.
    pub async fn attach(
        &self,
        bridge: &str,
        mtu: u32,
        namespace: &str,
        addresses: &[IpNet],
    ) -> Result<Attached, Error> {
        let mut once: Vec<IpNet> = Vec::with_capacity(addresses.len());
        addresses.iter().for_each(|net| {
            if !once.contains(net) {
                once.push(*net)
            }
        });
        let addresses = once.as_slice();
        let bridge = self.bridge(bridge).await?;
        let place = Place::open(namespace)?;
        let port = self.link(&place.port).await?;
        let before =
            inside(&place.netns, async |netlink| Ok((netlink.links().await?, netlink.addresses().await?))).await?;
        let end = port.as_ref().and_then(|port| other_end(port, &before.0)).cloned();
        check(namespace, &before, end.as_ref(), addresses)?;
        let Some(end) = end else {
            if let Some(stale) = port {
                // Its other end was moved away from the namespace.
                self.remove_link(&stale).await?;
            }
            return self.attach_new(&place, &bridge, mtu, addresses).await;
        };
        let port = port.unwrap_or_default();
        let joined = self.join(&port, &bridge).await?;
        let there: Vec<IpNet> = of(&before.1, end.index);
        let new: Vec<IpNet> = addresses.iter().filter(|net| !there.contains(net)).copied().collect();
        let (all, raised) = (new.clone(), !end.up);
        let mac = end.mac.unwrap_or_default();
        let name = end.name.clone();
        let after = inside(&place.netns, async move |netlink| fill(&netlink, end, &all).await).await?;
        self.announce(&place, &port, new.clone()).await;
        Ok(Attached {
            interface: name,
            port: port.name,
            mac,
            addresses: after,
            changed: joined || raised || !new.is_empty(),
        })
    }

    /// Takes addresses from a namespace, and with the last one (or when none are named) the interface. Gives back the addresses taken.
    pub async fn detach(&self, namespace: &str, addresses: &[IpNet]) -> Result<Vec<IpNet>, Error> {
        let place = Place::open(namespace)?;
        let Some(port) = self.link(&place.port).await? else { return Err(Error::NotAttached(namespace.to_owned())) };
        let (links, present) =
            inside(&place.netns, async |netlink| Ok((netlink.links().await?, netlink.addresses().await?))).await?;
        let Some(end) = other_end(&port, &links).cloned() else {
            self.remove_link(&port).await?;
            return Err(Error::NotAttached(namespace.to_owned()));
        };
        let there = of(&present, end.index);
        if let Some(address) = addresses.iter().find(|net| !there.contains(net)) {
            return Err(Error::NoSuchAddress {
                address: *address,
                interface: format!("{} of '{namespace}'", end.name),
            });
        }
        if addresses.is_empty() || there.iter().all(|net| addresses.contains(net)) {
            self.remove_link(&port).await?;
            return Ok(there);
        }
        let taken = addresses.to_vec();
        inside(&place.netns, async move |netlink| {
            for net in &taken {
                netlink.remove_address(&end, *net).await?;
            }
            Ok(taken)
        })
        .await
    }

    async fn attach_new(&self, place: &Place, bridge: &Link, mtu: u32, addresses: &[IpNet]) -> Result<Attached, Error> {
        // Nothing to undo when this fails: the kernel makes both ends or none, and a port that is there is somebody else's work of this moment.
        self.make_pair(place, mtu, addresses).await?;
        let Some(port) = self.link(&place.port).await? else {
            return Err(Error::Kernel {
                doing: format!("find {}", place.port),
                why: std::io::ErrorKind::NotFound.into(),
            });
        };
        let all = addresses.to_vec();
        let index = port.below;
        let filled = async {
            self.silence(port.index).await?;
            self.join(&port, bridge).await?;
            inside(&place.netns, async move |netlink| {
                let end = netlink.links().await?.into_iter().find(|link| Some(link.index) == index);
                let end = end.ok_or_else(|| Error::Kernel {
                    doing: format!("find {INTERFACE}"),
                    why: std::io::ErrorKind::NotFound.into(),
                })?;
                let mac = end.mac.unwrap_or_default();
                let addresses = fill(&netlink, end.clone(), &all).await?;
                netlink.route_multicast(&end).await?;
                Ok((mac, addresses))
            })
            .await
        };
        match filled.await {
            Ok((mac, now)) => {
                self.announce(place, &port, addresses.to_vec()).await;
                let addresses = now;
                Ok(Attached { interface: INTERFACE.into(), port: port.name, mac, addresses, changed: true })
            }
            Err(error) => Err(self.undo(place, error).await),
        }
    }

    /// Announces new addresses once the bridge passes frames of the port: a moment after it has come up, since the kernel defers that.
    async fn announce(&self, place: &Place, port: &Link, new: Vec<IpNet>) {
        if new.is_empty() {
            return;
        }
        for _ in 0..FORWARDING_TRIES {
            match self.link(&port.name).await {
                Ok(Some(link)) if !link.forwarding => tokio::time::sleep(FORWARDING_WAIT).await,
                _ => break,
            }
        }
        let index = port.below;
        let told = inside(&place.netns, async move |netlink| {
            let end = netlink.links().await?.into_iter().find(|link| Some(link.index) == index);
            for (end, net) in end.iter().flat_map(|end| new.iter().map(move |net| (end, net))) {
                announce::from_here(end.index, end.mac, net.addr());
            }
            Ok(())
        });
        if let Err(error) = told.await {
            tracing::debug!(%error, interface = %port.name, "announcement not sent");
        }
    }

    /// A pair of which nothing is left half made.
    async fn undo(&self, place: &Place, error: Error) -> Error {
        if let Ok(Some(port)) = self.link(&place.port).await
            && let Err(second) = self.remove_link(&port).await
        {
            tracing::warn!(interface = %port.name, error = %second, "cannot remove a half made interface");
        }
        error
    }

    async fn make_pair(&self, place: &Place, mtu: u32, addresses: &[IpNet]) -> Result<(), Error> {
        let mut end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(INTERFACE)
            .mtu(mtu)
            .setns_by_fd(place.netns.as_fd().as_raw_fd());
        if let Some(mac) = mac_of(addresses) {
            end = end.address(mac.0.to_vec());
        }
        let pair = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(place.port.clone())
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(end.build())));
        self.add_link(pair.build(), format!("make {INTERFACE} in '{}'", place.name)).await
    }

    /// On the bridge and up; true when it was not.
    pub(super) async fn join(&self, port: &Link, bridge: &Link) -> Result<bool, Error> {
        if port.up && port.master == Some(bridge.index) {
            return Ok(false);
        }
        let mut change = LinkUnspec::new_with_index(port.index).controller(bridge.index).up();
        // Behind it the owner may stand.
        let (alias, there) = (port_alias(&bridge.name), port.alias.as_deref().unwrap_or_default());
        if !there.strip_prefix(&alias).is_some_and(|rest| rest.starts_with(' ')) {
            change = change.alias(alias);
        }
        self.change_link(change, format!("put {} on {}", port.name, bridge.name)).await.map(|()| true)
    }
}

/// Inside the namespace: up, with these addresses more. What was added goes again when one of them fails.
async fn fill(netlink: &Netlink, end: Link, new: &[IpNet]) -> Result<Vec<IpNet>, Error> {
    if !end.up {
        let name = end.name.clone();
        netlink.change_link(LinkUnspec::new_with_index(end.index).up(), format!("bring {name} up")).await?;
    }
    for (done, net) in new.iter().enumerate() {
        if let Err(error) = netlink.add_address(&end, *net).await {
            for net in new.iter().take(done) {
                if let Err(second) = netlink.remove_address(&end, *net).await {
                    tracing::warn!(interface = %end.name, error = %second, "cannot take an address back");
                }
            }
            return Err(error);
        }
    }
    Ok(of(&netlink.addresses().await?, end.index))
}

/// What must hold before anything is made.
fn check(
    namespace: &str,
    (links, present): &(Vec<Link>, Vec<Address>),
    end: Option<&Link>,
    wanted: &[IpNet],
) -> Result<(), Error> {
    if end.is_none() && links.iter().any(|link| link.name == INTERFACE) {
        return Err(Error::NameTaken { namespace: namespace.to_owned(), interface: INTERFACE.into() });
    }
    if end.is_none() && wanted.is_empty() {
        return Err(Error::NoAddress(namespace.to_owned()));
    }
    let own = end.map(|end| end.index);
    for address in wanted {
        let clash = present
            .iter()
            .find(|there| same_host(&there.net, address) && !(Some(there.index) == own && there.net == *address));
        if let Some(there) = clash {
            let name = links.iter().find(|link| link.index == there.index).map_or("?", |link| &link.name);
            let interface = format!("{name} of '{namespace}'");
            return Err(Error::AddressTaken { address: *address, present: there.net, interface });
        }
    }
    Ok(())
}

/// A namespace, and the name of our port for it.
struct Place {
    name: String,
    netns: Arc<Netns>,
    port: String,
}

impl Place {
    fn open(name: &str) -> Result<Place, Error> {
        let (netns, inode) = open(name)?;
        Ok(Place { name: name.to_owned(), netns: Arc::new(netns), port: port_name(inode) })
    }
}

/// A namespace that is not our own: for those who want to know before they begin.
pub fn open_namespace(name: &str) -> Result<Netns, Error> {
    open(name).map(|(netns, _)| netns)
}

/// Brings a namespace's loopback device up or down, or leaves it; true when it is up then.
pub async fn loopback(netns: &Arc<Netns>, up: Option<bool>) -> Result<bool, Error> {
    inside(netns, async move |netlink| {
        let Some(device) = netlink.link("lo").await? else { return Ok(false) };
        let change = LinkUnspec::new_with_index(device.index);
        match up {
            Some(true) => netlink.change_link(change.up(), "bring lo up").await?,
            Some(false) => netlink.change_link(change.down(), "bring lo down").await?,
            None => {}
        }
        Ok(up.unwrap_or(device.up))
    })
    .await
}

/// A namespace that is not our own, and its inode.
pub(super) fn open(name: &str) -> Result<(Netns, u64), Error> {
    let netns = Netns::open(name).map_err(|why| match why.kind() {
        std::io::ErrorKind::NotFound => Error::NoNamespace(name.to_owned()),
        std::io::ErrorKind::InvalidInput => Error::NotANamespace(name.to_owned()),
        _ => Error::io(format!("enter the network namespace '{name}'"), why),
    })?;
    let stat = |netns: &Netns| {
        rustix::fs::fstat(netns).map_err(|why| Error::io(format!("look at the network namespace '{name}'"), why.into()))
    };
    let here = Netns::current().map_err(|why| Error::io("look at the own network namespace", why))?;
    let (there, here) = (stat(&netns)?, stat(&here)?);
    if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) {
        return Err(Error::OwnNamespace(name.to_owned()));
    }
    Ok((netns, there.st_ino))
}

/// At most 15 bytes: the inode's low 40 bits are all of it on any kernel so far.
fn port_name(inode: u64) -> String {
    format!("mesh-{:x}", inode & 0xff_ffff_ffff)
}

/// What a port of ours says in its alias: whose bridge it belongs on, since two peers can live in one namespace, each with a bridge.
pub(super) fn port_alias(bridge: &str) -> String {
    format!("meshnet {bridge}")
}

/// The MAC address from which everybody can tell the address's owner without asking; only IPv4 fits, others get the kernel's random one.
pub(super) fn mac_of(addresses: &[IpNet]) -> Option<Mac> {
    addresses.iter().find_map(|net| match net {
        IpNet::V4(net) => {
            let [a, b, c, d] = net.addr().octets();
            Some(Mac([0x0a, 0x58, a, b, c, d]))
        }
        IpNet::V6(_) => None,
    })
}

/// The interface among `links` (of the namespace) that is the other end of our port.
pub(super) fn other_end<'a>(port: &Link, links: &'a [Link]) -> Option<&'a Link> {
    let end = links.iter().find(|link| Some(link.index) == port.below)?;
    (end.kind == Kind::Veth && end.below == Some(port.index)).then_some(end)
}

pub(super) fn of(addresses: &[Address], index: u32) -> Vec<IpNet> {
    let global = |there: &&Address| there.index == index && is_global(&there.net.addr());
    addresses.iter().filter(global).map(|there| there.net).collect()
}

/// Runs `work` with a connection to the kernel inside the namespace, on a thread of its own, so that this one never waits.
pub(super) async fn inside<T, F>(netns: &Arc<Netns>, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: AsyncFnOnce(Netlink) -> Result<T, Error> + Send + 'static,
{
    let netns = Arc::clone(netns);
    let run = move || {
        let entered = netns.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|why| Error::io("start work in a network namespace", why))?;
            runtime.block_on(async { work(Netlink::open()?).await })
        });
        entered.map_err(|why| Error::io("enter a network namespace", why))?
    };
    let ended = tokio::task::spawn_blocking(run).await;
    ended
        .map_err(|why| Error::Kernel { doing: "work in a network namespace".into(), why: std::io::Error::other(why) })?
}

/// Together 1 s: without spanning tree it takes a few ms, with it (an adopted bridge) far longer than anybody would wait.
const FORWARDING_TRIES: u32 = 100;
const FORWARDING_WAIT: Duration = Duration::from_millis(10);
/// Our interface in a namespace.
pub const INTERFACE: &str = "ethmesh";
