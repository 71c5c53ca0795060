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
    // Neighbours on the circle stand at least one line of text apart.
    let radius = (peers.len() as f64 * SPACING / TAU).max(RADIUS_MIN);
    let (middle_x, middle_y) = (radius + MARGIN_X, radius + MARGIN_Y);
    let (wide, high) = (2.0 * middle_x, 2.0 * middle_y);
    let mut places: BTreeMap<PeerId, (f64, f64, f64)> = BTreeMap::new();
    for (at, peer) in peers.iter().enumerate() {
        let turn = TAU * (at as f64 / peers.len() as f64 - 0.25);
        places.insert(peer.id, (middle_x + radius * turn.cos(), middle_y + radius * turn.sin(), turn));
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide:.0} {high:.0}\" width=\"{wide:.0}\" height=\"{high:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for link in &topology.links {
        let (Some(&(ax, ay, _)), Some(&(bx, by, _))) = (places.get(&link.a), places.get(&link.b)) else { continue };
        let _ = writeln!(
            text,
            "<line x1=\"{ax:.1}\" y1=\"{ay:.1}\" x2=\"{bx:.1}\" y2=\"{by:.1}\" stroke=\"#8aa0b4\" stroke-width=\"1.5\">\
             <title>{} – {}: {} {}</title></line>",
            escaped(&names.show(link.a)),
            escaped(&names.show(link.b)),
            rtt(link.rtt_ms),
            escaped(&super::text::clean(&link.transport))
        );
    }
    for peer in peers {
        let Some(&(x, y, turn)) = places.get(&peer.id) else { continue };
        let (fill, weight) = if peer.id == me { ("#c2410c", "bold") } else { ("#1d4ed8", "normal") };
        let anchor = match turn.cos() {
            side if side > 0.1 => "start",
            side if side < -0.1 => "end",
            _ => "middle",
        };
        let (tx, ty) = (x + 16.0 * turn.cos(), y + 16.0 * turn.sin());
        // Above and below the circle the two lines of a label need their height; beside it they are centred.
        let ty = ty + if anchor == "middle" { if turn.sin() < 0.0 { -16.0 } else { 10.0 } } else { -2.0 };
        let _ = writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\" fill=\"{fill}\"/>");
        let _ = writeln!(
            text,
            "<text x=\"{tx:.1}\" y=\"{ty:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{}<tspan x=\"{tx:.1}\" dy=\"13\" \
             font-size=\"10\" font-weight=\"normal\" fill=\"#64748b\">{}</tspan></text>",
            escaped(&cut(&names.show(peer.id), 24)),
            peer.id.brief()
        );
    }
    text.push_str("</svg>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// Two lines of a label and a gap.
const SPACING: f64 = 34.0;
/// Few peers shall not sit on one another.
const RADIUS_MIN: f64 = 130.0;
/// Room for a name of 24 letters.
const MARGIN_X: f64 = 200.0;
/// Room for two lines.
const MARGIN_Y: f64 = 60.0;
