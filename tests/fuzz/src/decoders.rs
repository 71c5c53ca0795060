//! One function for each decoder of `meshnet-proto`: give it any bytes, it panics when the decoder does, or when what was read does not say the same
//! once written and read again.
//!
//! `proto/tests/corpus.rs` includes this file and replays the corpus through it, so it may use nothing but `meshnet-proto`.

use meshnet_proto::codec;
use meshnet_proto::limits;
use meshnet_proto::wire::control::{Control, LENGTH_BYTES};
use meshnet_proto::wire::data::{
    FLOOD_BYTES, Flood, INNER_BYTES, Inner, OUTER_BYTES, Outer, PROBE_BYTES, Probe, Relay, is_quic,
};
use meshnet_proto::wire::ipam::Message;
use meshnet_proto::wire::record::SignedRecord;

/// Takes any bytes.
pub type Decode = fn(&[u8]);

/// All of them, by the name of target and corpus directory.
pub const DECODERS: &[(&str, Decode)] = &[
    ("outer", outer),
    ("inner", inner),
    ("flood", flood),
    ("relay", relay),
    ("probe", probe),
    ("control", control),
    ("record", record),
    ("ipam", ipam),
];

/// [`Outer`].
pub fn outer(bytes: &[u8]) {
    let Some(header) = Outer::parse(bytes) else { return };
    assert!(!is_quic(bytes[0]), "taken for both QUIC and data");
    assert_eq!(header.emit(), bytes[..OUTER_BYTES]);
}

/// [`Inner`].
pub fn inner(bytes: &[u8]) {
    let Some(header) = Inner::parse(bytes) else { return };
    assert_eq!(header.emit(), bytes[..INNER_BYTES]);
    let o = header.offload;
    assert!(header.index < header.count);
    let longest = usize::from(o.header_len) + usize::from(header.count - 1) * usize::from(o.gso_size);
    assert!(longest < limits::SUPERFRAME_MAX_BYTES, "a super-frame of more than {longest} bytes");
    assert!(usize::from(o.csum_start) + usize::from(o.csum_offset) + 2 <= limits::SUPERFRAME_MAX_BYTES);
}

/// [`Flood`].
pub fn flood(bytes: &[u8]) {
    let Some(header) = Flood::parse(bytes) else { return };
    assert_eq!(header.emit(), bytes[..FLOOD_BYTES]);
    assert!(header.hops <= limits::FLOOD_HOPS_MAX);
}

/// [`Relay`].
pub fn relay(bytes: &[u8]) {
    let Some((header, length)) = Relay::parse(bytes) else { return };
    let mut written = vec![0; length];
    assert_eq!(header.emit(&mut written), Some(length));
    assert_eq!(written, bytes[..length]);
    let hops = header.route.hops();
    assert!(usize::from(header.position) < hops.len() && hops.len() <= limits::RELAYS_MAX + 1);
    assert!(!hops.contains(&header.source), "a route through its source");
    assert!(hops.iter().enumerate().all(|(at, hop)| !hops[..at].contains(hop)), "a route with a loop");
}

/// [`Probe`].
pub fn probe(bytes: &[u8]) {
    let Some(body) = Probe::parse(bytes) else { return };
    assert_eq!(body.emit()[..17], bytes[..17]);
    assert_eq!(Probe::parse(&body.emit()), Some(body));
    assert!(bytes.len() >= PROBE_BYTES);
}

/// [`Control::parse`].
pub fn control(bytes: &[u8]) {
    let Ok(Some(message)) = Control::parse(bytes) else { return };
    // What is written is never longer than what was read: a number may be read from more bytes than it needs.
    let written = match message.emit() {
        Ok(written) => written,
        Err(error) => {
            assert!(bytes.len() + LENGTH_BYTES > limits::MESSAGE_MAX_BYTES, "{error}");
            return;
        }
    };
    let (length, rest) = written.split_at(LENGTH_BYTES);
    assert_eq!(length, (rest.len() as u32).to_be_bytes());
    assert!(rest.len() <= bytes.len());
    assert_eq!(Control::parse(rest), Ok(Some(message)));
}

/// [`SignedRecord::parse`].
pub fn record(bytes: &[u8]) {
    let Ok((signed, record)) = SignedRecord::parse(bytes) else { return };
    assert_eq!(signed.emit(), bytes, "a record must travel byte for byte");
    assert!(record.within_limits());
    let written = codec::encode(&record);
    assert_eq!(written.and_then(|written| codec::decode(&written)), Ok(record));
}

/// [`Message::parse`]: messages about addresses.
pub fn ipam(bytes: &[u8]) {
    let Ok(Some(message)) = Message::parse(bytes) else { return };
    // Columns may name ids that no run uses, so only what was read must survive.
    if let Ok(written) = message.emit() {
        assert_eq!(Message::parse(&written), Ok(Some(message)));
    }
}
