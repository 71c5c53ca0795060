//! Rekeying: when, and the exchange over the link that keyed the session. A new epoch mixes in a fresh X25519 secret (RFC 7748), so that a key taken
//! later opens nothing sealed before, and a key taken earlier nothing sealed after.
//!
//! ```text
//!   initiator                                   responder
//!   Steady ── Rekey(epoch, public) ───────────▶ Steady: opens epoch
//!   Offered ◀────────── RekeyAck(epoch, public) Acked
//!   opens epoch, seals with it
//!   Steady ── RekeyDone(epoch) ───────────────▶ seals with epoch: Steady
//! ```
//! Nobody seals with an epoch that the other end has not opened, so nothing is lost. When offers cross, that of the lower id wins. The epoch before stays
//! open for 10 s. The link keeps order, so an answer that is missing comes or the link ends: no timers here.
//!
//! `RekeyDone(0)` is sent once by each end after the hellos: "I have opened epoch 0, seal with it". The node handles that one.
//! Deliberately lacks: derivation of keys from the secret, the session itself.

use std::time::Duration;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use meshnet_proto::wire::control::{Control, Rekey};

use crate::time::Time;

/// When a session is keyed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// After so long.
    pub age: Duration,
    /// After so many datagrams sealed on any one lane.
    pub datagrams: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { age: AGE, datagrams: DATAGRAMS }
    }
}

/// What is to be done, in this order.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// Open this epoch, with keys from the secret.
    Open {
        /// The epoch.
        epoch: u32,
        /// The agreed secret.
        secret: [u8; 32],
    },
    /// Seal with this epoch from now on; it is open.
    Seal(u32),
    /// Open no epoch but this one and a newer one.
    Close(u32),
    /// Send this on the link.
    Send(Control),
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Open { epoch, .. } => write!(f, "Open({epoch})"),
            Step::Seal(epoch) => write!(f, "Seal({epoch})"),
            Step::Close(epoch) => write!(f, "Close({epoch})"),
            Step::Send(message) => write!(f, "Send({message:?})"),
        }
    }
}

/// The other end broke the rules; the link must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rekeying message that does not fit")]
pub struct Misfit;

#[derive(Debug)]
enum Phase {
    Steady,
    Offered(PrivateKey),
    Acked,
}

/// The machine of one session.
#[derive(Debug)]
pub struct Rekeying {
    limits: Limits,
    /// This peer has the lower id: its offers win, and it offers first.
    lower: bool,
    epoch: u32,
    since: Time,
    phase: Phase,
    /// The epoch before is open until then.
    old_until: Option<Time>,
    /// Offers in a row that came too soon.
    hasty: u8,
}

impl Rekeying {
    /// For a session in epoch 0.
    pub fn new(now: Time, limits: Limits, lower: bool) -> Rekeying {
        Rekeying { limits, lower, epoch: 0, since: now, phase: Phase::Steady, old_until: None, hasty: 0 }
    }

    /// The epoch that is sealed with.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Looks at the time and at the highest counter of the lanes. `random` is used only when an exchange begins.
    pub fn on_tick(&mut self, now: Time, sealed: u64, random: impl FnOnce() -> [u8; 32]) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.old_until.is_some_and(|until| until <= now) {
            self.old_until = None;
            steps.push(Step::Close(self.epoch));
        }
        let patience = if self.lower { Duration::ZERO } else { self.limits.age / 8 };
        let old = now.since(self.since) >= self.limits.age + patience && sealed > 0;
        let worn = sealed >= self.limits.datagrams;
        if matches!(self.phase, Phase::Steady)
            && self.old_until.is_none()
            && (old || worn)
            && let Some((private, public_key)) = pair(random())
        {
            steps.push(Step::Send(Control::Rekey(Rekey { epoch: self.epoch.wrapping_add(1), public_key })));
            self.phase = Phase::Offered(private);
        }
        steps
    }

    /// `Rekey` came. An honest end keeps its old epoch for a while before it offers again; an offer may seem hasty when this end was held up, several in a row
    /// only want to make it work: each exchange derives all keys anew.
    pub fn on_offer(
        &mut self,
        now: Time,
        offer: &Rekey,
        random: impl FnOnce() -> [u8; 32],
    ) -> Result<Vec<Step>, Misfit> {
        let epoch = self.next(offer.epoch)?;
        let hasty = self.old_until.is_some_and(|until| until.since(now) > OLD_KEPT / 2);
        self.hasty = if hasty { self.hasty + 1 } else { 0 };
        if self.hasty > HASTY_MAX {
            return Err(Misfit);
        }
        match self.phase {
            Phase::Offered(_) if self.lower => return Ok(Vec::new()),
            Phase::Acked => return Err(Misfit),
            Phase::Steady | Phase::Offered(_) => {}
        }
        let (private, public_key) = pair(random()).ok_or(Misfit)?;
        let secret = shared(&private, &offer.public_key)?;
        self.phase = Phase::Acked;
        // Old, current and next at most: the other end offers again only when its own old epoch is closed.
        let close = self.old_until.take().map(|_| Step::Close(self.epoch));
        let open = [Step::Open { epoch, secret }, Step::Send(Control::RekeyAck(Rekey { epoch, public_key }))];
        Ok(close.into_iter().chain(open).collect())
    }

    /// `RekeyAck` came.
    pub fn on_ack(&mut self, now: Time, ack: &Rekey) -> Result<Vec<Step>, Misfit> {
        let epoch = self.next(ack.epoch)?;
        let Phase::Offered(private) = &self.phase else { return Err(Misfit) };
        let secret = shared(private, &ack.public_key)?;
        self.enter(now, epoch);
        Ok(vec![Step::Open { epoch, secret }, Step::Seal(epoch), Step::Send(Control::RekeyDone(epoch))])
    }

    /// `RekeyDone` came.
    pub fn on_done(&mut self, now: Time, epoch: u32) -> Result<Vec<Step>, Misfit> {
        let epoch = self.next(epoch)?;
        let Phase::Acked = self.phase else { return Err(Misfit) };
        self.enter(now, epoch);
        Ok(vec![Step::Seal(epoch)])
    }

    fn next(&self, epoch: u32) -> Result<u32, Misfit> {
        if epoch == self.epoch.wrapping_add(1) { Ok(epoch) } else { Err(Misfit) }
    }

    fn enter(&mut self, now: Time, epoch: u32) {
        self.epoch = epoch;
        self.since = now;
        self.phase = Phase::Steady;
        self.old_until = Some(now + OLD_KEPT);
    }
}

fn pair(seed: [u8; 32]) -> Option<(PrivateKey, [u8; 32])> {
    let private = PrivateKey::from_private_key(&X25519, &seed).ok()?;
    let public = private.compute_public_key().ok()?;
    let bytes = <[u8; 32]>::try_from(public.as_ref()).ok()?;
    Some((private, bytes))
}

/// Refuses points of small order, for which everybody knows the secret (RFC 7748, 6.1).
fn shared(private: &PrivateKey, public_key: &[u8; 32]) -> Result<[u8; 32], Misfit> {
    agree(private, UnparsedPublicKey::new(&X25519, public_key), Misfit, |secret| {
        <[u8; 32]>::try_from(secret).ok().filter(|secret| *secret != [0; 32]).ok_or(Misfit)
    })
}

/// WireGuard's figure.
const AGE: Duration = Duration::from_secs(120);
/// Far below 2^36, where AES-GCM and the replay window end; a minute at 1 million datagrams a second.
const DATAGRAMS: u64 = 1 << 26;
/// Longer than any datagram is on its way.
const OLD_KEPT: Duration = Duration::from_secs(10);
/// Offers in a row that may come too soon.
const HASTY_MAX: u8 = 2;

#[cfg(test)]
mod tests;
