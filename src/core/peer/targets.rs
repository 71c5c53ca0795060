//! What to connect to, and when: dials with back-off, bounded in every way, and in plain words what came of them.
//!
//! ```text
//!             due                    addresses, one after the other, overlapping
//!   Waiting ──────▶ Resolving ──────▶ Dialling ──────▶ Linked ──link lost──▶ Waiting
//!     ▲                │                  │ all failed
//!     └────────────────┴──────────────────┘  0.5 s, doubling to 30 s, ± 25 %
//! ```
//! An [`Errand`] is a target (a name or address by flag or command), a known peer, or a known peer through relays. At most [`DIALS_MAX`] dials by address and
//! as many through relays run at once, and no more start than the budget allows; who waited longest goes first, of equals targets. Deliberately lacks:
//! names' resolution, QUIC, which peers are worth a link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::api::LinkState;
use meshnet_proto::wire::control::CloseReason;
use rand::Rng;
use rand::rngs::StdRng;

use crate::node::{DialError, DialId};
use crate::time::Time;

/// Whom to dial. In order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Errand {
    /// `host:port` as configured.
    Target(String),
    /// A peer at addresses that are known.
    Peer(PeerId),
    /// A peer by its virtual address.
    Relayed(PeerId),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Dial.
    Dial {
        /// Number of the dial.
        dial: DialId,
        /// Where.
        remote: SocketAddr,
        /// Whom.
        expect: Option<PeerId>,
    },
    /// Resolve this target.
    Resolve(String),
}

/// How an errand stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it is.
    pub errand: Errand,
    /// The address tried last, or the target as given.
    pub address: String,
    /// The peer, when known.
    pub peer: Option<PeerId>,
    /// In one word.
    pub state: LinkState,
    /// Why, and what would help.
    pub reason: Option<String>,
    /// Time until the next try.
    pub retry: Option<Duration>,
    /// Tries in a row that failed.
    pub failures: u32,
}

#[derive(Debug)]
enum State {
    Waiting { until: Time },
    Resolving { until: Time },
    Dialling { active: Vec<Active>, next: usize, next_at: Time },
    Linked { since: Time },
}

#[derive(Debug, Clone, Copy)]
struct Active {
    dial: DialId,
    remote: SocketAddr,
    until: Time,
}

#[derive(Debug)]
struct Entry {
    state: State,
    addresses: Vec<SocketAddr>,
    peer: Option<PeerId>,
    failures: u32,
    /// The most telling failure of the round, with the address.
    trouble: Option<(SocketAddr, DialError)>,
    unresolved: Option<String>,
}

/// All errands.
#[derive(Debug)]
pub struct Dials {
    errands: BTreeMap<Errand, Entry>,
    by_dial: BTreeMap<DialId, Errand>,
    /// Peers that have a link, direct (false) or relayed (true).
    linked: BTreeSet<(PeerId, bool)>,
    last_dial: u64,
    /// Dials that may start now, in thousandths: direct ones, and those through relays.
    budget_milli: [u64; 2],
    refilled: Time,
    rng: StdRng,
}

impl Dials {
    /// None yet.
    pub fn new(rng: StdRng) -> Dials {
        Dials {
            errands: BTreeMap::new(),
            by_dial: BTreeMap::new(),
            linked: BTreeSet::new(),
            last_dial: 0,
            budget_milli: [BUDGET_MAX * 1000; 2],
            refilled: Time::ZERO,
            rng,
        }
    }

    /// Starts an errand `delay` from now, or gives a running one new addresses. False when there are too many.
    pub fn want(&mut self, now: Time, errand: Errand, addresses: &[SocketAddr], delay: Duration) -> bool {
        let addresses: Vec<SocketAddr> = addresses.iter().copied().take(ADDRESSES_MAX).collect();
        if let Some(entry) = self.errands.get_mut(&errand) {
            let fresh = addresses.iter().any(|address| !entry.addresses.contains(address));
            if !matches!(errand, Errand::Target(_)) {
                entry.addresses = addresses;
            }
            // A new address is a new chance.
            if let (true, State::Waiting { until }) = (fresh, &mut entry.state) {
                *until = (*until).min(now + delay);
            }
            return true;
        }
        if self.errands.len() >= ERRANDS_MAX {
            return false;
        }
        let peer = match &errand {
            Errand::Target(_) => None,
            Errand::Peer(peer) | Errand::Relayed(peer) => Some(*peer),
        };
        let state = State::Waiting { until: now + delay };
        self.errands.insert(errand, Entry { state, addresses, peer, failures: 0, trouble: None, unresolved: None });
        true
    }

    /// Ends an errand. Dials of it that still succeed count as strangers'.
    pub fn drop_errand(&mut self, errand: &Errand) {
        self.errands.remove(errand);
        self.by_dial.retain(|_, of| of != errand);
    }

    /// Whether this errand exists.
    pub fn has(&self, errand: &Errand) -> bool {
        self.errands.contains_key(errand)
    }

    /// The errands, in order.
    pub fn errands(&self) -> impl Iterator<Item = &Errand> {
        self.errands.keys()
    }

    /// Tries an errand again at once: its peer was heard of.
    pub fn hurry(&mut self, now: Time, errand: &Errand) {
        if let Some(entry) = self.errands.get_mut(errand)
            && let State::Waiting { until } = &mut entry.state
        {
            *until = now.min(*until);
            entry.failures = 0;
        }
    }

    /// A dial became a link to `peer`. Gives its errand, unless another dial of the errand was faster: then the link is one too many.
    pub fn on_opened(&mut self, now: Time, dial: DialId, peer: PeerId) -> Option<Errand> {
        let errand = self.by_dial.remove(&dial)?;
        let entry = self.errands.get_mut(&errand)?;
        if !matches!(entry.state, State::Dialling { .. }) {
            return None;
        }
        entry.peer = Some(peer);
        entry.state = State::Linked { since: now };
        let gone = errand.clone();
        self.by_dial.retain(|_, of| *of != gone);
        Some(errand)
    }

    /// A peer has a link now, whoever dialled: nothing more to do for it.
    pub fn on_linked(&mut self, now: Time, peer: PeerId, relayed: bool) {
        self.linked.insert((peer, relayed));
        for (errand, entry) in self.errands.iter_mut().filter(|(_, entry)| entry.peer == Some(peer)) {
            if relayed != matches!(errand, Errand::Relayed(_)) || matches!(entry.state, State::Linked { .. }) {
                continue;
            }
            // Dials under way may finish: the rule for duplicates decides. If they fail, the next tick sees that there is a link.
            if !matches!(entry.state, State::Dialling { .. }) {
                entry.state = State::Linked { since: now };
            }
        }
    }

    /// A peer has no link of this class any more, and these words tell why, if anything does.
    pub fn on_unlinked(&mut self, now: Time, peer: PeerId, relayed: bool, why: Option<DialError>) {
        self.linked.remove(&(peer, relayed));
        let Dials { errands, rng, .. } = self;
        for (errand, entry) in errands.iter_mut().filter(|(_, entry)| entry.peer == Some(peer)) {
            let State::Linked { since } = entry.state else { continue };
            if relayed != matches!(errand, Errand::Relayed(_)) {
                continue;
            }
            if now.since(since) >= STEADY {
                entry.failures = 0;
            }
            if let (Some(why), Some(address)) = (why.clone(), entry.addresses.first()) {
                entry.trouble = Some((*address, why));
            }
            entry.wait(now, rng);
        }
    }

    /// A dial came to nothing. Also for one that opened and ended before the hello.
    pub fn on_failed(&mut self, now: Time, dial: DialId, why: DialError) {
        let Some(errand) = self.by_dial.remove(&dial) else { return };
        let Dials { errands, rng, .. } = self;
        let Some(entry) = errands.get_mut(&errand) else { return };
        let State::Dialling { active, next, next_at } = &mut entry.state else { return };
        let Some(at) = active.iter().position(|of| of.dial == dial) else { return };
        let failed = active.swap_remove(at);
        *next_at = now;
        let over = active.is_empty() && *next >= entry.addresses.len();
        if entry.trouble.as_ref().is_none_or(|(_, old)| weight(&why) >= weight(old)) {
            entry.trouble = Some((failed.remote, why));
        }
        if over {
            entry.wait(now, rng);
        }
    }

    /// An errand's link ended before it was up, or was refused: as if the dial had failed.
    pub fn on_refused(&mut self, now: Time, errand: &Errand, remote: SocketAddr, why: DialError) {
        let Dials { errands, rng, .. } = self;
        let Some(entry) = errands.get_mut(errand) else { return };
        entry.trouble = Some((remote, why));
        entry.wait(now, rng);
    }

    /// A target's addresses.
    pub fn on_resolved(&mut self, now: Time, target: &str, result: Result<Vec<SocketAddr>, String>) {
        let Dials { errands, rng, .. } = self;
        let Some(entry) = errands.get_mut(&Errand::Target(target.to_owned())) else { return };
        if !matches!(entry.state, State::Resolving { .. }) {
            return;
        }
        match result {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.truncate(ADDRESSES_MAX);
                entry.addresses = addresses;
                entry.unresolved = None;
                entry.begin(now);
            }
            Ok(_) => entry.not_resolved(now, "no address".to_owned(), rng),
            Err(words) => entry.not_resolved(now, words, rng),
        }
    }

    /// Starts what is due and ends what takes too long.
    pub fn on_tick(&mut self, now: Time, out: &mut Vec<Ask>) {
        self.refill(now);
        self.expire(now);
        let Dials { errands, linked, rng, .. } = self;
        for (errand, entry) in errands.iter_mut() {
            let class = matches!(errand, Errand::Relayed(_));
            if matches!(entry.state, State::Waiting { .. })
                && entry.peer.is_some_and(|peer| linked.contains(&(peer, class)))
            {
                entry.state = State::Linked { since: now };
            }
            if let State::Waiting { until } = entry.state
                && until <= now
            {
                if let Errand::Target(target) = errand {
                    entry.state = State::Resolving { until: now + RESOLVE_WITHIN };
                    out.push(Ask::Resolve(target.clone()));
                } else if !entry.addresses.is_empty() {
                    entry.begin(now);
                }
            }
            // Its addresses were replaced by fewer while it waited for its turn: this round is over.
            if matches!(&entry.state, State::Dialling { active, next, .. } if active.is_empty() && *next >= entry.addresses.len())
            {
                entry.wait(now, rng);
            }
        }
        self.dial_due(now, out);
    }

    /// Starts the dials that are due, those that waited longest first: errands that fail again and again leave room for the others.
    fn dial_due(&mut self, now: Time, out: &mut Vec<Ask>) {
        let due = |(errand, entry): (&Errand, &Entry)| match entry.state {
            State::Dialling { next, next_at, .. } if next_at <= now && next < entry.addresses.len() => {
                Some((next_at, errand.clone()))
            }
            _ => None,
        };
        let mut waiting: Vec<(Time, Errand)> = self.errands.iter().filter_map(due).collect();
        waiting.sort();
        for (_, errand) in waiting {
            let class = errand.class();
            if self.full(class) {
                continue;
            }
            let Dials { errands, by_dial, last_dial, budget_milli, .. } = self;
            let Some(entry) = errands.get_mut(&errand) else { continue };
            let State::Dialling { active, next, next_at } = &mut entry.state else { continue };
            let (Some(remote), Some(budget)) = (entry.addresses.get(*next).copied(), budget_milli.get_mut(class))
            else {
                continue;
            };
            *budget = budget.saturating_sub(1000);
            *last_dial += 1;
            let dial = DialId(*last_dial);
            *next += 1;
            *next_at = now + STAGGER;
            active.push(Active { dial, remote, until: now + DIAL_WITHIN });
            let expect = entry.peer.filter(|_| !matches!(errand, Errand::Target(_)));
            by_dial.insert(dial, errand);
            out.push(Ask::Dial { dial, remote, expect });
        }
    }

    /// Whether no dial of this class may start now. Dials through relays have a share of their own: they are the way to peers whose addresses are all silent.
    fn full(&self, class: usize) -> bool {
        let running = self.by_dial.values().filter(|errand| errand.class() == class).count();
        running >= DIALS_MAX || self.budget_milli.get(class).is_none_or(|budget| *budget < 1000)
    }

    fn refill(&mut self, now: Time) {
        let earned = now.since(self.refilled).as_millis() as u64 * BUDGET_PER_S;
        self.refilled = now;
        for budget in &mut self.budget_milli {
            *budget = (*budget + earned).min(BUDGET_MAX * 1000);
        }
    }

    fn expire(&mut self, now: Time) {
        let Dials { errands, rng, .. } = self;
        let mut late = Vec::new();
        for entry in errands.values_mut() {
            match &entry.state {
                State::Resolving { until } if *until <= now => entry.not_resolved(now, "no answer".to_owned(), rng),
                State::Dialling { active, .. } => {
                    late.extend(active.iter().filter(|of| of.until <= now).map(|of| of.dial));
                }
                _ => {}
            }
        }
        for dial in late {
            self.on_failed(now, dial, DialError::Timeout);
        }
    }

    /// When [`Dials::on_tick`] has something to do.
    pub fn deadline(&self) -> Time {
        let full = [self.full(0), self.full(1)];
        let of = |(errand, entry): (&Errand, &Entry)| match &entry.state {
            State::Waiting { .. } if entry.addresses.is_empty() && entry.peer.is_some() => Time::NEVER,
            State::Waiting { until } | State::Resolving { until } => *until,
            State::Dialling { active, next, next_at } => {
                let expiry = active.iter().map(|of| of.until).min().unwrap_or(Time::NEVER);
                let full = full.get(errand.class()).copied().unwrap_or(true);
                if !full && *next < entry.addresses.len() { expiry.min(*next_at) } else { expiry }
            }
            State::Linked { .. } => Time::NEVER,
        };
        self.errands.iter().map(of).min().unwrap_or(Time::NEVER)
    }

    /// How all errands stand.
    pub fn standings(&self, now: Time) -> Vec<Standing> {
        self.errands.iter().map(|(errand, entry)| entry.standing(now, errand)).collect()
    }
}

impl Errand {
    /// 0: by an address, 1: through relays.
    fn class(&self) -> usize {
        usize::from(matches!(self, Errand::Relayed(_)))
    }
}

impl Entry {
    fn begin(&mut self, now: Time) {
        self.trouble = None;
        self.state = State::Dialling { active: Vec::new(), next: 0, next_at: now };
    }

    fn not_resolved(&mut self, now: Time, words: String, rng: &mut StdRng) {
        self.unresolved = Some(words);
        self.wait(now, rng);
    }

    /// Back-off: each failure in a row doubles it.
    fn wait(&mut self, now: Time, rng: &mut StdRng) {
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.failures.min(10)).min(BACKOFF_MAX);
        let hopeless =
            matches!(self.trouble, Some((_, DialError::Closed(CloseReason::OwnAddress | CloseReason::ClonedIdentity))));
        let wait = if hopeless { HOPELESS } else { doubled };
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { until: now + wait.mul_f64(rng.random_range(0.75..1.25)) };
    }

    fn standing(&self, now: Time, errand: &Errand) -> Standing {
        let mut state = match self.state {
            State::Linked { .. } => LinkState::Established,
            State::Waiting { .. } if self.failures > 0 => LinkState::Retrying,
            State::Waiting { .. } | State::Resolving { .. } | State::Dialling { .. } => LinkState::Connecting,
        };
        let mut reason = None;
        let mut address = match errand {
            Errand::Target(target) => target.clone(),
            Errand::Peer(_) | Errand::Relayed(_) => self.addresses.first().map(ToString::to_string).unwrap_or_default(),
        };
        if state != LinkState::Established {
            if let Some(words) = &self.unresolved {
                reason =
                    Some(format!("the name does not resolve ({words}): check its spelling and this machine's DNS"));
            } else if let Some((remote, why)) = &self.trouble {
                address = remote.to_string();
                reason = Some(words(why));
                if fatal(why) && state == LinkState::Retrying {
                    state = LinkState::Failed;
                }
            }
        }
        let retry = match self.state {
            State::Waiting { until } if self.failures > 0 => Some(until.since(now)),
            _ => None,
        };
        let failures = self.failures;
        Standing { errand: errand.clone(), address, peer: self.peer, state, reason, retry, failures }
    }
}

/// Why a dial failed and what would help, for people.
pub fn words(why: &DialError) -> String {
    let text = match why {
        DialError::Timeout => "nothing answers: check that meshd runs there and that its UDP port is open on the way",
        DialError::Secret => "its cluster secret is another than ours: give both the same secret file",
        DialError::Version => "it speaks another version of the protocol: update the older of the two",
        DialError::WrongPeer => "another peer answers at this address",
        DialError::Closed(reason) => return closed_words(*reason).to_owned(),
        DialError::Unreachable(words) => {
            return format!("the address cannot be reached ({words}): check routes and firewall");
        }
        DialError::Other(words) => return words.clone(),
    };
    text.to_owned()
}

/// What a close reason means, for people.
pub fn closed_words(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Stopping => "it has stopped",
        CloseReason::Duplicate => "another link to it stays",
        CloseReason::OwnAddress => "this is our own address: remove it from the peers to connect to",
        CloseReason::ClonedIdentity => {
            "another meshd runs with this identity: on one of the two machines stop meshd, delete its state directory, start it again"
        }
        CloseReason::Protocol => "it says that we broke the protocol: compare the versions of both",
        CloseReason::Version => "it speaks another version of the protocol: update the older of the two",
        CloseReason::Cluster => "it belongs to another cluster: check the cluster name of both",
        CloseReason::Full => "it has all the links it wants: raise --max-links there",
        CloseReason::Silent => "it heard nothing of us for too long: check the network between us",
        CloseReason::Unwanted => "it does not need this link",
        CloseReason::Slow => "it says that we do not take what it sends: check the load of this machine",
    }
}

/// Whether it can work again only when someone changes something.
fn fatal(why: &DialError) -> bool {
    weight(why) >= FATAL
}

/// Which of several failures tells most.
fn weight(why: &DialError) -> u8 {
    use CloseReason::{ClonedIdentity, Cluster, OwnAddress, Version};
    match why {
        DialError::Secret | DialError::Version => FATAL,
        DialError::Closed(OwnAddress | ClonedIdentity | Version | Cluster) => FATAL,
        DialError::Closed(_) => 3,
        DialError::Unreachable(_) | DialError::Other(_) => 2,
        DialError::Timeout => 1,
        DialError::WrongPeer => 0,
    }
}

const FATAL: u8 = 4;
/// First wait after a failure: a peer that restarts is back by then.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest wait: a healed partition must find itself within half a minute.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Wait when only an operator can help.
const HOPELESS: Duration = Duration::from_secs(60);
/// A link that lasted so long starts the back-off afresh.
const STEADY: Duration = Duration::from_secs(10);
/// The driver answers a dial within 5 s; this is for one that does not.
const DIAL_WITHIN: Duration = Duration::from_secs(8);
/// A resolver's own patience is 5 s for each of two servers.
const RESOLVE_WITHIN: Duration = Duration::from_secs(15);
/// The next address of a peer is tried while the one before is still silent (RFC 8305 proposes 250 ms).
const STAGGER: Duration = Duration::from_millis(300);
/// Dials at once, by address and again through relays: enough to mesh 30 peers in a second, too few to fill a NAT table.
const DIALS_MAX: usize = 8;
/// Dials that may start in a burst.
const BUDGET_MAX: u64 = 120;
/// Dials a second beyond that.
const BUDGET_PER_S: u64 = 2;
/// Addresses tried for one errand.
const ADDRESSES_MAX: usize = 16;
/// Errands: targets, wanted peers and relayed peers.
const ERRANDS_MAX: usize = 1024;

#[cfg(test)]
mod tests;
