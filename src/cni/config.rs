//! The network configuration: from standard input into a value that is right, or one line why not.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{CniError, INCOMPATIBLE_VERSION, NOT_DECODED, UNSUPPORTED_FIELD};

/// Versions of the specification, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One of [`VERSIONS`]; ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    /// The newest.
    pub const NEWEST: Version = Version(VERSIONS.len() - 1);
    /// Since then: CHECK.
    pub const V0_4: Version = Version(2);
    /// Since then: results without `version` at their addresses.
    pub const V1_0: Version = Version(3);
    /// Since then: GC, STATUS, more keys in results.
    pub const V1_1: Version = Version(4);

    /// As it is written.
    pub fn text(self) -> &'static str {
        VERSIONS.get(self.0).copied().unwrap_or("1.1.0")
    }

    fn parse(text: &str) -> Option<Version> {
        VERSIONS.iter().position(|version| *version == text).map(Version)
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq)]
pub struct Conf {
    /// In which everything is said.
    pub version: Version,
    /// Its name.
    pub name: String,
    /// The bridge that meshd must have; none: whichever it has.
    pub bridge: Option<String>,
    /// None: meshd's.
    pub mtu: Option<u32>,
    /// Of the port.
    pub hairpin: bool,
    /// The host's address on the bridge is the container's router.
    pub gateway: bool,
    /// Where meshd answers.
    pub socket: PathBuf,
    /// Where the plugin keeps what it could not do yet.
    pub data_dir: PathBuf,
    /// Where addresses come from.
    pub ipam: Ipam,
    /// For the result; replaces what IPAM says.
    pub dns: Map<String, Value>,
    /// Addresses asked for by `args.cni.ips` or `runtimeConfig.ips`.
    pub ips: Vec<String>,
    /// Of the plugins before this one.
    pub prev: Option<Map<String, Value>>,
    /// Containers and interfaces that are there still, for GC.
    pub valid: Option<BTreeSet<(String, String)>>,
    /// As it came, for other plugins.
    pub raw: Map<String, Value>,
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ipam {
    /// From meshd.
    Own {
        /// Of this network within the range.
        subnet: Option<Ipv4Net>,
        /// This one.
        ip: Option<String>,
        /// The container's router, when it is not the host.
        gateway: Option<IpAddr>,
        /// Instead of a default route.
        routes: Vec<Route>,
    },
    /// From the plugin of this name.
    Plugin(String),
}

/// A route as configurations and results have it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which router; none: by the interface's.
    pub gw: Option<IpAddr>,
}

/// The keys that matter here. Others belong to the runtime or to nobody.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    name: Option<String>,
    bridge: Option<String>,
    mtu: Option<u32>,
    hairpin_mode: Option<bool>,
    is_gateway: Option<bool>,
    #[serde(rename = "ipMasq")]
    _ip_masq: Option<bool>,
    socket: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    ipam: Option<IpamKeys>,
    dns: Option<Map<String, Value>>,
    args: Option<Args>,
    runtime_config: Option<Asked>,
    prev_result: Option<Map<String, Value>>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct IpamKeys {
    r#type: Option<String>,
    subnet: Option<Value>,
    ip: Option<Value>,
    gateway: Option<Value>,
    routes: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: Option<Asked>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Asked {
    ips: Option<Vec<String>>,
    mac: Option<String>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

impl Conf {
    /// Reads standard input.
    pub fn parse(text: &[u8]) -> Result<Conf, CniError> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| CniError::new(NOT_DECODED, format!("the configuration is not JSON: {error}")))?;
        let Value::Object(raw) = value else {
            return Err(CniError::new(NOT_DECODED, "the configuration is not a JSON object"));
        };
        let version = version_of(&raw)?;
        refuse_unsupported(&raw)?;
        let mut keys: Keys = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|error| CniError::config(format!("the configuration is wrong: {error}")))?;
        // Null is an empty list that was written as such; a key that is missing is not.
        let valid = keys.valid.take().or_else(|| raw.contains_key(VALID).then(Vec::new));
        let name = name_of(keys.name)?;
        if keys.mtu.is_some_and(|mtu| mtu != 0 && !(68..=65_535).contains(&mtu)) {
            return Err(CniError::config("mtu: a number from 68 to 65535 is wanted, or none for that of the overlay"));
        }
        let asked = [keys.args.and_then(|args| args.cni), keys.runtime_config].into_iter().flatten();
        let mut ips = Vec::new();
        for asked in asked {
            if let Some(mac) = asked.mac.filter(|mac| !mac.is_empty()) {
                return Err(no_mac(&mac));
            }
            if ips.is_empty() {
                ips = asked.ips.unwrap_or_default();
            }
        }
        Ok(Conf {
            version,
            name,
            bridge: keys.bridge.filter(|bridge| !bridge.is_empty()),
            mtu: keys.mtu.filter(|mtu| *mtu != 0),
            hairpin: keys.hairpin_mode.unwrap_or(true),
            gateway: keys.is_gateway.unwrap_or(true),
            socket: keys.socket.unwrap_or_else(|| SOCKET.into()),
            data_dir: keys.data_dir.unwrap_or_else(|| DATA_DIR.into()),
            ipam: ipam(keys.ipam.unwrap_or_default())?,
            dns: keys.dns.unwrap_or_default(),
            ips,
            prev: keys.prev_result,
            valid: valid
                .map(|list| list.into_iter().map(|attachment| (attachment.container, attachment.ifname)).collect()),
            raw,
        })
    }
}

/// A MAC address of the user's choice cannot be had.
pub fn no_mac(mac: &str) -> CniError {
    CniError::new(
        UNSUPPORTED_FIELD,
        format!(
            "mac '{mac}' cannot be set: the MAC address follows from the IP address, so that peers need not ask for it"
        ),
    )
}

/// A network's name becomes part of names of others: letters, digits, '_', '.', '-'.
pub fn is_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) && text.bytes().all(plain)
}

fn name_of(name: Option<String>) -> Result<String, CniError> {
    let name = name.unwrap_or_default();
    match name.len() {
        0 => Err(CniError::config("name is missing: the network needs one")),
        1..=NAME_MAX if is_word(&name) => Ok(name),
        _ => Err(CniError::config(format!(
            "name '{}' is wrong: at most {NAME_MAX} letters, digits, '_', '.' and '-' are wanted, the first a letter or digit",
            name.escape_debug()
        ))),
    }
}

fn version_of(raw: &Map<String, Value>) -> Result<Version, CniError> {
    let text = match raw.get("cniVersion") {
        Some(Value::String(text)) => text.as_str(),
        None => "",
        Some(other) => return Err(CniError::config(format!("cniVersion: {other} is wrong: a text is wanted"))),
    };
    Version::parse(text).ok_or_else(|| {
        CniError::new(
            INCOMPATIBLE_VERSION,
            format!("cniVersion '{}' is not supported: one of {}", text.escape_debug(), VERSIONS.join(", ")),
        )
    })
}

/// Keys of the reference plugin `bridge` that would be lost without a word.
fn refuse_unsupported(raw: &Map<String, Value>) -> Result<(), CniError> {
    let idle = |value: &Value| {
        matches!(value, Value::Null | Value::Bool(false))
            || value.as_u64() == Some(0)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    match UNSUPPORTED.iter().find_map(|key| raw.get(*key).filter(|value| !idle(value)).map(|value| (key, value))) {
        Some((key, value)) => Err(CniError::new(UNSUPPORTED_FIELD, format!("{key}: {value} is not supported"))),
        None => Ok(()),
    }
}

fn ipam(keys: IpamKeys) -> Result<Ipam, CniError> {
    let kind = keys.r#type.unwrap_or_default();
    if !kind.is_empty() && kind != OWN_IPAM {
        if kind.contains('/') {
            return Err(CniError::config(format!(
                "ipam.type '{}' is wrong: the name of a plugin is wanted",
                kind.escape_debug()
            )));
        }
        return Ok(Ipam::Plugin(kind));
    }
    let wrong =
        |key: &str, value: &Value, right: &str| CniError::config(format!("ipam.{key}: {value} is wrong: {right}"));
    let text = |key: &str, value: Option<Value>, right: &str| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(key, &other, right)),
    };
    let network = "a network such as 10.40.0.0/16 is wanted";
    let subnet = match text("subnet", keys.subnet, network)? {
        Some(text) => {
            let parsed: Result<Ipv4Net, _> = text.parse();
            let net = parsed.ok().filter(|net| net.trunc() == *net);
            Some(net.ok_or_else(|| wrong("subnet", &Value::String(text), network))?)
        }
        None => None,
    };
    let gateway = match text("gateway", keys.gateway, "an address is wanted")? {
        Some(text) => Some(text.parse().map_err(|_| wrong("gateway", &Value::String(text), "an address is wanted"))?),
        None => None,
    };
    let routes = match keys.routes {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => serde_json::from_value(list.clone())
            .map_err(|_| wrong("routes", &list, r#"a list such as [{"dst": "0.0.0.0/0"}] is wanted"#))?,
    };
    Ok(Ipam::Own { subnet, ip: text("ip", keys.ip, "an address is wanted")?, gateway, routes })
}

/// An address that was asked for, with the length of its network or without.
pub fn wished(text: &str) -> Result<(IpAddr, Option<IpNet>), CniError> {
    let wrong = || {
        CniError::config(format!(
            "the address '{}' is wrong: one such as 10.32.0.5 or 10.32.0.5/12 is wanted",
            text.escape_debug()
        ))
    };
    if text.contains('/') {
        let net: IpNet = text.parse().map_err(|_| wrong())?;
        return Ok((net.addr(), Some(net)));
    }
    let ip: IpAddr = text.parse().map_err(|_| wrong())?;
    if ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
        return Err(wrong());
    }
    Ok((ip, None))
}

/// Where meshd answers by default.
pub const SOCKET: &str = "/run/meshnet/meshd.sock";
/// Not under `/run`: what a container had must be given back after a reboot too.
const DATA_DIR: &str = "/var/lib/cni/meshnet";
/// The name of our own IPAM in configurations.
pub const OWN_IPAM: &str = "mesh-ipam";
/// With the container's id (64) and the interface's name (15) an owner stays below what a port's alias and meshd take (256).
const NAME_MAX: usize = 100;
const VALID: &str = "cni.dev/valid-attachments";
const UNSUPPORTED: [&str; 6] = ["vlan", "vlanTrunk", "promiscMode", "forceAddress", "macspoofchk", "portIsolation"];
