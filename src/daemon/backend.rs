//! The driver as the control API sees it: each question is a request on one bounded channel, with a place for the answer.
//!
//! Owner: the API's connections. Full: the question waits, and the API's own time limit ends it. End: when the driver is gone, every question is answered
//! with [`Unavailable`].

use meshnet_proto::api::{Command, MacEntry, Reply, Report, Status, Topology};
use tokio::sync::{mpsc, oneshot};

use crate::api::{Backend, Unavailable};

/// Questions that may wait: more than the API has connections, so that it is the connections that bound them.
pub const REQUESTS_MAX: usize = 128;

/// A question to the driver.
pub enum Request {
    /// The status document.
    Status(oneshot::Sender<Status>),
    /// The cluster.
    Topology(oneshot::Sender<Topology>),
    /// Learned MAC addresses.
    Macs(oneshot::Sender<Vec<MacEntry>>),
    /// Everything.
    Report(oneshot::Sender<Report>),
    /// The text of `/metrics`.
    Metrics(oneshot::Sender<String>),
    /// Ready, or why not.
    Ready(oneshot::Sender<Result<(), String>>),
    /// A command; its answer may take a while and does not hold the driver.
    Command(Command, oneshot::Sender<Reply>),
}

/// The asking end.
pub struct Asker {
    requests: mpsc::Sender<Request>,
}

impl Asker {
    /// The asking end, and the end that the driver reads.
    pub fn new() -> (Asker, mpsc::Receiver<Request>) {
        let (requests, driver) = mpsc::channel(REQUESTS_MAX);
        (Asker { requests }, driver)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Unavailable> {
        let gone = || Unavailable("meshd is stopping".into());
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

impl Backend for Asker {
    async fn status(&self) -> Result<Status, Unavailable> {
        self.ask(Request::Status).await
    }

    async fn topology(&self) -> Result<Topology, Unavailable> {
        self.ask(Request::Topology).await
    }

    async fn macs(&self) -> Result<Vec<MacEntry>, Unavailable> {
        self.ask(Request::Macs).await
    }

    async fn report(&self) -> Result<Report, Unavailable> {
        self.ask(Request::Report).await
    }

    async fn command(&self, command: Command) -> Result<Reply, Unavailable> {
        self.ask(|answer| Request::Command(command, answer)).await
    }

    async fn metrics(&self) -> Result<String, Unavailable> {
        self.ask(Request::Metrics).await
    }

    async fn ready(&self) -> Result<(), String> {
        self.ask(Request::Ready).await.map_err(|error| error.to_string())?
    }

    /// The driver lives. A thread of the data plane that ends takes the process with it, so nothing else need be asked.
    async fn healthy(&self) -> Result<(), String> {
        self.ask(Request::Ready).await.map(drop).map_err(|error| error.to_string())
    }
}
