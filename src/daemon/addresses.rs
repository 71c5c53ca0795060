//! Addresses as people and programs ask for them: commands become requests to the node, its answers become replies; namespaces and the host get addresses
//! of the range by lease and lose them with it.
//!
//! ```text
//! command ─▶ Addresses ─┬─ Ask ──▶ driver ─▶ node … reply      an errand for each command: it may wait for other peers
//!                       └─ Order ─▶ keeper of the devices      (lease first, then the device; back in the other order)
//! ```
//! Errands: owned by the driver, as many as the API has connections; each ends with its answer, after [`ANSWER_TIME`] at each question. Asks: the driver takes
//! them at once; an errand waits for it. Owners that this room gives addresses to are `netns:NAME` and `host:expose`.

mod exposed;
mod removal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use meshnet_core::ipam::{Answer, LeaseLine, Refusal, Request};
use meshnet_proto::api::{Command, Lease, Problem, Reply};
use meshnet_proto::wire::ipam::Span;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::backend::REQUESTS_MAX;
use super::config::{Settings, value};
use super::devices::{Devices, Done, Order, Orders};
use super::driver::Driver;
use super::ipam::Outcome;
pub use removal::{Candidate, SILENT, choose};

/// A question of an errand to the node.
pub struct Ask {
    /// What.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Outcome>,
}

/// The room's door; cheap to clone, each errand has one.
#[derive(Clone)]
pub struct Addresses {
    range: Option<Ipv4Net>,
    asks: mpsc::Sender<Ask>,
    orders: Orders,
    turns: Arc<Mutex<Turns>>,
    exposing: Arc<Mutex<exposed::Exposing>>,
}

/// One errand at a time for each owner: its lease and its device change together.
type Turns = BTreeMap<String, Weak<tokio::sync::Mutex<()>>>;

/// An address that is wanted: one of the range, or a certain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Auto,
    At(IpNet),
}

impl Addresses {
    /// The door, and the end that the driver reads.
    pub fn new(settings: &Settings, orders: Orders) -> (Addresses, mpsc::Receiver<Ask>) {
        let range = settings.ipam_range.and_then(v4);
        let (asks, asked) = mpsc::channel(REQUESTS_MAX);
        (Addresses { range, asks, orders, turns: Arc::default(), exposing: Arc::default() }, asked)
    }

    /// The door, the end that the driver reads, and what is to be done at once: addresses of the host that were asked for.
    pub fn start(settings: &Settings, devices: &Devices) -> (Addresses, mpsc::Receiver<Ask>, JoinSet<()>) {
        let (addresses, asks) = Addresses::new(settings, devices.orders());
        let mut errands = JoinSet::new();
        if addresses.expose_later(settings.expose, devices.found()) {
            errands.spawn(addresses.clone().keep_exposing());
        }
        (addresses, asks, errands)
    }

    /// What is wrong with addresses of the host.
    pub fn problems(&self) -> Vec<Problem> {
        exposed::problems(&self.exposing)
    }

    /// Does a command; one that removes peers comes by [`Addresses::remove`].
    pub async fn command(self, command: Command) -> Reply {
        let done = match command {
            Command::IpAlloc { id, subnet } => self.alloc(id, subnet).await,
            Command::IpClaim { id, address } => self.claim(id, &address).await,
            Command::IpLookup { id } => self.lookup(id).await,
            Command::IpFree { id, address } => self.free(id, address).await,
            Command::IpList => self.ask(Request::List).await.map(reply),
            Command::Leave => self.leave().await,
            Command::Attach { namespace, addresses } => self.attach(namespace, addresses).await,
            Command::Detach { namespace, addresses } => self.detach(namespace, addresses).await,
            Command::Expose { address } => self.expose(&address).await,
            Command::Hide { address } => self.hide(address).await,
            other => Err(format!("{other:?} is not a command about addresses")),
        };
        done.unwrap_or_else(|reason| Reply::Refused { reason })
    }

    /// Has peers removed that were chosen by [`removal::choose`].
    pub async fn remove(self, chosen: Vec<Candidate>, force: bool) -> Reply {
        let peers = chosen.iter().map(|peer| peer.id).collect();
        match self.ask(Request::Remove { peers, force }).await {
            Ok(Answer::Removed { addresses }) => {
                Reply::Removed { peers: chosen.into_iter().map(|peer| peer.shown).collect(), addresses }
            }
            Ok(other) => reply(other),
            Err(reason) => Reply::Refused { reason },
        }
    }

    async fn alloc(&self, id: String, subnet: Option<String>) -> Result<Reply, String> {
        let range = self.range()?;
        let within = subnet.map(|text| subnet_of(range, &text)).transpose()?;
        Ok(reply(self.ask(Request::Alloc { owner: owner(id)?, within }).await?))
    }

    async fn claim(&self, id: String, address: &str) -> Result<Reply, String> {
        let address = self.address(address)?;
        Ok(reply(self.ask(Request::Claim { owner: owner(id)?, address }).await?))
    }

    async fn lookup(&self, id: String) -> Result<Reply, String> {
        Ok(reply(self.ask(Request::Lookup { owner: owner(id)? }).await?))
    }

    async fn free(&self, id: String, address: Option<String>) -> Result<Reply, String> {
        let address = address.map(|text| self.address(&text)).transpose()?;
        let owner = owner(id)?;
        if let Some(name) = owner.strip_prefix(NAMESPACE) {
            return Err(format!(
                "'{owner}' is a namespace: meshctl detach {name} frees what it has, even if it is gone"
            ));
        }
        if owner == exposed::OWNER {
            return Err(format!("'{owner}' is this host: meshctl hide frees what it has"));
        }
        Ok(reply(self.ask(Request::Free { owner, address }).await?))
    }

    /// The host's own addresses go with it; those of containers are for people to take away.
    async fn leave(&self) -> Result<Reply, String> {
        self.range()?;
        let others = self.leases().await?.iter().filter(|lease| lease.owner != exposed::OWNER).count();
        if others == 0 {
            self.hide(None).await?;
        }
        Ok(reply(self.ask(Request::Leave).await?))
    }

    async fn attach(&self, namespace: String, addresses: Vec<String>) -> Result<Reply, String> {
        let wishes = self.wishes(&addresses)?;
        let owner = owner(namespace_owner(&namespace))?;
        let _turn = self.turn(&owner).await;
        let (nets, fresh) = self.lease_all(&owner, &wishes).await.map_err(|refusal| refusal.to_string())?;
        match self.orders.order(Order::Attach { namespace, addresses: nets }).await {
            Ok(Done::Attached(attached)) => {
                let addresses = attached.addresses.iter().map(ToString::to_string).collect();
                Ok(Reply::Attached { interface: attached.interface, addresses })
            }
            Ok(_) => Ok(Reply::Done),
            Err(refused) => {
                self.free_all(&owner, &fresh).await;
                Err(refused.reason)
            }
        }
    }

    async fn detach(&self, namespace: String, addresses: Vec<String>) -> Result<Reply, String> {
        let nets = addresses.iter().map(|text| cidr(text)).collect::<Result<Vec<IpNet>, String>>()?;
        let owner = owner(namespace_owner(&namespace))?;
        let _turn = self.turn(&owner).await;
        let order = Order::Detach { namespace: namespace.clone(), addresses: nets.clone() };
        let (taken, refusal) = match self.orders.order(order).await {
            Ok(Done::Taken(taken)) => (taken, None),
            Ok(_) => (Vec::new(), None),
            // The namespace is gone, and what it had shall not stay given out for ever.
            Err(refused) if refused.absent && self.range.is_some() => (nets.clone(), Some(refused.reason)),
            Err(refused) => return Err(refused.reason),
        };
        if self.range.is_none() {
            return Ok(Reply::Done);
        }
        let all = addresses.is_empty();
        let ours = |lease: &LeaseLine| {
            // The same namespace may be called by name, path or number.
            let taken = lease.owner.starts_with(NAMESPACE) && taken.iter().any(|net| is(net, lease.address));
            if refusal.is_some() {
                lease.owner == owner && (all || taken)
            } else {
                taken || all && lease.owner == owner
            }
        };
        let leases: Vec<LeaseLine> = self.leases().await?.into_iter().filter(ours).collect();
        if let (Some(reason), true) = (refusal, leases.is_empty()) {
            return Err(reason);
        }
        for lease in leases {
            let free = Request::Free { owner: lease.owner, address: Some(lease.address) };
            self.ask(free).await.map_err(|why| format!("'{namespace}' is detached, but keeps addresses: {why}"))?;
        }
        Ok(Reply::Done)
    }

    /// Leases what of the wishes is in the range: all networks, and the addresses that the owner did not have before. All or nothing.
    async fn lease_all(&self, owner: &str, wishes: &[Wish]) -> Result<(Vec<IpNet>, Vec<u32>), Refusal> {
        let managed = |wish: &Wish| match wish {
            Wish::Auto => true,
            Wish::At(net) => self.in_range(net).is_some(),
        };
        let before = match wishes.iter().any(managed) {
            true => self.leases_of(owner).await.map_err(Refusal::Later)?,
            false => Vec::new(),
        };
        let (mut nets, mut fresh) = (Vec::new(), Vec::new());
        for wish in wishes {
            let request = match wish {
                Wish::Auto => Request::Alloc { owner: owner.to_owned(), within: None },
                Wish::At(net) => match self.in_range(net) {
                    Some(address) => Request::Claim { owner: owner.to_owned(), address },
                    None => {
                        nets.push(*net);
                        continue;
                    }
                },
            };
            match self.try_ask(request).await {
                Ok(Answer::Address { address, subnet }) => {
                    if !before.contains(&address) {
                        fresh.push(address);
                    }
                    nets.push(if let Wish::At(net) = wish { *net } else { net_of(address, subnet) });
                }
                Ok(other) => return Err(Refusal::No(format!("{other:?} is no address"))),
                Err(why) => {
                    self.free_all(owner, &fresh).await;
                    return Err(why);
                }
            }
        }
        Ok((nets, fresh))
    }

    /// Gives back what was leased for nothing. What cannot be freed now is the owner's still, and is given to it again.
    async fn free_all(&self, owner: &str, addresses: &[u32]) {
        for address in addresses {
            let free = Request::Free { owner: owner.to_owned(), address: Some(*address) };
            if let Err(error) = self.ask(free).await {
                tracing::warn!(%error, address = %Ipv4Addr::from(*address), "an address stays given out");
            }
        }
    }

    async fn leases(&self) -> Result<Vec<LeaseLine>, String> {
        match self.ask(Request::List).await? {
            Answer::Leases(leases) => Ok(leases),
            other => Err(format!("{other:?} is no list of addresses")),
        }
    }

    async fn leases_of(&self, owner: &str) -> Result<Vec<u32>, String> {
        let leases = self.leases().await?;
        Ok(leases.into_iter().filter(|lease| lease.owner == owner).map(|lease| lease.address).collect())
    }

    async fn ask(&self, request: Request) -> Result<Answer, String> {
        self.range()?;
        self.try_ask(request).await.map_err(|refusal| refusal.to_string())
    }

    async fn try_ask(&self, request: Request) -> Outcome {
        let stopping = || Refusal::Later("meshd is stopping".into());
        let late = "no answer within 8 s: what was asked goes on by itself where it can (meshctl status ipam)";
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask { request, answer }).await.map_err(|_| stopping())?;
        match tokio::time::timeout(ANSWER_TIME, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(Refusal::Later(late.into())),
        }
    }

    /// What to do with the words after `attach`; none mean one address of the range, where there is one.
    fn wishes(&self, texts: &[String]) -> Result<Vec<Wish>, String> {
        if texts.is_empty() && self.range.is_some() {
            return Ok(vec![Wish::Auto]);
        }
        let mut wishes = Vec::with_capacity(texts.len());
        for text in texts {
            let wish = self.wish(text)?;
            if !wishes.contains(&wish) {
                wishes.push(wish);
            }
        }
        Ok(wishes)
    }

    fn wish(&self, text: &str) -> Result<Wish, String> {
        if text == "auto" {
            return self.range().map(|_| Wish::Auto);
        }
        cidr(text).map(Wish::At)
    }

    /// The address, when it is one of the range.
    fn in_range(&self, net: &IpNet) -> Option<u32> {
        let address = v4(*net)?.addr();
        self.range.filter(|range| range.contains(&address)).map(|_| u32::from(address))
    }

    fn range(&self) -> Result<Ipv4Net, String> {
        let off = "IPAM is off here (--ipam-range none): give an address by hand, such as 10.32.0.5/12";
        self.range.ok_or_else(|| off.into())
    }

    /// An address, with or without the length of a network behind it.
    fn address(&self, text: &str) -> Result<u32, String> {
        let range = self.range()?;
        let plain = text.split_once('/').map_or(text, |(address, _)| address);
        let wrong =
            |_| format!("'{text}' is wrong: an IPv4 address within {range} is wanted, such as {}", first(range));
        let address: Ipv4Addr = plain.parse().map_err(wrong)?;
        if !range.contains(&address) {
            return Err(format!("{address} is outside of the range: one within {range} is wanted (--ipam-range)"));
        }
        if address == range.network() || address == range.broadcast() {
            return Err(format!("{address} is the first or last address of {range}, which nobody can have"));
        }
        Ok(u32::from(address))
    }

    async fn turn(&self, owner: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(owner).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(owner.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// The driver's side.
impl Driver {
    pub(super) fn on_ask(&mut self, ask: Ask) {
        let answered = self.ask_ipam(ask.request);
        self.errands.spawn(async move {
            if let Ok(outcome) = answered.await {
                let _ = ask.answer.send(outcome);
            }
        });
    }
}

/// An owner's id as anything may give it.
fn owner(id: String) -> Result<String, String> {
    if id.trim().is_empty() {
        Err("the id is empty: a text that tells this owner from others is wanted".into())
    } else if id.len() > OWNER_MAX_BYTES {
        Err(format!("the id has {} bytes: at most {OWNER_MAX_BYTES} are wanted", id.len()))
    } else if id.chars().any(char::is_control) {
        Err(format!("the id '{}' has control characters: a text without is wanted", id.escape_debug()))
    } else {
        Ok(id)
    }
}

/// Names of `ip netns` are files: both forms are one owner.
fn namespace_owner(namespace: &str) -> String {
    let name = ["/run/netns/", "/var/run/netns/"].iter().find_map(|dir| namespace.strip_prefix(dir));
    format!("{NAMESPACE}{}", name.unwrap_or(namespace))
}

fn cidr(text: &str) -> Result<IpNet, String> {
    if text == "auto" {
        return Err("'auto' is wrong here: an address is wanted, such as 10.32.0.5/12".into());
    }
    value::host_cidr(text).map_err(|right| format!("'{text}' is wrong: {right}"))
}

fn subnet_of(range: Ipv4Net, text: &str) -> Result<Span, String> {
    let net: Ipv4Net = text.parse().map_err(|_| format!("'{text}' is wrong: a network within {range} is wanted"))?;
    if net.trunc() != net {
        return Err(format!("'{text}' is wrong: a network is wanted, such as {}", net.trunc()));
    }
    if !range.contains(&net) {
        return Err(format!("{net} is outside of the range: a network within {range} is wanted (--ipam-range)"));
    }
    Ok(Span { first: u32::from(net.network()), len: 1 << (32 - u32::from(net.prefix_len())) })
}

/// An address with the length of its network.
fn net_of(address: u32, subnet: Span) -> IpNet {
    // A network has a power of two of addresses: 2^k of them are a length of 32 - k.
    let length = u8::try_from(subnet.len.leading_zeros() + 1).unwrap_or(32).min(32);
    let address = Ipv4Addr::from(address);
    Ipv4Net::new(address, length).unwrap_or_else(|_| Ipv4Net::from(address)).into()
}

fn reply(answer: Answer) -> Reply {
    match answer {
        Answer::Done => Reply::Done,
        Answer::Address { address, subnet } => Reply::Address { address: net_of(address, subnet).to_string() },
        Answer::Removed { addresses } => Reply::Removed { peers: Vec::new(), addresses },
        Answer::Leases(lines) => {
            let lease = |line: LeaseLine| Lease {
                id: line.owner,
                address: Ipv4Addr::from(line.address).to_string(),
                subnet: net_of(line.subnet.first, line.subnet).to_string(),
                unconfirmed: line.unconfirmed,
            };
            Reply::Leases { leases: lines.into_iter().map(lease).collect() }
        }
    }
}

fn v4(net: IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(net),
        IpNet::V6(_) => None,
    }
}

fn is(net: &IpNet, address: u32) -> bool {
    v4(*net).is_some_and(|net| u32::from(net.addr()) == address)
}

fn first(range: Ipv4Net) -> Ipv4Addr {
    range.hosts().next().unwrap_or(range.network())
}

/// Before the name of a namespace that has an address.
const NAMESPACE: &str = "netns:";
/// Ids of containers have 64 bytes; with a plugin's prefix and an interface's name behind it, far less than this.
pub const OWNER_MAX_BYTES: usize = 256;
/// The node answers a request for an address within 5 s; the API gives up after 9 s.
const ANSWER_TIME: Duration = Duration::from_secs(8);
