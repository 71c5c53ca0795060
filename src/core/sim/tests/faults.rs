//! Faults drawn from a seed: cuts, partitions, restarts, kills, freezes, moves, new mappings, loss, reordering, duplicates. Then quiet, and all must be well.

use super::*;

struct Schedule {
    sim: Sim,
    hosts: Vec<HostId>,
    moves: u8,
}

impl Schedule {
    fn new(seed: u64) -> Schedule {
        let mut sim = Sim::new(seed, Conditions::LAN);
        let rng = &mut sim.rng;
        let wan = rng.random_bool(0.3);
        let base = if wan { Conditions::WAN } else { Conditions::LAN };
        sim.net.conditions = Conditions {
            loss: *[0.0, 0.0, 0.01, 0.05].get(rng.random_range(0..4)).unwrap(),
            jitter: ms(rng.random_range(0..5)),
            ..base
        };
        let count = rng.random_range(5..=12);
        let hosts: Vec<HostId> = (0..count).map(|n| sim.add_host(n)).collect();
        if sim.rng.random_bool(0.3) {
            sim.net.translate(count as usize - 1, "192.0.2.1:40000".parse().unwrap());
        }
        for host in &hosts {
            let config = Self::config(&mut sim, *host);
            sim.start(*host, config);
        }
        Schedule { sim, hosts, moves: 0 }
    }

    fn config(sim: &mut Sim, host: HostId) -> Config {
        let mut config = sim.config(host);
        config.targets = if host == 0 { vec![] } else { vec![sim.net.seen_as(0).to_string()] };
        config
    }

    fn draw(&mut self) -> HostId {
        self.sim.rng.random_range(0..self.hosts.len())
    }

    fn fault(&mut self) {
        let (a, b) = (self.draw(), self.draw());
        let sim = &mut self.sim;
        match sim.rng.random_range(0..10) {
            0 | 1 => {
                sim.net.cut(a, b, true);
                sim.net.cut(b, a, true);
            }
            2 => sim.net.cut(a, b, true),
            3 => {
                let half = sim.rng.random_range(1..self.hosts.len());
                for host in &self.hosts {
                    sim.net.group(*host, u32::from(*host >= half));
                }
            }
            4 => self.heal(),
            5 if sim.hosts[a].alive() => sim.kill(a),
            6 if sim.hosts[a].alive() => sim.stop(a),
            5 | 6 => {
                let config = Self::config(sim, a);
                sim.start(a, config);
            }
            7 => sim.hosts[a].frozen_until = Some(sim.now + ms(sim.rng.random_range(100..6000))),
            // Host 0 stays: it is what the others have as a target.
            8 if a > 0 && self.moves < 200 => {
                self.moves += 1;
                let address = format!("10.9.0.{}:6783", self.moves).parse().unwrap();
                sim.renumber(a, address);
            }
            _ => {
                sim.inject(a, None);
                if a != b {
                    sim.inject(a, Some(b));
                }
            }
        }
    }

    fn heal(&mut self) {
        for a in &self.hosts {
            self.sim.net.group(*a, 0);
            for b in &self.hosts {
                self.sim.net.cut(*a, *b, false);
            }
        }
    }

    fn run(mut self) {
        for _ in 0..20 {
            let span = self.sim.rng.random_range(10..3000);
            self.sim.run(ms(span));
            self.fault();
        }
        self.heal();
        self.sim.net.conditions.loss = 0.0;
        for host in self.hosts.clone() {
            if !self.sim.hosts[host].alive() {
                let config = Self::config(&mut self.sim, host);
                self.sim.start(host, config);
            }
        }
        converge(&mut self.sim, &self.hosts, ms(60_000));
        // Trees agree, windows of floods over every link are over, flapped links are told again.
        self.sim.run(ms(12_000));
        for host in &self.hosts {
            let number = self.sim.inject(*host, None);
            self.sim.run(ms(600));
            let reached = self.sim.reached(number);
            assert_eq!(reached.len(), self.hosts.len() - 1, "broadcast of {host}");
        }
        let busy = self.sim.metrics;
        self.sim.run(ms(10_000));
        let messages = self.sim.metrics.messages - busy.messages;
        assert!(messages < 100 * self.hosts.len() as u64, "{messages} messages in 10 s of quiet");
    }
}

#[test]
fn after_any_faults_all_is_well_again() {
    let first = seed();
    for seed in first..first + 100 {
        let run = std::panic::catch_unwind(|| Schedule::new(seed).run());
        if let Err(panic) = run {
            println!("failed with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
