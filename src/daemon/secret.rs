//! The cluster secret: what every peer of a cluster holds, and nobody else.
//!
//! One line of text. `meshctl secret` makes it ([`crate::ctl::secret::make`]): `mesh1-`, 64 hex digits (32 random bytes), 8 hex digits of their
//! SHA-256, so that a copy that lost its end is noticed. Any other text of at least [`FREE_TEXT_MIN`] characters serves as well. White space around it
//! does not count.
//! It yields the seed of the cluster's authority by HKDF (RFC 5869); it deliberately never appears in logs, errors or `Debug`.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::hkdf;
use tracing::warn;

use crate::ctl::secret::{PREFIX, check_digits};

/// A cluster secret that is good to use.
#[derive(Clone)]
pub struct Secret {
    bytes: Vec<u8>,
    public: bool,
}

/// Why a secret cannot be used. Each names the file, or what is wrong, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No such file.
    #[error(
        "secret file {0} does not exist: make one with 'meshctl secret > {0}' and copy it to every machine of the cluster"
    )]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read secret file {path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// Not a file.
    #[error("secret file {0} is not a regular file: --secret-file wants the file itself")]
    NotAFile(PathBuf),
    /// Its text is no secret.
    #[error("secret file {path} {fault}")]
    Unfit {
        /// Which.
        path: PathBuf,
        /// Why.
        fault: Fault,
    },
}

/// Why a text is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing but white space.
    #[error("is empty: fill it with 'meshctl secret', the same text on every machine")]
    Empty,
    /// Longer than [`SECRET_MAX_BYTES`].
    #[error(
        "is longer than {SECRET_MAX_BYTES} bytes: that is no secret made by 'meshctl secret'; is it the right file?"
    )]
    TooLong,
    /// More than one line.
    #[error("holds several lines: the secret is one line")]
    SeveralLines,
    /// Not printable UTF-8.
    #[error("is not text: the secret is one line of printable characters; 'meshctl secret' makes one")]
    NotText,
    /// Easy to guess.
    #[error(
        "holds a weak secret: at least {FREE_TEXT_MIN} characters, {DIFFERENT_MIN} of them different, are wanted; 'meshctl secret' makes a strong one"
    )]
    Weak,
    /// Begins like one of ours, but is not.
    #[error("holds a damaged secret: it begins with 'mesh1-' but its check digits do not fit; copy it again, whole")]
    Damaged,
}

impl Secret {
    /// Reads the secret file. Warns when others may read it too.
    pub fn load(path: &Path) -> Result<Secret, SecretError> {
        let unreadable = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => SecretError::Missing(path.to_owned()),
            _ => SecretError::Unreadable { path: path.to_owned(), source },
        };
        // Looked at before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(SecretError::NotAFile(path.to_owned()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode();
        let mut bytes = Vec::new();
        file.take(SECRET_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let secret = Secret::parse(&bytes).map_err(|fault| SecretError::Unfit { path: path.to_owned(), fault })?;
        if mode & 0o007 != 0 {
            warn!(path = %path.display(), "every user of this machine may read the cluster secret: chmod 600 it");
        }
        Ok(secret)
    }

    /// The secret in the bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Secret, Fault> {
        if bytes.len() as u64 > SECRET_MAX_BYTES {
            return Err(Fault::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Fault::NotText)?;
        // Some editors put a byte order mark in front.
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err(Fault::Empty);
        }
        if text.contains(['\n', '\r']) {
            return Err(Fault::SeveralLines);
        }
        if text.chars().any(char::is_control) {
            return Err(Fault::NotText);
        }
        if let Some(digits) = text.strip_prefix(PREFIX) {
            return generated(digits).map(|bytes| Secret { bytes, public: false }).ok_or(Fault::Damaged);
        }
        let mut different: Vec<char> = text.chars().collect();
        let length = different.len();
        different.sort_unstable();
        different.dedup();
        if length < FREE_TEXT_MIN || different.len() < DIFFERENT_MIN {
            return Err(Fault::Weak);
        }
        Ok(Secret { bytes: text.as_bytes().to_vec(), public: false })
    }

    /// For `--no-secret`: known to all the world. Links are still encrypted, but anybody may join.
    pub fn none() -> Secret {
        Secret { bytes: b"meshnet without a secret: anybody may join".to_vec(), public: true }
    }

    /// True for [`Secret::none`].
    pub fn is_public(&self) -> bool {
        self.public
    }

    /// Seed of the ed25519 key of the cluster's authority. Clusters of other names get others.
    pub fn authority_seed(&self, cluster: &str) -> [u8; 32] {
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, cluster.as_bytes()).extract(&self.bytes);
        let mut seed = [0; 32];
        let filled = key.expand(&[AUTHORITY_INFO], hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut seed));
        assert!(filled.is_ok(), "HKDF-SHA256 gives 32 bytes");
        seed
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.public { "Secret(public)" } else { "Secret(..)" })
    }
}

/// The bytes of a generated secret, when the check digits fit. Upper case is taken too: some ways of copying change it.
fn generated(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.to_ascii_lowercase();
    let (hex, check) = digits.split_at_checked(64)?;
    let bytes = unhex(hex)?;
    (check_digits(&bytes) == check).then_some(bytes)
}

/// Bytes from hex digits; nothing when it is not hex.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<u32>>>()?;
    (digits.len() % 2 == 0).then(|| digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// Binds the derived key to its use (RFC 5869, 3.2).
const AUTHORITY_INFO: &[u8] = b"meshnet ca v1";
/// A secret is a line, not a file of another purpose named by mistake.
pub const SECRET_MAX_BYTES: u64 = 4096;
/// Characters of a secret of one's own. A certificate lets anybody guess offline, so a password of everyday length would fall.
pub const FREE_TEXT_MIN: usize = 16;
/// Different characters in it: refuses sixteen times the same, not a matter of entropy.
pub const DIFFERENT_MIN: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::secret::hex;
    use std::os::unix::net::UnixListener;

    fn seed(text: &str) -> Result<[u8; 32], Fault> {
        Secret::parse(text.as_bytes()).map(|secret| secret.authority_seed("c"))
    }

    #[test]
    fn a_generated_secret_survives_copying() {
        let text = crate::ctl::secret::make().unwrap();
        assert!(text.starts_with("mesh1-") && text.len() == 78 && !text.contains(char::is_whitespace), "{text}");
        assert_ne!(text, crate::ctl::secret::make().unwrap());
        let plain = seed(&text).unwrap();
        let copies = [
            format!("{text}\n"),
            format!("{text}\r\n"),
            format!("  {text}\t \n\n"),
            format!("\u{feff}{text}\n"),
            text.to_ascii_uppercase().replace("MESH1", "mesh1"),
        ];
        for copy in copies {
            assert_eq!(seed(&copy).unwrap(), plain, "{copy:?}");
        }
    }

    #[test]
    fn a_damaged_copy_is_noticed() {
        let text = crate::ctl::secret::make().unwrap();
        let other = if text.ends_with('0') { "1" } else { "0" };
        for damaged in [&text[..77], &text[..40], "mesh1-", &format!("{text}0"), &format!("{}{other}", &text[..77])] {
            assert_eq!(seed(damaged), Err(Fault::Damaged), "{damaged}");
        }
        assert_eq!(seed("mesh1-äöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöü"), Err(Fault::Damaged));
    }

    #[test]
    fn free_text_is_taken_when_it_is_long_enough() {
        assert!(seed("correct horse battery").is_ok());
        assert_eq!(seed("exactly16letters"), seed("  exactly16letters\n"));
        for (text, fault) in [
            ("", Fault::Empty),
            (" \n\t\r\n", Fault::Empty),
            ("fifteen letters", Fault::Weak),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaa", Fault::Weak),
            ("äöüßäöüßäöüß123", Fault::Weak),
            ("a first good line of text\nand a second", Fault::SeveralLines),
            ("a nul \0 in otherwise good text", Fault::NotText),
        ] {
            assert_eq!(seed(text), Err(fault), "{text:?}");
        }
        assert_eq!(Secret::parse(&[0xff; 40]).unwrap_err(), Fault::NotText);
        assert_eq!(Secret::parse(&[b'x'; 4097]).unwrap_err(), Fault::TooLong);
    }

    #[test]
    fn the_seed_is_fixed_for_all_time_and_hangs_on_secret_and_cluster() {
        let secret = Secret::parse(b"correct horse battery staple").unwrap();
        let vector = "4060ada86e41dccd0ee0c08733bfc71bd37993bcfea74d3547fb6cdd6f7c9353";
        assert_eq!(hex(&secret.authority_seed("mesh")), vector, "peers of other versions derive this one");
        assert_ne!(secret.authority_seed("mesh"), secret.authority_seed("mesh2"));
        assert_ne!(secret.authority_seed("mesh"), Secret::none().authority_seed("mesh"));
        assert!(Secret::none().is_public() && !secret.is_public());
    }

    #[test]
    fn it_never_shows() {
        let secret = Secret::parse(b"correct horse battery staple").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn each_fault_of_a_file_is_one_line_that_names_it_and_the_way_out() {
        let dir = super::super::state::tests::Scratch::new("secret");
        let path = dir.path().join("secret");
        let fails = |wanted: &str| {
            let text = Secret::load(&path).unwrap_err().to_string();
            assert!(text.contains(wanted) && text.contains(path.to_str().unwrap()) && !text.contains('\n'), "{text}");
        };
        fails("does not exist: make one with 'meshctl secret");
        std::fs::write(&path, "").unwrap();
        fails("is empty");
        std::fs::write(&path, "short").unwrap();
        fails("weak");
        std::fs::write(&path, vec![b'a'; 5000]).unwrap();
        fails("longer than 4096");
        std::fs::write(&path, "line one is long enough\nline two is too").unwrap();
        fails("several lines");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        fails("not a regular file");
        std::fs::remove_dir(&path).unwrap();
        let socket = UnixListener::bind(&path).unwrap();
        fails("not a regular file");
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        fails("cannot read");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, crate::ctl::secret::make().unwrap() + "\n").unwrap();
        assert!(Secret::load(&path).is_ok());
    }
}
