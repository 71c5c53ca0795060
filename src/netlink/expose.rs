//! Addresses of the host itself on the bridge.

use ipnet::IpNet;
use meshnet_proto::Mac;

use super::{Error, Netlink, is_global, same_host};

impl Netlink {
    /// Puts an address on the bridge; one that is there already stays. Gives back warnings: networks that this one hides or is hidden by.
    pub async fn expose(&self, bridge: &str, net: IpNet) -> Result<Vec<String>, Error> {
        let link = self.bridge(bridge).await?;
        let (links, addresses) = (self.links().await?, self.addresses().await?);
        if addresses.iter().any(|there| there.index == link.index && there.net == net) {
            return Ok(Vec::new());
        }
        if let Some(there) = addresses.iter().find(|there| same_host(&there.net, &net)) {
            let name = links.iter().find(|link| link.index == there.index).map(|link| link.name.clone());
            let interface = name.unwrap_or_else(|| format!("interface {}", there.index));
            return Err(Error::AddressTaken { address: net, present: there.net, interface });
        }
        let routes = self.routes().await?;
        self.add_address(&link, net).await?;
        super::announce::from_here(link.index, link.mac, net.addr());
        let crossing =
            |other: &IpNet| other.prefix_len() > 0 && (other.contains(&net.trunc()) || net.trunc().contains(other));
        let elsewhere = routes.iter().filter(|route| route.index != Some(link.index) && crossing(&route.net));
        let warn = |route: &super::kernel::Route| {
            let name = links.iter().find(|link| Some(link.index) == route.index).map_or("?", |link| &link.name);
            format!("{} overlaps the route to {} by {name}: one of them hides the other", net.trunc(), route.net)
        };
        Ok(elsewhere.map(warn).collect())
    }

    /// Routes to parts of these addresses, or to more than them, by other interfaces than the bridge: to where, and by which.
    pub async fn crossing(&self, bridge: &str, range: IpNet) -> Result<Vec<(IpNet, String)>, Error> {
        let (links, routes) = (self.links().await?, self.routes().await?);
        let own = links.iter().find(|link| link.name == bridge).map(|link| link.index);
        let crosses = |net: &IpNet| net.prefix_len() > 0 && (net.contains(&range) || range.contains(net));
        let crossing = routes.iter().filter(|route| route.index != own && crosses(&route.net));
        let name =
            |index: Option<u32>| links.iter().find(|link| Some(link.index) == index).map_or("?", |link| &link.name);
        Ok(crossing.map(|route| (route.net, name(route.index).to_owned())).collect())
    }

    /// Takes an address from the bridge, or all that [`Netlink::expose`] put there (of this run or an earlier one). Gives back those taken.
    pub async fn hide(&self, bridge: &str, net: Option<IpNet>) -> Result<Vec<IpNet>, Error> {
        let link = self.bridge(bridge).await?;
        let addresses = self.addresses().await?;
        let on_bridge = addresses.iter().filter(|there| there.index == link.index && is_global(&there.net.addr()));
        let taken: Vec<IpNet> = match net {
            Some(net) => on_bridge.filter(|there| there.net == net).map(|there| there.net).collect(),
            None => on_bridge.filter(|there| there.ours).map(|there| there.net).collect(),
        };
        if let (Some(address), true) = (net, taken.is_empty()) {
            return Err(Error::NoSuchAddress { address, interface: link.name });
        }
        for net in &taken {
            self.remove_address(&link, *net).await?;
        }
        Ok(taken)
    }

    /// Addresses of the host on the bridge.
    pub async fn exposed(&self, bridge: &str) -> Result<Vec<IpNet>, Error> {
        let link = self.bridge(bridge).await?;
        let addresses = self.addresses().await?;
        let on_bridge = addresses.iter().filter(|there| there.index == link.index && is_global(&there.net.addr()));
        Ok(on_bridge.map(|there| there.net).collect())
    }

    /// The bridge's MAC address: who answers for the host's own addresses. An adopted bridge keeps its own.
    pub async fn bridge_mac(&self, bridge: &str) -> Result<Option<Mac>, Error> {
        Ok(self.bridge(bridge).await?.mac)
    }
}
