//! This peer's own record: what it says, and when it says it anew.
//!
//! ```text
//! link went down ───────────────▶ at once ┐
//! link up, stable for 2 s ───────────────▶├─▶ due ── not sooner than 200 ms, 1 s, 5 s after the last ──▶ poll: Record
//! (at once at start-up and for newcomers) │
//! cost off by 25 % and 2 ms for 10 s ────▶│
//! name, addresses, settings; 300 s; Own ─▶┘
//! ```
//! Down is told at once, up is held, flapping raises the cost and never withdraws (RFC 2439's penalty, without its suppression), so that damping
//! can never partition the mesh. May use: `proto`. Deliberately lacks: signing, sending, measuring.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshnet_proto::wire::record::{COST_LAST_RESORT, Record, RecordLink, Version};
use meshnet_proto::{ShortId, limits};

use crate::time::Time;
use crate::topology::digest::mix;

/// What never changes while the process lives, and how to begin.
#[derive(Debug, Clone)]
pub struct Origin {
    /// This peer's key.
    pub public_key: [u8; 32],
    /// Start counter, persisted before this.
    pub incarnation: u64,
    /// Drawn at this start.
    pub instance: u64,
    /// For people.
    pub name: String,
    /// Version of the program.
    pub software: String,
    /// See `meshnet_proto::wire::record::flags`.
    pub flags: u32,
    /// The overlay's MTU here.
    pub mtu: u16,
}

/// The machine that makes this peer's records.
#[derive(Debug)]
pub struct Originator {
    record: Record,
    links: BTreeMap<ShortId, OwnLink>,
    started: Time,
    dirty: Option<Urgency>,
    last: Option<Time>,
    step: usize,
    refresh: Duration,
    large: bool,
    rivals: BTreeMap<u64, Rival>,
}

/// How soon a change is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// As the back-off allows.
    Paced,
    /// At the shortest interval: newcomers.
    Soon,
}

#[derive(Debug, Clone)]
struct OwnLink {
    /// Since when it is up; none while it is down.
    up: Option<Time>,
    /// Round trip as last told.
    rtt: Duration,
    /// Whether the record says it.
    told: bool,
    /// Cost in the record.
    cost: u16,
    /// Since when the cost is off.
    off_since: Option<Time>,
    /// Held for 2 s before it is told: it was up before.
    held: bool,
    /// Of flaps, as of `penalty_at`.
    penalty: f64,
    penalty_at: Time,
}

/// Another process with this peer's key.
#[derive(Debug, Clone)]
struct Rival {
    /// How often its record came back above one of ours that was above its last.
    returns: u32,
    last: Time,
}

impl Originator {
    /// A machine that wants to tell its first record at once.
    pub fn new(now: Time, origin: Origin) -> Originator {
        let record = Record {
            public_key: origin.public_key,
            version: Version { incarnation: origin.incarnation, seq: 0 },
            instance: origin.instance,
            name: clip(origin.name, limits::NAME_MAX_BYTES),
            software: clip(origin.software, limits::SOFTWARE_MAX_BYTES),
            endpoints: Vec::new(),
            links: Vec::new(),
            flags: origin.flags,
            mtu: origin.mtu,
            extensions: Vec::new(),
        };
        Originator {
            record,
            links: BTreeMap::new(),
            started: now,
            dirty: Some(Urgency::Soon),
            last: None,
            step: 0,
            refresh: REFRESH,
            large: false,
            rivals: BTreeMap::new(),
        }
    }

    /// Incarnation and number of the last record. The incarnation grows when a copy from an earlier life turns up: persist it then.
    pub fn version(&self) -> Version {
        self.record.version
    }

    /// The last record given out.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The links that count now, with their round trips; those that are missing went down. Call it after every change, and with every fresh round trip.
    pub fn set_links(&mut self, now: Time, links: &BTreeMap<ShortId, Duration>) {
        let gone: Vec<_> = self
            .links
            .iter()
            .filter(|(peer, link)| link.up.is_some() && !links.contains_key(peer))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in gone {
            self.on_down(now, peer);
        }
        for (peer, rtt) in links {
            self.on_up(now, *peer, *rtt);
        }
        self.handle_timeout(now);
    }

    fn on_down(&mut self, now: Time, peer: ShortId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.penalty = link.penalty_at(now) + FLAP_PENALTY;
        link.penalty_at = now;
        link.up = None;
        link.off_since = None;
        if link.told {
            link.told = false;
            self.mark(Urgency::Paced);
        }
    }

    fn on_up(&mut self, now: Time, peer: ShortId, rtt: Duration) {
        if !self.links.contains_key(&peer) && self.links.len() >= limits::RECORD_LINKS_MAX && !self.forget_one() {
            return;
        }
        let link = self.links.entry(peer).or_insert_with(|| OwnLink::new(now));
        if link.up.is_none() {
            link.up = Some(now);
            link.held = link.held && now >= self.started + STARTUP;
        }
        link.rtt = rtt;
    }

    /// Makes room by the memory of a link that is down; false when all are up.
    fn forget_one(&mut self) -> bool {
        let down = self.links.iter().filter(|(_, link)| link.up.is_none());
        let oldest = down.min_by_key(|(_, link)| link.penalty_at).map(|(peer, _)| *peer);
        oldest.is_some_and(|peer| self.links.remove(&peer).is_some())
    }

    /// Addresses to be reached at, most useful first; those past [`limits::ENDPOINTS_MAX`] are left out.
    pub fn set_endpoints(&mut self, endpoints: &[SocketAddr]) {
        let kept = endpoints.get(..limits::ENDPOINTS_MAX).unwrap_or(endpoints);
        if self.record.endpoints != kept {
            self.record.endpoints = kept.to_vec();
            self.mark(Urgency::Paced);
        }
    }

    /// The name for people.
    pub fn set_name(&mut self, name: String) {
        let name = clip(name, limits::NAME_MAX_BYTES);
        if self.record.name != name {
            self.record.name = name;
            self.mark(Urgency::Paced);
        }
    }

    /// See `meshnet_proto::wire::record::flags`.
    pub fn set_flags(&mut self, flags: u32) {
        if self.record.flags != flags {
            self.record.flags = flags;
            self.mark(Urgency::Soon);
        }
    }

    /// The overlay's MTU here.
    pub fn set_mtu(&mut self, mtu: u16) {
        if self.record.mtu != mtu {
            self.record.mtu = mtu;
            self.mark(Urgency::Paced);
        }
    }

    /// How many peers there are: in a large mesh the record is refreshed more seldom, so that idle cost does not grow with it.
    pub fn set_mesh_size(&mut self, peers: usize) {
        self.large = peers > FEW_PEERS;
        self.refresh = REFRESH.max(REFRESH_EACH.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX)));
    }

    /// An extension field; empty bytes take it away. False when it does not fit.
    pub fn set_extension(&mut self, number: u16, bytes: Vec<u8>) -> bool {
        let others = self.record.extensions.iter().filter(|(other, _)| *other != number);
        let (count, size) = others.fold((0, 0), |(count, size), (_, bytes)| (count + 1, size + bytes.len()));
        if !bytes.is_empty() && (count >= limits::EXTENSIONS_MAX || size + bytes.len() > EXTENSION_BYTES_MAX) {
            return false;
        }
        let before =
            self.record.extensions.iter().find(|(other, _)| *other == number).map(|(_, bytes)| bytes.as_slice());
        if before.unwrap_or_default() != bytes {
            self.record.extensions.retain(|(other, _)| *other != number);
            if !bytes.is_empty() {
                self.record.extensions.push((number, bytes));
                self.record.extensions.sort();
            }
            self.mark(Urgency::Paced);
        }
        true
    }

    /// Someone else's copy of this peer's record is above it ([`super::Merge::Own`]): originate past it. It is from an earlier life of this peer,
    /// unless it keeps coming back: then two processes have one key.
    pub fn handle_own_copy(&mut self, now: Time, version: Version, instance: u64) {
        let mine = &mut self.record.version;
        if version < *mine {
            // One of several copies; the record that passes them all is on its way.
            return;
        }
        if instance == self.record.instance {
            *mine = (*mine).max(version);
        } else {
            // A new incarnation, so that others start new windows for the frames that this process floods.
            mine.incarnation = mine.incarnation.max(version.incarnation).saturating_add(1);
            mine.seq = 0;
            self.note_rival(now, instance);
        }
        self.mark(Urgency::Paced);
    }

    fn note_rival(&mut self, now: Time, instance: u64) {
        self.rivals.retain(|_, rival| now < rival.last + RIVAL_KEPT);
        if !self.rivals.contains_key(&instance) && self.rivals.len() >= RIVALS_MAX {
            self.rivals.pop_first();
        }
        let rival = self.rivals.entry(instance).or_insert(Rival { returns: 0, last: now });
        rival.returns = rival.returns.saturating_add(1);
        rival.last = now;
    }

    /// The nonce of another process with this peer's key, when one was seen lately.
    pub fn clone_seen(&self, now: Time) -> Option<u64> {
        let clone =
            self.rivals.iter().find(|(_, rival)| rival.returns >= CLONE_RETURNS && now < rival.last + RIVAL_KEPT);
        clone.map(|(instance, _)| *instance)
    }

    /// When [`Originator::handle_timeout`] or [`Originator::poll`] has something to do.
    pub fn next_deadline(&self) -> Time {
        let told = if self.dirty.is_some() {
            self.earliest()
        } else {
            self.last.map_or(Time::ZERO, |last| last + self.refresh_after())
        };
        self.links.values().map(|link| link.deadline()).fold(told, Time::min)
    }

    /// Looks after holds, costs and penalties.
    pub fn handle_timeout(&mut self, now: Time) {
        let mut urgency = None;
        for link in self.links.values_mut() {
            urgency = urgency.max(link.handle_timeout(now));
        }
        self.links.retain(|_, link| link.up.is_some() || now < link.penalty_at + LINK_REMEMBERED);
        if let Some(urgency) = urgency {
            self.mark(urgency);
        }
    }

    /// The next record, when there is something to say and the time has come. Sign it, merge it, tell it.
    pub fn poll(&mut self, now: Time) -> Option<Record> {
        let refresh = self.last.is_none_or(|last| now >= last + self.refresh_after());
        if !refresh && (self.dirty.is_none() || now < self.earliest()) {
            return None;
        }
        let quiet = self.last.is_none_or(|last| now >= last + BURST_OVER);
        self.step = if quiet { 0 } else { (self.step + 1).min(BACK_OFF.len() - 1) };
        self.last = Some(now);
        self.dirty = None;
        self.record.version.seq = self.record.version.seq.saturating_add(1);
        let told = self.links.iter().filter(|(_, link)| link.told);
        self.record.links = told.map(|(peer, link)| RecordLink { peer: *peer, cost: link.cost }).collect();
        Some(self.record.clone())
    }

    fn earliest(&self) -> Time {
        let Some(last) = self.last else { return Time::ZERO };
        let clone = self.clone_seen(last).is_some();
        let interval = match self.dirty {
            _ if clone => CLONE_INTERVAL,
            _ if last < self.started + STARTUP => {
                if self.large {
                    BACK_OFF_LARGE
                } else {
                    BACK_OFF_FIRST
                }
            }
            Some(Urgency::Soon) => self.back_off().min(BACK_OFF_SOON),
            _ => self.back_off(),
        };
        last + interval
    }

    /// Drawn anew for each record, so that a mesh whose peers started together does not refresh together.
    fn refresh_after(&self) -> Duration {
        let Version { incarnation, seq } = self.record.version;
        let drawn = mix(mix(self.record.instance ^ incarnation) ^ seq) % 256;
        self.refresh - self.refresh / 1024 * (drawn as u32)
    }

    fn back_off(&self) -> Duration {
        BACK_OFF.get(self.step).copied().unwrap_or(BACK_OFF_FIRST)
    }

    fn mark(&mut self, urgency: Urgency) {
        self.dirty = self.dirty.max(Some(urgency));
    }
}

impl OwnLink {
    fn new(now: Time) -> OwnLink {
        OwnLink {
            up: None,
            rtt: Duration::ZERO,
            told: false,
            cost: 1,
            off_since: None,
            held: false,
            penalty: 0.0,
            penalty_at: now,
        }
    }

    fn penalty_at(&self, now: Time) -> f64 {
        self.penalty * (-now.since(self.penalty_at).as_secs_f64() / FLAP_HALF_LIFE.as_secs_f64()).exp2()
    }

    fn damped(&self, now: Time) -> bool {
        self.penalty_at(now) > FLAP_LIMIT
    }

    fn wanted_cost(&self, now: Time) -> u16 {
        if self.damped(now) { COST_LAST_RESORT } else { cost_of(self.rtt) }
    }

    /// When the hold is over, the cost has been off for long enough, or the penalty is worn off.
    fn deadline(&self) -> Time {
        let Some(up) = self.up else { return self.penalty_at + LINK_REMEMBERED };
        if !self.told {
            return up + HOLD;
        }
        if self.cost == COST_LAST_RESORT {
            let half_lives = (self.penalty / FLAP_LIMIT).log2().max(0.0);
            return self.penalty_at + FLAP_HALF_LIFE.mul_f64(half_lives) + Duration::from_millis(1);
        }
        self.off_since.map_or(Time::NEVER, |since| since + COST_STABLE)
    }

    fn handle_timeout(&mut self, now: Time) -> Option<Urgency> {
        let up = self.up?;
        let wanted = self.wanted_cost(now);
        if !self.told {
            if self.held && now < up + HOLD {
                return None;
            }
            let urgency = if self.held { Urgency::Paced } else { Urgency::Soon };
            (self.told, self.held, self.cost) = (true, true, wanted);
            return Some(urgency);
        }
        if (wanted == COST_LAST_RESORT) != (self.cost == COST_LAST_RESORT) {
            self.cost = wanted;
            return Some(Urgency::Paced);
        }
        if !differs(self.cost, wanted) {
            self.off_since = None;
            return None;
        }
        let since = *self.off_since.get_or_insert(now);
        if now < since + COST_STABLE {
            return None;
        }
        self.off_since = None;
        self.cost = wanted;
        Some(Urgency::Paced)
    }
}

/// The cost of a round trip: tens of microseconds, cut to the leading three bits, so that small changes leave it alone.
pub fn cost_of(rtt: Duration) -> u16 {
    let tens = u16::try_from(rtt.as_micros() / 10).unwrap_or(u16::MAX).clamp(1, COST_LAST_RESORT - 1);
    let spare = (u16::BITS - tens.leading_zeros()).saturating_sub(3);
    (tens >> spare) << spare
}

fn differs(told: u16, wanted: u16) -> bool {
    let change = told.abs_diff(wanted);
    change >= COST_CHANGE_MIN && u32::from(change) * 4 >= u32::from(told)
}

fn clip(mut text: String, limit: usize) -> String {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// A link is told up after it stayed up for this long: one that cannot is not worth a round of gossip.
const HOLD: Duration = Duration::from_secs(2);
/// For this long after the start, links are told at once and, in a mesh of few, at the shortest interval: thirty peers started together are meshed within
/// 5 s. In a large one each record costs all peers some, and its neighbours come within a second anyhow.
const STARTUP: Duration = Duration::from_secs(10);
/// Up to so many peers a record more costs little.
const FEW_PEERS: usize = 64;
/// Shortest times between two records, by their number in a burst: OSPF's back-off of origination in small.
const BACK_OFF: [Duration; 3] = [BACK_OFF_FIRST, BACK_OFF_SOON, Duration::from_secs(5)];
/// After the first record of a burst.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
/// While starting in a large mesh: by then the first links have come up together.
const BACK_OFF_LARGE: Duration = Duration::from_millis(400);
/// After the second; and the longest that a newcomer waits to be told of.
const BACK_OFF_SOON: Duration = Duration::from_secs(1);
/// A burst is over when nothing was told for this long.
const BURST_OVER: Duration = Duration::from_secs(10);
/// Even without news: what was lost everywhere comes back within this time.
const REFRESH: Duration = Duration::from_secs(300);
/// Longer for each peer: a flood costs each peer some 2 KB, so refreshing costs it 80 B/s at any size; digests repair in the meantime.
const REFRESH_EACH: Duration = Duration::from_secs(30);
/// How long a cost must be off before it is told.
const COST_STABLE: Duration = Duration::from_secs(10);
/// 2 ms in units of cost: less changes no choice of path.
const COST_CHANGE_MIN: u16 = 200;
/// Added at each down.
const FLAP_PENALTY: f64 = 1000.0;
/// The penalty halves in this time.
const FLAP_HALF_LIFE: Duration = Duration::from_secs(60);
/// Above this (three downs within a minute or so) the link is a last resort.
const FLAP_LIMIT: f64 = 2500.0;
/// A link that stays down is forgotten after ten half-lives: nothing is left of its penalty.
const LINK_REMEMBERED: Duration = Duration::from_secs(600);
/// Records from an earlier life may turn up from two sides of a healed partition; a third return is someone alive.
const CLONE_RETURNS: u32 = 3;
/// A clone is believed gone when not seen for this long.
const RIVAL_KEPT: Duration = Duration::from_secs(300);
/// Processes with this key that are told apart.
const RIVALS_MAX: usize = 4;
/// Two clones outbid each other for ever: not more often than this.
const CLONE_INTERVAL: Duration = Duration::from_secs(30);
/// Bytes of all extension fields together: half of a record's limit, the rest is for links.
const EXTENSION_BYTES_MAX: usize = limits::RECORD_MAX_BYTES / 4;

#[cfg(test)]
mod tests;
