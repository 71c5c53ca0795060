//! Visits become medians and ratios, and those a table in Markdown.

use std::fmt::Write;

use crate::contenders::{BASE, Contender};
use crate::measure::{Figures, UDP_BYTES};
use crate::stage::Offload;

/// One contender, once.
pub struct Visit {
    pub contender: &'static Contender,
    pub figures: Figures,
}

/// One contender, over all rounds.
pub struct Row {
    pub contender: &'static Contender,
    /// In the order of [`COLUMNS`].
    pub cells: Vec<Cell>,
}

#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub median: f64,
    /// To VXLAN; not a number where VXLAN has none.
    pub ratio: f64,
}

type Get = fn(&Figures) -> f64;

/// Names, decimals, and where they come from. The first two are those of the plot.
pub const COLUMNS: [(&str, usize, Get); 12] = [
    ("TCP, 1 stream, Gbit/s", 2, |f| f.tcp1_gbps),
    ("4 streams", 2, |f| f.tcp4_gbps),
    ("reverse", 2, |f| f.reverse_gbps),
    ("UDP, 1,200 B, Gbit/s", 2, |f| f.udp_gbps),
    ("UDP, 64 B, kpps", 0, |f| f.udp64_kpps),
    ("round trip, p50, µs", 0, |f| f.rr_p50_us),
    ("p99, µs", 0, |f| f.rr_p99_us),
    ("p50 beside a stream, µs", 0, |f| f.beside_p50_us),
    ("CPU, s/GB", 2, |f| f.cpu_s_per_gb),
    ("of it daemons", 2, |f| f.daemons_s_per_gb),
    ("a daemon, MiB", 0, |f| f.resident_mib),
    ("at rest, % of a core", 2, |f| f.rest_percent),
];

const _: () = assert!(UDP_BYTES == 1200, "a column is named after it");

/// The base first, then the others in the order of their visits.
pub fn rows(visits: &[Visit]) -> Result<Vec<Row>, String> {
    let is_base = |visit: &Visit| visit.contender.name == BASE.name;
    if !visits.iter().any(is_base) {
        return Err(format!("{} could not be measured, and all is compared with it", BASE.title));
    }
    let mut rows: Vec<Row> = Vec::new();
    for visit in visits {
        if rows.iter().any(|row| row.contender.name == visit.contender.name) {
            continue;
        }
        let own = |other: &Visit| other.contender.name == visit.contender.name;
        let cells = COLUMNS.iter().map(|(_, _, get)| {
            let values = visits.iter().filter(|other| own(other)).map(|other| get(&other.figures)).collect();
            let ratios = visits.iter().enumerate().filter(|(_, other)| own(other)).map(|(at, other)| {
                let before = visits[..at].iter().rfind(|visit| is_base(visit));
                let after = visits[at + 1..].iter().find(|visit| is_base(visit));
                let bases: Vec<f64> = before.into_iter().chain(after).map(|base| get(&base.figures)).collect();
                get(&other.figures) * bases.len() as f64 / bases.iter().sum::<f64>()
            });
            let ratio = if is_base(visit) { 1.0 } else { median(ratios.collect()) };
            Cell { median: median(values), ratio }
        });
        rows.push(Row { contender: visit.contender, cells: cells.collect() });
    }
    Ok(rows)
}

pub fn markdown(rows: &[Row], visits: &[Visit], missing: &[(String, String)], offload: Offload) -> String {
    let rounds = visits.iter().filter(|visit| visit.contender.name != BASE.name).fold(1, |most, visit| {
        most.max(visits.iter().filter(|other| other.contender.name == visit.contender.name).count())
    });
    let way = match offload {
        Offload::Nic => "as on a plain network card",
        Offload::On => "with all offloads on, 64 KiB buffers crossing uncut",
    };
    let rounds = if rounds == 1 { "one round".into() } else { format!("{rounds} rounds") };
    let mut text = format!(
        "Underlay {way}, MTU 1500; {rounds}, medians (ratio to kernel VXLAN); UDP at the highest rate that loses less than 0.5 %.\n\n"
    );
    let _ = write!(text, "| | sealed |");
    text.extend(COLUMNS.iter().map(|(name, _, _)| format!(" {name} |")));
    let _ = writeln!(text, "\n|---|---|{}", "---:|".repeat(COLUMNS.len()));
    for row in rows {
        let _ = write!(text, "| {} | {} |", row.contender.title(), row.contender.cipher);
        for (cell, (_, decimals, _)) in row.cells.iter().zip(COLUMNS) {
            let _ = match cell {
                // Not measured, or without a daemon.
                Cell { median: 0.0, .. } => write!(text, " |"),
                Cell { median, ratio } if ratio.is_finite() && row.contender.name != BASE.name => {
                    write!(text, " {median:.decimals$} (**{ratio:.2}**) |")
                }
                Cell { median, .. } => write!(text, " {median:.decimals$} |"),
            };
        }
        text.push('\n');
    }
    let foreign: Vec<f64> = visits.iter().map(|visit| visit.figures.foreign_cores).collect();
    let most = foreign.iter().copied().fold(0.0, f64::max);
    let _ = writeln!(
        text,
        "\nWhat else the machine did, seen while all was at rest: {:.2} cores, at most {most:.2}.",
        median(foreign)
    );
    text.extend(missing.iter().map(|(name, why)| format!("Left out: {name}: {why}.\n")));
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (count, middle) if count % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        (_, middle) => values[middle],
    }
}
