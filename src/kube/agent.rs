//! The task that does what `--kubernetes` promises, once the peer runs: everything that is asked of the API and everything that follows from it.
//!
//! ```text
//! watch of nodes ─ News ─┐                    ┌─ Order ─▶ driver: targets, the address space to belong to, whom to remove
//! driver ──────── View ──┼─▶ step, each second ┼─ patch of the own Node, ConfigMap, Secret ─▶ API
//! clock ─────────────────┘                    └─ Kept ──▶ state directory; Shown ──▶ status
//! ```
//! Each step does what is due and waits for it; requests end within seconds. What fails is tried again after a growing pause ([`Pause`]), for ever: nothing
//! here is needed by the traffic. Owner of this task: the daemon; it owns the watch.

mod removal;
mod space;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meshnet_proto::{PeerId, ShortId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::client::{ApiError, Call};
use super::genesis::Step;
use super::nodes::{Dead, Member, Nodes};
use super::objects::{self, Mark, Node, Space};
use super::secret::Place;
use super::shown::Shown;
use super::watch::{News, Pause};
use super::{Keep, Kept, Left};

/// What the task is to know of this peer.
pub struct Config {
    /// Where the objects are.
    pub place: Place,
    /// This peer.
    pub me: PeerId,
    /// Its Node.
    pub node: String,
    /// UDP port of all peers.
    pub port: u16,
    /// The range, when addresses are managed and the API decides who begins.
    pub range: Option<String>,
    /// Addresses are managed: those of peers that are gone are taken back.
    pub removes: bool,
    /// It may begin with the addresses.
    pub may_begin: bool,
    /// A Node counts as gone after so long.
    pub node_gone: Duration,
    /// What an earlier peer of this machine left behind.
    pub left: watch::Receiver<Left>,
    /// The secret in use, when it is that of the API.
    pub secret: Option<String>,
}

/// What the driver shows of the peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The network works here; else why not.
    pub ready: bool,
    /// The address space that it has, and whether it belongs to it.
    pub space: Option<(Space, bool)>,
    /// One that another peer tells of and that it may not take yet.
    pub heard: Option<Space>,
    /// Members of the address space, this peer included.
    pub members: Vec<Member>,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Order {
    /// Connect to these.
    Targets(Vec<String>),
    /// Belong to this address space (none: leave to join is taken back), and perhaps begin it; answered by what the peer has then.
    Space {
        /// Which.
        space: Option<Space>,
        /// Whether.
        begin: bool,
        /// What the peer has then.
        answer: oneshot::Sender<Option<(Space, bool)>>,
    },
    /// Take back what these own, who are gone for good.
    Remove {
        /// Who.
        gone: Vec<ShortId>,
        /// All that the API shows, by a list that is new.
        alive: Vec<ShortId>,
    },
}

/// One thing that is tried again and again.
struct Try {
    due: Instant,
    pause: Pause,
}

impl Try {
    fn new(now: Instant) -> Try {
        Try { due: now, pause: Pause::default() }
    }

    fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    fn done(&mut self, again: Duration) {
        self.pause = Pause::default();
        self.due = Instant::now() + again;
    }

    fn failed(&mut self) {
        self.due = Instant::now() + self.pause.grow();
    }
}

/// The task.
pub struct Agent {
    config: Config,
    started: Instant,
    nodes: Nodes,
    /// Changes of nodes are seen.
    sees: bool,
    news: mpsc::Receiver<News>,
    view: watch::Receiver<Arc<View>>,
    orders: mpsc::Sender<Order>,
    keep: Arc<dyn Keep>,
    shown: Arc<Shown>,
    kept: Kept,
    targets: Vec<String>,
    mark: Try,
    /// What was written on the Node last, and when.
    written: Option<((Mark, Option<bool>), Instant)>,
    begin: Try,
    look: Try,
    removal: Try,
    keeping: Try,
    /// Those found dead, and when first.
    dead_since: Vec<(Dead, Instant)>,
    /// Ended with this.
    _watch: JoinSet<()>,
}

impl Agent {
    /// Prepares the task; [`Agent::run`] is it.
    pub fn new(
        config: Config,
        kept: Kept,
        keep: Arc<dyn Keep>,
        view: watch::Receiver<Arc<View>>,
        orders: mpsc::Sender<Order>,
        shown: Arc<Shown>,
    ) -> Agent {
        let (tell, news) = mpsc::channel(NEWS_MAX);
        let mut watch = JoinSet::new();
        watch.spawn(super::watch::run(config.place.client.clone(), tell));
        let now = Instant::now();
        Agent {
            nodes: kept.nodes(),
            started: now,
            sees: false,
            news,
            view,
            orders,
            keep,
            shown,
            kept,
            targets: Vec::new(),
            mark: Try::new(now),
            written: None,
            begin: Try::new(now),
            look: Try::new(now + FIRST_LOOK),
            removal: Try::new(now),
            keeping: Try::new(now + KEEP_EVERY),
            dead_since: Vec::new(),
            _watch: watch,
            config,
        }
    }

    /// Runs until the driver is gone.
    pub async fn run(mut self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                news = self.news.recv() => match news {
                    Some(news) => self.on_news(news),
                    None => return,
                },
                changed = self.view.changed() => if changed.is_err() { return },
                _ = beat.tick() => {}
            }
            // A burst is one change.
            while let Ok(news) = self.news.try_recv() {
                self.on_news(news);
            }
            if self.step().await.is_none() {
                return;
            }
        }
    }

    fn on_news(&mut self, news: News) {
        let now = self.started.elapsed();
        self.sees = !matches!(news, News::Blind);
        match news {
            News::Listed(nodes) => self.nodes.replace(now, nodes),
            News::There(node) => self.nodes.there(now, *node),
            News::Gone(name) => self.nodes.gone(now, &name),
            News::Seeing | News::Blind => {}
        }
    }

    /// Does what is due. None: the driver is gone.
    async fn step(&mut self) -> Option<()> {
        let now = Instant::now();
        self.tell_targets().await?;
        if self.sees && self.mark.is_due(now) {
            self.write_mark().await;
        }
        if self.belongs() || self.config.range.is_none() {
            self.shown.set_waits(None);
        } else if self.sees && self.begin.is_due(now) {
            self.settle_space().await?;
        }
        if self.look.is_due(now) {
            self.look_after().await;
        }
        if self.config.removes && self.removal.is_due(now) {
            self.remove_dead().await?;
        }
        if self.keeping.is_due(now) {
            self.keep_now().await;
        }
        self.show();
        Some(())
    }

    async fn tell_targets(&mut self) -> Option<()> {
        let targets = self.nodes.targets(&self.config.node, self.config.port);
        if targets != self.targets {
            self.targets.clone_from(&targets);
            self.orders.send(Order::Targets(targets)).await.ok()?;
        }
        Some(())
    }

    /// What this peer's Node is to bear.
    fn wanted_mark(&self) -> Mark {
        let belongs = self.view.borrow().space.filter(|(_, belongs)| *belongs);
        Mark {
            peer: Some(self.config.me),
            alone: self.left().interfaces.is_empty(),
            space: belongs.map(|(space, _)| space),
        }
    }

    fn left(&self) -> Left {
        self.config.left.borrow().clone()
    }

    /// This peer belongs to an address space.
    fn belongs(&self) -> bool {
        self.view.borrow().space.is_some_and(|(_, belongs)| belongs)
    }

    /// It stands on this peer's Node who it is.
    fn is_marked(&self) -> bool {
        self.nodes.node(&self.config.node).is_some_and(|node| node.mark.peer == Some(self.config.me))
    }

    async fn write_mark(&mut self) {
        let mark = self.wanted_mark();
        let ready = self.view.borrow().ready;
        let Some(node) = self.nodes.node(&self.config.node) else {
            self.shown.set_no_node(true);
            return self.mark.failed();
        };
        self.shown.set_no_node(false);
        let up = Some(("False".to_owned(), objects::UP.to_owned()));
        let network = (ready && node.network != up).then_some(true);
        let same = |(before, at): &(_, Instant)| *before == (mark, network) && at.elapsed() < MARK_EVERY;
        if node.mark == mark && network.is_none() || self.written.as_ref().is_some_and(same) {
            return self.mark.done(BEAT);
        }
        match patch(&self.config.place, &self.config.node, &mark, network).await {
            Ok(node) => {
                self.nodes.there(self.started.elapsed(), node);
                self.written = Some(((mark, network), Instant::now()));
                self.mark.done(BEAT);
            }
            Err(_) => self.mark.failed(),
        }
    }

    async fn list_anew(&mut self) -> bool {
        match super::watch::list(&self.config.place.client).await {
            Ok((nodes, _)) => {
                self.nodes.replace(self.started.elapsed(), nodes);
                true
            }
            Err(_) => false,
        }
    }

    async fn keep_now(&mut self) {
        self.keeping.done(KEEP_EVERY);
        let view = self.view.borrow().clone();
        if view.space.is_some_and(|(_, belongs)| belongs) {
            self.nodes.forget(|id| view.members.iter().any(|member| member.id == id));
        }
        if !self.nodes.is_listed() {
            return;
        }
        let kept = Kept::of(&self.nodes, Some(self.left()));
        if kept != self.kept {
            let (keep, writing) = (Arc::clone(&self.keep), kept.clone());
            // A file is written and synced: the driver must not wait for it.
            match tokio::task::spawn_blocking(move || keep.keep(&writing)).await {
                Ok(Ok(())) => self.kept = kept,
                Ok(Err(error)) => warn!(%error, "what the API says is not kept for the next start"),
                Err(_) => {}
            }
        }
    }

    fn show(&self) {
        let own = self.nodes.node(&self.config.node);
        self.shown.set_nodes(
            self.nodes.iter().count(),
            self.nodes.iter().filter(|node| node.mark.peer.is_some()).count(),
            own.is_some_and(|node| node.addresses.is_empty()),
            self.nodes.is_full(),
        );
    }
}

/// Writes on a Node; gives it as it is then.
pub async fn patch(place: &Place, node: &str, mark: &Mark, network: Option<bool>) -> Result<Node, ApiError> {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let path = format!("/api/v1/nodes/{node}/status");
    let body = Some(objects::node_patch(mark, network, unix));
    let call = Call { verb: "patch", resource: "nodes/status".into(), path, body };
    let body = place.client.ask(&call).await?;
    let odd = |why: String| ApiError::Odd(format!("the answer to {call}: {why}"));
    let value = serde_json::from_slice(&body).map_err(|error| odd(error.to_string()))?;
    Node::parse(value).map_err(odd)
}

/// News that wait; then the watch waits.
const NEWS_MAX: usize = 64;
/// Between two steps when nothing happens.
const BEAT: Duration = Duration::from_secs(1);
/// Somebody else may write on the Node, too: no quarrel.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// The first look is not at the start, when all have other things to ask.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Between two writes of what is kept.
const KEEP_EVERY: Duration = Duration::from_secs(3);
