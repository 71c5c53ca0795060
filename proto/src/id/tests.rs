use super::*;

#[test]
fn ids_and_addresses_read_what_they_write() {
    let id = PeerId(std::array::from_fn(|at| at as u8 * 17));
    assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!("00112233445566778899AABBCCDDEEFF".parse(), Ok(id));
    assert_eq!(id.brief(), "00112233");
    assert_eq!(id.short(), ShortId(0x0011_2233_4455_6677));
    let mac = Mac([0x0a, 0x58, 10, 32, 0, 1]);
    assert_eq!(mac.to_string(), "0a:58:0a:20:00:01");
    assert_eq!(mac.to_string().parse(), Ok(mac));
}

#[test]
fn only_hex_digits_are_ids() {
    let signs = "+0".repeat(16);
    let umlauts = "ä".repeat(16);
    for text in ["", "00", "00112233445566778899aabbccddeef", "00112233445566778899aabbccddeeff0", &signs, &umlauts] {
        assert_eq!(text.parse::<PeerId>(), Err(IdError::PeerId(text.to_owned())));
    }
}

#[test]
fn only_six_pairs_are_addresses() {
    for text in [
        "",
        "0a:58:0a:20:00",
        "0a:58:0a:20:00:01:02",
        "+a:58:0a:20:00:01",
        "a:58:0a:20:00:01",
        "0a-58-0a-20-00-01",
        "ä:58:0a:20:00:01",
    ] {
        assert_eq!(text.parse::<Mac>(), Err(IdError::Mac(text.to_owned())));
    }
}

#[test]
fn groups() {
    assert!(Mac([0xff; 6]).is_group() && Mac([1, 0, 0x5e, 0, 0, 1]).is_group() && !Mac([2, 0, 0, 0, 0, 1]).is_group());
    assert!(
        Mac([1, 0x80, 0xc2, 0, 0, 0x0f]).is_link_local_group()
            && !Mac([1, 0x80, 0xc2, 0, 0, 0x10]).is_link_local_group()
    );
}
