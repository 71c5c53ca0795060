use super::*;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let arguments = std::iter::once("meshd").chain(arguments.iter().copied()).map(OsString::from);
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    match load(arguments, environment)? {
        Request::Run(settings) => Ok(*settings),
        Request::Print(text) => panic!("{text}"),
    }
}

fn flags(arguments: &[&str]) -> Result<Settings, ConfigError> {
    let all: Vec<&str> = ["--no-secret"].iter().chain(arguments).copied().collect();
    run(&all, &[])
}

/// A file that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("meshd-config-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn defaults_are_those_of_the_manual() {
    let settings = flags(&[]).unwrap();
    assert_eq!(settings.cluster, "meshnet");
    assert_eq!(settings.listen.to_string(), "[::]:6783");
    assert_eq!(settings.bridge, "mesh0");
    assert_eq!(settings.ipam_range.unwrap().to_string(), "10.32.0.0/12");
    assert_eq!(settings.http.unwrap().to_string(), "127.0.0.1:6784");
    assert_eq!(settings.state_dir, PathBuf::from("/var/lib/meshnet"));
    assert_eq!(settings.socket, PathBuf::from("/run/meshnet/meshd.sock"));
    assert_eq!((settings.max_links, settings.mtu, settings.discovery), (128, None, true));
    assert_eq!((settings.profile, settings.transport), (Profile::Default, Transport::Auto));
    assert!(settings.offload);
    assert_eq!((settings.log_level, settings.log_format), (tracing::Level::INFO, LogFormat::Text));
    assert!((1..=4).contains(&settings.workers));
    assert!(!settings.name.is_empty());
    assert_eq!(settings.warnings, Vec::<String>::new());
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let file = Scratch::new(
        "order",
        "name = \"file\"\nbridge = \"br-file\"\nmtu = 1_400\npeer = [\"f1\", \"f2:7000\"]\nno-secret = true\n",
    );
    let environment = [("MESHD_NAME", "environment"), ("MESHD_BRIDGE", "br-env"), ("MESHD_PEER", "e1, e2:7000,")];
    let all = run(&["--config", file.path(), "--name", "flag"], &environment).unwrap();
    assert_eq!((all.name.as_str(), all.bridge.as_str(), all.mtu), ("flag", "br-env", Some(1400)));
    let texts = |settings: &Settings| settings.peers.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&all), ["e1:6783", "e2:7000"]);
    let alone = run(&[], &[("MESHD_CONFIG", file.path())]).unwrap();
    assert_eq!((alone.name.as_str(), alone.bridge.as_str()), ("file", "br-file"));
    assert_eq!(texts(&alone), ["f1:6783", "f2:7000"]);
    // A list is replaced as a whole, never mixed.
    assert_eq!(texts(&run(&["--config", file.path(), "--peer", "x"], &environment).unwrap()), ["x:6783"]);
    // False in the environment overrides true in the file.
    let refused = run(&["--config", file.path()], &[("MESHD_NO_SECRET", "false")]).unwrap_err();
    assert_eq!(refused.exit, 1);
}

#[test]
fn each_wrong_value_gives_one_line_that_names_it() {
    let long = "n".repeat(65);
    let cases: &[(&[&str], &str)] = &[
        (&["--name", &long], "--name: at most 64 bytes"),
        (&["--name", "a\nb"], "'a?b' is wrong for --name: a name without control"),
        (&["--name", ""], "--name is empty: NAME is wanted"),
        (&["--cluster", " "], "--cluster: a name of at least one letter"),
        (&["--peer", "a:b:c"], "'a:b:c' is wrong for --peer: a host name"),
        (&["--peer", "host:0"], "--peer: a port from 1 to 65535"),
        (&["--peer", "host:70000"], "--peer"),
        (&["--peer", "-host"], "--peer"),
        (&["--peer", "300.1.2.3"], "--peer"),
        (&["--peer", "[fe80::zz]:1"], "--peer"),
        (&["--peer", "a", "--peer", "a:6783"], "'a:6783' stands twice in --peer"),
        (&["--listen", "6783"], "--listen: ADDR:PORT is wanted"),
        (&["--listen", "0.0.0.0:0"], "--listen: a port"),
        (&["--advertise", "0.0.0.0"], "--advertise: an address that other peers can reach"),
        (&["--advertise", "example.org"], "--advertise: ADDR or ADDR:PORT"),
        (&["--bridge", "sixteen-letters!"], "--bridge: the name of an interface"),
        (&["--bridge", "a/b"], "--bridge"),
        (&["--ipam-range", "10.32.0.1/12"], "--ipam-range: none, or a network is wanted, such as 10.32.0.0/12"),
        (&["--ipam-range", "10.0.0.0/31"], "--ipam-range: none, or an IPv4 network from /8 to /30"),
        (&["--ipam-range", "fd00::/64"], "--ipam-range"),
        (&["--ipam-range", "lots"], "--ipam-range: none, or ADDR/LENGTH"),
        (&["--ipam-subnet", "10.64.0.0/16"], "--ipam-subnet: a network within the range 10.32.0.0/12"),
        (&["--ipam-range", "none", "--ipam-subnet", "10.32.0.0/16"], "--ipam-subnet: it needs an --ipam-range"),
        (&["--ipam-init", "vote"], "--ipam-init: auto, seed=NAME"),
        (&["--ipam-init", "consensus=0"], "--ipam-init"),
        (&["--ipam-init", "seed=a,a"], "--ipam-init: each name once"),
        (&["--expose", "10.32.0.0/12"], "--expose: the address of a host is wanted"),
        (&["--expose", "some"], "--expose"),
        (&["--expose", "auto", "--ipam-range", "none"], "--expose: it needs an --ipam-range"),
        (&["--masquerade", "--ipam-range", "none"], "--masquerade: it needs an --ipam-range"),
        (&["--no-masquerade", "10.0.0.0/8"], "--no-masquerade: it needs --masquerade"),
        (&["--masquerade", "--no-masquerade", "10.0.0.1/8"], "--no-masquerade: a network is wanted"),
        (&["--masquerade", "--no-masquerade", "fd00::/64"], "--no-masquerade: an IPv4 network is wanted"),
        (&["--transport", "tcp"], "--transport: one of auto, udp, quic is wanted"),
        (&["--offload", "on"], "--offload: one of auto, off is wanted"),
        (&["--trusted-subnet", "10.0.0.1/8"], "--trusted-subnet: a network is wanted, such as 10.0.0.0/8"),
        (&["--max-links", "0"], "--max-links: a number from 1 to 1024"),
        (&["--mtu", "575"], "--mtu: auto, or a number from 576 to 65345"),
        (&["--mtu", "65346"], "--mtu"),
        (&["--profile", "slow"], "--profile: one of default, fast"),
        (&["--workers", "17"], "--workers: auto, or a number from 1 to 16"),
        (&["--socket", &"s".repeat(108)], "--socket: a path of at most 107 bytes"),
        (&["--http", "6784"], "--http: none or ADDR:PORT"),
        (&["--log-level", "loud"], "--log-level: one of error, warn, info, debug, trace"),
        (&["--log-format", "xml"], "--log-format: one of text, json"),
        (&["--peers", "a"], "did you mean --peer?"),
        (&["--mtu", "1300", "--mtu", "1301"], "--mtu"),
        (&["--mtu"], "--mtu"),
        (&["extra"], "'extra'"),
        (&["--config", "/no/such/file"], "cannot read --config /no/such/file"),
    ];
    for (arguments, wanted) in cases {
        let error = flags(arguments).expect_err(&format!("{arguments:?} went through"));
        assert!(error.line.contains(wanted), "{arguments:?} gave: {}", error.line);
        assert!(error.line.starts_with("meshd: "), "{}", error.line);
        assert_eq!((error.line.lines().count(), error.exit), (1, 2), "{}", error.line);
    }
}

#[test]
fn right_values_are_taken() {
    let settings = flags(&[
        "--peer",
        "[fd00::1]:7000",
        "--peer",
        "fd00::2",
        "--peer",
        "192.0.2.1",
        "--peer",
        "db_1.example.org.:99",
        "--listen",
        "192.0.2.9:7001",
        "--advertise",
        "198.51.100.1",
        "--advertise",
        "[2001:db8::1]:5",
        "--advertise",
        "[2001:db8::2]",
        "--ipam-range",
        "none",
        "--expose",
        "10.32.0.1/12",
        "--transport",
        "udp",
        "--offload",
        "off",
        "--no-discovery",
        "--mtu",
        "576",
        "--profile",
        "fast",
        "--workers",
        "16",
        "--http",
        "none",
        "--log-level",
        "debug",
        "--log-format",
        "json",
        "--max-links",
        "8",
    ])
    .unwrap();
    let peers: Vec<String> = settings.peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["[fd00::1]:7000", "[fd00::2]:6783", "192.0.2.1:6783", "db_1.example.org.:99"]);
    let advertise: Vec<String> = settings.advertise.iter().map(ToString::to_string).collect();
    assert_eq!(advertise, ["198.51.100.1:7001", "[2001:db8::1]:5", "[2001:db8::2]:7001"]);
    assert_eq!((settings.ipam_range, settings.http), (None, None));
    assert_eq!(settings.expose.unwrap().to_string(), "10.32.0.1/12");
    assert_eq!(flags(&["--expose", "auto"]).unwrap().expose, Some(Expose::Auto));
    assert_eq!((settings.workers, settings.mtu, settings.discovery), (16, Some(576), false));
    assert_eq!(settings.profile, Profile::Fast);
    assert!(!settings.masquerade);
    let masquerade =
        flags(&["--masquerade", "--no-masquerade", "192.0.2.0/24", "--no-masquerade", "10.0.0.0/8"]).unwrap();
    let except: Vec<String> = masquerade.no_masquerade.iter().map(ToString::to_string).collect();
    assert_eq!((masquerade.masquerade, except), (true, vec!["192.0.2.0/24".into(), "10.0.0.0/8".into()]));
    assert_eq!(flags(&["--ipam-init", "seed=a, b"]).unwrap().ipam_init, IpamInit::Seed(vec!["a".into(), "b".into()]));
    assert_eq!(flags(&["--ipam-init", "consensus=3"]).unwrap().ipam_init, IpamInit::Consensus(3));
}

#[test]
fn a_secret_or_plainly_none() {
    let none = run(&[], &[]).unwrap_err();
    assert_eq!(none.exit, 1);
    assert!(none.line.contains("meshctl secret > FILE") && none.line.lines().count() == 1, "{}", none.line);
    assert_eq!(run(&["--mtu", "12"], &[]).unwrap_err().exit, 2, "a mistake is told before what is missing");
    let both = run(&["--no-secret", "--secret-file", "s"], &[]).unwrap_err();
    assert_eq!(
        (both.exit, both.line.as_str()),
        (2, "meshd: --no-secret does not go together with --secret-file: choose one")
    );
    let mixed = run(&["--no-secret"], &[("MESHD_SECRET_FILE", "s")]).unwrap_err();
    assert_eq!(mixed.line, "meshd: --no-secret does not go together with MESHD_SECRET_FILE: choose one");
    assert_eq!(run(&["--secret-file", "s"], &[]).unwrap().secret_file, Some(PathBuf::from("s")));
}

#[test]
fn mistakes_in_a_file_are_named_with_file_and_line() {
    let cases = [
        ("syntax", "name = \"a\"\nmtu = = 3\n", "line 2 is not TOML"),
        ("unknown", "# first\n\npeers = [\"a\"]\n", "there is no setting 'peers' ("),
        ("line", "# first\n\npeers = [\"a\"]\n", "line 3): did you mean 'peer'?"),
        ("far", "unheard-of-thing = 1\n", "see meshd --help"),
        ("kind", "name = [\"a\"]\n", "the value of name in"),
        ("table", "[mtu]\nvalue = 3\n", "one text, number or boolean is wanted"),
        ("value", "name = \"x\"\nmtu = 12\n", "line 2: auto, or a number from 576 to 65345"),
        ("items", "peer = [1]\n", "a list of texts is wanted"),
        ("twice", "name = \"a\"\nname = \"b\"\n", "line 2 is not TOML: duplicate key"),
        ("config", "config = \"other\"\n", "there is no setting 'config'"),
        ("switch", "no-discovery = \"perhaps\"\n", "true or false is wanted"),
    ];
    for (name, text, wanted) in cases {
        let file = Scratch::new(name, text);
        let error = flags(&["--config", file.path()]).expect_err(name);
        assert!(error.line.contains(wanted) && error.line.contains(file.path()), "{name}: {}", error.line);
        assert_eq!((error.line.lines().count(), error.exit), (1, 2), "{}", error.line);
    }
}

#[test]
fn wrong_variables_are_named_as_variables() {
    let error = run(&["--no-secret"], &[("MESHD_MTU", "big")]).unwrap_err();
    assert_eq!(error.line, "meshd: 'big' is wrong for MESHD_MTU: auto, or a number from 576 to 65345 is wanted");
    // A typing mistake is told; what other programs set is left alone; empty is unset.
    let others = [("MESHD_PEERS", "a"), ("MESHD_SERVICE_HOST", "10.0.0.1"), ("MESHD_MTU", ""), ("PATH", "/bin")];
    let settings = run(&["--no-secret"], &others).unwrap();
    assert_eq!(settings.warnings, ["MESHD_PEERS is not a setting: did you mean MESHD_PEER?"]);
    assert_eq!((settings.peers, settings.mtu), (Vec::new(), None));
}

/// One of the range is leased before it is used; any other is for the operator to know.
#[test]
fn an_address_of_the_host_is_by_hand_only_outside_of_the_range() {
    let expose = |arguments: &[&str]| {
        let settings = flags(arguments).unwrap();
        settings.expose.and_then(|expose| expose.by_hand(settings.ipam_range)).map(|address| address.to_string())
    };
    assert_eq!(expose(&["--expose", "auto"]), None);
    assert_eq!(expose(&["--expose", "10.32.0.1/12"]), None);
    assert_eq!(expose(&["--expose", "10.32.0.1/12", "--ipam-range", "none"]).as_deref(), Some("10.32.0.1/12"));
    assert_eq!(expose(&["--expose", "192.168.9.1/24"]).as_deref(), Some("192.168.9.1/24"));
    assert_eq!(expose(&["--expose", "fd00::1/64"]).as_deref(), Some("fd00::1/64"));
}

#[test]
fn help_and_version_are_no_errors() {
    let print = |flag: &str| match load(["meshd".into(), flag.into()], []).unwrap() {
        Request::Print(text) => text,
        Request::Run(_) => panic!("{flag} ran"),
    };
    let help = print("--help");
    for flag in &FLAGS {
        assert!(help.contains(&format!("--{}", flag.name)), "{} is not in the help", flag.name);
    }
    let version = print("--version");
    assert!(version.starts_with(&format!("meshd {} (", env!("CARGO_PKG_VERSION"))), "{version}");
}

#[test]
fn kubernetes_needs_no_secret_and_takes_one_that_is_given() {
    let settings = run(&["--kubernetes"], &[]).unwrap();
    assert!(settings.secret_from_api && settings.secret_file.is_none());
    let kubernetes = settings.kubernetes.unwrap();
    assert_eq!((kubernetes.api, kubernetes.node_gone), (None, Duration::from_secs(300)));
    assert_eq!(kubernetes.credentials, PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"));
    let settings = run(&["--secret-file", "s"], &[("MESHD_KUBERNETES", "true")]).unwrap();
    assert!(!settings.secret_from_api && settings.secret_file.is_some() && settings.kubernetes.is_some());
    let settings = run(&["--kubernetes", "--no-secret"], &[]).unwrap();
    assert!(!settings.secret_from_api && settings.secret_file.is_none());
    let all = ["--kubernetes", "--kubernetes-api", "https://10.0.0.1:6443", "--kubernetes-node-gone", "60"];
    let kubernetes = run(&all, &[]).unwrap().kubernetes.unwrap();
    assert_eq!(kubernetes.api.unwrap().url(), "https://10.0.0.1:6443");
    assert_eq!(kubernetes.node_gone, Duration::from_secs(60));
    let line = run(&["--kubernetes", "--kubernetes-api", "10.0.0.1"], &[]).unwrap_err().line;
    assert!(line.contains("'10.0.0.1' is wrong for --kubernetes-api: https://HOST:PORT is wanted"), "{line}");
    let line = run(&["--kubernetes", "--kubernetes-node-gone", "0"], &[]).unwrap_err().line;
    assert!(line.contains("a number from 1 to"), "{line}");
}

#[test]
fn settings_of_kubernetes_alone_are_warned_about() {
    let settings = flags(&["--kubernetes-node-gone", "60"]).unwrap();
    assert!(settings.kubernetes.is_none());
    assert_eq!(settings.warnings, ["--kubernetes-node-gone has no effect without --kubernetes"]);
}
