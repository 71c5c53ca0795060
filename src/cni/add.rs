//! ADD: addresses first, then the interface; what fails takes back what it made.
//!
//! ```text
//! network of meshd ─▶ addresses (own, static, or of another plugin) ─▶ router on the bridge ─▶ interface, routes ─▶ result
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use meshnet_proto::api::Network;
use serde_json::{Map, Value};

use super::call::Call;
use super::config::{Conf, Ipam, Route, no_mac, wished};
use super::error::{CniError, INVALID_CONFIG, TRY_LATER};
use super::meshd::Meshd;
use super::result::{Allocated, Interface, Ip, Made, allocated, compose, earlier};
use super::spool::Spool;
use super::{PATIENCE, PENDING_AT_ONCE, delegate, deliver, must_be_ours};
use crate::ctl::Failure;
use crate::netlink::plug::{Plug, Way, port_name};
use crate::netlink::{self, Netlink};

/// The verb.
pub async fn add(call: &Call, conf: &Conf) -> Result<Value, CniError> {
    netlink::attach::open_namespace(&call.netns)?;
    if let Some(prev) = &conf.prev
        && earlier(prev, &call.interface, &call.netns)?.is_some()
    {
        let msg = format!("prevResult has an interface {} already: give this network another", call.interface);
        return Err(CniError::config(msg));
    }
    let owner = call.owner(&conf.name);
    let spool = Spool::new(&conf.data_dir);
    let _turn = spool.turn(&owner)?;
    let meshd = Meshd::new(&conf.socket);
    let network = meshd.network(PATIENCE).await?;
    must_be_ours(conf, &network)?;
    let netlink = Netlink::open()?;
    // From here on it is this call, or the next DEL, that frees what the owner has.
    spool.cancel(&owner)?;
    let before = netlink.is_plugged(&port_name(&owner), &owner).await?;
    let attachment = Attachment { call, conf, owner: &owner, meshd: &meshd, netlink: &netlink };
    match attachment.make(network).await {
        Ok(made) => {
            deliver(&spool, &meshd, PENDING_AT_ONCE).await;
            Ok(compose(conf, &made))
        }
        Err(error) => {
            // What was there before this call is not this call's to take away.
            if !before {
                attachment.undo(&spool).await;
            }
            Err(error)
        }
    }
}

struct Attachment<'a> {
    call: &'a Call,
    conf: &'a Conf,
    owner: &'a str,
    meshd: &'a Meshd,
    netlink: &'a Netlink,
}

impl Attachment<'_> {
    async fn make(&self, mut network: Network) -> Result<Made, CniError> {
        let Allocated { mut ips, routes, dns } = match &self.conf.ipam {
            Ipam::Own { .. } => self.own(&network).await?,
            Ipam::Plugin(name) => self.of_plugin(name, &network).await?,
        };
        let routes = self.routes(&mut network, &mut ips, routes).await?;
        let plug = self.plug(&network, &ips, routes);
        let plugged = self.netlink.plug(&plug).await?;
        let interface = |name: &str, mac: meshnet_proto::Mac, mtu: u32, sandbox: Option<String>| Interface {
            name: name.into(),
            mac: mac.to_string(),
            mtu,
            sandbox,
        };
        let kept = plugged.routes.iter().map(|way| Route { dst: way.to, gw: way.via });
        Ok(Made {
            interfaces: vec![
                interface(&network.bridge, plugged.bridge_mac, 0, None),
                interface(&plug.port, plugged.port_mac, plug.mtu, None),
                interface(&plug.interface, plugged.mac, plug.mtu, Some(self.call.netns.clone())),
            ],
            carrier: 2,
            ips,
            routes: kept.collect(),
            dns: if self.conf.dns.is_empty() { dns } else { self.conf.dns.clone() },
        })
    }

    fn plug(&self, network: &Network, ips: &[Ip], routes: Vec<Way>) -> Plug {
        Plug {
            bridge: network.bridge.clone(),
            port: port_name(self.owner),
            owner: self.owner.to_owned(),
            namespace: self.call.netns.clone(),
            interface: self.call.interface.clone(),
            mtu: self.conf.mtu.unwrap_or(network.mtu),
            addresses: ips.iter().map(|ip| ip.address).collect(),
            routes,
            hairpin: self.conf.hairpin,
        }
    }

    /// From meshd: one of the range, or those that were asked for.
    async fn own(&self, network: &Network) -> Result<Allocated, CniError> {
        let Ipam::Own { subnet, ip, gateway, routes } = &self.conf.ipam else { return Ok(Allocated::default()) };
        let range: Option<IpNet> = network.range.parse().ok();
        let router = |address: &IpNet| gateway.filter(|gateway| gateway.is_ipv4() == address.addr().is_ipv4());
        let mut wishes = self.call.ips();
        if wishes.is_empty() {
            wishes.clone_from(&self.conf.ips);
        }
        if wishes.is_empty() {
            wishes.extend(ip.clone());
        }
        let mut ips = Vec::with_capacity(wishes.len().max(1));
        for wish in &wishes {
            let address = self.fixed(network, range, wish).await?;
            ips.push(Ip { address, gateway: router(&address) });
        }
        if wishes.is_empty() {
            let range = range.ok_or_else(|| {
                let msg =
                    "meshd manages no addresses (--ipam-range none): name another plugin in 'ipam', or an address";
                CniError::config(msg)
            })?;
            if let Some(subnet) = subnet.filter(|subnet| !range.contains(&IpNet::V4(*subnet))) {
                let msg = format!("ipam.subnet: {subnet} is not within the range {range} of meshd");
                return Err(CniError::config(msg));
            }
            let address = self.meshd.alloc(self.owner, subnet.map(|subnet| subnet.to_string())).await?;
            ips.push(Ip { address, gateway: router(&address) });
        }
        self.one_of_the_range(range, &ips)?;
        Ok(Allocated { ips, routes: routes.clone(), dns: Map::new() })
    }

    /// An address that was asked for: of the range by claim, another one as it is.
    async fn fixed(&self, network: &Network, range: Option<IpNet>, wish: &str) -> Result<IpNet, CniError> {
        let (ip, net) = wished(wish)?;
        if range.is_some_and(|range| range.contains(&ip)) {
            let given = self.meshd.claim(self.owner, ip, network.waiting.is_empty()).await?;
            return Ok(net.unwrap_or(given));
        }
        net.ok_or_else(|| {
            let msg = format!("the address {ip} is not within the range of meshd: give it with the length of its network, such as {ip}/24");
            CniError::config(msg)
        })
    }

    /// From another plugin. What of it lies within the range is claimed, so that no other peer gives it out.
    async fn of_plugin(&self, name: &str, network: &Network) -> Result<Allocated, CniError> {
        let range: Option<IpNet> = network.range.parse().ok();
        let answer = delegate::run(name, "ADD", self.call, &self.conf.raw, self.conf.version)?;
        let found = allocated(name, answer)?;
        self.one_of_the_range(range, &found.ips)?;
        for ip in &found.ips {
            if range.is_some_and(|range| range.contains(&ip.address.addr())) {
                self.meshd.claim(self.owner, ip.address.addr(), network.waiting.is_empty()).await?;
            }
        }
        Ok(found)
    }

    /// An interface has one MAC address, from which its address of the range follows for every peer.
    fn one_of_the_range(&self, range: Option<IpNet>, ips: &[Ip]) -> Result<(), CniError> {
        let inside = |ip: &Ip| range.is_some_and(|range| range.contains(&ip.address.addr()));
        let first_v4 = ips.iter().find(|ip| ip.address.addr().is_ipv4());
        let count = ips.iter().filter(|ip| inside(ip)).count();
        if count > 1 || count == 1 && !first_v4.is_some_and(inside) {
            let msg = "an interface can have one address of meshd's range, before all others of IPv4: use an interface for each";
            return Err(CniError::new(INVALID_CONFIG, msg));
        }
        match self.call.args.get("MAC").filter(|_| count == 1) {
            Some(mac) => Err(no_mac(mac)),
            None => Ok(()),
        }
    }

    /// The router of each address, put on the bridge when it is missing, and the routes that lead by it.
    async fn routes(&self, network: &mut Network, ips: &mut [Ip], asked: Vec<Route>) -> Result<Vec<Way>, CniError> {
        let mut ways = Vec::new();
        for ip in ips.iter_mut() {
            if ip.gateway.is_none() && self.conf.gateway && matches!(self.conf.ipam, Ipam::Own { .. }) {
                ip.gateway = self.host_in(network, &ip.address).await?;
            }
            let Some(gateway) = ip.gateway else { continue };
            if self.conf.gateway {
                self.on_bridge(network, gateway, &ip.address).await?;
            }
            if asked.is_empty() && self.conf.gateway {
                ways.push(Way { to: any(&ip.address), via: Some(gateway), yields: true });
            }
            // Containers of other networks of the range, for where the default route is somebody else's.
            let range: Option<IpNet> = network.range.parse().ok();
            let wider =
                range.filter(|range| range.contains(&ip.address) && range.prefix_len() < ip.address.prefix_len());
            ways.extend(wider.map(|range| Way { to: range, via: Some(gateway), yields: true }));
        }
        for route in asked {
            let gateway = ips.iter().find(|ip| ip.address.addr().is_ipv4() == route.dst.addr().is_ipv4());
            let via = route.gw.or(gateway.and_then(|ip| ip.gateway));
            let to = route.dst.trunc();
            ways.retain(|way| way.to != to);
            ways.push(Way { to, via, yields: false });
        }
        // The first of two addresses of a kind decides.
        let mut once: Vec<Way> = Vec::with_capacity(ways.len());
        ways.into_iter().for_each(|way| {
            if !once.iter().any(|other| other.to == way.to) {
                once.push(way);
            }
        });
        Ok(once)
    }

    /// The host's address on the bridge whose network has this one; within the range the host is given one.
    async fn host_in(&self, network: &mut Network, address: &IpNet) -> Result<Option<IpAddr>, CniError> {
        let find = |network: &Network| {
            let nets = network.exposed.iter().filter_map(|net| net.parse::<IpNet>().ok());
            nets.filter(|net| net.contains(&address.addr())).map(|net| net.addr()).min()
        };
        if let Some(host) = find(network) {
            return Ok(Some(host));
        }
        let range: Option<IpNet> = network.range.parse().ok();
        if !range.is_some_and(|range| range.contains(&address.addr())) {
            return Ok(None);
        }
        self.expose(network, "auto").await?;
        match find(network) {
            Some(host) => Ok(Some(host)),
            None => Err(CniError::new(TRY_LATER, format!("the host has no address on {} yet", network.bridge))),
        }
    }

    /// A router that another plugin or the configuration names is the host.
    async fn on_bridge(&self, network: &mut Network, gateway: IpAddr, address: &IpNet) -> Result<(), CniError> {
        let there = network.exposed.iter().filter_map(|net| net.parse::<IpNet>().ok()).any(|net| net.addr() == gateway);
        let net = IpNet::new(gateway, address.prefix_len()).map_err(|error| CniError::config(error.to_string()))?;
        if there { Ok(()) } else { self.expose(network, &net.to_string()).await }
    }

    async fn expose(&self, network: &mut Network, address: &str) -> Result<(), CniError> {
        let refused = |failure: Failure| match failure {
            Failure::Refused(why) => CniError::new(TRY_LATER, format!("the host has no address on the bridge: {why}")),
            other => other.into(),
        };
        self.meshd.expose(address).await.map_err(refused)?;
        *network = self.meshd.network(PATIENCE).await?;
        Ok(())
    }

    /// Nothing is left of this call; what cannot be taken back now is by the next DEL.
    async fn undo(&self, spool: &Spool) {
        if let Err(error) = self.netlink.unplug(&port_name(self.owner), self.owner).await {
            eprintln!("mesh-cni: the half made interface stays: {error}");
        }
        if let Ipam::Plugin(name) = &self.conf.ipam
            && let Err(error) = delegate::run(name, "DEL", self.call, &self.conf.raw, self.conf.version)
        {
            eprintln!("mesh-cni: {}", error.msg);
        }
        if let Err(failure) = self.meshd.free(self.owner).await {
            eprintln!("mesh-cni: the address is freed later: {failure}");
            if let Err(error) = spool.defer(self.owner, &self.meshd.socket) {
                eprintln!("mesh-cni: {}", error.msg);
            }
        }
    }
}

fn any(like: &IpNet) -> IpNet {
    match like {
        IpNet::V4(_) => IpNet::V4(Default::default()),
        IpNet::V6(_) => IpNet::V6(Default::default()),
    }
}
