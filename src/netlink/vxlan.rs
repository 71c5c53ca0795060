//! The VXLAN device of the kernel's fast path, its place on the bridge, and the forwarding entries that lead there.
//!
//! ```text
//!            bridge: MAC ─▶ this port (static, sticky)          device: MAC ─▶ address and port of the peer
//! container ═══▶ bridge ══════════════════════════════▶ NAME-vx ══════════════════════════════════════════▶ UDP
//!                  └── TAP: all else; between it and NAME-vx nothing passes (both ports are isolated)
//! ```
//! Nothing is learned from the device and nothing flooded into it. A frame that came out of it and whose destination the bridge does not know would
//! otherwise enter the TAP as one of this machine's own. A device that an earlier run left is removed with all its entries before a new one is made.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use meshnet_proto::id::Mac;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::InfoBridgePort;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{LinkBridgePort, LinkUnspec, LinkVxlan};

pub use super::kernel::Traffic;
use super::kernel::{Kind, Link, mac};
use super::{Error, Netlink};

/// How the device should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Its bridge.
    pub bridge: String,
    /// The TAP on the same bridge.
    pub tap: String,
    /// Its name.
    pub name: String,
    /// VXLAN network identifier.
    pub network: u32,
    /// UDP port.
    pub port: u16,
    /// MTU of the overlay.
    pub mtu: u32,
    /// The MAC address under which probes are taken: the bridge gives them to the host.
    pub station: Mac,
}

/// The devices as the kernel numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The VXLAN device.
    pub vxlan: u32,
    /// The TAP.
    pub tap: u32,
    /// The bridge.
    pub bridge: u32,
}

/// Where frames to a MAC address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The peer's underlay address.
    pub address: Ipv4Addr,
    /// Its UDP port.
    pub port: u16,
}

impl Netlink {
    /// Brings the device into its state; says whether anything had to be done.
    pub async fn ensure_vxlan(&self, desired: &Desired) -> Result<(Ports, bool), Error> {
        let links = self.links().await?;
        let find = |name: &str| links.iter().find(|link| link.name == name);
        let bridge = find(&desired.bridge).ok_or_else(|| Error::NoBridge(desired.bridge.clone()))?.index;
        let tap = find(&desired.tap).cloned().unwrap_or_default();
        let mut changed = false;
        let device = match find(&desired.name) {
            Some(device) => ours(device, &desired.bridge)?.clone(),
            None => {
                changed = true;
                self.make_vxlan(desired).await?;
                self.link(&desired.name).await?.unwrap_or_default()
            }
        };
        if device.mtu != desired.mtu {
            self.change_link(
                LinkUnspec::new_with_index(device.index).mtu(desired.mtu),
                format!("set the MTU of {}", device.name),
            )
            .await?;
        }
        if device.master != Some(bridge) {
            let change = LinkUnspec::new_with_index(device.index).controller(bridge);
            self.change_link(change, format!("put {} on {}", device.name, desired.bridge)).await?;
            changed = true;
        }
        if changed || device.learns || !device.isolated {
            let port = LinkBridgePort::new(device.index)
                .append_info_data(InfoBridgePort::Learning(false))
                .append_info_data(InfoBridgePort::UnicastFlood(false))
                .append_info_data(InfoBridgePort::MulticastFlood(false))
                .append_info_data(InfoBridgePort::BroadcastFlood(false))
                .append_info_data(InfoBridgePort::Isolated(true));
            self.change(port.build(), format!("set up the port of {}", device.name)).await?;
        }
        if tap.index != 0 && !tap.isolated {
            let port = LinkBridgePort::new(tap.index).append_info_data(InfoBridgePort::Isolated(true));
            self.change(port.build(), format!("set up the port of {}", tap.name)).await?;
        }
        if changed {
            self.take_probes(bridge, desired.station).await?;
        }
        // Last: no frame passes before the port is as it should be.
        if !device.up {
            self.change_link(LinkUnspec::new_with_index(device.index).up(), format!("bring {} up", device.name))
                .await?;
        }
        Ok((Ports { vxlan: device.index, tap: tap.index, bridge }, changed))
    }

    /// Takes away the device, and with it every entry that leads there. True when there was one.
    pub async fn remove_vxlan(&self, bridge: &str, tap: &str) -> Result<bool, Error> {
        let links = self.links().await?;
        let name = name_of(bridge);
        let left = links.iter().find(|link| link.name == name).filter(|link| ours(link, bridge).is_ok());
        let Some(device) = left else { return Ok(false) };
        self.remove_link(device).await?;
        if let Some(tap) = links.iter().find(|link| link.name == tap && link.isolated) {
            let port = LinkBridgePort::new(tap.index).append_info_data(InfoBridgePort::Isolated(false));
            self.change(port.build(), format!("set up the port of {}", tap.name)).await?;
        }
        Ok(true)
    }

    /// What passed the device.
    pub async fn vxlan_traffic(&self, name: &str) -> Result<Option<Traffic>, Error> {
        Ok(self.link(name).await?.map(|link| link.traffic))
    }

    async fn make_vxlan(&self, desired: &Desired) -> Result<(), Error> {
        // UDP checksums: without them receivers cannot join datagrams cheaply. The address: a high one never becomes that of an adopted bridge.
        let [_, b, c, d, e, f] = desired.station.0;
        let device = LinkVxlan::new(&desired.name, desired.network)
            .port(desired.port)
            .learning(false)
            .udp_csum(true)
            .ttl(64)
            .address(vec![0xfe, b, c, d, e, f])
            .mtu(desired.mtu);
        self.add_link(device.build(), format!("make the VXLAN device {}", desired.name)).await?;
        self.change_link(
            LinkUnspec::new_with_name(&desired.name).alias(alias(&desired.bridge)),
            format!("mark {}", desired.name),
        )
        .await?;
        let index = self.link(&desired.name).await?.unwrap_or_default().index;
        self.silence(index).await
    }

    /// Frames to `station` go up to the host.
    async fn take_probes(&self, bridge: u32, station: Mac) -> Result<(), Error> {
        let mut request = self.handle.neighbours().add_bridge(bridge, &station.0).replace();
        let header = &mut request.message_mut().header;
        header.state = NeighbourState::Permanent;
        header.flags = NeighbourFlags::Own;
        request.execute().await.map_err(super::kernel::said("take probes of the fast path"))
    }

    /// Frames to `mac` that enter the device go to this peer.
    pub async fn vxlan_to(&self, ports: Ports, mac: Mac, place: Place) -> Result<(), Error> {
        let mut request = self.handle.neighbours().add_bridge(ports.vxlan, &mac.0).replace();
        let message = request.message_mut();
        message.header.state = NeighbourState::Other(NUD_PERMANENT | NUD_NOARP);
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(place.address)));
        message.attributes.push(NeighbourAttribute::Port(place.port));
        request.execute().await.map_err(super::kernel::said("add an entry of the fast path"))
    }

    /// They go nowhere any more.
    pub async fn vxlan_forget(&self, ports: Ports, mac: Mac) -> Result<(), Error> {
        self.forget(ports.vxlan, mac, NeighbourFlags::Own).await
    }

    /// Frames to `mac` on the bridge enter the device, whatever their own frames are heard on.
    pub async fn bridge_to_vxlan(&self, ports: Ports, mac: Mac) -> Result<(), Error> {
        let mut request = self.handle.neighbours().add_bridge(ports.vxlan, &mac.0).replace();
        let header = &mut request.message_mut().header;
        header.state = NeighbourState::Noarp;
        header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
        request.execute().await.map_err(super::kernel::said("switch an address to the fast path"))
    }

    /// They enter the TAP again, by one change of the entry: at no time are they flooded.
    pub async fn bridge_to_tap(&self, ports: Ports, mac: Mac) -> Result<(), Error> {
        let mut request = self.handle.neighbours().add_bridge(ports.tap, &mac.0).replace();
        let header = &mut request.message_mut().header;
        header.state = NeighbourState::Reachable;
        header.flags = NeighbourFlags::Controller;
        request.execute().await.map_err(super::kernel::said("switch an address back from the fast path"))
    }

    /// The bridge knows nothing of `mac` any more.
    pub async fn bridge_forget(&self, ports: Ports, mac: Mac) -> Result<(), Error> {
        self.forget(ports.vxlan, mac, NeighbourFlags::Controller).await
    }

    /// Addresses that the bridge sends into the device, and for how many seconds nothing was sent to each.
    pub async fn vxlan_entries(&self, ports: Ports) -> Result<BTreeMap<Mac, u32>, Error> {
        let mut request = self.handle.neighbours().get();
        request = request.set_address_family(AddressFamily::Bridge);
        let list: Vec<NeighbourMessage> =
            self.list("list the entries of the bridge", move || request.execute()).await?;
        let entry = |message: NeighbourMessage| {
            // Static ones: the device's own address is permanent.
            let here = message.header.ifindex == ports.vxlan && message.header.state == NeighbourState::Noarp;
            let on_bridge = message.attributes.iter().any(|one| matches!(one, NeighbourAttribute::Controller(_)));
            let address = message.attributes.iter().find_map(|one| match one {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
                _ => None,
            })?;
            let idle = message.attributes.iter().find_map(|one| match one {
                NeighbourAttribute::CacheInfo(info) => Some(info.used / CLOCK_TICKS),
                _ => None,
            });
            (here && on_bridge).then_some((address, idle.unwrap_or(0)))
        };
        Ok(list.into_iter().filter_map(entry).collect())
    }

    /// Already gone counts as done.
    async fn forget(&self, index: u32, mac: Mac, flags: NeighbourFlags) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.flags = flags;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        match self
            .handle
            .neighbours()
            .del(message)
            .execute()
            .await
            .map_err(super::kernel::said("remove an entry of the fast path"))
        {
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }
}

/// The VXLAN device of a bridge.
pub fn name_of(bridge: &str) -> String {
    // 15 bytes are the kernel's limit (IFNAMSIZ).
    let mut stem = bridge;
    while stem.len() > 12 {
        let mut letters = stem.chars();
        letters.next_back();
        stem = letters.as_str();
    }
    format!("{stem}-vx")
}

fn ours<'a>(link: &'a Link, bridge: &str) -> Result<&'a Link, Error> {
    if link.kind == Kind::Other("vxlan".into()) && link.alias == Some(alias(bridge)) {
        return Ok(link);
    }
    Err(Error::NotOurs { name: link.name.clone(), kind: link.kind.to_string() })
}

/// What marks the device as made by us.
fn alias(bridge: &str) -> String {
    format!("meshnet fast path of {bridge}")
}

const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
/// The kernel tells ages in hundredths of a second (USER_HZ).
const CLOCK_TICKS: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_fits() {
        for (bridge, name) in [("mesh0", "mesh0-vx"), ("a-bridge-of-15b", "a-bridge-of--vx"), ("äöüäöü", "äöüäöü-vx")]
        {
            assert_eq!(name_of(bridge), name);
            assert!(name_of(bridge).len() <= 15, "{name}");
        }
    }
}
