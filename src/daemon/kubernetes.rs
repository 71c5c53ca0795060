//! The daemon's side of `--kubernetes`: the secret before anything runs, then the agent's orders to the node and the node's view for the agent.
//!
//! ```text
//! start ─▶ secret: kept, or from the API (meanwhile status and readiness say what is waited for) ─▶ devices, driver
//! driver ── View, each second ─▶ agent (`crate::kube`) ── Order ─▶ driver: targets, address space, removals
//! ```
//! Owner of the agent's task: [`Link`], and with it the driver. Orders: bounded; the agent waits for the driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;
use meshnet_core::ipam::Input;
use meshnet_core::node;
use meshnet_core::time::Time;
use meshnet_proto::api::{self, Command, Data, Device, Me, Problem, Reply, Report, Status, Topology};
use meshnet_proto::{PeerId, ShortId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::addresses::{Addresses, SILENT};
use super::backend::Request;
use super::config::{IpamInit, Settings};
use super::driver::Driver;
use super::secret::Secret;
use super::state::StateDir;
use crate::kube::agent::{self, Agent, Order, View};
use crate::kube::client::Client;
use crate::kube::credentials::{Credentials, Endpoint};
use crate::kube::nodes::Member;
use crate::kube::objects::Mark;
use crate::kube::secret::Place;
use crate::kube::shown::Shown;
use crate::kube::{Keep, Kept, Left};
use crate::netlink::{Error, Netlink};
use crate::telemetry::{VERSION, metrics};

/// What is there before the driver.
pub struct Cluster {
    place: Place,
    shown: Arc<Shown>,
    kept: Kept,
    state: Arc<StateDir>,
    me: PeerId,
    /// When it came from the API.
    secret: Option<String>,
}

/// The driver's end.
pub struct Link {
    view: watch::Sender<Arc<View>>,
    shown: Arc<Shown>,
    place: Place,
    node: String,
    /// The agent, and the watch of what an earlier peer left; ended with this.
    tasks: JoinSet<()>,
}

/// Where the API is and what it is shown, from the settings and the environment of a pod.
pub fn place(settings: &Settings) -> Result<Option<Place>> {
    let Some(kubernetes) = &settings.kubernetes else { return Ok(None) };
    let endpoint = match &kubernetes.api {
        Some(endpoint) => endpoint.clone(),
        None => {
            Endpoint::in_cluster(|name| std::env::var(name).ok()).map_err(|why| anyhow!(why).context("--kubernetes"))?
        }
    };
    let credentials = Credentials::new(&kubernetes.credentials);
    let namespace = credentials.namespace().map_err(|why| anyhow!(why).context("--kubernetes"))?;
    Ok(Some(Place { client: Client::new(endpoint, credentials), namespace }))
}

/// What goes before the devices: the secret, and a look around. None: told to stop meanwhile.
pub async fn begin(
    cluster: &mut Option<Cluster>,
    secret: Option<Secret>,
    settings: &Settings,
    requests: &mut mpsc::Receiver<Request>,
    stop: &Notify,
) -> Result<Option<Secret>> {
    let Some(cluster) = cluster else { return Ok(secret) };
    let secret = match secret {
        Some(secret) => Some(secret),
        None => cluster.secret(settings, requests, stop).await?,
    };
    if secret.is_some() {
        cluster.look_around(settings).await?;
    }
    Ok(secret)
}

/// The agent, if there is one to be.
pub fn start(
    cluster: Option<Cluster>,
    settings: &Settings,
    port: u16,
    addresses: &Addresses,
) -> (Option<Link>, mpsc::Receiver<Order>) {
    match cluster.map(|cluster| cluster.start(settings, port, addresses)) {
        Some((link, orders)) => (Some(link), orders),
        // Its other end is gone: nothing comes.
        None => (None, mpsc::channel(1).1),
    }
}

impl Cluster {
    /// With what an earlier start kept.
    pub fn new(place: Place, state: &Arc<StateDir>, me: PeerId) -> Cluster {
        Cluster { place, shown: Arc::default(), kept: state.cluster(), state: Arc::clone(state), me, secret: None }
    }

    /// The secret: the one kept, or the API's. None: told to stop meanwhile.
    pub async fn secret(
        &mut self,
        settings: &Settings,
        requests: &mut mpsc::Receiver<Request>,
        stop: &Notify,
    ) -> Result<Option<Secret>> {
        let text = match self.state.cluster_secret()? {
            Some(text) => text,
            None => {
                let Some(text) = self.fetch(settings, requests, stop).await else { return Ok(None) };
                self.state.keep_cluster_secret(&text)?;
                text
            }
        };
        let file = || format!("the file kubernetes-secret in {}", self.state.path().display());
        let secret = Secret::parse(text.as_bytes()).map_err(|fault| anyhow!("{} {fault}", file()))?;
        self.secret = Some(text);
        Ok(Some(secret))
    }

    async fn fetch(
        &self,
        settings: &Settings,
        requests: &mut mpsc::Receiver<Request>,
        stop: &Notify,
    ) -> Option<String> {
        let make = || crate::ctl::secret::make().map_err(|error| error.to_string());
        let check = |text: &str| match Secret::parse(text.as_bytes()) {
            Ok(_) => Ok(()),
            Err(fault) => Err(format!("the key 'secret' of the Secret 'meshnet' {fault}")),
        };
        self.shown.set_waits(Some("asking for the secret of the cluster".into()));
        let tell = |why: String| {
            warn!(error = why, "there is no secret of the cluster yet");
            self.shown.set_waits(Some(format!("no secret of the cluster yet: {why}")));
        };
        let obtaining = self.place.obtain(make, check, tell);
        tokio::pin!(obtaining);
        loop {
            tokio::select! {
                text = &mut obtaining => {
                    self.shown.set_waits(None);
                    return Some(text);
                }
                () = stop.notified() => return None,
                Some(request) = requests.recv() => self.answer(settings, request),
            }
        }
    }

    /// As the driver would, were it there.
    fn answer(&self, settings: &Settings, request: Request) {
        let waits = || self.shown.waits().unwrap_or_default();
        match request {
            Request::Status(answer) => drop(answer.send(self.status(settings))),
            Request::Topology(answer) => drop(answer.send(Topology { peers: Vec::new(), links: Vec::new() })),
            Request::Macs(answer) => drop(answer.send(Vec::new())),
            Request::Report(answer) => drop(answer.send(self.report(settings))),
            Request::Metrics(answer) => {
                drop(answer.send(metrics::render(&self.status(settings), &BTreeMap::new())));
            }
            Request::Ready(answer) => drop(answer.send(Err(waits()))),
            Request::Command(_, answer) => drop(answer.send(Reply::Refused { reason: waits() })),
        }
    }

    fn status(&self, settings: &Settings) -> Status {
        let (client, node) = (&self.place.client, settings.name.as_str());
        let mut problems = self.shown.problems(client, node);
        let what = self.shown.waits().unwrap_or_default();
        problems.push(Problem { what, remedy: "it goes on by itself as soon as the API answers".into() });
        Status {
            version: api::VERSION,
            peer: Me { id: self.me, name: settings.name.clone(), software: VERSION.into(), uptime_s: 0 },
            links: Vec::new(),
            peers: Vec::new(),
            ipam: api::Ipam::off(),
            data: Data::default(),
            problems,
            kubernetes: Some(self.shown.status(client, node)),
            targets: Vec::new(),
            routes: Vec::new(),
            device: Device::default(),
        }
    }

    fn report(&self, settings: &Settings) -> Report {
        Report {
            version: api::VERSION,
            status: self.status(settings),
            topology: Topology { peers: Vec::new(), links: Vec::new() },
            macs: Vec::new(),
            settings: settings.shown(),
            counters: BTreeMap::new(),
            kernel: String::new(),
            events: Vec::new(),
        }
    }

    /// Before the devices: what on this machine may have an address of an earlier peer. The host itself gives up such an address when no container needs it.
    pub async fn look_around(&mut self, settings: &Settings) -> Result<()> {
        let me = self.me.to_string();
        if self.kept.is_alone(&me) {
            return Ok(());
        }
        let netlink = Netlink::open()?;
        let mut there = netlink.containers(&settings.bridge).await.context("the interfaces on the bridge")?;
        if let Some(before) = self.kept.left.as_ref().filter(|left| left.peer == me) {
            there.retain(|interface| before.interfaces.contains(interface));
        }
        if there.is_empty() {
            for net in exposed(&netlink, settings).await? {
                // Its own comes back by its lease.
                info!(address = %net, "the host gives up an address that may be an earlier peer's of this machine");
                netlink.hide(&settings.bridge, Some(net)).await?;
            }
        } else {
            info!(
                count = there.len(),
                "containers of an earlier peer of this machine may run: it is not taken for gone"
            );
        }
        self.kept.left = Some(Left { peer: me, interfaces: there });
        let (state, kept) = (Arc::clone(&self.state), self.kept.clone());
        tokio::task::spawn_blocking(move || state.keep(&kept)).await?.map_err(|why| anyhow!(why))
    }

    /// Starts the agent.
    fn start(self, settings: &Settings, port: u16, addresses: &Addresses) -> (Link, mpsc::Receiver<Order>) {
        let (view, seen) = watch::channel(Arc::default());
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (tell_left, left) = watch::channel(self.kept.left.clone().unwrap_or_default());
        let decides = settings.ipam_init == IpamInit::Auto;
        let config = agent::Config {
            place: self.place.clone(),
            me: self.me,
            node: settings.name.clone(),
            port,
            range: settings.ipam_range.filter(|_| decides).map(|range| range.to_string()),
            removes: settings.ipam_range.is_some(),
            may_begin: settings.peers.is_empty(),
            node_gone: settings.kubernetes.as_ref().map_or(Duration::MAX, |kubernetes| kubernetes.node_gone),
            left,
            secret: self.secret,
        };
        let shown = Arc::clone(&self.shown);
        let mut task = JoinSet::new();
        task.spawn(watch_left(settings.clone(), addresses.clone(), tell_left));
        task.spawn(Agent::new(config, self.kept, self.state, seen, orders, self.shown).run());
        let node = settings.name.clone();
        (Link { view, shown, place: self.place, node, tasks: task }, ordered)
    }
}

/// Addresses of the range that the host has on the bridge.
async fn exposed(netlink: &Netlink, settings: &Settings) -> Result<Vec<IpNet>> {
    let ours = |net: &IpNet| settings.ipam_range.is_some_and(|range| range.contains(&net.addr()));
    match netlink.exposed(&settings.bridge).await {
        Ok(there) => Ok(there.into_iter().filter(ours).collect()),
        Err(Error::NoBridge(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Looks now and then whether what an earlier peer left behind is gone. Owner: [`Link`]; ends when all is.
async fn watch_left(settings: Settings, addresses: Addresses, tell: watch::Sender<Left>) {
    let netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return warn!(%error, "what an earlier peer left is not looked at before the next start"),
    };
    while !tell.borrow().interfaces.is_empty() {
        tokio::time::sleep(LEFT_EVERY).await;
        if let Err(error) = look_at_left(&netlink, &settings, &addresses, &tell).await {
            warn!(%error, "what an earlier peer left cannot be looked at");
        }
    }
}

async fn look_at_left(
    netlink: &Netlink,
    settings: &Settings,
    addresses: &Addresses,
    tell: &watch::Sender<Left>,
) -> Result<()> {
    let there = netlink.containers(&settings.bridge).await?;
    let mut left = tell.borrow().clone();
    left.interfaces.retain(|interface| there.contains(interface));
    if left.interfaces.is_empty() {
        let Reply::Leases { leases } = addresses.clone().command(Command::IpList).await else { return Ok(()) };
        for net in exposed(netlink, settings).await? {
            if !leases.iter().any(|lease| lease.address == net.addr().to_string()) {
                info!(address = %net, "the host gives up an address of an earlier peer of this machine");
                let hide = Command::Hide { address: Some(net.to_string()) };
                if let Reply::Refused { reason } = addresses.clone().command(hide).await {
                    return Err(anyhow!(reason));
                }
            }
        }
        info!("no container of an earlier peer of this machine is left");
    }
    tell.send_replace(left);
    Ok(())
}

impl Link {
    /// For the status.
    pub fn status(&self) -> api::Kubernetes {
        self.shown.status(&self.place.client, &self.node)
    }

    /// What is wrong.
    pub fn problems(&self) -> Vec<Problem> {
        self.shown.problems(&self.place.client, &self.node)
    }

    /// What is waited for.
    pub fn waits(&self) -> Option<String> {
        self.shown.waits()
    }

    /// This machine left the mesh: no pod shall be placed here.
    async fn say_left(&mut self) {
        // The agent would say the opposite.
        self.tasks.shutdown().await;
        let nobody = Mark::default();
        let said = agent::patch(&self.place, &self.node, &nobody, Some(false));
        match tokio::time::timeout(LAST_WORD_TIME, said).await {
            Ok(Ok(_)) => info!("the Node says that its network is unavailable"),
            Ok(Err(error)) => warn!(%error, "the Node does not say that its network is unavailable"),
            Err(_) => warn!("the Node does not say that its network is unavailable: no answer"),
        }
    }
}

/// The driver's side.
impl Driver {
    /// Shows the agent how things are.
    pub(super) fn show_cluster(&self, now: Time) {
        let Some(link) = &self.kubernetes else { return };
        let admitted: BTreeMap<ShortId, bool> = self.node.ipam_roll().into_iter().collect();
        let member = |candidate: super::addresses::Candidate| {
            let admitted = *admitted.get(&candidate.id)?;
            let silent = if candidate.me { Duration::ZERO } else { candidate.silent };
            // In steps: a view that changes all the time would be told all the time.
            let silent = if silent >= SILENT { SILENT } else { silent.min(Duration::from_secs(1)) };
            Some(Member { id: candidate.id, name: candidate.shown, silent, admitted })
        };
        let (space, heard) = (self.node.ipam_space(), self.node.ipam_space_heard(now));
        let members = self.candidates(now).into_iter().filter_map(member).collect();
        let view = Arc::new(View { ready: self.ready().is_ok(), space, heard, members });
        link.view.send_if_modified(|shown| {
            let changed = **shown != *view;
            *shown = view;
            changed
        });
    }

    pub(super) fn on_order(&mut self, order: Order) {
        let now = self.now();
        match order {
            Order::Targets(targets) => self.node.list(now, &targets),
            Order::Space { space, begin, answer } => {
                self.take(node::Input::Ipam(Input::Space { space, begin }));
                // The agent may be gone already; then nobody minds.
                let _ = answer.send(self.node.ipam_space());
            }
            Order::Remove { gone, alive } => {
                self.take(node::Input::Ipam(Input::Alive(alive.into_iter().collect())));
                let chosen = self.candidates(now).into_iter();
                let chosen: Vec<_> =
                    chosen.filter(|peer| gone.contains(&peer.id) && peer.silent >= SILENT && !peer.me).collect();
                if chosen.is_empty() {
                    return;
                }
                let errand = self.addresses.clone().remove(chosen, false);
                self.errands.spawn(async move {
                    match errand.await {
                        Reply::Removed { peers, addresses } => {
                            info!(peers = peers.join(", "), addresses, "addresses of deleted nodes are back");
                        }
                        Reply::Refused { reason } => info!(reason, "addresses of deleted nodes are not back yet"),
                        _ => {}
                    }
                });
            }
        }
    }

    /// Before the end of a peer that left.
    pub(super) async fn say_left(&mut self) {
        if let Some(link) = &mut self.kubernetes {
            link.say_left().await;
        }
    }
}

/// Between two looks: pods end at their own pace.
const LEFT_EVERY: Duration = Duration::from_secs(10);
/// The agent gives one at a time.
const ORDERS_MAX: usize = 16;
/// The API may be away, and the process shall end.
const LAST_WORD_TIME: Duration = Duration::from_secs(3);
