//! Flood trees: whom a flooded frame is passed on to.
//!
//! Up to 256 peers each source has its own shortest-path tree, and a frame goes from parent to children. Above, sources share 16 trees: a frame
//! goes to all neighbours on the tree but the one it came from. Only peers that relay, and the root of a tree, have children.
//! Distances count whole milliseconds and hops, so that trees do not change with every round trip; Dial's buckets (1969) make one in O(links).

use meshnet_proto::PeerId;
use meshnet_proto::wire::record::COST_LAST_RESORT;

use crate::topology::Graph;
use crate::topology::digest::mix;

/// The part of all trees that is at this peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FloodTrees {
    /// Sets of peers to pass on to.
    sets: Vec<Vec<u32>>,
    /// Which set, by index of the source.
    of: Vec<u32>,
    out: Vec<u32>,
}

impl FloodTrees {
    /// From the graph alone, so that peers with equal tables agree.
    pub fn compute(graph: &Graph, me: PeerId) -> FloodTrees {
        let Some(me) = graph.index(&me) else { return FloodTrees::default() };
        let component: Vec<u32> =
            (0..).zip(graph.hops(me)).filter(|(_, hops)| hops.is_some()).map(|(index, _)| index).collect();
        let mut trees = FloodTrees { sets: vec![Vec::new()], of: vec![0; graph.len()], out: Vec::new() };
        let mut search = Search::new(graph);
        if component.len() <= OWN_TREES_MAX && component.len().saturating_mul(graph.edge_count()) <= OWN_TREES_WORK_MAX
        {
            for source in &component {
                search.run(*source);
                let children = search.children(*source, me);
                trees.assign(*source, me, children);
            }
        } else {
            let roots = shared_roots(graph, &component);
            let shared: Vec<Vec<u32>> = roots
                .iter()
                .map(|root| {
                    search.run(*root);
                    let mut around = search.children(*root, me);
                    around.extend(search.parent(*root, me));
                    around.sort_unstable();
                    around
                })
                .collect();
            for source in &component {
                let at = hash(graph, *source, u64::MAX) as usize % SHARED_TREES;
                if *source == me {
                    trees.out = shared.get(at).cloned().unwrap_or_default();
                }
                if let Some(of) = trees.of.get_mut(*source as usize) {
                    *of = at as u32 + 1;
                }
            }
            trees.sets.extend(shared);
        }
        trees
    }

    fn assign(&mut self, source: u32, me: u32, children: Vec<u32>) {
        if source == me {
            self.out = children;
        } else if !children.is_empty() {
            if let Some(of) = self.of.get_mut(source as usize) {
                *of = self.sets.len() as u32;
            }
            self.sets.push(children);
        }
    }

    /// Where floods of the source at this index go on to from here.
    pub fn on(&self, source: u32) -> &[u32] {
        let set = self.of.get(source as usize).and_then(|at| self.sets.get(*at as usize));
        set.map(Vec::as_slice).unwrap_or_default()
    }

    /// Where this peer's own floods go.
    pub fn out(&self) -> &[u32] {
        &self.out
    }
}

/// For each shared tree the peer with the lowest hash for its number: one that comes or goes moves few trees.
fn shared_roots(graph: &Graph, component: &[u32]) -> Vec<u32> {
    let relaying: Vec<u32> = component.iter().copied().filter(|index| graph.relays(*index)).collect();
    let candidates = if relaying.is_empty() { component } else { &relaying };
    let root = |tree: u64| candidates.iter().copied().min_by_key(|index| (hash(graph, *index, tree), *index));
    (0..SHARED_TREES as u64).filter_map(root).collect()
}

fn hash(graph: &Graph, index: u32, salt: u64) -> u64 {
    mix(mix(salt) ^ graph.id(index).unwrap_or_default().short().0)
}

/// One search over the graph after another, in the same memory.
struct Search<'a> {
    graph: &'a Graph,
    distance: Vec<u32>,
    buckets: Vec<Vec<u32>>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph) -> Search<'a> {
        Search { graph, distance: vec![FAR; graph.len()], buckets: vec![Vec::new(); WEIGHT_MAX as usize + 1] }
    }

    fn distance(&self, index: u32) -> u32 {
        self.distance.get(index as usize).copied().unwrap_or(FAR)
    }

    /// Distances from `root`.
    fn run(&mut self, root: u32) {
        self.distance.fill(FAR);
        self.reach(root, 0);
        let (mut now, mut waiting) = (0, 1_usize);
        let mut here = Vec::new();
        while waiting > 0 {
            if let Some(bucket) = self.buckets.get_mut(now as usize % (WEIGHT_MAX as usize + 1)) {
                std::mem::swap(bucket, &mut here);
            }
            waiting -= here.len();
            for index in here.drain(..) {
                if self.distance(index) != now || !(index == root || self.graph.relays(index)) {
                    continue;
                }
                for edge in self.graph.edges(index) {
                    let distance = now + weight(edge.cost);
                    if distance < self.distance(edge.to) {
                        self.reach(edge.to, distance);
                        waiting += 1;
                    }
                }
            }
            now += 1;
        }
    }

    fn reach(&mut self, index: u32, distance: u32) {
        if let Some(entry) = self.distance.get_mut(index as usize) {
            *entry = distance;
        }
        if let Some(bucket) = self.buckets.get_mut(distance as usize % (WEIGHT_MAX as usize + 1)) {
            bucket.push(index);
        }
    }

    /// The neighbour that `of` hangs on: the lowest among the nearest.
    fn parent(&self, root: u32, of: u32) -> Option<u32> {
        let distance = self.distance(of);
        if of == root || distance == FAR {
            return None;
        }
        let hangs = |to: u32, cost| {
            (to == root || self.graph.relays(to)) && self.distance(to).saturating_add(weight(cost)) == distance
        };
        self.graph.edges(of).iter().find(|edge| hangs(edge.to, edge.cost)).map(|edge| edge.to)
    }

    fn children(&self, root: u32, of: u32) -> Vec<u32> {
        if of != root && !self.graph.relays(of) {
            return Vec::new();
        }
        let ends = self.graph.edges(of).iter().map(|edge| edge.to);
        ends.filter(|to| self.parent(root, *to) == Some(of)).collect()
    }
}

/// Whole milliseconds and one for the hop.
fn weight(cost: u16) -> u32 {
    if cost >= COST_LAST_RESORT { WEIGHT_MAX } else { u32::from(cost / 100).min(WEIGHT_ORDINARY_MAX - 1) + 1 }
}

const FAR: u32 = u32::MAX;
/// Of a link of last resort: four of the longest others.
const WEIGHT_MAX: u32 = 255;
/// Above 64 ms all links are equally far: what matters is to cross few of them.
const WEIGHT_ORDINARY_MAX: u32 = 64;
/// Peers up to which each source has its own tree.
const OWN_TREES_MAX: usize = 256;
/// Peers times links up to which each source has its own tree: about 10 ms of work.
const OWN_TREES_WORK_MAX: usize = 2_000_000;
/// Trees that sources share above: enough to spread the load, few enough to compute in a fraction of a millisecond each (TRILL's way).
pub(crate) const SHARED_TREES: usize = 16;
