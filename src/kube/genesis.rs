//! Who begins with the addresses: decided by compare-and-set on one ConfigMap. Pure: what is read comes in, what is to be written comes out.
//!
//! ```text
//! no ConfigMap ──create──▶ {space U, founder me, members [me]} ──▶ the founder begins U, alone (`core/ipam/outside`)
//!                          joiner ──update──▶ members + me ──▶ takes U from whoever tells of it, joins by votes of its members
//!                          all members gone for good, and none that could belong is left ──update──▶ {space U', founder me, members [me]}
//! ```
//! # Why no address is given out twice
//! *One space begins once.* Its number is drawn anew for each create and takeover, and the API lets one of them win. Only the founder named there begins it,
//! and it is told so only after it read its own name there. Its identity lives in the directory that its addresses are in: a founder that lost them has lost
//! its name as well, and is not the founder. One that stopped between the decision and its disk begins the same space again, which nobody has heard of yet.
//!
//! *Whoever may own an address of U stands in the ConfigMap.* A peer neither takes U nor asks to be let in before it read its own name there (or read that
//! the list is closed), and only members give addresses away. So the list holds everybody that could own an address of U; more may stand there than do.
//!
//! *U is replaced only when nobody of it lives.* A takeover wants each name on the list to be gone for good ([`super::nodes::Fate`]: its Node deleted, or
//! another peer in its place with no container around), and writes by compare-and-set against the very list that it judged: who adds itself meanwhile wins,
//! and the takeover fails. A closed list (longer than [`MEMBERS_MAX`], or written for a space that was there before) is never taken over: `kubectl delete
//! configmap` is for people to say, when they know that all its peers are gone.
//!
//! *A founder that died before it let anybody in* leaves joiners on the list that wait for each other. Each that was not let in, hears of nobody that was and
//! finds the founder gone takes back its leave to join and strikes itself out; the one with the lowest id stays until it is alone, and takes over. Who is a
//! member does not do so, and its name then stops the takeover.
//!
//! *The API is away:* nobody begins, nobody joins for the first time. Who belongs already needs nothing of this, ever again.
//!
//! *The ConfigMap was deleted:* members write it again, closed. A newcomer that finds none looks whether a Node bears the mark of a space, or a peer tells of
//! one: then it waits for them. What remains is deletion while all members are stopped and the Nodes' marks are gone too: then there is nothing to go by.

use meshnet_proto::ShortId;
use serde::{Deserialize, Serialize};

use super::nodes::Fate;
use super::objects::{self, Space};

/// What the ConfigMap holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Birth {
    /// The address space.
    pub space: Space,
    /// What it splits, as CIDR.
    pub range: String,
    /// Who begins it.
    pub founder: ShortId,
    /// Who may belong to it, the founder first.
    pub members: Vec<Listed>,
    /// There may be more: it is not taken over.
    pub closed: bool,
}

/// A peer that may belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Who.
    pub peer: ShortId,
    /// Where.
    pub node: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    address_space: String,
    range: String,
    founder: String,
    members: Vec<Line>,
    closed: bool,
}

#[derive(Serialize, Deserialize)]
struct Line {
    peer: String,
    node: String,
}

impl Birth {
    /// The text of the ConfigMap.
    pub fn emit(&self) -> String {
        let digits = |peer: ShortId| format!("{:016x}", peer.0);
        let line = |listed: &Listed| Line { peer: digits(listed.peer), node: listed.node.clone() };
        let document = Document {
            address_space: objects::hex(&self.space),
            range: self.range.clone(),
            founder: digits(self.founder),
            members: self.members.iter().map(line).collect(),
            closed: self.closed,
        };
        // Texts and lists become JSON always.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// From the text of the ConfigMap. The error says what is odd.
    pub fn parse(text: &str) -> Result<Birth, String> {
        let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let peer = |text: &str| match text.len() {
            16 => u64::from_str_radix(text, 16).map(ShortId).map_err(|_| format!("'{text}' is no peer")),
            _ => Err(format!("'{text}' is no peer")),
        };
        if document.members.len() > MEMBERS_MAX {
            return Err(format!("more than {MEMBERS_MAX} members"));
        }
        let line = |line: Line| Ok::<_, String>(Listed { peer: peer(&line.peer)?, node: line.node });
        let space = objects::space(&document.address_space);
        Ok(Birth {
            space: space.ok_or_else(|| format!("'{}' is no address space", document.address_space))?,
            range: document.range,
            founder: peer(&document.founder)?,
            members: document.members.into_iter().map(line).collect::<Result<_, _>>()?,
            closed: document.closed,
        })
    }
}

/// All that a decision hangs on.
pub struct Situation<'a> {
    /// This peer.
    pub me: ShortId,
    /// Its Node.
    pub node: &'a str,
    /// The range that it was given.
    pub range: &'a str,
    /// The address space that it has, and whether it belongs to it.
    pub space: Option<(Space, bool)>,
    /// One that another peer tells of.
    pub heard: Option<Space>,
    /// Another Node that bears the mark of an address space.
    pub marked: Option<&'a str>,
    /// A member of the space that it has can be heard.
    pub member_heard: bool,
    /// It may begin: it was not told of peers to connect to, which may have a space.
    pub may_begin: bool,
    /// Drawn for this decision.
    pub fresh: Space,
    /// What the ConfigMap holds.
    pub birth: Option<&'a Birth>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Step {
    /// All is well.
    Done,
    /// Create the ConfigMap, or replace the one that was read; then decide again. `leave`: first take back the leave to join.
    Write { birth: Birth, leave: bool },
    /// Belong to this space.
    Belong { space: Space, begin: bool },
    /// Wait, in these words. `leave`: take back the leave to join.
    Wait { why: String, leave: bool },
    /// It contradicts what this peer has.
    Odd(String),
}

/// Decides. `fate`: what became of a peer on a list.
pub fn decide(s: &Situation<'_>, fate: impl Fn(&Listed) -> Fate) -> Step {
    let me = Listed { peer: s.me, node: s.node.to_owned() };
    let birth = |space: Space, closed: bool| Birth {
        space,
        range: s.range.to_owned(),
        founder: s.me,
        members: vec![me.clone()],
        closed,
    };
    let write = |birth: Birth| Step::Write { birth, leave: false };
    let wait = |why: String| Step::Wait { why, leave: false };
    let Some(there) = s.birth else {
        return match (s.space, s.marked, s.heard) {
            (Some((space, true)), ..) => write(birth(space, true)),
            (_, Some(node), _) => wait(format!(
                "the ConfigMap is missing, and the peer of Node {node} belongs to an address space: it will write it again"
            )),
            (Some((space, false)), ..) | (None, None, Some(space)) => write(birth(space, true)),
            (None, None, None) if !s.may_begin => wait("none of --peer has told of the address space yet".into()),
            (None, None, None) => write(birth(s.fresh, false)),
        };
    };
    match s.space {
        Some((space, true)) if space == there.space => return Step::Done,
        Some((_, true)) => {
            return Step::Odd(format!("this peer belongs to another address space than the one of {CONFIG_MAP}"));
        }
        _ => {}
    }
    if there.range != s.range {
        return Step::Odd(format!("{CONFIG_MAP} splits {}, this peer {}", there.range, s.range));
    }
    if there.founder == s.me && !there.closed {
        return Step::Belong { space: there.space, begin: true };
    }
    if there.closed {
        return Step::Belong { space: there.space, begin: false };
    }
    among(s, there, birth(s.fresh, false), fate)
}

/// What a peer does that did not begin the space of an open list.
fn among(s: &Situation<'_>, there: &Birth, takeover: Birth, fate: impl Fn(&Listed) -> Fate) -> Step {
    let others = there.members.iter().filter(|listed| listed.peer != s.me);
    let alive: Vec<&Listed> = others.filter(|listed| fate(listed) == Fate::Here).collect();
    let listed = there.members.iter().any(|listed| listed.peer == s.me);
    let founder = alive.iter().any(|listed| listed.peer == there.founder);
    let known =
        s.space.is_some_and(|(space, _)| space == there.space) && s.member_heard || s.heard == Some(there.space);
    let belong = Step::Belong { space: there.space, begin: false };
    match (listed, founder || known) {
        (true, true) => belong,
        (false, true) => {
            let mut birth = there.clone();
            birth.closed = birth.members.len() >= MEMBERS_MAX;
            if !birth.closed {
                birth.members.push(Listed { peer: s.me, node: s.node.to_owned() });
            }
            Step::Write { birth, leave: false }
        }
        (_, false) if alive.is_empty() => match s.heard {
            Some(_) => {
                Step::Wait { why: "a peer tells of another address space than the ConfigMap".into(), leave: true }
            }
            None => Step::Write { birth: takeover, leave: true },
        },
        (true, false) if alive.iter().any(|other| other.peer < s.me) => {
            let mut birth = there.clone();
            birth.members.retain(|listed| listed.peer != s.me);
            Step::Write { birth, leave: true }
        }
        (_, false) => {
            let names: Vec<&str> = alive.iter().take(NAMED_MAX).map(|listed| listed.node.as_str()).collect();
            let why = format!(
                "the peer that began is gone, and {} may own addresses of it: waiting to hear from there",
                names.join(", ")
            );
            Step::Wait { why, leave: true }
        }
    }
}

/// The name of the ConfigMap.
pub const CONFIG_MAP: &str = "meshnet-genesis";
/// Its key.
pub const KEY: &str = "genesis";
/// Each newcomer writes itself down until there are as many; so many may hang on the fate of a founder.
pub const MEMBERS_MAX: usize = 64;
/// Nodes named in a line for people.
const NAMED_MAX: usize = 3;

#[cfg(test)]
mod tests;
