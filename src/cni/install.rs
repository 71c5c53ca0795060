//! `mesh-cni install` and `uninstall`: the plugin and its configuration on a machine, so that at no moment a runtime finds half of it.
//!
//! ```text
//! install     programs (each: .NAME, sync, rename) ─▶ record of what was put there ─▶ configuration, by rename, last
//! uninstall   configuration first ─▶ what the record names ─▶ the record
//! ```
//! Programs that the machine has stay its own; those that an earlier install put there are brought up to date.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::config::SOCKET;
use crate::netlink::{Netlink, nft};

/// What is put where.
#[derive(Debug, Clone, Args)]
pub struct Install {
    #[command(flatten)]
    dirs: Dirs,
    /// Where loopback, portmap and bandwidth are taken from when BIN-DIR lacks them
    #[arg(long, value_name = "DIR", env = "MESH_CNI_PLUGINS_FROM")]
    plugins_from: Option<PathBuf>,
    /// Name of the network in the configuration
    #[arg(long, value_name = "NAME", env = "MESH_CNI_NETWORK", default_value = "meshnet")]
    network: String,
    /// The control socket of meshd, as the runtime's machine sees it
    #[arg(long, value_name = "PATH", env = "MESH_CNI_SOCKET", default_value = SOCKET)]
    socket: PathBuf,
}

/// What is taken away.
#[derive(Debug, Clone, Args)]
pub struct Uninstall {
    #[command(flatten)]
    dirs: Dirs,
    /// And what is left of meshd on this machine once it is stopped: its tables of nftables, containers' interfaces, the bridge
    #[arg(long, env = "MESH_CNI_DEVICES")]
    devices: bool,
    /// The bridge of that meshd
    #[arg(long, value_name = "NAME", env = "MESH_CNI_BRIDGE", default_value = "mesh0")]
    bridge: String,
    /// The control socket of that meshd: with --devices it must be silent within 10 s, as meshd would put back what is taken away
    #[arg(long, value_name = "PATH", env = "MESH_CNI_SOCKET", default_value = SOCKET)]
    socket: PathBuf,
    /// And all that is in this folder, such as /var/lib/meshnet, /run/meshnet and /var/lib/cni/meshnet; the folder stays (repeats)
    #[arg(long, value_name = "DIR")]
    empty: Vec<PathBuf>,
}

#[derive(Debug, Clone, Args)]
struct Dirs {
    /// Where the runtime looks for plugins (most often /opt/cni/bin)
    #[arg(long, value_name = "DIR", env = "MESH_CNI_BIN_DIR")]
    bin_dir: PathBuf,
    /// Where the runtime looks for configurations (most often /etc/cni/net.d)
    #[arg(long, value_name = "DIR", env = "MESH_CNI_CONF_DIR")]
    conf_dir: PathBuf,
    /// Name of the configuration's file: runtimes take the first one by name
    #[arg(long, value_name = "NAME", env = "MESH_CNI_CONF_NAME", default_value = "10-meshnet.conflist")]
    conf_name: String,
}

/// Puts everything there; says what on standard error.
pub fn install(options: &Install) -> Result<()> {
    let Dirs { bin_dir, conf_dir, conf_name } = &options.dirs;
    let own = PathBuf::from("/proc/self/exe");
    for dir in [bin_dir, conf_dir] {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let mut record = read_record(bin_dir);
    let put = |source: &Path, name: &str| -> Result<()> {
        let place = bin_dir.join(name);
        if same(source, &place) {
            return Ok(());
        }
        copy(source, bin_dir, name).with_context(|| place.display().to_string())?;
        eprintln!("mesh-cni: {} is installed", place.display());
        Ok(())
    };
    put(&own, PLUGIN)?;
    record.insert(PLUGIN.into());
    for name in ["loopback", "portmap", "bandwidth"] {
        if bin_dir.join(name).exists() && !record.contains(name) {
            continue;
        }
        let given = options.plugins_from.as_ref().map(|dir| dir.join(name)).filter(|file| file.is_file());
        // This program answers to that name.
        let source = given.or_else(|| (name == "loopback").then(|| own.clone()));
        if let Some(source) = source {
            put(&source, name)?;
            record.insert(name.into());
        }
    }
    write_record(bin_dir, &record)?;
    let chained: Vec<&str> = ["portmap", "bandwidth"].into_iter().filter(|name| bin_dir.join(name).exists()).collect();
    let known: Vec<Option<BTreeSet<String>>> = chained.iter().map(|name| versions_of(&bin_dir.join(name))).collect();
    let text = conflist(options, &chained, &known);
    let place = conf_dir.join(conf_name);
    if fs::read_to_string(&place).is_ok_and(|there| there == text) {
        return Ok(());
    }
    write(conf_dir, conf_name, text.as_bytes(), 0o644).with_context(|| place.display().to_string())?;
    eprintln!("mesh-cni: {} is installed", place.display());
    for other in before(conf_dir, conf_name) {
        eprintln!(
            "mesh-cni: {other} comes before {conf_name} by name: the runtime takes that one; move it away, or choose --conf-name"
        );
    }
    Ok(())
}

/// Takes away what [`install`] put there. Everything is tried; what fails is named.
pub fn uninstall(options: &Uninstall) -> Result<()> {
    let Dirs { bin_dir, conf_dir, conf_name } = &options.dirs;
    let remove = |place: PathBuf| match fs::remove_file(&place) {
        Ok(()) => {
            eprintln!("mesh-cni: {} is removed", place.display());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context(place.display().to_string()),
    };
    // No runtime shall find a configuration whose plugin is gone.
    let mut done = vec![remove(conf_dir.join(conf_name))];
    done.extend(read_record(bin_dir).into_iter().map(|name| remove(bin_dir.join(name))));
    if done.iter().all(Result::is_ok) {
        done.push(remove(bin_dir.join(RECORD)));
    }
    let stopped = if options.devices { stopped(&options.socket) } else { Ok(()) };
    // What a meshd uses that still runs is left alone.
    if stopped.is_ok() {
        if options.devices {
            done.push(uproot(&options.bridge));
        }
        done.extend(options.empty.iter().map(|dir| empty(dir).with_context(|| dir.display().to_string())));
    }
    done.push(stopped);
    let failed: Vec<String> = done.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if failed.is_empty() { Ok(()) } else { Err(anyhow!("{}", failed.join("; "))) }
}

/// Waits for the end of meshd: in a cluster it is told to stop just before.
fn stopped(socket: &Path) -> Result<()> {
    let end = Instant::now() + STOPPING;
    while UnixStream::connect(socket).is_ok() {
        ensure!(Instant::now() < end, "meshd still runs at {}: stop it first", socket.display());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What is in a folder: the folder itself may be a mount of a container.
fn empty(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }?;
        eprintln!("mesh-cni: {} is removed", entry.path().display());
    }
    Ok(())
}

/// Until SIGTERM or SIGINT: for a container that must be there and has nothing to do.
pub fn pause() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

/// What meshd leaves behind, because containers go on while it is restarted.
fn uproot(bridge: &str) -> Result<()> {
    // No table is no failure: kernels without nftables have none.
    for table in [format!("meshnet-{bridge}"), format!("meshnet-{bridge}-nat")] {
        let _ = nft::remove(&table);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for name in runtime.block_on(async { Netlink::open()?.uproot(bridge).await })? {
        eprintln!("mesh-cni: the interface {name} is removed");
    }
    Ok(())
}

/// The configuration. Versions: those that every plugin in it speaks, for the runtime may choose any of them.
fn conflist(options: &Install, chained: &[&str], known: &[Option<BTreeSet<String>>]) -> String {
    // A plugin that does not say is taken for one of the time before 1.1.
    let speaks = |version: &str| {
        known.iter().all(|known| known.as_ref().map_or(version != "1.1.0", |versions| versions.contains(version)))
    };
    let versions: Vec<&str> = ["0.4.0", "1.0.0", "1.1.0"].into_iter().filter(|version| speaks(version)).collect();
    // Runtimes that know one version only take this one: the newest that those of before 1.1 know.
    let first = versions.iter().rev().find(|version| **version != "1.1.0").copied().unwrap_or("1.0.0");
    let mut own = json!({ "type": PLUGIN });
    if options.socket != Path::new(SOCKET) {
        own["socket"] = json!(options.socket);
    }
    let mut plugins = vec![own];
    for name in chained {
        plugins.push(match *name {
            "portmap" => json!({ "type": name, "capabilities": { "portMappings": true }, "snat": true }),
            _ => json!({ "type": name, "capabilities": { "bandwidth": true } }),
        });
    }
    let list = json!({ "cniVersion": first, "cniVersions": versions, "name": options.network, "plugins": plugins });
    serde_json::to_string_pretty(&list).unwrap_or_default() + "\n"
}

/// What a plugin says to VERSION; none when it cannot be run here.
fn versions_of(program: &Path) -> Option<BTreeSet<String>> {
    let mut child = Command::new(program)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let asked = child.stdin.take()?.write_all(br#"{"cniVersion":"1.0.0"}"#);
    let output = child.wait_with_output().ok()?;
    asked.ok()?;
    let value: Value = serde_json::from_slice(&output.stdout).ok()?;
    let list = value.get("supportedVersions")?.as_array()?;
    Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Configurations that a runtime would take before ours.
fn before(dir: &Path, name: &str) -> Vec<String> {
    let ends = [".conf", ".conflist", ".json"];
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
    names.retain(|other| {
        other.as_str() < name && !other.starts_with('.') && ends.iter().any(|end| other.ends_with(end))
    });
    names.sort();
    names
}

fn same(one: &Path, other: &Path) -> bool {
    let read = |path: &Path| fs::read(path).ok();
    let length = |path: &Path| fs::metadata(path).map(|data| data.len()).ok();
    length(one).is_some() && length(one) == length(other) && read(one) == read(other)
}

/// A program under its name only when it is whole, and never written while it runs.
fn copy(source: &Path, dir: &Path, name: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    File::open(source)?.read_to_end(&mut bytes)?;
    write(dir, name, &bytes, 0o755)
}

fn write(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    // No ending that a runtime looks for.
    let half = dir.join(format!(".{name}.half"));
    let mut file = File::create(&half)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&half, dir.join(name))?;
    File::open(dir)?.sync_all()
}

fn read_record(dir: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(dir.join(RECORD)).unwrap_or_default();
    // A name is a file of this directory and nothing else.
    text.lines().filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect()
}

fn write_record(dir: &Path, record: &BTreeSet<String>) -> Result<()> {
    let text: String = record.iter().map(|name| format!("{name}\n")).collect();
    write(dir, RECORD, text.as_bytes(), 0o644).with_context(|| dir.join(RECORD).display().to_string())
}

const PLUGIN: &str = "mesh-cni";
/// Longer than meshd goes on after it was told to stop.
const STOPPING: Duration = Duration::from_secs(10);
/// Names what install put into the directory.
const RECORD: &str = ".mesh-cni.installed";

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path) -> Install {
        Install {
            dirs: Dirs {
                bin_dir: dir.join("bin"),
                conf_dir: dir.join("conf"),
                conf_name: "10-meshnet.conflist".into(),
            },
            plugins_from: Some(dir.join("from")),
            network: "meshnet".into(),
            socket: SOCKET.into(),
        }
    }

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("meshnet-install-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("from")).unwrap();
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn script(path: &Path, versions: &str) {
        fs::write(path, format!("#!/bin/sh\necho '{{\"supportedVersions\":[{versions}]}}'\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn what_is_installed_is_uninstalled_and_what_was_there_stays() {
        let dir = directory("all");
        let options = options(&dir);
        fs::create_dir_all(dir.join("bin")).unwrap();
        script(&dir.join("bin/bandwidth"), "\"0.4.0\",\"1.0.0\"");
        script(&dir.join("from/portmap"), "\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"");
        for _ in 0..2 {
            install(&options).unwrap();
            assert_eq!(names(&dir.join("bin")), [RECORD, "bandwidth", "loopback", "mesh-cni", "portmap"]);
            assert_eq!(names(&dir.join("conf")), ["10-meshnet.conflist"]);
        }
        let list: Value = serde_json::from_slice(&fs::read(dir.join("conf/10-meshnet.conflist")).unwrap()).unwrap();
        assert_eq!(list["cniVersion"], "1.0.0");
        assert_eq!(list["cniVersions"], json!(["0.4.0", "1.0.0"]), "bandwidth does not speak 1.1.0");
        let types: Vec<&str> =
            list["plugins"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["mesh-cni", "portmap", "bandwidth"]);
        fs::create_dir_all(dir.join("state/ring")).unwrap();
        fs::write(dir.join("state/ring/lock"), "").unwrap();
        fs::write(dir.join("state/identity"), "").unwrap();
        let empty = vec![dir.join("state"), dir.join("absent")];
        let options =
            Uninstall { dirs: options.dirs, devices: false, bridge: "mesh0".into(), socket: SOCKET.into(), empty };
        uninstall(&options).unwrap();
        assert_eq!(names(&dir.join("state")), [""; 0]);
        assert_eq!(names(&dir.join("bin")), ["bandwidth"]);
        assert_eq!(names(&dir.join("conf")), [""; 0]);
        uninstall(&options).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn without_others_every_version_is_offered() {
        let dir = directory("none");
        let list: Value = serde_json::from_str(&conflist(&options(&dir), &[], &[])).unwrap();
        assert_eq!(list["cniVersion"], "1.0.0");
        assert_eq!(list["cniVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(list["plugins"], json!([{ "type": "mesh-cni" }]));
        let unknown: Value = serde_json::from_str(&conflist(&options(&dir), &["portmap"], &[None])).unwrap();
        assert_eq!(unknown["cniVersions"], json!(["0.4.0", "1.0.0"]));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn who_comes_before_is_told() {
        let dir = directory("before");
        for name in ["05-other.conflist", ".05-hidden.conf", "10-a.txt", "10-b.conf", "99-last.conf"] {
            fs::write(dir.join(name), "{}").unwrap();
        }
        assert_eq!(before(&dir, "10-meshnet.conflist"), ["05-other.conflist", "10-b.conf"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
