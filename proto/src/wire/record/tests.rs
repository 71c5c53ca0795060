use super::*;
use proptest::prelude::*;

pub(crate) fn plain() -> Record {
    Record {
        public_key: [7; 32],
        version: Version { incarnation: 1, seq: 2 },
        instance: 3,
        name: "one".into(),
        software: "meshd 0.1.0".into(),
        endpoints: vec!["192.0.2.1:6783".parse().unwrap(), "[2001:db8::1]:6783".parse().unwrap()],
        links: vec![RecordLink { peer: ShortId(1), cost: 1 }, RecordLink { peer: ShortId(2), cost: COST_LAST_RESORT }],
        flags: flags::RELAY,
        mtu: 1310,
        extensions: Vec::new(),
    }
}

fn signed(record: &Record) -> Vec<u8> {
    SignedRecord { signature: [9; 64], body: codec::encode(record).unwrap() }.emit()
}

prop_compose! {
    pub(crate) fn any_record()(
        public_key: [u8; 32],
        version in (0..=limits::VERSION_MAX, 0..=limits::VERSION_MAX),
        instance: u64,
        names in ("[a-z0-9.-]{0,64}", "\\PC{0,16}"),
        endpoints in prop::collection::vec((any::<std::net::IpAddr>(), any::<u16>()), 0..=limits::ENDPOINTS_MAX),
        links in prop::collection::btree_map(any::<u64>(), 1..=COST_LAST_RESORT, 0..40),
        rest in any::<(u32, u16)>(),
        extensions in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..50)), 0..8),
    ) -> Record {
        Record {
            public_key,
            version: Version { incarnation: version.0, seq: version.1 },
            instance,
            name: names.0,
            software: names.1,
            endpoints: endpoints.into_iter().map(SocketAddr::from).collect(),
            links: links.into_iter().map(|(peer, cost)| RecordLink { peer: ShortId(peer), cost }).collect(),
            flags: rest.0,
            mtu: rest.1,
            extensions,
        }
    }
}

proptest! {
    #[test]
    fn records_read_what_they_write(record in any_record(), newer: Vec<u8>) {
        let mut bytes = signed(&record);
        bytes.extend_from_slice(&newer);
        let (parsed, read) = SignedRecord::parse(&bytes).unwrap();
        prop_assert_eq!(read, record);
        prop_assert_eq!(parsed.emit(), bytes, "fields of a newer version must travel on");
    }

    #[test]
    fn any_bytes(bytes: Vec<u8>, at: prop::sample::Index, value: u8) {
        let _ = SignedRecord::parse(&bytes);
        let mut bytes = signed(&plain());
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok((parsed, _)) = SignedRecord::parse(&bytes) {
            prop_assert_eq!(parsed.emit(), bytes);
        }
    }
}

#[test]
fn every_cut_is_refused() {
    let bytes = signed(&plain());
    assert!(SignedRecord::parse(&bytes).is_ok());
    for length in 0..bytes.len() {
        assert!(SignedRecord::parse(&bytes[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn limits_hold() {
    let wrong: &[fn(&mut Record)] = &[
        |record| record.name = "x".repeat(limits::NAME_MAX_BYTES + 1),
        |record| record.name = "red \u{1b}[31m".into(),
        |record| record.software = "x".repeat(limits::SOFTWARE_MAX_BYTES + 1),
        |record| record.software = "two\nlines".into(),
        |record| record.version.incarnation = limits::VERSION_MAX + 1,
        |record| record.version.seq = u64::MAX,
        |record| record.endpoints = vec![record.endpoints[0]; limits::ENDPOINTS_MAX + 1],
        |record| record.links = vec![record.links[0]; 2],
        |record| record.links.reverse(),
        |record| record.links[0].cost = 0,
        |record| record.links[0].cost = u16::MAX,
        |record| {
            let link = |peer: usize| RecordLink { peer: ShortId(peer as u64), cost: 1 };
            record.links = (0..limits::RECORD_LINKS_MAX + 1).map(link).collect();
        },
        |record| record.extensions = vec![(1, Vec::new()); limits::EXTENSIONS_MAX + 1],
        |record| record.extensions = vec![(1, vec![0; limits::RECORD_MAX_BYTES])],
    ];
    for (at, spoil) in wrong.iter().enumerate() {
        let mut record = plain();
        spoil(&mut record);
        assert!(SignedRecord::parse(&signed(&record)).is_err(), "number {at}");
    }
}
