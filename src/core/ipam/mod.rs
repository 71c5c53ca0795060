//! Who owns which addresses, and which of its own this peer has given out.
//!
//! ```text
//!            genesis ──▶ member? ──join──▶ admitted ──▶ gives out its own addresses alone, gives some away, asks for more
//!                                              │
//!                     removed by the others ◀──┴──▶ leaves
//! ```
//! A map of runs with **a single writer for each address**: only its owner gives it out, or away, and only what is on disk is told ([`Output::Keep`]).
//! So "my disk says that I own it" implies that nobody else can. What remains are the rare decisions: the first split (`genesis`), joining
//! (`members`: a majority once, whose views contain each other), and taking back what a dead peer owned (`reclaim`: a promise of every live member, which
//! freezes late gifts, and no fewer members than are removed). None of them relies on clocks.
//!
//! The order of things on disk and on the wire is kept by [`Ipam::poll`]: what relies on a write comes out after [`Input::Kept`].
//!
//! May use: `proto`, the number of a link. Deliberately lacks: disks, links, records, names of networks. The rules and why they hold:
//! `proto/SPEC.md`, "Addresses".

mod genesis;
mod grant;
mod io;
mod joining;
mod keep;
mod lease;
mod map;
mod members;
#[cfg(test)]
mod model;
mod outside;
mod reclaim;
mod requests;
mod rules;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod spread;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Genesis, Message, Span, Standing};

use crate::node::{Level, LinkId};
use crate::time::Time;

pub use io::*;
pub use keep::KeptError;
pub use requests::{HEARD_LATELY, cidr, dotted};
pub use rules::Rules;
#[cfg(any(test, feature = "sim"))]
pub use rules::Without;

use genesis::Election;
use grant::Refill;
use joining::{Guests, Joining};
use keep::Keeping;
use lease::Leases;
use map::Map;
use members::{Adding, Members};
use reclaim::{Candidacy, Promises};
use requests::Waiting;

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ipam {
    config: Config,
    rules: Rules,

    // On disk.
    genesis: Option<Genesis>,
    /// Address spaces that this peer belonged to and gave up for another.
    left: BTreeSet<[u8; 16]>,
    map: Map,
    members: Members,
    promises: Promises,
    candidacy: Option<Candidacy>,
    vote: genesis::Vote,
    leases: Leases,

    // Of this process.
    doubt: Option<String>,
    alarms: BTreeSet<String>,
    leaving: Option<requests::Leaving>,
    gone: bool,
    links: BTreeMap<LinkId, ShortId>,
    joining: Joining,
    wanting: BTreeSet<ShortId>,
    guests: Guests,
    adding: Option<Adding>,
    election: Election,
    outside: outside::Outside,
    refill: Refill,
    waiting: BTreeMap<u64, Waiting>,
    /// Leases of another address space, refused here: address and why.
    conflicts: BTreeMap<u32, String>,
    next_token: u64,
    next_digest: Time,
    next_share: Time,
    told: Option<Told>,
    next_told: Time,
    /// Not before then is another address space told about this one again.
    next_dispute: Time,
    keeping: Keeping,
    draws: u64,
}

impl Ipam {
    /// A machine with what it kept.
    pub fn new(now: Time, config: Config, kept: &[(Vec<u8>, Vec<u8>)]) -> Result<Ipam, KeptError> {
        let mut ipam = Ipam::blank(now, config);
        ipam.restore(kept)?;
        Ok(ipam)
    }

    fn blank(now: Time, config: Config) -> Ipam {
        Ipam {
            rules: Rules::default(),
            genesis: None,
            left: BTreeSet::new(),
            map: Map::default(),
            members: Members::default(),
            promises: Promises::default(),
            candidacy: None,
            vote: genesis::Vote::default(),
            leases: Leases::default(),
            doubt: None,
            alarms: BTreeSet::new(),
            leaving: None,
            gone: false,
            links: BTreeMap::new(),
            joining: Joining::default(),
            wanting: BTreeSet::new(),
            guests: Guests::default(),
            adding: None,
            election: Election::new(now),
            outside: outside::Outside::default(),
            refill: Refill::default(),
            waiting: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            next_token: INTERNAL_TOKENS,
            next_digest: now + DIGEST_EVERY,
            next_share: now + SHARE_EVERY,
            told: None,
            next_told: now,
            next_dispute: now,
            keeping: Keeping::default(),
            draws: config.seed,
            config,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, view: &View, input: Input) {
        match input {
            Input::Request { token, request } => self.on_request(now, view, token, request),
            Input::Kept { seq, result } => self.on_kept(now, seq, result),
            Input::Message { from, message } => self.on_message(now, view, Some(from), None, message),
            Input::LinkUp { link, peer } => self.on_link_up(link, peer),
            Input::LinkDown { link } => drop(self.links.remove(&link)),
            Input::Told { link, message } => {
                let from = self.links.get(&link).copied();
                self.on_message(now, view, from, Some(link), message);
            }
            Input::Probed { addresses, taken } => self.on_probed(now, &addresses, &taken),
            Input::ViewChanged => self.on_view(now, view),
            Input::Alive(alive) => self.outside.alive = Some((alive, now)),
            Input::Space { space, begin } => self.on_space(now, view, space, begin),
            Input::Doubt(why) => self.doubt(why),
        }
        self.settle(now, view);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, view: &View) {
        self.begin_if_due(now, view, false);
        self.join_if_due(now, view, false);
        self.add_if_due(now, view, false);
        self.retry_candidacy(now, view, false);
        if now >= self.next_digest {
            self.next_digest = now + DIGEST_EVERY;
            self.compare();
            self.repeat_promises(view);
        }
        if now >= self.next_share {
            self.next_share = now + SHARE_EVERY;
            if self.active() {
                self.map.join_own(self.config.me);
            }
            self.share(view);
            self.refill(now, view);
            self.use_own_outcome();
            self.take_back();
            self.confirm_leases(now);
        }
        self.serve_waiting(now, view);
        self.leave_if_due(now, view);
        self.keep_again(now);
        self.settle(now, view);
    }

    /// When [`Ipam::handle_timeout`] has something to do.
    pub fn next_deadline(&self) -> Time {
        let some = [
            self.begin_deadline(),
            self.join_deadline(),
            self.adding.as_ref().map_or(Time::NEVER, |adding| adding.next),
            self.candidacy.as_ref().map_or(Time::NEVER, |candidacy| candidacy.next),
            self.next_digest,
            self.next_share,
            self.waiting.values().map(Waiting::deadline).min().unwrap_or(Time::NEVER),
            self.leaving.as_ref().map_or(Time::NEVER, |leaving| leaving.next),
            self.keeping.deadline(),
        ];
        some.into_iter().min().unwrap_or(Time::NEVER)
    }

    /// What is to be done next; none when all is done, or waits for a write.
    pub fn poll(&mut self) -> Option<Output> {
        self.keeping.poll()
    }

    fn on_message(&mut self, now: Time, view: &View, from: Option<ShortId>, link: Option<LinkId>, message: Message) {
        let Some(from) = from.filter(|from| *from != self.config.me) else { return };
        match message {
            Message::State { genesis, full, state } => self.on_state(now, view, from, link, genesis, full, &state),
            Message::Digest { cluster, hash } => self.on_digest(from, link, cluster, hash),
            Message::Stand(stand) => self.on_stand(now, view, from, stand),
            Message::Elect { ballot, electors } => self.on_elect(view, from, ballot, electors),
            Message::Elected { ballot, accepted } => self.on_elected(now, from, ballot, accepted),
            Message::Accept { ballot, decree } => self.on_accept(from, ballot, decree),
            Message::Accepted { ballot } => self.on_accepted(now, from, ballot),
            other => {
                // All that follows is about one address space.
                if self.genesis.is_some_and(|genesis| Some(genesis.uuid) == cluster_of(&other)) {
                    self.on_member_message(now, view, from, other);
                }
            }
        }
    }

    fn on_member_message(&mut self, now: Time, view: &View, from: ShortId, message: Message) {
        match message {
            Message::Ask { ask, .. } => self.on_ask(now, from, ask),
            Message::Answer { token, outcome, state, .. } => self.on_answer(now, view, from, token, outcome, &state),
            Message::Join { attempt, .. } => self.on_join(now, view, from, attempt),
            Message::Add { joiners, hash, members, .. } => self.on_add(from, joiners, hash, &members),
            Message::AddYes { joiners, hash, .. } => self.on_add_yes(from, &joiners, hash),
            Message::AddNo { members, .. } => self.on_add_no(now, view, from, &members),
            Message::Prepare { ballot, gone, .. } => self.on_prepare(now, view, from, ballot, &gone),
            Message::Promise { ballot, admitted, state, .. } => {
                self.on_promise(now, view, from, ballot, admitted, &state);
            }
            Message::Refuse { ballot, higher, alive, .. } => self.on_refuse(from, ballot, higher, alive),
            Message::Withdraw { ballot, gone, .. } => self.on_withdraw(ballot, &gone),
            Message::Leaving { state, .. } => self.on_leaving(from, &state),
            Message::Left { .. } => self.on_left(from),
            Message::Turn { attempt, .. } => self.on_turn(now, view, from, attempt),
            _ => {}
        }
    }

    fn on_view(&mut self, now: Time, view: &View) {
        self.withdraw_if_alive(view);
        self.begin_if_due(now, view, false);
        self.join_if_due(now, view, false);
    }

    fn doubt(&mut self, why: String) {
        if self.doubt.is_none() {
            self.event(Level::Warn, "addresses are in doubt: none is given out", why.clone());
            self.doubt = Some(why);
        }
    }

    /// Something that must never happen. Shown until the process ends.
    fn alarm(&mut self, what: String) {
        if self.alarms.len() < ALARMS_MAX && self.alarms.insert(what.clone()) {
            self.event(Level::Warn, "addresses contradict each other", what);
        }
    }

    /// May give out and give away.
    fn active(&self) -> bool {
        self.genesis.is_some() && self.belongs() && self.doubt.is_none() && self.leaving.is_none()
    }

    fn belongs(&self) -> bool {
        match self.members.standing(self.config.me) {
            Some(Standing::Admitted) => true,
            Some(Standing::Removed) => !self.rules.fence(),
            _ => false,
        }
    }

    fn is_admitted(&self, peer: ShortId) -> bool {
        self.members.standing(peer) == Some(Standing::Admitted)
    }

    fn cluster(&self) -> [u8; 16] {
        self.genesis.map_or([0; 16], |genesis| genesis.uuid)
    }

    fn send(&mut self, to: ShortId, message: Message) {
        self.keeping.push(Output::Send { to, message });
    }

    fn event(&mut self, level: Level, what: &'static str, detail: String) {
        self.keeping.push(Output::Event { level, what, detail });
    }

    /// A number that only this machine's seed and past decide.
    fn draw(&mut self) -> u64 {
        self.draws = crate::topology::digest::mix(self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.draws
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}

/// What status and metrics say.
impl Ipam {
    /// The address space this peer belongs to, or would.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who owns what.
    pub fn owners(&self) -> impl Iterator<Item = (Span, ShortId)> {
        self.map.iter().map(|(span, held)| (span, held.owner))
    }

    /// All members, removed ones too.
    pub fn members(&self) -> impl Iterator<Item = (ShortId, Standing)> {
        self.members.iter()
    }

    /// Ready, or what it waits for.
    pub fn ready(&self, view: &View) -> Result<(), String> {
        if let Some(why) = &self.doubt {
            return Err(why.clone());
        }
        if let Some(why) = self.keeping.failure() {
            return Err(format!("its state cannot be written: {why}"));
        }
        if self.config.init == Init::Observer {
            return Err("it only observes (--ipam-init observer)".into());
        }
        if self.leaving.is_some() {
            return Err("this peer is leaving".into());
        }
        if self.genesis.is_none() {
            return Err(self.why_no_genesis(view));
        }
        match self.members.standing(self.config.me) {
            Some(Standing::Admitted) => Ok(()),
            Some(Standing::Removed) => Err("the others declared this peer gone for good".into()),
            _ => Err(self.why_not_admitted(view)),
        }
    }

    /// Addresses given out here.
    pub fn used(&self) -> u64 {
        self.leases.len() as u64
    }

    /// Addresses that could be given out here now.
    pub fn free(&self) -> u64 {
        if self.active() { self.free_spans(None).iter().map(|span| u64::from(span.len)).sum() } else { 0 }
    }

    /// Hash of map and members: equal at peers that know the same.
    pub fn digest(&self) -> u64 {
        self.hash()
    }

    /// Leases whose address another owner gives out too, and why; addresses that strangers on the bridge use.
    pub fn conflicts(&self) -> impl Iterator<Item = (u32, String)> {
        let words = |address| (address, "somebody on the bridge has it without having been given it".to_owned());
        let claimed = self.conflicts.iter().map(|(address, why)| (*address, why.clone()));
        claimed.chain(self.leases.taken().into_iter().map(words))
    }

    /// What must never happen and did.
    pub fn alarms(&self) -> impl Iterator<Item = &str> {
        self.alarms.iter().map(String::as_str)
    }

    /// A removal under way: who is to go, and whose promise is missing.
    pub fn removal(&self) -> Option<(Vec<ShortId>, Vec<ShortId>)> {
        let candidacy = self.candidacy.as_ref()?;
        Some((candidacy.gone.iter().copied().collect(), self.missing_promises(None)))
    }

    /// Whether an address is given out here.
    pub fn is_leased(&self, address: u32) -> bool {
        self.leases.get(address).is_some()
    }

    /// All leases.
    pub fn leases(&self) -> Vec<LeaseLine> {
        self.leases.lines(self.leases.iter().map(|(address, _)| address))
    }

    /// Outputs wait for a write.
    pub fn is_waiting_for_disk(&self) -> bool {
        self.keeping.is_holding()
    }
}

fn cluster_of(message: &Message) -> Option<[u8; 16]> {
    use Message::*;
    match message {
        Ask { cluster, .. } | Answer { cluster, .. } | Join { cluster, .. } | Add { cluster, .. } => Some(*cluster),
        AddYes { cluster, .. } | AddNo { cluster, .. } | Prepare { cluster, .. } => Some(*cluster),
        Promise { cluster, .. } | Refuse { cluster, .. } | Withdraw { cluster, .. } => Some(*cluster),
        Leaving { cluster, .. } | Left { cluster } | Turn { cluster, .. } => Some(*cluster),
        State { .. } | Digest { .. } | Stand(_) | Elect { .. } | Elected { .. } | Accept { .. } | Accepted { .. } => {
            None
        }
    }
}

/// Between two attempts at something that waits for other peers.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// Between two comparisons with a neighbour.
const DIGEST_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at whether shares are fair.
const SHARE_EVERY: Duration = Duration::from_millis(500);
/// Contradictions that are remembered for the status.
const ALARMS_MAX: usize = 16;
/// Tokens above this are the machine's own.
const INTERNAL_TOKENS: u64 = 1 << 62;
