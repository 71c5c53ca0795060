//! The host side of containers: out in the host's name, in with the client's address, services as kube-proxy makes them; in network namespaces.
//!
//! ```text
//! pods: near, next ── a 192.168.77.1 ──┐
//!                                      ├── switch ── out 192.168.77.9 (knows nothing of the range)
//! pods: far ───────── b 192.168.77.2 ──┘
//! ```

#[path = "netns/lab.rs"]
mod lab;
#[path = "cni/runtime.rs"]
mod runtime;

use std::time::{Duration, Instant};

use lab::{Host, Lab, Meshd, Switch};
use runtime::{SECOND, address, hear, net, serve};

const SERVICE: &str = "10.96.0.10";

struct Cluster {
    _switch: Switch,
    a: Meshd,
    b: Meshd,
    out: Host,
}

/// A pod and its address.
struct Pod {
    host: Host,
    ip: String,
    gateway: String,
}

fn cluster(lab: &Lab, extra: &[&str]) -> Cluster {
    let switch = lab.switch("switch");
    let plug = |name: &str, at: u8| {
        let host = lab.host(name);
        switch.plug(&host, &format!("192.168.77.{at}/24"));
        // As distributions have it.
        host.run(&["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.ip_forward=0"]);
        host
    };
    let (a, b, out) = (plug("a", 1), plug("b", 2), plug("out", 9));
    let start = |host: &Host, more: &[&str]| {
        let mut arguments = vec!["--ipam-range", "10.32.0.0/12", "--expose", "auto", "--masquerade"];
        arguments.extend(more);
        arguments.extend(extra);
        lab.meshd(host, &arguments)
    };
    let (a, b) = (start(&a, &[]), start(&b, &["--peer", "192.168.77.1"]));
    a.await_peers(2, 20 * SECOND);
    runtime::ready(&a);
    runtime::ready(&b);
    Cluster { _switch: switch, a, b, out }
}

fn pod(lab: &Lab, meshd: &Meshd, name: &str) -> Pod {
    let host = lab.host(name);
    let result = net(lab, meshd, "1.0.0").verb("ADD", name).done();
    let gateway = result["ips"][0]["gateway"].as_str().unwrap_or_default().to_owned();
    serve(&host, 80);
    Pod { host, ip: address(&result), gateway }
}

/// As whom a server sees a client.
#[track_caller]
fn seen(client: &Host, server: &str) -> String {
    let mut said = String::new();
    lab::poll(5 * SECOND, || {
        said = hear(client, &format!("{server}:80"));
        !said.is_empty()
    });
    said
}

/// Rules in the shape of kube-proxy's in iptables mode: a service, or a node's port, of one container.
fn service(node: &Host, destination: &[&str], pod: &Pod, masquerade_all: bool) {
    let nat = |arguments: &[&str]| {
        let mut all = vec!["iptables", "-w", "-t", "nat"];
        all.extend(arguments);
        node.run(&all);
    };
    if !node.output(&["iptables", "-w", "-t", "nat", "-L", "KUBE-SERVICES"]).status.success() {
        nat(&["-N", "KUBE-SERVICES"]);
        nat(&["-N", "KUBE-POSTROUTING"]);
        nat(&["-A", "PREROUTING", "-j", "KUBE-SERVICES"]);
        nat(&["-A", "OUTPUT", "-j", "KUBE-SERVICES"]);
        nat(&["-A", "POSTROUTING", "-j", "KUBE-POSTROUTING"]);
        nat(&["-A", "KUBE-POSTROUTING", "-m", "mark", "!", "--mark", "0x4000/0x4000", "-j", "RETURN"]);
        nat(&["-A", "KUBE-POSTROUTING", "-j", "MARK", "--xor-mark", "0x4000"]);
        nat(&["-A", "KUBE-POSTROUTING", "-j", "MASQUERADE", "--random-fully"]);
        node.run(&["iptables", "-w", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]);
    }
    let rule = |extra: &[&str]| {
        let mut all = vec!["-A", "KUBE-SERVICES"];
        all.extend(destination);
        all.extend(extra);
        nat(&all);
    };
    let from = format!("{}/32", pod.ip);
    if masquerade_all {
        rule(&["-j", "MARK", "--or-mark", "0x4000"]);
    } else {
        rule(&["-s", &from, "-j", "MARK", "--or-mark", "0x4000"]);
    }
    rule(&["-j", "DNAT", "--to-destination", &format!("{}:80", pod.ip)]);
}

#[test]
fn who_is_seen_as_whom() {
    lab::test("who_is_seen_as_whom", |lab| {
        let Cluster { _switch, a, b, out } = cluster(lab, &[]);
        let (near, next, far) = (pod(lab, &a, "near"), pod(lab, &a, "next"), pod(lab, &b, "far"));
        for host in [&out, &a.host, &b.host] {
            serve(host, 80);
        }
        assert_eq!(seen(&near.host, "192.168.77.9"), "192.168.77.1", "out in the host's name");
        assert_eq!(seen(&far.host, "192.168.77.9"), "192.168.77.2");
        for (client, server) in [(&near, &next), (&near, &far), (&far, &near)] {
            assert_eq!(seen(&client.host, &server.ip), client.ip, "pods see each other");
        }
        assert_eq!(seen(&near.host, "192.168.77.1"), near.ip, "a pod to its node");
        for gateway in [&near.gateway, &far.gateway] {
            assert_eq!(seen(&near.host, gateway), near.ip, "a pod to the nodes' addresses of the range");
        }
        assert_eq!(seen(&a.host, &near.ip), near.gateway, "a node to its pod");
        assert_eq!(seen(&a.host, &far.ip), near.gateway, "and to a pod of another node");

        // Answers of the same machine pass connection tracking.
        let to = |port: &'static str| ["-d", SERVICE, "-p", "tcp", "--dport", port];
        let service_at = |port: &str| format!("{SERVICE}:{port}");
        service(&a.host, &to("1"), &near, false);
        service(&a.host, &to("2"), &next, false);
        service(&a.host, &to("3"), &far, false);
        assert_eq!(hear(&near.host, &service_at("1")), near.gateway, "to itself, by a service");
        assert_eq!(hear(&near.host, &service_at("2")), near.ip, "to a neighbour, by a service");
        assert_eq!(hear(&near.host, &service_at("3")), near.ip, "to another node, by a service");
        // The host's own packets begin in the name of its underlay address.
        a.host.run(&["ip", "route", "add", "10.96.0.0/12", "dev", "eth0", "src", "192.168.77.1"]);
        for (port, _) in [("2", &next), ("3", &far)] {
            assert_eq!(hear(&a.host, &service_at(port)), near.gateway, "the host, by a service");
        }
        // From outside: with `externalTrafficPolicy: Local` the client is seen, with `Cluster` the node.
        let node_port = |port: &'static str| ["-d", "192.168.77.1", "-p", "tcp", "--dport", port];
        service(&a.host, &node_port("30001"), &near, false);
        service(&a.host, &node_port("30002"), &far, true);
        assert_eq!(hear(&out, "192.168.77.1:30001"), "192.168.77.9");
        assert_eq!(hear(&out, "192.168.77.1:30002"), near.gateway);
        // Pods go on being masqueraded beside those rules.
        assert_eq!(seen(&near.host, "192.168.77.9"), "192.168.77.1");
        assert_eq!(a.host.run(&["sysctl", "-n", "net.ipv4.conf.mesh0.rp_filter"]).trim(), "2");
        assert_eq!(a.status()["problems"], serde_json::json!([]));
    });
}

#[test]
fn exceptions_and_repair() {
    lab::test("exceptions_and_repair", |lab| {
        let Cluster { _switch, mut a, b, out } = cluster(lab, &["--no-masquerade", "192.168.77.8/31"]);
        let near = pod(lab, &a, "near");
        serve(&out, 80);
        serve(&b.host, 80);
        out.run(&["ip", "route", "add", "10.32.0.0/12", "via", "192.168.77.1"]);
        assert_eq!(seen(&near.host, "192.168.77.9"), near.ip, "an exception");
        assert_eq!(seen(&near.host, "192.168.77.2"), "192.168.77.1");
        let shown = || {
            String::from_utf8_lossy(&a.host.output(&["nft", "list", "table", "ip", "meshnet-mesh0-nat"]).stdout)
                .into_owned()
        };
        let before = shown();
        assert!(before.contains("masquerade"), "{before}");
        a.host.run(&["nft", "add", "table", "ip", "mine"]);
        for harm in [&["nft", "flush", "ruleset"][..], &["nft", "flush", "table", "ip", "meshnet-mesh0-nat"]] {
            a.host.run(harm);
            let start = Instant::now();
            lab::wait("repaired", Duration::from_secs(10), || shown() == before);
            println!("repaired after {:?}", start.elapsed());
        }
        assert_eq!(seen(&near.host, "192.168.77.2"), "192.168.77.1");
        // The way out is there while meshd is not, and goes with the wish for it.
        let host = a.host.clone();
        a.stop("TERM");
        assert_eq!(seen(&near.host, "192.168.77.2"), "192.168.77.1");
        let a = lab.meshd(&host, &["--ipam-range", "10.32.0.0/12", "--peer", "192.168.77.2"]);
        a.await_up();
        assert!(!host.run(&["nft", "list", "ruleset"]).contains("meshnet-mesh0-nat"));
    });
}

#[test]
fn what_would_keep_packets_from_arriving_is_said() {
    lab::test("what_would_keep_packets_from_arriving_is_said", |lab| {
        let host = lab.host("a");
        let a = lab.meshd(&host, &["--ipam-range", "10.32.0.0/12", "--expose", "auto", "--masquerade"]);
        runtime::ready(&a);
        let problem = |words: &str| {
            a.await_status(words, Duration::from_secs(10), |status| {
                let all = status["problems"].as_array().cloned().unwrap_or_default();
                if words.is_empty() {
                    all.is_empty()
                } else {
                    all.iter().any(|one| one["what"].as_str().is_some_and(|what| what.contains(words)))
                }
            });
        };
        problem("");
        host.run(&["iptables", "-w", "-P", "FORWARD", "DROP"]);
        problem("the chain 'ip filter FORWARD' of nftables drops");
        host.run(&["iptables", "-w", "-I", "FORWARD", "-i", "mesh0", "-j", "ACCEPT"]);
        problem("");
        host.run(&["ip", "link", "add", "vpn", "type", "bridge"]);
        host.run(&["ip", "link", "set", "vpn", "up"]);
        host.run(&["ip", "address", "add", "10.40.0.1/16", "dev", "vpn"]);
        problem("the range 10.32.0.0/12 overlaps the route to 10.40.0.0/16 by vpn");
        host.run(&["ip", "link", "del", "vpn"]);
        problem("");
    });
}
