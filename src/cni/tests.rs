use super::call::Verb;
use super::config::{Ipam, Route, Version, wished};
use super::error::*;
use super::result::{Interface, Ip, Made, allocated, compose, earlier};
use super::*;

fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
    let pairs: Vec<(String, String)> = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    move |key| pairs.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
}

fn conf(extra: &str) -> Result<Conf, CniError> {
    Conf::parse(format!(r#"{{"cniVersion":"1.1.0","name":"net","type":"mesh-cni"{extra}}}"#).as_bytes())
}

#[test]
fn the_environment_of_each_verb() {
    let whole = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=a;IP=10.32.0.5, 10.40.0.5/16"),
        ("CNI_PATH", "/opt/cni/bin::/usr/lib/cni"),
    ];
    let with = |verb: &str, change: &[(&str, &str)]| {
        let mut all = vec![("CNI_COMMAND", verb)];
        all.extend(change);
        all.extend(whole);
        Call::read(environment(&all))
    };
    let call = with("ADD", &[]).unwrap();
    assert_eq!((call.verb, call.owner("net").as_str()), (Verb::Add, "cni:net:c1:eth0"));
    assert_eq!(call.ips(), ["10.32.0.5", "10.40.0.5/16"]);
    assert_eq!(call.path.len(), 2);
    let refused = |verb: &str, change: &[(&str, &str)], words: &str| {
        let error = with(verb, change).unwrap_err();
        assert_eq!(error.code, INVALID_ENVIRONMENT, "{error:?}");
        assert!(error.msg.contains(words), "{error:?}");
    };
    refused("", &[], "CNI_COMMAND is missing");
    refused("add", &[], "unknown CNI_COMMAND: add");
    refused("ADD", &[("CNI_NETNS", "")], "missing: CNI_NETNS");
    refused("CHECK", &[("CNI_NETNS", ""), ("CNI_IFNAME", "")], "missing: CNI_NETNS, CNI_IFNAME");
    refused("DEL", &[("CNI_CONTAINERID", "")], "missing: CNI_CONTAINERID");
    refused("ADD", &[("CNI_CONTAINERID", "a:b")], "CNI_CONTAINERID 'a:b'");
    refused("ADD", &[("CNI_CONTAINERID", "-a")], "CNI_CONTAINERID '-a'");
    refused("ADD", &[("CNI_IFNAME", "a/b")], "CNI_IFNAME 'a/b'");
    refused("ADD", &[("CNI_IFNAME", "sixteen-letters-")], "CNI_IFNAME");
    refused("ADD", &[("CNI_ARGS", "IP")], "CNI_ARGS: 'IP' is wrong");
    assert!(with("DEL", &[("CNI_NETNS", "")]).is_ok(), "the namespace may be gone");
    for (verb, name) in [(Verb::Gc, "GC"), (Verb::Status, "STATUS"), (Verb::Version, "VERSION")] {
        assert_eq!(Call::read(environment(&[("CNI_COMMAND", name)])).unwrap().verb, verb);
    }
}

#[test]
fn a_configuration_and_its_defaults() {
    let plain = conf("").unwrap();
    assert_eq!((plain.version, plain.hairpin, plain.gateway), (Version::V1_1, true, true));
    assert_eq!(plain.socket.to_str(), Some(SOCKET));
    assert_eq!(plain.ipam, Ipam::Own { subnet: None, ip: None, gateway: None, routes: Vec::new() });
    let full = conf(
        r#","bridge":"br1","mtu":1400,"hairpinMode":false,"isGateway":false,"ipMasq":true,"socket":"/s","dataDir":"/d",
        "ipam":{"type":"mesh-ipam","subnet":"10.40.0.0/16","ip":"10.40.0.9","gateway":"10.40.0.1","routes":[{"dst":"0.0.0.0/0"}]},
        "dns":{"nameservers":["10.96.0.10"]},"args":{"cni":{"ips":["10.40.0.7"]}},"runtimeConfig":{"ips":["10.40.0.8"]},
        "capabilities":{"ips":true},"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}],"prevResult":{"ips":[]}"#,
    )
    .unwrap();
    assert_eq!((full.bridge.as_deref(), full.mtu, full.hairpin, full.gateway), (Some("br1"), Some(1400), false, false));
    assert_eq!(full.ips, ["10.40.0.7"], "args come before runtimeConfig");
    assert_eq!(full.dns["nameservers"][0], "10.96.0.10");
    assert_eq!(full.valid.unwrap().len(), 1);
    assert!(full.prev.is_some());
    let Ipam::Own { subnet, ip, gateway, routes } = full.ipam else { panic!("own") };
    assert_eq!((subnet.unwrap().to_string(), ip.unwrap()), ("10.40.0.0/16".into(), "10.40.0.9".into()));
    assert_eq!((gateway.unwrap().to_string(), routes.len()), ("10.40.0.1".into(), 1));
    assert_eq!(conf(r#","ipam":{"type":"host-local","subnet":"x"}"#).unwrap().ipam, Ipam::Plugin("host-local".into()));
    assert!(conf("").unwrap().valid.is_none());
    assert_eq!(conf(r#","cni.dev/valid-attachments":null"#).unwrap().valid.unwrap().len(), 0);
    assert_eq!(conf(r#","mtu":0"#).unwrap().mtu, None);
    assert!(conf(r#","vlan":0,"promiscMode":false"#).is_ok());
}

#[test]
fn a_wrong_configuration_is_named() {
    let cases: [(&str, u32, &str); 12] = [
        (r#","mtu":"x""#, INVALID_CONFIG, "the configuration is wrong"),
        (r#","mtu":67"#, INVALID_CONFIG, "mtu: a number from 68"),
        (r#","ipam":{"subnet":"10.40.0.1/16"}"#, INVALID_CONFIG, r#"ipam.subnet: "10.40.0.1/16" is wrong"#),
        (r#","ipam":{"subnet":5}"#, INVALID_CONFIG, "ipam.subnet: 5 is wrong"),
        (r#","ipam":{"gateway":"x"}"#, INVALID_CONFIG, r#"ipam.gateway: "x" is wrong"#),
        (r#","ipam":{"routes":[{"dst":"x"}]}"#, INVALID_CONFIG, "ipam.routes"),
        (r#","ipam":{"type":"a/b"}"#, INVALID_CONFIG, "ipam.type 'a/b'"),
        (r#","vlan":5"#, UNSUPPORTED_FIELD, "vlan: 5 is not supported"),
        (r#","promiscMode":true"#, UNSUPPORTED_FIELD, "promiscMode: true"),
        (r#","args":{"cni":{"mac":"02:00:00:00:00:01"}}"#, UNSUPPORTED_FIELD, "mac '02:00:00:00:00:01'"),
        (r#","runtimeConfig":{"mac":"02:00:00:00:00:01"}"#, UNSUPPORTED_FIELD, "mac '02:00:00:00:00:01'"),
        (r#","cni.dev/valid-attachments":[{"containerID":"c"}]"#, INVALID_CONFIG, "ifname"),
    ];
    for (extra, code, words) in cases {
        let error = conf(extra).unwrap_err();
        assert_eq!(error.code, code, "{extra}: {error:?}");
        assert!(error.msg.contains(words) && error.msg.lines().count() == 1, "{extra}: {error:?}");
    }
    let whole: [(&str, u32, &str); 8] = [
        ("{", NOT_DECODED, "is not JSON"),
        ("", NOT_DECODED, "is not JSON"),
        ("[]", NOT_DECODED, "not a JSON object"),
        (r#"{"name":"net"}"#, INCOMPATIBLE_VERSION, "cniVersion '' is not supported"),
        (r#"{"cniVersion":"0.2.0","name":"net"}"#, INCOMPATIBLE_VERSION, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (r#"{"cniVersion":1,"name":"net"}"#, INVALID_CONFIG, "cniVersion: 1 is wrong"),
        (r#"{"cniVersion":"1.0.0"}"#, INVALID_CONFIG, "name is missing"),
        (r#"{"cniVersion":"1.0.0","name":"a:b"}"#, INVALID_CONFIG, "name 'a:b' is wrong"),
    ];
    for (text, code, words) in whole {
        let error = Conf::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.code, code, "{text}: {error:?}");
        assert!(error.msg.contains(words), "{text}: {error:?}");
    }
}

#[test]
fn addresses_that_are_asked_for() {
    assert_eq!(wished("10.32.0.5").unwrap(), ("10.32.0.5".parse().unwrap(), None));
    assert_eq!(wished("10.32.0.5/16").unwrap().1.unwrap().to_string(), "10.32.0.5/16");
    assert_eq!(wished("fd00::5/64").unwrap().0.to_string(), "fd00::5");
    for wrong in ["", "10.32.0", "10.32.0.5/33", "0.0.0.0", "x"] {
        assert_eq!(wished(wrong).unwrap_err().code, INVALID_CONFIG, "{wrong}");
    }
}

fn made() -> Made {
    let interface = |name: &str, sandbox: Option<&str>, mtu| Interface {
        name: name.into(),
        mac: "0a:58:0a:20:00:05".into(),
        mtu,
        sandbox: sandbox.map(str::to_owned),
    };
    Made {
        interfaces: vec![interface("mesh0", None, 0), interface("eth0", Some("/run/netns/c"), 1310)],
        carrier: 1,
        ips: vec![
            Ip { address: "10.32.0.5/12".parse().unwrap(), gateway: Some("10.32.0.1".parse().unwrap()) },
            Ip { address: "fd00::5/64".parse().unwrap(), gateway: None },
        ],
        routes: vec![
            Route { dst: "0.0.0.0/0".parse().unwrap(), gw: Some("10.32.0.1".parse().unwrap()) },
            Route { dst: "10.0.0.0/8".parse().unwrap(), gw: None },
        ],
        dns: Default::default(),
    }
}

#[test]
fn the_shape_of_a_result_follows_its_version() {
    for version in VERSIONS {
        let text = format!(r#"{{"cniVersion":"{version}","name":"net"}}"#);
        let result = compose(&Conf::parse(text.as_bytes()).unwrap(), &made());
        let (old, new) = (version.starts_with("0."), version == "1.1.0");
        let mut expected = json!({
            "cniVersion": version,
            "interfaces": [
                { "name": "mesh0", "mac": "0a:58:0a:20:00:05" },
                { "name": "eth0", "mac": "0a:58:0a:20:00:05", "sandbox": "/run/netns/c" },
            ],
            "ips": [
                { "address": "10.32.0.5/12", "gateway": "10.32.0.1", "interface": 1 },
                { "address": "fd00::5/64", "interface": 1 },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.32.0.1" }, { "dst": "10.0.0.0/8" }],
            "dns": {},
        });
        if old {
            expected["ips"][0]["version"] = json!("4");
            expected["ips"][1]["version"] = json!("6");
        }
        if new {
            expected["interfaces"][1]["mtu"] = json!(1310);
        }
        assert_eq!(result, expected);
    }
}

#[test]
fn what_came_before_stays_and_ours_follows() {
    let before = r#","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"ifb0"},{"name":"net0","sandbox":"/run/netns/c","x":1}],
        "ips":[{"address":"192.0.2.5/24","interface":1,"gateway":"192.0.2.1"}],"routes":[{"dst":"192.0.2.0/24","mtu":9000}],
        "dns":{"domain":"example"}}"#;
    let result = compose(&conf(before).unwrap(), &made());
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
    assert_eq!(result["interfaces"][1]["x"], 1, "keys of others are kept");
    assert_eq!(result["ips"][0]["interface"], 1);
    assert_eq!(result["ips"][1]["interface"], 3, "ours are counted on");
    assert_eq!(result["routes"][0]["mtu"], 9000);
    assert_eq!(result["dns"]["domain"], "example");
    let own = Made { dns: serde_json::from_str(r#"{"nameservers":["10.96.0.10"]}"#).unwrap(), ..made() };
    assert_eq!(compose(&conf(before).unwrap(), &own)["dns"], json!({ "nameservers": ["10.96.0.10"] }));
}

#[test]
fn an_interface_is_found_in_an_earlier_result() {
    let of = |value: Value| earlier(value.as_object().unwrap(), "eth0", "/var/run/netns/c").unwrap();
    let whole = compose(&conf("").unwrap(), &made());
    let found = of(whole).unwrap();
    assert_eq!((found.mac.as_str(), found.ips.len(), found.routes.len()), ("0a:58:0a:20:00:05", 2, 2));
    let two = json!({
        "interfaces": [
            { "name": "eth1", "mac": "aa", "sandbox": "/run/netns/c" },
            { "name": "eth0", "mac": "BB", "sandbox": "/run/netns/c" },
        ],
        "ips": [
            { "address": "192.0.2.5/24", "interface": 0, "gateway": "192.0.2.1" },
            { "address": "10.32.0.5/12", "interface": 1, "gateway": "10.32.0.1" },
        ],
        "routes": [{ "dst": "192.0.2.0/24" }, { "dst": "0.0.0.0/0", "gw": "10.32.0.1" }],
    });
    let found = of(two).unwrap();
    assert_eq!((found.mac.as_str(), found.ips.len(), found.routes.len()), ("bb", 1, 1));
    assert_eq!(found.ips[0].address.to_string(), "10.32.0.5/12");
    assert_eq!(of(json!({ "interfaces": [{ "name": "eth0", "mac": "", "sandbox": "/run/netns/other" }] })), None);
    assert_eq!(of(json!({})), None);
    assert!(earlier(json!({ "ips": [{ "address": "x" }] }).as_object().unwrap(), "eth0", "/c").is_err());
}

#[test]
fn answers_of_ipam_plugins() {
    let old = json!({ "cniVersion": "0.4.0", "ips": [{ "version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1" }],
        "routes": [{ "dst": "0.0.0.0/0" }], "dns": { "domain": "d" } });
    let found = allocated("host-local", old).unwrap();
    assert_eq!((found.ips.len(), found.routes.len(), found.dns.len()), (1, 1, 1));
    for wrong in [json!({}), json!({ "ips": [] }), json!({ "ips": [{ "address": "x" }] }), Value::Null] {
        assert_eq!(allocated("host-local", wrong.clone()).unwrap_err().code, DELEGATE, "{wrong}");
    }
}

#[test]
fn verbs_are_refused_in_versions_that_lack_them() {
    let ask = |verb: &str, text: &str| {
        let pairs = [("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/x")];
        answer(text.as_bytes(), false, environment(&pairs))
    };
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let text = format!(r#"{{"cniVersion":"{version}","name":"net"}}"#);
        let error = ask(verb, &text).unwrap_err();
        assert_eq!(error.code, INCOMPATIBLE_VERSION, "{error:?}");
        assert_eq!(error.json(&asked_version(text.as_bytes()))["cniVersion"], version);
    }
    let versions = ask("VERSION", "").unwrap();
    assert_eq!(versions, json!({ "cniVersion": "1.1.0", "supportedVersions": VERSIONS }));
    assert_eq!(ask("VERSION", r#"{"cniVersion":"0.4.0"}"#).unwrap()["cniVersion"], "0.4.0");
    assert_eq!(ask("VERSION", r#"{"cniVersion":"9"}"#).unwrap()["cniVersion"], "1.1.0");
    assert_eq!(ask("VERSION", "{").unwrap_err().code, NOT_DECODED);
    let long = format!(r#"{{"cniVersion":"1.1.0","name":"{}"}}"#, "n".repeat(101));
    assert_eq!(ask("ADD", &long).unwrap_err().code, INVALID_CONFIG);
}

#[test]
fn what_waits_is_delivered_once_and_taken_back_by_its_owner() {
    let dir = std::env::temp_dir().join(format!("meshnet-spool-{}", std::process::id()));
    let spool = Spool::new(&dir);
    let (socket, other) = (std::path::Path::new("/run/a.sock"), std::path::Path::new("/run/b.sock"));
    assert!(spool.pending(socket, 9).is_empty(), "nothing is made before it is needed");
    for owner in ["cni:n:1:eth0", "cni:n:2:eth0", "cni:n:2:eth0"] {
        spool.defer(owner, socket).unwrap();
    }
    spool.defer("cni:n:3:eth0", other).unwrap();
    assert_eq!(spool.pending(socket, 9).len(), 2);
    assert_eq!(spool.pending(socket, 1).len(), 1);
    assert_eq!(spool.pending(other, 9), ["cni:n:3:eth0"]);
    spool.cancel("cni:n:1:eth0").unwrap();
    spool.cancel("cni:n:1:eth0").unwrap();
    assert_eq!(spool.pending(socket, 9), ["cni:n:2:eth0"]);
    assert!(spool.waits("cni:n:2:eth0") && !spool.waits("cni:n:1:eth0"));
    let turn = spool.turn("cni:n:2:eth0").unwrap();
    assert!(spool.try_turn("cni:n:2:eth0").is_none());
    assert!(spool.try_turn("cni:n:3:eth0").is_some());
    drop(turn);
    assert!(spool.try_turn("cni:n:2:eth0").is_some());
    std::fs::remove_dir_all(&dir).unwrap();
    // A file where the directory should be.
    std::fs::write(&dir, "").unwrap();
    assert_eq!(spool.defer("cni:n:1:eth0", socket).unwrap_err().code, FILE);
    assert_eq!(spool.turn("cni:n:1:eth0").unwrap_err().code, FILE);
    std::fs::remove_file(&dir).unwrap();
}
