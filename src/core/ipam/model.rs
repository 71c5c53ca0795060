//! The very machine under a model checker: every order, loss and repetition of messages in small configurations. A message stays in the network once it
//! was sent, so it may come at any later time, never, or again. Disks write at once: what a crash may lose is the random schedules' part (`sim`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Ask, Message, Span, Standing};
use stateright::{Checker, Model, Property};

use super::*;

const RANGE: Span = Span { first: 0x0a20_0000, len: 8 };
/// States looked at in the larger configurations, shortest ways first.
const STATES: usize = 150_000;
/// More than the smaller ones have.
const ALL: usize = 2_000_000;
const LONGEST: Duration = Duration::from_secs(120);
const NOW: Time = Time::from_us(1_000_000_000);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Letter {
    from: usize,
    to: usize,
    message: Message,
}

/// How often each thing may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Budget {
    asks: u8,
    dies: u8,
    removals: u8,
    joins: u8,
    gossip: u8,
    leaves: u8,
    allocs: u8,
    proposals: u8,
    confirms: u8,
    restarts: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    machines: Vec<Ipam>,
    net: BTreeSet<Letter>,
    dead: BTreeSet<usize>,
    left: Budget,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    Deliver(Letter),
    Ask(usize, usize),
    Die(usize),
    Remove(usize),
    Join(usize, usize),
    Gossip(usize, usize),
    Leave(usize),
    Alloc(usize),
    Propose(usize),
    Confirm(usize),
    Restart(usize),
}

#[derive(Clone)]
enum Begin {
    Seeds(usize),
    Election,
    Founders,
}

#[derive(Clone)]
struct Small {
    peers: usize,
    begin: Begin,
    without: Without,
    budget: Budget,
    /// Who may die, or leave.
    mortal: Vec<usize>,
    /// Who may remove them.
    removers: Vec<usize>,
    /// Who may ask for addresses.
    askers: Vec<usize>,
}

impl Small {
    fn seeds(peers: usize, seeds: usize, budget: Budget) -> Small {
        Small {
            peers,
            begin: Begin::Seeds(seeds),
            without: Without::default(),
            budget,
            mortal: vec![0],
            removers: vec![2],
            askers: vec![1],
        }
    }

    fn view(&self, me: usize, dead: &BTreeSet<usize>) -> View {
        let see = |other: usize| {
            let (name, reachable) = (format!("p{other}"), !dead.contains(&other));
            (id(other), PeerView { name, reachable, silent_for: Duration::from_secs(999), told: None })
        };
        let peers: BTreeMap<ShortId, PeerView> = (0..self.peers).filter(|other| *other != me).map(see).collect();
        let listed = peers.keys().copied().collect();
        let targets = match self.begin {
            Begin::Seeds(_) => 1,
            Begin::Election => self.peers as u16 - 1,
            Begin::Founders => 0,
        };
        View { peers, listed, targets }
    }

    fn machine(&self, at: usize) -> Ipam {
        let init = match self.begin {
            Begin::Seeds(seeds) if at < seeds => Init::Seeds((0..seeds).map(|seed| format!("p{seed}")).collect()),
            _ => Init::Auto,
        };
        let (range, subnet, name) = (RANGE, RANGE, format!("p{at}"));
        let seed = at as u64 * 7 + 1;
        let config = Config { me: id(at), name, range, subnet, init, probe: false, cool_down: Duration::ZERO, seed };
        let mut machine = Ipam::blank(NOW, config);
        machine.rules.without = self.without;
        machine
    }

    fn input(&self, state: &mut State, to: usize, input: Input) {
        let view = self.view(to, &state.dead);
        state.machines[to].handle(NOW, &view, input);
        self.drain(state, to);
    }

    fn drain(&self, state: &mut State, at: usize) {
        let view = self.view(at, &state.dead);
        while let Some(output) = state.machines[at].poll() {
            match output {
                Output::Keep { seq, .. } => state.machines[at].handle(NOW, &view, Input::Kept { seq, result: Ok(()) }),
                Output::Send { to, message } if number(to) < self.peers => {
                    state.net.insert(Letter { from: at, to: number(to), message });
                }
                _ => {}
            }
        }
        // What says nothing about addresses would only make equal states differ.
        let machine = &mut state.machines[at];
        machine.keeping = Keeping::default();
        machine.told = None;
        machine.draws = machine.config.seed;
    }
}

fn id(at: usize) -> ShortId {
    ShortId(at as u64 + 1)
}

fn number(id: ShortId) -> usize {
    id.0 as usize - 1
}

impl Model for Small {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let machines = (0..self.peers).map(|at| self.machine(at)).collect();
        let mut state = State { machines, net: BTreeSet::new(), dead: BTreeSet::new(), left: self.budget };
        for at in 0..self.peers {
            if !matches!(self.begin, Begin::Election) {
                self.input(&mut state, at, Input::ViewChanged);
            }
        }
        if let Begin::Seeds(seeds) = self.begin {
            for at in seeds..self.peers {
                let message = state.machines[0].full_state();
                self.input(&mut state, at, Input::Message { from: id(0), message });
            }
        }
        state.net.clear();
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.net.iter().filter(|l| !state.dead.contains(&l.to)).cloned().map(Action::Deliver));
        let left = state.left;
        for at in (0..self.peers).filter(|at| !state.dead.contains(at)) {
            for to in (0..self.peers).filter(|to| *to != at) {
                let mut when = |budget: u8, action: Action| actions.extend((budget > 0).then_some(action));
                when(left.asks * u8::from(self.askers.contains(&at)), Action::Ask(at, to));
                let outside = state.machines[at].wants_in();
                when(left.joins * u8::from(outside), Action::Join(at, to));
                when(left.gossip, Action::Gossip(at, to));
            }
            let mut when = |may: bool, action: Action| actions.extend(may.then_some(action));
            when(left.dies > 0 && self.mortal.contains(&at), Action::Die(at));
            when(left.removals > 0 && !state.dead.is_empty() && self.removers.contains(&at), Action::Remove(at));
            when(left.leaves > 0 && self.mortal.contains(&at), Action::Leave(at));
            when(left.allocs > 0, Action::Alloc(at));
            when(left.proposals > 0, Action::Propose(at));
            when(left.confirms > 0, Action::Confirm(at));
            when(left.restarts > 0, Action::Restart(at));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Deliver(Letter { from, to, message }) => {
                self.input(&mut state, to, Input::Message { from: id(from), message });
            }
            Action::Ask(from, to) => {
                state.left.asks -= 1;
                let ask = Ask { token: 1, within: RANGE, want: 1 };
                let message = Message::Ask { cluster: state.machines[from].cluster(), ask };
                state.net.insert(Letter { from, to, message });
            }
            Action::Join(from, to) => {
                state.left.joins -= 1;
                if !state.machines[from].wants_in() || !state.machines[from].turn_to(id(to)) {
                    return None;
                }
                self.drain(&mut state, from);
                let message = state.machines[from].join();
                state.net.insert(Letter { from, to, message });
            }
            Action::Gossip(from, to) => {
                state.left.gossip -= 1;
                let message = state.machines[from].full_state();
                state.net.insert(Letter { from, to, message });
            }
            Action::Die(at) => {
                state.left.dies -= 1;
                state.dead.insert(at);
            }
            Action::Remove(at) => {
                state.left.removals -= 1;
                let peers = state.dead.iter().map(|dead| id(*dead)).collect();
                let request = Request::Remove { peers, force: false };
                self.input(&mut state, at, Input::Request { token: 1, request });
                state.machines[at].waiting.clear();
            }
            Action::Leave(at) => {
                state.left.leaves -= 1;
                self.input(&mut state, at, Input::Request { token: 2, request: Request::Leave });
            }
            Action::Alloc(at) => {
                state.left.allocs -= 1;
                let request = Request::Alloc { owner: format!("c{}", state.left.allocs), within: None };
                self.input(&mut state, at, Input::Request { token: 3, request });
                state.machines[at].waiting.clear();
            }
            Action::Propose(at) => {
                state.left.proposals -= 1;
                let voters = (0..self.peers).map(id).collect();
                state.machines[at].propose(NOW, self.peers as u16, voters);
                let view = self.view(at, &state.dead);
                state.machines[at].settle(NOW, &view);
                self.drain(&mut state, at);
            }
            Action::Confirm(at) => {
                state.left.confirms -= 1;
                let view = self.view(at, &state.dead);
                state.machines[at].confirm_leases(NOW);
                state.machines[at].serve_waiting(NOW, &view);
                state.machines[at].settle(NOW, &view);
                self.drain(&mut state, at);
            }
            Action::Restart(at) => {
                state.left.restarts -= 1;
                restart(&mut state.machines[at]);
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one owner", |_, state: &State| one_owner(state)),
            Property::always("one lease", |_, state: &State| one_lease(state)),
            Property::always("no alarm", |_, state: &State| state.machines.iter().all(|m| m.alarms.is_empty())),
            Property::always("one space by election", |model: &Small, state: &State| {
                let spaces: BTreeSet<_> = state.machines.iter().filter_map(|m| m.genesis.map(|g| g.uuid)).collect();
                !matches!(model.begin, Begin::Election) || spaces.len() <= 1
            }),
        ]
    }
}

/// What was of the process only is forgotten.
fn restart(machine: &mut Ipam) {
    let mut new = Ipam::blank(NOW, machine.config.clone());
    new.rules = machine.rules;
    new.genesis = machine.genesis;
    new.left = machine.left.clone();
    new.map = machine.map.clone();
    new.members = machine.members.clone();
    new.promises = machine.promises.clone();
    if let Some(candidacy) = &machine.candidacy {
        new.restore_candidacy(candidacy.kept());
    }
    new.vote = machine.vote.clone();
    new.leases = machine.leases.clone();
    new.joining.choice = machine.joining.choice;
    new.guests = machine.guests.after_restart();
    *machine = new;
}

/// Those that live and that nobody alive has removed.
fn counting(state: &State) -> Vec<usize> {
    let live: Vec<usize> = (0..state.machines.len()).filter(|at| !state.dead.contains(at)).collect();
    let removed =
        |at: usize| live.iter().any(|by| state.machines[*by].members.standing(id(at)) == Some(Standing::Removed));
    live.iter().copied().filter(|at| !removed(*at)).collect()
}

fn one_owner(state: &State) -> bool {
    let mut seen = BTreeSet::new();
    counting(state).into_iter().all(|at| {
        let machine = &state.machines[at];
        let own = machine.map.iter().filter(|(_, held)| held.owner == id(at) && !held.suspended);
        let mut all = own.flat_map(|(span, _)| span.first..span.end() as u32).collect::<Vec<_>>().into_iter();
        all.all(|address| seen.insert((machine.cluster(), address)))
    })
}

fn one_lease(state: &State) -> bool {
    let mut seen = BTreeSet::new();
    counting(state).into_iter().all(|at| {
        let machine = &state.machines[at];
        let of_one_space = machine.leases.iter().filter(|(_, lease)| !lease.unconfirmed);
        of_one_space.map(|(address, _)| address).all(|address| seen.insert((machine.cluster(), address)))
    })
}

/// Gives how many states were come to, those come to again included, and the first fault.
fn explore(name: &str, model: Small, most: usize) -> (usize, Option<String>) {
    let checker = model.checker().threads(2).target_state_count(most).timeout(LONGEST).spawn_bfs().join();
    let fault = checker.discoveries().into_iter().next().map(|(what, path)| {
        let steps: Vec<String> =
            path.into_actions().iter().map(|action| format!("{action:?}").chars().take(160).collect()).collect();
        format!("{name}: {what} fails:\n{}", steps.join("\n"))
    });
    assert!(checker.unique_state_count() > 10, "{name}: nothing happened");
    (checker.state_count(), fault)
}

/// Looks at every state there is.
#[track_caller]
fn all_safe(name: &str, model: Small) {
    let (states, fault) = explore(name, model, ALL);
    assert_eq!(fault, None);
    assert!(states < ALL, "{name}: there are more than {states} states");
}

/// Looks at those that are reached in the fewest steps.
#[track_caller]
fn safe(name: &str, model: Small) {
    assert_eq!(explore(name, model, STATES).1, None);
}

#[test]
fn one_dies_and_is_removed_while_another_asks_it() {
    let budget = Budget { asks: 1, dies: 1, removals: 1, ..Budget::default() };
    all_safe("removal", Small::seeds(3, 3, budget));
}

#[test]
fn two_others_remove_the_dead_one() {
    let budget = Budget { dies: 1, removals: 2, ..Budget::default() };
    all_safe("two removals", Small { removers: vec![1, 2], ..Small::seeds(3, 3, budget) });
}

#[test]
fn the_candidate_restarts() {
    let budget = Budget { asks: 1, dies: 1, removals: 1, restarts: 1, ..Budget::default() };
    all_safe("restart", Small::seeds(3, 3, budget));
}

#[test]
fn a_newcomer_is_let_in_and_given_some() {
    let budget = Budget { joins: 1, asks: 1, ..Budget::default() };
    all_safe("join", Small { askers: vec![2], ..Small::seeds(3, 2, budget) });
    let budget = Budget { dies: 1, removals: 1, ..budget };
    safe("join and removal", Small { removers: vec![1], askers: vec![2], ..Small::seeds(3, 2, budget) });
}

#[test]
fn two_newcomers_by_two_sponsors() {
    let budget = Budget { joins: 2, ..Budget::default() };
    all_safe("two joins", Small::seeds(4, 2, budget));
}

#[test]
fn three_elect_and_two_propose() {
    let budget = Budget { proposals: 1, ..Budget::default() };
    all_safe("election", Small { begin: Begin::Election, ..Small::seeds(3, 0, budget) });
    let budget = Budget { proposals: 2, ..Budget::default() };
    safe("two proposals", Small { begin: Begin::Election, ..Small::seeds(3, 0, budget) });
}

#[test]
fn two_founders_meet_and_both_have_given_out() {
    // Requests that wait are numbered, so there is no end to the states.
    let budget = Budget { allocs: 2, gossip: 2, joins: 1, confirms: 1, ..Budget::default() };
    safe("founders and claims", Small { begin: Begin::Founders, ..Small::seeds(2, 0, budget) });
}

#[test]
fn one_leaves_while_another_asks() {
    let budget = Budget { leaves: 1, asks: 1, ..Budget::default() };
    all_safe("leave", Small::seeds(3, 3, budget));
    safe("leave and gossip", Small::seeds(3, 3, Budget { gossip: 1, ..budget }));
}

#[test]
fn without_the_freeze() {
    let removal = Budget { asks: 1, dies: 1, removals: 1, ..Budget::default() };
    let freeze = Without { freeze: true, ..Without::default() };
    let (_, fault) = explore("without the freeze", Small { without: freeze, ..Small::seeds(3, 3, removal) }, STATES);
    assert!(fault.is_some(), "nothing goes wrong");
}
