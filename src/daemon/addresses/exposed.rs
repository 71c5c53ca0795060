//! Addresses of the host itself: `expose` and `hide`, and those wanted at the start, which wait in the background until the range is ready.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshnet_core::ipam::{Refusal, Request};
use meshnet_proto::api::{Problem, Reply};
use tracing::{info, warn};

use super::{Addresses, Wish, cidr, is};
use crate::daemon::config::Expose;
use crate::daemon::devices::{Done, Order};

/// What the start wanted and has not got yet.
#[derive(Default)]
pub(super) struct Exposing {
    pending: Vec<Wish>,
    /// Why not, newest.
    why: Option<String>,
}

impl Addresses {
    pub(super) async fn expose(&self, text: &str) -> Result<Reply, String> {
        let wish = self.wish(text)?;
        let _turn = self.turn(OWNER).await;
        self.expose_now(wish).await.map(|()| Reply::Done).map_err(|refusal| refusal.to_string())
    }

    async fn expose_now(&self, wish: Wish) -> Result<(), Refusal> {
        let (nets, fresh) = self.lease_all(OWNER, &[wish]).await?;
        for net in nets {
            if let Err(refused) = self.orders.order(Order::Expose(net)).await {
                self.free_all(OWNER, &fresh).await;
                return Err(Refusal::No(refused.reason));
            }
        }
        Ok(())
    }

    pub(super) async fn hide(&self, address: Option<String>) -> Result<Reply, String> {
        let net = address.as_deref().map(cidr).transpose()?;
        let _turn = self.turn(OWNER).await;
        // What is hidden by hand does not come back by itself.
        let given_up = {
            let mut exposing = lock(&self.exposing);
            let before = exposing.pending.len();
            exposing.pending.retain(|wish| net.is_some_and(|net| *wish != Wish::At(net)));
            before != exposing.pending.len()
        };
        let (taken, left, refusal) = match self.orders.order(Order::Hide(net)).await {
            Ok(Done::Hidden { taken, left }) => (taken, left, None),
            Ok(_) => (Vec::new(), Vec::new(), None),
            Err(refused) if refused.absent => (net.into_iter().collect(), Vec::new(), Some(refused.reason)),
            Err(refused) => return Err(refused.reason),
        };
        let mut freed = given_up;
        if self.range.is_some() {
            // Of all that the host has by lease: what is off the bridge now.
            let gone = |address: &u32| match net {
                Some(_) => taken.iter().any(|net| is(net, *address)),
                None => !left.iter().any(|net| is(net, *address)),
            };
            for address in self.leases_of(OWNER).await?.into_iter().filter(gone) {
                let free = Request::Free { owner: OWNER.into(), address: Some(address) };
                self.ask(free).await.map_err(|why| format!("hidden, but still given out: {why}"))?;
                freed = true;
            }
        }
        refusal.filter(|_| !freed).map_or(Ok(Reply::Done), Err)
    }

    /// What is to be exposed as soon as the range is ready: by `--expose`, and what an earlier run left on the bridge.
    pub fn expose_later(&self, flag: Option<Expose>, found: &[ipnet::IpNet]) -> bool {
        let flag = flag.map(|expose| match expose {
            Expose::Auto => Wish::Auto,
            Expose::At(net) => Wish::At(net),
        });
        let mut pending: Vec<Wish> = found.iter().map(|net| Wish::At(*net)).collect();
        pending.extend(flag.filter(|wish| !pending.contains(wish)));
        pending.retain(|wish| match wish {
            Wish::Auto => self.range.is_some(),
            Wish::At(net) => self.in_range(net).is_some(),
        });
        let any = !pending.is_empty();
        lock(&self.exposing).pending = pending;
        any
    }

    /// Until all of it is done or was hidden. Runs in the background.
    pub async fn keep_exposing(self) {
        loop {
            {
                let _turn = self.turn(OWNER).await;
                let next = lock(&self.exposing).pending.first().copied();
                let Some(wish) = next else {
                    lock(&self.exposing).why = None;
                    return;
                };
                match self.expose_now(wish).await {
                    Ok(()) => {
                        info!(address = %words(wish), "the host has its address on the bridge");
                        lock(&self.exposing).pending.retain(|other| *other != wish);
                        continue;
                    }
                    Err(refusal) => self.note(wish, refusal),
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn note(&self, wish: Wish, refusal: Refusal) {
        let mut exposing = lock(&self.exposing);
        // One that cannot be had must not hold up the others. One that waits does: what the host has already comes before one more.
        if let (Refusal::No(_), Some(at)) = (&refusal, exposing.pending.iter().position(|other| *other == wish)) {
            exposing.pending.remove(at);
            exposing.pending.push(wish);
        }
        let why = refusal.to_string();
        let line = format!("{}: {why}", words(wish));
        if exposing.why.as_ref() != Some(&line) {
            warn!(reason = why, address = %words(wish), "the host's address is not exposed yet");
            exposing.why = Some(line);
        }
    }
}

pub(super) fn problems(exposing: &Mutex<Exposing>) -> Vec<Problem> {
    let why = lock(exposing).why.clone();
    let problem = |why| Problem {
        what: format!("the host's address on the bridge, {why}"),
        remedy: "it is tried again by itself; meshctl hide gives it up".into(),
    };
    why.map(problem).into_iter().collect()
}

fn words(wish: Wish) -> String {
    match wish {
        Wish::Auto => "auto".into(),
        Wish::At(net) => net.to_string(),
    }
}

fn lock(exposing: &Mutex<Exposing>) -> MutexGuard<'_, Exposing> {
    exposing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The owner of the host's own addresses.
pub(super) const OWNER: &str = "host:expose";
/// Between two attempts; each waits for the range by itself.
const RETRY: Duration = Duration::from_secs(1);
