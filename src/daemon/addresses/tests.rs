//! The door against a node and devices that are played: a table of leases, and a list of what the devices were told.

use std::collections::{BTreeMap, BTreeSet};

use meshnet_proto::ShortId;

use super::*;
use crate::daemon::config::{self, Expose};
use crate::daemon::devices::Refused;
use crate::netlink::Attached;

/// What the node and the devices have and were told.
#[derive(Default)]
struct Stage {
    /// Address → owner.
    leases: BTreeMap<u32, String>,
    /// Next one for who asks for any.
    next: u32,
    /// Nothing is given out for this reason.
    waits: Option<String>,
    /// On devices: namespace (`host` for the host) and address.
    there: BTreeSet<(String, IpNet)>,
    /// Namespaces that exist.
    namespaces: BTreeSet<String>,
    orders: Vec<String>,
}

type Shared = Arc<Mutex<Stage>>;

const RANGE: Span = Span { first: 0x0a20_0000, len: 1 << 20 };

impl Stage {
    fn answer(&mut self, request: Request) -> Outcome {
        let no = |why: &str| Err(Refusal::No(why.to_owned()));
        match request {
            Request::Alloc { .. } | Request::Claim { .. } if self.waits.is_some() => {
                Err(Refusal::Later(self.waits.clone().unwrap_or_default()))
            }
            Request::Alloc { owner, within } => {
                let within = within.unwrap_or(RANGE);
                let has = self.leases.iter().find(|(address, by)| **by == owner && within.contains(**address));
                let address = has.map(|(address, _)| *address).unwrap_or_else(|| {
                    self.next += 1;
                    within.first + self.next
                });
                self.leases.insert(address, owner);
                Ok(Answer::Address { address, subnet: within })
            }
            Request::Claim { owner, address } => match self.leases.get(&address) {
                Some(other) if *other != owner => no("it is another's"),
                _ => {
                    self.leases.insert(address, owner);
                    Ok(Answer::Address { address, subnet: RANGE })
                }
            },
            Request::Free { owner, address } => {
                let before = self.leases.len();
                self.leases.retain(|there, by| *by != owner || address.is_some_and(|address| address != *there));
                if self.leases.len() == before { no("not its own") } else { Ok(Answer::Done) }
            }
            Request::List => {
                let line = |(address, owner): (&u32, &String)| LeaseLine {
                    owner: owner.clone(),
                    address: *address,
                    subnet: RANGE,
                    unconfirmed: false,
                };
                Ok(Answer::Leases(self.leases.iter().map(line).collect()))
            }
            other => no(&format!("{other:?}")),
        }
    }

    fn order(&mut self, order: Order) -> Result<Done, Refused> {
        self.orders.push(format!("{order:?}"));
        let refuse = |reason: &str, absent| Err(Refused { reason: reason.to_owned(), absent });
        match order {
            Order::Attach { namespace, addresses } => {
                if !self.namespaces.contains(&namespace) {
                    return refuse("no such namespace", true);
                }
                self.there.extend(addresses.iter().map(|net| (namespace.clone(), *net)));
                let of = self.there.iter().filter(|(there, _)| *there == namespace);
                let addresses = of.map(|(_, net)| *net).collect();
                let (interface, port) = ("ethmesh".to_owned(), "mesh-1".to_owned());
                let mac = meshnet_proto::Mac([2, 0, 0, 0, 0, 1]);
                Ok(Done::Attached(Attached { interface, port, mac, addresses, changed: true }))
            }
            Order::Detach { namespace, addresses } => {
                if !self.namespaces.contains(&namespace) {
                    return refuse("no such namespace", true);
                }
                let gone = |(there, net): &(String, IpNet)| {
                    *there == namespace && (addresses.is_empty() || addresses.contains(net))
                };
                Ok(Done::Taken(self.take(gone)))
            }
            Order::Expose(net) => {
                self.there.insert(("host".into(), net));
                Ok(Done::Exposed)
            }
            Order::Hide(wanted) => {
                let taken = self.take(|(there, net)| there == "host" && wanted.is_none_or(|wanted| wanted == *net));
                if wanted.is_some() && taken.is_empty() {
                    return refuse("not on the bridge", true);
                }
                Ok(Done::Hidden { taken, left: Vec::new() })
            }
        }
    }

    fn take(&mut self, gone: impl Fn(&(String, IpNet)) -> bool) -> Vec<IpNet> {
        let taken: Vec<(String, IpNet)> = self.there.iter().filter(|each| gone(each)).cloned().collect();
        taken.iter().for_each(|each| drop(self.there.remove(each)));
        taken.into_iter().map(|(_, net)| net).collect()
    }

    fn owners(&self) -> Vec<&str> {
        self.leases.values().map(String::as_str).collect()
    }
}

/// Runs `body` with a door whose node and devices are `stage`.
fn play<F: Future>(arguments: &[&str], body: impl FnOnce(Addresses, Shared) -> F) -> F::Output {
    let all = ["meshd", "--no-secret"].iter().chain(arguments).map(Into::into).collect::<Vec<std::ffi::OsString>>();
    let Ok(config::Request::Run(settings)) = config::load(all, []) else { panic!("settings") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (orders, mut ordered) = Orders::new();
        let (addresses, mut asked) = Addresses::new(&settings, orders);
        let stage = Shared::default();
        stage.lock().unwrap().namespaces.insert("box".into());
        let (node, devices) = (Arc::clone(&stage), Arc::clone(&stage));
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                let outcome = node.lock().unwrap().answer(ask.request);
                let _ = ask.answer.send(outcome);
            }
        });
        tokio::spawn(async move {
            while let Some((order, answer)) = ordered.recv().await {
                let done = devices.lock().unwrap().order(order);
                let _ = answer.send(done);
            }
        });
        body(addresses, stage).await
    })
}

fn attach(namespace: &str, addresses: &[&str]) -> Command {
    Command::Attach { namespace: namespace.into(), addresses: addresses.iter().map(ToString::to_string).collect() }
}

fn detach(namespace: &str, addresses: &[&str]) -> Command {
    Command::Detach { namespace: namespace.into(), addresses: addresses.iter().map(ToString::to_string).collect() }
}

fn refused(reply: Reply, culprit: &str) {
    let Reply::Refused { reason } = &reply else { panic!("{reply:?} where {culprit} is wrong") };
    assert!(reason.contains(culprit) && reason.lines().count() == 1, "'{culprit}' is not in: {reason}");
}

fn attached(reply: Reply) -> Vec<String> {
    let Reply::Attached { addresses, .. } = reply else { panic!("{reply:?}") };
    addresses
}

#[test]
fn a_namespace_has_its_address_by_lease() {
    play(&[], async |door, stage| {
        for words in [&["auto"][..], &[], &["auto", "auto"], &["10.32.0.1/12"]] {
            assert_eq!(attached(door.clone().command(attach("box", words)).await), ["10.32.0.1/12"], "{words:?}");
        }
        assert_eq!(stage.lock().unwrap().owners(), ["netns:box"]);
        // One outside of the range is nobody's business.
        let both = attached(door.clone().command(attach("box", &["192.168.7.1/24"])).await);
        assert_eq!(both, ["10.32.0.1/12", "192.168.7.1/24"]);
        assert_eq!(stage.lock().unwrap().owners().len(), 1);
        let more = attached(door.clone().command(attach("box", &["10.33.0.9/16"])).await);
        assert!(more.contains(&"10.33.0.9/16".to_owned()), "the length is the user's: {more:?}");
        assert_eq!(door.clone().command(detach("box", &["10.33.0.9/16"])).await, Reply::Done);
        assert_eq!(stage.lock().unwrap().owners(), ["netns:box"]);
        assert_eq!(door.clone().command(detach("box", &[])).await, Reply::Done);
        assert!(stage.lock().unwrap().leases.is_empty());
    });
}

#[test]
fn what_was_leased_for_nothing_is_freed() {
    play(&[], async |door, stage| {
        refused(door.clone().command(attach("gone", &["auto", "10.32.0.9/12"])).await, "no such namespace");
        assert!(stage.lock().unwrap().leases.is_empty());
        // What it had before stays its own.
        stage.lock().unwrap().leases.insert(RANGE.first + 7, "netns:gone".into());
        refused(door.clone().command(attach("gone", &["auto", "10.32.0.9/12"])).await, "no such namespace");
        assert_eq!(stage.lock().unwrap().leases.keys().copied().collect::<Vec<_>>(), [RANGE.first + 7]);
        // All or nothing: the second is another's.
        stage.lock().unwrap().leases.insert(RANGE.first + 8, "web".into());
        refused(door.clone().command(attach("box", &["auto", "10.32.0.8/12"])).await, "another's");
        assert_eq!(stage.lock().unwrap().owners(), ["netns:gone", "web"]);
        assert!(!stage.lock().unwrap().orders.iter().any(|order| order.contains("box")), "no device was touched");
    });
}

#[test]
fn a_namespace_that_is_gone_gives_its_addresses_back() {
    play(&[], async |door, stage| {
        door.clone().command(attach("/run/netns/box", &["auto"])).await;
        attached(door.clone().command(attach("box", &["auto"])).await);
        stage.lock().unwrap().leases.insert(RANGE.first + 99, "web".into());
        stage.lock().unwrap().namespaces.clear();
        refused(door.clone().command(detach("other", &[])).await, "no such namespace");
        refused(door.clone().command(Command::IpFree { id: "netns:box".into(), address: None }).await, "detach box");
        assert_eq!(door.clone().command(detach("/var/run/netns/box", &[])).await, Reply::Done);
        assert_eq!(stage.lock().unwrap().owners(), ["web"]);
        refused(door.command(detach("box", &[])).await, "no such namespace");
    });
}

/// Called by number at first and by name at the end, it is one namespace: what was on it is free.
#[test]
fn addresses_are_freed_by_what_the_devices_took() {
    play(&[], async |door, stage| {
        stage.lock().unwrap().leases.insert(RANGE.first + 5, "netns:4711".into());
        stage.lock().unwrap().there.insert(("box".into(), "10.32.0.5/12".parse().unwrap()));
        stage.lock().unwrap().leases.insert(RANGE.first + 6, "netns:box2".into());
        assert_eq!(door.command(detach("box", &[])).await, Reply::Done);
        assert_eq!(stage.lock().unwrap().owners(), ["netns:box2"]);
    });
}

#[test]
fn the_host_has_its_address_by_lease() {
    play(&[], async |door, stage| {
        let expose = |address: &str| Command::Expose { address: address.into() };
        assert_eq!(door.clone().command(expose("auto")).await, Reply::Done);
        assert_eq!(door.clone().command(expose("auto")).await, Reply::Done);
        assert_eq!(stage.lock().unwrap().owners(), ["host:expose"]);
        assert_eq!(door.clone().command(expose("10.40.0.1/12")).await, Reply::Done);
        assert_eq!(door.clone().command(expose("172.16.0.1/24")).await, Reply::Done);
        stage.lock().unwrap().leases.insert(RANGE.first + 8, "web".into());
        refused(door.clone().command(expose("10.32.0.8/12")).await, "another's");
        assert_eq!(stage.lock().unwrap().there.len(), 3);
        refused(door.clone().command(Command::IpFree { id: "host:expose".into(), address: None }).await, "hide");
        assert_eq!(door.clone().command(Command::Hide { address: Some("10.40.0.1/12".into()) }).await, Reply::Done);
        assert_eq!(stage.lock().unwrap().owners(), ["host:expose", "web"]);
        refused(door.clone().command(Command::Hide { address: Some("10.40.0.1/12".into()) }).await, "not on");
        assert_eq!(door.clone().command(Command::Hide { address: None }).await, Reply::Done);
        assert_eq!(stage.lock().unwrap().owners(), ["web"]);
    });
}

#[test]
fn what_the_start_wants_waits_for_the_range() {
    play(&[], async |door, stage| {
        stage.lock().unwrap().waits = Some("nobody is here yet".into());
        let found = ["10.32.0.77/12".parse().unwrap(), "192.168.7.1/24".parse().unwrap()];
        assert!(door.expose_later(Some(Expose::Auto), &found));
        let background = tokio::spawn(door.clone().keep_exposing());
        while door.problems().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(door.problems()[0].what.contains("nobody is here yet"), "{:?}", door.problems());
        assert!(stage.lock().unwrap().there.is_empty());
        stage.lock().unwrap().waits = None;
        background.await.unwrap();
        assert_eq!(door.problems(), []);
        assert_eq!(stage.lock().unwrap().owners(), ["host:expose"], "auto is what the host has already");
        assert!(!door.expose_later(None, &found[1..]), "outside of the range nothing is to be done");
    });
}

#[test]
fn what_is_hidden_is_not_exposed_later() {
    play(&[], async |door, stage| {
        stage.lock().unwrap().waits = Some("nobody is here yet".into());
        assert!(door.expose_later(Some(Expose::At("10.32.0.5/12".parse().unwrap())), &[]));
        let background = tokio::spawn(door.clone().keep_exposing());
        while door.problems().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(door.clone().command(Command::Hide { address: Some("10.32.0.5/12".into()) }).await, Reply::Done);
        stage.lock().unwrap().waits = None;
        background.await.unwrap();
        assert!(stage.lock().unwrap().there.is_empty() && stage.lock().unwrap().leases.is_empty());
    });
}

#[test]
fn wrong_words_are_named_with_the_way_out() {
    let alloc = |id: &str, subnet: Option<&str>| Command::IpAlloc { id: id.into(), subnet: subnet.map(Into::into) };
    let claim = |id: &str, address: &str| Command::IpClaim { id: id.into(), address: address.into() };
    let free = |id: &str, address: Option<&str>| Command::IpFree { id: id.into(), address: address.map(Into::into) };
    play(&[], async |door, stage| {
        for (command, culprit) in [
            (alloc("", None), "the id is empty"),
            (alloc("  ", None), "the id is empty"),
            (alloc(&"x".repeat(257), None), "257 bytes: at most 256"),
            (alloc("a\nb", None), "a\\nb"),
            (claim("\u{7f}", "10.32.0.5"), "control characters"),
            (Command::IpLookup { id: "\0".into() }, "control characters"),
            (alloc("web", Some("10.48.0.0/16")), "10.48.0.0/16 is outside of the range: a network within 10.32.0.0/12"),
            (alloc("web", Some("10.0.0.0/8")), "10.0.0.0/8 is outside"),
            (alloc("web", Some("10.33.0.1/16")), "such as 10.33.0.0/16"),
            (alloc("web", Some("fd00::/64")), "'fd00::/64' is wrong"),
            (alloc("web", Some("lots")), "'lots' is wrong"),
            (claim("web", "10.48.0.0"), "10.48.0.0 is outside of the range"),
            (claim("web", "10.32.0.0"), "10.32.0.0 is the first or last"),
            (claim("web", "10.47.255.255/12"), "10.47.255.255 is the first or last"),
            (claim("web", "fd00::1"), "'fd00::1' is wrong"),
            (claim("web", "ten"), "such as 10.32.0.1"),
            (free("web", Some("10.31.255.255")), "outside of the range"),
            (attach("box", &["10.32.0.5"]), "'10.32.0.5' is wrong"),
            (attach("box", &["10.32.0.0/12"]), "the address of a host"),
            (attach(&"x".repeat(300), &["auto"]), "306 bytes"),
            (detach("box", &["auto"]), "'auto' is wrong here"),
            (Command::Expose { address: "10.47.255.255/12".into() }, "the address of a host"),
        ] {
            refused(door.clone().command(command).await, culprit);
        }
        assert!(stage.lock().unwrap().leases.is_empty() && stage.lock().unwrap().orders.is_empty());
    });
    play(&["--ipam-range", "none"], async |door, stage| {
        for command in
            [alloc("web", None), claim("web", "10.32.0.5"), free("web", None), Command::IpList, Command::Leave]
        {
            refused(door.clone().command(command).await, "IPAM is off here");
        }
        refused(door.clone().command(attach("box", &["auto"])).await, "give an address by hand");
        refused(door.clone().command(Command::Expose { address: "auto".into() }).await, "IPAM is off here");
        assert_eq!(attached(door.clone().command(attach("box", &["10.32.0.5/12"])).await), ["10.32.0.5/12"]);
        assert_eq!(door.clone().command(detach("box", &["10.32.0.5/12"])).await, Reply::Done);
        assert!(stage.lock().unwrap().leases.is_empty());
    });
}

#[test]
fn answers_become_words() {
    let span = |first, len| Span { first, len };
    for (address, subnet, text) in [
        (0x0a20_0005, RANGE, "10.32.0.5/12"),
        (0x0a20_0005, span(0x0a20_0000, 1 << 16), "10.32.0.5/16"),
        (0x0a20_0005, span(0x0a20_0004, 4), "10.32.0.5/30"),
        (0x0a20_0005, span(0x0a20_0005, 1), "10.32.0.5/32"),
        (0x0a00_0001, span(0x0a00_0000, 1 << 24), "10.0.0.1/8"),
    ] {
        assert_eq!(reply(Answer::Address { address, subnet }), Reply::Address { address: text.into() });
    }
    assert_eq!(subnet_of("10.32.0.0/12".parse().unwrap(), "10.33.0.0/16"), Ok(span(0x0a21_0000, 1 << 16)));
    assert_eq!(subnet_of("10.0.0.0/8".parse().unwrap(), "10.0.0.0/8"), Ok(span(0x0a00_0000, 1 << 24)));
    let line = LeaseLine { owner: "web".into(), address: 0x0a20_0005, subnet: RANGE, unconfirmed: true };
    let Reply::Leases { leases } = reply(Answer::Leases(vec![line])) else { panic!() };
    assert_eq!((leases[0].address.as_str(), leases[0].subnet.as_str()), ("10.32.0.5", "10.32.0.0/12"));
    assert!(leases[0].unconfirmed);
}

/// Turns of one owner follow each other, those of others do not wait; nothing is kept of either.
#[test]
fn one_errand_at_a_time_for_an_owner() {
    play(&[], async |door, _| {
        let first = door.turn("a").await;
        let other = door.turn("b").await;
        let waits = tokio::time::timeout(Duration::from_millis(20), door.turn("a")).await;
        assert!(waits.is_err());
        drop((first, other));
        let again = tokio::time::timeout(Duration::from_secs(5), door.turn("a")).await;
        assert!(again.is_ok());
        assert_eq!(door.turns.lock().unwrap().len(), 1);
    });
}

fn candidates() -> Vec<Candidate> {
    let peer = |id: u64, name: &str, shown: &str, silent: u64| Candidate {
        id: ShortId(id),
        name: name.into(),
        shown: shown.into(),
        me: id == 0x1111_2222_3333_4444,
        silent: Duration::from_secs(silent),
    };
    vec![
        peer(0x1111_2222_3333_4444, "me", "me", 0),
        peer(0xaaaa_0000_0000_0001, "b", "b~aaaa", 0),
        peer(0xbbbb_0000_0000_0002, "b", "b~bbbb", 600),
        peer(0xcccc_0000_0000_0003, "c", "c", 59),
        peer(0xcccc_0000_0000_0004, "d", "d", 60),
        peer(0xdddd_0000_0000_0005, "", "dddd0000", 60),
    ]
}

#[test]
fn whom_a_removal_means() {
    let all = candidates();
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let ids = |found: Vec<Candidate>| found.into_iter().map(|peer| peer.id.0).collect::<Vec<_>>();
    for (who, id) in [
        ("b~bbbb", 0xbbbb_0000_0000_0002u64),
        ("bbbb", 0xbbbb_0000_0000_0002),
        ("BBBB0000", 0xbbbb_0000_0000_0002),
        ("bbbb00000000000200112233445566ff", 0xbbbb_0000_0000_0002),
        ("d", 0xcccc_0000_0000_0004),
        ("cccc000000000004", 0xcccc_0000_0000_0004),
        ("dddd", 0xdddd_0000_0000_0005),
    ] {
        assert_eq!(choose(&all, &words(&[who]), false).map(ids), Ok(vec![id]), "{who}");
    }
    assert_eq!(choose(&all, &words(&["d", "cccc000000000004", "bbbb"]), false).unwrap().len(), 2);
    for (who, force, culprit) in [
        (&["nobody"][..], false, "no peer is called 'nobody'"),
        (&["bbb"], false, "'bbb'"),
        (&["bbbb0001"], true, "'bbbb0001'"),
        (&["b"], false, "'b' means several peers: give the id of one: aaaa0000 (reachable), bbbb0000 (unreachable)"),
        (&["cccc"], false, "'cccc' means several"),
        (&["me"], true, "me is this peer itself: meshctl leave"),
        (&["1111"], false, "this peer itself"),
        (&["d", "b~aaaa"], false, "b~aaaa is there"),
        (&["c"], false, "c was heard 59 s ago"),
        (&["c"], false, "addresses may be given out twice"),
        (&[], true, "no peer is named"),
    ] {
        let why = choose(&all, &words(who), force).expect_err(culprit);
        assert!(why.contains(culprit) && why.lines().count() == 1, "{who:?}: {why}");
    }
    assert_eq!(choose(&all, &words(&["c", "b~aaaa"]), true).unwrap().len(), 2);
}
