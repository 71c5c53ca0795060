//! `meshd`: the one room where rooms meet. Settings, state directory, start and stop, and the driver of the node.
//!
//! ```text
//! settings ─▶ secret, state ─▶ sockets, control socket ─▶ bridge, TAP ─▶ workers, links, node ─▶ driver … ─▶ stop
//! ```
//! What can be refused is refused before anything is made. A start that fails says so in one line, with the way out, and exits with 1.

pub mod addresses;
pub mod backend;
pub mod claims;
pub mod config;
pub mod devices;
pub mod driver;
pub mod fast;
pub mod host;
pub mod ipam;
pub mod kubernetes;
pub mod peer;
pub mod report;
pub mod secret;
pub mod state;
pub mod wire;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use meshnet_core::fdb::Fdb;
use meshnet_core::fib::Fib;
use meshnet_core::forward::lane_node;
use meshnet_core::identity::Identity;
use meshnet_core::node::{self, Node, Saved};
use meshnet_core::peer::from_link;
use meshnet_core::peer::path::Timing;
use meshnet_core::peer::transport::Policy;
use meshnet_core::session::Cipher;
use meshnet_core::time::Time;
use meshnet_proto::PeerId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::dataplane::{self, Dataplane, PuntRing, QuicInbox};
use crate::kube::secret::Place;
use crate::quic::{Inbound, Inbox, Quic, QuicConfig, virtual_address, virtual_peer};
use crate::udp::{Abilities, UdpSockets};
use crate::{api, telemetry};
use addresses::Addresses;
use backend::Asker;
use config::{Profile, Settings, Transport};
use devices::Devices;
use driver::{Driver, Sources};
use ipam::{End, Shell};
use kubernetes::Cluster;
use peer::Peer;
use report::Facts;
use secret::Secret;
use state::StateDir;
use wire::{Carried, Received, Wire, carry};

/// Runs `meshd` to its end.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    match config::load(arguments, environment) {
        Ok(config::Request::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(config::Request::Run(settings)) => match run(&settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("meshd: {error:#}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit)
        }
    }
}

fn run(settings: &Settings) -> Result<()> {
    let format = match settings.log_format {
        config::LogFormat::Text => telemetry::Format::Text,
        config::LogFormat::Json => telemetry::Format::Json,
    };
    let recent = telemetry::init(settings.log_level.as_str(), format).map_err(|error| anyhow!(error))?;
    let secret = match &settings.secret_file {
        Some(path) => Some(Secret::load(path)?),
        None if settings.secret_from_api => None,
        None => Some(Secret::none()),
    };
    let place = kubernetes::place(settings)?;
    let state = match place.is_some() {
        true => StateDir::open_as_successor(&settings.state_dir, SUCCEED_WITHIN)?,
        false => StateDir::open(&settings.state_dir)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the async runtime")?;
    runtime.block_on(serve(settings, secret, place, state, recent))
}

/// The port between peers, with what the kernel has of moving many datagrams in one call.
fn open_port(settings: &Settings) -> Result<UdpSockets> {
    let wanted = if settings.offload { Abilities::ALL } else { Abilities::NONE };
    let sockets = UdpSockets::bind_with(settings.listen, settings.workers, wanted)?;
    if sockets.abilities() != wanted {
        let has: Vec<&str> = sockets.abilities().words().collect();
        info!(offloads = has.join(" "), "the kernel does not move many datagrams in one call: slower");
    }
    Ok(sockets)
}

async fn serve(
    settings: &Settings,
    secret: Option<Secret>,
    place: Option<Place>,
    state: StateDir,
    recent: telemetry::Recent,
) -> Result<()> {
    let started = Instant::now();
    let state = Arc::new(state);
    let peer = peer::begin(settings, &state)?;
    let me = peer.id;
    let (asker, mut requests) = Asker::new();
    let stop = stop_on_signal(place.as_ref().map(|_| settings.state_dir.clone()))?;
    let sockets = Arc::new(open_port(settings)?);
    let tasks = listen(settings, asker)?;
    let mut cluster = place.map(|place| Cluster::new(place, &state, me));
    let waiting = kubernetes::begin(&mut cluster, secret, settings, &mut requests, &stop);
    let Some(secret) = waiting.await? else { return Ok(()) };
    let begun = Begun { started, state: Arc::clone(&state), peer, secret, cluster, sockets, requests, stop };
    let end = drive(settings, recent, begun).await?;
    drop(tasks);
    peer::finish(end, &state, me)
}

/// What is there before anything carries a frame.
struct Begun {
    started: Instant,
    state: Arc<StateDir>,
    peer: Peer,
    secret: Secret,
    cluster: Option<Cluster>,
    sockets: Arc<UdpSockets>,
    requests: mpsc::Receiver<backend::Request>,
    stop: Arc<Notify>,
}

/// Devices, workers, links, node: until the end.
async fn drive(settings: &Settings, recent: telemetry::Recent, before: Begun) -> Result<End> {
    let Begun { started, state, peer, secret, cluster, sockets, requests, stop } = before;
    let Peer { seed, id: me, store, kept: before } = peer;
    let (mut devices, notices) = Devices::start(settings, me, sockets.local_address().port()).await?;

    let (inbox, punted, tick) = (Arc::new(Inbox::new()), Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
    let punts = ring(&punted);
    let (carried, links_thread) = carry(&sockets).context("the thread of the links")?;
    let fib = Arc::new(ArcSwap::from_pointee(Fib::default()));
    let fdb = Arc::new(Fdb::default());
    let port = sockets.local_address().port();
    let begun = fast::start(settings, fast::Around::new(me, &devices, port, &fdb, &tick)).await;
    let plane = Dataplane::start(dataplane::Config {
        workers: settings.workers,
        tap: devices.take_tap(),
        sockets: Arc::clone(&sockets),
        fdb,
        fib: fib.load_full(),
        tick: Arc::clone(&tick),
        quic: hand_over(&inbox),
        frames: Arc::clone(&carried.received),
        punts: Arc::clone(&punts),
        on_tap_lost: devices.tap_lost(),
    })
    .context("the worker threads")?;
    let wire = Wire { sockets: Arc::clone(&sockets), fib: Arc::clone(&fib), lane: lane_node(settings.workers) };
    let (quic, links) = Quic::new(quic_config(settings, &secret, seed, inbox, wire, carried))?;
    let mut node = node_config(settings, &secret, &state, &devices, port, before)?;
    (node.trust, node.fast_refused) = (begun.trust, begun.refused);
    let (shell, kept) = Shell::start(store, &state).context("the thread that writes addresses")?;
    greet(settings, &secret, me, sockets.local_address());
    let (keep, saved) = watch::channel(None);
    let keeper = tokio::spawn(keep_saved(Arc::clone(&state), saved));
    let (addresses, asks, errands) = Addresses::start(settings, &devices);
    let (kubernetes, orders) = kubernetes::start(cluster, settings, port, &addresses);
    let driver = Driver {
        node: Node::new(node, Time::ZERO),
        started,
        quic,
        plane,
        sockets,
        fib,
        punts,
        punted,
        tick,
        facts: Facts::new(settings, me, recent, devices.view()),
        neighbours: JoinSet::new(),
        devices,
        fast: begun.path,
        keep,
        lookups: JoinSet::new(),
        waiting: Default::default(),
        pings: Default::default(),
        ipam: shell,
        replies: Default::default(),
        next_token: 1,
        refilled: started,
        addresses,
        errands,
        kubernetes,
    };
    let end = driver.run(Sources { links, requests, notices, fast: begun.inputs, asks, kept, orders }, stop).await;
    // The driver is gone and with it the sender: the keeper writes what is left and ends.
    finished(keeper.await);
    drop(links_thread);
    Ok(end)
}

fn quic_config(
    settings: &Settings,
    secret: &Secret,
    seed: [u8; 32],
    inbox: Arc<Inbox>,
    wire: Wire,
    carried: Carried,
) -> QuicConfig {
    QuicConfig {
        identity_seed: seed,
        authority_seed: secret.authority_seed(&settings.cluster),
        cluster: settings.cluster.clone(),
        inbox,
        transport: Arc::new(wire),
        sink: Arc::new(Received(carried.received)),
        frames: carried.frames,
        runtime: carried.runtime,
    }
}

fn finished(keeper: Result<(), tokio::task::JoinError>) {
    if let Err(error) = keeper {
        error!(%error, "what is to be kept may not have been written");
    }
    info!("stopped");
}

fn node_config(
    settings: &Settings,
    secret: &Secret,
    state: &StateDir,
    devices: &Devices,
    port: u16,
    before: Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<node::Config> {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let identity = Identity::from_seed(state.identity()?);
    let ipam = ipam::config(settings, identity.id().short(), u64::from_be_bytes(random()?));
    if let Some(ipam) = &ipam {
        let path = settings.state_dir.join("ipam.redb");
        let wrong = |error| anyhow!("{}: {error}", path.display());
        meshnet_core::ipam::Ipam::new(Time::ZERO, ipam.clone(), &before).map_err(wrong)?;
    }
    let mut node = node::Config::new(identity, settings.name.clone());
    node.ipam_kept = before;
    node.cluster.clone_from(&settings.cluster);
    node.incarnation = state.next_incarnation(unix)?;
    node.instance = u64::from_be_bytes(random()?);
    node.seed = random()?;
    node.secret = !secret.is_public();
    node.targets = settings.peers.iter().map(ToString::to_string).collect();
    node.saved = state.load_saved();
    node.discovery = settings.discovery;
    node.max_links = settings.max_links;
    node.lanes = lane_node(settings.workers) + 1;
    node.ports_aside = u8::try_from(settings.workers.saturating_sub(1)).unwrap_or(u8::MAX);
    node.ciphers = ciphers();
    node.mtu = devices.mtu();
    node.overhead = devices::overhead(settings);
    node.port = port;
    node.ipam = ipam;
    node.transport = match settings.transport {
        Transport::Auto => Policy::Auto,
        Transport::Udp => Policy::Udp,
        Transport::Quic => Policy::Quic,
    };
    node.timing = match settings.profile {
        Profile::Default => Timing::DEFAULT,
        Profile::Fast => Timing::FAST,
    };
    Ok(node)
}

fn greet(settings: &Settings, secret: &Secret, me: PeerId, listen: SocketAddr) {
    info!(id = %me, name = settings.name, %listen, bridge = settings.bridge, "meshd runs");
    settings.warnings.iter().for_each(|warning| warn!("{warning}"));
    if secret.is_public() {
        warn!("--no-secret: anyone who reaches the port may join this mesh and read what it carries");
    }
}

/// What the workers hand over to the driver.
fn ring(punted: &Arc<Notify>) -> Arc<PuntRing> {
    let rung = Arc::clone(punted);
    Arc::new(PuntRing::new(Arc::new(move || rung.notify_one())))
}

/// Where the workers put QUIC datagrams: emptied into the inbox of the links at each wake.
fn hand_over(inbox: &Arc<Inbox>) -> Arc<QuicInbox> {
    let inbox = Arc::clone(inbox);
    Arc::new_cyclic(|queue: &Weak<QuicInbox>| {
        let queue = queue.clone();
        QuicInbox::new(Arc::new(move || {
            let Some(queue) = queue.upgrade() else { return };
            while let Some(datagram) = queue.take() {
                let from = match datagram.source {
                    Some(source) => virtual_address(source),
                    // No relay sent it, or it came on a link, where QUIC has no business: somebody pretends.
                    None if virtual_peer(datagram.from).is_some() || from_link(datagram.from).is_some() => continue,
                    None => datagram.from,
                };
                inbox.push(Inbound { from, bytes: datagram.bytes });
            }
        }))
    })
}

/// Opens the control socket and the HTTP port, and serves them; dropping what it gives closes both.
fn listen(settings: &Settings, asker: Asker) -> Result<JoinSet<()>> {
    let asker = Arc::new(asker);
    let mut tasks = JoinSet::new();
    let http = settings.http.map(api::bind_http).transpose()?;
    let socket = api::bind_socket(&settings.socket)?;
    tasks.spawn(api::serve_socket(socket, Arc::clone(&asker)));
    if let Some(listener) = http {
        tasks.spawn(api::serve_http(listener, asker));
    }
    Ok(tasks)
}

/// Writes the newest of what is to be kept. Owner: [`serve`]; ends when the driver is gone; only the newest waits.
async fn keep_saved(state: Arc<StateDir>, mut kept: watch::Receiver<Option<Saved>>) {
    while kept.changed().await.is_ok() {
        let Some(saved) = kept.borrow_and_update().clone() else { continue };
        let state = Arc::clone(&state);
        // A file is written and synced: milliseconds, or more on a slow disk, that the driver must not wait for.
        match tokio::task::spawn_blocking(move || state.save(&saved)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "known peers are not kept"),
            Err(error) => error!(%error, "the keeper failed"),
        }
    }
}

/// Rung when the process shall end. With a directory: traffic goes on until a successor waits for it there, or for [`LINGER`], or until the second signal.
fn stop_on_signal(succeeded: Option<PathBuf>) -> Result<Arc<Notify>> {
    let stop = Arc::new(Notify::new());
    let rung = Arc::clone(&stop);
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        if let Some(directory) = succeeded {
            info!("told to stop: a successor is waited for, for a moment");
            tokio::select! {
                () = StateDir::successor(directory) => {}
                () = tokio::time::sleep(LINGER) => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        rung.notify_one();
    });
    Ok(stop)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("the kernel gives no random bytes"))?;
    Ok(bytes)
}

/// The ciphers, best first: AES where the processor has it.
fn ciphers() -> Vec<Cipher> {
    #[cfg(target_arch = "x86_64")]
    let hardware = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let hardware = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let hardware = false;
    if hardware { vec![Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] } else { vec![Cipher::ChaCha20Poly1305] }
}

/// The one before lingers for less, and stops within a second.
const SUCCEED_WITHIN: Duration = Duration::from_secs(5);
/// A kubelet gives 2 s at least between SIGTERM and SIGKILL; stopping takes some tenths.
const LINGER: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::QuicDatagram;
    use meshnet_core::node::LinkId;
    use meshnet_core::peer::link_address;
    use meshnet_proto::ShortId;

    #[test]
    fn a_datagram_of_the_underlay_cannot_pretend_to_come_through_relays() {
        let inbox = Arc::new(Inbox::new());
        let queue = hand_over(&inbox);
        let put = |source, from| {
            queue.put(QuicDatagram { source, from, ecn: 0, bytes: vec![0xc0; 1200] });
            queue.wake();
            format!("{inbox:?}")
        };
        let relay = "192.0.2.1:6783".parse().unwrap();
        assert!(put(None, virtual_address(ShortId(7))).contains("queued: 0"));
        assert!(put(None, link_address(LinkId(7))).contains("queued: 0"));
        assert!(put(Some(ShortId(7)), relay).contains("queued: 1"));
        assert!(put(None, relay).contains("queued: 2"));
    }
}
