//! The settings of `meshd`: flags, then environment, then a TOML file, then defaults; checked as a whole before anything starts.
//!
//! ```text
//! flags ──┐
//! MESHD_… ┼─► texts, each with its origin ─► types ─► Settings
//! file ───┘   (the first that says it wins)
//! ```
//! What is wrong becomes one line that names flag, variable or line of the file, the value, and what would be right.
//! Deliberately lacks: reading the secret, opening the state directory, changes while running.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use ipnet::{IpNet, Ipv4Net};
use meshnet_proto::limits;
use meshnet_proto::wire::fast::SUBNETS_MAX;

use crate::ctl::usage;
use crate::kube::credentials::{Endpoint, SERVICE_ACCOUNT};
pub use crate::telemetry::Format as LogFormat;

pub mod flag;
pub mod value;

#[cfg(test)]
mod tests;

use flag::{FLAGS, Flag};
pub use value::{HostPort, IpamInit};

/// All that `meshd` was told, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What people call this peer.
    pub name: String,
    /// Of the cluster.
    pub cluster: String,
    /// To connect to first.
    pub peers: Vec<HostPort>,
    /// The port for everything between peers.
    pub listen: SocketAddr,
    /// Told to other peers; empty: found by itself.
    pub advertise: Vec<SocketAddr>,
    /// Where the cluster secret is; none only by `--no-secret`.
    pub secret_file: Option<PathBuf>,
    /// There is none of these: the Secret of the cluster's API is used.
    pub secret_from_api: bool,
    /// What the API of Kubernetes decides; none: it is not asked.
    pub kubernetes: Option<Kubernetes>,
    /// The bridge.
    pub bridge: String,
    /// Split among the peers; none: switched off.
    pub ipam_range: Option<IpNet>,
    /// Default subnet of an allocation; none: the range.
    pub ipam_subnet: Option<IpNet>,
    /// How the first split is agreed.
    pub ipam_init: IpamInit,
    /// Address of the host on the bridge.
    pub expose: Option<Expose>,
    /// Containers leave the overlay in the host's name.
    pub masquerade: bool,
    /// But not to these.
    pub no_masquerade: Vec<Ipv4Net>,
    /// How frames travel.
    pub transport: Transport,
    /// False: as on a kernel that moves one frame or datagram a call.
    pub offload: bool,
    /// Underlay subnets in which frames may travel in the clear.
    pub trusted_subnets: Vec<IpNet>,
    /// False: connect only to [`Settings::peers`].
    pub discovery: bool,
    /// Control links that this peer keeps.
    pub max_links: usize,
    /// MTU of the overlay; none: from the underlay.
    pub mtu: Option<u16>,
    /// How soon silence counts.
    pub profile: Profile,
    /// Threads for frames.
    pub workers: usize,
    /// Identity, known peers.
    pub state_dir: PathBuf,
    /// What is there is an old copy: become a new peer.
    pub restored: bool,
    /// The control socket.
    pub socket: PathBuf,
    /// Health, metrics, status; none: off.
    pub http: Option<SocketAddr>,
    /// Lines below this are not written.
    pub log_level: tracing::Level,
    /// Their form.
    pub log_format: LogFormat,
    /// What to log at the start: settings that have no effect, variables that look mistyped.
    pub warnings: Vec<String>,
}

impl Settings {
    /// As they took effect, for `meshctl report`. The secret is not among them, only where it is.
    pub fn shown(&self) -> BTreeMap<String, String> {
        let list = |values: Vec<String>| if values.is_empty() { "none".into() } else { values.join(", ") };
        let or = |value: Option<String>, otherwise: &str| value.unwrap_or_else(|| otherwise.to_owned());
        [
            ("name", self.name.clone()),
            ("cluster", self.cluster.clone()),
            ("peer", list(self.peers.iter().map(ToString::to_string).collect())),
            ("listen", self.listen.to_string()),
            ("advertise", list(self.advertise.iter().map(ToString::to_string).collect())),
            ("secret-file", or(self.secret_file.as_ref().map(|path| path.display().to_string()), "none")),
            ("kubernetes", or(self.kubernetes.as_ref().map(Kubernetes::to_string), "no")),
            ("bridge", self.bridge.clone()),
            ("ipam-range", or(self.ipam_range.map(|range| range.to_string()), "none")),
            ("ipam-subnet", or(self.ipam_subnet.map(|subnet| subnet.to_string()), "the range")),
            ("ipam-init", self.ipam_init.to_string()),
            ("expose", or(self.expose.map(|expose| expose.to_string()), "none")),
            ("masquerade", self.masquerade.to_string()),
            ("no-masquerade", list(self.no_masquerade.iter().map(ToString::to_string).collect())),
            ("transport", format!("{:?}", self.transport).to_lowercase()),
            ("offload", if self.offload { "auto" } else { "off" }.to_owned()),
            ("trusted-subnet", list(self.trusted_subnets.iter().map(ToString::to_string).collect())),
            ("no-discovery", (!self.discovery).to_string()),
            ("max-links", self.max_links.to_string()),
            ("mtu", or(self.mtu.map(|mtu| mtu.to_string()), "auto")),
            ("profile", format!("{:?}", self.profile).to_lowercase()),
            ("workers", self.workers.to_string()),
            ("state-dir", self.state_dir.display().to_string()),
            ("socket", self.socket.display().to_string()),
            ("http", or(self.http.map(|address| address.to_string()), "none")),
            ("log-level", self.log_level.to_string().to_lowercase()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

/// How the API of Kubernetes is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// Where it is; none: as the environment of a pod says.
    pub api: Option<Endpoint>,
    /// Folder of the service account.
    pub credentials: PathBuf,
    /// A Node that is deleted counts as gone after so long.
    pub node_gone: Duration,
}

/// The host's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expose {
    /// One of the range.
    Auto,
    /// This one.
    At(IpNet),
}

impl fmt::Display for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let api = self.api.as_ref().map_or_else(|| "of this pod".into(), Endpoint::url);
        write!(f, "API {api}, {}, nodes gone after {} s", self.credentials.display(), self.node_gone.as_secs())
    }
}

impl Expose {
    /// The address, when nobody has to be asked for it: it is not of the range.
    pub fn by_hand(&self, range: Option<IpNet>) -> Option<IpNet> {
        match self {
            Expose::At(address) if !range.is_some_and(|range| range.contains(&address.addr())) => Some(*address),
            _ => None,
        }
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expose::Auto => f.write_str("auto"),
            Expose::At(address) => address.fmt(f),
        }
    }
}

/// How frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The best that passes.
    Auto,
    /// Sealed UDP datagrams.
    Udp,
    /// QUIC datagrams.
    Quic,
}

/// How soon a silent neighbour counts as gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Four seconds.
    Default,
    /// One second.
    Fast,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// Run with these.
    Run(Box<Settings>),
    /// Print this on standard output and exit 0: help or version.
    Print(String),
}

/// Why `meshd` does not start: one line, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct ConfigError {
    /// For standard error, program's name first.
    pub line: String,
    /// 2: a wrong flag or value; 1: it cannot start like this.
    pub exit: u8,
}

/// Reads all settings: `arguments` with the program's name first, `environment` as pairs.
pub fn load(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Request, ConfigError> {
    let mut command = flag::command(crate::telemetry::VERSION);
    let matches = match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => matches,
        Err(error) if usage::is_help(&error) => return Ok(Request::Print(error.to_string())),
        Err(error) => return Err(ConfigError { line: usage::one_line(&command, &error), exit: 2 }),
    };
    let mut texts = Texts::default();
    for flag in &FLAGS {
        if matches.value_source(flag.name) == Some(ValueSource::CommandLine) {
            let values = if flag.is_switch() {
                vec!["true".to_owned()]
            } else {
                matches.get_many::<String>(flag.name).into_iter().flatten().cloned().collect()
            };
            texts.add(flag, Origin::Flag, values);
        }
    }
    texts.add_environment(environment)?;
    if let Some(path) = texts.one("config", |text| Ok(PathBuf::from(text)))? {
        texts.add_file(&path)?;
    }
    settings(texts).map(|settings| Request::Run(Box::new(settings)))
}

/// Where a text stood.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Flag,
    Environment,
    File { path: PathBuf, line: usize },
}

/// Texts of one setting.
#[derive(Debug)]
struct Given {
    flag: &'static Flag,
    origin: Origin,
    values: Vec<String>,
}

impl Given {
    fn wrong(&self, value: &str, right: &str) -> ConfigError {
        fail(2, format_args!("'{value}' is wrong for {}: {right}", self.place()))
    }

    fn place(&self) -> String {
        match &self.origin {
            Origin::Flag => format!("--{}", self.flag.name),
            Origin::Environment => self.flag.variable(),
            Origin::File { path, line } => format!("{} in {} line {line}", self.flag.name, path.display()),
        }
    }
}

/// What was said, by the name of the setting.
#[derive(Debug, Default)]
struct Texts {
    given: BTreeMap<&'static str, Given>,
    warnings: Vec<String>,
}

impl Texts {
    /// The first that says a setting wins.
    fn add(&mut self, flag: &'static Flag, origin: Origin, values: Vec<String>) {
        self.given.entry(flag.name).or_insert(Given { flag, origin, values });
    }

    fn add_environment(&mut self, pairs: impl IntoIterator<Item = (OsString, OsString)>) -> Result<(), ConfigError> {
        for (variable, value) in pairs {
            let Some(variable) = variable.to_str().filter(|variable| variable.starts_with(flag::PREFIX)) else {
                continue;
            };
            let Some(flag) = FLAGS.iter().find(|flag| flag.variable() == variable) else {
                // Not refused: Kubernetes sets MESHD_SERVICE_HOST and the like when a service is called so.
                if let Some(near) = flag::nearest(&variable[flag::PREFIX.len()..]).and_then(flag::find) {
                    self.warnings.push(format!("{variable} is not a setting: did you mean {}?", near.variable()));
                }
                continue;
            };
            let Some(value) = value.to_str() else {
                return Err(fail(2, format_args!("the value of {variable} is not text: UTF-8 is wanted")));
            };
            // Empty means unset, as manifests write it.
            if !value.is_empty() {
                let values = if flag.repeats { split(value) } else { vec![value.to_owned()] };
                self.add(flag, Origin::Environment, values);
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &std::path::Path) -> Result<(), ConfigError> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| fail(2, format_args!("cannot read --config {shown}: {error}: a TOML file is wanted")))?;
        let table = toml::de::DeTable::parse(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(&text, span.start));
            let words = error.message().lines().next().unwrap_or_default();
            fail(2, format_args!("{shown} line {line} is not TOML: {words}: KEY = VALUE is wanted"))
        })?;
        for (key, value) in table.get_ref() {
            let (key, line) = (key.get_ref().as_ref(), line_of(&text, key.span().start));
            let Some(flag) = flag::find(key).filter(|flag| flag.name != "config") else {
                let right = flag::nearest(key)
                    .map_or_else(|| "see meshd --help".into(), |near| format!("did you mean '{near}'?"));
                return Err(fail(2, format_args!("there is no setting '{key}' ({shown} line {line}): {right}")));
            };
            let origin = Origin::File { path: path.to_owned(), line };
            match texts_of(value.get_ref(), flag.repeats) {
                Some(values) => self.add(flag, origin, values),
                None => {
                    let right = if flag.repeats { "a list of texts" } else { "one text, number or boolean" };
                    let given = Given { flag, origin, values: Vec::new() };
                    return Err(fail(
                        2,
                        format_args!("the value of {} is of the wrong kind: {right} is wanted", given.place()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The value of a setting that is given once.
    fn one<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, ConfigError> {
        let Some(given) = self.given.get(name) else { return Ok(None) };
        let text = given.values.last().map_or("", String::as_str);
        if text.is_empty() {
            return Err(fail(2, format_args!("{} is empty: {} is wanted", given.place(), given.flag.value)));
        }
        parse(text).map(Some).map_err(|right| given.wrong(text, &right))
    }

    /// The values of one that repeats, each once.
    fn many<T: PartialEq>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, ConfigError> {
        let Some(given) = self.given.get(name) else { return Ok(Vec::new()) };
        let mut list = Vec::with_capacity(given.values.len());
        for text in &given.values {
            let value = parse(text).map_err(|right| given.wrong(text, &right))?;
            if list.contains(&value) {
                return Err(fail(2, format_args!("'{text}' stands twice in {}: once is enough", given.place())));
            }
            list.push(value);
        }
        Ok(list)
    }

    fn switch(&self, name: &str) -> Result<bool, ConfigError> {
        Ok(self.one(name, value::yes)?.unwrap_or(false))
    }
}

fn settings(texts: Texts) -> Result<Settings, ConfigError> {
    let path = |text: &str| Ok(PathBuf::from(text));
    let listen = texts.one("listen", value::address_and_port)?.unwrap_or(LISTEN);
    let ipam_range = texts.one("ipam-range", value::range)?;
    let transport = texts.one("transport", |text| value::word(text, &TRANSPORTS))?.unwrap_or(Transport::Auto);
    let mut settings = Settings {
        name: match texts.one("name", value::name)? {
            Some(name) => name,
            None => host_name()?,
        },
        cluster: texts.one("cluster", value::name)?.unwrap_or_else(|| "meshnet".into()),
        peers: texts.many("peer", str::parse)?,
        listen,
        advertise: texts.many("advertise", |text| value::advertised(text, listen.port()))?,
        secret_file: None,
        secret_from_api: false,
        kubernetes: kubernetes(&texts)?,
        bridge: texts.one("bridge", value::interface)?.unwrap_or_else(|| "mesh0".into()),
        ipam_range: ipam_range.unwrap_or_else(|| IpNet::new(RANGE.0, RANGE.1).ok()),
        ipam_subnet: texts.one("ipam-subnet", value::network)?,
        ipam_init: texts.one("ipam-init", str::parse)?.unwrap_or(IpamInit::Auto),
        expose: texts.one("expose", expose)?.flatten(),
        masquerade: texts.switch("masquerade")?,
        no_masquerade: no_masquerade(&texts)?,
        transport,
        offload: texts.one("offload", |text| value::word(text, &OFFLOAD))?.unwrap_or(true),
        trusted_subnets: trusted_subnets(&texts)?,
        discovery: !texts.switch("no-discovery")?,
        max_links: texts.one("max-links", |text| value::number(text, 1, limits::RECORD_LINKS_MAX))?.unwrap_or(128),
        mtu: texts.one("mtu", |text| value::auto_or(text, MTU_MIN, MTU_MAX))?.flatten(),
        profile: texts.one("profile", |text| value::word(text, &PROFILES))?.unwrap_or(Profile::Default),
        workers: texts.one("workers", |text| value::auto_or(text, 1, WORKERS_MAX))?.flatten().unwrap_or_else(workers),
        state_dir: texts.one("state-dir", path)?.unwrap_or_else(|| "/var/lib/meshnet".into()),
        restored: texts.switch("restored")?,
        socket: texts.one("socket", socket)?.unwrap_or_else(|| "/run/meshnet/meshd.sock".into()),
        http: texts.one("http", value::http)?.unwrap_or(Some(HTTP)),
        log_level: texts.one("log-level", |text| value::word(text, &LEVELS))?.unwrap_or(tracing::Level::INFO),
        log_format: texts.one("log-format", |text| value::word(text, &FORMATS))?.unwrap_or(LogFormat::Text),
        warnings: Vec::new(),
    };
    check_together(&texts, &settings)?;
    // Last: a mistake in a value is told before what is missing.
    (settings.secret_file, settings.secret_from_api) = secret(&texts, settings.kubernetes.is_some())?;
    settings.warnings = texts.warnings;
    if settings.kubernetes.is_none() {
        let given = |name: &&str| texts.given.contains_key(*name);
        let idle = ["kubernetes-api", "kubernetes-credentials", "kubernetes-node-gone"].into_iter().filter(given);
        settings.warnings.extend(idle.map(|name| format!("--{name} has no effect without --kubernetes")));
    }
    Ok(settings)
}

/// What is right alone and wrong together.
fn check_together(texts: &Texts, settings: &Settings) -> Result<(), ConfigError> {
    if let (Some(Expose::Auto), None, Some(given)) = (settings.expose, settings.ipam_range, texts.given.get("expose")) {
        return Err(given.wrong("auto", "it needs an --ipam-range; or give an address such as 10.32.0.1/12"));
    }
    if let (true, None, Some(given)) = (settings.masquerade, settings.ipam_range, texts.given.get("masquerade")) {
        return Err(given.wrong("true", "it needs an --ipam-range: those are the addresses that it is for"));
    }
    if let (None, Some(given)) = (texts.given.get("masquerade"), texts.given.get("no-masquerade")) {
        return Err(given.wrong(&given.values.concat(), "it needs --masquerade"));
    }
    let Some(given) = texts.given.get("ipam-subnet") else { return Ok(()) };
    let (Some(subnet), text) = (settings.ipam_subnet, given.values.concat()) else { return Ok(()) };
    match settings.ipam_range {
        None => Err(given.wrong(&text, "it needs an --ipam-range")),
        Some(range) if range.contains(&subnet) => Ok(()),
        Some(range) => Err(given.wrong(&text, &format!("a network within the range {range} is wanted"))),
    }
}

/// The API of Kubernetes, if it is to be asked.
fn kubernetes(texts: &Texts) -> Result<Option<Kubernetes>, ConfigError> {
    let asked = Kubernetes {
        api: texts.one("kubernetes-api", Endpoint::parse)?,
        credentials: texts
            .one("kubernetes-credentials", |text| Ok(PathBuf::from(text)))?
            .unwrap_or_else(|| SERVICE_ACCOUNT.into()),
        node_gone: texts
            .one("kubernetes-node-gone", |text| value::number(text, 1, NODE_GONE_MAX_S))?
            .map_or(NODE_GONE, Duration::from_secs),
    };
    Ok(texts.switch("kubernetes")?.then_some(asked))
}

/// A secret, or plainly none; and whether it is to come from the API.
fn secret(texts: &Texts, api: bool) -> Result<(Option<PathBuf>, bool), ConfigError> {
    let file = texts.one("secret-file", |text| Ok(PathBuf::from(text)))?;
    match (file, texts.switch("no-secret")?) {
        (Some(file), false) => Ok((Some(file), false)),
        (None, true) => Ok((None, false)),
        (None, false) if api => Ok((None, true)),
        (Some(_), true) => {
            let place = |name| texts.given.get(name).map(Given::place).unwrap_or_default();
            let (file, none) = (place("secret-file"), place("no-secret"));
            Err(fail(2, format_args!("{none} does not go together with {file}: choose one")))
        }
        (None, false) => Err(fail(
            1,
            format_args!(
                "there is no secret: make one for all peers by 'meshctl secret > FILE' and start with --secret-file FILE \
                 (or, for anyone to join, --no-secret)"
            ),
        )),
    }
}

/// A hello tells as many.
fn trusted_subnets(texts: &Texts) -> Result<Vec<IpNet>, ConfigError> {
    let subnets = texts.many("trusted-subnet", value::network)?;
    if subnets.len() > SUBNETS_MAX {
        return Err(fail(2, format_args!("--trusted-subnet: {} are too many: at most {SUBNETS_MAX}", subnets.len())));
    }
    Ok(subnets)
}

/// Each is a rule that every packet on its way out is compared with.
fn no_masquerade(texts: &Texts) -> Result<Vec<Ipv4Net>, ConfigError> {
    let network = |text: &str| match value::network(text)? {
        IpNet::V4(net) => Ok(net),
        IpNet::V6(_) => Err("an IPv4 network is wanted, such as 192.0.2.0/24".into()),
    };
    let networks = texts.many("no-masquerade", network)?;
    if networks.len() > NO_MASQUERADE_MAX {
        let count = networks.len();
        return Err(fail(2, format_args!("--no-masquerade: {count} are too many: at most {NO_MASQUERADE_MAX}")));
    }
    Ok(networks)
}

fn expose(text: &str) -> Result<Option<Expose>, String> {
    match text {
        "none" => Ok(None),
        "auto" => Ok(Some(Expose::Auto)),
        _ => value::host_cidr(text).map(|address| Some(Expose::At(address))),
    }
}

/// `sun_path` holds 108 bytes with the closing zero.
fn socket(text: &str) -> Result<PathBuf, String> {
    if text.len() > 107 { Err("a path of at most 107 bytes is wanted".into()) } else { Ok(PathBuf::from(text)) }
}

fn host_name() -> Result<String, ConfigError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    value::name(text.trim())
        .map_err(|_| fail(1, format_args!("this machine's host name cannot be used: give --name NAME")))
}

/// One queue for each two cores: the other half is for those who make the frames.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, WORKERS_AUTO_MAX))
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn texts_of(value: &toml::de::DeValue<'_>, repeats: bool) -> Option<Vec<String>> {
    use toml::de::DeValue;
    match value {
        DeValue::String(text) => Some(vec![text.to_string()]),
        DeValue::Integer(number) => {
            let text = number.as_str().replace('_', "");
            i64::from_str_radix(&text, number.radix()).ok().map(|number| vec![number.to_string()])
        }
        DeValue::Boolean(yes) => Some(vec![yes.to_string()]),
        DeValue::Array(list) if repeats => {
            let texts = list.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                _ => None,
            });
            texts.collect()
        }
        _ => None,
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// Values are whatever was typed or stood in a file: one line it stays.
fn fail(exit: u8, words: fmt::Arguments<'_>) -> ConfigError {
    let line = format!("meshd: {words}").chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    ConfigError { line, exit }
}

/// Longer than a machine takes to boot, shorter than its addresses are missed.
const NODE_GONE: Duration = Duration::from_secs(300);
/// A week.
const NODE_GONE_MAX_S: u64 = 7 * 24 * 3600;
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), value::PORT);
const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6784);
const RANGE: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(10, 32, 0, 0)), 12);
/// What every IPv4 host must take (RFC 791).
const MTU_MIN: u16 = 576;
/// The longest UDP payload less what sealing adds (190 bytes at most).
const MTU_MAX: u16 = u16::MAX - 190;
/// Two lanes for each worker and one for the node fit a session.
const WORKERS_MAX: usize = (limits::LANES_MAX - 1) / 2;
/// Beyond four queues the gain in the measurements was gone.
const WORKERS_AUTO_MAX: usize = 4;
/// A cluster has a handful of networks that know its containers.
const NO_MASQUERADE_MAX: usize = 64;
const OFFLOAD: [(&str, bool); 2] = [("auto", true), ("off", false)];
const TRANSPORTS: [(&str, Transport); 3] =
    [("auto", Transport::Auto), ("udp", Transport::Udp), ("quic", Transport::Quic)];
const PROFILES: [(&str, Profile); 2] = [("default", Profile::Default), ("fast", Profile::Fast)];
const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const LEVELS: [(&str, tracing::Level); 5] = [
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];
