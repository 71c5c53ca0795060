//! Every state × every input, and the times that a failure takes.
use super::*;

const AT: &str = "10.0.0.1:6783";

fn at(ms: u64) -> Time {
    Time::from_us(10_000_000 + ms * 1000)
}

fn address() -> SocketAddr {
    AT.parse().unwrap()
}

/// A path in the state of this name, at 0 ms, and the token of a probe that waits for its reply.
fn path(state: &str) -> (PeerPath, u64) {
    let mut path = PeerPath::new(Timing::DEFAULT, true, 1);
    let mut out = Vec::new();
    if state != "absent" {
        path.on_link_up(at(0), address(), &mut out);
    }
    let token = path.probe(at(0), Some(address()), &mut out);
    path.direct = match state {
        "absent" => Direct::Absent,
        "good" => Direct::Good,
        "doubted" => Direct::Doubted { sent: 1, hinted: false },
        "suspect" => Direct::Suspect,
        "returning" => Direct::Returning { since: at(0) },
        _ => panic!("{state}"),
    };
    path.measured = at(0);
    path.next_probe = at(100);
    (path, token)
}

fn name(path: &PeerPath) -> &'static str {
    match path.direct {
        Direct::Absent => "absent",
        Direct::Good => "good",
        Direct::Doubted { .. } => "doubted",
        Direct::Suspect => "suspect",
        Direct::Returning { .. } => "returning",
    }
}

/// The actions in short, probes left out.
fn short(out: &[Action]) -> String {
    let word = |action: &Action| match action {
        Action::Probe { .. } => None,
        Action::Choose => Some("choose"),
        Action::Alive(true) => Some("alive"),
        Action::Alive(false) => Some("dead"),
        Action::OtherRelay => Some("other"),
        Action::Moved(_) => Some("moved"),
    };
    out.iter().filter_map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_state_and_input() {
    type Act = fn(&mut PeerPath, u64, &mut Vec<Action>);
    let acts: [(&str, Act); 8] = [
        ("link up", |p, _, out| p.on_link_up(at(50), address(), out)),
        ("link up elsewhere", |p, _, out| p.on_link_up(at(50), "10.0.0.2:1".parse().unwrap(), out)),
        ("link down", |p, _, out| p.on_link_down(out)),
        ("reply", |p, token, out| {
            p.on_reply(at(50), token, out);
        }),
        ("strange reply", |p, token, out| assert_eq!(p.on_reply(at(50), !token, out), Answer::Unknown)),
        ("roamed", |p, _, out| p.on_roamed(at(50), "10.0.0.2:1".parse().unwrap(), out)),
        ("silence", |p, _, out| {
            p.on_tick(at(60), Sample { tx_direct: 1, ..Sample::default() }, out);
            p.on_tick(at(320), Sample { tx_direct: 1, ..Sample::default() }, out);
        }),
        ("four seconds", |p, _, out| (1..=42).for_each(|n| p.on_tick(at(n * 100), Sample::default(), out))),
    ];
    let table = [
        (
            "absent",
            [
                "good: choose alive",
                "good: choose alive",
                "absent:",
                "absent:",
                "absent:",
                "absent:",
                "absent:",
                "absent:",
            ],
        ),
        (
            "good",
            [
                "good:",
                "good: choose",
                "absent: choose dead",
                "good:",
                "good:",
                "good:",
                "doubted:",
                "suspect: choose dead",
            ],
        ),
        (
            "doubted",
            [
                "doubted:",
                "good: choose",
                "absent: choose dead",
                "good:",
                "doubted:",
                "doubted:",
                "doubted:",
                "suspect: choose dead",
            ],
        ),
        (
            "suspect",
            [
                "good: choose",
                "good: choose",
                "absent: choose dead",
                "returning:",
                "suspect:",
                "suspect:",
                "suspect:",
                "suspect: dead",
            ],
        ),
        (
            "returning",
            [
                "good: choose",
                "good: choose",
                "absent: choose dead",
                "returning:",
                "returning:",
                "returning:",
                "returning:",
                "suspect: dead",
            ],
        ),
    ];
    for (state, row) in table {
        for ((input, act), expected) in acts.iter().zip(row) {
            let (mut path, token) = path(state);
            let mut out = Vec::new();
            act(&mut path, token, &mut out);
            assert_eq!(format!("{}: {}", name(&path), short(&out)).trim_end(), expected, "{state}, {input}");
            assert_eq!(path.usable().is_some(), matches!(name(&path), "good" | "doubted"), "{state}, {input}");
        }
    }
}

/// Runs ticks of a peer that sends all the time, and has an answer only while `answers` says so; gives when frames left and came back.
fn changes(until: u64, answers: impl Fn(u64) -> bool) -> Vec<(u64, bool)> {
    let mut path = PeerPath::new(Timing::DEFAULT, true, 1);
    let (mut out, mut sample, mut changes) = (Vec::new(), Sample::default(), Vec::new());
    path.on_link_up(at(0), address(), &mut out);
    let mut usable = true;
    for ms in (0..until).step_by(10) {
        for action in std::mem::take(&mut out) {
            if let Action::Probe { token, to: Some(_) } = action
                && answers(ms)
            {
                path.on_reply(at(ms), token, &mut out);
            }
        }
        sample.tx_direct += 1;
        sample.rx_direct += u64::from(answers(ms));
        if ms % 100 == 0 || path.deadline() <= at(ms) {
            path.on_tick(at(ms), sample, &mut out);
        }
        if path.usable().is_some() != usable {
            usable = !usable;
            changes.push((ms, usable));
        }
    }
    changes
}

#[test]
fn frames_leave_within_700_ms_and_return_after_two_good_seconds() {
    let seen = changes(9_000, |ms| !(2_050..5_000).contains(&ms));
    let [(left, false), (back, true)] = seen[..] else { panic!("{seen:?}") };
    assert!((2_500..=2_750).contains(&left), "{left}");
    assert!((7_000..=7_600).contains(&back), "{back}");
}

#[test]
fn a_gap_starts_the_return_anew() {
    let seen = changes(12_000, |ms| !(2_000..5_000).contains(&ms) && !(6_000..7_000).contains(&ms));
    let (back, usable) = seen[1];
    assert!(usable && (9_000..=9_700).contains(&back), "{seen:?}");
}

#[test]
fn questions_of_the_other_end_do_not_prove_our_direction() {
    let mut path = PeerPath::new(Timing::DEFAULT, true, 1);
    let (mut out, mut sample) = (Vec::new(), Sample::default());
    path.on_link_up(at(0), address(), &mut out);
    for ms in (0..2_000).step_by(100) {
        sample.tx_direct += 10;
        sample.rx_direct += 1;
        sample.questions += 1;
        path.on_tick(at(ms), sample, &mut out);
    }
    assert!(path.usable().is_none());
    assert!(path.alive(), "the other end is heard");
}

#[test]
fn a_silent_relay_is_left_only_while_it_is_used() {
    for (used, expected) in [(true, true), (false, false)] {
        let mut path = PeerPath::new(Timing::DEFAULT, true, 1);
        let (mut out, mut sample) = (Vec::new(), Sample::default());
        path.on_relayed(at(0), true);
        // Answered at first, then idle long enough.
        for ms in (0..20_000).step_by(100) {
            for action in std::mem::take(&mut out) {
                match action {
                    Action::Probe { token, to: None } if ms < 8_000 => {
                        path.on_reply(at(ms), token, &mut out);
                    }
                    Action::OtherRelay => {
                        assert!(expected && ms >= 8_900, "{used} {ms}");
                        return;
                    }
                    _ => {}
                }
            }
            sample.tx_relayed += u64::from(used);
            path.on_tick(at(ms), sample, &mut out);
        }
        assert!(!expected);
    }
}

#[test]
fn a_peer_that_answers_elsewhere_has_moved() {
    let (mut path, _) = path("good");
    let mut out = Vec::new();
    let there = "10.0.0.2:6783".parse().unwrap();
    path.on_roamed(at(10), there, &mut out);
    path.on_roamed(at(20), there, &mut out);
    let [Action::Probe { token, to: Some(to) }] = out[..] else { panic!("{out:?}") };
    assert_eq!((to, path.address()), (there, Some(address())), "believed only when it answers");
    out.clear();
    path.on_reply(at(30), token, &mut out);
    assert_eq!((path.address(), short(&out).as_str()), (Some(there), "moved choose"));
}
