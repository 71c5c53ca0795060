//! The cheapest ways of at most four hops: Bellman and Ford's rounds, one for each hop, starting from the live direct links.

use meshnet_proto::{PeerId, limits};

use super::{RouteInput, Way};
use crate::topology::Graph;

/// Ways from this peer, by rounds: round `h` holds the cheapest ways of at most `h + 1` hops.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    input: RouteInput<'a>,
    rounds: Vec<Round>,
}

#[derive(Debug, Clone)]
struct Round {
    cost: Vec<u32>,
    /// The hop before, in the round before; [`SAME`] when that round had the same way, [`FIRST`] for the first hop.
    from: Vec<u32>,
}

impl<'a> Ways<'a> {
    pub(super) fn compute(input: &RouteInput<'a>) -> Ways<'a> {
        Ways { input: *input, rounds: rounds(input, None, limits::RELAYS_MAX + 1) }
    }

    /// The way to take: direct, unless relays are better by a fifth and 3 ms.
    pub(super) fn best(&self, to: u32) -> Option<Way> {
        let cheapest = way(&self.input, &self.rounds, to)?;
        let Some(cost) = self.input.direct.get(&self.input.graph.id(to)?) else { return Some(cheapest) };
        let direct = u32::from(*cost);
        let gain = direct.saturating_sub(cheapest.cost);
        let worth = gain > GAIN_MIN && gain.saturating_mul(5) > direct;
        if worth { Some(cheapest) } else { Some(self::direct(self.input.graph.id(to)?, *cost)) }
    }

    /// The best way that does not use the direct link, for a peer that has one.
    pub(super) fn alternate(&self, to: u32) -> Option<Way> {
        self.input.direct.get(&self.input.graph.id(to)?)?;
        let cheapest = way(&self.input, &self.rounds, to)?;
        if !cheapest.is_direct() {
            return Some(cheapest);
        }
        let (found, passed_by) = detour(&self.input, &self.rounds, to);
        if found.is_some() || !passed_by {
            return found;
        }
        // All neighbours of the peer are best reached through it: look for ways to them that leave it out.
        detour(&self.input, &rounds(&self.input, Some(to), limits::RELAYS_MAX), to).0
    }
}

/// The way of one hop.
pub(super) fn direct(to: PeerId, cost: u16) -> Way {
    Way { hops: [to, PeerId::default(), PeerId::default(), PeerId::default()], count: 1, cost: u32::from(cost) }
}

/// The cheapest way to `to` over one of its neighbours that is itself reached without it; and whether there are neighbours reached only through it.
fn detour(input: &RouteInput, rounds: &[Round], to: u32) -> (Option<Way>, bool) {
    let (mut best, mut passed_by): (Option<Way>, _) = (None, false);
    let Some(target) = input.graph.id(to) else { return (None, false) };
    let shorter = rounds.get(..limits::RELAYS_MAX).unwrap_or_default();
    for edge in input.graph.edges(to).iter().filter(|edge| input.graph.relays(edge.to)) {
        let Some(relay) = way(input, shorter, edge.to) else { continue };
        if relay.hops().contains(&target) {
            passed_by = true;
            continue;
        }
        let cost = relay.cost.saturating_add(charged(edge.cost));
        if best.is_none_or(|best| cost < best.cost) {
            let mut hops = relay.hops;
            if let Some(last) = hops.get_mut(usize::from(relay.count)) {
                *last = target;
                best = Some(Way { hops, count: relay.count + 1, cost });
            }
        }
    }
    (best, passed_by)
}

fn rounds(input: &RouteInput, without: Option<u32>, count: usize) -> Vec<Round> {
    let graph = input.graph;
    let barred = [graph.index(&input.me), without];
    let mut round = Round { cost: vec![UNREACHED; graph.len()], from: vec![SAME; graph.len()] };
    let mut reached = Vec::new();
    for (id, cost) in input.direct {
        let Some(index) = graph.index(id).filter(|index| !barred.contains(&Some(*index))) else { continue };
        round.set(index, u32::from(*cost), FIRST);
        reached.push(index);
    }
    let mut rounds = vec![round];
    while rounds.len() < count {
        let Some(before) = rounds.last() else { break };
        let mut next = Round { cost: before.cost.clone(), from: vec![SAME; graph.len()] };
        reached = relax(graph, before, &mut next, &reached, barred);
        rounds.push(next);
    }
    rounds
}

/// Extends the ways that the last round made cheaper by one hop; gives the peers that are cheaper now. `reached` ascends, and only a strictly
/// lower cost replaces: ties go to fewer hops, then to the lowest relay.
fn relax(graph: &Graph, before: &Round, next: &mut Round, reached: &[u32], barred: [Option<u32>; 2]) -> Vec<u32> {
    let mut cheaper = Vec::new();
    for relay in reached.iter().copied().filter(|index| graph.relays(*index)) {
        for edge in graph.edges(relay) {
            let cost = before.cost(relay).saturating_add(charged(edge.cost));
            if cost < next.cost(edge.to) && !barred.contains(&Some(edge.to)) {
                next.set(edge.to, cost, relay);
                cheaper.push(edge.to);
            }
        }
    }
    cheaper.sort_unstable();
    cheaper.dedup();
    cheaper
}

impl Round {
    fn cost(&self, index: u32) -> u32 {
        self.cost.get(index as usize).copied().unwrap_or(UNREACHED)
    }

    fn from(&self, index: u32) -> u32 {
        self.from.get(index as usize).copied().unwrap_or(SAME)
    }

    fn set(&mut self, index: u32, cost: u32, from: u32) {
        if let (Some(c), Some(f)) = (self.cost.get_mut(index as usize), self.from.get_mut(index as usize)) {
            (*c, *f) = (cost, from);
        }
    }
}

/// Follows a way back through the rounds.
fn way(input: &RouteInput, rounds: &[Round], to: u32) -> Option<Way> {
    let cost = rounds.last()?.cost(to);
    if cost == UNREACHED {
        return None;
    }
    let mut back = [to; limits::RELAYS_MAX + 1];
    let (mut here, mut count) = (to, 0);
    for round in rounds.iter().rev() {
        let from = round.from(here);
        if from == SAME {
            continue;
        }
        *back.get_mut(count)? = here;
        count += 1;
        here = from;
    }
    let mut hops = [PeerId::default(); limits::RELAYS_MAX + 1];
    for (hop, index) in hops.iter_mut().zip(back.get(..count)?.iter().rev()) {
        *hop = input.graph.id(*index)?;
    }
    Some(Way { hops, count: count as u8, cost })
}

/// A hop over a relay costs its share of that machine: half a millisecond and a tenth.
fn charged(cost: u16) -> u32 {
    u32::from(cost) + u32::from(cost) / 10 + RELAY_CHARGE
}

const UNREACHED: u32 = u32::MAX;
const SAME: u32 = u32::MAX;
const FIRST: u32 = u32::MAX - 1;
/// 0.5 ms in tens of microseconds.
const RELAY_CHARGE: u32 = 50;
/// 3 ms: what a relay must gain before its load and its fate are worth sharing.
const GAIN_MIN: u32 = 300;
