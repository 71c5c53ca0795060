use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, TcpHeader};
use meshnet_proto::wire::data::{Gso, Offload};

use super::*;
use crate::sys::lab::{ip, netns};
use crate::sys::wake::{Wake, sleep};

const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Two TAPs on one bridge in a namespace of their own; `wanted` are the offloads of the second.
fn bridged<T: Send>(wanted: &[u32], work: impl FnOnce(Tap, Tap) -> T + Send) -> T {
    bridged_with(|| Tap::open("ta", 1).unwrap(), || Tap::open_with("tb", 1, true, wanted).unwrap(), work)
}

fn bridged_with<T: Send>(
    first: impl FnOnce() -> Tap + Send,
    second: impl FnOnce() -> Tap + Send,
    work: impl FnOnce(Tap, Tap) -> T + Send,
) -> T {
    let netns = netns();
    netns
        .run(|| {
            ip("link add br0 type bridge mcast_snooping 0");
            ip("link set br0 up");
            let (a, b) = (first(), second());
            for name in [a.name(), b.name()] {
                ip(&format!("link set {name} master br0 up"));
            }
            work(a, b)
        })
        .unwrap()
}

/// Reads the next frame from A to B, waiting for it.
fn next(queue: &mut TapQueue) -> (Offload, Vec<u8>) {
    let mut buffer = vec![0; READ_BYTES];
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        match queue.read(&mut buffer) {
            Ok((offload, at)) if buffer[at.start + 6..at.start + 12] == A => return (offload, buffer[at].to_vec()),
            Ok(_) => (),
            Err(error) => {
                assert_eq!(error, ReadError::Empty);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    panic!("no frame came");
}

/// A TCP or UDP super-frame from A to B, and its offload.
fn superframe(gso: Gso, payload: usize, size: u16) -> (Offload, Vec<u8>) {
    let payload: Vec<u8> = (0..payload).map(|i| (i % 251) as u8).collect();
    let ethernet = PacketBuilder::ethernet2(A, B);
    let network = if gso == Gso::Tcp6 {
        ethernet.ipv6([1; 16], [2; 16], 9)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
    };
    let (tcp, network_bytes) = (gso != Gso::Udp, if gso == Gso::Tcp6 { 40 } else { 20 });
    let mut frame = Vec::new();
    let transport = 14 + network_bytes;
    if tcp {
        let mut header = TcpHeader::new(1000, 2000, 0xffff_f000, 77);
        (header.ack, header.acknowledgment_number, header.psh, header.cwr) = (true, 5, true, true);
        network.tcp_header(header).write(&mut frame, &payload).unwrap();
    } else {
        network.udp(1000, 2000).write(&mut frame, &payload).unwrap();
    }
    // What a kernel leaves in the checksum of a super-frame: the pseudo header's sum.
    let (offset, protocol) = if tcp { (16, 6) } else { (6, 17) };
    let addresses = if gso == Gso::Tcp6 { 22..54 } else { 26..34 };
    let mut sum = protocol + (frame.len() - transport) as u64;
    sum += frame[addresses].chunks(2).map(|b| u64::from(u16::from_be_bytes([b[0], b[1]]))).sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[transport + offset..transport + offset + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    let offload = Offload {
        needs_csum: true,
        ecn: tcp,
        gso,
        header_len: (transport + if tcp { 20 } else { 8 }) as u8,
        gso_size: size,
        csum_start: transport as u16,
        csum_offset: offset as u16,
        ..Offload::default()
    };
    (offload, frame)
}

#[test]
fn frames_cross_whole_and_in_parts_with_their_checksum_state() {
    bridged(&tun::OFFLOADS, |a, b| {
        assert_eq!(a.superframes(), b.superframes());
        let (mut a, mut b) = (a.queues()[0].clone(), b.queues()[0].clone());
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(A, B)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .udp(1, 2)
            .write(&mut frame, b"hello")
            .unwrap();
        a.write(&Offload::default(), &[&frame]).unwrap();
        let (offload, got) = next(&mut b);
        assert_eq!((offload.needs_csum, offload.gso, &got), (false, Gso::None, &frame), "byte for byte");
        let partial = Offload { needs_csum: true, csum_start: 34, csum_offset: 6, ..Offload::default() };
        a.write(&partial, &[&frame[..14], &frame[14..34], &frame[34..]]).unwrap();
        let (offload, got) = next(&mut b);
        assert_eq!((offload, &got), (partial, &frame));
        assert_eq!(b.read(&mut vec![0; READ_BYTES]), Err(ReadError::Empty));
    });
}

#[test]
fn superframes_cross_whole() {
    for (gso, payload, size) in [(Gso::Tcp4, 60_001, 1200), (Gso::Tcp6, 60_001, 1200), (Gso::Udp, 50_000, 1000)] {
        bridged(&tun::OFFLOADS, |a, b| {
            if gso == Gso::Udp && !b.superframes().1 {
                eprintln!("this kernel is older than 6.2: UDP is not carried in super-frames");
                return;
            }
            let (sent, frame) = superframe(gso, payload, size);
            let (head, tail) = frame.split_at(usize::from(sent.header_len));
            let mut parts = vec![head];
            parts.extend(tail.chunks(1000));
            a.queues()[0].clone().write(&sent, &parts).unwrap();
            assert_eq!(next(&mut b.queues()[0].clone()), (sent, frame));
        });
    }
}

#[test]
fn what_is_cut_here_equals_what_the_kernel_cuts() {
    for (gso, payload, size) in
        [(Gso::Tcp4, 20_001, 1200), (Gso::Tcp6, 20_001, 1200), (Gso::Udp, 10_500, 1000), (Gso::Tcp4, 3600, 1200)]
    {
        // The reader takes no offload, so the kernel cuts and completes all checksums before it reads.
        bridged(&[0], |a, b| {
            let (offload, frame) = superframe(gso, payload, size);
            let (mut a, mut b) = (a.queues()[0].clone(), b.queues()[0].clone());
            a.write(&offload, &[&frame]).unwrap();
            let count = payload.div_ceil(usize::from(size));
            let by_kernel: Vec<_> = (0..count).map(|_| next(&mut b)).collect();
            a.refuse = true;
            a.write(&offload, &[&frame]).unwrap();
            a.write(&offload, &[&frame[..100], &frame[100..]]).unwrap();
            assert_eq!(a.health.superframes_refused(), 1, "the second time it is not tried");
            for _ in 0..2 {
                let by_us: Vec<_> = (0..count).map(|_| next(&mut b)).collect();
                assert_eq!(by_us.len(), by_kernel.len());
                for (us, kernel) in by_us.iter().zip(&by_kernel) {
                    assert_eq!(us.1, kernel.1, "{gso:?}");
                }
            }
        });
    }
}

#[test]
fn fields_that_disagree_are_refused_and_do_not_switch_superframes_off() {
    bridged(&tun::OFFLOADS, |a, b| {
        let (mut a, mut b) = (a.queues()[0].clone(), b.queues()[0].clone());
        let (good, frame) = superframe(Gso::Tcp4, 5000, 1000);
        let bad = [
            Offload { csum_start: 60_000, ..good },
            Offload { gso: Gso::Tcp6, csum_start: 200, ..good },
            Offload { gso: Gso::Udp, ..good },
        ];
        for offload in bad {
            let _ = a.write(&offload, &[&frame]);
        }
        assert_eq!(a.health.superframes_refused(), 0);
        while b.read(&mut vec![0; READ_BYTES]).is_ok() {}
        a.write(&good, &[&frame]).unwrap();
        assert_eq!(next(&mut b), (good, frame));
        assert_eq!(a.write(&Offload::default(), &[&[0; 5]]), Err(WriteError::Malformed));
        assert_eq!(a.write(&good, &[&[0u8; 1][..]; 200]), Err(WriteError::Malformed));
    });
}

#[test]
fn a_deleted_device_wakes_the_reader_and_is_told_apart_from_one_that_is_down() {
    netns()
        .run(|| {
            let tap = Tap::open("t0", 2).unwrap();
            let mut queue = tap.queues()[0].clone();
            let mut buffer = vec![0; READ_BYTES];
            assert_eq!(queue.write(&Offload::default(), &[&[0; 60]]), Err(WriteError::Full), "down");
            assert_eq!(queue.read(&mut buffer), Err(ReadError::Empty), "down");
            ip("link set t0 up");
            ip("link del t0");
            assert!(sleep(Some(queue.as_fd()), &Wake::new().unwrap()).unwrap().ready);
            assert_eq!(queue.read(&mut buffer), Err(ReadError::Lost));
            assert_eq!(queue.write(&Offload::default(), &[&[0; 60]]), Err(WriteError::Lost));
            Tap::open("t0", 2).expect("a new one takes its name");
        })
        .unwrap();
}

#[test]
fn a_name_that_is_taken_gives_one_line_with_the_way_out() {
    netns()
        .run(|| {
            ip("link add t1 type bridge");
            let error = Tap::open("t1", 1).unwrap_err().to_string();
            assert!(error.contains("t1") && error.contains("remove"), "{error}");
        })
        .unwrap();
}

#[test]
fn headers_that_were_not_asked_for_are_not_taken() {
    let frame = [0; 100];
    let header = |flags, kind, size: u16, start: u16| {
        let ([z0, z1], [s0, s1]) = (size.to_ne_bytes(), start.to_ne_bytes());
        [flags, kind, 0, 0, z0, z1, s0, s1, 16, 0]
    };
    assert_eq!(parse(&header(1, 3, 10, 34), &frame), None, "the old kind of UDP");
    assert_eq!(parse(&header(1, 1, 0, 34), &frame), None, "no size");
    assert_eq!(parse(&header(0, 1, 10, 34), &frame), None, "a checksum that is not left to us");
    assert_eq!(parse(&header(1, 1, 10, 95), &frame), None, "past the end");
    assert_eq!(parse(&header(0, 0, 0, 0), &frame[..13]), None, "no Ethernet header");
    assert!(parse(&header(1, 5, 10, 34), &frame).is_some());
}

#[test]
fn a_device_without_headers_takes_and_gives_whole_frames() {
    let plain = |name: &'static str| move || Tap::open_plain(name, 1).unwrap();
    for (gso, payload, size) in [(Gso::Tcp4, 5_001, 1200), (Gso::Tcp6, 5_001, 1200), (Gso::Udp, 5_500, 1000)] {
        let (offload, frame) = superframe(gso, payload, size);
        let count = payload.div_ceil(usize::from(size));
        let frames = |mut from: TapQueue, mut to: TapQueue| -> Vec<Vec<u8>> {
            from.write(&offload, &[&frame[..99], &frame[99..]]).unwrap();
            (0..count).map(|_| next(&mut to)).inspect(|(got, _)| assert!(!got.needs_csum)).map(|got| got.1).collect()
        };
        // What the kernel makes of it for a reader that takes no offload is the measure.
        let right = bridged(&[0], |a, b| frames(a.queues()[0].clone(), b.queues()[0].clone()));
        let both = bridged_with(plain("ta"), plain("tb"), |a, b| {
            assert_eq!((a.abilities(), a.superframes()), (vec![], (false, false)));
            let (a, b) = (a.queues()[0].clone(), b.queues()[0].clone());
            // Nothing is refused: this is how it is.
            let got = frames(a.clone(), b);
            assert_eq!(a.health.superframes_refused(), 0);
            got
        });
        assert_eq!(both, right, "{gso:?}");
        // And into such a device from one with everything.
        let into = bridged_with(
            || Tap::open("ta", 1).unwrap(),
            plain("tb"),
            |a, b| frames(a.queues()[0].clone(), b.queues()[0].clone()),
        );
        assert_eq!(into, right, "{gso:?}");
    }
}

#[test]
fn each_lesser_device_says_what_it_does() {
    for (wanted, words) in tun::OFFLOADS.iter().zip([
        &["vnet-header", "tso", "uso"][..],
        &["vnet-header", "tso"],
        &["vnet-header", "csum"],
        &["vnet-header"],
    ]) {
        bridged(&[*wanted], |a, b| {
            assert_eq!(b.abilities(), words);
            // Checksums that a reader does not take are completed before.
            let (mut a, mut b) = (a.queues()[0].clone(), b.queues()[0].clone());
            let (offload, frame) = superframe(Gso::Tcp4, 900, 1000);
            let one = Offload { gso: Gso::None, gso_size: 0, header_len: 0, ecn: false, ..offload };
            a.write(&one, &[&frame]).unwrap();
            let (got, bytes) = next(&mut b);
            assert_eq!((got.needs_csum, bytes == frame), (*wanted != 0, *wanted != 0));
        });
    }
    // A kernel that knows none of the flags that are asked for.
    bridged(&[1 << 30], |_, b| assert_eq!(b.abilities(), ["vnet-header"]));
}

#[test]
fn before_it_is_up_a_device_tells_what_it_would_refuse() {
    netns()
        .run(|| {
            let tap = Tap::open("t0", 1).unwrap();
            let mut queue = tap.queues()[0].clone();
            assert_eq!(queue.refused_kinds & !bit(Gso::Udp), 0, "TCP is taken by every kernel");
            let (good, frame) = superframe(Gso::Tcp4, 2001, 1000);
            assert_eq!(queue.write_whole(&good, &[&frame]), Err(rustix::io::Errno::IO), "sound, but down");
            let bad = Offload { csum_start: 60_000, ..good };
            assert_eq!(queue.write_whole(&bad, &[&frame]), Err(rustix::io::Errno::INVAL), "looked at all the same");
            queue.refuse = true;
            let all = [Gso::Tcp4, Gso::Tcp6, Gso::Udp].into_iter().fold(0, |bits, gso| bits | bit(gso));
            assert_eq!(proof::refused_kinds(&mut queue), all);
        })
        .unwrap();
}
