//! The map of owners: runs of addresses, each with the ballot and version at which it got its owner. Merging keeps the higher one, address by address, so it
//! is commutative, associative and idempotent. Only the owner of an address writes the next version; only a removal writes a higher ballot.

use std::collections::{BTreeMap, BTreeSet};

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Ballot, Run, Span};

/// A run as it is held here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(super) struct Held {
    pub len: u32,
    pub ballot: Ballot,
    pub version: u32,
    pub owner: ShortId,
    pub giver: ShortId,
    /// Given to me by a peer whose removal was under way: not to be used before that is decided.
    pub suspended: bool,
}

impl Held {
    fn key(&self) -> (Ballot, u32) {
        (self.ballot, self.version)
    }

    fn same(&self, other: &Held) -> bool {
        Held { len: 0, ..*self } == Held { len: 0, ..*other }
    }
}

/// What became of one piece of an incoming run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// Newer: taken. The owner before, if any.
    Taken { span: Span, before: Option<Held> },
    /// The same version with another owner: a broken rule, or a stolen identity.
    Contradiction { span: Span, here: Held },
}

/// The map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Map {
    runs: BTreeMap<u32, Held>,
    /// Starts of runs that changed, came or went since they were last kept.
    dirty: BTreeSet<u32>,
    /// What others must be told.
    changed: Vec<Span>,
}

impl Map {
    /// From what was kept.
    pub fn restore(runs: BTreeMap<u32, Held>) -> Map {
        Map { runs, ..Map::default() }
    }

    /// All runs by ascending address.
    pub fn iter(&self) -> impl Iterator<Item = (Span, &Held)> {
        self.runs.iter().map(|(first, held)| (Span { first: *first, len: held.len }, held))
    }

    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// The run that an address is in.
    pub fn at(&self, address: u32) -> Option<(Span, &Held)> {
        let (first, held) = self.runs.range(..=address).next_back()?;
        let span = Span { first: *first, len: held.len };
        span.contains(address).then_some((span, held))
    }

    /// Pieces of runs that lie within a span.
    pub fn within(&self, span: Span) -> impl Iterator<Item = (Span, &Held)> {
        let before = self.at(span.first).map_or(span.first, |(run, _)| run.first);
        let last = u32::try_from(span.end() - 1).unwrap_or(u32::MAX);
        self.runs.range(before..=last).filter_map(move |(first, held)| {
            let piece = overlap(Span { first: *first, len: held.len }, span)?;
            Some((piece, held))
        })
    }

    /// As it travels: runs that differ only in what is known here alone are one.
    pub fn wire(&self, only: Option<&[Span]>) -> Vec<Run> {
        let mut all: Vec<Run> = Vec::new();
        let mut add = |span: Span, held: &Held| {
            let run = Run { span, ballot: held.ballot, version: held.version, owner: held.owner, giver: held.giver };
            match all.last_mut() {
                Some(last) if last.span.end() == u64::from(span.first) && Run { span, ..*last } == run => {
                    last.span.len += span.len;
                }
                _ => all.push(run),
            }
        };
        match only {
            None => self.iter().for_each(|(span, held)| add(span, held)),
            Some(spans) => {
                for span in disjoint(spans) {
                    self.within(span).for_each(|(piece, held)| add(piece, held));
                }
            }
        }
        all
    }

    /// Runs, or pieces, that are newer here than in `theirs`, or that it lacks.
    pub fn newer_than(&self, theirs: &[Run]) -> Vec<Span> {
        let mut other = Map::default();
        for run in theirs {
            other.put(run.span, from_wire(run));
        }
        let mut spans = Vec::new();
        for (span, held) in self.iter() {
            let mut at = u64::from(span.first);
            while at < span.end() {
                let (piece, there) = other.piece(at as u32, span.end());
                if there.is_none_or(|there| there.key() < held.key()) {
                    spans.push(piece);
                }
                at = piece.end();
            }
        }
        spans
    }

    /// The longest piece from `at` on (before `end`) that is one run here, or none.
    fn piece(&self, at: u32, end: u64) -> (Span, Option<Held>) {
        let (stop, held) = match self.at(at) {
            Some((run, held)) => (run.end().min(end), Some(*held)),
            None => (self.runs.range(at..).next().map_or(end, |(first, _)| u64::from(*first).min(end)), None),
        };
        (Span { first: at, len: (stop - u64::from(at)) as u32 }, held)
    }

    /// Takes in a run of another peer. `suspend`: whether this peer may not use it yet.
    pub fn merge(&mut self, run: &Run, suspend: bool, mut on: impl FnMut(Piece)) {
        let mut taken = Vec::new();
        let mut at = u64::from(run.span.first);
        while at < run.span.end() {
            let (span, here) = self.piece(at as u32, run.span.end());
            at = span.end();
            let there = Held { suspended: suspend, ..from_wire(run) };
            match here {
                Some(here) if here.key() > there.key() => {}
                Some(here) if here.key() == there.key() => {
                    if here.owner != there.owner {
                        on(Piece::Contradiction { span, here });
                        // The lower id stays, and neither uses it.
                        let stays = if there.owner < here.owner { there } else { here };
                        taken.push((span, Held { suspended: true, ..stays }));
                    }
                }
                before => {
                    on(Piece::Taken { span, before });
                    taken.push((span, there));
                }
            }
        }
        for (span, held) in taken {
            self.write(span, held);
        }
    }

    /// Writes a run over whatever was there, to be kept and told.
    pub fn write(&mut self, span: Span, held: Held) {
        self.put(span, held);
        self.changed.push(span);
    }

    /// Changes only what is known here.
    pub fn unsuspend(&mut self, mut which: impl FnMut(Span, &Held) -> bool) {
        let free: Vec<(Span, Held)> = self
            .iter()
            .filter(|(span, held)| held.suspended && which(*span, held))
            .map(|(span, held)| (span, Held { suspended: false, ..*held }))
            .collect();
        for (span, held) in free {
            self.put(span, held);
        }
    }

    fn put(&mut self, span: Span, held: Held) {
        self.cut(span.first);
        if let Ok(end) = u32::try_from(span.end()) {
            self.cut(end);
        }
        let last = u32::try_from(span.end() - 1).unwrap_or(u32::MAX);
        let inside: Vec<u32> = self.runs.range(span.first..=last).map(|(first, _)| *first).collect();
        for first in inside {
            self.runs.remove(&first);
            self.dirty.insert(first);
        }
        let mut first = span.first;
        let mut held = Held { len: span.len, ..held };
        if let Some((before, left)) = self.runs.range(..first).next_back()
            && u64::from(*before) + u64::from(left.len) == u64::from(first)
            && left.same(&held)
        {
            held.len += left.len;
            first = *before;
        }
        if let Ok(next) = u32::try_from(span.end())
            && let Some(right) = self.runs.get(&next)
            && right.same(&held)
        {
            held.len += right.len;
            self.runs.remove(&next);
            self.dirty.insert(next);
        }
        self.runs.insert(first, held);
        self.dirty.insert(first);
    }

    /// Makes an address the start of a run, if it is in one.
    fn cut(&mut self, at: u32) {
        let Some((span, held)) = self.at(at).map(|(span, held)| (span, *held)) else { return };
        if span.first == at {
            return;
        }
        let head = at - span.first;
        self.runs.insert(span.first, Held { len: head, ..held });
        self.runs.insert(at, Held { len: span.len - head, ..held });
        self.dirty.insert(span.first);
        self.dirty.insert(at);
    }

    /// Joins neighbouring runs of one owner: it may write the next version of its own at any time.
    pub fn join_own(&mut self, me: ShortId) {
        let mine = |held: &Held| held.owner == me && !held.suspended;
        loop {
            let all = self.iter().map(|(span, held)| (span, *held));
            let next = self.iter().map(|(span, held)| (span, *held)).skip(1);
            let found = all.zip(next).find(|((left, a), (right, b))| {
                left.end() == u64::from(right.first) && mine(a) && mine(b) && a.ballot == b.ballot
            });
            let Some(((left, a), (right, b))) = found else { return };
            let version = a.version.max(b.version).saturating_add(1);
            let whole = Span { first: left.first, len: left.len + right.len };
            let held = Held { len: whole.len, ballot: a.ballot, version, owner: me, giver: me, suspended: false };
            self.write(whole, held);
        }
    }

    /// Everything is forgotten, on disk too.
    pub fn clear(&mut self) {
        self.dirty.extend(self.runs.keys());
        self.runs.clear();
        self.changed.clear();
    }

    /// Starts whose run is to be kept anew, or is gone.
    pub fn take_dirty(&mut self) -> Vec<(u32, Option<Held>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|first| (first, self.runs.get(&first).copied())).collect()
    }

    /// What others must be told.
    pub fn take_changed(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.changed)
    }
}

fn from_wire(run: &Run) -> Held {
    let Run { span, ballot, version, owner, giver } = *run;
    Held { len: span.len, ballot, version, owner, giver, suspended: false }
}

/// What two spans share.
pub(super) fn overlap(a: Span, b: Span) -> Option<Span> {
    let first = a.first.max(b.first);
    let end = a.end().min(b.end());
    (u64::from(first) < end).then(|| Span { first, len: (end - u64::from(first)) as u32 })
}

/// Sorted, and none twice.
fn disjoint(spans: &[Span]) -> Vec<Span> {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    let mut all: Vec<Span> = Vec::with_capacity(sorted.len());
    for span in sorted {
        match all.last_mut() {
            Some(last) if last.end() >= u64::from(span.first) => {
                let end = last.end().max(span.end());
                last.len = u32::try_from(end - u64::from(last.first)).unwrap_or(u32::MAX);
            }
            _ => all.push(span),
        }
    }
    all
}

#[cfg(test)]
mod tests;
