//! The text of `/metrics`, in OpenMetrics, made from a [`Status`] and the counters of the rooms whenever it is asked for.
//!
//! Names: `mesh_<room>_<what>_<unit>`. The only label with as many values as there are peers is `peer`, cut at `PEERS_MAX`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use meshnet_core::counters::DropReason;
use meshnet_proto::api::{LinkState, Status};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// All of it. `counters` are further figures by their full metric name (`mesh_gossip_messages_in_total`, `mesh_fdb_entries`, …): those that
/// end in `_total` are counters, the rest gauges; a name that is no metric name, or is one that the status gives already, is left out.
pub fn render(status: &Status, counters: &BTreeMap<String, u64>) -> String {
    let mut registry = Registry::default();
    peer(&mut registry, status);
    links(&mut registry, status);
    peers(&mut registry, status);
    data(&mut registry, status);
    ipam(&mut registry, status);
    rooms(&mut registry, counters);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn peer(registry: &mut Registry, status: &Status) {
    let info = Gauges::default();
    let me = &status.peer;
    let labels = vec![("id", me.id.to_string()), ("name", plain(&me.name)), ("software", plain(&me.software))];
    info.get_or_create(&labels).set(1.0);
    registry.register("mesh_peer_info", "This peer; always 1", info);
    gauge(registry, "mesh_peer_uptime_seconds", "Since this process started", me.uptime_s);
    gauge(
        registry,
        "mesh_peer_problems",
        "Things that are wrong, as `meshctl status` tells them",
        count(&status.problems),
    );
    gauge(registry, "mesh_device_mtu_bytes", "MTU of the overlay on this machine", u64::from(status.device.mtu));
    gauge(
        registry,
        "mesh_device_queues",
        "Queues of the TAP device, each with its threads",
        u64::from(status.device.queues),
    );
}

fn links(registry: &mut Registry, status: &Status) {
    let links = Gauges::default();
    for link in &status.links {
        let state = match link.state {
            LinkState::Connecting => "connecting",
            LinkState::Established => "established",
            LinkState::Failed => "failed",
            LinkState::Retrying => "retrying",
        };
        let transport = ["udp", "quic", "vxlan"].into_iter().find(|name| *name == link.transport).unwrap_or("none");
        let labels = vec![
            ("state", state.to_owned()),
            ("transport", transport.to_owned()),
            ("encrypted", link.encrypted.to_string()),
        ];
        links.get_or_create(&labels).inc();
    }
    registry.register("mesh_links", "Links and attempts at links by state", links);

    let rtt = Gauges::default();
    let established = status.links.iter().filter(|link| link.state == LinkState::Established);
    for link in established.take(PEERS_MAX) {
        if let Some(peer) = link.peer {
            let labels = vec![("peer", peer.to_string()), ("name", plain(&link.name))];
            rtt.get_or_create(&labels).set(link.rtt_ms / 1e3);
        }
    }
    registry.register("mesh_link_rtt_seconds", "Round trip time of a link", rtt);
}

fn peers(registry: &mut Registry, status: &Status) {
    let others = || status.peers.iter().filter(|peer| peer.id != status.peer.id);
    let peers = Gauges::default();
    for reachable in [true, false] {
        let number = others().filter(|peer| peer.reachable == reachable).count();
        peers.get_or_create(&vec![("reachable", reachable.to_string())]).set(number as f64);
    }
    registry.register("mesh_peers", "Other peers that are known", peers);
    let relayed = others().filter(|peer| peer.reachable && peer.via.is_some()).count();
    gauge(registry, "mesh_peers_relayed", "Peers whose frames take relays", relayed as u64);
}

fn data(registry: &mut Registry, status: &Status) {
    let data = &status.data;
    counter(registry, "mesh_data_tx_frames", "Frames from the bridge sent to other peers", data.tx_frames);
    counter(registry, "mesh_data_tx_bytes", "Bytes of those frames", data.tx_bytes);
    counter(registry, "mesh_data_rx_frames", "Frames from other peers given to the bridge", data.rx_frames);
    counter(registry, "mesh_data_rx_bytes", "Bytes of those frames", data.rx_bytes);
    counter(registry, "mesh_data_relayed_datagrams", "Datagrams passed on for others", data.relayed);
    counter(registry, "mesh_data_fragmented", "Frames sent in fragments: their path takes less", data.fragmented);
    counter(registry, "mesh_data_reassembled", "Frames put together from fragments", data.reassembled);
    counter(registry, "mesh_data_clamped", "TCP connections whose segments were made to fit their path", data.clamped);
    counter(registry, "mesh_data_told_too_big", "Senders told that a packet was too large", data.told_too_big);
    let drops = Family::<Labels, Counter>::default();
    for reason in DropReason::ALL.map(DropReason::name) {
        let number = data.drops.get(reason).copied().unwrap_or(0);
        drops.get_or_create(&vec![("reason", reason.to_owned())]).inc_by(number);
    }
    registry.register("mesh_data_drops", "Frames and datagrams dropped", drops);
}

fn ipam(registry: &mut Registry, status: &Status) {
    let ipam = &status.ipam;
    if ipam.state == "off" {
        return;
    }
    let sum =
        |reachable| ipam.shares.iter().filter(|share| share.reachable == reachable).map(|share| share.addresses).sum();
    let figures: [(&str, &str, u64); 9] = [
        ("mesh_ipam_ready", "Whether addresses can be given out", u64::from(ipam.state == "ready")),
        ("mesh_ipam_owned_addresses", "Addresses that this peer may give out", ipam.owned),
        ("mesh_ipam_used_addresses", "Addresses given out by this peer", ipam.used),
        ("mesh_ipam_free_addresses", "Addresses that this peer could give out now", ipam.free),
        ("mesh_ipam_members", "Peers that belong to the address space", ipam.members),
        ("mesh_ipam_removed_members", "Peers that left it or were removed", ipam.removed),
        ("mesh_ipam_reachable_addresses", "Addresses owned by peers that can be reached, this one too", sum(true)),
        ("mesh_ipam_unreachable_addresses", "Addresses owned by peers that cannot be reached now", sum(false)),
        ("mesh_ipam_conflicts", "Addresses given out here that somebody else has too", count(&ipam.conflicts)),
    ];
    for (name, help, value) in figures {
        gauge(registry, name, help, value);
    }
}

fn rooms(registry: &mut Registry, counters: &BTreeMap<String, u64>) {
    for (name, &value) in counters.iter().take(COUNTERS_MAX) {
        let word = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !word || !name.starts_with("mesh_") || GIVEN.iter().any(|given| name.starts_with(given)) {
            continue;
        }
        match name.strip_suffix("_total") {
            Some(base) => counter(registry, base, help(name), value),
            None => gauge(registry, name, help(name), value),
        }
    }
}

/// Words for the metrics of the rooms; those that a room adds later speak by their name until a line is added here.
fn help(name: &str) -> &'static str {
    match name {
        "mesh_fdb_entries" => "Learned MAC addresses",
        "mesh_gossip_messages_in_total" => "Gossip messages received",
        "mesh_gossip_messages_out_total" => "Gossip messages sent",
        "mesh_gossip_bytes_in_total" => "Bytes of gossip received",
        "mesh_gossip_bytes_out_total" => "Bytes of gossip sent",
        "mesh_data_flooded_total" => "Copies of frames sent or passed on to several peers",
        "mesh_data_answered_total" => "ARP questions answered here",
        _ if name.starts_with("mesh_gossip_") => "Of the gossip between peers",
        _ if name.starts_with("mesh_node_") => "Of the control plane of this peer",
        _ if name.starts_with("mesh_ipam_") => "Of the addresses that peers split",
        _ if name.starts_with("mesh_fdb_") => "Of the table of learned MAC addresses",
        _ if name.starts_with("mesh_udp_") => "Of the UDP sockets",
        _ if name.starts_with("mesh_tap_") => "Of the TAP device",
        _ if name.starts_with("mesh_quic_") => "Of the QUIC links",
        _ => "See its name",
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(value as f64));
}

/// `name` without `_total`, which the encoder appends.
fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}

fn count<T>(list: &[T]) -> u64 {
    list.len() as u64
}

/// A name from the network as a label: without control characters. The encoder escapes quotes and backslashes.
fn plain(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(LABEL_MAX_CHARS).collect()
}

/// Metrics that this file makes from the status: not taken from the rooms' counters a second time.
const GIVEN: [&str; 22] = [
    "mesh_peer_",
    "mesh_links",
    "mesh_link_rtt_",
    "mesh_peers",
    "mesh_data_tx_",
    "mesh_data_rx_",
    "mesh_data_relayed_",
    "mesh_data_drops",
    "mesh_data_fragmented",
    "mesh_data_reassembled",
    "mesh_data_clamped",
    "mesh_data_told_",
    "mesh_device_",
    "mesh_ipam_ready",
    "mesh_ipam_owned_",
    "mesh_ipam_used_",
    "mesh_ipam_free_",
    "mesh_ipam_members",
    "mesh_ipam_removed_",
    "mesh_ipam_reachable_",
    "mesh_ipam_unreachable_",
    "mesh_ipam_conflicts",
];
/// The design size of a mesh; a peer has `--max-links` links (128), so this is a fence and no limit in practice.
const PEERS_MAX: usize = 1_000;
/// The rooms have some dozens.
const COUNTERS_MAX: usize = 500;
/// A name has at most 64 bytes on the wire.
const LABEL_MAX_CHARS: usize = 64;
