//! What status and readiness say of the API, in plain words.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meshnet_proto::api::{Kubernetes, Problem};

use super::client::{Client, Health};

/// What the agent found. Written by the agent, read by the driver.
#[derive(Default)]
pub struct Shown {
    found: Mutex<Found>,
}

#[derive(Debug, Clone, Default)]
struct Found {
    nodes: usize,
    peers: usize,
    no_address: bool,
    full: bool,
    no_node: bool,
    waits: Option<String>,
    odd: Option<String>,
    other_secret: bool,
    removing: Vec<String>,
}

impl Shown {
    /// Nodes, those with a peer; the own one has no address; there are more than are handled.
    pub fn set_nodes(&self, nodes: usize, peers: usize, no_address: bool, full: bool) {
        let mut found = self.lock();
        (found.nodes, found.peers, found.no_address, found.full) = (nodes, peers, no_address, full);
    }

    /// There is no Node of this peer's name.
    pub fn set_no_node(&self, missing: bool) {
        self.lock().no_node = missing;
    }

    /// What is waited for.
    pub fn set_waits(&self, why: Option<String>) {
        self.lock().waits = why;
    }

    /// What contradicts this peer's state.
    pub fn set_odd(&self, why: Option<String>) {
        self.lock().odd = why;
    }

    /// The Secret is not the one in use.
    pub fn set_other_secret(&self, other: bool) {
        self.lock().other_secret = other;
    }

    /// Nodes whose peers are being removed.
    pub fn set_removing(&self, nodes: Vec<String>) {
        self.lock().removing = nodes;
    }

    /// What this peer waits for from the API, if anything.
    pub fn waits(&self) -> Option<String> {
        self.lock().waits.clone()
    }

    /// For the status.
    pub fn status(&self, client: &Client, node: &str) -> Kubernetes {
        let (found, health) = (self.lock().clone(), client.health());
        let away = health.away.as_ref().map(|(_, why)| why.clone());
        let (state, reason) = match (away, &found.waits) {
            (Some(why), _) => ("away", why),
            (None, Some(why)) => ("waiting", why.clone()),
            (None, None) => ("ok", String::new()),
        };
        Kubernetes {
            state: state.into(),
            api: client.url(),
            node: node.to_owned(),
            nodes: found.nodes as u64,
            peers: found.peers as u64,
            reason,
            heard_s: health.heard.map(|heard| heard.elapsed().as_secs()),
            removing: found.removing,
        }
    }

    /// What is wrong, and what to do about it.
    pub fn problems(&self, client: &Client, node: &str) -> Vec<Problem> {
        let found = self.lock().clone();
        let mut problems = of_health(&client.health(), &client.url(), Instant::now());
        let mut add = |what: String, remedy: &str| problems.push(Problem { what, remedy: remedy.into() });
        if found.no_node {
            add(
                format!("the cluster has no Node called {node}"),
                "give meshd the Node's name by --name (in a DaemonSet: MESHD_NAME from spec.nodeName)",
            );
        }
        if found.no_address {
            add(
                format!("the Node {node} has no InternalIP, so the other nodes cannot find this one by the API"),
                "give the kubelet --node-ip; peers that this one connects to still find it",
            );
        }
        if found.full {
            add(
                "the cluster has more nodes than meshd handles: none is taken for gone".into(),
                "take addresses of deleted nodes back by hand: meshctl rmpeer",
            );
        }
        if let Some(why) = found.odd {
            add(
                why,
                "if the peers of the ConfigMap are all gone for good, delete it: kubectl -n NAMESPACE delete configmap meshnet-genesis",
            );
        }
        if found.other_secret {
            add(
                "the Secret of the cluster was changed: this peer goes on with the one that it started with, new nodes use the other".into(),
                "put the old one back; or, to change it, stop all meshd, delete the file kubernetes-secret in the state directory of each, start them",
            );
        }
        problems
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_health(health: &Health, url: &str, now: Instant) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some((since, why)) = &health.away {
        let seconds = now.duration_since(*since).as_secs();
        if Duration::from_secs(seconds) >= AWAY_AFTER || health.heard.is_none() {
            problems.push(Problem {
                what: format!("the Kubernetes API at {url} cannot be reached since {seconds} s: {why}"),
                remedy: "traffic and addresses go on without it; check the API server and the way to it (kube-proxy, firewall)".into(),
            });
        }
    }
    for (call, (code, why)) in &health.refused {
        problems.push(Problem {
            what: format!("the Kubernetes API forbids meshd to {call}: {why} ({code})"),
            remedy: "apply the ClusterRole and Role of deploy/kubernetes/meshnet.yaml to meshd's service account"
                .into(),
        });
    }
    problems
}

/// A watch that was cut off is mostly back at once.
const AWAY_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_in_plain_words() {
        let now = Instant::now() + Duration::from_secs(60);
        let mut health = Health::default();
        assert!(of_health(&health, "https://api:443", now).is_empty());
        health.away = Some((now - Duration::from_secs(40), "connection refused".into()));
        health.refused.insert("list nodes".into(), (403, "forbidden by RBAC".into()));
        let problems = of_health(&health, "https://api:443", now);
        assert_eq!(
            problems[0].what,
            "the Kubernetes API at https://api:443 cannot be reached since 40 s: connection refused"
        );
        assert_eq!(problems[1].what, "the Kubernetes API forbids meshd to list nodes: forbidden by RBAC (403)");
        health.heard = Some(now);
        health.away = Some((now - Duration::from_secs(2), "cut off".into()));
        assert_eq!(of_health(&health, "x", now).len(), 1, "a moment is no problem");
    }
}
