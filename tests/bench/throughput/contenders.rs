//! Who takes part, and how those are put up that every machine has: no overlay, the kernel's VXLAN, and meshd in its ways.

use std::time::Duration;

use crate::lab::{self, Lab, Meshd};
use crate::rivals;
use crate::stage::{Stage, Tunnel};

/// One that carries frames from pod to pod.
pub struct Contender {
    /// For the command line.
    pub name: &'static str,
    pub title: &'static str,
    pub cipher: &'static str,
    /// Somebody else's: to be installed.
    pub rival: bool,
    /// Needs a third host between the two.
    pub relay: bool,
    pub up: fn(&Stage, &Lab) -> Result<Tunnel, String>,
}

impl Contender {
    /// The title, with the version of a rival.
    pub fn title(&self) -> String {
        match self.rival {
            true => format!("{} {}", self.title, crate::install::version(self.name).unwrap_or_default()).trim().into(),
            false => self.title.to_owned(),
        }
    }
}

/// What all are compared with.
pub const BASE: Contender = Contender { cipher: "none", ..ours("vxlan", "kernel VXLAN", vxlan) };

/// All others.
pub const ALL: [Contender; 9] = [
    Contender { cipher: "none", ..ours("raw", "no overlay", raw) },
    ours("udp", "**meshd**, sealed UDP", |stage, lab| meshd(stage, lab, "udp", &["--transport", "udp"])),
    Contender {
        cipher: "AES-256-GCM, in TLS 1.3",
        ..ours("quic", "**meshd**, QUIC", |stage, lab| meshd(stage, lab, "quic", &["--transport", "quic"]))
    },
    Contender {
        cipher: "none",
        ..ours("fast", "**meshd**, fast path", |stage, lab| {
            meshd(stage, lab, "vxlan", &["--trusted-subnet", "192.168.77.0/24"])
        })
    },
    Contender { relay: true, ..ours("relay", "**meshd**, by one relay", relayed) },
    rival("wireguard-go", "ChaCha20-Poly1305", rivals::wireguard_go),
    rival("nebula", "AES-256-GCM", rivals::nebula),
    rival("tinc", "AES-256-CBC, SHA-256", rivals::tinc),
    rival("vpncloud", "AES-256-GCM", rivals::vpncloud),
];

type Up = fn(&Stage, &Lab) -> Result<Tunnel, String>;

const fn ours(name: &'static str, title: &'static str, up: Up) -> Contender {
    Contender { name, title, cipher: "AES-256-GCM", rival: false, relay: false, up }
}

const fn rival(name: &'static str, cipher: &'static str, up: Up) -> Contender {
    Contender { name, title: name, cipher, rival: true, relay: false, up }
}

/// The pods' bridges are plugged into the underlay.
fn raw(stage: &Stage, _lab: &Lab) -> Result<Tunnel, String> {
    Ok(stage.bridged(&stage.wire, "1500"))
}

fn vxlan(stage: &Stage, _lab: &Lab) -> Result<Tunnel, String> {
    for (at, host) in stage.hosts.iter().enumerate() {
        let (own, other) = (Stage::underlay(at), Stage::underlay(1 - at));
        let vxlan = ["type", "vxlan", "id", "42", "dstport", "4789", "local", &own, "remote", &other];
        host.run(&[&["ip", "link", "add", "name", "vx0"], &vxlan[..]].concat());
    }
    Ok(stage.bridged("vx0", "1450"))
}

fn meshd(stage: &Stage, lab: &Lab, transport: &str, arguments: &[&str]) -> Result<Tunnel, String> {
    let start = |at: usize| lab.meshd(&stage.hosts[at], &[&["--peer", &Stage::underlay(1 - at)], arguments].concat());
    let mut peers = vec![start(0), start(1)];
    peers.iter_mut().try_for_each(await_up)?;
    let by = |peer: &Meshd| peer.status()["links"][0]["transport"].as_str().unwrap_or_default().to_owned();
    if !lab::poll(Duration::from_secs(10), || peers.iter().all(|peer| by(peer) == transport)) {
        return Err(format!("frames do not go by {transport} but by '{}'", by(&peers[0])));
    }
    // The fast path is for addresses that are known.
    Ok(Tunnel { settle: Duration::from_secs(u64::from(transport == "vxlan")), ..attach(stage, peers)? })
}

/// The two hosts reach only the relay.
fn relayed(stage: &Stage, lab: &Lab) -> Result<Tunnel, String> {
    let relay = stage.relay.as_ref().ok_or("the stage has no relay")?;
    let [one, two] = &stage.hosts;
    let mut peers = vec![
        lab.meshd(one, &["--peer", "192.168.77.3"]),
        lab.meshd(two, &["--peer", "192.168.78.3"]),
        lab.meshd(relay, &[]),
    ];
    peers.iter_mut().try_for_each(await_up)?;
    attach(stage, peers)
}

/// Waits until it answers, or gives the last words of one that would not start.
fn await_up(peer: &mut Meshd) -> Result<(), String> {
    let mut ended = false;
    lab::poll(Duration::from_secs(10), || {
        ended = peer.await_exit(Duration::ZERO).is_some();
        ended || !peer.status().is_null()
    });
    match peer.log_text().lines().last() {
        Some(last) if ended => Err(last.trim_start_matches("meshd: ").to_owned()),
        None if ended => Err("meshd ended at once".into()),
        _ => Ok(()),
    }
}

fn attach(stage: &Stage, peers: Vec<Meshd>) -> Result<Tunnel, String> {
    for (at, (peer, pod)) in peers.iter().zip(&stage.pods).enumerate() {
        peer.await_peers(peers.len(), Duration::from_secs(10));
        peer.ctl(&["attach", &pod.name, &format!("10.32.0.{}/12", at + 1)]);
    }
    Ok(Tunnel { meshd: peers, ..stage.tunnel("10.32.0.2") })
}
