//! interim
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use meshnet_proto::Mac;
use meshnet_proto::api::{Command, Device, Problem, Reply};
use tokio::sync::{mpsc, oneshot};

use super::config::Settings;
use crate::dataplane::Waker;
use crate::tap::Tap;

pub enum Notice {
    Addresses(Vec<SocketAddr>),
    Mtu(u16),
    Tap(Tap),
}

pub struct Devices {
    tap: Option<Tap>,
    bridge: String,
    mtu: u16,
    addresses: Vec<SocketAddr>,
    device: Device,
    _n: mpsc::Sender<Notice>,
}

#[derive(Clone)]
pub struct View(Device);

impl View {
    pub fn device(&self) -> Device { self.0.clone() }
    pub fn problems(&self) -> Vec<Problem> { Vec::new() }
    pub fn ready(&self) -> Result<(), String> { Ok(()) }
    pub fn neighbour(&self, _ip: IpAddr) -> Option<Mac> { None }
}

fn ip(a: &str) -> String {
    let o = std::process::Command::new("ip").args(a.split_whitespace()).output().unwrap();
    if !o.status.success() { eprintln!("ip {a}: {}", String::from_utf8_lossy(&o.stderr)); }
    String::from_utf8_lossy(&o.stdout).into_owned()
}

impl Devices {
    pub async fn start(settings: &Settings, port: u16) -> Result<(Devices, mpsc::Receiver<Notice>)> {
        let name = format!("{}-tap", settings.bridge);
        let tap = Tap::open(&name, settings.workers)?;
        let mtu = settings.mtu.unwrap_or(1310);
        let b = &settings.bridge;
        ip(&format!("link add name {b} type bridge mcast_snooping 0 forward_delay 0"));
        ip(&format!("link set {name} mtu {mtu} txqueuelen 10000 master {b} up"));
        ip(&format!("link set {b} mtu {mtu} up"));
        let mut addresses = Vec::new();
        for line in ip("-o addr show scope global").lines() {
            let w: Vec<&str> = line.split_whitespace().collect();
            if w[1] == b { continue; }
            let a: IpAddr = w[3].split('/').next().unwrap().parse().unwrap();
            addresses.push(SocketAddr::new(a, port));
        }
        let (s, r) = mpsc::channel(4);
        let device = Device { bridge: b.clone(), tap: name, mtu: mtu.into(), queues: settings.workers as u32, offloads: vec![], exposed: vec![] };
        Ok((Devices { tap: Some(tap), bridge: b.clone(), mtu, addresses, device, _n: s }, r))
    }
    pub fn take_tap(&mut self) -> Option<Tap> { self.tap.take() }
    pub fn tap_lost(&self) -> Waker { Arc::new(|| {}) }
    pub fn mtu(&self) -> u16 { self.mtu }
    pub fn addresses(&self) -> Vec<SocketAddr> { self.addresses.clone() }
    pub fn view(&self) -> View { View(self.device.clone()) }
    pub fn command(&self, command: Command, answer: oneshot::Sender<Reply>) {
        let reply = match command {
            Command::Attach { namespace, addresses } => {
                let b = &self.bridge;
                let v = format!("v{namespace}");
                ip(&format!("link add name {v} mtu {} type veth peer name ethmesh mtu {} netns {namespace}", self.mtu, self.mtu));
                ip(&format!("link set {v} master {b} up"));
                for a in &addresses {
                    ip(&format!("-n {namespace} addr add {a} dev ethmesh"));
                }
                ip(&format!("-n {namespace} link set ethmesh up"));
                Reply::Attached { interface: "ethmesh".into(), addresses }
            }
            _ => Reply::Refused { reason: "interim".into() },
        };
        let _ = answer.send(reply);
    }
}
