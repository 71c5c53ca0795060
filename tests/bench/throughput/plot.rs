//! The bars of the README: streams of TCP against kernel VXLAN, as an SVG without scripts that reads on light and dark ground.

use std::fmt::Write;

use crate::stage::Offload;
use crate::table::Row;

/// A row of two bars for each contender: one stream, and four.
pub fn svg(rows: &[Row], offload: Offload) -> String {
    let ratios = |row: &Row| [row.cells[0].ratio, row.cells[1].ratio];
    let most = rows.iter().flat_map(ratios).filter(|ratio| ratio.is_finite()).fold(1.0, f64::max);
    let scale = f64::from(BARS_PX) / most;
    let bottom = TOP_PX + rows.len() as u32 * ROW_PX;
    let (width, height, one) = (NAMES_PX + BARS_PX + 60, bottom + 34, f64::from(NAMES_PX) + scale);
    let way = if offload == Offload::Nic { "underlay as on a network card" } else { "underlay with all offloads on" };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"TCP throughput as a ratio to kernel VXLAN\">\n{STYLE}\n\
         <text class=\"head\" x=\"0\" y=\"18\">TCP throughput against kernel VXLAN = 1 ({way})</text>\n"
    );
    // What the two bars of a row are.
    for (x, class, what) in [(NAMES_PX, "one", "1 stream"), (NAMES_PX + 100, "four", "4 streams")] {
        let _ = writeln!(
            text,
            "<rect class=\"our {class}\" x=\"{x}\" y=\"30\" width=\"10\" height=\"10\"/><text x=\"{}\" y=\"39\">{what}</text>",
            x + 15
        );
    }
    for (at, row) in rows.iter().enumerate() {
        let y = TOP_PX + at as u32 * ROW_PX;
        let class = if row.contender.title.contains("meshd") { "our" } else { "other" };
        let name = row.contender.title().replace("**", "");
        let _ = writeln!(text, "<text class=\"name\" x=\"{}\" y=\"{}\">{name}</text>", NAMES_PX - 8, y + 15);
        for (ratio, class2, down) in [(ratios(row)[0], "one", 0), (ratios(row)[1], "four", 11)] {
            let (length, y) = (ratio * scale, y + down);
            let _ = writeln!(
                text,
                "<rect class=\"{class} {class2}\" x=\"{NAMES_PX}\" y=\"{y}\" width=\"{length:.1}\" height=\"10\"/>\
                 <text class=\"small\" x=\"{:.1}\" y=\"{}\">{ratio:.2}</text>",
                f64::from(NAMES_PX) + length + 4.0,
                y + 9
            );
        }
    }
    let _ = writeln!(
        text,
        "<path class=\"line\" d=\"M{one:.1} {}V{bottom}\"/>\n\
         <text class=\"small\" x=\"0\" y=\"{}\">{FOOT}</text>\n</svg>",
        TOP_PX - 8,
        bottom + 20
    );
    text
}

/// Greys that stand out from white and from black alike, where the viewer does not say which ground it has.
const STYLE: &str = "<style>\
text{font:13px system-ui,sans-serif;fill:#6b7280}.head{font-weight:600}.name{text-anchor:end}.small{font-size:10px}\
.our{fill:#2f81f7}.other{fill:#8b949e}.four{opacity:.55}.line{stroke:#6b7280;stroke-dasharray:3 3;fill:none;opacity:.4}\
@media(prefers-color-scheme:dark){text{fill:#b1bac4}.line{stroke:#b1bac4}}</style>";
const FOOT: &str =
    "All but VXLAN, the fast path and no overlay encrypt. Medians; made by cargo bench --bench throughput";
const NAMES_PX: u32 = 210;
const BARS_PX: u32 = 430;
const TOP_PX: u32 = 58;
const ROW_PX: u32 = 30;
