use super::*;

const RTT: Duration = Duration::from_millis(1);
const BUSY: u64 = 1_000;

/// A path on which only some ports pass, looked at every 200 ms.
struct Path {
    spread: Spread,
    now: Time,
    blocked: Vec<u8>,
    asked: Vec<u8>,
}

impl Path {
    fn new(ports: u8, blocked: &[u8]) -> Path {
        Path { spread: Spread::new(ports, 7), now: Time::ZERO, blocked: blocked.to_vec(), asked: Vec::new() }
    }

    fn tick(&mut self, datagrams: u64) -> bool {
        self.now += Duration::from_millis(200);
        let mut asks = Vec::new();
        self.spread.on_tick(self.now, datagrams, RTT, &mut asks);
        self.asked = asks.iter().map(|ask| ask.port).collect();
        for ask in asks {
            if !self.blocked.contains(&ask.port) {
                assert!(self.spread.on_reply(self.now + RTT, ask.token));
            }
        }
        self.spread.on()
    }

    fn ticks(&mut self, count: usize, datagrams: u64) -> Vec<bool> {
        (0..count).map(|_| self.tick(datagrams)).collect()
    }
}

#[test]
fn ports_are_asked_once_there_is_something_to_spread() {
    let mut path = Path::new(3, &[]);
    assert_eq!(path.ticks(5, BUSY_DATAGRAMS - 1), [false; 5]);
    assert!(path.asked.is_empty());
    assert!(path.tick(BUSY_DATAGRAMS));
    assert_eq!(path.asked, [1, 2, 3]);
    assert_eq!(path.ticks(50, 1), [true; 50], "a little use is use");
}

#[test]
fn one_that_does_not_pass_keeps_all_from_use_for_a_minute() {
    let mut path = Path::new(3, &[2]);
    let mut asked = Vec::new();
    for _ in 0..290 {
        assert!(!path.tick(BUSY));
        asked.push(std::mem::take(&mut path.asked));
    }
    asked.retain(|ports| !ports.is_empty());
    assert_eq!(asked, [vec![1, 2, 3], vec![2], vec![2]]);
    path.blocked.clear();
    assert!(path.ticks(30, BUSY).contains(&true), "asked again");
}

#[test]
fn one_that_passes_no_more_ends_the_use_within_a_second() {
    let mut path = Path::new(2, &[]);
    path.ticks(3, BUSY);
    path.blocked = vec![1];
    assert_eq!(path.ticks(6, BUSY), [true, true, true, true, false, false]);
}

#[test]
fn three_lost_in_a_row_do_not() {
    let mut path = Path::new(2, &[]);
    path.ticks(3, BUSY);
    for _ in 0..20 {
        path.blocked = vec![1, 2];
        assert_eq!(path.ticks(3, BUSY), [true; 3]);
        path.blocked.clear();
        assert_eq!(path.ticks(1, BUSY), [true]);
    }
}

#[test]
fn a_late_answer_counts() {
    let mut path = Path::new(1, &[]);
    path.tick(BUSY);
    let mut asks = Vec::new();
    for tick in 2..5_u32 {
        path.spread.on_tick(Time::ZERO + Duration::from_millis(200) * tick, BUSY, RTT, &mut asks);
    }
    assert_eq!(asks.len(), 3);
    let now = Time::ZERO + Duration::from_secs(1);
    assert!(path.spread.on_reply(now, asks[0].token));
    assert!(!path.spread.on_reply(now, asks[0].token), "once");
    assert_eq!(path.spread.ports[0].silent, 0);
}

#[test]
fn what_is_idle_is_proven_anew() {
    let mut path = Path::new(1, &[]);
    path.tick(BUSY);
    assert!(path.ticks(30, 0).ends_with(&[false]));
    path.blocked = vec![1];
    assert_eq!(path.ticks(3, BUSY), [false; 3]);
}

#[test]
fn another_address_is_another_path() {
    let mut path = Path::new(1, &[]);
    path.tick(BUSY);
    path.spread.reset();
    assert!(!path.spread.on());
    assert!(path.tick(BUSY));
}

#[test]
fn without_other_ports_nothing_is_asked() {
    let mut path = Path::new(0, &[]);
    assert_eq!(path.ticks(10, BUSY), [false; 10]);
    assert!(!path.spread.on_reply(Time::ZERO, 0));
}
