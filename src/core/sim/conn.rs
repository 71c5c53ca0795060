//! The model of QUIC connections: reliable, in order, delayed, ended by silence.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::wire::control::{CloseReason, LENGTH_BYTES};
use rand::Rng;

use super::{HostId, Sim, What};
use crate::fib::Path;
use crate::node::{DialError, DialId, Input, LinkEnd, LinkId};
use crate::peer::{from_virtual, link_address, virtual_address};
use crate::session::SessionSecret;
use crate::time::Time;

#[derive(Debug, Clone, Copy)]
struct End {
    host: HostId,
    life: u32,
    link: LinkId,
    open: bool,
}

#[derive(Debug)]
struct Conn {
    /// The dialler first.
    ends: [End; 2],
    relayed: bool,
    /// Where the dialler thinks the other end is.
    dialled: SocketAddr,
    /// Last time that something passed both ways.
    heard: Time,
    /// When the last message of each direction arrives.
    arrives: [Time; 2],
    /// Messages that wait for a way, by direction.
    held: [Vec<Arc<[u8]>>; 2],
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Conns {
    all: BTreeMap<u64, Conn>,
    by_link: BTreeMap<(HostId, LinkId), (u64, usize)>,
    last: u64,
}

impl Conns {
    /// The process at a host is gone: its ends answer nothing any more.
    pub fn forget_host(&mut self, host: HostId) {
        for conn in self.all.values_mut() {
            for end in conn.ends.iter_mut().filter(|end| end.host == host) {
                end.open = false;
            }
        }
        self.by_link.retain(|(of, _), _| *of != host);
    }
}

impl Sim {
    pub(super) fn on_dial(&mut self, host: HostId, dial: DialId, remote: SocketAddr, expect: Option<PeerId>) {
        self.metrics.dials += 1;
        let now = self.now;
        let life = self.hosts[host].life;
        let there = self.way(host, remote);
        match there {
            Some((_, delay)) => {
                let _ = now;
                self.push(delay * 3, What::Dialled { host, life, dial: dial.0, remote, expect });
            }
            None => self.push(DIAL_TIMEOUT, What::DialTimeout { host, life, dial: dial.0 }),
        }
    }

    /// Who answers at an address, and how long it takes there, if a handshake passes.
    fn way(&mut self, from: HostId, to: SocketAddr) -> Option<(HostId, Duration)> {
        let now = self.now;
        let host = match from_virtual(to) {
            Some(short) => self.hosts.iter().position(|host| host.alive() && host.id().short() == short)?,
            None => {
                let host = self.net.route(now, from, to)?;
                let back = self.net.seen_as(from);
                self.net.route(now, host, back)?;
                host
            }
        };
        let delay =
            if from_virtual(to).is_some() { self.relayed_delay(from, host)? } else { self.net.delay(from, host) };
        self.hosts[host].alive().then_some((host, delay))
    }

    /// The delay along the relays that a host's snapshot names, when every hop of it works.
    fn relayed_delay(&mut self, from: HostId, to: HostId) -> Option<Duration> {
        let fib = self.hosts[from].fib.clone();
        let slot = fib.slot(self.hosts[to].id().short())?;
        let hops: Vec<HostId> = match fib.peer(slot)?.path {
            Path::None => return None,
            Path::Direct(_) => vec![to],
            Path::Relayed { route, .. } => {
                let host = |short| self.hosts.iter().position(|host| host.alive() && host.id().short() == short);
                route.hops().iter().map(|short| host(*short)).collect::<Option<_>>()?
            }
        };
        let mut delay = Duration::ZERO;
        let mut at = from;
        for hop in hops {
            if !self.hosts[hop].alive() || !self.net.passes(at, hop) {
                return None;
            }
            delay += self.net.delay(at, hop);
            at = hop;
        }
        Some(delay)
    }

    pub(super) fn on_dialled(
        &mut self,
        host: HostId,
        life: u32,
        dial: DialId,
        remote: SocketAddr,
        expect: Option<PeerId>,
    ) {
        if self.hosts[host].life != life {
            return;
        }
        let Some((other, _)) = self.way(host, remote) else {
            return self.push(DIAL_TIMEOUT, What::DialTimeout { host, life, dial: dial.0 });
        };
        let peer = self.hosts[other].id();
        if self.hosts[host].secret != self.hosts[other].secret {
            return self.input(host, Input::DialFailed { dial, why: DialError::Secret });
        }
        if expect.is_some_and(|expect| expect != peer) {
            return self.input(host, Input::DialFailed { dial, why: DialError::WrongPeer });
        }
        self.metrics.links += 1;
        let mut secret = [0; 64];
        self.rng.fill(&mut secret);
        let relayed = from_virtual(remote).is_some();
        self.conns.last += 1;
        let id = self.conns.last;
        let links = [LinkId(id * 2), LinkId(id * 2 + 1)];
        let end = |host: HostId, life: u32, link: LinkId| End { host, life, link, open: true };
        let ends = [end(host, life, links[0]), end(other, self.hosts[other].life, links[1])];
        let (arrives, held) = ([self.now; 2], [Vec::new(), Vec::new()]);
        self.conns.all.insert(id, Conn { ends, relayed, dialled: remote, heard: self.now, arrives, held });
        self.conns.by_link.insert((host, links[0]), (id, 0));
        self.conns.by_link.insert((other, links[1]), (id, 1));
        let me = self.hosts[host].id();
        let seen = if relayed { virtual_address(me.short()) } else { self.net.seen_as(host) };
        let secret = SessionSecret(secret);
        self.log(&[5, host as u64, other as u64, self.now.as_us()]);
        self.input(host, Input::LinkOpened { link: links[0], dial: Some(dial), peer, remote, secret: secret.clone() });
        self.input(other, Input::LinkOpened { link: links[1], dial: None, peer: me, remote: seen, secret });
        if !relayed {
            self.input(host, Input::DatagramMax { link: links[0], bytes: DATAGRAM_MAX, settled: true });
            self.input(other, Input::DatagramMax { link: links[1], bytes: DATAGRAM_MAX, settled: true });
        }
    }

    pub(super) fn on_send(&mut self, host: HostId, link: LinkId, bytes: Arc<[u8]>) {
        let Some((id, end)) = self.conns.by_link.get(&(host, link)).copied() else { return };
        if self.mute && bytes[LENGTH_BYTES] == 0 && (2..=6).contains(&bytes[LENGTH_BYTES + 1]) {
            return;
        }
        self.metrics.messages += 1;
        self.metrics.message_bytes += bytes.len() as u64;
        self.hosts[host].sent_bytes += bytes.len() as u64;
        let Some(conn) = self.conns.all.get_mut(&id) else { return };
        conn.held[end].push(bytes);
        assert!(conn.held[end].len() < HELD_MAX, "a link's queue grows without bound");
        self.flush(id, end);
    }

    /// One QUIC datagram: lost like any other, never repeated.
    pub(super) fn transmit_by_link(&mut self, from: HostId, link: LinkId, bytes: Vec<u8>) {
        let Some((id, end)) = self.conns.by_link.get(&(from, link)).copied() else { return };
        if bytes.len() > usize::from(DATAGRAM_MAX) || self.conn_delay(id, end).is_none() {
            return;
        }
        let Some(conn) = self.conns.all.get(&id) else { return };
        let there = conn.ends[1 - end];
        if !there.open || self.hosts[there.host].life != there.life {
            return;
        }
        for delay in self.net.copies(&mut self.rng, from, there.host) {
            let datagram = What::Datagram { to: there.host, from: link_address(there.link), bytes: bytes.clone() };
            self.push(delay, datagram);
        }
    }

    /// Sends what waits, if there is a way.
    fn flush(&mut self, id: u64, end: usize) {
        let Some(delay) = self.conn_delay(id, end) else { return };
        let loss = self.net.conditions.loss;
        let Some(conn) = self.conns.all.get_mut(&id) else { return };
        let messages = std::mem::take(&mut conn.held[end]);
        let mut sent = Vec::new();
        for bytes in messages {
            let mut at = self.now + delay;
            // Each loss costs a retransmission: a round trip and a quarter (RFC 9002).
            while loss > 0.0 && self.rng.random_bool(loss) {
                at += delay * 5 / 2;
            }
            at = at.max(conn.arrives[end]);
            conn.arrives[end] = at;
            sent.push((at, bytes));
        }
        for (at, bytes) in sent {
            self.push(at.since(self.now), What::Message { conn: id, end: 1 - end, bytes });
        }
    }

    /// The delay from one end to the other, if anything passes.
    fn conn_delay(&mut self, id: u64, end: usize) -> Option<Duration> {
        let conn = self.conns.all.get(&id)?;
        let (from, to) = (conn.ends[end].host, conn.ends[1 - end].host);
        let (relayed, dialled, acceptor) = (conn.relayed, conn.dialled, conn.ends[1].host);
        if relayed {
            return self.relayed_delay(from, to);
        }
        // A server that moved is not found again; a client that moved is followed.
        if self.net.seen_as(acceptor) != dialled {
            return None;
        }
        self.net.passes(from, to).then(|| self.net.delay(from, to))
    }

    pub(super) fn on_conn_message(&mut self, id: u64, end: usize, bytes: &[u8]) {
        let now = self.now;
        let Some(conn) = self.conns.all.get_mut(&id) else { return };
        let End { host, life, link, open } = conn.ends[end];
        if !open || self.hosts[host].life != life {
            return;
        }
        conn.heard = now;
        self.log(&[6, host as u64, now.as_us(), bytes.len() as u64]);
        self.input(host, Input::Message { link, bytes: bytes[LENGTH_BYTES..].to_vec() });
    }

    pub(super) fn on_close(&mut self, host: HostId, link: LinkId, reason: CloseReason) {
        let Some((id, end)) = self.conns.by_link.remove(&(host, link)) else { return };
        let delay = self.conn_delay(id, end);
        let Some(conn) = self.conns.all.get_mut(&id) else { return };
        conn.ends[end].open = false;
        if let Some(delay) = delay {
            let at = (self.now + delay).max(conn.arrives[end]);
            self.push(at.since(self.now), What::Closed { conn: id, end: 1 - end, reason: Some(reason) });
        }
    }

    pub(super) fn on_conn_closed(&mut self, id: u64, end: usize, reason: Option<CloseReason>) {
        let Some(conn) = self.conns.all.get_mut(&id) else { return };
        let End { host, life, link, open } = conn.ends[end];
        if !std::mem::replace(&mut conn.ends[end].open, false) || !open {
            return;
        }
        self.conns.by_link.remove(&(host, link));
        if self.hosts[host].life == life {
            let why = reason.map_or(LinkEnd::Timeout, |reason| LinkEnd::Remote(Some(reason)));
            self.input(host, Input::LinkClosed { link, why });
        }
    }

    /// Each second: what has a way goes on, what had none for too long ends.
    pub(super) fn keep_conns(&mut self) {
        let now = self.now;
        let ids: Vec<u64> = self.conns.all.keys().copied().collect();
        for id in ids {
            let both_open = self.conns.all[&id].ends.iter().all(|end| end.open);
            let frozen =
                self.conns.all[&id].ends.iter().any(|end| self.hosts[end.host].frozen_until.is_some_and(|u| u > now));
            let passes = both_open && !frozen && self.conn_delay(id, 0).is_some() && self.conn_delay(id, 1).is_some();
            if passes {
                let ends = self.conns.all[&id].ends;
                if !self.conns.all[&id].relayed {
                    // The keep-alives of QUIC also keep translators open.
                    let (a, b) = (self.net.seen_as(ends[0].host), self.net.seen_as(ends[1].host));
                    self.net.route(now, ends[0].host, b);
                    self.net.route(now, ends[1].host, a);
                }
                self.conns.all.get_mut(&id).unwrap().heard = now;
                self.flush(id, 0);
                self.flush(id, 1);
                continue;
            }
            let conn = &self.conns.all[&id];
            if conn.ends.iter().all(|end| !end.open) {
                self.conns.all.remove(&id);
            } else if now.since(conn.heard) >= IDLE_TIMEOUT {
                for end in 0..2 {
                    self.push(Duration::ZERO, What::Closed { conn: id, end, reason: None });
                }
            }
        }
    }
}

/// As the driver does.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// As the driver sets it for QUIC.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait on one link while there is no way.
const HELD_MAX: usize = 10_000;
/// What QUIC takes on a path of 1,280 bytes.
const DATAGRAM_MAX: u16 = 1_150;
