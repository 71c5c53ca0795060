//! The bridge and the TAP on it: what should be, against what is.
//!
//! A bridge that we made carries our name in its alias, so that a later run knows it as ours. On ours: fixed MAC address, no spanning tree, no
//! multicast snooping (the mesh floods multicast; a snooping bridge would forget members that speak on another machine). An adopted one keeps its
//! own settings; only the TAP's port is made to carry all multicast. Nothing is ever removed here: containers sit on it.

use std::fmt;

use ipnet::IpNet;
use meshnet_proto::PeerId;
use meshnet_proto::id::Mac;
use netlink_packet_route::link::{
    BridgeMulticastRouterType, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec};

use super::kernel::{Address, Kind, Link};
use super::{Error, Netlink, same_host};

/// How bridge and TAP should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Name of the bridge.
    pub bridge: String,
    /// Its address, if we make it: [`stable_mac`].
    pub mac: Mac,
    /// Name of the TAP.
    pub tap: String,
    /// MTU of the overlay.
    pub mtu: u32,
    /// What it was until now: an adopted bridge that has it follows.
    pub mtu_before: Option<u32>,
    /// Addresses of the host on the bridge.
    pub exposed: Vec<IpNet>,
}

/// One difference; doing it is one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The bridge was missing.
    BridgeMade,
    /// Its address was another (ours only).
    BridgeMac,
    /// Spanning tree or multicast snooping was on (ours only).
    BridgeSettings,
    /// Its MTU was another.
    BridgeMtu {
        /// Before.
        from: u32,
        /// Now.
        to: u32,
    },
    /// It was down.
    BridgeUp,
    /// The TAP's MTU was another than [`TAP_MTU`].
    TapMtu {
        /// Before.
        from: u32,
        /// Now.
        to: u32,
    },
    /// Its queue was short.
    TapQueue,
    /// IPv6 was about to speak on it.
    TapSilent,
    /// It was not on the bridge.
    TapJoined,
    /// Its port did not carry all multicast (adopted bridges only).
    TapMulticast,
    /// It was down.
    TapUp,
    /// The TAP is gone: whoever holds its queues makes it anew. Nothing is done here.
    TapMissing,
    /// An address of the host was missing.
    Exposed(IpNet),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::BridgeMade => f.write_str("bridge made"),
            Change::BridgeMac => f.write_str("bridge's MAC address set"),
            Change::BridgeSettings => f.write_str("bridge's spanning tree and multicast snooping off"),
            Change::BridgeMtu { from, to } => write!(f, "bridge's MTU {from} to {to}"),
            Change::BridgeUp => f.write_str("bridge up"),
            Change::TapMtu { from, to } => write!(f, "TAP's MTU {from} to {to}"),
            Change::TapQueue => f.write_str("TAP's queue made longer"),
            Change::TapSilent => f.write_str("TAP without IPv6 of its own"),
            Change::TapJoined => f.write_str("TAP on the bridge"),
            Change::TapMulticast => f.write_str("TAP's port carries all multicast"),
            Change::TapUp => f.write_str("TAP up"),
            Change::TapMissing => f.write_str("TAP missing"),
            Change::Exposed(net) => write!(f, "{net} on the bridge"),
        }
    }
}

/// A MAC address for a bridge that we make: the same at each start, another on each machine, locally administered.
pub fn stable_mac(peer: &PeerId) -> Mac {
    let [a, b, c, d, e, f, ..] = peer.0;
    Mac([(a & 0xfc) | 0x02, b, c, d, e, f])
}

impl Netlink {
    /// Brings bridge and TAP into their state; gives back what had to be done, in order: nothing when all was well.
    pub async fn ensure(&self, desired: &Desired) -> Result<Vec<Change>, Error> {
        let mut done: Vec<Change> = Vec::new();
        for _ in 0..ROUNDS {
            let (links, addresses) = (self.links().await?, self.addresses().await?);
            let steps = difference(desired, &links, &addresses)?;
            let mut idle = true;
            for step in steps {
                if step != Change::TapMissing {
                    self.apply(desired, &links, &step).await?;
                    idle = false;
                }
                if !done.contains(&step) {
                    done.push(step);
                }
            }
            if idle {
                return Ok(done);
            }
        }
        Err(Error::Unsettled(done.pop().unwrap_or(Change::TapMissing)))
    }

    /// MAC address of `ip` as the host's neighbour table on the bridge has it.
    pub async fn neighbour(&self, bridge: &str, ip: std::net::IpAddr) -> Result<Option<Mac>, Error> {
        let bridge = self.bridge(bridge).await?;
        self.neighbour_on(bridge.index, ip).await
    }

    /// The bridge, which must be there.
    pub(super) async fn bridge(&self, name: &str) -> Result<Link, Error> {
        let link = self.link(name).await?.ok_or_else(|| Error::NoBridge(name.to_owned()))?;
        is_bridge(link)
    }

    async fn apply(&self, desired: &Desired, links: &[Link], step: &Change) -> Result<(), Error> {
        let index = |name: &str| links.iter().find(|link| link.name == name).map_or(0, |link| link.index);
        let (bridge, tap) = (index(&desired.bridge), index(&desired.tap));
        let on_bridge = || LinkUnspec::new_with_index(bridge);
        let on_tap = || LinkUnspec::new_with_index(tap);
        let change = match step {
            Change::BridgeMade => return self.make_bridge(desired).await,
            Change::BridgeMac => on_bridge().address(desired.mac.0.to_vec()),
            Change::BridgeSettings => {
                let quiet = vec![InfoBridge::StpState(BridgeStpState::Disabled), InfoBridge::MulticastSnooping(false)];
                let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
                    .index(bridge)
                    .set_info_data(InfoData::Bridge(quiet));
                return self.change(message.build(), format!("set up {}", desired.bridge)).await;
            }
            Change::BridgeMtu { to, .. } => on_bridge().mtu(*to),
            Change::BridgeUp => on_bridge().up(),
            Change::TapMtu { to, .. } => on_tap().mtu(*to),
            Change::TapQueue => on_tap().txqueuelen(TXQUEUELEN),
            Change::TapSilent => return self.silence(tap).await,
            Change::TapJoined => on_tap().controller(bridge),
            Change::TapMulticast => {
                let port = LinkBridgePort::new(tap)
                    .append_info_data(InfoBridgePort::MulticastFlood(true))
                    .append_info_data(InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::Permanent));
                return self.change(port.build(), format!("set up the port of {}", desired.tap)).await;
            }
            Change::TapUp => on_tap().up(),
            Change::TapMissing => return Ok(()),
            Change::Exposed(net) => {
                let Some(link) = links.iter().find(|link| link.index == bridge) else { return Ok(()) };
                return self.add_address(link, *net).await;
            }
        };
        self.change_link(
            change,
            format!("bring bridge {} and TAP {} into their state ({step})", desired.bridge, desired.tap),
        )
        .await
    }

    async fn make_bridge(&self, desired: &Desired) -> Result<(), Error> {
        let name = &desired.bridge;
        // Without MTU: only one that is set later counts as the user's, and stays when ports come and go (br_mtu_auto_adjust).
        let bridge = LinkBridge::new(name)
            .address(desired.mac.0.to_vec())
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false);
        self.add_link(bridge.build(), format!("make the bridge {name}")).await?;
        self.change_link(LinkUnspec::new_with_name(name).alias(ALIAS), format!("mark the bridge {name}")).await
    }
}

/// What differs, in the order in which it must be done. Pure.
pub(super) fn difference(desired: &Desired, links: &[Link], addresses: &[Address]) -> Result<Vec<Change>, Error> {
    let find = |name: &str| links.iter().find(|link| link.name == name);
    let Some(bridge) = find(&desired.bridge) else { return Ok(vec![Change::BridgeMade]) };
    let bridge = is_bridge(bridge.clone())?;
    let ours = is_ours(&bridge);
    let mut steps = Vec::new();
    let mut when = |differs: bool, change: Change| {
        if differs {
            steps.push(change);
        }
    };
    let tap = find(&desired.tap);
    if let Some(tap) = tap {
        if tap.kind != Kind::Tun {
            return Err(Error::NotATap { name: tap.name.clone(), kind: tap.kind.to_string() });
        }
        when(tap.mtu != TAP_MTU, Change::TapMtu { from: tap.mtu, to: TAP_MTU });
        when(tap.txqueuelen < TXQUEUELEN, Change::TapQueue);
        when(!tap.silent, Change::TapSilent);
    }
    when(ours && bridge.mac != Some(desired.mac), Change::BridgeMac);
    when(ours && (bridge.stp || bridge.snooping), Change::BridgeSettings);
    let joined = tap.is_some_and(|tap| tap.master == Some(bridge.index));
    // Ours is set before a port joins: the kernel would follow the port, and take our word later for no change.
    // An adopted one follows its ports by itself; it is lowered, because what the host sends in longer packets travels in fragments, and then follows.
    let follows = bridge.mtu > desired.mtu || desired.mtu_before == Some(bridge.mtu);
    let mtu_differs = bridge.mtu != desired.mtu && (ours || joined && follows);
    when(mtu_differs, Change::BridgeMtu { from: bridge.mtu, to: desired.mtu });
    if let Some(tap) = tap {
        when(!joined, Change::TapJoined);
        let carries_all = joined && tap.floods_multicast && tap.multicast_router;
        when(!(ours || carries_all), Change::TapMulticast);
        when(!tap.up, Change::TapUp);
    }
    when(!bridge.up, Change::BridgeUp);
    when(tap.is_none(), Change::TapMissing);
    for net in &desired.exposed {
        let there = addresses.iter().any(|address| address.index == bridge.index && same_host(&address.net, net));
        when(!there, Change::Exposed(*net));
    }
    Ok(steps)
}

fn is_bridge(link: Link) -> Result<Link, Error> {
    if link.kind == Kind::Bridge {
        Ok(link)
    } else {
        Err(Error::NotABridge { name: link.name, kind: link.kind.to_string() })
    }
}

fn is_ours(link: &Link) -> bool {
    link.alias.as_deref() == Some(ALIAS)
}

/// What marks a bridge as made by us.
pub(super) const ALIAS: &str = "meshnet";
/// The longest that the kernel allows: at a port, a bridge drops what is longer than the port's MTU without a word. Containers may have a longer MTU than
/// the overlay (made before it shrank, or by others); what does not fit is carried in fragments, and its sender told.
pub(super) const TAP_MTU: u32 = 65_521;
/// Frames that wait when the worker is not scheduled for a moment: at a million a second the usual 1,000 are gone after 1 ms, and a time slice on a
/// busy core is 3 to 4 ms. More would only add delay: TCP fills whatever there is.
pub(super) const TXQUEUELEN: u32 = 4000;
/// The first round makes the bridge, the second the rest, the third finds nothing; one more for a device that changed meanwhile.
const ROUNDS: usize = 4;
