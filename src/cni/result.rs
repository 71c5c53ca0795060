//! Results: in the shape of the version that was asked for.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::{Conf, Route, Version};
use super::error::{CniError, DELEGATE};

/// An interface that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// Its MTU.
    pub mtu: u32,
    /// Path of the namespace; none: the host's.
    pub sandbox: Option<String>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// With the length of its network.
    pub address: IpNet,
    /// The router there.
    pub gateway: Option<IpAddr>,
}

/// What this plugin adds to the result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Made {
    /// On the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Which of them has the addresses.
    pub carrier: usize,
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes.
    pub routes: Vec<Route>,
    /// For the resolver of the container.
    pub dns: Map<String, Value>,
}

/// What an IPAM plugin answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Allocated {
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes.
    pub routes: Vec<Route>,
    /// For the resolver of the container.
    pub dns: Map<String, Value>,
}

/// The result: what plugins before this one made, and behind it what this one did.
pub fn compose(conf: &Conf, made: &Made) -> Value {
    let list = |key: &str| -> Vec<Value> {
        let before = conf.prev.as_ref().and_then(|prev| prev.get(key)).and_then(Value::as_array);
        before.cloned().unwrap_or_default()
    };
    let mut interfaces = list("interfaces");
    let carrier = interfaces.len() + made.carrier;
    interfaces.extend(made.interfaces.iter().map(|interface| shape_interface(conf.version, interface)));
    let mut ips = list("ips");
    ips.extend(made.ips.iter().map(|ip| shape_ip(conf.version, ip, carrier)));
    let mut routes = list("routes");
    routes.extend(made.routes.iter().map(|route| match route.gw {
        Some(gw) => json!({ "dst": route.dst.to_string(), "gw": gw.to_string() }),
        None => json!({ "dst": route.dst.to_string() }),
    }));
    let before = conf.prev.as_ref().and_then(|prev| prev.get("dns")).and_then(Value::as_object).cloned();
    let dns = if made.dns.is_empty() { before.unwrap_or_default() } else { made.dns.clone() };
    json!({
        "cniVersion": conf.version.text(),
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": dns,
    })
}

fn shape_interface(version: Version, interface: &Interface) -> Value {
    let mut shape = json!({ "name": interface.name, "mac": interface.mac });
    if let Some(sandbox) = &interface.sandbox {
        shape["sandbox"] = json!(sandbox);
    }
    if version >= Version::V1_1 && interface.mtu > 0 {
        shape["mtu"] = json!(interface.mtu);
    }
    shape
}

fn shape_ip(version: Version, ip: &Ip, carrier: usize) -> Value {
    let mut shape = json!({ "interface": carrier, "address": ip.address.to_string() });
    if version < Version::V1_0 {
        shape["version"] = json!(if ip.address.addr().is_ipv4() { "4" } else { "6" });
    }
    if let Some(gateway) = ip.gateway {
        shape["gateway"] = json!(gateway.to_string());
    }
    shape
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Keys {
    interfaces: Option<Vec<InterfaceKeys>>,
    ips: Option<Vec<IpKeys>>,
    routes: Option<Vec<Route>>,
    dns: Option<Map<String, Value>>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct InterfaceKeys {
    name: String,
    mac: String,
    sandbox: String,
}

#[derive(Deserialize)]
struct IpKeys {
    address: IpNet,
    gateway: Option<IpAddr>,
    interface: Option<usize>,
}

/// Reads what the IPAM plugin `name` answered.
pub fn allocated(name: &str, value: Value) -> Result<Allocated, CniError> {
    let keys: Keys = serde_json::from_value(value)
        .map_err(|error| CniError::new(DELEGATE, format!("{name}: its result is not understood: {error}")))?;
    let ips: Vec<Ip> = keys.ips.unwrap_or_default().into_iter().map(ip).collect();
    if ips.is_empty() {
        return Err(CniError::new(DELEGATE, format!("{name}: its result has no address")));
    }
    Ok(Allocated { ips, routes: keys.routes.unwrap_or_default(), dns: keys.dns.unwrap_or_default() })
}

fn ip(keys: IpKeys) -> Ip {
    Ip { address: keys.address, gateway: keys.gateway }
}

/// What an earlier result says of one interface of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Earlier {
    /// Its MAC address; may be empty.
    pub mac: String,
    /// Its addresses.
    pub ips: Vec<Ip>,
    /// Routes by it.
    pub routes: Vec<Route>,
}

/// Finds the interface in an earlier result; none when that does not have it.
pub fn earlier(prev: &Map<String, Value>, interface: &str, netns: &str) -> Result<Option<Earlier>, CniError> {
    let keys: Keys = serde_json::from_value(Value::Object(prev.clone()))
        .map_err(|error| CniError::config(format!("prevResult is not understood: {error}")))?;
    let interfaces = keys.interfaces.unwrap_or_default();
    let inside = |one: &InterfaceKeys| !one.sandbox.is_empty();
    let mine = |one: &InterfaceKeys| one.name == interface && inside(one) && same(&one.sandbox, netns);
    let Some(at) = interfaces.iter().position(mine) else { return Ok(None) };
    let alone = interfaces.iter().filter(|one| inside(one)).count() == 1;
    let ips: Vec<Ip> = keys
        .ips
        .unwrap_or_default()
        .into_iter()
        .filter(|ip| ip.interface == Some(at) || ip.interface.is_none() && alone)
        .map(ip)
        .collect();
    let ours = |route: &Route| alone || route.gw.is_some_and(|gw| ips.iter().any(|ip| ip.gateway == Some(gw)));
    let routes = keys.routes.unwrap_or_default().into_iter().filter(ours).collect();
    let mac = interfaces.get(at).map(|one| one.mac.to_lowercase()).unwrap_or_default();
    Ok(Some(Earlier { mac, ips, routes }))
}

/// `/var/run` is `/run` on every system of today, and runtimes use either.
fn same(one: &str, other: &str) -> bool {
    let short =
        |path: &str| path.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(path).to_owned();
    short(one) == short(other)
}
