//! Notices of the kernel that links or addresses changed.
//!
//! One task (owner: [`Watch`]; ends with it) reads them and remembers only that there were some, so nothing can pile up. When the kernel's buffer
//! overflows or the socket fails, it is opened anew after a second and counts as one change; the daemon's period covers the rest.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::Error;

/// Tells when something changed.
pub struct Watch {
    changed: Arc<Notify>,
    task: AbortHandle,
}

impl Watch {
    /// Starts watching the namespace of this thread, on the current tokio runtime.
    pub fn open() -> Result<Watch, Error> {
        let changed = Arc::new(Notify::new());
        let first = connect()?;
        let task = tokio::spawn(read(first, Arc::clone(&changed))).abort_handle();
        Ok(Watch { changed, task })
    }

    /// Waits until something changed since the last call. Safe to drop while waiting.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The stream of notices, and the task that feeds it.
struct Notices {
    feed: AbortHandle,
    stream: std::pin::Pin<Box<dyn futures_util::Stream<Item = ()> + Send>>,
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

fn connect() -> Result<Notices, Error> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _, messages) =
        new_multicast_connection(&groups).map_err(|why| Error::io("watch the interfaces", why))?;
    let feed = tokio::spawn(connection).abort_handle();
    Ok(Notices { feed, stream: Box::pin(messages.map(drop)) })
}

async fn read(first: Notices, changed: Arc<Notify>) {
    let mut notices = Some(first);
    loop {
        if let Some(mut open) = notices.take() {
            while open.stream.next().await.is_some() {
                changed.notify_one();
            }
            changed.notify_one();
        }
        tokio::time::sleep(REOPEN).await;
        notices = connect().ok();
    }
}

/// Long enough not to be busy when the kernel refuses, short against the daemon's period.
const REOPEN: Duration = Duration::from_secs(1);
