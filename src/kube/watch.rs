//! The list of nodes and what changes in it, for as long as the process runs.
//!
//! ```text
//! list ─ pages ─▶ Listed ─▶ watch from there ─ lines ─▶ Changed, Deleted … ─ ended ─▶ watch on
//!   ▲                          │ expired (410), odd, refused
//!   └──────── 1 s … 30 s ──────┘
//! ```
//! One task; its owner is [`super::agent::Agent`]. What it sends waits in a bounded channel: a slow reader slows the watch, which the API ends when it falls
//! too far behind, and then the list is read anew.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::client::{ApiError, Call, Client};
use super::objects::{Event, Node, Page};

/// What the task tells.
#[derive(Debug)]
pub enum News {
    /// All nodes there are; what follows are changes to them.
    Listed(Vec<Node>),
    /// One is there, or changed.
    There(Box<Node>),
    /// One is deleted.
    Gone(String),
    /// Changes are seen from now on: those since the last that was seen come first.
    Seeing,
    /// Changes are not seen for now.
    Blind,
}

/// All nodes, read from the store itself and not from a cache, and the place from which changes are to be watched.
pub async fn list(client: &Client) -> Result<(Vec<Node>, String), ApiError> {
    let (mut nodes, mut next) = (Vec::new(), String::new());
    for _ in 0..PAGES_MAX {
        let more = if next.is_empty() { String::new() } else { format!("&continue={}", escape(&next)) };
        let path = format!("/api/v1/nodes?limit={PAGE}{more}");
        let body = client.ask(&Call { verb: "list", resource: "nodes".into(), path, body: None }).await?;
        let page = Page::parse(&body).map_err(ApiError::Odd)?;
        nodes.extend(page.nodes);
        if page.next.is_empty() {
            return Ok((nodes, page.version));
        }
        next = page.next;
    }
    Err(ApiError::Odd(format!("the list of nodes has more than {PAGES_MAX} pages")))
}

/// Lists and watches until nobody listens any more.
pub async fn run(client: Client, news: mpsc::Sender<News>) {
    let mut pause = Pause::default();
    loop {
        let began = Instant::now();
        let ended = match list(&client).await {
            Ok((nodes, version)) => {
                if news.send(News::Listed(nodes)).await.is_err() {
                    return;
                }
                follow(&client, version, &news).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            debug!(%error, "the nodes are not watched");
        }
        if news.send(News::Blind).await.is_err() {
            return;
        }
        if began.elapsed() > STEADY {
            pause = Pause::default();
        }
        sleep(pause.grow()).await;
    }
}

/// Watches until a list is needed.
async fn follow(client: &Client, mut version: String, news: &mpsc::Sender<News>) -> Result<(), ApiError> {
    let mut pause = Pause::default();
    loop {
        let began = Instant::now();
        match watch(client, &mut version, news).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // Cut off: perhaps only this connection.
            Err(ApiError::Unreachable(why)) => {
                debug!(why, "the watch of the nodes was cut off");
                if news.send(News::Blind).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
        if began.elapsed() > STEADY {
            pause = Pause::default();
        }
        sleep(pause.grow()).await;
    }
}

/// One watch. True: it ended as it should, or may go on from `version`.
async fn watch(client: &Client, version: &mut String, news: &mpsc::Sender<News>) -> Result<bool, ApiError> {
    let seconds = WATCH_TIME.as_secs() + u64::from(random() % 60);
    let place = escape(version);
    let path =
        format!("/api/v1/nodes?watch=1&allowWatchBookmarks=true&resourceVersion={place}&timeoutSeconds={seconds}");
    let call = Call { verb: "watch", resource: "nodes".into(), path, body: None };
    let mut lines = match client.watch(&call).await {
        Err(error) if error.code() == 410 => return Ok(false),
        other => other?,
    };
    tell(news, News::Seeing).await?;
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds) + WATCH_GRACE;
    loop {
        let line = match tokio::time::timeout_at(end, lines.next()).await {
            Ok(line) => line?,
            Err(_) => return Err(ApiError::Unreachable("the watch did not end in time".into())),
        };
        let Some(line) = line else { return Ok(true) };
        client.heard_now();
        let (told, newer) = match Event::parse(&line).map_err(ApiError::Odd)? {
            Event::There { node, version } => (Some(News::There(node)), version),
            Event::Gone { name, version } => (Some(News::Gone(name)), version),
            Event::Bookmark { version } => (None, version),
            Event::Expired => return Ok(false),
            Event::Failed(why) => return Err(ApiError::Odd(format!("the watch of the nodes failed: {why}"))),
        };
        if let Some(told) = told {
            tell(news, told).await?;
        }
        if !newer.is_empty() {
            *version = newer;
        }
    }
}

async fn tell(news: &mpsc::Sender<News>, told: News) -> Result<(), ApiError> {
    match timeout(READ_WITHIN, news.send(told)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(ApiError::Odd("nobody reads what the watch tells".into())),
    }
}

/// Growing waits, each a little different, so that a thousand machines do not ask at the same moment.
#[derive(Debug, Default, Clone)]
pub struct Pause {
    failures: u32,
}

impl Pause {
    /// How long to wait now.
    pub fn grow(&mut self) -> Duration {
        let base = (FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(10))).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        base.mul_f64(0.75 + f64::from(random() % 1000) / 2000.0)
    }
}

/// A number that nobody can foresee.
pub(super) fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without it the waits of many are alike, which is no harm.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_be_bytes(bytes)
}

/// Fit for a query.
fn escape(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let one = |byte: u8| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

/// Nodes in one answer: with all their images some have 100 KiB.
const PAGE: usize = 50;
/// As many as [`super::nodes`] handles, and more.
const PAGES_MAX: usize = 400;
/// A watch lives so long and up to a minute more; then the API ends it and the next begins.
const WATCH_TIME: Duration = Duration::from_secs(240);
/// An end that is due may be late.
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// The agent asks the API one thing at a time, each within some seconds.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// What lasted as long was no failure.
const STEADY: Duration = Duration::from_secs(20);
/// Between two tries.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_bounded() {
        let mut pause = Pause::default();
        let waits: Vec<Duration> = (0..40).map(|_| pause.grow()).collect();
        assert!(waits[0] <= Duration::from_millis(1250) && waits[0] >= Duration::from_millis(750));
        assert!(waits[2] >= Duration::from_secs(3) && waits[39] <= LONGEST_PAUSE.mul_f64(1.25));
    }

    #[test]
    fn what_the_api_gives_back_fits_a_query() {
        assert_eq!(escape("a-B.9_~"), "a-B.9_~");
        assert_eq!(escape("a b&c=%/"), "a%20b%26c%3D%25%2F");
    }
}
