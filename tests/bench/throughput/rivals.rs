//! Other overlays, set up as their manuals advise for speed: no compression, large buffers, the cipher of their default.
//!
//! Those that carry Ethernet have their TAP on the bridge, as meshd has; those that carry IP only route a network of each host.

use std::path::Path;
use std::time::Duration;

use crate::install::program;
use crate::lab::{self, Lab};
use crate::stage::{Daemon, Stage, Tunnel};

/// Userspace WireGuard, the one of its authors. IP only.
pub fn wireguard_go(stage: &Stage, lab: &Lab) -> Result<Tunnel, String> {
    let go = program("wireguard-go")?;
    let mut daemons = Vec::new();
    let mut public = Vec::new();
    for (at, host) in stage.hosts.iter().enumerate() {
        // Its sockets are in one directory, whatever the namespace.
        let device = WG[at];
        let mut daemon = Daemon::start(lab, host, &[&go, "-f", device])?;
        daemon.await_device(host, device)?;
        let socket = format!("/var/run/wireguard/{device}.sock");
        if !lab::poll(Duration::from_secs(5), || Path::new(&socket).exists()) {
            return Err(format!("no {socket}"));
        }
        daemons.push(daemon);
        let secret = lab.dir.join(device);
        lab::write_private(&secret, &lab::run("wg", &["genkey"])?)?;
        public.push(lab::run("sh", &["-c", &format!("wg pubkey < {}", secret.display())])?.trim().to_owned());
    }
    for (at, host) in stage.hosts.iter().enumerate() {
        let (secret, other) = (lab.dir.join(WG[at]), 1 - at);
        let (endpoint, network) = (format!("{}:51820", Stage::underlay(other)), format!("10.32.{}.0/24", other + 1));
        let peer = ["peer", &public[other], "endpoint", &endpoint, "allowed-ips", &network];
        let own = ["wg", "set", WG[at], "private-key", &secret.to_string_lossy(), "listen-port", "51820"];
        host.run(&[&own[..], &peer].concat());
    }
    Ok(Tunnel { daemons, ..stage.routed(WG, "1440") })
}

/// IP only, with certificates; each host's network is one of its "unsafe routes".
pub fn nebula(stage: &Stage, lab: &Lab) -> Result<Tunnel, String> {
    let (nebula, cert) = (program("nebula")?, program("nebula-cert")?);
    let dir = lab.dir.join(format!("nebula-{}", stage.hosts[0].name));
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let ca = ["-out-crt", &path("ca.crt"), "-out-key", &path("ca.key")];
    lab::run(&cert, &[&["ca", "-name", "lab", "-duration", "24h"], &ca[..]].concat())?;
    let mut daemons = Vec::new();
    for (at, host) in stage.hosts.iter().enumerate() {
        let (own, other) = (at + 1, 2 - at);
        let (address, network) = (format!("10.99.0.{own}/24"), format!("10.32.{own}.0/24"));
        let sign = ["sign", "-name", &format!("n{own}"), "-ip", &address, "-subnets", &network];
        let signer = ["-ca-crt", &path("ca.crt"), "-ca-key", &path("ca.key")];
        let out = ["-out-crt", &path(&format!("n{own}.crt")), "-out-key", &path(&format!("n{own}.key"))];
        lab::run(&cert, &[&sign[..], &signer, &out].concat())?;
        let settings = format!(
            "pki: {{ca: {ca}, cert: {crt}, key: {key}}}\n\
             static_host_map: {{\"10.99.0.{other}\": [\"{there}:4242\"]}}\n\
             lighthouse: {{am_lighthouse: false, interval: 60, hosts: []}}\n\
             listen: {{host: {here}, port: 4242, batch: 64, read_buffer: 8388608, write_buffer: 8388608}}\n\
             punchy: {{punch: false}}\ncipher: aes\nroutines: 2\n\
             tun: {{disabled: false, dev: tun0, mtu: 1440, tx_queue: 1000, \
             unsafe_routes: [{{route: 10.32.{other}.0/24, via: 10.99.0.{other}, mtu: 1440}}]}}\n\
             logging: {{level: warning}}\n\
             firewall:\n  default_local_cidr_any: true\n  outbound: [{{port: any, proto: any, host: any}}]\n  \
             inbound: [{{port: any, proto: any, host: any}}]\n",
            ca = path("ca.crt"),
            crt = path(&format!("n{own}.crt")),
            key = path(&format!("n{own}.key")),
            there = Stage::underlay(1 - at),
            here = Stage::underlay(at),
        );
        let file = path(&format!("n{own}.yml"));
        lab::write_private(Path::new(&file), &settings)?;
        let mut daemon = Daemon::start(lab, host, &[&nebula, "-config", &file])?;
        daemon.await_device(host, "tun0")?;
        daemons.push(daemon);
    }
    Ok(Tunnel { daemons, ..stage.routed(["tun0"; 2], "1440") })
}

/// Ethernet (mode `switch`); the protocol of its 1.0 releases.
pub fn tinc(stage: &Stage, lab: &Lab) -> Result<Tunnel, String> {
    let tincd = program("tincd")?;
    let dirs: Vec<_> = stage.hosts.iter().map(|host| lab.dir.join(format!("tinc-{}", host.name))).collect();
    let write = |path: std::path::PathBuf, text: &str| lab::write_private(&path, text);
    for (at, dir) in dirs.iter().enumerate() {
        let own = at + 1;
        std::fs::create_dir_all(dir.join("hosts")).map_err(|error| format!("{}: {error}", dir.display()))?;
        let connect = if at == 0 { "ConnectTo = n2\n" } else { "" };
        let settings = "Mode = switch\nDeviceType = tap\nInterface = tap0\nAddressFamily = ipv4\n";
        write(dir.join("tinc.conf"), &format!("Name = n{own}\n{settings}{connect}"))?;
        // It wants this to be there; the device is set up here.
        write(dir.join("tinc-up"), "#!/bin/sh\n")?;
        lab::run("chmod", &["+x", &dir.join("tinc-up").to_string_lossy()])?;
        let host = format!("Address = {}\nCipher = aes-256-cbc\nDigest = sha256\nPMTU = 1514\n", Stage::underlay(at));
        write(dir.join(format!("hosts/n{own}")), &host)?;
        // It asks where the two keys shall go.
        lab::run("sh", &["-c", &format!("printf '\\n\\n' | {tincd} -c {} -K2048", dir.display())])?;
    }
    for (from, to, name) in [(0, 1, "hosts/n1"), (1, 0, "hosts/n2")] {
        std::fs::copy(dirs[from].join(name), dirs[to].join(name)).map_err(|error| format!("{name}: {error}"))?;
    }
    let mut daemons = Vec::new();
    // The second first: it is the one that is called.
    for (host, dir) in stage.hosts.iter().zip(&dirs).rev() {
        let (config, pid) = (dir.to_string_lossy(), dir.join("pid"));
        let command = [&tincd, "-c", &config, "-D", "--pidfile", &pid.to_string_lossy()];
        let mut daemon = Daemon::start(lab, host, &command)?;
        daemon.await_device(host, "tap0")?;
        daemons.push(daemon);
    }
    // Until it knows the path's MTU it sends by TCP.
    Ok(Tunnel { daemons, settle: Duration::from_secs(3), ..stage.bridged("tap0", "1400") })
}

/// Ethernet, in Rust.
pub fn vpncloud(stage: &Stage, lab: &Lab) -> Result<Tunnel, String> {
    let vpncloud = program("vpncloud")?;
    let mut daemons = Vec::new();
    for (at, host) in stage.hosts.iter().enumerate() {
        // It asks the kernel for its address towards the internet, and panics without a route there.
        host.run(&["ip", "route", "add", "default", "dev", &stage.wire]);
        let (own, other) = (format!("{}:3210", Stage::underlay(at)), format!("{}:3210", Stage::underlay(1 - at)));
        let way = ["-t", "tap", "-m", "switch", "-d", "tap0", "-p", "of-the-lab", "--algorithm", "aes256"];
        let ends = ["-l", &own, "-c", &other, "--no-port-forwarding"];
        let mut daemon = Daemon::start(lab, host, &[&[vpncloud.as_str()], &way[..], &ends].concat())?;
        daemon.await_device(host, "tap0")?;
        daemons.push(daemon);
    }
    Ok(Tunnel { daemons, ..stage.bridged("tap0", "1410") })
}

const WG: [&str; 2] = ["wg1", "wg2"];
