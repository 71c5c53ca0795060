//! The machines of the cluster as the API shows them, whom to connect to, and which peers are gone for good. Pure: time comes in.
//!
//! ```text
//! watch ─▶ Nodes ─┬─▶ targets: other nodes' addresses
//!                 └─▶ gone:    peers seen on a Node that is deleted, or is another peer's now
//! ```
//! **Who is gone.** A peer counts as gone only on evidence: its id *was seen* as the mark of a Node (`known`, kept on disk), now stands on no Node, and
//! * its Node object has been absent for the time of `--kubernetes-node-gone`, or
//! * its Node bears the mark of another peer that is *alone*: that peer's state directory was made anew (two never share one: it is locked), and no interface
//!   of a container was on the machine's bridge then. So nothing on that machine uses an address of the earlier peer any more. A machine that lost its
//!   state while its containers run on is not alone before they are gone or it was booted.
//!
//! A peer that was never seen on a Node (a machine outside of the cluster) is never gone by this; nor is anybody while the API is away, for then nothing
//! new is seen. What follows from being gone is a removal by the rules of `core/ipam/reclaim`: refused while the peer is heard, and agreed to by all members
//! that are left. So two peers may act at once, or one may err about who should, and nothing breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use meshnet_proto::ShortId;

use super::objects::Node;

/// All that is known of the machines. Times are since the start of the process.
#[derive(Debug, Clone, Default)]
pub struct Nodes {
    here: BTreeMap<String, Node>,
    /// On which Node a peer was seen last.
    known: BTreeMap<ShortId, String>,
    /// Nodes of known peers that are not there, and since when.
    missing: BTreeMap<String, Duration>,
    /// A whole list was seen.
    listed: bool,
}

/// A member of the address space as the rest of meshd knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: ShortId,
    /// For people.
    pub name: String,
    /// For how long nothing was heard of it.
    pub silent: Duration,
    /// It may own addresses; else it only asked to.
    pub admitted: bool,
}

/// What became of a peer that was seen on a Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It may be running, or come back.
    Here,
    /// Its Node is gone for long enough.
    Deleted,
    /// Another peer has taken its place, and nothing on the machine uses its addresses.
    Replaced,
}

impl Nodes {
    /// With what was kept of an earlier run: nodes with their addresses, and who was seen where.
    pub fn restore(here: Vec<Node>, known: BTreeMap<ShortId, String>) -> Nodes {
        let here = here.into_iter().map(|node| (node.name.clone(), node)).collect();
        Nodes { here, known, missing: BTreeMap::new(), listed: false }
    }

    /// A whole list. Those that are not in it are gone.
    pub fn replace(&mut self, now: Duration, all: Vec<Node>) {
        self.here.clear();
        for node in all {
            self.put(node);
        }
        self.listed = true;
        self.note_missing(now);
    }

    /// One is there, or changed.
    pub fn there(&mut self, now: Duration, node: Node) {
        self.put(node);
        self.note_missing(now);
    }

    /// One is deleted.
    pub fn gone(&mut self, now: Duration, name: &str) {
        self.here.remove(name);
        self.note_missing(now);
    }

    fn put(&mut self, node: Node) {
        if self.here.len() >= NODES_MAX && !self.here.contains_key(&node.name) {
            return;
        }
        if let Some(peer) = node.mark.short()
            && (self.known.len() < KNOWN_MAX || self.known.contains_key(&peer))
        {
            self.known.insert(peer, node.name.clone());
        }
        self.here.insert(node.name.clone(), node);
    }

    fn note_missing(&mut self, now: Duration) {
        let (here, known) = (&self.here, &self.known);
        self.missing.retain(|name, _| !here.contains_key(name));
        for name in known.values().filter(|name| !here.contains_key(*name)) {
            self.missing.entry(name.clone()).or_insert(now);
        }
    }

    /// Forgets who is no member any more and stands on no Node.
    pub fn forget(&mut self, is_member: impl Fn(ShortId) -> bool) {
        let marked: BTreeSet<ShortId> = self.here.values().filter_map(|node| node.mark.short()).collect();
        self.known.retain(|id, _| marked.contains(id) || is_member(*id));
    }

    /// All nodes.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.here.values()
    }

    /// One of them.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.here.get(name)
    }

    /// A whole list was seen in this run.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// More nodes than are handled.
    pub fn is_full(&self) -> bool {
        self.here.len() >= NODES_MAX
    }

    /// Who was seen where.
    pub fn known(&self) -> &BTreeMap<ShortId, String> {
        &self.known
    }

    /// Addresses to connect to: those of all other nodes; in a large cluster of some, the same for all and some of one's own, so that all hang together.
    pub fn targets(&self, me: &str, port: u16) -> Vec<String> {
        let mut others: Vec<&Node> = self.here.values().filter(|node| node.name != me).collect();
        if others.len() > TARGETS_MAX {
            let rank = |salt: &str, name: &str| digest(&SHA256, format!("{salt} {name}").as_bytes()).as_ref().to_vec();
            others.sort_by_cached_key(|node| rank("", &node.name));
            let own = others.split_off(TARGETS_MAX / 2);
            let mut own: Vec<&Node> = own;
            own.sort_by_cached_key(|node| rank(me, &node.name));
            others.extend(own.into_iter().take(TARGETS_MAX / 2));
        }
        let address = |node: &&Node| node.addresses.iter().map(|ip| SocketAddr::new(*ip, port).to_string()).collect();
        others.iter().flat_map(|node| -> Vec<String> { address(node) }).collect()
    }

    /// What became of a peer that `on` this Node, if it is not known from elsewhere.
    pub fn fate(&self, now: Duration, after: Duration, peer: ShortId, on: Option<&str>) -> Fate {
        let marked = |node: &Node| node.mark.short() == Some(peer);
        let Some(name) = self.known.get(&peer).map(String::as_str).or(on) else { return Fate::Here };
        if !self.listed || self.is_full() || self.here.values().any(marked) {
            return Fate::Here;
        }
        match self.here.get(name) {
            Some(node) if node.mark.peer.is_some() && node.mark.alone => Fate::Replaced,
            Some(_) => Fate::Here,
            None => match self.missing.get(name) {
                Some(since) if now.saturating_sub(*since) >= after => Fate::Deleted,
                _ => Fate::Here,
            },
        }
    }

    /// Watches a Node that is not there, on which a peer was that nobody here has seen.
    pub fn look_for(&mut self, now: Duration, name: &str) {
        if !self.here.contains_key(name) && self.missing.len() < KNOWN_MAX {
            self.missing.entry(name.to_owned()).or_insert(now);
        }
    }

    /// Members that are gone for good: one set, so that they do not wait for each other.
    pub fn dead(&self, now: Duration, after: Duration, me: ShortId, members: &[Member]) -> Vec<Dead> {
        let silent = members.iter().filter(|member| member.id != me && member.silent >= SILENT);
        let dead = silent.filter_map(|member| {
            let fate = self.fate(now, after, member.id, None);
            let node = self.known.get(&member.id)?;
            let heir = self.here.get(node).and_then(|node| node.mark.short());
            (fate != Fate::Here).then(|| Dead { id: member.id, node: node.clone(), heir })
        });
        dead.collect()
    }

    /// How many of the peers that are there act before `me`: the one that took the place of a dead one first, then by order of id.
    pub fn rank(&self, me: ShortId, members: &[Member], dead: &[Dead]) -> usize {
        let heirs: BTreeSet<ShortId> = dead.iter().filter_map(|dead| dead.heir).collect();
        let heard = |id: &ShortId| *id == me || members.iter().any(|m| m.id == *id && m.admitted && m.silent.is_zero());
        let there = self.here.values().filter_map(|node| node.mark.short()).filter(heard);
        let order: BTreeSet<(bool, ShortId)> = there.map(|id| (!heirs.contains(&id), id)).collect();
        order.iter().position(|(_, id)| *id == me).unwrap_or(order.len())
    }
}

/// A member that is gone for good.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dead {
    /// Who.
    pub id: ShortId,
    /// Where it was.
    pub node: String,
    /// Who is there now.
    pub heir: Option<ShortId>,
}

/// What Kubernetes itself supports, twice over. Beyond it nobody counts as gone.
const NODES_MAX: usize = 10_000;
/// Peers remembered, those included that are gone.
const KNOWN_MAX: usize = 20_000;
/// Nodes to connect to. Up to these everybody connects to everybody, as meshd does anyhow; beyond them discovery does the rest.
const TARGETS_MAX: usize = 32;
/// As for a removal by hand: longer than a restart takes.
pub const SILENT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::super::objects::Mark;
    use super::*;
    use meshnet_proto::PeerId;

    const AFTER: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn id(number: u8) -> ShortId {
        PeerId([number; 16]).short()
    }

    fn node(name: &str, peer: Option<u8>, alone: bool) -> Node {
        let mark = Mark { peer: peer.map(|number| PeerId([number; 16])), alone, space: None };
        Node { name: name.into(), addresses: vec!["10.0.0.1".parse().unwrap()], mark, network: None }
    }

    fn member(number: u8, silent: u64) -> Member {
        Member { id: id(number), name: format!("p{number}"), silent: at(silent), admitted: true }
    }

    fn three() -> Nodes {
        let mut nodes = Nodes::default();
        nodes.replace(at(0), vec![node("a", Some(1), true), node("b", Some(2), true), node("c", Some(3), true)]);
        nodes
    }

    fn ids(dead: &[Dead]) -> Vec<ShortId> {
        dead.iter().map(|dead| dead.id).collect()
    }

    #[test]
    fn a_node_that_is_gone_long_enough_is_dead_and_not_before() {
        let mut nodes = three();
        let members = [member(1, 0), member(2, 400), member(3, 0)];
        nodes.gone(at(100), "b");
        assert!(nodes.dead(at(399), AFTER, id(1), &members).is_empty());
        assert_eq!(ids(&nodes.dead(at(400), AFTER, id(1), &members)), [id(2)]);
        let heard = [member(1, 0), member(2, 59), member(3, 0)];
        assert!(nodes.dead(at(400), AFTER, id(1), &heard).is_empty(), "it was heard");
        nodes.there(at(401), node("b", None, false));
        assert!(nodes.dead(at(900), AFTER, id(1), &members).is_empty(), "it is back");
        nodes.gone(at(901), "b");
        assert!(nodes.dead(at(1200), AFTER, id(1), &members).is_empty(), "counted anew");
        assert_eq!(ids(&nodes.dead(at(1201), AFTER, id(1), &members)), [id(2)]);
    }

    #[test]
    fn many_are_one_set_and_order_is_by_id() {
        let mut nodes = three();
        nodes.replace(at(10), vec![node("a", Some(1), true)]);
        let members = [member(1, 0), member(2, 400), member(3, 400)];
        let dead = nodes.dead(at(310), AFTER, id(1), &members);
        assert_eq!(ids(&dead), [id(2), id(3)]);
        assert_eq!(nodes.rank(id(1), &members, &dead), 0);
    }

    #[test]
    fn a_node_that_is_another_peers_now() {
        let mut nodes = three();
        let members = [member(1, 0), member(2, 100), member(3, 0), member(4, 0)];
        nodes.there(at(50), node("b", Some(4), false));
        assert!(nodes.dead(at(900), AFTER, id(1), &members).is_empty(), "its containers may run on");
        nodes.there(at(60), node("b", Some(4), true));
        let dead = nodes.dead(at(61), AFTER, id(1), &members);
        assert_eq!(dead, [Dead { id: id(2), node: "b".into(), heir: Some(id(4)) }]);
        assert_eq!(nodes.rank(id(4), &members, &dead), 0, "who took its place acts first");
        assert_eq!((nodes.rank(id(1), &members, &dead), nodes.rank(id(3), &members, &dead)), (1, 2));
        nodes.there(at(62), node("d", Some(2), true));
        assert!(nodes.dead(at(900), AFTER, id(1), &members).is_empty(), "it only has another name");
    }

    #[test]
    fn who_was_never_on_a_node_is_never_dead() {
        let nodes = three();
        assert!(nodes.dead(at(9000), AFTER, id(1), &[member(9, 9000)]).is_empty());
    }

    #[test]
    fn nothing_is_dead_before_a_list_was_seen() {
        let known = [(id(2), "b".to_owned())].into_iter().collect();
        let mut nodes = Nodes::restore(vec![node("a", Some(1), true)], known);
        let members = [member(2, 9000)];
        assert!(nodes.dead(at(9000), AFTER, id(1), &members).is_empty());
        nodes.replace(at(9000), vec![node("a", Some(1), true)]);
        assert!(nodes.dead(at(9299), AFTER, id(1), &members).is_empty());
        assert_eq!(ids(&nodes.dead(at(9300), AFTER, id(1), &members)), [id(2)]);
        nodes.forget(|_| false);
        assert!(nodes.dead(at(9300), AFTER, id(1), &members).is_empty() && nodes.known().len() == 1);
    }

    #[test]
    fn a_broken_watch_does_not_count_anew() {
        let mut nodes = three();
        nodes.gone(at(0), "b");
        nodes.replace(at(200), vec![node("a", Some(1), true), node("c", Some(3), true)]);
        assert_eq!(ids(&nodes.dead(at(300), AFTER, id(1), &[member(2, 300)])), [id(2)]);
    }

    #[test]
    fn targets_are_all_others_or_some_that_hang_together() {
        assert_eq!(three().targets("b", 6783), ["10.0.0.1:6783", "10.0.0.1:6783"]);
        let mut nodes = Nodes::default();
        let numbered = |number: u32| Node {
            name: format!("n{number}"),
            addresses: vec![std::net::Ipv4Addr::from(0x0a00_0000 + number).into()],
            ..Node::default()
        };
        nodes.replace(at(0), (1..=1000).map(numbered).collect());
        let one: BTreeSet<String> = nodes.targets("n1", 6783).into_iter().collect();
        let other: BTreeSet<String> = nodes.targets("n2", 6783).into_iter().collect();
        assert_eq!((one.len(), other.len()), (TARGETS_MAX, TARGETS_MAX));
        let common = one.intersection(&other).count();
        assert!((TARGETS_MAX / 2 - 1..TARGETS_MAX).contains(&common), "{common}");
        assert_eq!(one, nodes.targets("n1", 6783).into_iter().collect(), "always the same");
    }

    #[test]
    fn bounds() {
        let mut nodes = Nodes::default();
        nodes.replace(at(0), (0..NODES_MAX + 5).map(|at| node(&format!("n{at}"), None, false)).collect());
        assert!(nodes.iter().count() == NODES_MAX && nodes.is_full());
        assert_eq!(nodes.fate(at(9000), AFTER, id(1), Some("nowhere")), Fate::Here, "who is there cannot be told");
    }
}
