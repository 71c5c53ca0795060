//! The values of settings: each text becomes a type that cannot be wrong, or a few words that say what would be right.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use meshnet_proto::limits;

/// What would be right, to stand after a colon.
pub type Right = String;

/// An address to connect to: a name or an IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = Right;
    /// `HOST`, `HOST:PORT`, `ADDR`, `[ADDR]:PORT`; the port is [`PORT`] when it is missing.
    fn from_str(text: &str) -> Result<HostPort, Right> {
        let wrong = || {
            String::from("a host name or address is wanted, and a port if it is not 6783: HOST, HOST:PORT, [IPV6]:PORT")
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(HostPort { host: address.to_string(), port: PORT });
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            let address: std::net::Ipv6Addr = inner.parse().map_err(|_| wrong())?;
            return Ok(HostPort { host: address.to_string(), port: PORT });
        }
        if text.starts_with('[') {
            let address: SocketAddr = text.parse().map_err(|_| wrong())?;
            return Ok(HostPort { host: address.ip().to_string(), port: port_in_use(address.port())? });
        }
        let (host, port) = match text.split_once(':') {
            None => (text, PORT),
            Some((host, port)) => (host, port_in_use(port.parse().map_err(|_| wrong())?)?),
        };
        if is_host_name(host) { Ok(HostPort { host: host.to_owned(), port }) } else { Err(wrong()) }
    }
}

/// RFC 1123, and underscores, which names of services have. What looks like an IPv4 address must be one.
fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let numeric =
        host.rsplit('.').next().is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && host.split('.').all(label) && (!numeric || host.parse::<IpAddr>().is_ok())
}

fn port_in_use(port: u16) -> Result<u16, Right> {
    if port == 0 { Err("a port from 1 to 65535 is wanted".into()) } else { Ok(port) }
}

/// `ADDR:PORT`.
pub fn address_and_port(text: &str) -> Result<SocketAddr, Right> {
    let address: SocketAddr =
        text.parse().map_err(|_| String::from("ADDR:PORT is wanted, such as 0.0.0.0:6783 or [::]:6783"))?;
    port_in_use(address.port())?;
    Ok(address)
}

/// `ADDR[:PORT]`: an address that others can reach.
pub fn advertised(text: &str, port: u16) -> Result<SocketAddr, Right> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => {
            let wrong = |_| String::from("ADDR or ADDR:PORT is wanted, such as 192.0.2.1 or [2001:db8::1]:6783");
            text.parse().map_err(wrong)?
        }
    };
    port_in_use(address.port())?;
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err("an address that other peers can reach is wanted".into());
    }
    Ok(address)
}

/// `ADDR:PORT` or `none`.
pub fn http(text: &str) -> Result<Option<SocketAddr>, Right> {
    if text == "none" {
        return Ok(None);
    }
    let wrong = || String::from("none or ADDR:PORT is wanted, such as 127.0.0.1:6784");
    let address: SocketAddr = text.parse().map_err(|_| wrong())?;
    port_in_use(address.port())?;
    Ok(Some(address))
}

/// A name for people: of a peer, of a cluster.
pub fn name(text: &str) -> Result<String, Right> {
    if text.trim().is_empty() {
        Err("a name of at least one letter is wanted".into())
    } else if text.len() > limits::NAME_MAX_BYTES {
        Err(format!("at most {} bytes are wanted, this is {}", limits::NAME_MAX_BYTES, text.len()))
    } else if text.chars().any(char::is_control) {
        Err("a name without control characters is wanted".into())
    } else {
        Ok(text.to_owned())
    }
}

/// A name for a network interface, as the kernel takes it (`dev_valid_name`; `%` makes it a pattern).
pub fn interface(text: &str) -> Result<String, Right> {
    let bad =
        |letter: char| letter == '/' || letter == ':' || letter == '%' || letter.is_whitespace() || letter.is_control();
    if text.is_empty() || text.len() > INTERFACE_MAX_BYTES || text == "." || text == ".." || text.chars().any(bad) {
        Err(format!(
            "the name of an interface is wanted: 1 to {INTERFACE_MAX_BYTES} bytes without '/', ':', '%' and spaces"
        ))
    } else {
        Ok(text.to_owned())
    }
}

/// A network, without host bits.
pub fn network(text: &str) -> Result<IpNet, Right> {
    let net = cidr(text)?;
    if net.trunc() == net { Ok(net) } else { Err(format!("a network is wanted, such as {}", net.trunc())) }
}

/// An address of a host and its network: `10.32.0.1/12`.
pub fn host_cidr(text: &str) -> Result<IpNet, Right> {
    let net = cidr(text)?;
    let wide = net.prefix_len() < net.max_prefix_len() - 1;
    let broadcast = matches!(net, IpNet::V4(net) if net.broadcast() == net.addr());
    if wide && (net.trunc() == net || broadcast) {
        return Err(format!("the address of a host is wanted, this is the first or last of {}", net.trunc()));
    }
    if net.addr().is_multicast() || net.addr().is_unspecified() || net.addr().is_loopback() {
        return Err("the address of a host is wanted, such as 10.32.0.1/12".into());
    }
    Ok(net)
}

fn cidr(text: &str) -> Result<IpNet, Right> {
    text.parse().map_err(|_| "ADDR/LENGTH is wanted, such as 10.32.0.0/12".into())
}

/// The address range, or none.
pub fn range(text: &str) -> Result<Option<IpNet>, Right> {
    if text == "none" {
        return Ok(None);
    }
    let net = network(text).map_err(|right| format!("none, or {right}"))?;
    match net {
        IpNet::V4(net) if net.prefix_len() <= 30 && net.prefix_len() >= 8 => Ok(Some(net.into())),
        _ => Err("none, or an IPv4 network from /8 to /30 is wanted, such as 10.32.0.0/12".into()),
    }
}

/// How the first split of the range is agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpamInit {
    /// Found by itself.
    Auto,
    /// These peers split it.
    Seed(Vec<String>),
    /// So many peers agree.
    Consensus(u16),
    /// Never takes part in the first split.
    Observer,
}

impl fmt::Display for IpamInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpamInit::Auto => f.write_str("auto"),
            IpamInit::Seed(names) => write!(f, "seed={}", names.join(",")),
            IpamInit::Consensus(count) => write!(f, "consensus={count}"),
            IpamInit::Observer => f.write_str("observer"),
        }
    }
}

impl FromStr for IpamInit {
    type Err = Right;
    fn from_str(text: &str) -> Result<IpamInit, Right> {
        let wrong = || String::from("auto, seed=NAME,…, consensus=N or observer is wanted");
        match text.split_once('=') {
            None if text == "auto" => Ok(IpamInit::Auto),
            None if text == "observer" => Ok(IpamInit::Observer),
            Some(("seed", names)) => {
                let names: Vec<String> = names.split(',').map(|text| name(text.trim())).collect::<Result<_, _>>()?;
                if let Some(twice) = duplicate(&names) {
                    return Err(format!("each name once is wanted, '{twice}' stands twice"));
                }
                Ok(IpamInit::Seed(names))
            }
            Some(("consensus", count)) => {
                count.parse().ok().filter(|count| *count > 0).map(IpamInit::Consensus).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

/// `auto` (none) or a number within bounds.
pub fn auto_or<T: FromStr + PartialOrd + fmt::Display + Copy>(
    text: &str,
    least: T,
    most: T,
) -> Result<Option<T>, Right> {
    if text == "auto" {
        return Ok(None);
    }
    number(text, least, most).map(Some).map_err(|right| format!("auto, or {right}"))
}

/// A number within bounds.
pub fn number<T: FromStr + PartialOrd + fmt::Display + Copy>(text: &str, least: T, most: T) -> Result<T, Right> {
    let within = |number: &T| (least..=most).contains(number);
    text.parse().ok().filter(within).ok_or_else(|| format!("a number from {least} to {most} is wanted"))
}

/// One of a few words.
pub fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Right> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("one of {} is wanted", names.join(", "))
    })
}

/// Yes or no, for a switch outside the command line.
pub fn yes(text: &str) -> Result<bool, Right> {
    let words = [("true", true), ("false", false), ("1", true), ("0", false), ("yes", true), ("no", false)];
    word(&text.to_lowercase(), &words).map_err(|_| "true or false is wanted".into())
}

/// The first value that stands twice.
pub fn duplicate<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter().enumerate().find(|(at, value)| list[..*at].contains(value)).map(|(_, value)| value)
}

/// The port of the mesh when none is said.
pub const PORT: u16 = 6783;
/// `IFNAMSIZ` without the closing zero.
const INTERFACE_MAX_BYTES: usize = 15;
