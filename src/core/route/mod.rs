//! Paths and flood trees: a pure function of the graph, the live direct links and this peer's id.
//!
//! ```text
//! Graph (two-way links) ┐               ┌─▶ per peer: hops, cost, best way, way without the direct link
//! live direct links ────┴─▶ compute ────┤
//!                                       └─▶ per source: whom its floods are passed on to from here
//! ```
//! Ways are source-routed through at most three relays, so no loop exists while tables differ. Flood trees are computed from the graph alone, with
//! ties broken by the lowest id: peers with equal tables have equal trees (TRILL, RFC 6325 4.5.1, distributes floods over shared roots likewise).
//!
//! May use: `proto`, [`crate::topology`]. Deliberately lacks: sessions, addresses, liveness, state of any kind but [`Pace`].

pub mod flood;
pub mod neighbours;
pub mod pace;
#[cfg(test)]
mod tests;
mod ways;

use std::collections::BTreeMap;

use meshnet_proto::wire::data::Route;
use meshnet_proto::{PeerId, limits};

use crate::topology::Graph;
pub use flood::FloodTrees;
pub use neighbours::select_neighbours;
pub use pace::Pace;

/// What routes are computed from.
#[derive(Debug, Clone, Copy)]
pub struct RouteInput<'a> {
    /// This peer.
    pub me: PeerId,
    /// [`crate::topology::Topology::graph`].
    pub graph: &'a Graph,
    /// Peers whose direct path is alive now, with its cost ([`crate::topology::own::cost_of`]): these count for the first hop, whatever the graph says.
    pub direct: &'a BTreeMap<PeerId, u16>,
}

/// A way to a peer: up to three relays, then the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    hops: [PeerId; limits::RELAYS_MAX + 1],
    count: u8,
    /// Tens of microseconds of round trip, and a charge for each relay.
    pub cost: u32,
}

impl Way {
    /// The hops, the destination last.
    pub fn hops(&self) -> &[PeerId] {
        self.hops.get(..usize::from(self.count)).unwrap_or_default()
    }

    /// Whether there is no relay.
    pub fn is_direct(&self) -> bool {
        self.count == 1
    }

    /// The first hop.
    pub fn first(&self) -> PeerId {
        let [first, ..] = self.hops;
        first
    }

    /// The way as it stands in a relay header; none when direct.
    pub fn route(&self) -> Option<Route> {
        let shorts = self.hops.map(|hop| hop.short());
        Route::new(shorts.get(..usize::from(self.count))?)
    }
}

/// All about one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRoute {
    /// Who.
    pub id: PeerId,
    /// Links between it and this peer, 0 for this peer itself; none when it is not reachable over links at all.
    pub hops: Option<u16>,
    /// The way to take; none when more than three relays would be needed, or those between do not relay.
    pub best: Option<Way>,
    /// For a peer with a live direct link: the best way without that link, to take the moment it goes silent.
    pub alternate: Option<Way>,
    /// Peers that floods of this source are passed on to from here. On a shared tree the one they came from is among them: the forwarder leaves it out.
    pub flood_on: Vec<PeerId>,
}

/// All routes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// By ascending id: everyone in the graph, and everyone with a live direct link.
    pub peers: Vec<PeerRoute>,
    /// Peers that this peer's own floods go to.
    pub flood_out: Vec<PeerId>,
}

impl Routes {
    /// The route to a peer.
    pub fn get(&self, peer: &PeerId) -> Option<&PeerRoute> {
        self.peers.binary_search_by_key(peer, |route| route.id).ok().and_then(|at| self.peers.get(at))
    }
}

/// Computes everything anew: about a millisecond for a thousand peers of degree 8. `trees` are those of the same graph and peer, which cost more than
/// the rest: kept while only direct paths change.
pub fn compute(input: &RouteInput, trees: &FloodTrees) -> Routes {
    let graph = input.graph;
    let me = graph.index(&input.me);
    let hops = me.map(|me| graph.hops(me)).unwrap_or_default();
    let ways = ways::Ways::compute(input);
    let ids_of = |indices: &[u32]| indices.iter().filter_map(|index| graph.id(*index)).collect::<Vec<_>>();

    let mut peers = Vec::with_capacity(graph.len() + input.direct.len());
    for (index, id) in graph.ids.iter().enumerate() {
        let direct = input.direct.contains_key(id).then_some(1);
        let index = index as u32;
        let mine = *id == input.me;
        peers.push(PeerRoute {
            id: *id,
            hops: direct.or(hops.get(index as usize).copied().flatten()),
            best: if mine { None } else { ways.best(index) },
            alternate: if mine { None } else { ways.alternate(index) },
            flood_on: if mine { Vec::new() } else { ids_of(trees.on(index)) },
        });
    }
    // A link may be up before the other end's record is here.
    for (id, cost) in input.direct.iter().filter(|(id, _)| graph.index(id).is_none() && **id != input.me) {
        let best = Some(ways::direct(*id, *cost));
        peers.push(PeerRoute { id: *id, hops: Some(1), best, alternate: None, flood_on: Vec::new() });
    }
    peers.sort_by_key(|route| route.id);
    let flood_out = if me.is_some() { ids_of(trees.out()) } else { input.direct.keys().copied().collect() };
    Routes { peers, flood_out }
}
