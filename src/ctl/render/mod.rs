//! Documents of the API as text. Pure: no terminal, no clock; the same document and [`text::Style`] give the same bytes.

pub mod graph;
pub mod ipam;
pub mod status;
pub mod table;
#[cfg(test)]
mod tests;
pub mod text;
pub mod tree;

use std::collections::BTreeMap;

use meshnet_proto::PeerId;
use meshnet_proto::api::{Status, Topology};

/// Names of peers as people shall see them: harmless, and told apart by the id where two are the same.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<PeerId, String>);

impl Names {
    /// Of all peers that a status knows.
    pub fn of_status(status: &Status) -> Names {
        let own = (status.peer.id, status.peer.name.as_str());
        Names::new(status.peers.iter().map(|peer| (peer.id, peer.name.as_str())).chain([own]))
    }

    /// Of all peers of a topology.
    pub fn of_topology(topology: &Topology) -> Names {
        Names::new(topology.peers.iter().map(|peer| (peer.id, peer.name.as_str())))
    }

    fn new<'a>(peers: impl Iterator<Item = (PeerId, &'a str)>) -> Names {
        let mut names: BTreeMap<PeerId, String> = peers.map(|(id, name)| (id, text::clean(name))).collect();
        let mut uses: BTreeMap<String, usize> = BTreeMap::new();
        for name in names.values() {
            *uses.entry(name.clone()).or_default() += 1;
        }
        for (id, name) in &mut names {
            if name.is_empty() {
                *name = id.brief();
            } else if uses.get(name).is_some_and(|&uses| uses > 1) {
                name.push('~');
                name.extend(id.brief().chars().take(4));
            }
        }
        Names(names)
    }

    /// Whether this peer is among them.
    pub fn knows(&self, id: PeerId) -> bool {
        self.0.contains_key(&id)
    }

    /// The name; the first digits of the id for a peer that is not known.
    pub fn show(&self, id: PeerId) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| id.brief())
    }
}
