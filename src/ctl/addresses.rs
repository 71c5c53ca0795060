//! `meshctl ip …` and `rmpeer`: one command each, and its answer as text or JSON.

use meshnet_proto::api::{Command, Lease, Reply};
use serde::Serialize;

use super::args::Ip;
use super::client::{Client, Failure};
use super::render::ipam;
use super::render::text::{clean, counted, number};
use super::run::{emit, json, style};

/// What `ip alloc --json` and `ip claim --json` print.
#[derive(Serialize)]
struct Address {
    address: String,
}

/// What `ip list --json` and `ip lookup --json` print.
#[derive(Serialize)]
struct Leases {
    leases: Vec<Lease>,
}

/// What `rmpeer --json` prints.
#[derive(Serialize)]
struct Removed {
    peers: Vec<String>,
    addresses: u64,
}

/// `ip …`.
pub async fn ip(client: &Client, command: Ip) -> Result<(), Failure> {
    match command {
        Ip::Alloc { id, subnet, json } => address(client, Command::IpAlloc { id, subnet }, json.json).await,
        Ip::Claim { id, address: wanted, json } => {
            address(client, Command::IpClaim { id, address: wanted }, json.json).await
        }
        Ip::Lookup { id, json: as_json } => {
            let leases = leases(client, Command::IpLookup { id }).await?;
            if as_json.json {
                return emit(&json(&Leases { leases })?);
            }
            emit(&leases.iter().map(|lease| ipam::cidr(lease) + "\n").collect::<String>())
        }
        Ip::Free { id, address } => client.command(&Command::IpFree { id, address }).await.map(drop),
        Ip::List { json: as_json } => {
            let leases = leases(client, Command::IpList).await?;
            emit(&if as_json.json { json(&Leases { leases })? } else { ipam::leases(style(), &leases) })
        }
    }
}

/// The address alone on its line: for scripts.
async fn address(client: &Client, command: Command, as_json: bool) -> Result<(), Failure> {
    match client.command(&command).await? {
        Reply::Address { address } if as_json => emit(&json(&Address { address })?),
        Reply::Address { address } => emit(&(clean(&address) + "\n")),
        _ => Err(client.unexpected()),
    }
}

async fn leases(client: &Client, command: Command) -> Result<Vec<Lease>, Failure> {
    match client.command(&command).await? {
        Reply::Leases { leases } => Ok(leases),
        _ => Err(client.unexpected()),
    }
}

/// `rmpeer`.
pub async fn rmpeer(client: &Client, peers: Vec<String>, force: bool, as_json: bool) -> Result<(), Failure> {
    match client.command(&Command::Rmpeer { peers, force }).await? {
        Reply::Removed { peers, addresses } if as_json => emit(&json(&Removed { peers, addresses })?),
        Reply::Removed { peers, addresses } => {
            let names: Vec<String> = peers.iter().map(|name| clean(name)).collect();
            let count =
                if addresses == 1 { "1 address is".into() } else { format!("{} addresses are", number(addresses)) };
            emit(&format!("{} removed ({}): {count} back\n", counted(peers.len(), "peer"), names.join(", ")))
        }
        _ => Err(client.unexpected()),
    }
}
