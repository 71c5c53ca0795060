//! What goes into the machine of addresses and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meshnet_proto::ShortId;
use meshnet_proto::wire::ipam::{Message, Span};

use crate::node::{Level, LinkId};

/// How the first split is agreed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Init {
    /// Nobody to connect to: this peer owns all. Some that list each other: by election among them. Else wait for one that knows.
    Auto,
    /// Equal shares for the peers of these names.
    Seeds(Vec<String>),
    /// By election as soon as a majority of this many is there.
    Consensus(u16),
    /// As somebody outside says by [`Input::Space`].
    Outside,
    /// Never owns or gives out an address.
    Observer,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// This peer.
    pub me: ShortId,
    /// Its name for people.
    pub name: String,
    /// What is split: a power of two of addresses, on its boundary.
    pub range: Span,
    /// Where addresses come from when nobody says otherwise; within `range`.
    pub subnet: Span,
    /// How the first split is agreed.
    pub init: Init,
    /// Addresses are probed on the bridge before their first use ([`Output::Probe`]).
    pub probe: bool,
    /// An address that was freed rests this long, while there are others.
    pub cool_down: Duration,
    /// Start of all that is drawn.
    pub seed: u64,
}

/// A peer as the rest of the node sees it now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PeerView {
    /// For people and [`Init::Seeds`].
    pub name: String,
    /// Messages get there.
    pub reachable: bool,
    /// How long it has not been reachable, in any steps up to [`super::HEARD_LATELY`].
    pub silent_for: Duration,
    /// What it says of itself; none: not told yet.
    pub told: Option<Told>,
}

/// What a peer tells all others about its addresses, in its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Told {
    /// Hash of the map and the members as it knows them.
    pub digest: u64,
    /// Addresses that it could give out or away.
    pub free: u32,
}

/// All peers, and whom this peer was told to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct View {
    /// Everybody in the topology but this peer.
    pub peers: BTreeMap<ShortId, PeerView>,
    /// Those among them that this peer's targets led to.
    pub listed: BTreeSet<ShortId>,
    /// Different peers among the targets, this one not counted; a target that led nowhere yet counts as one.
    pub targets: u16,
}

/// What people and programs ask.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Request {
    /// An address for this owner, out of a subnet; the same one when it has one there.
    Alloc { owner: String, within: Option<Span> },
    /// This very address.
    Claim { owner: String, address: u32 },
    /// The addresses of this owner.
    Lookup { owner: String },
    /// One of its addresses, or all, back.
    Free { owner: String, address: Option<u32> },
    /// All addresses given out here.
    List,
    /// These are gone for good: take what they own. `force`: without the promise of those that cannot be heard.
    Remove { peers: Vec<ShortId>, force: bool },
    /// Give everything back and belong no more.
    Leave,
}

/// Why not. The texts are for people: they name the culprit and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Asking again in the same way will not help.
    #[error("{0}")]
    No(String),
    /// It may work later as things stand.
    #[error("{0}")]
    Later(String),
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Answer {
    /// Done, nothing to tell.
    Done,
    /// One address, given out; `subnet`: its network.
    Address { address: u32, subnet: Span },
    /// Addresses and their owners.
    Leases(Vec<LeaseLine>),
    /// So many addresses were taken back.
    Removed { addresses: u64 },
}

/// One address that is given out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseLine {
    /// To whom.
    pub owner: String,
    /// Which.
    pub address: u32,
    /// The network that it was asked from.
    pub subnet: Span,
    /// It came from another address space and its owner here has not agreed (yet).
    pub unconfirmed: bool,
}

/// One change of what is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Write {
    /// Where.
    pub key: Vec<u8>,
    /// What; none: nothing any more.
    pub value: Option<Vec<u8>>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Input {
    /// Somebody asks; answered by [`Output::Reply`] with the same token.
    Request { token: u64, request: Request },
    /// A write of [`Output::Keep`] is on disk, or is not: the words of the system. It is repeated by itself.
    Kept { seq: u64, result: Result<(), String> },
    /// A message of another peer.
    Message { from: ShortId, message: Message },
    /// A link to a neighbour is up.
    LinkUp { link: LinkId, peer: ShortId },
    /// It is gone.
    LinkDown { link: LinkId },
    /// A message of a neighbour, for this peer.
    Told { link: LinkId, message: Message },
    /// Answer to [`Output::Probe`]: those that somebody on the bridge answers for.
    Probed { addresses: Vec<u32>, taken: Vec<u32> },
    /// [`View`] changed.
    ViewChanged,
    /// With [`Init::Outside`]: the address space to belong to (none: to none for now), and whether this peer begins it.
    Space { space: Option<[u8; 16]>, begin: bool },
    /// Somebody outside vouches that these, this peer among them, are all that may live of those that ever asked it for leave to join.
    Alive(BTreeSet<ShortId>),
    /// Somebody else runs with this peer's identity, or this peer's state is older than what others have seen of it.
    Doubt(String),
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Output {
    /// Write all of these, or none, and sync; then say [`Input::Kept`]. Everything that relies on it is given out afterwards.
    Keep { seq: u64, writes: Vec<Write> },
    /// Send to a peer, wherever it is.
    Send { to: ShortId, message: Message },
    /// Tell a neighbour.
    Tell { link: LinkId, message: Message },
    /// The answer to a request.
    Reply { token: u64, result: Result<Answer, Refusal> },
    /// Ask on the bridge whether somebody has these; answer by [`Input::Probed`] within 1 s.
    Probe(Vec<u32>),
    /// Owners changed: the frame path must know.
    Owners,
    /// What this peer tells of itself changed.
    Told(Told),
    /// Another peer declared this one gone for good: it needs a new identity. Its leases are to be claimed with it.
    Removed,
    /// This peer left, as asked: its state can go.
    Left,
    /// Worth a line in the log.
    Event { level: Level, what: &'static str, detail: String },
}
