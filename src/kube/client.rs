//! A client of the API: one request, one connection; each bounded in time and size.
//!
//! ```text
//! Call ─▶ connect (5 s) ─▶ TLS ─▶ request ─▶ answer: a document (10 s, 16 MiB), or lines of a watch (4 MiB each)
//! ```
//! Requests are rare: some at the start, one watch, a look every few minutes. So a connection for each keeps every failure in one place and always shows the
//! newest token. It deliberately lacks retries: who asks knows how long to wait.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::credentials::{Credentials, Endpoint, server_name};

/// What is asked, in the words of RBAC.
#[derive(Debug, Clone)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`.
    pub verb: &'static str,
    /// `nodes`, `secrets`, …; with the name where there is one.
    pub resource: String,
    /// From `/` on, with its query.
    pub path: String,
    /// JSON.
    pub body: Option<Vec<u8>>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

/// Why there is no answer, or which.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Nobody answers, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// The API says no.
    #[error("cannot {what}: {why} ({code})")]
    Refused {
        /// The status of HTTP.
        code: u16,
        /// Verb and resource.
        what: String,
        /// Its words.
        why: String,
    },
    /// An answer that cannot be used.
    #[error("{0}")]
    Odd(String),
}

impl ApiError {
    /// The status of HTTP, when there was an answer.
    pub fn code(&self) -> u16 {
        match self {
            ApiError::Refused { code, .. } => *code,
            _ => 0,
        }
    }
}

/// How the API is doing; shared by all who ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// It answered last.
    pub heard: Option<Instant>,
    /// It could not be reached since then.
    pub away: Option<(Instant, String)>,
    /// What it refuses, and its words, by verb and resource.
    pub refused: BTreeMap<String, (u16, String)>,
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
    credentials: Credentials,
    health: Arc<Mutex<Health>>,
}

impl Client {
    /// Connects when it is asked something.
    pub fn new(endpoint: Endpoint, credentials: Credentials) -> Client {
        Client { endpoint, credentials, health: Arc::default() }
    }

    /// Where it asks.
    pub fn url(&self) -> String {
        self.endpoint.url()
    }

    /// How the API is doing.
    pub fn health(&self) -> Health {
        self.lock().clone()
    }

    /// Asks for a document.
    pub async fn ask(&self, call: &Call) -> Result<Bytes, ApiError> {
        let late = || ApiError::Unreachable(format!("no answer to {call} within {} s", ANSWER_TIME.as_secs()));
        let answered = timeout(ANSWER_TIME, async {
            let (response, _connection) = self.send(call).await?;
            let status = response.status();
            let body = body(call, response.into_body()).await?;
            if status.is_success() { Ok(body) } else { Err(refusal(call, status, &body)) }
        });
        let result = answered.await.unwrap_or_else(|_| Err(late()));
        self.note(call, &result);
        result
    }

    /// Asks for a watch: lines until it ends.
    pub async fn watch(&self, call: &Call) -> Result<Lines, ApiError> {
        let late = || ApiError::Unreachable(format!("no answer to {call} within {} s", ANSWER_TIME.as_secs()));
        let answered = timeout(ANSWER_TIME, async {
            let (response, connection) = self.send(call).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(Lines { body: response.into_body(), rest: Vec::new(), read: 0, _connection: connection });
            }
            let body = body(call, response.into_body()).await?;
            Err(refusal(call, status, &body))
        });
        let result = answered.await.unwrap_or_else(|_| Err(late()));
        self.note(call, &result);
        result
    }

    async fn send(&self, call: &Call) -> Result<(Response<Incoming>, Connection), ApiError> {
        let request = self.request(call)?;
        let place = (self.endpoint.host.as_str(), self.endpoint.port);
        let tcp = match timeout(CONNECT_TIME, TcpStream::connect(place)).await {
            Ok(connected) => connected.map_err(unreachable)?,
            Err(_) => return Err(ApiError::Unreachable(format!("no connection within {} s", CONNECT_TIME.as_secs()))),
        };
        // A watch may be silent for long, and a machine that vanished says nothing.
        let alive = socket2::TcpKeepalive::new().with_time(ALIVE_AFTER).with_interval(ALIVE_EVERY).with_retries(3);
        socket2::SockRef::from(&tcp).set_tcp_keepalive(&alive).map_err(unreachable)?;
        if !self.endpoint.tls {
            return exchange(tcp, request).await;
        }
        let tls = TlsConnector::from(self.credentials.tls().map_err(ApiError::Odd)?);
        let name = server_name(&self.endpoint).map_err(ApiError::Odd)?;
        exchange(tls.connect(name, tcp).await.map_err(unreachable)?, request).await
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, ApiError> {
        let (method, kind) = match call.verb {
            "create" => (Method::POST, "application/json"),
            "update" => (Method::PUT, "application/json"),
            "patch" => (Method::PATCH, "application/strategic-merge-patch+json"),
            _ => (Method::GET, "application/json"),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(&call.path)
            .header(HOST, self.endpoint.authority())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("meshd/", env!("CARGO_PKG_VERSION")));
        if self.endpoint.tls {
            let token = self.credentials.token().map_err(ApiError::Odd)?;
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, kind);
        }
        let body = Full::new(Bytes::from(call.body.clone().unwrap_or_default()));
        request.body(body).map_err(|error| ApiError::Odd(format!("{call}: {error}")))
    }

    fn note<T>(&self, call: &Call, result: &Result<T, ApiError>) {
        let (now, what) = (Instant::now(), call.to_string());
        let mut health = self.lock();
        match result {
            Err(ApiError::Unreachable(why) | ApiError::Odd(why)) => {
                let since = health.away.as_ref().map_or(now, |(since, _)| *since);
                health.away = Some((since, why.clone()));
                return;
            }
            // A server that is overloaded or starting is as good as away.
            Err(ApiError::Refused { code, why, .. }) if *code >= 500 || *code == 429 => {
                let since = health.away.as_ref().map_or(now, |(since, _)| *since);
                health.away = Some((since, format!("it answers {code}: {why}")));
                return;
            }
            Err(ApiError::Refused { code: code @ (401 | 403), why, .. }) if health.refused.len() < REFUSED_MAX => {
                health.refused.insert(what, (*code, why.clone()));
            }
            _ => drop(health.refused.remove(&what)),
        }
        health.heard = Some(now);
        health.away = None;
    }

    /// A watch that was open is open no more, and nobody said why.
    pub fn heard_now(&self) {
        let mut health = self.lock();
        health.heard = Some(Instant::now());
        health.away = None;
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that moves a connection's bytes; ends with this.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(Response<Incoming>, Connection), ApiError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(unreachable)?;
    // Owner: `Connection`. Its errors come out at the body.
    let connection = Connection(tokio::spawn(async move { drop(connection.await) }).abort_handle());
    let response = sender.send_request(request).await.map_err(unreachable)?;
    Ok((response, connection))
}

async fn body(call: &Call, body: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, BODY_MAX_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::Odd(format!("the answer to {call} has more than {BODY_MAX_BYTES} bytes")))
        }
        Err(error) => Err(ApiError::Unreachable(format!("the answer to {call} was cut off: {error}"))),
    }
}

fn refusal(call: &Call, status: StatusCode, body: &[u8]) -> ApiError {
    #[derive(Deserialize)]
    struct Words {
        #[serde(default)]
        message: String,
    }
    let words = serde_json::from_slice::<Words>(body).map(|words| words.message).unwrap_or_default();
    let words = if words.is_empty() { status.canonical_reason().unwrap_or("no reason").to_owned() } else { words };
    ApiError::Refused { code: status.as_u16(), what: call.to_string(), why: plain(&words) }
}

/// Words of the other end, fit for one line.
pub(super) fn plain(words: &str) -> String {
    words.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(WORDS_MAX).collect()
}

fn unreachable(error: impl std::error::Error) -> ApiError {
    let mut words = error.to_string();
    let mut cause = error.source();
    // The first words are often only "error shutting down connection".
    while let Some(error) = cause {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    ApiError::Unreachable(plain(&words))
}

/// The lines of a watch.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
    /// Bytes of `rest` that hold no end of a line.
    read: usize,
    _connection: Connection,
}

impl Lines {
    /// The next line; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        loop {
            if let Some(end) = self.rest.iter().skip(self.read).position(|byte| *byte == b'\n') {
                let end = self.read + end;
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                self.read = 0;
                line.pop();
                if !line.is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.read = self.rest.len();
            if self.rest.len() > LINE_MAX_BYTES {
                return Err(ApiError::Odd(format!("a line of the watch has more than {LINE_MAX_BYTES} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.rest.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(unreachable(error)),
            }
        }
    }
}

/// Within a cluster; a longer wait would only hide that nobody is there.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// From the connection to the last byte of the answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// A page of nodes (`nodes::PAGE`) with long lists of images has some megabytes.
const BODY_MAX_BYTES: usize = 16 * 1024 * 1024;
/// An object of etcd has 1.5 MiB at most; JSON is longer.
const LINE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Of a connection, for headers and what is read at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// Refusals remembered: there are fewer kinds of calls.
const REFUSED_MAX: usize = 16;
/// Of the other end's words.
const WORDS_MAX: usize = 300;
/// Silence after which the connection of a watch is tried, and between tries.
const ALIVE_AFTER: Duration = Duration::from_secs(30);
const ALIVE_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
