//! `meshctl ping`: asks meshd for one probe after another.

use std::time::Duration;

use meshnet_proto::PeerId;
use meshnet_proto::api::{Command, Reply};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::args;
use super::client::{Client, Failure};
use super::render::text::clean;
use super::run::{emit, json};

/// What `ping --json` prints; keys are added, never renamed.
#[derive(Debug, Default, Serialize)]
struct Summary {
    peer: Option<PeerId>,
    name: String,
    sent: u64,
    received: u64,
    loss_percent: f64,
    /// Absent when nothing came back.
    rtt_min_ms: Option<f64>,
    rtt_avg_ms: Option<f64>,
    rtt_max_ms: Option<f64>,
    /// The way that the newest took.
    path: Option<String>,
}

/// Ends with an error when none came back.
pub async fn run(client: &Client, ping: &args::Ping) -> Result<(), Failure> {
    let mut summary = Summary { name: ping.peer.clone(), ..Summary::default() };
    let mut sum_ms = 0.0;
    let mut next = Instant::now();
    for number in 1..=ping.count {
        sleep_until(next).await;
        next = Instant::now() + ping.interval.max(Duration::from_millis(1));
        summary.sent += 1;
        let line = match client.command(&Command::Ping { peer: ping.peer.clone() }).await? {
            Reply::Pong { peer, name, rtt_ms, path } => {
                summary.received += 1;
                sum_ms += rtt_ms;
                summary.rtt_min_ms = Some(summary.rtt_min_ms.map_or(rtt_ms, |least| least.min(rtt_ms)));
                summary.rtt_max_ms = Some(summary.rtt_max_ms.map_or(rtt_ms, |most| most.max(rtt_ms)));
                let line = format!("{name} {}: {number} {rtt_ms:.3} ms {path}", peer.brief());
                (summary.peer, summary.name, summary.path) = (Some(peer), name, Some(path));
                line
            }
            Reply::Lost { peer, name } => {
                let line = format!("{name} {}: {number} no answer", peer.brief());
                (summary.peer, summary.name) = (Some(peer), name);
                line
            }
            _ => return Err(client.unexpected()),
        };
        if !ping.json.json {
            emit(&(clean(&line) + "\n"))?;
        }
    }
    summary.loss_percent = 100.0 * (summary.sent - summary.received) as f64 / summary.sent.max(1) as f64;
    summary.rtt_avg_ms = (summary.received > 0).then(|| sum_ms / summary.received as f64);
    emit(&if ping.json.json { json(&summary)? } else { text(&summary) })?;
    if summary.received == 0 {
        return Err(Failure::Refused(format!("no answer from {}", clean(&summary.name))));
    }
    Ok(())
}

fn text(summary: &Summary) -> String {
    let mut line = format!("{} sent, {} received, {:.0} % lost", summary.sent, summary.received, summary.loss_percent);
    if let (Some(least), Some(mean), Some(most)) = (summary.rtt_min_ms, summary.rtt_avg_ms, summary.rtt_max_ms) {
        line.push_str(&format!(", rtt {least:.3} / {mean:.3} / {most:.3} ms (least, mean, most)"));
    }
    line + "\n"
}
