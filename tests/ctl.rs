//! The real `meshctl` against the real API server on a socket in a temporary directory, behind which stands a backend that answers from samples.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meshnet::api::{Backend, ListenError, Unavailable, bind_http, bind_socket, serve_http, serve_socket};
use meshnet::telemetry::metrics;
use meshnet_core::counters::DropReason;
use meshnet_proto::api::{Command, Lease, MacEntry, Reply, Report, Status, Topology, Trace, VERSION};
use serde_json::Value;

/// Answers from the samples, refuses the name `nobody`, loses every second ping of `shaky`, and keeps the commands.
#[derive(Default)]
struct Fake {
    commands: Mutex<Vec<Command>>,
    pings: AtomicU64,
    /// Not ready for this reason.
    unready: Option<String>,
    /// The driver is gone.
    dead: bool,
}

fn sample<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ctl/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn lease(id: &str, unconfirmed: bool) -> Lease {
    let address = if unconfirmed { "10.32.0.6" } else { "10.32.0.5" };
    Lease { id: id.into(), address: address.into(), subnet: "10.32.0.0/12".into(), unconfirmed }
}

impl Fake {
    fn alive<T>(&self, document: T) -> Result<T, Unavailable> {
        if self.dead { Err(Unavailable("meshd is stopping".into())) } else { Ok(document) }
    }
}

impl Backend for Fake {
    async fn status(&self) -> Result<Status, Unavailable> {
        self.alive(sample("status.json"))
    }

    async fn topology(&self) -> Result<Topology, Unavailable> {
        self.alive(sample("topology.json"))
    }

    async fn macs(&self) -> Result<Vec<MacEntry>, Unavailable> {
        self.alive(sample("macs.json"))
    }

    async fn report(&self) -> Result<Report, Unavailable> {
        self.alive(Report {
            version: VERSION,
            status: sample("status.json"),
            topology: sample("topology.json"),
            macs: sample("macs.json"),
            settings: BTreeMap::from([("bridge".into(), "mesh0".into())]),
            counters: BTreeMap::new(),
            kernel: "6.1".into(),
            events: vec!["link up".into()],
        })
    }

    async fn command(&self, command: Command) -> Result<Reply, Unavailable> {
        self.commands.lock().unwrap().push(command.clone());
        let status: Status = sample("status.json");
        let peer = status.peers[1].id;
        let text = serde_json::to_string(&command).unwrap();
        if text.contains("nobody") {
            return Ok(Reply::Refused { reason: "there is no\npeer 'nobody'".into() });
        }
        if text.contains("silence") {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        self.alive(match command {
            Command::Attach { addresses, .. } => Reply::Attached { interface: "ethwe".into(), addresses },
            Command::Ping { peer: name } => match (name.as_str(), self.pings.fetch_add(1, Relaxed) % 2) {
                ("shaky", 1) | ("gone", _) => Reply::Lost { peer, name },
                _ => Reply::Pong { peer, name, rtt_ms: 0.4, path: "direct".into() },
            },
            Command::Trace { .. } => Reply::Trace(sample::<Trace>("trace.json")),
            Command::IpAlloc { .. } | Command::IpClaim { .. } => Reply::Address { address: "10.32.0.5/12".into() },
            Command::IpLookup { id } => Reply::Leases { leases: vec![lease(&id, false), lease(&id, true)] },
            Command::IpList => Reply::Leases { leases: vec![lease("web", false), lease("netns:box", true)] },
            Command::Rmpeer { peers, .. } => Reply::Removed { peers, addresses: 524_288 },
            _ => Reply::Done,
        })
    }

    async fn metrics(&self) -> Result<String, Unavailable> {
        self.alive(metrics::render(&sample("status.json"), &BTreeMap::new()))
    }

    async fn ready(&self) -> Result<(), String> {
        self.unready.clone().map_or(Ok(()), Err)
    }

    async fn healthy(&self) -> Result<(), String> {
        if self.dead { Err("worker 1 has ended".into()) } else { Ok(()) }
    }
}

/// The server in a thread of its own; all of it goes with the value.
struct Server {
    fake: Arc<Fake>,
    http: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    directory: Directory,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || std::thread::panicking(), "the server panicked");
    }
}

/// Removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path =
            std::env::temp_dir().join(format!("meshnet-ctl-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed)));
        std::fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/meshd.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Server {
    fn start(fake: Fake) -> Server {
        let (fake, directory) = (Arc::new(fake), Directory::new());
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (path, backend) = (directory.socket(), Arc::clone(&fake));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = bind_socket(&path).unwrap();
                let http = bind_http("127.0.0.1:0".parse().unwrap()).unwrap();
                ready.send(http.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = serve_socket(socket, Arc::clone(&backend)) => {}
                    () = serve_http(http, backend) => {}
                    _ = stopped => {}
                }
            });
        });
        let http = started.recv().unwrap();
        Server { fake, http, stop: Some(stop), thread: Some(thread), directory }
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        meshctl(&self.directory.socket(), arguments)
    }

    /// The JSON of a command that must succeed.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    fn last(&self) -> Command {
        self.fake.commands.lock().unwrap().last().cloned().unwrap()
    }

    /// Status code, headers and body.
    fn http(&self, request: &str) -> (u16, String) {
        exchange(TcpStream::connect(self.http).unwrap(), request)
    }

    fn socket(&self, request: &str) -> (u16, String) {
        exchange(UnixStream::connect(self.directory.socket()).unwrap(), request)
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> (u16, String) {
    // The server may answer and hang up before a large request is all written.
    let _ = stream.write_all(request.as_bytes());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, text)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

fn post(body: &str) -> String {
    format!("POST /v1/command HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn meshctl(socket: &Path, arguments: &[&str]) -> Output {
    Process::new(env!("CARGO_BIN_EXE_meshctl"))
        .env("MESHCTL_SOCKET", socket)
        .env("TERM", "xterm")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Exit code, and exactly one line on standard error that holds all of `words`; nothing on standard output.
fn fails(output: &Output, code: i32, words: &[&str]) {
    let line = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.starts_with("meshctl: "), "{line}");
    for word in words {
        assert!(line.contains(word), "'{word}' is not in: {line}");
    }
    assert_eq!(stdout(output), "");
}

#[test]
fn every_command_reaches_the_peer() {
    let server = Server::start(Fake::default());
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<String>>();
    let cases: [(&[&str], Command); 26] = [
        (&["connect", "a", "[::1]:99"], Command::Connect { addresses: list(&["a", "[::1]:99"]) }),
        (&["forget", "192.0.2.1:6783"], Command::Forget { addresses: list(&["192.0.2.1:6783"]) }),
        (
            &["attach", "box", "10.32.0.5/12"],
            Command::Attach { namespace: "box".into(), addresses: list(&["10.32.0.5/12"]) },
        ),
        (&["attach", "123", "auto"], Command::Attach { namespace: "123".into(), addresses: list(&["auto"]) }),
        (&["detach", "/run/netns/box"], Command::Detach { namespace: "/run/netns/box".into(), addresses: list(&[]) }),
        (
            &["detach", "box", "fd00::1/64"],
            Command::Detach { namespace: "box".into(), addresses: list(&["fd00::1/64"]) },
        ),
        (&["expose", "10.32.0.1/12"], Command::Expose { address: "10.32.0.1/12".into() }),
        (&["expose"], Command::Expose { address: "auto".into() }),
        (&["hide"], Command::Hide { address: None }),
        (&["hide", "10.32.0.1/12"], Command::Hide { address: Some("10.32.0.1/12".into()) }),
        (&["ping", "beta~2b3c", "-c", "1"], Command::Ping { peer: "beta~2b3c".into() }),
        (&["trace", "10.32.0.5"], Command::Trace { to: "10.32.0.5".into() }),
        (&["trace", "0a:58:0a:20:00:05"], Command::Trace { to: "0a:58:0a:20:00:05".into() }),
        (&["attach", "box"], Command::Attach { namespace: "box".into(), addresses: list(&[]) }),
        (&["expose", "auto"], Command::Expose { address: "auto".into() }),
        (&["ip", "alloc", "web"], Command::IpAlloc { id: "web".into(), subnet: None }),
        (
            &["ip", "alloc", "web", "10.33.0.0/16", "--json"],
            Command::IpAlloc { id: "web".into(), subnet: Some("10.33.0.0/16".into()) },
        ),
        (&["ip", "claim", "web", "10.32.0.5"], Command::IpClaim { id: "web".into(), address: "10.32.0.5".into() }),
        (
            &["ip", "claim", "a name", "10.32.0.5/12"],
            Command::IpClaim { id: "a name".into(), address: "10.32.0.5/12".into() },
        ),
        (&["ip", "lookup", "web"], Command::IpLookup { id: "web".into() }),
        (&["ip", "free", "web"], Command::IpFree { id: "web".into(), address: None }),
        (&["ip", "free", "web", "10.32.0.5"], Command::IpFree { id: "web".into(), address: Some("10.32.0.5".into()) }),
        (&["ip", "list"], Command::IpList),
        (&["rmpeer", "omega"], Command::Rmpeer { peers: list(&["omega"]), force: false }),
        (&["rmpeer", "--force", "a", "1a2b3c4d"], Command::Rmpeer { peers: list(&["a", "1a2b3c4d"]), force: true }),
        (&["leave"], Command::Leave),
    ];
    for (arguments, command) in cases {
        let output = server.ctl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "");
        assert_eq!(server.last(), command);
    }
}

#[test]
fn what_reads_prints_text_without_colour_into_a_pipe() {
    let server = Server::start(Fake::default());
    for (arguments, word) in [
        (&["status"][..], "LINKS"),
        (&["status", "peers"], "omega"),
        (&["status", "links"], "another secret"),
        (&["status", "ipam"], "10.32.0.0/12"),
        (&["status", "routes"], "relayed"),
        (&["status", "macs"], "0a:58:0a:20:00:05"),
        (&["status", "targets"], "seed.example.net:6783"),
        (&["topology"], "└─ delta"),
        (&["topology", "--format", "dot"], "graph mesh {"),
        (&["topology", "--format", "svg"], "</svg>"),
        (&["trace", "10.32.0.5"], "relay"),
        (&["attach", "box", "10.32.0.5/12"], "ethwe 10.32.0.5/12"),
        (&["ping", "beta", "-c", "2", "-i", "0.01"], "2 sent, 2 received, 0 % lost"),
        (&["ip", "list"], "10.32.0.6/12  netns:box  unconfirmed"),
        (&["rmpeer", "omega", "beta"], "2 peers removed (omega, beta): 524,288 addresses are back\n"),
        (&["completions", "bash"], "rmpeer"),
        (&["completions", "bash"], "_meshctl"),
        (&["--version"], "meshctl 0."),
        (&["--help"], "status"),
    ] {
        let output = server.ctl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains(word), "{arguments:?} has no {word}:\n{text}");
        assert!(!text.contains('\x1b'), "{arguments:?}:\n{text}");
    }
}

/// Scripts take the line as it is.
#[test]
fn addresses_stand_alone_on_their_line() {
    let server = Server::start(Fake::default());
    for arguments in [&["ip", "alloc", "web"][..], &["ip", "claim", "web", "10.32.0.5"]] {
        assert_eq!(stdout(&server.ctl(arguments)), "10.32.0.5/12\n");
    }
    assert_eq!(stdout(&server.ctl(&["ip", "lookup", "web"])), "10.32.0.5/12\n10.32.0.6/12\n");
    assert_eq!(stdout(&server.ctl(&["ip", "free", "web"])), "");
}

#[test]
fn json_has_the_pinned_keys() {
    fn keys(value: &Value, wanted: &[&str]) {
        let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
        for key in wanted {
            assert!(object.contains_key(*key), "{key} is not in {value}");
        }
    }
    let server = Server::start(Fake::default());
    let status = server.json(&["status", "--json"]);
    keys(&status, &["version", "peer", "links", "peers", "ipam", "data", "problems"]);
    assert_eq!(status["version"], 1);
    keys(&status["peer"], &["id", "name", "software", "uptime_s"]);
    let link = ["peer", "name", "address", "state", "transport", "encrypted", "mtu", "rtt_ms", "outbound", "reason"];
    keys(&status["links"][0], &link);
    assert_eq!(status["links"][0]["reason"], Value::Null);
    keys(&status["peers"][0], &["id", "name", "reachable", "hops", "via", "links"]);
    keys(&status["ipam"], &["state", "range", "subnet", "owned", "used", "free", "shares"]);
    keys(&status["ipam"]["shares"][0], &["peer", "name", "addresses", "percent", "reachable"]);
    keys(&status["data"], &["tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "drops"]);
    keys(&status["problems"][0], &["what", "do"]);
    for table in ["peers", "links", "ipam", "routes", "macs", "targets"] {
        for arguments in [["status", table, "--json"], ["status", "--json", table]] {
            let part = server.json(&arguments);
            keys(&part, &["version", table]);
            if table != "macs" {
                assert_eq!(part[table], status[table]);
            }
        }
    }
    for arguments in [&["topology", "--json"][..], &["topology", "--format", "json"]] {
        let topology = server.json(arguments);
        keys(&topology, &["peers", "links"]);
        keys(&topology["peers"][0], &["id", "name", "addresses"]);
        keys(&topology["links"][0], &["a", "b", "rtt_ms", "transport"]);
    }
    keys(&server.json(&["report"]), &["version", "status", "topology", "macs", "settings", "counters", "events"]);
    keys(&server.json(&["report", "--json"]), &["version", "status"]);
    keys(&server.json(&["trace", "x", "--json"]), &["to", "mac", "peer", "name", "local", "hops", "mtu", "cipher"]);
    keys(&server.json(&["attach", "box", "--json"]), &["interface", "addresses"]);
    keys(&server.json(&["ip", "alloc", "web", "--json"]), &["address"]);
    keys(&server.json(&["ip", "claim", "web", "10.32.0.5", "--json"]), &["address"]);
    for arguments in [&["ip", "list", "--json"][..], &["ip", "lookup", "web", "--json"]] {
        keys(&server.json(arguments)["leases"][0], &["id", "address", "subnet", "unconfirmed"]);
    }
    keys(&server.json(&["rmpeer", "omega", "--json"]), &["peers", "addresses"]);
    keys(&status["ipam"], &["reason", "digest", "members", "removed", "conflicts"]);
    keys(&status["ipam"]["shares"][0], &["digest", "free", "standing"]);
    let ping = server.json(&["ping", "shaky", "-c", "4", "-i", "0.01", "--json"]);
    assert_eq!((&ping["sent"], &ping["received"], &ping["loss_percent"]), (&4.into(), &2.into(), &50.0.into()));
    keys(&server.json(&["watch", "--json", "--count", "1"]), &["version", "peer"]);
}

#[test]
fn refusals_are_one_line_and_exit_1() {
    let server = Server::start(Fake::default());
    for arguments in [
        &["connect", "nobody"][..],
        &["attach", "nobody"],
        &["ping", "nobody"],
        &["ping", "nobody", "--json"],
        &["trace", "nobody", "--json"],
        &["ip", "alloc", "nobody"],
        &["ip", "claim", "nobody", "10.32.0.5", "--json"],
        &["ip", "lookup", "nobody"],
        &["ip", "free", "nobody"],
        &["rmpeer", "nobody", "--force"],
    ] {
        fails(&server.ctl(arguments), 1, &["there is no", "peer 'nobody'"]);
    }
    let output = server.ctl(&["ping", "gone", "-c", "2", "-i", "0.01"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(1), "meshctl: no answer from gone\n"));
    assert!(stdout(&output).contains("2 sent, 0 received, 100 % lost"));
    let stopping = Server::start(Fake { dead: true, ..Fake::default() });
    for arguments in [&["status"][..], &["topology"], &["report"], &["connect", "a"], &["watch", "-n", "1"]] {
        fails(&stopping.ctl(arguments), 1, &["meshd is stopping"]);
    }
}

#[test]
fn nobody_at_the_socket_is_exit_3() {
    let directory = Directory::new();
    let missing = directory.0.join("none.sock");
    for arguments in [&["status"][..], &["watch"], &["ping", "a"], &["connect", "a"], &["report"], &["topology"]] {
        fails(&meshctl(&missing, arguments), 3, &[missing.to_str().unwrap(), "start meshd", "--socket"]);
    }
    let stale = directory.0.join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    fails(&meshctl(&stale, &["status"]), 3, &["nobody answers"]);
    // The flag is stronger than the environment.
    fails(&meshctl(&missing, &["status", "--socket", stale.to_str().unwrap()]), 3, &[stale.to_str().unwrap()]);
    // These need no peer.
    assert_eq!(meshctl(&missing, &["secret"]).status.code(), Some(0));
    assert_eq!(meshctl(&missing, &["completions", "zsh"]).status.code(), Some(0));
}

/// An id one byte too long.
const LONG: &str = match std::str::from_utf8(&[b'x'; 257]) {
    Ok(text) => text,
    Err(_) => "",
};

#[test]
fn wrong_usage_is_one_line_and_exit_2() {
    let nowhere = Path::new("/nonexistent/meshd.sock");
    for (arguments, words) in [
        (&[][..], &["a command is missing", "one of: status, topology"][..]),
        (&["sttus"], &["'sttus'", "status"]),
        (&["status", "pers"], &["pers", "peers"]),
        (&["status", "--jsn"], &["'--jsn'", "--json"]),
        (&["status", "peers", "more"], &["more"]),
        (&["topology", "--format", "pdf"], &["'pdf'", "--format", "tree, dot, json, svg"]),
        (&["topology", "--format"], &["--format", "needs a value"]),
        (&["watch", "--count", "0"], &["'0'", "--count", "1 to 1000000"]),
        (&["watch", "--count", "many"], &["'many'", "--count"]),
        (&["ping"], &["NAME"]),
        (&["ping", "a", "-c", "0"], &["'0'", "--count"]),
        (&["ping", "a", "-i", "never"], &["'never'", "--interval", "0.01 to 3600"]),
        (&["ping", ""], &["NAME", "must not be empty"]),
        (&["connect"], &["HOST[:PORT]", "missing"]),
        (&["connect", "host:99999"], &["'host:99999'", "1 to 65535"]),
        (&["connect", "a,b"], &["'a,b'", "separated by spaces"]),
        (&["attach"], &["NETNS"]),
        (&["attach", "box", "10.0.0.1"], &["'10.0.0.1'", "10.32.0.1/12", "auto"]),
        (&["detach", "box", "auto"], &["'auto'", "10.32.0.1/12"]),
        (&["expose", "10.0.0.1/33"], &["'10.0.0.1/33'", "10.32.0.1/12"]),
        (&["hide", "x"], &["'x'"]),
        (&["completions", "csh"], &["'csh'", "bash"]),
        (&["ip"], &["a command is missing", "one of: alloc, claim, lookup, free, list"]),
        (&["ip", "lst"], &["'lst'"]),
        (&["ip", "list", "web"], &["'web'"]),
        (&["ip", "alloc"], &["ID", "missing"]),
        (&["ip", "alloc", ""], &["ID", "must not be empty"]),
        (&["ip", "alloc", "a\tb"], &["ID", "without control characters"]),
        (&["ip", "alloc", LONG], &["ID", "at most 256 bytes are wanted, this is 257"]),
        (&["ip", "alloc", "web", "10.32.0.5"], &["'10.32.0.5'", "CIDR", "a network, such as 10.32.0.0/16"]),
        (&["ip", "alloc", "web", "10.32.0.5/16"], &["'10.32.0.5/16'", "a network, such as 10.32.0.0/16"]),
        (&["ip", "alloc", "web", "fd00::/64"], &["'fd00::/64'", "a network"]),
        (&["ip", "claim", "web"], &["ADDR", "missing"]),
        (&["ip", "claim", "web", "10.32.0.256"], &["'10.32.0.256'", "ADDR", "an IPv4 address, such as 10.32.0.5"]),
        (&["ip", "claim", "web", "fd00::1"], &["'fd00::1'", "an IPv4 address"]),
        (&["ip", "free", "web", "all"], &["'all'", "ADDR"]),
        (&["ip", "lookup", "\u{1b}[31m"], &["ID", "without control characters"]),
        (&["status", "zzz"], &["'zzz'", "one of: peers, links"]),
        (&["rmpeer"], &["NAME|ID", "missing"]),
        (&["rmpeer", ""], &["NAME|ID", "must not be empty"]),
        (&["rmpeer", "x", "--forced"], &["'--forced'", "--force"]),
        (&["leave", "now"], &["'now'"]),
        (&["capture"], &["'capture'"]),
        (&["--socket"], &["--socket", "needs a value"]),
        (&["connect", "a\nb:x"], &["a?b:x"]),
    ] {
        fails(&meshctl(nowhere, arguments), 2, words);
    }
}

#[test]
fn watch_without_a_terminal_prints_and_counts() {
    let server = Server::start(Fake::default());
    let start = Instant::now();
    let output = server.ctl(&["watch", "--count", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).matches("\nLINKS  ").count(), 2);
    assert!(start.elapsed() >= Duration::from_millis(900), "a second lies between");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    let server = Server::start(Fake::default());
    let mut child = Process::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["--socket", server.directory.socket().to_str().unwrap(), "watch", "--count", "20"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let start = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_peer_that_is_silent_is_left_after_a_while() {
    let server = Server::start(Fake::default());
    let start = Instant::now();
    fails(&server.ctl(&["connect", "silence"]), 1, &["too busy"]);
    assert!(start.elapsed() < Duration::from_secs(12));
}

#[test]
fn http_serves_what_reads_and_nothing_else() {
    let server = Server::start(Fake::default());
    for (path, word) in [
        ("/", "/healthz"),
        ("/healthz", "ok"),
        ("/readyz", "ok"),
        ("/v1/status", "\"version\":1"),
        ("/v1/report", "\"settings\""),
    ] {
        let (code, text) = server.http(&get(path));
        assert_eq!(code, 200, "{path}: {text}");
        assert!(text.contains(word), "{path}: {text}");
        assert_eq!(server.socket(&get(path)).0, 200, "{path} on the socket");
    }
    for path in ["/v1/topology", "/v1/macs", "/v1/command", "/v2", "/../etc/passwd"] {
        assert_eq!(server.http(&get(path)).0, 404, "{path}");
    }
    assert_eq!(server.socket(&get("/v1/topology")).0, 200);
    assert_eq!(server.socket(&get("/v1/macs")).0, 200);
    assert_eq!(server.socket(&get("/v1/command")).0, 405);
    assert_eq!(server.http(&post("{\"command\":\"hide\"}")).0, 404);
    assert_eq!(server.http("POST /v1/status HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").0, 405);
    assert_eq!(server.http("DELETE /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").0, 405);
    assert!(server.fake.commands.lock().unwrap().is_empty());
}

#[test]
fn readiness_and_health_tell_the_reason() {
    let server = Server::start(Fake { unready: Some("no peer yet".into()), ..Fake::default() });
    let (code, text) = server.http(&get("/readyz"));
    assert!(code == 503 && text.ends_with("no peer yet\n"), "{text}");
    assert_eq!(server.http(&get("/healthz")).0, 200);
    let server = Server::start(Fake { dead: true, ..Fake::default() });
    let (code, text) = server.http(&get("/healthz"));
    assert!(code == 503 && text.ends_with("worker 1 has ended\n"), "{text}");
    assert_eq!(server.http(&get("/metrics")).0, 503);
}

#[test]
fn metrics_come_in_openmetrics() {
    let server = Server::start(Fake::default());
    let (code, text) = server.http(&get("/metrics"));
    assert_eq!(code, 200);
    assert!(text.contains("content-type: application/openmetrics-text"), "{text}");
    assert!(text.ends_with("# EOF\n"));
    for reason in DropReason::ALL {
        assert!(text.contains(&format!("\nmesh_data_drops_total{{reason=\"{}\"}} ", reason.name())), "{reason:?}");
    }
}

#[test]
fn bad_commands_are_refused_and_change_nothing() {
    let server = Server::start(Fake::default());
    for (body, code) in [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        ("{\"command\":\"reboot\"}", 400),
        ("{\"command\":\"connect\"}", 400),
        ("{\"command\":\"connect\",\"addresses\":7}", 400),
    ] {
        let (got, text) = server.socket(&post(body));
        assert_eq!(got, code, "{body}: {text}");
        assert!(text.contains("\"reply\":\"refused\""), "{text}");
    }
    let big = format!("{{\"command\":\"connect\",\"addresses\":[\"{}\"]}}", "x".repeat(64 * 1024));
    let (code, text) = server.socket(&post(&big));
    assert_eq!(code, 413, "{text}");
    // Without a length said beforehand, too.
    let chunk = format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len());
    let head = "POST /v1/command HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(server.socket(&format!("{head}{chunk}")).0, 413);
    assert!(server.fake.commands.lock().unwrap().is_empty());
    for garbage in ["\0\u{1}\u{2}\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET\r\n\r\n"] {
        assert!(matches!(server.socket(garbage).0, 0 | 400), "{garbage:?}");
    }
    let (code, _) = server.socket(&format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(64 * 1024)));
    assert!(matches!(code, 0 | 431), "{code}");
    assert_eq!(server.ctl(&["status"]).status.code(), Some(0), "and it still works");
}

#[test]
fn slow_clients_lose_their_connection_and_hold_nobody() {
    let server = Server::start(Fake::default());
    let start = Instant::now();
    // As many as there is room for: silent ones, ones in the middle of a header, ones in the middle of a body.
    let parts =
        ["", "GET / HTTP/1.1\r\nhos", "POST /v1/command HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{\"comm"];
    let mut slow: Vec<UnixStream> = (0..70)
        .map(|number| {
            let mut stream = UnixStream::connect(server.directory.socket()).unwrap();
            stream.write_all(parts[number % parts.len()].as_bytes()).unwrap();
            stream
        })
        .collect();
    // The port has room of its own.
    assert_eq!(server.http(&get("/healthz")).0, 200);
    assert!(start.elapsed() < Duration::from_secs(2));
    // The socket serves again as soon as their time is up.
    assert_eq!(server.ctl(&["status"]).status.code(), Some(0));
    for stream in slow.iter_mut().take(60) {
        stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

#[test]
fn the_socket_is_made_with_care() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let directory = Directory::new();
    let path = directory.0.join("a/b/meshd.sock");
    let first = bind_socket(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let error = bind_socket(&path).unwrap_err();
    assert!(matches!(error, ListenError::Taken(_)), "{error}");
    drop(first);
    assert!(!path.exists(), "the file goes with its listener");
    // One that was left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let second = bind_socket(&path).unwrap();
    // A file that is not ours any more stays.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(second);
    let error = bind_socket(&path).unwrap_err();
    assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let error = bind_socket(&directory.0.join("x".repeat(120))).unwrap_err();
    assert!(matches!(error, ListenError::TooLong(_)), "{error}");
    let error = bind_http("192.0.2.1:1".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("--http") && !error.to_string().contains('\n'), "{error}");
}

#[test]
fn the_cni_plugin_on_the_command_line() {
    let run = |arguments: &[&str]| {
        let mut command = Process::new(env!("CARGO_BIN_EXE_mesh-cni"));
        command.args(arguments).env_remove("CNI_COMMAND").output().unwrap()
    };
    for (arguments, code, words) in [
        (&[][..], 2, "a command is missing: one of: install, uninstall"),
        (&["--bogus"], 2, "there is no flag '--bogus'"),
        (&["install", "--conf-dir", "/proc/x"], 2, "--bin-dir <DIR> is missing"),
        (&["install", "--bin-dir", "/proc/x", "--conf-dir", "/proc/y"], 1, "/proc/x"),
        (&["uninstall", "--bin-dir", "/proc/version", "--conf-dir", "/proc/version"], 1, "/proc/version"),
    ] {
        let output = run(arguments);
        let line = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
        assert!(
            line.starts_with("mesh-cni: ") && line.contains(words) && line.lines().count() == 1,
            "{arguments:?}: {line}"
        );
    }
    assert_eq!(run(&["--version"]).status.code(), Some(0));
    assert_eq!(run(&["install", "--help"]).status.code(), Some(0));
    // For a runtime every word goes to standard output, as JSON.
    let mut command = Process::new(env!("CARGO_BIN_EXE_mesh-cni"));
    let output = command.env("CNI_COMMAND", "FROB").stdin(std::process::Stdio::null()).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &said["code"]), (Some(1), &Value::from(4)));
}
