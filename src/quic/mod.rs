//! Links: QUIC connections between peers of one cluster, and the messages on them.
//!
//! May use `proto`, the types of the core, tokio, quinn, rustls. Deliberately lacks: the UDP socket (the data plane owns it: [`Inbox`], [`DatagramIo`]), any
//! judgement of messages, links or peers (the node's), reconnecting (the node's), sealing (frames come sealed: `frames.rs`).
//!
//! ```text
//! driver ── dial, send, close ──▶ Quic ── a task for each dial ─┐
//!   ▲                               └── accept task ─ handshake ─┴─▶ link task (link.rs) ── quinn ── Socket (socket.rs)
//!   └──────────── events: LinkOpened, Message, LinkClosed, DialFailed ◀─┘                             ▲ Inbox   │ DatagramIo
//!                                                                                              threads of the data plane
//! ```
//! QUIC: RFC 9000; TLS 1.3 in it: RFC 9001; key export: RFC 8446, 7.5. Who may join: `cert.rs`.
//!
//! Tasks: the accept task and one for each dial belong to [`Quic`], those of accepted links to the accept task; all are aborted when their owner is dropped.
//! Channel: `events`, shared by all; when it is full the links wait, so that QUIC's flow control slows the senders.

mod accept;
mod cert;
mod error;
mod frames;
mod link;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use meshnet_core::node::{DialError, DialId, Input, LinkId};
use meshnet_core::session::SessionSecret;
use meshnet_proto::PeerId;
use meshnet_proto::wire::control::{ALPN, CloseReason};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info};

use accept::{Admission, Handshaking, Pending, Verdict};
pub use error::QuicError;
pub use frames::{FrameSink, Frames};
pub use link::Sent;
use link::{Link, Outbox};
use socket::Socket;
pub use socket::{DatagramIo, Inbound, Inbox, RELAYED_MAX_BYTES, virtual_address, virtual_peer};

/// What [`Quic`] is made of.
pub struct QuicConfig {
    /// Seed of this peer's ed25519 key.
    pub identity_seed: [u8; 32],
    /// Seed of the cluster's authority, from the cluster secret.
    pub authority_seed: [u8; 32],
    /// The cluster's name, which stands in the authority's certificate.
    pub cluster: String,
    /// Where the data plane puts datagrams of QUIC.
    pub inbox: Arc<Inbox>,
    /// How QUIC sends.
    pub transport: Arc<dyn DatagramIo>,
    /// Where frames that come on links go.
    pub sink: Arc<dyn FrameSink>,
    /// The way of frames onto links, which others use already.
    pub frames: Arc<Frames>,
    /// Where the tasks of the room run: a thread of their own, so that frames do not wait for the control plane, nor it for them.
    pub runtime: tokio::runtime::Handle,
}

/// Counters of the room, each growing only.
#[derive(Debug, Default)]
pub struct QuicCounters {
    /// Handshakes that failed because one end's certificate is not of this cluster's secret.
    pub secret_refused: AtomicU64,
    /// Handshakes of others that failed for another reason.
    pub handshakes_failed: AtomicU64,
    /// Strangers asked to prove their address first.
    pub retries: AtomicU64,
    /// Strangers refused because too many handshakes or links were there.
    pub refused: AtomicU64,
}

/// All links of this peer.
pub struct Quic {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

/// What both ends of a handshake must agree on, and how long they try.
#[derive(Debug, Clone, Copy)]
struct Handshake {
    alpn: &'static [u8],
    time: Duration,
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake { alpn: ALPN, time: HANDSHAKE_TIME }
    }
}

/// What the tasks share. It holds no task, so dropping [`Quic`] ends them all.
struct Shared {
    endpoint: Endpoint,
    socket: Arc<Socket>,
    inbox: Arc<Inbox>,
    peer: PeerId,
    handshake_time: Duration,
    /// For real and for virtual addresses.
    clients: [ClientConfig; 2],
    servers: [Arc<ServerConfig>; 2],
    events: mpsc::Sender<Input>,
    next_link: AtomicU64,
    dials: AtomicUsize,
    pending: Arc<Pending>,
    links: Mutex<BTreeMap<LinkId, Arc<Outbox>>>,
    link_gone: Notify,
    relieved: Mutex<BTreeSet<LinkId>>,
    relief: Notify,
    counters: QuicCounters,
    sink: Arc<dyn FrameSink>,
    frames: Arc<Frames>,
    runtime: tokio::runtime::Handle,
}

impl Quic {
    /// Opens the room. What happens comes out of the receiver.
    pub fn new(config: QuicConfig) -> Result<(Quic, mpsc::Receiver<Input>), QuicError> {
        let (credentials, peer) =
            cert::Authority::new(&config.authority_seed, &config.cluster)?.admit(&config.identity_seed)?;
        Quic::with_credentials(&config, &credentials, peer, Handshake::default())
    }

    fn with_credentials(
        config: &QuicConfig,
        credentials: &cert::Credentials,
        peer: PeerId,
        handshake: Handshake,
    ) -> Result<(Quic, mpsc::Receiver<Input>), QuicError> {
        let client = Arc::new(credentials.client(handshake.alpn)?);
        let server = Arc::new(credentials.server(handshake.alpn)?);
        let transports = [false, true].map(|relayed| Arc::new(transport_config(relayed)));
        let clients = transports.clone().map(|transport| {
            let mut config = ClientConfig::new(client.clone());
            config.transport_config(transport);
            config
        });
        let servers = transports.map(|transport| Arc::new(server_config(server.clone(), transport)));
        let socket = Arc::new(Socket::new(config.inbox.clone(), config.transport.clone()));
        let _inside = config.runtime.enter();
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(&config.identity_seed),
            Some((*servers[0]).clone()),
            socket.clone(),
            Arc::new(quinn::TokioRuntime),
        )?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            endpoint,
            socket,
            inbox: config.inbox.clone(),
            peer,
            handshake_time: handshake.time,
            clients,
            servers,
            events,
            next_link: AtomicU64::new(1),
            dials: AtomicUsize::new(0),
            pending: Arc::default(),
            links: Mutex::default(),
            link_gone: Notify::new(),
            relieved: Mutex::default(),
            relief: Notify::new(),
            counters: QuicCounters::default(),
            sink: config.sink.clone(),
            frames: config.frames.clone(),
            runtime: config.runtime.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_on(accept_all(shared.clone()), &config.runtime);
        Ok((Quic { shared, tasks: Mutex::new(tasks) }, receiver))
    }

    /// This peer's id, from its key.
    pub fn peer(&self) -> PeerId {
        self.shared.peer
    }

    /// Makes a link; `LinkOpened` or `DialFailed` follows within 5 s.
    pub fn dial(&self, dial: DialId, remote: SocketAddr, expect: Option<PeerId>) {
        let shared = self.shared.clone();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let runtime = self.shared.runtime.clone();
        let dialling = async move {
            let connected = match Counted::below(&shared.dials, DIALS_MAX) {
                Some(_dialling) => shared.connect(remote, expect).await,
                None => Err(DialError::Other("too many dials at once".into())),
            };
            match connected {
                Ok((connection, peer)) => shared.run_link(connection, peer, Some(dial)).await,
                // The driver is gone when nobody takes the event, and then nobody needs it.
                Err(why) => drop(shared.events.send(Input::DialFailed { dial, why }).await),
            }
        };
        tasks.spawn_on(dialling, &runtime);
    }

    /// Sends a message (`length ‖ type ‖ body`) after all earlier ones of this link. When the link's queue is full the link is closed with `Slow`.
    pub fn send(&self, link: LinkId, bytes: Arc<[u8]>) -> Sent {
        match self.shared.links().get(&link) {
            Some(outbox) => outbox.push(bytes),
            None => Sent::Closed,
        }
    }

    /// Closes a link; `LinkClosed` follows. With `Stopping` what is queued is sent first, for 500 ms at most.
    pub fn close(&self, link: LinkId, reason: CloseReason) {
        if let Some(outbox) = self.shared.links().get(&link) {
            outbox.close(reason);
        }
    }

    /// Waits for links whose queue was [`Sent::Pressed`] and is short again. One waiter at a time.
    pub async fn writable(&self) -> Vec<LinkId> {
        loop {
            let links = std::mem::take(&mut *self.shared.relieved());
            if !links.is_empty() {
                return links.into_iter().collect();
            }
            self.shared.relief.notified().await;
        }
    }

    /// Links that are up.
    pub fn links(&self) -> usize {
        self.shared.links().len()
    }

    /// Counters of handshakes.
    pub fn counters(&self) -> &QuicCounters {
        &self.shared.counters
    }

    /// Datagrams lost because the inbox was full or the kernel refused them.
    pub fn datagrams_lost(&self) -> u64 {
        self.shared.inbox.dropped() + self.shared.socket.send_errors() + self.shared.frames.lost()
    }

    /// Says goodbye on all links and ends; takes 1 s at most.
    pub async fn shutdown(self) {
        for outbox in self.shared.links().values() {
            outbox.close(CloseReason::Stopping);
        }
        let all_gone = async {
            loop {
                let gone = self.shared.link_gone.notified();
                if self.shared.links().is_empty() {
                    break;
                }
                gone.await;
            }
        };
        let _ = timeout(SHUTDOWN_FLUSH, all_gone).await;
        self.shared.endpoint.close(VarInt::from_u32(CloseReason::Stopping as u32), b"");
        let _ = timeout(SHUTDOWN_IDLE, self.shared.endpoint.wait_idle()).await;
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        // Tells the other ends at once instead of by their timeout.
        self.shared.endpoint.close(VarInt::from_u32(CloseReason::Stopping as u32), b"");
    }
}

impl Shared {
    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<LinkId, Arc<Outbox>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relieved(&self) -> std::sync::MutexGuard<'_, BTreeSet<LinkId>> {
        self.relieved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The dialling end's handshake.
    async fn connect(&self, remote: SocketAddr, expect: Option<PeerId>) -> Result<(Connection, PeerId), DialError> {
        let relayed = virtual_peer(remote).is_some();
        let refused = self.socket.watch(remote);
        let connecting = self
            .endpoint
            .connect_with(
                self.clients[usize::from(relayed)].clone(),
                socket::mapped(remote),
                &cert::name_to_dial(expect.as_ref()),
            )
            .map_err(|error| error::connect_error(&error))?;
        let connection = tokio::select! {
            connected = timeout(self.handshake_time, connecting) => match connected {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => {
                    let why = error::dial_error(&error);
                    if why == DialError::Secret {
                        self.counters.secret_refused.fetch_add(1, Ordering::Relaxed);
                    }
                    return Err(why);
                }
                Err(_) => return Err(DialError::Timeout),
            },
            Ok(text) = refused => return Err(DialError::Unreachable(text)),
        };
        match identify(&connection) {
            Some(peer) if expect.is_none_or(|expect| expect == peer) => Ok((connection, peer)),
            _ => {
                link::close(&connection, CloseReason::Protocol);
                Err(DialError::WrongPeer)
            }
        }
    }

    /// The answering end's handshake, and the link after it.
    async fn answer(self: Arc<Self>, incoming: Incoming, handshaking: Handshaking) {
        let remote = socket::unmapped(incoming.remote_address());
        let relayed = virtual_peer(remote).is_some();
        let handshake = async {
            let _until_done = handshaking;
            let connecting = incoming.accept_with(self.servers[usize::from(relayed)].clone())?;
            timeout(self.handshake_time, connecting).await.unwrap_or(Err(quinn::ConnectionError::TimedOut))
        };
        match handshake.await {
            Ok(connection) => match identify(&connection) {
                Some(peer) if self.links().len() < LINKS_MAX => self.run_link(connection, peer, None).await,
                Some(_) => {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    link::close(&connection, CloseReason::Full);
                }
                None => {
                    self.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                    info!(%remote, "peer refused: its certificate names another key than its own");
                    link::close(&connection, CloseReason::Protocol);
                }
            },
            Err(error) => {
                let secret = error::dial_error(&error) == DialError::Secret;
                let counter = if secret { &self.counters.secret_refused } else { &self.counters.handshakes_failed };
                counter.fetch_add(1, Ordering::Relaxed);
                debug!(%remote, %error, "handshake failed");
            }
        }
    }

    /// A link from its first event to its last.
    async fn run_link(&self, connection: Connection, peer: PeerId, dial: Option<DialId>) {
        let mut secret = [0; 64];
        if connection.export_keying_material(&mut secret, EXPORTER_LABEL, b"").is_err() {
            // Only for lengths that TLS cannot export; ours is fixed.
            return link::close(&connection, CloseReason::Protocol);
        }
        let id = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let outbox = Arc::new(Outbox::new());
        self.links().insert(id, outbox.clone());
        let registered = Registered { shared: self, id };
        let remote = socket::unmapped(connection.remote_address());
        let opened = Input::LinkOpened { link: id, dial, peer, remote, secret: SessionSecret(secret) };
        if self.events.send(opened).await.is_err() {
            return;
        }
        // Through relays frames travel as they are: the relays' links carry them.
        let carried = virtual_peer(remote).is_none().then(|| self.frames.open(id));
        let link = Link { id, connection, outbox, events: self.events.clone(), carried, sink: self.sink.clone() };
        let why = link
            .run(|id| {
                self.relieved().insert(id);
                self.relief.notify_one();
            })
            .await;
        drop(registered);
        // As above: without a driver nobody needs it.
        let _ = self.events.send(Input::LinkClosed { link: id, why }).await;
    }
}

/// A link's entry in the list, for as long as its task lives.
struct Registered<'a> {
    shared: &'a Shared,
    id: LinkId,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.links().remove(&self.id);
        self.shared.relieved().remove(&self.id);
        self.shared.link_gone.notify_waiters();
    }
}

/// One more of something, for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl Counted<'_> {
    fn below(counter: &AtomicUsize, limit: usize) -> Option<Counted<'_>> {
        let counted = Counted(counter);
        (counter.fetch_add(1, Ordering::Relaxed) < limit).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Owner: [`Quic`]. Ends when the endpoint closes, and with it all links that others dialled.
async fn accept_all(shared: Arc<Shared>) {
    let mut admission = Admission::new(Instant::now());
    let mut answers = JoinSet::new();
    while let Some(incoming) = shared.endpoint.accept().await {
        while answers.try_join_next().is_some() {}
        let remote = incoming.remote_address();
        match admission.judge(Instant::now(), incoming.remote_address_validated(), shared.pending.count(remote)) {
            Verdict::Accept => {
                let handshaking = shared.pending.begin(remote);
                answers.spawn(shared.clone().answer(incoming, handshaking));
            }
            Verdict::Retry => {
                shared.counters.retries.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
            }
            Verdict::Refuse => {
                shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                incoming.refuse();
            }
        }
    }
    while answers.join_next().await.is_some() {}
}

/// Whom the other end's certificate proves.
fn identify(connection: &Connection) -> Option<PeerId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    cert::peer_of(chain.first()?)
}

/// Connection ids and reset tokens hang on the identity, not on the process: a peer that was killed and started again answers packets of its former links with
/// a reset (RFC 9000, 10.3), and the other end knows at its next packet instead of after [`IDLE_TIME_MS`].
fn endpoint_config(identity_seed: &[u8; 32]) -> EndpointConfig {
    let root = hmac::Key::new(hmac::HMAC_SHA256, identity_seed);
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, b"meshnet quic reset").as_ref());
    let ids = hmac::sign(&root, b"meshnet quic connection ids");
    let ids_key = ids.as_ref().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids_key)));
    // The first byte tells QUIC from sealed data only while its fixed bit is set.
    config.grease_quic_bit(false);
    config
}

fn transport_config(relayed: bool) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIME_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(u64::from(WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(RELAYED_MAX_BYTES as u16)
        .allow_spin(false)
        .enable_segmentation_offload(!relayed)
        .mtu_discovery_config((!relayed).then(MtuDiscoveryConfig::default));
    if !relayed {
        frames::configure(&mut config);
    }
    config
}

fn server_config(tls: Arc<quinn::crypto::rustls::QuicServerConfig>, transport: Arc<TransportConfig>) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(tls);
    config
        .transport_config(transport)
        .max_incoming(accept::PENDING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES);
    config
}

/// Label of the keys that a link gives its session.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-meshnet-session-v1";
/// Events that wait for the driver. Most are some 100 bytes; at worst, all of them the longest messages, 64 MB. A driver behind by as many gains
/// nothing by more.
const EVENTS: usize = 256;
/// Links at most: four times the peers of the design size. The node keeps far fewer; this bounds what a holder of the secret can make us hold.
const LINKS_MAX: usize = 4096;
/// Dials under way at most; the node starts a few at a time.
const DIALS_MAX: usize = 256;
/// How long a handshake may take: two lost datagrams on a satellite link.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// A link on which nothing is heard for this long is gone: three lost keep-alives. Paths are watched much faster, by sealed probes.
const IDLE_TIME_MS: u32 = 10_000;
/// How often an idle link says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Bytes under way on one link and one way: two of the longest messages, and 40 Mbit/s at 100 ms.
const WINDOW_BYTES: u32 = 512 * 1024;
/// Guess of the round trip before it is known: repeats a lost first datagram after 0.3 s, where quinn would wait 1 s.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Early data of one handshake not yet begun.
const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;
/// The same of all.
const INCOMING_BUFFER_TOTAL_BYTES: u64 = 4 * 1024 * 1024;
/// Time for goodbyes: a link's flush and a little more.
const SHUTDOWN_FLUSH: Duration = Duration::from_millis(700);
/// Time for the last datagrams to leave.
const SHUTDOWN_IDLE: Duration = Duration::from_millis(200);
