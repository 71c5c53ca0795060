//! `meshd --kubernetes` against a scripted API server: real daemons in namespaces, an API that can be slow, away, broken, forbidding, or behind.
//!
//! The machines stand on one switch: `a`, `b`, … at 192.168.77.1, .2, …; the API is on `api` at 192.168.77.100.

#[path = "kubernetes/api.rs"]
mod api;
#[path = "netns/lab.rs"]
mod lab;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Api;
use lab::{Host, Lab, Meshd, Switch};
use meshnet::sys::netns::Netns;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
/// Of 10.32.0.0/12.
const ALL: u64 = 1 << 20;

/// A cluster of machines, none of which runs a meshd yet.
struct Cluster<'a> {
    lab: &'a Lab,
    switch: Switch,
    hosts: Vec<Host>,
    api: Api,
    credentials: PathBuf,
    url: String,
}

impl<'a> Cluster<'a> {
    fn new(lab: &'a Lab, names: &[&str]) -> Cluster<'a> {
        Cluster::with(lab, names, None)
    }

    fn with(lab: &'a Lab, names: &[&str], tls: Option<Arc<rustls::ServerConfig>>) -> Cluster<'a> {
        let switch = lab.switch("switch");
        let server = lab.host("api");
        switch.plug(&server, "192.168.77.100/24");
        let url = format!("{}://192.168.77.100:6443", if tls.is_some() { "https" } else { "http" });
        let api = Api::start("api", "192.168.77.100:6443", tls);
        let credentials = lab.dir.join("credentials");
        std::fs::create_dir_all(&credentials).expect("a directory");
        std::fs::write(credentials.join("namespace"), "kube-system").expect("a file");
        let mut cluster = Cluster { lab, switch, hosts: Vec::new(), api, credentials, url };
        for name in names {
            cluster.add(name);
        }
        cluster
    }

    /// One more machine, with its Node.
    fn add(&mut self, name: &str) -> Host {
        let address = format!("192.168.77.{}", self.hosts.len() + 1);
        let host = self.lab.host(name);
        self.switch.plug(&host, &format!("{address}/24"));
        self.api.add_node(name, &address);
        self.hosts.push(host.clone());
        host
    }

    fn start(&self, host: &Host, extra: &[&str]) -> Meshd {
        let credentials = self.credentials.to_string_lossy().into_owned();
        let mut arguments =
            vec!["--kubernetes", "--kubernetes-api", &self.url, "--kubernetes-credentials", &credentials];
        arguments.extend(["--ipam-range", "10.32.0.0/12"]);
        arguments.extend(extra);
        self.lab.meshd_bare(host, &arguments)
    }

    fn start_all(&self) -> Vec<Meshd> {
        self.hosts.iter().map(|host| self.start(host, &[])).collect()
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Waits until these are ready, have one view, and own everything together, each its part.
fn await_split(peers: &[Meshd], limit: Duration) {
    let mut views: Vec<Value> = Vec::new();
    let agreed = lab::poll(limit, || {
        views = peers.iter().map(|peer| peer.status()["ipam"].clone()).collect();
        let owned: Vec<u64> = views.iter().map(|view| number(&view["owned"])).collect();
        let digests: BTreeSet<&str> = views.iter().filter_map(|view| view["digest"].as_str()).collect();
        let ready = views.iter().all(|view| view["state"] == "ready");
        ready && digests.len() == 1 && owned.iter().sum::<u64>() == ALL && owned.iter().all(|owned| *owned > 0)
    });
    if !agreed {
        panic!("no agreed split within {limit:?}\n{}", story(peers));
    }
}

/// What all of them say.
fn story(peers: &[Meshd]) -> String {
    let one = |peer: &Meshd| format!("{}\n{}\n", peer.ctl(&["status"]), peer.log_text());
    peers.iter().map(one).collect()
}

/// The address of an owner.
fn alloc(peer: &Meshd, id: &str) -> String {
    peer.ctl(&["ip", "alloc", id]).trim().to_owned()
}

fn await_problem(peer: &Meshd, words: &str, limit: Duration) {
    peer.await_status(&format!("a problem with '{words}'"), limit, |status| has_problem(status, words));
}

fn has_problem(status: &Value, words: &str) -> bool {
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().any(|problem| problem["what"].as_str().is_some_and(|what| what.contains(words)))
}

fn targets(peer: &Meshd) -> BTreeSet<String> {
    let targets = peer.status()["targets"].as_array().cloned().unwrap_or_default();
    targets.iter().filter_map(|target| Some(target["address"].as_str()?.to_owned())).collect()
}

fn await_target(peer: &Meshd, address: &str, there: bool, limit: Duration) {
    let what = format!("{} connects to {address}: {there}", peer.host.name);
    lab::wait(&what, limit, || targets(peer).contains(address) == there);
}

fn get(peer: &Meshd, path: &str) -> String {
    let fetch = || {
        let mut stream = TcpStream::connect("127.0.0.1:6784")?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    Netns::open(&peer.host.name).and_then(|namespace| namespace.run(fetch)?).expect("an answer by HTTP")
}

fn id(peer: &Meshd) -> String {
    peer.status()["peer"]["id"].as_str().unwrap_or_default().to_owned()
}

/// Three at once, with nothing prepared: one secret, one address space, everybody in it, and the Nodes say so.
#[test]
fn three_started_at_once() {
    lab::test("three_started_at_once", |lab| {
        let cluster = Cluster::new(lab, &["a", "b", "c"]);
        let began = Instant::now();
        let peers = cluster.start_all();
        await_split(&peers, 30 * SECOND);
        println!("three agree {:.1} s after the first start", began.elapsed().as_secs_f64());
        assert_eq!(cluster.api.asked("watch", "nodes"), 3, "each watches once");
        let addresses: BTreeSet<String> = peers.iter().map(|peer| alloc(peer, "pod")).collect();
        assert_eq!(addresses.len(), 3);
        let space = |node: &str| cluster.api.annotation(node, "meshnet/address-space");
        for peer in &peers {
            let name = peer.host.name.as_str();
            lab::wait("the Node says that the network works", 10 * SECOND, || {
                cluster.api.network(name) == Some(("False".into(), "MeshnetIsUp".into())) && space(name) == space("a")
            });
            assert_eq!(cluster.api.annotation(name, "meshnet/peer-id").unwrap(), id(peer));
            assert_eq!(cluster.api.annotation(name, "meshnet/alone").as_deref(), Some("true"));
            let mode = |file: &str| peer.state.join(file).metadata().expect("a file").permissions().mode() & 0o777;
            assert_eq!(mode("kubernetes-secret"), 0o600);
            let kubernetes = peer.status()["kubernetes"].clone();
            assert_eq!((kubernetes["state"].as_str(), number(&kubernetes["peers"])), (Some("ok"), 3), "{kubernetes}");
            assert_eq!(peer.status()["problems"], Value::Array(Vec::new()));
            // A lab's state directory is on a tmpfs, and meshd says so.
            let log = peer.log_text();
            assert!(!log.lines().any(|line| line.contains(" WARN ") && !line.contains("tmpfs")), "{log}");
        }
        let birth = cluster.api.object("configmaps", "meshnet-genesis").unwrap()["data"]["genesis"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(birth.contains(&space("a").unwrap()), "{birth}");
        println!("{}", peers[0].ctl(&["status"]));
    });
}

/// Nobody begins while the API is away; who waits says so, and goes on by itself.
#[test]
fn the_api_is_away_at_the_first_start() {
    lab::test("the_api_is_away_at_the_first_start", |lab| {
        let cluster = Cluster::new(lab, &["a", "b"]);
        cluster.api.faults(|faults| faults.down = true);
        let peers: Vec<Meshd> =
            cluster.hosts.iter().map(|host| cluster.start(host, &["--http", "127.0.0.1:6784"])).collect();
        for peer in &peers {
            await_problem(peer, "no secret of the cluster yet", 10 * SECOND);
            await_problem(peer, "cannot be reached since", 10 * SECOND);
            assert_eq!(peer.status()["kubernetes"]["state"], "away");
            let refused = peer.ctl_output(&["ip", "alloc", "x"]);
            assert!(!refused.status.success());
            let ready = get(peer, "/readyz");
            assert!(ready.contains("503") && ready.contains("no secret of the cluster yet"), "{ready}");
            assert!(get(peer, "/healthz").contains("200"), "it is healthy, and only waits");
        }
        cluster.api.faults(|faults| faults.down = false);
        await_split(&peers, 30 * SECOND);
        assert!(get(&peers[0], "/readyz").contains("200"));
        lab::wait("no problem is left", 10 * SECOND, || {
            peers.iter().all(|peer| peer.status()["problems"] == Value::Array(Vec::new()))
        });
        // Away again, this time between the secret and the address space.
        let mut cluster = cluster;
        let host = cluster.add("c");
        cluster.api.forbid("patch", "nodes", true);
        let late = cluster.start(&host, &[]);
        await_problem(&late, "forbids meshd to patch nodes/status", 20 * SECOND);
        assert_eq!(late.status()["ipam"]["state"], "waiting", "who is not on its Node joins nothing");
        cluster.api.faults(|faults| faults.forbid.clear());
        let mut peers = peers;
        peers.push(late);
        await_split(&peers, 60 * SECOND);
    });
}

/// The API goes away: traffic, addresses and restarts go on without it.
#[test]
fn the_api_is_away_later() {
    lab::test("the_api_is_away_later", |lab| {
        let cluster = Cluster::new(lab, &["a", "b", "c"]);
        let mut peers = cluster.start_all();
        await_split(&peers, 30 * SECOND);
        let pods: Vec<Host> = peers
            .iter()
            .map(|peer| {
                let pod = lab.host(&format!("pod-{}", peer.host.name));
                peer.ctl(&["attach", &pod.name]);
                pod
            })
            .collect();
        let address = |peer: &Meshd, pod: &Host| {
            let shown = peer.ctl(&["ip", "lookup", &format!("netns:{}", pod.name)]);
            shown.trim().split('/').next().unwrap_or_default().to_owned()
        };
        let far = address(&peers[1], &pods[1]);
        pods[0].await_ping(&far, 10 * SECOND);
        // Kept by then.
        lab::wait("nodes are kept", 10 * SECOND, || {
            peers.iter().all(|peer| {
                std::fs::read_to_string(peer.state.join("kubernetes.json"))
                    .is_ok_and(|text| text.contains("192.168.77.3"))
            })
        });
        cluster.api.faults(|faults| faults.down = true);
        await_problem(&peers[0], "cannot be reached since", 20 * SECOND);
        assert!(pods[0].pings(&far, 20, 20) >= 19);
        let more: BTreeSet<String> = peers.iter().map(|peer| alloc(peer, "more")).collect();
        assert_eq!(more.len(), 3, "given out without it");
        // A rolling update: interface, address and membership stay.
        let lease = address(&peers[0], &pods[0]);
        assert!(peers[0].stop("TERM").success());
        let after = pods[0].output(&["ip", "-br", "address", "show", "ethmesh"]);
        assert!(String::from_utf8_lossy(&after.stdout).contains(&lease), "the pod keeps its address");
        peers[0] = cluster.start(&cluster.hosts[0], &[]);
        peers[0].await_peers(3, 30 * SECOND);
        pods[0].await_ping(&far, 20 * SECOND);
        assert_eq!(address(&peers[0], &pods[0]), lease);
        await_split(&peers, 30 * SECOND);
        assert_eq!(peers[0].status()["kubernetes"]["state"], "away");
        cluster.api.faults(|faults| faults.down = false);
        peers[0].await_status("the API is back", 60 * SECOND, |status| status["kubernetes"]["state"] == "ok");
        assert!(!has_problem(&peers[0].status(), "cannot be reached since"));
    });
}

/// The next version starts while the one before still runs, as the pods of a DaemonSet may: traffic stands still for a moment only.
#[test]
fn a_rolling_update() {
    lab::test("a_rolling_update", |lab| {
        let cluster = Cluster::new(lab, &["a", "b"]);
        let mut peers = cluster.start_all();
        await_split(&peers, 30 * SECOND);
        let [here, there] = ["here", "there"].map(|name| lab.host(name));
        peers[0].ctl(&["attach", "here"]);
        peers[1].ctl(&["attach", "there"]);
        let far = peers[1].ctl(&["ip", "lookup", "netns:there"]);
        let far = far.trim().split('/').next().unwrap_or_default().to_owned();
        here.await_ping(&far, 10 * SECOND);
        drop(there);
        let pings = here.spawn(&["ping", "-n", "-q", "-i", "0.01", "-c", "800", "-W", "1", &far]);
        let successor = cluster.start(&cluster.hosts[0], &[]);
        lab::wait("it waits for its turn", 5 * SECOND, || successor.state.join("successor").exists());
        assert!(peers[0].stop("TERM").success());
        successor.await_peers(2, 20 * SECOND);
        assert!(!successor.state.join("successor").exists());
        let mut pings = pings;
        let lost = 800 - lab::received(&pings.finish());
        println!("a rolling update cost {lost} of 800 pings, 100 a second");
        assert!(lost < 300, "{lost}");
        peers[0] = successor;
        await_split(&peers, 20 * SECOND);
        // Without a successor it goes, too, and before a kubelet would kill it.
        let told = Instant::now();
        assert!(peers[0].stop("TERM").success());
        assert!(told.elapsed() > SECOND, "it waited for one");
    });
}

/// Whatever ends a watch, what changed meanwhile is seen.
#[test]
fn the_watch_goes_on() {
    lab::test("the_watch_goes_on", |lab| {
        let cluster = Cluster::new(lab, &["a"]);
        let peer = cluster.start(&cluster.hosts[0], &[]);
        await_split(std::slice::from_ref(&peer), 20 * SECOND);
        let lists = || cluster.api.asked("list", "nodes");
        let before = lists();
        cluster.api.add_node("n1", "192.168.77.51");
        await_target(&peer, "192.168.77.51:6783", true, 5 * SECOND);
        assert_eq!(lists(), before, "by the watch alone");
        cluster.api.cut();
        cluster.api.add_node("n2", "192.168.77.52");
        await_target(&peer, "192.168.77.52:6783", true, 10 * SECOND);
        assert_eq!(lists(), before, "a cut watch goes on from where it was");
        for (at, by_event) in [(53, false), (54, true)] {
            cluster.api.faults(|faults| faults.expire_by_event = by_event);
            let (name, address) = (format!("n{at}"), format!("192.168.77.{at}"));
            cluster.api.add_node(&name, &address);
            assert!(cluster.api.delete("nodes", &format!("n{}", at - 52)));
            cluster.api.expire();
            await_target(&peer, &format!("{address}:6783"), true, 20 * SECOND);
            await_target(&peer, &format!("192.168.77.{}:6783", at - 2), false, 5 * SECOND);
        }
        assert!(lists() > before, "an expired one begins with a list");
        cluster.api.faults(|faults| faults.broken = true);
        cluster.api.cut();
        await_problem(&peer, "it answers 500", 30 * SECOND);
        cluster.api.add_node("n5", "192.168.77.55");
        cluster.api.faults(|faults| (faults.broken, faults.slow) = (false, SECOND));
        await_target(&peer, "192.168.77.55:6783", true, 60 * SECOND);
        let mut moved = cluster.api.object("nodes", "n5").unwrap();
        moved["status"]["addresses"][1]["address"] = "192.168.77.56".into();
        cluster.api.put("nodes", "n5", moved);
        await_target(&peer, "192.168.77.56:6783", true, 10 * SECOND);
        await_target(&peer, "192.168.77.55:6783", false, 10 * SECOND);
    });
}

/// A Node that is deleted, one whose machine was made anew, and one that lost its state while a container runs: what they owned comes back by itself. Not while
/// the API is away, and not before the container has ended.
#[test]
fn machines_that_are_gone() {
    lab::test("machines_that_are_gone", |lab| {
        let cluster = Cluster::new(lab, &["a", "b", "c", "d", "e", "f", "g"]);
        let gone = ["--kubernetes-node-gone", "5"];
        let mut peers: Vec<Meshd> = cluster.hosts.iter().map(|host| cluster.start(host, &gone)).collect();
        await_split(&peers, 60 * SECOND);
        let pod = lab.host("pod");
        peers[6].ctl(&["attach", "pod"]);
        let [mut lost, mut anew, mut deleted] =
            [peers.pop(), peers.pop(), peers.pop()].map(|peer| peer.expect("seven peers"));
        let before: BTreeSet<String> = [&lost, &anew, &deleted].into_iter().map(id).collect();
        for peer in [&mut lost, &mut anew, &mut deleted] {
            peer.stop("KILL");
        }
        for peer in [&lost, &anew] {
            std::fs::remove_dir_all(&peer.state).expect("the state");
        }
        anew.host.run(&["ip", "link", "del", "mesh0"]);
        assert!(cluster.api.delete("nodes", "e"));
        peers.push(cluster.start(&cluster.hosts[5], &gone));
        peers.push(cluster.start(&cluster.hosts[6], &gone));
        for peer in &peers {
            peer.await_status("it belongs", 60 * SECOND, |status| status["ipam"]["state"] == "ready");
        }
        assert!(peers.iter().all(|peer| !before.contains(&id(peer))), "new peers");
        assert_eq!(cluster.api.annotation("f", "meshnet/alone").as_deref(), Some("true"));
        assert_eq!(cluster.api.annotation("g", "meshnet/alone").as_deref(), Some("false"));
        let removed = |peer: &Meshd| number(&peer.status()["ipam"]["removed"]);
        // The API goes away before a minute of silence is over.
        cluster.api.faults(|faults| faults.down = true);
        std::thread::sleep(70 * SECOND);
        assert!(peers.iter().all(|peer| removed(peer) == 0), "nobody is taken for gone unseen");
        cluster.api.faults(|faults| faults.down = false);
        // Two are gone for good, and wait for the third.
        let begun = || peers.iter().any(|peer| has_problem(&peer.status(), "the removal of"));
        assert!(lab::poll(90 * SECOND, begun), "no removal is begun: {}", story(&peers));
        assert!(peers.iter().all(|peer| removed(peer) == 0), "a container may have an address of the third");
        lab::ok("ip", &["netns", "del", &pod.name]);
        for peer in &peers {
            peer.await_status("three are removed", 120 * SECOND, |status| number(&status["ipam"]["removed"]) == 3);
        }
        assert_eq!(cluster.api.annotation("g", "meshnet/alone").as_deref(), Some("true"));
        await_split(&peers, 30 * SECOND);
    });
}

/// More than half of a cluster is scaled down at once: those that are left take all back, and newcomers are let in.
#[test]
fn more_than_half_are_gone() {
    lab::test("more_than_half_are_gone", |lab| {
        let mut cluster = Cluster::new(lab, &["a", "b", "c", "d", "e"]);
        let gone = ["--kubernetes-node-gone", "5"];
        let mut peers: Vec<Meshd> = cluster.hosts.iter().map(|host| cluster.start(host, &gone)).collect();
        await_split(&peers, 60 * SECOND);
        for mut peer in peers.drain(2..) {
            peer.stop("TERM");
            assert!(cluster.api.delete("nodes", &peer.host.name));
        }
        // It cannot be let in before: a majority is away.
        let host = cluster.add("f");
        peers.push(cluster.start(&host, &gone));
        await_split(&peers, 150 * SECOND);
        assert!(peers.iter().all(|peer| number(&peer.status()["ipam"]["removed"]) == 3));
    });
}

/// The one that began dies before anybody else belongs: another takes over, and only then.
#[test]
fn a_founder_that_is_gone() {
    lab::test("a_founder_that_is_gone", |lab| {
        let cluster = Cluster::new(lab, &["a", "b"]);
        let gone = ["--kubernetes-node-gone", "5"];
        let mut a = cluster.start(&cluster.hosts[0], &gone);
        await_split(std::slice::from_ref(&a), 20 * SECOND);
        let space = || cluster.api.object("configmaps", "meshnet-genesis").unwrap()["data"]["genesis"].to_string();
        let first = space();
        a.stop("KILL");
        // Another comes while the first may be back: it waits.
        let b = cluster.start(&cluster.hosts[1], &gone);
        b.await_status("it waits for a", 20 * SECOND, |status| {
            status["kubernetes"]["reason"].as_str().is_some_and(|why| why.contains("waiting for a peer"))
        });
        std::thread::sleep(7 * SECOND);
        assert_eq!(b.status()["ipam"]["state"], "waiting");
        assert!(cluster.api.delete("nodes", "a"));
        b.await_status("it takes over", 30 * SECOND, |status| number(&status["ipam"]["owned"]) == ALL);
        assert_ne!(space(), first);
        // And by whom stands in its place: made anew on the same machine.
        drop(b);
        let b = &cluster.hosts[1];
        std::fs::remove_dir_all(lab.dir.join("b.state")).expect("the state");
        let b = cluster.start(b, &gone);
        b.await_status("it takes over from itself", 30 * SECOND, |status| number(&status["ipam"]["owned"]) == ALL);
    });
}

/// RBAC forbids one thing after the other: each is named, and heals by itself.
#[test]
fn what_is_forbidden_is_named() {
    lab::test("what_is_forbidden_is_named", |lab| {
        let cluster = Cluster::new(lab, &["a"]);
        let all = [
            ("get", "secrets"),
            ("create", "secrets"),
            ("list", "nodes"),
            ("watch", "nodes"),
            ("patch", "nodes"),
            ("get", "configmaps"),
            ("create", "configmaps"),
        ];
        cluster.api.faults(|faults| {
            faults.forbid = all.iter().map(|(verb, kind)| (verb.to_string(), kind.to_string())).collect()
        });
        let peer = cluster.start(&cluster.hosts[0], &[]);
        for (verb, kind) in all {
            let words = match kind {
                "nodes" if verb == "patch" => "patch nodes/status".to_owned(),
                "nodes" => format!("{verb} nodes"),
                "secrets" => format!("{verb} secrets 'meshnet' in kube-system"),
                _ => format!("{verb} configmaps 'meshnet-genesis' in kube-system"),
            };
            await_problem(&peer, &format!("forbids meshd to {words}"), 60 * SECOND);
            cluster.api.forbid(verb, kind, false);
        }
        await_split(std::slice::from_ref(&peer), 60 * SECOND);
        lab::wait("nothing is forbidden", 60 * SECOND, || !has_problem(&peer.status(), "forbids"));
    });
}

/// Over TLS, with the cluster's authority and a token that is replaced while meshd runs.
#[test]
fn over_tls() {
    lab::test("over_tls", |lab| {
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = parameters.self_signed(&authority).unwrap();
        let issuer = rcgen::Issuer::new(parameters, authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let server =
            rcgen::CertificateParams::new(vec!["192.168.77.100".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![server.der().clone()], private.into())
            .unwrap();
        let cluster = Cluster::with(lab, &["a"], Some(Arc::new(tls)));
        let write = |name: &str, text: &str| std::fs::write(cluster.credentials.join(name), text).expect("a file");
        write("ca.crt", &rcgen::KeyPair::generate().unwrap().public_key_pem());
        write("token", "first\n");
        cluster.api.faults(|faults| faults.token = Some("first".into()));
        let peer = cluster.start(&cluster.hosts[0], &[]);
        await_problem(&peer, "ca.crt holds no certificates", 10 * SECOND);
        write("ca.crt", &ca.pem());
        await_split(std::slice::from_ref(&peer), 30 * SECOND);
        cluster.api.faults(|faults| faults.token = Some("second".into()));
        cluster.api.cut();
        await_problem(&peer, "forbids meshd to watch nodes: Unauthorized (401)", 30 * SECOND);
        write("token", "second");
        lab::wait("the new token serves", 60 * SECOND, || !has_problem(&peer.status(), "forbids"));
        cluster.api.add_node("n1", "192.168.77.51");
        await_target(&peer, "192.168.77.51:6783", true, 30 * SECOND);
    });
}

/// Secret and ConfigMap are put back when they are deleted, and a change is told; who leaves says so on its Node.
#[test]
fn objects_that_are_deleted_or_changed() {
    lab::test("objects_that_are_deleted_or_changed", |lab| {
        let mut cluster = Cluster::new(lab, &["a"]);
        let a = cluster.start(&cluster.hosts[0], &[]);
        await_split(std::slice::from_ref(&a), 20 * SECOND);
        lab::wait("the Node bears the address space", 10 * SECOND, || {
            cluster.api.annotation("a", "meshnet/address-space").is_some_and(|space| !space.is_empty())
        });
        let space = cluster.api.annotation("a", "meshnet/address-space").unwrap();
        let secret = cluster.api.object("secrets", "meshnet").unwrap()["data"].clone();
        cluster.api.delete("secrets", "meshnet");
        cluster.api.delete("configmaps", "meshnet-genesis");
        lab::wait("both are back", 60 * SECOND, || {
            cluster.api.object("secrets", "meshnet").is_some()
                && cluster.api.object("configmaps", "meshnet-genesis").is_some()
        });
        assert_eq!(cluster.api.object("secrets", "meshnet").unwrap()["data"], secret);
        let birth = cluster.api.object("configmaps", "meshnet-genesis").unwrap()["data"]["genesis"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(birth.contains(&space) && birth.contains("\"closed\":true"), "{birth}");
        let host = cluster.add("b");
        let mut peers = vec![a, cluster.start(&host, &[])];
        await_split(&peers, 40 * SECOND);
        let mut changed = cluster.api.object("secrets", "meshnet").unwrap();
        changed["data"]["secret"] = "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==".into();
        cluster.api.put("secrets", "meshnet", changed);
        await_problem(&peers[0], "the Secret of the cluster was changed", 90 * SECOND);
        peers[1].ctl(&["leave"]);
        assert!(peers[1].await_exit(20 * SECOND).is_some_and(|status| status.success()));
        assert_eq!(cluster.api.network("b"), Some(("True".into(), "MeshnetLeft".into())));
    });
}
