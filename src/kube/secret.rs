//! The cluster secret as the API keeps it: made by the first peer that finds none, the same for all.

use std::time::Duration;

use tracing::info;

use super::client::{ApiError, Call, Client};
use super::objects::{self, Entry};
use super::watch::Pause;

/// Where it is.
#[derive(Clone)]
pub struct Place {
    /// Who asks.
    pub client: Client,
    /// Of the pod.
    pub namespace: String,
}

impl Place {
    /// What the Secret holds; none: there is no Secret.
    pub async fn read(&self) -> Result<Option<String>, ApiError> {
        let path = format!("/api/v1/namespaces/{}/secrets/{NAME}", self.namespace);
        match self.client.ask(&Call { verb: "get", resource: self.resource(), path, body: None }).await {
            Ok(body) => {
                let odd = |why: String| ApiError::Odd(format!("the Secret {}/{NAME}: {why}", self.namespace));
                let text = Entry::of_secret(&body, KEY).map_err(odd)?.text;
                text.map(Some).ok_or_else(|| odd(format!("it has no key '{KEY}'")))
            }
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes it, with this text. False: somebody was first.
    pub async fn create(&self, text: &str) -> Result<bool, ApiError> {
        let path = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        let body = Some(objects::new_secret(&self.namespace, NAME, KEY, text));
        match self.client.ask(&Call { verb: "create", resource: self.resource(), path, body }).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The secret, at the first start of this machine: read, or made by `make`. It does not end before there is one that passes `check`; `tell` hears why not.
    pub async fn obtain(
        &self,
        make: impl Fn() -> Result<String, String>,
        check: impl Fn(&str) -> Result<(), String>,
        tell: impl Fn(String),
    ) -> String {
        let mut pause = Pause::default();
        loop {
            let attempt = self.attempt(&make).await;
            match attempt.and_then(|text| text.map(|text| check(&text).map(|()| text)).transpose()) {
                Ok(Some(text)) => return text,
                // Somebody was first: at once.
                Ok(None) => tokio::time::sleep(AFTER_CONFLICT).await,
                Err(why) => {
                    tell(why);
                    tokio::time::sleep(pause.grow().min(WAIT_MAX)).await;
                }
            }
        }
    }

    async fn attempt(&self, make: &impl Fn() -> Result<String, String>) -> Result<Option<String>, String> {
        if let Some(text) = self.read().await.map_err(|error| error.to_string())? {
            return Ok(Some(text));
        }
        let text = make()?;
        let made = self.create(&text).await.map_err(|error| error.to_string())?;
        if made {
            info!(namespace = self.namespace, "made the secret of the cluster: Secret {NAME}");
        }
        Ok(made.then_some(text))
    }

    fn resource(&self) -> String {
        format!("secrets '{NAME}' in {}", self.namespace)
    }
}

/// The name of the Secret.
pub const NAME: &str = "meshnet";
/// Its key.
pub const KEY: &str = "secret";
/// The winner's write is there already.
const AFTER_CONFLICT: Duration = Duration::from_millis(50);
/// A machine without a secret is of no use to anybody: it asks often.
const WAIT_MAX: Duration = Duration::from_secs(5);
