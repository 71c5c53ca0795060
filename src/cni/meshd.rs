//! Asking meshd, in the words of the plugin.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use meshnet_proto::api::{Command, Lease, Network, Reply};

use super::error::{ADDRESS_TAKEN, CniError, TRY_LATER};
use crate::ctl::{Client, Failure};

/// The meshd of a network.
pub struct Meshd {
    client: Client,
    /// Where it answers.
    pub socket: PathBuf,
}

impl Meshd {
    /// At this socket.
    pub fn new(socket: &Path) -> Meshd {
        Meshd { client: Client::new(socket), socket: socket.into() }
    }

    /// Its network. A meshd that is being restarted is waited for this long.
    pub async fn network(&self, patience: Duration) -> Result<Network, Failure> {
        let until = Instant::now() + patience;
        loop {
            match self.client.command(&Command::Network).await {
                Ok(Reply::Network(network)) => return Ok(network),
                Ok(_) => return Err(self.client.unexpected()),
                Err(Failure::NoPeer { .. } | Failure::Broken { .. }) if Instant::now() < until => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// An address for the owner; the same one when it has one.
    pub async fn alloc(&self, owner: &str, subnet: Option<String>) -> Result<IpNet, CniError> {
        self.address(Command::IpAlloc { id: owner.to_owned(), subnet }, TRY_LATER).await
    }

    /// This very address for the owner. Where addresses can be given out at all, a refusal is meant for ever.
    pub async fn claim(&self, owner: &str, address: std::net::IpAddr, ready: bool) -> Result<IpNet, CniError> {
        let command = Command::IpClaim { id: owner.to_owned(), address: address.to_string() };
        self.address(command, if ready { ADDRESS_TAKEN } else { TRY_LATER }).await
    }

    async fn address(&self, command: Command, refused: u32) -> Result<IpNet, CniError> {
        match self.client.command(&command).await {
            Ok(Reply::Address { address }) => address.parse().map_err(|_| self.client.unexpected().into()),
            Ok(_) => Err(self.client.unexpected().into()),
            Err(Failure::Refused(why)) => Err(CniError::new(refused, why)),
            Err(failure) => Err(failure.into()),
        }
    }

    /// An address for the host on the bridge: `auto`, or this one.
    pub async fn expose(&self, address: &str) -> Result<(), Failure> {
        self.client.command(&Command::Expose { address: address.to_owned() }).await.map(drop)
    }

    /// Frees all that the owner has; nothing is as good as freed.
    pub async fn free(&self, owner: &str) -> Result<(), Failure> {
        let refused = match self.client.command(&Command::IpFree { id: owner.to_owned(), address: None }).await {
            Err(Failure::Refused(why)) => why,
            other => return other.map(drop),
        };
        match self.client.command(&Command::IpLookup { id: owner.to_owned() }).await {
            Ok(_) => Err(Failure::Refused(refused)),
            Err(Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// What the owner has; nothing is no failure.
    pub async fn leases_of(&self, owner: &str) -> Result<Vec<Lease>, Failure> {
        match self.client.command(&Command::IpLookup { id: owner.to_owned() }).await {
            Ok(Reply::Leases { leases }) => Ok(leases),
            Ok(_) => Err(self.client.unexpected()),
            Err(Failure::Refused(_)) => Ok(Vec::new()),
            Err(failure) => Err(failure),
        }
    }

    /// All that it gave out; nothing where it manages nothing.
    pub async fn leases(&self) -> Result<Vec<Lease>, Failure> {
        match self.client.command(&Command::IpList).await {
            Ok(Reply::Leases { leases }) => Ok(leases),
            Ok(_) => Err(self.client.unexpected()),
            Err(Failure::Refused(_)) => Ok(Vec::new()),
            Err(failure) => Err(failure),
        }
    }
}

/// Between two looks for a meshd that is being restarted.
const RETRY: Duration = Duration::from_millis(50);
