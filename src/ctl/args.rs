//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::telemetry::VERSION;

/// Asks and commands the local meshnet peer.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version = VERSION, max_term_width = 100)]
pub struct Cli {
    /// Control socket of meshd
    #[arg(long, global = true, value_name = "PATH", env = "MESHCTL_SOCKET", default_value = SOCKET)]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// One screen: what is wrong and what to do, this peer, its links, the topology, addresses, data
    Status(Status),
    /// The whole cluster as this peer sees it
    Topology(Topology),
    /// The status screen, live; q ends it
    Watch(Watch),
    /// Everything, as JSON, for a bug report (no secrets in it)
    Report(Json),
    /// Connect to these peers, now and after restarts
    Connect {
        /// Where they are
        #[arg(required = true, value_name = "HOST[:PORT]", value_parser = endpoint)]
        addresses: Vec<String>,
    },
    /// Connect to these no longer, and not after restarts either
    Forget {
        /// As given to connect or --peer
        #[arg(required = true, value_name = "HOST[:PORT]", value_parser = endpoint)]
        addresses: Vec<String>,
    },
    /// Give a network namespace an interface on the bridge, and addresses
    Attach {
        /// Name, path or pid
        #[arg(value_name = "NETNS", value_parser = word)]
        namespace: String,
        /// Addresses with prefix length, or auto: one from the address space (the default)
        #[arg(value_name = "CIDR|auto", value_parser = cidr_or_auto)]
        addresses: Vec<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Take addresses from a network namespace; all: the interface too
    Detach {
        /// Name, path or pid
        #[arg(value_name = "NETNS", value_parser = word)]
        namespace: String,
        /// Addresses with prefix length; none means all
        #[arg(value_name = "CIDR", value_parser = cidr)]
        addresses: Vec<String>,
    },
    /// Give this host an address on the bridge
    Expose {
        /// Address with prefix length, or auto: one from the address space
        #[arg(value_name = "CIDR|auto", value_parser = cidr_or_auto, default_value = "auto")]
        address: String,
    },
    /// Take addresses from this host that expose gave it
    Hide {
        /// Address with prefix length; absent: all
        #[arg(value_name = "CIDR", value_parser = cidr)]
        address: Option<String>,
    },
    /// Addresses by hand, each for an owner: any text that tells owners apart
    Ip {
        #[command(subcommand)]
        command: Ip,
    },
    /// These peers are gone for good: take back the addresses that they own
    Rmpeer {
        /// Names, name~1a2b, ids, or at least 4 digits of an id
        #[arg(required = true, value_name = "NAME|ID", value_parser = word)]
        peers: Vec<String>,
        /// Even if heard a moment ago, and without the word of members that cannot be reached: one that still runs behind a cut may
        /// give out the same addresses again
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Give back all addresses that this peer owns, before it is taken away for good
    Leave,
    /// Probe a peer through the overlay's own path
    Ping(Ping),
    /// The path of a frame to an IP address, a MAC address or a peer
    Trace {
        /// Where to
        #[arg(value_name = "ADDR|MAC|NAME", value_parser = word)]
        to: String,
        #[command(flatten)]
        json: Json,
    },
    /// Make a cluster secret, for meshd --secret-file
    Secret,
    /// Completions for a shell, to be sourced by it
    Completions {
        /// Which
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum Ip {
    /// An address for an owner; the same one when it has one already
    Alloc {
        /// The owner
        #[arg(value_parser = owner)]
        id: String,
        /// Out of this network instead of the default one (meshd --ipam-subnet)
        #[arg(value_name = "CIDR", value_parser = network)]
        subnet: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// This very address for an owner
    Claim {
        /// The owner
        #[arg(value_parser = owner)]
        id: String,
        /// The address; a prefix length behind it is not looked at
        #[arg(value_name = "ADDR", value_parser = address)]
        address: String,
        #[command(flatten)]
        json: Json,
    },
    /// The addresses of an owner, one a line
    Lookup {
        /// The owner
        #[arg(value_parser = owner)]
        id: String,
        #[command(flatten)]
        json: Json,
    },
    /// Take addresses back from an owner
    Free {
        /// The owner
        #[arg(value_parser = owner)]
        id: String,
        /// Only this one; a prefix length behind it is not looked at
        #[arg(value_name = "ADDR", value_parser = address)]
        address: Option<String>,
    },
    /// All addresses given out by this peer
    List {
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Debug, Args)]
pub struct Json {
    /// Print JSON with stable keys
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON with stable keys
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub table: Option<Table>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Table {
    /// Every peer that is known
    Peers,
    /// Links and attempts at links
    Links,
    /// The address space and who owns what
    Ipam,
    /// How frames travel to each peer
    Routes,
    /// Learned MAC addresses
    Macs,
    /// Addresses to connect to
    Targets,
}

#[derive(Debug, Args)]
pub struct Topology {
    /// How to print it
    #[arg(long, value_enum, default_value = "tree")]
    pub format: Format,
    /// Same as --format json
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text, this peer at the root
    Tree,
    /// For graphviz
    Dot,
    /// For programs
    Json,
    /// A picture
    Svg,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// End after this many screens
    #[arg(long, short = 'n', value_name = "N", value_parser = times)]
    pub count: Option<u64>,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct Ping {
    /// Name, name~1a2b, id, or at least 4 digits of an id
    #[arg(value_name = "NAME", value_parser = word)]
    pub peer: String,
    /// How many probes
    #[arg(long, short = 'c', value_name = "N", default_value_t = 4, value_parser = times)]
    pub count: u64,
    /// Seconds between probes
    #[arg(long, short = 'i', value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
    #[command(flatten)]
    pub json: Json,
}

fn word(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("it must not be empty".into()) } else { Ok(text.into()) }
}

fn owner(text: &str) -> Result<String, String> {
    if text.len() > OWNER_MAX_BYTES {
        return Err(format!("at most {OWNER_MAX_BYTES} bytes are wanted, this is {}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("a text without control characters is wanted".into());
    }
    word(text)
}

fn network(text: &str) -> Result<String, String> {
    let wrong = || "wanted: a network, such as 10.32.0.0/16".to_owned();
    let net: ipnet::Ipv4Net = text.parse().map_err(|_| wrong())?;
    if net.trunc() == net { Ok(text.into()) } else { Err(format!("wanted: a network, such as {}", net.trunc())) }
}

fn address(text: &str) -> Result<String, String> {
    let plain = text.parse::<std::net::Ipv4Addr>().is_ok() || text.parse::<ipnet::Ipv4Net>().is_ok();
    if plain { Ok(text.into()) } else { Err("wanted: an IPv4 address, such as 10.32.0.5".into()) }
}

/// Only what can be told here at once; meshd looks at the rest.
fn endpoint(text: &str) -> Result<String, String> {
    let text = word(text)?;
    if text.contains([' ', '/', ',']) {
        return Err("wanted: HOST or HOST:PORT, several of them separated by spaces".into());
    }
    if let Some((_, port)) = text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']')) {
        let good = port.parse::<u16>().is_ok_and(|port| port > 0);
        return if good { Ok(text) } else { Err("the port must be a number from 1 to 65535".into()) };
    }
    Ok(text)
}

fn cidr(text: &str) -> Result<String, String> {
    let wrong = || "wanted: an address with prefix length, such as 10.32.0.1/12".to_owned();
    if text.contains('/') {
        text.parse::<ipnet::IpNet>().map(|_| text.into()).map_err(|_| wrong())
    } else {
        Err(wrong())
    }
}

fn cidr_or_auto(text: &str) -> Result<String, String> {
    if text == "auto" { Ok(text.into()) } else { cidr(text).map_err(|wrong| format!("{wrong}, or auto")) }
}

fn times(text: &str) -> Result<u64, String> {
    let times = text.parse().ok().filter(|times| (1..=1_000_000).contains(times));
    times.ok_or_else(|| "wanted: a number from 1 to 1000000".into())
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "wanted: seconds, from 0.01 to 3600".into())
}

/// As meshd has it.
const OWNER_MAX_BYTES: usize = 256;
const SOCKET: &str = "/run/meshnet/meshd.sock";
