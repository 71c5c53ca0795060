//! The node's side of [`crate::ipam`]: its view of the peers, its messages on links, its owners for the snapshot.

use meshnet_proto::api;
use meshnet_proto::{Mac, ShortId};

use super::Node;
use crate::ipam;
use crate::time::Time;

impl Node {
    pub(super) fn on_ipam(&mut self, _now: Time, _input: ipam::Input) {}

    pub(super) fn on_host_addresses(&mut self, _hosts: Vec<(u32, Mac)>) {}

    /// The address space as this peer sees it.
    pub fn ipam_status(&self) -> api::Ipam {
        api::Ipam::off()
    }

    /// Members of the address space that are not removed, with their names where known.
    pub fn ipam_members(&self) -> Vec<(ShortId, String)> {
        Vec::new()
    }
}
