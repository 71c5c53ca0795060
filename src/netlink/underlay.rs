//! The network below: this machine's addresses that other peers may use, and the MTU towards them.

use std::net::IpAddr;

use meshnet_proto::limits::ENDPOINTS_MAX;

use super::kernel::{Address, Kind, Link, Route};
use super::{Error, Netlink, is_global};

/// What the machine has to reach other peers by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Its addresses, most useful first, at most [`ENDPOINTS_MAX`].
    pub addresses: Vec<IpAddr>,
    /// Bytes of the longest IP packet that passes on every way that peers are reached by.
    pub mtu: u32,
}

impl Netlink {
    /// Looks at the interfaces, without `bridge` and its ports; `peers` are the underlay addresses of those we have links with.
    pub async fn underlay(&self, bridge: &str, peers: &[IpAddr]) -> Result<Underlay, Error> {
        let (links, addresses, routes) = (self.links().await?, self.addresses().await?, self.routes().await?);
        let mut to_peers = Vec::with_capacity(peers.len());
        for peer in peers {
            to_peers.extend(self.route_to(*peer).await?);
        }
        Ok(choose(bridge, &links, &addresses, &routes, &to_peers))
    }
}

/// Pure.
fn choose(bridge: &str, links: &[Link], addresses: &[Address], routes: &[Route], to_peers: &[Route]) -> Underlay {
    let bridge = links.iter().find(|link| link.name == bridge).map(|link| link.index);
    let inside = |link: &Link| bridge.is_some() && (Some(link.index) == bridge || link.master == bridge);
    let outside: Vec<&Link> = links.iter().filter(|link| link.up && link.running && !inside(link)).collect();
    let real = |link: &&&Link| link.kind != Kind::Loopback;
    let defaults: Vec<&Route> = routes.iter().filter(|route| route.net.prefix_len() == 0).collect();
    let is_default = |index: u32| defaults.iter().any(|route| route.index == Some(index));

    let mut found: Vec<(bool, bool, u32, IpAddr)> = Vec::new();
    for address in addresses.iter().filter(|address| address.lasting) {
        let ip = address.net.addr();
        if is_global(&ip) && outside.iter().any(|link| link.index == address.index) {
            found.push((!is_default(address.index), ip.is_ipv6(), address.index, ip));
        }
    }
    found.sort_unstable();
    let mut list: Vec<IpAddr> = Vec::new();
    for (.., ip) in found {
        if !list.contains(&ip) {
            list.push(ip);
        }
    }
    if list.is_empty() {
        // A machine with nothing but itself: peers in the same namespace still find each other.
        let loopback = links.iter().filter(|link| link.kind == Kind::Loopback && link.up).map(|link| link.index).next();
        list.extend(
            addresses.iter().filter(|address| Some(address.index) == loopback).map(|address| address.net.addr()),
        );
    }
    list.truncate(ENDPOINTS_MAX);

    let along = |route: &Route| {
        let link = outside.iter().find(|link| Some(link.index) == route.index)?;
        Some(route.mtu.unwrap_or(u32::MAX).min(link.mtu))
    };
    let mtu = to_peers
        .iter()
        .filter_map(along)
        .min()
        .or_else(|| defaults.iter().filter_map(|route| along(route)).min())
        .or_else(|| outside.iter().filter(real).map(|link| link.mtu).min())
        .or_else(|| outside.iter().map(|link| link.mtu).min());
    Underlay { addresses: list, mtu: mtu.unwrap_or(MTU_DEFAULT).min(MTU_MAX) }
}

/// Of Ethernet, for a machine that has no interface up yet.
const MTU_DEFAULT: u32 = 1500;
/// An IP packet is not longer (the loopback device says 65,536).
const MTU_MAX: u32 = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, mtu: u32) -> Link {
        Link { index, name: name.into(), mtu, up: true, running: true, ..Link::default() }
    }

    fn loopback() -> Link {
        Link { kind: Kind::Loopback, ..link(1, "lo", 65_536) }
    }

    fn address(index: u32, text: &str) -> Address {
        Address { index, net: text.parse().unwrap(), ours: false, lasting: true }
    }

    fn route(text: &str, index: u32) -> Route {
        Route { net: text.parse().unwrap(), index: Some(index), mtu: None, via: None }
    }

    fn texts(underlay: &Underlay) -> Vec<String> {
        underlay.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_of_the_default_way_come_first_and_those_of_the_overlay_never() {
        let bridge = Link { kind: Kind::Bridge, ..link(4, "mesh0", 1310) };
        let port = Link { master: Some(4), ..link(5, "veth", 1310) };
        let down = Link { running: false, ..link(6, "docker0", 1500) };
        let links = [loopback(), link(2, "eth0", 1500), link(3, "eth1", 9000), bridge, port, down];
        let mut passing = address(3, "2001:db8::99/64");
        passing.lasting = false;
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(2, "192.0.2.1/24"),
            address(2, "2001:db8::1/64"),
            address(2, "fe80::1/64"),
            address(3, "198.51.100.1/24"),
            address(4, "10.32.0.1/12"),
            address(5, "10.99.0.1/24"),
            address(6, "172.17.0.1/16"),
            passing,
        ];
        let defaults = [route("0.0.0.0/0", 3)];
        let all = choose("mesh0", &links, &addresses, &defaults, &[]);
        assert_eq!(texts(&all), ["198.51.100.1", "192.0.2.1", "2001:db8::1"]);
        assert_eq!(all.mtu, 9000, "the default way");
        assert_eq!(choose("mesh0", &links, &addresses, &[], &[]).mtu, 1500, "the smallest outside");
        let to_peers = [route("198.51.100.7/32", 3), route("192.0.2.7/32", 2)];
        assert_eq!(choose("mesh0", &links, &addresses, &defaults, &to_peers).mtu, 1500, "the smallest towards peers");
        let narrow = [Route { mtu: Some(1400), ..route("198.51.100.7/32", 3) }];
        assert_eq!(choose("mesh0", &links, &addresses, &defaults, &narrow).mtu, 1400, "the route's own");
    }

    #[test]
    fn loopback_serves_when_there_is_nothing_else() {
        let addresses = [address(1, "127.0.0.1/8"), address(1, "::1/128")];
        let alone = choose("mesh0", &[loopback()], &addresses, &[], &[]);
        assert_eq!(texts(&alone), ["127.0.0.1", "::1"]);
        assert_eq!(alone.mtu, 65_535);
        assert_eq!(choose("mesh0", &[], &[], &[], &[]), Underlay { addresses: vec![], mtu: 1500 });
    }

    #[test]
    fn the_list_is_bounded() {
        let many: Vec<Address> = (0..200).map(|n| address(2, &format!("192.0.2.{n}/24"))).collect();
        assert_eq!(choose("mesh0", &[link(2, "eth0", 1500)], &many, &[], &[]).addresses.len(), ENDPOINTS_MAX);
    }
}
