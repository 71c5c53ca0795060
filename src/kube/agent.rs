//! The task that does what `--kubernetes` promises, once the peer runs: everything that is asked of the API and everything that follows from it.
//!
//! ```text
//! watch of nodes ─ News ─┐                    ┌─ Order ─▶ driver: targets, the address space to belong to, whom to remove
//! driver ──────── View ──┼─▶ step, each second ┼─ patch of the own Node, ConfigMap, Secret ─▶ API
//! clock ─────────────────┘                    └─ Kept ──▶ state directory; Shown ──▶ status
//! ```
//! Each step does what is due and waits for it; requests end within seconds. What fails is tried again after a growing pause ([`Pause`]), for ever: nothing here
//! is needed by the traffic. Owner of this task: the daemon; it owns the watch.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meshnet_proto::{PeerId, ShortId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::client::{ApiError, Call};
use super::genesis::{self, Birth, Listed, Situation, Step};
use super::nodes::{Dead, Member, Nodes};
use super::objects::{self, Entry, Mark, Node, Space};
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

    /// Finds out which address space to belong to, until this peer belongs to one.
    async fn settle_space(&mut self) -> Option<()> {
        if !self.is_marked() {
            self.shown.set_waits(Some("its own Node object cannot be marked yet".into()));
            self.begin.done(BEAT);
            return Some(());
        }
        match self.read_birth().await {
            Ok(found) => self.decide_space(found).await,
            Err(error) => {
                self.shown.set_waits(Some(error.to_string()));
                self.begin.failed();
                Some(())
            }
        }
    }

    async fn decide_space(&mut self, found: Option<(Birth, String)>) -> Option<()> {
        let (birth, version) = found.map_or((None, None), |(birth, version)| (Some(birth), Some(version)));
        let now = self.started.elapsed();
        for listed in birth.iter().flat_map(|birth| &birth.members) {
            self.nodes.look_for(now, &listed.node);
        }
        match self.decide(birth.as_ref()) {
            Step::Done => self.begin.done(BEAT),
            Step::Belong { space, begin } => {
                self.order_space(Some(space), begin).await?;
                self.shown.set_waits(Some("waiting for a peer that belongs to the address space".into()));
                self.begin.done(BELONG_EVERY);
            }
            Step::Wait { why, leave } => {
                if leave {
                    self.order_space(None, false).await?;
                }
                self.shown.set_waits(Some(why));
                self.begin.done(WAIT_EVERY);
            }
            Step::Odd(why) => {
                self.shown.set_odd(Some(why));
                self.begin.failed();
            }
            Step::Write { birth: new, leave } => {
                // Whoever was let in at the last moment belongs, and decides nothing any more.
                let belongs = |space: Option<(Space, bool)>| space.is_some_and(|(_, belongs)| belongs);
                if leave && belongs(self.order_space(None, false).await?) {
                    return Some(());
                }
                if birth.is_some() && leave && !self.confirm(birth.as_ref(), &new).await {
                    self.begin.failed();
                    return Some(());
                }
                match self.write_birth(&new, version.as_deref()).await {
                    Ok(true) => self.begin.done(Duration::ZERO),
                    Ok(false) => self.begin.done(after_conflict()),
                    Err(error) => {
                        self.shown.set_waits(Some(error.to_string()));
                        self.begin.failed();
                    }
                }
            }
        }
        Some(())
    }

    fn decide(&self, birth: Option<&Birth>) -> Step {
        let view = self.view.borrow().clone();
        let (now, me) = (self.started.elapsed(), self.config.me.short());
        let mut fresh = [0; 16];
        if aws_lc_rs::rand::fill(&mut fresh).is_err() {
            return Step::Wait { why: "the kernel gives no random bytes".into(), leave: false };
        }
        let marked = self.nodes.iter().find(|node| node.name != self.config.node && node.mark.space.is_some());
        let heard = |member: &Member| member.id != me && member.admitted && member.silent.is_zero();
        let situation = Situation {
            me,
            node: &self.config.node,
            range: self.config.range.as_deref().unwrap_or_default(),
            space: view.space,
            heard: view.heard,
            marked: marked.map(|node| node.name.as_str()),
            member_heard: view.members.iter().any(heard),
            may_begin: self.config.may_begin,
            fresh,
            birth,
        };
        let fate = |listed: &Listed| self.nodes.fate(now, self.config.node_gone, listed.peer, Some(&listed.node));
        genesis::decide(&situation, fate)
    }

    /// Before an address space is replaced: the same decision by a list of nodes that is new.
    async fn confirm(&mut self, birth: Option<&Birth>, new: &Birth) -> bool {
        if !self.list_anew().await {
            return false;
        }
        // What was drawn differs; all else must not.
        matches!(self.decide(birth), Step::Write { birth, leave: true } if birth.members == new.members)
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

    async fn order_space(&mut self, space: Option<Space>, begin: bool) -> Option<Option<(Space, bool)>> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Space { space, begin, answer }).await.ok()?;
        answered.await.ok()
    }

    async fn read_birth(&self) -> Result<Option<(Birth, String)>, ApiError> {
        let (place, name) = (&self.config.place, genesis::CONFIG_MAP);
        let path = format!("/api/v1/namespaces/{}/configmaps/{name}", place.namespace);
        let odd =
            |why: String| ApiError::Odd(format!("the ConfigMap {}/{name} cannot be used: {why}", place.namespace));
        match place.client.ask(&Call { verb: "get", resource: self.config_map(), path, body: None }).await {
            Ok(body) => {
                let entry = Entry::of_config_map(&body, genesis::KEY).map_err(odd)?;
                let text = entry.text.ok_or_else(|| odd(format!("it has no key '{}'", genesis::KEY)))?;
                Ok(Some((Birth::parse(&text).map_err(odd)?, entry.version)))
            }
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// False: somebody else wrote meanwhile.
    async fn write_birth(&self, birth: &Birth, version: Option<&str>) -> Result<bool, ApiError> {
        let (place, name) = (&self.config.place, genesis::CONFIG_MAP);
        let all = format!("/api/v1/namespaces/{}/configmaps", place.namespace);
        let (verb, path) = match version {
            Some(_) => ("update", format!("{all}/{name}")),
            None => ("create", all),
        };
        let body = Some(objects::config_map(&place.namespace, name, genesis::KEY, &birth.emit(), version));
        match place.client.ask(&Call { verb, resource: self.config_map(), path, body }).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code(), 404 | 409) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn config_map(&self) -> String {
        format!("configmaps '{}' in {}", genesis::CONFIG_MAP, self.config.place.namespace)
    }

    /// Whether Secret and ConfigMap are there and as they were: a newcomer would make others.
    async fn look_after(&mut self) {
        let space = self.view.borrow().space.filter(|(_, belongs)| *belongs);
        let good = self.look_at_secret().await && (space.is_none() || self.look_at_config_map().await);
        if good {
            // A thousand machines look, each now and then, a few a second together.
            let nodes = u32::try_from(self.nodes.iter().count()).unwrap_or(u32::MAX);
            self.look.done((LOOK_EACH * nodes).clamp(LOOK_LEAST, LOOK_MOST));
        } else {
            self.look.failed();
        }
    }

    async fn look_at_secret(&mut self) -> bool {
        let Some(ours) = &self.config.secret else { return true };
        let place = &self.config.place;
        match place.read().await {
            Ok(Some(text)) => {
                self.shown.set_other_secret(text.trim() != ours.trim());
                true
            }
            Ok(None) => {
                warn!("the Secret of the cluster was deleted and is made again: newcomers need it");
                place.create(ours).await.is_ok()
            }
            Err(_) => false,
        }
    }

    async fn look_at_config_map(&mut self) -> bool {
        if self.config.range.is_none() {
            return true;
        }
        let Ok(found) = self.read_birth().await else { return false };
        match self.decide(found.as_ref().map(|(birth, _)| birth)) {
            Step::Write { birth, .. } if found.is_none() => {
                warn!("the ConfigMap {} is missing and is written again: newcomers need it", genesis::CONFIG_MAP);
                self.write_birth(&birth, None).await.is_ok()
            }
            Step::Odd(why) => {
                self.shown.set_odd(Some(why));
                true
            }
            _ => {
                self.shown.set_odd(None);
                true
            }
        }
    }

    /// Has those removed that are gone for good, when it is this peer's turn.
    async fn remove_dead(&mut self) -> Option<()> {
        self.removal.done(BEAT);
        let (view, now, me) = (self.view.borrow().clone(), Instant::now(), self.config.me.short());
        let belongs = view.space.is_some_and(|(_, belongs)| belongs);
        let dead = match self.sees && belongs {
            true => self.nodes.dead(self.started.elapsed(), self.config.node_gone, me, &view.members),
            false => Vec::new(),
        };
        self.dead_since.retain(|(was, _)| dead.contains(was));
        for one in &dead {
            if !self.dead_since.iter().any(|(was, _)| was == one) {
                self.dead_since.push((one.clone(), now));
            }
        }
        let names = |dead: &[Dead]| dead.iter().map(|dead| dead.node.clone()).collect::<Vec<_>>();
        self.shown.set_removing(names(&dead));
        let rank = u32::try_from(self.nodes.rank(me, &view.members, &dead)).unwrap_or(u32::MAX);
        let wait = TURN * rank.min(TURNS_MAX);
        if !self.dead_since.iter().any(|(_, since)| now.duration_since(*since) >= wait) {
            return Some(());
        }
        // The watch may be behind: only what a new list says too.
        if !self.list_anew().await {
            self.removal.failed();
            return Some(());
        }
        let sure = self.nodes.dead(self.started.elapsed(), self.config.node_gone, me, &view.members);
        if !sure.is_empty() {
            info!(nodes = names(&sure).join(", "), "nodes are gone for good: their addresses are taken back");
            let gone = sure.iter().map(|dead| dead.id).collect();
            let alive = self.nodes.iter().filter_map(|node| node.mark.short()).collect();
            self.orders.send(Order::Remove { gone, alive }).await.ok()?;
        }
        self.removal.done(REMOVE_EVERY);
        Some(())
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

/// Many add themselves to one list at the same moment.
fn after_conflict() -> Duration {
    Duration::from_millis(50 + u64::from(super::watch::random() % 400))
}

/// News that wait; then the watch waits.
const NEWS_MAX: usize = 64;
/// Between two steps when nothing happens.
const BEAT: Duration = Duration::from_secs(1);
/// Somebody else may write on the Node, too: no quarrel.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at the ConfigMap by a peer that is being let in, and by one that waits.
const BELONG_EVERY: Duration = Duration::from_secs(5);
const WAIT_EVERY: Duration = Duration::from_secs(3);
/// Between two looks at Secret and ConfigMap by a peer that has both: by the size of the cluster, within bounds.
const LOOK_EACH: Duration = Duration::from_millis(300);
const LOOK_LEAST: Duration = Duration::from_secs(30);
const LOOK_MOST: Duration = Duration::from_secs(900);
/// The first look is not at the start, when all have other things to ask.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// A removal takes a second or two; who is next begins after that.
const TURN: Duration = Duration::from_secs(10);
/// However many there are: after so many turns anybody.
const TURNS_MAX: u32 = 12;
/// A removal goes on by itself; it is begun anew in case it was withdrawn.
const REMOVE_EVERY: Duration = Duration::from_secs(30);
/// Between two writes of what is kept.
const KEEP_EVERY: Duration = Duration::from_secs(3);
