use super::*;
use crate::topology::graph::Edge;
use meshnet_proto::wire::record::COST_LAST_RESORT;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn id(index: u32) -> PeerId {
    // Spread over the ring, in the order of the index.
    PeerId((u128::from(index) << 100 | u128::from(index) << 70).to_be_bytes())
}

fn graph(peers: &[bool], links: &[(u32, u32, u16)]) -> Graph {
    let peers: Vec<_> = (0..).zip(peers).map(|(index, relay)| (id(index), *relay)).collect();
    Graph::from_links(&peers, links)
}

fn live(graph: &Graph, me: u32) -> BTreeMap<PeerId, u16> {
    graph.edges(me).iter().map(|edge| (id(edge.to), edge.cost)).collect()
}

fn routes(graph: &Graph, me: u32) -> Routes {
    compute(&RouteInput { me: id(me), graph, direct: &live(graph, me) }, &FloodTrees::compute(graph, id(me)))
}

/// Every simple way of at most four hops, by trying all.
fn every_way(graph: &Graph, direct: &BTreeMap<PeerId, u16>, me: u32) -> BTreeMap<u32, Vec<(u32, Vec<u32>)>> {
    fn go(graph: &Graph, me: u32, way: &mut Vec<u32>, cost: u32, all: &mut BTreeMap<u32, Vec<(u32, Vec<u32>)>>) {
        let last = *way.last().unwrap();
        all.entry(last).or_default().push((cost, way.clone()));
        if way.len() == 4 || !graph.relays(last) {
            return;
        }
        for Edge { to, cost: link } in graph.edges(last) {
            if *to != me && !way.contains(to) {
                way.push(*to);
                go(graph, me, way, cost + u32::from(*link) + u32::from(*link) / 10 + 50, all);
                way.pop();
            }
        }
    }
    let mut all = BTreeMap::new();
    for (peer, cost) in direct {
        let first = graph.index(peer).unwrap();
        go(graph, me, &mut vec![first], u32::from(*cost), &mut all);
    }
    all
}

fn any_graph(most: usize) -> impl Strategy<Value = Graph> {
    (2..most).prop_flat_map(|n| {
        let end = 0..n as u32;
        let cost = prop_oneof![1..50_u16, 1..20_000_u16, Just(COST_LAST_RESORT)];
        let links = prop::collection::vec((end.clone(), end, cost), 0..n * 3);
        (prop::collection::vec(prop::bool::weighted(0.8), n), links).prop_map(|(peers, mut links)| {
            links.iter_mut().for_each(|(a, b, _)| (*a, *b) = (*a.min(b), *a.max(b)));
            links.sort_unstable();
            links.dedup_by_key(|(a, b, _)| (*a, *b));
            graph(&peers, &links)
        })
    })
}

/// How often each peer gets a frame that `source` floods, when all compute their trees alone and forward as the frame path does.
fn flood(all: &[FloodTrees], source: u32) -> BTreeMap<u32, u32> {
    let mut got = BTreeMap::new();
    let mut travelling: Vec<(u32, u32)> = all[source as usize].out().iter().map(|to| (source, *to)).collect();
    while let Some((from, at)) = travelling.pop() {
        *got.entry(at).or_default() += 1;
        assert!(got[&at] < 5, "a loop");
        travelling.extend(all[at as usize].on(source).iter().filter(|to| **to != from).map(|to| (at, *to)));
    }
    got
}

/// Peers that relays alone lead to, from `source`.
fn covered(graph: &Graph, source: u32) -> BTreeSet<u32> {
    let mut reached = BTreeSet::from([source]);
    let mut open = vec![source];
    while let Some(at) = open.pop() {
        if at == source || graph.relays(at) {
            open.extend(graph.edges(at).iter().map(|edge| edge.to).filter(|to| reached.insert(*to)));
        }
    }
    reached.remove(&source);
    reached
}

proptest! {
    #[test]
    fn ways_are_the_cheapest_and_free_of_loops(graph in any_graph(9)) {
        let direct = live(&graph, 0);
        let every = every_way(&graph, &direct, 0);
        let routes = routes(&graph, 0);
        for route in routes.peers.iter().filter(|route| route.id != id(0)) {
            let index = graph.index(&route.id).unwrap();
            let ways = every.get(&index).map(Vec::as_slice).unwrap_or_default();
            let cheapest = ways.iter().map(|(cost, _)| *cost).min();
            prop_assert_eq!(route.best.is_some(), cheapest.is_some());
            let (Some(best), Some(cheapest)) = (route.best, cheapest) else { continue };
            let indices = |way: &Way| way.hops().iter().map(|hop| graph.index(hop).unwrap()).collect::<Vec<_>>();
            prop_assert!(ways.contains(&(best.cost, indices(&best))), "a way that is none: {:?}", best);
            match direct.get(&route.id) {
                Some(cost) if best.is_direct() => {
                    let cost = u32::from(*cost);
                    prop_assert!(cost - cheapest <= 300 || (cost - cheapest) * 5 <= cost);
                }
                _ => prop_assert_eq!(best.cost, cheapest),
            }
            let others: Vec<_> = ways.iter().filter(|(_, way)| way.len() > 1).collect();
            prop_assert_eq!(route.alternate.is_some(), direct.contains_key(&route.id) && !others.is_empty());
            if let Some(way) = route.alternate {
                prop_assert!(others.contains(&&(way.cost, indices(&way))), "{:?}", way);
            }
        }
    }

    #[test]
    fn a_flood_reaches_everyone_once(graph in any_graph(30)) {
        let all: Vec<_> = graph.ids.iter().map(|id| FloodTrees::compute(&graph, *id)).collect();
        for source in 0..graph.len() as u32 {
            let got = flood(&all, source);
            prop_assert!(got.values().all(|copies| *copies == 1), "{:?}", got);
            prop_assert_eq!(got.into_keys().collect::<BTreeSet<_>>(), covered(&graph, source));
        }
    }
}

/// A ring for connection and random links, costs from a LAN's to a continent's.
fn random(peers: u32, degree: u32, seed: u64) -> Graph {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut links: Vec<_> = (0..peers).map(|a| (a, (a + 1) % peers, rng.random_range(10..10_000))).collect();
    for _ in 0..peers * (degree - 2) / 2 {
        links.push((rng.random_range(0..peers), rng.random_range(0..peers), rng.random_range(10..10_000)));
    }
    links.iter_mut().for_each(|(a, b, _)| (*a, *b) = (*a.min(b), *a.max(b)));
    links.sort_unstable();
    links.dedup_by_key(|(a, b, _)| (*a, *b));
    graph(&vec![true; peers as usize], &links)
}

#[test]
fn shared_trees_reach_everyone_once() {
    let graph = random(400, 8, 3);
    let all: Vec<_> = graph.ids.iter().map(|id| FloodTrees::compute(&graph, *id)).collect();
    for source in 0..400 {
        let got = flood(&all, source);
        assert!(got.len() == 399 && got.values().all(|copies| *copies == 1), "source {source}: {} reached", got.len());
    }
    let used: BTreeSet<_> = all.iter().map(|trees| trees.out().to_vec()).collect();
    assert!(used.len() > flood::SHARED_TREES, "the load is spread");
}

#[test]
fn shared_trees_stay_within_a_partition() {
    let half = random(300, 6, 4);
    let mut links: Vec<(u32, u32, u16)> = Vec::new();
    for from in 0..300 {
        links.extend(half.edges(from).iter().filter(|edge| edge.to > from).map(|edge| (from, edge.to, edge.cost)));
    }
    links.extend(links.clone().into_iter().map(|(a, b, cost)| (a + 300, b + 300, cost)));
    let graph = graph(&[true; 600], &links);
    let all: Vec<_> = graph.ids.iter().map(|id| FloodTrees::compute(&graph, *id)).collect();
    for source in [0, 299, 300, 599] {
        assert_eq!(flood(&all, source).len(), 299);
    }
}

/// `a-b 10` is a link, `(c)` a peer that does not relay; the answer has one line for each peer.
fn scenario(text: &str) -> String {
    let mut names = BTreeSet::new();
    let parsed: Vec<_> = text
        .split(',')
        .map(|link| {
            let (ends, cost) = link.trim().split_once(' ').unwrap();
            let (a, b) = ends.split_once('-').unwrap();
            names.extend([a, b].map(|name| (name.trim_matches(['(', ')']), !name.contains('('))));
            (a.trim_matches(['(', ')']), b.trim_matches(['(', ')']), cost.parse().unwrap())
        })
        .collect();
    let names: BTreeMap<&str, bool> = names.into_iter().collect();
    let order: Vec<_> = names.keys().copied().collect();
    let at = |name| order.iter().position(|other| *other == name).unwrap() as u32;
    let links: Vec<_> = parsed.into_iter().map(|(a, b, cost)| (at(a), at(b), cost)).collect();
    let graph = graph(&names.values().copied().collect::<Vec<_>>(), &links);
    let name = |id: &PeerId| order[graph.index(id).unwrap() as usize];
    let list = |ids: &[PeerId]| ids.iter().map(name).collect::<String>();
    let routes = routes(&graph, 0);
    let way = |way: Option<Way>| way.map_or("-".into(), |way| list(way.hops()));
    let line = |r: &PeerRoute| {
        let hops = r.hops.map_or("-".into(), |hops| hops.to_string());
        format!("{} {hops} {} else {} flood {};", name(&r.id), way(r.best), way(r.alternate), list(&r.flood_on))
    };
    let lines: Vec<_> = routes.peers.iter().skip(1).map(line).collect();
    format!("out {}; {}", list(&routes.flood_out), lines.join(" "))
}

#[test]
fn small_topologies() {
    for (topology, expected) in [
        ("a-b 10", "out b; b 1 b else - flood ;"),
        ("a-b 10, b-c 10", "out b; b 1 b else - flood ; c 2 bc else - flood ;"),
        ("a-b 10, a-c 10", "out bc; b 1 b else - flood c; c 1 c else - flood b;"),
        ("a-b 10, b-c 10, a-c 10", "out bc; b 1 b else cb flood ; c 1 c else bc flood ;"),
        // The relay is better by far.
        ("a-b 10, b-c 10, a-c 2000", "out b; b 1 b else cb flood ; c 1 bc else bc flood ;"),
        // Better, but by less than 3 ms.
        ("a-b 10, b-c 10, a-c 300", "out b; b 1 b else cb flood ; c 1 c else bc flood ;"),
        // The last resort is used when nothing else is left.
        ("a-b 65534, b-c 10", "out b; b 1 b else - flood ; c 2 bc else - flood ;"),
        ("a-b 65534, b-c 10, a-c 10", "out c; b 1 cb else cb flood ; c 1 c else bc flood ;"),
        // One that does not relay is passed by.
        ("a-(b) 10, (b)-c 10", "out b; b 1 b else - flood ; c 2 - else - flood ;"),
        (
            "a-(b) 10, (b)-c 10, c-d 10, d-a 10",
            "out bd; b 1 b else dcb flood d; c 2 dc else - flood ; d 1 d else - flood b;",
        ),
        // Four relays are too many.
        (
            "a-b 1, b-c 1, c-d 1, d-e 1, e-f 1",
            "out b; b 1 b else - flood ; c 2 bc else - flood ; d 3 bcd else - flood ; e 4 bcde else - flood ; f 5 - else - flood ;",
        ),
    ] {
        assert_eq!(scenario(topology), expected, "{topology}");
    }
}

#[test]
fn a_dead_direct_link_is_not_used_whatever_the_graph_says() {
    let graph = graph(&[true; 3], &[(0, 1, 10), (1, 2, 10), (0, 2, 10)]);
    let direct = BTreeMap::from([(id(1), 10)]);
    let routes =
        compute(&RouteInput { me: id(0), graph: &graph, direct: &direct }, &FloodTrees::compute(&graph, id(0)));
    assert_eq!(routes.get(&id(2)).unwrap().best.unwrap().hops(), [id(1), id(2)]);
    assert_eq!(routes.get(&id(1)).unwrap().alternate, None);
}

#[test]
fn a_link_serves_before_any_record_is_here() {
    let direct = BTreeMap::from([(id(7), 10)]);
    let routes = compute(&RouteInput { me: id(0), graph: &Graph::default(), direct: &direct }, &FloodTrees::default());
    assert_eq!(routes.flood_out, [id(7)]);
    let route = routes.get(&id(7)).unwrap();
    assert_eq!((route.hops, route.best.unwrap().is_direct()), (Some(1), true));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "wall time is what is measured")]
fn a_thousand_peers_are_computed_quickly() {
    let graph = random(1000, 8, 1);
    let direct = live(&graph, 0);
    let started = Instant::now();
    for _ in 0..10 {
        let routes =
            compute(&RouteInput { me: id(0), graph: &graph, direct: &direct }, &FloodTrees::compute(&graph, id(0)));
        assert!(routes.peers.iter().all(|route| route.hops.is_some()));
    }
    let each = started.elapsed() / 10;
    println!("1,000 peers of degree 8: {each:?}");
    assert!(each < Duration::from_millis(50), "{each:?}");
}

#[test]
fn everyone_is_a_neighbour_in_a_small_mesh() {
    let roster: BTreeSet<_> = (1..32).map(id).collect();
    assert_eq!(select_neighbours(id(0), &roster, &BTreeMap::new(), &BTreeSet::new()), roster);
    let more: BTreeSet<_> = (1..33).map(id).collect();
    assert_eq!(select_neighbours(id(0), &more, &BTreeMap::new(), &BTreeSet::new()).len(), 8);
    assert_eq!(
        select_neighbours(id(0), &more, &BTreeMap::new(), &roster),
        more,
        "one more does not tear down a full mesh"
    );
    let many: BTreeSet<_> = (1..60).map(id).collect();
    assert_eq!(select_neighbours(id(0), &many, &BTreeMap::new(), &roster).len(), 8);
    for few in 0..3 {
        let roster: BTreeSet<_> = (1..=few).map(id).collect();
        assert_eq!(select_neighbours(id(0), &roster, &BTreeMap::new(), &BTreeSet::new()), roster);
    }
}

#[test]
fn neighbours_of_a_large_mesh_connect_it_and_settle() {
    let peers = 500;
    let rtt = |a: u32, b: u32| Duration::from_micros(u64::from((a % 10).abs_diff(b % 10)) * 10_000 + 300);
    let choose = |me: u32, current: &BTreeSet<PeerId>, shift: f64| {
        let roster: BTreeSet<_> = (0..peers).filter(|peer| *peer != me).map(id).collect();
        let rtts =
            (0..peers).map(|peer| (id(peer), rtt(me, peer).mul_f64(if peer % 3 == 0 { shift } else { 1.0 }))).collect();
        select_neighbours(id(me), &roster, &rtts, current)
    };
    let mut links = Vec::new();
    for me in 0..peers {
        let chosen = choose(me, &BTreeSet::new(), 1.0);
        assert!(chosen.len() == 8 && !chosen.contains(&id(me)));
        assert!(chosen.contains(&id((me + 1) % peers)) && chosen.contains(&id((me + peers - 1) % peers)));
        assert_eq!(choose(me, &chosen, 1.0), chosen, "a choice stays");
        assert_eq!(choose(me, &chosen, 0.8), chosen, "and is not given up for little");
        links.extend(
            chosen
                .iter()
                .map(|peer| (0..peers).find(|other| id(*other) == *peer).unwrap())
                .map(|to| (me.min(to), me.max(to), 1)),
        );
    }
    links.sort_unstable();
    links.dedup();
    let degree = links.len() as f64 * 2.0 / f64::from(peers);
    assert!((8.0..13.0).contains(&degree), "{degree}");
    let graph = graph(&vec![true; peers as usize], &links);
    let farthest = graph.hops(0).into_iter().map(|hops| hops.expect("connected")).max().unwrap();
    assert!(farthest <= 6, "{farthest}");
}

#[test]
fn computing_is_paced() {
    let mut pace = Pace::default();
    let at = |ms: u64| crate::time::Time::from_us(ms * 1000);
    assert!(!pace.due(at(1000), 500), "nothing changed");
    let mut ran = Vec::new();
    for ms in 1000..5000 {
        pace.changed();
        if pace.due(at(ms), 500) {
            ran.push(ms);
        }
    }
    assert_eq!(ran, [1000, 1050, 1150, 1350, 1750, 2550, 3550, 4550]);
    pace.changed();
    assert_eq!(pace.next_deadline(), at(5550));
    assert!(pace.due(at(20_000), 500));
    pace.changed();
    assert!(pace.due(at(20_050), 500), "quiet again: the shortest interval");
}
