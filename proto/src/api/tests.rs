use super::*;
use serde_json::{Value, json};

fn id(byte: u8) -> PeerId {
    PeerId([byte; 16])
}

fn status() -> Status {
    Status {
        version: VERSION,
        peer: Me { id: id(1), name: "one".into(), software: "0.1.0".into(), uptime_s: 5 },
        links: vec![Link {
            peer: Some(id(2)),
            name: "two".into(),
            address: "192.0.2.2:6783".into(),
            state: LinkState::Established,
            transport: "udp".into(),
            encrypted: true,
            mtu: 1310,
            rtt_ms: 0.25,
            outbound: true,
            reason: None,
            retry_s: None,
            cipher: "aes-256-gcm".into(),
            ports: 1,
        }],
        peers: vec![Peer {
            id: id(3),
            name: "three".into(),
            reachable: true,
            hops: 2,
            via: Some(id(2)),
            links: vec![id(2)],
            software: "0.1.0".into(),
            addresses: vec!["[2001:db8::3]:6783".parse().unwrap()],
            changed_s: 9,
        }],
        ipam: Ipam {
            shares: vec![Share {
                peer: id(1),
                name: "one".into(),
                addresses: 4,
                percent: 50.0,
                reachable: true,
                digest: "1a2b3c4d5e6f7081".into(),
                free: Some(3),
                standing: "admitted".into(),
            }],
            conflicts: vec!["10.32.0.9: somebody has it".into()],
            ..Ipam::off()
        },
        data: Data { drops: BTreeMap::from([("forged".into(), 3)]), ..Data::default() },
        kubernetes: Some(Kubernetes { state: "ok".into(), ..Kubernetes::default() }),
        problems: vec![Problem { what: "what".into(), remedy: "remedy".into() }],
        targets: vec![Target { address: "two".into(), source: "flag".into() }],
        routes: vec![Route {
            peer: id(3),
            name: "three".into(),
            kind: "relayed".into(),
            address: None,
            relays: vec![id(2)],
            rtt_ms: 0.5,
            flood_to: vec![id(2)],
        }],
        device: Device::default(),
    }
}

fn topology() -> Topology {
    Topology {
        peers: vec![TopologyPeer { id: id(1), name: "one".into(), addresses: Vec::new() }],
        links: vec![TopologyLink { a: id(1), b: id(2), rtt_ms: 1.0, transport: "udp".into() }],
    }
}

/// The keys that programs rely on, and the type of each: a letter as in the user's documentation (S text, N whole number, F number, B truth, H id, A list, O
/// object, - nothing).
fn keys(value: &Value, keys: &[(&str, char)]) {
    for (key, wanted) in keys {
        let Some(value) = value.get(*key) else { panic!("no key '{key}' in {value}") };
        let is = match wanted {
            'S' => value.is_string(),
            'N' => value.is_u64(),
            'F' => value.is_number(),
            'B' => value.is_boolean(),
            'H' => value.as_str().is_some_and(|text| text.parse::<PeerId>().is_ok()),
            'A' => value.is_array(),
            'O' => value.is_object(),
            '-' => value.is_null(),
            _ => unreachable!(),
        };
        assert!(is, "'{key}' should be {wanted}: {value}");
    }
}

#[test]
fn keys_of_the_status_are_those_that_programs_rely_on() {
    let json = serde_json::to_value(status()).unwrap();
    keys(
        &json,
        &[
            ("version", 'N'),
            ("peer", 'O'),
            ("links", 'A'),
            ("peers", 'A'),
            ("ipam", 'O'),
            ("data", 'O'),
            ("problems", 'A'),
        ],
    );
    assert_eq!(json["version"], 1);
    keys(&json["peer"], &[("id", 'H'), ("name", 'S'), ("software", 'S'), ("uptime_s", 'N')]);
    let link = [
        ("peer", 'H'),
        ("name", 'S'),
        ("address", 'S'),
        ("state", 'S'),
        ("transport", 'S'),
        ("encrypted", 'B'),
        ("mtu", 'N'),
        ("rtt_ms", 'F'),
        ("outbound", 'B'),
        ("reason", '-'),
    ];
    keys(&json["links"][0], &link);
    let peer = [("id", 'H'), ("name", 'S'), ("reachable", 'B'), ("hops", 'N'), ("via", 'H'), ("links", 'A')];
    keys(&json["peers"][0], &peer);
    let ipam = [
        ("state", 'S'),
        ("range", 'S'),
        ("subnet", 'S'),
        ("owned", 'N'),
        ("used", 'N'),
        ("free", 'N'),
        ("shares", 'A'),
        ("reason", 'S'),
        ("digest", 'S'),
        ("members", 'N'),
        ("removed", 'N'),
        ("conflicts", 'A'),
    ];
    keys(&json["ipam"], &ipam);
    let share = [
        ("peer", 'H'),
        ("name", 'S'),
        ("addresses", 'N'),
        ("percent", 'F'),
        ("reachable", 'B'),
        ("digest", 'S'),
        ("free", 'N'),
        ("standing", 'S'),
    ];
    keys(&json["ipam"]["shares"][0], &share);
    let data = [("tx_frames", 'N'), ("tx_bytes", 'N'), ("rx_frames", 'N'), ("rx_bytes", 'N'), ("drops", 'O')];
    keys(&json["data"], &data);
    assert_eq!(json["data"]["drops"]["forged"], 3);
    keys(&json["problems"][0], &[("what", 'S'), ("do", 'S')]);
}

#[test]
fn keys_of_the_topology() {
    let json = serde_json::to_value(topology()).unwrap();
    keys(&json, &[("peers", 'A'), ("links", 'A')]);
    keys(&json["peers"][0], &[("id", 'H'), ("name", 'S'), ("addresses", 'A')]);
    keys(&json["links"][0], &[("a", 'H'), ("b", 'H'), ("rtt_ms", 'F'), ("transport", 'S')]);
}

#[test]
fn words_of_the_status() {
    for (state, word) in [
        (LinkState::Connecting, "connecting"),
        (LinkState::Established, "established"),
        (LinkState::Failed, "failed"),
        (LinkState::Retrying, "retrying"),
    ] {
        assert_eq!(serde_json::to_value(state).unwrap(), word);
    }
    assert_eq!(Ipam::off().state, "off");
    let mut unknown = status();
    unknown.links[0].peer = None;
    unknown.links[0].reason = Some("no answer".into());
    let json = serde_json::to_value(&unknown).unwrap();
    assert_eq!((&json["links"][0]["peer"], &json["links"][0]["reason"]), (&json!(""), &json!("no answer")));
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), unknown);
}

fn round_trip<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
    let text = serde_json::to_string(&value).unwrap();
    let back: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(back, value, "{text}");
}

#[test]
fn documents_read_what_they_write() {
    round_trip(status());
    round_trip(topology());
    let mac = MacEntry { mac: "02:00:00:00:00:01".into(), peer: id(1), name: "one".into(), age_s: 1, local: false };
    round_trip(mac.clone());
    round_trip(Report {
        version: VERSION,
        status: status(),
        topology: topology(),
        macs: vec![mac],
        settings: BTreeMap::from([("bridge".into(), "mesh0".into())]),
        counters: BTreeMap::from([("mesh_data_drops".into(), u64::MAX)]),
        kernel: "6".into(),
        events: vec!["started".into()],
    });
}

#[test]
fn commands_and_replies() {
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    for (command, name) in [
        (Command::Connect { addresses: words(&["a"]) }, "connect"),
        (Command::Forget { addresses: words(&["a", "b:1"]) }, "forget"),
        (Command::Attach { namespace: "n".into(), addresses: Vec::new() }, "attach"),
        (Command::Detach { namespace: "n".into(), addresses: words(&["10.32.0.1/12"]) }, "detach"),
        (Command::Expose { address: "10.32.0.1/12".into() }, "expose"),
        (Command::Hide { address: None }, "hide"),
        (Command::Ping { peer: "two".into() }, "ping"),
        (Command::Trace { to: "10.32.0.1".into() }, "trace"),
        (Command::IpAlloc { id: "web".into(), subnet: None }, "ip-alloc"),
        (Command::IpAlloc { id: "web".into(), subnet: Some("10.33.0.0/16".into()) }, "ip-alloc"),
        (Command::IpClaim { id: "web".into(), address: "10.32.0.9".into() }, "ip-claim"),
        (Command::IpLookup { id: "web".into() }, "ip-lookup"),
        (Command::IpFree { id: "web".into(), address: None }, "ip-free"),
        (Command::IpList, "ip-list"),
        (Command::Rmpeer { peers: words(&["two", "1a2b"]), force: true }, "rmpeer"),
        (Command::Leave, "leave"),
        (Command::Network, "network"),
    ] {
        assert_eq!(serde_json::to_value(&command).unwrap()["command"], name);
        round_trip(command);
    }
    let hop = TraceHop { peer: id(2), name: "two".into(), address: None, rtt_ms: 0.5 };
    let trace = Trace {
        to: "10.32.0.1".into(),
        mac: None,
        peer: id(2),
        name: "two".into(),
        local: false,
        hops: vec![hop],
        mtu: 1310,
        cipher: String::new(),
        fast: false,
    };
    let lease =
        Lease { id: "web".into(), address: "10.32.0.5".into(), subnet: "10.32.0.0/12".into(), unconfirmed: false };
    for (reply, name) in [
        (Reply::Address { address: "10.32.0.5/12".into() }, "address"),
        (Reply::Leases { leases: vec![lease] }, "leases"),
        (Reply::Removed { peers: words(&["two"]), addresses: 7 }, "removed"),
        (Reply::Done, "done"),
        (Reply::Attached { interface: "ethmesh".into(), addresses: Vec::new() }, "attached"),
        (Reply::Pong { peer: id(2), name: "two".into(), rtt_ms: 0.5, path: "direct".into() }, "pong"),
        (Reply::Trace(trace), "trace"),
        (Reply::Network(Network { bridge: "mesh0".into(), mtu: 1310, ..Network::default() }), "network"),
        (Reply::Refused { reason: "no".into() }, "refused"),
    ] {
        assert_eq!(serde_json::to_value(&reply).unwrap()["reply"], name);
        round_trip(reply);
    }
    for wrong in [r#"{"command":"reboot"}"#, r#"{"command":"ping"}"#, "{}", "[]", r#"{"peer":"two"}"#] {
        assert!(serde_json::from_str::<Command>(wrong).is_err(), "{wrong}");
    }
    assert!(serde_json::from_str::<PeerId>(r#""+0+0+0+0+0+0+0+0+0+0+0+0+0+0+0+0""#).is_err());
}

/// A newer program adds keys: an older one must still read what it knows.
#[test]
fn unknown_keys_are_skipped() {
    let mut json = serde_json::to_value(status()).unwrap();
    json["later"] = json!({"a": 1});
    json["peer"]["later"] = json!([1]);
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status());
}

/// An older program lacks keys that were added: its documents are read all the same.
#[test]
fn added_keys_may_be_missing() {
    let mut json = serde_json::to_value(status()).unwrap();
    let remove = |value: &mut Value, keys: &[&str]| {
        let object = value.as_object_mut().unwrap();
        keys.iter().for_each(|key| assert!(object.remove(*key).is_some(), "{key}"));
    };
    remove(&mut json["ipam"], &["reason", "digest", "members", "removed", "conflicts"]);
    remove(&mut json["ipam"]["shares"][0], &["digest", "free", "standing"]);
    let old = serde_json::from_value::<Status>(json).unwrap();
    assert_eq!((old.ipam.members, old.ipam.shares[0].free), (0, None));
}
