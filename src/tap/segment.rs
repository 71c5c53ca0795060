//! Cutting a super-frame into the frames that it stands for, as a network card does, for kernels that refuse it whole.
//!
//! Each frame keeps a checksum that holds the pseudo header's sum alone: the kernel completes it when it leaves the machine.

use meshnet_proto::wire::data::{Gso, Offload};

/// Gives each frame of a super-frame to `each`, as headers and payload, until that fails. `None` when the headers are not what `offload` says.
pub fn cut<E>(
    offload: &Offload,
    frame: &[u8],
    mut each: impl FnMut(&Offload, &[&[u8]]) -> Result<(), E>,
) -> Option<Result<(), E>> {
    let layers = Layers::find(offload, frame)?;
    let (template, payload) = frame.split_at_checked(usize::from(offload.header_len))?;
    let mut memory = [0u8; u8::MAX as usize];
    let header = memory.get_mut(..template.len())?;
    let plain = Offload {
        needs_csum: true,
        csum_start: layers.transport as u16,
        csum_offset: if layers.tcp { 16 } else { 6 },
        ..Offload::default()
    };
    let size = usize::from(offload.gso_size);
    let last = payload.len().div_ceil(size.max(1)).saturating_sub(1);
    for (index, payload) in payload.chunks(size.max(1)).enumerate() {
        header.copy_from_slice(template);
        layers.finish(header, payload.len(), index, size, index == last);
        if let Err(error) = each(&plain, &[header, payload]) {
            return Some(Err(error));
        }
    }
    Some(Ok(()))
}

/// Where the headers start.
struct Layers {
    network: usize,
    transport: usize,
    v6: bool,
    tcp: bool,
}

impl Layers {
    fn find(offload: &Offload, frame: &[u8]) -> Option<Layers> {
        let mut network = 14;
        let mut kind = frame.get(12..14)?;
        for _ in 0..VLAN_TAGS_MAX {
            if kind == [0x81, 0x00] || kind == [0x88, 0xa8] {
                kind = frame.get(network + 2..network + 4)?;
                network += 4;
            }
        }
        let v6 = match (kind, frame.get(network)? >> 4) {
            ([0x08, 0x00], 4) => false,
            ([0x86, 0xdd], 6) => true,
            _ => return None,
        };
        let tcp = offload.gso != Gso::Udp;
        let transport = usize::from(offload.csum_start);
        let (fixed, protocol) =
            if v6 { (40, None) } else { (usize::from(frame.get(network)? & 15) * 4, frame.get(network + 9)) };
        let sound = transport >= network + fixed.max(20)
            && transport + if tcp { 20 } else { 8 } <= usize::from(offload.header_len)
            && usize::from(offload.header_len) <= frame.len()
            && protocol.is_none_or(|found| *found == if tcp { 6 } else { 17 })
            && match offload.gso {
                Gso::None => false,
                Gso::Tcp4 => !v6,
                Gso::Tcp6 => v6,
                Gso::Udp => true,
            };
        sound.then_some(Layers { network, transport, v6, tcp })
    }

    /// Makes a copy of the template the headers of one segment. `find` has proved that all offsets are inside.
    fn finish(&self, header: &mut [u8], payload: usize, index: usize, size: usize, last: bool) {
        let (network, transport) = (self.network, self.transport);
        let transport_bytes = header.len() - transport + payload;
        let protocol: u32 = if self.tcp { 6 } else { 17 };
        let addresses = if self.v6 {
            put16(header, network + 4, header.len() - network - 40 + payload);
            network + 8..network + 40
        } else {
            put16(header, network + 2, header.len() - network + payload);
            let id = u16::from_be_bytes([header[network + 4], header[network + 5]]);
            put16(header, network + 4, usize::from(id.wrapping_add(index as u16)));
            put16(header, network + 10, 0);
            let bytes = usize::from(header[network] & 15) * 4;
            let sum = !sum(&header[network..network + bytes], 0);
            put16(header, network + 10, usize::from(sum));
            network + 12..network + 20
        };
        let pseudo = sum(&header[addresses], protocol + transport_bytes as u32);
        if self.tcp {
            let at = transport + 4;
            let sequence = u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let sequence = sequence.wrapping_add((index * size) as u32);
            header[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            let flags = &mut header[transport + 13];
            *flags &= if last { 0xff } else { !(FIN | PSH) };
            *flags &= if index == 0 { 0xff } else { !CWR };
            put16(header, transport + 16, usize::from(pseudo));
        } else {
            put16(header, transport + 4, transport_bytes);
            put16(header, transport + 6, usize::from(pseudo));
        }
    }
}

fn put16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Completes a checksum that holds the pseudo header's sum alone. False when it would lie outside the frame.
pub fn complete(offload: &Offload, frame: &mut [u8]) -> bool {
    let start = usize::from(offload.csum_start);
    let at = start + usize::from(offload.csum_offset);
    let Some(part) = frame.get(start..).filter(|_| at + 2 <= frame.len()) else { return false };
    let (even, odd) = part.split_at(part.len() & !1);
    let last = odd.first().map_or(0, |byte| u32::from(*byte) << 8);
    let sum = !sum(even, last);
    // Nought says that there is no checksum (RFC 768); to TCP the two are the same.
    put16(frame, at, usize::from(if sum == 0 { 0xffff } else { sum }));
    true
}

/// The one's complement sum (RFC 1071) of an even number of bytes.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start + bytes.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A provider's tag and a customer's.
const VLAN_TAGS_MAX: usize = 2;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
