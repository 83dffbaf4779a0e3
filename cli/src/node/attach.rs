//! The node's line to control: control asks, the node answers.
//!
//! Losing the line loses no request: it is opened again with a growing pause for as long as the node
//! lives. Questions under way when it breaks are given up.

use atoll_process::Drain;
use atoll_wire::node::node_message::Answer;
use atoll_wire::node::node_plane_client::NodePlaneClient;
use atoll_wire::node::{
    AskCache, CacheAnswer, CanServe, ControlMessage, LogLines, NodeMessage, PurgeApplied, ReadLogs,
    ReadStats, ServeAnswer, Stats, control_message::Ask,
};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tonic::transport::Channel;
use tracing::{debug, info};

/// Answers that wait for the line.
const ANSWERS_MAX: usize = 64;
/// Questions under way. Most are readers of logs, of which each holds some 200 KiB at most.
const QUESTIONS_MAX: usize = 256;
/// Answers to one question that may be on their way at a time.
const WINDOW_MAX: usize = 64;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Reads an instance's log.
pub type ReadLog = dyn Fn(ReadLogs) -> BoxStream<'static, Result<LogLines, String>> + Send + Sync;
/// Whether the edge serves a domain.
pub type Serves = dyn Fn(&CanServe) -> Result<(), String> + Send + Sync;
/// Whether the edge has applied a purge.
pub type Purged = dyn Fn(&PurgeApplied) -> Result<(), String> + Send + Sync;
/// What the edge's cache holds, or would do, as JSON.
pub type LookIntoCache = dyn Fn(&AskCache) -> Result<String, String> + Send + Sync;
/// What the node has counted. May read files.
pub type ReadCounts = dyn Fn(&ReadStats) -> Stats + Send + Sync;

/// What this node can answer.
#[derive(Clone, Default)]
pub struct Answers {
    /// The role host's logs.
    pub read_log: Option<Arc<ReadLog>>,
    /// The role edge's view.
    pub serves: Option<Arc<Serves>>,
    /// What the role edge has purged.
    pub purged: Option<Arc<Purged>>,
    /// The role edge's cache.
    pub cache: Option<Arc<LookIntoCache>>,
    /// The counts of a node with another role than control.
    pub counts: Option<Arc<ReadCounts>>,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("read_log", &self.read_log.is_some())
            .field("serves", &self.serves.is_some())
            .field("purged", &self.purged.is_some())
            .field("cache", &self.cache.is_some())
            .field("counts", &self.counts.is_some())
            .finish()
    }
}

/// Keeps the line open until the node drains.
pub async fn run(channel: Channel, answers: Answers, drain: Drain) {
    let mut pause = PAUSE_MIN;
    loop {
        let ended = tokio::select! {
            ended = attach_once(channel.clone(), &answers) => ended,
            () = drain.draining() => return,
        };
        match ended {
            Ok(()) => pause = PAUSE_MIN,
            Err(cause) => {
                debug!(%cause, "no line to control");
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = drain.draining() => return,
        }
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

async fn attach_once(channel: Channel, answers: &Answers) -> Result<(), tonic::Status> {
    let (send, receive) = mpsc::channel(ANSWERS_MAX);
    // The server sends its headers only once it has seen a message from us.
    let hello = NodeMessage { id: 0, answer: None, last: true };
    let outgoing = futures_util::stream::iter([hello])
        .chain(futures_util::stream::unfold(receive, |mut r| async move { r.recv().await.map(|m| (m, r)) }));
    let mut asks = NodePlaneClient::new(channel).attach(outgoing).await?.into_inner();
    info!("attached to control");
    let mut under_way = JoinSet::new();
    let mut handles: HashMap<u64, UnderWay> = HashMap::new();
    while let Some(ControlMessage { id, ask }) = asks.message().await? {
        while let Some(ended) = under_way.join_next().now_or_never().flatten() {
            if let Ok(id) = ended {
                handles.remove(&id);
            }
        }
        handles.retain(|_, question| !question.handle.is_finished());
        match ask {
            Some(Ask::Cancel(_)) => {
                if let Some(question) = handles.remove(&id) {
                    question.handle.abort();
                }
            }
            Some(Ask::More(more)) => {
                if let Some(question) = handles.get(&id) {
                    let room = WINDOW_MAX.saturating_sub(question.window.available_permits());
                    question.window.add_permits(room.min(more.answers as usize));
                }
            }
            Some(ask) if handles.len() < QUESTIONS_MAX => {
                let (send, answers) = (send.clone(), answers.clone());
                let window = Arc::new(Semaphore::new(window_of(&ask)));
                let question = Question { id, answers, send, window: Arc::clone(&window) };
                let handle = under_way.spawn(async move {
                    question.answer(ask).await;
                    id
                });
                handles.insert(id, UnderWay { handle, window });
            }
            Some(_) => {
                tell(&send, id, Answer::Error("this node has too many questions under way".to_owned()), true)
                    .await
            }
            None => {
                tell(&send, id, Answer::Error("this node does not know the question".to_owned()), true).await
            }
        }
    }
    Ok(())
}

/// How many answers may be on their way before the first [`Ask::More`].
fn window_of(ask: &Ask) -> usize {
    match ask {
        Ask::ReadLogs(question) => (question.window as usize).clamp(1, WINDOW_MAX),
        _ => 1,
    }
}

/// A question that is being answered.
struct UnderWay {
    handle: AbortHandle,
    window: Arc<Semaphore>,
}

/// What answering a question takes.
struct Question {
    id: u64,
    answers: Answers,
    send: mpsc::Sender<NodeMessage>,
    /// A permit for each answer that the asker has room for.
    window: Arc<Semaphore>,
}

impl Question {
    async fn answer(self, ask: Ask) {
        let Self { id, answers, send, window } = self;
        match (ask, &answers.read_log, &answers.serves, answers.counts.clone()) {
            (Ask::CanServe(question), _, Some(serves), _) => {
                let (serves, why_not) = match serves(&question) {
                    Ok(()) => (true, String::new()),
                    Err(why_not) => (false, why_not),
                };
                tell(&send, id, Answer::Serve(ServeAnswer { serves, why_not }), true).await;
            }
            (Ask::PurgeApplied(question), ..) if answers.purged.is_some() => {
                let purged = answers.purged.as_ref().map(|purged| purged(&question));
                let why_not = purged.and_then(Result::err);
                let answer = ServeAnswer { serves: why_not.is_none(), why_not: why_not.unwrap_or_default() };
                tell(&send, id, Answer::Serve(answer), true).await;
            }
            (Ask::AskCache(question), ..) if answers.cache.is_some() => {
                let none = || Err("this node has no cache".to_owned());
                let answer = match answers.cache.as_ref().map_or_else(none, |look| look(&question)) {
                    Ok(json) => Answer::Cache(CacheAnswer { json }),
                    Err(why) => Answer::Error(why),
                };
                tell(&send, id, answer, true).await;
            }
            (Ask::ReadLogs(question), Some(read_log), _, _) => {
                let mut lines = read_log(question);
                while let Some(answer) = lines.next().await {
                    match answer {
                        Ok(answer) => {
                            // The output waits in its file until the asker has read what it was sent.
                            let Ok(permit) = window.acquire().await else { return };
                            permit.forget();
                            tell(&send, id, Answer::LogLines(answer), false).await;
                        }
                        Err(why) => return tell(&send, id, Answer::Error(why), true).await,
                    }
                }
                tell(&send, id, Answer::LogLines(LogLines::default()), true).await;
            }
            (Ask::ReadStats(question), _, _, Some(counts)) => {
                // `/proc` is quick, but not for hundreds of instances.
                let answer = match tokio::task::spawn_blocking(move || counts(&question)).await {
                    Ok(stats) => Answer::Stats(stats),
                    Err(cause) => Answer::Error(cause.to_string()),
                };
                tell(&send, id, answer, true).await;
            }
            _ => {
                tell(&send, id, Answer::Error("this node does not have the role for that".to_owned()), true)
                    .await;
            }
        }
    }
}

async fn tell(send: &mpsc::Sender<NodeMessage>, id: u64, answer: Answer, last: bool) {
    // An error means that the line has gone; who asked will see that.
    let _line_gone = send.send(NodeMessage { id, answer: Some(answer), last }).await;
}
