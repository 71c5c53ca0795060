use std::net::UdpSocket;
use std::sync::Mutex;

use meshnet_core::counters::{Counters, DropReason};
use meshnet_core::forward::Transmit;

use super::*;
use crate::buf::{RECEIVE_MAX_BYTES, strides};

fn sockets(listen: &str) -> UdpSockets {
    UdpSockets::bind(listen.parse().unwrap(), 1).unwrap()
}

/// The address by which loopback reaches it.
fn at(sockets: &UdpSockets, ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), sockets.local_address().port())
}

fn put(batch: &mut SendBatch, to: SocketAddr, length: usize, fill: u8) {
    batch.reserve(to, length).unwrap().fill(fill);
    batch.commit();
}

/// All datagrams that wait, as (from, first byte, length), and the number of receives that it took.
fn receive_all(sockets: &UdpSockets) -> (Vec<(SocketAddr, u8, usize)>, usize) {
    let mut buffer = vec![0; RECEIVE_MAX_BYTES];
    let (mut all, mut calls) = (Vec::new(), 0);
    let mut side = sockets.receive_batch(0);
    loop {
        match side.receive(&mut buffer) {
            Ok(received) => {
                calls += 1;
                all.extend(
                    strides(received.length, received.stride).map(|at| (received.from, buffer[at.start], at.len())),
                );
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return (all, calls);
            }
        }
    }
}

#[test]
fn runs_join_on_every_family_and_addresses_stay_plain() {
    for (listen_a, listen_b, ip) in [
        ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "[::1]:0", "::1"),
        ("[::]:0", "127.0.0.1:0", "127.0.0.1"),
        ("127.0.0.1:0", "[::]:0", "127.0.0.1"),
        ("[::]:0", "[::]:0", "127.0.0.1"),
        ("[::]:0", "[::]:0", "::1"),
    ] {
        let (a, b) = (sockets(listen_a), sockets(listen_b));
        let counters = Arc::new(Counters::default());
        let mut batch = a.send_batch(0, Arc::clone(&counters));
        let to = at(&b, ip);
        for i in 0..40 {
            put(&mut batch, to, 1400, i);
        }
        put(&mut batch, to, 77, 40);
        batch.flush();
        batch.flush();
        let (all, calls) = receive_all(&b);
        let expected: Vec<_> = (0..41).map(|i| (at(&a, ip), i, if i < 40 { 1400 } else { 77 })).collect();
        assert_eq!(all, expected, "{listen_a} to {listen_b}");
        assert_eq!(calls, 1, "one send, one receive");
        assert!(DropReason::ALL.iter().all(|reason| counters.drops(*reason) == 0));
    }
}

#[test]
fn what_cannot_join_goes_in_order_and_by_itself() {
    let (a, b, c) = (sockets("127.0.0.1:0"), sockets("127.0.0.1:0"), sockets("127.0.0.1:0"));
    let mut batch = a.send_batch(0, Arc::default());
    let (to_b, to_c) = (at(&b, "127.0.0.1"), at(&c, "127.0.0.1"));
    for (i, (to, length)) in
        [(to_b, 100), (to_b, 100), (to_c, 100), (to_b, 50), (to_b, 60), (to_b, 60), (to_b, 10), (to_b, 10)]
            .into_iter()
            .enumerate()
    {
        put(&mut batch, to, length, i as u8);
    }
    batch.flush();
    let lengths = |sockets| receive_all(sockets).0.into_iter().map(|(_, i, length)| (i, length)).collect::<Vec<_>>();
    assert_eq!(lengths(&b), [(0, 100), (1, 100), (3, 50), (4, 60), (5, 60), (6, 10), (7, 10)]);
    assert_eq!(lengths(&c), [(2, 100)]);
}

#[test]
fn more_than_one_run_holds_is_sent_in_several() {
    let (a, b) = (sockets("127.0.0.1:0"), sockets("127.0.0.1:0"));
    let mut batch = a.send_batch(0, Arc::default());
    (0..200).for_each(|i| put(&mut batch, at(&b, "127.0.0.1"), 500, i));
    batch.flush();
    assert_eq!(receive_all(&b).0.iter().map(|d| d.1).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
}

#[test]
fn a_refused_run_goes_one_by_one_and_is_counted_once_for_many() {
    let (a, b) = (sockets("[::]:0"), sockets("[::]:0"));
    let counters = Arc::new(Counters::default());
    let mut batch = a.send_batch(0, Arc::clone(&counters));
    batch.refuse = true;
    for _ in 0..3 {
        (0..5).for_each(|i| put(&mut batch, at(&b, "::1"), 300, i));
        batch.flush();
    }
    assert_eq!(receive_all(&b).0.len(), 15);
    assert_eq!(a.segmentation_refused(), 1, "after the first refusal it is not tried again");
    assert!(DropReason::ALL.iter().all(|reason| counters.drops(*reason) == 0));
}

#[test]
fn what_no_path_takes_is_counted_by_reason_and_the_rest_goes_on() {
    let (a, b) = (sockets("127.0.0.1:0"), sockets("127.0.0.1:0"));
    let counters = Arc::new(Counters::default());
    let mut batch = a.send_batch(0, Arc::clone(&counters));
    put(&mut batch, at(&b, "::1"), 100, 1);
    put(&mut batch, at(&b, "::1"), 100, 1);
    put(&mut batch, at(&b, "127.0.0.1"), 100, 2);
    batch.flush();
    assert_eq!(counters.drops(DropReason::NoRoute), 2, "IPv6 from an IPv4 socket");
    assert_eq!(receive_all(&b).0.len(), 1);
    assert!(batch.reserve(at(&b, "127.0.0.1"), 65_001).is_none());
}

#[test]
fn other_threads_send_single_datagrams_and_runs() {
    let (a, b) = (sockets("[::]:0"), sockets("127.0.0.1:0"));
    let to = at(&b, "127.0.0.1");
    a.send(to, &[1; 1200], None).unwrap();
    a.send(to, &[2; 1200], Some(1200)).unwrap();
    a.send(to, &[3; 1200 * 90 + 5], Some(1200)).unwrap();
    assert!(a.send(to, &[4; 10], Some(0)).is_err());
    let (all, calls) = receive_all(&b);
    assert_eq!(all.len(), 2 + 91);
    assert!(calls <= 4, "{calls}");
    assert_eq!(all.last(), Some(&(at(&a, "127.0.0.1"), 3, 5)));
}

#[test]
fn a_port_in_use_is_refused_though_sockets_of_one_process_share_it() {
    let four = UdpSockets::bind("[::]:0".parse().unwrap(), 4).unwrap();
    assert_eq!(four.count(), 4);
    assert!(matches!(UdpSockets::bind(four.local_address(), 2), Err(UdpError::Taken(_))));
    let foreign = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = UdpSockets::bind(foreign.local_addr().unwrap(), 1).unwrap_err();
    assert!(error.to_string().contains("--listen"), "{error}");
    assert!(matches!(UdpSockets::bind("192.0.2.1:0".parse().unwrap(), 1), Err(UdpError::NotHere(_))));
}

#[test]
fn the_inbox_is_bounded_and_counts_what_it_drops() {
    let woken = Arc::new(Mutex::new(0));
    let inbox = {
        let woken = Arc::clone(&woken);
        QuicInbox::new(Arc::new(move || *woken.lock().unwrap() += 1))
    };
    let datagram =
        |i: usize| QuicDatagram { source: None, from: ([1, 1, 1, 1], 1).into(), ecn: 0, bytes: vec![i as u8] };
    let taken = (0..1030).filter(|i| inbox.put(datagram(*i))).count();
    assert_eq!((taken, inbox.dropped()), (1024, 6));
    inbox.wake();
    assert_eq!(*woken.lock().unwrap(), 1);
    assert_eq!(inbox.take(), Some(datagram(0)));
    assert!(inbox.put(datagram(0)));
}

#[test]
fn without_the_kernels_help_all_arrives_one_by_one() {
    for (a_has, b_has) in [
        (Abilities::NONE, Abilities::ALL),
        (Abilities::ALL, Abilities::NONE),
        (Abilities { joins: true, segments: false }, Abilities { joins: false, segments: true }),
    ] {
        let bind = |has| UdpSockets::bind_with("[::]:0".parse().unwrap(), 2, has).unwrap();
        let (a, b) = (bind(a_has), bind(b_has));
        assert_eq!((a.abilities(), b.abilities()), (a_has, b_has));
        for address in ["127.0.0.1", "::1"] {
            // Of the two sockets of the port the kernel chooses one for each sender.
            let all = |sockets: &UdpSockets| {
                let mut buffer = vec![0; RECEIVE_MAX_BYTES];
                let (mut all, mut calls) = (Vec::new(), 0);
                for worker in 0..2 {
                    while let Ok(received) = sockets.receive_batch(worker).receive(&mut buffer) {
                        calls += 1;
                        all.extend(strides(received.length, received.stride).map(|at| (buffer[at.start], at.len())));
                    }
                }
                (all, calls)
            };
            let to = at(&b, address);
            let mut batch = a.send_batch(0, Arc::default());
            (0..5).for_each(|i| put(&mut batch, to, 1000, i));
            batch.flush();
            assert_eq!(all(&b), ((0..5).map(|i| (i, 1000)).collect(), 5));
            a.send(to, &[7; 2500], Some(1000)).unwrap();
            a.send_train(to, &[8; 3000], 1000).unwrap();
            let (got, calls) = all(&b);
            assert_eq!((got.iter().map(|(_, length)| *length).sum::<usize>(), got.len(), calls), (5500, 6, 6));
        }
    }
}

#[test]
fn to_some_addresses_only_trains_are_joined() {
    let (a, b, c) = (sockets("[::]:0"), sockets("[::]:0"), sockets("[::]:0"));
    let (to_b, to_c) = (at(&b, "127.0.0.1"), at(&c, "127.0.0.1"));
    let mut batch = a.send_batch(0, Arc::default());
    let mut calls = |a: &UdpSockets, b: &UdpSockets, to| {
        (0..4).for_each(|i| put(&mut batch, to, 500, i));
        batch.flush();
        let by_batch = receive_all(b);
        a.send(to, &[1; 2000], Some(500)).unwrap();
        let by_send = receive_all(b);
        a.send_train(to, &[2; 2000], 500).unwrap();
        let train = receive_all(b);
        assert_eq!([by_batch.0.len(), by_send.0.len(), train.0.len()], [4; 3]);
        [by_batch.1, by_send.1, train.1]
    };
    a.go_singly(&[to_b]);
    assert_eq!((calls(&a, &b, to_b), calls(&a, &c, to_c)), ([4, 4, 1], [1, 1, 1]));
    a.go_singly(&[to_c]);
    assert_eq!((calls(&a, &b, to_b), calls(&a, &c, to_c)), ([1, 1, 1], [4, 4, 1]));
    a.go_singly(&[]);
    assert_eq!(calls(&a, &c, to_c), [1, 1, 1]);
}

#[test]
fn the_kernel_cuts_what_it_claims_to_cut() {
    assert!(sockets("127.0.0.1:0").abilities().segments);
    assert!(proof::cuts(5 * 1_200 + 7).unwrap());
}
