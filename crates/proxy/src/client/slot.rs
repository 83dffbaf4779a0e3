//! One connection's place: made, used, lost, made again.

use super::connect::{ConnectError, Connected};
use super::error::chain;
use super::h2peer::{Inner, PeerConnection};
use crate::body::Body;
use crate::turns::{TurnEnd, turned};
use crate::workers::spawn_task;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::RngExt as _;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWrite;
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
    open: RefCell<Option<Open>>,
    last_error: RefCell<Option<String>>,
}

struct Open {
    sender: SendRequest<Body>,
    streams: Rc<Cell<usize>>,
    streams_max: Rc<Cell<usize>>,
    retired: Rc<Cell<bool>>,
}

/// A connection that may take a request.
pub(crate) struct Picked {
    pub(crate) sender: SendRequest<Body>,
    pub(crate) streams: Rc<Cell<usize>>,
    pub(crate) streams_max: usize,
}

impl Slot {
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn candidate(&self) -> Option<Picked> {
        let open = self.open.borrow();
        let open = open.as_ref().filter(|open| !open.retired.get() && !open.sender.is_closed())?;
        Some(Picked {
            sender: open.sender.clone(),
            streams: Rc::clone(&open.streams),
            streams_max: open.streams_max.get(),
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.borrow().as_ref().is_some_and(|open| !open.retired.get() && !open.sender.is_closed())
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.open.borrow().as_ref().is_some_and(|open| open.retired.get())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.open.borrow().as_ref().map_or(0, |open| open.streams.get())
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.borrow().clone()
    }
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
            Ok(driver) => {
                *slot.last_error.borrow_mut() = None;
                enter(Phase::Open);
                driver.await;
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

/// Connects, publishes the connection, and returns the future that drives it to its end.
async fn open(inner: &Rc<Inner>, index: usize) -> Result<Pin<Box<dyn Future<Output = ()>>>, ConnectError> {
    let address = inner.config.address;
    let within = inner.config.connect_timeout;
    let connecting = async {
        let Connected { stream, handle, guard, peer } = inner.connector.connect(address).await?;
        let (stream, turn) = turned(stream);
        let (sender, connection) = http2::Builder::new(Turning::new(turn))
            .timer(TokioTimer::new())
            .initial_stream_window_size(inner.config.stream_window)
            .initial_connection_window_size(inner.config.connection_window())
            // Until the peer has said how many it takes: a burst on a new connection is no overload.
            .initial_max_send_streams(inner.config.streams_max)
            .max_frame_size(64 * 1024)
            .max_header_list_size(64 * 1024)
            .max_send_buf_size(64 * 1024)
            .max_local_error_reset_streams(1 << 20)
            .keep_alive_interval(inner.config.keep_alive)
            .keep_alive_timeout(inner.config.keep_alive)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| ConnectError::Http { address, cause })?;
        Ok((sender, connection, handle, guard, peer))
    };
    let connected = tokio::time::timeout(within, connecting).await;
    let (sender, mut connection, handle, guard, peer) =
        connected.map_err(|_elapsed| ConnectError::Timeout { address, within })??;
    inner.metrics.upstream_connects.inc();

    let streams = Rc::<Cell<usize>>::default();
    let retired = Rc::<Cell<bool>>::default();
    let streams_max = Rc::new(Cell::new(inner.config.streams_max));
    *inner.slots[index].open.borrow_mut() = Some(Open {
        sender: sender.clone(),
        streams: Rc::clone(&streams),
        streams_max: Rc::clone(&streams_max),
        retired: Rc::clone(&retired),
    });

    let for_hook = PeerConnection { index, peer, sender, streams, retired };
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

    Ok(Box::pin(async move {
        let ended = poll_fn(|context| {
            let polled = Pin::new(&mut connection).poll(context);
            streams_max.set(connection.current_max_send_streams().max(1));
            polled
        });
        if let Err(error) = ended.await {
            debug!(%address, error = chain(&error), "a connection to a peer ended");
        }
    }))
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

/// Runs the tasks of one connection on this worker. The first is the connection's own: what it wrote goes out after each of its turns.
struct Turning<I>(Rc<Cell<Option<TurnEnd<I>>>>);

impl<I> Turning<I> {
    fn new(turn: TurnEnd<I>) -> Self {
        Self(Rc::new(Cell::new(Some(turn))))
    }
}

impl<I> Clone for Turning<I> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<F, I> hyper::rt::Executor<F> for Turning<I>
where
    F: Future + 'static,
    I: AsyncWrite + Unpin + 'static,
{
    fn execute(&self, task: F) {
        let Some(turn) = self.0.take() else { return LocalExecutor.execute(task) };
        tokio::task::spawn_local(async move {
            let mut task = pin!(task);
            poll_fn(|context| {
                let polled = task.as_mut().poll(context);
                turn.flush(context);
                polled
            })
            .await;
        });
    }
}

/// Runs hyper's tasks on this worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
