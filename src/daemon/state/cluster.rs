//! What is kept of Kubernetes, so that a later start needs no API.

use std::io;

use super::{StateDir, StateError};
use crate::kube::{Keep, Kept};

impl StateDir {
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

/// Name of the file of the cluster's secret.
const SECRET: &str = "kubernetes-secret";
/// Name of the file of nodes and who was seen on them.
const CLUSTER: &str = "kubernetes.json";
