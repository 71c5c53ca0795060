//! Whom to keep a control link to: everyone in a small mesh, about eight in a large one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::PeerId;

use crate::topology::digest::mix;

/// The peers that `me` should have links to, out of `roster` (live peers, `me` left out). In a large mesh: the next in order of id on both
/// sides, which keeps the graph connected; the three nearest by round trip; three by a hash of the pair, which keeps it shallow.
/// `current` are favoured, so that the set settles.
pub fn select_neighbours(
    me: PeerId,
    roster: &BTreeSet<PeerId>,
    rtts: &BTreeMap<PeerId, Duration>,
    current: &BTreeSet<PeerId>,
) -> BTreeSet<PeerId> {
    let meshed = roster.intersection(current).count() >= FULL_MESH_MAX * 3 / 4;
    let full = if meshed { FULL_MESH_LEFT } else { FULL_MESH_MAX };
    let others = || roster.iter().copied().filter(|peer| *peer != me);
    if others().count() < full {
        return others().collect();
    }
    let mut chosen = BTreeSet::new();
    let next = roster.range(me..).find(|peer| **peer != me).or_else(|| roster.first());
    let before = roster.range(..me).next_back().or_else(|| roster.last());
    chosen.extend(next.into_iter().chain(before).copied().filter(|peer| *peer != me));

    // Drawn before the nearest are chosen: or a drawn one that comes near would change both sets.
    let mut drawn: Vec<_> = others().filter(|peer| !chosen.contains(peer)).map(|peer| (pair(me, peer), peer)).collect();
    drawn.sort_unstable();
    let mut drawn = drawn.into_iter().map(|(_, peer)| peer);
    chosen.extend(drawn.by_ref().take(DRAWN));

    let favoured = |peer: &PeerId, rtt: Duration| if current.contains(peer) { rtt.mul_f64(KEPT_RTT) } else { rtt };
    let mut near: Vec<_> = others()
        .filter(|peer| !chosen.contains(peer))
        .filter_map(|peer| rtts.get(&peer).map(|rtt| (favoured(&peer, *rtt), peer)))
        .collect();
    near.sort_unstable();
    chosen.extend(near.into_iter().take(NEAREST).map(|(_, peer)| peer));
    for peer in drawn {
        if chosen.len() >= NEXT + NEAREST + DRAWN {
            break;
        }
        chosen.insert(peer);
    }
    chosen
}

/// The same at both ends, so that both are likely to choose each other.
fn pair(a: PeerId, b: PeerId) -> u64 {
    mix(mix(a.min(b).short().0) ^ a.max(b).short().0.rotate_left(1))
}

/// Peers up to which everyone links to everyone.
const FULL_MESH_MAX: usize = 32;
/// A full mesh is given up only above this, so that one peer coming and going does not tear down hundreds of links.
const FULL_MESH_LEFT: usize = 40;
/// Neighbours in order of id.
const NEXT: usize = 2;
/// Neighbours by round trip.
const NEAREST: usize = 3;
/// Neighbours by hash. While round trips are not known, these fill the places of the nearest too.
const DRAWN: usize = 3;
/// A neighbour that is kept counts as nearer than it is.
const KEPT_RTT: f64 = 0.7;
