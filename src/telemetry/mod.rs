//! Logs, the ring of newest events, and the text of `/metrics`.
//!
//! ```text
//! tracing events ─┬─ text or JSON ─ standard error
//!                 └─ INFO and up ── Recent (ring of 200) ── report
//! Status, counters ── metrics::render ── /metrics
//! ```
//!
//! May use: proto, types of the core. Lacks on purpose: anything on the frame path. Workers count in plain atomics of their own
//! (`meshnet_core::counters`) and never log; their sums arrive here inside a `Status`.

pub mod field;
pub mod metrics;
mod recent;
mod repeat;
#[cfg(test)]
mod tests;

pub use recent::Recent;
pub use repeat::Repeat;

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// What `--version` prints: version, commit, target.
pub const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("MESHNET_COMMIT"), ", ", env!("MESHNET_TARGET"), ")");

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(format!("'{text}' is not a log format: text or json")),
        }
    }
}

/// Starts logging to standard error; the newest events are kept in what comes back. Once in a process: a second call changes nothing.
///
/// `level` is `error`, `warn`, `info`, `debug` or `trace` (libraries then stay at `warn`), or a list of directives such as
/// `info,quinn=debug`.
pub fn init(level: &str, format: Format) -> Result<Recent, String> {
    let filter = filter(level)?;
    let recent = Recent::default();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let _ = tracing_subscriber::registry()
        .with(recent.clone().with_filter(LevelFilter::INFO))
        .with(lines.with_filter(filter))
        .try_init();
    Ok(recent)
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    let wrong = || format!("'{level}' is not a log level: error, warn, info, debug or trace");
    if level.contains(['=', ',']) {
        return EnvFilter::try_new(level).map_err(|_| wrong());
    }
    let level = level.to_ascii_lowercase();
    if !["error", "warn", "info", "debug", "trace"].contains(&level.as_str()) {
        return Err(wrong());
    }
    let libraries = if level == "error" { "error" } else { "warn" };
    let ours = ["meshnet", "meshnet_core", "meshnet_proto", "meshd"].map(|crate_| format!("{crate_}={level}"));
    EnvFilter::try_new(format!("{libraries},{}", ours.join(","))).map_err(|_| wrong())
}
