//! Everything that carries frames between two pods, side by side: one command that prints one table.
//!
//! ```text
//!   pod p1 ─ bridge ─ h1 ══ veth, MTU 1500 ══ h2 ─ bridge ─ pod p2          the relayed: h1 ══ relay ══ h2
//! ```
//! `cargo bench --bench throughput [-- --rounds N] [--offload nic|on] [--rivals] [--only NAME,…] [--without-udp] [--profile]
//! [--svg FILE] [--markdown FILE]`. A rival that cannot be had is left out with one line that says why.
//!
//! `nic` (default): no segmentation in the underlay's "hardware", software GSO and GRO on, as on a plain network card. `on`: plain
//! veth, where 64 KiB buffers cross uncut, which only virtual machines see. Contenders are interleaved by rounds (A B C A B C), with
//! kernel VXLAN among them as the base; figures are medians, ratios the medians of those to the visits of VXLAN just before and after, so
//! that what else the machine does weighs on both alike. Hosts and pods share this machine's cores: only ratios mean anything.
//!
//! ```text
//!   stage ── a contender puts its tunnel on it ── measure ── table ── plot          install: rivals, outside of the lab
//! ```

#[path = "../../netns/lab.rs"]
mod lab;

mod contenders;
mod install;
mod measure;
mod plot;
mod profile;
mod rivals;
mod stage;
mod table;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use contenders::{ALL, Contender};
use lab::Lab;
use measure::Figures;
use stage::{Offload, Stage};
use table::Visit;

/// Measures meshd, kernel VXLAN, no overlay at all and, if wanted, other overlays between two pods of this machine.
#[derive(Parser)]
struct Arguments {
    /// How often each contender is visited.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// What the underlay does: as a plain network card, or veth that passes 64 KiB buffers uncut.
    #[arg(long, value_enum, default_value = "nic")]
    offload: Offload,
    /// Only these, beside kernel VXLAN.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Installs other overlays from Debian and crates.io, and measures them too.
    #[arg(long)]
    rivals: bool,
    /// Leaves out the search for the highest rates of UDP without loss, a third of the time.
    #[arg(long)]
    without_udp: bool,
    /// Instead of the table: where the processors' time goes in one stream of TCP, by perf (default: of VXLAN and meshd).
    #[arg(long)]
    profile: bool,
    /// Writes a bar plot.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Writes the table there too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let own: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    let arguments = Arguments::parse_from(&own);
    let done = match lab::inside() {
        true => inside(&arguments),
        false => outside(&arguments, &own[1..]),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Brings what is needed while there is a network, and enters the lab.
fn outside(arguments: &Arguments, own: &[String]) -> Result<(), String> {
    let chosen = chosen(arguments)?;
    lab::install_tools()?;
    install::rivals(&chosen)?;
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    match lab::enter(&own)? {
        status if status.success() => Ok(()),
        // What went wrong was said there.
        _ => Err("the lab failed; its words are above".into()),
    }
}

/// The contenders that are wanted, VXLAN not among them.
fn chosen(arguments: &Arguments) -> Result<Vec<&'static Contender>, String> {
    let names = || ALL.iter().map(|contender| contender.name).collect::<Vec<_>>().join(", ");
    for name in &arguments.only {
        match ALL.iter().find(|contender| contender.name == name) {
            None if name == contenders::BASE.name => {}
            None => return Err(format!("--only {name}: there are {}", names())),
            Some(contender) if contender.rival && !arguments.rivals => {
                return Err(format!("--only {name}: say --rivals too, which allows to install it"));
            }
            Some(_) => {}
        }
    }
    let wanted = |contender: &&Contender| match arguments.only.is_empty() {
        true if arguments.profile => contender.name == "udp",
        true => arguments.rivals || !contender.rival,
        false => arguments.only.iter().any(|name| name == contender.name),
    };
    Ok(ALL.iter().filter(wanted).collect())
}

fn inside(arguments: &Arguments) -> Result<(), String> {
    let lab = Lab::new()?;
    let mut missing = install::left_out();
    let mut chosen = chosen(arguments)?;
    chosen.retain(|contender| !missing.iter().any(|(name, _)| name == contender.name));
    if arguments.profile {
        return std::iter::once(&contenders::BASE).chain(chosen).enumerate().try_for_each(|(at, contender)| {
            let stage = Stage::new(&lab, &format!("p{at}"), arguments.offload, contender.relay);
            profile::print(&contender.title(), &(contender.up)(&stage, &lab)?)
        });
    }
    let mut visits: Vec<Visit> = Vec::new();
    for round in 0..arguments.rounds {
        for block in chosen.clone().chunks(BETWEEN_BASES) {
            visits.extend(visit(&lab, arguments, &contenders::BASE, visits.len(), round, &mut missing));
            for contender in block {
                if !missing.iter().any(|(name, _)| name == contender.name) {
                    visits.extend(visit(&lab, arguments, contender, visits.len(), round, &mut missing));
                }
            }
        }
    }
    visits.extend(visit(&lab, arguments, &contenders::BASE, visits.len(), arguments.rounds, &mut missing));
    let rows = table::rows(&visits)?;
    let text = table::markdown(&rows, &visits, &missing, arguments.offload);
    print!("{text}");
    let write = |path: &Option<PathBuf>, text: &str| match path {
        Some(path) => std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display())),
        None => Ok(()),
    };
    write(&arguments.markdown, &text)?;
    write(&arguments.svg, &plot::svg(&rows, arguments.offload))
}

/// One visit to a contender. One that fails is left out from there on, with a word.
fn visit(
    lab: &Lab,
    arguments: &Arguments,
    contender: &'static Contender,
    number: usize,
    round: u16,
    missing: &mut Vec<(String, String)>,
) -> Option<Visit> {
    let work = || -> Result<Figures, String> {
        let stage = Stage::new(lab, &number.to_string(), arguments.offload, contender.relay);
        let tunnel = (contender.up)(&stage, lab)?;
        Ok(measure::figures(&tunnel, !arguments.without_udp))
    };
    let found = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map_or("it panicked", String::as_str);
        Err(words.lines().next().unwrap_or_default().to_owned())
    });
    match found {
        Ok(figures) => {
            eprintln!("round {} {}: {figures:.2?}", round + 1, contender.name);
            Some(Visit { contender, figures })
        }
        Err(why) => {
            eprintln!("left out: {}: {why}", contender.name);
            missing.push((contender.name.to_owned(), why));
            None
        }
    }
}

/// So many visits between two of the base: the machine's speed drifts within minutes.
const BETWEEN_BASES: usize = 5;
