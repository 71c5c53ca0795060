//! The tables of `meshctl status TABLE`, and the answers of `ping` and `trace`.

use std::fmt::Write;

use meshnet_proto::PeerId;
use meshnet_proto::api::{MacEntry, Status, Trace};

use super::text::{Cell, NAME, Paint, Style, age, clean, columns, cut, figures, rtt, words};
use super::{Names, status};

/// `status peers`.
pub fn peers(style: Style, status: &Status) -> String {
    let names = Names::of_status(status);
    let mut list: Vec<_> = status.peers.iter().collect();
    list.sort_by_cached_key(|peer| (peer.reachable, names.show(peer.id), peer.id));
    let rows: Vec<Vec<Cell>> = list
        .into_iter()
        .map(|peer| {
            let state = match (peer.id == status.peer.id, peer.reachable, peer.via) {
                (true, ..) => Cell::new("this peer", Paint::Bold),
                (_, false, _) => Cell::new("unreachable", Paint::Red),
                (_, true, None) => Cell::new("direct", Paint::Green),
                (_, true, Some(_)) => Cell::new("relayed", Paint::Yellow),
            };
            let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
            vec![
                names.show(peer.id).into(),
                peer.id.brief().into(),
                state,
                if peer.reachable { peer.hops.to_string() } else { "-".into() }.into(),
                peer.via.map_or("-".into(), |via| names.show(via)).into(),
                peer.links.len().to_string().into(),
                age(peer.changed_s).into(),
                Cell::from(&peer.software),
                addresses.join(" ").into(),
            ]
        })
        .collect();
    let titles = [
        words("PEER", NAME),
        words("ID", 8),
        words("STATE", 12),
        figures("HOPS"),
        words("VIA", NAME),
        figures("LINKS"),
        figures("CHANGED"),
        words("SOFTWARE", 24),
        words("ADDRESSES", WIDE),
    ];
    columns(style, &titles, &rows, 0, WIDE)
}

/// `status links`.
pub fn links(style: Style, status: &Status) -> String {
    if status.links.is_empty() {
        return "no links, and none is being tried\n".into();
    }
    status::links(style, status, WIDE)
}

/// `status routes`.
pub fn routes(style: Style, status: &Status) -> String {
    let names = Names::of_status(status);
    let many = |ids: &[PeerId]| ids.iter().map(|id| cut(&names.show(*id), NAME)).collect::<Vec<_>>().join(" ");
    let mut list: Vec<_> = status.routes.iter().collect();
    list.sort_by_cached_key(|route| (names.show(route.peer), route.peer));
    let rows: Vec<Vec<Cell>> = list
        .into_iter()
        .map(|route| {
            let paint = match route.kind.as_str() {
                "direct" => Paint::Green,
                "relayed" => Paint::Yellow,
                _ => Paint::Red,
            };
            vec![
                names.show(route.peer).into(),
                route.peer.brief().into(),
                Cell::new(&route.kind, paint),
                rtt(route.rtt_ms).into(),
                route.address.map_or("-".into(), |address| address.to_string()).into(),
                if route.relays.is_empty() { "-".into() } else { many(&route.relays) }.into(),
                if route.flood_to.is_empty() { "-".into() } else { many(&route.flood_to) }.into(),
            ]
        })
        .collect();
    let titles = [
        words("PEER", NAME),
        words("ID", 8),
        words("WAY", 8),
        figures("RTT"),
        words("ADDRESS", 48),
        words("RELAYS", 80),
        words("ITS FLOODS GO ON TO", WIDE),
    ];
    columns(style, &titles, &rows, 0, WIDE)
}

/// `status macs`.
pub fn macs(style: Style, macs: &[MacEntry]) -> String {
    if macs.is_empty() {
        return "no MAC address learned yet\n".into();
    }
    let mut list: Vec<&MacEntry> = macs.iter().collect();
    list.sort_by(|a, b| (b.local, &a.name, &a.mac).cmp(&(a.local, &b.name, &b.mac)));
    let rows: Vec<Vec<Cell>> = list
        .into_iter()
        .map(|entry| {
            vec![
                Cell::from(&entry.mac),
                Cell::from(&entry.name),
                entry.peer.brief().into(),
                age(entry.age_s).into(),
                if entry.local { Cell::new("on this machine", Paint::Green) } else { "".into() },
            ]
        })
        .collect();
    let titles = [words("MAC", 17), words("PEER", NAME), words("ID", 8), figures("SEEN"), words("NOTE", 20)];
    columns(style, &titles, &rows, 0, WIDE)
}

/// `status targets`.
pub fn targets(style: Style, status: &Status) -> String {
    if status.targets.is_empty() {
        return "no addresses to connect to: meshctl connect HOST[:PORT]\n".into();
    }
    let rows: Vec<Vec<Cell>> =
        status.targets.iter().map(|target| vec![Cell::from(&target.address), Cell::from(&target.source)]).collect();
    columns(style, &[words("ADDRESS", 80), words("FROM", 10)], &rows, 0, WIDE)
}

/// `trace`.
pub fn trace(style: Style, trace: &Trace) -> String {
    let mac = trace.mac.as_ref().map(|mac| format!(" ({mac})")).unwrap_or_default();
    let name = cut(&clean(&trace.name), NAME);
    let head = clean(&format!("{}{mac}", trace.to));
    if trace.local {
        return format!("{head} is on this machine ({name})\n");
    }
    let mut text = format!("{head} is at {name} {}\n", style.paint(Paint::Dim, &trace.peer.brief()));
    let last = trace.hops.len();
    let rows: Vec<Vec<Cell>> = (1..)
        .zip(&trace.hops)
        .map(|(number, hop)| {
            vec![
                number.to_string().into(),
                Cell::from(&hop.name),
                hop.peer.brief().into(),
                hop.address.map_or("-".into(), |address| address.to_string()).into(),
                rtt(hop.rtt_ms).into(),
                if number < last { Cell::new("relay", Paint::Yellow) } else { "".into() },
            ]
        })
        .collect();
    let titles =
        [figures("HOP"), words("PEER", NAME), words("ID", 8), words("ADDRESS", 48), figures("RTT"), words("NOTE", 12)];
    text.push_str(&columns(style, &titles, &rows, 0, WIDE));
    let cipher = match (trace.fast, trace.cipher.is_empty()) {
        (true, _) => "by vxlan, in the clear".into(),
        (false, true) => "in the clear".into(),
        (false, false) => format!("sealed with {}", clean(&trace.cipher)),
    };
    let _ = writeln!(text, "mtu {}, {cipher}", trace.mtu);
    text
}

/// A table is often read by a program or a pager: nothing is cut but what is absurd.
pub(super) const WIDE: usize = 1_000;
