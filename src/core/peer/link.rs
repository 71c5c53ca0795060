//! Links: QUIC connections on which both ends said hello, and which of several to one peer stays.
//!
//! ```text
//!   opened ──▶ Hello ──hello──▶ checks ──┬──▶ Up ──▶ gone
//!                │                       ├──▶ closed: own address, clone, other cluster, other version, full
//!                └── 5 s ──▶ Silent      └──▶ Up, and the duplicate that loses is closed
//! ```
//! Of two links that crossed, the one that the lower id dialled stays; of two dialled by the same end, the newer. One end alone decides (the lower id, or
//! the dialler of both), and only when the winner is up, so that the pair is never left without a link. A link of a newer incarnation replaces all at once.
//! Links through relays are a class of their own: they carry a session, never the topology.
//!
//! Deliberately lacks: sessions, making dials, what travels after the hello.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::wire::control::{CloseReason, Hello, PROTOCOL_VERSION};

use crate::node::{DialId, LinkId};
use crate::peer::from_virtual;
use crate::peer::targets::Errand;
use crate::session::SessionSecret;
use crate::time::Time;

/// How far a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the other end's hello.
    Hello,
    /// Both hellos are exchanged.
    Up,
}

/// One link.
#[derive(Debug)]
pub struct Link {
    /// Its number.
    pub id: LinkId,
    /// The other end, proven by its certificate.
    pub peer: PeerId,
    /// Where it leads.
    pub remote: SocketAddr,
    /// The dial that made it; none when the other end dialled.
    pub dial: Option<DialId>,
    /// The errand of that dial.
    pub errand: Option<Errand>,
    /// How far it is.
    pub phase: Phase,
    /// Since when it is in that phase.
    pub since: Time,
    /// Start of its session's keys.
    pub secret: SessionSecret,
    /// Our index of its session.
    pub session: u32,
    /// What the other end said.
    pub hello: Option<Hello>,
    /// The longest QUIC datagram that it takes now (0: none), and whether its search has had its time.
    pub datagram_max: (u16, bool),
}

impl Link {
    /// Whether it runs through relays.
    pub fn relayed(&self) -> bool {
        from_virtual(self.remote).is_some()
    }

    /// Whether this end dialled it.
    pub fn outbound(&self) -> bool {
        self.dial.is_some()
    }

    fn incarnation(&self) -> u64 {
        self.hello.as_ref().map_or(0, |hello| hello.incarnation)
    }
}

/// What a hello is held against.
#[derive(Debug, Clone, Copy)]
pub struct Me<'a> {
    /// This peer.
    pub id: PeerId,
    /// Its cluster.
    pub cluster: &'a str,
    /// Drawn at this start.
    pub instance: u64,
    /// Direct links that it keeps.
    pub max_links: usize,
}

/// What becomes of a link after its hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is up. Those beside it lose and are to be closed with `Duplicate`.
    Up {
        /// Links to the same peer that this one (or an older one) replaces; the link itself may be among them.
        losers: Vec<LinkId>,
    },
    /// It is to be closed with this reason.
    Refused(CloseReason),
    /// Nothing: the link is not known, or had its hello.
    Ignored,
}

/// All links.
#[derive(Debug, Default)]
pub struct Links {
    all: BTreeMap<LinkId, Link>,
}

impl Links {
    /// Takes in a new link, waiting for its hello. Gives it back when there are too many that say nothing: close it.
    pub fn open(&mut self, link: Link, max_links: usize) -> Result<(), Box<Link>> {
        let waiting = self.all.values().filter(|link| link.phase == Phase::Hello).count();
        if waiting >= WAITING_MAX || self.all.len() >= max_links.saturating_mul(2) + WAITING_MAX {
            return Err(Box::new(link));
        }
        self.all.insert(link.id, link);
        Ok(())
    }

    /// The other end said hello.
    pub fn on_hello(&mut self, now: Time, id: LinkId, hello: Hello, me: Me<'_>) -> Verdict {
        let Some(link) = self.all.get(&id).filter(|link| link.phase == Phase::Hello) else { return Verdict::Ignored };
        let (peer, relayed) = (link.peer, link.relayed());
        if let Some(reason) = self.objection(link, &hello, me) {
            return Verdict::Refused(reason);
        }
        let Some(link) = self.all.get_mut(&id) else { return Verdict::Ignored };
        link.phase = Phase::Up;
        link.since = now;
        link.hello = Some(hello);
        Verdict::Up { losers: self.losers(me.id, peer, relayed) }
    }

    fn objection(&self, link: &Link, hello: &Hello, me: Me<'_>) -> Option<CloseReason> {
        if link.peer == me.id {
            let myself = hello.instance == me.instance;
            return Some(if myself { CloseReason::OwnAddress } else { CloseReason::ClonedIdentity });
        }
        if hello.version < PROTOCOL_VERSION {
            return Some(CloseReason::Version);
        }
        if hello.cluster != me.cluster {
            return Some(CloseReason::Cluster);
        }
        if let Some(newest) = self.of(link.peer).filter_map(|other| other.hello.as_ref()).max_by_key(|h| h.incarnation)
        {
            // A process of an earlier start cannot come after one of a later start, unless both run.
            if newest.instance != hello.instance && newest.incarnation >= hello.incarnation {
                return Some(CloseReason::ClonedIdentity);
            }
        }
        let stranger = self.of(link.peer).all(|other| other.phase != Phase::Up);
        if stranger && !link.relayed() && !link.outbound() && self.direct_count() >= me.max_links {
            return Some(CloseReason::Full);
        }
        None
    }

    /// The links to `peer`, of one class, that do not stay and that this end has to close.
    fn losers(&self, me: PeerId, peer: PeerId, relayed: bool) -> Vec<LinkId> {
        let up = |link: &&Link| link.phase == Phase::Up;
        let newest = self.of(peer).filter(up).map(Link::incarnation).max().unwrap_or(0);
        let mut losers: Vec<LinkId> =
            self.of(peer).filter(up).filter(|link| link.incarnation() < newest).map(|link| link.id).collect();
        let current = || self.of(peer).filter(up).filter(|l| l.relayed() == relayed && l.incarnation() == newest);
        let (ours, theirs): (Vec<&Link>, Vec<&Link>) = current().partition(|link| link.outbound());
        if me < peer && !ours.is_empty() && !theirs.is_empty() {
            let latest = |links: &[&Link]| links.iter().map(|link| link.since).max().unwrap_or(Time::ZERO);
            // Long after ours: the other end has lost it and does not know our opinion of it.
            let redialled = latest(&theirs).since(latest(&ours)) >= CROSSING;
            losers.extend(if redialled { &ours } else { &theirs }.iter().map(|link| link.id));
        }
        let left: Vec<&Link> = ours.into_iter().filter(|link| !losers.contains(&link.id)).collect();
        losers.extend(Links::own_duplicates(&left));
        losers
    }

    /// Of several links that one end dialled, the others than the newest: only the end that dialled closes them, for it alone knows why it dialled again.
    fn own_duplicates(links: &[&Link]) -> Vec<LinkId> {
        let Some(newest) = links.iter().max_by_key(|link| (link.since, link.id)).map(|link| link.id) else {
            return Vec::new();
        };
        links.iter().map(|link| link.id).filter(|id| *id != newest).collect()
    }

    /// Forgets a link.
    pub fn remove(&mut self, id: LinkId) -> Option<Link> {
        self.all.remove(&id)
    }

    /// One link.
    pub fn get(&self, id: LinkId) -> Option<&Link> {
        self.all.get(&id)
    }

    /// Notes the longest QUIC datagram that a link takes; true when that is news.
    pub fn set_datagram_max(&mut self, id: LinkId, max: (u16, bool)) -> bool {
        self.all.get_mut(&id).is_some_and(|link| std::mem::replace(&mut link.datagram_max, max) != max)
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.all.values()
    }

    /// Those to one peer.
    pub fn of(&self, peer: PeerId) -> impl Iterator<Item = &Link> {
        self.all.values().filter(move |link| link.peer == peer)
    }

    /// The link to a peer that is up and, of several, in use: the newest.
    pub fn current(&self, peer: PeerId, relayed: bool) -> Option<&Link> {
        self.of(peer)
            .filter(|link| link.phase == Phase::Up && link.relayed() == relayed)
            .max_by_key(|link| (link.incarnation(), link.since, link.id))
    }

    /// Direct links that are up.
    pub fn direct_count(&self) -> usize {
        self.all.values().filter(|link| link.phase == Phase::Up && !link.relayed()).count()
    }

    /// Links whose hello is overdue: to be closed with `Silent`.
    pub fn overdue(&self, now: Time) -> Vec<LinkId> {
        self.all
            .values()
            .filter(|link| link.phase == Phase::Hello && now.since(link.since) >= HELLO_WITHIN)
            .map(|link| link.id)
            .collect()
    }
}

/// Links that came up within this time were dialled without knowing of each other.
const CROSSING: Duration = Duration::from_secs(5);
/// A hello comes right behind the handshake.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Links that may wait for a hello: a whole small mesh starting at once.
const WAITING_MAX: usize = 128;

#[cfg(test)]
mod tests;
