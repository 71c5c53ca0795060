//! Plugins as a runtime drives them: environment and standard input in, JSON out.

#![allow(dead_code, reason = "each user of this file takes a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use meshnet::sys::netns::Netns;
use serde_json::{Value, json};

use crate::lab::{self, Host, Lab, Meshd};

pub const SECOND: Duration = Duration::from_secs(1);

/// A machine with a meshd that manages addresses and gives the host one.
pub fn machine(lab: &Lab, name: &str, extra: &[&str]) -> Meshd {
    let host = lab.host(name);
    let mut arguments = vec!["--ipam-range", "10.32.0.0/12", "--expose", "auto"];
    arguments.extend(extra);
    let meshd = lab.meshd(&host, &arguments);
    ready(&meshd);
    meshd
}

pub fn ready(meshd: &Meshd) {
    meshd.await_status("gives out addresses", 20 * SECOND, |status| {
        status["ipam"]["state"] == "ready" && status["device"]["exposed"].as_array().is_some_and(|all| !all.is_empty())
    });
}

/// A network of a machine, as a runtime has it configured.
pub struct Net<'a> {
    /// Of the machine.
    pub meshd: &'a Meshd,
    /// As it goes to standard input.
    pub conf: Value,
    /// `CNI_PATH`.
    pub path: String,
}

/// What a plugin said.
#[derive(Debug)]
pub struct Said {
    /// Exit 0.
    pub ok: bool,
    /// Standard output.
    pub json: Value,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    #[track_caller]
    pub fn done(self) -> Value {
        assert!(self.ok, "{} {}", self.json, self.stderr);
        self.json
    }

    #[track_caller]
    pub fn refused(self, code: u64, words: &str) {
        assert!(!self.ok && self.json["code"] == code, "not refused with {code}: {self:?}");
        let msg = self.json["msg"].as_str().unwrap_or_default();
        assert!(msg.contains(words) && msg.lines().count() == 1, "'{words}' is not in: {msg}");
    }
}

pub fn spool(lab: &Lab, host: &Host) -> PathBuf {
    lab.dir.join(format!("{}.cni", host.name))
}

pub fn net<'a>(lab: &Lab, meshd: &'a Meshd, version: &str) -> Net<'a> {
    let conf = json!({
        "cniVersion": version, "name": "pods", "type": "mesh-cni", "socket": meshd.socket,
        "dataDir": spool(lab, &meshd.host),
    });
    let own = lab::program("mesh-cni");
    let path = format!("{}:/usr/lib/cni:/opt/cni/bin", own.parent().unwrap_or(Path::new("/")).display());
    Net { meshd, conf, path }
}

impl<'a> Net<'a> {
    pub fn with(&self, extra: Value) -> Net<'a> {
        let mut conf = self.conf.clone();
        merge(&mut conf, &extra);
        Net { meshd: self.meshd, conf, path: self.path.clone() }
    }

    pub fn command(&self, program: &str, verb: &str, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.meshd.host.name]).arg(program);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CNI_")) {
            command.env_remove(key);
        }
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.path).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, program: &str, verb: &str, environment: &[(&str, &str)]) -> Said {
        let mut child = self.command(program, verb, environment).spawn().expect("a plugin");
        child.stdin.take().expect("stdin").write_all(self.conf.to_string().as_bytes()).expect("the configuration");
        let output = child.wait_with_output().expect("a plugin");
        Said {
            ok: output.status.success(),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn plugin(&self, verb: &str, environment: &[(&str, &str)]) -> Said {
        let program = lab::program("mesh-cni");
        self.run(program.to_str().expect("a path"), verb, environment)
    }

    /// A verb for the interface `eth0` of a container whose namespace has the same name.
    pub fn verb(&self, verb: &str, container: &str) -> Said {
        self.verb_at(verb, container, "eth0", &format!("/run/netns/{container}"), "")
    }

    pub fn verb_at(&self, verb: &str, container: &str, interface: &str, netns: &str, args: &str) -> Said {
        let environment =
            [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface), ("CNI_NETNS", netns), ("CNI_ARGS", args)];
        self.plugin(verb, &environment)
    }

    /// The owner of the lease of a container's `eth0`.
    pub fn owner(&self, container: &str) -> String {
        format!("cni:{}:{container}:eth0", self.conf["name"].as_str().unwrap_or_default())
    }

    pub fn leased(&self, container: &str) -> Option<String> {
        let output = self.meshd.ctl_output(&["ip", "lookup", &self.owner(container)]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

pub fn merge(into: &mut Value, extra: &Value) {
    for (key, value) in extra.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

pub fn leases(meshd: &Meshd) -> Vec<String> {
    let list: Value = serde_json::from_str(&meshd.ctl(&["ip", "list", "--json"])).expect("JSON");
    let ids = list["leases"].as_array().into_iter().flatten().filter_map(|lease| lease["id"].as_str());
    ids.filter(|id| id.starts_with("cni:")).map(str::to_owned).collect()
}

pub fn ports(meshd: &Meshd) -> usize {
    meshd.host.run(&["ip", "-o", "link", "show", "type", "veth"]).lines().filter(|line| line.contains(" mp-")).count()
}

/// The address of a result, without the length of its network.
pub fn address(result: &Value) -> String {
    let text = result["ips"][0]["address"].as_str().unwrap_or_default();
    text.split('/').next().unwrap_or_default().to_owned()
}

/// Text of the first connection to a port, as a client in this namespace sees it.
pub fn hear(host: &Host, address: &str) -> String {
    let address: SocketAddr = address.parse().expect("an address");
    let heard = Netns::open(&host.name).expect("a namespace").run(|| {
        let mut text = String::new();
        let mut stream = TcpStream::connect_timeout(&address, SECOND).ok()?;
        stream.set_read_timeout(Some(SECOND)).ok()?;
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    });
    heard.expect("a namespace").unwrap_or_default()
}

/// Says to each who connects whom it sees, from a thread that lives as long as the lab.
pub fn serve(host: &Host, port: u16) {
    let netns = Netns::open(&host.name).expect("a namespace");
    let listener = netns.run(|| TcpListener::bind(("0.0.0.0", port)).expect("a port")).expect("a namespace");
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = write!(stream, "{}", from.ip());
        }
    });
}
