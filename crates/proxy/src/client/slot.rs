//! One connection's place: made, used, lost, made again.

use super::connect::{ConnectError, Connected};
use super::error::chain;
use super::h2peer::{Inner, PeerConnection};
use super::line::{Line, LineConfig};
use crate::workers::spawn_task;
use rand::RngExt as _;
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::debug;

/// A connection that lived this long was no failure.
const LIVED: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// Nobody has asked for a connection.
    Idle,
    #[default]
    Connecting,
    Open,
    /// After a failure, before the next attempt.
    Waiting,
}

#[derive(Default)]
pub(crate) struct Slot {
    phase: Cell<Phase>,
    open: RefCell<Option<Rc<Line>>>,
    last_error: RefCell<Option<String>>,
}

impl Slot {
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// The connection, if it may take a request.
    pub(crate) fn candidate(&self) -> Option<Rc<Line>> {
        self.open.borrow().as_ref().filter(|line| takes_requests(line)).cloned()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.borrow().as_ref().is_some_and(takes_requests)
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.open.borrow().as_ref().is_some_and(|line| line.is_retired())
    }

    /// Its connection has ended, and nobody has taken note of that yet.
    pub(crate) fn is_lost(&self) -> bool {
        let open = self.open.borrow();
        self.phase() == Phase::Open
            && open.as_ref().is_some_and(|line| line.is_closed() && !line.is_retired())
    }

    /// Lets the connection go.
    pub(crate) fn abandon(&self) {
        *self.open.borrow_mut() = None;
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.open.borrow().as_ref().map_or(0, |line| line.streams())
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.borrow().clone()
    }
}

fn takes_requests(line: &Rc<Line>) -> bool {
    !line.is_retired() && !line.is_closed()
}

/// Keeps the slot's connection up for as long as the task runs.
pub(crate) async fn keep_connected(inner: Rc<Inner>, index: usize) {
    let slot = &inner.slots[index];
    let enter = |phase| {
        slot.phase.set(phase);
        inner.changed.notify_waiters();
    };
    let mut failures = 0_u32;
    loop {
        if !inner.config.warm {
            let mut wanted = pin!(inner.wanted.notified());
            wanted.as_mut().enable();
            enter(Phase::Idle);
            wanted.await;
        }
        enter(Phase::Connecting);
        let started = Instant::now();
        match open(&inner, index).await {
            Ok(line) => {
                *slot.last_error.borrow_mut() = None;
                enter(Phase::Open);
                line.closed().await;
                *slot.open.borrow_mut() = None;
                failures = if started.elapsed() > LIVED { 0 } else { failures + 1 };
            }
            Err(error) => {
                inner.metrics.upstream_connect_errors.inc();
                let text = chain(&error);
                debug!(address = %inner.config.address, error = text, "no connection");
                *slot.last_error.borrow_mut() = Some(text);
                failures += 1;
            }
        }
        if failures > 0 {
            enter(Phase::Waiting);
            tokio::time::sleep(backoff(&inner, failures)).await;
        }
    }
}

/// Doubles with each failure; between half and the whole of it, so that peers don't come back at once.
fn backoff(inner: &Inner, failures: u32) -> Duration {
    let doubled = inner.config.backoff_min.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let ceiling = doubled.min(inner.config.backoff_max);
    ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Connects, and publishes the connection.
async fn open(inner: &Rc<Inner>, index: usize) -> Result<Rc<Line>, ConnectError> {
    let address = inner.config.address;
    let within = inner.config.connect_timeout;
    let connecting = async {
        let Connected { stream, handle, guard, peer } = inner.connector.connect(address).await?;
        let config = LineConfig {
            stream_window: inner.config.stream_window,
            connection_window: inner.config.connection_window(),
            streams_max: inner.config.streams_max,
            keep_alive: Some(inner.config.keep_alive),
        };
        let line = Line::open(stream, config, &inner.metrics).await;
        let line = line.map_err(|cause| ConnectError::Http { address, cause })?;
        Ok((line, handle, guard, peer))
    };
    let connected = tokio::time::timeout(within, connecting).await;
    let (line, handle, guard, peer) =
        connected.map_err(|_elapsed| ConnectError::Timeout { address, within })??;
    inner.metrics.upstream_connects.inc();
    *inner.slots[index].open.borrow_mut() = Some(Rc::clone(&line));

    let for_hook = PeerConnection { index, peer, line: Rc::clone(&line) };
    let hook = inner.hook.as_ref().map(|hook| hook(for_hook));
    let watched = Rc::clone(inner);
    // A task of its own: after GOAWAY the slot goes on while the old connection still has streams.
    spawn_task("peer connection watch", &inner.metrics, async move {
        let hooked = async {
            match hook {
                Some(hook) => hook.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = guard.cut() => {
                watched.metrics.connections_cut.inc();
                handle.sever();
            }
            () = hooked => handle.sever(),
            () = handle.closed() => {}
            () = abandoned(&watched) => {
                tokio::select! {
                    () = guard.cut() => handle.sever(),
                    () = handle.closed() => {}
                }
            }
        }
    });

    Ok(line)
}

async fn abandoned(inner: &Inner) {
    loop {
        let changed = inner.changed.notified();
        if inner.closing.get() {
            return;
        }
        changed.await;
    }
}
