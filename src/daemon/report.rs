//! What the driver says of itself: status, report, metrics, readiness. The node knows links, peers and routes; the rest is added here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use meshnet_core::counters::DropReason;
use meshnet_core::fdb::Owner;
use meshnet_core::fib;
use meshnet_core::fib::owners::mac_of;
use meshnet_core::time::Time;
use meshnet_proto::api::{self, Data, MacEntry, Network, Problem, Report, Status, Trace};
use meshnet_proto::{Mac, PeerId};

use super::config::Settings;
use super::devices::View;
use super::driver::Driver;
use super::kubernetes::Link;
use crate::telemetry::{Recent, metrics};

/// What never changes while the process runs, and where the newest of the rest is found.
pub struct Facts {
    settings: BTreeMap<String, String>,
    me: PeerId,
    recent: Recent,
    view: View,
    /// What is managed, and where addresses come from by default.
    range: (String, String),
}

impl Facts {
    /// Of these settings. `view` shows what the devices are at any time.
    pub fn new(settings: &Settings, me: PeerId, recent: Recent, view: View) -> Facts {
        let range = settings.ipam_range.map(|range| range.to_string()).unwrap_or_default();
        let subnet = settings.ipam_subnet.map_or_else(|| range.clone(), |subnet| subnet.to_string());
        Facts { settings: settings.shown(), me, recent, view, range: (range, subnet) }
    }
}

impl Driver {
    pub(super) fn status(&self, now: Time) -> Status {
        let mut problems = self.node.problems(now);
        let mut device = self.facts.view.device();
        device.offloads.extend(self.sockets.abilities().words().map(str::to_owned));
        problems.extend(self.facts.view.problems());
        problems.extend(self.addresses.problems());
        problems.extend(self.ipam.claims.problems());
        problems.extend(self.kubernetes.iter().flat_map(Link::problems));
        if self.plane.tap_lost() {
            problems.push(Problem {
                what: format!("the TAP device {} was deleted", device.tap),
                remedy: "it is being put back; if this stays, see the log".into(),
            });
        }
        Status {
            version: api::VERSION,
            peer: self.node.status_me(now),
            links: self.node.status_links(now),
            peers: self.node.status_peers(now),
            ipam: self.node.ipam_status(),
            data: self.data(),
            problems,
            kubernetes: self.kubernetes.as_ref().map(Link::status),
            targets: self.node.targets(),
            routes: self.node.status_routes(),
            device,
        }
    }

    fn data(&self) -> Data {
        let (totals, fast) = (self.plane.counters(), self.fast.traffic());
        let drops = DropReason::ALL.into_iter().zip(totals.drops).filter(|(_, count)| *count > 0);
        Data {
            tx_frames: totals.tx_frames + fast.tx_frames,
            tx_bytes: totals.tx_bytes + fast.tx_bytes,
            rx_frames: totals.rx_frames + fast.rx_frames,
            rx_bytes: totals.rx_bytes + fast.rx_bytes,
            relayed: totals.relayed,
            fragmented: totals.fragmented,
            reassembled: totals.reassembled,
            clamped: totals.clamped,
            told_too_big: totals.told_too_big,
            drops: drops.map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
        }
    }

    pub(super) fn macs(&self) -> Vec<MacEntry> {
        let tick = self.tick.load(std::sync::atomic::Ordering::Relaxed);
        let mut macs: Vec<MacEntry> = self
            .plane
            .fdb()
            .entries()
            .into_iter()
            .filter_map(|entry| {
                let peer = match entry.owner {
                    Owner::Local => self.facts.me,
                    Owner::Peer(slot) => self.node.peer_at(slot)?,
                };
                Some(MacEntry {
                    mac: entry.mac.to_string(),
                    peer,
                    name: self.node.records().display_name(&peer),
                    age_s: u64::from(tick.saturating_sub(entry.refreshed)),
                    local: entry.owner == Owner::Local,
                })
            })
            .collect();
        macs.sort_by(|a, b| a.mac.cmp(&b.mac));
        macs
    }

    pub(super) fn report(&self, now: Time) -> Report {
        Report {
            version: api::VERSION,
            status: self.status(now),
            topology: self.node.topology(),
            macs: self.macs(),
            settings: self.facts.settings.clone(),
            counters: self.counters(),
            kernel: std::fs::read_to_string("/proc/version").unwrap_or_default().trim().to_owned(),
            events: self.facts.recent.lines(),
        }
    }

    pub(super) fn metrics(&self, now: Time) -> String {
        metrics::render(&self.status(now), &self.counters())
    }

    /// Counters of the rooms, by metric name. Those of frames are in the status.
    fn counters(&self) -> BTreeMap<String, u64> {
        let gossip = self.node.gossip_counters();
        let totals = self.plane.counters();
        let quic = self.quic.counters();
        let get = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        [
            ("mesh_gossip_records_received_total", gossip.records_received),
            ("mesh_gossip_records_redundant_total", gossip.records_redundant),
            ("mesh_gossip_records_bad_total", gossip.records_bad),
            ("mesh_gossip_records_excess_total", gossip.records_excess),
            ("mesh_gossip_records_sent_total", gossip.records_sent),
            ("mesh_gossip_record_bytes_sent_total", gossip.record_bytes_sent),
            ("mesh_gossip_repair_messages_sent_total", gossip.repair_messages_sent),
            ("mesh_quic_secret_refused_total", get(&quic.secret_refused)),
            ("mesh_quic_handshakes_failed_total", get(&quic.handshakes_failed)),
            ("mesh_quic_retries_total", get(&quic.retries)),
            ("mesh_quic_refused_total", get(&quic.refused)),
            ("mesh_quic_datagrams_lost_total", self.quic.datagrams_lost()),
            ("mesh_quic_links", self.quic.links() as u64),
            ("mesh_fdb_entries", self.plane.fdb().len() as u64),
            ("mesh_fdb_full_total", self.plane.fdb().full_count() as u64),
            ("mesh_data_flooded_total", totals.flooded),
            ("mesh_data_answered_total", totals.answered),
            ("mesh_udp_segmentation_refused_total", totals.segmentation_refused),
            ("mesh_fib_epoch", self.plane.fib().epoch),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Ready: frames can enter and leave, and addresses can be given out if they are managed. Peers are not asked for: a first peer is ready alone.
    pub(super) fn ready(&self) -> Result<(), String> {
        self.passes()?;
        let waits = || self.kubernetes.as_ref().and_then(Link::waits);
        let why = |why: String| format!("no address can be given out: {}", waits().unwrap_or(why));
        self.node.addresses_ready().map_err(why)
    }

    /// Whether frames can enter and leave.
    fn passes(&self) -> Result<(), String> {
        if self.plane.tap_lost() {
            return Err("the TAP device is gone and being put back".into());
        }
        self.facts.view.ready()
    }

    /// For those that make interfaces on the bridge.
    pub(super) fn network(&self) -> Network {
        let device = self.facts.view.device();
        let (range, subnet) = self.facts.range.clone();
        Network {
            bridge: device.bridge,
            mtu: device.mtu,
            exposed: device.exposed,
            range,
            subnet,
            broken: self.passes().err().unwrap_or_default(),
            waiting: self.node.addresses_ready().err().unwrap_or_default(),
        }
    }

    /// The path to a peer by name or id, or to whoever has a MAC address.
    pub(super) fn trace(&self, to: &str) -> Result<Trace, String> {
        match to.parse::<Mac>() {
            Ok(mac) => self.trace_mac(to, mac),
            Err(_) => self.node.trace(to),
        }
    }

    /// The path to an IP address: of the managed range to its owner, of others to who has the MAC address that the host's neighbour table says.
    pub(super) fn trace_ip(&self, to: &str, mac: Option<Mac>) -> Result<Trace, String> {
        if let Some(address) = to.parse::<Ipv4Addr>().ok().map(u32::from)
            && let Some(owner) = self.plane.fib().owners.owner(address)
        {
            return self.trace_owner(to, mac_of(address), owner);
        }
        let unknown =
            || format!("{to} is not known on this bridge: send it a packet from here first, or trace its MAC address");
        self.trace_mac(to, mac.ok_or_else(unknown)?)
    }

    fn trace_owner(&self, to: &str, mac: Mac, owner: fib::Owner) -> Result<Trace, String> {
        let peer = match owner {
            fib::Owner::Me => Some(self.facts.me),
            fib::Owner::Peer(slot) => self.node.peer_at(slot),
            fib::Owner::Nobody => None,
        };
        let peer = peer.ok_or_else(|| format!("{to} is an address of the range that no peer owns"))?;
        let trace = self.node.trace(&peer.to_string())?;
        Ok(Trace { to: to.to_owned(), mac: Some(mac.to_string()), ..trace })
    }

    fn trace_mac(&self, to: &str, mac: Mac) -> Result<Trace, String> {
        if let Some((_, owner)) = self.plane.fib().owners.of_mac(mac) {
            return self.trace_owner(to, mac, owner);
        }
        let entry = self.plane.fdb().entries().into_iter().find(|entry| entry.mac == mac);
        let owner =
            entry.ok_or_else(|| format!("{mac} has sent no frame here yet: it would be flooded to every peer"))?.owner;
        let peer = match owner {
            Owner::Local => Some(self.facts.me),
            Owner::Peer(slot) => self.node.peer_at(slot),
        };
        let peer = peer.ok_or_else(|| format!("{mac} belongs to a peer that is gone"))?;
        let trace = self.node.trace(&peer.to_string())?;
        Ok(Trace { to: to.to_owned(), mac: Some(mac.to_string()), ..trace })
    }

    /// For look-ups that outlast a call.
    pub(super) fn view(&self) -> View {
        self.facts.view.clone()
    }
}
