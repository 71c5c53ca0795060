//! How long an address takes: asked for at the control socket of a real `meshd`, from connecting to the answer, with the sync to disk before it.
//!
//! `cargo bench --bench lease`. The state lies in the build's directory, so its disk counts. The last line repeats what was asked for: nothing is written.

#[path = "../netns/lab.rs"]
mod lab;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::Lab;

fn main() -> ExitCode {
    if !lab::inside() {
        if let Err(error) = lab::install_tools() {
            eprintln!("lease: {error}");
            return ExitCode::FAILURE;
        }
        return match lab::enter(&[]) {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
    }
    let lab = Lab::new().expect("lab");
    let host = lab.host("a");
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lease-{}", std::process::id()));
    std::fs::create_dir_all(&state).expect("a directory for the state");
    std::os::unix::fs::symlink(&state, lab.dir.join("a.state")).expect("a link to it");
    let peer = lab.meshd(&host, &["--ipam-range", "10.32.0.0/12"]);
    peer.await_status("ready", Duration::from_secs(10), |status| status["ipam"]["state"] == "ready");
    for (what, round) in [("new", "a"), ("new", "b"), ("new", "c"), ("known", "c")] {
        let mut times: Vec<Duration> =
            (0..COUNT).map(|number| lease(&peer.socket, &format!("{round}{number}"))).collect();
        times.sort_unstable();
        let [median, most] = [COUNT / 2, COUNT * 9 / 10].map(|at| times[at].as_secs_f64() * 1e3);
        println!("{COUNT} {what} addresses: median {median:.2} ms, nine of ten under {most:.2} ms");
    }
    drop(peer);
    let _ = std::fs::remove_dir_all(state);
    ExitCode::SUCCESS
}

fn lease(socket: &Path, id: &str) -> Duration {
    let body = format!(r#"{{"command":"ip-alloc","id":"{id}"}}"#);
    let head = "POST /v1/command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket).expect("meshd's socket");
    stream.write_all(request.as_bytes()).expect("it is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let took = began.elapsed();
    assert!(answer.contains(r#""address""#), "{answer}");
    // As containers come: not one on the heels of another.
    std::thread::sleep(Duration::from_millis(10));
    took
}

const COUNT: usize = 300;
