//! An API server for tests: nodes, Secrets and ConfigMaps with resource versions, conflicts, pages and watches; and everything that can go wrong with one.
//!
//! It runs on a thread of its own, in the namespace of a host. Deliberately lacks: anything that meshd does not ask.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use meshnet::sys::netns::Netns;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The server; it ends with this.
pub struct Api {
    shared: Arc<Shared>,
}

struct Shared {
    store: Mutex<Store>,
    /// Counts changes of the store and of the faults.
    changed: watch::Sender<u64>,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Connections are cut, old and new ones.
    pub down: bool,
    /// Answers come so late.
    pub slow: Duration,
    /// Verb and resource that RBAC forbids.
    pub forbid: BTreeSet<(String, String)>,
    /// Everything is answered with 500.
    pub broken: bool,
    /// An expired watch is told by an event, and not by the status of HTTP.
    pub expire_by_event: bool,
    /// The token that is wanted; none: any.
    pub token: Option<String>,
}

#[derive(Default)]
struct Store {
    version: u64,
    /// By kind and name.
    objects: BTreeMap<(String, String), Value>,
    /// Version, type and object, of nodes.
    log: Vec<(u64, &'static str, Value)>,
    /// Older versions are forgotten.
    compacted: u64,
    faults: Faults,
    /// Grows when open watches are to be cut.
    cut: u64,
    asked: BTreeMap<(String, String), u64>,
    end: bool,
}

impl Api {
    /// Starts it at `address` in the namespace `host`; with a certificate and its key, over TLS.
    pub fn start(host: &str, address: &str, tls: Option<Arc<rustls::ServerConfig>>) -> Api {
        let address: SocketAddr = address.parse().expect("address");
        let (changed, _) = watch::channel(0);
        let shared = Arc::new(Shared { store: Mutex::default(), changed });
        let server = Arc::clone(&shared);
        let bind = || std::net::TcpListener::bind(address).expect("address of the API");
        // A socket stays in the namespace that it was made in.
        let listener = Netns::open(host).and_then(|namespace| namespace.run(bind)).expect("namespace of the API");
        listener.set_nonblocking(true).expect("a socket");
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(serve(server, listener, tls));
        });
        Api { shared }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.lock()
    }

    /// Changes what goes wrong from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        let mut store = self.store();
        change(&mut store.faults);
        drop(store);
        self.shared.tell();
    }

    /// RBAC forbids this, or no more.
    pub fn forbid(&self, verb: &str, kind: &str, forbidden: bool) {
        self.faults(|faults| {
            let right = (verb.to_owned(), kind.to_owned());
            if forbidden {
                faults.forbid.insert(right)
            } else {
                faults.forbid.remove(&right)
            };
        });
    }

    /// A Node with this address, as a kubelet makes it.
    pub fn add_node(&self, name: &str, address: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("uid-{name}")},
            "spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}],
                       "conditions": [{"type": "Ready", "status": "False"}]},
        });
        self.store().put("nodes", name, node, "ADDED");
        self.shared.tell();
    }

    /// Deletes an object; false: there is none.
    pub fn delete(&self, kind: &str, name: &str) -> bool {
        let mut store = self.store();
        let Some(mut object) = store.objects.remove(&(kind.to_owned(), name.to_owned())) else { return false };
        store.version += 1;
        let version = store.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if kind == "nodes" {
            store.log.push((version, "DELETED", object));
        }
        drop(store);
        self.shared.tell();
        true
    }

    /// An object as it is now.
    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        self.store().objects.get(&(kind.to_owned(), name.to_owned())).cloned()
    }

    /// Replaces an object, or makes it.
    pub fn put(&self, kind: &str, name: &str, object: Value) {
        self.store().put(kind, name, object, "MODIFIED");
        self.shared.tell();
    }

    /// Forgets all versions but the newest, and cuts the watches: they cannot go on from where they were.
    pub fn expire(&self) {
        let mut store = self.store();
        // Something that nobody watched happens meanwhile.
        store.version += 10;
        store.compacted = store.version;
        store.log.clear();
        store.cut += 1;
        drop(store);
        self.shared.tell();
    }

    /// Cuts all watches.
    pub fn cut(&self) {
        self.store().cut += 1;
        self.shared.tell();
    }

    /// How often this was asked.
    pub fn asked(&self, verb: &str, kind: &str) -> u64 {
        self.store().asked.get(&(verb.to_owned(), kind.to_owned())).copied().unwrap_or(0)
    }

    /// An annotation of a Node.
    pub fn annotation(&self, node: &str, key: &str) -> Option<String> {
        Some(self.object("nodes", node)?["metadata"]["annotations"][key].as_str()?.to_owned())
    }

    /// The condition `NetworkUnavailable` of a Node: status and reason.
    pub fn network(&self, node: &str) -> Option<(String, String)> {
        let conditions = self.object("nodes", node)?["status"]["conditions"].as_array()?.clone();
        let condition = conditions.into_iter().find(|condition| condition["type"] == "NetworkUnavailable")?;
        Some((condition["status"].as_str()?.to_owned(), condition["reason"].as_str()?.to_owned()))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.store().end = true;
        self.shared.tell();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Store {
    fn put(&mut self, kind: &str, name: &str, mut object: Value, event: &'static str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if kind == "nodes" {
            self.log.push((self.version, event, object.clone()));
        }
        self.objects.insert((kind.to_owned(), name.to_owned()), object.clone());
        object
    }
}

async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, tls: Option<Arc<rustls::ServerConfig>>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket of the runtime");
    let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
    let mut connections = JoinSet::new();
    let mut changed = shared.changed.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                if shared.lock().faults.down {
                    continue;
                }
                let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                connection(shared, stream).await;
                            }
                        }
                        None => connection(shared, stream).await,
                    }
                });
            }
            _ = changed.changed() => {
                let (down, end) = { let store = shared.lock(); (store.faults.down, store.end) };
                if down || end {
                    connections.abort_all();
                }
                if end {
                    return;
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(shared: Arc<Shared>, stream: S) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(shared, request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let path: Vec<&str> = parts.uri.path().trim_start_matches("/api/v1/").split('/').collect();
    let (kind, name) = match path.as_slice() {
        ["nodes", name, ..] => ("nodes", Some(*name)),
        ["nodes"] => ("nodes", None),
        ["namespaces", _, kind, name] => (*kind, Some(*name)),
        ["namespaces", _, kind] => (*kind, None),
        _ => return status(StatusCode::NOT_FOUND, "no such path"),
    };
    let verb = match (parts.method, name, query.contains_key("watch")) {
        (Method::GET, _, true) => "watch",
        (Method::GET, None, _) => "list",
        (Method::GET, Some(_), _) => "get",
        (Method::POST, ..) => "create",
        (Method::PUT, ..) => "update",
        (Method::PATCH, ..) => "patch",
        _ => return status(StatusCode::METHOD_NOT_ALLOWED, "no such verb"),
    };
    let faults = {
        let mut store = shared.lock();
        *store.asked.entry((verb.to_owned(), kind.to_owned())).or_default() += 1;
        store.faults.clone()
    };
    tokio::time::sleep(faults.slow).await;
    let given = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if faults.token.as_ref().is_some_and(|token| given != Some(&format!("Bearer {token}"))) {
        return status(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    if faults.broken {
        return status(StatusCode::INTERNAL_SERVER_ERROR, "etcdserver: leader changed");
    }
    if faults.forbid.contains(&(verb.to_owned(), kind.to_owned())) {
        return status(StatusCode::FORBIDDEN, &format!("{kind} is forbidden: User \"meshnet\" cannot {verb} it"));
    }
    match (verb, name) {
        ("watch", _) => watching(shared, &query),
        ("list", _) => list(&shared, kind, &query),
        ("get", Some(name)) => match shared.lock().objects.get(&(kind.to_owned(), name.to_owned())) {
            Some(object) => json_body(StatusCode::OK, object),
            None => status(StatusCode::NOT_FOUND, &format!("{kind} \"{name}\" not found")),
        },
        _ => write(&shared, kind, name, verb, &body),
    }
}

fn write(shared: &Shared, kind: &str, name: Option<&str>, verb: &str, body: &[u8]) -> Response<Body> {
    let Ok(sent) = serde_json::from_slice::<Value>(body) else { return status(StatusCode::BAD_REQUEST, "not JSON") };
    let named = sent["metadata"]["name"].as_str().map(str::to_owned);
    let name = name.map(str::to_owned).or(named).unwrap_or_default();
    let mut store = shared.lock();
    let there = store.objects.get(&(kind.to_owned(), name.clone())).cloned();
    let written = match (verb, there) {
        ("create", Some(_)) => return status(StatusCode::CONFLICT, "already exists"),
        ("create", None) => store.put(kind, &name, sent, "ADDED"),
        (_, None) => return status(StatusCode::NOT_FOUND, &format!("{kind} \"{name}\" not found")),
        ("update", Some(old)) => {
            let (ours, theirs) = (&old["metadata"]["resourceVersion"], &sent["metadata"]["resourceVersion"]);
            if ours != theirs {
                return status(StatusCode::CONFLICT, "the object has been modified");
            }
            store.put(kind, &name, sent, "MODIFIED")
        }
        (_, Some(old)) => store.put(kind, &name, merged(old, &sent), "MODIFIED"),
    };
    drop(store);
    shared.tell();
    json_body(StatusCode::OK, &written)
}

/// A strategic merge patch, as far as Nodes need it: maps merge, conditions merge by their type.
fn merged(mut old: Value, patch: &Value) -> Value {
    if let Some(annotations) = patch["metadata"]["annotations"].as_object() {
        for (key, value) in annotations {
            old["metadata"]["annotations"][key] = value.clone();
        }
    }
    for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
        let all = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let mut all: Vec<Value> = all.into_iter().filter(|other| other["type"] != condition["type"]).collect();
        all.push(condition.clone());
        old["status"]["conditions"] = all.into();
    }
    old
}

/// In pages of two, whatever is asked for, so that there are pages.
fn list(shared: &Shared, kind: &str, query: &BTreeMap<String, String>) -> Response<Body> {
    let store = shared.lock();
    let all: Vec<&Value> = store.objects.iter().filter(|((of, _), _)| of == kind).map(|(_, object)| object).collect();
    let from: usize = query.get("continue").and_then(|text| text.parse().ok()).unwrap_or(0);
    let page: Vec<&Value> = all.iter().copied().skip(from).take(2).collect();
    let next = if from + page.len() < all.len() { (from + page.len()).to_string() } else { String::new() };
    let meta = json!({"resourceVersion": store.version.to_string(), "continue": next});
    json_body(StatusCode::OK, &json!({"kind": "NodeList", "metadata": meta, "items": page}))
}

/// Changes after a version, then bookmarks twice a second, until the time is over or the watch is cut.
fn watching(shared: Arc<Shared>, query: &BTreeMap<String, String>) -> Response<Body> {
    let mut from: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    let seconds: u64 = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(60);
    let (compacted, by_event, cut) = {
        let store = shared.lock();
        (store.compacted, store.faults.expire_by_event, store.cut)
    };
    let (lines, mut ready) = mpsc::channel::<Vec<u8>>(64);
    if from < compacted && !by_event {
        return status(StatusCode::GONE, "too old resource version");
    }
    tokio::spawn(async move {
        let line = |kind: &str, object: &Value| {
            let mut line = json!({"type": kind, "object": object}).to_string().into_bytes();
            line.push(b'\n');
            line
        };
        if from < compacted {
            let gone = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old resource version"});
            let _ = lines.send(line("ERROR", &gone)).await;
            return;
        }
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let mut changed = shared.changed.subscribe();
        loop {
            let (news, version, ended) = {
                let store = shared.lock();
                let news: Vec<_> = store.log.iter().filter(|(version, ..)| *version > from).cloned().collect();
                (news, store.version, store.end || store.cut != cut)
            };
            if ended || tokio::time::Instant::now() >= end {
                return;
            }
            for (version, kind, object) in news {
                from = version;
                if lines.send(line(kind, &object)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(500)) => {
                    from = from.max(version);
                    let object = json!({"kind": "Node", "metadata": {"resourceVersion": from.to_string()}});
                    if lines.send(line("BOOKMARK", &object)).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let frames = stream::poll_fn(move |context| {
        ready.poll_recv(context).map(|line| line.map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line)))))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn status(code: StatusCode, message: &str) -> Response<Body> {
    let text = json!({"kind": "Status", "status": "Failure", "message": message, "code": code.as_u16()});
    json_body(code, &text)
}

fn json_body(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response
}
