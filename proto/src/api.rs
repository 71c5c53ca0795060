//! What `meshctl` and other programs ask of `meshd`, over HTTP on the control socket (and the reading part on `--http`).
//!
//! Keys are stable within [`VERSION`]: keys are added, never renamed or removed. Ids are hex, times are in the unit that the key ends in.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::id::PeerId;

/// Version of the JSON documents.
pub const VERSION: u32 = 1;

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the keys are their own description; README.md explains those that need it")]
pub struct Status {
    pub version: u32,
    pub peer: Me,
    pub links: Vec<Link>,
    pub peers: Vec<Peer>,
    pub ipam: Ipam,
    pub data: Data,
    pub problems: Vec<Problem>,
    /// With `--kubernetes`: how it stands with the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// The addresses that this peer connects to first, by flag, file or `connect`.
    pub targets: Vec<Target>,
    pub routes: Vec<Route>,
    pub device: Device,
}

/// This peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Me {
    pub id: PeerId,
    pub name: String,
    pub software: String,
    pub uptime_s: u64,
}

/// State of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// A dial is under way.
    Connecting,
    /// Both ends agree, and data passes.
    Established,
    /// It cannot work until something changes; `reason` says what.
    Failed,
    /// Waiting for the next dial.
    Retrying,
}

/// One link, or an attempt at one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Link {
    /// Empty while the other end is not known.
    #[serde(with = "optional_id")]
    pub peer: Option<PeerId>,
    pub name: String,
    /// `IP:PORT`, or the target as it was given when it does not resolve.
    pub address: String,
    pub state: LinkState,
    /// `udp`, `quic` or `vxlan`.
    pub transport: String,
    pub encrypted: bool,
    /// Bytes of the largest packet that is known to pass on its path; 0 when it is not up.
    pub mtu: u32,
    pub rtt_ms: f64,
    pub outbound: bool,
    pub reason: Option<String>,
    /// Seconds until the next dial, when retrying.
    pub retry_s: Option<u64>,
    pub cipher: String,
    /// Source ports that frames to it leave from; 0 when none do by UDP of our own.
    #[serde(default)]
    pub ports: u32,
}

/// A peer of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Peer {
    pub id: PeerId,
    pub name: String,
    pub reachable: bool,
    pub hops: u32,
    /// First relay, when frames to it are relayed.
    pub via: Option<PeerId>,
    pub links: Vec<PeerId>,
    pub software: String,
    pub addresses: Vec<SocketAddr>,
    /// Seconds since its last record changed here.
    pub changed_s: u64,
}

/// The address space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Ipam {
    /// `off`, `waiting` or `ready`.
    pub state: String,
    pub range: String,
    pub subnet: String,
    pub owned: u64,
    pub used: u64,
    pub free: u64,
    pub shares: Vec<Share>,
    /// What it waits for; empty when ready.
    #[serde(default)]
    pub reason: String,
    /// Hash, in hex, of who owns what and who belongs to it, as this peer knows it: the same at all peers that agree.
    #[serde(default)]
    pub digest: String,
    /// Peers that belong to the address space; those removed are not counted.
    #[serde(default)]
    pub members: u64,
    /// Peers that left it, or were removed.
    #[serde(default)]
    pub removed: u64,
    /// Addresses given out here that somebody else gives out or uses too, each in words.
    #[serde(default)]
    pub conflicts: Vec<String>,
}

impl Ipam {
    /// No address space is managed.
    pub fn off() -> Ipam {
        Ipam {
            state: "off".into(),
            range: String::new(),
            subnet: String::new(),
            owned: 0,
            used: 0,
            free: 0,
            shares: Vec::new(),
            reason: String::new(),
            digest: String::new(),
            members: 0,
            removed: 0,
            conflicts: Vec::new(),
        }
    }
}

/// What one peer owns of the address space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Share {
    pub peer: PeerId,
    pub name: String,
    pub addresses: u64,
    pub percent: f64,
    pub reachable: bool,
    /// [`Ipam::digest`] as that peer tells it; empty when it told none.
    #[serde(default)]
    pub digest: String,
    /// Addresses that it could give out, as it tells.
    #[serde(default)]
    pub free: Option<u64>,
    /// `known` (asked to belong), `admitted` or `removed`.
    #[serde(default)]
    pub standing: String,
}

/// Frames that crossed this peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Data {
    pub tx_frames: u64,
    pub tx_bytes: u64,
    pub rx_frames: u64,
    pub rx_bytes: u64,
    /// Datagrams passed on for others.
    pub relayed: u64,
    /// Frames sent in fragments, because their path takes less.
    #[serde(default)]
    pub fragmented: u64,
    /// Frames put together from fragments.
    #[serde(default)]
    pub reassembled: u64,
    /// Openings of TCP connections whose segments were made to fit their path.
    #[serde(default)]
    pub clamped: u64,
    /// Senders told by ICMP that a packet was too large for its path.
    #[serde(default)]
    pub told_too_big: u64,
    pub drops: BTreeMap<String, u64>,
}

/// Something is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Problem {
    pub what: String,
    #[serde(rename = "do")]
    pub remedy: String,
}

/// The cluster's API as this peer sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Kubernetes {
    /// `ok`, `waiting` (something is asked for the first time) or `away`.
    pub state: String,
    /// The URL.
    pub api: String,
    /// This peer's Node object.
    pub node: String,
    /// Nodes of the cluster, this one included.
    pub nodes: u64,
    /// Of these, the ones that a peer has put its id on.
    pub peers: u64,
    /// What it waits for, or why it is away; empty when ok.
    pub reason: String,
    /// Seconds since the API answered last; none: it never did.
    pub heard_s: Option<u64>,
    /// Peers that are gone and whose addresses are being taken back.
    pub removing: Vec<String>,
}

/// An address to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Target {
    pub address: String,
    /// `flag` (flag, environment or file), `connect` (remembered by command) or `kubernetes` (a node of the cluster).
    pub source: String,
}

/// How frames travel to one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Route {
    pub peer: PeerId,
    pub name: String,
    /// `direct`, `relayed` or `none`.
    pub kind: String,
    pub address: Option<SocketAddr>,
    /// Relays in order.
    pub relays: Vec<PeerId>,
    pub rtt_ms: f64,
    /// Peers that I pass this peer's flooded frames on to.
    pub flood_to: Vec<PeerId>,
}

/// The bridge and the TAP device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Device {
    pub bridge: String,
    pub tap: String,
    pub mtu: u32,
    pub queues: u32,
    /// Offloads in use: `vnet-header`, `tso`, `uso`, `udp-gso`, `udp-gro`.
    pub offloads: Vec<String>,
    /// Addresses that the host has on the bridge by `expose`.
    pub exposed: Vec<String>,
}

/// `GET /v1/macs`: one learned address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MacEntry {
    pub mac: String,
    pub peer: PeerId,
    pub name: String,
    pub age_s: u64,
    pub local: bool,
}

/// `GET /v1/topology`: the whole cluster as this peer sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Topology {
    pub peers: Vec<TopologyPeer>,
    pub links: Vec<TopologyLink>,
}

/// A peer in a topology.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TopologyPeer {
    pub id: PeerId,
    pub name: String,
    pub addresses: Vec<SocketAddr>,
}

/// A link in a topology; `a < b`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TopologyLink {
    pub a: PeerId,
    pub b: PeerId,
    pub rtt_ms: f64,
    pub transport: String,
}

/// `GET /v1/report`: everything, for a bug report. No secrets in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Report {
    pub version: u32,
    pub status: Status,
    pub topology: Topology,
    pub macs: Vec<MacEntry>,
    /// Settings as they took effect.
    pub settings: BTreeMap<String, String>,
    /// Counters by metric name.
    pub counters: BTreeMap<String, u64>,
    pub kernel: String,
    /// Newest events last.
    pub events: Vec<String>,
}

/// A command: `POST /v1/command`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Command {
    /// Connect to these, now and after restarts.
    Connect { addresses: Vec<String> },
    /// Forget these.
    Forget { addresses: Vec<String> },
    /// Give a namespace (name, path or pid) an interface on the bridge and addresses: CIDRs, or `auto` for one of the range.
    /// None: `auto`, where there is a range.
    Attach { namespace: String, addresses: Vec<String> },
    /// Take addresses (all: and the interface) from a namespace.
    Detach { namespace: String, addresses: Vec<String> },
    /// Give the host an address on the bridge: a CIDR, or `auto`.
    Expose { address: String },
    /// Take it away; empty: all.
    Hide { address: Option<String> },
    /// Probe a peer, by name or id, through the overlay's own path.
    Ping { peer: String },
    /// The path of a frame to an IP address, MAC address or peer.
    Trace { to: String },
    /// An address for this owner, out of a subnet (none: the default one); the same one when it has one there.
    IpAlloc { id: String, subnet: Option<String> },
    /// This very address for this owner.
    IpClaim { id: String, address: String },
    /// The addresses of this owner.
    IpLookup { id: String },
    /// One address of this owner back; none: all.
    IpFree { id: String, address: Option<String> },
    /// All addresses given out by this peer.
    IpList,
    /// These peers (names or ids) are gone for good: take back what they own.
    Rmpeer { peers: Vec<String>, force: bool },
    /// Give back all that this peer owns, and belong to the address space no more.
    Leave,
    /// What whoever makes an interface on the bridge has to know.
    Network,
}

/// The answer to a [`Command`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Reply {
    /// Done.
    Done,
    /// The interface and addresses that a namespace has now.
    Attached { interface: String, addresses: Vec<String> },
    /// One probe came back.
    Pong { peer: PeerId, name: String, rtt_ms: f64, path: String },
    /// One probe did not come back in time.
    Lost { peer: PeerId, name: String },
    /// The path.
    Trace(Trace),
    /// An address with the length of its network: `10.32.0.5/12`.
    Address { address: String },
    /// Addresses given out.
    Leases { leases: Vec<Lease> },
    /// These peers are removed; so many addresses were taken back.
    Removed { peers: Vec<String>, addresses: u64 },
    /// The network of the bridge.
    Network(Network),
    /// The peer said no.
    Refused { reason: String },
}

/// The answer to [`Command::Network`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Network {
    pub bridge: String,
    pub mtu: u32,
    /// Addresses that the host has on the bridge by `expose`.
    pub exposed: Vec<String>,
    /// What is managed; empty: nothing is.
    pub range: String,
    /// Where addresses come from when nobody says otherwise.
    pub subnet: String,
    /// Why frames do not pass now; empty: they do.
    #[serde(default)]
    pub broken: String,
    /// Why no address can be given out now; empty: they can.
    #[serde(default)]
    pub waiting: String,
}

/// One address that is given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Lease {
    pub id: String,
    /// `10.32.0.5`.
    pub address: String,
    /// Its network: `10.32.0.0/12`.
    pub subnet: String,
    /// It came from another address space, and its owner in this one has not agreed yet.
    pub unconfirmed: bool,
}

/// The answer to [`Command::Trace`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Trace {
    pub to: String,
    pub mac: Option<String>,
    pub peer: PeerId,
    pub name: String,
    /// True: on this machine's bridge.
    pub local: bool,
    pub hops: Vec<TraceHop>,
    pub mtu: u32,
    /// Empty: in the clear.
    pub cipher: String,
    /// Known unicast goes by the kernel's VXLAN, past the sealed path.
    #[serde(default)]
    pub fast: bool,
}

/// One peer on a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TraceHop {
    pub peer: PeerId,
    pub name: String,
    pub address: Option<SocketAddr>,
    /// Of the link that leads to it.
    pub rtt_ms: f64,
}

mod optional_id {
    use super::PeerId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(id: &Option<PeerId>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => serializer.collect_str(id),
            None => serializer.serialize_str(""),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PeerId>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
    }
}

#[cfg(test)]
mod tests;
