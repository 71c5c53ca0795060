//! The largest of everything that can arrive from the network, each with the reason for its number.

/// Bytes of one control message, header included. The largest is a batch of records; a record is at most [`RECORD_MAX_BYTES`].
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// Bytes of one signed record. 128 links of 12 bytes, 16 addresses of 21, a name and extensions stay under 4 KiB; the rest is room for later fields.
pub const RECORD_MAX_BYTES: usize = 16 * 1024;
/// Records in one message, so that a single message cannot hold the receiver for long (each costs a signature check of about 50 µs).
pub const RECORDS_PER_MESSAGE_MAX: usize = 256;
/// Bytes of a peer's name: what fits a host name label.
pub const NAME_MAX_BYTES: usize = 64;
/// Bytes of a version string.
pub const SOFTWARE_MAX_BYTES: usize = 64;
/// Addresses that one peer may tell of itself: enough for a machine with several interfaces in both families.
pub const ENDPOINTS_MAX: usize = 16;
/// Links in one record: above the largest sensible `--max-links`.
pub const RECORD_LINKS_MAX: usize = 1024;
/// Extension fields of a record or hello: one for each feature that a release may add, for some dozen releases.
pub const EXTENSIONS_MAX: usize = 32;
/// The highest incarnation and sequence number of a record: nobody gets there by counting, and one more never overflows.
pub const VERSION_MAX: u64 = 1 << 48;
/// Peers that one mesh may hold. Design size is 1,000; beyond ten times that the records alone cost tens of MB.
pub const PEERS_MAX: usize = 10_000;
/// Relays between two peers. Three reach any two ends of a graph of degree 8 and 1,000 peers in practice, and bound the header.
pub const RELAYS_MAX: usize = 3;
/// Lanes of one session: two for each worker, one for the node itself.
pub const LANES_MAX: usize = 33;
/// Buckets of the digest exchange: at 1,000 peers about four records differ for each unequal bucket.
pub const DIGEST_BUCKETS: usize = 256;
/// Hops that a flooded frame may take: above the diameter of any graph we build.
pub const FLOOD_HOPS_MAX: u8 = 16;
/// Bytes of a frame or super-frame read from a TAP: 64 KiB of packet and the longest stack of headers.
pub const SUPERFRAME_MAX_BYTES: usize = 65_536 + 64;
/// Fragments of one frame: the longest frame at the smallest MTU and over the longest way through relays takes 60.
pub const FRAGMENTS_MAX: usize = 64;
/// Bytes that may be cut into fragments: a frame, its inner and its flood header.
pub const FRAGMENTED_MAX_BYTES: usize = SUPERFRAME_MAX_BYTES + 32;
/// Bytes of a datagram's payload over UDP (IPv4).
pub const DATAGRAM_MAX_BYTES: usize = 65_507;
/// Members of an address space that are remembered, those removed among them: removed ones are never forgotten, or they might come back.
pub const IPAM_MEMBERS_MAX: usize = 10_000;
/// Runs in the map of addresses: some ten for each of a thousand peers; a map of this size still fits one message.
pub const IPAM_RUNS_MAX: usize = 10_000;
/// Links that a message to another peer may cross, as a flood.
pub const ROUTED_HOPS_MAX: u8 = 16;
