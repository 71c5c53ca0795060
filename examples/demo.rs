//! The main job, shown: a mesh of three machines in a line, made of network namespaces, with a container on each.
//!
//! ```text
//!   c1 ─ left ──wire── middle ──wire── right ─ c3      left and right cannot reach each other:
//!                        │                             what they say goes through middle, which cannot read it
//!                        c2
//! ```
//! `cargo run --release --example demo` builds what it needs, starts three real `meshd` that split a range of addresses, gives each container one of its
//! machine's share, sends traffic from end to end, shows `meshctl status` and the topology, and takes everything away again, on Ctrl-C and on failure too.

#[path = "../tests/netns/lab.rs"]
mod lab;

use std::io::IsTerminal;
use std::process::{Command, ExitCode};
use std::time::Duration;

use lab::{Host, Lab, Meshd};

fn main() -> ExitCode {
    let done = if lab::inside() { show() } else { prepare() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Outside: tools and binaries, then the lab.
fn prepare() -> Result<(), String> {
    lab::install_tools()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--bins", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let built = build.status().map_err(|error| format!("cargo: {error}"))?;
    if !built.success() {
        return Err("the build failed; its words are above".into());
    }
    let status = lab::enter(&[])?;
    if status.success() { Ok(()) } else { Err(format!("ended early ({status}); what it said is above")) }
}

/// Inside the lab.
fn show() -> Result<(), String> {
    std::panic::set_hook(Box::new(|what| eprintln!("demo: {what}")));
    let lab = Lab::new()?;
    step("three machines in a line: left ── middle ── right");
    let hosts = ["left", "middle", "right"].map(|name| lab.host(name));
    let [left, middle, right] = &hosts;
    lab.wire(left, "192.168.1.1/24", middle, "192.168.1.2/24");
    lab.wire(middle, "192.168.2.1/24", right, "192.168.2.2/24");
    println!("left pings right over the underlay: {}", if left.reaches("192.168.2.2") { "reached" } else { "no way" });

    step("a peer on each: one secret, one address to join");
    let range = ["--ipam-range", "10.32.0.0/12"];
    let peers = [
        lab.meshd(left, &[&range[..], &["--peer", "192.168.1.2"]].concat()),
        lab.meshd(middle, &range),
        lab.meshd(right, &[&range[..], &["--peer", "192.168.2.1"]].concat()),
    ];
    for peer in &peers {
        println!("meshd --name {} --secret-file …", peer.host.name);
    }
    for peer in &peers {
        peer.await_peers(3, Duration::from_secs(20));
    }

    step("they split 10.32.0.0/12: each gives out addresses of its own share, without asking anybody");
    for peer in &peers {
        peer.await_status("a share of the addresses", Duration::from_secs(20), |status| {
            status["ipam"]["owned"].as_u64().is_some_and(|owned| owned > 0)
        });
    }
    peers[0].await_status("all to be of one view", Duration::from_secs(20), |status| {
        let shares = status["ipam"]["shares"].as_array().cloned().unwrap_or_default();
        shares.len() == 3 && shares.iter().all(|share| share["digest"] == shares[0]["digest"])
    });
    print!("{}", peers[0].ctl(&["status", "ipam"]));

    step("a container on each machine");
    let containers = attach(&lab, &peers);
    let [(c1, _), _, (c3, address)] = &containers;
    c1.await_ping(address, Duration::from_secs(20));

    step("ping from the container on left to the one on right, through middle");
    print!("{}", c1.run(&["ping", "-n", "-c", "3", "-i", "0.2", address]));

    step("a transfer from end to end");
    let server = c3.spawn(&["iperf3", "-s", "-1"]);
    std::thread::sleep(Duration::from_millis(300));
    let report = c1.run(&["iperf3", "-c", address, "-t", "3", "-f", "m"]);
    drop(server);
    report
        .lines()
        .filter(|line| line.contains("sender") || line.contains("receiver"))
        .for_each(|line| println!("{line}"));

    step("meshctl status, on left");
    print!("{}", peers[0].ctl(&["status"]));
    step("meshctl topology");
    print!("{}", peers[0].ctl(&["topology"]));
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        step("look around from another terminal, then press Enter to take it all away");
        let me = std::process::id();
        println!("the lab is process {me} of its own namespace; its parent outside: pgrep -n unshare");
        let _ = std::io::stdin().read_line(&mut String::new());
    }
    step("stopping");
    for mut peer in peers {
        let status = peer.stop("TERM");
        if !status.success() {
            return Err(format!("meshd on {} ended with {status}:\n{}", peer.host.name, peer.log_text()));
        }
    }
    println!("done");
    Ok(())
}

/// Containers and their addresses.
fn attach(lab: &Lab, peers: &[Meshd; 3]) -> [(Host, String); 3] {
    std::array::from_fn(|at| {
        let name = format!("c{}", at + 1);
        let host = lab.host(&name);
        let said = peers[at].ctl(&["attach", &name, "auto"]);
        println!("meshctl attach {name} auto     (on {})  {}", peers[at].host.name, said.trim());
        let address = said.split_whitespace().last().unwrap_or_default();
        (host, address.split('/').next().unwrap_or_default().to_owned())
    })
}

fn step(what: &str) {
    println!("\n── {what}");
}
