use super::*;
use crate::wire::record::Version;
use proptest::prelude::*;

fn hello() -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        cluster: "mesh".into(),
        incarnation: 1,
        instance: 2,
        name: "one".into(),
        session_index: 3,
        lanes: 5,
        control: true,
        ciphers: vec![cipher::AES_256_GCM, cipher::CHACHA20_POLY1305],
        max_links: 128,
        extensions: Vec::new(),
    }
}

fn id() -> impl Strategy<Value = PeerId> {
    any::<[u8; 16]>().prop_map(PeerId)
}

fn key() -> impl Strategy<Value = RecordKey> {
    (id(), any::<(u64, u64)>())
        .prop_map(|(peer, (incarnation, seq))| RecordKey { peer, version: Version { incarnation, seq } })
}

fn rekey() -> impl Strategy<Value = Rekey> {
    any::<(u32, [u8; 32])>().prop_map(|(epoch, public_key)| Rekey { epoch, public_key })
}

prop_compose! {
    fn any_hello()(
        version: u16,
        names in ("[a-z0-9-]{0,64}", "[^\\x00-\\x1f\\x7f-\\x9f]{0,16}"),
        starts in (0..=limits::VERSION_MAX, any::<u64>()),
        session_index: u32,
        lanes in 1..=limits::LANES_MAX as u8,
        control: bool,
        ciphers in prop::collection::vec(any::<u8>(), 0..8),
        max_links: u16,
        extensions in prop::collection::vec(any::<(u16, Vec<u8>)>(), 0..4),
    ) -> Hello {
        Hello {
            version,
            cluster: names.0,
            incarnation: starts.0,
            instance: starts.1,
            name: names.1,
            session_index,
            lanes,
            control,
            ciphers,
            max_links,
            extensions,
        }
    }
}

fn any_message() -> impl Strategy<Value = Control> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        any_hello().prop_map(Control::Hello),
        prop::collection::vec(bytes(), 0..20).prop_map(Control::Records),
        any::<u64>().prop_map(Control::Digest),
        prop::collection::vec(any::<u64>(), limits::DIGEST_BUCKETS).prop_map(Control::Buckets),
        (bytes(), prop::collection::vec(key(), 0..50)).prop_map(|(buckets, keys)| Control::Keys { buckets, keys }),
        prop::collection::vec(id(), 0..50).prop_map(Control::Want),
        rekey().prop_map(Control::Rekey),
        rekey().prop_map(Control::RekeyAck),
        any::<u32>().prop_map(Control::RekeyDone),
        Just(Control::Goodbye),
    ]
}

proptest! {
    #[test]
    fn messages_read_what_they_write(message in any_message(), newer: Vec<u8>) {
        let bytes = message.emit().unwrap();
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().unwrap();
        prop_assert_eq!(u32::from_be_bytes(*length) as usize, rest.len());
        prop_assert_eq!(Control::parse(&[rest, &newer].concat()), Ok(Some(message)), "trailing bytes are of a newer version");
    }

    #[test]
    fn any_bytes(kind in 0u16..12, body: Vec<u8>) {
        let _ = Control::parse(&[&kind.to_be_bytes()[..], &body].concat());
        let _ = Control::parse(&body);
    }

    #[test]
    fn damaged_messages(message in any_message(), at: prop::sample::Index, value: u8, cut: prop::sample::Index) {
        let mut bytes = message.emit().unwrap().split_off(LENGTH_BYTES);
        let short = cut.index(bytes.len());
        if message != Control::Goodbye {
            prop_assert!(Control::parse(&bytes[..short]).is_err(), "cut to {} bytes", short);
        }
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = Control::parse(&bytes);
    }

    #[test]
    fn unknown_types_are_skipped(kind in 11u16.., body: Vec<u8>) {
        prop_assert_eq!(Control::parse(&[&kind.to_be_bytes()[..], &body].concat()), Ok(None));
    }
}

fn refused(kind: u16, body: &impl serde::Serialize) {
    let body = codec::encode(body).unwrap();
    let parsed = Control::parse(&[&kind.to_be_bytes()[..], &body].concat());
    assert!(parsed.is_err(), "type {kind}: {parsed:?}");
}

#[test]
fn limits_hold() {
    assert!(Control::parse(&[]).is_err() && Control::parse(&[0]).is_err());
    let wrong: &[fn(&mut Hello)] = &[
        |hello| hello.name = "x".repeat(limits::NAME_MAX_BYTES + 1),
        |hello| hello.name = "bell\u{7}".into(),
        |hello| hello.cluster = "x".repeat(limits::NAME_MAX_BYTES + 1),
        |hello| hello.cluster = "\u{9b}2J".into(),
        |hello| hello.lanes = 0,
        |hello| hello.lanes = limits::LANES_MAX as u8 + 1,
        |hello| hello.incarnation = limits::VERSION_MAX + 1,
        |hello| hello.ciphers = vec![1; limits::EXTENSIONS_MAX + 1],
        |hello| hello.extensions = vec![(0, Vec::new()); limits::EXTENSIONS_MAX + 1],
    ];
    for spoil in wrong {
        let mut spoilt = hello();
        spoil(&mut spoilt);
        refused(1, &spoilt);
    }
    refused(2, &vec![Vec::<u8>::new(); limits::RECORDS_PER_MESSAGE_MAX + 1]);
    refused(2, &vec![vec![0u8; limits::RECORD_MAX_BYTES + 1]]);
    refused(4, &vec![0u64; limits::DIGEST_BUCKETS - 1]);
    refused(4, &vec![0u64; limits::DIGEST_BUCKETS + 1]);
    let nobody = RecordKey { peer: PeerId::default(), version: Version::default() };
    refused(5, &(vec![0u8; limits::DIGEST_BUCKETS + 1], Vec::<RecordKey>::new()));
    refused(5, &(Vec::<u8>::new(), vec![nobody; limits::PEERS_MAX + 1]));
    refused(6, &vec![PeerId::default(); limits::PEERS_MAX + 1]);
    assert!(Control::Records(vec![vec![0; limits::MESSAGE_MAX_BYTES]]).emit().is_err());
}

#[test]
fn every_close_reason_has_its_code() {
    let reasons: Vec<CloseReason> = (0..=10).map(|code| CloseReason::from_code(code).unwrap()).collect();
    for (code, reason) in reasons.iter().enumerate() {
        assert_eq!(*reason as usize, code);
    }
    assert_eq!(CloseReason::from_code(11), None);
    assert_eq!(CloseReason::from_code(u64::MAX), None);
}
