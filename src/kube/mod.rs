//! `meshd --kubernetes`: what meshd asks of the cluster's API and does by it. The secret, whom to connect to, who begins with the addresses, whose addresses
//! come back, and what the Node object says of this machine's network.
//!
//! ```text
//! credentials ─▶ client ─┬─ secret   at the first start: read, or made by the first
//!                        ├─ watch ─▶ nodes (pure): targets, who is gone for good
//!                        └─ agent ─▶ genesis (pure): which address space; mark and condition on the own Node
//! ```
//! The objects: Secret `meshnet`, ConfigMap `meshnet-genesis` (in the pod's namespace), annotations `meshnet/…` and the condition `NetworkUnavailable` of the
//! own Node. Rights: nodes get, list, watch; nodes/status patch; secrets and configmaps create, get, and for the ConfigMap update.
//!
//! **The API may be away** at any time: the secret, the nodes and who was where are kept in the state directory ([`Kept`]), addresses are the business of the
//! peers alone once they belong, and nobody is taken for gone who is not seen to be gone. Only the very first start of a machine waits for it.
//!
//! May use: core types, proto. Deliberately lacks: the secret's meaning, the state directory's files and the node (the daemon hands them in), pods and
//! services (nothing is watched one by one), leader election (whoever acts, the peers decide; see `nodes`).

pub mod agent;
pub mod client;
pub mod credentials;
pub mod genesis;
pub mod nodes;
pub mod objects;
pub mod secret;
pub mod shown;
pub mod watch;

use std::collections::BTreeMap;
use std::net::IpAddr;

use meshnet_proto::ShortId;
use serde::{Deserialize, Serialize};

use nodes::Nodes;
use objects::Node;

/// What a restart needs of the API, so that it needs no API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The cluster's nodes and their addresses.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
    /// On which Node a peer (16 hex digits) was seen last.
    pub seen: BTreeMap<String, String>,
    /// What an earlier peer of this machine left behind.
    pub left: Option<Left>,
}

/// Interfaces of containers that were on the bridge when a peer came to be: these may have addresses of the machine's earlier peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The new one.
    pub peer: String,
    /// Numbers and names of those that are still there.
    pub interfaces: Vec<(u32, String)>,
}

/// Where it is kept. Blocks until the disk has it.
pub trait Keep: Send + Sync + 'static {
    /// Replaces what was kept.
    fn keep(&self, kept: &Kept) -> Result<(), String>;
}

impl Kept {
    /// Nothing on the machine has an address of an earlier peer than this.
    pub fn is_alone(&self, peer: &str) -> bool {
        self.left.as_ref().is_some_and(|left| left.peer == peer && left.interfaces.is_empty())
    }

    fn of(nodes: &Nodes, left: Option<Left>) -> Kept {
        let seen = nodes.known().iter().map(|(peer, node)| (format!("{:016x}", peer.0), node.clone()));
        let there = nodes.iter().map(|node| (node.name.clone(), node.addresses.clone()));
        Kept { nodes: there.collect(), seen: seen.collect(), left }
    }

    fn nodes(&self) -> Nodes {
        let node = |(name, addresses): (&String, &Vec<IpAddr>)| Node {
            name: name.clone(),
            addresses: addresses.clone(),
            ..Node::default()
        };
        let peer =
            |(digits, node): (&String, &String)| Some((ShortId(u64::from_str_radix(digits, 16).ok()?), node.clone()));
        Nodes::restore(self.nodes.iter().map(node).collect(), self.seen.iter().filter_map(peer).collect())
    }
}
