//! The containers' way out of the overlay: a table of nftables of our own that gives their packets the host's address, and the settings of the host
//! without which it does not forward.
//!
//! ```text
//! table ip NAME, chain postrouting (after everybody else's)
//!   out by the bridge ─▶ made by this host, in the name of an address that is not of the range? ─▶ masquerade      else: as it is
//!   out elsewhere     ─▶ from the range, to an address that is no exception?                    ─▶ masquerade      else: as it is
//! ```
//! Others' SNAT comes first and wins. The first rule is for the host as a client of services: packets that it began in the name of an underlay address, and
//! whose destination became a container, would be answered past the host's connection tracking.
//! Each rule carries a mark of all of them, by which [`stands`] sees that none is missing, changed or added.

use std::io;
use std::path::Path;

use ipnet::Ipv4Net;

use crate::sys::iptables;

use super::nft::{
    ACCEPT, Batch, EQ, GTE, IP, LTE, NEW_CHAIN, NEW_RULE, NLM_F_APPEND, NLM_F_CREATE, attribute, compare, expression,
    find, list, load, nested, number, source, text, transact, value, verdict,
};

/// Who is masqueraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Name of the table.
    pub table: String,
    /// The bridge.
    pub bridge: String,
    /// From these addresses.
    pub range: Ipv4Net,
    /// But not to these, nor to the range itself, nor to groups.
    pub except: Vec<Ipv4Net>,
}

/// Puts the table up, in place of the one that is there: by one transaction.
pub fn apply(wanted: &Masquerade) -> io::Result<()> {
    transact(&table(wanted))
}

/// Whether the table is there as it should be.
pub fn stands(wanted: &Masquerade) -> io::Result<bool> {
    let (rules, mark) = rules(wanted);
    let there = list(GET_RULE, IP, &text(1, &wanted.table))?;
    // Older kernels do not narrow the list.
    let there = there.iter().filter(|rule| find(rule, 1).is_some_and(|table| is(table, &wanted.table)));
    let marks: Vec<bool> = there.map(|rule| find(rule, USERDATA) == Some(&mark)).collect();
    Ok(marks.len() == rules.len() && marks.iter().all(|same| *same))
}

/// Takes the table away.
pub fn remove(name: &str) -> io::Result<()> {
    let mut batch = Batch::begin();
    batch.clear(IP, name);
    transact(&batch.end())
}

fn table(wanted: &Masquerade) -> Vec<u8> {
    let mut batch = Batch::begin();
    batch.clear(IP, &wanted.table);
    batch.add_table(IP, &wanted.table);
    let hook = [number(1, HOOK_POSTROUTING), number(2, PRIORITY)].concat();
    let chain = [text(1, &wanted.table), text(3, CHAIN), nested(4, &hook), number(5, ACCEPT), text(7, "nat")];
    batch.put(NEW_CHAIN, NLM_F_CREATE, IP, &chain.concat());
    let (rules, mark) = rules(wanted);
    for rule in rules {
        let attributes = [text(1, &wanted.table), text(2, CHAIN), nested(4, &rule), attribute(USERDATA, &mark)];
        batch.put(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, IP, &attributes.concat());
    }
    batch.end()
}

/// The expressions of each rule, and the mark of all.
fn rules(wanted: &Masquerade) -> (Vec<Vec<u8>>, [u8; 8]) {
    let mut name = [0; 16];
    name.iter_mut().zip(wanted.bridge.bytes().take(15)).for_each(|(to, from)| *to = from);
    let out = |how: u32| [meta(OIFNAME), compare(1, how, &name)].concat();
    let between = |offset: u32, net: &Ipv4Net| {
        let load = if offset == 12 { source(1) } else { load(1, offset, 4, 1) };
        let (first, last) = (net.network().octets(), net.broadcast().octets());
        [load, compare(1, GTE, &first), compare(1, LTE, &last)].concat()
    };
    let whole = |parts: &[Vec<u8>]| parts.concat();
    let groups = [Ipv4Net::new_assert([224, 0, 0, 0].into(), 4), Ipv4Net::new_assert([255; 4].into(), 32)];
    let mut rules = vec![
        // Of the range, forwarded or not: as it is.
        whole(&[out(EQ), between(12, &wanted.range), verdict(ACCEPT)]),
        whole(&[out(EQ), meta(IIF), compare(1, EQ, &[0; 4]), masquerade()]),
        whole(&[out(EQ), verdict(ACCEPT)]),
    ];
    for net in [wanted.range].iter().chain(&groups).chain(&wanted.except) {
        rules.push(whole(&[between(12, &wanted.range), between(16, net), verdict(ACCEPT)]));
    }
    rules.push(whole(&[out(NEQ), between(12, &wanted.range), masquerade()]));
    let hash = super::fnv1a(rules.iter().flatten().copied());
    (rules, hash.to_be_bytes())
}

fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, 1), number(2, key)])
}

/// With ports drawn at random, so that two that leave at once do not take the same.
fn masquerade() -> Vec<u8> {
    expression("masq", &[number(1, RANDOM_FULLY)])
}

fn is(bytes: &[u8], text: &str) -> bool {
    bytes.strip_suffix(&[0]) == Some(text.as_bytes())
}

/// The same of the old iptables, where it is in use.
pub fn dropping_policy(bridge: &str) -> io::Result<bool> {
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return Ok(false);
    }
    let table = iptables::filter()?;
    Ok(drops(&table) && !knows(&table.rules, bridge))
}

/// The rule at the end of FORWARD is its policy: after `ipt_entry`, which says where, a target of 32 bytes and its verdict.
fn drops(table: &iptables::Table) -> bool {
    let entry = table.rules.get(table.forward_policy..).unwrap_or_default();
    let target = entry.get(88..90).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes).map(usize::from);
    let verdict = target.and_then(|at| entry.get(at + 32..at + 36)).and_then(|four| four.try_into().ok());
    // Verdicts are kept as their negative, less one.
    verdict.map(i32::from_ne_bytes) == Some(-1)
}

fn knows(rules: &[u8], bridge: &str) -> bool {
    rules.windows(bridge.len() + 1).any(|part| part.strip_suffix(&[0]) == Some(bridge.as_bytes()))
}

/// A chain of somebody else through which forwarded packets must pass, that drops what no rule of it accepts, and that has no rule about this bridge.
pub fn dropping_chain(bridge: &str) -> io::Result<Option<String>> {
    for (family, words) in [(IP, "ip"), (INET, "inet")] {
        for chain in list(super::nft::GET_CHAIN, family, &[])? {
            let hook = find(&chain, 4).and_then(|hook| find(hook, 1)).and_then(value);
            let policy = find(&chain, 5).and_then(value);
            if hook != Some(HOOK_FORWARD) || policy != Some(DROP) {
                continue;
            }
            let (Some(table), Some(name)) = (find(&chain, 1).and_then(word), find(&chain, 3).and_then(word)) else {
                continue;
            };
            let here = [text(1, &table), text(2, &name)].concat();
            let about = |rule: &Vec<u8>| {
                let ours = find(rule, 1).is_some_and(|bytes| is(bytes, &table))
                    && find(rule, 2).is_some_and(|bytes| is(bytes, &name));
                ours && knows(rule, bridge)
            };
            if !list(GET_RULE, family, &here)?.iter().any(about) {
                return Ok(Some(format!("{words} {table} {name}")));
            }
        }
    }
    Ok(None)
}

fn word(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.strip_suffix(&[0])?.to_vec()).ok()
}

/// Settings of the host that forwarding for containers needs. Gives those that were changed, and those that cannot be had.
pub fn settle(bridge: &str) -> (Vec<String>, Vec<Lacking>) {
    let (mut changed, mut lacking) = (Vec::new(), Vec::new());
    let read = |key: &str| std::fs::read_to_string(path(key)).map(|text| text.trim().to_owned());
    let mut want = |key: &str, value: &str| match read(key) {
        Ok(there) if there == value => {}
        Err(_) => lacking.push(Lacking { key: key.into(), missing: true }),
        Ok(_) => match std::fs::write(path(key), value) {
            Ok(()) => changed.push(format!("{key} {value}")),
            Err(_) => lacking.push(Lacking { key: key.into(), missing: false }),
        },
    };
    want("net.ipv4.ip_forward", "1");
    // Answers between two containers of one bridge must pass the host's connection tracking, too, when a service's address was translated.
    want("net.bridge.bridge-nf-call-iptables", "1");
    let strict = |interface: &str| read(&format!("net.ipv4.conf/{interface}/rp_filter"));
    let own = format!("net.ipv4.conf/{bridge}/rp_filter");
    // The stricter of both counts, but for 2 (loose), which outdoes 1. Answers of other hosts may come from addresses that this one has elsewhere.
    if let (Ok(all), Ok(here)) = (strict("all"), strict(bridge))
        && [all.as_str(), here.as_str()].contains(&"1")
        && all != "2"
        && here != "2"
    {
        want(&own, "2");
    }
    (changed, lacking)
}

/// A setting that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// As sysctl(8) calls it.
    pub key: String,
    /// The kernel does not have it; else it cannot be written.
    pub missing: bool,
}

fn path(key: &str) -> String {
    // Names of interfaces may have dots: where one stands, slashes are used.
    let (head, rest) = key.split_once('/').unwrap_or((key, ""));
    let tail = if rest.is_empty() { String::new() } else { format!("/{rest}") };
    // A container may not write its own /proc/sys: there the machine's is mounted beside it, which shows the network namespace of whoever looks.
    let root = if Path::new(MOUNTED).exists() { "/host" } else { "" };
    format!("{root}/proc/sys/{}{tail}", head.replace('.', "/"))
}

const MOUNTED: &str = "/host/proc/sys/net";

const CHAIN: &str = "postrouting";
/// After 100, where everybody's source translation is.
const PRIORITY: u32 = 110;
/// Of nf_tables.h and nf_nat.h.
const GET_RULE: u16 = 7;
const USERDATA: u16 = 7;
const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;
const INET: u8 = 1;
const DROP: u32 = 0;
const NEQ: u32 = 1;
const IIF: u32 = 4;
const OIFNAME: u32 = 7;
const RANDOM_FULLY: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lab;
    use std::process::Command;

    fn wanted() -> Masquerade {
        Masquerade {
            table: "meshnet-test-nat".into(),
            bridge: "mesh0".into(),
            range: "10.32.0.0/12".parse().unwrap(),
            except: vec!["192.0.2.0/24".parse().unwrap()],
        }
    }

    fn nft(rules: &str) -> String {
        let output = Command::new("nft").arg(rules).output().expect("the tests need nftables");
        assert!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn every_change_by_others_is_seen_and_repaired() {
        let apart = || {
            assert!(!stands(&wanted()).unwrap());
            for harm in [
                "flush ruleset",
                "flush table ip meshnet-test-nat",
                "delete table ip meshnet-test-nat",
                "add rule ip meshnet-test-nat postrouting drop",
                "insert rule ip meshnet-test-nat postrouting accept",
            ] {
                apply(&wanted()).unwrap();
                assert!(stands(&wanted()).unwrap());
                nft(harm);
                assert!(!stands(&wanted()).unwrap(), "{harm}");
            }
            apply(&wanted()).unwrap();
            let fewer = Masquerade { except: Vec::new(), ..wanted() };
            assert!(!stands(&fewer).unwrap(), "of other exceptions");
            nft("add table ip other; add chain ip other c; add rule ip other c accept");
            assert!(stands(&wanted()).unwrap(), "what others have is theirs");
            // Some versions of nft write the two comparisons as one range.
            let range = |text: &str, field: &str| {
                let text = text.replace(&format!("{field} >= "), &format!("{field} "));
                text.replace(&format!(" {field} <= "), "-")
            };
            let shown = range(&range(&nft("list table ip meshnet-test-nat"), "ip saddr"), "ip daddr");
            let from = "ip saddr 10.32.0.0-10.47.255.255";
            assert!(shown.contains(&format!("{from} masquerade fully-random")), "{shown}");
            assert!(shown.contains(&format!("{from} ip daddr 192.0.2.0-192.0.2.255 accept")), "{shown}");
            remove("meshnet-test-nat").unwrap();
            remove("meshnet-test-nat").unwrap();
            assert!(!nft("list ruleset").contains("meshnet"));
        };
        lab::netns().run(apart).unwrap();
    }

    #[test]
    fn a_chain_that_drops_is_named_unless_it_knows_the_bridge() {
        let apart = || {
            assert_eq!(dropping_chain("mesh0").unwrap(), None);
            nft(
                "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
            );
            assert_eq!(dropping_chain("mesh0").unwrap().as_deref(), Some("ip filter FORWARD"));
            nft("add rule ip filter FORWARD iifname mesh01 accept");
            assert!(dropping_chain("mesh0").unwrap().is_some(), "another bridge");
            nft("add rule ip filter FORWARD iifname mesh0 accept");
            assert_eq!(dropping_chain("mesh0").unwrap(), None);
            nft("add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }");
            assert_eq!(dropping_chain("mesh0").unwrap().as_deref(), Some("inet fw f"));
        };
        lab::netns().run(apart).unwrap();
    }

    #[test]
    fn the_old_iptables_are_looked_at_where_they_are_in_use() {
        let apart = || {
            let iptables = |arguments: &str| {
                let mut command = Command::new("iptables-legacy");
                command.args(arguments.split_whitespace()).status().is_ok_and(|status| status.success())
            };
            assert!(!dropping_policy("mesh0").unwrap());
            let tables = || std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
            assert_eq!(tables(), "", "looking loads nothing");
            if !iptables("-w -P FORWARD DROP") {
                println!("this kernel has no legacy iptables");
                return;
            }
            assert!(dropping_policy("mesh0").unwrap());
            assert!(iptables("-w -A FORWARD -i mesh01 -j ACCEPT"));
            assert!(dropping_policy("mesh0").unwrap(), "another bridge");
            assert!(iptables("-w -A FORWARD -i mesh0 -j ACCEPT"));
            assert!(!dropping_policy("mesh0").unwrap());
            assert!(iptables("-w -F FORWARD") && iptables("-w -P FORWARD ACCEPT"));
            assert!(iptables("-w -P INPUT DROP"));
            assert!(!dropping_policy("mesh0").unwrap(), "INPUT is not FORWARD");
        };
        lab::netns().run(apart).unwrap();
    }

    #[test]
    fn the_host_forwards_and_looks_back_loosely() {
        let apart = || {
            let read = |key: &str| std::fs::read_to_string(path(key)).unwrap().trim().to_owned();
            let set = |key: &str, value: &str| std::fs::write(path(key), value).unwrap();
            lab::ip("link add br.0 type bridge");
            for (all, here, then) in
                [("0", "0", "0"), ("1", "0", "2"), ("0", "1", "2"), ("2", "1", "1"), ("1", "2", "2")]
            {
                set("net.ipv4.ip_forward", "0");
                set("net.ipv4.conf/all/rp_filter", all);
                set("net.ipv4.conf/br.0/rp_filter", here);
                let (changed, _) = settle("br.0");
                assert!(changed.contains(&"net.ipv4.ip_forward 1".to_owned()), "{changed:?}");
                assert_eq!(read("net.ipv4.ip_forward"), "1");
                assert_eq!(read("net.ipv4.conf/br.0/rp_filter"), then, "of {all} and {here}");
                assert!(settle("br.0").0.is_empty(), "nothing is left to do");
            }
        };
        lab::netns().run(apart).unwrap();
    }
}
