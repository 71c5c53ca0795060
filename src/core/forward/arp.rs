//! ARP for managed addresses: answered here, never asked across the mesh, and believed only of those whom the map lets speak.
//!
//! ```text
//! ARP from the TAP ─┬─ sender is a peer's                    drop: it speaks for another (an announcement is answered, so that it learns of it)
//!                   ├─ asks for ours, or our host's          drop: the bridge's own stations answer
//!                   ├─ asks for a peer's                     answer: 0a:58 and the address
//!                   ├─ asks all for nobody's                 drop: nobody could answer with right (unless the map is empty)
//!                   └─ asks for others, tells one station    goes its way
//! ```
//! Probes (RFC 5227: sender 0.0.0.0) are requests like others, so who tries an address that a peer owns hears that it is taken. Frames of VLANs pass:
//! those are other networks. So does neighbour discovery of IPv6: the managed range is IPv4, and where IPv6 addresses are nobody here knows.

use meshnet_proto::Mac;

use super::packet::{SERVICE_VLAN, VLAN, read16};
use crate::counters::DropReason;
use crate::fib::owners::mac_of;
use crate::fib::{Owner, Owners};

/// What matters of an ARP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    operation: u16,
    sender_mac: Mac,
    sender: u32,
    target: u32,
}

/// What to do with an ARP message from the TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing special.
    Pass,
    Drop(DropReason),
    Answer,
    /// Answer, and count that the sender claimed what is another's.
    Dispute,
}

impl Arp {
    /// Reads a frame; `None` when it is no ARP for IPv4. A tag that gives only a priority is none: kernels take it off and read on.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Arp> {
        match read16(frame, 12)? {
            ARP => Arp::read(frame.get(14..)?),
            VLAN | SERVICE_VLAN => Arp::tagged(frame),
            _ => None,
        }
    }

    #[cold]
    fn tagged(frame: &[u8]) -> Option<Arp> {
        let mut at = 12;
        for _ in 0..PRIORITY_TAGS_MAX {
            match read16(frame, at)? {
                ARP => return Arp::read(frame.get(at + 2..)?),
                VLAN | SERVICE_VLAN if read16(frame, at + 2)? & VLAN_ID == 0 => at += 4,
                _ => return None,
            }
        }
        None
    }

    #[cold]
    fn read(message: &[u8]) -> Option<Arp> {
        let (head, rest) = message.split_first_chunk::<8>()?;
        let &[h0, h1, 0x08, 0x00, 6, 4, o0, o1] = head else { return None };
        // Linux takes ARP of IEEE 802 networks on Ethernet too.
        if !matches!(u16::from_be_bytes([h0, h1]), ETHERNET | IEEE_802) {
            return None;
        }
        let &[m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, _, _, _, _, _, _, t0, t1, t2, t3] = rest.first_chunk::<20>()?;
        Some(Arp {
            operation: u16::from_be_bytes([o0, o1]),
            sender_mac: Mac([m0, m1, m2, m3, m4, m5]),
            sender: u32::from_be_bytes([s0, s1, s2, s3]),
            target: u32::from_be_bytes([t0, t1, t2, t3]),
        })
    }

    /// Whose address the sender says it has; `None` outside the range.
    pub fn speaks_for(&self, owners: &Owners) -> Option<Owner> {
        owners.owner(self.sender)
    }

    /// Judges a message from the TAP, sent to all or to one.
    #[cold]
    pub fn judge(&self, owners: &Owners, to_all: bool) -> Verdict {
        let request = self.operation == REQUEST;
        let sender = self.speaks_for(owners);
        if let Some(Owner::Peer(_)) = sender {
            let announcement = request && self.target == self.sender;
            return if announcement { Verdict::Dispute } else { Verdict::Drop(DropReason::NotOwner) };
        }
        // A reply to all announces its sender as a request from and for the same address does.
        let subject = match (request, to_all) {
            (true, _) => owners.owner(self.target),
            (false, true) => sender,
            (false, false) => None,
        };
        match subject {
            Some(_) if request && owners.host(self.target).is_some() => Verdict::Drop(DropReason::Local),
            Some(Owner::Me) => Verdict::Drop(DropReason::Local),
            Some(Owner::Peer(_)) => Verdict::Answer,
            Some(Owner::Nobody) if to_all && owners.any() => Verdict::Drop(DropReason::Unowned),
            Some(Owner::Nobody) | None => Verdict::Pass,
        }
    }

    /// The reply to this request, for the station at `asker`.
    pub fn answer(&self, asker: Mac) -> [u8; ANSWER_BYTES] {
        let mut frame = [0; ANSWER_BYTES];
        let mac = mac_of(self.target);
        let parts: [&[u8]; 7] = [
            &asker.0,
            &mac.0,
            // EtherType ARP; Ethernet, IPv4, lengths of both, reply.
            &[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 2],
            &mac.0,
            &self.target.to_be_bytes(),
            &self.sender_mac.0,
            &self.sender.to_be_bytes(),
        ];
        for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        frame
    }
}

const ARP: u16 = 0x0806;
const ETHERNET: u16 = 1;
const IEEE_802: u16 = 6;
const REQUEST: u16 = 1;
const VLAN_ID: u16 = 0x0fff;
/// Tags in a row that a kernel takes off; honest stations set one.
const PRIORITY_TAGS_MAX: usize = 8;
/// Ethernet header and message.
const ANSWER_BYTES: usize = 42;

#[cfg(test)]
mod tests;
