//! Endpoints on loopback, by plain sockets, and behind pretended relays.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use meshnet_core::node::LinkEnd;
use meshnet_proto::ShortId;
use meshnet_proto::limits::MESSAGE_MAX_BYTES;

use super::cert::{Authority, Credentials};
use super::*;

const AUTHORITY: [u8; 32] = [7; 32];

/// A UDP socket with a thread that fills the inbox, as the data plane does.
struct Plain {
    socket: UdpSocket,
    stop: AtomicBool,
    /// Who is reached through relays, for `send_relayed`: every endpoint of the test by its id.
    relayed: Mutex<BTreeMap<ShortId, Arc<Inbox>>>,
    me: Mutex<ShortId>,
    longest: AtomicUsize,
    /// Counts down: the kernel has no room.
    blocked: AtomicUsize,
    frames: Arc<Frames>,
    /// Frames that came on links.
    taken: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
}

impl FrameSink for Plain {
    fn put(&self, from: SocketAddr, datagram: bytes::Bytes) -> bool {
        let mut taken = self.taken.lock().unwrap();
        taken.push((from, datagram.to_vec()));
        true
    }

    fn wake(&self) {}
}

impl DatagramIo for Plain {
    fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
        if self.blocked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        bytes
            .chunks(segment.unwrap_or(bytes.len()))
            .try_for_each(|datagram| self.socket.send_to(datagram, to).map(drop))
    }

    fn send_relayed(&self, dest: ShortId, bytes: &[u8]) -> io::Result<()> {
        self.longest.fetch_max(bytes.len(), Ordering::Relaxed);
        let relayed = self.relayed.lock().unwrap();
        let inbox = relayed.get(&dest).ok_or(io::ErrorKind::HostUnreachable)?;
        inbox.push(Inbound { from: virtual_address(*self.me.lock().unwrap()), bytes: bytes.to_vec() });
        Ok(())
    }
}

struct End {
    quic: Quic,
    events: mpsc::Receiver<Input>,
    inbox: Arc<Inbox>,
    io: Arc<Plain>,
    address: SocketAddr,
    /// The newest size that a link told.
    size: Option<(LinkId, u16)>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.io.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn end_with(credentials: &Credentials, peer: PeerId, handshake: Handshake) -> End {
    end_on(UdpSocket::bind("127.0.0.1:0").unwrap(), credentials, peer, handshake)
}

fn end_on(socket: UdpSocket, credentials: &Credentials, peer: PeerId, handshake: Handshake) -> End {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let address = socket.local_addr().unwrap();
    let io = Arc::new(Plain {
        socket,
        stop: AtomicBool::new(false),
        relayed: Mutex::default(),
        me: Mutex::new(peer.short()),
        longest: AtomicUsize::new(0),
        blocked: AtomicUsize::new(0),
        frames: Arc::default(),
        taken: Mutex::default(),
    });
    let inbox = Arc::new(Inbox::new());
    let config = QuicConfig {
        identity_seed: [0; 32],
        authority_seed: AUTHORITY,
        cluster: "test".into(),
        inbox: inbox.clone(),
        transport: io.clone(),
        sink: io.clone(),
        frames: io.frames.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let (quic, events) = Quic::with_credentials(&config, credentials, peer, handshake).unwrap();
    let thread = std::thread::spawn({
        let (io, inbox) = (io.clone(), inbox.clone());
        move || {
            let mut buffer = [0; 2048];
            while !io.stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = io.socket.recv_from(&mut buffer) {
                    inbox.push(Inbound { from, bytes: buffer[..length].to_vec() });
                }
            }
        }
    });
    End { quic, events, inbox, io, address, size: None, thread: Some(thread) }
}

fn end_of(authority_seed: &[u8; 32], cluster: &str, key: u8, handshake: Handshake) -> End {
    let (credentials, peer) = Authority::new(authority_seed, cluster).unwrap().admit(&[key; 32]).unwrap();
    end_with(&credentials, peer, handshake)
}

fn end(key: u8) -> End {
    end_of(&AUTHORITY, "test", key, Handshake::default())
}

impl End {
    async fn event(&mut self) -> Input {
        loop {
            let event = timeout(Duration::from_secs(8), self.events.recv()).await.expect("an event in time");
            match event.expect("the room lives") {
                Input::DatagramMax { link, bytes, .. } => self.size = Some((link, bytes)),
                other => return other,
            }
        }
    }

    async fn opened(&mut self) -> (LinkId, Option<DialId>, PeerId, SocketAddr, [u8; 64]) {
        match self.event().await {
            Input::LinkOpened { link, dial, peer, remote, secret } => (link, dial, peer, remote, secret.0),
            other => panic!("{other:?}"),
        }
    }

    async fn message(&mut self) -> Vec<u8> {
        match self.event().await {
            Input::Message { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        }
    }

    async fn closed(&mut self) -> LinkEnd {
        loop {
            match self.event().await {
                Input::LinkClosed { why, .. } => return why,
                Input::Message { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn dial_fails(&mut self, to: SocketAddr, expect: Option<PeerId>) -> DialError {
        self.quic.dial(DialId(9), to, expect);
        match self.event().await {
            Input::DialFailed { dial: DialId(9), why } => why,
            other => panic!("{other:?}"),
        }
    }

    async fn quiet(&mut self) {
        let event = timeout(Duration::from_millis(50), self.events.recv()).await;
        assert!(event.is_err(), "{event:?}");
    }
}

async fn linked(a: &mut End, b: &mut End) -> (LinkId, LinkId) {
    a.quic.dial(DialId(1), b.address, Some(b.quic.peer()));
    (a.opened().await.0, b.opened().await.0)
}

fn message(kind: u16, body: &[u8]) -> Arc<[u8]> {
    let mut bytes = ((body.len() + 2) as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes.into()
}

#[tokio::test]
async fn a_link_comes_up_at_both_ends_with_equal_secrets() {
    let (mut a, mut b) = (end(1), end(2));
    a.quic.dial(DialId(5), b.address, Some(b.quic.peer()));
    let (_, dial, peer, remote, secret_a) = a.opened().await;
    assert_eq!((dial, peer, remote), (Some(DialId(5)), b.quic.peer(), b.address));
    let (_, dial, peer, remote, secret_b) = b.opened().await;
    assert_eq!((dial, peer, remote), (None, a.quic.peer(), a.address));
    assert_eq!(secret_a, secret_b);
    assert_ne!(secret_a, [0; 64]);
    a.quic.dial(DialId(6), b.address, None);
    assert_ne!(a.opened().await.4, secret_a, "each link has a secret of its own");
}

#[tokio::test]
async fn messages_arrive_in_order_both_ways() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, at_b) = linked(&mut a, &mut b).await;
    for number in 0..200u16 {
        assert_eq!(a.quic.send(at_a, message(number, b"to b")), Sent::Queued);
        assert_eq!(b.quic.send(at_b, message(number, &vec![number as u8; usize::from(number) * 40])), Sent::Queued);
    }
    for number in 0..200u16 {
        assert_eq!(b.message().await, message(number, b"to b")[4..]);
        assert_eq!(a.message().await, message(number, &vec![number as u8; usize::from(number) * 40])[4..]);
    }
}

#[tokio::test]
async fn frames_travel_beside_messages_and_what_is_too_long_is_lost_alone() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, at_b) = linked(&mut a, &mut b).await;
    let to = meshnet_core::peer::link_address(at_a);
    let send = async |bytes: &[u8], segment| {
        while a.io.frames.send(to, bytes, segment).unwrap().is_err() {
            tokio::task::yield_now().await;
        }
    };
    for number in 0..2_000u16 {
        send(&[number as u8; 10_000], Some(1_000)).await;
        a.quic.send(at_a, message(number, b"beside"));
    }
    send(&[1; 5_000], None).await;
    send(b"the last", None).await;
    for number in 0..2_000u16 {
        assert_eq!(b.message().await, message(number, b"beside")[4..], "messages do not wait for frames");
    }
    assert!(b.size.is_some_and(|(link, bytes)| link == at_b && bytes > 1_100), "{:?}", b.size);
    let from = meshnet_core::peer::link_address(at_b);
    let last = (from, b"the last".to_vec());
    while b.io.taken.lock().unwrap().last() != Some(&last) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let taken = b.io.taken.lock().unwrap();
    assert!(taken.iter().all(|(at, bytes)| *at == from && [1_000, 8].contains(&bytes.len())));
    assert!(taken.len() > 10_000, "{}", taken.len());
    drop(taken);
    assert_eq!(a.io.frames.lost(), 1);
    let other = meshnet_core::peer::link_address(LinkId(99));
    assert!(a.io.frames.send(other, b"x", None).unwrap().is_err());
    assert!(a.io.frames.send(b.address, b"x", None).is_none(), "not of a link");
}

#[tokio::test]
async fn the_longest_message_passes_and_a_longer_one_ends_the_link() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, _) = linked(&mut a, &mut b).await;
    let longest = message(3, &vec![1; MESSAGE_MAX_BYTES - 6]);
    assert_eq!(longest.len(), MESSAGE_MAX_BYTES);
    for _ in 0..8 {
        a.quic.send(at_a, longest.clone());
    }
    for _ in 0..8 {
        assert_eq!(b.message().await.len(), MESSAGE_MAX_BYTES - 4);
    }
    a.quic.send(at_a, message(3, &vec![1; MESSAGE_MAX_BYTES - 5]));
    assert!(matches!(b.closed().await, LinkEnd::Other(text) if text.contains("protocol")));
    assert_eq!(a.closed().await, LinkEnd::Remote(Some(CloseReason::Protocol)));
    assert_eq!((a.quic.links(), b.quic.links()), (0, 0));
}

#[tokio::test]
async fn a_message_without_type_ends_the_link() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, _) = linked(&mut a, &mut b).await;
    a.quic.send(at_a, Arc::from([0, 0, 0, 1, 9]));
    assert_eq!(a.closed().await, LinkEnd::Remote(Some(CloseReason::Protocol)));
    b.closed().await;
}

#[tokio::test]
async fn another_secret_is_refused_in_the_handshake() {
    let (mut a, mut b) = (end(1), end_of(&[8; 32], "test", 2, Handshake::default()));
    assert_eq!(a.dial_fails(b.address, None).await, DialError::Secret);
    assert_eq!(b.dial_fails(a.address, Some(a.quic.peer())).await, DialError::Secret);
    let mut c = end_of(&AUTHORITY, "another cluster", 3, Handshake::default());
    assert_eq!(c.dial_fails(a.address, None).await, DialError::Secret);
    a.quiet().await;
    b.quiet().await;
    assert!(a.quic.counters().secret_refused.load(Ordering::Relaxed) >= 2);
}

#[tokio::test]
async fn an_end_whose_certificate_only_the_other_refuses_hears_that_it_is_the_secret() {
    let (ours, theirs) = (Authority::new(&AUTHORITY, "test").unwrap(), Authority::new(&[8; 32], "test").unwrap());
    // It trusts the authority of a and shows a certificate of another, as between two steps of a change of secret.
    let (mut credentials, peer) = theirs.admit(&[2; 32]).unwrap();
    credentials.roots = ours.admit(&[2; 32]).unwrap().0.roots;
    let (mut a, mut b) = (end(1), end_with(&credentials, peer, Handshake::default()));
    b.quic.dial(DialId(1), a.address, None);
    match b.event().await {
        Input::LinkOpened { .. } => assert_eq!(b.closed().await, LinkEnd::Secret),
        Input::DialFailed { why, .. } => assert_eq!(why, DialError::Secret),
        other => panic!("{other:?}"),
    }
    a.quiet().await;
}

#[tokio::test]
async fn another_protocol_is_refused_in_the_handshake() {
    let (mut a, mut b) =
        (end(1), end_of(&AUTHORITY, "test", 2, Handshake { alpn: b"meshnet/2", ..Handshake::default() }));
    assert_eq!(a.dial_fails(b.address, None).await, DialError::Version);
    b.quiet().await;
}

#[tokio::test]
async fn somebody_else_than_expected_is_refused_in_the_handshake() {
    let (mut a, mut b) = (end(1), end(2));
    let stranger = end(3).quic.peer();
    assert_eq!(a.dial_fails(b.address, Some(stranger)).await, DialError::WrongPeer);
    b.quiet().await;
}

#[tokio::test]
async fn a_certificate_that_names_another_key_is_refused_both_ways() {
    let authority = Authority::new(&AUTHORITY, "test").unwrap();
    let mut victim = end(1);
    let names = [Some(victim.quic.peer()), None].map(|peer| cert::name_to_dial(peer.as_ref()));
    let mut thief =
        end_with(&authority.sign(&[66; 32], names.to_vec()).unwrap(), victim.quic.peer(), Handshake::default());
    let mut other = end(2);
    assert_eq!(other.dial_fails(thief.address, Some(victim.quic.peer())).await, DialError::WrongPeer);
    assert_eq!(other.dial_fails(thief.address, None).await, DialError::WrongPeer);
    thief.quic.dial(DialId(1), other.address, None);
    // The thief's end of the handshake is good; the other end then throws it out.
    loop {
        match thief.event().await {
            Input::LinkClosed { why: LinkEnd::Remote(Some(CloseReason::Protocol)), .. } => break,
            Input::DialFailed { why: DialError::Closed(CloseReason::Protocol), .. } => break,
            Input::LinkOpened { .. } | Input::LinkClosed { .. } => {}
            unexpected => panic!("{unexpected:?}"),
        }
    }
    other.quiet().await;
    victim.quiet().await;
}

#[tokio::test]
async fn a_certificate_with_its_own_and_a_stolen_name_is_not_taken_for_the_stolen() {
    let victim = end(1).quic.peer();
    let authority = Authority::new(&AUTHORITY, "test").unwrap();
    let own = authority.admit(&[66; 32]).unwrap().1;
    let names = [Some(own), Some(victim), None].map(|peer| cert::name_to_dial(peer.as_ref()));
    let thief = end_with(&authority.sign(&[66; 32], names.to_vec()).unwrap(), own, Handshake::default());
    let mut other = end(2);
    assert_eq!(other.dial_fails(thief.address, Some(victim)).await, DialError::WrongPeer);
}

#[tokio::test]
async fn a_dial_of_oneself_links_both_ends() {
    let mut a = end(1);
    a.quic.dial(DialId(1), a.address, None);
    let (first, second) = (a.opened().await, a.opened().await);
    assert_eq!((first.2, second.2), (a.quic.peer(), a.quic.peer()));
    assert_eq!(first.4, second.4);
    let dialled = if first.1.is_some() { first.0 } else { second.0 };
    a.quic.close(dialled, CloseReason::OwnAddress);
    let ends = [a.closed().await, a.closed().await];
    assert!(ends.contains(&LinkEnd::Local) && ends.contains(&LinkEnd::Remote(Some(CloseReason::OwnAddress))));
}

#[tokio::test]
async fn close_reasons_arrive() {
    let (mut a, mut b) = (end(1), end(2));
    for code in 0..=10 {
        let reason = CloseReason::from_code(code).unwrap();
        let (at_a, _) = linked(&mut a, &mut b).await;
        a.quic.close(at_a, reason);
        a.quic.close(at_a, CloseReason::Unwanted);
        assert_eq!(b.closed().await, LinkEnd::Remote(Some(reason)));
        a.closed().await;
        assert_eq!(a.quic.send(at_a, message(1, b"")), Sent::Closed);
    }
}

#[tokio::test]
async fn a_stopping_peer_sends_first_what_is_queued() {
    let (mut a, mut b) = (end(1), end(2));
    let mut shortest = Duration::MAX;
    // More than once, for a loaded machine may be slow now and then.
    for _ in 0..3 {
        let (at_a, _) = linked(&mut a, &mut b).await;
        for number in 0..4 {
            a.quic.send(at_a, message(number, &[0; 100_000]));
        }
        let begun = Instant::now();
        a.quic.close(at_a, CloseReason::Stopping);
        for number in 0..4 {
            assert_eq!(b.message().await[..2], u16::to_be_bytes(number));
        }
        assert_eq!(b.closed().await, LinkEnd::Remote(Some(CloseReason::Stopping)));
        assert_eq!(a.closed().await, LinkEnd::Local);
        shortest = shortest.min(begun.elapsed());
    }
    assert!(shortest < Duration::from_millis(480), "it waits to the end of its patience");
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_a_bounded_queue_and_then_the_link() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, _) = linked(&mut a, &mut b).await;
    let big = message(1, &[0; 60_000]);
    let mut sent = 0;
    let mut pressed = false;
    loop {
        match a.quic.send(at_a, big.clone()) {
            Sent::Closed => break,
            other => pressed |= other == Sent::Pressed,
        }
        sent += 1;
        // b's driver takes nothing; its events, the windows and the queue here are all that may hold bytes.
        assert!(sent < 2000, "unbounded");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(pressed, "the sender is warned first");
    assert!(matches!(a.closed().await, LinkEnd::Other(text) if text.contains("slow")));
    assert_eq!(b.closed().await, LinkEnd::Remote(Some(CloseReason::Slow)));
}

#[tokio::test]
async fn an_end_that_talks_without_pause_is_heard_at_a_bounded_rate() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, _) = linked(&mut a, &mut b).await;
    let begun = Instant::now();
    let mut heard = 0_u32;
    while begun.elapsed() < Duration::from_millis(1500) {
        while a.quic.send(at_a, message(1, b"")) == Sent::Queued {}
        // Never to the edge, where the link would be closed.
        tokio::time::sleep(Duration::from_millis(1)).await;
        while b.events.try_recv().is_ok() {
            heard += 1;
        }
    }
    let most = 1024 + 2 * begun.elapsed().as_millis() as u32 + 300;
    assert!((1500..most).contains(&heard), "{heard} messages, at most {most}");
    assert_eq!(a.quic.links(), 1, "and it stays");
}

#[tokio::test]
async fn the_driver_hears_when_a_pressed_link_is_short_again() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, _) = linked(&mut a, &mut b).await;
    let mut sent = 1;
    while a.quic.send(at_a, message(1, &[0; 1000])) != Sent::Pressed {
        sent += 1;
    }
    for _ in 0..sent {
        b.message().await;
    }
    let links = timeout(Duration::from_secs(1), a.quic.writable()).await.unwrap();
    assert_eq!(links, [at_a]);
    assert_eq!(a.quic.send(at_a, message(1, b"")), Sent::Queued);
}

#[tokio::test]
async fn garbage_disturbs_nothing() {
    let (mut a, mut b) = (end(1), end(2));
    let (at_a, _) = linked(&mut a, &mut b).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for first in 0..=255u8 {
        for length in [0, 1, 20, 1200, 1472, 1473] {
            let mut bytes = vec![first; length];
            bytes.iter_mut().skip(1).step_by(7).for_each(|byte| *byte = first.wrapping_mul(31));
            socket.send_to(&bytes, b.address).unwrap();
            b.inbox.push(Inbound { from: a.address, bytes });
        }
        tokio::task::yield_now().await;
    }
    assert!(!b.inbox.push(Inbound { from: a.address, bytes: vec![0xc0; 1473] }));
    a.quic.send(at_a, message(4, b"still here"));
    assert_eq!(b.message().await, message(4, b"still here")[4..]);
}

#[tokio::test]
async fn a_hundred_dials_at_once_all_come_up() {
    let (mut a, mut b) = (end(1), end(2));
    let begun = Instant::now();
    for number in 0..100 {
        a.quic.dial(DialId(number), b.address, None);
    }
    for _ in 0..100 {
        a.opened().await;
        b.opened().await;
    }
    assert_eq!((a.quic.links(), b.quic.links()), (100, 100));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn above_the_rate_strangers_prove_their_address_and_come_up_too() {
    let (mut a, mut b) = (end(1), end(2));
    let begun = Instant::now();
    for number in 0..150 {
        a.quic.dial(DialId(number), b.address, None);
    }
    for _ in 0..150 {
        a.opened().await;
        b.opened().await;
    }
    let retries = b.quic.counters().retries.load(Ordering::Relaxed);
    // A machine so slow that the dials fell into several seconds asks fewer.
    assert!(retries > 0 || begun.elapsed() > Duration::from_secs(1), "nobody was asked");
}

#[tokio::test]
async fn a_dial_into_the_void_times_out() {
    let short = Handshake { time: Duration::from_millis(400), ..Handshake::default() };
    let mut a = end_of(&AUTHORITY, "test", 1, short);
    // Bound and never read.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(a.dial_fails(silent.local_addr().unwrap(), None).await, DialError::Timeout);
}

#[tokio::test]
async fn the_kernels_refusal_fails_the_dial_at_once() {
    let mut a = end(1);
    // A socket bound to IPv4 loopback cannot send there.
    let begun = Instant::now();
    let why = a.dial_fails("192.0.2.1:6783".parse().unwrap(), None).await;
    assert!(matches!(&why, DialError::Unreachable(text) if !text.is_empty()), "{why:?}");
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_full_send_buffer_is_waited_for() {
    let (mut a, mut b) = (end(1), end(2));
    a.io.blocked.store(5, Ordering::Relaxed);
    let (at_a, _) = linked(&mut a, &mut b).await;
    assert_eq!(a.io.blocked.load(Ordering::Relaxed), 0);
    a.io.blocked.store(50, Ordering::Relaxed);
    let begun = Instant::now();
    a.quic.send(at_a, message(1, b"late"));
    assert_eq!(b.message().await, message(1, b"late")[4..]);
    assert!(begun.elapsed() >= Duration::from_millis(50), "it waits instead of spinning");
}

#[tokio::test]
async fn a_link_through_relays_stays_below_the_size_that_fits_them() {
    let (mut a, mut b) = (end(1), end(2));
    a.io.relayed.lock().unwrap().insert(b.quic.peer().short(), b.inbox.clone());
    b.io.relayed.lock().unwrap().insert(a.quic.peer().short(), a.inbox.clone());
    let (virtual_a, virtual_b) = (virtual_address(a.quic.peer().short()), virtual_address(b.quic.peer().short()));
    a.quic.dial(DialId(1), virtual_b, Some(b.quic.peer()));
    let (at_a, _, _, remote, _) = a.opened().await;
    assert_eq!(remote, virtual_b);
    assert_eq!(b.opened().await.3, virtual_a);
    for _ in 0..10 {
        a.quic.send(at_a, message(1, &[0; 200_000]));
    }
    for _ in 0..10 {
        b.message().await;
    }
    assert_eq!(a.io.longest.load(Ordering::Relaxed), RELAYED_MAX_BYTES);
    let nobody = virtual_address(ShortId(1));
    assert!(matches!(a.dial_fails(nobody, None).await, DialError::Unreachable(_)));
}

#[tokio::test]
async fn shutdown_tells_every_other_end() {
    let (mut a, mut b, mut c) = (end(1), end(2), end(3));
    let (_, to_a) = linked(&mut a, &mut b).await;
    linked(&mut c, &mut b).await;
    for number in 0..3 {
        b.quic.send(to_a, message(number, &[0; 100_000]));
    }
    let End { quic, .. } = &mut b;
    // The driver of b is gone by then: nobody takes its events.
    let spare = end(4);
    let stopping = std::mem::replace(quic, Quic { shared: spare.quic.shared.clone(), tasks: Mutex::default() });
    let begun = Instant::now();
    stopping.shutdown().await;
    assert!(begun.elapsed() < SHUTDOWN_FLUSH, "not by the end of its patience");
    for number in 0..3 {
        assert_eq!(a.message().await[..2], u16::to_be_bytes(number), "what was queued comes first");
    }
    assert_eq!(a.closed().await, LinkEnd::Remote(Some(CloseReason::Stopping)));
    assert_eq!(c.closed().await, LinkEnd::Remote(Some(CloseReason::Stopping)));
}

#[tokio::test]
async fn dropping_the_room_ends_its_tasks_and_tells_the_other_end() {
    let (mut a, mut b) = (end(1), end(2));
    linked(&mut a, &mut b).await;
    let shared = Arc::downgrade(&b.quic.shared);
    let spare = end(4);
    drop(std::mem::replace(&mut b.quic, Quic { shared: spare.quic.shared.clone(), tasks: Mutex::default() }));
    assert_eq!(a.closed().await, LinkEnd::Remote(Some(CloseReason::Stopping)));
    let begun = Instant::now();
    while shared.strong_count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(1), "tasks still hold the room");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_peer_that_was_killed_and_started_again_says_so() {
    let (credentials, peer) = Authority::new(&AUTHORITY, "test").unwrap().admit(&[2; 32]).unwrap();
    let (mut a, mut b) = (end(1), end_with(&credentials, peer, Handshake::default()));
    let (at_a, _) = linked(&mut a, &mut b).await;
    // From here on the first b neither hears nor speaks, as if killed.
    b.io.stop.store(true, Ordering::Relaxed);
    b.thread.take().unwrap().join().unwrap();
    let again = end_on(b.io.socket.try_clone().unwrap(), &credentials, peer, Handshake::default());
    let begun = Instant::now();
    a.quic.send(at_a, message(1, b"are you there"));
    assert_eq!(a.closed().await, LinkEnd::Other("the other end has restarted".into()));
    assert!(begun.elapsed() < Duration::from_secs(1));
    drop(again);
}

#[test]
fn the_inbox_is_bounded() {
    let inbox = Inbox::new();
    let datagram = Inbound { from: "192.0.2.1:1".parse().unwrap(), bytes: vec![0xc0; 10] };
    let taken = (0..5000).filter(|_| inbox.push(datagram.clone())).count();
    assert_eq!((taken, inbox.dropped()), (1024, 5000 - 1024));
    assert!(!inbox.push(Inbound { bytes: Vec::new(), ..datagram }));
}

#[test]
fn virtual_addresses_and_real_ones_are_told_apart() {
    let address = virtual_address(ShortId(0x0123_4567_89ab_cdef));
    assert_eq!(address, "[fd6d:6573:686e:0:123:4567:89ab:cdef]:1".parse().unwrap());
    assert_eq!(virtual_peer(address), Some(ShortId(0x0123_4567_89ab_cdef)));
    for real in ["[fd6d:6573:686e:0:123:4567:89ab:cdef]:2", "[fd6d:6573:686e:1:123:4567:89ab:cdef]:1", "10.0.0.1:1"] {
        assert_eq!(virtual_peer(real.parse().unwrap()), None, "{real}");
    }
    let v4: SocketAddr = "192.0.2.1:5".parse().unwrap();
    assert_eq!(socket::mapped(v4), "[::ffff:192.0.2.1]:5".parse().unwrap());
    assert_eq!(socket::unmapped(socket::mapped(v4)), v4);
}
