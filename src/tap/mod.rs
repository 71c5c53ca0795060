//! The TAP device: where frames of this machine enter and leave the mesh, super-frames whole.
//!
//! Each queue is one descriptor that one thread reads and another writes. Before each frame stands a `virtio_net_hdr` (VIRTIO 1.2, 5.1.6), which here is an
//! [`Offload`]: a frame of 64 KiB crosses in one call, its checksum left to whoever needs it.
//!
//! ```text
//!            read  ┌ flags, kind, header_len, gso_size, csum_start, csum_offset ┬ frame ┐  write
//! bridge ─▶ queue ─┴───────────── Offload ──────────────────────────────────────┴───────┴─▶ queue ─▶ bridge
//! ```
//! May use `sys`, `buf`. Deliberately lacks: addresses, MTU, bridge and queue length (`txqueuelen`) of the device; those are `netlink`'s.

mod proof;
mod segment;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use meshnet_proto::limits::SUPERFRAME_MAX_BYTES;
use meshnet_proto::wire::data::{Gso, Offload};

use crate::sys::tun::{self, VNET_HEADER_BYTES};

/// Bytes of a buffer for [`TapQueue::read`].
pub const READ_BYTES: usize = VNET_HEADER_BYTES + SUPERFRAME_MAX_BYTES;

/// Why a TAP cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not allowed.
    #[error("cannot open /dev/net/tun: {0}; meshd needs root or CAP_NET_ADMIN")]
    Denied(#[source] io::Error),
    /// The kernel has no TAPs.
    #[error("cannot open /dev/net/tun: {0}; load the kernel module `tun`")]
    Absent(#[source] io::Error),
    /// The name is taken by something else.
    #[error("cannot make the TAP {0}: {1}; remove the interface of this name or the program that holds it")]
    Taken(String, #[source] io::Error),
    /// Anything else.
    #[error("cannot make the TAP {0}: {1}")]
    Io(String, #[source] io::Error),
}

/// A TAP with all its queues. The device goes when the last of them is dropped.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<TapQueue>,
    offloads: u32,
}

/// One queue. Clones share it: one thread reads, another writes.
#[derive(Debug, Clone)]
pub struct TapQueue {
    descriptor: Arc<OwnedFd>,
    health: Arc<TapHealth>,
    /// A [`VNET_HEADER_BYTES`] header stands before each frame; without one checksums are completed and super-frames cut here.
    headers: bool,
    /// Kinds of super-frames that the kernel refused at the start: a bit for each [`Gso::number`].
    refused_kinds: u8,
    /// A frame whose checksum is completed here; empty until that is needed.
    plain: Vec<u8>,
    /// Writes of super-frames to cut here, after the kernel refused one whole.
    cut_here_writes: u32,
    /// A super-frame to cut here; empty until that is needed.
    scratch: Vec<u8>,
    /// Behave as if the kernel refused every super-frame.
    #[cfg(test)]
    refuse: bool,
}

/// What all queues of a TAP report; outlives the device.
#[derive(Debug, Default)]
pub struct TapHealth {
    gso_refused: AtomicU64,
    said: AtomicBool,
}

/// Why a read gave no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// There is none now.
    Empty,
    /// What came has no Ethernet header, or a kind of super-frame that was not asked for.
    Malformed,
    /// The device is gone.
    Lost,
}

/// Why a write failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// The kernel has no room, or the device is down.
    Full,
    /// The kernel found its fields to disagree.
    Malformed,
    /// The device is gone.
    Lost,
}

impl Tap {
    /// Opens `queues` queues of the TAP `name`, made when missing, with all offloads that the kernel has.
    pub fn open(name: &str, queues: usize) -> Result<Tap, TapError> {
        Tap::open_with(name, queues, true, &tun::OFFLOADS)
    }

    /// The same as on a kernel that has none of them: whole frames with their checksums, one a call.
    pub fn open_plain(name: &str, queues: usize) -> Result<Tap, TapError> {
        Tap::open_with(name, queues, false, &[0])
    }

    fn open_with(name: &str, queues: usize, headers: bool, wanted: &[u32]) -> Result<Tap, TapError> {
        let health = Arc::new(TapHealth::default());
        let mut opened = Vec::with_capacity(queues);
        for _ in 0..queues.max(1) {
            let (descriptor, headers) =
                tun::open_queue(name, headers).map_err(|error| TapError::from_io(name, error))?;
            opened.push(TapQueue {
                descriptor: Arc::new(descriptor),
                health: Arc::clone(&health),
                headers,
                refused_kinds: 0,
                plain: Vec::new(),
                cut_here_writes: 0,
                scratch: Vec::new(),
                #[cfg(test)]
                refuse: false,
            });
        }
        // The setting belongs to the device, not to the queue.
        let first = &opened[0].descriptor;
        let wanted = if opened[0].headers { wanted } else { &[0] };
        let taken = wanted.iter().find(|offloads| tun::set_offload(first, **offloads).is_ok());
        let refused_kinds = if opened[0].headers { proof::refused_kinds(&mut opened[0]) } else { 0 };
        opened.iter_mut().for_each(|queue| queue.refused_kinds = refused_kinds);
        Ok(Tap { name: name.to_owned(), offloads: taken.copied().unwrap_or(0), queues: opened })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its queues.
    pub fn queues(&self) -> &[TapQueue] {
        &self.queues
    }

    /// What its queues report.
    pub fn health(&self) -> &Arc<TapHealth> {
        &self.queues[0].health
    }

    /// What the kernel does on it, in words of its own.
    pub fn abilities(&self) -> Vec<&'static str> {
        let (tcp, udp) = self.superframes();
        let checksums = self.offloads & libc::TUN_F_CSUM != 0 && !tcp;
        let all = [("vnet-header", self.queues[0].headers), ("csum", checksums), ("tso", tcp), ("uso", udp)];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }

    /// Whether TCP comes in super-frames, and UDP.
    pub fn superframes(&self) -> (bool, bool) {
        let [with_udp, with_tcp, ..] = tun::OFFLOADS;
        (self.offloads & with_tcp == with_tcp, self.offloads == with_udp)
    }
}

impl TapQueue {
    /// Reads one frame or super-frame into `buffer` (of [`READ_BYTES`]); gives where it is. Never blocks.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<(Offload, Range<usize>), ReadError> {
        let start = if self.headers { 0 } else { VNET_HEADER_BYTES };
        let room = buffer.get_mut(start..).ok_or(ReadError::Malformed)?;
        let length = rustix::io::read(&*self.descriptor, room).map_err(|error| match error {
            rustix::io::Errno::AGAIN | rustix::io::Errno::INTR => ReadError::Empty,
            // EBADFD when the device was deleted. Any other is no better: a device that cannot be read has to be made anew.
            _ => ReadError::Lost,
        })?;
        if !self.headers {
            let at = start..start + length;
            return if length < ETHERNET_BYTES { Err(ReadError::Malformed) } else { Ok((Offload::default(), at)) };
        }
        let (header, frame) = buffer[..length].split_first_chunk().ok_or(ReadError::Malformed)?;
        let offload = parse(header, frame).ok_or(ReadError::Malformed)?;
        Ok((offload, VNET_HEADER_BYTES..length))
    }

    /// Writes one frame or super-frame, in parts that follow each other. Never blocks.
    pub fn write(&mut self, offload: &Offload, parts: &[&[u8]]) -> Result<(), WriteError> {
        if offload.gso == Gso::None {
            return self.write_whole(offload, parts).map_err(why);
        }
        if !self.headers || self.refused_kinds & bit(offload.gso) != 0 {
            return self.write_cut(offload, parts);
        }
        if self.cut_here_writes > 0 {
            self.cut_here_writes -= 1;
            return self.write_cut(offload, parts);
        }
        match self.write_whole(offload, parts) {
            Err(error) if error == rustix::io::Errno::INVAL => {
                self.write_cut(offload, parts)?;
                // The kernel took each segment, so the fields are sound: it was the super-frame that it cannot take.
                self.cut_here_writes = WRITES_AFTER_REFUSAL;
                self.health.note_refusal(offload);
                Ok(())
            }
            other => other.map_err(why),
        }
    }

    fn write_whole(&mut self, offload: &Offload, parts: &[&[u8]]) -> rustix::io::Result<()> {
        if !self.headers {
            return self.write_plain(offload, parts);
        }
        #[cfg(test)]
        if self.refuse && offload.gso != Gso::None {
            return Err(rustix::io::Errno::INVAL);
        }
        let header = emit(offload);
        let mut all = [IoSlice::new(&header); PARTS_MAX + 1];
        // More parts than the longest run of segments has: a caller's fault, told as the kernel would.
        let room = all.get_mut(1..=parts.len()).ok_or(rustix::io::Errno::INVAL)?;
        room.iter_mut().zip(parts).for_each(|(to, part)| *to = IoSlice::new(part));
        rustix::io::writev(&*self.descriptor, &all[..=parts.len()]).map(|_| ())
    }

    /// Writes a frame to a device without headers: its checksum has to be complete.
    fn write_plain(&mut self, offload: &Offload, parts: &[&[u8]]) -> rustix::io::Result<()> {
        self.plain.clear();
        parts.iter().for_each(|part| self.plain.extend_from_slice(part));
        if offload.needs_csum && !segment::complete(offload, &mut self.plain) {
            return Err(rustix::io::Errno::INVAL);
        }
        rustix::io::write(&*self.descriptor, &self.plain).map(|_| ())
    }

    /// Cuts a super-frame as a network card would, and writes its segments.
    fn write_cut(&mut self, offload: &Offload, parts: &[&[u8]]) -> Result<(), WriteError> {
        let mut whole = std::mem::take(&mut self.scratch);
        whole.clear();
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        let result = segment::cut(offload, &whole, |offload, segment| self.write_whole(offload, segment).map_err(why));
        self.scratch = whole;
        result.unwrap_or(Err(WriteError::Malformed))
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl TapHealth {
    /// Super-frames that the kernel refused though it took their segments.
    pub fn superframes_refused(&self) -> u64 {
        self.gso_refused.load(Relaxed)
    }

    fn note_refusal(&self, offload: &Offload) {
        self.gso_refused.fetch_add(1, Relaxed);
        if !self.said.swap(true, Relaxed) {
            tracing::info!(kind = ?offload.gso, "the kernel refused a super-frame; meshd cuts them itself for a while");
        }
    }
}

impl TapError {
    fn from_io(name: &str, error: io::Error) -> TapError {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::Denied(error),
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::Absent(error),
            Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) => TapError::Taken(name.to_owned(), error),
            _ => TapError::Io(name.to_owned(), error),
        }
    }
}

fn why(error: rustix::io::Errno) -> WriteError {
    match error {
        rustix::io::Errno::BADFD => WriteError::Lost,
        rustix::io::Errno::INVAL => WriteError::Malformed,
        _ => WriteError::Full,
    }
}

/// Of [`TapQueue::refused_kinds`].
fn bit(gso: Gso) -> u8 {
    1 << gso.number()
}

/// Reads a virtio header; `None` for what was not asked for and for a frame shorter than what its header speaks of.
fn parse(header: &[u8; VNET_HEADER_BYTES], frame: &[u8]) -> Option<Offload> {
    let &[flags, kind, _, _, z0, z1, s0, s1, o0, o1] = header;
    let mut offload = Offload {
        needs_csum: flags & NEEDS_CSUM != 0,
        data_valid: flags & DATA_VALID != 0,
        ecn: kind & ECN != 0,
        gso: Gso::from_number(kind & !ECN)?,
        header_len: 0,
        gso_size: u16::from_ne_bytes([z0, z1]),
        csum_start: u16::from_ne_bytes([s0, s1]),
        csum_offset: u16::from_ne_bytes([o0, o1]),
    };
    if frame.len() < ETHERNET_BYTES {
        return None;
    }
    if offload.gso == Gso::None {
        offload.gso_size = 0;
        return Some(offload);
    }
    // The kernel's own length of headers is a hint; the transport's start is not. A super-frame always leaves its checksum to us.
    let transport = usize::from(offload.csum_start);
    let header_len = match offload.gso {
        Gso::Udp => transport + 8,
        _ => transport + usize::from(frame.get(transport + 12)? >> 4) * 4,
    };
    offload.header_len = u8::try_from(header_len).ok()?;
    (offload.needs_csum && offload.gso_size > 0 && header_len <= frame.len()).then_some(offload)
}

fn emit(offload: &Offload) -> [u8; VNET_HEADER_BYTES] {
    let flags = if offload.needs_csum { NEEDS_CSUM } else { 0 } | if offload.data_valid { DATA_VALID } else { 0 };
    let ecn = offload.gso != Gso::None && offload.ecn;
    let kind = offload.gso.number() | if ecn { ECN } else { 0 };
    let [h0, h1] = u16::from(offload.header_len).to_ne_bytes();
    let [z0, z1] = offload.gso_size.to_ne_bytes();
    let [s0, s1] = offload.csum_start.to_ne_bytes();
    let [o0, o1] = offload.csum_offset.to_ne_bytes();
    [flags, kind, h0, h1, z0, z1, s0, s1, o0, o1]
}

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_ECN`.
const ECN: u8 = 0x80;
const ETHERNET_BYTES: usize = 14;
/// Parts of one write: headers, and twice the segments that one receive brings.
pub const PARTS_MAX: usize = 130;
/// Super-frames cut here before the kernel is asked again.
const WRITES_AFTER_REFUSAL: u32 = 10_000;
