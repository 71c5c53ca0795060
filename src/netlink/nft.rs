//! The guard in front of the VXLAN port: a table of nftables of our own, replaced as a whole in one transaction of the kernel.
//!
//! ```text
//! table ip NAME
//!   input: UDP to our VXLAN port ─▶ from an agreed peer? ─▶ speaks its MAC address for one of its own addresses? ─▶ and its ARP? ─▶ on
//!                                        └─ no: drop             └─ no: drop                                          └─ no: drop
//! table netdev NAME, when the host has addresses that others know by another MAC address than its own
//!   ingress of the VXLAN device: that MAC address ─▶ the real one
//! ```
//! VXLAN itself takes whatever reaches its port: without this the fast path is not used. [`table`] is pure; [`apply`] speaks to the kernel.

use std::io;
use std::net::Ipv4Addr;

use meshnet_proto::Mac;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// What the guard lets through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Guard {
    /// Name of its tables.
    pub name: String,
    /// The VXLAN device.
    pub device: String,
    /// Its UDP port.
    pub port: u16,
    /// From whom.
    pub peers: Vec<Ipv4Addr>,
    /// First and last address of what is managed, when anything is.
    pub range: Option<(u32, u32)>,
    /// Who speaks for which managed addresses, first and last: none means everybody who may send at all.
    pub owned: Vec<(Option<Ipv4Addr>, u32, u32)>,
    /// MAC addresses to be replaced on the way in, and by which.
    pub hosts: Vec<(Mac, Mac)>,
}

/// Puts the guard up, in place of the one that is there.
pub fn apply(guard: &Guard) -> io::Result<()> {
    if guard.owned.len() > OWNED_MAX {
        return Err(io::Error::other("the addresses are split into too many pieces"));
    }
    transact(&table(guard))
}

/// Takes the guard away.
pub fn remove(name: &str) -> io::Result<()> {
    let mut batch = Batch::begin();
    [IP, NETDEV].into_iter().for_each(|family| batch.clear(family, name));
    transact(&batch.end())
}

/// Whether the guard is there: whoever empties the machine's rules takes it away too.
pub fn stands(name: &str) -> io::Result<bool> {
    let mut question = Batch::question();
    question.put(GET_CHAIN, 0, IP, &[text(1, name), text(3, CHAIN)].concat());
    match transact(&question.bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The transaction.
fn table(guard: &Guard) -> Vec<u8> {
    let mut batch = Batch::begin();
    [IP, NETDEV].into_iter().for_each(|family| batch.clear(family, &guard.name));
    batch.add_table(IP, &guard.name);
    batch.chain(IP, &guard.name, HOOK_INPUT, None);
    batch.set(&guard.name, IP, "peers", 1, Shape { key: 4, data: None, fields: &[] });
    batch.elements(
        &guard.name,
        IP,
        "peers",
        1,
        guard.peers.iter().map(|ip| element(&ip.octets(), None, None)).collect(),
    );
    batch.set(&guard.name, IP, "owned", 2, Shape { key: 8, data: None, fields: &[4, 4] });
    let owned = guard.owned.iter().map(|(from, first, last)| {
        let (low, high) = from.map_or(([0; 4], [255; 4]), |ip| (ip.octets(), ip.octets()));
        element(&[low, first.to_be_bytes()].concat(), Some(&[high, last.to_be_bytes()].concat()), None)
    });
    batch.elements(&guard.name, IP, "owned", 2, owned.collect());
    let to_us =
        || [meta_protocol(1), compare(1, EQ, &[UDP]), transport(2, 2, 1), compare(1, EQ, &guard.port.to_be_bytes())];
    let stranger = [source(1), lookup(1, "peers", 1, Lookup::Missing), verdict(DROP)];
    batch.rule(IP, &guard.name, &[&to_us()[..], &stranger[..]].concat());
    if let Some((first, last)) = guard.range {
        // Behind UDP and VXLAN, 8 bytes each, the frame begins: its source is 6 bytes in, its kind 12, the sender's address of ARP 28.
        for (kind, kind_at, address_at) in [([0x0a, 0x58], 22, 24), ([0x08, 0x06], 28, 44)] {
            let managed = [
                transport(kind_at, 2, 1),
                compare(1, EQ, &kind),
                transport(address_at, 4, 1),
                compare(1, GTE, &first.to_be_bytes()),
                compare(1, LTE, &last.to_be_bytes()),
                source(1),
                transport(address_at, 4, 9),
                lookup(1, "owned", 2, Lookup::Missing),
                verdict(DROP),
            ];
            batch.rule(IP, &guard.name, &[&to_us()[..], &managed[..]].concat());
        }
    }
    if !guard.hosts.is_empty() {
        batch.add_table(NETDEV, &guard.name);
        batch.chain(NETDEV, &guard.name, HOOK_INGRESS, Some(&guard.device));
        batch.set(&guard.name, NETDEV, "hosts", 3, Shape { key: 6, data: Some(6), fields: &[] });
        let hosts = guard.hosts.iter().map(|(told, real)| element(&told.0, None, Some(&real.0)));
        batch.elements(&guard.name, NETDEV, "hosts", 3, hosts.collect());
        let put = [link(0, 6, 1), lookup(1, "hosts", 3, Lookup::Into(1)), put_link(0, 6, 1)];
        batch.rule(NETDEV, &guard.name, &put);
    }
    batch.end()
}

/// A set of keys of `key` bytes; with `data`, a map to so many bytes; with `fields`, of ranges over these parts of the key.
struct Shape {
    key: u32,
    data: Option<u32>,
    fields: &'static [u32],
}

/// A transaction: messages between two marks.
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    pub(super) fn begin() -> Batch {
        let mut batch = Batch { bytes: Vec::new(), sequence: 0 };
        batch.message(NFNL_BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
        batch
    }

    /// Without marks: nothing is changed.
    fn question() -> Batch {
        Batch { bytes: Vec::new(), sequence: 1 }
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.message(NFNL_BATCH_END, 0, 0, SUBSYSTEM, &[]);
        self.bytes
    }

    pub(super) fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        let length = (HEADER_BYTES + attributes.len()) as u32;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
        self.sequence += 1;
    }

    pub(super) fn put(&mut self, kind: u16, flags: u16, family: u8, attributes: &[u8]) {
        self.message(SUBSYSTEM << 8 | kind, NLM_F_ACK | flags, family, 0, attributes);
    }

    /// No such table from here on, whether there was one or not: what is not there cannot be deleted, so it is made first.
    pub(super) fn clear(&mut self, family: u8, name: &str) {
        self.add_table(family, name);
        self.put(DELETE_TABLE, 0, family, &text(1, name));
    }

    pub(super) fn add_table(&mut self, family: u8, name: &str) {
        self.put(NEW_TABLE, NLM_F_CREATE, family, &text(1, name));
    }

    fn chain(&mut self, family: u8, table: &str, hook: u32, device: Option<&str>) {
        let mut at = [number(1, hook), number(2, PRIORITY as u32)].concat();
        at.extend(device.map(|device| text(3, device)).unwrap_or_default());
        let attributes = [text(1, table), text(3, CHAIN), nested(4, &at), number(5, ACCEPT), text(7, "filter")];
        self.put(NEW_CHAIN, NLM_F_CREATE, family, &attributes.concat());
    }

    fn set(&mut self, table: &str, family: u8, name: &str, id: u32, shape: Shape) {
        let Shape { key, data, fields } = shape;
        let ranges = if fields.is_empty() { 0 } else { SET_INTERVAL | SET_CONCAT };
        let flags = ranges | data.map_or(0, |_| SET_MAP);
        let mut attributes = [text(1, table), text(2, name), number(3, flags), number(4, 0), number(5, key)].concat();
        attributes.extend(data.map(|bytes| [number(6, 0), number(7, bytes)].concat()).unwrap_or_default());
        if !fields.is_empty() {
            let fields: Vec<u8> = fields.iter().flat_map(|bytes| nested(1, &number(1, *bytes))).collect();
            attributes.extend(nested(9, &nested(2, &fields)));
        }
        attributes.extend(number(10, id));
        self.put(NEW_SET, NLM_F_CREATE, family, &attributes);
    }

    fn elements(&mut self, table: &str, family: u8, set: &str, id: u32, elements: Vec<Vec<u8>>) {
        // An attribute holds 64 KiB.
        for some in elements.chunks(ELEMENTS) {
            let attributes = [text(1, table), text(2, set), number(4, id), nested(3, &some.concat())];
            self.put(NEW_ELEMENTS, NLM_F_CREATE, family, &attributes.concat());
        }
    }

    fn rule(&mut self, family: u8, table: &str, expressions: &[Vec<u8>]) {
        let attributes = [text(1, table), text(2, CHAIN), nested(4, &expressions.concat())];
        self.put(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, family, &attributes.concat());
    }
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub(super) fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, value)
}

pub(super) fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

pub(super) fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn element(key: &[u8], end: Option<&[u8]>, data: Option<&[u8]>) -> Vec<u8> {
    let value = |kind: u16, bytes: &[u8]| nested(kind, &attribute(1, bytes));
    let mut attributes = value(1, key);
    attributes.extend(end.map(|end| value(10, end)).unwrap_or_default());
    attributes.extend(data.map(|data| value(2, data)).unwrap_or_default());
    nested(1, &attributes)
}

pub(super) fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, &attributes.concat())].concat())
}

fn meta_protocol(register: u32) -> Vec<u8> {
    expression("meta", &[number(1, register), number(2, META_L4PROTO)])
}

pub(super) fn load(base: u32, offset: u32, bytes: u32, register: u32) -> Vec<u8> {
    expression("payload", &[number(1, register), number(2, base), number(3, offset), number(4, bytes)])
}

fn link(offset: u32, bytes: u32, register: u32) -> Vec<u8> {
    load(0, offset, bytes, register)
}

/// The sender's IPv4 address.
pub(super) fn source(register: u32) -> Vec<u8> {
    load(1, 12, 4, register)
}

fn transport(offset: u32, bytes: u32, register: u32) -> Vec<u8> {
    load(2, offset, bytes, register)
}

fn put_link(offset: u32, bytes: u32, register: u32) -> Vec<u8> {
    expression("payload", &[number(5, register), number(2, 0), number(3, offset), number(4, bytes), number(6, 0)])
}

pub(super) fn compare(register: u32, how: u32, value: &[u8]) -> Vec<u8> {
    expression("cmp", &[number(1, register), number(2, how), nested(3, &attribute(1, value))])
}

#[derive(Clone, Copy)]
enum Lookup {
    /// Goes on when the set does not have it.
    Missing,
    /// Goes on when the map has it, with what it is mapped to in this register.
    Into(u32),
}

fn lookup(register: u32, set: &str, id: u32, how: Lookup) -> Vec<u8> {
    let how = match how {
        Lookup::Missing => number(5, LOOKUP_INVERSE),
        Lookup::Into(register) => number(3, register),
    };
    expression("lookup", &[text(1, set), number(2, register), number(4, id), how])
}

pub(super) fn verdict(code: u32) -> Vec<u8> {
    expression("immediate", &[number(1, 0), nested(2, &nested(2, &number(1, code)))])
}

/// Sends a transaction; the first refusal among the answers is the verdict. The kernel does it within the call.
pub(super) fn transact(batch: &[u8]) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    // Without the right to more than the usual, what is small passes all the same.
    let _ = set_socket_send_buffer_size_force(&socket, batch.len().saturating_mul(2).max(BUFFER_BYTES));
    rustix::net::send(&socket, batch, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(()),
            Ok((received, _)) => first_error(buffer.get(..received).unwrap_or_default())?,
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
            // Answers that found no room: those that came say enough, a refused transaction begins with its refusal.
            Err(rustix::io::Errno::NOBUFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Attributes of all objects of a kind; `about` narrows it.
pub(super) fn list(kind: u16, family: u8, about: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut question = Batch::question();
    question.message(SUBSYSTEM << 8 | kind, NLM_F_DUMP, family, 0, about);
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    rustix::net::send(&socket, &question.bytes, SendFlags::empty())?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
    // The kernel makes the next part while the last one is read: there is always one, until the end.
    while found.len() < LIST_MAX {
        let (received, _) = match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let Some((length, _)) = rest.split_first_chunk::<4>() {
            let length = u32::from_ne_bytes(*length) as usize;
            let kind = rest.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
            match kind {
                Some(NLMSG_DONE) | None => return Ok(found),
                Some(NLMSG_ERROR) => {
                    // What is asked about is not there: an empty list.
                    return match first_error(rest) {
                        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
                        _ => Ok(found),
                    };
                }
                Some(_) => found.push(rest.get(HEADER_BYTES..length).unwrap_or_default().to_vec()),
            }
            let Some(next) = rest.get(length.next_multiple_of(4).max(4)..) else { break };
            rest = next;
        }
    }
    Ok(found)
}

/// The value of one attribute among several.
pub(super) fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let (Some(length), Some(kind)) = (attributes.get(..2), attributes.get(2..4)) {
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        if u16::from_ne_bytes(kind.try_into().ok()?) & !(NLA_F_NESTED | NLA_F_NET_BYTEORDER) == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..)?;
    }
    None
}

/// A number in an attribute.
pub(super) fn value(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn first_error(mut answers: &[u8]) -> io::Result<()> {
    while let Some((length, _)) = answers.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let kind = answers.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
        let code = answers.get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
        match (kind, code) {
            (Some(NLMSG_ERROR), Some(code)) if code != 0 => return Err(io::Error::from_raw_os_error(-code)),
            _ => {}
        }
        let Some(rest) = answers.get(length.next_multiple_of(4).max(4)..) else { break };
        answers = rest;
    }
    Ok(())
}

/// Pieces of the range that one guard knows: a map as split as that has long been slow elsewhere.
const OWNED_MAX: usize = 8_192;
/// Elements of a set in one message.
const ELEMENTS: usize = 512;
/// Far more chains and rules than any machine has that must be looked through; others are not.
const LIST_MAX: usize = 100_000;
const BUFFER_BYTES: usize = 256 * 1024;
const CHAIN: &str = "guard";
/// Before connection tracking's and everybody's filters.
const PRIORITY: i32 = -310;
/// Of netlink and its messages (linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h).
const HEADER_BYTES: usize = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NLM_F_DUMP: u16 = 0x300;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_BATCH_BEGIN: u16 = 16;
const NFNL_BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
pub(super) const IP: u8 = 2;
const NETDEV: u8 = 5;
const HOOK_INPUT: u32 = 1;
const HOOK_INGRESS: u32 = 0;
const DROP: u32 = 0;
pub(super) const ACCEPT: u32 = 1;
const UDP: u8 = 17;
pub(super) const META_L4PROTO: u32 = 16;
pub(super) const EQ: u32 = 0;
pub(super) const LTE: u32 = 3;
pub(super) const GTE: u32 = 5;
const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const SET_CONCAT: u32 = 0x80;
const LOOKUP_INVERSE: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lab;

    fn guard() -> Guard {
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let first = u32::from(Ipv4Addr::new(10, 32, 0, 0));
        Guard {
            name: "meshnet-test".into(),
            device: "lo".into(),
            port: 6784,
            peers: vec![a, b],
            range: Some((first, first + 0xf_ffff)),
            owned: vec![
                (Some(a), first, first + 99),
                (None, first + 100, first + 199),
                (Some(b), first + 200, first + 999),
            ],
            hosts: vec![(Mac([0x0a, 0x58, 10, 32, 0, 7]), Mac([2; 6]))],
        }
    }

    #[test]
    fn answers_tell_the_first_refusal() {
        let answer = |code: i32| {
            let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(code.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        assert!(first_error(&[answer(0), answer(0)].concat()).is_ok());
        let refused = first_error(&[answer(0), answer(-libc::EPERM), answer(-libc::ENOENT)].concat());
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(first_error(&[0; 7]).is_ok(), "a stump says nothing");
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let owned = vec![(None, 0, 0); OWNED_MAX + 1];
        assert!(apply(&Guard { owned, ..guard() }).is_err());
    }

    #[test]
    fn the_kernel_takes_the_guard_as_often_as_it_changes_and_loses_it() {
        let apart = || {
            assert!(!stands("meshnet-test").unwrap());
            for owned in [guard().owned, Vec::new(), (0..4_000).map(|at| (None, 2 * at, 2 * at)).collect()] {
                apply(&Guard { owned, ..guard() }).unwrap();
                assert!(stands("meshnet-test").unwrap());
            }
            remove("meshnet-test").unwrap();
            assert!(!stands("meshnet-test").unwrap());
            remove("meshnet-test").unwrap();
        };
        lab::netns().run(apart).unwrap();
    }
}
