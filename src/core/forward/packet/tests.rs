use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;

fn built(v6: bool, vlans: usize, tcp: bool) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let id = |id: u16| id.try_into().unwrap();
    let mut bytes = Vec::new();
    macro_rules! build {
        ($step:expr) => {{
            let step = $step;
            if v6 {
                let step = step.ipv6([1; 16], [2; 16], 64);
                if tcp {
                    step.tcp(1, 2, 3, 4).write(&mut bytes, b"pay").unwrap()
                } else {
                    step.udp(1, 2).write(&mut bytes, b"pay").unwrap()
                }
            } else {
                let step = step.ipv4([1; 4], [2; 4], 64);
                if tcp {
                    step.tcp(1, 2, 3, 4).write(&mut bytes, b"pay").unwrap()
                } else {
                    step.udp(1, 2).write(&mut bytes, b"pay").unwrap()
                }
            }
        }};
    }
    match vlans {
        0 => build!(ethernet),
        1 => build!(ethernet.single_vlan(id(5))),
        _ => build!(ethernet.double_vlan(id(5), id(6))),
    }
    bytes
}

#[test]
fn headers_of_all_kinds() {
    for v6 in [false, true] {
        for vlans in 0..3 {
            for tcp in [false, true] {
                let bytes = built(v6, vlans, tcp);
                let wanted = (bytes.len() - 3) as u8;
                let table = [(Gso::Tcp4, !v6 && tcp), (Gso::Tcp6, v6 && tcp), (Gso::Udp, !tcp), (Gso::None, false)];
                for (gso, fits) in table {
                    assert_eq!(header_len(&bytes, gso), fits.then_some(wanted), "{v6} {vlans} {tcp} {gso:?}");
                }
                for cut in 0..bytes.len() - 3 {
                    for gso in [Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
                        assert_eq!(header_len(&bytes[..cut], gso), None, "cut at {cut}");
                    }
                }
            }
        }
    }
}

#[test]
fn options_extensions_and_fragments() {
    let mut options = built(false, 0, true);
    options[14] = 0x47;
    options.splice(34..34, [1; 8]);
    options[42 + 12] = 0x60;
    options.splice(62..62, [1; 4]);
    assert_eq!(header_len(&options, Gso::Tcp4), Some(66));
    let mut fragment = built(false, 0, true);
    fragment[21] = 1;
    assert_eq!(header_len(&fragment, Gso::Tcp4), None);
    let mut extended = built(true, 0, true);
    extended[20] = HOP_BY_HOP;
    extended.splice(54..54, [DESTINATION, 0, 0, 0, 0, 0, 0, 0, TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(header_len(&extended, Gso::Tcp6), Some(54 + 24 + 20));
    let mut wrong = built(false, 0, true);
    wrong[14] = 0x44;
    assert_eq!(header_len(&wrong, Gso::Tcp4), None, "a header shorter than any");
    wrong[14] = 0x65;
    assert_eq!(header_len(&wrong, Gso::Tcp4), None, "another version");
    let mut short = built(false, 0, true);
    short[46] = 0x40;
    assert_eq!(header_len(&short, Gso::Tcp4), None, "a TCP header shorter than any");
}

#[test]
fn sums() {
    assert_eq!(sum16(&[]), 0);
    // RFC 1071, section 3.
    assert_eq!(sum16(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    assert_eq!(sum16(&[0xff, 0xff, 0xff, 0xff, 0x01]), 0x0100);
    let whole = built(false, 0, true);
    assert_eq!(sum16(&whole[14..34]), 0xffff, "etherparse's header checksum holds");
}

proptest! {
    #[test]
    fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0usize..4, first in any::<u16>()) {
        if bytes.len() > 24 {
            match kind {
                0 => (bytes[12], bytes[13], bytes[14]) = (0x08, 0x00, 0x45),
                1 => (bytes[12], bytes[13], bytes[14]) = (0x86, 0xdd, 0x60),
                2 => (bytes[12], bytes[13], bytes[16]) = (0x81, 0x00, 0x08),
                _ => {}
            }
            bytes[23] = if first % 2 == 0 { TCP } else { UDP };
            bytes[20] = bytes[23];
        }
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            header_len(&bytes, gso);
        }
        is_underlay(&bytes, Layers::parse(&bytes).as_ref(), &[IpAddr::V4(Ipv4Addr::LOCALHOST)], 6783);
        let run = Run { first, last: false, payload_bytes: usize::from(first) * 3 };
        retarget(&mut bytes, &Offload { gso_size: first, ..Offload::default() }, run);
    }
}
