//! The sessions of a node: one for each link, chosen from by peer, and those of links that ended a moment ago.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshnet_proto::PeerId;

use crate::fib::PeerSlot;
use crate::node::LinkId;
use crate::session::rekey::Rekeying;
use crate::session::{Cipher, RxKeys, Session, SessionKeys, SessionSecret};
use crate::time::Time;

/// A session, and how far its other end is.
#[derive(Debug)]
pub(super) struct Held {
    pub peer: PeerId,
    pub slot: PeerSlot,
    /// The link that keyed it; none when that has ended.
    pub link: Option<LinkId>,
    pub relayed: bool,
    pub session: Arc<Session>,
    pub rekeying: Rekeying,
    /// The other end reads fragments.
    pub fragments: bool,
    /// The other end has opened it: it may be sealed with.
    pub ready: bool,
    /// Its link has ended: kept until then.
    pub until: Option<Time>,
    since: Time,
    secret: SessionSecret,
    next: Option<(crate::session::TxKeys, Arc<RxKeys>)>,
    shape: Shape,
}

/// What its keys depend on beside the secret.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub cipher: Cipher,
    pub initiator: bool,
    pub tx_lanes: u8,
    pub rx_lanes: u8,
}

/// A place in the table.
#[derive(Debug)]
enum Place {
    /// Given out in a hello, not keyed yet.
    Reserved(u32),
    Held(Box<Held>),
}

/// The table, by the low 16 bits of the index.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    places: BTreeMap<u16, Place>,
}

/// What [`Sessions::begin`] needs.
pub(super) struct Begin {
    pub peer: PeerId,
    pub slot: PeerSlot,
    pub link: LinkId,
    pub relayed: bool,
    pub remote_index: u32,
    pub secret: SessionSecret,
    pub shape: Shape,
    pub rekeying: Rekeying,
    pub fragments: bool,
}

impl Sessions {
    /// An index for a hello. `random` gives the high half, so that datagrams for a session of the process before find none. None when all are taken.
    pub fn reserve(&mut self, random: u16) -> Option<u32> {
        // From the low end, so that the table of the snapshot stays short.
        let place = (0..=u16::MAX).find(|place| !self.places.contains_key(place))?;
        let index = u32::from(random) << 16 | u32::from(place);
        self.places.insert(place, Place::Reserved(index));
        Some(index)
    }

    /// Keys a reserved session.
    pub fn begin(&mut self, now: Time, index: u32, begin: Begin) -> bool {
        let Some(place) = self.places.get_mut(&(index as u16)) else { return false };
        if !matches!(place, Place::Reserved(reserved) if *reserved == index) {
            return false;
        }
        let Begin { peer, slot, link, relayed, remote_index, secret, shape, rekeying, fragments } = begin;
        let (tx, rx) = SessionKeys::derive(&secret.0, 0, shape.cipher, shape.initiator, shape.tx_lanes, shape.rx_lanes);
        let session = Session {
            local_index: index,
            remote_index,
            cipher: shape.cipher,
            tx: Arc::new(tx),
            rx: [Some(Arc::new(rx)), None, None, None],
        };
        *place = Place::Held(Box::new(Held {
            peer,
            slot,
            link: Some(link),
            relayed,
            session: Arc::new(session),
            rekeying,
            fragments,
            ready: false,
            until: None,
            since: now,
            secret,
            next: None,
            shape,
        }));
        true
    }

    /// A link ended. Its session is kept a while for what is on its way, or not at all.
    pub fn on_link_end(&mut self, index: u32, until: Option<Time>) {
        match (self.places.get_mut(&(index as u16)), until) {
            (Some(Place::Held(held)), Some(until)) if held.session.local_index == index => {
                held.link = None;
                held.until = Some(until);
            }
            (Some(Place::Held(held)), None) if held.session.local_index == index => {
                self.places.remove(&(index as u16));
            }
            (Some(Place::Reserved(reserved)), _) if *reserved == index => {
                self.places.remove(&(index as u16));
            }
            _ => {}
        }
    }

    /// Ends what was kept long enough. True when something went.
    pub fn expire(&mut self, now: Time) -> bool {
        let before = self.places.len();
        let over = |place: &Place| matches!(place, Place::Held(held) if held.until.is_some_and(|until| until <= now));
        self.places.retain(|_, place| !over(place));
        self.places.len() != before
    }

    /// Ends all sessions with a peer but those of live links: it started anew.
    pub fn forget(&mut self, peer: PeerId) {
        self.places.retain(|_, place| !matches!(place, Place::Held(held) if held.peer == peer && held.link.is_none()));
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut Held> {
        match self.places.get_mut(&(index as u16)) {
            Some(Place::Held(held)) if held.session.local_index == index => Some(held),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.places.values().filter_map(|place| match place {
            Place::Held(held) => Some(&**held),
            Place::Reserved(_) => None,
        })
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        self.places.values_mut().filter_map(|place| match place {
            Place::Held(held) => Some(&mut **held),
            Place::Reserved(_) => None,
        })
    }

    /// The sessions to seal with, by slot: of a direct link before one through relays, of a live link before one that ended, the newest of equals.
    pub fn chosen(&self) -> BTreeMap<PeerSlot, &Held> {
        let mut chosen: BTreeMap<PeerSlot, &Held> = BTreeMap::new();
        for held in self.iter().filter(|held| held.ready) {
            let best = chosen.entry(held.slot).or_insert(held);
            if held.rank() > best.rank() {
                *best = held;
            }
        }
        chosen
    }

    /// The one of a peer.
    pub fn of(&self, slot: PeerSlot) -> Option<&Held> {
        self.iter().filter(|held| held.slot == slot && held.ready).max_by_key(|held| held.rank())
    }
}

impl Held {
    fn rank(&self) -> (bool, bool, Time, u32) {
        (self.link.is_some(), !self.relayed, self.since, self.session.local_index & 0xffff)
    }

    /// Opens the next epoch beside the current one.
    pub fn open_epoch(&mut self, epoch: u32, agreed: &[u8; 32]) {
        let secret = SessionKeys::chain(&self.secret.0, agreed);
        let Shape { cipher, initiator, tx_lanes, rx_lanes } = self.shape;
        let (tx, rx) = SessionKeys::derive(&secret.0, epoch, cipher, initiator, tx_lanes, rx_lanes);
        self.secret = secret;
        let rx = Arc::new(rx);
        self.replace(|session| session.set_rx(epoch, Some(rx.clone())));
        self.next = Some((tx, rx));
    }

    /// Seals with the epoch that was opened last.
    pub fn seal_epoch(&mut self) {
        if let Some((tx, _)) = self.next.take() {
            let tx = Arc::new(tx);
            self.replace(|session| session.tx = tx);
        }
    }

    /// Keeps only this epoch open, and the one that was opened last if that is newer.
    pub fn close_others(&mut self, epoch: u32) {
        let next = self.next.as_ref().map(|(tx, _)| tx.epoch);
        self.replace(|session| {
            for keys in &mut session.rx {
                if keys.as_ref().is_some_and(|keys| keys.epoch != epoch && Some(keys.epoch) != next) {
                    *keys = None;
                }
            }
        });
    }

    fn replace(&mut self, change: impl FnOnce(&mut Session)) {
        let old = &self.session;
        let mut session = Session {
            local_index: old.local_index,
            remote_index: old.remote_index,
            cipher: old.cipher,
            tx: old.tx.clone(),
            rx: old.rx.clone(),
        };
        change(&mut session);
        self.session = Arc::new(session);
    }
}

impl Session {
    fn set_rx(&mut self, epoch: u32, keys: Option<Arc<RxKeys>>) {
        if let Some(place) = self.rx.get_mut((epoch & 3) as usize) {
            *place = keys;
        }
    }
}

/// A session outlives its link by this: what is on its way arrives, and the other end finds another.
pub(super) const KEPT_AFTER_LINK: Duration = Duration::from_secs(10);
