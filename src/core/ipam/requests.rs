//! What people and programs ask: answered at once when this peer can, else when others have answered, or not in time.

use std::collections::BTreeSet;
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Ask, Message, Outcome, Span, Standing, State};

use super::lease::Lease;
use super::{Answer, Init, Ipam, Output, Refusal, Request, View};
use crate::node::Level;
use crate::time::Time;

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    what: Want,
    until: Time,
    /// Members that had nothing.
    asked: BTreeSet<ShortId>,
    /// The one asked now, and until when.
    ask: Option<(u64, ShortId, Time)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Want {
    Some { owner: String, within: Span },
    One { owner: String, address: u32, confirm: bool },
    Gone(Vec<ShortId>),
}

impl Waiting {
    pub fn deadline(&self) -> Time {
        self.ask.map_or(self.until, |(_, _, until)| until.min(self.until))
    }
}

/// This peer's way out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Leaving {
    token: u64,
    heir: Option<ShortId>,
    until: Time,
    pub next: Time,
}

type Outcomes = Result<Answer, Refusal>;

impl Ipam {
    pub(super) fn on_request(&mut self, now: Time, view: &View, token: u64, request: Request) {
        if let Some(result) = self.request(now, view, token, request) {
            self.reply(token, result);
        }
    }

    fn reply(&mut self, token: u64, result: Outcomes) {
        if token < super::INTERNAL_TOKENS {
            self.keeping.push(Output::Reply { token, result });
        }
    }

    /// None: it waits.
    fn request(&mut self, now: Time, view: &View, token: u64, request: Request) -> Option<Outcomes> {
        let reads = matches!(request, Request::Lookup { .. } | Request::List);
        if let Some(why) = self.keeping.failure().filter(|_| !reads) {
            return Some(Err(Refusal::Later(format!("nothing is given out, for it cannot be written: {why}"))));
        }
        match request {
            Request::Lookup { owner } => {
                let addresses = self.leases.addresses_of(&owner);
                if addresses.is_empty() {
                    return Some(Err(Refusal::No(format!("'{owner}' has no address here (meshctl ip list)"))));
                }
                Some(Ok(Answer::Leases(self.leases.lines(addresses.into_iter()))))
            }
            Request::List => Some(Ok(Answer::Leases(self.leases()))),
            Request::Free { owner, address } => Some(self.free_lease(now, &owner, address)),
            Request::Alloc { owner, within } => {
                let within = within.unwrap_or(self.config.subnet);
                if super::map::overlap(within, self.config.range) != Some(within) {
                    let (within, range) = (cidr(within), cidr(self.config.range));
                    return Some(Err(Refusal::No(format!("{within} is not within {range} (--ipam-range)"))));
                }
                if let Some((address, subnet)) = self.leases.of_owner(&owner, within) {
                    return Some(Ok(Answer::Address { address, subnet }));
                }
                self.wait(now, view, token, Want::Some { owner, within })
            }
            Request::Claim { owner, address } => self.check_claim(address).map_or_else(
                || self.wait(now, view, token, Want::One { owner, address, confirm: false }),
                |refusal| Some(Err(refusal)),
            ),
            Request::Remove { peers, force } => {
                if !self.active() {
                    return Some(Err(Refusal::Later(self.ready(view).err().unwrap_or_default())));
                }
                if peers.contains(&self.config.me) {
                    return Some(Err(Refusal::No(
                        "this is the peer itself: meshctl leave gives back what it owns".into(),
                    )));
                }
                let present: Vec<ShortId> = self.members.present().collect();
                if !peers.is_empty() && peers.iter().all(|id| self.members.is_removed(*id)) {
                    return Some(Ok(Answer::Removed { addresses: 0 }));
                }
                let gone: Vec<ShortId> = peers.iter().copied().filter(|id| present.contains(id)).collect();
                if let Some(refusal) = self.check_alive(view, &gone).filter(|_| !force) {
                    return Some(Err(refusal));
                }
                self.waiting.insert(
                    token,
                    Waiting {
                        what: Want::Gone(gone.clone()),
                        until: now + REMOVAL_TIME,
                        asked: BTreeSet::new(),
                        ask: None,
                    },
                );
                if let Err(refusal) = self.remove(now, view, &gone, force, false) {
                    self.waiting.remove(&token);
                    return Some(Err(refusal));
                }
                None
            }
            Request::Leave => self.leave(now, view, token),
        }
    }

    /// Whom somebody heard a moment ago is not taken for dead.
    fn check_alive(&self, view: &View, gone: &[ShortId]) -> Option<Refusal> {
        let heard = |id: &ShortId| {
            let peer = view.peers.get(id)?;
            (peer.reachable || peer.silent_for < HEARD_LATELY)
                .then(|| format!("{} was heard within the last 60 s: stop it and wait, or --force", peer.name))
        };
        gone.iter().find_map(heard).map(Refusal::No)
    }

    fn check_claim(&self, address: u32) -> Option<Refusal> {
        let range = self.config.range;
        let words = dotted(address);
        if !range.contains(address) {
            return Some(Refusal::No(format!("{words} is not within {} (--ipam-range)", cidr(range))));
        }
        if self.is_reserved(address, self.config.subnet) {
            return Some(Refusal::No(format!(
                "{words} is the first or last address of its network: nobody can have it"
            )));
        }
        None
    }

    fn wait(&mut self, now: Time, view: &View, token: u64, what: Want) -> Option<Outcomes> {
        if self.config.init == Init::Observer || self.members.is_removed(self.config.me) && self.rules.fence() {
            return Some(Err(Refusal::No(self.ready(view).err().unwrap_or_default())));
        }
        if self.waiting.len() >= WAITING_MAX {
            return Some(Err(Refusal::Later("too many requests wait for addresses: try again in a moment".into())));
        }
        let waiting = Waiting { what, until: now + REQUEST_TIME, asked: BTreeSet::new(), ask: None };
        self.waiting.insert(token, waiting);
        self.serve_one(now, view, token);
        None
    }

    /// Names a network or its broadcast: given to nobody.
    pub(super) fn is_reserved(&self, address: u32, within: Span) -> bool {
        [within, self.config.subnet, self.config.range].iter().any(|span| is_edge(*span, address))
    }

    /// Looks at everything that waits.
    pub(super) fn serve_waiting(&mut self, now: Time, view: &View) {
        let tokens: Vec<u64> = self.waiting.keys().copied().collect();
        for token in tokens {
            self.serve_one(now, view, token);
        }
    }

    fn serve_one(&mut self, now: Time, view: &View, token: u64) {
        let Some(mut waiting) = self.waiting.remove(&token) else { return };
        if let Some((_, peer, until)) = waiting.ask
            && now >= until
        {
            waiting.asked.insert(peer);
            waiting.ask = None;
        }
        let result = match waiting.what.clone() {
            Want::Gone(gone) => self.serve_removal(&gone),
            _ if !self.active() => None,
            Want::Some { owner, within } => self.serve_some(now, view, &mut waiting, owner, within),
            Want::One { owner, address, confirm } => self.serve_claim(now, view, &mut waiting, owner, address, confirm),
        };
        let over = now >= waiting.until;
        match result {
            Some(result) => self.finish(token, &waiting.what, result),
            None if over => {
                let why = self.why_late(view, &waiting);
                self.finish(token, &waiting.what, Err(Refusal::Later(why)));
            }
            None => drop(self.waiting.insert(token, waiting)),
        }
    }

    fn finish(&mut self, token: u64, what: &Want, result: Outcomes) {
        if let Want::One { address, confirm: true, .. } = what {
            match &result {
                Ok(_) => drop(self.conflicts.remove(address)),
                Err(Refusal::No(why) | Refusal::Later(why)) => drop(self.conflicts.insert(*address, why.clone())),
            }
        }
        self.reply(token, result);
    }

    fn why_late(&self, view: &View, waiting: &Waiting) -> String {
        if let Err(why) = self.ready(view) {
            return why;
        }
        let name = |id: &ShortId| view.peers.get(id).map_or_else(|| format!("{id:?}"), |peer| peer.name.clone());
        match &waiting.what {
            Want::Gone(_) => {
                let missing: Vec<String> = self.missing_promises(None).iter().map(name).collect();
                if missing.is_empty() {
                    return "more members would be removed than remain to agree: bring some back, or --force".into();
                }
                format!(
                    "it goes on by itself, but these have not agreed yet: {} (remove those that are gone too, or --force)",
                    missing.join(", ")
                )
            }
            Want::One { address, .. } => {
                let owner = self.map.at(*address).map(|(_, held)| name(&held.owner)).unwrap_or_default();
                format!("{} belongs to {owner}, which does not answer: try again when it does", dotted(*address))
            }
            Want::Some { .. } => "the other peers did not answer in time: try again".into(),
        }
    }

    fn serve_some(
        &mut self,
        now: Time,
        view: &View,
        waiting: &mut Waiting,
        owner: String,
        within: Span,
    ) -> Option<Outcomes> {
        if let Some((address, subnet)) = self.leases.of_owner(&owner, within) {
            return Some(Ok(Answer::Address { address, subnet }));
        }
        let spans = self.own_spans(within);
        let allowed = |address: u32| !self.is_reserved(address, within);
        let at_hand = |address: u32| allowed(address) && (!self.config.probe || self.leases.is_fresh(address, now));
        if let Some(address) = self.leases.pick(now, &spans, at_hand) {
            self.leases.insert(address, Lease { owner, subnet: within, unconfirmed: false });
            return Some(Ok(Answer::Address { address, subnet: within }));
        }
        if self.config.probe && self.leases.pick(now, &spans, allowed).is_some() {
            self.probe(now, &spans, within);
            return None;
        }
        if waiting.ask.is_some() {
            return None;
        }
        let Some(donor) = self.donors(view, &waiting.asked).into_iter().next() else {
            let unreachable = self
                .members
                .admitted()
                .any(|id| id != self.config.me && !view.peers.get(&id).is_some_and(|peer| peer.reachable));
            let others = if unreachable {
                "no peer that can be reached has any left; what unreachable peers own comes back with them, or by meshctl rmpeer"
            } else {
                "no other peer has any left: free some, or begin with a larger --ipam-range"
            };
            return Some(Err(Refusal::No(format!(
                "{} is exhausted: every address is given out, and {others}",
                cidr(within)
            ))));
        };
        let want = (within.len / 8).clamp(1, ASK_MOST);
        self.ask(now, waiting, donor, within, want);
        None
    }

    fn serve_claim(
        &mut self,
        now: Time,
        view: &View,
        waiting: &mut Waiting,
        owner: String,
        address: u32,
        confirm: bool,
    ) -> Option<Outcomes> {
        let subnet = self.config.subnet;
        let subnet = if subnet.contains(address) { subnet } else { self.config.range };
        let words = dotted(address);
        let held = self.map.at(address).map(|(_, held)| *held);
        if let Some(lease) = self.leases.get(address) {
            if lease.owner != owner {
                return Some(Err(Refusal::No(format!("{words} is given out to '{}' already", lease.owner))));
            }
            let subnet = lease.subnet;
            if !lease.unconfirmed {
                return Some(Ok(Answer::Address { address, subnet }));
            }
        }
        let held = held?;
        if held.owner == self.config.me {
            if held.suspended {
                return None;
            }
            if self.leases.get(address).is_some() {
                self.leases.set_unconfirmed(address, false);
            } else if !confirm {
                self.leases.insert(address, Lease { owner, subnet, unconfirmed: false });
            }
            return Some(Ok(Answer::Address { address, subnet }));
        }
        let there = view.peers.get(&held.owner);
        if waiting.asked.contains(&held.owner) {
            let name = there.map_or_else(|| format!("{:?}", held.owner), |peer| peer.name.clone());
            return Some(Err(Refusal::No(format!("{words} is in use at {name}: choose another, or free it there"))));
        }
        if waiting.ask.is_none() && there.is_some_and(|peer| peer.reachable) {
            self.ask(now, waiting, held.owner, Span { first: address, len: 1 }, 1);
        }
        None
    }

    fn ask(&mut self, now: Time, waiting: &mut Waiting, donor: ShortId, within: Span, want: u32) {
        let token = self.token();
        waiting.ask = Some((token, donor, now + ASK_TIME));
        self.send(donor, Message::Ask { cluster: self.cluster(), ask: Ask { token, within, want } });
    }

    pub(super) fn on_ask_answered(&mut self, now: Time, view: &View, from: ShortId, token: u64, outcome: Outcome) {
        for waiting in self.waiting.values_mut() {
            if waiting.ask.is_some_and(|(asked, peer, _)| asked == token && peer == from) {
                waiting.ask = None;
                if outcome != Outcome::Given {
                    waiting.asked.insert(from);
                }
            }
        }
        self.serve_waiting(now, view);
    }

    fn free_lease(&mut self, now: Time, owner: &str, address: Option<u32>) -> Outcomes {
        let all = self.leases.addresses_of(owner);
        let some: Vec<u32> = all.into_iter().filter(|each| address.is_none_or(|address| address == *each)).collect();
        if some.is_empty() {
            let what = address.map_or_else(|| "an address".to_owned(), dotted);
            return Err(Refusal::No(format!("'{owner}' does not have {what} here (meshctl ip list)")));
        }
        for address in some {
            self.leases.remove(address, Some(now + self.config.cool_down));
            self.conflicts.remove(&address);
            self.give_back(address);
        }
        Ok(Answer::Done)
    }
}

/// Probing on the bridge.
impl Ipam {
    fn probe(&mut self, now: Time, spans: &[Span], within: Span) {
        if self.leases.is_probing() {
            return;
        }
        let (range, subnet) = (self.config.range, self.config.subnet);
        let allowed = |address: u32| ![within, subnet, range].iter().any(|span| is_edge(*span, address));
        let some = self.leases.begin_probe(now, spans, allowed);
        if !some.is_empty() {
            self.keeping.push(Output::Probe(some));
        }
    }

    /// Keeps some addresses at hand that nobody on the bridge has.
    pub(super) fn probe_ahead(&mut self, now: Time) {
        if !self.config.probe || !self.active() {
            return;
        }
        let subnet = self.config.subnet;
        let spans = self.own_spans(subnet);
        if self.leases.fresh_within(now, &spans) < AT_HAND {
            self.probe(now, &spans, subnet);
        }
    }

    pub(super) fn on_probed(&mut self, now: Time, addresses: &[u32], taken: &[u32]) {
        for address in self.leases.on_probed(now, addresses, taken) {
            self.event(Level::Warn, "somebody on the bridge has an address that was not given out", dotted(address));
        }
        self.leases.forget_probes();
    }
}

/// Leases that came from another address space.
impl Ipam {
    pub(super) fn confirm_leases(&mut self, now: Time) {
        if !self.active() {
            return;
        }
        let busy: BTreeSet<u32> = self
            .waiting
            .values()
            .filter_map(|waiting| match &waiting.what {
                Want::One { address, confirm: true, .. } => Some(*address),
                _ => None,
            })
            .collect();
        let open = |address: &u32| !busy.contains(address) && !self.conflicts.contains_key(address);
        let unconfirmed = self.leases.iter().filter(|(_, lease)| lease.unconfirmed);
        let some: Vec<(u32, String)> = unconfirmed
            .filter(|(address, _)| open(address))
            .map(|(address, lease)| (address, lease.owner.clone()))
            .take(CONFIRM_AT_ONCE)
            .collect();
        for (address, owner) in some {
            let token = self.token();
            let what = Want::One { owner, address, confirm: true };
            let until = now + REQUEST_TIME;
            self.waiting.insert(token, Waiting { what, until, asked: BTreeSet::new(), ask: None });
        }
    }
}

/// Removals that somebody waits for.
impl Ipam {
    fn serve_removal(&self, gone: &[ShortId]) -> Option<Outcomes> {
        let over = gone.iter().all(|id| self.members.is_removed(*id));
        over.then_some(Ok(Answer::Removed { addresses: 0 }))
    }

    pub(super) fn answer_removals(&mut self, mut answer: impl FnMut(&[ShortId]) -> Option<Outcomes>) {
        let of = |(token, waiting): (&u64, &Waiting)| match &waiting.what {
            Want::Gone(gone) => answer(gone).map(|result| (*token, result)),
            _ => None,
        };
        let done: Vec<(u64, Outcomes)> = self.waiting.iter().filter_map(of).collect();
        for (token, result) in done {
            self.waiting.remove(&token);
            self.reply(token, result);
        }
    }
}

/// Leaving.
impl Ipam {
    fn leave(&mut self, now: Time, view: &View, token: u64) -> Option<Outcomes> {
        if self.leases.len() > 0 {
            let count = self.leases.len();
            return Some(Err(Refusal::No(format!(
                "{count} addresses are given out here: free them first (meshctl ip list, meshctl ip free)"
            ))));
        }
        let others = self.members.present().filter(|id| *id != self.config.me).count();
        let admitted = self.is_admitted(self.config.me);
        if self.genesis.is_none() || others == 0 || self.members.is_removed(self.config.me) {
            self.keeping.push(Output::Left);
            return Some(Ok(Answer::Done));
        }
        if self.doubt.is_some() {
            return Some(Err(Refusal::No(self.ready(view).err().unwrap_or_default())));
        }
        let Some(heir) = self.heir(view) else {
            if !admitted {
                self.keeping.push(Output::Left);
                return Some(Ok(Answer::Done));
            }
            return Some(Err(Refusal::Later("no other member can be reached to take what this peer owns".into())));
        };
        self.give_all(heir);
        self.withdraw(Some("this peer leaves"));
        self.adding = None;
        self.leaving = Some(Leaving { token, heir: Some(heir), until: now + REMOVAL_TIME, next: now });
        self.members.raise(self.config.me, Standing::Removed);
        self.leave_if_due(now, view);
        None
    }

    /// Who has the least of those that can be reached.
    fn heir(&self, view: &View) -> Option<ShortId> {
        let near = |id: &ShortId| view.peers.get(id).is_some_and(|peer| peer.reachable);
        let owned = |id: ShortId| -> u64 {
            let spans = self.map.iter().filter(|(_, held)| held.owner == id);
            spans.map(|(span, _)| u64::from(span.len)).sum()
        };
        let others = self.members.admitted().filter(|id| *id != self.config.me && near(id) && !self.is_frozen(*id));
        others.min_by_key(|id| (owned(*id), *id))
    }

    pub(super) fn leave_if_due(&mut self, now: Time, view: &View) {
        let another = self.heir(view);
        let Some(leaving) = &mut self.leaving else { return };
        let Some(mut heir) = leaving.heir else {
            leaving.next = Time::NEVER;
            return;
        };
        if self.members.is_removed(heir)
            && let Some(another) = another
        {
            // It left, too, before it took anything.
            heir = another;
            leaving.heir = Some(heir);
            leaving.next = now;
            self.pass_on_lost(heir);
        }
        let Some(leaving) = &mut self.leaving else { return };
        if now < leaving.next {
            return;
        }
        leaving.next = now + ASK_TIME;
        if now >= leaving.until {
            // It is written: others learn it when this peer, or anybody who heard, meets them.
            let (token, why) =
                (leaving.token, "nobody took what this peer gave back: keep it running until they can be reached");
            leaving.until = now + REMOVAL_TIME;
            self.reply(token, Err(Refusal::Later(why.into())));
            return;
        }
        // What somebody gave before it heard of it comes too late: the giver takes it back.
        let message = Message::Leaving { cluster: self.cluster(), state: self.whole() };
        self.send(heir, message);
    }

    pub(super) fn on_leaving(&mut self, from: ShortId, state: &State) {
        let _ = self.merge(state, true);
        // Who leaves itself keeps nothing.
        if self.leaving.is_none() {
            self.send(from, Message::Left { cluster: self.cluster() });
        }
    }

    pub(super) fn on_left(&mut self, from: ShortId) {
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.heir != Some(from) {
            return;
        }
        leaving.heir = None;
        let token = leaving.token;
        self.reply(token, Ok(Answer::Done));
        self.keeping.push(Output::Left);
    }
}

fn is_edge(span: Span, address: u32) -> bool {
    span.len > 2 && (address == span.first || u64::from(address) + 1 == span.end())
}

/// `10.32.0.1`.
pub fn dotted(address: u32) -> String {
    std::net::Ipv4Addr::from(address).to_string()
}

/// `10.32.0.0/12`, or the first address and the number of them.
pub fn cidr(span: Span) -> String {
    let aligned = span.len.is_power_of_two() && span.first & (span.len - 1) == 0;
    if aligned {
        format!("{}/{}", dotted(span.first), 32 - span.len.ilog2())
    } else {
        format!("{} and the {} after it", dotted(span.first), span.len - 1)
    }
}

/// Longest wait for an address: a container's start waits as long.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Longest wait for a removal; it goes on by itself afterwards.
const REMOVAL_TIME: Duration = Duration::from_secs(8);
/// Longest wait for one peer's answer.
const ASK_TIME: Duration = Duration::from_secs(1);
/// A peer that was heard within this time may be cut off only.
pub const HEARD_LATELY: Duration = Duration::from_secs(60);
/// Requests that wait at once.
const WAITING_MAX: usize = 1024;
/// Addresses asked for with one that is wanted.
const ASK_MOST: u32 = 256;
/// Addresses known to be free on the bridge.
const AT_HAND: usize = 64;
/// Leases of another space that are claimed at once.
const CONFIRM_AT_ONCE: usize = 16;
