//! Routes and the accept loops.
//!
//! A connection lives for one request and at most [`CONNECTION_TIMEOUT`]; there are at most [`CONNECTIONS_MAX`] on each listener, further ones
//! wait in the kernel's backlog. So a client that is slow, silent or endless costs one task for a few seconds, and those of the port
//! cannot keep `meshctl` out of the socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use meshnet_proto::api::{Command, Reply};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Backend, SocketListener, Unavailable};

/// Serves the control socket. It does not return; dropping the future stops it and cuts its connections.
pub async fn serve_socket<B: Backend>(listener: SocketListener, backend: Arc<B>) {
    let routes = reading_routes::<B>()
        .route("/v1/topology", get(topology::<B>))
        .route("/v1/macs", get(macs::<B>))
        .route("/v1/command", post(command::<B>));
    let routes = finish(routes, backend);
    accept(routes, &listener.listener).await;
}

/// Serves the read-only port. It does not return; dropping the future stops it and cuts its connections.
pub async fn serve_http<B: Backend>(listener: TcpListener, backend: Arc<B>) {
    let routes = finish(reading_routes::<B>(), backend);
    accept(routes, &listener).await;
}

/// Where connections come from.
trait Door {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Door for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Door for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

async fn accept(routes: Router, door: &impl Door) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match door.next().await {
            Ok(stream) => {
                let service = TowerToHyperService::new(routes.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(READ_TIMEOUT)
                        .max_buf_size(HEADERS_MAX_BYTES)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service);
                    // What a client does wrong is its own affair: it has its answer, or has hung up.
                    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a control connection was not accepted");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

fn reading_routes<B: Backend>() -> Router<Arc<B>> {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/healthz", get(healthz::<B>))
        .route("/readyz", get(readyz::<B>))
        .route("/metrics", get(metrics::<B>))
        .route("/v1/status", get(status::<B>))
        .route("/v1/report", get(report::<B>))
}

fn finish<B: Backend>(routes: Router<Arc<B>>, backend: Arc<B>) -> Router {
    routes
        .fallback(async || (StatusCode::NOT_FOUND, "no such page; / lists them\n"))
        .method_not_allowed_fallback(async || (StatusCode::METHOD_NOT_ALLOWED, "this page is not asked in that way\n"))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(backend)
}

async fn healthz<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    verdict(timeout(REQUEST_TIMEOUT, backend.healthy()).await.unwrap_or_else(|_| Err(LATE.into())))
}

async fn readyz<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    verdict(timeout(REQUEST_TIMEOUT, backend.ready()).await.unwrap_or_else(|_| Err(LATE.into())))
}

async fn metrics<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    match in_time(backend.metrics()).await {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(unavailable) => verdict(Err(unavailable.0)),
    }
}

async fn status<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    document(in_time(backend.status()).await)
}

async fn topology<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    document(in_time(backend.topology()).await)
}

async fn macs<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    document(in_time(backend.macs()).await)
}

async fn report<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    document(in_time(backend.report()).await)
}

async fn command<B: Backend>(State(backend): State<Arc<B>>, request: Request) -> Response {
    let command = match read_command(request.into_body()).await {
        Ok(command) => command,
        Err((code, reason)) => return (code, Json(Reply::Refused { reason })).into_response(),
    };
    match in_time(backend.command(command)).await {
        Ok(reply @ Reply::Refused { .. }) => (StatusCode::CONFLICT, Json(reply)).into_response(),
        Ok(reply) => Json(reply).into_response(),
        Err(Unavailable(reason)) => (StatusCode::SERVICE_UNAVAILABLE, Json(Reply::Refused { reason })).into_response(),
    }
}

async fn read_command(body: Body) -> Result<Command, (StatusCode, String)> {
    let bytes: Bytes = match timeout(READ_TIMEOUT, Limited::new(body, BODY_MAX_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("a command has at most {BODY_MAX_BYTES} bytes")));
        }
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, format!("the command did not arrive: {error}"))),
        Err(_) => {
            return Err((
                StatusCode::REQUEST_TIMEOUT,
                format!("the command did not arrive in {} s", READ_TIMEOUT.as_secs()),
            ));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| (StatusCode::BAD_REQUEST, format!("not a command: {error}")))
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
    timeout(REQUEST_TIMEOUT, answer).await.unwrap_or_else(|_| Err(Unavailable(LATE.into())))
}

fn document<T: Serialize>(answer: Result<T, Unavailable>) -> Response {
    match answer {
        Ok(document) => Json(document).into_response(),
        Err(unavailable) => verdict(Err(unavailable.0)),
    }
}

fn verdict(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

const INDEX: &str = "meshd
/healthz    200 while this peer works
/readyz     200 when it can serve containers, else 503 and the reason
/metrics    counters, for Prometheus
/v1/status  what `meshctl status` shows, JSON
/v1/report  everything, for a bug report, JSON
";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const LATE: &str = "meshd is too busy to answer";

/// More than any machine's scripts and scrapers hold at once; 64 tasks are a few hundred KB.
const CONNECTIONS_MAX: usize = 64;
/// Local clients send a request in one write.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest command waits for a namespace or a probe (2 s); `meshctl` itself gives up after 10 s.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(9);
/// Reading, answering, and writing even a report of 1,000 peers; then the slow reader loses its connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// A command names at most a few hundred addresses.
const BODY_MAX_BYTES: usize = 64 * 1024;
/// The least that hyper takes is 8 KiB; ordinary requests have a few hundred bytes of headers.
const HEADERS_MAX_BYTES: usize = 16 * 1024;
/// When the process is out of descriptors, accepting at once again would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
