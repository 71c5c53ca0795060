//! The kernel's fast path: one task that keeps VXLAN device, forwarding entries and guard as the snapshot says.
//!
//! ```text
//! Fib ────────────────────────▶┌──────┐──▶ nftables: who may send, and for which addresses   (guard first)
//! MAC addresses from workers ─▶│ task │──▶ device: address ─▶ peer    bridge: address ─▶ device (in this order; back in the other)
//! probes of the node ─────────▶│      │──▶ out of the device
//!        node ◀─ what came ────└──────┘◀── probes that the bridge gives to the host; age of entries; counters of the device
//! ```
//! An address is switched when a frame for it took the sealed path to a peer whose fast path is on, and back as soon as that ends, or when the address is
//! elsewhere. Each switch is one change of one entry of the bridge, so no frame is lost or doubled; what is still in the queue of the TAP at that moment
//! may arrive behind its successors, and that queue is drained within milliseconds.
//!
//! Owner of the task: [`FastPath`]; it ends with it. Orders beyond [`ORDERS_MAX`] are dropped: addresses are offered again each second, probes count as
//! lost. At most 4,096 addresses are switched, the others stay on the sealed path.

mod task;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use meshnet_core::fdb::Fdb;
use meshnet_core::fib::{Fib, PeerSlot};
use meshnet_core::node::Input;
use meshnet_proto::wire::fast::{Subnet, Trust};
use meshnet_proto::{Mac, PeerId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::config::Settings;
use super::devices::Devices;
use crate::netlink::vxlan::Traffic;
use crate::netlink::{Error, Netlink, nft};
use task::Task;

/// The driver's end. Does nothing when no subnet is trusted.
#[derive(Default)]
pub struct FastPath {
    running: Option<Running>,
}

struct Running {
    fib: watch::Sender<Arc<Fib>>,
    orders: mpsc::Sender<Order>,
    traffic: Arc<Mutex<Counted>>,
    task: JoinHandle<()>,
}

enum Order {
    /// Frames to this address took the sealed path.
    Switch(PeerSlot, Mac),
    Probe(PeerSlot, Vec<u8>),
    Mtu(u32),
}

/// What the task needs of the rest.
pub struct Around {
    /// This peer.
    pub me: PeerId,
    /// The TAP's name.
    pub tap: String,
    /// MTU of the overlay.
    pub mtu: u16,
    /// The port between peers.
    pub port: u16,
    /// Learned addresses.
    pub fdb: Arc<Fdb>,
    /// Seconds since the start.
    pub tick: Arc<AtomicU32>,
}

impl Around {
    /// Of these devices.
    pub fn new(me: PeerId, devices: &Devices, port: u16, fdb: &Arc<Fdb>, tick: &Arc<AtomicU32>) -> Around {
        let (fdb, tick) = (Arc::clone(fdb), Arc::clone(tick));
        Around { me, tap: devices.tap_name(), mtu: devices.mtu(), port, fdb, tick }
    }
}

/// What begins: the driver's end, what comes for the node, and what the node's hello says; or why not.
pub struct Begun {
    /// The driver's end.
    pub path: FastPath,
    /// For the node.
    pub inputs: mpsc::Receiver<Input>,
    /// What to tell the others.
    pub trust: Option<Trust>,
    /// Why there is none although it is wanted.
    pub refused: Option<String>,
}

/// Makes the device when subnets are trusted, and takes away what an earlier run left. What fails here costs the fast path and nothing else.
pub async fn start(settings: &Settings, around: Around) -> Begun {
    let (sender, inputs) = mpsc::channel(INPUTS_MAX);
    let none = |inputs, refused| Begun { path: FastPath::default(), inputs, trust: None, refused };
    let bridge = settings.bridge.clone();
    let cleared = clear(&bridge, &around.tap).await;
    if settings.trusted_subnets.is_empty() {
        if let Err(error) = cleared {
            debug!(%error, "what an earlier fast path left cannot be removed");
        }
        return none(inputs, None);
    }
    let trust = Trust {
        port: around.port.wrapping_add(1).max(1),
        network: network(&settings.cluster),
        subnets: settings
            .trusted_subnets
            .iter()
            .map(|net| Subnet { address: net.network(), prefix: net.prefix_len() })
            .collect(),
    };
    let made = match cleared {
        Ok(netlink) => Task::begin(netlink, &bridge, &trust, &around, sender).await,
        Err(error) => Err(error),
    };
    match made {
        Ok((task, running)) => {
            let (fib, fibs) = watch::channel(Arc::new(Fib::default()));
            let (orders, ordered) = mpsc::channel(ORDERS_MAX);
            let task = tokio::spawn(task.run(fibs, ordered));
            info!(port = trust.port, "frames may travel in the clear between trusted subnets, by VXLAN");
            let running = Running { fib, orders, traffic: running, task };
            Begun { path: FastPath { running: Some(running) }, inputs, trust: Some(trust), refused: None }
        }
        Err(error) => {
            warn!(%error, "--trusted-subnet: there is no fast path: all frames travel sealed");
            none(inputs, Some(error.to_string()))
        }
    }
}

impl FastPath {
    /// Another snapshot.
    pub fn publish(&self, fib: &Arc<Fib>) {
        if let Some(running) = &self.running {
            running.fib.send_replace(Arc::clone(fib));
        }
    }

    /// Frames to this address may be switched.
    pub fn offer(&self, slot: PeerSlot, mac: Mac) {
        self.order(Order::Switch(slot, mac));
    }

    /// A probe of the node.
    pub fn probe(&self, slot: PeerSlot, frame: Vec<u8>) {
        self.order(Order::Probe(slot, frame));
    }

    /// The MTU of the overlay changed.
    pub fn set_mtu(&self, mtu: u16) {
        self.order(Order::Mtu(mtu.into()));
    }

    /// What passed the device so far.
    pub fn traffic(&self) -> Traffic {
        self.running.as_ref().map(|running| lock(&running.traffic).total()).unwrap_or_default()
    }

    /// Takes device and guard away.
    pub async fn stop(self) {
        if let Some(Running { fib, orders, task, .. }) = self.running {
            drop((fib, orders));
            if let Err(error) = task.await {
                warn!(%error, "the fast path was not taken down");
            }
        }
    }

    fn order(&self, order: Order) {
        if let Some(running) = &self.running {
            // Dropped when full: see above.
            let _ = running.orders.try_send(order);
        }
    }
}

/// Counters of a device that may be made anew.
#[derive(Debug, Default)]
struct Counted {
    before: Traffic,
    now: Traffic,
}

impl Counted {
    fn follow(&mut self, now: Traffic) {
        if now.tx_frames < self.now.tx_frames || now.rx_frames < self.now.rx_frames {
            self.before = self.total();
        }
        self.now = now;
    }

    fn total(&self) -> Traffic {
        Traffic {
            tx_frames: self.before.tx_frames + self.now.tx_frames,
            tx_bytes: self.before.tx_bytes + self.now.tx_bytes,
            rx_frames: self.before.rx_frames + self.now.rx_frames,
            rx_bytes: self.before.rx_bytes + self.now.rx_bytes,
        }
    }
}

/// Removes device and guard of an earlier run, or of this one.
async fn clear(bridge: &str, tap: &str) -> Result<Netlink, Error> {
    let netlink = Netlink::open()?;
    // The device first: without it nothing is to be guarded.
    if netlink.remove_vxlan(bridge, tap).await?
        && let Err(error) = nft::remove(&guard_name(bridge))
    {
        debug!(%error, "the guard of the fast path cannot be removed");
    }
    Ok(netlink)
}

/// Names of tables take 255 letters.
fn guard_name(bridge: &str) -> String {
    format!("meshnet-{bridge}")
}

/// The VXLAN network of a cluster: FNV-1a over its name, in 24 bits.
fn network(cluster: &str) -> u32 {
    let hash = cluster.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash >> 24 ^ hash) & 0x00ff_ffff
}

fn lock(traffic: &Mutex<Counted>) -> std::sync::MutexGuard<'_, Counted> {
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Orders that wait: addresses of a burst, and a probe of each peer.
const ORDERS_MAX: usize = 4_096;
/// Probes that wait for the driver: one of each of a thousand peers.
const INPUTS_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn counters_go_on_when_the_device_is_made_anew() {
        let traffic = |n| Traffic { tx_frames: n, tx_bytes: 100 * n, rx_frames: 2 * n, rx_bytes: 200 * n };
        let mut counted = Counted::default();
        [5, 9, 2, 4].into_iter().for_each(|n| counted.follow(traffic(n)));
        assert_eq!(counted.total(), traffic(13));
    }

    #[test]
    fn clusters_have_networks_of_their_own() {
        let names = ["", "a", "b", "meshnet", "meshnet2"];
        let networks: BTreeSet<u32> = names.iter().map(|name| network(name)).collect();
        assert_eq!(networks.len(), names.len());
        assert!(networks.iter().all(|network| *network < 1 << 24));
    }
}
