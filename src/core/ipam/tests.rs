use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Message, Span, Standing};

use super::sim::{Plan, run};
use super::*;

mod ablation;
mod outside;
mod rules;

/// A message on its way.
#[derive(Debug, Clone)]
struct Letter {
    from: usize,
    to: usize,
    told: bool,
    message: Message,
}

type Filter = Box<dyn Fn(&Letter) -> bool>;

/// Some machines with perfect links but for what the test cuts or holds back.
struct Lab {
    now: Time,
    range: Span,
    machines: Vec<Ipam>,
    disks: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
    down: BTreeSet<usize>,
    cut: BTreeSet<(usize, usize)>,
    full: BTreeSet<usize>,
    taken: BTreeSet<u32>,
    views: Vec<View>,
    net: VecDeque<Letter>,
    hold: Option<Filter>,
    held: Vec<Letter>,
    replies: BTreeMap<u64, Result<Answer, Refusal>>,
    outputs: Vec<(usize, Output)>,
    asks: Vec<usize>,
    tokens: u64,
    without: Without,
}

fn id(at: usize) -> ShortId {
    ShortId(at as u64 + 1)
}

fn number(id: ShortId) -> usize {
    id.0 as usize - 1
}

const SMALL: Span = Span { first: 0x0a20_0000, len: 16 };
const WIDE: Span = Span { first: 0x0a20_0000, len: 1 << 20 };

impl Lab {
    fn new(range: Span) -> Lab {
        Lab {
            now: Time::from_us(1_000_000),
            range,
            machines: Vec::new(),
            disks: Vec::new(),
            down: BTreeSet::new(),
            cut: BTreeSet::new(),
            full: BTreeSet::new(),
            taken: BTreeSet::new(),
            views: Vec::new(),
            net: VecDeque::new(),
            hold: None,
            held: Vec::new(),
            replies: BTreeMap::new(),
            outputs: Vec::new(),
            asks: Vec::new(),
            tokens: 0,
            without: Without::default(),
        }
    }

    /// So many that begin with equal shares.
    fn seeds(range: Span, count: usize, without: Without) -> Lab {
        let mut lab = Lab::new(range);
        lab.without = without;
        let names: Vec<String> = (0..count).map(|at| format!("p{at}")).collect();
        (0..count).for_each(|_| {
            let _ = lab.add(Init::Seeds(names.clone()), 1);
        });
        lab.look();
        lab.run(1);
        lab
    }

    fn config(&self, at: usize, init: Init) -> Config {
        let (range, subnet, name) = (self.range, self.range, format!("p{at}"));
        let seed = at as u64 * 7 + 1;
        Config { me: id(at), name, range, subnet, init, probe: false, cool_down: Duration::from_secs(60), seed }
    }

    /// A machine, not yet linked.
    fn add(&mut self, init: Init, targets: u16) -> usize {
        let at = self.machines.len();
        let mut machine = Ipam::new(self.now, self.config(at, init), &[]).unwrap();
        machine.rules.without = self.without;
        self.machines.push(machine);
        self.disks.push(BTreeMap::new());
        self.asks.push(0);
        self.views.push(View { targets, ..View::default() });
        at
    }

    fn newcomer(&mut self) -> usize {
        let at = self.add(Init::Auto, 1);
        self.look();
        at
    }

    fn near(&self, a: usize, b: usize) -> bool {
        a != b && !self.down.contains(&a) && !self.down.contains(&b) && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// All see who can be reached now; links come and go with it.
    fn look(&mut self) {
        let count = self.machines.len();
        for me in 0..count {
            for other in (0..count).filter(|other| *other != me) {
                let reachable = self.near(me, other);
                let peer = self.views[me].peers.entry(id(other)).or_default();
                let before = std::mem::replace(&mut peer.reachable, reachable);
                peer.name = format!("p{other}");
                peer.silent_for = if reachable { Duration::ZERO } else { Duration::from_secs(600) };
                let link = LinkId(other as u64);
                match (before, reachable) {
                    (false, true) => self.input(me, Input::LinkUp { link, peer: id(other) }),
                    (true, false) => self.input(me, Input::LinkDown { link }),
                    _ => {}
                }
            }
        }
        (0..count).for_each(|me| self.input(me, Input::ViewChanged));
    }

    fn list_each_other(&mut self) {
        let count = self.machines.len();
        for me in 0..count {
            self.views[me].listed = (0..count).filter(|other| *other != me).map(id).collect();
            self.views[me].targets = count as u16 - 1;
        }
    }

    fn split(&mut self, one: &[usize], other: &[usize]) {
        let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (*a.min(b), *a.max(b))));
        self.cut.extend(pairs);
        self.look();
    }

    fn heal(&mut self) {
        self.cut.clear();
        self.look();
    }

    fn die(&mut self, at: usize) {
        self.down.insert(at);
        self.look();
    }

    fn input(&mut self, at: usize, input: Input) {
        if !self.down.contains(&at) {
            self.machines[at].handle(self.now, &self.views[at], input);
            self.drain(at);
        }
    }

    fn drain(&mut self, at: usize) {
        while let Some(output) = self.machines[at].poll() {
            match output {
                Output::Keep { seq, writes } => {
                    let result = if self.full.contains(&at) { Err("no space".into()) } else { Ok(()) };
                    if result.is_ok() {
                        for Write { key, value } in writes {
                            match value {
                                Some(value) => drop(self.disks[at].insert(key, value)),
                                None => drop(self.disks[at].remove(&key)),
                            }
                        }
                    }
                    self.machines[at].handle(self.now, &self.views[at], Input::Kept { seq, result });
                }
                Output::Send { to, message } => {
                    self.asks[at] += usize::from(matches!(message, Message::Ask { .. }));
                    self.post(Letter { from: at, to: number(to), told: false, message });
                }
                Output::Tell { link, message } => {
                    self.post(Letter { from: at, to: link.0 as usize, told: true, message });
                }
                Output::Reply { token, result } => drop(self.replies.insert(token, result)),
                Output::Told(told) => {
                    for view in &mut self.views {
                        if let Some(peer) = view.peers.get_mut(&id(at)) {
                            peer.told = Some(told);
                        }
                    }
                }
                Output::Probe(addresses) => {
                    let taken = addresses.iter().copied().filter(|address| self.taken.contains(address)).collect();
                    self.machines[at].handle(self.now, &self.views[at], Input::Probed { addresses, taken });
                }
                other => self.outputs.push((at, other)),
            }
        }
    }

    fn post(&mut self, letter: Letter) {
        if self.hold.as_ref().is_some_and(|hold| hold(&letter)) {
            self.held.push(letter);
        } else {
            self.net.push_back(letter);
        }
    }

    fn hold(&mut self, which: impl Fn(&Letter) -> bool + 'static) {
        self.hold = Some(Box::new(which));
    }

    fn arrive(&mut self, Letter { from, to, told, message }: Letter) {
        let link = LinkId(from as u64);
        let input = if told { Input::Told { link, message } } else { Input::Message { from: id(from), message } };
        self.input(to, input);
    }

    /// Milliseconds pass.
    fn run_ms(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        for _ in 0..2_000_000 {
            if let Some(letter) = self.net.pop_front() {
                if self.near(letter.from, letter.to) {
                    self.arrive(letter);
                }
                continue;
            }
            let up = (0..self.machines.len()).filter(|at| !self.down.contains(at));
            let Some(at) = up.min_by_key(|at| self.machines[*at].next_deadline()) else { return };
            let next = self.machines[at].next_deadline();
            if next > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(next);
            self.machines[at].handle_timeout(self.now, &self.views[at]);
            self.drain(at);
        }
        panic!("messages without end");
    }

    fn run(&mut self, seconds: u64) {
        self.run_ms(seconds * 1000);
    }

    fn request(&mut self, at: usize, request: Request) -> u64 {
        self.tokens += 1;
        self.input(at, Input::Request { token: self.tokens, request });
        self.tokens
    }

    /// Asks and waits for the answer.
    fn ask(&mut self, at: usize, request: Request) -> Result<Answer, Refusal> {
        let token = self.request(at, request);
        for _ in 0..120 {
            if let Some(reply) = self.replies.remove(&token) {
                return reply;
            }
            self.run_ms(100);
        }
        panic!("no answer within 12 s");
    }

    fn alloc(&mut self, at: usize, owner: &str) -> Result<u32, Refusal> {
        match self.ask(at, Request::Alloc { owner: owner.into(), within: None })? {
            Answer::Address { address, .. } => Ok(address),
            other => panic!("{other:?}"),
        }
    }

    fn claim(&mut self, at: usize, owner: &str, address: u32) -> Result<Answer, Refusal> {
        self.ask(at, Request::Claim { owner: owner.into(), address })
    }

    fn free(&mut self, at: usize, owner: &str) -> Result<Answer, Refusal> {
        self.ask(at, Request::Free { owner: owner.into(), address: None })
    }

    fn remove(&mut self, at: usize, gone: &[usize], force: bool) -> Result<Answer, Refusal> {
        self.ask(at, Request::Remove { peers: gone.iter().copied().map(id).collect(), force })
    }

    /// Gives out all that a peer can give out alone.
    fn exhaust(&mut self, at: usize) -> usize {
        let free = self.machines[at].free();
        (0..free).filter(|n| self.alloc(at, &format!("x{}.{n}", self.tokens)).is_ok()).count()
    }

    /// Starts a peer anew from what it kept.
    fn restart(&mut self, at: usize) {
        let kept: Vec<(Vec<u8>, Vec<u8>)> = self.disks[at].clone().into_iter().collect();
        let config = self.machines[at].config.clone();
        self.machines[at] = Ipam::new(self.now, config, &kept).unwrap();
        self.machines[at].rules.without = self.without;
        self.down.insert(at);
        self.look();
        self.down.remove(&at);
        self.look();
    }

    fn owned(&self, at: usize) -> u64 {
        let own = self.machines[at].owners().filter(|(_, owner)| *owner == id(at));
        own.map(|(span, _)| u64::from(span.len)).sum()
    }

    fn ready(&self, at: usize) -> Result<(), String> {
        self.machines[at].ready(&self.views[at])
    }

    fn standing(&self, by: usize, of: usize) -> Option<Standing> {
        self.machines[by].members.standing(id(of))
    }

    /// Addresses given out at two of these peers.
    fn doubled(&self, among: &[usize]) -> Vec<u32> {
        let mut seen = BTreeSet::new();
        let all = among.iter().flat_map(|at| self.machines[*at].leases());
        all.map(|lease| lease.address).filter(|address| !seen.insert(*address)).collect()
    }

    #[track_caller]
    fn assert_agree(&self) {
        let up: Vec<usize> = (0..self.machines.len()).filter(|at| !self.down.contains(at)).collect();
        for at in &up {
            assert_eq!(self.machines[*at].digest(), self.machines[up[0]].digest(), "p{at} and p{}", up[0]);
            assert_eq!(self.machines[*at].alarms().count(), 0);
        }
        let total: u64 = self.machines[up[0]].owners().map(|(span, _)| u64::from(span.len)).sum();
        assert_eq!(total, u64::from(self.range.len));
    }
}
