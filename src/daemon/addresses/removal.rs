//! Whom `rmpeer` means, and whether they may be taken for gone.

use std::time::Duration;

use meshnet_core::time::Time;
use meshnet_proto::ShortId;

use crate::daemon::driver::Driver;

/// A peer that may be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What the node calls it.
    pub id: ShortId,
    /// As it calls itself.
    pub name: String,
    /// For people: told apart from others of its name.
    pub shown: String,
    /// This very peer.
    pub me: bool,
    /// For how long nothing was heard of it.
    pub silent: Duration,
}

impl Driver {
    /// Everybody known: by topology, and members of the address space that no topology has any more.
    pub(in crate::daemon) fn candidates(&self, now: Time) -> Vec<Candidate> {
        let me = self.node.status_me(now);
        let uptime = Duration::from_secs(me.uptime_s);
        let records = self.node.records();
        let mut all: Vec<Candidate> = records
            .entries()
            .map(|(id, entry)| Candidate {
                id: id.short(),
                name: entry.record().name.clone(),
                shown: records.display_name(id),
                me: *id == me.id,
                silent: entry.unreachable_since.map_or(Duration::ZERO, |since| now.since(since)),
            })
            .collect();
        for (id, name) in self.node.ipam_members() {
            if !all.iter().any(|other| other.id == id) {
                let shown = if name.is_empty() { digits(id)[..8].to_owned() } else { name.clone() };
                // Since this process began at the latest: before, it may have been heard.
                all.push(Candidate { id, name, shown, me: id == me.id.short(), silent: uptime });
            }
        }
        all
    }
}

/// Those that are meant, each once, or one line that says which word is wrong.
pub fn choose(all: &[Candidate], words: &[String], force: bool) -> Result<Vec<Candidate>, String> {
    let mut chosen: Vec<Candidate> = Vec::with_capacity(words.len());
    for word in words {
        let peer = find(all, word)?;
        if peer.me {
            return Err(format!("{word} is this peer itself: meshctl leave gives back what it owns"));
        }
        if peer.silent < SILENT && !force {
            let heard = match peer.silent.as_secs() {
                0 => "is there".to_owned(),
                seconds => format!("was heard {seconds} s ago"),
            };
            return Err(format!(
                "{word} {heard}: stop it and try again after {} s of silence; --force does it now, but if it still runs behind a cut, addresses \
                 may be given out twice",
                SILENT.as_secs()
            ));
        }
        if !chosen.iter().any(|other| other.id == peer.id) {
            chosen.push(peer.clone());
        }
    }
    if chosen.is_empty() {
        return Err("no peer is named: give names or ids (meshctl status ipam)".into());
    }
    Ok(chosen)
}

/// By name; else by id, whole or its first digits.
fn find<'a>(all: &'a [Candidate], word: &str) -> Result<&'a Candidate, String> {
    let named: Vec<&Candidate> = all.iter().filter(|peer| peer.name == word || peer.shown == word).collect();
    let lower = word.to_lowercase();
    // The second half of an id is not in a short one: what is there must agree.
    let known = lower.get(..16).unwrap_or(&lower);
    let is_id = (4..=32).contains(&lower.len()) && lower.bytes().all(|byte| byte.is_ascii_hexdigit());
    let by_id = |peer: &&Candidate| is_id && digits(peer.id).starts_with(known);
    let numbered: Vec<&Candidate> = all.iter().filter(by_id).collect();
    match (named.as_slice(), numbered.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one),
        ([], []) => Err(format!("no peer is called '{word}': see meshctl status ipam")),
        ([], many) | (many, _) => {
            let ids: Vec<String> = many.iter().take(LISTED_MAX).map(|peer| about(peer)).collect();
            Err(format!("'{word}' means several peers: give the id of one: {}", ids.join(", ")))
        }
    }
}

fn about(peer: &Candidate) -> String {
    let state = if peer.silent.is_zero() { "reachable" } else { "unreachable" };
    format!("{} ({state})", &digits(peer.id)[..8])
}

fn digits(id: ShortId) -> String {
    format!("{:016x}", id.0)
}

/// Longer than any restart of a peer or a flap of its network takes as a rule.
pub const SILENT: Duration = Duration::from_secs(60);
/// Of peers of one name: enough to choose from, on one line.
const LISTED_MAX: usize = 8;
