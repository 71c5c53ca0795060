//! Addresses: the table of shares, the part of the status screen, the answers of `ip`.

use std::fmt::Write;

use meshnet_proto::api::{Ipam, Lease, Share, Status};

use super::table::WIDE;
use super::text::{Cell, LINE, NAME, Paint, Style, clean, columns, counted, cut, figures, number, words};

/// `status ipam`.
pub fn table(style: Style, status: &Status) -> String {
    let ipam = &status.ipam;
    if ipam.state == "off" {
        return "IPAM is off: addresses are given by hand\n".into();
    }
    let mut text = String::new();
    let mut line = |title: &str, value: &str| {
        let _ = writeln!(text, "{title:7}  {}", clean(value));
    };
    line("state", &ipam.state);
    if !ipam.reason.is_empty() {
        line("waits", &ipam.reason);
    }
    line("range", &ipam.range);
    line("subnet", &ipam.subnet);
    let removed = if ipam.removed > 0 { format!(", {} removed", number(ipam.removed)) } else { String::new() };
    line("members", &format!("{}{removed}", number(ipam.members)));
    if !ipam.digest.is_empty() {
        line("digest", brief(&ipam.digest));
    }
    line("owned", &owned(ipam));
    for conflict in &ipam.conflicts {
        line("CLASH", conflict);
    }
    if ipam.shares.is_empty() {
        return text;
    }
    let rows: Vec<Vec<Cell>> = ipam.shares.iter().map(|share| row(ipam, share)).collect();
    let titles = [
        words("PEER", NAME),
        words("ID", 8),
        figures("ADDRESSES"),
        figures("SHARE"),
        figures("FREE"),
        words("DIGEST", 8),
        words("STANDING", 8),
        words("REACHABLE", 9),
    ];
    text.push('\n');
    text + &columns(style, &titles, &rows, 0, WIDE)
}

fn row(ipam: &Ipam, share: &Share) -> Vec<Cell> {
    // Views that differ are what one looks for here: for a moment after each change, and never for long.
    let odd = !ipam.digest.is_empty() && share.digest != ipam.digest;
    let digest = match share.digest.as_str() {
        "" => Cell::from("-"),
        other => Cell::new(brief(other), if odd { Paint::Yellow } else { Paint::Plain }),
    };
    let standing = match share.standing.as_str() {
        "removed" => Paint::Red,
        "known" => Paint::Yellow,
        _ => Paint::Plain,
    };
    vec![
        Cell::from(&share.name),
        share.peer.brief().into(),
        number(share.addresses).into(),
        format!("{:.1} %", share.percent).into(),
        share.free.map_or("-".into(), number).into(),
        digest,
        Cell::new(if share.standing.is_empty() { "-" } else { &share.standing }, standing),
        if share.reachable { "yes".into() } else { Cell::new("no", Paint::Red) },
    ]
}

/// Its part of the status screen.
pub fn section(text: &mut String, style: Style, status: &Status) {
    let ipam = &status.ipam;
    let line = match ipam.state.as_str() {
        "off" => "off".to_owned(),
        "ready" => format!("ready  range {}  owned {}", ipam.range, owned(ipam)),
        other => format!("{other}  range {}", ipam.range),
    };
    let _ = writeln!(text, "{}   {}", style.paint(Paint::Bold, "IPAM"), cut(&clean(&line), LINE - 7));
    if !ipam.reason.is_empty() {
        let _ = writeln!(text, "{}", style.paint(Paint::Dim, &cut(&format!("    └ {}", clean(&ipam.reason)), LINE)));
    }
    for conflict in ipam.conflicts.iter().take(CONFLICTS_MAX) {
        let _ = writeln!(text, "  {} {}", style.paint(Paint::Red, "!"), cut(&clean(conflict), LINE - 4));
    }
    if let Some(more) = ipam.conflicts.len().checked_sub(CONFLICTS_MAX).filter(|more| *more > 0) {
        let _ = writeln!(text, "  … and {more} more: meshctl status ipam");
    }
    match ipam.shares.len() {
        0 => {}
        1..=SHARES_MAX => text.push_str(&shares(style, ipam)),
        _ => text.push_str(&summary(style, ipam)),
    }
}

fn shares(style: Style, ipam: &Ipam) -> String {
    let note = |share: &Share| match (share.reachable, share.standing.as_str()) {
        (_, "removed") => Cell::new("removed", Paint::Red),
        (false, _) => Cell::new("unreachable", Paint::Red),
        (true, "known") => Cell::new("not admitted yet", Paint::Yellow),
        (true, _) => "".into(),
    };
    let row = |share: &Share| {
        let free = share.free.map_or("-".into(), number);
        let percent = format!("{:.1} %", share.percent);
        vec![
            Cell::from(&share.name),
            share.peer.brief().into(),
            number(share.addresses).into(),
            percent.into(),
            free.into(),
            note(share),
        ]
    };
    let titles = [
        words("PEER", NAME),
        words("ID", 8),
        figures("ADDRESSES"),
        figures("SHARE"),
        figures("FREE"),
        words("NOTE", 20),
    ];
    columns(style, &titles, &ipam.shares.iter().map(row).collect::<Vec<_>>(), 2, LINE)
}

/// Many shares in a line or two: whether they are equal, and what is out of reach.
fn summary(style: Style, ipam: &Ipam) -> String {
    let sizes = || ipam.shares.iter().map(|share| share.addresses);
    let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
    let count = counted(ipam.shares.len(), "share");
    let mut text = format!("  {count} of {} to {} addresses: meshctl status ipam\n", number(least), number(most));
    let lost: Vec<&Share> = ipam.shares.iter().filter(|share| !share.reachable).collect();
    if !lost.is_empty() {
        let addresses = number(lost.iter().map(|share| share.addresses).sum());
        let line = format!("  {addresses} addresses belong to {}", counted(lost.len(), "unreachable peer"));
        let _ = writeln!(text, "{}", style.paint(Paint::Red, &line));
    }
    text
}

/// `ip list`.
pub fn leases(style: Style, leases: &[Lease]) -> String {
    if leases.is_empty() {
        return "no address is given out here\n".into();
    }
    let row = |lease: &Lease| {
        let note = if lease.unconfirmed { Cell::new("unconfirmed", Paint::Yellow) } else { "".into() };
        vec![Cell::from(cidr(lease)), Cell::from(&lease.id), note]
    };
    let rows: Vec<Vec<Cell>> = leases.iter().map(row).collect();
    columns(style, &[words("ADDRESS", 18), words("ID", WIDE), words("NOTE", 12)], &rows, 0, WIDE)
}

/// `10.32.0.5/12`, from the address and its network.
pub fn cidr(lease: &Lease) -> String {
    match lease.subnet.split_once('/') {
        Some((_, length)) => clean(&format!("{}/{length}", lease.address)),
        None => clean(&lease.address),
    }
}

fn owned(ipam: &Ipam) -> String {
    format!("{}  used {}  free {}", number(ipam.owned), number(ipam.used), number(ipam.free))
}

fn brief(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

// One screen stays one screen; the table has everything.
const SHARES_MAX: usize = 8;
const CONFLICTS_MAX: usize = 5;
