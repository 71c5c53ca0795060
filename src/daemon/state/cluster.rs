//! What is kept of Kubernetes, so that a later start needs no API.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{StateDir, StateError};
use crate::kube::{Keep, Kept};

impl StateDir {
    /// As [`StateDir::open`]; but one that runs here is told that its successor has come, and waited for. In a rolling update the two overlap for a moment.
    pub fn open_as_successor(path: &Path, limit: Duration) -> Result<StateDir, StateError> {
        let until = Instant::now() + limit;
        loop {
            match StateDir::open(path) {
                Err(StateError::InUse(..)) if Instant::now() < until => {
                    // Without it the other one stops a little later.
                    let _ = File::create(path.join(SUCCESSOR));
                    std::thread::sleep(LOOK_EVERY);
                }
                opened => {
                    let _ = fs::remove_file(path.join(SUCCESSOR));
                    return opened;
                }
            }
        }
    }

    /// Waits until the successor of the meshd in this directory has come.
    pub async fn successor(path: PathBuf) {
        while !path.join(SUCCESSOR).exists() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The cluster's secret, as it was read from the API at the first start.
    pub fn cluster_secret(&self) -> Result<Option<String>, StateError> {
        let bytes = self.read(SECRET).map_err(|error| self.other(&format!("{SECRET} cannot be read: {error}")))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty()))
    }

    /// Keeps the secret for later starts.
    pub fn keep_cluster_secret(&self, text: &str) -> Result<(), StateError> {
        self.replace(SECRET, format!("{}\n", text.trim()).as_bytes())
    }

    /// What was kept of nodes. A broken file is set aside: the API says it again.
    pub fn cluster(&self) -> Kept {
        let parsed = match self.read(CLUSTER) {
            Ok(None) => return Kept::default(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        parsed.unwrap_or_else(|error| {
            self.set_aside(CLUSTER, &error);
            Kept::default()
        })
    }
}

impl Keep for StateDir {
    fn keep(&self, kept: &Kept) -> Result<(), String> {
        let mut bytes = serde_json::to_vec(kept).map_err(|error| error.to_string())?;
        bytes.push(b'\n');
        self.replace(CLUSTER, &bytes).map_err(|error| error.to_string())
    }
}

/// Name of the file by which a successor says that it waits.
const SUCCESSOR: &str = "successor";
/// Each look is one system call, for seconds at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Name of the file of the cluster's secret.
const SECRET: &str = "kubernetes-secret";
/// Name of the file of nodes and who was seen on them.
const CLUSTER: &str = "kubernetes.json";
