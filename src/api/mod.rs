//! The control socket and the read-only HTTP port: what `meshctl`, probes and scrapers talk to.
//!
//! ```text
//! meshctl ── unix socket 0660 ──┐                         ┌─ status, topology, macs, report
//!                               ├─ listen ─ http ─ Backend┤  metrics, ready, healthy
//! kubelet, scraper ── --http ───┘                         └─ command (socket only)
//! ```
//!
//! May use: proto. Lacks on purpose: any knowledge of the peer (that is behind [`Backend`]), authentication (the socket's mode and
//! the loopback default of `--http` are the fence), keep-alive (each connection carries one request, so its life has a bound).

mod http;
mod listen;

pub use http::{REQUEST_TIMEOUT, serve_http, serve_socket};
pub use listen::{ListenError, SocketListener, bind_http, bind_socket};

use std::future::Future;

use meshnet_proto::api::{Command, MacEntry, Reply, Report, Status, Topology};

/// Who answers. The daemon implements it by a bounded channel to its driver; each call must end within [`REQUEST_TIMEOUT`].
pub trait Backend: Send + Sync + 'static {
    /// The status document.
    fn status(&self) -> impl Future<Output = Result<Status, Unavailable>> + Send;
    /// The whole cluster as this peer sees it.
    fn topology(&self) -> impl Future<Output = Result<Topology, Unavailable>> + Send;
    /// Learned MAC addresses.
    fn macs(&self) -> impl Future<Output = Result<Vec<MacEntry>, Unavailable>> + Send;
    /// Everything, without secrets.
    fn report(&self) -> impl Future<Output = Result<Report, Unavailable>> + Send;
    /// Carries out a command; a refusal is a reply too.
    fn command(&self, command: Command) -> impl Future<Output = Result<Reply, Unavailable>> + Send;
    /// The text of `/metrics`.
    fn metrics(&self) -> impl Future<Output = Result<String, Unavailable>> + Send;
    /// Whether containers may rely on this peer; else why not.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Whether the process is worth keeping: its driver and data plane threads live.
    fn healthy(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// The peer cannot answer now: it is stopping, or its driver is behind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);
