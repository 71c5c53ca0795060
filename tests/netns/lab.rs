//! A lab of hosts on one machine: network namespaces, veth wires between them, real `meshd` processes in them.
//!
//! Everything happens inside a network, mount and process namespace of its own: when its first process ends, by whatever cause, the kernel
//! ends every process in it and takes away every interface, so nothing can be left behind and labs never see each other.
//! Works as root; without, in a user namespace, where the system allows that.

#![allow(dead_code, reason = "each user of this file takes a part of it")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Set in the process that lives inside a lab.
const INSIDE: &str = "MESHNET_LAB";

/// Packages of Debian that a lab needs, with a program of each by which we see that it is there.
pub const TOOLS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("ethtool", "ethtool"),
];

/// Installs what is missing, saying what. An error names what to do.
pub fn install_tools() -> Result<(), String> {
    let missing: Vec<&str> = TOOLS.iter().filter(|(program, _)| find(program).is_none()).map(|tool| tool.1).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let advice = format!("install them: apt-get install {list}");
    if !is_root() {
        return Err(format!("missing packages: {list}; as root, {advice}"));
    }
    eprintln!("installing packages: {list}");
    let apt = |arguments: &[&str]| {
        Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status()
    };
    let _ = apt(&["update", "-q"]);
    let mut arguments = vec!["install", "-qy", "--no-install-recommends"];
    arguments.extend(missing);
    match apt(&arguments) {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("could not install {list}; {advice}")),
    }
}

/// Where a program is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/local/sbin"]);
    dirs.map(|dir| Path::new(dir).join(program)).find(|file| file.is_file())
}

/// Whether packages can be installed.
pub fn is_root() -> bool {
    run("id", &["-u"]).map(|out| out.trim() == "0").unwrap_or(false)
}

/// Runs this very program again with `arguments`, inside a lab. Gives its exit status.
pub fn enter(arguments: &[&str]) -> Result<ExitStatus, String> {
    // Should this process be killed, so is the lab.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare"]);
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let exe = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(exe).args(arguments).env(INSIDE, "1");
    let status =
        command.status().map_err(|error| format!("setpriv: {error}; install it: apt-get install util-linux"))?;
    Ok(status)
}

/// True in the process that [`enter`] started.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs `body` in a lab: for tests. `name` is the test's own name, as the test program knows it.
pub fn test(name: &str, body: impl FnOnce(&Lab)) {
    if inside() {
        let lab = Lab::new().unwrap_or_else(|error| panic!("{error}"));
        body(&lab);
        lab.assert_quiet();
        return;
    }
    let _slot = Slot::take();
    let status = enter(&["--exact", name, "--nocapture", "--test-threads=1"]).unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "{name} failed inside its lab ({status}); its output is above");
}

/// Labs share the cores: a handful at a time, so that a loaded machine does not look like a slow mesh.
struct Slot(std::fs::File);

impl Slot {
    fn take() -> Slot {
        let count = 2;
        loop {
            for number in 0..count {
                // In the build's directory: another user's files are no business of this one's.
                let place = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
                let path = place.join(format!("meshnet-lab-slot-{number}"));
                let Ok(file) = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path) else {
                    continue;
                };
                if file.try_lock().is_ok() {
                    return Slot(file);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A lab.
pub struct Lab {
    /// Files of this lab: states, sockets, logs.
    pub dir: PathBuf,
    /// The cluster secret that its peers share.
    pub secret: PathBuf,
    wires: AtomicU32,
}

impl Lab {
    /// Prepares the namespace that this process is in.
    pub fn new() -> Result<Lab, String> {
        // `ip netns` keeps names under /run, which is ours alone from here on.
        run("mount", &["-t", "tmpfs", "none", "/run"])?;
        run("ip", &["link", "set", "lo", "up"])?;
        let dir = PathBuf::from("/run/lab");
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let lab = Lab { secret: dir.join("secret"), dir, wires: AtomicU32::new(0) };
        let secret = run(program("meshctl").to_str().unwrap_or_default(), &["secret"])?;
        write_private(&lab.secret, &secret)?;
        Ok(lab)
    }

    /// A host: a namespace of its own with nothing but loopback.
    pub fn host(&self, name: &str) -> Host {
        ok("ip", &["netns", "add", name]);
        let host = Host { name: name.to_owned() };
        host.run(&["ip", "link", "set", "lo", "up"]);
        // Duplicate address detection would hold IPv6 addresses back for a second.
        host.run(&["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0"]);
        host
    }

    /// A wire between two hosts. Gives the name of the interface, the same at both ends.
    pub fn wire(&self, a: &Host, a_address: &str, b: &Host, b_address: &str) -> String {
        let name = format!("wire{}", self.wires.fetch_add(1, Ordering::Relaxed));
        ok(
            "ip",
            &["-n", &a.name, "link", "add", "name", &name, "type", "veth", "peer", "name", &name, "netns", &b.name],
        );
        for (host, address) in [(a, a_address), (b, b_address)] {
            host.run(&["ip", "address", "add", address, "dev", &name]);
            host.run(&["ip", "link", "set", &name, "up"]);
        }
        name
    }

    /// A switch that joins many hosts on one underlay.
    pub fn switch(&self, name: &str) -> Switch {
        let host = self.host(name);
        host.run(&["ip", "link", "add", "name", "ports", "type", "bridge", "mcast_snooping", "0"]);
        host.run(&["ip", "link", "set", "ports", "up"]);
        Switch { host, ports: AtomicU32::new(0) }
    }

    /// Starts `meshd` on a host, with the lab's secret and a state directory of the host's.
    pub fn meshd(&self, host: &Host, arguments: &[&str]) -> Meshd {
        let secret = self.secret.to_string_lossy().into_owned();
        let mut all = vec!["--secret-file", secret.as_str()];
        all.extend(arguments);
        self.meshd_bare(host, &all)
    }

    /// The same without the secret.
    pub fn meshd_bare(&self, host: &Host, arguments: &[&str]) -> Meshd {
        self.meshd_at(host, &self.dir.join(format!("{}.sock", host.name)), arguments)
    }

    /// The same with a control socket elsewhere: for a second one on the same host.
    pub fn meshd_at(&self, host: &Host, socket: &Path, arguments: &[&str]) -> Meshd {
        let state = self.dir.join(format!("{}.state", host.name));
        let socket = socket.to_owned();
        let log = self.dir.join(format!("{}.log", host.name));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("log file");
        // What most tests have no use for is off, unless they say otherwise.
        let off = ["--ipam-range", "--http"].into_iter().filter(|flag| !arguments.contains(flag));
        let child = Command::new("ip")
            .args(["netns", "exec", &host.name])
            .arg(program("meshd"))
            .args(["--name", &host.name, "--log-level", "info"])
            .args(off.flat_map(|flag| [flag, "none"]))
            .arg("--state-dir")
            .arg(&state)
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("ip netns exec meshd");
        Meshd { child, host: host.clone(), socket, log, state }
    }

    /// A container: a namespace attached to the host's bridge with an address, by `meshctl attach`.
    pub fn container(&self, meshd: &Meshd, name: &str, address: &str) -> Host {
        let host = self.host(name);
        meshd.ctl(&["attach", name, address]);
        host
    }

    /// After a clean run no log has a warning, and no socket has dropped a datagram for want of room.
    pub fn assert_quiet(&self) {
        let logs = std::fs::read_dir(&self.dir).expect("lab directory").flatten();
        for entry in logs.filter(|entry| entry.path().extension().is_some_and(|end| end == "log")) {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let loud = text.lines().find(|line| line.contains("panicked") || line.contains(" ERROR "));
            assert!(loud.is_none(), "{}: {}", entry.path().display(), loud.unwrap_or_default());
        }
    }
}

/// A namespace.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
}

impl Host {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command there; it must succeed. Gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{}: {}: {}{}",
            self.name,
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command there.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("ip netns exec")
    }

    /// Starts a command there.
    pub fn spawn(&self, arguments: &[&str]) -> Background {
        let child =
            self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ip netns exec");
        Background(child)
    }

    /// Captures what passes an interface into a file, from now until it is stopped.
    pub fn capture(&self, device: &str, file: &str, filter: &str) -> Background {
        let tcpdump = ["tcpdump", "-Z", "root", "--immediate-mode", "-i", device, "-s", "0", "-U", "-w", file, filter];
        let mut capture = self.spawn(&tcpdump);
        // It says when it listens.
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(b"listening on") {
            let read = capture.0.stderr.as_mut().map(|stderr| stderr.read(&mut byte));
            assert!(matches!(read, Some(Ok(1))), "tcpdump: {}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        std::thread::sleep(Duration::from_millis(100));
        capture
    }

    /// Whether one ping of at most a second comes back.
    pub fn reaches(&self, address: &str) -> bool {
        self.output(&["ping", "-n", "-q", "-c", "1", "-W", "1", address]).status.success()
    }

    /// Waits until a ping comes back.
    pub fn await_ping(&self, address: &str, limit: Duration) {
        wait(&format!("{} pings {address}", self.name), limit, || self.reaches(address));
    }

    /// Sends `count` pings, `per_second` a second; gives how many came back.
    pub fn pings(&self, address: &str, count: u32, per_second: u32) -> u32 {
        let interval = format!("{:.4}", 1.0 / f64::from(per_second));
        let count = count.to_string();
        let output = self.output(&["ping", "-n", "-q", "-i", &interval, "-c", &count, "-W", "1", address]);
        received(&String::from_utf8_lossy(&output.stdout))
    }
}

/// How many replies `ping -q` counted.
pub fn received(text: &str) -> u32 {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).find(|pair| pair[1].starts_with("received")).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// A process that is ended with its owner.
pub struct Background(Child);

impl Background {
    /// Ends it by interrupt; gives what it printed to standard output and error.
    pub fn stop(mut self) -> String {
        let _ = run("kill", &["-INT", &self.0.id().to_string()]);
        self.finish()
    }

    /// Waits for its end; gives what it printed.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        if let Some(out) = self.0.stdout.as_mut() {
            let _ = out.read_to_string(&mut text);
        }
        if let Some(err) = self.0.stderr.as_mut() {
            let _ = err.read_to_string(&mut text);
        }
        let _ = self.0.wait();
        text
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A switch.
pub struct Switch {
    host: Host,
    ports: AtomicU32,
}

impl Switch {
    /// Plugs a host in. Its interface is called `eth0`.
    pub fn plug(&self, host: &Host, address: &str) {
        let port = format!("port{}", self.ports.fetch_add(1, Ordering::Relaxed));
        let inner = &self.host.name;
        ok(
            "ip",
            &["-n", inner, "link", "add", "name", &port, "type", "veth", "peer", "name", "eth0", "netns", &host.name],
        );
        self.host.run(&["ip", "link", "set", &port, "master", "ports", "up"]);
        host.run(&["ip", "address", "add", address, "dev", "eth0"]);
        host.run(&["ip", "link", "set", "eth0", "up"]);
    }

    /// The switch's own namespace, to filter in.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

/// A running `meshd`.
pub struct Meshd {
    child: Child,
    /// Where it runs.
    pub host: Host,
    /// Its control socket.
    pub socket: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its state directory.
    pub state: PathBuf,
}

impl Meshd {
    /// Process id of `meshd` itself (`ip netns exec` replaces itself by it).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `meshctl` with this peer's socket; it must succeed.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.ctl_output(arguments);
        assert!(
            output.status.success(),
            "meshctl {} at {}: {}{}\n{}",
            arguments.join(" "),
            self.host.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_tail()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `meshctl` with this peer's socket. It runs outside of the host: the socket is a file.
    pub fn ctl_output(&self, arguments: &[&str]) -> Output {
        Command::new(program("meshctl")).arg("--socket").arg(&self.socket).args(arguments).output().expect("meshctl")
    }

    /// `meshctl status --json`, or null while there is nobody at the socket.
    pub fn status(&self) -> Value {
        let output = self.ctl_output(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until the status satisfies `test`.
    pub fn await_status(&self, what: &str, limit: Duration, test: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let label = format!("{}: {what}", self.host.name);
        let done = poll(limit, || {
            last = self.status();
            test(&last)
        });
        if !done {
            let text = serde_json::to_string_pretty(&last).unwrap_or_default();
            panic!("not within {limit:?}: {label}\n{text}\n{}", self.log_tail());
        }
        last
    }

    /// Waits until the socket answers.
    pub fn await_up(&self) {
        self.await_status("answers", Duration::from_secs(10), |status| !status.is_null());
    }

    /// Waits until so many peers, this one included, are reachable.
    pub fn await_peers(&self, count: usize, limit: Duration) -> Value {
        self.await_status(&format!("{count} peers"), limit, |status| reachable(status) == count)
    }

    /// Ends it with a signal and waits; gives the exit status.
    pub fn stop(&mut self, signal: &str) -> ExitStatus {
        let _ = run("kill", &[&format!("-{signal}"), &self.child.id().to_string()]);
        self.child.wait().expect("wait for meshd")
    }

    /// Waits for it to end by itself.
    pub fn await_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        poll(limit, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status
    }

    /// The whole log.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Meshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many peers a status calls reachable.
pub fn reachable(status: &Value) -> usize {
    status["peers"].as_array().map_or(0, |peers| peers.iter().filter(|peer| peer["reachable"] == true).count())
}

/// Milliseconds of processor time that a process has used.
pub fn cpu_ms(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10
}

/// How many links a status calls established.
pub fn established(status: &Value) -> usize {
    status["links"].as_array().map_or(0, |links| links.iter().filter(|link| link["state"] == "established").count())
}

/// Where a binary of this build is.
pub fn program(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("MESHNET_BIN_DIR") {
        return PathBuf::from(dir).join(name);
    }
    // Tests are in target/PROFILE/deps, examples in target/PROFILE/examples, binaries in target/PROFILE.
    let exe = std::env::current_exe().expect("own path");
    exe.ancestors().map(|dir| dir.join(name)).find(|file| file.is_file()).unwrap_or_else(|| PathBuf::from(name))
}

/// Runs a command here; gives what it printed, or one line that says what failed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {}: {}", arguments.join(" "), words.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same; it must succeed.
pub fn ok(program: &str, arguments: &[&str]) -> String {
    run(program, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// Waits until `test` holds, or panics with `what`.
pub fn wait(what: &str, limit: Duration, test: impl FnMut() -> bool) {
    assert!(poll(limit, test), "not within {limit:?}: {what}");
}

/// Asks `test` until it holds; false when it did not within the limit.
pub fn poll(limit: Duration, mut test: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if test() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| format!("{}: {error}", path.display()))
}
