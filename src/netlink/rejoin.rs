//! Attached interfaces after the bridge was deleted and made anew: back onto it.

use super::kernel::Kind;
use super::{Error, Netlink};

impl Netlink {
    /// Puts every port that [`Netlink::attach`] made for `bridge`, and that is on no bridge now, back onto it. Gives how many.
    pub async fn rejoin(&self, bridge: &str) -> Result<usize, Error> {
        let ours = super::attach::port_alias(bridge);
        let bridge = self.bridge(bridge).await?;
        let mut joined = 0;
        for port in self.links().await? {
            if port.kind == Kind::Veth && port.master.is_none() && port.alias.as_ref() == Some(&ours) {
                joined += usize::from(self.join(&port, &bridge).await?);
            }
        }
        Ok(joined)
    }
}
