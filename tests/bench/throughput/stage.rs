//! Where contenders appear: two hosts with a bridge and a pod each, new for each visit, and what a contender leaves there.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::lab::{self, Host, Lab, Meshd};

/// What the underlay's interfaces do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Offload {
    /// No segmentation in "hardware", software GSO and GRO on.
    Nic,
    /// All that veth offers.
    On,
}

/// Two hosts with an underlay between them, and a pod at each.
pub struct Stage {
    pub hosts: [Host; 2],
    pub pods: [Host; 2],
    /// Between the two, which then have no other way to each other.
    pub relay: Option<Host>,
    /// The underlay's interface, at both hosts.
    pub wire: String,
}

impl Stage {
    pub fn new(lab: &Lab, tag: &str, offload: Offload, relayed: bool) -> Stage {
        let hosts = ["h1", "h2"].map(|name| lab.host(&format!("{name}-{tag}")));
        let pods = ["p1", "p2"].map(|name| lab.host(&format!("{name}-{tag}")));
        let relay = relayed.then(|| lab.host(&format!("relay-{tag}")));
        let [one, two] = &hosts;
        let wires = match &relay {
            None => vec![(lab.wire(one, "192.168.77.1/24", two, "192.168.77.2/24"), [one, two])],
            Some(relay) => vec![
                (lab.wire(one, "192.168.77.1/24", relay, "192.168.77.3/24"), [one, relay]),
                (lab.wire(two, "192.168.78.2/24", relay, "192.168.78.3/24"), [two, relay]),
            ],
        };
        for (wire, ends) in &wires {
            ends.iter().for_each(|host| like_a_card(host, wire, offload));
        }
        let wire = wires[0].0.clone();
        Stage { hosts, pods, relay, wire }
    }

    /// The address of a host (0 or 1) in the underlay.
    pub fn underlay(at: usize) -> String {
        format!("192.168.77.{}", at + 1)
    }

    /// Makes each host's bridge and plugs its pod in.
    pub fn plug_pods(&self, mtu: &str) {
        for (host, pod) in self.hosts.iter().zip(&self.pods) {
            host.run(&["ip", "link", "add", "name", "br0", "type", "bridge"]);
            host.run(&["ip", "link", "add", "name", "v0", "type", "veth", "peer", "name", "eth0", "netns", &pod.name]);
            host.run(&["ip", "link", "set", "v0", "mtu", mtu, "master", "br0", "up"]);
            host.run(&["ip", "link", "set", "br0", "mtu", mtu, "up"]);
            pod.run(&["ip", "link", "set", "eth0", "mtu", mtu, "up"]);
        }
    }

    /// One Ethernet: `port` of each host joins its bridge, and the pods share a network.
    pub fn bridged(&self, port: &str, mtu: &str) -> Tunnel {
        self.plug_pods(mtu);
        for (at, (host, pod)) in self.hosts.iter().zip(&self.pods).enumerate() {
            host.run(&["ip", "link", "set", port, "mtu", mtu, "master", "br0", "up"]);
            pod.run(&["ip", "address", "add", &format!("10.32.0.{}/12", at + 1), "dev", "eth0"]);
        }
        self.tunnel("10.32.0.2")
    }

    /// For tunnels that carry IP only: each host has a network of its own for its pods, and its device leads to the other's.
    pub fn routed(&self, devices: [&str; 2], mtu: &str) -> Tunnel {
        self.plug_pods(mtu);
        for (at, (host, pod)) in self.hosts.iter().zip(&self.pods).enumerate() {
            let (own, device) = (at + 1, devices[at]);
            host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
            host.run(&["ip", "address", "add", &format!("10.32.{own}.1/24"), "dev", "br0"]);
            pod.run(&["ip", "address", "add", &format!("10.32.{own}.2/24"), "dev", "eth0"]);
            pod.run(&["ip", "route", "add", "default", "via", &format!("10.32.{own}.1")]);
            host.run(&["ip", "link", "set", device, "mtu", mtu, "up"]);
            host.run(&["ip", "route", "replace", &format!("10.32.{}.0/24", 3 - own), "dev", device]);
        }
        self.tunnel("10.32.2.2")
    }

    pub fn tunnel(&self, address: &str) -> Tunnel {
        let [from, to] = self.pods.clone();
        Tunnel { from, to, address: address.to_owned(), meshd: Vec::new(), daemons: Vec::new(), settle: Duration::ZERO }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for host in self.pods.iter().chain(&self.hosts).chain(&self.relay) {
            let _ = lab::run("ip", &["netns", "del", &host.name]);
        }
    }
}

fn like_a_card(host: &Host, wire: &str, offload: Offload) {
    // A queue, as on a network card: veth then pushes back instead of dropping.
    host.run(&["tc", "qdisc", "replace", "dev", wire, "root", "pfifo", "limit", "1000"]);
    if offload == Offload::Nic {
        let switches = "tso off gso on gro on tx-udp-segmentation off tx-udp_tnl-segmentation off \
            tx-udp_tnl-csum-segmentation off tx-sctp-segmentation off";
        let mut command = vec!["ethtool", "-K", wire];
        command.extend(switches.split_whitespace());
        host.run(&command);
    }
}

/// What a contender has put up, to be measured; its daemons end with it.
pub struct Tunnel {
    pub from: Host,
    pub to: Host,
    /// Of the pod `to`.
    pub address: String,
    pub meshd: Vec<Meshd>,
    pub daemons: Vec<Daemon>,
    /// How long it looks for its best way after the first packet came through.
    pub settle: Duration,
}

impl Tunnel {
    /// The processes that carry it.
    pub fn pids(&self) -> Vec<u32> {
        self.meshd.iter().map(Meshd::pid).chain(self.daemons.iter().map(Daemon::pid)).collect()
    }
}

/// A process of somebody else's in a host's namespace.
pub struct Daemon {
    child: Child,
    log: std::path::PathBuf,
}

impl Daemon {
    pub fn start(lab: &Lab, host: &Host, command: &[&str]) -> Result<Daemon, String> {
        let log = lab.dir.join(format!("{}.rival.log", host.name));
        let file = std::fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let both = file.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let mut process = Command::new("ip");
        process.args(["netns", "exec", &host.name]).args(command).stdin(Stdio::null()).stdout(file).stderr(both);
        let child = process.spawn().map_err(|error| format!("ip netns exec: {error}"))?;
        Ok(Daemon { child, log })
    }

    /// `ip netns exec` replaces itself by it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the host has the device that it makes.
    pub fn await_device(&mut self, host: &Host, device: &str) -> Result<(), String> {
        let start = Instant::now();
        while !host.output(&["ip", "link", "show", device]).status.success() {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || start.elapsed() > Duration::from_secs(10) {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
                return Err(format!("no device {device}: {last}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
