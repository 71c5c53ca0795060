//! CHECK: what the result promised, against what is there.

use ipnet::IpNet;
use meshnet_proto::api::Network;

use super::call::Call;
use super::config::{Conf, Ipam};
use super::error::{CHECK_FAILED, CniError};
use super::meshd::Meshd;
use super::result::{Earlier, earlier};
use super::{PATIENCE, delegate, must_be_ours};
use crate::netlink::plug::{Plug, Seen, port_name};
use crate::netlink::{self, Netlink};

/// The verb.
pub async fn check(call: &Call, conf: &Conf) -> Result<(), CniError> {
    let Some(prev) = &conf.prev else { return Err(CniError::config("prevResult is missing: CHECK needs that of ADD")) };
    let Some(promised) = earlier(prev, &call.interface, &call.netns)? else {
        return Err(CniError::config(format!("prevResult has no interface {} in {}", call.interface, call.netns)));
    };
    netlink::attach::open_namespace(&call.netns)?;
    if let Ipam::Plugin(name) = &conf.ipam {
        delegate::run(name, "CHECK", call, &conf.raw, conf.version)?;
    }
    let owner = call.owner(&conf.name);
    let meshd = Meshd::new(&conf.socket);
    let network = meshd.network(PATIENCE).await?;
    must_be_ours(conf, &network)?;
    let plug = Plug {
        bridge: network.bridge.clone(),
        port: port_name(&owner),
        owner: owner.clone(),
        namespace: call.netns.clone(),
        interface: call.interface.clone(),
        mtu: 0,
        addresses: Vec::new(),
        routes: Vec::new(),
        hairpin: conf.hairpin,
    };
    let seen = Netlink::open()?.seen(&plug).await?;
    let leased: Vec<String> = meshd.leases_of(&owner).await?.into_iter().map(|lease| lease.address).collect();
    match difference(&plug, &promised, &seen, &network, &leased) {
        Some(what) => Err(CniError::new(CHECK_FAILED, what)),
        None => Ok(()),
    }
}

/// The first thing that is not as promised. Pure.
fn difference(plug: &Plug, promised: &Earlier, seen: &Seen, network: &Network, leased: &[String]) -> Option<String> {
    let (interface, bridge) = (&plug.interface, &plug.bridge);
    if !seen.port {
        return Some(format!("{interface} has no port {} on {bridge}", plug.port));
    }
    let Some(mac) = seen.mac else {
        return Some(format!("the other end of {} is not {interface} in {}", plug.port, plug.namespace));
    };
    if !promised.mac.is_empty() && mac.to_string() != promised.mac {
        return Some(format!("{interface} has the MAC address {mac} instead of {}", promised.mac));
    }
    if !seen.up {
        return Some(format!("{interface} is down"));
    }
    if !seen.joined {
        return Some(format!("{} is not up on {bridge}", plug.port));
    }
    if seen.hairpin != plug.hairpin {
        let on = if plug.hairpin { "off" } else { "on" };
        return Some(format!("hairpin mode of {} is {on}", plug.port));
    }
    if let Some(ip) = promised.ips.iter().find(|ip| !seen.addresses.contains(&ip.address)) {
        return Some(format!("{interface} does not have the address {}", ip.address));
    }
    let missing = |route: &&super::config::Route| {
        let via = |gw: &Option<std::net::IpAddr>| route.gw.is_none() || *gw == route.gw;
        !seen.routes.iter().any(|(to, gw)| *to == route.dst.trunc() && via(gw))
    };
    if let Some(route) = promised.routes.iter().find(missing) {
        return Some(format!("the route to {} by {interface} is missing", route.dst));
    }
    let range: Option<IpNet> = network.range.parse().ok();
    let managed = promised
        .ips
        .iter()
        .map(|ip| ip.address.addr())
        .find(|ip| range.is_some_and(|range| range.contains(ip)) && !leased.contains(&ip.to_string()));
    managed.map(|ip| format!("meshd has not given out {ip} to '{}'", plug.owner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::config::Route;
    use crate::cni::result::Ip;

    fn plug() -> Plug {
        Plug {
            bridge: "mesh0".into(),
            port: "mp-1".into(),
            owner: "cni:net:c:eth0".into(),
            namespace: "/run/netns/c".into(),
            interface: "eth0".into(),
            mtu: 0,
            addresses: Vec::new(),
            routes: Vec::new(),
            hairpin: true,
        }
    }

    #[test]
    fn each_difference_has_its_line() {
        let gateway = Some("10.32.0.1".parse().unwrap());
        let promised = Earlier {
            mac: "0a:58:0a:20:00:05".into(),
            ips: vec![Ip { address: "10.32.0.5/12".parse().unwrap(), gateway }],
            routes: vec![Route { dst: "0.0.0.0/0".parse().unwrap(), gw: gateway }],
        };
        let well = Seen {
            port: true,
            joined: true,
            hairpin: true,
            mac: Some("0a:58:0a:20:00:05".parse().unwrap()),
            up: true,
            addresses: vec!["10.32.0.5/12".parse().unwrap()],
            routes: vec![("0.0.0.0/0".parse().unwrap(), gateway), ("10.32.0.0/12".parse().unwrap(), None)],
        };
        let network = Network { range: "10.32.0.0/12".into(), ..Network::default() };
        let lease = ["10.32.0.5".to_owned()];
        let look = |seen: &Seen, leased: &[String]| difference(&plug(), &promised, seen, &network, leased);
        assert_eq!(look(&well, &lease), None);
        let cases: [(Seen, &str); 9] = [
            (Seen { port: false, ..well.clone() }, "eth0 has no port mp-1 on mesh0"),
            (Seen { mac: None, ..well.clone() }, "the other end of mp-1 is not eth0 in /run/netns/c"),
            (
                Seen { mac: Some("0a:58:0a:20:00:06".parse().unwrap()), ..well.clone() },
                "eth0 has the MAC address 0a:58:0a:20:00:06 instead of 0a:58:0a:20:00:05",
            ),
            (Seen { up: false, ..well.clone() }, "eth0 is down"),
            (Seen { joined: false, ..well.clone() }, "mp-1 is not up on mesh0"),
            (Seen { hairpin: false, ..well.clone() }, "hairpin mode of mp-1 is off"),
            (
                Seen { addresses: vec!["10.32.0.5/16".parse().unwrap()], ..well.clone() },
                "eth0 does not have the address 10.32.0.5/12",
            ),
            (Seen { routes: Vec::new(), ..well.clone() }, "the route to 0.0.0.0/0 by eth0 is missing"),
            (
                Seen { routes: vec![("0.0.0.0/0".parse().unwrap(), None)], ..well.clone() },
                "the route to 0.0.0.0/0 by eth0 is missing",
            ),
        ];
        for (seen, line) in cases {
            assert_eq!(look(&seen, &lease).as_deref(), Some(line));
        }
        assert_eq!(look(&well, &[]).as_deref(), Some("meshd has not given out 10.32.0.5 to 'cni:net:c:eth0'"));
    }
}
