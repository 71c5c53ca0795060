//! The status screen: what is wrong first, then this peer, its links, the topology, addresses, data.

use std::fmt::Write;

use meshnet_proto::api::{Kubernetes, Link, LinkState, Status};

use super::text::{
    Cell, Column, LINE, NAME, Paint, Style, age, bytes, clean, columns, counted, cut, figures, number, rtt, words,
};
use super::{Names, ipam, tree};

/// One screen.
pub fn screen(style: Style, status: &Status) -> String {
    let names = Names::of_status(status);
    let mut text = String::new();
    problems(&mut text, style, status);
    this_peer(&mut text, style, status);
    link_section(&mut text, style, status, &names);
    topology_section(&mut text, style, status, &names);
    figures_section(&mut text, style, status);
    text
}

fn problems(text: &mut String, style: Style, status: &Status) {
    for problem in status.problems.iter().take(PROBLEMS_MAX) {
        let _ = writeln!(text, "{} {}", style.paint(Paint::Red, "!"), style.paint(Paint::Bold, &clean(&problem.what)));
        let _ = writeln!(text, "  → {}", clean(&problem.remedy));
    }
    if let Some(more) = status.problems.len().checked_sub(PROBLEMS_MAX).filter(|more| *more > 0) {
        let _ = writeln!(text, "  … and {}: meshctl status --json", counted(more, "more problem"));
    }
    if !status.problems.is_empty() {
        text.push('\n');
    }
}

fn this_peer(text: &mut String, style: Style, status: &Status) {
    let (me, device) = (&status.peer, &status.device);
    let name = style.paint(Paint::Bold, &cut(&clean(&me.name), NAME));
    let id = style.paint(Paint::Dim, &me.id.brief());
    let _ = writeln!(text, "{name}  {id}  {}  up {}", cut(&clean(&me.software), 40), age(me.uptime_s));
    if !device.bridge.is_empty() {
        let list = if device.offloads.is_empty() { "none".to_owned() } else { device.offloads.join(" ") };
        let line = format!(
            "  bridge {}  tap {}  mtu {}  queues {}  offloads {list}",
            device.bridge, device.tap, device.mtu, device.queues
        );
        let _ = writeln!(text, "{}", cut(&clean(&line), LINE));
    }
    if let Some(kubernetes) = &status.kubernetes {
        let _ = writeln!(text, "{}", cut(&clean(&cluster(kubernetes)), LINE));
    }
    if !device.exposed.is_empty() {
        let _ = writeln!(text, "{}", cut(&clean(&format!("  host addresses {}", device.exposed.join(" "))), LINE));
    }
}

/// The cluster's API in one line.
fn cluster(kubernetes: &Kubernetes) -> String {
    let Kubernetes { state, api, node, nodes, peers, reason, heard_s, removing } = kubernetes;
    let mut line = format!("  kubernetes {state}  node {node}  {nodes} nodes, {peers} with a peer");
    match heard_s {
        Some(seconds) if state != "ok" => drop(write!(line, "  heard {} ago", age(*seconds))),
        None => line.push_str("  never heard"),
        _ => {}
    }
    if !removing.is_empty() {
        let _ = write!(line, "  removing {}", removing.join(" "));
    }
    let _ = write!(line, "  api {api}");
    if !reason.is_empty() {
        let _ = write!(line, "  ({reason})");
    }
    line
}

fn link_section(text: &mut String, style: Style, status: &Status, names: &Names) {
    let up = status.links.iter().filter(|link| link.state == LinkState::Established).count();
    let mut summary = counted(up, "link");
    let rest =
        [(LinkState::Connecting, "connecting"), (LinkState::Retrying, "retrying"), (LinkState::Failed, "failed")];
    for (state, word) in rest {
        let number = status.links.iter().filter(|link| link.state == state).count();
        if number > 0 {
            let _ = write!(summary, ", {number} {word}");
        }
    }
    title(text, style, "LINKS", &summary);
    if status.links.is_empty() {
        let way = if status.targets.is_empty() {
            "none, and no peer to connect to: meshctl connect HOST[:PORT], or start meshd with --peer"
        } else {
            "none yet"
        };
        let _ = writeln!(text, "  {way}");
        return;
    }
    let list = sorted(status, names);
    let list = list.get(..LINKS_MAX).unwrap_or(&list);
    let short = LINK_COLUMNS.len() - 1;
    let rows: Vec<Vec<Cell>> = list.iter().map(|(name, link)| link_row(link, name)).collect();
    let table = columns(style, &LINK_COLUMNS[..short], &rows, 2, LINE);
    // On the screen a note gets a line of its own: it is what one has to read.
    let notes = std::iter::once(String::new()).chain(list.iter().map(|(_, link)| note(link)));
    for (line, note) in table.lines().zip(notes) {
        let _ = writeln!(text, "{line}");
        if !note.is_empty() {
            let _ = writeln!(text, "{}", style.paint(Paint::Dim, &cut(&format!("    └ {}", clean(&note)), LINE)));
        }
    }
    if let Some(more) = status.links.len().checked_sub(LINKS_MAX).filter(|more| *more > 0) {
        let _ = writeln!(text, "  … and {more} more: meshctl status links");
    }
}

/// The table of links, whole.
pub(super) fn links(style: Style, status: &Status, line: usize) -> String {
    let rows: Vec<Vec<Cell>> =
        sorted(status, &Names::of_status(status)).iter().map(|(name, link)| link_row(link, name)).collect();
    columns(style, &LINK_COLUMNS, &rows, 0, line)
}

/// Those that are not up first, since they are what one looks for; each with the name of its peer.
fn sorted<'a>(status: &'a Status, names: &Names) -> Vec<(String, &'a Link)> {
    let order = |link: &Link| match link.state {
        LinkState::Failed => 0,
        LinkState::Retrying => 1,
        LinkState::Connecting => 2,
        LinkState::Established => 3,
    };
    let name = |link: &Link| match link.peer {
        Some(peer) if link.name.is_empty() || names.knows(peer) => names.show(peer),
        _ if link.name.is_empty() => "?".into(),
        _ => clean(&link.name),
    };
    let mut list: Vec<(String, &Link)> = status.links.iter().map(|link| (name(link), link)).collect();
    list.sort_by(|(a, x), (b, y)| (order(x), a, &x.address).cmp(&(order(y), b, &y.address)));
    list
}

/// Why it is not up, and when it is tried again.
fn note(link: &Link) -> String {
    let retry = link.retry_s.filter(|_| link.state == LinkState::Retrying);
    let retry = retry.map(|seconds| format!("again in {}", age(seconds)));
    link.reason.clone().into_iter().chain(retry).collect::<Vec<_>>().join("; ")
}

fn link_row(link: &Link, name: &str) -> Vec<Cell> {
    let (state, paint) = match link.state {
        LinkState::Established => ("established", Paint::Green),
        LinkState::Connecting => ("connecting", Paint::Yellow),
        LinkState::Retrying => ("retrying", Paint::Yellow),
        LinkState::Failed => ("failed", Paint::Red),
    };
    let up = link.state == LinkState::Established;
    let sealed = match (up, link.encrypted) {
        (false, _) => Cell::from("-"),
        (true, true) => Cell::from("yes"),
        (true, false) => Cell::new("no", Paint::Yellow),
    };
    vec![
        name.into(),
        Cell::from(&link.address),
        Cell::new(state, paint),
        if up { Cell::from(&link.transport) } else { "-".into() },
        sealed,
        if up && link.mtu > 0 { link.mtu.to_string().into() } else { "-".into() },
        if up { rtt(link.rtt_ms).into() } else { "-".into() },
        if link.outbound { "out" } else { "in" }.into(),
        note(link).into(),
    ]
}

fn topology_section(text: &mut String, style: Style, status: &Status, names: &Names) {
    title(text, style, "PEERS", &peers_summary(status));
    text.push_str(&tree::render(style, status, names, TREE_MAX));
}

/// `5 other peers, 1 relayed, 1 unreachable`.
pub(super) fn peers_summary(status: &Status) -> String {
    let others = || status.peers.iter().filter(|peer| peer.id != status.peer.id);
    let mut summary = counted(others().count(), "other peer");
    let relayed = others().filter(|peer| peer.reachable && peer.via.is_some()).count();
    let lost = others().filter(|peer| !peer.reachable).count();
    for (number, word) in [(relayed, "relayed"), (lost, "unreachable")] {
        if number > 0 {
            let _ = write!(summary, ", {number} {word}");
        }
    }
    summary
}

fn figures_section(text: &mut String, style: Style, status: &Status) {
    let data = &status.data;
    text.push('\n');
    ipam::section(text, style, status);
    let _ = writeln!(
        text,
        "{}   out {} frames, {}   in {} frames, {}   relayed {}",
        style.paint(Paint::Bold, "DATA"),
        number(data.tx_frames),
        bytes(data.tx_bytes),
        number(data.rx_frames),
        bytes(data.rx_bytes),
        number(data.relayed)
    );
    let mut drops: Vec<(&String, &u64)> =
        data.drops.iter().filter(|(reason, number)| **number > 0 && !ORDINARY.contains(&reason.as_str())).collect();
    drops.sort_by_key(|(reason, number)| (std::cmp::Reverse(**number), (*reason).clone()));
    if !drops.is_empty() {
        let list: Vec<String> = drops.iter().map(|(reason, n)| format!("{} {}", clean(reason), number(**n))).collect();
        let _ = writeln!(text, "{}  {}", style.paint(Paint::Bold, "DROPS"), cut(&list.join("  "), LINE - 7));
    }
}

fn title(text: &mut String, style: Style, title: &str, summary: &str) {
    let _ = writeln!(text, "\n{}  {summary}", style.paint(Paint::Bold, title));
}

const LINK_COLUMNS: [Column; 9] = [
    words("PEER", NAME),
    words("ADDRESS", 48),
    words("STATE", 12),
    words("BY", 5),
    words("SEALED", 6),
    figures("MTU"),
    figures("RTT"),
    words("DIR", 3),
    words("NOTE", 200),
];

/// Drops that belong to a healthy bridge: its own frames and spanning tree; and copies while the topology changes.
const ORDINARY: [&str; 3] = ["duplicate", "link_local", "local"];

// One screen stays one screen in a mesh of a thousand; the tables have everything.
const PROBLEMS_MAX: usize = 10;
const LINKS_MAX: usize = 40;
const TREE_MAX: usize = 60;
