//! Random schedules for the very machine of addresses: a seed decides all that goes wrong, and after each step the invariants are checked.
//!
//! ```text
//! up to 8 machines ⇄ a network that loses, repeats, reorders and splits ⇄ a disk each, whose last write may be missing after a crash
//! ```
//! Peers die for ever, lose their disk, are removed by several others at once, join and leave; addresses are given out, claimed and freed.
//! A schedule may end with everything healed, and then all must agree and nothing may be lost.
//!
//! May use: the machine and its private parts. Tests and benches only: it panics on its own mistakes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what it indexes it made; tests and benches only"
)]

mod heal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Ballot, Message, Span, Standing};

use super::*;

/// Peers that a schedule may have, one after the other.
const PEERS: usize = 8;
/// Those that begin with equal shares.
const SEEDS: usize = 4;
/// What is split: few addresses, so that they are fought for.
const RANGE: Span = Span { first: 0x0a20_0000, len: 16 };
/// Messages on their way; beyond it they are lost.
const NET_MAX: usize = 160;

/// What a schedule breaks, and how long it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    /// Rules taken away.
    pub without: Without,
    /// Who loses its disk comes back under its old name.
    pub keep_name: bool,
    /// Steps.
    pub steps: usize,
    /// At the end everything is healed and must come to rest.
    pub heal: bool,
}

/// What happened in a schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub given_out: u64,
    pub gifts: u64,
    pub joined: u64,
    pub left: u64,
    pub removed: u64,
    pub crashes: u64,
    pub healed: u64,
}

impl Counts {
    /// Sums up.
    pub fn add(&mut self, other: &Counts) {
        self.given_out += other.given_out;
        self.gifts += other.gifts;
        self.joined += other.joined;
        self.left += other.left;
        self.removed += other.removed;
        self.crashes += other.crashes;
        self.healed += other.healed;
    }
}

/// The draws of a schedule.
#[derive(Debug, Clone)]
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::topology::digest::mix(self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A message on its way.
#[derive(Debug, Clone)]
struct Letter {
    from: usize,
    to: usize,
    told: bool,
    message: Message,
}

struct Peer {
    machine: Ipam,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    pending: Option<(u64, Vec<Write>)>,
    /// Gone for ever.
    dead: bool,
    left: bool,
    /// Addresses that somebody was told here and did not give back.
    held: BTreeMap<u32, String>,
    /// Requests under way.
    asked: BTreeMap<u64, (String, Option<u32>)>,
    told: Option<Told>,
}

/// A schedule under way.
pub struct World {
    plan: Plan,
    draws: Draws,
    now: Time,
    peers: Vec<Peer>,
    views: Vec<View>,
    net: Vec<Letter>,
    side: [u8; PEERS],
    owners: BTreeMap<(u32, Ballot, u32), ShortId>,
    tokens: u64,
    refused: String,
    /// What went wrong, first.
    pub fault: Option<String>,
    /// What happened.
    pub counts: Counts,
}

/// Runs one schedule: what happened, and the first fault.
pub fn run(seed: u64, plan: Plan) -> (Counts, Option<String>) {
    let mut world = World::new(seed, plan);
    for step in 0..plan.steps {
        world.step();
        if let Some(fault) = &world.fault {
            return (world.counts, Some(format!("seed {seed}, step {step}: {fault}")));
        }
    }
    if plan.heal {
        world.heal();
        if let Some(fault) = &world.fault {
            return (world.counts, Some(format!("seed {seed}, healing: {fault}")));
        }
    }
    (world.counts, None)
}

fn id(at: usize) -> ShortId {
    ShortId(at as u64 + 1)
}

fn at(id: ShortId) -> usize {
    id.0 as usize - 1
}

fn linked(a: usize, b: usize) -> bool {
    let apart = a.abs_diff(b);
    a != b && (apart <= 2 || apart >= PEERS - 2)
}

impl World {
    /// The seeds, about to begin.
    pub fn new(seed: u64, plan: Plan) -> World {
        let mut world = World {
            plan,
            draws: Draws(seed.wrapping_mul(0xd134_2543_de82_ef95)),
            now: Time::from_us(1_000_000),
            peers: Vec::new(),
            views: Vec::new(),
            net: Vec::new(),
            side: [0; PEERS],
            owners: BTreeMap::new(),
            tokens: 0,
            refused: String::new(),
            fault: None,
            counts: Counts::default(),
        };
        for _ in 0..SEEDS {
            world.add();
        }
        for peer in 0..SEEDS {
            world.link_all(peer);
        }
        world
    }

    fn config(at: usize) -> Config {
        let init =
            if at < SEEDS { Init::Seeds((0..SEEDS).map(|seed| format!("p{seed}")).collect()) } else { Init::Auto };
        Config {
            me: id(at),
            name: format!("p{at}"),
            range: RANGE,
            subnet: RANGE,
            init,
            probe: false,
            cool_down: Duration::from_secs(5),
            seed: at as u64 * 77 + 1,
        }
    }

    fn machine(&self, at: usize, kept: &BTreeMap<Vec<u8>, Vec<u8>>) -> Ipam {
        let kept: Vec<(Vec<u8>, Vec<u8>)> = kept.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let mut machine = Ipam::new(self.now, World::config(at), &kept).expect("what was kept can be read");
        machine.rules.without = self.plan.without;
        machine
    }

    fn add(&mut self) -> usize {
        let at = self.peers.len();
        let machine = self.machine(at, &BTreeMap::new());
        self.peers.push(Peer {
            machine,
            disk: BTreeMap::new(),
            pending: None,
            dead: false,
            left: false,
            held: BTreeMap::new(),
            asked: BTreeMap::new(),
            told: None,
        });
        self.look();
        at
    }

    fn is_up(&self, at: usize) -> bool {
        self.peers.get(at).is_some_and(|peer| !peer.dead && !peer.left)
    }

    fn near(&self, a: usize, b: usize) -> bool {
        self.is_up(a) && self.is_up(b) && self.side[a] == self.side[b]
    }

    /// Everybody sees anew who can be reached. Seeds are known by name before they are.
    fn look(&mut self) {
        self.views = (0..self.peers.len())
            .map(|me| {
                let see = |other: usize| {
                    let reachable = self.near(me, other);
                    let told = self.peers[other].told;
                    let silent_for = if reachable { Duration::ZERO } else { Duration::from_secs(3600) };
                    (id(other), PeerView { name: format!("p{other}"), reachable, silent_for, told })
                };
                let peers = (0..self.peers.len()).filter(|other| *other != me).map(see).collect();
                View { peers, listed: BTreeSet::new(), targets: u16::from(me >= SEEDS) }
            })
            .collect();
        if self.peers.len() >= SEEDS {
            for peer in 0..self.peers.len() {
                self.handle(peer, Input::ViewChanged);
            }
        }
    }

    fn link_all(&mut self, peer: usize) {
        for other in (0..self.peers.len()).filter(|other| linked(peer, *other)) {
            if self.is_up(other) {
                self.handle(peer, Input::LinkUp { link: LinkId(other as u64), peer: id(other) });
                self.handle(other, Input::LinkUp { link: LinkId(peer as u64), peer: id(peer) });
            }
        }
    }

    fn handle(&mut self, peer: usize, input: Input) {
        if self.is_up(peer) {
            self.peers[peer].machine.handle(self.now, &self.views[peer], input);
            self.drain(peer);
        }
    }

    fn drain(&mut self, peer: usize) {
        let mut owners = false;
        while let Some(output) = self.peers[peer].machine.poll() {
            match output {
                Output::Keep { seq, writes } => {
                    if self.draws.below(4) > 0 {
                        self.commit(peer, &writes);
                        let kept = Input::Kept { seq, result: Ok(()) };
                        self.peers[peer].machine.handle(self.now, &self.views[peer], kept);
                    } else {
                        self.peers[peer].pending = Some((seq, writes));
                    }
                }
                Output::Send { to, message } => self.post(Letter { from: peer, to: at(to), told: false, message }),
                Output::Tell { link, message } => {
                    self.post(Letter { from: peer, to: link.0 as usize, told: true, message });
                }
                Output::Reply { token, result } => self.on_reply(peer, token, result),
                Output::Owners => owners = true,
                Output::Told(told) => {
                    self.peers[peer].told = Some(told);
                    for view in &mut self.views {
                        if let Some(seen) = view.peers.get_mut(&id(peer)) {
                            seen.told = Some(told);
                        }
                    }
                }
                Output::Left => {
                    self.peers[peer].left = true;
                    self.counts.left += 1;
                }
                Output::Probe(_) | Output::Removed | Output::Event { .. } => {}
            }
        }
        self.check(peer, owners && self.peers[peer].pending.is_none());
    }

    fn post(&mut self, letter: Letter) {
        let given =
            matches!(letter.message, Message::Answer { outcome: meshnet_proto::wire::ipam::Outcome::Given, .. });
        self.counts.gifts += u64::from(given);
        if self.net.len() < NET_MAX && letter.to < self.peers.len() {
            self.net.push(letter);
        }
    }

    fn commit(&mut self, peer: usize, writes: &[Write]) {
        for write in writes {
            match &write.value {
                Some(value) => drop(self.peers[peer].disk.insert(write.key.clone(), value.clone())),
                None => drop(self.peers[peer].disk.remove(&write.key)),
            }
        }
    }

    fn kept(&mut self, peer: usize) {
        if let Some((seq, writes)) = self.peers[peer].pending.take() {
            self.commit(peer, &writes);
            self.handle(peer, Input::Kept { seq, result: Ok(()) });
            let all = self.peers[peer].pending.is_none();
            self.check(peer, all);
        }
    }

    fn on_reply(&mut self, peer: usize, token: u64, result: Result<Answer, Refusal>) {
        let Some((owner, _)) = self.peers[peer].asked.remove(&token) else { return };
        match result {
            Ok(Answer::Address { address, .. }) => {
                self.counts.given_out += 1;
                let other = (0..self.peers.len()).find(|other| {
                    let held = &self.peers[*other].held;
                    self.counts_for(*other) && held.get(&address).is_some_and(|by| *other != peer || *by != owner)
                });
                if let Some(other) = other
                    && self.counts_for(peer)
                {
                    self.blame(format!("{address:x} is held at p{other}, and p{peer} gave it to {owner}"));
                }
                self.peers[peer].held.insert(address, owner);
            }
            Ok(Answer::Removed { .. }) => self.counts.removed += 1,
            Err(why) => self.refused = format!("p{peer}: {why}"),
            _ => {}
        }
    }

    /// Lives, and nobody alive says that it was removed.
    fn counts_for(&self, peer: usize) -> bool {
        self.is_up(peer) && !(0..self.peers.len()).any(|by| self.is_up(by) && self.removed(by, peer))
    }

    fn removed(&self, by: usize, peer: usize) -> bool {
        self.peers[by].machine.members.standing(id(peer)) == Some(Standing::Removed)
    }

    fn blame(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }

    /// The invariants, as far as a step of one peer can break them. `owners`: what it has on disk is all it knows, for a crash may take back the rest.
    fn check(&mut self, peer: usize, owners: bool) {
        if let Some(alarm) = self.peers[peer].machine.alarms.first() {
            let alarm = format!("p{peer} alarms: {alarm}");
            self.blame(alarm);
        }
        if owners {
            let runs: Vec<_> = self.peers[peer].machine.map.iter().map(|(span, held)| (span, *held)).collect();
            for (span, held) in runs {
                for address in span.first..span.end() as u32 {
                    let first = *self.owners.entry((address, held.ballot, held.version)).or_insert(held.owner);
                    if first != held.owner {
                        self.blame(format!(
                            "{address:x} at {:?}.{} is of {first:?} and of {:?}",
                            held.ballot, held.version, held.owner
                        ));
                    }
                }
            }
        }
        if !self.counts_for(peer) {
            return;
        }
        for other in (0..self.peers.len()).filter(|other| *other != peer) {
            let (mine, theirs) = (&self.peers[peer].machine.leases, &self.peers[other].machine.leases);
            if theirs.len() == 0 || mine.len() == 0 || !self.counts_for(other) {
                continue;
            }
            let twice = mine.iter().find(|(address, _)| theirs.get(*address).is_some()).map(|(address, _)| address);
            if let Some(address) = twice {
                self.blame(format!("{address:x} is given out at p{peer} and at p{other}"));
            }
        }
    }

    fn live(&self) -> Vec<usize> {
        (0..self.peers.len()).filter(|peer| self.is_up(*peer)).collect()
    }

    /// One random thing happens.
    pub fn step(&mut self) {
        self.now += Duration::from_millis(self.draws.next() % 50);
        let live = self.live();
        if live.is_empty() {
            return;
        }
        let peer = live[self.draws.below(live.len())];
        match self.draws.below(100) {
            0..=49 => self.deliver(),
            50..=58 => self.allocate(peer),
            59..=60 => self.claim(peer),
            61..=65 => self.free(peer),
            66..=76 => self.tick(peer),
            77..=80 => self.kept(peer),
            81 => self.link_all(peer),
            82..=84 => self.split(),
            85..=87 => self.crash(peer),
            88 => self.lose_disk(peer, live.len()),
            89 => self.die(peer, live.len()),
            90..=94 => self.remove(peer),
            95..=97 => self.join(),
            98 if live.len() > 3 && self.draws.one_in(3) => self.ask(peer, Request::Leave, String::new(), None),
            _ => {}
        }
    }

    fn deliver(&mut self) {
        if self.net.is_empty() {
            return;
        }
        let which = self.draws.below(self.net.len());
        let again = self.draws.one_in(10);
        let letter = if again { self.net[which].clone() } else { self.net.swap_remove(which) };
        // Rarely one arrives from before a split.
        let cut = self.side[letter.from] != self.side[letter.to] && !self.draws.one_in(30);
        if !cut && !self.draws.one_in(12) {
            self.arrive(letter);
        }
    }

    fn arrive(&mut self, letter: Letter) {
        let Letter { from, to, told, message } = letter;
        let input = if told {
            Input::Told { link: LinkId(from as u64), message }
        } else {
            Input::Message { from: id(from), message }
        };
        self.handle(to, input);
    }

    fn ask(&mut self, peer: usize, request: Request, owner: String, address: Option<u32>) {
        self.tokens += 1;
        self.peers[peer].asked.insert(self.tokens, (owner, address));
        self.handle(peer, Input::Request { token: self.tokens, request });
    }

    fn allocate(&mut self, peer: usize) {
        let owner = format!("c{}", self.tokens);
        self.ask(peer, Request::Alloc { owner: owner.clone(), within: None }, owner, None);
    }

    fn claim(&mut self, peer: usize) {
        let owner = format!("c{}", self.tokens);
        let address = RANGE.first + self.draws.below(RANGE.len as usize) as u32;
        self.ask(peer, Request::Claim { owner: owner.clone(), address }, owner, Some(address));
    }

    fn free(&mut self, peer: usize) {
        let held = &self.peers[peer].held;
        let Some((address, owner)) = held.iter().nth(self.draws.below(held.len())) else { return };
        let (address, owner) = (*address, owner.clone());
        self.peers[peer].held.remove(&address);
        let request = Request::Free { owner: owner.clone(), address: Some(address) };
        self.ask(peer, request, owner, Some(address));
    }

    fn tick(&mut self, peer: usize) {
        let due = self.peers[peer].machine.next_deadline();
        if due != Time::NEVER && due > self.now && self.draws.one_in(2) {
            self.now = due;
        }
        self.timeout(peer);
    }

    fn timeout(&mut self, peer: usize) {
        if self.is_up(peer) && self.peers[peer].machine.next_deadline() <= self.now {
            self.peers[peer].machine.handle_timeout(self.now, &self.views[peer]);
            self.drain(peer);
        }
    }

    fn split(&mut self) {
        let whole = self.draws.one_in(2);
        for side in 0..PEERS {
            self.side[side] = if whole { 0 } else { self.draws.below(2) as u8 };
        }
        self.look();
    }

    fn crash(&mut self, peer: usize) {
        self.counts.crashes += 1;
        if let Some((_, writes)) = self.peers[peer].pending.take()
            && self.draws.one_in(2)
        {
            self.commit(peer, &writes);
        }
        self.restart(peer);
    }

    fn restart(&mut self, peer: usize) {
        self.peers[peer].machine = self.machine(peer, &self.peers[peer].disk);
        self.peers[peer].asked.clear();
        // What somebody was told is remembered.
        let lost = self.peers[peer].held.iter().find(|(address, owner)| {
            let lease = self.peers[peer].machine.leases.get(**address);
            lease.is_none_or(|lease| lease.owner != **owner)
        });
        if let Some((address, owner)) = lost {
            let what = format!("p{peer} forgot that {address:x} was given to {owner}");
            self.blame(what);
        }
        self.handle(peer, Input::ViewChanged);
        self.link_all(peer);
    }

    fn lose_disk(&mut self, peer: usize, live: usize) {
        if self.plan.keep_name {
            self.peers[peer].disk.clear();
            self.peers[peer].pending = None;
            self.peers[peer].machine = self.machine(peer, &BTreeMap::new());
            self.peers[peer].asked.clear();
            self.handle(peer, Input::ViewChanged);
            self.link_all(peer);
        } else if self.peers.len() < PEERS && self.may_die(live) {
            self.peers[peer].dead = true;
            let new = self.add();
            self.link_all(new);
        }
    }

    fn may_die(&self, live: usize) -> bool {
        self.peers.iter().filter(|peer| peer.dead).count() < 3 && live > 3
    }

    fn die(&mut self, peer: usize, live: usize) {
        if self.may_die(live) {
            self.peers[peer].dead = true;
            self.look();
        }
    }

    fn remove(&mut self, peer: usize) {
        let dead: Vec<ShortId> = (0..self.peers.len()).filter(|at| self.peers[*at].dead).map(id).collect();
        if dead.is_empty() {
            return;
        }
        let peers = if self.draws.one_in(2) { dead } else { vec![dead[self.draws.below(dead.len())]] };
        self.ask(peer, Request::Remove { peers, force: false }, String::new(), None);
    }

    fn join(&mut self) {
        if self.peers.len() < PEERS && self.draws.one_in(3) {
            let new = self.add();
            self.counts.joined += 1;
            self.link_all(new);
        }
    }
}
