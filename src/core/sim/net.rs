//! The underlay of the simulation: who reaches whom, how long it takes, what gets lost. All drawn from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::time::Time;

/// A simulated machine, by place.
pub type HostId = usize;

/// What the underlay does to a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// Shortest one-way delay.
    pub delay_min: Duration,
    /// Longest; each pair has its own between the two.
    pub delay_max: Duration,
    /// Added anew to each datagram, up to this: reorders.
    pub jitter: Duration,
    /// Part that is lost.
    pub loss: f64,
    /// Part that comes twice.
    pub duplicate: f64,
}

impl Conditions {
    /// A switch.
    pub const LAN: Conditions = Conditions {
        delay_min: Duration::from_micros(150),
        delay_max: Duration::from_micros(750),
        jitter: Duration::from_micros(50),
        loss: 0.0,
        duplicate: 0.0,
    };
    /// Several continents.
    pub const WAN: Conditions = Conditions {
        delay_min: Duration::from_millis(5),
        delay_max: Duration::from_millis(60),
        jitter: Duration::from_millis(1),
        loss: 0.0,
        duplicate: 0.0,
    };
}

/// Translation of addresses before a host.
#[derive(Debug)]
struct Nat {
    /// What others see.
    public: SocketAddr,
    /// Who may send in, until when: those that were sent to.
    allowed: BTreeMap<SocketAddr, Time>,
}

/// The network.
#[derive(Debug)]
pub struct Net {
    /// What it does to datagrams.
    pub conditions: Conditions,
    salt: u64,
    addresses: Vec<SocketAddr>,
    /// By the address that others see.
    by_seen: BTreeMap<SocketAddr, HostId>,
    nats: BTreeMap<HostId, Nat>,
    /// From, to: nothing passes.
    cuts: BTreeSet<(HostId, HostId)>,
    /// Hosts of different groups do not reach each other.
    groups: BTreeMap<HostId, u32>,
    /// From, to: only QUIC passes.
    data_cuts: BTreeSet<(HostId, HostId)>,
    /// Hosts whose devices lose all but the first datagram of a segmented send.
    train_breakers: BTreeSet<HostId>,
    /// From, to, port: a firewall that knows only the main one.
    aside_cuts: BTreeSet<(HostId, HostId, u8)>,
    /// The largest packet between two hosts, the lower first; any size when there is none.
    sizes: BTreeMap<(HostId, HostId), usize>,
}

impl Net {
    /// An empty one.
    pub fn new(conditions: Conditions, salt: u64) -> Net {
        Net {
            conditions,
            salt,
            addresses: Vec::new(),
            by_seen: BTreeMap::new(),
            nats: BTreeMap::new(),
            cuts: BTreeSet::new(),
            groups: BTreeMap::new(),
            data_cuts: BTreeSet::new(),
            train_breakers: BTreeSet::new(),
            aside_cuts: BTreeSet::new(),
            sizes: BTreeMap::new(),
        }
    }

    /// Connects a host.
    pub fn add(&mut self, address: SocketAddr) -> HostId {
        self.addresses.push(address);
        self.reindex();
        self.addresses.len() - 1
    }

    /// The address that a host has on its own interface.
    pub fn address(&self, host: HostId) -> SocketAddr {
        self.addresses[host]
    }

    /// The address under which others see a host.
    pub fn seen_as(&self, host: HostId) -> SocketAddr {
        self.nats.get(&host).map_or(self.addresses[host], |nat| nat.public)
    }

    /// A host moves to another address.
    pub fn renumber(&mut self, host: HostId, address: SocketAddr) {
        self.addresses[host] = address;
        self.reindex();
    }

    fn reindex(&mut self) {
        self.by_seen = (0..self.addresses.len()).map(|host| (self.seen_as(host), host)).collect();
    }

    /// Puts a host behind a translator, or gives its translation another outer address.
    pub fn translate(&mut self, host: HostId, public: SocketAddr) {
        self.nats.insert(host, Nat { public, allowed: BTreeMap::new() });
        self.reindex();
    }

    /// Cuts or mends one direction.
    pub fn cut(&mut self, from: HostId, to: HostId, cut: bool) {
        if cut {
            self.cuts.insert((from, to))
        } else {
            self.cuts.remove(&(from, to))
        };
    }

    /// Lets nothing pass in one direction that leaves from this other port than the main one, or lets it again.
    pub fn cut_aside(&mut self, from: HostId, to: HostId, port: u8, cut: bool) {
        if cut {
            self.aside_cuts.insert((from, to, port))
        } else {
            self.aside_cuts.remove(&(from, to, port))
        };
    }

    /// Whether it does not pass.
    pub fn refuses_aside(&self, from: HostId, to: HostId, port: u8) -> bool {
        self.aside_cuts.contains(&(from, to, port))
    }

    /// Lets only QUIC pass in one direction, or everything again.
    pub fn cut_data(&mut self, from: HostId, to: HostId, cut: bool) {
        if cut {
            self.data_cuts.insert((from, to))
        } else {
            self.data_cuts.remove(&(from, to))
        };
    }

    /// Whether sealed datagrams are lost in this direction.
    pub fn refuses_data(&self, from: HostId, to: HostId) -> bool {
        self.data_cuts.contains(&(from, to))
    }

    /// The device of a host loses all but the first datagram of each segmented send, or none any more.
    pub fn break_trains(&mut self, host: HostId, broken: bool) {
        if broken {
            self.train_breakers.insert(host)
        } else {
            self.train_breakers.remove(&host)
        };
    }

    /// Whether the device of a host does so.
    pub fn breaks_trains(&self, host: HostId) -> bool {
        self.train_breakers.contains(&host)
    }

    /// The path between two hosts takes packets (IP and UDP included) up to `bytes`; larger ones vanish, and nobody is told.
    pub fn limit(&mut self, a: HostId, b: HostId, bytes: usize) {
        self.sizes.insert((a.min(b), a.max(b)), bytes);
    }

    /// Whether a datagram of this length passes between two hosts.
    pub fn fits(&self, a: HostId, b: HostId, datagram_bytes: usize) -> bool {
        let most = self.sizes.get(&(a.min(b), a.max(b)));
        most.is_none_or(|most| datagram_bytes + HEADERS_BYTES <= *most)
    }

    /// Puts a host into a group; all are in group 0 at first.
    pub fn group(&mut self, host: HostId, group: u32) {
        self.groups.insert(host, group);
    }

    /// Whether anything passes from one host to another.
    pub fn passes(&self, from: HostId, to: HostId) -> bool {
        let group = |host| self.groups.get(&host).copied().unwrap_or(0);
        from == to || !self.cuts.contains(&(from, to)) && group(from) == group(to)
    }

    /// Sends from a host to an address: opens its translator, gives the host that receives it, if any.
    pub fn route(&mut self, now: Time, from: HostId, to: SocketAddr) -> Option<HostId> {
        let source = self.seen_as(from);
        if let Some(nat) = self.nats.get_mut(&from) {
            nat.allowed.insert(to, now + NAT_KEPT);
        }
        let host = *self.by_seen.get(&to)?;
        let open = |nat: &Nat| nat.allowed.get(&source).is_some_and(|until| *until > now);
        let admitted = self.nats.get(&host).is_none_or(open) || host == from;
        (admitted && self.passes(from, host)).then_some(host)
    }

    /// The one-way delay between two hosts, without jitter.
    pub fn delay(&self, a: HostId, b: HostId) -> Duration {
        let Conditions { delay_min, delay_max, .. } = self.conditions;
        let (low, high) = (a.min(b) as u64, a.max(b) as u64);
        let drawn = crate::topology::digest::mix(self.salt ^ low << 32 ^ high) % 1000;
        delay_min + (delay_max - delay_min) * drawn as u32 / 1000
    }

    /// The delays of the copies of a datagram that arrive: none, one or two.
    pub fn copies(&self, rng: &mut StdRng, from: HostId, to: HostId) -> Vec<Duration> {
        let Conditions { jitter, loss, duplicate, .. } = self.conditions;
        let copies = if duplicate > 0.0 && rng.random_bool(duplicate) { 2 } else { 1 };
        let mut delays = Vec::new();
        for _ in 0..copies {
            let lost = loss > 0.0 && rng.random_bool(loss);
            if !lost {
                delays.push(self.delay(from, to) + jitter.mul_f64(rng.random::<f64>()));
            }
        }
        delays
    }
}

/// IPv4 and UDP.
const HEADERS_BYTES: usize = 28;
/// Translators forget a flow after this.
const NAT_KEPT: Duration = Duration::from_secs(30);
