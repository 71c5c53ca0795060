use super::*;

const UDP: &str = "192.0.2.1:6783";
const QUIC: &str = "[fd6d:6573:686e:1::7]:2";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A transport on a network that answers as told, looked at each 100 ms.
struct Bed {
    transport: Transport,
    now: Time,
    udp_answers: bool,
    quic_answers: bool,
    uses: Vec<SocketAddr>,
    asked: usize,
}

impl Bed {
    fn new(policy: Policy) -> Bed {
        let mut transport = Transport::new(policy, 1);
        let now = Time::from_us(1_000_000);
        let uses = vec![transport.on_link(now, address(UDP), address(QUIC))];
        Bed { transport, now, udp_answers: true, quic_answers: true, uses, asked: 0 }
    }

    fn run(&mut self, span: Duration, direct: Direct) {
        let until = self.now + span;
        while self.now < until {
            let mut out = Vec::new();
            self.transport.on_tick(self.now, direct, &mut out);
            while let Some(step) = out.pop() {
                match step {
                    Step::Use(to) => self.uses.push(to),
                    Step::Probe { token, to } => {
                        self.asked += 1;
                        if to == address(UDP) && self.udp_answers || to == address(QUIC) && self.quic_answers {
                            assert!(self.transport.on_reply(self.now + Duration::from_millis(5), token, &mut out));
                        }
                    }
                }
            }
            self.now += Duration::from_millis(100);
        }
    }

    fn falls_back_and_returns_after(&mut self) -> Duration {
        self.udp_answers = false;
        self.run(Duration::from_millis(700), Direct::Suspect);
        self.run(Duration::from_millis(300), Direct::Good);
        assert_eq!(self.transport.by(), By::Quic);
        self.udp_answers = true;
        let start = self.now;
        while self.transport.by() == By::Quic {
            self.run(Duration::from_millis(100), Direct::Good);
            assert!(self.now.since(start) < Duration::from_secs(100), "stuck");
        }
        self.now.since(start)
    }
}

const DOUBT: Direct = Direct::Doubted { sent: 1, hinted: false };

#[test]
fn the_policy_decides_and_asks_nobody_when_it_leaves_no_choice() {
    for (policy, by, to) in [(Policy::Udp, By::Udp, UDP), (Policy::Quic, By::Quic, QUIC)] {
        let mut bed = Bed::new(policy);
        for direct in [Direct::Good, DOUBT, Direct::Suspect] {
            bed.run(Duration::from_secs(5), direct);
        }
        assert_eq!((bed.transport.by(), bed.uses.as_slice(), bed.asked), (by, [address(to)].as_slice(), 0));
        assert!(!bed.transport.fell_back());
    }
}

#[test]
fn a_good_path_is_left_alone() {
    let mut bed = Bed::new(Policy::Auto);
    bed.run(Duration::from_secs(60), Direct::Good);
    assert_eq!((bed.uses.as_slice(), bed.asked), ([address(UDP)].as_slice(), 0));
}

#[test]
fn udp_is_left_only_when_it_is_given_up_and_quic_answers() {
    let mut bed = Bed::new(Policy::Auto);
    bed.udp_answers = false;
    bed.run(Duration::from_millis(300), DOUBT);
    assert_eq!(bed.transport.by(), By::Udp, "a doubt is no proof");
    bed.run(Duration::from_millis(100), Direct::Suspect);
    assert_eq!((bed.transport.by(), bed.transport.fell_back()), (By::Quic, true), "at once: QUIC was asked in time");

    let mut dead = Bed::new(Policy::Auto);
    (dead.udp_answers, dead.quic_answers) = (false, false);
    dead.run(Duration::from_millis(300), DOUBT);
    dead.run(Duration::from_secs(10), Direct::Suspect);
    assert_eq!(dead.transport.by(), By::Udp, "a path that is cut is for relays");
    assert!(dead.asked < 30, "{}", dead.asked);
    dead.quic_answers = true;
    dead.run(Duration::from_secs(1), Direct::Suspect);
    assert_eq!(dead.transport.by(), By::Quic);
}

#[test]
fn a_doubt_that_passed_is_forgotten() {
    let mut bed = Bed::new(Policy::Auto);
    bed.run(Duration::from_millis(300), DOUBT);
    bed.run(Duration::from_millis(500), Direct::Good);
    bed.quic_answers = false;
    bed.run(Duration::from_millis(300), Direct::Suspect);
    assert_eq!(bed.transport.by(), By::Udp, "what QUIC said in the doubt before is old");
}

#[test]
fn it_returns_when_udp_is_good_again_and_later_when_that_did_not_last() {
    let mut bed = Bed::new(Policy::Auto);
    let waits: Vec<u64> = (0..8).map(|_| bed.falls_back_and_returns_after().as_secs()).collect();
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 64, 64]);
    bed.run(LASTED, Direct::Good);
    assert_eq!(bed.falls_back_and_returns_after().as_secs(), 2, "a return that lasted counts");
}

#[test]
fn a_gap_starts_the_wait_anew() {
    let mut bed = Bed::new(Policy::Auto);
    bed.udp_answers = false;
    bed.run(Duration::from_secs(1), Direct::Suspect);
    bed.udp_answers = true;
    bed.run(Duration::from_millis(1_500), Direct::Good);
    bed.udp_answers = false;
    bed.run(Duration::from_secs(2), Direct::Good);
    bed.udp_answers = true;
    bed.run(Duration::from_millis(1_500), Direct::Good);
    assert_eq!(bed.transport.by(), By::Quic);
    bed.run(Duration::from_secs(1), Direct::Good);
    assert_eq!(bed.transport.by(), By::Udp);
}

#[test]
fn a_new_link_keeps_the_choice_and_forgets_the_answers() {
    let mut bed = Bed::new(Policy::Auto);
    bed.udp_answers = false;
    bed.run(Duration::from_secs(1), Direct::Suspect);
    let other = address("[fd6d:6573:686e:1::8]:2");
    assert_eq!(bed.transport.on_link(bed.now, address(UDP), other), other);
    bed.transport.on_link_down();
    let mut out = Vec::new();
    bed.transport.on_tick(bed.now, Direct::Absent, &mut out);
    assert_eq!(out, []);
    bed.transport.on_moved(address("192.0.2.9:1"));
    assert_eq!(bed.transport.udp(), None, "without a link there is no address");
}

#[test]
fn when_quic_is_silent_udp_is_used_at_its_first_word() {
    let mut bed = Bed::new(Policy::Auto);
    bed.udp_answers = false;
    bed.run(Duration::from_secs(1), Direct::Suspect);
    (bed.udp_answers, bed.quic_answers) = (true, false);
    bed.run(Duration::from_millis(600), Direct::Suspect);
    assert_eq!(bed.transport.by(), By::Udp);
}
