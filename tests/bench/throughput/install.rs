//! Other overlays, from Debian and crates.io, before the lab (which has no network) is entered.
//!
//! Of wireguard-go and nebula the newest packages of Debian are unpacked under the build's directory, since old ones would be weak
//! opponents (wireguard-go learnt segmentation offloads in between); where those cannot be had or do not run, the system's release of
//! Debian provides them. Nothing is ever faked: what fails is left out, and why stands under the table.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::contenders::Contender;
use crate::lab;

/// Brings the rivals among these. Failures are kept for [`left_out`].
pub fn rivals(chosen: &[&Contender]) -> Result<(), String> {
    let mut lines = String::new();
    std::fs::create_dir_all(dir().join("bin")).map_err(|error| format!("{}: {error}", dir().display()))?;
    for name in chosen.iter().filter(|contender| contender.rival).map(|contender| contender.name) {
        let done = match name {
            "wireguard-go" => {
                newest("wireguard-go", &["wireguard-go"]).and_then(|()| debian("wireguard-tools", "wg").map(drop))
            }
            "nebula" => newest("nebula", &["nebula", "nebula-cert"]),
            "tinc" => debian("tinc", "tincd").and_then(|version| note_version("tinc", &version)),
            _ => vpncloud(),
        };
        if let Err(why) = done {
            lines.push_str(&format!("{name}\t{}\n", why.replace('\n', " ")));
        }
    }
    std::fs::write(dir().join(LEFT_OUT), lines).map_err(|error| format!("{}: {error}", dir().display()))
}

/// Names and reasons of the rivals that could not be had.
pub fn left_out() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(dir().join(LEFT_OUT)).unwrap_or_default();
    text.lines().filter_map(|line| line.split_once('\t')).map(|(name, why)| (name.to_owned(), why.to_owned())).collect()
}

/// A rival's program, ours before the system's.
pub fn program(name: &str) -> Result<String, String> {
    let own = Some(dir().join("bin").join(name)).filter(|file| file.is_file());
    let file = own.or_else(|| lab::find(name)).ok_or_else(|| format!("{name} is not installed"))?;
    Ok(file.to_string_lossy().into_owned())
}

/// The version of a rival that was installed, without Debian's part.
pub fn version(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(dir().join(format!("{name}.version"))).ok()?;
    Some(text.trim().split(['-', '+']).next()?.to_owned())
}

fn note_version(name: &str, version: &str) -> Result<(), String> {
    let file = dir().join(format!("{name}.version"));
    std::fs::write(&file, version).map_err(|error| format!("{}: {error}", file.display()))
}

/// Installs a package of the system's Debian unless `program` is there; gives its version.
fn debian(package: &str, program: &str) -> Result<String, String> {
    if lab::find(program).is_none() {
        if !lab::is_root() {
            return Err(format!("not installed, and only root may: apt-get install {package}"));
        }
        eprintln!("installing package: {package}");
        let install = ["install", "-qy", "--no-install-recommends", package];
        quiet(Command::new("apt-get").args(install).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    lab::run("dpkg-query", &["-W", "-f", "${Version}", package])
}

/// Unpacks Debian's newest package; falls back to that of the system's release.
fn newest(package: &str, programs: &[&str]) -> Result<(), String> {
    if programs.iter().all(|program| dir().join("bin").join(program).is_file()) {
        return Ok(());
    }
    unpack(package, programs).or_else(|why| {
        eprintln!("the newest {package} cannot be had ({why}); taking that of this release");
        programs.iter().for_each(|program| drop(std::fs::remove_file(dir().join("bin").join(program))));
        note_version(package, &debian(package, programs[0])?)
    })
}

/// By apt with sources, lists and cache of its own, so that the system's stay as they are.
fn unpack(package: &str, programs: &[&str]) -> Result<(), String> {
    let root = dir().join("apt");
    let make = |path: &Path| std::fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()));
    for place in ["lists/partial", "cache/archives/partial", "sources", "debs"] {
        make(&root.join(place))?;
    }
    std::fs::write(root.join("sources/sid.sources"), SID).map_err(|error| format!("{}: {error}", root.display()))?;
    let place = |key: &str, name: &str| format!("{key}={}", root.join(name).display());
    let options = [
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        "Dir::Etc::preferencesparts=/dev/null".to_owned(),
        // It would have to own the directories of whoever builds.
        "APT::Sandbox::User=root".to_owned(),
        place("Dir::Etc::sourceparts", "sources"),
        place("Dir::State::lists", "lists"),
        place("Dir::Cache", "cache"),
    ];
    let apt = |rest: &[&str]| {
        let options = options.iter().flat_map(|option| ["-o", option]);
        quiet(Command::new("apt-get").args(options).args(rest).current_dir(root.join("debs")))
    };
    eprintln!("fetching Debian's newest package: {package}");
    if !root.join("cache/pkgcache.bin").is_file() {
        apt(&["update", "-q"])?;
    }
    apt(&["download", "-q", &format!("{package}/sid")])?;
    let debs = std::fs::read_dir(root.join("debs")).map_err(|error| error.to_string())?.flatten();
    let start = format!("{package}_");
    let deb = debs
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)));
    let deb = deb.ok_or("apt-get download left no file")?.to_string_lossy().into_owned();
    let tree = root.join(package);
    lab::run("dpkg-deb", &["-x", &deb, &tree.to_string_lossy()])?;
    for program in programs {
        let (from, to) = (tree.join("usr/bin").join(program), dir().join("bin").join(program));
        std::fs::copy(&from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
        // Whether this system's libraries do: both end at once with a version or their usage.
        let usage =
            Command::new(&to).arg("-version").stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let words = String::from_utf8_lossy(&usage.stderr).into_owned();
        if words.contains("GLIBC") || words.contains("shared libraries") {
            return Err(words.lines().next().unwrap_or_default().to_owned());
        }
    }
    note_version(package, &lab::run("dpkg-deb", &["-f", &deb, "Version"])?)
}

fn vpncloud() -> Result<(), String> {
    if !dir().join("bin/vpncloud").is_file() {
        eprintln!("building vpncloud {VPNCLOUD} from crates.io");
        let build = dir().join("build");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut command = Command::new(cargo);
        command.args([
            "install",
            "-q",
            "--locked",
            "--no-default-features",
            "--features",
            "nat",
            "--version",
            VPNCLOUD,
            "--root",
        ]);
        // Not from here: the settings of this repository are not its.
        quiet(command.arg(dir()).arg("vpncloud").env("CARGO_TARGET_DIR", &build).current_dir(dir()))?;
        let _ = std::fs::remove_dir_all(build);
    }
    note_version("vpncloud", VPNCLOUD)
}

/// Runs it; on failure its last words.
fn quiet(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it failed");
            Err(format!("{name}: {}", last.trim()))
        }
    }
}

fn dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("rivals")
}

const LEFT_OUT: &str = "left-out";
const VPNCLOUD: &str = "2.3.0";
const SID: &str = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: sid\nComponents: main\n\
    Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";
