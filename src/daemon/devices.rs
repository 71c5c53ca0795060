//! Bridge, TAP and addresses as the peer wants them, kept so by one task; and the commands that change them.
//!
//! ```text
//! watch ─┐                                        ┌─▶ Notice ─▶ driver: own addresses, MTU, another TAP, addresses of the host
//! period ┼─▶ keeper: ensure, underlay, reopen TAP ┤
//! orders ┘                                        └─▶ View: what status and readiness say
//! ```
//! Owner of the task: [`Devices`]; it ends with it. Orders are bounded by the connections of the API and done one after the other. Notices: the driver
//! takes them at once; the keeper waits for it. What the kernel refuses shows as a problem and is tried again at each round.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use meshnet_proto::api::{Device, Problem};
use meshnet_proto::{Mac, PeerId};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::backend::REQUESTS_MAX;
use super::config::Settings;
use super::host::Host;
use crate::dataplane::Waker;
use crate::netlink::{self, Attached, Change, Desired, Netlink, Underlay, Watch, stable_mac};
use crate::tap::Tap;

/// What the driver has to know.
pub enum Notice {
    /// The machine's own underlay addresses changed.
    Addresses(Vec<SocketAddr>),
    /// The MTU of the overlay changed.
    Mtu(u16),
    /// The TAP was made anew.
    Tap(Tap),
    /// Addresses of the range whose MAC address does not follow from them: the host's own on the bridge, and further ones of a namespace.
    Hosts(Vec<(u32, Mac)>),
}

/// A change that is asked for.
#[derive(Debug)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Order {
    /// An interface and these addresses for a namespace.
    Attach { namespace: String, addresses: Vec<IpNet> },
    /// These from it; none named: all, and the interface.
    Detach { namespace: String, addresses: Vec<IpNet> },
    /// This for the host.
    Expose(IpNet),
    /// This from the host; none: all that were exposed.
    Hide(Option<IpNet>),
}

/// What was done.
#[derive(Debug)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Done {
    /// What the namespace has now.
    Attached(Attached),
    /// These were taken from it.
    Taken(Vec<IpNet>),
    /// The host has it.
    Exposed,
    /// These were taken from the host, those are left.
    Hidden { taken: Vec<IpNet>, left: Vec<IpNet> },
}

/// Why not.
#[derive(Debug)]
pub struct Refused {
    /// One line.
    pub reason: String,
    /// What was to be taken away is not there.
    pub absent: bool,
}

type Verdict = Result<Done, Refused>;

impl From<netlink::Error> for Refused {
    fn from(error: netlink::Error) -> Refused {
        use netlink::Error::{NoNamespace, NoSuchAddress, NotAttached};
        let absent = matches!(error, NoNamespace(_) | NotAttached(_) | NoSuchAddress { .. });
        Refused { reason: error.to_string(), absent }
    }
}

/// Where orders are given; cheap to clone. They are done one after the other.
#[derive(Clone)]
pub struct Orders(mpsc::Sender<(Order, oneshot::Sender<Verdict>)>);

impl Orders {
    /// Where to give orders, and where they come out.
    pub fn new() -> (Orders, mpsc::Receiver<(Order, oneshot::Sender<Verdict>)>) {
        let (orders, ordered) = mpsc::channel(REQUESTS_MAX);
        (Orders(orders), ordered)
    }

    /// Has it done.
    pub async fn order(&self, order: Order) -> Result<Done, Refused> {
        let stopping = || Refused { reason: "meshd is stopping".into(), absent: false };
        let (answer, answered) = oneshot::channel();
        self.0.send((order, answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}

/// The driver's end.
pub struct Devices {
    tap: Option<Tap>,
    lost: Arc<Notify>,
    orders: Orders,
    view: View,
    addresses: Vec<SocketAddr>,
    hosts: Vec<(u32, Mac)>,
    found: Vec<IpNet>,
    /// Aborted when this is dropped.
    _keeper: JoinSet<()>,
    _host: JoinSet<()>,
}

/// What the devices are now; cheap to clone.
#[derive(Clone)]
pub struct View {
    shown: Arc<Mutex<Shown>>,
    netlink: Netlink,
    bridge: String,
    host: Host,
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
        self.lock().problem.iter().cloned().chain(self.host.problems()).collect()
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
        let tap = open_tap(&tap_name, settings)?;
        let mut desired = Desired {
            bridge: bridge.clone(),
            mac: stable_mac(&me),
            tap: tap_name,
            mtu: u32::from(mtu),
            mtu_before: None,
            exposed: Vec::new(),
        };
        let changes = netlink.ensure(&desired).await?;
        info!(
            bridge,
            tap = desired.tap,
            mtu,
            offloads = tap.abilities().join(" "),
            changes = words(&changes),
            "devices"
        );
        // Those of an earlier run stay: the bridge was never taken away.
        desired.exposed = netlink.exposed(&bridge).await?;
        let found = desired.exposed.clone();
        // One of the range waits until it is this host's.
        let by_hand = settings.expose.and_then(|expose| expose.by_hand(settings.ipam_range));
        if let Some(address) = by_hand.filter(|address| !desired.exposed.contains(address)) {
            netlink.expose(&bridge, address).await?.iter().for_each(|warning| warn!("{warning}"));
            desired.exposed.push(address);
        }
        let (host, host_task) = Host::start(settings, netlink.clone()).await;
        let view = View { shown: Arc::default(), netlink: netlink.clone(), bridge, host };
        let (notices, noticed) = mpsc::channel(NOTICES_MAX);
        let (orders, ordered) = Orders::new();
        let lost = Arc::new(Notify::new());
        let addresses = endpoints(settings, &underlay, port);
        let mut keeper = Keeper {
            settings: settings.clone(),
            port,
            netlink,
            watch,
            desired,
            addresses: addresses.clone(),
            lost: Arc::clone(&lost),
            view: view.clone(),
            notices,
            offloads: tap.abilities(),
            hosts: Vec::new(),
            further: BTreeMap::new(),
        };
        let hosts = keeper.hosts_now().await?;
        keeper.hosts.clone_from(&hosts);
        keeper.show(None);
        let mut task = JoinSet::new();
        task.spawn(keeper.run(ordered));
        Ok((
            Devices { tap: Some(tap), lost, orders, view, addresses, hosts, found, _keeper: task, _host: host_task },
            noticed,
        ))
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

    /// Name of the TAP.
    pub fn tap_name(&self) -> String {
        self.view.lock().device.tap.clone()
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

    /// Addresses that do not have the MAC address that follows from them, at the start.
    pub fn hosts(&self) -> Vec<(u32, Mac)> {
        self.hosts.clone()
    }

    /// Addresses that an earlier run left on the bridge.
    pub fn found(&self) -> &[IpNet] {
        &self.found
    }

    /// Where commands of the devices go.
    pub fn orders(&self) -> Orders {
        self.orders.clone()
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
    /// What the TAP does in one call.
    offloads: Vec<&'static str>,
    hosts: Vec<(u32, Mac)>,
    /// Addresses of namespaces that are not their interface's first, by the interface's MAC address.
    further: BTreeMap<u32, Mac>,
}

impl Keeper {
    async fn run(mut self, mut orders: mpsc::Receiver<(Order, oneshot::Sender<Verdict>)>) {
        loop {
            tokio::select! {
                order = orders.recv() => {
                    let Some((order, answer)) = order else { return };
                    let verdict = self.order(order).await;
                    self.tell_hosts().await;
                    drop(answer.send(verdict));
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
            let tap = open_tap(&self.desired.tap, &self.settings)?;
            self.offloads = tap.abilities();
            changes.extend(self.netlink.ensure(&self.desired).await?);
            self.tell(Notice::Tap(tap)).await;
        }
        if changes.contains(&Change::BridgeMade) {
            let joined = self.netlink.rejoin(&self.desired.bridge).await?;
            info!(interfaces = joined, "attached interfaces are on the new bridge");
        }
        self.desired.mtu_before = None;
        self.tell_hosts().await;
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
            self.desired.mtu_before = Some(std::mem::replace(&mut self.desired.mtu, u32::from(mtu)));
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
        let mut shown = self.view.lock();
        shown.problem = problem;
        shown.device = Device {
            bridge: self.desired.bridge.clone(),
            tap: self.desired.tap.clone(),
            mtu: self.desired.mtu,
            queues: self.settings.workers as u32,
            offloads: self.offloads.iter().copied().map(str::to_owned).collect(),
            exposed: self.desired.exposed.iter().map(ToString::to_string).collect(),
        };
    }

    async fn order(&mut self, order: Order) -> Verdict {
        let bridge = self.desired.bridge.clone();
        let done = match order {
            Order::Attach { namespace, addresses } => {
                let attached = self.netlink.attach(&bridge, self.desired.mtu, &namespace, &addresses).await?;
                self.remember(&attached);
                Done::Attached(attached)
            }
            Order::Detach { namespace, addresses } => {
                let taken = self.netlink.detach(&namespace, &addresses).await?;
                self.further.retain(|address, _| !taken.iter().any(|net| number(net) == Some(*address)));
                Done::Taken(taken)
            }
            Order::Expose(address) => {
                let warnings = self.netlink.expose(&bridge, address).await?;
                warnings.iter().for_each(|warning| warn!("{warning}"));
                if !self.desired.exposed.contains(&address) {
                    self.desired.exposed.push(address);
                }
                Done::Exposed
            }
            Order::Hide(address) => {
                let taken = self.netlink.hide(&bridge, address).await?;
                self.desired.exposed.retain(|there| !taken.contains(there));
                Done::Hidden { taken, left: self.desired.exposed.clone() }
            }
        };
        self.show(None);
        Ok(done)
    }

    /// An interface has one MAC address, that of its first address: others have to be told from whom they are answered.
    fn remember(&mut self, attached: &Attached) {
        for address in attached.addresses.iter().filter_map(number) {
            if attached.mac != mac_of(address) && self.further.len() < FURTHER_MAX {
                self.further.insert(address, attached.mac);
            }
        }
    }

    async fn hosts_now(&self) -> Result<Vec<(u32, Mac)>> {
        let Some(range) = self.settings.ipam_range else { return Ok(Vec::new()) };
        let mac = self.netlink.bridge_mac(&self.desired.bridge).await?;
        let exposed = self.desired.exposed.iter().filter_map(number);
        let mut hosts: BTreeMap<u32, Mac> = exposed.filter_map(|address| Some((address, mac?))).collect();
        hosts.extend(&self.further);
        hosts.retain(|address, _| range.contains(&IpAddr::from(Ipv4Addr::from(*address))));
        Ok(hosts.into_iter().collect())
    }

    async fn tell_hosts(&mut self) {
        match self.hosts_now().await {
            Ok(hosts) if hosts != self.hosts => {
                self.hosts.clone_from(&hosts);
                self.tell(Notice::Hosts(hosts)).await;
            }
            Ok(_) => {}
            Err(error) => debug!(%error, "the bridge's MAC address is not known"),
        }
    }
}

fn number(net: &IpNet) -> Option<u32> {
    match net {
        IpNet::V4(net) => Some(u32::from(net.addr())),
        IpNet::V6(_) => None,
    }
}

/// What an interface gets whose first address this is.
fn mac_of(address: u32) -> Mac {
    let [a, b, c, d] = address.to_be_bytes();
    Mac([0x0a, 0x58, a, b, c, d])
}

fn open_tap(name: &str, settings: &Settings) -> Result<Tap> {
    Ok(if settings.offload { Tap::open(name, settings.workers) } else { Tap::open_plain(name, settings.workers) }?)
}

/// The TAP of a bridge: its name must differ between two peers in one namespace, as their bridges do.
fn tap_name(bridge: &str) -> String {
    // 15 bytes are the kernel's limit (IFNAMSIZ).
    let stem: String = bridge.chars().take(11).collect();
    format!("{stem}-tap")
}

/// What is left of the underlay's MTU for packets of the overlay on the way that most of them take. Those on others, as through relays, are the business of
/// segment sizes, fragments and "too big".
fn overlay_mtu(settings: &Settings, underlay: &Underlay) -> u16 {
    let room = underlay.mtu.min(UNDERLAY_MTU_MAX).saturating_sub(overhead(settings).into());
    settings.mtu.unwrap_or_else(|| u16::try_from(room).unwrap_or(u16::MAX).max(MTU_MIN))
}

/// What the underlay's MTU is more than the overlay's; of an MTU that was given, what it may be.
pub(super) fn overhead(settings: &Settings) -> u16 {
    match settings.mtu {
        Some(_) => meshnet_core::node::OVERHEAD_BYTES,
        None if settings.trusted_subnets.is_empty() => OVERHEAD_BYTES,
        None => VXLAN_OVERHEAD_BYTES,
    }
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

/// IPv6 and UDP headers 48, outer and inner header 32, tag 16, Ethernet with a VLAN tag 18, flood header 16.
const OVERHEAD_BYTES: u16 = 130;
/// Of the kernel's fast path: IPv4 and UDP headers 28, VXLAN 8, Ethernet 14.
const VXLAN_OVERHEAD_BYTES: u16 = 50;
/// Jumbo frames of real networks; larger ones are loopback and the like, where nothing is gained.
const UNDERLAY_MTU_MAX: u32 = 9_216;
/// What every IPv4 host must take (RFC 791).
const MTU_MIN: u16 = 576;
/// Changes come in bursts: look once they are over.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two looks when the kernel tells nothing.
const PERIOD: Duration = Duration::from_secs(5);
/// Further addresses of namespaces, all told to other peers: few have any.
const FURTHER_MAX: usize = 1_024;
/// Notices are rare, and the driver takes them at once.
const NOTICES_MAX: usize = 8;
