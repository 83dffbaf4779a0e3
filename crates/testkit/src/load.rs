//! Constant load: so many idempotent requests a second, from a thread of its own, over connections
//! that are kept as a browser keeps them.

mod client;

use client::Client;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::task::LocalSet;

/// Most requests at a time; with so many unanswered the platform has stopped.
const IN_FLIGHT_MAX: usize = 1000;
/// Longest time for one request; a client would have given up.
const REQUEST_WAIT: Duration = Duration::from_secs(20);
/// Failures that are kept with their detail.
const FAILURES_MAX: usize = 1000;

/// The version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, one request at a time on a connection.
    H1,
    /// HTTP/2, all requests on one connection.
    H2,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct LoadTarget {
    /// An edge.
    pub address: SocketAddr,
    /// Edges that the client turns to, one after the other, when this one takes no connection or ends one
    /// without an answer, as a client does that DNS gave several addresses. Without any a request is sent once.
    pub others: Vec<SocketAddr>,
    /// The domain.
    pub host: String,
    /// File with the CA that the edge's certificate must come from.
    pub ca: PathBuf,
    /// Path; `?load=N` is added, a number that no other request has.
    pub path: String,
    /// Over what.
    pub version: Version,
}

/// A request that did not get its answer.
#[derive(Debug, Clone)]
pub struct LoadFailure {
    /// Its number.
    pub number: u64,
    /// From the start of the load to the failure.
    pub at: Duration,
    /// How long the request took to fail.
    pub took: Duration,
    /// The edge, and over what.
    pub target: String,
    /// Whether the head of an instance's answer was there already; an error page of the platform is none.
    pub head_seen: bool,
    /// What happened; for an answer of the platform, its status and `Proxy-Status`.
    pub detail: String,
}

/// What came of the load.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Requests that were sent.
    pub sent: u64,
    /// Requests that were answered with 200 and the whole body.
    pub answered: u64,
    /// The others.
    pub failures: Vec<LoadFailure>,
    /// Requests that a client sent again, mostly to another edge, since a connection gave no answer.
    pub sent_again: u64,
    /// Answers, by the region that gave them.
    pub by_region: BTreeMap<String, u64>,
    /// How long the answers took.
    pub latencies: Vec<Duration>,
    /// The same, each with the time since the load began at which the request was sent.
    pub timeline: Vec<(Duration, Duration)>,
}

impl LoadReport {
    /// The latency that so many hundredths of the answers did not exceed.
    #[must_use]
    pub fn latency(&self, percent: usize) -> Duration {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let at = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(at).copied().unwrap_or_default()
    }

    /// The latency that so many hundredths of the answers did not exceed, of those to requests sent in that
    /// part of the load's time, and how many there were.
    #[must_use]
    pub fn latency_between(&self, from: Duration, to: Duration, percent: usize) -> (Duration, usize) {
        let sent = self.timeline.iter().filter(|(at, _)| (from..to).contains(at));
        let part = Self { latencies: sent.map(|(_, took)| *took).collect(), ..Self::default() };
        (part.latency(percent), part.latencies.len())
    }

    /// The failures of requests of which no answer's head had come.
    pub fn without_head(&self) -> impl Iterator<Item = &LoadFailure> {
        self.failures.iter().filter(|failure| !failure.head_seen)
    }

    /// Checks that every request was answered.
    ///
    /// # Panics
    /// With the first failures, when not.
    #[track_caller]
    pub fn expect_no_failure(&self, during: &str) {
        self.expect_none(during, self.failures.iter());
    }

    /// Checks that every request was answered of which no head had come before something was killed.
    ///
    /// # Panics
    /// With the first failures, when not.
    #[track_caller]
    pub fn expect_no_failure_without_head(&self, during: &str) {
        self.expect_none(during, self.without_head());
    }

    #[track_caller]
    fn expect_none<'a>(&self, during: &str, failures: impl Iterator<Item = &'a LoadFailure>) {
        let failures: Vec<String> = failures.take(20).map(|failure| format!("{failure:?}")).collect();
        let (sent, all) = (self.sent, self.failures.len());
        assert!(failures.is_empty(), "{during}: of {sent} requests {all} failed:\n{}", failures.join("\n"));
        assert!(self.answered > 0, "{during}: no request was answered at all");
    }
}

/// Load that runs until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<Notify>,
    report: Arc<Mutex<LoadReport>>,
    ended: Receiver<()>,
    started: Instant,
}

impl Load {
    /// Sends `per_second` requests a second in all, to the targets in turn.
    ///
    /// # Panics
    /// When a target's CA can't be read.
    #[must_use]
    pub fn start(targets: Vec<LoadTarget>, per_second: u32) -> Self {
        let (stop, report) = (Arc::new(Notify::new()), Arc::new(Mutex::new(LoadReport::default())));
        let (ending, ended) = channel();
        let (stop_thread, report_thread) = (Arc::clone(&stop), Arc::clone(&report));
        std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                LocalSet::new().block_on(&runtime, run(targets, per_second, &stop_thread, report_thread));
                // The test may have given up.
                let _gone = ending.send(());
            })
            .unwrap();
        Self { stop, report, ended, started: Instant::now() }
    }

    /// How long it has run, as [`LoadReport::latency_between`] counts.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// How many were answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.report.lock().unwrap().answered
    }

    /// What is known so far.
    #[must_use]
    pub fn so_far(&self) -> LoadReport {
        self.report.lock().unwrap().clone()
    }

    /// Waits until so many more were answered.
    ///
    /// # Panics
    /// When that takes more than a minute.
    pub fn wait_for_more(&self, count: u64) {
        let target = self.answered() + count;
        crate::wait_until("the load is answered", Duration::from_secs(60), || self.answered() >= target);
    }

    /// Sends no more, waits for what is under way, and tells.
    #[must_use]
    pub fn stop(self) -> LoadReport {
        self.stop.notify_one();
        let ended = self.ended.recv_timeout(REQUEST_WAIT + Duration::from_secs(10));
        ended.expect("every request ends within its time");
        let report = self.report.lock().unwrap();
        report.clone()
    }
}

async fn run(targets: Vec<LoadTarget>, per_second: u32, stop: &Notify, report: Arc<Mutex<LoadReport>>) {
    let clients: Vec<Rc<Client>> = targets.into_iter().map(|target| Rc::new(Client::new(target))).collect();
    let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    for number in 0.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.notified() => break,
        }
        let client = Rc::clone(&clients[usize::try_from(number).unwrap() % clients.len()]);
        let report = Arc::clone(&report);
        report.lock().unwrap().sent += 1;
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            let detail = format!("{IN_FLIGHT_MAX} requests are unanswered");
            note_failure(&report, started, started, number, &client, (false, detail));
            continue;
        };
        tokio::task::spawn_local(async move {
            let _permit = permit;
            one(number, &client, started, &report).await;
        });
    }
    // All permits back: nothing is under way.
    let _all = permits.acquire_many(u32::try_from(IN_FLIGHT_MAX).unwrap()).await;
}

async fn one(number: u64, client: &Client, started: Instant, report: &Mutex<LoadReport>) {
    let begun = Instant::now();
    let (head_seen, again) = (Cell::new(false), Cell::new(0_u32));
    let outcome = match tokio::time::timeout(REQUEST_WAIT, client.get(number, &head_seen, &again)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {REQUEST_WAIT:?}")),
    };
    report.lock().unwrap().sent_again += u64::from(again.get());
    match outcome {
        Ok(region) => {
            let mut report = report.lock().unwrap();
            report.answered += 1;
            report.latencies.push(begun.elapsed());
            report.timeline.push((begun - started, begun.elapsed()));
            *report.by_region.entry(region).or_default() += 1;
        }
        Err(detail) => note_failure(report, started, begun, number, client, (head_seen.get(), detail)),
    }
}

fn note_failure(
    report: &Mutex<LoadReport>,
    started: Instant,
    begun: Instant,
    number: u64,
    client: &Client,
    (head_seen, detail): (bool, String),
) {
    let mut report = report.lock().unwrap();
    if report.failures.len() < FAILURES_MAX {
        let (at, took, target) = (started.elapsed(), begun.elapsed(), client.to_string());
        report.failures.push(LoadFailure { number, at, took, target, head_seen, detail });
    }
}
