//! `mesh-cni` as a runtime drives it: environment and standard input in, JSON out; with a real `meshd`, in network namespaces.

#[path = "netns/lab.rs"]
mod lab;
#[path = "cni/runtime.rs"]
mod runtime;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Host, Lab};
use runtime::{Net, SECOND, address, hear, leases, machine, merge, net, ports, ready, serve, spool};
use serde_json::{Value, json};

#[test]
fn all_verbs_in_all_versions() {
    lab::test("all_verbs_in_all_versions", |lab| {
        let meshd = machine(lab, "a", &[]);
        for (at, version) in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
            let net = net(lab, &meshd, version);
            let name = format!("pod{at}");
            let pod = lab.host(&name);
            let result = net.verb("ADD", &name).done();
            assert_eq!(result["cniVersion"], version);
            let interfaces = result["interfaces"].as_array().expect("interfaces");
            assert_eq!(interfaces.len(), 3, "{result}");
            assert_eq!((interfaces[0]["name"].as_str(), interfaces[2]["name"].as_str()), (Some("mesh0"), Some("eth0")));
            assert_eq!(interfaces[2]["sandbox"], format!("/run/netns/{name}"));
            assert!(interfaces[0].get("sandbox").is_none(), "{result}");
            assert_eq!(result["ips"][0]["interface"], 2);
            assert_eq!(result["ips"][0].get("version").is_some(), version.starts_with("0."), "{result}");
            assert_eq!(interfaces[2].get("mtu").is_some(), version == "1.1.0", "{result}");
            let gateway = result["ips"][0]["gateway"].as_str().expect("a gateway").to_owned();
            assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": gateway }]));
            let mac = pod.run(&["cat", "/sys/class/net/eth0/address"]);
            assert_eq!(interfaces[2]["mac"], mac.trim());
            pod.await_ping(&gateway, 5 * SECOND);
            let host = &meshd.host;
            assert!(host.reaches(&address(&result)), "node to pod");

            let again = net.verb("ADD", &name).done();
            assert_eq!(again, result, "the same again");
            let with = net.with(json!({ "prevResult": result }));
            match version {
                "0.3.0" | "0.3.1" => with.verb("CHECK", &name).refused(1, "does not allow CHECK"),
                _ => drop(with.verb("CHECK", &name).done()),
            }
            match version {
                "1.1.0" => drop(net.plugin("STATUS", &[]).done()),
                _ => net.plugin("STATUS", &[]).refused(1, "does not allow STATUS"),
            }
            let supported = net.plugin("VERSION", &[]).done();
            assert_eq!(supported["cniVersion"], version);
            assert_eq!(supported["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
            assert!(net.leased(&name).is_some());
            for _ in 0..2 {
                assert_eq!(with.verb("DEL", &name).done(), Value::Null);
            }
            assert_eq!((net.leased(&name), ports(&meshd)), (None, 0));
        }
        assert!(!spool(lab, &meshd.host).join("pending").exists());
    });
}

/// DEL succeeds whatever is left of a container, as often as it comes.
#[test]
fn del_of_what_is_half_there() {
    lab::test("del_of_what_is_half_there", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.0.0");
        assert_eq!(net.verb("DEL", "never-seen").done(), Value::Null);
        // The namespace is gone, and the runtime says so by an empty name, by the old one, or not at all.
        for (name, netns) in [("gone0", ""), ("gone1", "/run/netns/gone1"), ("gone2", "unset")] {
            lab.host(name);
            net.verb("ADD", name).done();
            lab::ok("ip", &["netns", "del", name]);
            lab::wait("the port goes with the namespace", 5 * SECOND, || ports(&meshd) == 0);
            assert!(net.leased(name).is_some());
            for _ in 0..2 {
                match netns {
                    "unset" => {
                        let said = net.plugin("DEL", &[("CNI_CONTAINERID", name), ("CNI_IFNAME", "eth0")]);
                        assert_eq!(said.done(), Value::Null);
                    }
                    _ => assert_eq!(net.verb_at("DEL", name, "eth0", netns, "broken").done(), Value::Null),
                }
            }
            assert_eq!(net.leased(name), None);
        }
        // Only the port is left, or only the lease.
        lab.host("port");
        net.verb("ADD", "port").done();
        meshd.ctl(&["ip", "free", &net.owner("port")]);
        net.verb("DEL", "port").done();
        let pod = lab.host("lease");
        net.verb("ADD", "lease").done();
        pod.run(&["ip", "link", "del", "eth0"]);
        net.verb("DEL", "lease").done();
        assert_eq!((leases(&meshd), ports(&meshd)), (Vec::new(), 0));
    });
}

/// Without meshd ADD says to try again and DEL does what it can; what it cannot is done by the next call that finds meshd.
#[test]
fn while_meshd_is_away() {
    lab::test("while_meshd_is_away", |lab| {
        let mut meshd = machine(lab, "a", &[]);
        let host = meshd.host.clone();
        let pods: Vec<Host> = ["one", "two", "three"].into_iter().map(|name| lab.host(name)).collect();
        for pod in &pods {
            net(lab, &meshd, "1.1.0").verb("ADD", &pod.name).done();
        }
        let before = net(lab, &meshd, "1.1.0").leased("three");
        meshd.stop("TERM");
        {
            let net = net(lab, &meshd, "1.1.0");
            lab.host("four");
            net.verb("ADD", "four").refused(11, "no meshd at");
            net.plugin("STATUS", &[]).refused(51, "no meshd at");
            for name in ["one", "two", "three", "never-seen"] {
                net.verb("DEL", name).done();
                net.verb("DEL", name).done();
            }
            assert_eq!(ports(&meshd), 0, "the interfaces are gone at once");
        }
        let waiting = || std::fs::read_dir(spool(lab, &host).join("pending")).map_or(0, |files| files.count());
        assert_eq!(waiting(), 4);
        let meshd = lab.meshd(&host, &["--ipam-range", "10.32.0.0/12", "--expose", "auto"]);
        ready(&meshd);
        let net = net(lab, &meshd, "1.1.0");
        assert_eq!(leases(&meshd).len(), 3, "still given out");
        // Added again before anything was delivered: its address is its own again, and stays.
        let result = net.verb("ADD", "three").done();
        assert!(before.is_some_and(|before| before.starts_with(&address(&result))));
        net.plugin("STATUS", &[]).done();
        assert_eq!((leases(&meshd), waiting()), (vec![net.owner("three")], 0));
        assert!(net.with(json!({ "prevResult": result })).verb("CHECK", "three").ok);
    });
}

/// An ADD that fails for want of meshd forgets no address that is to be given back.
#[test]
fn nothing_is_forgotten() {
    lab::test("nothing_is_forgotten", |lab| {
        let mut meshd = machine(lab, "a", &[]);
        let host = meshd.host.clone();
        lab.host("pod");
        net(lab, &meshd, "1.1.0").verb("ADD", "pod").done();
        meshd.stop("KILL");
        net(lab, &meshd, "1.1.0").verb("DEL", "pod").done();
        net(lab, &meshd, "1.1.0").verb("ADD", "pod").refused(11, "no meshd at");
        let meshd = lab.meshd(&host, &["--ipam-range", "10.32.0.0/12", "--expose", "auto"]);
        ready(&meshd);
        assert_eq!(leases(&meshd).len(), 1);
        lab.host("other");
        let net = net(lab, &meshd, "1.1.0");
        net.verb("ADD", "other").done();
        assert_eq!(leases(&meshd), [net.owner("other")]);
    });
}

/// A restart of meshd is not seen: the call waits for it.
#[test]
fn a_restart_of_meshd_is_waited_for() {
    lab::test("a_restart_of_meshd_is_waited_for", |lab| {
        let mut meshd = machine(lab, "a", &[]);
        lab.host("pod");
        meshd.stop("TERM");
        let (host, net) = (meshd.host.clone(), net(lab, &meshd, "1.1.0"));
        std::thread::scope(|scope| {
            let status = scope.spawn(|| net.plugin("STATUS", &[]));
            let add = scope.spawn(|| net.verb("ADD", "pod"));
            std::thread::sleep(SECOND / 2);
            let again = lab.meshd(&host, &["--ipam-range", "10.32.0.0/12", "--expose", "auto"]);
            assert!(add.join().expect("ADD").ok && status.join().expect("STATUS").ok);
            drop(again);
        });
    });
}

/// ADD is killed at any moment: DEL leaves nothing, and a second ADD makes it whole.
#[test]
fn killed_half_way() {
    lab::test("killed_half_way", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.0.0");
        let program = lab::program("mesh-cni");
        let program = program.to_str().expect("a path");
        let mut interrupted = 0;
        for round in 0..40_u64 {
            let name = format!("pod{round}");
            let pod = lab.host(&name);
            let netns = format!("/run/netns/{name}");
            let environment =
                [("CNI_CONTAINERID", name.as_str()), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", netns.as_str())];
            let mut child = net.command(program, "ADD", &environment).spawn().expect("a plugin");
            child.stdin.take().expect("stdin").write_all(net.conf.to_string().as_bytes()).expect("written");
            std::thread::sleep(Duration::from_micros(500 * round));
            interrupted += u32::from(child.try_wait().expect("a child").is_none());
            let _ = child.kill();
            let _ = child.wait();
            if round % 2 == 0 {
                let result = net.verb("ADD", &name).done();
                assert!(net.with(json!({ "prevResult": result })).verb("CHECK", &name).ok);
                assert!(pod.reaches(result["ips"][0]["gateway"].as_str().unwrap_or_default()));
            }
            net.verb("DEL", &name).done();
            assert_eq!(net.leased(&name), None);
            assert!(!pod.output(&["ip", "link", "show", "eth0"]).status.success());
        }
        println!("{interrupted} of 40 were interrupted");
        assert!(interrupted > 5);
        assert_eq!((leases(&meshd), ports(&meshd)), (Vec::new(), 0));
    });
}

/// Many at once, some of them twice: each container has its own address, and nothing is left.
#[test]
fn races() {
    lab::test("races", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.0.0");
        let names: Vec<String> = (0..12).map(|at| format!("pod{at}")).collect();
        let pods: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
        let both = |verb: &str| -> Vec<Value> {
            std::thread::scope(|scope| {
                let started: Vec<_> = names
                    .iter()
                    .flat_map(|name| [name, name])
                    .map(|name| scope.spawn(|| net.verb(verb, name).done()))
                    .collect();
                started.into_iter().map(|thread| thread.join().expect("a call")).collect()
            })
        };
        let results = both("ADD");
        let mut addresses: Vec<String> = results.iter().map(address).collect();
        assert!(results.chunks(2).all(|pair| pair[0] == pair[1]), "two of one container agree");
        addresses.sort();
        addresses.dedup();
        assert_eq!((addresses.len(), ports(&meshd)), (12, 12));
        for (pod, other) in pods.iter().zip(addresses.iter().rev()) {
            assert!(pod.reaches(other), "{} reaches {other}", pod.name);
        }
        // Deleted while others are added.
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(|| net.verb("DEL", name).done());
                scope.spawn(|| drop(net.verb("ADD", name)));
            }
        });
        both("DEL");
        assert_eq!((leases(&meshd), ports(&meshd)), (Vec::new(), 0));
    });
}

/// Addresses from `host-local`: its gateway is put on the bridge, and what fails later is given back to it.
#[test]
fn addresses_of_another_plugin() {
    lab::test("addresses_of_another_plugin", |lab| {
        let meshd = machine(lab, "a", &[]);
        let store = lab.dir.join("host-local");
        let given = || {
            let files = std::fs::read_dir(store.join("pods")).into_iter().flatten().flatten();
            files.filter(|file| file.file_name().to_string_lossy().starts_with("10.")).count()
        };
        let ipam = json!({ "type": "host-local", "dataDir": store, "ranges": [[{ "subnet": "10.244.1.0/24" }]],
            "routes": [{ "dst": "0.0.0.0/0" }] });
        // 1.1.0 is newer than Debian's plugin: it is asked in its own version.
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let net = net(lab, &meshd, version).with(json!({ "ipam": ipam }));
            let name = format!("pod-{version}");
            let pod = lab.host(&name);
            let result = net.verb("ADD", &name).done();
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0]["gateway"], "10.244.1.1");
            assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }]));
            pod.await_ping("10.244.1.1", 5 * SECOND);
            assert_eq!((given(), leases(&meshd).len()), (1, 0));
            if version != "0.3.1" {
                assert!(net.with(json!({ "prevResult": result })).verb("CHECK", &name).ok);
            }
            if version == "1.1.0" {
                net.plugin("STATUS", &[]).done();
            }
            net.verb("DEL", &name).done();
            net.verb("DEL", &name).done();
            assert_eq!((given(), ports(&meshd)), (0, 0));
        }
        let net = net(lab, &meshd, "1.0.0").with(json!({ "ipam": ipam }));
        let pod = lab.host("taken");
        pod.run(&["ip", "link", "add", "eth0", "type", "bridge"]);
        net.verb("ADD", "taken").refused(100, "has an interface eth0 that is not ours");
        assert_eq!((given(), ports(&meshd)), (0, 0));

        // What it gives out of the range is claimed, or refused when it is somebody's.
        meshd.ctl(&["ip", "claim", "other", "10.33.0.2"]);
        let within = json!({ "type": "host-local", "dataDir": store, "ranges": [[{ "subnet": "10.33.0.0/24" }]] });
        let inside = net.with(json!({ "ipam": within, "isGateway": false }));
        lab.host("inside");
        inside.verb("ADD", "inside").refused(101, "given out to 'other'");
        assert_eq!((given(), ports(&meshd)), (0, 0));
        meshd.ctl(&["ip", "free", "other"]);
        let result = inside.verb("ADD", "inside").done();
        assert_eq!(inside.leased("inside"), Some(format!("{}/12", address(&result))));
        inside.verb("DEL", "inside").done();
        assert_eq!((given(), leases(&meshd).len()), (0, 0));

        let missing = net.with(json!({ "ipam": { "type": "no-such-plugin" } }));
        lab.host("missing");
        missing.verb("ADD", "missing").refused(103, "no-such-plugin is not in CNI_PATH");
    });
}

/// An address of the user's choice, by each of the ways in which runtimes say so.
#[test]
fn fixed_addresses() {
    lab::test("fixed_addresses", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.0.0");
        let ways = [
            ("IgnoreUnknown=1;IP=10.35.0.5", json!({}), "10.35.0.5/12"),
            ("IP=10.35.0.6/16", json!({}), "10.35.0.6/16"),
            ("", json!({ "args": { "cni": { "ips": ["10.35.0.7"] } } }), "10.35.0.7/12"),
            ("", json!({ "runtimeConfig": { "ips": ["10.35.0.8/12"] } }), "10.35.0.8/12"),
            ("", json!({ "ipam": { "type": "mesh-ipam", "ip": "10.35.0.9" } }), "10.35.0.9/12"),
            ("", json!({ "ipam": { "type": "mesh-ipam", "subnet": "10.40.0.0/16" } }), "10.40.0.1/16"),
            ("IP=10.32.0.99", json!({ "ipam": { "ip": "10.35.0.9" } }), "10.32.0.99/12"),
        ];
        for (at, (args, extra, expected)) in ways.into_iter().enumerate() {
            let (net, name) = (net.with(extra), format!("pod{at}"));
            let pod = lab.host(&name);
            let result = net.verb_at("ADD", &name, "eth0", &format!("/run/netns/{name}"), args).done();
            assert_eq!(result["ips"][0]["address"], expected);
            let gateway = result["ips"][0]["gateway"].as_str().expect("a gateway").to_owned();
            pod.await_ping(&gateway, 5 * SECOND);
            assert!(meshd.host.reaches(&address(&result)), "node to {expected}");
            if expected.ends_with("/16") {
                // Others of the range are reached, too, by the host.
                assert!(result["routes"].to_string().contains("10.32.0.0/12"), "{result}");
            }
            let prev = net.with(json!({ "prevResult": result }));
            assert!(prev.verb("CHECK", &name).ok);
            prev.verb("DEL", &name).done();
        }
        // Outside of the range nothing is claimed.
        let (pod, outside) = (lab.host("outside"), net.with(json!({ "ipam": { "gateway": "192.0.2.1" } })));
        let add = |args: &str| outside.verb_at("ADD", "outside", "eth0", "/run/netns/outside", args);
        add("IP=192.0.2.5").refused(7, "give it with the length of its network");
        assert_eq!(add("IP=192.0.2.5/24,fd00::5/64").done()["ips"][1]["address"], "fd00::5/64");
        pod.await_ping("192.0.2.1", 5 * SECOND);
        assert!(leases(&meshd).is_empty());
        outside.verb("DEL", "outside").done();

        lab.host("wrong");
        let add = |args: &str| net.verb_at("ADD", "wrong", "eth0", "/run/netns/wrong", args);
        meshd.ctl(&["ip", "claim", "other", "10.35.9.9"]);
        add("IP=10.35.9.9").refused(101, "given out to 'other'");
        add("IP=10.32.0.0").refused(101, "which nobody can have");
        add("IP=10.35.0.1,10.35.0.2").refused(7, "one address of meshd's range");
        add("IP=x").refused(7, "the address 'x' is wrong");
        add("IP").refused(4, "CNI_ARGS: 'IP' is wrong");
        add("IP=10.35.0.1;MAC=02:00:00:00:00:01").refused(2, "mac '02:00:00:00:00:01'");
        let outside = net.with(json!({ "ipam": { "subnet": "10.64.0.0/16" } }));
        outside.verb("ADD", "wrong").refused(7, "10.64.0.0/16 is not within the range");
        assert_eq!((leases(&meshd), ports(&meshd)), (Vec::new(), 0));
    });
}

/// Two networks on two bridges, in one container; the first one's default route stays.
#[test]
fn two_networks() {
    lab::test("two_networks", |lab| {
        let meshd = machine(lab, "a", &[]);
        // The same namespace under a second name, with a state of its own.
        std::fs::write("/run/netns/second", "").expect("a file");
        lab::ok("mount", &["--bind", "/run/netns/a", "/run/netns/second"]);
        let other = lab.meshd(
            &Host { name: "second".into() },
            &[
                "--bridge",
                "mesh1",
                "--ipam-range",
                "10.64.0.0/12",
                "--listen",
                "[::]:7783",
                "--cluster",
                "other",
                "--expose",
                "auto",
            ],
        );
        ready(&other);
        let (one, two) = (net(lab, &meshd, "1.0.0"), net(lab, &other, "1.0.0"));
        let two = two.with(json!({ "name": "second", "bridge": "mesh1" }));
        let pod = lab.host("pod");
        let first = one.verb("ADD", "pod").done();
        let result = two.verb_at("ADD", "pod", "net1", "/run/netns/pod", "").done();
        assert_eq!(result["interfaces"][0]["name"], "mesh1");
        assert_eq!(result["routes"], json!([]), "the default route is the first one's");
        for gateway in [&first, &result] {
            pod.await_ping(gateway["ips"][0]["gateway"].as_str().expect("a gateway"), 5 * SECOND);
        }
        assert!(two.with(json!({ "prevResult": result })).verb_at("CHECK", "pod", "net1", "/run/netns/pod", "").ok);
        one.with(json!({ "bridge": "mesh1" })).verb("ADD", "pod").refused(7, "has the bridge mesh0, not mesh1");
        // As a chain: both in one result.
        let both = two.with(json!({ "prevResult": first })).verb_at("ADD", "pod", "net1", "/run/netns/pod", "").done();
        assert_eq!((both["ips"].as_array().map(Vec::len), &both["ips"][1]["interface"]), (Some(2), &json!(5)));
        one.with(json!({ "prevResult": first })).verb("ADD", "pod").refused(7, "prevResult has an interface eth0");
        // The second goes, the first stays.
        two.verb_at("DEL", "pod", "net1", "/run/netns/pod", "").done();
        assert!(one.with(json!({ "prevResult": first })).verb("CHECK", "pod").ok);
        one.verb("DEL", "pod").done();
        assert_eq!((leases(&meshd), leases(&other), ports(&meshd)), (Vec::new(), Vec::new(), 0));
    });
}

/// CHECK sees what somebody changed.
#[test]
fn check_checks() {
    lab::test("check_checks", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.0.0");
        net.verb("CHECK", "pod").refused(7, "prevResult is missing");
        let breaks: [(&str, &[&str], &str); 6] = [
            ("pod", &["ip", "address", "flush", "dev", "eth0"], "does not have the address"),
            ("pod", &["ip", "route", "del", "default"], "the route to 0.0.0.0/0 by eth0 is missing"),
            ("pod", &["ip", "link", "set", "eth0", "down"], "eth0 is down"),
            ("pod", &["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"], "instead of 0a:58"),
            ("a", &["ip", "link", "set", "PORT", "nomaster"], "is not up on mesh0"),
            ("a", &["bridge", "link", "set", "dev", "PORT", "hairpin", "off"], "hairpin mode of PORT is off"),
        ];
        for (host, command, words) in breaks {
            let pod = lab.host("pod");
            let result = net.verb("ADD", "pod").done();
            let port = result["interfaces"][1]["name"].as_str().unwrap_or_default().to_owned();
            let with = net.with(json!({ "prevResult": result }));
            with.verb("CHECK", "pod").done();
            let command: Vec<String> = command.iter().map(|word| word.replace("PORT", &port)).collect();
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            if host == "pod" {
                pod.run(&command)
            } else {
                meshd.host.run(&command)
            };
            with.verb("CHECK", "pod").refused(102, &words.replace("PORT", &port));
            // And a second ADD mends it, but for a MAC address, which is not its to change.
            if !words.contains("instead") {
                let again = net.verb("ADD", "pod").done();
                net.with(json!({ "prevResult": again })).verb("CHECK", "pod").done();
            }
            net.verb("DEL", "pod").done();
            lab::ok("ip", &["netns", "del", "pod"]);
        }
        // Whoever deletes the bridge has it back within seconds, with all ports.
        let pod = lab.host("pod");
        let result = net.verb("ADD", "pod").done();
        meshd.host.run(&["ip", "link", "del", "mesh0"]);
        pod.await_ping(result["ips"][0]["gateway"].as_str().unwrap_or_default(), 15 * SECOND);
        net.with(json!({ "prevResult": result })).verb("CHECK", "pod").done();
        meshd.ctl(&["ip", "free", &net.owner("pod")]);
        net.with(json!({ "prevResult": result })).verb("CHECK", "pod").refused(102, "has not given out");
        lab::ok("ip", &["netns", "del", "pod"]);
        net.with(json!({ "prevResult": result })).verb("CHECK", "pod").refused(3, "no network namespace");
    });
}

/// GC frees what the runtime does not name: ports, leases, and what waits; of this network alone.
#[test]
fn garbage_is_collected() {
    lab::test("garbage_is_collected", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.1.0");
        let other = net.with(json!({ "name": "other" }));
        for name in ["keep", "drop", "gone", "foreign"] {
            lab.host(name);
        }
        for name in ["keep", "drop", "gone"] {
            net.verb("ADD", name).done();
        }
        other.verb("ADD", "foreign").done();
        meshd.ctl(&["ip", "alloc", "by-hand"]);
        lab::ok("ip", &["netns", "del", "gone"]);
        net.plugin("GC", &[]).refused(7, "cni.dev/valid-attachments is missing");
        assert_eq!(leases(&meshd).len(), 4);
        let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "keep", "ifname": "eth0" }] });
        for _ in 0..2 {
            net.with(valid.clone()).plugin("GC", &[]).done();
            let mut left = leases(&meshd);
            left.sort();
            assert_eq!(left, ["cni:other:foreign:eth0", "cni:pods:keep:eth0"]);
            assert_eq!(ports(&meshd), 2);
        }
        meshd.ctl(&["ip", "lookup", "by-hand"]);
        net.with(json!({ "cni.dev/valid-attachments": [] })).plugin("GC", &[]).done();
        assert_eq!((leases(&meshd), ports(&meshd)), (vec!["cni:other:foreign:eth0".to_owned()], 1));
    });
}

/// What cannot work is refused before anything is made.
#[test]
fn refusals() {
    lab::test("refusals", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.0.0");
        net.verb("ADD", "nowhere").refused(3, "there is no network namespace");
        let own = format!("/run/netns/{}", meshd.host.name);
        net.verb_at("ADD", "own", "eth0", &own, "").refused(4, "is the host's own namespace");
        net.verb_at("ADD", "file", "eth0", "/etc/hostname", "").refused(4, "is not a network namespace");
        lab.host("pod");
        net.verb_at("ADD", "pod", "lo", "/run/netns/pod", "").refused(100, "has an interface lo that is not ours");
        net.with(json!({ "cniVersion": "2.0.0" })).verb("ADD", "pod").refused(1, "cniVersion '2.0.0'");
        net.plugin("FROB", &[]).refused(4, "unknown CNI_COMMAND: FROB");
        assert_eq!((leases(&meshd), ports(&meshd)), (Vec::new(), 0));
    });
}

/// Pods of two machines reach each other at once, and the node whose meshd manages nothing says how addresses are given then.
#[test]
fn pods_of_two_machines() {
    lab::test("pods_of_two_machines", |lab| {
        let switch = lab.switch("switch");
        let start = |name: &str, address: &str, extra: &[&str]| {
            let host = lab.host(name);
            switch.plug(&host, &format!("{address}/24"));
            let mut arguments = vec!["--ipam-range", "10.32.0.0/12"];
            arguments.extend(extra);
            lab.meshd(&host, &arguments)
        };
        let (a, b) = (start("a", "192.168.77.1", &[]), start("b", "192.168.77.2", &["--peer", "192.168.77.1"]));
        for peer in [&a, &b] {
            peer.await_status("is ready", 20 * SECOND, |status| status["ipam"]["state"] == "ready");
            peer.await_peers(2, 20 * SECOND);
        }
        let (one, two) = (lab.host("one"), lab.host("two"));
        let first = net(lab, &a, "1.0.0").verb("ADD", "one").done();
        assert!(first["ips"][0]["gateway"].is_string(), "the host was given an address");
        let second = net(lab, &b, "1.0.0").verb("ADD", "two").done();
        one.await_ping(&address(&second), 5 * SECOND);
        two.await_ping(&address(&first), 5 * SECOND);
        one.await_ping(second["ips"][0]["gateway"].as_str().expect("a gateway"), 5 * SECOND);

        let off = lab.meshd(&lab.host("c"), &[]);
        off.await_up();
        lab.host("three");
        let net = net(lab, &off, "1.1.0");
        net.verb("ADD", "three").refused(7, "meshd manages no addresses");
        net.plugin("STATUS", &[]).done();
        let result = net.verb_at("ADD", "three", "eth0", "/run/netns/three", "IP=192.0.2.5/24").done();
        assert_eq!((address(&result).as_str(), &result["routes"]), ("192.0.2.5", &json!([])));
        assert!(net.with(json!({ "prevResult": result })).verb("CHECK", "three").ok);
        net.verb("DEL", "three").done();
        assert_eq!(ports(&off), 0);
    });
}

/// Before `portmap`, `bandwidth` and `tuning`, each given the result of the one before, as a runtime does.
#[test]
fn in_a_chain() {
    lab::test("in_a_chain", |lab| {
        let meshd = machine(lab, "a", &[]);
        let client = lab.host("client");
        lab.wire(&meshd.host, "192.0.2.1/24", &client, "192.0.2.2/24");
        meshd.host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let own = net(lab, &meshd, version);
            let name = format!("pod-{version}");
            let pod = lab.host(&name);
            let netns = format!("/run/netns/{name}");
            let environment =
                [("CNI_CONTAINERID", name.as_str()), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", netns.as_str())];
            let chain = [
                json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" } }),
                json!({ "type": "portmap", "snat": true,
                    "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] } }),
                json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
                    "egressRate": 8_000_000, "egressBurst": 8_000_000 }),
            ];
            let plugin = |conf: &Value| conf["type"].as_str().map(|name| format!("/usr/lib/cni/{name}"));
            let conf = |part: &Value, prev: &Value| {
                let mut conf = json!({ "cniVersion": version, "name": "pods" });
                merge(&mut conf, part);
                conf["prevResult"] = prev.clone();
                Net { meshd: &meshd, conf, path: own.path.clone() }
            };
            let mut result = own.verb("ADD", &name).done();
            let mine = result.clone();
            for part in &chain {
                let program = plugin(part).expect("a name");
                assert!(
                    Path::new(&program).exists(),
                    "the tests need {program}: apt-get install containernetworking-plugins"
                );
                result = conf(part, &result).run(&program, "ADD", &environment).done();
                assert_eq!(result["ips"], mine["ips"], "{program}");
            }
            serve(&pod, 80);
            lab::wait("the host's port leads to the pod", 5 * SECOND, || {
                hear(&client, "192.0.2.1:8080") == "192.0.2.2"
            });
            if version != "0.3.1" {
                own.with(json!({ "prevResult": result })).verb("CHECK", &name).done();
                // Not portmap's: before 1.2 it looks for IPv6 rules that it did not make.
                for part in chain.iter().filter(|part| part["type"] != "portmap") {
                    conf(part, &result).run(&plugin(part).expect("a name"), "CHECK", &environment).done();
                }
            }
            for part in chain.iter().rev() {
                conf(part, &result).run(&plugin(part).expect("a name"), "DEL", &environment).done();
            }
            own.with(json!({ "prevResult": result })).verb("DEL", &name).done();
            assert_eq!((leases(&meshd), ports(&meshd)), (Vec::new(), 0));
        }
    });
}

/// Neighbours hear of an address as soon as it is there, whoever had it before.
#[test]
fn addresses_are_announced() {
    lab::test("addresses_are_announced", |lab| {
        let meshd = machine(lab, "a", &[]);
        let net = net(lab, &meshd, "1.0.0");
        for name in ["first", "second"] {
            lab.host(name);
            let file = lab.dir.join(format!("{name}.pcap")).to_string_lossy().into_owned();
            let capture = meshd.host.capture("mesh0", &file, "arp");
            net.verb_at("ADD", name, "eth0", &format!("/run/netns/{name}"), "IP=10.35.0.5").done();
            lab::wait("announced", 5 * SECOND, || {
                lab::run("tcpdump", &["-nr", &file]).is_ok_and(|text| {
                    text.contains("10.35.0.5 (ff:ff:ff:ff:ff:ff) tell 10.35.0.5")
                        || text.contains("who-has 10.35.0.5 tell 10.35.0.5")
                        || text.contains("Reply 10.35.0.5 is-at")
                })
            });
            capture.stop();
            net.verb("DEL", name).done();
        }
    });
}

/// What install and meshd leave on a machine goes with one command.
#[test]
fn uninstalled() {
    lab::test("uninstalled", |lab| {
        let mut meshd = machine(lab, "a", &["--masquerade"]);
        let host = meshd.host.clone();
        lab.host("pod");
        net(lab, &meshd, "1.0.0").verb("ADD", "pod").done();
        meshd.ctl(&["attach", &{
            lab.host("box");
            "box".to_owned()
        }]);
        host.run(&["ip", "link", "add", "mine", "type", "veth", "peer", "name", "mine2"]);
        host.run(&["nft", "add", "table", "ip", "mine"]);
        meshd.stop("TERM");
        let own = lab::program("mesh-cni").to_string_lossy().into_owned();
        let (bin, confs) =
            (format!("--bin-dir={}/bin", lab.dir.display()), format!("--conf-dir={}/net.d", lab.dir.display()));
        host.run(&[&own, "install", &bin, &confs]);
        host.run(&[&own, "uninstall", &bin, &confs, "--devices"]);
        let links = host.run(&["ip", "-br", "link"]);
        let left: Vec<&str> = links.lines().filter_map(|line| line.split([' ', '@']).next()).collect();
        assert_eq!(left, ["lo", "mine2", "mine"], "{links}");
        assert_eq!(host.run(&["nft", "list", "tables"]).trim(), "table ip mine");
        for dir in ["bin", "net.d"] {
            assert_eq!(std::fs::read_dir(lab.dir.join(dir)).map(|files| files.count()).unwrap_or(9), 0, "{dir}");
        }
        host.run(&[&own, "uninstall", &bin, &confs, "--devices"]);
    });
}

/// Under the name `loopback` it is that plugin.
#[test]
fn as_loopback() {
    lab::test("as_loopback", |lab| {
        let meshd = machine(lab, "a", &[]);
        let bin = lab.dir.join("bin");
        std::fs::create_dir_all(&bin).expect("a directory");
        std::fs::copy(lab::program("mesh-cni"), bin.join("loopback")).expect("a copy");
        let program = bin.join("loopback").to_string_lossy().into_owned();
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let net = net(lab, &meshd, version).with(json!({ "name": "cni-loopback", "type": "loopback" }));
            let name = format!("pod-{version}");
            lab::ok("ip", &["netns", "add", &name]);
            let pod = Host { name: name.clone() };
            let netns = format!("/run/netns/{name}");
            let environment = [("CNI_CONTAINERID", name.as_str()), ("CNI_IFNAME", "lo"), ("CNI_NETNS", netns.as_str())];
            assert!(!pod.reaches("127.0.0.1"));
            let result = net.run(&program, "ADD", &environment).done();
            assert_eq!(
                (&result["interfaces"][0]["name"], &result["ips"][0]["address"]),
                (&json!("lo"), &json!("127.0.0.1/8"))
            );
            assert!(pod.reaches("127.0.0.1"));
            let with = net.with(json!({ "prevResult": result }));
            if version != "0.3.1" {
                with.run(&program, "CHECK", &environment).done();
                pod.run(&["ip", "link", "set", "lo", "down"]);
                with.run(&program, "CHECK", &environment).refused(102, "the loopback interface is down");
            }
            assert!(net.run(&program, "VERSION", &[]).done()["supportedVersions"].to_string().contains(version));
            with.run(&program, "DEL", &environment).done();
            lab::ok("ip", &["netns", "del", &name]);
            with.run(&program, "DEL", &environment).done();
        }
    });
}

/// libcni itself, as containerd, CRI-O and podman use it: a list of plugins that `mesh-cni install` wrote.
#[test]
fn by_libcni() {
    lab::test("by_libcni", |lab| {
        let meshd = machine(lab, "a", &[]);
        let driver = driver(lab);
        let (bin, confs) = (lab.dir.join("bin"), lab.dir.join("net.d"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let flags = [
            "install".to_owned(),
            format!("--bin-dir={}", text(&bin)),
            format!("--conf-dir={}", text(&confs)),
            "--plugins-from=/usr/lib/cni".to_owned(),
            format!("--socket={}", text(&meshd.socket)),
        ];
        lab::ok(&text(&lab::program("mesh-cni")), &flags.each_ref().map(String::as_str));
        let list: Value =
            serde_json::from_slice(&std::fs::read(confs.join("10-meshnet.conflist")).expect("a configuration"))
                .expect("JSON");
        assert_eq!(list["plugins"].as_array().map(Vec::len), Some(3), "{list}");
        let pod = lab.host("pod");
        let call = |verb: &str, ports: &str| {
            let output = Command::new("ip")
                .args(["netns", "exec", &meshd.host.name])
                .args([&driver, Path::new(verb), &confs, &lab.dir.join("cache")])
                .args(["pod", "/run/netns/pod", "eth0", ports])
                .env("CNI_PATH", &bin)
                .output()
                .expect("the driver");
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            (output.status.success(), said, serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
        };
        assert!(call("validate", "{}").0);
        for round in 0..2 {
            let ports = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],
                "bandwidth":{"ingressRate":8000000,"ingressBurst":8000000,"egressRate":8000000,"egressBurst":8000000}}"#;
            // Not portmap's: before 1.2 it looks for IPv6 rules that it did not make.
            let limits = ports.replace("portMappings", "other");
            let (done, said, result) = call("add", ports);
            assert!(done, "{said}");
            pod.await_ping(result["ips"][0]["gateway"].as_str().expect("a gateway"), 5 * SECOND);
            let (done, said, _) = call("check", &limits);
            assert!(done, "{said}");
            if round == 1 {
                pod.run(&["ip", "link", "set", "eth0", "down"]);
                let (done, said, _) = call("check", &limits);
                assert!(!done && said.contains("eth0 is down"), "{said}");
            }
            let (done, said, _) = call("del", ports);
            assert!(done, "{said}");
            assert_eq!((leases(&meshd), self::ports(&meshd)), (Vec::new(), 0));
        }
    });
}

/// podman, with its CNI backend: real containers on a list of plugins that install wrote.
#[test]
fn by_podman() {
    if std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.contains("4294967295")) {
        println!("not tried: podman wants to be root, not root of a user namespace");
        return;
    }
    lab::test("by_podman", |lab| {
        for (program, package) in [("podman", "podman"), ("crun", "crun")] {
            assert!(lab::find(program).is_some(), "the tests need {program}: apt-get install {package}");
        }
        let meshd = machine(lab, "a", &[]);
        let place = |name: &str| lab.dir.join(name).to_string_lossy().into_owned();
        let own = lab::program("mesh-cni").to_string_lossy().into_owned();
        let (bin, confs) = (format!("--bin-dir={}", place("bin")), format!("--conf-dir={}", place("net.d")));
        let socket = format!("--socket={}", meshd.socket.display());
        lab::ok(&own, &["install", &bin, &confs, "--plugins-from=/usr/lib/cni", &socket]);
        // Containers without control groups: those of the machine are not this test's.
        let _ = lab::run("umount", &["-R", "/sys/fs/cgroup"]);
        lab::ok("mount", &["-t", "tmpfs", "none", "/sys/fs/cgroup"]);
        std::fs::create_dir("/sys/fs/cgroup/memory").expect("a directory");
        let root = lab.dir.join("root");
        for dir in ["usr", "proc", "sys", "dev", "etc", "tmp", "run", "var"] {
            std::fs::create_dir_all(root.join(dir)).expect("a directory");
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).expect("a link");
        }
        let containers = format!(
            "[network]\nnetwork_backend=\"cni\"\ncni_plugin_dirs=[\"{}\"]\nnetwork_config_dir=\"{}\"\ndefault_network=\"meshnet\"\n\
             [engine]\nruntime=\"crun\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n",
            place("bin"),
            place("net.d")
        );
        let storage =
            format!("[storage]\ndriver=\"vfs\"\ngraphroot=\"{}\"\nrunroot=\"{}\"\n", place("graph"), place("runroot"));
        for (name, text) in [("containers.conf", containers), ("storage.conf", storage)] {
            std::fs::write(lab.dir.join(name), text).expect("a file");
        }
        let podman = |arguments: &[&str]| {
            // `ip netns exec` would hide /sys/fs/cgroup.
            let output = Command::new("nsenter")
                .args(["--net=/run/netns/a", "podman"])
                .args(arguments)
                .env("CONTAINERS_CONF", place("containers.conf"))
                .env("CONTAINERS_STORAGE_CONF", place("storage.conf"))
                .output()
                .expect("podman");
            assert!(output.status.success(), "podman {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let run = |name: &str, extra: &[&str]| {
            let mut all = vec!["run", "-d", "--name", name, "--cgroups=disabled", "--security-opt=seccomp=unconfined"];
            all.extend(["-v", "/usr:/usr:ro"]);
            all.extend(extra);
            let root = root.to_string_lossy().into_owned();
            all.extend(["--rootfs", &root, "sleep", "1000"]);
            podman(&all);
            podman(&[
                "inspect",
                "-f",
                "{{.NetworkSettings.IPAddress}}{{range .NetworkSettings.Networks}} {{.IPAddress}}{{end}}",
                name,
            ])
        };
        let ip = |text: &str| text.split_whitespace().last().unwrap_or_default().to_owned();
        let first = ip(&run("one", &[]));
        let second = ip(&run("two", &["--ip", "10.35.0.5", "-p", "8080:80"]));
        assert_eq!(second, "10.35.0.5");
        for (container, other) in [("one", &second), ("two", &first)] {
            podman(&["exec", container, "ping", "-n", "-c", "1", "-W", "2", other]);
            assert!(meshd.host.reaches(other));
        }
        assert_eq!(leases(&meshd).len(), 2);
        for name in ["one", "two"] {
            podman(&["rm", "-f", "-t", "0", name]);
        }
        assert_eq!((leases(&meshd), ports(&meshd)), (Vec::new(), 0));
    });
}

/// Built from Debian's sources of libcni.
fn driver(lab: &Lab) -> PathBuf {
    assert!(
        Path::new("/usr/share/gocode/src/github.com/containernetworking/cni/libcni").is_dir()
            && lab::find("go").is_some(),
        "the tests need libcni: apt-get install golang-go golang-github-appc-cni-dev"
    );
    let (place, cache) = (lab.dir.join("driver"), lab::program("mesh-cni").with_file_name("go-cache"));
    let built = Command::new("go")
        .args(["build", "-p", "2", "-o"])
        .arg(&place)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cni/driver.go"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", &cache)
        .output()
        .expect("go");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    place
}
