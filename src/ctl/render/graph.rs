//! The topology for graphviz, and as a picture.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fmt::Write;

use meshnet_proto::PeerId;
use meshnet_proto::api::{Topology, TopologyPeer};

use super::Names;
use super::text::{cut, rtt};

/// An undirected graph in the language of graphviz.
pub fn dot(topology: &Topology, me: PeerId) -> String {
    let names = Names::of_topology(topology);
    let mut text = String::from(
        "graph mesh {\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n",
    );
    for peer in in_order(topology, &names) {
        let own = if peer.id == me { ", penwidth=2" } else { "" };
        let name = quoted(&names.show(peer.id));
        let _ = writeln!(text, "  \"{}\" [label=\"{name}\\n{}\"{own}];", peer.id, peer.id.brief());
    }
    for link in &topology.links {
        let label = quoted(&format!("{} {}", rtt(link.rtt_ms), super::text::clean(&link.transport)));
        let _ = writeln!(text, "  \"{}\" -- \"{}\" [label=\"{label}\"];", link.a, link.b);
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn in_order<'a>(topology: &'a Topology, names: &Names) -> Vec<&'a TopologyPeer> {
    let mut peers: Vec<&TopologyPeer> = topology.peers.iter().collect();
    peers.sort_by_cached_key(|peer| (names.show(peer.id), peer.id));
    peers
}

/// All peers on a circle in order of name, links as chords. The same topology gives the same picture.
pub fn svg(topology: &Topology, me: PeerId) -> String {
    let names = Names::of_topology(topology);
    let peers = in_order(topology, &names);
    // Labels beside one another fit few peers; those of many stand out like rays, so that none covers another.
    let rays = peers.len() > RAYS_FROM;
    let (spacing, margin_y) = if rays { (RAY_SPACING, MARGIN_X) } else { (LABEL_SPACING, MARGIN_Y) };
    let radius = (peers.len() as f64 * spacing / TAU).max(RADIUS_MIN);
    let (middle_x, middle_y) = (radius + MARGIN_X, radius + margin_y);
    let (wide, high) = (2.0 * middle_x, 2.0 * middle_y);
    let mut places: BTreeMap<PeerId, Place> = BTreeMap::new();
    for (at, peer) in peers.iter().enumerate() {
        let turn = TAU * (at as f64 / peers.len() as f64 - 0.25);
        places.insert(peer.id, Place { x: middle_x + radius * turn.cos(), y: middle_y + radius * turn.sin(), turn });
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide:.0} {high:.0}\" width=\"{wide:.0}\" height=\"{high:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for link in &topology.links {
        let (Some(a), Some(b)) = (places.get(&link.a), places.get(&link.b)) else { continue };
        let _ = writeln!(
            text,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#8aa0b4\" stroke-width=\"1.5\">\
             <title>{} – {}: {} {}</title></line>",
            a.x,
            a.y,
            b.x,
            b.y,
            escaped(&names.show(link.a)),
            escaped(&names.show(link.b)),
            rtt(link.rtt_ms),
            escaped(&super::text::clean(&link.transport))
        );
    }
    for peer in peers {
        let Some(place) = places.get(&peer.id) else { continue };
        let (fill, weight) = if peer.id == me { ("#c2410c", "bold") } else { ("#1d4ed8", "normal") };
        let name = escaped(&cut(&names.show(peer.id), 24));
        let _ = writeln!(text, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"7\" fill=\"{fill}\"/>", place.x, place.y);
        text.push_str(&if rays { place.ray(&name, weight, peer.id) } else { place.label(&name, weight, peer.id) });
    }
    text.push_str("</svg>\n");
    text
}

/// A point of the circle, and its angle.
struct Place {
    x: f64,
    y: f64,
    turn: f64,
}

impl Place {
    /// Name and id outside the circle, upright.
    fn label(&self, name: &str, weight: &str, id: PeerId) -> String {
        let anchor = match self.turn.cos() {
            side if side > 0.1 => "start",
            side if side < -0.1 => "end",
            _ => "middle",
        };
        let x = self.x + 16.0 * self.turn.cos();
        // Above and below the circle the two lines need their height; beside it they are centred.
        let shift = match self.turn.sin() {
            _ if anchor != "middle" => -2.0,
            up if up < 0.0 => -16.0,
            _ => 10.0,
        };
        let y = self.y + 16.0 * self.turn.sin() + shift;
        format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{name}<tspan x=\"{x:.1}\" dy=\"13\" \
             font-size=\"10\" font-weight=\"normal\" fill=\"#64748b\">{}</tspan></text>\n",
            id.brief()
        )
    }

    /// The name along the radius, never upside down; the id shows when pointed at.
    fn ray(&self, name: &str, weight: &str, id: PeerId) -> String {
        let left = self.turn.cos() < -1e-9;
        let (anchor, shift, turned) = if left { ("end", -14.0, 180.0) } else { ("start", 14.0, 0.0) };
        format!(
            "<text transform=\"translate({:.1} {:.1}) rotate({:.2})\" x=\"{shift}\" y=\"4\" text-anchor=\"{anchor}\" \
             font-weight=\"{weight}\">{name}<title>{id}</title></text>\n",
            self.x,
            self.y,
            self.turn.to_degrees() + turned,
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// More peers than this have their labels as rays.
const RAYS_FROM: usize = 10;
/// Two lines of a label and a gap.
const LABEL_SPACING: f64 = 34.0;
/// One line and a gap.
const RAY_SPACING: f64 = 20.0;
/// Few peers shall not sit on one another.
const RADIUS_MIN: f64 = 130.0;
/// Room for a name of 24 letters, bold.
const MARGIN_X: f64 = 220.0;
/// Room for two lines.
const MARGIN_Y: f64 = 60.0;
