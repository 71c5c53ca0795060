//! Tells the programs their commit and target, for `--version`.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=MESHNET_COMMIT");
    let commit = std::env::var("MESHNET_COMMIT").ok().or_else(commit).unwrap_or_else(|| "unknown commit".into());
    println!("cargo::rustc-env=MESHNET_COMMIT={commit}");
    println!("cargo::rustc-env=MESHNET_TARGET={}", std::env::var("TARGET").unwrap_or_else(|_| "unknown target".into()));
}

/// The commit of the checkout; none when this is not one, as in a source archive.
fn commit() -> Option<String> {
    // The log of HEAD changes with each commit and checkout; without it (or without git) nothing is watched.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    } else {
        println!("cargo::rerun-if-changed=src/build.rs");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
