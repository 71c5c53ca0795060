//! Bridge, TAP and addresses as the peer wants them, kept so by one task; and the commands that change them.
//!
//! ```text
//! watch ─┐                                        ┌─▶ Notice ─▶ driver: own addresses, MTU, another TAP
//! period ┼─▶ keeper: ensure, underlay, reopen TAP ┤
//! orders ┘                                        └─▶ View: what status and readiness say
//! ```
//! Owner of the task: [`Devices`]; it ends with it. Orders are bounded by the connections of the API and done one after the other. Notices: the driver
//! takes them at once; the keeper waits for it. What the kernel refuses shows as a problem and is tried again at each round.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use meshnet_proto::api::{Command, Device, Problem, Reply};
use meshnet_proto::{Mac, PeerId};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::backend::REQUESTS_MAX;
use super::config::Settings;
use crate::dataplane::Waker;
use crate::netlink::{Change, Desired, Netlink, Underlay, Watch, stable_mac};
use crate::tap::Tap;

/// What the driver has to know.
pub enum Notice {
    /// The machine's own underlay addresses changed.
    Addresses(Vec<SocketAddr>),
    /// The MTU of the overlay changed.
    Mtu(u16),
    /// The TAP was made anew.
    Tap(Tap),
}

/// The driver's end.
pub struct Devices {
    tap: Option<Tap>,
    lost: Arc<Notify>,
    orders: mpsc::Sender<(Command, oneshot::Sender<Reply>)>,
    view: View,
    addresses: Vec<SocketAddr>,
    /// Aborted when this is dropped.
    _keeper: JoinSet<()>,
}

/// What the devices are now; cheap to clone.
#[derive(Clone)]
pub struct View {
    shown: Arc<Mutex<Shown>>,
    netlink: Netlink,
    bridge: String,
}

#[derive(Default)]
struct Shown {
    device: Device,
    problem: Option<Problem>,
}

impl View {
    /// For the status.
    pub fn device(&self) -> Device {
        self.lock().device.clone()
    }

    /// What is wrong with them.
    pub fn problems(&self) -> Vec<Problem> {
        self.lock().problem.iter().cloned().collect()
    }

    /// Ready, or why not.
    pub fn ready(&self) -> Result<(), String> {
        self.lock().problem.as_ref().map_or(Ok(()), |problem| Err(problem.what.clone()))
    }

    /// The MAC address behind an IP address, as the host's neighbour table on the bridge has it.
    pub async fn neighbour(&self, ip: IpAddr) -> Option<Mac> {
        self.netlink.neighbour(&self.bridge, ip).await.unwrap_or_else(|error| {
            debug!(%error, "the neighbour table cannot be read");
            None
        })
    }

    /// Those of the addresses that somebody on the bridge has.
    pub async fn taken(&self, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>, crate::netlink::Error> {
        self.netlink.taken(&self.bridge, addresses).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices {
    /// Makes or adopts the bridge, opens the TAP on it, and keeps both from then on.
    pub async fn start(settings: &Settings, me: PeerId, port: u16) -> Result<(Devices, mpsc::Receiver<Notice>)> {
        let netlink = Netlink::open()?;
        let watch = Watch::open()?;
        let bridge = settings.bridge.clone();
        let underlay = netlink.underlay(&bridge, &[]).await?;
        let mtu = overlay_mtu(settings, &underlay);
        let tap_name = tap_name(&bridge);
        let tap = Tap::open(&tap_name, settings.workers)?;
        let mut desired = Desired {
            bridge: bridge.clone(),
            mac: stable_mac(&me),
            tap: tap_name,
            mtu: u32::from(mtu),
            exposed: Vec::new(),
        };
        let changes = netlink.ensure(&desired).await?;
        info!(bridge, tap = desired.tap, mtu, changes = words(&changes), "devices");
        // Those of an earlier run stay: the bridge was never taken away.
        desired.exposed = netlink.exposed(&bridge).await?;
        if let Some(address) = settings.expose.filter(|address| !desired.exposed.contains(address)) {
            netlink.expose(&bridge, address).await?.iter().for_each(|warning| warn!("{warning}"));
            desired.exposed.push(address);
        }
        let view = View { shown: Arc::default(), netlink: netlink.clone(), bridge };
        let (notices, noticed) = mpsc::channel(NOTICES_MAX);
        let (orders, ordered) = mpsc::channel(REQUESTS_MAX);
        let lost = Arc::new(Notify::new());
        let addresses = endpoints(settings, &underlay, port);
        let keeper = Keeper {
            settings: settings.clone(),
            port,
            netlink,
            watch,
            desired,
            addresses: addresses.clone(),
            lost: Arc::clone(&lost),
            view: view.clone(),
            notices,
            superframes: tap.superframes(),
        };
        keeper.show(None);
        let mut task = JoinSet::new();
        task.spawn(keeper.run(ordered));
        Ok((Devices { tap: Some(tap), lost, orders, view, addresses, _keeper: task }, noticed))
    }

    /// The TAP, once.
    pub fn take_tap(&mut self) -> Option<Tap> {
        self.tap.take()
    }

    /// What a worker calls that finds the TAP gone.
    pub fn tap_lost(&self) -> Waker {
        let lost = Arc::clone(&self.lost);
        Arc::new(move || lost.notify_one())
    }

    /// MTU of the overlay.
    pub fn mtu(&self) -> u16 {
        u16::try_from(self.view.lock().device.mtu).unwrap_or(u16::MAX)
    }

    /// Addresses to tell other peers, at the start.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// For status and readiness.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Has a command of the devices done; the answer comes when it is.
    pub fn command(&self, command: Command, answer: oneshot::Sender<Reply>) {
        if let Err(mpsc::error::TrySendError::Full((_, answer)) | mpsc::error::TrySendError::Closed((_, answer))) =
            self.orders.try_send((command, answer))
        {
            let reason = "too many commands wait: try again in a moment".into();
            drop(answer.send(Reply::Refused { reason }));
        }
    }
}

/// The task's state.
struct Keeper {
    settings: Settings,
    port: u16,
    netlink: Netlink,
    watch: Watch,
    desired: Desired,
    addresses: Vec<SocketAddr>,
    lost: Arc<Notify>,
    view: View,
    notices: mpsc::Sender<Notice>,
    superframes: (bool, bool),
}

impl Keeper {
    async fn run(mut self, mut orders: mpsc::Receiver<(Command, oneshot::Sender<Reply>)>) {
        loop {
            tokio::select! {
                order = orders.recv() => {
                    let Some((command, answer)) = order else { return };
                    let reply = self.order(command).await.unwrap_or_else(|reason| Reply::Refused { reason });
                    drop(answer.send(reply));
                    continue;
                }
                () = self.watch.changed() => tokio::time::sleep(SETTLE).await,
                () = self.lost.notified() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
            let problem = self.round().await.err().map(|error| Problem {
                what: format!("bridge or TAP: {error:#}"),
                remedy: "meshd tries again every few seconds; see its log".into(),
            });
            if let Some(problem) = &problem {
                warn!("{}", problem.what);
            }
            self.show(problem);
        }
    }

    /// Puts back what is missing, and tells what changed below.
    async fn round(&mut self) -> Result<()> {
        let underlay = self.netlink.underlay(&self.desired.bridge, &[]).await?;
        let follow = self.follow(&underlay).await;
        let mut changes = self.netlink.ensure(&self.desired).await?;
        if changes.contains(&Change::TapMissing) {
            let tap = Tap::open(&self.desired.tap, self.settings.workers)?;
            self.superframes = tap.superframes();
            changes.extend(self.netlink.ensure(&self.desired).await?);
            self.tell(Notice::Tap(tap)).await;
        }
        if changes.contains(&Change::BridgeMade) {
            let joined = self.netlink.rejoin(&self.desired.bridge).await?;
            info!(interfaces = joined, "attached interfaces are on the new bridge");
        }
        match changes.is_empty() {
            true => {}
            false if follow => info!(changes = words(&changes), "bridge and TAP follow"),
            false => warn!(changes = words(&changes), "bridge or TAP were changed by someone else and are put back"),
        }
        Ok(())
    }

    /// Tells what changed below; true when bridge and TAP must change for it.
    async fn follow(&mut self, underlay: &Underlay) -> bool {
        let addresses = endpoints(&self.settings, underlay, self.port);
        let real = |addresses: &[SocketAddr]| addresses.iter().any(|address| !address.ip().is_loopback());
        if real(&self.addresses) && !real(&addresses) {
            // A pulled cable, or an address being changed: loopback's address and MTU would help nobody, and what was there comes back as a rule.
            return false;
        }
        if addresses != self.addresses {
            self.addresses.clone_from(&addresses);
            info!(addresses = ?addresses, "own addresses changed");
            self.tell(Notice::Addresses(addresses)).await;
        }
        let mtu = overlay_mtu(&self.settings, underlay);
        let changed = self.desired.mtu != u32::from(mtu);
        if changed {
            self.desired.mtu = u32::from(mtu);
            info!(mtu, "MTU of the overlay changed");
            self.tell(Notice::Mtu(mtu)).await;
        }
        changed
    }

    async fn tell(&self, notice: Notice) {
        // Fails only when the driver is gone, and then this task is about to end.
        let _ = self.notices.send(notice).await;
    }

    fn show(&self, problem: Option<Problem>) {
        let mut offloads = vec!["vnet-header"];
        offloads.extend(self.superframes.0.then_some("tso"));
        offloads.extend(self.superframes.1.then_some("uso"));
        let mut shown = self.view.lock();
        shown.problem = problem;
        shown.device = Device {
            bridge: self.desired.bridge.clone(),
            tap: self.desired.tap.clone(),
            mtu: self.desired.mtu,
            queues: self.settings.workers as u32,
            offloads: offloads.into_iter().map(str::to_owned).collect(),
            exposed: self.desired.exposed.iter().map(ToString::to_string).collect(),
        };
    }

    async fn order(&mut self, command: Command) -> Result<Reply, String> {
        let bridge = self.desired.bridge.clone();
        let reply = match command {
            Command::Attach { namespace, addresses } => {
                let addresses = all(&addresses)?;
                let attached = self.netlink.attach(&bridge, self.desired.mtu, &namespace, &addresses).await;
                let attached = attached.map_err(|error| error.to_string())?;
                let addresses = attached.addresses.iter().map(ToString::to_string).collect();
                Reply::Attached { interface: attached.interface, addresses }
            }
            Command::Detach { namespace, addresses } => {
                let taken = self.netlink.detach(&namespace, &all(&addresses)?).await;
                taken.map_err(|error| error.to_string())?;
                Reply::Done
            }
            Command::Expose { address } => {
                let address = one(&address)?;
                let warnings = self.netlink.expose(&bridge, address).await.map_err(|error| error.to_string())?;
                warnings.iter().for_each(|warning| warn!("{warning}"));
                if !self.desired.exposed.contains(&address) {
                    self.desired.exposed.push(address);
                }
                Reply::Done
            }
            Command::Hide { address } => {
                let address = address.as_deref().map(one).transpose()?;
                let taken = self.netlink.hide(&bridge, address).await.map_err(|error| error.to_string())?;
                self.desired.exposed.retain(|there| !taken.contains(there));
                Reply::Done
            }
            other => return Err(format!("{other:?} is not a command of the devices")),
        };
        self.show(None);
        Ok(reply)
    }
}

fn all(texts: &[String]) -> Result<Vec<IpNet>, String> {
    texts.iter().map(|text| one(text)).collect()
}

fn one(text: &str) -> Result<IpNet, String> {
    if text == "auto" {
        return Err("this version does not hand out addresses: give one, such as 10.32.0.5/12".into());
    }
    super::config::value::host_cidr(text).map_err(|right| format!("'{text}' is wrong: {right}"))
}

/// The TAP of a bridge: its name must differ between two peers in one namespace, as their bridges do.
fn tap_name(bridge: &str) -> String {
    // 15 bytes are the kernel's limit (IFNAMSIZ).
    let stem: String = bridge.chars().take(11).collect();
    format!("{stem}-tap")
}

/// What is left of the underlay's MTU for packets of the overlay, directly and over the longest way through relays.
fn overlay_mtu(settings: &Settings, underlay: &Underlay) -> u16 {
    let room = underlay.mtu.min(UNDERLAY_MTU_MAX).saturating_sub(OVERHEAD_BYTES);
    settings.mtu.unwrap_or_else(|| u16::try_from(room).unwrap_or(u16::MAX).max(MTU_MIN))
}

/// What to tell other peers: what the operator says, or the addresses found, as far as the socket listens on them.
fn endpoints(settings: &Settings, underlay: &Underlay, port: u16) -> Vec<SocketAddr> {
    if !settings.advertise.is_empty() {
        return settings.advertise.clone();
    }
    let listen = settings.listen.ip();
    if !listen.is_unspecified() {
        return vec![SocketAddr::new(listen, port)];
    }
    let heard = |ip: &&IpAddr| listen.is_ipv6() || ip.is_ipv4();
    underlay.addresses.iter().filter(heard).map(|ip| SocketAddr::new(*ip, port)).collect()
}

fn words(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "none".into();
    }
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// IPv6 and UDP headers 48, outer and inner header 32, tag 16, Ethernet with a VLAN tag 18, the longest relay header 76.
const OVERHEAD_BYTES: u32 = 190;
/// Jumbo frames of real networks; larger ones are loopback and the like, where nothing is gained.
const UNDERLAY_MTU_MAX: u32 = 9_216;
/// What every IPv4 host must take (RFC 791).
const MTU_MIN: u16 = 576;
/// Changes come in bursts: look once they are over.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two looks when the kernel tells nothing.
const PERIOD: Duration = Duration::from_secs(5);
/// Notices are rare, and the driver takes them at once.
const NOTICES_MAX: usize = 8;
