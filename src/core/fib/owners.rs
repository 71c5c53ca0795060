//! Whose an address is, and whose a MAC address that follows from one. No frame's way does more than two binary searches here.

use meshnet_proto::Mac;

use super::{Owner, Owners};

impl Owners {
    /// Whose `address` is; `None` outside the range.
    #[inline]
    pub fn owner(&self, address: u32) -> Option<Owner> {
        if self.last == 0 || address < self.first || address > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.0 <= address);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at));
        Some(run.map_or(Owner::Nobody, |run| run.1))
    }

    /// The address of the range from which `mac` follows, and whose it is.
    #[inline]
    pub fn of_mac(&self, mac: Mac) -> Option<(u32, Owner)> {
        let address = address_of(mac)?;
        Some((address, self.owner(address)?))
    }

    /// Whether anything is owned by anybody that is known here.
    pub fn any(&self) -> bool {
        self.runs.iter().any(|run| run.1 != Owner::Nobody)
    }

    /// The MAC address that really has `address` of the range, when this machine itself does.
    #[inline]
    pub fn host(&self, address: u32) -> Option<Mac> {
        if address < self.first || address > self.last {
            return None;
        }
        let at = self.hosts.binary_search_by_key(&address, |host| host.0).ok()?;
        self.hosts.get(at).map(|host| host.1)
    }
}

/// The MAC address of the station with `address`.
pub fn mac_of(address: u32) -> Mac {
    let [a, b, c, d] = address.to_be_bytes();
    Mac([0x0a, 0x58, a, b, c, d])
}

/// The address from which `mac` follows, if it is such a one.
#[inline]
pub fn address_of(mac: Mac) -> Option<u32> {
    match mac.0 {
        [0x0a, 0x58, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::PeerSlot;

    const FIRST: u32 = 0x0a20_0000;
    const PEER: Owner = Owner::Peer(PeerSlot(3));

    fn owners(runs: &[(u32, Owner)]) -> Owners {
        let runs = runs.iter().map(|(start, owner)| (FIRST + start, *owner)).collect();
        Owners {
            first: FIRST,
            last: FIRST + 999,
            runs,
            hosts: vec![(FIRST + 7, Mac([2; 6])), (FIRST + 1_000, Mac([4; 6]))],
        }
    }

    #[test]
    fn runs_reach_to_the_next_and_the_last_to_the_end() {
        let owners = owners(&[(10, Owner::Me), (20, PEER), (21, Owner::Nobody), (500, PEER)]);
        let wanted = [
            (0, Owner::Nobody),
            (9, Owner::Nobody),
            (10, Owner::Me),
            (19, Owner::Me),
            (20, PEER),
            (21, Owner::Nobody),
            (499, Owner::Nobody),
            (500, PEER),
            (999, PEER),
        ];
        for (at, owner) in wanted {
            assert_eq!(owners.owner(FIRST + at), Some(owner), "{at}");
            assert_eq!(owners.of_mac(mac_of(FIRST + at)), Some((FIRST + at, owner)), "{at}");
        }
        for outside in [0, FIRST - 1, FIRST + 1_000, u32::MAX] {
            assert_eq!(owners.owner(outside), None);
            assert_eq!(owners.of_mac(mac_of(outside)), None);
        }
        assert_eq!(owners.of_mac(Mac([0x0a, 0x59, 10, 32, 0, 10])), None, "another beginning");
    }

    #[test]
    fn without_a_range_nothing_is_owned() {
        let none = Owners::default();
        assert_eq!((none.owner(0), none.of_mac(mac_of(0)), none.host(0), none.any()), (None, None, None, false));
        assert_eq!(owners(&[]).owner(FIRST), Some(Owner::Nobody));
        assert!(!owners(&[(0, Owner::Nobody)]).any());
        assert!(owners(&[(0, Owner::Nobody), (9, PEER)]).any());
    }

    #[test]
    fn hosts_are_those_of_the_range() {
        let owners = owners(&[]);
        assert_eq!(owners.host(FIRST + 7), Some(Mac([2; 6])));
        assert_eq!(owners.host(FIRST + 8), None);
        assert_eq!(owners.host(FIRST + 1_000), None, "outside");
    }
}
