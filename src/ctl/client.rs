//! Asks meshd: one request, one connection, at most [`TIMEOUT`].

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use meshnet_proto::api::{Command, Reply};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::exit;

/// Why there is no answer; its text is the line for standard error.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Failure {
    /// Nobody there.
    #[error("no meshd at {socket} ({why}): start meshd, or choose its socket with --socket PATH or MESHCTL_SOCKET")]
    NoPeer { socket: PathBuf, why: String },
    /// Somebody, but not for us.
    #[error("may not use {0}: run meshctl as root or in the group of the socket")]
    Forbidden(PathBuf),
    /// Too late or broken.
    #[error("meshd at {socket}: {why}")]
    Broken { socket: PathBuf, why: String },
    /// The peer's own words.
    #[error("{0}")]
    Refused(String),
    /// An error on our side, such as a full disk behind standard output.
    #[error("{0}")]
    Local(String),
    /// The reader of standard output has seen enough (`| head`): no error, but nothing more to do.
    #[error("standard output is closed")]
    Closed,
}

impl Failure {
    /// What `meshctl` ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::NoPeer { .. } | Failure::Forbidden(_) => exit::NO_PEER,
            Failure::Closed => exit::DONE,
            Failure::Broken { .. } | Failure::Refused(_) | Failure::Local(_) => exit::REFUSED,
        }
    }
}

/// Where meshd listens.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// At this socket; nothing is opened yet.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.into() }
    }

    /// A document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let (code, body) = self.ask("GET", path, Bytes::new()).await?;
        if code != StatusCode::OK {
            let text = String::from_utf8_lossy(&body);
            return Err(Failure::Refused(text.lines().next().unwrap_or("no reason given").to_owned()));
        }
        self.parse(&body)
    }

    /// Sends a command; a refusal is a [`Failure`].
    pub async fn command(&self, command: &Command) -> Result<Reply, Failure> {
        let body = serde_json::to_vec(command).map_err(|error| Failure::Local(error.to_string()))?;
        let (_, body) = self.ask("POST", "/v1/command", body.into()).await?;
        match self.parse(&body)? {
            Reply::Refused { reason } => Err(Failure::Refused(reason)),
            reply => Ok(reply),
        }
    }

    /// For an answer that does not fit the question.
    pub fn unexpected(&self) -> Failure {
        self.broken("its answer does not fit the question: is it of another version?")
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body)
            .map_err(|error| self.broken(format!("its answer is not understood ({error}): is it of another version?")))
    }

    fn broken(&self, why: impl ToString) -> Failure {
        Failure::Broken { socket: self.socket.clone(), why: why.to_string() }
    }

    async fn ask(&self, method: &str, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Failure> {
        timeout(TIMEOUT, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| Err(self.broken(format!("no answer within {} s", TIMEOUT.as_secs()))))
    }

    async fn exchange(&self, method: &str, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => Failure::Forbidden(self.socket.clone()),
            ErrorKind::NotFound => Failure::NoPeer { socket: self.socket.clone(), why: "no such file".into() },
            ErrorKind::ConnectionRefused => {
                Failure::NoPeer { socket: self.socket.clone(), why: "nobody answers".into() }
            }
            _ => Failure::NoPeer { socket: self.socket.clone(), why: error.to_string() },
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "meshd")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::Local(error.to_string()))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
            let code = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
            Ok((code, body.map_err(|error| self.broken(error))?.to_bytes()))
        }
        .await;
        connection.abort();
        answer
    }
}

/// meshd answers each question in 9 s, or says that it cannot.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The report of 10,000 peers; more is not meshd.
const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;
