//! Makes a cluster secret: one line of text, with check digits, so that a damaged copy is known as such and not as a wrong secret.

use std::fmt::Write;

use aws_lc_rs::{digest, rand};

/// How a generated secret begins; the digit is the version of its form.
pub const PREFIX: &str = "mesh1-";

/// [`PREFIX`], 32 random bytes of the operating system as 64 hex digits, and 8 [`check_digits`].
pub fn make() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the operating system gave no random bytes"))?;
    Ok(format!("{PREFIX}{}{}", hex(&bytes), check_digits(&bytes)))
}

/// The first 8 hex digits of the SHA-256 of a secret's bytes.
pub fn check_digits(bytes: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, bytes).as_ref()[..4])
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_the_form_and_differ() {
        let (one, other) = (make().unwrap(), make().unwrap());
        assert_eq!(one.len(), 6 + 64 + 8);
        assert!(one.strip_prefix(PREFIX).unwrap().bytes().all(|b| matches!(b, b'a'..=b'f' | b'0'..=b'9')));
        assert_ne!(one, other);
    }
}
