//! Snapshots and ends for tests and the simulator: machines that all know each other, with real keys, and no node behind them.

use std::net::SocketAddr;
use std::sync::Arc;

use meshnet_proto::wire::data::{Gso, Offload, Route};
use meshnet_proto::{Mac, PeerId, ShortId};

use super::{Deliver, Forwarder, Inbound, Punt, Punted, Transmit};
use crate::counters::{Counters, DropReason};
use crate::fdb::Fdb;
use crate::fib::{Fib, FibPeer, FibSession, Owner, Owners, Path, PeerSlot};
use crate::session::{Cipher, Session, SessionKeys};

/// Machines that are all linked to each other: machine `i` is slot `i` in all snapshots but its own, where that slot is empty.
#[derive(Debug)]
pub struct Testbed {
    /// Snapshots by machine.
    pub fibs: Vec<Fib>,
    /// Forwarders by machine, on lane 0.
    pub forwarders: Vec<Forwarder>,
}

/// The id of machine `i`.
pub fn peer_id(i: usize) -> PeerId {
    let mut id = [0xa0; 16];
    let [a, b] = (i as u16).to_be_bytes();
    [id[6], id[7]] = [a, b];
    PeerId(id)
}

/// The underlay address of machine `i`.
pub fn address(i: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, i as u8 + 1], PORT))
}

/// MAC address `n` behind machine `i`.
pub fn mac(i: usize, n: u8) -> Mac {
    Mac([0x02, 0, 0, 0, i as u8, n])
}

/// The port of all machines.
pub const PORT: u16 = 6783;
/// Lanes of all sessions.
pub const LANES: u8 = 3;

impl Testbed {
    /// `count` machines.
    pub fn new(count: usize, cipher: Cipher) -> Testbed {
        let fibs: Vec<Fib> = (0..count).map(|i| fib(i, count, cipher)).collect();
        let forwarder = |_| Forwarder::new(0, Arc::new(Fdb::default()), Arc::new(Counters::default()));
        Testbed { fibs, forwarders: (0..count).map(forwarder).collect() }
    }

    /// Machine `from` reaches `to` through the relays `via`, and no longer directly.
    pub fn relay(&mut self, from: usize, via: &[usize], to: usize) {
        let hops: Vec<ShortId> = via.iter().chain([&to]).map(|hop| peer_id(*hop).short()).collect();
        let (Some(route), Some(first)) = (Route::new(&hops), via.first()) else { return };
        let first = PeerSlot(*first as u32);
        if let Some(peer) = self.peer_mut(from, to) {
            peer.path = Path::Relayed { first, route };
            peer.direct = None;
        }
    }

    /// Frames that `origin` floods go to `next` from machine `at`.
    pub fn flood(&mut self, origin: usize, at: usize, next: &[usize]) {
        let next: Vec<PeerSlot> = next.iter().map(|hop| PeerSlot(*hop as u32)).collect();
        if origin == at {
            if let Some(fib) = self.fibs.get_mut(at) {
                fib.flood_out = next;
            }
        } else if let Some(peer) = self.peer_mut(at, origin) {
            peer.flood_on = next;
        }
    }

    /// What machine `at` knows of `peer`.
    pub fn peer_mut(&mut self, at: usize, peer: usize) -> Option<&mut FibPeer> {
        self.fibs.get_mut(at)?.peers.get_mut(peer)?.as_mut()
    }

    /// Machine `at` takes a frame from its TAP; gives what it writes back into it.
    pub fn outbound(&mut self, at: usize, offload: &Offload, frame: &[u8], ends: &mut Ends) -> Option<&[u8]> {
        let (forwarder, fib) = (self.forwarders.get_mut(at)?, self.fibs.get(at)?);
        forwarder.outbound(fib, ends.tick, offload, frame, &mut ends.wire, &mut ends.punts)
    }

    /// Manages a range on all machines: `count` addresses from `first`, in turn cut into runs of `run` that belong to machine 0, 1, 2 and so on,
    /// and again from 0.
    pub fn own(&mut self, first: u32, count: u32, run: u32) {
        let machines = self.fibs.len().max(1) as u32;
        for (at, fib) in self.fibs.iter_mut().enumerate() {
            let starts = (0..count.div_ceil(run.max(1))).map(|number| {
                let machine = number % machines;
                let owner = if machine as usize == at { Owner::Me } else { Owner::Peer(PeerSlot(machine)) };
                (first + number * run, owner)
            });
            fib.owners = Arc::new(Owners { first, last: first + count - 1, runs: starts.collect(), hosts: Vec::new() });
        }
    }

    /// Machine `at` takes a datagram, which is opened in place.
    pub fn inbound(&mut self, at: usize, from: SocketAddr, datagram: &mut [u8], ends: &mut Ends) -> Inbound {
        let (Some(forwarder), Some(fib)) = (self.forwarders.get_mut(at), self.fibs.get(at)) else {
            return Inbound::Done;
        };
        let all = 0..datagram.len();
        forwarder.inbound(fib, ends.tick, from, datagram, all, &mut ends.wire, &mut ends.punts)
    }

    /// Drops of one reason at machine `at`.
    pub fn drops(&self, at: usize, reason: DropReason) -> u64 {
        self.forwarders.get(at).map_or(0, |forwarder| forwarder.counters.drops(reason))
    }
}

/// The session between machines `i` and `other` as `i` has it; the one of the lower number dialled.
pub fn session(i: usize, other: usize, cipher: Cipher) -> Session {
    let (low, high) = (i.min(other), i.max(other));
    let mut secret = [0x5e; 64];
    [secret[0], secret[1]] = [low as u8, high as u8];
    let (tx, rx) = SessionKeys::derive(&secret, 0, cipher, i == low, LANES, LANES);
    Session {
        local_index: session_index(other),
        remote_index: session_index(i),
        cipher,
        tx: Arc::new(tx),
        rx: [Some(Arc::new(rx)), None, None, None],
    }
}

/// The local index of a machine's session with `other`.
pub fn session_index(other: usize) -> u32 {
    0xabcd_0000 | other as u32
}

fn fib(i: usize, count: usize, cipher: Cipher) -> Fib {
    let sessions: Vec<Option<FibSession>> = (0..count)
        .map(|other| {
            let session = || Arc::new(session(i, other, cipher));
            (other != i).then(|| FibSession { slot: PeerSlot(other as u32), session: session() })
        })
        .collect();
    let peers = sessions.iter().enumerate().map(|(other, entry)| {
        let session = entry.as_ref()?.session.clone();
        Some(FibPeer {
            id: peer_id(other),
            session: Some(session),
            path: Path::Direct(address(other)),
            direct: Some(address(other)),
            flood_on: Vec::new(),
            incarnation: 7,
            flood_window: Arc::default(),
            storm: Arc::default(),
            traffic: Arc::default(),
            datagram_max: 1_472,
            way_max: 1_472,
            overlay_mtu: u16::MAX,
            settled: true,
            way_settled: true,
            fragments: true,
            spread: false,
        })
    });
    let others: Vec<PeerSlot> = (0..count).filter(|other| *other != i).map(|other| PeerSlot(other as u32)).collect();
    Fib {
        epoch: 1,
        me: peer_id(i).short(),
        incarnation: 7,
        peers: peers.collect(),
        by_short: others.iter().map(|slot| (peer_id(slot.0 as usize).short(), *slot)).collect(),
        flood_out: others.clone(),
        flood_all: false,
        neighbours: others,
        underlay: (0..count).map(|other| address(other).ip()).collect(),
        underlay_port: PORT,
        sessions,
        own_flood: Arc::default(),
        owners: Arc::default(),
        fast: Vec::new(),
    }
}

/// What a forwarder writes to.
#[derive(Debug)]
pub struct Ends {
    /// Datagrams sent.
    pub wire: Wire,
    /// What was punted.
    pub punts: Punts,
    /// The time.
    pub tick: u32,
}

impl Default for Ends {
    fn default() -> Ends {
        Ends { wire: Wire::with_room(4 * 1024 * 1024), punts: Punts::default(), tick: 1 }
    }
}

/// A send batch in memory of fixed size.
#[derive(Debug)]
pub struct Wire {
    bytes: Vec<u8>,
    used: usize,
    reserved: Option<(SocketAddr, usize)>,
    /// Address, start and end of each datagram.
    sent: Vec<(SocketAddr, usize, usize)>,
}

impl Wire {
    /// Room for this many bytes.
    pub fn with_room(bytes: usize) -> Wire {
        Wire { bytes: vec![0; bytes], used: 0, reserved: None, sent: Vec::with_capacity(bytes / 64) }
    }

    /// Sent datagrams in order.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.sent.iter().map(|(to, start, end)| (*to, self.bytes.get(*start..*end).unwrap_or_default()))
    }

    /// Takes all sent datagrams out.
    pub fn take(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let datagrams = self.datagrams().map(|(to, bytes)| (to, bytes.to_vec())).collect();
        self.clear();
        datagrams
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.used = 0;
        self.sent.clear();
    }

    /// How many were sent.
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether none was sent.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}

impl Transmit for Wire {
    fn reserve(&mut self, to: SocketAddr, length: usize) -> Option<&mut [u8]> {
        let room = self.bytes.get_mut(self.used..self.used + length)?;
        self.reserved = Some((to, length));
        Some(room)
    }

    fn commit(&mut self) {
        if let Some((to, length)) = self.reserved.take() {
            self.sent.push((to, self.used, self.used + length));
            self.used += length;
        }
    }
}

/// Punted things, at most `limit`.
#[derive(Debug)]
pub struct Punts {
    /// In order.
    pub all: Vec<Punted>,
    /// How many fit.
    pub limit: usize,
}

impl Default for Punts {
    fn default() -> Punts {
        Punts { all: Vec::new(), limit: 64 }
    }
}

impl Punt for Punts {
    fn punt(&mut self, punted: Punted) -> bool {
        let fits = self.all.len() < self.limit;
        if fits {
            self.all.push(punted);
        }
        fits
    }
}

/// Delivered frames, with their offload state.
#[derive(Debug, Default)]
pub struct Frames {
    /// In order, parts put together.
    pub all: Vec<(Offload, Vec<u8>)>,
}

impl Deliver for Frames {
    fn deliver(&mut self, offload: &Offload, parts: &[&[u8]]) {
        self.all.push((*offload, parts.concat()));
    }
}

/// An Ethernet frame of an experimental type.
pub fn frame(destination: Mac, source: Mac, payload: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x88, 0xb5], payload].concat()
}

/// An ARP request for `target` from the station at `source` with address `sender`.
pub fn arp_request(source: Mac, sender: u32, target: u32) -> Vec<u8> {
    let head = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    [&[0xff; 6], &source.0[..], &head, &source.0, &sender.to_be_bytes(), &[0; 6], &target.to_be_bytes()].concat()
}

/// A TCP super-frame over IPv4 as a TAP gives it: the checksum field holds the pseudo header's sum. 54 bytes of headers, the flags PSH and FIN.
pub fn superframe(destination: Mac, source: Mac, payload: &[u8], gso_size: u16) -> (Offload, Vec<u8>) {
    let total = (40 + payload.len()) as u16;
    let mut bytes = [&destination.0[..], &source.0, &[0x08, 0]].concat();
    bytes.extend_from_slice(&[0x45, 0]);
    bytes.extend_from_slice(&total.to_be_bytes());
    bytes.extend_from_slice(&[0x10, 0, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2]);
    bytes.extend_from_slice(&[0x30, 0x39, 0x14, 0x51, 1, 2, 3, 4, 9, 8, 7, 6, 0x50, 0x19, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = super::packet::sum16(bytes.get(14..34).unwrap_or_default());
    let pseudo = [10, 32, 0, 1, 10, 32, 0, 2, 0, 6];
    let length = (20 + payload.len() as u16).to_be_bytes();
    let partial = super::packet::sum16(&[&pseudo[..], &length].concat());
    for (at, value) in [(24, !sum), (50, partial)] {
        if let Some(field) = bytes.get_mut(at..at + 2) {
            field.copy_from_slice(&value.to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    let offload = Offload {
        needs_csum: true,
        gso: Gso::Tcp4,
        header_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::default()
    };
    (offload, bytes)
}
