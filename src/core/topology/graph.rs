//! The graph of links that both ends say, with dense indices: what routes and trees are computed from.

use std::collections::BTreeSet;

use meshnet_proto::wire::record::{RecordLink, flags};
use meshnet_proto::{PeerId, ShortId};

use super::Topology;

/// The graph. Indices follow the order of ids, so that the lowest index is the lowest id, at every peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// Peers by index, ascending.
    pub ids: Vec<PeerId>,
    /// Which of them relay.
    pub relay: Vec<bool>,
    edges: Vec<Edge>,
    starts: Vec<u32>,
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Index of the other end.
    pub to: u32,
    /// The higher of the costs that the two ends say.
    pub cost: u16,
}

impl Graph {
    /// From the records held.
    pub fn of(topology: &Topology) -> Graph {
        let records: Vec<_> = topology.entries().map(|(id, entry)| (*id, entry.record())).collect();
        // Short ids are the first bytes of ids and differ within a table: both are in the same order.
        let shorts: Vec<ShortId> = records.iter().map(|(id, _)| id.short()).collect();
        let mut graph = Graph::default();
        graph.starts.push(0);
        for (index, (id, record)) in records.iter().enumerate() {
            for link in &record.links {
                let Ok(to) = shorts.binary_search(&link.peer) else { continue };
                let Some((back, there)) = records.get(to).zip(shorts.get(index)) else { continue };
                if let Some(cost) = cost_back(&back.1.links, *there)
                    && to != index
                {
                    graph.edges.push(Edge { to: to as u32, cost: cost.max(link.cost).max(1) });
                }
            }
            graph.ids.push(*id);
            graph.relay.push(record.flags & flags::RELAY != 0);
            graph.starts.push(graph.edges.len() as u32);
        }
        graph
    }

    /// From peers (ascending; with their will to relay) and two-way links by index.
    pub fn from_links(peers: &[(PeerId, bool)], links: &[(u32, u32, u16)]) -> Graph {
        let mut both: Vec<_> = links.iter().flat_map(|(a, b, cost)| [(*a, *b, *cost), (*b, *a, *cost)]).collect();
        both.sort_unstable();
        both.dedup_by_key(|(from, to, _)| (*from, *to));
        let mut graph = Graph { starts: vec![0], ..Graph::default() };
        for (index, (id, relay)) in peers.iter().enumerate() {
            let mine = both.iter().filter(|(from, to, _)| *from as usize == index && from != to);
            graph.edges.extend(mine.map(|(_, to, cost)| Edge { to: *to, cost: (*cost).max(1) }));
            graph.ids.push(*id);
            graph.relay.push(*relay);
            graph.starts.push(graph.edges.len() as u32);
        }
        graph
    }

    /// Number of peers.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Number of directed edges.
    pub fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// The index of a peer.
    pub fn index(&self, id: &PeerId) -> Option<u32> {
        self.ids.binary_search(id).ok().map(|index| index as u32)
    }

    /// The peer at an index.
    pub fn id(&self, index: u32) -> Option<PeerId> {
        self.ids.get(index as usize).copied()
    }

    /// Whether the peer at this index relays.
    pub fn relays(&self, index: u32) -> bool {
        self.relay.get(index as usize).copied().unwrap_or(false)
    }

    /// The links of the peer at an index, by ascending other end.
    pub fn edges(&self, index: u32) -> &[Edge] {
        let at = index as usize;
        let (Some(start), Some(end)) = (self.starts.get(at), self.starts.get(at + 1)) else { return &[] };
        self.edges.get(*start as usize..*end as usize).unwrap_or_default()
    }

    /// The link between two peers.
    pub fn edge(&self, from: u32, to: u32) -> Option<Edge> {
        let edges = self.edges(from);
        edges.binary_search_by_key(&to, |edge| edge.to).ok().and_then(|at| edges.get(at)).copied()
    }

    /// Hops from `from` to each peer, over any links.
    pub fn hops(&self, from: u32) -> Vec<Option<u16>> {
        let mut hops: Vec<Option<u16>> = vec![None; self.len()];
        let Some(first) = hops.get_mut(from as usize) else { return hops };
        *first = Some(0);
        let mut reached = vec![from];
        let mut at = 0;
        while let Some(here) = reached.get(at).copied() {
            at += 1;
            let next = hops.get(here as usize).copied().flatten().unwrap_or(0).saturating_add(1);
            for edge in self.edges(here) {
                if let Some(entry @ None) = hops.get_mut(edge.to as usize) {
                    *entry = Some(next);
                    reached.push(edge.to);
                }
            }
        }
        hops
    }

    /// Everyone that links lead to from `from`, itself included.
    pub fn component(&self, from: &PeerId) -> BTreeSet<PeerId> {
        let hops = self.index(from).map(|index| self.hops(index)).unwrap_or_default();
        self.ids.iter().zip(hops).filter(|(_, hops)| hops.is_some()).map(|(id, _)| *id).collect()
    }
}

fn cost_back(links: &[RecordLink], to: ShortId) -> Option<u16> {
    links.binary_search_by_key(&to, |link| link.peer).ok().and_then(|at| links.get(at)).map(|link| link.cost)
}
