//! Attached interfaces after the bridge was deleted and made anew: back onto it.

use super::kernel::{Kind, Link};
use super::{Error, Netlink};

impl Netlink {
    /// Puts every port that [`Netlink::attach`] or [`Netlink::plug`] made for `bridge`, and that is on no bridge now, back onto it. Gives how many.
    pub async fn rejoin(&self, bridge: &str) -> Result<usize, Error> {
        let ours = super::attach::port_alias(bridge);
        let bridge = self.bridge(bridge).await?;
        let mut joined = 0;
        for port in self.links().await? {
            let is_ours = port.alias.as_ref().is_some_and(|alias| {
                alias.strip_prefix(&ours).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            });
            if port.kind == Kind::Veth && port.master.is_none() && is_ours {
                joined += usize::from(self.join(&port, &bridge).await?);
            }
        }
        Ok(joined)
    }

    /// Interfaces of containers and virtual machines that are on `bridge`, or that [`Netlink::attach`] made for it and that wait for it: numbers and names.
    pub async fn containers(&self, bridge: &str) -> Result<Vec<(u32, String)>, Error> {
        let (links, ours) = (self.links().await?, super::attach::port_alias(bridge));
        let index = links.iter().find(|link| link.name == bridge).map(|link| link.index);
        let on_it = |port: &&Link| index.is_some() && port.master == index;
        let waits = |port: &&Link| port.master.is_none() && port.alias.as_ref() == Some(&ours);
        // A TAP without a carrier is nobody's: that of meshd itself stays so until it is opened.
        let used = |port: &&Link| port.kind == Kind::Veth || port.kind == Kind::Tun && port.running;
        let theirs = links.iter().filter(|port| used(port) && (on_it(port) || waits(port)));
        Ok(theirs.map(|port| (port.index, port.name.clone())).collect())
    }
}
