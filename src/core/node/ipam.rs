//! The node's side of [`crate::ipam`]: its view of the peers, its messages on links, its owners for the snapshot.
//!
//! Messages for one peer are passed on hop by hop along each peer's own routes, over control links. They may be lost; the machine asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::api::{self, Problem};
use meshnet_proto::wire::control::{CloseReason, Control, Routed};
use meshnet_proto::wire::ipam::{Message, Standing};
use meshnet_proto::{Mac, PeerId, ShortId, codec, limits};

use super::{Level, LinkId, Node, Output};
use crate::fib::{Owner, Owners};
use crate::ipam::{self, Input, Ipam, KeptError, PeerView, Told, View};
use crate::peer::targets::Errand;
use crate::time::Time;

/// The machine and what it needs of the node.
#[derive(Debug)]
pub(super) struct Addresses {
    machine: Ipam,
    view: View,
    /// Of the topology when the view was made.
    revision: u64,
    next_view: Time,
    /// Of the host itself.
    hosts: Vec<(u32, Mac)>,
    stale_owners: bool,
    /// Links that take nothing more for now.
    pressed: BTreeSet<LinkId>,
    budgets: BTreeMap<LinkId, (f64, Time)>,
    /// Peers whose view differs from this one's, since then.
    odd: BTreeMap<ShortId, Time>,
}

impl Addresses {
    pub fn new(now: Time, config: ipam::Config, kept: &[(Vec<u8>, Vec<u8>)]) -> Result<Addresses, KeptError> {
        Ok(Addresses {
            machine: Ipam::new(now, config, kept)?,
            view: View { targets: u16::MAX, ..View::default() },
            revision: u64::MAX,
            next_view: Time::ZERO,
            hosts: Vec::new(),
            stale_owners: true,
            pressed: BTreeSet::new(),
            budgets: BTreeMap::new(),
            odd: BTreeMap::new(),
        })
    }

    pub fn deadline(&self) -> Time {
        self.machine.next_deadline().min(self.next_view)
    }

    /// Whether a link may hand over one more message.
    fn admit(&mut self, now: Time, link: LinkId) -> bool {
        let (tokens, at) = self.budgets.entry(link).or_insert((MESSAGES_BURST, now));
        *tokens = (*tokens + now.since(*at).as_secs_f64() * MESSAGES_RATE).min(MESSAGES_BURST);
        *at = now;
        *tokens -= 1.0;
        *tokens >= 0.0
    }
}

/// Driving the machine.
impl Node {
    pub(super) fn on_ipam(&mut self, now: Time, input: Input) {
        let Some(addresses) = &mut self.ipam else { return };
        addresses.machine.handle(now, &addresses.view, input);
        self.drain_ipam(now);
    }

    pub(super) fn tick_ipam(&mut self, now: Time) {
        self.refresh_view(now);
        let Some(addresses) = &mut self.ipam else { return };
        if now >= addresses.machine.next_deadline() {
            addresses.machine.handle_timeout(now, &addresses.view);
            self.drain_ipam(now);
        }
    }

    fn drain_ipam(&mut self, now: Time) {
        let mut probes = Vec::new();
        while let Some(output) = self.ipam.as_mut().and_then(|addresses| addresses.machine.poll()) {
            match output {
                ipam::Output::Send { to, message } => {
                    if let Some(body) = self.emit_ipam(&message) {
                        let from = self.me.short();
                        self.pass_on(Routed { to, from, hops: limits::ROUTED_HOPS_MAX, body }, None);
                    }
                }
                ipam::Output::Tell { link, message } => {
                    let pressed = self.ipam.as_ref().is_some_and(|addresses| addresses.pressed.contains(&link));
                    if let Some(body) = self.emit_ipam(&message).filter(|_| !pressed) {
                        self.send(link, &Control::Ipam(body));
                    }
                }
                ipam::Output::Owners => {
                    self.set_stale_owners();
                }
                ipam::Output::Told(told) => {
                    if let Ok(bytes) = codec::encode(&told) {
                        self.origin.set_extension(EXTENSION, bytes);
                    }
                }
                ipam::Output::Event { level, what, detail } => self.event(level, what, None, detail),
                ipam::Output::Probe(some) => probes.push(some),
                other => self.outputs.push_back(Output::Ipam(other)),
            }
        }
        // The frame path must know the owner first, or it answers for the one before: also of what was given to this peer in the same step.
        if !probes.is_empty() && self.ipam.as_ref().is_some_and(|addresses| addresses.stale_owners) {
            self.publish(now);
        }
        self.outputs.extend(probes.into_iter().map(|some| Output::Ipam(ipam::Output::Probe(some))));
    }

    fn emit_ipam(&mut self, message: &Message) -> Option<Vec<u8>> {
        match message.emit() {
            Ok(body) => Some(body),
            Err(error) => {
                self.event(Level::Warn, "message about addresses over its limits", None, error.to_string());
                None
            }
        }
    }

    /// Sends a message one hop on.
    fn pass_on(&mut self, routed: Routed, came_by: Option<LinkId>) {
        let Some(peer) = self.topology.by_short(routed.to) else { return };
        let direct = self.links.current(peer, false).map(|link| link.id);
        let way = || {
            let first = self.routes.get(&peer)?.best?.first();
            self.links.current(first, false).map(|link| link.id)
        };
        let Some(link) = direct.or_else(way).filter(|link| Some(*link) != came_by) else { return };
        if self.ipam.as_ref().is_none_or(|addresses| !addresses.pressed.contains(&link)) {
            self.send(link, &Control::Routed(routed));
        }
    }

    /// A message of kinds 11 and 12.
    pub(super) fn on_ipam_message(&mut self, now: Time, link: LinkId, message: Control) {
        let me = self.me.short();
        let admitted = self.ipam.as_mut().is_none_or(|addresses| addresses.admit(now, link));
        if !admitted {
            return self.notes.on_excess(now);
        }
        match message {
            Control::Ipam(body) => match Message::parse(&body) {
                Ok(Some(message)) => self.on_ipam(now, Input::Told { link, message }),
                Ok(None) => {}
                Err(error) => {
                    let peer = self.links.get(link).map(|link| link.peer);
                    self.event(Level::Warn, "malformed message about addresses", peer, error.to_string());
                    self.close(now, link, CloseReason::Protocol);
                }
            },
            Control::Routed(routed) if routed.to == me => match Message::parse(&routed.body) {
                Ok(Some(message)) => self.on_ipam(now, Input::Message { from: routed.from, message }),
                Ok(None) => {}
                Err(error) => self.event(Level::Debug, "malformed routed message", None, error.to_string()),
            },
            Control::Routed(routed) => {
                // Hops of an honest sender never exceed the limit.
                let hops = routed.hops.min(limits::ROUTED_HOPS_MAX);
                if hops > 1 {
                    self.pass_on(Routed { hops: hops - 1, ..routed }, Some(link));
                }
            }
            _ => {}
        }
    }

    pub(super) fn on_ipam_link(&mut self, now: Time, link: LinkId, peer: PeerId) {
        self.refresh_view(now);
        self.on_ipam(now, Input::LinkUp { link, peer: peer.short() });
    }

    pub(super) fn on_ipam_link_gone(&mut self, now: Time, link: LinkId) {
        if let Some(addresses) = &mut self.ipam {
            addresses.pressed.remove(&link);
            addresses.budgets.remove(&link);
            self.on_ipam(now, Input::LinkDown { link });
        }
    }

    pub(super) fn set_ipam_writable(&mut self, link: LinkId, writable: bool) {
        if let Some(addresses) = &mut self.ipam {
            if writable {
                addresses.pressed.remove(&link);
            } else {
                addresses.pressed.insert(link);
            }
        }
    }

    /// Tells the machine what changed among the peers.
    pub(super) fn refresh_view(&mut self, now: Time) {
        let revision = self.topology.revision();
        let due = |addresses: &Addresses| addresses.revision != revision || now >= addresses.next_view;
        if !self.ipam.as_ref().is_some_and(due) {
            return;
        }
        let view = self.view(now);
        let clone = self.origin.clone_seen(now).is_some();
        let Some(addresses) = &mut self.ipam else { return };
        addresses.revision = revision;
        addresses.next_view = now + VIEW_EVERY;
        let mine = addresses.machine.digest();
        let differs = |peer: &PeerView| peer.reachable && peer.told.is_some_and(|told| told.digest != mine);
        addresses.odd.retain(|id, _| view.peers.get(id).is_some_and(differs));
        for (id, _) in view.peers.iter().filter(|(_, peer)| differs(peer)) {
            addresses.odd.entry(*id).or_insert(now);
        }
        let changed = addresses.view != view;
        addresses.view = view;
        if changed {
            addresses.stale_owners = true;
            self.on_ipam(now, Input::ViewChanged);
        }
        if clone {
            let why = "another machine runs with this peer's identity: give one of them an empty --state-dir";
            self.on_ipam(now, Input::Doubt(why.into()));
        }
    }

    fn view(&self, now: Time) -> View {
        let told = |extensions: &[(u16, Vec<u8>)]| {
            let field = extensions.iter().find(|(number, _)| *number == EXTENSION)?;
            codec::decode::<Told>(&field.1).ok()
        };
        let others = self.topology.entries().filter(|(id, _)| **id != self.me);
        let peers = others.map(|(id, entry)| {
            let record = entry.record();
            let view = PeerView {
                name: record.name.clone(),
                reachable: entry.reachable(),
                told: told(&record.extensions),
                // In steps: a view that changes all the time would be told all the time.
                silent_for: entry.unreachable_since.map_or(Duration::ZERO, |since| {
                    if now.since(since) >= ipam::HEARD_LATELY { ipam::HEARD_LATELY } else { Duration::ZERO }
                }),
            };
            (id.short(), view)
        });
        let mut listed: BTreeSet<ShortId> = BTreeSet::new();
        let mut unknown = 0usize;
        for standing in self.dials.standings(now) {
            match (standing.errand, standing.peer) {
                (Errand::Target(_), Some(peer)) => drop(listed.insert(peer.short())),
                (Errand::Target(_), None) => unknown += 1,
                _ => {}
            }
        }
        // A target may be this peer's own address.
        listed.remove(&self.me.short());
        let targets = u16::try_from(listed.len() + unknown).unwrap_or(u16::MAX);
        View { peers: peers.collect(), listed, targets }
    }
}

/// Owners for the snapshot.
impl Node {
    pub(super) fn on_host_addresses(&mut self, mut hosts: Vec<(u32, Mac)>) {
        hosts.sort_unstable();
        hosts.truncate(HOSTS_MAX);
        if let Some(addresses) = &mut self.ipam {
            addresses.hosts = hosts;
            self.set_stale_owners();
        }
    }

    pub(super) fn set_stale_owners(&mut self) {
        if let Some(addresses) = &mut self.ipam {
            addresses.stale_owners = true;
            self.publisher.changed();
        }
    }

    /// Compiles owners anew, if they changed.
    pub(super) fn compile_owners(&mut self) {
        let Some(addresses) = self.ipam.as_mut().filter(|addresses| addresses.stale_owners) else { return };
        addresses.stale_owners = false;
        let range = addresses.machine.config().range;
        let mut runs: Vec<(u32, Owner)> = vec![(range.first, Owner::Nobody)];
        let mut end = u64::from(range.first);
        let mut put = |at: u64, owner: Owner| {
            let Ok(at) = u32::try_from(at) else { return };
            if runs.last().is_some_and(|(start, _)| *start == at) {
                runs.pop();
            }
            if runs.last().is_none_or(|(_, last)| *last != owner) {
                runs.push((at, owner));
            }
        };
        for (span, owner) in addresses.machine.owners() {
            let slot = || self.topology.by_short(owner).and_then(|peer| self.peers.slot(&peer));
            let owner = if owner == self.me.short() { Owner::Me } else { slot().map_or(Owner::Nobody, Owner::Peer) };
            if u64::from(span.first) > end {
                put(end, Owner::Nobody);
            }
            put(u64::from(span.first), owner);
            end = span.end();
        }
        if end < range.end() {
            put(end, Owner::Nobody);
        }
        let last = u32::try_from(range.end() - 1).unwrap_or(u32::MAX);
        let hosts = addresses.hosts.clone();
        self.publisher.owners = Arc::new(Owners { first: range.first, last, runs, hosts });
    }
}

/// What people see.
impl Node {
    /// Addresses can be given out here, or are not to be; else what is waited for.
    pub fn addresses_ready(&self) -> Result<(), String> {
        let Some(addresses) = &self.ipam else { return Ok(()) };
        match addresses.machine.config().init {
            ipam::Init::Observer => Ok(()),
            _ => addresses.machine.ready(&addresses.view),
        }
    }

    /// The address space as this peer sees it.
    pub fn ipam_status(&self) -> api::Ipam {
        let Some(addresses) = &self.ipam else { return api::Ipam::off() };
        let machine = &addresses.machine;
        let config = machine.config();
        let ready = machine.ready(&addresses.view);
        let mut owned: BTreeMap<ShortId, u64> = machine.members().map(|(id, _)| (id, 0)).collect();
        for (span, owner) in machine.owners() {
            *owned.entry(owner).or_default() += u64::from(span.len);
        }
        let me = self.me.short();
        let standing: BTreeMap<ShortId, Standing> = machine.members().collect();
        let hex = |digest: u64| format!("{digest:016x}");
        let share = |(id, count): (ShortId, u64)| {
            let view = addresses.view.peers.get(&id);
            let peer = self.topology.by_short(id).unwrap_or(PeerId(short_as_id(id)));
            let name = if id == me { self.config.name.clone() } else { self.topology.display_name(&peer) };
            let told = view.and_then(|view| view.told);
            let mine = id == me;
            api::Share {
                peer,
                name,
                addresses: count,
                percent: count as f64 * 100.0 / f64::from(config.range.len),
                reachable: mine || view.is_some_and(|view| view.reachable),
                digest: if mine { hex(machine.digest()) } else { told.map(|t| hex(t.digest)).unwrap_or_default() },
                free: if mine { Some(machine.free()) } else { told.map(|told| u64::from(told.free)) },
                standing: match standing.get(&id) {
                    Some(Standing::Admitted) => "admitted",
                    Some(Standing::Removed) => "removed",
                    _ => "known",
                }
                .into(),
            }
        };
        let removed = standing.values().filter(|standing| **standing == Standing::Removed).count() as u64;
        let present = owned.into_iter().filter(|(id, count)| {
            *count > 0 || standing.get(id).is_some_and(|standing| *standing != Standing::Removed)
        });
        let conflict = |(address, why): (u32, String)| format!("{}: {why}", ipam::dotted(address));
        api::Ipam {
            state: if ready.is_ok() { "ready" } else { "waiting" }.into(),
            range: ipam::cidr(config.range),
            subnet: ipam::cidr(config.subnet),
            owned: machine.owners().filter(|(_, owner)| *owner == me).map(|(span, _)| u64::from(span.len)).sum(),
            used: machine.used(),
            free: machine.free(),
            shares: present.map(share).collect(),
            reason: ready.err().unwrap_or_default(),
            digest: hex(machine.digest()),
            members: standing.len() as u64 - removed,
            removed,
            conflicts: machine.conflicts().map(conflict).collect(),
        }
    }

    /// The address space that this peer has, and whether it belongs to it.
    pub fn ipam_space(&self) -> Option<([u8; 16], bool)> {
        self.ipam.as_ref()?.machine.space()
    }

    /// An address space that others tell of and that this peer may not take yet.
    pub fn ipam_space_heard(&self, now: Time) -> Option<[u8; 16]> {
        self.ipam.as_ref()?.machine.space_heard(now)
    }

    /// Members of the address space, removed ones left out, and whether each was let in.
    pub fn ipam_roll(&self) -> Vec<(ShortId, bool)> {
        let Some(addresses) = &self.ipam else { return Vec::new() };
        let present = addresses.machine.members().filter(|(_, standing)| *standing != Standing::Removed);
        present.map(|(id, standing)| (id, standing == Standing::Admitted)).collect()
    }

    /// Members of the address space, removed ones left out, with names for people.
    pub fn ipam_members(&self) -> Vec<(ShortId, String)> {
        let Some(addresses) = &self.ipam else { return Vec::new() };
        let name = |id: ShortId| self.topology.by_short(id).map(|peer| self.topology.display_name(&peer));
        let present = addresses.machine.members().filter(|(_, standing)| *standing != Standing::Removed);
        present.map(|(id, _)| (id, name(id).unwrap_or_default())).collect()
    }

    /// What is wrong with addresses.
    pub(super) fn ipam_problems(&self, now: Time) -> Vec<Problem> {
        let Some(addresses) = &self.ipam else { return Vec::new() };
        let machine = &addresses.machine;
        let mut problems = Vec::new();
        let mut add = |what: String, remedy: &str| problems.push(Problem { what, remedy: remedy.into() });
        if let Err(why) = machine.ready(&addresses.view) {
            add(format!("no address can be given out: {why}"), "see README.md, Addresses");
        }
        for alarm in machine.alarms() {
            add(
                format!("addresses contradict each other: {alarm}"),
                "keep meshctl report of both peers, then restart one of them with --restored",
            );
        }
        for (address, why) in machine.conflicts().take(PROBLEMS_EACH) {
            let address = ipam::dotted(address);
            add(
                format!("{address} is in conflict: {why}"),
                "give one of the two another address (meshctl ip list, meshctl ip free)",
            );
        }
        let mut odd = addresses.odd.iter().filter(|(_, since)| now.since(**since) > ODD_AFTER).map(|(id, _)| *id);
        let others = addresses.view.peers.values().filter(|peer| peer.reachable && peer.told.is_some()).count();
        let count = odd.clone().count();
        if count > 0 && count * 2 > others && others > 1 {
            add(
                "this peer sees other owners of addresses than the others".into(),
                "its links may be too slow: meshctl status links",
            );
        } else if let Some(id) = odd.next() {
            let name = addresses.view.peers.get(&id).map(|peer| peer.name.clone()).unwrap_or_default();
            add(format!("{name} sees other owners of addresses than this peer"), "look there: meshctl status ipam");
        }
        if let Some((gone, missing)) = machine.removal() {
            let name =
                |id: &ShortId| addresses.view.peers.get(id).map_or_else(|| format!("{id:?}"), |peer| peer.name.clone());
            let list = |ids: &[ShortId]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
            if !missing.is_empty() {
                add(
                    format!("the removal of {} waits for {}", list(&gone), list(&missing)),
                    "bring those back, or remove them too if they are gone (meshctl rmpeer)",
                );
            }
        }
        let dead: u64 = machine
            .owners()
            .filter(|(_, owner)| *owner != self.me.short())
            .filter(|(_, owner)| addresses.view.peers.get(owner).is_none_or(|peer| !peer.reachable))
            .map(|(span, _)| u64::from(span.len))
            .sum();
        if dead > 0 && machine.ready(&addresses.view).is_ok() {
            let percent = dead as f64 * 100.0 / f64::from(machine.config().range.len);
            add(
                format!("{dead} addresses ({percent:.0} %) belong to peers that cannot be reached"),
                "bring them back, or take their addresses if they are gone for good: meshctl rmpeer NAME",
            );
        }
        problems
    }
}

/// An id that begins with a short one, for members that no record speaks of.
fn short_as_id(id: ShortId) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, short) in bytes.iter_mut().zip(id.0.to_be_bytes()) {
        *byte = short;
    }
    bytes
}

/// Number of the record's extension field: [`Told`].
const EXTENSION: u16 = 1;
/// Between two looks at the peers when no record changed: targets may have been found.
const VIEW_EVERY: Duration = Duration::from_millis(500);
/// Messages about addresses that a link may hand over a second, and at once: a hundred peers that join through one link.
const MESSAGES_RATE: f64 = 500.0;
const MESSAGES_BURST: f64 = 5_000.0;
/// Addresses of the host on the bridge that the frame path looks for.
const HOSTS_MAX: usize = 64;
/// Views differ for some seconds after each change.
const ODD_AFTER: Duration = Duration::from_secs(30);
/// Conflicts shown one by one.
const PROBLEMS_EACH: usize = 8;
