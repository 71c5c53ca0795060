//! Reading the status from a program: who is reachable, and how.
//!
//! `cargo run --example read_status [-- SOCKET]` asks the local `meshd` over its control socket. The document is that of `meshctl status --json`;
//! its types are in the crate `meshnet-proto`, so a program in Rust need not parse it by hand.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use meshnet_proto::api::Status;

fn main() -> ExitCode {
    let socket = std::env::args().nth(1).unwrap_or_else(|| "/run/meshnet/meshd.sock".into());
    match status(&socket) {
        Ok(status) => {
            print(&status);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("read_status: {socket}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One request, one answer: HTTP/1.0 needs no more than this.
fn status(socket: &str) -> Result<Status, Box<dyn std::error::Error>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /v1/status HTTP/1.0\r\nHost: meshd\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    Ok(serde_json::from_str(body)?)
}

fn print(status: &Status) {
    println!("{} sees {} peers:", status.peer.name, status.peers.len());
    for peer in &status.peers {
        let how = match (peer.reachable, peer.hops) {
            (false, _) => "unreachable".to_owned(),
            (true, 0) => "this one".to_owned(),
            (true, 1) => "direct".to_owned(),
            (true, hops) => format!("{hops} hops"),
        };
        println!("  {:<16} {}", peer.name, how);
    }
    for problem in &status.problems {
        println!("problem: {}: {}", problem.what, problem.remedy);
    }
}
