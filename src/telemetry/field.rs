//! The names of fields in log lines. One thing has one name everywhere; a new one is added here first.
//!
//! `tracing` wants the names as words in its macros (`info!(peer = %id, …)`), so this list is for reading and for the test that compares.

/// Name and meaning.
pub const ALL: [(&str, &str); 22] = [
    ("address", "underlay address and port"),
    ("bridge", "name of the Linux bridge"),
    ("bytes", "a size"),
    ("count", "how many"),
    ("detail", "particulars of an event of the node, in words"),
    ("dial", "number of an attempt to connect"),
    ("epoch", "of the forwarding table"),
    ("error", "what went wrong, in the words of who said it"),
    ("interface", "name of a network device"),
    ("link", "number of a QUIC connection"),
    ("mac", "Ethernet address"),
    ("mtu", "of the overlay or a device"),
    ("name", "of a peer, as it calls itself"),
    ("namespace", "network namespace, as it was given"),
    ("path", "of a file or socket"),
    ("peer", "id of a peer"),
    ("reason", "why a state is what it is"),
    ("repeats", "lines like this one that were left out since the last"),
    ("rtt_ms", "round trip time"),
    ("target", "address to connect to, as it was given"),
    ("version", "of software or a format"),
    ("worker", "number of a data plane thread"),
];
