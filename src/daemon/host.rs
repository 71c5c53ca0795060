//! The host around the bridge: its way out for containers (`--masquerade`), kept so by one task, and a look for what would keep packets from arriving.
//!
//! ```text
//! period ─▶ table of translation, settings of the kernel ─▶ compare, repair ─┐
//!        └▶ routes, others' filters, service range ─▶ compare with the range ─┴─▶ problems of the status
//! ```
//! Owner of the task: `devices`; it ends with them. The table stays at the end: containers go on while meshd is restarted. A start without `--masquerade` takes
//! it away.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use meshnet_proto::api::Problem;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::config::Settings;
use crate::netlink::Netlink;
use crate::netlink::nat::{self, Lacking, Masquerade};

/// What was found; cheap to clone.
#[derive(Clone)]
pub struct Host {
    problems: Arc<Mutex<Vec<Problem>>>,
}

impl Host {
    /// Does all once, and again on a period.
    pub async fn start(settings: &Settings, netlink: Netlink) -> (Host, JoinSet<()>) {
        let table = format!("meshnet-{}-nat", settings.bridge);
        let masquerade = match (settings.masquerade, settings.ipam_range) {
            (true, Some(IpNet::V4(range))) => Some(Masquerade {
                table: table.clone(),
                bridge: settings.bridge.clone(),
                range,
                except: settings.no_masquerade.clone(),
            }),
            _ => None,
        };
        if masquerade.is_none()
            && let Err(error) = nat::remove(&table)
        {
            // Where there are no tables, none is left of an earlier run.
            debug!(%error, "no table of translation to remove");
        }
        let problems = Arc::default();
        let mut look = Look {
            masquerade,
            bridge: settings.bridge.clone(),
            range: settings.ipam_range,
            service: service_of_environment(),
            netlink,
            told: Vec::new(),
            first: true,
        };
        look.round(&problems).await;
        let mut task = JoinSet::new();
        let shown = Arc::clone(&problems);
        task.spawn(async move {
            loop {
                tokio::time::sleep(PERIOD).await;
                look.round(&shown).await;
            }
        });
        (Host { problems }, task)
    }

    /// What is wrong around the bridge.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Look {
    masquerade: Option<Masquerade>,
    bridge: String,
    range: Option<IpNet>,
    /// Where the cluster's API answers, when this is a pod: an address of the service range.
    service: Option<IpAddr>,
    netlink: Netlink,
    /// What was logged already.
    told: Vec<String>,
    first: bool,
}

impl Look {
    async fn round(&mut self, shown: &Mutex<Vec<Problem>>) {
        let mut problems = Vec::new();
        if let Some(masquerade) = self.masquerade.clone() {
            problems.extend(self.keep(&masquerade));
        }
        problems.extend(self.overlaps().await);
        for problem in &problems {
            if !self.told.contains(&problem.what) {
                warn!("{}", problem.what);
            }
        }
        self.told = problems.iter().map(|problem| problem.what.clone()).collect();
        self.first = false;
        *shown.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }

    /// Compares and repairs.
    fn keep(&self, masquerade: &Masquerade) -> Vec<Problem> {
        let mut problems = Vec::new();
        let stands = nat::stands(masquerade).unwrap_or(false);
        if !stands {
            match nat::apply(masquerade) {
                Ok(()) if self.first => info!(table = masquerade.table, "containers leave in the name of this host"),
                Ok(()) => warn!(table = masquerade.table, "the table of translation was changed by someone else and is put back"),
                Err(error) => problems.push(Problem {
                    what: format!("containers cannot leave in the name of this host: the table ip {} is refused: {error}", masquerade.table),
                    remedy: "the kernel needs nf_tables with nat and masquerade (modprobe nft_masq), and meshd CAP_NET_ADMIN".into(),
                }),
            }
        }
        let (changed, lacking) = nat::settle(&self.bridge);
        if !changed.is_empty() {
            info!(settings = changed.join(", "), "set for containers");
        }
        problems.extend(lacking.into_iter().filter_map(|lacking| self.lacks(lacking)));
        let dropping = nat::dropping_chain(&self.bridge).and_then(|chain| match chain {
            Some(chain) => Ok(Some(format!("the chain '{chain}' of nftables"))),
            None => Ok(nat::dropping_policy(&self.bridge)?.then(|| "the policy of FORWARD of iptables-legacy".into())),
        });
        match dropping {
            Ok(Some(who)) => problems.push(Problem {
                what: format!("{who} drops what it does not know, and knows nothing of {}", self.bridge),
                remedy: format!(
                    "if containers reach nobody: iptables -P FORWARD ACCEPT, or iptables -I FORWARD -i {0} -j ACCEPT and -o {0}",
                    self.bridge
                ),
            }),
            Ok(None) => {}
            Err(error) => debug!(%error, "others' filters cannot be read"),
        }
        problems
    }

    fn lacks(&self, lacking: Lacking) -> Option<Problem> {
        if lacking.missing && lacking.key.starts_with("net.bridge.") {
            if self.first {
                warn!(
                    "br_netfilter is not loaded: services with a container of the same machine behind them fail: modprobe br_netfilter"
                );
            }
            return None;
        }
        Some(Problem {
            what: format!("{} cannot be set, without which this host does not forward for containers", lacking.key),
            remedy: "run meshd where /proc/sys can be written, or set it there by sysctl".into(),
        })
    }

    /// Addresses that others have, too.
    async fn overlaps(&self) -> Vec<Problem> {
        let Some(range) = self.range else { return Vec::new() };
        let mut problems = Vec::new();
        let remedy = "begin with an --ipam-range that nobody else uses (the same at all peers)";
        match self.netlink.crossing(&self.bridge, range).await {
            Ok(routes) => problems.extend(routes.into_iter().map(|(net, interface)| Problem {
                what: format!(
                    "the range {range} overlaps the route to {net} by {interface}: one of them hides the other"
                ),
                remedy: remedy.into(),
            })),
            Err(error) => debug!(%error, "the routes cannot be read"),
        }
        if let Some(service) = self.service.filter(|service| range.contains(service)) {
            problems.push(Problem {
                what: format!("the range {range} overlaps the cluster's service range, which has {service}"),
                remedy: remedy.into(),
            });
        }
        problems
    }
}

/// Kubernetes tells each pod the service address of its API.
fn service_of_environment() -> Option<IpAddr> {
    let address: Ipv4Addr = std::env::var("KUBERNETES_SERVICE_HOST").ok()?.parse().ok()?;
    Some(address.into())
}

/// Whoever empties the machine's tables takes ours, too: repaired within this time.
const PERIOD: Duration = Duration::from_secs(5);
