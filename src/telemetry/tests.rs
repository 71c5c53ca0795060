use std::collections::BTreeMap;
use std::time::{Duration, Instant, UNIX_EPOCH};

use meshnet_core::counters::DropReason;
use meshnet_proto::PeerId;
use meshnet_proto::api::*;
use tracing_subscriber::layer::SubscriberExt;

use super::recent::{LINE_MAX_BYTES, LINES_MAX, clock};
use super::repeat::KEYS_MAX;
use super::{Format, Recent, Repeat, field, filter, metrics};

fn status() -> Status {
    let link = |n: u8, state| Link {
        peer: Some(PeerId([n; 16])),
        name: format!("host\"{n}\\\n"),
        address: "192.0.2.1:6783".into(),
        state,
        transport: "udp".into(),
        encrypted: true,
        mtu: 1310,
        rtt_ms: 1.5,
        outbound: true,
        reason: None,
        retry_s: None,
        cipher: "aes-256-gcm".into(),
        ports: 1,
    };
    Status {
        version: VERSION,
        peer: Me { id: PeerId([1; 16]), name: "h1".into(), software: "meshnet 0.1.0".into(), uptime_s: 7 },
        links: vec![link(2, LinkState::Established), link(3, LinkState::Established), link(4, LinkState::Retrying)],
        peers: Vec::new(),
        ipam: Ipam::off(),
        data: Data { tx_frames: 5, drops: BTreeMap::from([("no_route".into(), 3)]), ..Data::default() },
        problems: Vec::new(),
        kubernetes: None,
        targets: Vec::new(),
        routes: Vec::new(),
        device: Device::default(),
    }
}

/// Checks the text line by line against the grammar of OpenMetrics as far as we use it, and gives sample → value.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"));
    let mut families = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines().take_while(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with("# ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
            let known = families.get(name).map(String::as_str) == Some("gauge")
                || name.strip_suffix("_total").and_then(|n| families.get(n)).map(String::as_str) == Some("counter");
            assert!(known, "no type for {line}");
            if let Some(labels) = sample.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                assert!(labels.starts_with('{') && labels.ends_with("\"}"), "{line}");
            }
            assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{sample} twice");
        }
    }
    samples
}

#[test]
fn metrics_parse_and_hold_every_drop_reason() {
    let counters = BTreeMap::from([
        ("mesh_fdb_entries".to_owned(), 4),
        ("mesh_gossip_messages_in_total".to_owned(), 9),
        ("mesh_data_tx_frames_total".to_owned(), 99),
        ("not a metric".to_owned(), 1),
    ]);
    let samples = parse(&metrics::render(&status(), &counters));
    for reason in DropReason::ALL {
        let wanted = if reason == DropReason::NoRoute { 3.0 } else { 0.0 };
        assert_eq!(samples[&format!("mesh_data_drops_total{{reason=\"{}\"}}", reason.name())], wanted);
    }
    assert_eq!(samples["mesh_data_tx_frames_total"], 5.0);
    assert_eq!(samples["mesh_fdb_entries"], 4.0);
    assert_eq!(samples["mesh_gossip_messages_in_total"], 9.0);
    let up = "mesh_links{state=\"established\",transport=\"udp\",encrypted=\"true\"}";
    assert_eq!(samples[up], 2.0);
    let peer = PeerId([2; 16]);
    assert_eq!(samples[&format!("mesh_link_rtt_seconds{{peer=\"{peer}\",name=\"host\\\"2\\\\\"}}")], 0.0015);
    assert_eq!(samples["mesh_peers{reachable=\"true\"}"], 0.0);
    assert!(!samples.keys().any(|name| name.contains("not a metric")));
}

/// The sums are those of the shares: no address is counted as lost that can be reached, none is missing.
#[test]
fn metrics_of_addresses_tell_the_truth() {
    let mut status = status();
    let counters =
        BTreeMap::from([("mesh_ipam_free_addresses".to_owned(), 1), ("mesh_ipam_writes_total".to_owned(), 2)]);
    let samples = |status: &Status| {
        let samples = parse(&metrics::render(status, &counters));
        samples.into_iter().filter(|(name, _)| name.starts_with("mesh_ipam_")).collect::<BTreeMap<String, f64>>()
    };
    assert_eq!(samples(&status)["mesh_ipam_writes_total"], 2.0);
    assert_eq!(samples(&status).len(), 1, "nothing is said of a space that is not there");
    let share = |n: u8, addresses, reachable| Share {
        peer: PeerId([n; 16]),
        name: String::new(),
        addresses,
        percent: 0.0,
        reachable,
        digest: String::new(),
        free: None,
        standing: "admitted".into(),
    };
    status.ipam = Ipam {
        state: "ready".into(),
        owned: 100,
        used: 7,
        free: 93,
        members: 4,
        removed: 2,
        conflicts: vec!["10.32.0.1".into()],
        shares: vec![share(1, 100, true), share(2, 30, false), share(3, 4, false), share(4, 200, true)],
        ..Ipam::off()
    };
    let wanted = [
        ("mesh_ipam_ready", 1.0),
        ("mesh_ipam_owned_addresses", 100.0),
        ("mesh_ipam_used_addresses", 7.0),
        ("mesh_ipam_free_addresses", 93.0),
        ("mesh_ipam_members", 4.0),
        ("mesh_ipam_removed_members", 2.0),
        ("mesh_ipam_reachable_addresses", 300.0),
        ("mesh_ipam_unreachable_addresses", 34.0),
        ("mesh_ipam_conflicts", 1.0),
        ("mesh_ipam_writes_total", 2.0),
    ];
    assert_eq!(samples(&status), wanted.map(|(name, value)| (name.to_owned(), value)).into());
    status.ipam.state = "waiting".into();
    assert_eq!(samples(&status)["mesh_ipam_ready"], 0.0);
}

#[test]
fn peers_in_labels_are_bounded() {
    let mut status = status();
    let link = status.links[0].clone();
    status.links = (0..2_000u128).map(|n| Link { peer: Some(PeerId(n.to_be_bytes())), ..link.clone() }).collect();
    let samples = parse(&metrics::render(&status, &BTreeMap::new()));
    assert_eq!(samples.keys().filter(|name| name.starts_with("mesh_link_rtt_seconds{")).count(), 1_000);
}

#[test]
fn repeats_are_left_out_and_counted() {
    let mut repeat = Repeat::new(Duration::from_secs(10));
    let start = Instant::now();
    assert_eq!(repeat.admit(start, "forged", "a"), Some(0));
    assert_eq!(repeat.admit(start, "forged", "b"), Some(0));
    for second in 1..10 {
        assert_eq!(repeat.admit(start + Duration::from_secs(second), "forged", "a"), None);
    }
    assert_eq!(repeat.admit(start + Duration::from_secs(10), "forged", "a"), Some(9));
    assert_eq!(repeat.admit(start + Duration::from_secs(11), "forged", "a"), None);
}

#[test]
fn keys_of_repeats_are_bounded() {
    let mut repeat = Repeat::new(Duration::from_secs(10));
    let start = Instant::now();
    for n in 0..KEYS_MAX as u64 + 50 {
        assert_eq!(repeat.admit(start + Duration::from_millis(n), "forged", &n.to_string()), Some(0));
    }
    let later = start + Duration::from_secs(1);
    assert_eq!(repeat.admit(later, "forged", &(KEYS_MAX + 49).to_string()), None, "the newest is kept");
    assert_eq!(repeat.admit(later, "forged", "0"), Some(0), "the oldest made room");
}

#[test]
fn the_newest_events_are_kept() {
    let recent = Recent::default();
    let subscriber = tracing_subscriber::registry().with(recent.clone());
    tracing::subscriber::with_default(subscriber, || {
        for n in 0..LINES_MAX + 7 {
            tracing::info!(peer = "1a2b", n, "link up");
        }
        tracing::debug!("not this");
        tracing::info!(target: "quinn", "nor this");
        tracing::warn!(target: "quinn", text = "x".repeat(2 * LINE_MAX_BYTES), "but this");
    });
    let lines = recent.lines();
    assert_eq!(lines.len(), LINES_MAX);
    assert!(lines[0].ends_with("INFO link up peer=1a2b n=8"), "{}", lines[0]);
    assert!(lines[LINES_MAX - 1].contains("WARN but this"));
    assert!(lines[LINES_MAX - 1].len() <= LINE_MAX_BYTES + 3);
}

#[test]
fn the_clock_knows_its_calendar() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_709_251_199, "2024-02-29T23:59:59Z"),
        (4_107_542_399, "2100-02-28T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(clock(UNIX_EPOCH + Duration::from_secs(seconds)), text);
    }
}

#[test]
fn levels_and_formats_are_checked() {
    for good in ["error", "warn", "INFO", "debug", "trace", "info,quinn=debug"] {
        filter(good).unwrap();
    }
    for bad in ["loud", "", "info,=,=x=y", "7"] {
        assert!(filter(bad).unwrap_err().contains("debug or trace"), "{bad}");
    }
    assert_eq!("json".parse(), Ok(Format::Json));
    assert!("xml".parse::<Format>().unwrap_err().contains("text or json"));
}

#[test]
fn field_names_are_sorted_and_used_once() {
    assert!(field::ALL.windows(2).all(|pair| pair[0].0 < pair[1].0));
}
