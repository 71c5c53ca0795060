//! Makes a cluster secret.

use aws_lc_rs::rand;

/// `mesh1-` and 32 random bytes of the operating system in base32 (RFC 4648 alphabet, lower case, no padding).
pub fn make() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the operating system gave no random bytes"))?;
    Ok(format!("mesh1-{}", base32(&bytes)))
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut window, mut bits) = (0u32, 0);
    for &byte in bytes {
        window = (window << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(letter(window >> bits));
        }
        window &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(letter(window << (5 - bits)));
    }
    text
}

fn letter(window: u32) -> char {
    char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(window & 31) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"),
            ("foobar", "mzxw6ytboi"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn secrets_have_the_form_and_differ() {
        let (one, other) = (make().unwrap(), make().unwrap());
        assert_eq!(one.len(), 6 + 52);
        assert!(one.strip_prefix("mesh1-").unwrap().bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')));
        assert_ne!(one, other);
    }
}
