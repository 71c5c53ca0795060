//! What a frame costs in the forwarder: instructions and allocations, by the way that it takes, sealing included.
//!
//! `cargo bench --bench frame`. Counts, not times: they are the same on a busy machine. Instructions are those that valgrind counts; without it the columns
//! stay empty. Valgrind knows AES and carry-less multiplication but no vectors of 512 bits, so the cipher takes a little more here than on a new processor.
//! A way that allocates ends the program with an error.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, ExitCode};

use meshnet::buf::SegmentRun;
use meshnet_core::fib::Fib;
use meshnet_core::fib::owners::mac_of;
use meshnet_core::forward::join::Joiner;
use meshnet_core::forward::testbed::{Punts, Testbed, address, arp_request, frame, mac, session, superframe};
use meshnet_core::forward::{Deliver, Forwarder, Inbound, Transmit};
use meshnet_core::session::Cipher;
use meshnet_proto::Mac;
use meshnet_proto::wire::data::{Offload, Outer, TAG_BYTES};

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == UNDER_VALGRIND) {
        for case in &CASES {
            let mut unit = (case.prepare)(UNITS_MAX);
            (0..UNITS_MAX / 2).for_each(|_| unit());
            counted(&mut unit);
        }
        return ExitCode::SUCCESS;
    }
    let counts = instructions().unwrap_or_else(|| {
        eprintln!("frame: no instructions are counted; install valgrind: apt-get install valgrind");
        Vec::new()
    });
    println!("| way of a frame | datagrams | instructions | for each datagram | allocations |");
    println!("|---|---:|---:|---:|---:|");
    let mut allocating = 0;
    for (at, case) in CASES.iter().enumerate() {
        let mut unit = (case.prepare)(UNITS_MAX);
        (0..UNITS_MAX / 2).for_each(|_| unit());
        let allocations = allocation_counter::measure(|| counted(&mut unit)).count_total;
        allocating += u32::from(allocations > 0);
        let cell = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
        let count = counts.get(at).map(|count| count / (UNITS_MAX / 2) as u64);
        let each = count.map(|count| count / case.datagrams);
        println!("| {} | {} | {} | {} | {allocations} |", case.name, case.datagrams, cell(count), cell(each));
    }
    if allocating > 0 {
        eprintln!("frame: {allocating} ways allocate, and none may");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What is counted: its name is what valgrind looks for.
#[inline(never)]
fn counted(unit: &mut dyn FnMut()) {
    (0..UNITS_MAX / 2).for_each(|_| unit());
}

/// Instructions of each call of [`counted`] in this program under valgrind, if that is at hand.
fn instructions() -> Option<Vec<u64>> {
    let directory = std::env::temp_dir().join(format!("meshnet-frame-{}", std::process::id()));
    std::fs::create_dir(&directory).ok()?;
    let counts = count_in(&directory);
    std::fs::remove_dir_all(&directory).ok()?;
    counts
}

fn count_in(directory: &Path) -> Option<Vec<u64>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*::counted", "--dump-after=*::counted"])
        .arg(format!("--callgrind-out-file={}", directory.join("out").display()))
        .arg(std::env::current_exe().ok()?)
        .arg(UNDER_VALGRIND)
        .output()
        .ok()?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let count = |part: usize| {
        let text = std::fs::read_to_string(directory.join(format!("out.{part}"))).ok()?;
        text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
    };
    (1..=CASES.len()).map(count).collect()
}

const UNDER_VALGRIND: &str = "--under-valgrind";

/// A unit of work is one frame or super-frame; all that it needs is made before, for as many units as are announced.
struct Case {
    name: &'static str,
    /// Datagrams that a unit makes or takes.
    datagrams: u64,
    prepare: fn(usize) -> Box<dyn FnMut()>,
}

const CASES: [Case; 16] = [
    Case { name: "out: 64 B to one peer", datagrams: 1, prepare: |_| out(2, |_| (), &plain(64)) },
    Case { name: "out: 1,300 B to one peer", datagrams: 1, prepare: |_| out(2, |_| (), &plain(1_300)) },
    Case { name: "out: TCP super-frame, 62 KB in 50", datagrams: 50, prepare: |_| out(2, |_| (), &large()) },
    Case { name: "out: 64 B flooded to 8", datagrams: 8, prepare: |_| out(9, |_| (), &flooded(64)) },
    Case { name: "out: 1,300 B by a relay", datagrams: 1, prepare: |_| out(3, relayed, &plain(1_300)) },
    Case { name: "out: 64 B by a map of 1,000 runs", datagrams: 1, prepare: |_| out(2, owned, &managed(64)) },
    Case { name: "out: ARP answered by it", datagrams: 1, prepare: |_| answered() },
    Case { name: "in: 64 B", datagrams: 1, prepare: |units| inward(2, 1, |_| (), &plain(64), units) },
    Case { name: "in: 1,300 B", datagrams: 1, prepare: |units| inward(2, 1, |_| (), &plain(1_300), units) },
    Case {
        name: "in: 64 B, source in a map of 1,000 runs",
        datagrams: 1,
        prepare: |units| inward(2, 1, owned, &managed(64), units),
    },
    Case {
        name: "in: TCP super-frame, joined of 50",
        datagrams: 50,
        prepare: |units| inward(2, 1, |_| (), &large(), units),
    },
    Case {
        name: "in: 64 B flooded, on to 2",
        datagrams: 1,
        prepare: |units| inward(4, 1, |bed| bed.flood(0, 1, &[2, 3]), &flooded(64), units),
    },
    Case { name: "in: 1,300 B relayed on", datagrams: 1, prepare: |units| inward(3, 2, relayed, &plain(1_300), units) },
    Case { name: "the cipher alone: seal 64 B", datagrams: 1, prepare: |_| seal(64) },
    Case { name: "the cipher alone: seal 1,300 B", datagrams: 1, prepare: |_| seal(1_300) },
    Case { name: "the cipher alone: open 1,300 B", datagrams: 1, prepare: |units| open(1_300, units) },
];

/// Half of them to warm up. So few because valgrind is slow; the counts hardly differ from one to the next.
const UNITS_MAX: usize = 40;

/// From machine 0 to a station behind machine 1.
fn plain(bytes: usize) -> (Offload, Vec<u8>) {
    (Offload::default(), frame(mac(1, 1), mac(0, 1), &vec![7; bytes - 14]))
}

fn flooded(bytes: usize) -> (Offload, Vec<u8>) {
    (Offload::default(), frame(ALL, mac(0, 1), &vec![7; bytes - 14]))
}

fn large() -> (Offload, Vec<u8>) {
    superframe(mac(1, 1), mac(0, 1), &[7; 62_500], 1_250)
}

/// Machine 0 reaches machine 1 by machine 2.
fn relayed(bed: &mut Testbed) {
    bed.relay(0, &[2], 1);
}

/// The range belongs to both machines in turns.
fn owned(bed: &mut Testbed) {
    bed.own(FIRST, 16_000, 16);
}

const FIRST: u32 = 0x0a20_0000;
/// Addresses of machine 0 and of machine 1.
const OURS: u32 = FIRST + 500 * 16;
const PEERS: u32 = FIRST + 333 * 16;

/// The same from and to managed addresses.
fn managed(bytes: usize) -> (Offload, Vec<u8>) {
    (Offload::default(), frame(mac_of(PEERS), mac_of(OURS), &vec![7; bytes - 14]))
}

/// A request that machine 0 answers.
fn answered() -> Box<dyn FnMut()> {
    let mut bed = bed(2, owned);
    let request = arp_request(mac_of(OURS), OURS, PEERS);
    let (mut send, mut punts) = (Send::default(), Punts::default());
    Box::new(move || {
        let forwarder = &mut bed.forwarders[0];
        let answer = forwarder.outbound(&bed.fibs[0], 1, &Offload::default(), &request, &mut send, &mut punts);
        assert!(answer.is_some() && send.sent == 0, "no answer");
    })
}

/// Machines that know where the stations are, arranged.
fn bed(count: usize, arrange: fn(&mut Testbed)) -> Testbed {
    let mut bed = Testbed::new(count, Cipher::Aes256Gcm);
    for origin in 0..count {
        let mut ends = meshnet_core::forward::testbed::Ends::default();
        bed.outbound(origin, &Offload::default(), &frame(ALL, mac(origin, 1), b"hello"), &mut ends);
        for (to, mut datagram) in ends.wire.take() {
            for at in (0..count).filter(|at| address(*at) == to) {
                bed.inbound(at, address(origin), &mut datagram, &mut ends);
            }
        }
    }
    arrange(&mut bed);
    bed
}

fn out(count: usize, arrange: fn(&mut Testbed), frame: &(Offload, Vec<u8>)) -> Box<dyn FnMut()> {
    let mut bed = bed(count, arrange);
    let (offload, bytes) = frame.clone();
    let (mut send, mut punts) = (Send::default(), Punts::default());
    Box::new(move || {
        bed.forwarders[0].outbound(&bed.fibs[0], 1, &offload, &bytes, &mut send, &mut punts);
        assert!(std::mem::take(&mut send.sent) > 0, "nothing was sent");
    })
}

/// Machine `at` takes what machine 0 sends to its address.
fn inward(
    count: usize,
    at: usize,
    arrange: fn(&mut Testbed),
    frame: &(Offload, Vec<u8>),
    units: usize,
) -> Box<dyn FnMut()> {
    let mut bed = bed(count, arrange);
    let received: Vec<(Vec<u8>, Vec<Range<usize>>)> = (0..units)
        .map(|_| {
            let mut ends = meshnet_core::forward::testbed::Ends::default();
            bed.outbound(0, &frame.0, &frame.1, &mut ends);
            let (mut buffer, mut places) = (Vec::new(), Vec::new());
            for (_, datagram) in ends.wire.datagrams().filter(|(to, _)| *to == address(at)) {
                places.push(buffer.len()..buffer.len() + datagram.len());
                buffer.extend_from_slice(datagram);
            }
            (buffer, places)
        })
        .collect();
    let mut received = received.into_iter();
    let mut done = Vec::with_capacity(units);
    let (forwarder, fib) = (bed.forwarders.swap_remove(at), bed.fibs.swap_remove(at));
    let mut end = End { forwarder, fib, joiner: Joiner::default(), send: Send::default(), sink: Sink::default() };
    Box::new(move || {
        let (mut buffer, places) = received.next().expect("as many units as announced");
        end.take(&mut buffer, &places);
        // Freeing is no allocation, but it would be counted as instructions.
        done.push((buffer, places));
    })
}

struct End {
    forwarder: Forwarder,
    fib: Fib,
    joiner: Joiner,
    send: Send,
    sink: Sink,
}

impl End {
    fn take(&mut self, buffer: &mut [u8], places: &[Range<usize>]) {
        let mut punts = Punts::default();
        for place in places {
            let place = place.clone();
            let verdict = self.forwarder.inbound(&self.fib, 1, address(0), buffer, place, &mut self.send, &mut punts);
            if let Inbound::Deliver { inner, frame, flow } = verdict {
                self.joiner.push(buffer, &inner, frame, flow, &mut self.sink);
            }
        }
        self.joiner.flush(buffer, &mut self.sink);
        assert!(std::mem::take(&mut self.sink.frames) + std::mem::take(&mut self.send.sent) > 0, "nothing came of it");
    }
}

fn seal(bytes: usize) -> Box<dyn FnMut()> {
    let session = session(0, 1, Cipher::Aes256Gcm);
    let mut datagram = vec![7; datagram_bytes(bytes)];
    Box::new(move || session.seal(0, &mut datagram).expect("sealed"))
}

fn open(bytes: usize, units: usize) -> Box<dyn FnMut()> {
    let (from, to) = (session(0, 1, Cipher::Aes256Gcm), session(1, 0, Cipher::Aes256Gcm));
    let mut datagrams = vec![vec![7; datagram_bytes(bytes)]; units];
    datagrams.iter_mut().for_each(|datagram| from.seal(0, datagram).expect("sealed"));
    let mut next = 0;
    Box::new(move || {
        let outer = Outer::parse(&datagrams[next]).expect("an outer header");
        to.open(&outer, &mut datagrams[next]).expect("opened");
        next += 1;
    })
}

/// Of the datagram that carries a frame: outer and inner header, the frame, the tag.
fn datagram_bytes(frame: usize) -> usize {
    16 + 16 + frame + TAG_BYTES
}

const ALL: Mac = Mac([0xff; 6]);

/// The run of datagrams of a real port; instead of being sent they are forgotten.
#[derive(Default)]
struct Send {
    run: SegmentRun,
    sent: u64,
}

impl Transmit for Send {
    fn reserve(&mut self, to: SocketAddr, length: usize) -> Option<&mut [u8]> {
        if !self.run.takes(to, length) {
            self.run.clear();
        }
        self.run.reserve(to, length)
    }

    fn commit(&mut self) {
        self.run.commit();
        self.sent += 1;
    }
}

/// Takes frames and keeps nothing.
#[derive(Default)]
struct Sink {
    frames: u64,
}

impl Deliver for Sink {
    fn deliver(&mut self, _: &Offload, parts: &[&[u8]]) {
        self.frames += u64::from(!parts.is_empty());
    }
}
