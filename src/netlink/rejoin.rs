//! Attached interfaces after the bridge was deleted and made anew: back onto it.

use super::kernel::Kind;
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
}
