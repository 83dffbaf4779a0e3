//! Lines to nodes: control asks over the stream that each node holds open, the node answers.

use atoll_model::{NodeName, OrgName};
use atoll_wire::node::{
    AskCache, CanServe, Cancel, ControlMessage, More, NodeMessage, PurgeApplied, ReadLogs, ReadStats, Stats,
    control_message::Ask, node_message::Answer,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// Messages that wait for a node to read them.
const TO_NODE_MAX: usize = 64;
/// Answers that wait for whoever asked; an ask whose reader falls further behind is cancelled.
const ANSWERS_MAX: usize = 256;
/// Asks open at one node.
const ASKS_MAX: usize = 256;
/// Answers to one question about logs that are on their way; each has some 16 KiB. Each one that is read
/// lets the host send another: a slow reader holds up its hosts, not our memory.
const LOG_WINDOW: u32 = 4;
/// The longest answer about a cache.
const CACHE_ANSWER_BYTES_MAX: usize = 512 * 1024;

/// What is asked of many nodes for one who reads it, and how many may do so at a time: all together, and of one
/// organization, so that others find a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    /// Each may hold lines of many instances.
    Logs,
    /// Each asks every node again and again.
    Top,
    /// Each asks every edge, for some seconds where one does not answer.
    Purges,
    /// The same, and each may hold what many edges have counted.
    Cache,
}

impl Reading {
    const fn streams_max(self) -> usize {
        match self {
            Self::Logs | Self::Cache => 32,
            Self::Top => 8,
            Self::Purges => 64,
        }
    }

    const fn of_org_max(self) -> usize {
        self.streams_max() / 4 * 3
    }
}

/// Every attached node. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Attached(Arc<Mutex<Lines>>);

/// A place among those who read something; given back when dropped.
#[derive(Debug)]
pub struct Place(Attached, Reading, OrgName);

#[derive(Debug, Default)]
struct Lines {
    lines: BTreeMap<NodeName, Arc<Line>>,
    next: u64,
    reading: BTreeMap<Reading, BTreeMap<OrgName, usize>>,
}

#[derive(Debug)]
struct Line {
    number: u64,
    to_node: mpsc::Sender<Result<ControlMessage, Status>>,
    asks: Mutex<Asks>,
}

#[derive(Debug, Default)]
struct Asks {
    open: BTreeMap<u64, mpsc::Sender<NodeMessage>>,
    next: u64,
}

/// Why a node gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It has no line to us.
    #[error("node {0} is not connected to control")]
    NotAttached(NodeName),
    /// Too much was asked already.
    #[error("node {0} has too many questions open")]
    Busy(NodeName),
    /// Nothing came in time.
    #[error("the node did not answer in time")]
    Timeout,
    /// The line broke, or the node said no more.
    #[error("the node went away before it had answered")]
    Gone,
    /// The node's own words.
    #[error("{0}")]
    Node(String),
}

/// A node's end of its line, held by its stream's task.
#[derive(Debug)]
pub struct LineEnd {
    attached: Attached,
    node: NodeName,
    line: Arc<Line>,
}

/// Answers to one question. Dropping it tells the node to stop.
#[derive(Debug)]
pub struct Answers {
    id: u64,
    line: Arc<Line>,
    receiver: mpsc::Receiver<NodeMessage>,
    /// Whether the node waits for [`More`].
    windowed: bool,
    /// An answer was read of which the node does not know yet.
    read: bool,
    ended: bool,
}

impl Attached {
    /// A node has opened a line; the one before it is closed.
    #[must_use]
    pub fn attach(&self, node: NodeName) -> (LineEnd, mpsc::Receiver<Result<ControlMessage, Status>>) {
        let (to_node, receiver) = mpsc::channel(TO_NODE_MAX);
        let mut lines = lock(&self.0);
        lines.next += 1;
        let line = Arc::new(Line { number: lines.next, to_node, asks: Mutex::default() });
        if let Some(before) = lines.lines.insert(node.clone(), line.clone()) {
            lock(&before.asks).open.clear();
        }
        (LineEnd { attached: self.clone(), node, line }, receiver)
    }

    /// Whether the node has a line to us.
    #[must_use]
    pub fn is_attached(&self, node: &NodeName) -> bool {
        lock(&self.0).lines.contains_key(node)
    }

    /// How many nodes have.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.0).lines.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes a node's line.
    pub fn detach(&self, node: &NodeName) {
        if let Some(line) = lock(&self.0).lines.remove(node) {
            lock(&line.asks).open.clear();
            let _full = line.to_node.try_send(Err(Status::permission_denied("removed"))).is_err();
        }
    }

    /// Asks a node.
    pub fn ask(&self, node: &NodeName, question: Ask) -> Result<Answers, AskError> {
        let line = lock(&self.0).lines.get(node).cloned();
        let line = line.ok_or_else(|| AskError::NotAttached(node.clone()))?;
        let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
        let id = {
            let mut asks = lock(&line.asks);
            if asks.open.len() >= ASKS_MAX {
                return Err(AskError::Busy(node.clone()));
            }
            asks.next += 1;
            let id = asks.next;
            asks.open.insert(id, sender);
            id
        };
        let windowed = matches!(question, Ask::ReadLogs(_));
        let answers = Answers { id, line, receiver, windowed, read: false, ended: false };
        let message = ControlMessage { id, ask: Some(question) };
        match answers.line.to_node.try_send(Ok(message)) {
            Ok(()) => Ok(answers),
            Err(mpsc::error::TrySendError::Full(_)) => Err(AskError::Busy(node.clone())),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(AskError::NotAttached(node.clone())),
        }
    }

    /// Whether an edge can serve a domain from desired state at least that new: nothing, or why not.
    pub async fn can_serve(
        &self,
        edge: &NodeName,
        domain: &str,
        version: u64,
        within: Duration,
    ) -> Result<(), AskError> {
        let question = CanServe { domain: domain.to_owned(), version, ..CanServe::default() };
        self.ask_whether_it_serves(edge, question, within).await
    }

    /// The same, of a service that may have no instances.
    pub async fn ask_whether_it_serves(
        &self,
        edge: &NodeName,
        question: CanServe,
        within: Duration,
    ) -> Result<(), AskError> {
        serve_answer(self.ask(edge, Ask::CanServe(question))?, within).await
    }

    /// Whether an edge has applied an app's purges up to that one: nothing, or why that is not known.
    pub async fn has_purged(
        &self,
        edge: &NodeName,
        app: &str,
        seq: u64,
        within: Duration,
    ) -> Result<(), AskError> {
        let question = PurgeApplied { app: app.to_owned(), seq };
        serve_answer(self.ask(edge, Ask::PurgeApplied(question))?, within).await
    }

    /// Asks an edge about its cache. What it says is JSON, and not read yet.
    pub async fn ask_cache(
        &self,
        edge: &NodeName,
        question: AskCache,
        within: Duration,
    ) -> Result<String, AskError> {
        let mut answers = self.ask(edge, Ask::AskCache(question))?;
        let message = tokio::time::timeout(within, answers.next()).await.map_err(|_| AskError::Timeout)?;
        match message.and_then(|message| message.answer) {
            Some(Answer::Cache(answer)) if answer.json.len() > CACHE_ANSWER_BYTES_MAX => {
                Err(AskError::Node("the edge's answer is too long".to_owned()))
            }
            Some(Answer::Cache(answer)) => Ok(answer.json),
            Some(Answer::Error(error)) => Err(AskError::Node(error)),
            Some(Answer::LogLines(_) | Answer::Serve(_) | Answer::Stats(_)) | None => Err(AskError::Gone),
        }
    }

    /// Asks a host for an instance's output.
    pub fn read_logs(&self, host: &NodeName, logs: ReadLogs) -> Result<Answers, AskError> {
        self.ask(host, Ask::ReadLogs(ReadLogs { window: LOG_WINDOW, ..logs }))
    }

    /// A place for one more of an organization who reads, if there is one.
    #[must_use]
    pub fn place(&self, reading: Reading, org: &OrgName) -> Option<Place> {
        let mut lines = lock(&self.0);
        let places = lines.reading.entry(reading).or_default();
        let (all, own) = (places.values().sum::<usize>(), places.get(org).copied().unwrap_or(0));
        if all >= reading.streams_max() || own >= reading.of_org_max() {
            return None;
        }
        places.insert(org.clone(), own + 1);
        Some(Place(self.clone(), reading, org.clone()))
    }

    /// Asks a node what it has counted.
    pub async fn read_stats(
        &self,
        node: &NodeName,
        prefix: &str,
        within: Duration,
    ) -> Result<Stats, AskError> {
        let mut answers = self.ask(node, Ask::ReadStats(ReadStats { prefix: prefix.to_owned() }))?;
        let message = tokio::time::timeout(within, answers.next()).await.map_err(|_| AskError::Timeout)?;
        match message.and_then(|message| message.answer) {
            Some(Answer::Stats(stats)) => Ok(stats),
            Some(Answer::Error(error)) => Err(AskError::Node(error)),
            Some(Answer::LogLines(_) | Answer::Serve(_) | Answer::Cache(_)) | None => Err(AskError::Gone),
        }
    }
}

impl LineEnd {
    /// Hands an answer to whoever asked.
    pub fn deliver(&self, message: NodeMessage) {
        let (id, last) = (message.id, message.last);
        let mut asks = lock(&self.line.asks);
        let Some(sender) = asks.open.get(&id) else { return };
        let lost = sender.try_send(message).is_err();
        if lost || last {
            asks.open.remove(&id);
        }
        if lost && !last {
            drop(asks);
            self.line.cancel(id);
        }
    }
}

impl Line {
    fn cancel(&self, id: u64) {
        let message = ControlMessage { id, ask: Some(Ask::Cancel(Cancel {})) };
        // A node that doesn't read loses its line soon; then nothing is left to cancel.
        let _full = self.to_node.try_send(Ok(message)).is_err();
    }

    async fn more(&self, id: u64) {
        let message = ControlMessage { id, ask: Some(Ask::More(More { answers: 1 })) };
        // With the line the question ends.
        let _line_gone = self.to_node.send(Ok(message)).await.is_err();
    }
}

impl Drop for LineEnd {
    fn drop(&mut self) {
        lock(&self.line.asks).open.clear();
        let mut lines = lock(&self.attached.0);
        if lines.lines.get(&self.node).is_some_and(|line| line.number == self.line.number) {
            lines.lines.remove(&self.node);
        }
    }
}

impl Answers {
    /// The next answer; nothing when there are no more, or the line broke. Asking for it says that the one
    /// before has been dealt with. Cancel-safe.
    pub async fn next(&mut self) -> Option<NodeMessage> {
        if self.windowed && self.read {
            self.line.more(self.id).await;
        }
        self.read = false;
        let message = self.receiver.recv().await;
        self.read = true;
        self.ended |= message.as_ref().is_none_or(|message| message.last);
        message
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if !self.ended {
            lock(&self.line.asks).open.remove(&self.id);
            self.line.cancel(self.id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self(attached, reading, org) = self;
        let mut lines = lock(&attached.0);
        let Some(places) = lines.reading.get_mut(reading) else { return };
        match places.get_mut(org) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(places.remove(org)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a question of yes or why not.
async fn serve_answer(mut answers: Answers, within: Duration) -> Result<(), AskError> {
    match tokio::time::timeout(within, answers.next()).await {
        Err(_elapsed) => Err(AskError::Timeout),
        Ok(None) => Err(AskError::Gone),
        Ok(Some(message)) => match message.answer {
            Some(Answer::Serve(serve)) if serve.serves => Ok(()),
            Some(Answer::Serve(serve)) => Err(AskError::Node(serve.why_not)),
            Some(Answer::Error(error)) => Err(AskError::Node(error)),
            Some(Answer::LogLines(_) | Answer::Stats(_) | Answer::Cache(_)) | None => Err(AskError::Gone),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use atoll_wire::node::ServeAnswer;

    fn answer(id: u64, serves: bool) -> NodeMessage {
        let serve = ServeAnswer { serves, why_not: "no certificate".into() };
        NodeMessage { id, answer: Some(Answer::Serve(serve)), last: true }
    }

    #[tokio::test]
    async fn answers_find_who_asked_and_a_lost_line_is_told() {
        let attached = Attached::default();
        let node: NodeName = "fra1-edge".parse().unwrap();
        let wait = Duration::from_secs(5);
        let unknown = attached.can_serve(&node, "a", 1, wait).await;
        assert_eq!(unknown, Err(AskError::NotAttached(node.clone())));
        let (end, mut asked) = attached.attach(node.clone());
        let asking = async {
            tokio::join!(attached.can_serve(&node, "a", 1, wait), attached.can_serve(&node, "b", 1, wait))
        };
        let answering = async {
            let first = asked.recv().await.unwrap().unwrap();
            let second = asked.recv().await.unwrap().unwrap();
            end.deliver(answer(second.id, false));
            end.deliver(answer(first.id, true));
        };
        let ((first, second), ()) = tokio::join!(asking, answering);
        assert_eq!(first, Ok(()));
        assert_eq!(second, Err(AskError::Node("no certificate".into())));
        let mut open = attached.read_logs(&node, ReadLogs::default()).unwrap();
        drop(end);
        assert!(open.next().await.is_none());
        assert!(!attached.is_attached(&node));
    }

    #[test]
    fn an_organization_that_reads_much_leaves_places_to_others() {
        let attached = Attached::default();
        let (much, other): (OrgName, OrgName) = ("much".parse().unwrap(), "other".parse().unwrap());
        let take = |org| attached.place(Reading::Top, org);
        let mut taken: Vec<Place> = std::iter::from_fn(|| take(&much)).collect();
        assert_eq!(taken.len(), Reading::Top.of_org_max());
        let others: Vec<Place> = std::iter::from_fn(|| take(&other)).collect();
        assert_eq!(taken.len() + others.len(), Reading::Top.streams_max());
        taken.pop();
        assert!(take(&other).is_some());
        assert!(take(&much).is_some(), "a place is given back");
    }

    #[tokio::test]
    async fn a_newer_line_takes_over_and_dropping_the_older_leaves_it() {
        let attached = Attached::default();
        let node: NodeName = "fra1-edge".parse().unwrap();
        let (old, _old_asked) = attached.attach(node.clone());
        let (_new, mut asked) = attached.attach(node.clone());
        drop(old);
        drop(attached.read_logs(&node, ReadLogs::default()).unwrap());
        assert!(matches!(asked.recv().await.unwrap().unwrap().ask, Some(Ask::ReadLogs(_))));
        assert!(matches!(asked.recv().await.unwrap().unwrap().ask, Some(Ask::Cancel(_))));
    }
}
