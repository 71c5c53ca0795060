use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use meshnet_core::fib::{FibPeer, FibSession, Owner, Owners, Path, PeerSlot};
use meshnet_core::forward::Punted;
use meshnet_core::session::{Cipher, Session, SessionKeys};
use meshnet_proto::PeerId;

use super::*;
use crate::sys::lab::{self, ip};
use crate::sys::netns::Netns;

const PORT: u16 = 6783;
const SLOT: PeerSlot = PeerSlot(1);

/// A machine of the test: a namespace with a TAP that has the address 10.99.0.N, and the data path of it.
struct Host {
    netns: Netns,
    dataplane: Dataplane,
    underlay: IpAddr,
    quic: Arc<QuicInbox>,
    punts: Arc<PuntRing>,
    woken: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
    workers: usize,
    number: u8,
}

fn counting(count: &Arc<AtomicUsize>) -> Waker {
    let count = Arc::clone(count);
    Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    })
}

fn id(number: u8) -> PeerId {
    PeerId([number; 16])
}

fn session(initiator: bool, lanes: u8) -> Arc<Session> {
    let (tx, rx) = SessionKeys::derive(&[5; 64], 0, Cipher::Aes256Gcm, initiator, lanes, lanes);
    let (local_index, remote_index) = if initiator { (0x10007, 0x20009) } else { (0x20009, 0x10007) };
    let rx = [Some(Arc::new(rx)), None, None, None];
    Arc::new(Session { local_index, remote_index, cipher: Cipher::Aes256Gcm, tx: Arc::new(tx), rx })
}

/// What host `number` knows of the other one.
fn fib(number: u8, other: u8, to: SocketAddr, lanes: u8) -> Fib {
    let session = session(number < other, lanes);
    let index = (session.local_index & 0xffff) as usize;
    let mut sessions: Vec<Option<FibSession>> = Vec::new();
    sessions.resize_with(index + 1, || None);
    sessions[index] = Some(FibSession { slot: SLOT, session: Arc::clone(&session) });
    let peer = FibPeer {
        id: id(other),
        session: Some(session),
        path: Path::Direct(to),
        direct: Some(to),
        flood_on: Vec::new(),
        incarnation: 1,
        flood_window: Arc::default(),
        storm: Arc::default(),
        traffic: Arc::default(),
        datagram_max: 1452,
        way_max: 1452,
        overlay_mtu: 1310,
        settled: true,
        way_settled: true,
        fragments: true,
        spread: false,
    };
    Fib {
        epoch: 1,
        me: id(number).short(),
        incarnation: 1,
        peers: vec![None, Some(peer)],
        by_short: vec![(id(other).short(), SLOT)],
        sessions,
        flood_out: vec![SLOT],
        neighbours: vec![SLOT],
        ..Fib::default()
    }
}

impl Host {
    fn start(netns: Netns, number: u8, underlay: IpAddr, other: IpAddr, workers: usize) -> Host {
        let (woken, lost) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let quic = Arc::new(QuicInbox::new(counting(&woken)));
        let punts = Arc::new(PuntRing::new(counting(&woken)));
        let listen: SocketAddr =
            if number == 1 { (underlay, PORT).into() } else { format!("[::]:{PORT}").parse().unwrap() };
        let dataplane = netns
            .run(|| {
                Dataplane::start(Config {
                    workers,
                    tap: Some(Host::tap(number, workers)),
                    sockets: Arc::new(UdpSockets::bind(listen, workers).unwrap()),
                    fdb: Arc::default(),
                    fib: Arc::new(fib(number, 3 - number, (other, PORT).into(), 2 * workers as u8 + 1)),
                    tick: Arc::default(),
                    frames: Arc::default(),
                    quic: Arc::clone(&quic),
                    punts: Arc::clone(&punts),
                    on_tap_lost: counting(&lost),
                })
                .unwrap()
            })
            .unwrap();
        Host { netns, dataplane, underlay, quic, punts, woken, lost, workers, number }
    }

    /// Makes the TAP of a host; run it inside its namespace.
    fn tap(number: u8, workers: usize) -> Tap {
        let tap = Tap::open("mesh", workers).unwrap();
        ip("link set mesh mtu 1310 txqueuelen 5000 up");
        ip(&format!("address add 10.99.0.{number}/24 dev mesh"));
        tap
    }

    fn drops(&self) -> Vec<(DropReason, u64)> {
        let totals = self.dataplane.counters();
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason, totals.drops(reason)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// Two hosts, joined by a cable.
fn pair(v6: bool, workers: usize) -> (Host, Host) {
    let (a, b) = (lab::netns(), lab::netns());
    let address = |number: u8| -> IpAddr {
        if v6 { format!("2001:db8::{number}") } else { format!("192.0.2.{number}") }.parse().unwrap()
    };
    a.run(|| ip(&format!("link add u0 type veth peer name u0 netns {}", b.path().display()))).unwrap();
    for (number, netns) in [(1, &a), (2, &b)] {
        netns
            .run(|| {
                ip("link set u0 up");
                if v6 {
                    std::fs::write("/proc/sys/net/ipv6/conf/u0/disable_ipv6", "0").unwrap();
                    ip(&format!("address add {}/64 dev u0 nodad", address(number)));
                } else {
                    ip(&format!("address add {}/24 dev u0", address(number)));
                }
            })
            .unwrap();
    }
    let a = Host::start(a, 1, address(1), address(2), workers);
    let b = Host::start(b, 2, address(2), address(1), workers);
    (a, b)
}

/// Sends `bytes` of TCP from A's stack to B's through the mesh, has it echoed, and compares.
fn transfer(a: &Host, b: &Host, bytes: usize) {
    let sent: Vec<u8> = (0..bytes).map(|i| (i / 7) as u8).collect();
    let listener = b.netns.run(|| TcpListener::bind(("10.99.0.2", 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = vec![0; bytes];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        });
        a.netns
            .run(|| {
                let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                stream.write_all(&sent).unwrap();
                let mut got = vec![0; bytes];
                stream.read_exact(&mut got).unwrap();
                assert!(got == sent, "bytes changed on the way");
            })
            .unwrap();
    });
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(5), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processor time of the threads of a host, in hundredths of a second.
fn cpu_ticks(host: &Host) -> u64 {
    host.dataplane
        .seats
        .iter()
        .map(|seat| {
            let stat =
                std::fs::read_to_string(format!("/proc/self/task/{}/stat", seat.thread_id.load(Ordering::SeqCst)))
                    .unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        })
        .sum()
}

/// Longer than what a connection that was closed still says.
const SETTLE: Duration = Duration::from_millis(300);

#[test]
fn tcp_crosses_between_two_stacks_over_both_families() {
    for (v6, workers) in [(false, 1), (true, 1), (false, 2)] {
        let (a, b) = pair(v6, workers);
        transfer(&a, &b, 20_000_000);
        for host in [&a, &b] {
            let totals = host.dataplane.counters();
            assert!(totals.tx_bytes > 20_000_000 && totals.rx_bytes > 20_000_000, "{totals:?}");
            assert_eq!(host.drops(), [], "host {}", host.number);
        }
    }
}

#[test]
fn garbage_at_the_port_is_counted_and_changes_nothing_else() {
    let (a, b) = pair(false, 1);
    transfer(&a, &b, 1000);
    std::thread::sleep(SETTLE);
    let before = b.dataplane.counters();
    a.netns
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            // The empty one as well, of which nothing is there to be counted.
            for length in 0..200 {
                // Bits 7 and 6 clear: not QUIC. Some claim to be urgent.
                let mut bytes = vec![length as u8 & 0x3f; length];
                if let Some([_, _, reserved, flags, ..]) = bytes.get_mut(..4) {
                    (*reserved, *flags) = (0, length as u8 & 1);
                }
                socket.send_to(&bytes, (b.underlay, PORT)).unwrap();
            }
        })
        .unwrap();
    let rejected = |totals: Totals| {
        [DropReason::Malformed, DropReason::UnknownSession, DropReason::Forged]
            .map(|reason| totals.drops(reason))
            .iter()
            .sum::<u64>()
    };
    eventually("all of it counted", || rejected(b.dataplane.counters()) == 199);
    let after = b.dataplane.counters();
    assert_eq!((after.tx_frames, after.rx_frames, after.relayed), (before.tx_frames, before.rx_frames, before.relayed));
    assert_eq!((b.quic.take(), b.punts.take(), b.woken.load(Ordering::SeqCst)), (None, None::<Punted>, 0));
    transfer(&a, &b, 100_000);
}

#[test]
fn quic_goes_to_the_inbox_which_is_bounded() {
    let (a, b) = pair(false, 1);
    let from = a
        .netns
        .run(|| {
            let socket = UdpSocket::bind((a.underlay, 0)).unwrap();
            for i in 0..1500u16 {
                let [high, low] = i.to_be_bytes();
                socket.send_to(&[0xc0, high, low], (b.underlay, PORT)).unwrap();
            }
            socket.local_addr().unwrap()
        })
        .unwrap();
    eventually("the inbox filled", || b.dataplane.counters().quic_dropped == 1500 - 1024);
    assert!(b.woken.load(Ordering::SeqCst) > 0);
    assert_eq!(b.quic.take(), Some(QuicDatagram { source: None, from, ecn: 0, bytes: vec![0xc0, 0, 0] }));
}

#[test]
fn a_deleted_tap_is_told_once_and_can_be_replaced() {
    let (a, b) = pair(false, 2);
    transfer(&a, &b, 1000);
    assert!(!a.dataplane.tap_lost());
    for round in 1..=2 {
        a.netns.run(|| ip("link delete mesh")).unwrap();
        eventually("the loss was told", || a.dataplane.tap_lost());
        // What comes in meanwhile finds no TAP, and that is not told again.
        b.netns.run(|| UdpSocket::bind("10.99.0.2:0").unwrap().send_to(b"lost", "10.99.0.1:9").unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(a.lost.load(Ordering::SeqCst), round);
        let tap = a.netns.run(|| Host::tap(a.number, a.workers)).unwrap();
        a.dataplane.replace_tap(tap);
        assert!(!a.dataplane.tap_lost());
        // The new device has another hardware address than the one that B's stack remembers.
        b.netns.run(|| ip("neighbour flush dev mesh")).unwrap();
        transfer(&a, &b, 100_000);
    }
}

#[test]
fn a_new_snapshot_counts_at_once() {
    let (a, b) = pair(false, 1);
    transfer(&a, &b, 1000);
    let old = a.dataplane.fib();
    a.dataplane.publish(Arc::new(Fib { epoch: 2, me: old.me, ..Fib::default() }));
    assert_eq!(a.dataplane.fib().epoch, 2);
    a.netns.run(|| UdpSocket::bind("10.99.0.1:0").unwrap().send_to(b"nowhere", "10.99.0.2:9").unwrap()).unwrap();
    eventually("the frame found no way", || a.dataplane.counters().drops.iter().sum::<u64>() > 0);
    a.dataplane.publish(old);
    transfer(&a, &b, 100_000);
}

#[test]
fn two_hosts_find_each_other_without_arp_between_them() {
    let (a, b) = pair(false, 2);
    let first = u32::from(std::net::Ipv4Addr::new(10, 99, 0, 0));
    for host in [&a, &b] {
        let mac = format!("02:00:00:00:00:0{}", host.number);
        host.netns.run(|| ip(&format!("link set mesh address {mac}"))).unwrap();
        let owner = |number: u8| if number == host.number { Owner::Me } else { Owner::Peer(SLOT) };
        let owners = Owners {
            first,
            last: first + 255,
            runs: vec![(first + 1, owner(1)), (first + 2, owner(2)), (first + 3, Owner::Nobody)],
            hosts: vec![(first + u32::from(host.number), mac.parse().unwrap())],
        };
        let old = host.dataplane.fib();
        // A way for what is addressed, and none for floods.
        let fib = Fib {
            epoch: 2,
            me: old.me,
            incarnation: old.incarnation,
            peers: old.peers.clone(),
            by_short: old.by_short.clone(),
            sessions: old.sessions.clone(),
            owners: Arc::new(owners),
            ..Fib::default()
        };
        host.dataplane.publish(Arc::new(fib));
    }
    transfer(&a, &b, 100_000);
    let neighbours = a.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/arp").unwrap()).unwrap();
    assert!(neighbours.contains("0a:58:0a:63:00:02"), "{neighbours}");
    for host in [&a, &b] {
        assert!(host.dataplane.counters().answered > 0, "host {}", host.number);
        assert_eq!(host.drops(), [], "host {}", host.number);
    }
    let unowned = || a.dataplane.counters().drops(DropReason::Unowned);
    a.netns.run(|| UdpSocket::bind("10.99.0.1:0").unwrap().send_to(b"x", "10.99.0.77:9").unwrap()).unwrap();
    eventually("nobody was asked for what nobody owns", || unowned() > 0);
}

#[test]
fn stopping_ends_all_threads_asleep_or_busy() {
    let (a, b) = pair(false, 2);
    let shared = Arc::clone(&b.dataplane.shared);
    let started = Instant::now();
    b.dataplane.stop();
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(Arc::strong_count(&shared), 1, "a thread still holds its state");
    let flood = a.netns.run(|| UdpSocket::bind("10.99.0.1:0").unwrap()).unwrap();
    flood.set_nonblocking(true).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = flood.send_to(&[1; 500], "10.99.0.255:9");
            }
        });
        let shared = Arc::clone(&a.dataplane.shared);
        a.dataplane.stop();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(Arc::strong_count(&shared), 1);
    });
}

#[test]
fn at_rest_the_threads_sleep() {
    let (a, b) = pair(false, 2);
    transfer(&a, &b, 1000);
    std::thread::sleep(SETTLE);
    let before = cpu_ticks(&a) + cpu_ticks(&b);
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_ticks(&a) + cpu_ticks(&b) - before;
    assert!(used <= 1, "{used} hundredths of a second in one second");
}

#[test]
fn a_panic_in_a_thread_ends_the_process_with_a_message() {
    const CHILD: &str = "MESHNET_TEST_PANIC";
    if std::env::var_os(CHILD).is_some() {
        guarded("mesh-out-7".into(), || panic!("on purpose")).unwrap();
        std::thread::sleep(Duration::from_secs(20));
        return;
    }
    let name = "dataplane::tests::a_panic_in_a_thread_ends_the_process_with_a_message";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(PANIC_EXIT));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("on purpose") && said.contains("thread mesh-out-7 failed"), "{said}");
}
