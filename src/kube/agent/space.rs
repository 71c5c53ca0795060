//! Which address space this peer is to belong to: the ConfigMap read, [`genesis::decide`] asked, its step done; and later, Secret and ConfigMap looked after.

use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use super::{Agent, BEAT, Order, Step};
use crate::kube::client::{ApiError, Call};
use crate::kube::genesis::{self, Birth, Listed, Situation};
use crate::kube::nodes::Member;
use crate::kube::objects::{self, Entry, Space};

impl Agent {
    /// Finds out which address space to belong to, until this peer belongs to one.
    pub(super) async fn settle_space(&mut self) -> Option<()> {
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
    pub(super) async fn look_after(&mut self) {
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
}

/// Many add themselves to one list at the same moment.
fn after_conflict() -> Duration {
    Duration::from_millis(50 + u64::from(crate::kube::watch::random() % 400))
}

/// Between two looks at the ConfigMap by a peer that is being let in, and by one that waits.
const BELONG_EVERY: Duration = Duration::from_secs(5);
const WAIT_EVERY: Duration = Duration::from_secs(3);
/// Between two looks at Secret and ConfigMap by a peer that has both: by the size of the cluster, within bounds.
const LOOK_EACH: Duration = Duration::from_millis(300);
const LOOK_LEAST: Duration = Duration::from_secs(30);
const LOOK_MOST: Duration = Duration::from_secs(900);
