//! One link: a connection whose other end is proven, one stream of messages each way.
//!
//! ```text
//! Quic::send → Outbox (bounded) → stream ⇒ network ⇒ stream → events (bounded, shared by all links) → driver
//!              full: link closed, Slow                         full: this link's stream is not read, so the sender waits
//! ```
//! One task a link, owned by the dial or accept task's set; it ends with the connection, and ends the connection when it is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use meshnet_core::node::{Input, LinkEnd, LinkId};
use meshnet_proto::limits::MESSAGE_MAX_BYTES;
use meshnet_proto::wire::control::{CloseReason, LENGTH_BYTES};
use quinn::{Connection, ConnectionError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::error;
use super::frames::{Carried, FrameSink};

/// What a link still has to send, and whether it shall close.
///
/// Filled by the driver, emptied by the link's task. When full the link closes with `Slow`: messages of the control plane may be late, but never missing.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    ready: Notify,
    closing: watch::Sender<Option<CloseReason>>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// Above half: the driver was told, and hears when it is below a quarter again.
    pressed: bool,
}

/// What became of a message handed to [`super::Quic::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Queued,
    /// It is on its way, but the link's queue is over half full: hold back what can wait until [`super::Quic::writable`] names the link.
    Pressed,
    /// The link is gone or closing; `LinkClosed` says why.
    Closed,
}

impl Outbox {
    pub(super) fn new() -> Outbox {
        Outbox { queue: Mutex::default(), ready: Notify::new(), closing: watch::Sender::new(None) }
    }

    pub(super) fn push(&self, message: Arc<[u8]>) -> Sent {
        if self.closing.borrow().is_some() {
            return Sent::Closed;
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = queue.bytes + message.len();
        if queue.messages.len() >= OUTBOX_MESSAGES || bytes > OUTBOX_BYTES {
            drop(queue);
            self.close(CloseReason::Slow);
            return Sent::Closed;
        }
        queue.bytes = bytes;
        queue.messages.push_back(message);
        queue.pressed |= queue.messages.len() > OUTBOX_MESSAGES / 2 || bytes > OUTBOX_BYTES / 2;
        let sent = if queue.pressed { Sent::Pressed } else { Sent::Queued };
        drop(queue);
        self.ready.notify_one();
        sent
    }

    /// The first reason stays.
    pub(super) fn close(&self, reason: CloseReason) {
        self.closing.send_if_modified(|closing| closing.is_none() && closing.replace(reason).is_none());
        self.ready.notify_one();
    }

    fn closing(&self) -> Option<CloseReason> {
        *self.closing.borrow()
    }

    /// The next message, and whether the queue just became short again.
    fn pop(&self) -> Option<(Arc<[u8]>, bool)> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let message = queue.messages.pop_front()?;
        queue.bytes -= message.len();
        let short = queue.messages.len() < OUTBOX_MESSAGES / 4 && queue.bytes < OUTBOX_BYTES / 4;
        let relieved = queue.pressed && short;
        queue.pressed &= !short;
        Some((message, relieved))
    }

    /// Waits until the link shall be cut: at once for most reasons, after a time to send what is queued when the peer stops.
    async fn cut(&self) -> CloseReason {
        let mut closing = self.closing.subscribe();
        let reason = match closing.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            // The sender lives in `self`, so it cannot be gone.
            _ => CloseReason::Unwanted,
        };
        if reason == CloseReason::Stopping {
            tokio::time::sleep(FLUSH_TIME).await;
        }
        reason
    }
}

/// What a link's task needs.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) connection: Connection,
    pub(super) outbox: Arc<Outbox>,
    pub(super) events: mpsc::Sender<Input>,
    /// Its frames; none through relays.
    pub(super) carried: Option<Carried>,
    pub(super) sink: Arc<dyn FrameSink>,
}

impl Link {
    /// Moves messages both ways until the link ends, and says why it did. `relieved` hears when the queue is short again.
    pub(super) async fn run(&self, relieved: impl Fn(LinkId)) -> LinkEnd {
        let end = tokio::select! {
            biased;
            reason = self.outbox.cut() => self.cut(reason),
            () = self.write_all(relieved) => self.cut(self.outbox.closing().unwrap_or(CloseReason::Stopping)),
            end = self.read_all() => end,
            () = self.carry() => LinkEnd::Local,
        };
        // Whatever way it ended, nothing of it stays; the first close of a connection is the one that counts.
        close(&self.connection, CloseReason::Unwanted);
        end
    }

    /// Moves frames both ways, for as long as the link lives: how it ends, the others say.
    async fn carry(&self) {
        if let Some(carried) = &self.carried {
            let take = carried.take_all(&self.connection, &*self.sink);
            tokio::select! {
                () = carried.send_all(&self.connection, &self.events) => {}
                () = take => {}
            }
        }
        std::future::pending().await
    }

    fn cut(&self, reason: CloseReason) -> LinkEnd {
        close(&self.connection, reason);
        match reason {
            CloseReason::Slow => LinkEnd::Other("the other end takes messages too slowly".into()),
            _ => LinkEnd::Local,
        }
    }

    /// Sends what is queued. Returns when the link closes and all was acknowledged; on errors never, because the reading side knows better why.
    async fn write_all(&self, relieved: impl Fn(LinkId)) {
        let sent: Result<(), WriteError> = async {
            let mut stream = self.connection.open_uni().await?;
            loop {
                match self.outbox.pop() {
                    Some((message, short)) => {
                        if short {
                            relieved(self.id);
                        }
                        stream.write_all(&message).await?;
                    }
                    None if self.outbox.closing().is_some() => return finish(stream).await,
                    None => self.outbox.ready.notified().await,
                }
            }
        }
        .await;
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn read_all(&self) -> LinkEnd {
        match self.read_messages().await {
            ReadEnd::Finished => match timeout(CLOSE_WAIT, self.connection.closed()).await {
                Ok(error) => error::link_end(&error),
                Err(_) => self.refuse("the stream ended and the connection did not"),
            },
            ReadEnd::Connection(ConnectionError::LocallyClosed) => LinkEnd::Local,
            ReadEnd::Connection(error) => error::link_end(&error),
            ReadEnd::Length(length) => self.refuse(&format!("a message of {length} bytes")),
            ReadEnd::Broken => self.refuse("the stream broke off"),
        }
    }

    async fn read_messages(&self) -> ReadEnd {
        let mut stream = match self.connection.accept_uni().await {
            Ok(stream) => stream,
            Err(error) => return ReadEnd::Connection(error),
        };
        let mut pace = Pace { due: Instant::now() };
        loop {
            let bytes = match read_message(&mut stream).await {
                Ok(bytes) => bytes,
                Err(end) => return end,
            };
            pace.wait().await;
            // Waits while the driver is behind: meanwhile nothing is read, and QUIC's flow control slows the sender.
            if self.events.send(Input::Message { link: self.id, bytes }).await.is_err() {
                return ReadEnd::Connection(ConnectionError::LocallyClosed);
            }
        }
    }

    fn refuse(&self, what: &str) -> LinkEnd {
        close(&self.connection, CloseReason::Protocol);
        LinkEnd::Other(format!("the other end broke the protocol: {what}"))
    }
}

/// How fast messages of one link are taken: a burst, then so many a second. Whoever sends more waits, and leaves the driver's time to the other links.
struct Pace {
    /// When the next message would be due if they came evenly.
    due: Instant,
}

impl Pace {
    async fn wait(&mut self) {
        let now = Instant::now();
        self.due = self.due.max(now) + MESSAGE_EVERY;
        let burst = now + MESSAGE_EVERY * MESSAGES_BURST;
        if self.due > burst {
            tokio::time::sleep(self.due - burst).await;
        }
    }
}

enum ReadEnd {
    Finished,
    Connection(ConnectionError),
    Length(usize),
    Broken,
}

impl From<ReadExactError> for ReadEnd {
    fn from(error: ReadExactError) -> ReadEnd {
        match error {
            ReadExactError::FinishedEarly(0) => ReadEnd::Finished,
            ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => ReadEnd::Connection(error),
            _ => ReadEnd::Broken,
        }
    }
}

/// Reads `length ‖ type ‖ body` and gives back `type ‖ body`.
async fn read_message(stream: &mut RecvStream) -> Result<Vec<u8>, ReadEnd> {
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if !(TYPE_BYTES..=MESSAGE_MAX_BYTES - LENGTH_BYTES).contains(&length) {
        return Err(ReadEnd::Length(length));
    }
    let mut message = vec![0; length];
    match stream.read_exact(&mut message).await {
        Err(ReadExactError::FinishedEarly(_)) => Err(ReadEnd::Broken),
        other => Ok(other.map(|()| message)?),
    }
}

/// Waits until the other end has all that was sent.
async fn finish(mut stream: SendStream) -> Result<(), WriteError> {
    // An error means that the stream is closed already, and the wait below then says so.
    let _ = stream.finish();
    stream.stopped().await.map(drop).map_err(|_| WriteError::ClosedStream)
}

/// Closes a connection with one of our reasons.
pub(super) fn close(connection: &Connection, reason: CloseReason) {
    connection.close(VarInt::from_u32(reason as u32), b"");
}

/// Messages that wait on one link: above the largest burst, the answers to one exchange of digests.
pub(super) const OUTBOX_MESSAGES: usize = 1024;
/// Bytes that wait on one link: all records of 10,000 peers. Bodies are shared between links, so the sum over links is less than it looks.
pub(super) const OUTBOX_BYTES: usize = 4 * 1024 * 1024;
/// Messages of one link are taken at 2,000 a second: ten times what a link of a large mesh carries while all its peers restart; 5 % of a core.
const MESSAGE_EVERY: Duration = Duration::from_micros(500);
/// And at once: what waits at most at the other end.
const MESSAGES_BURST: u32 = OUTBOX_MESSAGES as u32;
/// How long a stopping peer tries to send what is queued.
const FLUSH_TIME: Duration = Duration::from_millis(500);
/// How long after the end of its stream the other end may take to close: it waits for one acknowledgement.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Bytes of a message's type, without which it is none.
const TYPE_BYTES: usize = 2;
