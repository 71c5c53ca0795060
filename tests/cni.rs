//! `mesh-cni` as a runtime drives it: environment and standard input in, JSON out; with a real `meshd`, in network namespaces.

#[path = "netns/lab.rs"]
mod lab;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Host, Lab, Meshd};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

/// A machine with a meshd that manages addresses and gives the host one.
fn machine(lab: &Lab, name: &str, extra: &[&str]) -> Meshd {
    let host = lab.host(name);
    let mut arguments = vec!["--ipam-range", "10.32.0.0/12", "--expose", "auto"];
    arguments.extend(extra);
    let meshd = lab.meshd(&host, &arguments);
    ready(&meshd);
    meshd
}

fn ready(meshd: &Meshd) {
    meshd.await_status("gives out addresses", 20 * SECOND, |status| {
        status["ipam"]["state"] == "ready" && status["device"]["exposed"].as_array().is_some_and(|all| !all.is_empty())
    });
}

/// A network of a machine, as a runtime has it configured.
struct Net<'a> {
    meshd: &'a Meshd,
    conf: Value,
    path: String,
}

/// What a plugin said.
#[derive(Debug)]
struct Said {
    ok: bool,
    json: Value,
    stderr: String,
}

impl Said {
    #[track_caller]
    fn done(self) -> Value {
        assert!(self.ok, "{} {}", self.json, self.stderr);
        self.json
    }

    #[track_caller]
    fn refused(self, code: u64, words: &str) {
        assert!(!self.ok && self.json["code"] == code, "not refused with {code}: {self:?}");
        let msg = self.json["msg"].as_str().unwrap_or_default();
        assert!(msg.contains(words) && msg.lines().count() == 1, "'{words}' is not in: {msg}");
    }
}

fn spool(lab: &Lab, host: &Host) -> PathBuf {
    lab.dir.join(format!("{}.cni", host.name))
}

fn net<'a>(lab: &Lab, meshd: &'a Meshd, version: &str) -> Net<'a> {
    let conf = json!({
        "cniVersion": version, "name": "pods", "type": "mesh-cni", "socket": meshd.socket,
        "dataDir": spool(lab, &meshd.host),
    });
    let own = lab::program("mesh-cni");
    let path = format!("{}:/usr/lib/cni:/opt/cni/bin", own.parent().unwrap_or(Path::new("/")).display());
    Net { meshd, conf, path }
}

impl Net<'_> {
    fn with(&self, extra: Value) -> Net<'_> {
        let mut conf = self.conf.clone();
        merge(&mut conf, &extra);
        Net { meshd: self.meshd, conf, path: self.path.clone() }
    }

    fn command(&self, program: &str, verb: &str, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.meshd.host.name]).arg(program);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("CNI_")) {
            command.env_remove(key);
        }
        command.env("CNI_COMMAND", verb).env("CNI_PATH", &self.path).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, program: &str, verb: &str, environment: &[(&str, &str)]) -> Said {
        let mut child = self.command(program, verb, environment).spawn().expect("a plugin");
        child.stdin.take().expect("stdin").write_all(self.conf.to_string().as_bytes()).expect("the configuration");
        let output = child.wait_with_output().expect("a plugin");
        Said {
            ok: output.status.success(),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn plugin(&self, verb: &str, environment: &[(&str, &str)]) -> Said {
        let program = lab::program("mesh-cni");
        self.run(program.to_str().expect("a path"), verb, environment)
    }

    /// A verb for the interface `eth0` of a container whose namespace has the same name.
    fn verb(&self, verb: &str, container: &str) -> Said {
        self.verb_at(verb, container, "eth0", &format!("/run/netns/{container}"), "")
    }

    fn verb_at(&self, verb: &str, container: &str, interface: &str, netns: &str, args: &str) -> Said {
        let environment =
            [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface), ("CNI_NETNS", netns), ("CNI_ARGS", args)];
        self.plugin(verb, &environment)
    }

    /// The owner of the lease of a container's `eth0`.
    fn owner(&self, container: &str) -> String {
        format!("cni:{}:{container}:eth0", self.conf["name"].as_str().unwrap_or_default())
    }

    fn leased(&self, container: &str) -> Option<String> {
        let output = self.meshd.ctl_output(&["ip", "lookup", &self.owner(container)]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

fn merge(into: &mut Value, extra: &Value) {
    for (key, value) in extra.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

fn leases(meshd: &Meshd) -> Vec<String> {
    let list: Value = serde_json::from_str(&meshd.ctl(&["ip", "list", "--json"])).expect("JSON");
    let ids = list["leases"].as_array().into_iter().flatten().filter_map(|lease| lease["id"].as_str());
    ids.filter(|id| id.starts_with("cni:")).map(str::to_owned).collect()
}

fn ports(meshd: &Meshd) -> usize {
    meshd.host.run(&["ip", "-o", "link", "show", "type", "veth"]).lines().filter(|line| line.contains(" mp-")).count()
}

/// The address of a result, without the length of its network.
fn address(result: &Value) -> String {
    let text = result["ips"][0]["address"].as_str().unwrap_or_default();
    text.split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn all_verbs_in_all_versions() {
    lab::test("all_verbs_in_all_versions", |lab| {
        let meshd = machine(lab, "a", &[]);
        for (at, version) in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
            let net = net(lab, &meshd, version);
            let name = format!("pod{at}");
            let pod = lab.host(&name);
            let result = net.verb("ADD", &name).done();
            assert_eq!(result["cniVersion"], version);
            let interfaces = result["interfaces"].as_array().expect("interfaces");
            assert_eq!(interfaces.len(), 3, "{result}");
            assert_eq!((interfaces[0]["name"].as_str(), interfaces[2]["name"].as_str()), (Some("mesh0"), Some("eth0")));
            assert_eq!(interfaces[2]["sandbox"], format!("/run/netns/{name}"));
            assert!(interfaces[0].get("sandbox").is_none(), "{result}");
            assert_eq!(result["ips"][0]["interface"], 2);
            assert_eq!(result["ips"][0].get("version").is_some(), version.starts_with("0."), "{result}");
            assert_eq!(interfaces[2].get("mtu").is_some(), version == "1.1.0", "{result}");
            let gateway = result["ips"][0]["gateway"].as_str().expect("a gateway").to_owned();
            assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": gateway }]));
            let mac = pod.run(&["cat", "/sys/class/net/eth0/address"]);
            assert_eq!(interfaces[2]["mac"], mac.trim());
            pod.await_ping(&gateway, 5 * SECOND);
            let host = &meshd.host;
            assert!(host.reaches(&address(&result)), "node to pod");

            let again = net.verb("ADD", &name).done();
            assert_eq!(again, result, "the same again");
            let with = net.with(json!({ "prevResult": result }));
            match version {
                "0.3.0" | "0.3.1" => with.verb("CHECK", &name).refused(1, "does not allow CHECK"),
                _ => drop(with.verb("CHECK", &name).done()),
            }
            match version {
                "1.1.0" => drop(net.plugin("STATUS", &[]).done()),
                _ => net.plugin("STATUS", &[]).refused(1, "does not allow STATUS"),
            }
            let supported = net.plugin("VERSION", &[]).done();
            assert_eq!(supported["cniVersion"], version);
            assert_eq!(supported["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
            assert!(net.leased(&name).is_some());
            for _ in 0..2 {
                assert_eq!(with.verb("DEL", &name).done(), Value::Null);
            }
            assert_eq!((net.leased(&name), ports(&meshd)), (None, 0));
        }
        assert!(!spool(lab, &meshd.host).join("pending").exists());
    });
}
