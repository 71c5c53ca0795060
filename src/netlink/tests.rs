//! Against the real kernel, each test in namespaces of its own that end with it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use meshnet_proto::id::Mac;
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};

use super::attach::INTERFACE;
use super::bridge::{ALIAS, TAP_MTU, TXQUEUELEN, difference};
use super::kernel::{Address, Kind, Link};
use super::*;
use crate::sys::netns::Netns;
use crate::sys::tun;

const BRIDGE_MAC: Mac = Mac([0x02, 1, 2, 3, 4, 5]);

fn desired() -> Desired {
    Desired {
        bridge: "mesh0".into(),
        mac: BRIDGE_MAC,
        tap: "meshtap".into(),
        mtu: 1310,
        mtu_before: None,
        exposed: Vec::new(),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn netns() -> Netns {
    Netns::new().expect("network namespaces need root: run the tests as root or by `unshare -rUn`")
}

/// Runs a test inside a new host.
fn on_host<F: AsyncFnOnce(Netlink) + Send>(test: F) {
    netns()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { test(Netlink::open().unwrap()).await });
        })
        .unwrap();
}

/// A container's namespace, and the path that names it.
fn container() -> (Netns, String) {
    let netns = netns();
    let path = netns.path().to_str().unwrap().to_owned();
    (netns, path)
}

/// A card with an address: one end of a pair, because not every kernel has dummy devices.
async fn card(netlink: &Netlink, name: &str, address: &str, mtu: u32) {
    let cable = format!("{name}-far");
    netlink.add_link(LinkVeth::new(name, &cable).mtu(mtu).up().build(), "make a card").await.unwrap();
    netlink.change_link(LinkUnspec::new_with_name(&cable).mtu(mtu).up(), "plug it").await.unwrap();
    let link = netlink.link(name).await.unwrap().unwrap();
    netlink.add_address(&link, net(address)).await.unwrap();
}

fn tap() -> OwnedFd {
    tun::open_queue("meshtap", true).expect("a TAP").0
}

/// Bridge and TAP as they should be, as the observer shows them.
fn good() -> Vec<Link> {
    let bridge = Link {
        index: 7,
        name: "mesh0".into(),
        kind: Kind::Bridge,
        mtu: 1310,
        mac: Some(BRIDGE_MAC),
        up: true,
        alias: Some(ALIAS.into()),
        ..Link::default()
    };
    let tap = Link {
        index: 8,
        name: "meshtap".into(),
        kind: Kind::Tun,
        mtu: TAP_MTU,
        up: true,
        master: Some(7),
        txqueuelen: TXQUEUELEN,
        silent: true,
        ..Link::default()
    };
    vec![bridge, tap]
}

#[test]
fn each_difference_gives_its_step() {
    type Spoil = fn(&mut Vec<Link>);
    let cases: &[(Spoil, &[Change])] = &[
        (|_| {}, &[]),
        (|links| links.clear(), &[Change::BridgeMade]),
        (|links| drop(links.remove(0)), &[Change::BridgeMade]),
        (|links| drop(links.remove(1)), &[Change::TapMissing]),
        (|links| links[0].mac = None, &[Change::BridgeMac]),
        (|links| links[0].stp = true, &[Change::BridgeSettings]),
        (|links| links[0].snooping = true, &[Change::BridgeSettings]),
        (|links| links[0].mtu = 1500, &[Change::BridgeMtu { from: 1500, to: 1310 }]),
        (|links| links[0].mtu = 1200, &[Change::BridgeMtu { from: 1200, to: 1310 }]),
        (|links| links[0].up = false, &[Change::BridgeUp]),
        (|links| links[1].mtu = 1500, &[Change::TapMtu { from: 1500, to: TAP_MTU }]),
        (|links| links[1].txqueuelen = 1000, &[Change::TapQueue]),
        (|links| links[1].silent = false, &[Change::TapSilent]),
        (|links| links[1].up = false, &[Change::TapUp]),
        (|links| links[1].master = None, &[Change::TapJoined]),
        (|links| links[1].master = Some(9), &[Change::TapJoined]),
        // A fresh TAP: its MTU first, then it joins.
        (
            |links| {
                links[1] = Link { index: 8, name: "meshtap".into(), kind: Kind::Tun, mtu: 1500, ..Link::default() };
            },
            &[
                Change::TapMtu { from: 1500, to: TAP_MTU },
                Change::TapQueue,
                Change::TapSilent,
                Change::TapJoined,
                Change::TapUp,
            ],
        ),
    ];
    for (at, (spoil, wanted)) in cases.iter().enumerate() {
        let mut links = good();
        spoil(&mut links);
        assert_eq!(difference(&desired(), &links, &[]).unwrap(), *wanted, "case {at}");
    }
}

#[test]
fn an_adopted_bridge_keeps_its_own_settings() {
    let mut links = good();
    links[0] = Link { alias: None, mac: None, stp: true, snooping: true, mtu: 1200, ..links[0].clone() };
    assert_eq!(difference(&desired(), &links, &[]).unwrap(), [Change::TapMulticast]);
    (links[1].floods_multicast, links[1].multicast_router) = (true, true);
    assert_eq!(difference(&desired(), &links, &[]).unwrap(), []);
    links[0].mtu = 1500;
    assert_eq!(difference(&desired(), &links, &[]).unwrap(), [Change::BridgeMtu { from: 1500, to: 1310 }]);
    // The underlay grew: who followed before follows again, and a lower one that its owner chose stays.
    let grown = Desired { mtu: 8810, mtu_before: Some(1310), ..desired() };
    links[0].mtu = 1310;
    assert_eq!(difference(&grown, &links, &[]).unwrap(), [Change::BridgeMtu { from: 1310, to: 8810 }]);
    links[0].mtu = 1200;
    assert_eq!(difference(&grown, &links, &[]).unwrap(), []);
}

#[test]
fn missing_addresses_of_the_host_are_put_back() {
    let desired = Desired { exposed: vec![net("10.32.0.1/12"), net("fd00::1/64")], ..desired() };
    let elsewhere = Address { index: 3, net: net("fd00::1/64"), ours: true, lasting: true };
    let there = Address { index: 7, net: net("10.32.0.1/12"), ours: true, lasting: true };
    let steps = difference(&desired, &good(), &[elsewhere, there]).unwrap();
    assert_eq!(steps, [Change::Exposed(net("fd00::1/64"))]);
}

#[test]
fn foreign_interfaces_of_our_names_are_named() {
    let mut links = good();
    links[0].kind = Kind::Veth;
    let error = difference(&desired(), &links, &[]).unwrap_err().to_string();
    assert_eq!(error, "the interface mesh0 exists and is a veth, not a bridge: choose another --bridge, or remove it");
    let mut links = good();
    links[1].kind = Kind::Other("vxlan".into());
    let error = difference(&desired(), &links, &[]).unwrap_err().to_string();
    assert_eq!(error, "the interface meshtap exists and is a vxlan, not a TAP: remove it");
}

#[test]
fn the_mac_of_a_bridge_is_stable_local_and_unicast() {
    let mac = stable_mac(&meshnet_proto::PeerId([0xff; 16]));
    assert_eq!(mac.to_string(), "fe:ff:ff:ff:ff:ff");
    assert!(!mac.is_group() && mac.0[0] & 2 == 2);
}

#[test]
fn a_bridge_is_made_kept_and_repaired() {
    on_host(async |netlink| {
        let mtu = Change::BridgeMtu { from: 1500, to: 1310 };
        assert_eq!(netlink.ensure(&desired()).await.unwrap(), [Change::BridgeMade, mtu, Change::TapMissing]);
        let queue = tap();
        let done = netlink.ensure(&desired()).await.unwrap();
        assert!(done.contains(&Change::TapJoined) && done.contains(&Change::TapUp), "{done:?}");
        assert_eq!(netlink.ensure(&desired()).await.unwrap(), [], "nothing is left to do");

        let bridge = netlink.link("mesh0").await.unwrap().unwrap();
        let on_it = netlink.link("meshtap").await.unwrap().unwrap();
        assert_eq!((bridge.mac, bridge.mtu, bridge.snooping, bridge.stp), (Some(BRIDGE_MAC), 1310, false, false));
        assert_eq!(
            (on_it.master, on_it.mtu),
            (Some(bridge.index), TAP_MTU),
            "what is longer is for the overlay to judge"
        );
        assert_eq!((on_it.txqueuelen, on_it.up), (TXQUEUELEN, true));

        // Spoiled by hand: put right.
        netlink.change_link(LinkUnspec::new_with_name("mesh0").down().mtu(1400), "spoil").await.unwrap();
        netlink.change_link(LinkUnspec::new_with_name("meshtap").nocontroller(), "spoil").await.unwrap();
        let done = netlink.ensure(&desired()).await.unwrap();
        assert_eq!(done, [Change::BridgeMtu { from: 1400, to: 1310 }, Change::TapJoined, Change::BridgeUp]);

        // Deleted under the peer: put back, with what was on it.
        let exposed = Desired { exposed: vec![net("10.32.0.1/12")], ..desired() };
        netlink.ensure(&exposed).await.unwrap();
        netlink.remove_link(&netlink.link("mesh0").await.unwrap().unwrap()).await.unwrap();
        let done = netlink.ensure(&exposed).await.unwrap();
        assert!(done.contains(&Change::BridgeMade) && done.contains(&Change::TapJoined), "{done:?}");
        assert_eq!(netlink.exposed("mesh0").await.unwrap(), [net("10.32.0.1/12")]);

        drop(queue);
        let gone = Instant::now();
        while netlink.link("meshtap").await.unwrap().is_some() && gone.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(netlink.ensure(&exposed).await.unwrap(), [Change::TapMissing]);
    });
}

#[test]
fn a_bridge_that_is_there_is_adopted() {
    on_host(async |netlink| {
        let theirs = LinkBridge::new("mesh0").mcast_snooping(true).mtu(1500);
        netlink.add_link(theirs.build(), "make their bridge").await.unwrap();
        let _queue = tap();
        netlink.ensure(&desired()).await.unwrap();
        assert_eq!(netlink.ensure(&desired()).await.unwrap(), []);
        let bridge = netlink.link("mesh0").await.unwrap().unwrap();
        let tap = netlink.link("meshtap").await.unwrap().unwrap();
        assert!(bridge.snooping && bridge.up && bridge.alias.is_none());
        assert!(bridge.mtu <= 1310);
        let grown = Desired { mtu: 1400, mtu_before: Some(1310), ..desired() };
        netlink.ensure(&grown).await.unwrap();
        let bridge = netlink.link("mesh0").await.unwrap().unwrap();
        assert_eq!(bridge.mtu, 1400);
        assert!(tap.floods_multicast && tap.multicast_router && tap.master == Some(bridge.index));
    });
}

#[test]
fn what_is_no_bridge_is_left_alone() {
    on_host(async |netlink| {
        card(&netlink, "mesh0", "192.0.2.1/24", 1500).await;
        let error = netlink.ensure(&desired()).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "the interface mesh0 exists and is a veth, not a bridge: choose another --bridge, or remove it"
        );
        assert!(matches!(netlink.attach("mesh0", 1310, "1", &[]).await, Err(Error::NotABridge { .. })));
    });
}

/// Reads frames from the TAP until one satisfies.
async fn heard(queue: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(3);
    let mut buffer = [0; 2048];
    while Instant::now() < until {
        match rustix::io::read(queue, &mut buffer) {
            Ok(bytes) if wanted(&buffer[tun::VNET_HEADER_BYTES.min(bytes)..bytes]) => return true,
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    false
}

#[test]
fn attaching_is_idempotent_and_announced() {
    let (_keep, path) = container();
    on_host(async |netlink| {
        let queue = tap();
        assert!(queue.as_raw_fd() > 0);
        netlink.ensure(&desired()).await.unwrap();
        let first = netlink.attach("mesh0", 1310, &path, &[net("10.32.0.5/12")]).await.unwrap();
        assert_eq!((first.interface.as_str(), first.mac.to_string().as_str()), (INTERFACE, "0a:58:0a:20:00:05"));
        assert!(first.changed && first.port.starts_with("mesh-") && first.port.len() <= 15);
        assert!(
            heard(&queue, |frame| frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&[10, 32, 0, 5]))
                .await
        );

        let again = netlink.attach("mesh0", 1310, &path, &[net("10.32.0.5/12")]).await.unwrap();
        assert_eq!(again, Attached { changed: false, ..first.clone() });

        let more = [net("10.32.0.5/12"), net("10.32.0.6/12"), net("fd00:32::6/64")];
        let wider = netlink.attach("mesh0", 1310, &path, &more).await.unwrap();
        assert!(wider.changed && more.iter().all(|net| wider.addresses.contains(net)), "{wider:?}");
        // The advertisement of the IPv6 address: ICMPv6 type 136.
        assert!(heard(&queue, |frame| frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(54) == Some(&136)).await);

        // Taken off the bridge by hand: put back.
        netlink.change_link(LinkUnspec::new_with_name(&first.port).nocontroller(), "spoil").await.unwrap();
        assert!(netlink.attach("mesh0", 1310, &path, &[]).await.unwrap().changed);
        let bridge = netlink.link("mesh0").await.unwrap().unwrap();
        let port = netlink.link(&first.port).await.unwrap().unwrap();
        assert_eq!((port.master, port.mtu), (Some(bridge.index), 1310));

        assert_eq!(netlink.detach(&path, &[net("10.32.0.6/12")]).await.unwrap(), [net("10.32.0.6/12")]);
        let error = netlink.detach(&path, &[net("10.32.0.6/12")]).await.unwrap_err();
        assert!(error.to_string().starts_with("10.32.0.6/12 is not on ethmesh"), "{error}");
        // The last ones take the interface with them.
        netlink.detach(&path, &[net("10.32.0.5/12"), net("fd00:32::6/64")]).await.unwrap();
        assert!(netlink.link(&first.port).await.unwrap().is_none());
        assert!(matches!(netlink.detach(&path, &[]).await, Err(Error::NotAttached(_))));
        assert!(matches!(netlink.attach("mesh0", 1310, &path, &[]).await, Err(Error::NoAddress(_))));
    });
}

#[test]
fn two_containers_reach_each_other_at_once() {
    let ((one, first), (_two, second)) = (container(), container());
    on_host(async |netlink| {
        netlink.ensure(&desired()).await.unwrap();
        netlink.attach("mesh0", 1310, &first, &[net("10.32.0.5/12"), net("fd00:32::5/64")]).await.unwrap();
        netlink.attach("mesh0", 1310, &second, &[net("10.32.0.6/12"), net("fd00:32::6/64")]).await.unwrap();
        for to in ["10.32.0.6:9", "[fd00:32::6]:9"] {
            // Nothing listens: the refusal comes from the other container.
            let refused =
                one.run(|| std::net::TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(2)));
            assert_eq!(refused.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "{to}");
        }
    });
}

#[test]
fn containers_return_to_the_bridge_they_were_on() {
    let ((_one, first), (_two, second)) = (container(), container());
    on_host(async |netlink| {
        let other = Desired { bridge: "mesh1".into(), tap: "othertap".into(), ..desired() };
        netlink.ensure(&desired()).await.unwrap();
        netlink.ensure(&other).await.unwrap();
        let here = netlink.attach("mesh0", 1310, &first, &[net("10.32.0.5/12")]).await.unwrap();
        let there = netlink.attach("mesh1", 1310, &second, &[net("10.32.0.6/12")]).await.unwrap();
        for bridge in ["mesh0", "mesh1"] {
            netlink.remove_link(&netlink.bridge(bridge).await.unwrap()).await.unwrap();
        }
        netlink.ensure(&desired()).await.unwrap();
        assert_eq!(netlink.rejoin("mesh0").await.unwrap(), 1);
        assert_eq!(netlink.rejoin("mesh0").await.unwrap(), 0);
        let index = netlink.bridge("mesh0").await.unwrap().index;
        assert_eq!(netlink.link(&here.port).await.unwrap().unwrap().master, Some(index));
        assert_eq!(netlink.link(&there.port).await.unwrap().unwrap().master, None, "it waits for its own");
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    let (keep, path) = container();
    on_host(async |netlink| {
        netlink.ensure(&desired()).await.unwrap();
        // The kernel refuses the second address, and by then the pair is made.
        let bad = [net("10.32.0.5/12"), net("224.0.0.1/24")];
        assert!(netlink.attach("mesh0", 1310, &path, &bad).await.is_err());
        let ports =
            || async { netlink.links().await.unwrap().iter().filter(|link| link.name.starts_with("mesh-")).count() };
        assert_eq!(ports().await, 0);
        let devices = keep.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        assert!(!devices.contains(INTERFACE), "{devices}");

        let made = netlink.attach("mesh0", 1310, &path, &[net("10.32.0.5/12")]).await.unwrap();
        let bad = [net("10.32.0.7/12"), net("10.32.0.8/12"), net("224.0.0.1/24")];
        assert!(netlink.attach("mesh0", 1310, &path, &bad).await.is_err());
        let after = netlink.attach("mesh0", 1310, &path, &[]).await.unwrap();
        assert_eq!(after.addresses, made.addresses, "the old ones stay, the new ones are gone");

        let error = netlink.attach("mesh0", 1310, &path, &[net("10.32.0.5/16")]).await.unwrap_err().to_string();
        assert!(error.starts_with("10.32.0.5/16 cannot be added: 10.32.0.5/12 is on ethmesh of"), "{error}");
    });
}

#[test]
fn a_container_without_ipv6_is_named_as_such() {
    let (keep, path) = container();
    keep.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap()).unwrap();
    on_host(async |netlink| {
        netlink.ensure(&desired()).await.unwrap();
        let both = [net("10.32.0.5/12"), net("fd00:32::5/64")];
        let error = netlink.attach("mesh0", 1310, &path, &both).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot add fd00:32::5/64 to ethmesh: IPv6 is switched off there"), "{error}");
        netlink.attach("mesh0", 1310, &path, &both[..1]).await.unwrap();
    });
}

#[test]
fn the_shortest_mtu_works_too() {
    let (keep, path) = container();
    on_host(async |netlink| {
        let _queue = tap();
        // Below 1280 the kernel takes IPv6 from an interface.
        let short = Desired { mtu: 576, ..desired() };
        netlink.ensure(&short).await.unwrap();
        assert_eq!(netlink.ensure(&short).await.unwrap(), []);
        netlink.attach("mesh0", 576, &path, &[net("10.32.0.5/12")]).await.unwrap();
        netlink.ensure(&desired()).await.unwrap();
        assert_eq!(netlink.ensure(&desired()).await.unwrap(), []);
        let routes = keep.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap()).unwrap();
        let multicast = routes.lines().any(|line| line.starts_with("ethmesh\t000000E0\t"));
        assert!(multicast, "multicast leaves by the mesh: {routes}");
    });
}

#[test]
fn a_missing_right_is_told_with_its_name() {
    let refused = io::Error::from_raw_os_error(libc::EPERM);
    let words = Error::io("make the bridge mesh0", refused).to_string();
    assert!(words.starts_with("cannot make the bridge mesh0: not permitted: meshd needs CAP_NET_ADMIN"), "{words}");
}

#[test]
fn wrong_namespaces_are_named() {
    let (keep, path) = container();
    on_host(async |netlink| {
        netlink.ensure(&desired()).await.unwrap();
        let addresses = [net("10.32.0.5/12")];
        let attach = async |namespace: &str| netlink.attach("mesh0", 1310, namespace, &addresses).await.unwrap_err();
        assert!(matches!(attach("no-such").await, Error::NoNamespace(_)));
        assert!(matches!(attach("999999999").await, Error::NoNamespace(_)));
        assert!(matches!(attach("/proc/self/ns/uts").await, Error::NotANamespace(_)));
        assert!(matches!(attach("/dev/null").await, Error::NotANamespace(_)));
        assert!(matches!(attach("/proc/thread-self/ns/net").await, Error::OwnNamespace(_)));
        assert!(matches!(netlink.attach("other", 1310, &path, &addresses).await, Err(Error::NoBridge(_))));
        keep.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { card(&Netlink::open().unwrap(), INTERFACE, "192.0.2.1/24", 1500).await });
        })
        .unwrap();
        assert!(matches!(attach(&path).await, Error::NameTaken { .. }));
    });
}

#[test]
fn the_host_gets_an_address_and_gives_it_back() {
    on_host(async |netlink| {
        let one = net("10.32.0.1/12");
        assert!(matches!(netlink.expose("mesh0", one).await, Err(Error::NoBridge(_))));
        netlink.ensure(&desired()).await.unwrap();
        card(&netlink, "eth0", "10.40.0.1/16", 1500).await;
        let warnings = netlink.expose("mesh0", one).await.unwrap();
        let wanted = "10.32.0.0/12 overlaps the route to 10.40.0.0/16 by eth0: one of them hides the other";
        assert_eq!(warnings, [wanted]);
        assert_eq!(netlink.expose("mesh0", one).await.unwrap(), Vec::<String>::new(), "again changes nothing");
        let taken = netlink.expose("mesh0", net("10.40.0.1/12")).await.unwrap_err().to_string();
        assert_eq!(taken, "10.40.0.1/12 cannot be added: 10.40.0.1/16 is on eth0 already");
        netlink.expose("mesh0", net("fd00:32::1/64")).await.unwrap();
        assert_eq!(netlink.exposed("mesh0").await.unwrap().len(), 2);

        assert!(matches!(netlink.hide("mesh0", Some(net("10.32.0.9/12"))).await, Err(Error::NoSuchAddress { .. })));
        assert_eq!(netlink.hide("mesh0", Some(one)).await.unwrap(), [one]);
        assert_eq!(netlink.hide("mesh0", None).await.unwrap(), [net("fd00:32::1/64")]);
        assert_eq!(netlink.hide("mesh0", None).await.unwrap(), []);
        assert_eq!(netlink.exposed("mesh0").await.unwrap(), []);
    });
}

#[test]
fn the_underlay_is_what_is_outside_the_bridge() {
    on_host(async |netlink| {
        let alone = netlink.underlay("mesh0", &[]).await.unwrap();
        assert_eq!(alone, Underlay { addresses: vec![], mtu: 1500 }, "the loopback device is down");
        card(&netlink, "eth0", "192.0.2.1/24", 1400).await;
        card(&netlink, "eth1", "2001:db8::1/64", 9000).await;
        netlink.ensure(&desired()).await.unwrap();
        netlink.expose("mesh0", net("10.32.0.1/12")).await.unwrap();
        let found = netlink.underlay("mesh0", &[]).await.unwrap();
        let texts: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
        assert_eq!((texts, found.mtu), (vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()], 1400));
        let wide = netlink.underlay("mesh0", &["2001:db8::7".parse().unwrap()]).await.unwrap();
        assert_eq!(wide.mtu, 9000, "only the way to peers counts");
        let unreachable = netlink.underlay("mesh0", &["198.51.100.1".parse().unwrap()]).await.unwrap();
        assert_eq!(unreachable.mtu, 1400);
    });
}

#[test]
fn changes_are_noticed() {
    on_host(async |netlink| {
        let watch = Watch::open().unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(quiet.is_err(), "nothing happened yet");
        netlink.ensure(&desired()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(2), watch.changed()).await.expect("the bridge was made");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _ = tokio::time::timeout(Duration::from_millis(10), watch.changed()).await;
        netlink.expose("mesh0", net("10.32.0.1/12")).await.unwrap();
        tokio::time::timeout(Duration::from_secs(2), watch.changed()).await.expect("an address was added");
    });
}

#[test]
fn neighbours_of_the_host_are_known_by_their_mac() {
    let (_keep, path) = container();
    on_host(async |netlink| {
        netlink.ensure(&desired()).await.unwrap();
        netlink.expose("mesh0", net("10.32.0.1/12")).await.unwrap();
        netlink.attach("mesh0", 1310, &path, &[net("10.32.0.5/12")]).await.unwrap();
        let ip: IpAddr = "10.32.0.5".parse().unwrap();
        assert_eq!(netlink.neighbour("mesh0", ip).await.unwrap(), None);
        let _ = std::net::TcpStream::connect_timeout(&(ip, 9).into(), Duration::from_secs(2));
        let mac = netlink.neighbour("mesh0", ip).await.unwrap();
        assert_eq!(mac.unwrap().to_string(), "0a:58:0a:20:00:05");
    });
}

#[test]
fn addresses_in_use_on_the_bridge_are_found() {
    let (_keep, path) = container();
    on_host(async |netlink| {
        let ip = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap();
        assert!(matches!(netlink.taken("mesh0", &[ip("10.32.0.5")]).await, Err(Error::NoBridge(_))));
        netlink.ensure(&desired()).await.unwrap();
        netlink.expose("mesh0", net("10.32.0.1/12")).await.unwrap();
        netlink.attach("mesh0", 1310, &path, &[net("10.32.0.5/12"), net("10.32.0.150/12")]).await.unwrap();
        // More than one batch.
        let all: Vec<_> = (1..=200).map(|last| std::net::Ipv4Addr::new(10, 32, 0, last)).collect();
        // A port of a bridge forwards when the kernel has seen its carrier.
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let taken = netlink.taken("mesh0", &all).await.unwrap();
            if taken.len() == 3 || Instant::now() > until {
                assert_eq!(taken, [ip("10.32.0.1"), ip("10.32.0.5"), ip("10.32.0.150")]);
                break;
            }
        }
        assert_eq!(netlink.taken("mesh0", &[]).await.unwrap(), [] as [std::net::Ipv4Addr; 0]);
        assert_eq!(netlink.taken("mesh0", &[ip("10.32.0.5")]).await.unwrap().len(), 1);
    });
}
