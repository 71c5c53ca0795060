use super::*;
use proptest::prelude::*;

fn short() -> impl Strategy<Value = ShortId> {
    any::<u64>().prop_map(ShortId)
}

prop_compose! {
    fn any_outer()(relay in any::<bool>(), epoch in 0u8..4, lane: u8, urgent: bool, aside: bool, index: u32, counter: u64) -> Outer {
        Outer { kind: if relay { OuterKind::Relay } else { OuterKind::Data }, epoch, lane, urgent, aside, index, counter }
    }
}

prop_compose! {
    fn any_segment()(
        gso in prop_oneof![Just(Gso::Tcp4), Just(Gso::Tcp6), Just(Gso::Udp)],
        header_len in 14u8..,
        gso_size in 1u16..,
        csum in (0u16..=12, any::<bool>()),
        flags in any::<(bool, bool, bool)>(),
        superframe: u16,
        place in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) -> Inner {
        let most = (limits::SUPERFRAME_MAX_BYTES - 1 - usize::from(header_len)) / usize::from(gso_size) + 1;
        let count = place.0.index(most.min(usize::from(u16::MAX))) as u16 + 1;
        Inner {
            kind: InnerKind::Segment,
            flood: flags.0,
            offload: Offload {
                needs_csum: csum.1,
                data_valid: flags.1,
                ecn: flags.2 && gso != Gso::Udp,
                gso,
                header_len,
                gso_size,
                csum_start: csum.0,
                csum_offset: 0,
            },
            superframe,
            index: place.1.index(usize::from(count)) as u16,
            count,
        }
    }
}

prop_compose! {
    fn any_relay()(
        ids in prop::collection::btree_set(any::<u64>(), 3..=limits::RELAYS_MAX + 2).prop_map(|ids| ids.into_iter().collect::<Vec<_>>()).prop_shuffle(),
        place: prop::sample::Index,
    ) -> Relay {
        let ids: Vec<ShortId> = ids.into_iter().map(ShortId).collect();
        let (source, hops) = ids.split_first().unwrap();
        Relay { source: *source, route: Route::new(hops).unwrap(), position: place.index(hops.len()) as u8 }
    }
}

proptest! {
    #[test]
    fn outer_headers_read_what_they_write(header in any_outer(), rest: Vec<u8>) {
        let bytes = [&header.emit()[..], &rest].concat();
        prop_assert_eq!(Outer::parse(&bytes), Some(header));
        prop_assert!(!is_quic(bytes[0]));
    }

    #[test]
    fn inner_headers_read_what_they_write(header in any_segment(), rest: Vec<u8>) {
        prop_assert_eq!(Inner::parse(&[&header.emit()[..], &rest].concat()), Some(header));
    }

    #[test]
    fn flood_headers_read_what_they_write(
        origin in short(), incarnation: u16, hops in 0..=limits::FLOOD_HOPS_MAX, sequence: u32,
    ) {
        let header = Flood { origin, incarnation, hops, sequence };
        prop_assert_eq!(Flood::parse(&header.emit()), Some(header));
    }

    #[test]
    fn relay_headers_read_what_they_write(header in any_relay()) {
        let mut bytes = [0; 64];
        let length = header.emit(&mut bytes).unwrap();
        prop_assert_eq!(length + OUTER_BYTES + TAG_BYTES, header.route.overhead_bytes());
        prop_assert_eq!(Relay::parse(&bytes), Some((header, length)));
        prop_assert_eq!(header.emit(&mut bytes[..length - 1]), None);
    }

    #[test]
    fn probes_read_what_they_write(token: u64, sent_us: u64, path: u8) {
        let body = Probe { token, sent_us, path };
        prop_assert_eq!(Probe::parse(&body.emit()), Some(body));
    }

    /// Nothing is read from a part of a header, and nothing is written that was not read.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Some(header) = Outer::parse(&bytes) {
            prop_assert_eq!(&header.emit()[..], &bytes[..OUTER_BYTES]);
        }
        if let Some(header) = Inner::parse(&bytes) {
            prop_assert_eq!(&header.emit()[..], &bytes[..INNER_BYTES]);
        }
        if let Some(header) = Flood::parse(&bytes) {
            prop_assert_eq!(&header.emit()[..], &bytes[..FLOOD_BYTES]);
        }
        if let Some((header, length)) = Relay::parse(&bytes) {
            let mut written = vec![0; length];
            prop_assert_eq!(header.emit(&mut written), Some(length));
            prop_assert_eq!(&written[..], &bytes[..length]);
        }
        prop_assert_eq!(Probe::parse(&bytes).is_some(), bytes.len() >= PROBE_BYTES);
    }

    #[test]
    fn cut_headers_are_refused(outer in any_outer(), relay in any_relay(), cut in 0..16usize) {
        prop_assert_eq!(Outer::parse(&outer.emit()[..cut]), None);
        let mut bytes = [0; 64];
        let length = relay.emit(&mut bytes).unwrap();
        prop_assert_eq!(Relay::parse(&bytes[..length - 1 - cut]), None);
    }
}

/// The two kinds of first byte never meet: RFC 9000, 17.2 and 17.3, with the fixed bit set; version negotiation has bit 7 set.
#[test]
fn first_bytes() {
    for first in 0..=u8::MAX {
        let bytes = [&[first], &[0; 15][..]].concat();
        assert_eq!(is_quic(first), first & 0x80 != 0 || first & 0x40 != 0);
        assert_eq!(Outer::parse(&bytes).is_some(), first < 0x40 && matches!(first & 0x0f, 1 | 2), "{first:#x}");
    }
}

#[test]
fn frames_carry_no_segmentation() {
    let good = Inner::plain(InnerKind::Frame);
    let csum = Offload { needs_csum: true, csum_start: 34, csum_offset: 16, ..Offload::default() };
    let bad = [
        Inner { count: 0, ..good },
        Inner { count: 2, ..good },
        Inner { index: 1, count: 2, ..good },
        Inner { offload: Offload { gso: Gso::Tcp4, ..csum }, ..good },
        Inner { offload: Offload { header_len: 54, ..csum }, ..good },
        Inner { offload: Offload { gso_size: 1, ..csum }, ..good },
        Inner { offload: Offload { ecn: true, ..csum }, ..good },
        Inner { offload: Offload { csum_start: u16::MAX, csum_offset: u16::MAX, ..csum }, ..good },
    ];
    assert!(Inner::parse(&Inner { offload: csum, flood: true, ..good }.emit()).is_some());
    for header in bad {
        assert_eq!(Inner::parse(&header.emit()), None, "{header:?}");
    }
}

#[test]
fn segments_agree_with_themselves() {
    let offload = Offload {
        needs_csum: true,
        gso: Gso::Tcp4,
        header_len: 54,
        gso_size: 1256,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::default()
    };
    let good = Inner { kind: InnerKind::Segment, flood: false, offload, superframe: 1, index: 0, count: 3 };
    let with = |offload: Offload| Inner { offload, ..good };
    assert!(Inner::parse(&good.emit()).is_some());
    let bad = [
        Inner { index: 3, ..good },
        Inner { count: 0, ..good },
        Inner { count: 54, ..good },
        with(Offload { gso: Gso::None, ..offload }),
        with(Offload { gso: Gso::Udp, ecn: true, ..offload }),
        with(Offload { gso_size: 0, ..offload }),
        with(Offload { header_len: 13, needs_csum: false, ..offload }),
        with(Offload { header_len: 51, ..offload }),
        with(Offload { csum_offset: 19, ..offload }),
        with(Offload { csum_start: u16::MAX, csum_offset: u16::MAX, ..offload }),
        with(Offload { csum_start: u16::MAX, csum_offset: u16::MAX, needs_csum: false, ..offload }),
    ];
    for header in bad {
        assert_eq!(Inner::parse(&header.emit()), None, "{header:?}");
    }
    // 53 segments of 1,256 bytes are the most that a super-frame holds; a length above its end is not believed.
    assert!(Inner::parse(&Inner { count: 53, ..good }.emit()).is_some());
}

#[test]
fn probes_carry_nothing_else() {
    for kind in [InnerKind::Probe, InnerKind::ProbeReply] {
        let good = Inner::plain(kind);
        assert_eq!(Inner::parse(&good.emit()), Some(good));
        let csum = Offload { needs_csum: true, ..Offload::default() };
        for bad in [Inner { flood: true, ..good }, Inner { offload: csum, ..good }, Inner { superframe: 1, ..good }] {
            assert_eq!(Inner::parse(&bad.emit()), None, "{bad:?}");
        }
    }
}

#[test]
fn routes_name_each_peer_once() {
    let ids = |ids: &[u64]| ids.iter().copied().map(ShortId).collect::<Vec<_>>();
    assert_eq!(Route::new(&ids(&[])), None);
    assert_eq!(Route::new(&ids(&[1])), None);
    assert_eq!(Route::new(&ids(&[1, 2, 3, 4, 5])), None);
    assert_eq!(Route::new(&ids(&[1, 2, 1])), None);
    assert_eq!(Route::new(&ids(&[1, 2, 2])), None);
    let route = Route::new(&ids(&[1, 2, 3, 4])).unwrap();
    assert_eq!(route.hops(), ids(&[1, 2, 3, 4]));
    assert_eq!(route.overhead_bytes(), RELAY_MAX_BYTES);
    let mut bytes = [0; 64];
    for (source, position, good) in [(9, 0, true), (9, 3, true), (9, 4, false), (4, 0, false), (1, 0, false)] {
        Relay { source: ShortId(source), route, position }.emit(&mut bytes);
        assert_eq!(Relay::parse(&bytes).is_some(), good, "source {source}, position {position}");
    }
}

/// The figure by which the overlay's MTU is computed: IPv6 and UDP, outer and inner header, tag, Ethernet with a VLAN tag, the longest route.
#[test]
fn overhead_of_the_overlay() {
    assert_eq!(40 + 8 + OUTER_BYTES + INNER_BYTES + TAG_BYTES + ETHERNET_BYTES + 4 + RELAY_MAX_BYTES, 190);
}
