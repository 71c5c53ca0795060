use super::sim::{Plan, run};

#[test]
fn schedules() {
    let count: u64 = std::env::var("N").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let first: u64 = std::env::var("SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut faults = Vec::new();
    let mut total = (0, 0, 0, 0, 0, 0);
    for seed in first..first + count {
        let (c, fault) = run(seed, Plan { steps: 400, heal: seed % 4 == 0, ..Plan::default() });
        total = (
            total.0 + c.given_out,
            total.1 + c.joined,
            total.2 + c.left,
            total.3 + c.removed,
            total.4 + c.crashes,
            total.5 + c.healed,
        );
        faults.extend(fault);
    }
    eprintln!("{total:?} faults {}", faults.len());
    for f in faults.iter().take(12) {
        eprintln!("{f}");
    }
    assert!(faults.is_empty());
}
