use super::*;
use std::sync::Arc;

use meshnet_proto::wire::record::{Record, Version};
use proptest::prelude::*;

use crate::identity::{Admitted, Identity, SharedVerifier};
use crate::topology::tests::made;

/// Takes every signature, so that tables with made-up keys can be large.
#[derive(Debug)]
struct Trusting;

impl Verify for Trusting {
    fn verify(&self, _: &SignedRecord, _: &Record) -> bool {
        true
    }
}

struct Node {
    topology: Topology,
    gossip: Gossip,
}

/// Peers on links without delay: link `l` of one end is link `l` of the other.
struct Net {
    now: Time,
    nodes: Vec<Node>,
    links: Vec<(usize, usize)>,
    messages: usize,
}

impl Net {
    fn new(tables: Vec<Vec<Arc<Admitted>>>) -> Net {
        let node = |(index, records): (usize, Vec<Arc<Admitted>>)| {
            let mine = made(60_000 + index as u16, (1, 1), &[], "");
            let mut topology = Topology::new(mine.id);
            let gossip = Gossip::new(Time::ZERO, mine.id, index as u64);
            topology.merge_own(Time::ZERO, mine);
            for record in records {
                topology.merge(Time::ZERO, record);
            }
            Node { topology, gossip }
        };
        Net {
            now: Time::ZERO,
            nodes: tables.into_iter().enumerate().map(node).collect(),
            links: Vec::new(),
            messages: 0,
        }
    }

    fn connect(&mut self, a: usize, b: usize) -> LinkId {
        let link = LinkId(self.links.len() as u64);
        self.links.push((a, b));
        for (here, there) in [(a, b), (b, a)] {
            let peer = self.nodes[there].topology.me();
            let node = &mut self.nodes[here];
            node.gossip.on_link_up(self.now, link, peer, &node.topology);
        }
        link
    }

    /// Passes messages on until nobody has any.
    fn settle(&mut self) {
        loop {
            let mut travelling = Vec::new();
            for (index, node) in self.nodes.iter_mut().enumerate() {
                while let Some((link, message)) = node.gossip.poll(&node.topology) {
                    let bytes = message.emit().expect("every message fits");
                    travelling.push((index, link, Control::parse(&bytes[4..]).unwrap().unwrap()));
                }
            }
            if travelling.is_empty() {
                return;
            }
            self.messages += travelling.len();
            for (from, link, message) in travelling {
                let (a, b) = self.links[link.0 as usize];
                let node = &mut self.nodes[if from == a { b } else { a }];
                let heard = node.gossip.handle_message(self.now, link, &message, &mut node.topology, &Trusting);
                assert_eq!(heard.bad, 0);
            }
        }
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.now += Duration::from_millis(100);
            for node in &mut self.nodes {
                node.gossip.handle_timeout(self.now);
            }
            self.settle();
        }
    }

    fn roots(&self) -> BTreeSet<u64> {
        self.nodes.iter().map(|node| node.topology.digest().root()).collect()
    }

    fn sent(&self) -> u64 {
        self.nodes.iter().map(|node| node.gossip.counters().records_sent).sum()
    }
}

fn any_table() -> impl Strategy<Value = Vec<Arc<Admitted>>> {
    prop::collection::btree_map(0..400_u16, 1..4_u64, 0..200)
        .prop_map(|set| set.into_iter().map(|(key, seq)| made(key, (1, seq), &[], "")).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_tables_become_one(a in any_table(), b in any_table()) {
        let differing = {
            let versions = |table: &[Arc<Admitted>]| table.iter().map(|r| (r.id, r.record.version)).collect::<BTreeSet<_>>();
            versions(&a).symmetric_difference(&versions(&b)).map(|(id, _)| *id).collect::<BTreeSet<_>>().len() as u64
        };
        let mut net = Net::new(vec![a, b]);
        net.connect(0, 1);
        net.settle();
        prop_assert_eq!(net.roots().len(), 1);
        // Digest, buckets, keys, want, four for records and the own record of each.
        prop_assert!(net.messages <= 10, "{} messages", net.messages);
        prop_assert!(net.sent() <= differing + 4, "{} records for {differing} that differ", net.sent());
    }
}

/// `peers` on a ring with chords.
fn ring(peers: usize) -> Net {
    let mut net = Net::new(vec![Vec::new(); peers]);
    for at in 0..peers {
        for step in [1, 3, 7, 13] {
            net.connect(at, (at + step) % peers);
        }
    }
    net
}

#[test]
fn a_change_is_told_to_all_and_only_the_change() {
    let mut net = ring(40);
    net.settle();
    assert_eq!((net.roots().len(), net.nodes[5].topology.len()), (1, 40));
    let before = net.sent();
    let node = &mut net.nodes[9];
    let mine = made(60_009, (1, 2), &[], "changed");
    node.topology.merge_own(net.now, mine.clone());
    node.gossip.on_merged(None, mine.id);
    net.settle();
    assert!(net.nodes.iter().all(|node| node.topology.entry(&mine.id).unwrap().record().name == "changed"));
    let copies = net.sent() - before;
    assert!((39..=40 * 8).contains(&copies), "{copies} copies of one record");
    let before = net.sent();
    net.wait(60);
    assert_eq!(net.sent(), before, "equal tables send no records");
}

#[test]
fn what_a_flood_missed_is_repaired() {
    let mut net = ring(40);
    net.settle();
    let lost = made(70, (1, 1), &[], "");
    net.nodes[3].topology.merge(net.now, lost.clone());
    net.wait(25);
    assert!(net.nodes.iter().all(|node| node.topology.entry(&lost.id).is_some()));
}

#[test]
fn a_slow_link_gets_the_newest_once() {
    let mut net = Net::new(vec![Vec::new(), Vec::new()]);
    let link = net.connect(0, 1);
    net.settle();
    let before = net.sent();
    net.nodes[0].gossip.set_writable(link, false);
    for seq in 2..500 {
        let node = &mut net.nodes[0];
        let mine = made(60_000, (1, seq), &[], "");
        node.topology.merge_own(net.now, mine.clone());
        node.gossip.on_merged(None, mine.id);
    }
    net.settle();
    assert_eq!(net.sent(), before);
    net.nodes[0].gossip.set_writable(link, true);
    net.settle();
    assert_eq!(net.sent(), before + 1);
    let me = net.nodes[0].topology.me();
    assert_eq!(net.nodes[1].topology.version(&me), Some(Version { incarnation: 1, seq: 499 }));
    net.nodes[0].gossip.on_link_down(link);
    net.nodes[0].gossip.on_merged(None, me);
    let Node { topology, gossip } = &mut net.nodes[0];
    assert!(gossip.poll(topology).is_none());
    assert_eq!(gossip.next_deadline(), Time::NEVER);
}

#[test]
fn the_largest_table_travels_in_messages_that_fit() {
    let all = (0..limits::PEERS_MAX as u16 - 2)
        .map(|key| made(key, (limits::VERSION_MAX, limits::VERSION_MAX - 1), &[], "a name of some length"))
        .collect();
    let mut net = Net::new(vec![all, Vec::new()]);
    net.connect(0, 1);
    net.settle();
    assert!(net.nodes[1].topology.len() > 3_500, "the share at once: {}", net.nodes[1].topology.len());
    net.wait(60);
    assert_eq!(net.nodes[1].topology.len(), limits::PEERS_MAX);
}

#[test]
fn keys_of_one_overfull_bucket_fit_a_message() {
    let mut table = Topology::new(PeerId::default());
    for key in 0..9_000_u16 {
        let mut record = (*made(key, (limits::VERSION_MAX, limits::VERSION_MAX), &[], "")).clone();
        record.id.0[0] = 0;
        table.merge(Time::ZERO, Arc::new(record));
    }
    let mut link = GossipLink::new(Time::ZERO);
    link.keys.insert(0);
    let message = link.next_message(&table).unwrap();
    assert!(matches!(&message, Control::Keys { keys, .. } if keys.len() == 7_000));
    assert!(message.emit().is_ok());
}

#[test]
fn a_hostile_neighbour_is_counted_and_bounded() {
    let mut net = Net::new(vec![Vec::new(), Vec::new()]);
    let link = net.connect(0, 1);
    net.settle();
    let Node { topology, gossip } = &mut net.nodes[0];
    let identity = Identity::from_seed([9; 32]);
    let mut record = made(1, (1, 1), &[], "").record.clone();
    record.public_key = identity.public_key();
    let good = identity.sign_record(&record).unwrap().signed.clone();
    let mut forged = good.clone();
    forged.signature[3] ^= 1;
    let mut hear = |records: Vec<Vec<u8>>, now| {
        gossip.handle_message(now, link, &Control::Records(records), topology, &SharedVerifier::default())
    };
    let heard = hear(vec![forged.emit(), vec![], vec![0xff; 300], good.emit()], Time::ZERO);
    assert_eq!((heard.bad, heard.merged), (3, vec![(identity.id(), Merge::New)]));

    let excess: u32 = (0..300).map(|_| hear(vec![forged.emit(); 256], Time::ZERO).excess).sum();
    assert!(excess == 0, "a known record is not checked again: {excess}");
    record.version.seq = 2;
    let mut newer = identity.sign_record(&record).unwrap().signed.clone();
    newer.signature[3] ^= 1;
    let (mut bad, mut excess) = (0, 0);
    for _ in 0..32 {
        let heard = hear(vec![newer.emit(); 256], Time::ZERO);
        (bad, excess) = (bad + heard.bad, excess + heard.excess);
    }
    assert!(bad <= 4_000 && excess >= 4_000, "{bad} checked, {excess} not");
    let later = Time::ZERO + Duration::from_secs(1);
    let heard = hear(vec![newer.emit(); 256], later);
    assert_eq!((heard.bad, heard.excess), (256, 0), "the share comes back");
    assert_eq!(gossip.penalised(later).collect::<Vec<_>>(), [link]);
    assert_eq!(gossip.penalised(later + Duration::from_secs(10)).count(), 0);

    let want = Control::Want(vec![PeerId::default(); limits::PEERS_MAX]);
    let greedy: u32 = (0..100).map(|_| gossip.handle_message(later, link, &want, topology, &Trusting).excess).sum();
    assert!(greedy > 80, "asking is bounded too: {greedy}");
    let unknown = gossip.handle_message(later, LinkId(99), &want, topology, &Trusting);
    assert_eq!(unknown, Heard::default());
}

#[test]
fn my_own_record_from_outside_is_reported_and_not_passed_on() {
    let mut net = Net::new(vec![Vec::new(), Vec::new(), Vec::new()]);
    let link = net.connect(0, 1);
    net.connect(0, 2);
    net.settle();
    let Node { topology, gossip } = &mut net.nodes[0];
    let copy = Control::Records(vec![made(60_000, (4, 1), &[], "").signed.emit()]);
    let heard = gossip.handle_message(Time::ZERO, link, &copy, topology, &Trusting);
    let version = Version { incarnation: 4, seq: 1 };
    assert_eq!(heard.merged, [(topology.me(), Merge::Own { version, instance: 4 })]);
    assert!(gossip.poll(topology).is_none());
}

#[test]
fn what_a_neighbour_has_is_not_sent_to_it() {
    let mut net = Net::new(vec![Vec::new(), Vec::new(), Vec::new()]);
    let (slow, other) = (net.connect(0, 1), net.connect(0, 2));
    net.settle();
    let Node { topology, gossip } = &mut net.nodes[0];
    gossip.set_writable(slow, false);
    let news = |seq| Control::Records(vec![made(5, (1, seq), &[], "").signed.emit()]);
    gossip.handle_message(Time::ZERO, other, &news(1), topology, &Trusting);
    gossip.handle_message(Time::ZERO, slow, &news(1), topology, &Trusting);
    gossip.set_writable(slow, true);
    assert_eq!(gossip.poll(topology), None, "it had the same");
    gossip.set_writable(slow, false);
    gossip.handle_message(Time::ZERO, other, &news(2), topology, &Trusting);
    gossip.handle_message(Time::ZERO, slow, &news(3), topology, &Trusting);
    gossip.set_writable(slow, true);
    assert_eq!(gossip.poll(topology), Some((other, news(3))));
    assert_eq!(gossip.poll(topology), None, "it had a newer one");
}

#[test]
fn large_records_are_split_by_bytes() {
    let mut table = Topology::new(PeerId::default());
    let mut link = GossipLink::new(Time::ZERO);
    for key in 0..200 {
        let mut record = (*made(key, (1, 1), &[], "")).clone();
        record.signed.body = vec![1; limits::RECORD_MAX_BYTES - 64];
        link.records.insert(record.id);
        table.merge(Time::ZERO, Arc::new(record));
    }
    let mut sent = 0;
    while let Some(message) = link.next_message(&table) {
        assert!(message.emit().is_ok());
        let Control::Records(records) = message else { panic!("{message:?}") };
        sent += records.len();
    }
    assert_eq!(sent, 200);
}
