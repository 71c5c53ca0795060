//! `mesh-cni`: the CNI plugin. A runtime runs it for each verb, with environment variables and a configuration on standard input.
//!
//! ```text
//! runtime ─▶ call, config ─▶ verb ─┬─ meshd (control socket): addresses, MTU, the host's address
//!                                  ├─ netlink: veth pair, bridge port, addresses, routes         no program is run but other plugins
//!                                  ├─ delegate: host-local or any other IPAM plugin
//!                                  └─ spool: turns; addresses to be freed once meshd is back
//!                           result, error ─▶ standard output
//! ```
//! Follows the specification of CNI 1.1.0 (and 0.3.0 to 1.0.0). Every verb may be repeated, interrupted at any point, and run beside itself; DEL needs neither
//! namespace nor meshd. [`install`] puts the plugin and its configuration on a machine, [`loopback`] is that reference plugin for machines that lack it.
//!
//! May use: netlink, sys, ctl (the client), proto, telemetry (version). Lacks on purpose: any state beyond the spool (owners are named in meshd's leases and
//! in the ports' aliases), a port for hostPort (`portmap` does that), limits of bandwidth (`bandwidth` does that).

mod add;
mod call;
mod check;
mod config;
mod delegate;
mod error;
pub mod install;
mod loopback;
mod meshd;
mod result;
mod spool;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use meshnet_proto::api::Network;
use serde_json::{Value, json};

use call::{Call, Verb, owners_of};
use config::{Conf, Ipam, VERSIONS, Version};
use error::{CniError, INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, IO, LIMITED, NOT_DECODED, UNAVAILABLE};
use meshd::Meshd;
use spool::Spool;

use crate::ctl::Failure;
use crate::netlink::Netlink;
use crate::netlink::plug::port_name;

pub use config::SOCKET;

/// Runs a verb: of this plugin, or of the reference plugin `loopback`.
pub fn main(as_loopback: bool) -> ExitCode {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(INPUT_MAX_BYTES).read_to_end(&mut text);
    let answer = match read {
        Ok(_) => answer(&text, as_loopback, |key| std::env::var(key).ok()),
        Err(error) => Err(CniError::new(IO, format!("the configuration cannot be read from standard input: {error}"))),
    };
    match answer {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", error.json(&asked_version(&text)));
            ExitCode::FAILURE
        }
    }
}

/// What goes to standard output; null: nothing.
fn answer(text: &[u8], as_loopback: bool, get: impl Fn(&str) -> Option<String>) -> Result<Value, CniError> {
    let call = Call::read(get)?;
    if call.verb == Verb::Version {
        return version(text);
    }
    let conf = Conf::parse(text)?;
    let (since, verb) = match call.verb {
        Verb::Check => (Version::V0_4, "CHECK"),
        Verb::Gc => (Version::V1_1, "GC"),
        Verb::Status => (Version::V1_1, "STATUS"),
        _ => (Version::V0_4, ""),
    };
    if !verb.is_empty() && conf.version < since {
        let msg = format!(
            "cniVersion {} does not allow {verb}: {} is the first that does",
            conf.version.text(),
            since.text()
        );
        return Err(CniError::new(INCOMPATIBLE_VERSION, msg));
    }
    if as_loopback {
        return loopback::answer(&call, &conf);
    }
    let owner = call.owner(&conf.name);
    if owner.len() > OWNER_MAX_BYTES {
        let msg = format!(
            "name, container and interface are too long together: '{owner}' has more than {OWNER_MAX_BYTES} bytes"
        );
        return Err(CniError::new(INVALID_ENVIRONMENT, msg));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CniError::new(IO, format!("the async runtime: {error}")))?;
    let value = runtime.block_on(run(&call, &conf));
    // Whatever still waits for nobody does not hold the runtime of containers up.
    runtime.shutdown_background();
    value
}

async fn run(call: &Call, conf: &Conf) -> Result<Value, CniError> {
    match call.verb {
        Verb::Add => add::add(call, conf).await,
        Verb::Del => del(call, conf).await.map(|()| Value::Null),
        Verb::Check => check::check(call, conf).await.map(|()| Value::Null),
        Verb::Gc => gc(call, conf).await.map(|()| Value::Null),
        Verb::Status => status(call, conf).await.map(|()| Value::Null),
        Verb::Version => Ok(Value::Null),
    }
}

/// VERSION needs no configuration but the version to answer in.
fn version(text: &[u8]) -> Result<Value, CniError> {
    if !text.trim_ascii().is_empty() && serde_json::from_slice::<Value>(text).is_err() {
        return Err(CniError::new(NOT_DECODED, "the configuration is not JSON"));
    }
    Ok(json!({ "cniVersion": asked_version(text), "supportedVersions": VERSIONS }))
}

/// The version in which an error is said: the one asked for when it is a version at all.
fn asked_version(text: &[u8]) -> String {
    let asked = serde_json::from_slice::<Value>(text).ok();
    let asked = asked.as_ref().and_then(|value| value.get("cniVersion")).and_then(Value::as_str);
    asked.filter(|asked| VERSIONS.contains(asked)).unwrap_or(Version::NEWEST.text()).to_owned()
}

/// DEL: interface first, so that its address is given to nobody while it is in use. What is not there is as good as deleted.
async fn del(call: &Call, conf: &Conf) -> Result<(), CniError> {
    let owner = call.owner(&conf.name);
    let spool = Spool::new(&conf.data_dir);
    let _turn = spool.turn(&owner)?;
    let removed = remove_port(&owner).await;
    let delegated = match &conf.ipam {
        Ipam::Plugin(name) => delegate::run(name, "DEL", call, &conf.raw, conf.version).map(drop),
        Ipam::Own { .. } => Ok(()),
    };
    // All is tried, whatever fails.
    removed?;
    free(&spool, &Meshd::new(&conf.socket), &owner).await?;
    delegated
}

async fn remove_port(owner: &str) -> Result<(), CniError> {
    Ok(Netlink::open()?.unplug(&port_name(owner), owner).await.map(drop)?)
}

/// Frees what the owner has, or notes that it is to be freed.
async fn free(spool: &Spool, meshd: &Meshd, owner: &str) -> Result<(), CniError> {
    if let Err(failure) = meshd.free(owner).await {
        eprintln!("mesh-cni: the address of {owner} is freed as soon as meshd can: {failure}");
        return spool.defer(owner, &meshd.socket);
    }
    spool.cancel(owner)?;
    deliver(spool, meshd, PENDING_AT_ONCE).await;
    Ok(())
}

/// Frees what earlier calls could not.
async fn deliver(spool: &Spool, meshd: &Meshd, most: usize) {
    for owner in spool.pending(&meshd.socket, most) {
        // Whoever has the turn adds it again, or deletes it.
        let Some(_turn) = spool.try_turn(&owner) else { continue };
        if !spool.waits(&owner) {
            continue;
        }
        if meshd.free(&owner).await.is_err() {
            return;
        }
        let _ = spool.cancel(&owner);
    }
}

/// GC: ports and addresses of this network whose containers the runtime does not know.
async fn gc(call: &Call, conf: &Conf) -> Result<(), CniError> {
    let Some(valid) = &conf.valid else {
        return Err(CniError::config("cni.dev/valid-attachments is missing: without it everything would be removed"));
    };
    let prefix = owners_of(&conf.name);
    let meshd = Meshd::new(&conf.socket);
    let spool = Spool::new(&conf.data_dir);
    let netlink = Netlink::open()?;
    let ports = netlink.plugged(&prefix).await?.into_iter().map(|(_, owner)| owner);
    let leases = meshd.leases().await;
    let waiting = spool.pending(&meshd.socket, usize::MAX);
    let leased = leases.iter().flatten().map(|lease| lease.id.clone());
    let all: BTreeSet<String> = ports.chain(leased).chain(waiting).filter(|owner| owner.starts_with(&prefix)).collect();
    let keep: BTreeSet<String> =
        valid.iter().map(|(container, interface)| format!("{prefix}{container}:{interface}")).collect();
    let mut failed = None;
    for owner in all.difference(&keep) {
        let _turn = spool.turn(owner)?;
        if let Err(error) = netlink.unplug(&port_name(owner), owner).await {
            failed.get_or_insert(CniError::from(error));
        }
        if let Err(error) = free(&spool, &meshd, owner).await {
            failed.get_or_insert(error);
        }
    }
    deliver(&spool, &meshd, usize::MAX).await;
    if let Ipam::Plugin(name) = &conf.ipam {
        match delegate::run(name, "GC", call, &conf.raw, conf.version) {
            Err(error) if !delegate::is_too_old(&error) => drop(failed.get_or_insert(error)),
            _ => {}
        }
    }
    leases?;
    failed.map_or(Ok(()), Err)
}

/// STATUS: whether ADD would work. A restart of meshd is waited for: a node must not be taken for unready by each.
async fn status(call: &Call, conf: &Conf) -> Result<(), CniError> {
    let meshd = Meshd::new(&conf.socket);
    let network = match meshd.network(PATIENCE).await {
        Ok(network) => network,
        Err(Failure::Refused(why)) => return Err(CniError::new(UNAVAILABLE, why)),
        Err(failure) => return Err(CniError::new(LIMITED, CniError::from(failure).msg)),
    };
    must_be_ours(conf, &network).map_err(|error| CniError::new(UNAVAILABLE, error.msg))?;
    if !network.broken.is_empty() {
        return Err(CniError::new(LIMITED, network.broken));
    }
    match &conf.ipam {
        Ipam::Own { .. } if !network.waiting.is_empty() => {
            return Err(CniError::new(UNAVAILABLE, format!("no address can be given out: {}", network.waiting)));
        }
        Ipam::Plugin(name) => match delegate::run(name, "STATUS", call, &conf.raw, conf.version) {
            Err(error) if !delegate::is_too_old(&error) => {
                return Err(CniError::new(UNAVAILABLE, error.msg));
            }
            _ => {}
        },
        Ipam::Own { .. } => {}
    }
    deliver(&Spool::new(&conf.data_dir), &meshd, PENDING_AT_STATUS).await;
    Ok(())
}

/// A configuration that names a bridge means the meshd that has it.
fn must_be_ours(conf: &Conf, network: &Network) -> Result<(), CniError> {
    match &conf.bridge {
        Some(bridge) if *bridge != network.bridge => Err(CniError::config(format!(
            "bridge: meshd at {} has the bridge {}, not {bridge}: correct it, or name the socket of another meshd",
            conf.socket.display(),
            network.bridge
        ))),
        _ => Ok(()),
    }
}

/// A restart of meshd takes about a second; longer than this the runtime is told to try again.
const PATIENCE: Duration = Duration::from_secs(3);
/// Addresses freed late by one ADD or DEL: each takes a few milliseconds.
const PENDING_AT_ONCE: usize = 4;
/// The same by STATUS, which nobody's start waits for.
const PENDING_AT_STATUS: usize = 64;
/// Of network, container and interface: it goes into an alias of 256 bytes and is an id of meshd, which takes 256.
const OWNER_MAX_BYTES: usize = 224;
/// A configuration with the attachments of a whole machine has some hundred kilobytes.
const INPUT_MAX_BYTES: u64 = 16 * 1024 * 1024;
