//! Who may join, and who is who: the cluster's authority, this peer's certificate, and what is read from the other end's.
//!
//! ```text
//! cluster secret ─HKDF→ seed ─→ authority (equal at every holder) ─signs→ certificate of this peer's own key
//!                                                                         names: <id>.peer.meshnet.invalid, any.peer.meshnet.invalid
//! ```
//! The verifiers are rustls's own, both ways. What they leave open is closed by [`peer_of`]: the id in the names must be the hash of the key,
//! so that a holder of the secret can add peers, but can impersonate none.

use std::sync::Arc;

use aws_lc_rs::digest;
use meshnet_proto::PeerId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SerialNumber, date_time_ymd,
};
use rustls::client::{Resumption, verify_server_name};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::QuicError;

/// The cluster's authority. Every holder of the secret derives the same.
pub(super) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// From the seed that the secret yields.
    pub(super) fn new(seed: &[u8; 32], cluster: &str) -> Result<Authority, QuicError> {
        let key = key_pair(seed)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(SerialNumber::from(1u64));
        name_and_dates(&mut params, format!("meshnet {cluster}"));
        let certificate = params.self_signed(&key).map_err(QuicError::certificate)?.der().clone();
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// A certificate for the key of `seed` with these names.
    pub(super) fn sign(&self, seed: &[u8; 32], names: Vec<String>) -> Result<Credentials, QuicError> {
        let key = key_pair(seed)?;
        let mut params = CertificateParams::new(names).map_err(QuicError::certificate)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        name_and_dates(&mut params, "meshnet peer".to_owned());
        let certificate = params.signed_by(&key, &self.issuer).map_err(QuicError::certificate)?.der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(QuicError::tls)?;
        Ok(Credentials { certificate, key: pkcs8(seed), roots: Arc::new(roots) })
    }

    /// The certificate of an honest peer with this key, and its id.
    pub(super) fn admit(&self, seed: &[u8; 32]) -> Result<(Credentials, PeerId), QuicError> {
        let peer = id_of_key(key_pair(seed)?.public_key_raw());
        Ok((self.sign(seed, vec![name_of(&peer), ANY_NAME.to_owned()])?, peer))
    }
}

/// What one end shows and trusts.
pub(super) struct Credentials {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    pub(super) roots: Arc<RootCertStore>,
}

impl Credentials {
    /// TLS of the answering end.
    pub(super) fn server(&self, alpn: &[u8]) -> Result<QuicServerConfig, QuicError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone())
            .build()
            .map_err(QuicError::tls)?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(QuicError::tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.clone()], self.private_key())
            .map_err(QuicError::tls)?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        // No resumption: each link proves both keys anew, and 0-RTT, which can be replayed, is impossible.
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        QuicServerConfig::try_from(tls).map_err(QuicError::tls)
    }

    /// TLS of the dialling end.
    pub(super) fn client(&self, alpn: &[u8]) -> Result<QuicClientConfig, QuicError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(QuicError::tls)?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![self.certificate.clone()], self.private_key())
            .map_err(QuicError::tls)?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.resumption = Resumption::disabled();
        tls.enable_early_data = false;
        QuicClientConfig::try_from(tls).map_err(QuicError::tls)
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

/// The name to dial, by which rustls refuses everybody else.
pub(super) fn name_to_dial(expect: Option<&PeerId>) -> String {
    expect.map_or_else(|| ANY_NAME.to_owned(), name_of)
}

/// The peer whom a certificate that rustls has accepted proves: the hash of its key, which its names must confirm.
pub(super) fn peer_of(certificate: &CertificateDer<'_>) -> Option<PeerId> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let info = parsed.subject_public_key_info();
    let key = info.as_ref().strip_prefix(ED25519_INFO).filter(|key| key.len() == 32)?;
    let peer = id_of_key(key);
    let name = ServerName::try_from(name_of(&peer)).ok()?;
    verify_server_name(&parsed, &name).is_ok().then_some(peer)
}

fn id_of_key(public_key: &[u8]) -> PeerId {
    let hash = digest::digest(&digest::SHA256, public_key);
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_ref()[..16]);
    PeerId(id)
}

fn name_of(peer: &PeerId) -> String {
    format!("{peer}.peer.meshnet.invalid")
}

fn name_and_dates(params: &mut CertificateParams, name: String) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // A machine whose clock has no battery starts in 1970, and must join to be of use.
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
}

fn key_pair(seed: &[u8; 32]) -> Result<KeyPair, QuicError> {
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8(seed), &PKCS_ED25519).map_err(QuicError::certificate)
}

/// RFC 8410, 7.
fn pkcs8(seed: &[u8; 32]) -> PrivatePkcs8KeyDer<'static> {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend_from_slice(seed);
    PrivatePkcs8KeyDer::from(der)
}

/// A name that every peer's certificate carries: for dials by address.
const ANY_NAME: &str = "any.peer.meshnet.invalid";
/// What stands before the 32 bytes of an ed25519 key in a certificate (RFC 8410, 4).
const ED25519_INFO: &[u8] = &[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
