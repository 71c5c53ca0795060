//! Attached interfaces after the bridge was deleted and made anew: back onto it.

use netlink_packet_route::link::InfoBridgePort;
use rtnetlink::LinkBridgePort;

use super::kernel::{Kind, Link};
use super::{Error, Netlink};

impl Netlink {
    /// Puts every port that [`Netlink::attach`] or [`Netlink::plug`] made for `bridge`, and that is on no bridge now, back onto it. Gives how many.
    pub async fn rejoin(&self, bridge: &str) -> Result<usize, Error> {
        let ours = super::attach::port_alias(bridge);
        let bridge = self.bridge(bridge).await?;
        let mut joined = 0;
        for port in self.links().await? {
            if port.kind == Kind::Veth && port.master.is_none() && bears(&port, &ours) {
                joined += usize::from(self.join(&port, &bridge).await?);
                if port.name.starts_with(super::plug::PREFIX) {
                    // Settings of a port go with its bridge; this one is on unless a configuration says otherwise.
                    let change = LinkBridgePort::new(port.index).append_info_data(InfoBridgePort::HairpinMode(true));
                    self.change(change.build(), format!("set up the port {}", port.name)).await?;
                }
            }
        }
        Ok(joined)
    }

    /// Interfaces of containers and virtual machines that are on `bridge`, or that [`Netlink::attach`] or [`Netlink::plug`] made for it and that
    /// wait for it: numbers and names.
    pub async fn containers(&self, bridge: &str) -> Result<Vec<(u32, String)>, Error> {
        let (links, ours) = (self.links().await?, super::attach::port_alias(bridge));
        let index = links.iter().find(|link| link.name == bridge).map(|link| link.index);
        let on_it = |port: &&Link| index.is_some() && port.master == index;
        let waits = |port: &&Link| port.master.is_none() && bears(port, &ours);
        // A TAP without a carrier is nobody's: that of meshd itself stays so until it is opened.
        let used = |port: &&Link| port.kind == Kind::Veth || port.kind == Kind::Tun && port.running;
        let theirs = links.iter().filter(|port| used(port) && (on_it(port) || waits(port)));
        Ok(theirs.map(|port| (port.index, port.name.clone())).collect())
    }
}

/// Whether a port's alias begins with these words.
fn bears(port: &Link, words: &str) -> bool {
    let rest = port.alias.as_ref().and_then(|alias| alias.strip_prefix(words));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}
