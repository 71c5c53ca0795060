//! Every state × every input, and the exchange between two.
use super::*;

const LIMITS: Limits = Limits { age: Duration::from_secs(8), datagrams: 100 };

fn at(seconds: u64) -> Time {
    Time::from_us(seconds * 1_000_000)
}

fn public(seed: u8) -> [u8; 32] {
    pair([seed; 32]).unwrap().1
}

/// A machine in the state of this name, in epoch 0.
fn machine(state: &str, lower: bool) -> Rekeying {
    let mut machine = Rekeying::new(at(0), LIMITS, lower);
    match state {
        "steady" => {}
        "offered" => assert_eq!(machine.on_tick(at(9), 1, || [1; 32]).len(), 1),
        "acked" => {
            machine.on_offer(at(0), &Rekey { epoch: 1, public_key: public(9) }, || [1; 32]).unwrap();
        }
        _ => panic!("{state}"),
    }
    machine
}

fn state(machine: &Rekeying) -> &'static str {
    match machine.phase {
        Phase::Steady => "steady",
        Phase::Offered(_) => "offered",
        Phase::Acked => "acked",
    }
}

#[test]
fn every_state_and_input() {
    let offer = |epoch| Rekey { epoch, public_key: public(2) };
    type Act = fn(&mut Rekeying, Rekey) -> Result<Vec<Step>, Misfit>;
    let acts: [(&str, Act); 3] = [
        ("offer", |m, r| m.on_offer(at(1), &r, || [3; 32])),
        ("ack", |m, r| m.on_ack(at(1), &r)),
        ("done", |m, r| m.on_done(at(1), r.epoch)),
    ];
    // state, this end is lower, input, epoch → steps (none: misfit), state after
    type Row = (&'static str, bool, &'static str, u32, Option<&'static str>, &'static str);
    let table: [Row; 18] = [
        ("steady", true, "offer", 1, Some("Open(1) Ack"), "acked"),
        ("steady", false, "offer", 1, Some("Open(1) Ack"), "acked"),
        ("steady", true, "offer", 0, None, "steady"),
        ("steady", true, "offer", 2, None, "steady"),
        ("steady", true, "ack", 1, None, "steady"),
        ("steady", true, "done", 1, None, "steady"),
        ("steady", true, "done", 0, None, "steady"),
        ("offered", true, "offer", 1, Some(""), "offered"),
        ("offered", false, "offer", 1, Some("Open(1) Ack"), "acked"),
        ("offered", true, "offer", 2, None, "offered"),
        ("offered", true, "ack", 1, Some("Open(1) Seal(1) Done"), "steady"),
        ("offered", false, "ack", 1, Some("Open(1) Seal(1) Done"), "steady"),
        ("offered", true, "ack", 2, None, "offered"),
        ("offered", true, "done", 1, None, "offered"),
        ("acked", true, "offer", 1, None, "acked"),
        ("acked", false, "ack", 1, None, "acked"),
        ("acked", true, "done", 1, Some("Seal(1)"), "steady"),
        ("acked", true, "done", 2, None, "acked"),
    ];
    for (from, lower, input, epoch, expected, after) in table {
        let mut machine = machine(from, lower);
        let act = acts.iter().find(|(name, _)| *name == input).unwrap().1;
        let steps = act(&mut machine, offer(epoch)).ok().map(|steps| {
            let word = |step: &Step| match step {
                Step::Send(Control::RekeyAck(_)) => "Ack".to_owned(),
                Step::Send(Control::RekeyDone(_)) => "Done".to_owned(),
                step => format!("{step:?}"),
            };
            steps.iter().map(word).collect::<Vec<_>>().join(" ")
        });
        assert_eq!((steps.as_deref(), state(&machine)), (expected, after), "{from} {lower} {input} {epoch}");
    }
}

#[test]
fn begins_by_age_or_volume_only_and_the_lower_end_first() {
    let begins = |lower, second, sealed| {
        let mut machine = Rekeying::new(at(0), LIMITS, lower);
        !machine.on_tick(at(second), sealed, || [1; 32]).is_empty()
    };
    for (lower, second, sealed, expected) in [
        (true, 7, 99, false),
        (true, 8, 1, true),
        (true, 8, 0, false),
        (true, 1, 100, true),
        (false, 8, 1, false),
        (false, 9, 1, true),
        (false, 1, 100, true),
    ] {
        assert_eq!(begins(lower, second, sealed), expected, "{lower} {second} {sealed}");
    }
    for state in ["offered", "acked"] {
        assert!(machine(state, true).on_tick(at(99), 1000, || [1; 32]).is_empty(), "{state}");
    }
}

#[test]
fn both_ends_get_one_secret_even_when_offers_cross() {
    let (mut low, mut high) = (Rekeying::new(at(0), LIMITS, true), Rekeying::new(at(0), LIMITS, false));
    let sent = |steps: &[Step]| {
        steps.iter().find_map(|step| if let Step::Send(message) = step { Some(message.clone()) } else { None }).unwrap()
    };
    let Control::Rekey(from_low) = sent(&low.on_tick(at(9), 1, || [1; 32])) else { panic!() };
    let Control::Rekey(from_high) = sent(&high.on_tick(at(9), 1, || [2; 32])) else { panic!() };
    assert_eq!(low.on_offer(at(9), &from_high, || [3; 32]), Ok(vec![]));
    let answered = high.on_offer(at(9), &from_low, || [4; 32]).unwrap();
    let Control::RekeyAck(ack) = sent(&answered) else { panic!() };
    let closed = low.on_ack(at(9), &ack).unwrap();
    assert_eq!(answered[0], closed[0], "the secrets differ");
    assert_eq!(high.on_done(at(9), 1), Ok(vec![Step::Seal(1)]));
    assert_eq!((low.epoch(), high.epoch()), (1, 1));
    // The epoch before stays open for 10 s, and no other exchange begins before it is closed.
    assert_eq!(low.on_tick(at(18), 1000, || [1; 32]), vec![]);
    let steps = low.on_tick(at(19), 1000, || [1; 32]);
    assert_eq!(steps[0], Step::Close(1));
    assert!(matches!(steps[1], Step::Send(Control::Rekey(Rekey { epoch: 2, .. }))));
}

#[test]
fn points_of_small_order_are_refused() {
    let mut machine = machine("steady", true);
    for public_key in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        assert_eq!(machine.on_offer(at(0), &Rekey { epoch: 1, public_key }, || [1; 32]), Err(Misfit));
    }
}

#[test]
fn an_end_that_offers_without_pause_is_cut() {
    let mut machine = Rekeying::new(at(0), LIMITS, true);
    let exchange = |machine: &mut Rekeying, epoch: u32, second: u64| {
        let offer = Rekey { epoch, public_key: public(epoch as u8 + 1) };
        machine.on_offer(at(second), &offer, || [3; 32])?;
        machine.on_done(at(second), epoch)
    };
    // Once every 11 s is what an honest end under load does.
    for epoch in 1..=20 {
        assert!(exchange(&mut machine, epoch, u64::from(epoch) * 11).is_ok(), "{epoch}");
    }
    let kept = (21..40).take_while(|epoch| exchange(&mut machine, *epoch, 221).is_ok()).count();
    assert_eq!(kept, usize::from(HASTY_MAX));
}
