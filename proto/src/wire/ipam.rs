//! What peers say to each other about addresses: who owns which, who belongs to the cluster, and the questions that change it.
//!
//! Addresses travel as numbers (IPv4, network byte order read as `u32`). Members trust each other with the map: nothing in it is signed, as nothing is in
//! the routing of a network under one administration. A [`Message`] is `kind u8 ‖ body`, encoded by [`crate::codec`]. Positional: never edit, add at the end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::id::ShortId;
use crate::limits;

/// Order of attempts at one decision: the round, then who makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Grows with each attempt; 0: the first split.
    pub round: u32,
    /// Who attempts.
    pub by: ShortId,
}

/// Addresses from `first` on, `len` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The lowest.
    pub first: u32,
    /// How many; at least 1.
    pub len: u32,
}

impl Span {
    /// The address after the last; may be 2^32.
    pub fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.len)
    }

    /// Whether an address is within.
    pub fn contains(&self, address: u32) -> bool {
        address >= self.first && u64::from(address) < self.end()
    }
}

/// How a cluster's first split was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum GenesisKind {
    /// One peer had nobody to ask.
    Founder = 0,
    /// A list of names that all were given.
    Seeds = 1,
    /// A majority.
    Election = 2,
    /// Kubernetes.
    Api = 3,
}

/// The birth of an address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Genesis {
    /// Tells address spaces apart.
    pub uuid: [u8; 16],
    /// How it was agreed.
    pub kind: GenesisKind,
    /// What is split.
    pub range: Span,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Standing {
    /// Asked to belong; a majority has not agreed yet.
    Known = 0,
    /// May own and be given addresses.
    Admitted = 1,
    /// Gone for good. For ever.
    Removed = 2,
}

/// A member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub id: ShortId,
    /// What it is.
    pub standing: Standing,
}

/// Addresses of one owner, given by one peer at one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run {
    /// Which.
    pub span: Span,
    /// Higher wins; grows when a dead owner's addresses are taken back.
    pub ballot: Ballot,
    /// Higher wins within a ballot; grows with each change of owner.
    pub version: u32,
    /// Who may give them out, or away.
    pub owner: ShortId,
    /// Who made it the owner.
    pub giver: ShortId,
}

/// What the sender knows: all of it, or what changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct State {
    /// Members.
    pub members: Vec<Member>,
    /// Owners, by ascending address, disjoint.
    pub runs: Vec<Run>,
}

/// Asks for addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ask {
    /// Comes back in the answer.
    pub token: u64,
    /// Only these.
    pub within: Span,
    /// As many as this, or fewer.
    pub want: u32,
}

/// What became of an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Outcome {
    /// Some were given.
    Given = 0,
    /// None is free there.
    Nothing = 1,
    /// The asker is no member, or its removal is under way.
    Stranger = 2,
    /// I give nothing now: not a member yet, or my own state is in doubt.
    NotNow = 3,
}

/// How a peer without an address space would like to begin one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stand {
    /// How many begin together.
    pub electors: u16,
    /// What is split.
    pub range: Span,
    /// True: any `electors` peers; false: those that list each other.
    pub any: bool,
    /// The listed ones that are known by now.
    pub listed: Vec<ShortId>,
}

/// What is decided by election: who begins with equal shares.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Decree {
    /// Of the address space to be.
    pub uuid: [u8; 16],
    /// By ascending id.
    pub seeds: Vec<ShortId>,
}

/// One message between two members (or would-be members), passed on by those between. `cluster`: of the address space that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Message {
    /// 0: what I know, or what changed. Also told to every neighbour.
    State { genesis: Genesis, full: bool, state: State },
    /// 1: hash of all I know; told to one neighbour at a time, who answers with its `State` when its own differs.
    Digest { cluster: [u8; 16], hash: u64 },
    /// 2: give me addresses.
    Ask { cluster: [u8; 16], ask: Ask },
    /// 3: the answer, and the runs that changed.
    Answer { cluster: [u8; 16], token: u64, outcome: Outcome, state: State },
    /// 4: I want to belong, and ask nobody else. `attempt`: how often I have chosen whom to ask.
    Join { cluster: [u8; 16], attempt: u32 },
    /// 5: may these belong? `members`: all that the sender knows, when a hash of them was not enough.
    Add { cluster: [u8; 16], joiners: Vec<ShortId>, hash: u64, members: Vec<Member> },
    /// 6: yes.
    AddYes { cluster: [u8; 16], joiners: Vec<ShortId>, hash: u64 },
    /// 7: not by what you know: this is what I know.
    AddNo { cluster: [u8; 16], hash: u64, members: Vec<Member> },
    /// 8: promise not to deal with these any more; I take their addresses.
    Prepare { cluster: [u8; 16], ballot: Ballot, gone: Vec<ShortId> },
    /// 9: promised; this is all I know.
    Promise { cluster: [u8; 16], ballot: Ballot, admitted: bool, state: State },
    /// 10: no: a higher ballot has my promise, or one of them is alive and it is me.
    Refuse { cluster: [u8; 16], ballot: Ballot, higher: Ballot, alive: bool },
    /// 11: I let that attempt go.
    Withdraw { cluster: [u8; 16], ballot: Ballot, gone: Vec<ShortId> },
    /// 12: how I would like to begin.
    Stand(Stand),
    /// 13: will you take part in this ballot?
    Elect { ballot: Ballot, electors: u16 },
    /// 14: I will; this is what I accepted before.
    Elected { ballot: Ballot, accepted: Option<(Ballot, Decree)> },
    /// 15: then accept this.
    Accept { ballot: Ballot, decree: Decree },
    /// 16: accepted.
    Accepted { ballot: Ballot },
    /// 17: I leave, and gave everything away: this is my last word, do you have it?
    Leaving { cluster: [u8; 16], state: State },
    /// 18: I have it.
    Left { cluster: [u8; 16] },
    /// 19: I do not let you in by that attempt: choose whom to ask anew.
    Turn { cluster: [u8; 16], attempt: u32 },
}

/// [`State`] in columns: each id once, in the order in which it owns; runs by what differs from the run before. A thousand fair shares take 18 KB.
#[derive(Serialize, Deserialize)]
struct Packed {
    ids: Vec<[u8; 8]>,
    /// (standing, how many ids in a row); [`UNSAID`]: only named by a run.
    standings: Vec<(u8, u32)>,
    ballots: Vec<Ballot>,
    /// Gap after the run before, length, ballot's place, version, owner's place (as the difference to the one after the run before's), giver's place.
    runs: Vec<(u32, u32, u32, u32, i32, u32)>,
}

/// Standing of an id that the sender says nothing about.
const UNSAID: u8 = 255;

impl Standing {
    fn from_u8(number: u8) -> Option<Standing> {
        [Standing::Known, Standing::Admitted, Standing::Removed].into_iter().find(|standing| *standing as u8 == number)
    }
}

fn malformed(what: &str) -> CodecError {
    CodecError::Malformed(what.to_owned())
}

impl State {
    fn pack(&self) -> Packed {
        let standing: BTreeMap<ShortId, Standing> = self.members.iter().map(|m| (m.id, m.standing)).collect();
        let mut place: BTreeMap<ShortId, u32> = BTreeMap::new();
        let mut ids: Vec<ShortId> = Vec::new();
        let owners = self.runs.iter().map(|run| run.owner);
        let named = owners.chain(self.members.iter().map(|m| m.id)).chain(self.runs.iter().map(|run| run.giver));
        for id in named {
            place.entry(id).or_insert_with(|| {
                ids.push(id);
                ids.len() as u32 - 1
            });
        }
        let mut standings: Vec<(u8, u32)> = Vec::new();
        for id in &ids {
            let number = standing.get(id).map_or(UNSAID, |standing| *standing as u8);
            match standings.last_mut() {
                Some((last, count)) if *last == number => *count += 1,
                _ => standings.push((number, 1)),
            }
        }
        let mut ballots: Vec<Ballot> = self.runs.iter().map(|run| run.ballot).collect();
        ballots.sort_unstable();
        ballots.dedup();
        let at = |id: &ShortId| place.get(id).copied().unwrap_or_default();
        let (mut end, mut next) = (0u64, 0i64);
        let mut runs = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let owner = i64::from(at(&run.owner));
            let ballot = ballots.binary_search(&run.ballot).unwrap_or_default() as u32;
            let gap = u64::from(run.span.first).saturating_sub(end) as u32;
            runs.push((gap, run.span.len, ballot, run.version, (owner - next) as i32, at(&run.giver)));
            end = run.span.end();
            next = owner + 1;
        }
        Packed { ids: ids.iter().map(|id| id.0.to_be_bytes()).collect(), standings, ballots, runs }
    }

    fn unpack(packed: Packed) -> Result<State, CodecError> {
        let Packed { ids, standings, ballots, runs } = packed;
        bounded(ids.len(), limits::IPAM_MEMBERS_MAX)?;
        bounded(runs.len(), limits::IPAM_RUNS_MAX)?;
        let ids: Vec<ShortId> = ids.into_iter().map(|id| ShortId(u64::from_be_bytes(id))).collect();
        let said: u64 = standings.iter().map(|(_, count)| u64::from(*count)).sum();
        if said != ids.len() as u64 {
            return Err(malformed("standings do not match the ids"));
        }
        let mut members = Vec::new();
        let mut rest = ids.iter();
        for (number, count) in standings {
            let these = rest.by_ref().take(count as usize);
            match Standing::from_u8(number) {
                Some(standing) => members.extend(these.map(|id| Member { id: *id, standing })),
                None if number == UNSAID => drop(these.count()),
                None => return Err(malformed("unknown standing")),
            }
        }
        members.sort_unstable();
        if !members.is_sorted_by(|a, b| a.id < b.id) {
            return Err(malformed("a member twice"));
        }
        let id = |place: i64| usize::try_from(place).ok().and_then(|place| ids.get(place)).copied();
        let (mut end, mut next) = (0u64, 0i64);
        let mut all = Vec::with_capacity(runs.len());
        for (gap, len, ballot, version, owner, giver) in runs {
            let first = u32::try_from(end + u64::from(gap)).map_err(|_| malformed("addresses past the last"))?;
            let span = Span { first, len };
            if len == 0 || span.end() > 1 << 32 {
                return Err(malformed("a run without addresses, or past the last"));
            }
            let owner = next.saturating_add(i64::from(owner));
            let (Some(owned_by), Some(giver), Some(ballot)) =
                (id(owner), id(i64::from(giver)), ballots.get(ballot as usize).copied())
            else {
                return Err(malformed("a place that is not there"));
            };
            all.push(Run { span, ballot, version, owner: owned_by, giver });
            end = span.end();
            next = owner.saturating_add(1);
        }
        Ok(State { members, runs: all })
    }
}

impl Serialize for State {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.pack().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<State, D::Error> {
        State::unpack(Packed::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Message {
    /// Bytes to send.
    pub fn emit(&self) -> Result<Vec<u8>, CodecError> {
        let bytes = codec::encode(self)?;
        bounded(bytes.len(), limits::MESSAGE_MAX_BYTES - ROUTED_OVERHEAD)?;
        Ok(bytes)
    }

    /// Reads a message. `None`: a kind of a newer version, to be skipped.
    pub fn parse(bytes: &[u8]) -> Result<Option<Message>, CodecError> {
        // The encoding of an enum begins with the number of its variant, one byte below 251.
        match bytes.first() {
            None => return Err(malformed("empty message about addresses")),
            Some(kind) if *kind >= KINDS => return Ok(None),
            Some(_) => {}
        }
        let message: Message = codec::decode(bytes)?;
        message.within_limits()?;
        Ok(Some(message))
    }

    fn within_limits(&self) -> Result<(), CodecError> {
        use Message::*;
        let ids = match self {
            Add { joiners, members, .. } => joiners.len().max(members.len()),
            AddNo { members, .. } => members.len(),
            AddYes { joiners, .. } => joiners.len(),
            Prepare { gone, .. } | Withdraw { gone, .. } => gone.len(),
            Stand(stand) => stand.listed.len(),
            Accept { decree, .. } | Elected { accepted: Some((_, decree)), .. } => decree.seeds.len(),
            _ => 0,
        };
        bounded(ids, limits::IPAM_MEMBERS_MAX)
    }
}

fn bounded(length: usize, limit: usize) -> Result<(), CodecError> {
    if length > limit { Err(CodecError::TooLong(length, limit)) } else { Ok(()) }
}

/// Kinds of messages that this version knows.
const KINDS: u8 = 20;
/// What a message about addresses is wrapped in on its way: see [`crate::wire::control::Routed`].
const ROUTED_OVERHEAD: usize = 64;

#[cfg(test)]
mod tests;
