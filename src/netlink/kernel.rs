//! What the kernel has and takes, in our types: thin translations of rtnetlink's messages.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use meshnet_proto::id::Mac;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeMulticastRouterType, BridgePortState, BridgeStpState, In6AddrGenMode, InfoBridge,
    InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::{Error, Netlink};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub kind: Kind,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub up: bool,
    /// Has a carrier.
    pub running: bool,
    /// The bridge or other device that it belongs to.
    pub master: Option<u32>,
    /// The other end of a veth, or the device below.
    pub below: Option<u32>,
    pub txqueuelen: u32,
    pub alias: Option<String>,
    /// IPv6 makes itself no link-local address on it.
    pub silent: bool,
    /// Of a bridge: multicast snooping, spanning tree.
    pub snooping: bool,
    pub stp: bool,
    /// Of a port of a bridge: all multicast goes out of it; it passes frames.
    pub floods_multicast: bool,
    pub multicast_router: bool,
    pub forwarding: bool,
    /// Of a port: others of the kind are not reached from it; it learns.
    pub isolated: bool,
    pub learns: bool,
    /// Of a port: frames may leave where they came in.
    pub hairpin: bool,
    /// What passed it.
    pub traffic: Traffic,
}

/// Frames and bytes that passed a device. A super-frame counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
}

/// What it is, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Hardware,
    Loopback,
    Bridge,
    Tun,
    Veth,
    Other(String),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Hardware => "network card",
            Kind::Loopback => "loopback device",
            Kind::Bridge => "bridge",
            Kind::Tun => "TAP",
            Kind::Veth => "veth",
            Kind::Other(name) => name,
        })
    }
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub index: u32,
    pub net: IpNet,
    /// Made by us.
    pub ours: bool,
    /// Neither on its way out, nor unproven, nor for privacy.
    pub lasting: bool,
}

/// A route to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub net: IpNet,
    /// The interface; none for those that lead nowhere or many ways.
    pub index: Option<u32>,
    /// A lower MTU than the interface's.
    pub mtu: Option<u32>,
    /// The next router.
    pub via: Option<IpAddr>,
}

impl Netlink {
    /// All that a request for a list brings. The kernel makes one list for a socket at a time (EBUSY), so each waits for its turn; and each is read to its
    /// end, even if nobody waits for it any more.
    pub(super) async fn list<M, S>(
        &self,
        doing: &str,
        ask: impl FnOnce() -> S + Send + 'static,
    ) -> Result<Vec<M>, Error>
    where
        M: Send + 'static,
        S: Stream<Item = Result<M, rtnetlink::Error>> + Send + 'static,
    {
        let turn = self.turn.clone();
        let list = tokio::spawn(async move {
            let _turn = turn.lock().await;
            ask().try_collect().await
        });
        match list.await {
            Ok(list) => list.map_err(said(doing)),
            Err(error) => Err(Error::io(doing, std::io::Error::other(error))),
        }
    }

    pub(super) async fn links(&self) -> Result<Vec<Link>, Error> {
        let request = self.handle.link().get();
        let messages: Vec<LinkMessage> = self.list("list the interfaces", move || request.execute()).await?;
        Ok(messages.into_iter().map(link).collect())
    }

    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let found: Result<Vec<LinkMessage>, Error> =
            request.execute().try_collect().await.map_err(said(format!("look at the interface {name}")));
        match found {
            Ok(messages) => Ok(messages.into_iter().map(link).find(|link| link.name == name)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let request = self.handle.address().get();
        let messages: Vec<AddressMessage> = self.list("list the addresses", move || request.execute()).await?;
        Ok(messages.into_iter().filter_map(address).collect())
    }

    /// Unicast routes of the main table, both families.
    pub(super) async fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut wanted = RouteMessage::default();
            wanted.header.address_family = family;
            let request = self.handle.route().get(wanted);
            for message in self.list("list the routes", move || request.execute()).await? {
                if message.header.kind == RouteType::Unicast && message.header.table == RouteHeader::RT_TABLE_MAIN {
                    routes.extend(route(&message));
                }
            }
        }
        Ok(routes)
    }

    /// The route that a datagram to `ip` takes; none when there is none.
    pub(super) async fn route_to(&self, ip: IpAddr) -> Result<Option<Route>, Error> {
        let mut wanted = RouteMessage::default();
        let (family, bits, to) = match ip {
            IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
        };
        wanted.header.address_family = family;
        wanted.header.destination_prefix_length = bits;
        wanted.attributes.push(RouteAttribute::Destination(to));
        let mut stream = std::pin::pin!(self.handle.route().get(wanted).execute());
        // "Unreachable" comes as an error: there is no route.
        Ok(stream.next().await.and_then(Result::ok).as_ref().and_then(route))
    }

    /// MAC address of `ip` on an interface, as the kernel has it.
    pub(super) async fn neighbour_on(&self, index: u32, ip: IpAddr) -> Result<Option<Mac>, Error> {
        let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let request = self.handle.neighbours().get().set_address_family(family);
        for message in self.list("list the neighbours", move || request.execute()).await? {
            let known = !matches!(
                message.header.state,
                NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None
            );
            let here = |attribute: &NeighbourAttribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(there)) => ip == *there,
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(there)) => ip == *there,
                _ => false,
            };
            if message.header.ifindex == index && known && message.attributes.iter().any(here) {
                return Ok(message.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
                    _ => None,
                }));
            }
        }
        Ok(None)
    }

    pub(super) async fn add_link(&self, message: LinkMessage, doing: impl Into<String>) -> Result<(), Error> {
        self.handle.link().add(message).execute().await.map_err(said(doing))
    }

    pub(super) async fn change_link(
        &self,
        change: LinkMessageBuilder<LinkUnspec>,
        doing: impl Into<String>,
    ) -> Result<(), Error> {
        self.change(change.build(), doing).await
    }

    pub(super) async fn change(&self, message: LinkMessage, doing: impl Into<String>) -> Result<(), Error> {
        self.handle.link().change(message).execute().await.map_err(said(doing))
    }

    /// Already gone counts as done.
    pub(super) async fn remove_link(&self, link: &Link) -> Result<(), Error> {
        match self.handle.link().del(link.index).execute().await.map_err(said(format!("remove {}", link.name))) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// No IPv6 link-local address on a port of a bridge: it would only make noise of its own there. Kernels without IPv6 say no; nothing is lost.
    pub(super) async fn silence(&self, index: u32) -> Result<(), Error> {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let change = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]));
        match self.change_link(change, "switch off IPv6 on a port").await {
            Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)) => Ok(()),
            other => other,
        }
    }

    /// Adds an address, marked as ours. IPv6 without duplicate detection: its owner is agreed elsewhere, and waiting 1 s helps nobody.
    pub(super) async fn add_address(&self, link: &Link, net: IpNet) -> Result<(), Error> {
        let mut request = self.handle.address().add(link.index, net.addr(), net.prefix_len());
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(OURS)));
        if net.addr().is_ipv6() {
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let doing = format!("add {net} to {}", link.name);
        request.execute().await.map_err(|error| match error {
            // What addrconf says where `disable_ipv6` is set; no right would help.
            rtnetlink::Error::NetlinkError(message) if message.to_io().raw_os_error() == Some(libc::EACCES) => {
                let why = std::io::Error::other("IPv6 is switched off there (sysctl net.ipv6.conf.*.disable_ipv6)");
                Error::Kernel { doing, why }
            }
            other => said(doing)(other),
        })
    }

    pub(super) async fn remove_address(&self, link: &Link, net: IpNet) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.prefix_len = net.prefix_len();
        message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
        let done = self.handle.address().del(message).execute().await;
        done.map_err(said(format!("remove {net} from {}", link.name)))
    }

    /// A route out of this interface, by a router that need not be in one of its networks. True when it was not there.
    pub(super) async fn add_route(&self, link: &Link, to: IpNet, via: Option<IpAddr>) -> Result<bool, Error> {
        let wrong = || Error::io(format!("route {to} by {via:?}"), std::io::ErrorKind::InvalidInput.into());
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .map_err(|_| wrong())?
            .output_interface(link.index);
        route = match via {
            Some(router) => route.gateway(router).map_err(|_| wrong())?.onlink(),
            None => route.scope(netlink_packet_route::route::RouteScope::Link),
        };
        match self
            .handle
            .route()
            .add(route.build())
            .execute()
            .await
            .map_err(said(format!("route {to} by {}", link.name)))
        {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Sends IPv4 multicast out of this interface; a route for it that is there stays.
    pub(super) async fn route_multicast(&self, link: &Link) -> Result<(), Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(224, 0, 0, 0), 4)
            .output_interface(link.index)
            .scope(netlink_packet_route::route::RouteScope::Link)
            .build();
        match self.handle.route().add(route).execute().await.map_err(said("route multicast")) {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }
}

pub(super) fn said(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let doing = doing.into();
    move |error| match error {
        rtnetlink::Error::NetlinkError(message) => Error::io(doing, message.to_io()),
        other => Error::Kernel { doing, why: std::io::Error::other(other.to_string()) },
    }
}

fn link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    if flags.contains(LinkFlags::Loopback) {
        link.kind = Kind::Loopback;
    }
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = mac(&bytes),
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|index| *index != 0),
            LinkAttribute::Link(index) => link.below = Some(index),
            LinkAttribute::TxQueueLen(length) => link.txqueuelen = length,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Stats64(stats) => {
                link.traffic = Traffic {
                    tx_frames: stats.tx_packets,
                    tx_bytes: stats.tx_bytes,
                    rx_frames: stats.rx_packets,
                    rx_bytes: stats.rx_bytes,
                };
            }
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| link_info(&mut link, info)),
            LinkAttribute::AfSpecUnspec(families) => {
                let none = |spec: &AfSpecInet6| *spec == AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
                link.silent = families.iter().all(|family| match family {
                    AfSpecUnspec::Inet6(specs) => specs.iter().any(none),
                    _ => true,
                });
            }
            _ => {}
        }
    }
    link
}

fn link_info(link: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => link.kind = Kind::Bridge,
        LinkInfo::Kind(InfoKind::Tun) => link.kind = Kind::Tun,
        LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth,
        LinkInfo::Kind(kind) => link.kind = Kind::Other(kind.to_string()),
        LinkInfo::Data(InfoData::Bridge(settings)) => {
            for setting in settings {
                match setting {
                    InfoBridge::MulticastSnooping(on) => link.snooping = on,
                    InfoBridge::StpState(state) => link.stp = state != BridgeStpState::Disabled,
                    _ => {}
                }
            }
        }
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
            for setting in settings {
                match setting {
                    InfoBridgePort::State(state) => link.forwarding = state == BridgePortState::Forwarding,
                    InfoBridgePort::Isolated(on) => link.isolated = on,
                    InfoBridgePort::Learning(on) => link.learns = on,
                    InfoBridgePort::HairpinMode(on) => link.hairpin = on,
                    InfoBridgePort::MulticastFlood(on) => link.floods_multicast = on,
                    InfoBridgePort::MulticastRouter(kind) => {
                        link.multicast_router = kind == BridgeMulticastRouterType::Permanent
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn address(message: AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut other, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Protocol(protocol) => ours = *protocol == AddressProtocol::Other(OURS),
            _ => {}
        }
    }
    let ip = local.or(other)?;
    let mut passing = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    if ip.is_ipv6() {
        // The same bit: "temporary" in IPv6, and a second address of a network in IPv4.
        passing |= AddressFlags::Secondary;
    }
    let net = IpNet::new(ip, message.header.prefix_len).ok()?;
    Some(Address { index: message.header.index, net, ours, lasting: !flags.intersects(passing) })
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut ip = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let (mut index, mut mtu, mut via) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(router)) => via = Some(IpAddr::from(*router)),
            RouteAttribute::Gateway(RouteAddress::Inet6(router)) => via = Some(IpAddr::from(*router)),
            RouteAttribute::Destination(RouteAddress::Inet(to)) => ip = (*to).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(to)) => ip = (*to).into(),
            RouteAttribute::Oif(out) => index = Some(*out),
            RouteAttribute::MultiPath(hops) => index = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Route { net: IpNet::new(ip, message.header.destination_prefix_length).ok()?, index, mtu, via })
}

pub(super) fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

/// Marks addresses as ours (IFA_PROTO, Linux 5.18; older kernels ignore it). 'm'; below 4 the kernel's own, and no registry.
const OURS: u8 = 0x6d;
