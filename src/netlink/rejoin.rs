//! Attached interfaces after the bridge was deleted and made anew: back onto it.

use super::kernel::Kind;
use super::{Error, Netlink};

impl Netlink {
    /// Puts every port that [`Netlink::attach`] made, and that is on no bridge now, onto `bridge`. Gives how many.
    pub async fn rejoin(&self, bridge: &str) -> Result<usize, Error> {
        let bridge = self.bridge(bridge).await?;
        let mut joined = 0;
        for port in self.links().await? {
            if port.kind == Kind::Veth && port.master.is_none() && super::attach::is_port(&port.name) {
                joined += usize::from(self.join(&port, &bridge).await?);
            }
        }
        Ok(joined)
    }
}
