//! Addresses given out by real `meshd` processes on hosts made of network namespaces: who may give out what, and that no two ever have the same.
//!
//! The hosts of each test stand on one switch: `a`, `b`, … at 192.168.77.1, .2, …

#[path = "netns/lab.rs"]
mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lab::{Host, Lab, Meshd, Switch};
use meshnet::sys::netns::Netns;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
/// Of 10.32.0.0/12.
const ALL: u64 = 1 << 20;

fn underlay(at: usize) -> String {
    format!("192.168.77.{}", at + 1)
}

fn hosts(lab: &Lab, names: &[&str]) -> (Switch, Vec<Host>) {
    let switch = lab.switch("switch");
    let plug = |(at, name): (usize, &&str)| {
        let host = lab.host(name);
        switch.plug(&host, &format!("{}/24", underlay(at)));
        host
    };
    let hosts = names.iter().enumerate().map(plug).collect();
    (switch, hosts)
}

/// A peer that is told of the first host; the first one is told of nobody and founds the address space.
fn start(lab: &Lab, host: &Host, extra: &[&str]) -> Meshd {
    let mut arguments = vec!["--ipam-range", "10.32.0.0/12"];
    if extra.contains(&"--ipam-range") {
        arguments.clear();
    }
    if host.name != "a" {
        arguments.extend(["--peer", "192.168.77.1"]);
    }
    arguments.extend(extra);
    lab.meshd(host, &arguments)
}

/// All started, ready and agreed.
fn mesh(lab: &Lab, names: &[&str]) -> (Switch, Vec<Meshd>) {
    let (switch, hosts) = hosts(lab, names);
    let peers: Vec<Meshd> = hosts.iter().map(|host| start(lab, host, &[])).collect();
    await_split(&peers, ALL, 30 * SECOND);
    (switch, peers)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Waits until these are ready, have one view, and own everything together, each its part.
fn await_split(peers: &[Meshd], all: u64, limit: Duration) -> Vec<u64> {
    let mut owned = Vec::new();
    let agreed = lab::poll(limit, || {
        let views: Vec<Value> = peers.iter().map(|peer| peer.status()["ipam"].clone()).collect();
        owned = views.iter().map(|view| number(&view["owned"])).collect();
        let digests: BTreeSet<&str> = views.iter().filter_map(|view| view["digest"].as_str()).collect();
        let ready = views.iter().all(|view| view["state"] == "ready");
        ready && digests.len() == 1 && owned.iter().sum::<u64>() == all && owned.iter().all(|owned| *owned > 0)
    });
    if !agreed {
        let views: Vec<String> = peers.iter().map(|peer| peer.ctl(&["status", "ipam"])).collect();
        panic!("no agreed split of {all} within {limit:?}: {owned:?}\n{}", views.join("\n"));
    }
    owned
}

fn is_fair(owned: &[u64]) -> bool {
    let (least, most) = (owned.iter().min().copied().unwrap_or(0), owned.iter().max().copied().unwrap_or(0));
    most <= 2 * least
}

/// The address of an owner, or the peer's word why not.
fn alloc(peer: &Meshd, id: &str) -> Result<String, String> {
    said(peer, &["ip", "alloc", id])
}

fn said(peer: &Meshd, arguments: &[&str]) -> Result<String, String> {
    let output = peer.ctl_output(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.trim().to_owned()) } else { Err(err.trim().to_owned()) }
}

/// Address → owner, of what a peer gives out.
fn leases(peer: &Meshd) -> BTreeMap<String, String> {
    let list: Value = serde_json::from_str(&peer.ctl(&["ip", "list", "--json"])).expect("JSON");
    let lines = list["leases"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let count = lines.len();
    let leases: BTreeMap<String, String> =
        lines.iter().map(|lease| (text(&lease["address"]), text(&lease["id"]))).collect();
    assert_eq!(leases.len(), count, "{} lists an address twice", peer.host.name);
    leases
}

/// No address is given out by two peers; gives all of them.
fn union<'a>(peers: impl IntoIterator<Item = &'a Meshd>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for peer in peers {
        for (address, id) in leases(peer) {
            let other = all.insert(address.clone(), format!("{id} at {}", peer.host.name));
            assert_eq!(other, None, "{address} is given out twice, also to {id} at {}", peer.host.name);
        }
    }
    all
}

/// One line with the culprit in it, and the exit code.
fn refused(peer: &Meshd, arguments: &[&str], code: i32, culprit: &str) {
    let output = peer.ctl_output(arguments);
    let line = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
    assert!(line.lines().count() == 1 && line.contains(culprit), "{arguments:?} without '{culprit}': {line}");
}

/// Ten that list each other, all started at once: one split, a fair share for each, and one address for each owner.
#[test]
fn ten_started_at_once() {
    lab::test("ten_started_at_once", |lab| {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        let (_switch, hosts) = hosts(lab, &names);
        let addresses: Vec<String> = (0..names.len()).map(underlay).collect();
        let peers: Vec<Meshd> = hosts
            .iter()
            .enumerate()
            .map(|(at, host)| {
                let others = addresses.iter().enumerate().filter(|(other, _)| *other != at);
                let mut arguments = vec!["--ipam-range", "10.32.0.0/12"];
                others.for_each(|(_, address)| arguments.extend(["--peer", address]));
                lab.meshd(host, &arguments)
            })
            .collect();
        await_split(&peers, ALL, 30 * SECOND);
        let mut owned = Vec::new();
        lab::wait("fair shares", 10 * SECOND, || {
            owned = await_split(&peers, ALL, 10 * SECOND);
            is_fair(&owned)
        });
        println!("shares of ten: {owned:?}");
        for peer in &peers {
            let first = alloc(peer, "web").expect("an address");
            assert!(first.ends_with("/12"), "{first}");
            assert_eq!(alloc(peer, "web"), Ok(first.clone()), "the same id has the same address");
            assert_eq!(said(peer, &["ip", "lookup", "web"]), Ok(first));
        }
        assert_eq!(union(&peers).len(), peers.len());
    });
}

/// One after the other: the founder shares with each that comes.
#[test]
fn ten_in_sequence() {
    lab::test("ten_in_sequence", |lab| {
        let (_switch, hosts) = hosts(lab, &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
        let mut peers = Vec::new();
        for host in &hosts {
            let peer = start(lab, host, &[]);
            peer.await_status("has a share", 15 * SECOND, |status| number(&status["ipam"]["owned"]) > 0);
            peers.push(peer);
        }
        let mut owned = Vec::new();
        lab::wait("fair shares", 15 * SECOND, || {
            owned = await_split(&peers, ALL, 15 * SECOND);
            is_fair(&owned)
        });
        println!("shares in sequence: {owned:?}");
    });
}

/// `a b │ c d`: both halves go on giving out addresses, and none twice.
#[test]
fn split_and_heal() {
    lab::test("split_and_heal", |lab| {
        let (switch, peers) = mesh(lab, &["a", "b", "c", "d"]);
        let filter = "add table bridge cut; add chain bridge cut f { type filter hook forward priority 0; }; \
            add rule bridge cut f iifname { port0, port1 } oifname { port2, port3 } drop; \
            add rule bridge cut f iifname { port2, port3 } oifname { port0, port1 } drop";
        switch.host().run(&["nft", filter]);
        for peer in &peers {
            peer.await_status("half is gone", 15 * SECOND, |status| lab::reachable(status) == 2);
        }
        let mut given = BTreeMap::new();
        let mut give = |round: &str| {
            for peer in &peers {
                for n in 0..8 {
                    let id = format!("{round}-{}-{n}", peer.host.name);
                    let address = alloc(peer, &id).unwrap_or_else(|why| panic!("{id}: {why}"));
                    assert_eq!(given.insert(address.clone(), id.clone()), None, "{address} twice");
                }
            }
        };
        give("cut");
        // What belongs to the other half cannot be had here, and the words say whose it is.
        let theirs = leases(&peers[2]).into_keys().next().expect("an address of c");
        refused(&peers[0], &["ip", "claim", "thief", &theirs], 1, &theirs);
        switch.host().run(&["nft", "delete table bridge cut"]);
        for peer in &peers {
            peer.await_peers(4, 40 * SECOND);
        }
        give("healed");
        await_split(&peers, ALL, 20 * SECOND);
        assert_eq!(union(&peers).len(), given.len());
        refused(&peers[0], &["ip", "claim", "thief", &theirs], 1, &theirs);
    });
}

/// Killed in the middle of a burst, three times: whatever was answered is still its owner's, and nobody else's.
#[test]
fn killed_in_a_burst() {
    lab::test("killed_in_a_burst", |lab| {
        let (_switch, mut peers) = mesh(lab, &["a", "b"]);
        let mut answered: BTreeMap<String, String> = BTreeMap::new();
        for round in 0..3 {
            // The first one of a process may wait for the answers on the bridge.
            alloc(&peers[1], &format!("first-{round}")).expect("an address");
            let burst = |worker: usize| {
                let mut given = Vec::new();
                for n in 0.. {
                    let id = format!("burst-{round}-{worker}-{n}");
                    match alloc(&peers[1], &id) {
                        Ok(address) => given.push((address, id)),
                        Err(why) => {
                            println!("{id}: {why}");
                            return given;
                        }
                    }
                }
                given
            };
            let given: Vec<(String, String)> = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || burst(worker))).collect();
                std::thread::sleep(Duration::from_millis(400 + 150 * round));
                lab::ok("kill", &["-KILL", &peers[1].pid().to_string()]);
                workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect()
            });
            assert!(!given.is_empty(), "nothing was given out before the end");
            println!("round {round}: {} addresses before the kill", given.len());
            for (address, id) in given {
                let before = answered.insert(address.clone(), id.clone());
                assert_eq!(before, None, "{address} went to {id} too");
            }
            let host = peers[1].host.clone();
            drop(peers.pop());
            peers.push(start(lab, &host, &[]));
            peers[1].await_status("ready", 15 * SECOND, |status| status["ipam"]["state"] == "ready");
            let kept = leases(&peers[1]);
            for (address, id) in &answered {
                let plain = address.split('/').next().unwrap_or_default();
                assert_eq!(kept.get(plain), Some(id), "{address} was answered");
                assert_eq!(alloc(&peers[1], id).as_ref(), Ok(address), "and is given again to the same owner");
                if kept.len() > 200 {
                    break;
                }
            }
        }
        union(&peers);
    });
}

/// The state of `c` is lost: it is a new peer, and what the old one owned comes back by one command.
#[test]
fn a_wiped_state_is_a_new_peer() {
    lab::test("a_wiped_state_is_a_new_peer", |lab| {
        let (_switch, mut peers) = mesh(lab, &["a", "b", "c"]);
        let old = peers[2].status()["peer"]["id"].as_str().expect("id").to_owned();
        let address = alloc(&peers[2], "web").expect("an address");
        let mut c = peers.pop().expect("c");
        c.stop("KILL");
        std::fs::remove_dir_all(&c.state).expect("state");
        let host = c.host.clone();
        drop(c);
        let c = start(lab, &host, &[]);
        c.await_status("ready anew", 20 * SECOND, |status| {
            status["ipam"]["state"] == "ready" && number(&status["ipam"]["owned"]) > 0
        });
        assert_ne!(c.status()["peer"]["id"], old.as_str(), "a new identity");
        assert!(leases(&c).is_empty(), "it owns nothing of the old one");
        refused(&peers[0], &["rmpeer", "c"], 1, "means several peers");
        refused(&peers[0], &["rmpeer", &old[..12]], 1, "60 s of silence");
        let removed = peers[0].ctl(&["rmpeer", "--force", &old[..12]]);
        assert!(removed.contains("1 peer removed"), "{removed}");
        peers.push(c);
        await_split(&peers, ALL, 15 * SECOND);
        let plain = address.split('/').next().unwrap_or_default();
        let claimed = said(&peers[1], &["ip", "claim", "again", plain]).expect("what the old one gave out can be had");
        assert_eq!(claimed, address);
        union(&peers);
        // Asked again it is done already.
        peers[0].ctl(&["rmpeer", "--force", &old[..12]]);
    });
}

/// `c` is cut off and removed by force though it lives; it comes back, notices, stops, and starts as a new peer that claims what it gave out.
#[test]
fn removed_though_alive() {
    lab::test("removed_though_alive", |lab| {
        let (switch, mut peers) = mesh(lab, &["a", "b", "c"]);
        let old = peers[2].status()["peer"]["id"].as_str().expect("id").to_owned();
        let address = alloc(&peers[2], "web").expect("an address");
        switch.host().run(&["ip", "link", "set", "port2", "down"]);
        peers[0].await_peers(2, 15 * SECOND);
        peers[0].ctl(&["rmpeer", "--force", "c"]);
        await_split(&peers[..2], ALL, 10 * SECOND);
        switch.host().run(&["ip", "link", "set", "port2", "up"]);
        let mut c = peers.pop().expect("c");
        let status = c.await_exit(40 * SECOND).expect("c hears that it was removed, and stops");
        assert!(!status.success());
        let log = c.log_text();
        assert!(log.contains("declared this one") && log.contains("1 running containers"), "{log}");
        let host = c.host.clone();
        drop(c);
        peers.push(start(lab, &host, &[]));
        await_split(&peers, ALL, 20 * SECOND);
        assert_ne!(peers[2].status()["peer"]["id"], old.as_str(), "a new identity");
        lab::wait("what it gave out is its own again", 10 * SECOND, || {
            leases(&peers[2]).get(&plain(&address)).map(String::as_str) == Some("web")
        });
        union(&peers);
    });
}

/// The state directory of `c` is an old copy, as of a snapshot: it notices and gives out nothing, until `--restored` makes it a new peer.
#[test]
fn a_restored_old_copy() {
    lab::test("a_restored_old_copy", |lab| {
        let (_switch, mut peers) = mesh(lab, &["a", "b", "c"]);
        let old = peers[2].status()["peer"]["id"].as_str().expect("id").to_owned();
        let address = alloc(&peers[2], "web").expect("an address");
        let mut c = peers.pop().expect("c");
        c.stop("TERM");
        let copy = c.state.with_extension("copy");
        lab::ok("cp", &["-a", c.state.to_str().expect("path"), copy.to_str().expect("path")]);
        let (host, state) = (c.host.clone(), c.state.clone());
        drop(c);
        let mut c = start(lab, &host, &[]);
        c.await_status("ready", 20 * SECOND, |status| status["ipam"]["state"] == "ready");
        // What the copy does not know: something of c's is another's now.
        let theirs = leases(&c).into_keys().next().expect("web's");
        let next = plain(&said(&c, &["ip", "alloc", "more"]).expect("an address"));
        c.ctl(&["ip", "free", "more"]);
        said(&peers[0], &["ip", "claim", "moved", &next]).expect("c gives it");
        c.stop("KILL");
        std::fs::remove_dir_all(&state).expect("state");
        std::fs::rename(&copy, &state).expect("the copy");
        drop(c);
        let mut c = start(lab, &host, &[]);
        c.await_status("in doubt", 20 * SECOND, |status| {
            status["ipam"]["reason"].as_str().is_some_and(|why| why.contains("old copy"))
        });
        refused(&c, &["ip", "alloc", "third"], 1, "--restored");
        c.stop("TERM");
        drop(c);
        let c = start(lab, &host, &["--restored"]);
        assert_ne!(c.status()["peer"]["id"], old.as_str(), "a new identity");
        peers[0].ctl(&["rmpeer", "--force", &old[..12]]);
        peers.push(c);
        await_split(&peers, ALL, 20 * SECOND);
        lab::wait("web has its address again", 15 * SECOND, || {
            leases(&peers[2]).get(&theirs).map(String::as_str) == Some("web")
        });
        assert_eq!(plain(&address), theirs);
        union(&peers);
    });
}

/// Two operators remove the same dead peer at the same moment.
#[test]
fn removed_on_two_machines_at_once() {
    lab::test("removed_on_two_machines_at_once", |lab| {
        let (_switch, mut peers) = mesh(lab, &["a", "b", "c", "d"]);
        refused(&peers[0], &["rmpeer", "d"], 1, "d is there");
        refused(&peers[0], &["rmpeer", "a", "--force"], 1, "meshctl leave");
        refused(&peers[0], &["rmpeer", "nobody"], 1, "'nobody'");
        peers.pop().expect("d").stop("KILL");
        for peer in &peers {
            peer.await_peers(3, 15 * SECOND);
        }
        refused(&peers[0], &["rmpeer", "d"], 1, "addresses may be given out twice");
        let answers: Vec<Result<String, String>> = std::thread::scope(|scope| {
            let remove = |peer| scope.spawn(move || said(peer, &["rmpeer", "d", "--force"]));
            let both = [remove(&peers[0]), remove(&peers[1])];
            both.into_iter().map(|answer| answer.join().expect("rmpeer")).collect()
        });
        assert!(answers.iter().any(Result::is_ok), "{answers:?}");
        await_split(&peers, ALL, 15 * SECOND);
        for peer in &peers {
            peer.await_status("one is removed", 10 * SECOND, |status| status["ipam"]["removed"] == 1);
            alloc(peer, "web").expect("an address");
        }
        union(&peers);
    });
}

/// Half of ten are gone for ever: one command, and all of their space can be given out within 10 s.
#[test]
fn half_of_ten_gone_for_ever() {
    lab::test("half_of_ten_gone_for_ever", |lab| {
        let (_switch, mut peers) = mesh(lab, &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
        let lost = alloc(&peers[9], "web").expect("an address");
        let mut dead = peers.split_off(5);
        for peer in &mut dead {
            peer.stop("KILL");
        }
        for peer in &peers {
            peer.await_peers(5, 15 * SECOND);
        }
        let began = Instant::now();
        let command = ["rmpeer", "--force", "f", "g", "h", "i", "j"];
        let removed = said(&peers[0], &command).unwrap_or_else(|why| panic!("{why}"));
        assert!(removed.contains("5 peers removed"), "{removed}");
        let left = (10 * SECOND).saturating_sub(began.elapsed());
        await_split(&peers, ALL, left);
        println!("all of the space is back after {:?}", began.elapsed());
        let plain = lost.split('/').next().unwrap_or_default();
        assert_eq!(said(&peers[3], &["ip", "claim", "heir", plain]), Ok(lost));
        union(&peers);
    });
}

/// The clock was a year ahead and is set back. A process's wall clock cannot be moved alone (time namespaces hold monotonic clocks only), so it is what a
/// clock a year ahead leaves behind that is made: the number of the last start, the one thing that ever was read from it. The machine of addresses itself
/// reads no clock at all: its times count from the start of the process.
#[test]
fn a_clock_set_back_a_year() {
    lab::test("a_clock_set_back_a_year", |lab| {
        let (_switch, mut peers) = mesh(lab, &["a", "b"]);
        let before = alloc(&peers[1], "web").expect("an address");
        let mut b = peers.pop().expect("b");
        b.stop("TERM");
        let file = b.state.join("incarnation");
        let last: u64 = std::fs::read_to_string(&file).expect("incarnation").trim().parse().expect("a number");
        std::fs::write(&file, format!("{}\n", last + 365 * 86_400)).expect("incarnation");
        let host = b.host.clone();
        drop(b);
        for run in 0..2 {
            let mut b = start(lab, &host, &[]);
            b.await_status("ready", 15 * SECOND, |status| status["ipam"]["state"] == "ready");
            peers[0].await_peers(2, 15 * SECOND);
            assert_eq!(alloc(&b, "web").as_ref(), Ok(&before), "run {run}");
            alloc(&b, &format!("run-{run}")).expect("an address");
            if run == 1 {
                assert_eq!(leases(&b).len(), 3);
                peers.push(b);
                break;
            }
            assert!(b.stop("TERM").success());
        }
        await_split(&peers, ALL, 15 * SECOND);
        union(&peers);
    });
}

/// Sixteen addresses, fourteen of them for owners: the error is clear when they are used up, and space is found as soon as some is freed, wherever.
#[test]
fn an_exhausted_range() {
    lab::test("an_exhausted_range", |lab| {
        let (_switch, hosts) = hosts(lab, &["a", "b"]);
        let small = ["--ipam-range", "10.32.0.0/28"];
        let peers: Vec<Meshd> = hosts.iter().map(|host| start(lab, host, &small)).collect();
        await_split(&peers, 16, 20 * SECOND);
        for n in 0..14 {
            alloc(&peers[n % 2], &format!("owner-{n}")).unwrap_or_else(|why| panic!("the address number {n}: {why}"));
        }
        assert_eq!(union(&peers).len(), 14);
        for peer in &peers {
            refused(peer, &["ip", "alloc", "one-more"], 1, "10.32.0.0/28 is exhausted");
        }
        peers[0].ctl(&["ip", "free", "owner-0"]);
        let mut answers = Vec::new();
        let found = lab::poll(5 * SECOND, || {
            answers.push(alloc(&peers[1], "one-more"));
            answers.last().is_some_and(Result::is_ok)
        });
        let views = || peers.iter().map(|peer| peer.ctl(&["status", "ipam"])).collect::<Vec<_>>().join("\n");
        let last = answers.last();
        assert!(
            found,
            "the address that the other has free is not found: {last:?}\n{}\n{}",
            views(),
            peers[1].log_text()
        );
        assert_eq!(union(&peers).len(), 14);
        refused(&peers[0], &["ip", "free", "owner-0"], 1, "owner-0");
        refused(&peers[0], &["ip", "lookup", "owner-0"], 1, "owner-0");
    });
}

/// Everything that can be typed wrong: one line each, with the culprit and the way out; nothing is given out by it.
#[test]
fn bad_inputs() {
    lab::test("bad_inputs", |lab| {
        let (_switch, hosts) = hosts(lab, &["a", "b"]);
        let one = start(lab, &hosts[0], &["--ipam-subnet", "10.33.0.0/16"]);
        one.await_status("ready", 10 * SECOND, |status| status["ipam"]["state"] == "ready");
        let long = "x".repeat(257);
        let cases: [(&[&str], i32, &str); 24] = [
            (&["ip", "alloc", "web", "10.48.0.0/16"], 1, "within 10.32.0.0/12"),
            (&["ip", "alloc", "web", "10.32.0.0/8"], 2, "such as 10.0.0.0/8"),
            (&["ip", "alloc", "web", "10.0.0.0/8"], 1, "within 10.32.0.0/12"),
            (&["ip", "alloc", "web", "10.33.0.7/16"], 2, "such as 10.33.0.0/16"),
            (&["ip", "alloc", ""], 2, "must not be empty"),
            (&["ip", "alloc", &long], 2, "at most 256 bytes"),
            (&["ip", "alloc", "a\nb"], 2, "without control characters"),
            (&["ip", "claim", "web", "10.48.0.1"], 1, "10.48.0.1 is outside"),
            (&["ip", "claim", "web", "10.32.0.0"], 1, "10.32.0.0 is the first or last"),
            (&["ip", "claim", "web", "10.47.255.255"], 1, "10.47.255.255 is the first or last"),
            (&["ip", "claim", "web", "10.33.0.0"], 1, "10.33.0.0 is the first or last"),
            (&["ip", "claim", "web", "fd00::1"], 2, "fd00::1"),
            (&["ip", "lookup", "web"], 1, "'web'"),
            (&["ip", "free", "web"], 1, "'web'"),
            (&["ip", "free", "web", "192.0.2.1"], 1, "192.0.2.1 is outside"),
            (&["ip", "free", "netns:box"], 1, "meshctl detach box"),
            (&["ip", "free", "host:expose"], 1, "meshctl hide"),
            (&["attach", "nowhere", "auto"], 1, "nowhere"),
            (&["attach", "nowhere"], 1, "nowhere"),
            (&["detach", "nowhere"], 1, "nowhere"),
            (&["expose", "10.32.0.0/12"], 1, "10.32.0.0/12"),
            (&["rmpeer", "nobody"], 1, "'nobody'"),
            (&["rmpeer", "a"], 1, "this peer itself"),
            (&["rmpeer"], 2, "NAME|ID"),
        ];
        for (arguments, code, culprit) in cases {
            refused(&one, arguments, code, culprit);
        }
        assert!(leases(&one).is_empty());
        // Several subnets in one range.
        assert!(alloc(&one, "web").expect("an address").starts_with("10.33."));
        let other = one.ctl(&["ip", "alloc", "web", "10.40.8.0/24"]);
        assert!(other.starts_with("10.40.8.") && other.ends_with("/24\n"), "{other}");
        assert_eq!(one.ctl(&["ip", "claim", "db", "10.34.5.6"]), "10.34.5.6/12\n");
        refused(&one, &["ip", "claim", "web", "10.34.5.6"], 1, "'db'");
        assert_eq!(one.ctl(&["ip", "lookup", "web"]).lines().count(), 2);
        one.ctl(&["ip", "free", "web"]);
        one.ctl(&["ip", "free", "db", "10.34.5.6/12"]);
        assert!(leases(&one).is_empty());
        // Switched off, everything says so.
        let off = lab.meshd(&hosts[1], &[]);
        off.await_up();
        for arguments in [&["ip", "alloc", "web"][..], &["ip", "list"], &["attach", "box", "auto"], &["leave"]] {
            refused(&off, arguments, 1, "IPAM is off");
        }
    });
}

/// `c1 ─ a ── b ─ c2`: addresses by themselves for containers and hosts; who has which is answered on the spot, and no question crosses the mesh.
#[test]
fn attached_with_addresses_of_the_range() {
    lab::test("attached_with_addresses_of_the_range", |lab| {
        let (_switch, hosts) = hosts(lab, &["a", "b"]);
        let first = start(lab, &hosts[0], &["--expose", "auto"]);
        let second = start(lab, &hosts[1], &[]);
        let peers = [first, second];
        await_split(&peers, ALL, 20 * SECOND);
        let [first, second] = &peers;
        let exposed = first.await_status("the host's address", 10 * SECOND, |status| {
            status["device"]["exposed"].as_array().is_some_and(|exposed| exposed.len() == 1)
        });
        let host_address = plain(exposed["device"]["exposed"][0].as_str().unwrap_or_default());
        let one = lab.host("c1");
        let two = lab.host("c2");
        let own = first.ctl(&["attach", "c1"]);
        assert_eq!(first.ctl(&["attach", "c1", "auto"]), own, "the same namespace has the same address");
        let other = second.ctl(&["attach", "c2", "auto"]);
        let (own, other) = (plain(&own), plain(&other));
        std::thread::sleep(SECOND);
        let question = format!("arp src host {own} and arp[6:2] = 1");
        let capture = hosts[1].capture("mesh0-tap", "/run/lab/arp.pcap", &question);
        one.run(&["ip", "neigh", "flush", "all"]);
        one.await_ping(&other, 10 * SECOND);
        std::thread::sleep(SECOND);
        capture.stop();
        let bytes = std::fs::read("/run/lab/arp.pcap").expect("capture").len();
        assert_eq!(bytes, 24, "a question of c1 came to b: the file is more than its header");
        let neighbours = one.run(&["ip", "neigh"]);
        let octets: Vec<u8> = other.split('.').filter_map(|part| part.parse().ok()).collect();
        let mac: String = octets.iter().map(|octet| format!(":{octet:02x}")).collect();
        assert!(neighbours.contains(&format!("0a:58{mac}")), "{neighbours}");
        // The owner is known, though this host itself never spoke to it.
        for target in [other.clone(), format!("0a:58{mac}")] {
            let trace = first.ctl(&["trace", &target]);
            assert!(trace.contains("  b") || trace.contains(" b "), "{trace}");
        }
        two.await_ping(&host_address, 5 * SECOND);
        hosts[0].await_ping(&other, 5 * SECOND);
        // A second address of one interface is answered for too.
        let more = second.ctl(&["attach", "c2", "10.40.0.9/12"]);
        assert!(more.contains("10.40.0.9/12"), "{more}");
        two.run(&["ping", "-n", "-q", "-c", "1", "-W", "2", &own]);
        refused(first, &["attach", "c1", "10.40.0.9/12"], 1, "10.40.0.9");
        let ids: BTreeSet<String> = union(&peers).into_values().collect();
        assert!(ids.contains("netns:c1 at a") && ids.contains("host:expose at a"), "{ids:?}");
        first.ctl(&["detach", "c1"]);
        first.ctl(&["hide"]);
        assert!(leases(first).is_empty());
        // The namespace is deleted under it: what it had is freed all the same.
        lab::ok("ip", &["netns", "del", "c2"]);
        drop(two);
        second.ctl(&["detach", "c2"]);
        assert!(leases(second).is_empty());
    });
}

fn plain(text: &str) -> String {
    let address = text.split_whitespace().last().unwrap_or_default();
    address.split('/').next().unwrap_or_default().to_owned()
}

/// `b` dies: the metrics of `a` say how much is out of reach. `c` leaves: it is not out of reach, but given back.
#[test]
fn metrics_and_a_clean_leave() {
    lab::test("metrics_and_a_clean_leave", |lab| {
        let (switch, hosts) = hosts(lab, &["a", "b", "c"]);
        let mut peers: Vec<Meshd> = hosts.iter().map(|host| start(lab, host, &["--http", "127.0.0.1:6784"])).collect();
        let owned = await_split(&peers, ALL, 20 * SECOND);
        for (peer, owned) in peers.iter().zip(&owned) {
            alloc(peer, "web").expect("an address");
            let metrics = metrics(&peer.host.name);
            let wanted = [
                ("mesh_ipam_ready", 1),
                ("mesh_ipam_owned_addresses", *owned),
                ("mesh_ipam_used_addresses", 1),
                ("mesh_ipam_free_addresses", owned - 1),
                ("mesh_ipam_members", 3),
                ("mesh_ipam_unreachable_addresses", 0),
                ("mesh_ipam_reachable_addresses", ALL),
                ("mesh_ipam_conflicts", 0),
            ];
            for (name, value) in wanted {
                assert_eq!(metrics.get(name), Some(&(value as f64)), "{name} at {}", peer.host.name);
            }
        }
        refused(&peers[2], &["leave"], 1, "meshctl ip free");
        peers[2].ctl(&["ip", "free", "web"]);
        peers[2].ctl(&["leave"]);
        drop(peers.pop());
        await_split(&peers, ALL, 10 * SECOND);
        assert!(get("a", "/readyz").contains("200 OK"));
        peers[1].stop("KILL");
        peers[0].await_peers(1, 15 * SECOND);
        lab::wait("what b owns is out of reach", 5 * SECOND, || {
            metrics("a").get("mesh_ipam_unreachable_addresses").is_some_and(|count| *count > 0.0)
        });
        let (metrics, own) = (metrics("a"), number(&peers[0].status()["ipam"]["owned"]));
        assert_eq!(metrics.get("mesh_ipam_reachable_addresses"), Some(&(own as f64)));
        assert_eq!(metrics.get("mesh_ipam_unreachable_addresses"), Some(&((ALL - own) as f64)), "all the rest is b's");
        assert_eq!(metrics.get("mesh_ipam_removed_members"), Some(&1.0), "the one that left");
        // A majority of two is both, so it waits, and is not ready.
        let host = lab.host("d");
        switch.plug(&host, "192.168.77.9/24");
        let late = start(lab, &host, &["--http", "127.0.0.1:6784"]);
        late.await_status("it knows whom it waits for", 10 * SECOND, |status| {
            status["ipam"]["reason"].as_str().is_some_and(|reason| reason.contains("waiting for a majority"))
        });
        let text = get("d", "/readyz");
        assert!(text.contains("503") && text.contains("waiting for a majority"), "{text}");
    });
}

fn metrics(host: &str) -> BTreeMap<String, f64> {
    let text = get(host, "/metrics");
    let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
    samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

fn get(host: &str, path: &str) -> String {
    let asked = Netns::open(host).and_then(|namespace| namespace.run(|| fetch(path)));
    asked.ok().flatten().expect("an answer by HTTP")
}

fn fetch(path: &str) -> Option<String> {
    let mut stream = TcpStream::connect("127.0.0.1:6784").ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}
