//! Where the API is, and what meshd shows it: the environment and the files that Kubernetes gives every pod.
//!
//! Token and certificate are read anew for each connection: the kubelet replaces the token within its life, and the certificate when the cluster's
//! authority changes.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// Where the API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// False only by an explicit `http://`: then no token is sent.
    pub tls: bool,
}

impl Endpoint {
    /// From `--kubernetes-api`. The error says what would be right.
    pub fn parse(url: &str) -> Result<Endpoint, String> {
        let wrong = || "https://HOST:PORT is wanted (or http://HOST:PORT, without TLS and token)".to_owned();
        let (tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
            None if rest.ends_with(']') || !rest.contains(':') => {
                if tls {
                    443
                } else {
                    80
                }
            }
            None => return Err(wrong()),
        };
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(letters) {
            return Err(wrong());
        }
        Ok(Endpoint { host: host.to_owned(), port, tls })
    }

    /// From the environment of a pod.
    pub fn in_cluster(variable: impl Fn(&str) -> Option<String>) -> Result<Endpoint, String> {
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"));
        let (Some(host), Some(port)) = (host, port.and_then(|port| port.parse().ok())) else {
            return Err(
                "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, so this is no pod: give --kubernetes-api https://HOST:PORT"
                    .into(),
            );
        };
        Ok(Endpoint { host, port, tls: true })
    }

    /// For people.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// `host:port`, as in a request.
    pub fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => format!("[{}]:{}", self.host, self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

/// The folder of a service account.
#[derive(Debug, Clone)]
pub struct Credentials {
    dir: PathBuf,
}

impl Credentials {
    /// The files are read when they are needed.
    pub fn new(dir: &Path) -> Credentials {
        Credentials { dir: dir.to_owned() }
    }

    /// The namespace that the pod is in.
    pub fn namespace(&self) -> Result<String, String> {
        let text = self.read("namespace", NAMESPACE_MAX_BYTES)?;
        let text = text.trim();
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || !text.chars().all(label) {
            return Err(format!("{} holds no name of a namespace", self.dir.join("namespace").display()));
        }
        Ok(text.to_owned())
    }

    /// The bearer token of now.
    pub fn token(&self) -> Result<String, String> {
        let text = self.read("token", TOKEN_MAX_BYTES)?;
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{} holds no token", self.dir.join("token").display()));
        }
        Ok(text.to_owned())
    }

    /// TLS that trusts the cluster's authority and nobody else.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let path = self.dir.join("ca.crt");
        let text = self.read("ca.crt", CA_MAX_BYTES)?;
        let wrong = |error: &dyn std::fmt::Display| format!("{} holds no certificates: {error}", path.display());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"it is empty"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(tls))
    }

    fn read(&self, name: &str, most: u64) -> Result<String, String> {
        let path = self.dir.join(name);
        let wrong = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        let mut text = String::new();
        let read = File::open(&path).map_err(wrong)?.take(most + 1).read_to_string(&mut text).map_err(wrong)?;
        if read as u64 > most { Err(format!("{} is longer than {most} bytes", path.display())) } else { Ok(text) }
    }
}

/// Whose certificate is wanted.
pub fn server_name(endpoint: &Endpoint) -> Result<ServerName<'static>, String> {
    ServerName::try_from(endpoint.host.clone()).map_err(|_| format!("'{}' is no name of a server", endpoint.host))
}

/// Where Kubernetes puts them in every pod.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A label of DNS.
const NAMESPACE_MAX_BYTES: u64 = 64;
/// Bound tokens have about 1 KiB.
const TOKEN_MAX_BYTES: u64 = 16 * 1024;
/// Bundles of old and new authorities.
const CA_MAX_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let endpoint = |host: &str, port, tls| Ok(Endpoint { host: host.into(), port, tls });
        assert_eq!(Endpoint::parse("https://10.96.0.1:443"), endpoint("10.96.0.1", 443, true));
        assert_eq!(Endpoint::parse("https://api.example:6443/"), endpoint("api.example", 6443, true));
        assert_eq!(Endpoint::parse("https://api.example"), endpoint("api.example", 443, true));
        assert_eq!(Endpoint::parse("http://127.0.0.1:8001"), endpoint("127.0.0.1", 8001, false));
        assert_eq!(Endpoint::parse("https://[fd00::1]:6443"), endpoint("fd00::1", 6443, true));
        assert_eq!(Endpoint::parse("https://[fd00::1]"), endpoint("fd00::1", 443, true));
        assert_eq!(Endpoint::parse("https://[fd00::1]:6443").unwrap().authority(), "[fd00::1]:6443");
        for wrong in ["", "api", "ftp://api", "https://", "https://a:0", "https://a:x", "https://a/path", "https://a b"]
        {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_environment_of_a_pod() {
        let pod = |name: &str| Some(if name.ends_with("PORT") { "443" } else { "fd00::1" }.to_owned());
        assert_eq!(Endpoint::in_cluster(pod).unwrap().url(), "https://[fd00::1]:443");
        assert!(Endpoint::in_cluster(|_| None).unwrap_err().contains("--kubernetes-api"));
    }
}
