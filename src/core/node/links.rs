//! Links of a node: hello, sessions, messages, rekeying, ends.

use std::net::SocketAddr;
use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::limits;
use meshnet_proto::wire::control::{CloseReason, Control, Hello, PROTOCOL_VERSION, Rekey};
use meshnet_proto::wire::data::FRAGMENT;
use rand::Rng;

use super::sessions::{Begin, KEPT_AFTER_LINK, Shape};
use super::{DialError, DialId, Level, LinkEnd, LinkId, Node, Output};
use crate::fib::PeerSlot;
use crate::gossip::Heard;
use crate::peer::from_virtual;
use crate::peer::link::{Link, Me, Phase, Verdict};
use crate::peer::path::Action;
use crate::peer::targets::{Errand, closed_words};
use crate::session::rekey::{Misfit, Rekeying, Step};
use crate::session::{Cipher, SessionSecret};
use crate::time::Time;
use crate::topology::Merge;

impl Node {
    pub(super) fn on_link_opened(
        &mut self,
        now: Time,
        id: LinkId,
        dial: Option<DialId>,
        peer: PeerId,
        remote: SocketAddr,
        secret: SessionSecret,
    ) {
        let mut errand = None;
        if let Some(dial) = dial {
            errand = self.dials.on_opened(now, dial, peer);
            if errand.is_none() && self.links.of(peer).next().is_some() {
                return self.output_close(id, CloseReason::Duplicate);
            }
        }
        let random = self.rng.random();
        let Some(session) = (!self.stopping).then(|| self.sessions.reserve(random)).flatten() else {
            return self.turn_away(now, id, errand, remote, CloseReason::Stopping);
        };
        if dial.is_none() {
            self.make_room_for(now, peer, remote);
        }
        let phase = Phase::Hello;
        let (hello, datagram_max) = (None, (0, false));
        let link = Link { id, peer, remote, dial, errand, phase, since: now, secret, session, hello, datagram_max };
        let control = !link.relayed();
        if let Err(link) = self.links.open(link, self.config.max_links) {
            self.sessions.on_link_end(session, None);
            return self.turn_away(now, id, link.errand, remote, CloseReason::Full);
        }
        let hello = Hello {
            version: PROTOCOL_VERSION,
            cluster: self.config.cluster.clone(),
            incarnation: self.origin.version().incarnation,
            instance: self.config.instance,
            name: self.config.name.chars().take(limits::NAME_MAX_BYTES / 4).collect(),
            session_index: session,
            lanes: self.config.lanes,
            control,
            ciphers: self.config.ciphers.iter().map(|cipher| cipher.number()).collect(),
            max_links: self.config.max_links.try_into().unwrap_or(u16::MAX),
            extensions: self.extensions(),
        };
        self.send(id, &Control::Hello(hello));
    }

    /// Closes a connection that becomes no link; the errand that dialled it tries again.
    fn turn_away(&mut self, now: Time, id: LinkId, errand: Option<Errand>, remote: SocketAddr, reason: CloseReason) {
        self.output_close(id, reason);
        if let Some(errand) = errand {
            self.dials.on_refused(
                now,
                &errand,
                remote,
                DialError::Other("this peer has too many links under way".into()),
            );
        }
    }

    /// Closes the oldest link that `peer` dialled when it has dialled too many, so that no peer takes the places of others.
    fn make_room_for(&mut self, now: Time, peer: PeerId, remote: SocketAddr) {
        let relayed = from_virtual(remote).is_some();
        let dialled = || self.links.of(peer).filter(|link| !link.outbound() && link.relayed() == relayed);
        if dialled().count() >= LINKS_OF_PEER_MAX
            && let Some(oldest) = dialled().map(|link| link.id).min()
        {
            self.close(now, oldest, CloseReason::Duplicate);
        }
    }

    pub(super) fn on_message(&mut self, now: Time, id: LinkId, bytes: &[u8]) {
        let Some(link) = self.links.get(id) else { return };
        let up = link.phase == Phase::Up;
        let gossips = up && !link.relayed();
        match Control::parse(bytes) {
            Err(error) => {
                self.event(Level::Warn, "malformed message", Some(link.peer), error.to_string());
                self.close(now, id, CloseReason::Protocol);
            }
            Ok(None) => {}
            Ok(Some(Control::Hello(hello))) => self.on_hello(now, id, hello),
            Ok(Some(Control::Goodbye)) => self.close(now, id, CloseReason::Stopping),
            Ok(Some(message)) if !up => {
                self.event(
                    Level::Warn,
                    "message before the hello",
                    Some(link.peer),
                    format!("kind {}", message.kind()),
                );
                self.close(now, id, CloseReason::Protocol);
            }
            Ok(Some(Control::RekeyDone(0))) => self.on_session_ready(now, id),
            Ok(Some(message @ (Control::Rekey(_) | Control::RekeyAck(_) | Control::RekeyDone(_)))) => {
                self.on_rekey(now, id, &message);
            }
            Ok(Some(message @ (Control::Ipam(_) | Control::Routed(_)))) if gossips => {
                self.on_ipam_message(now, id, message);
            }
            Ok(Some(message)) if gossips => self.on_gossip(now, id, &message),
            Ok(Some(_)) => {}
        }
    }

    fn on_hello(&mut self, now: Time, id: LinkId, hello: Hello) {
        let max_links = self.config.max_links;
        let me = Me { id: self.me, cluster: &self.config.cluster, instance: self.config.instance, max_links };
        match self.links.on_hello(now, id, hello.clone(), me) {
            Verdict::Ignored => {}
            Verdict::Refused(reason) => self.refuse(now, id, reason),
            Verdict::Up { losers } => {
                if !self.begin_session(now, id, &hello) {
                    return self.refuse(now, id, CloseReason::Protocol);
                }
                self.on_link_up(now, id);
                for loser in losers {
                    self.close(now, loser, CloseReason::Duplicate);
                }
            }
        }
    }

    fn refuse(&mut self, now: Time, id: LinkId, reason: CloseReason) {
        let Some(link) = self.links.get(id) else { return };
        let (peer, remote) = (link.peer, link.remote);
        self.notes.on_refused(now, peer, remote, reason);
        let shown = if peer == self.me { None } else { Some(peer) };
        self.event(Level::Warn, "link refused", shown, format!("{remote}: {reason:?}"));
        self.output_close(id, reason);
        self.on_gone(now, id, DialError::Closed(reason), Some(reason));
    }

    fn begin_session(&mut self, now: Time, id: LinkId, hello: &Hello) -> bool {
        let Some(link) = self.links.get(id) else { return false };
        let mine: Vec<u8> = self.config.ciphers.iter().map(|cipher| cipher.number()).collect();
        let Some(cipher) = Cipher::choose(&mine, &hello.ciphers) else { return false };
        let Some(slot) = self.peers.slot_or_new(link.peer) else { return false };
        let shape = Shape { cipher, initiator: link.outbound(), tx_lanes: self.config.lanes, rx_lanes: hello.lanes };
        let begin = Begin {
            peer: link.peer,
            slot,
            link: id,
            relayed: link.relayed(),
            remote_index: hello.session_index,
            secret: link.secret.clone(),
            shape,
            rekeying: Rekeying::new(now, self.config.rekey, self.me < link.peer),
            fragments: hello.reads(FRAGMENT),
        };
        let (peer, index) = (link.peer, link.session);
        if self.peers.of_mut(&peer).is_some_and(|peer| peer.set_incarnation(hello.incarnation)) {
            self.sessions.forget(peer);
        }
        self.sessions.begin(now, index, begin)
    }

    fn on_link_up(&mut self, now: Time, id: LinkId) {
        // The other end may seal as soon as it hears of it, so the frame path must know first.
        self.publish(now);
        self.send(id, &Control::RekeyDone(0));
        let Some(link) = self.links.get(id) else { return };
        let (peer, remote, relayed) = (link.peer, link.remote, link.relayed());
        self.dials.on_linked(now, peer, relayed);
        if relayed {
            return;
        }
        self.event(Level::Info, "link up", Some(peer), remote.to_string());
        self.gossip.on_link_up(now, id, peer, &self.topology);
        self.on_ipam_link(now, id, peer);
        if let Some(state) = self.peers.of_mut(&peer) {
            state.last_remote = Some(remote);
            state.seen = Some(now);
        }
        self.note_known(peer);
        self.note_trust(id, peer);
        let to = self.led_by(now, peer, id, remote);
        self.with_path(now, peer, |path, at, out| path.on_link_up(at, to, out));
    }

    fn on_session_ready(&mut self, now: Time, id: LinkId) {
        let Some(link) = self.links.get(id) else { return };
        let (peer, relayed) = (link.peer, link.relayed());
        if let Some(held) = self.sessions.get_mut(link.session)
            && !held.ready
        {
            held.ready = true;
            self.publisher.changed();
            if relayed {
                // From now on the way through relays can be probed: see `use_relays`.
                self.paths_changed = true;
            } else {
                self.on_usable_changed(peer);
            }
            // The first probe gives the round trip, and makes the other end see our direct path.
            self.with_path(now, peer, |path, at, _| path.probe_soon(at));
        }
    }

    fn on_gossip(&mut self, now: Time, id: LinkId, message: &Control) {
        let Node { gossip, topology, config, .. } = self;
        let Heard { merged, bad, excess } = gossip.handle_message(now, id, message, topology, &*config.verify);
        if bad > 0 {
            self.close(now, id, CloseReason::Protocol);
        }
        if excess > 0 {
            self.notes.on_excess(now);
        }
        for (peer, merge) in merged {
            match merge {
                Merge::Own { version, instance } => self.origin.handle_own_copy(now, version, instance),
                Merge::New => self.on_record(now, peer, true, true),
                Merge::Updated(changes) => {
                    self.on_record(now, peer, changes.endpoints || changes.restarted, changes.graph() || changes.costs)
                }
                Merge::Same | Merge::Stale | Merge::Refused(_) => {}
            }
        }
    }

    /// Begins rekeyings that are due, and ends old epochs.
    pub(super) fn rekey_due(&mut self, now: Time) {
        let Node { sessions, rng, .. } = self;
        let mut due = Vec::new();
        for held in sessions.iter_mut().filter(|held| held.ready) {
            let sealed = held.session.tx.counter_most();
            let Some(link) = held.link else { continue };
            let steps = held.rekeying.on_tick(now, sealed, || rng.random());
            if !steps.is_empty() {
                due.push((held.session.local_index, link, steps));
            }
        }
        for (index, link, steps) in due {
            self.take_steps(now, index, link, steps);
        }
    }

    fn on_rekey(&mut self, now: Time, id: LinkId, message: &Control) {
        let Some(index) = self.links.get(id).map(|link| link.session) else { return };
        let Node { sessions, rng, .. } = self;
        let Some(held) = sessions.get_mut(index) else { return };
        let steps = match message {
            Control::Rekey(offer @ Rekey { .. }) => held.rekeying.on_offer(now, offer, || rng.random()),
            Control::RekeyAck(ack) => held.rekeying.on_ack(now, ack),
            Control::RekeyDone(epoch) => held.rekeying.on_done(now, *epoch),
            _ => Ok(Vec::new()),
        };
        match steps {
            Ok(steps) => self.take_steps(now, index, id, steps),
            Err(Misfit) => self.close(now, id, CloseReason::Protocol),
        }
    }

    fn take_steps(&mut self, now: Time, index: u32, link: LinkId, steps: Vec<Step>) {
        let mut messages = Vec::new();
        for step in steps {
            let Some(held) = self.sessions.get_mut(index) else { return };
            match step {
                Step::Open { epoch, secret } => held.open_epoch(epoch, &secret),
                Step::Seal(_) => held.seal_epoch(),
                Step::Close(epoch) => held.close_others(epoch),
                Step::Send(message) => {
                    messages.push(message);
                    continue;
                }
            }
            self.publisher.changed();
        }
        // Opened before it is told.
        if self.publisher.is_due() && !messages.is_empty() {
            self.publish(now);
        }
        for message in messages {
            self.send(link, &message);
        }
    }

    pub(super) fn on_link_closed(&mut self, now: Time, id: LinkId, why: LinkEnd) {
        let (why, reason) = match why {
            LinkEnd::Local => (DialError::Other("we closed it".into()), None),
            LinkEnd::Remote(Some(reason)) => (DialError::Closed(reason), Some(reason)),
            LinkEnd::Remote(None) => (DialError::Other("the other end closed it".into()), None),
            LinkEnd::Timeout => (DialError::Timeout, None),
            LinkEnd::Secret => (DialError::Secret, None),
            LinkEnd::Other(words) => (DialError::Other(words), None),
        };
        if let Some(link) = self.links.get(id) {
            if let Some(reason) = reason {
                self.notes.on_refused(now, link.peer, link.remote, reason);
            }
            if link.phase == Phase::Up && !link.relayed() {
                let detail = format!("{}: {}", link.remote, crate::peer::targets::words(&why));
                self.event(Level::Info, "link down", Some(link.peer), detail);
            }
        }
        self.on_gone(now, id, why, reason);
    }

    pub(super) fn on_dial_failed(&mut self, now: Time, dial: DialId, why: DialError) {
        self.dials.on_failed(now, dial, why);
    }

    /// Closes a link from here.
    pub(super) fn close(&mut self, now: Time, id: LinkId, reason: CloseReason) {
        if self.links.get(id).is_some() {
            self.output_close(id, reason);
            self.on_gone(now, id, DialError::Other(closed_words(reason).into()), Some(reason));
        }
    }

    fn output_close(&mut self, link: LinkId, reason: CloseReason) {
        self.outputs.push_back(Output::Close { link, reason });
    }

    /// All that follows from the end of a link, whoever ended it.
    fn on_gone(&mut self, now: Time, id: LinkId, why: DialError, reason: Option<CloseReason>) {
        let Some(link) = self.links.remove(id) else { return };
        let ended =
            matches!(reason, Some(CloseReason::Stopping | CloseReason::ClonedIdentity | CloseReason::OwnAddress));
        let until = (link.phase == Phase::Up && !ended).then_some(now + KEPT_AFTER_LINK);
        self.sessions.on_link_end(link.session, until);
        self.on_ipam_link_gone(now, id);
        self.publisher.changed();
        if ended && link.phase == Phase::Up {
            self.sessions.forget(link.peer);
        }
        let (peer, relayed) = (link.peer, link.relayed());
        if link.phase == Phase::Hello {
            if let Some(errand) = &link.errand {
                self.dials.on_refused(now, errand, link.remote, why.clone());
            }
        } else if !relayed {
            self.gossip.on_link_down(id);
        }
        if let Some(current) = self.links.current(peer, relayed) {
            let (current, remote) = (current.id, current.remote);
            if !relayed {
                let to = self.led_by(now, peer, current, remote);
                self.with_path(now, peer, |path, at, out| path.on_link_moved(at, to, out));
            }
            return;
        }
        // The other end closed a duplicate whose winner has not said hello here yet: the pair is not without a link.
        let winner_comes = reason == Some(CloseReason::Duplicate)
            && self.links.of(peer).any(|other| other.phase == Phase::Hello && other.relayed() == relayed);
        if winner_comes || peer == self.me {
            return;
        }
        self.dials.on_unlinked(now, peer, relayed, Some(why));
        let errand = Errand::Peer(peer);
        if !relayed && link.phase == Phase::Up && self.dials.has(&errand) {
            // Where the link led is worth a dial too: a peer behind a translator is in no record by the address that others see.
            let addresses = self.addresses_of(peer);
            self.dials.want(now, errand, &addresses, LINK_LOST);
        }
        if !relayed {
            if let Some(peer) = self.peers.of_mut(&peer) {
                peer.transport.on_link_down();
            }
            self.with_path(now, peer, |path, _, out| path.on_link_down(out));
        }
    }

    /// Lets the path machine of a peer do something and does what it asks for.
    pub(super) fn with_path(
        &mut self,
        now: Time,
        peer: PeerId,
        act: impl FnOnce(&mut crate::peer::path::PeerPath, Time, &mut Vec<Action>),
    ) {
        let at = self.clock.at(now);
        let Some(slot) = self.peers.slot(&peer) else { return };
        let mut actions = Vec::new();
        if let Some(state) = self.peers.get_mut(slot) {
            act(&mut state.path, at, &mut actions);
        }
        self.peers.note_active(slot);
        self.take_actions(now, slot, actions);
    }

    /// The links that count in the topology: direct, up, alive, with their round trips. One whose first probe is under way waits for that, or its cost
    /// would have to be told to the whole mesh a second time.
    pub(super) fn live_links(&self) -> std::collections::BTreeMap<meshnet_proto::ShortId, std::time::Duration> {
        let alive = |slot: &PeerSlot| self.peers.get(*slot).filter(|peer| peer.path.alive());
        self.peers
            .active
            .iter()
            .filter_map(alive)
            .filter_map(|peer| Some((peer.id.short(), peer.path.rtt()?)))
            .collect()
    }
}

/// Links of one kind that one peer may have dialled: two that cross and some that it has lost without our knowing.
const LINKS_OF_PEER_MAX: usize = 8;
/// Before a peer whose link ended is dialled where that led: it may be starting anew.
const LINK_LOST: Duration = Duration::from_millis(500);
