//! The topology as a tree: this peer at the root, direct peers under it, relayed ones under their last relay, unreachable ones at the end.

use std::collections::{BTreeMap, BTreeSet};

use meshnet_proto::PeerId;
use meshnet_proto::api::{Peer, Status};

use super::Names;
use super::text::{LINE, NAME, Paint, Style, age, counted, cut, rtt, width};

struct Tree<'a> {
    status: &'a Status,
    names: &'a Names,
    children: BTreeMap<PeerId, Vec<&'a Peer>>,
    round_trips: BTreeMap<PeerId, f64>,
    drawn: BTreeSet<PeerId>,
    rows: Vec<Row>,
}

struct Row {
    /// Branches, then name.
    left: String,
    id: String,
    right: String,
    paint: Paint,
}

/// At most `limit` peers; a last line tells how many are left out.
pub fn render(style: Style, status: &Status, names: &Names, limit: usize) -> String {
    let mut tree = Tree::new(status, names);
    let root = Row {
        left: cut(&names.show(status.peer.id), NAME),
        id: status.peer.id.brief(),
        right: "this peer".into(),
        paint: Paint::Bold,
    };
    tree.rows.push(root);
    tree.branch(status.peer.id, "");
    tree.unreachable();
    tree.text(style, limit)
}

impl<'a> Tree<'a> {
    fn new(status: &'a Status, names: &'a Names) -> Tree<'a> {
        let me = status.peer.id;
        let reachable: BTreeSet<PeerId> =
            status.peers.iter().filter(|peer| peer.reachable).map(|peer| peer.id).collect();
        let last_relay: BTreeMap<PeerId, PeerId> =
            status.routes.iter().filter_map(|route| Some((route.peer, *route.relays.last()?))).collect();
        let mut round_trips: BTreeMap<PeerId, f64> =
            status.links.iter().filter_map(|link| Some((link.peer?, link.rtt_ms))).collect();
        round_trips
            .extend(status.routes.iter().filter(|route| route.rtt_ms > 0.0).map(|route| (route.peer, route.rtt_ms)));
        let mut parents: BTreeMap<PeerId, PeerId> = BTreeMap::new();
        let others = || status.peers.iter().filter(|peer| peer.id != me && peer.reachable);
        for peer in others() {
            let above = peer.via.map(|via| last_relay.get(&peer.id).copied().unwrap_or(via));
            let above = above.filter(|above| *above != peer.id && reachable.contains(above)).unwrap_or(me);
            parents.insert(peer.id, above);
        }
        let mut children: BTreeMap<PeerId, Vec<&Peer>> = BTreeMap::new();
        for peer in others() {
            // Two relays of one another, as a snapshot in a change may show them, hang from the root.
            let above = if leads_to(&parents, peer.id, me) { parents.get(&peer.id).copied().unwrap_or(me) } else { me };
            children.entry(above).or_default().push(peer);
        }
        for list in children.values_mut() {
            list.sort_by_key(|peer| (names.show(peer.id), peer.id));
        }
        Tree { status, names, children, round_trips, drawn: BTreeSet::from([me]), rows: Vec::new() }
    }

    fn branch(&mut self, above: PeerId, prefix: &str) {
        let list = self.children.remove(&above).unwrap_or_default();
        let last = list.len().saturating_sub(1);
        for (at, peer) in list.into_iter().enumerate() {
            if !self.drawn.insert(peer.id) {
                continue;
            }
            let (fork, further) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let time = self.round_trips.get(&peer.id).copied().map_or("-".into(), rtt);
            let way = match peer.via {
                None => "direct".to_owned(),
                Some(via) => {
                    format!("{}, via {}", counted(peer.hops as usize, "hop"), cut(&self.names.show(via), NAME))
                }
            };
            self.rows.push(Row {
                left: format!("{prefix}{fork}{}", cut(&self.names.show(peer.id), NAME)),
                id: peer.id.brief(),
                right: format!("{time:>8}  {way}"),
                paint: if peer.via.is_some() { Paint::Yellow } else { Paint::Plain },
            });
            // A line of many relays would leave the screen: past this depth it goes straight down.
            let deeper = if width(prefix) < INDENT_MAX { format!("{prefix}{further}") } else { prefix.to_owned() };
            self.branch(peer.id, &deeper);
        }
    }

    fn unreachable(&mut self) {
        let mut list: Vec<&Peer> = self.status.peers.iter().filter(|peer| !self.drawn.contains(&peer.id)).collect();
        list.sort_by_key(|peer| (self.names.show(peer.id), peer.id));
        for peer in list {
            self.rows.push(Row {
                left: format!("✗  {}", cut(&self.names.show(peer.id), NAME)),
                id: peer.id.brief(),
                right: format!("unreachable, last change {} ago", age(peer.changed_s)),
                paint: Paint::Red,
            });
        }
    }

    fn text(&self, style: Style, limit: usize) -> String {
        let wide = self.rows.iter().take(limit).map(|row| width(&row.left)).max().unwrap_or(0);
        let mut text = String::new();
        for row in self.rows.iter().take(limit) {
            let blank = " ".repeat(wide - width(&row.left));
            let right = cut(&row.right, LINE.saturating_sub(wide + 14));
            let (left, id) = (style.paint(row.paint, &row.left), style.paint(Paint::Dim, &row.id));
            text.push_str(&format!("  {left}{blank}  {id}  {}\n", style.paint(row.paint, &right)));
        }
        if let Some(more) = self.rows.len().checked_sub(limit).filter(|more| *more > 0) {
            text.push_str(&format!("  … and {} more: meshctl topology\n", more));
        }
        text
    }
}

/// Whether the way up ends at the root, and does not go round.
fn leads_to(parents: &BTreeMap<PeerId, PeerId>, from: PeerId, root: PeerId) -> bool {
    let mut at = from;
    for _ in 0..=parents.len() {
        match parents.get(&at) {
            _ if at == root => return true,
            Some(&above) => at = above,
            None => return false,
        }
    }
    false
}

/// Cells of branches before a name.
const INDENT_MAX: usize = 30;
