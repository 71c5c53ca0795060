//! The task of the fast path: what it keeps as the snapshot says, and what it hears.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshnet_core::fdb::{self, Fdb, FdbCache};
use meshnet_core::fib::owners::mac_of;
use meshnet_core::fib::{self, Fib, PeerSlot};
use meshnet_core::node::Input;
use meshnet_proto::wire::fast::{ETHERTYPE, FastProbe, PROBE_FRAME_BYTES, Trust, station};
use meshnet_proto::{Mac, ShortId};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::{Around, Counted, Order, clear, guard_name, lock};
use crate::netlink::nft::{self, Guard};
use crate::netlink::vxlan::{Desired, Place, Ports, name_of};
use crate::netlink::{Error, Netlink};
use crate::sys::packet::PacketSocket;

/// The task's state.
pub(super) struct Task {
    netlink: Netlink,
    desired: Desired,
    ports: Ports,
    me: ShortId,
    /// Probes go out here.
    out: PacketSocket,
    /// And come in here.
    heard: AsyncFd<PacketSocket>,
    /// Enough was heard until the next beat.
    muted: bool,
    fib: Arc<Fib>,
    guard: Guard,
    /// The guard stands.
    guarded: bool,
    /// Peers let in although it is agreed no more, and until which beat: the other end may know later than we do.
    leaving: Vec<(fib::FastPeer, u32)>,
    /// Where probes to each peer go.
    stations: BTreeMap<PeerSlot, (Mac, Place)>,
    /// What is switched.
    macs: BTreeMap<Mac, (PeerSlot, Place)>,
    used: BTreeSet<PeerSlot>,
    fdb: Arc<Fdb>,
    cache: FdbCache,
    tick: Arc<AtomicU32>,
    inputs: mpsc::Sender<Input>,
    traffic: Arc<Mutex<Counted>>,
    beats: u32,
}

impl Task {
    pub(super) async fn begin(
        netlink: Netlink,
        bridge: &str,
        trust: &Trust,
        around: &Around,
        inputs: mpsc::Sender<Input>,
    ) -> Result<(Task, Arc<Mutex<Counted>>), Error> {
        let desired = Desired {
            bridge: bridge.to_owned(),
            tap: around.tap.clone(),
            name: name_of(bridge),
            network: trust.network,
            port: trust.port,
            mtu: around.mtu.into(),
            station: station(around.me.short()),
        };
        let guard =
            Guard { name: guard_name(bridge), device: desired.name.clone(), port: trust.port, ..Guard::default() };
        // It lets nobody in, and stands before there is anything to guard.
        put_up(guard.clone()).await?;
        let (ports, _) = netlink.ensure_vxlan(&desired).await?;
        let (out, heard) = sockets(ports)?;
        let traffic: Arc<Mutex<Counted>> = Arc::default();
        let task = Task {
            netlink,
            desired,
            ports,
            me: around.me.short(),
            out,
            heard,
            muted: false,
            fib: Arc::default(),
            guard,
            guarded: true,
            leaving: Vec::new(),
            stations: BTreeMap::new(),
            macs: BTreeMap::new(),
            used: BTreeSet::new(),
            fdb: Arc::clone(&around.fdb),
            cache: FdbCache::default(),
            tick: Arc::clone(&around.tick),
            inputs,
            traffic: Arc::clone(&traffic),
            beats: 0,
        };
        Ok((task, traffic))
    }

    pub(super) async fn run(mut self, mut fibs: watch::Receiver<Arc<Fib>>, mut orders: mpsc::Receiver<Order>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                Ok(()) = fibs.changed() => {
                    let fib = fibs.borrow_and_update().clone();
                    self.follow(fib).await
                }
                order = orders.recv() => match order {
                    Some(order) => self.order(order).await,
                    None => break,
                },
                ready = self.heard.readable(), if !self.muted => {
                    if let Ok(mut ready) = ready {
                        ready.clear_ready();
                    }
                    self.hear();
                    Ok(())
                }
                _ = beat.tick() => self.beat().await,
            };
            if let Err(error) = done {
                warn!(%error, "the fast path is not as it should be; it is looked at again within seconds");
            }
        }
        if let Err(error) = clear(&self.desired.bridge, &self.desired.tap).await {
            warn!(%error, "the fast path was not taken down");
        }
    }

    async fn order(&mut self, order: Order) -> Result<(), Error> {
        match order {
            Order::Switch(slot, mac) => self.switch(slot, mac).await,
            Order::Probe(slot, frame) => {
                if self.stations.contains_key(&slot)
                    && let Err(error) = self.out.send(&frame)
                {
                    // One that is not sent is not answered: the node judges by that.
                    debug!(%error, "probe of the fast path not sent");
                }
                Ok(())
            }
            Order::Mtu(mtu) => {
                self.desired.mtu = mtu;
                self.repair().await
            }
        }
    }

    /// Brings everything in line with a snapshot.
    async fn follow(&mut self, fib: Arc<Fib>) -> Result<(), Error> {
        let same = Arc::ptr_eq(&fib.owners, &self.fib.owners) && fib.fast == self.fib.fast;
        let before = std::mem::replace(&mut self.fib, fib);
        if same {
            return Ok(());
        }
        let until = self.beats.wrapping_add(LEAVING_BEATS);
        self.leaving.extend(before.fast.iter().map(|peer| (*peer, until)));
        self.leaving.dedup_by_key(|(peer, _)| peer.slot);
        // Off first: frames are on their way.
        self.check().await?;
        self.stand_guard().await;
        let wanted: BTreeMap<PeerSlot, (Mac, Place)> = match self.guarded {
            true => self.fib.fast.iter().map(|peer| (peer.slot, (station(peer.id.short()), place(peer)))).collect(),
            // Without a guard nothing may come in; unanswered probes say so to both ends.
            false => BTreeMap::new(),
        };
        for (slot, (mac, place)) in &wanted {
            if self.stations.get(slot) != Some(&(*mac, *place)) {
                self.netlink.vxlan_to(self.ports, *mac, *place).await?;
            }
        }
        for (mac, _) in std::mem::replace(&mut self.stations, wanted).into_values() {
            if !self.stations.values().any(|(other, _)| *other == mac) {
                self.netlink.vxlan_forget(self.ports, mac).await?;
            }
        }
        Ok(())
    }

    async fn stand_guard(&mut self) {
        let guard =
            Guard { peers: Vec::new(), range: None, owned: Vec::new(), hosts: Vec::new(), ..self.guard.clone() };
        let now = &self.fib.fast;
        self.leaving.retain(|(peer, until)| *until > self.beats && !now.iter().any(|one| one.slot == peer.slot));
        let leaving = self.leaving.iter().map(|(peer, _)| peer);
        let guard = filled(guard, &self.fib.owners, now.iter().chain(leaving));
        if guard == self.guard && self.guarded {
            return;
        }
        let put = put_up(guard.clone()).await;
        self.guarded = put.is_ok();
        self.guard = guard;
        if let Err(error) = put {
            warn!(%error, "the guard of the fast path cannot be put up: nobody new is let in");
        }
    }

    /// Where an address is.
    fn owner(&mut self, mac: Mac) -> Option<fdb::Owner> {
        match self.fib.owners.of_mac(mac) {
            Some((_, fib::Owner::Peer(slot))) => Some(fdb::Owner::Peer(slot)),
            Some((_, fib::Owner::Me)) => Some(fdb::Owner::Local),
            Some((_, fib::Owner::Nobody)) | None => {
                self.fdb.lookup(&mut self.cache, mac, self.tick.load(Ordering::Relaxed))
            }
        }
    }

    /// Moves an address to the fast path.
    async fn switch(&mut self, slot: PeerSlot, mac: Mac) -> Result<(), Error> {
        let Some(place) = self.fib.fast(slot).map(place) else { return Ok(()) };
        let room = self.macs.len() < MACS_MAX || self.macs.contains_key(&mac);
        if !room || self.owner(mac) != Some(fdb::Owner::Peer(slot)) {
            return Ok(());
        }
        self.netlink.vxlan_to(self.ports, mac, place).await?;
        self.macs.insert(mac, (slot, place));
        self.netlink.bridge_to_vxlan(self.ports, mac).await?;
        if self.used.insert(slot) {
            self.tell(Input::FastUsed { slot, used: true });
        }
        Ok(())
    }

    /// Takes back every address that has no place on the fast path any more.
    async fn check(&mut self) -> Result<(), Error> {
        let all: Vec<(Mac, PeerSlot, Place)> =
            self.macs.iter().map(|(mac, (slot, place))| (*mac, *slot, *place)).collect();
        for (mac, slot, held) in all {
            let owner = self.owner(mac);
            let there = self.fib.fast(slot).map(place) == Some(held);
            if there && owner == Some(fdb::Owner::Peer(slot)) {
                continue;
            }
            self.macs.remove(&mac);
            match owner {
                Some(fdb::Owner::Peer(_)) => self.netlink.bridge_to_tap(self.ports, mac).await?,
                // Here, or nobody knows: the bridge finds out by itself.
                Some(fdb::Owner::Local) | None => self.netlink.bridge_forget(self.ports, mac).await?,
            }
            self.netlink.vxlan_forget(self.ports, mac).await?;
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), Error> {
        self.muted = false;
        self.beats = self.beats.wrapping_add(1);
        if !self.fib.fast.is_empty() && self.beats.is_multiple_of(COUNT_BEATS) {
            self.count().await;
        }
        if self.leaving.iter().any(|(_, until)| *until <= self.beats) {
            self.stand_guard().await;
        }
        if self.guarded && self.beats.is_multiple_of(GUARD_BEATS) {
            self.watch_guard();
        }
        if !self.guarded || self.beats.is_multiple_of(REPAIR_BEATS) {
            self.repair().await?;
        }
        if self.macs.is_empty() && self.used.is_empty() {
            return Ok(());
        }
        self.check().await?;
        if self.beats.is_multiple_of(AGE_BEATS) { self.age().await } else { Ok(()) }
    }

    /// A firewall that is loaded anew often empties all tables first.
    fn watch_guard(&mut self) {
        match nft::stands(&self.guard.name) {
            Ok(true) => {}
            Ok(false) => {
                warn!("the guard of the fast path was taken away by someone else and is put back");
                self.guarded = false;
            }
            Err(error) => debug!(%error, "the guard of the fast path cannot be looked at"),
        }
    }

    async fn count(&mut self) {
        match self.netlink.vxlan_traffic(&self.desired.name).await {
            Ok(Some(traffic)) => lock(&self.traffic).follow(traffic),
            Ok(None) => {}
            Err(error) => debug!(%error, "the counters of the fast path cannot be read"),
        }
    }

    /// Device, guard and entries that somebody took away are put back.
    async fn repair(&mut self) -> Result<(), Error> {
        let (ports, changed) = self.netlink.ensure_vxlan(&self.desired).await?;
        if changed || ports != self.ports {
            warn!(
                device = self.desired.name,
                "the device of the fast path was changed by someone else and is put back"
            );
            (self.out, self.heard) = sockets(ports)?;
            self.ports = ports;
            self.stations.clear();
            self.macs.clear();
            self.guarded = false;
            let fib = Arc::clone(&self.fib);
            self.fib = Arc::default();
            return self.follow(fib).await;
        }
        if !self.guarded {
            let fib = Arc::clone(&self.fib);
            self.fib = Arc::default();
            return self.follow(fib).await;
        }
        Ok(())
    }

    /// Lets go of addresses that nothing was sent to for long, keeps those in use known to the workers, and says which peers are in use.
    async fn age(&mut self) -> Result<(), Error> {
        let entries = self.netlink.vxlan_entries(self.ports).await?;
        let tick = self.tick.load(Ordering::Relaxed);
        let mut used = BTreeSet::new();
        for (mac, (slot, _)) in self.macs.clone() {
            match entries.get(&mac) {
                Some(idle) if *idle < IDLE_S => {
                    if *idle <= USED_S {
                        used.insert(slot);
                    }
                    if self.fib.owners.of_mac(mac).is_none_or(|(_, owner)| owner == fib::Owner::Nobody)
                        && *idle < fdb::AGE_S / 2
                    {
                        // The workers do not see its frames any more.
                        self.fdb.learn(&mut self.cache, mac, fdb::Owner::Peer(slot), tick);
                    }
                }
                // Idle, or the entry is gone.
                _ => {
                    self.macs.remove(&mac);
                    self.netlink.bridge_forget(self.ports, mac).await?;
                    self.netlink.vxlan_forget(self.ports, mac).await?;
                }
            }
        }
        for mac in entries.keys().filter(|mac| !self.macs.contains_key(mac)) {
            self.netlink.bridge_forget(self.ports, *mac).await?;
        }
        for slot in self.used.symmetric_difference(&used).copied() {
            self.tell(Input::FastUsed { slot, used: used.contains(&slot) });
        }
        self.used = used;
        Ok(())
    }

    /// Probes that the bridge gave to the host, a burst at most.
    fn hear(&mut self) {
        let mut buffer = [0; PROBE_FRAME_BYTES];
        for _ in 0..HEARD_MAX {
            match self.heard.get_ref().receive(&mut buffer) {
                Ok(bytes) => {
                    if let Some(probe) = FastProbe::parse(self.me, buffer.get(..bytes).unwrap_or_default()) {
                        self.tell(Input::FastProbe(probe));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    debug!(%error, "probes of the fast path cannot be read");
                    break;
                }
            }
        }
        // Somebody on the bridge sends such frames for fun.
        self.muted = true;
    }

    fn tell(&self, input: Input) {
        // A driver that is behind has better things to do; probes and marks of use repeat.
        let _ = self.inputs.try_send(input);
    }
}

/// The guard for these peers.
fn filled<'a>(mut guard: Guard, owners: &fib::Owners, peers: impl Iterator<Item = &'a fib::FastPeer>) -> Guard {
    let peers: BTreeMap<PeerSlot, Ipv4Addr> = peers.map(|peer| (peer.slot, peer.address)).collect();
    guard.peers = peers.values().copied().collect();
    guard.peers.sort_unstable();
    guard.peers.dedup();
    let hosts = owners.hosts.iter().map(|(address, real)| (mac_of(*address), *real));
    guard.hosts = hosts.filter(|(told, real)| told != real).collect();
    if owners.last == 0 || guard.peers.is_empty() {
        return guard;
    }
    guard.range = Some((owners.first, owners.last));
    let begin = std::iter::once((owners.first, fib::Owner::Nobody));
    let starts: Vec<(u32, fib::Owner)> = begin.chain(owners.runs.iter().copied()).collect();
    for (at, (first, owner)) in starts.iter().enumerate() {
        let last = starts.get(at + 1).map_or(Some(owners.last), |next| next.0.checked_sub(1));
        let Some(last) = last.filter(|last| last >= first) else { continue };
        match owner {
            fib::Owner::Nobody => guard.owned.push((None, *first, last)),
            fib::Owner::Peer(slot) => {
                guard.owned.extend(peers.get(slot).map(|address| (Some(*address), *first, last)));
            }
            fib::Owner::Me => {}
        }
    }
    guard
}

fn place(peer: &fib::FastPeer) -> Place {
    Place { address: peer.address, port: peer.port }
}

fn sockets(ports: Ports) -> Result<(PacketSocket, AsyncFd<PacketSocket>), Error> {
    let failed = |why| Error::Kernel { doing: "open the sockets of the fast path".into(), why };
    let out = PacketSocket::open(ports.vxlan, ETHERTYPE).map_err(failed)?;
    let heard = PacketSocket::open(ports.bridge, ETHERTYPE).map_err(failed)?;
    Ok((out, heard.watched().map_err(failed)?))
}

/// A transaction of thousands of elements takes milliseconds, which links and probes shall not wait for.
async fn put_up(guard: Guard) -> Result<(), Error> {
    let put = tokio::task::spawn_blocking(move || nft::apply(&guard))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    put.map_err(|why| Error::Kernel { doing: "guard the VXLAN port by nftables".into(), why })
}

/// Between two looks at learned addresses that may have moved.
const BEAT: Duration = Duration::from_millis(100);
/// Beats between two readings of the counters.
const COUNT_BEATS: u32 = 2;
/// Between two looks at which addresses are in use.
const AGE_BEATS: u32 = 10;
/// For so long somebody with whom it is agreed no more is let in: it has to miss three answers first.
const LEAVING_BEATS: u32 = 20;
/// Between two looks whether the guard still stands: one question to the kernel.
const GUARD_BEATS: u32 = 10;
/// Between two looks at the device.
const REPAIR_BEATS: u32 = 50;
/// Addresses switched at once: as many as one peer may have in the table of learned ones.
const MACS_MAX: usize = 4_096;
/// An address that nothing was sent to for so long goes back: as long as the bridge itself remembers.
const IDLE_S: u32 = 300;
/// A peer counts as in use while something was sent to it within this time.
const USED_S: u32 = 2;
/// Probes read in one go and, when there are as many, until the next beat.
const HEARD_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use meshnet_core::fib::{FastPeer, Owner, Owners};
    use meshnet_proto::PeerId;

    fn peer(slot: u32) -> FastPeer {
        let id = PeerId([slot as u8; 16]);
        FastPeer { slot: PeerSlot(slot), id, address: Ipv4Addr::new(192, 0, 2, slot as u8), port: 6784, on: false }
    }

    #[test]
    fn the_guard_knows_who_may_speak_for_what() {
        let runs = vec![
            (110, Owner::Me),
            (120, Owner::Peer(PeerSlot(1))),
            (130, Owner::Peer(PeerSlot(2))),
            (140, Owner::Nobody),
        ];
        let hosts = vec![(111, Mac([2; 6])), (112, mac_of(112))];
        let owners = Owners { first: 100, last: 199, runs, hosts };
        let peers = [peer(1), peer(3)];
        let guard = filled(Guard::default(), &owners, peers.iter());
        let one = peers[0].address;
        assert_eq!(guard.peers, [one, peers[1].address]);
        assert_eq!(guard.range, Some((100, 199)));
        assert_eq!(
            guard.owned,
            [(None, 100, 109), (Some(one), 120, 129), (None, 140, 199)],
            "neither ours nor a stranger's"
        );
        assert_eq!(guard.hosts, [(mac_of(111), Mac([2; 6]))]);
        let nobody = filled(Guard::default(), &owners, [].iter());
        assert_eq!((nobody.peers.len(), nobody.owned.len(), nobody.range), (0, 0, None));
        let unmanaged = filled(Guard::default(), &Owners::default(), peers.iter());
        assert_eq!((unmanaged.peers.len(), unmanaged.range), (2, None));
    }
}
