//! The settings of `meshd` as one table: names, defaults and help. Flags, environment, file and `--help` all come from it.

use clap::{Arg, ArgAction, Command};

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// As on the command line, without dashes; the key in the file.
    pub name: &'static str,
    /// What stands for its value in the help; empty for a switch.
    pub value: &'static str,
    /// Whether it may be given many times.
    pub repeats: bool,
    /// In words, for the help; empty: none.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

impl Flag {
    /// True when it takes no value.
    pub fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    /// Its name in the environment.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_uppercase().replace('-', "_"))
    }

    fn argument(&self) -> Arg {
        let help = match (self.default, self.repeats) {
            ("", false) => self.help.to_owned(),
            ("", true) => format!("{} (may be repeated)", self.help),
            (default, _) => format!("{} [default: {default}]", self.help),
        };
        let argument = Arg::new(self.name).long(self.name).help(help);
        match (self.is_switch(), self.repeats) {
            (true, _) => argument.action(ArgAction::SetTrue),
            (false, true) => argument.action(ArgAction::Append).value_name(self.value),
            (false, false) => argument.action(ArgAction::Set).value_name(self.value),
        }
    }
}

/// The command line.
pub fn command(version: &'static str) -> Command {
    Command::new("meshd")
        .version(version)
        .about("Joins this machine to the mesh: one Ethernet for containers and machines, sealed, with no store")
        .after_help(
            "Settings come from flags, then the environment (MESHD_PEER for --peer; a comma between repeats), then --config FILE\n\
             (TOML, same names; repeats as lists), then defaults.",
        )
        .args(FLAGS.iter().map(Flag::argument))
}

/// The one of this name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The name nearest to a mistyped one; none when all are far.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase().replace('_', "-");
    let far = (name.chars().count() / 2).max(2);
    let near = |flag: &Flag| (distance(&name, flag.name), flag.name);
    FLAGS.iter().map(near).min().filter(|(distance, _)| *distance <= far).map(|(_, name)| name)
}

/// Letters to insert, remove or replace (Levenshtein), so that `peers` finds `peer`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

const fn one(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, value, repeats: false, default, help }
}

const fn many(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, value, repeats: true, default: "", help }
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, value: "", repeats: false, default: "", help }
}

/// What stands before a setting's name in the environment.
pub const PREFIX: &str = "MESHD_";

/// All of them, in the order of the help.
pub const FLAGS: [Flag; 33] = [
    one("name", "NAME", "the host name", "What people call this peer"),
    one("cluster", "NAME", "meshnet", "The cluster; peers of others are refused even when the secret is the same"),
    many("peer", "HOST[:PORT]", "A peer to connect to first; the rest are discovered"),
    one("listen", "ADDR:PORT", "[::]:6783", "The UDP port for everything between peers"),
    many("advertise", "ADDR[:PORT]", "An address to tell other peers, instead of those found"),
    one("secret-file", "FILE", "", "The cluster secret (meshctl secret makes one)"),
    switch("no-secret", "Run without a secret: anyone who reaches the port may join"),
    switch(
        "kubernetes",
        "Run as a node of a Kubernetes cluster (--name is the Node's): its API gives secret and peers, says who begins, and which machines are gone",
    ),
    one("kubernetes-api", "URL", "as in every pod", "Where the API is"),
    one("kubernetes-credentials", "DIR", "as in every pod", "Folder with token, ca.crt and namespace"),
    one("kubernetes-node-gone", "SECONDS", "300", "A deleted Node's addresses are taken back after so long"),
    one("bridge", "NAME", "mesh0", "The Linux bridge; made when missing, adopted when present"),
    one("ipam-range", "CIDR|none", "10.32.0.0/12", "What is split among the peers; none switches it off"),
    one("ipam-subnet", "CIDR", "the range", "Default subnet of an allocation"),
    one("ipam-init", "HOW", "auto", "How the first split is agreed: auto, seed=NAME,…, consensus=N or observer"),
    one("expose", "auto|CIDR|none", "none", "Give the host itself an address on the bridge; auto: one of the range"),
    switch("masquerade", "Containers leave the overlay in the name of this host: own nftables table, forwarding on"),
    many("no-masquerade", "CIDR", "Destinations that see the containers' own addresses all the same"),
    one("transport", "auto|udp|quic", "auto", "How frames travel: sealed UDP, QUIC datagrams, or UDP while it passes"),
    one(
        "offload",
        "auto|off",
        "auto",
        "Many frames and datagrams in one call of the kernel, where it has that and it works",
    ),
    many(
        "trusted-subnet",
        "CIDR",
        "Underlay subnets in which frames may travel in the clear, when both ends name them",
    ),
    switch("no-discovery", "Connect only to --peer"),
    one("max-links", "N", "128", "Control links that this peer keeps"),
    one("mtu", "auto|N", "auto", "MTU of the overlay"),
    one("profile", "default|fast", "default", "How soon a silent neighbour counts as gone: 4 s or 1 s"),
    one("workers", "auto|N", "auto", "Threads for frames, one to each queue of the TAP; auto: half the cores, 1 to 4"),
    one("state-dir", "DIR", "/var/lib/meshnet", "Identity, addresses given out, known peers"),
    switch(
        "restored",
        "For one start: the state directory is an old copy (a restored snapshot). Become a new peer that claims its addresses",
    ),
    one("socket", "PATH", "/run/meshnet/meshd.sock", "Control socket, mode 0660"),
    one("http", "ADDR:PORT|none", "127.0.0.1:6784", "Health, metrics and status; none switches it off"),
    one("log-level", "LEVEL", "info", "error, warn, info, debug or trace"),
    one("log-format", "text|json", "text", "Form of the log lines"),
    one("config", "FILE", "", "Settings in TOML, same names"),
];
