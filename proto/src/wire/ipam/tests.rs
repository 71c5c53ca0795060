use super::*;

fn run(first: u32, len: u32, owner: u64) -> Run {
    Run { span: Span { first, len }, ballot: Ballot::default(), version: 1, owner: ShortId(owner), giver: ShortId(1) }
}

fn state(runs: Vec<Run>) -> State {
    State { members: vec![Member { id: ShortId(1), standing: Standing::Admitted }], runs }
}

fn answer(state: State) -> Message {
    Message::Answer { cluster: [7; 16], token: 9, outcome: Outcome::Given, state }
}

#[test]
fn a_state_comes_back_as_it_went() {
    let mut runs = vec![run(10, 5, 3), run(20, 1, 1), run(21, u32::MAX - 20, 2)];
    runs[1].ballot = Ballot { round: 4, by: ShortId(u64::MAX) };
    runs[2].version = u32::MAX;
    for runs in [Vec::new(), runs] {
        let message = answer(state(runs));
        assert_eq!(Message::parse(&message.emit().unwrap()).unwrap(), Some(message));
    }
}

#[test]
fn a_thousand_fair_shares_take_less_than_20_kb() {
    let id = |n: u64| ShortId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let runs =
        (0..1000).map(|n| Run { owner: id(u64::from(n)), giver: id(u64::from(n) / 2), ..run(n * 1048, 1048, 0) });
    let members = (0..1000).map(|n| Member { id: id(n), standing: Standing::Admitted }).collect();
    let bytes = answer(State { members, runs: runs.collect() }).emit().unwrap();
    println!("{} bytes", bytes.len());
    assert!(bytes.len() < 20_000, "{} bytes", bytes.len());
}

#[test]
fn what_cannot_be_is_refused() {
    let good = answer(state(vec![run(10, 5, 1)])).emit().unwrap();
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if let Ok(Some(message)) = Message::parse(&bytes) {
                assert!(message.emit().is_ok());
            }
        }
        assert!(Message::parse(&good[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(Message::parse(&[KINDS, 1, 2]), Ok(None));
}
