//! Over TCP: queries one after the other, each with its length before it.

use super::Responder;
use super::seats::{Seat, Seats};
use crate::metrics::Unanswered;
use crate::respond::Transport;
use atoll_process::{Drain, Tasks};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// Longest query; no client has a use for more.
const QUERY_BYTES_MAX: usize = 4096;
/// After an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_millis(10);

/// What a listener serves with.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) responder: Responder,
    pub(super) seats: Seats,
    /// From one query to the end of the next, and for an answer to be taken.
    pub(super) idle: Duration,
    pub(super) tasks: Tasks,
    pub(super) drain: Drain,
}

/// Takes connections until the drain begins. Then the port is closed: a client is refused at once rather than
/// left without an answer.
pub(super) async fn serve(listener: TcpListener, serving: Serving) {
    let Serving { responder, seats, idle, tasks, drain } = serving;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => break,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(cause) => {
                debug!(%cause, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(seat) = seats.take(source.ip().to_canonical()) else {
            responder.metrics.connections_refused.inc();
            continue;
        };
        tasks.spawn("dns connection", connection(stream, responder.clone(), seat, idle, drain.clone()));
    }
    drop(listener);
    drain.forced().await;
}

async fn connection(stream: TcpStream, responder: Responder, seat: Seat, idle: Duration, drain: Drain) {
    responder.metrics.connections.inc();
    if let Err(cause) = queries(stream, &responder, idle, &drain).await {
        debug!(%cause, "a connection ended");
    }
    responder.metrics.connections.dec();
    drop(seat);
}

async fn queries(
    mut stream: TcpStream,
    responder: &Responder,
    idle: Duration,
    drain: &Drain,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let query = tokio::select! {
            query = tokio::time::timeout(idle, read(&mut stream)) => query??,
            () = drain.draining() => return Ok(()),
        };
        let Some(query) = query else { return Ok(()) };
        let reply = match query {
            Query::Whole(query) => responder.answer(&query, Transport::Tcp, false),
            Query::TooLong => {
                responder.metrics.unanswered(Unanswered::Malformed);
                None
            }
        };
        let Some(reply) = reply else { return Ok(()) };
        let length = u16::try_from(reply.bytes.len()).map_err(io::Error::other)?;
        // In one piece: some resolvers take the length for all there is.
        let framed = [&length.to_be_bytes()[..], &reply.bytes].concat();
        tokio::time::timeout(idle, stream.write_all(&framed)).await??;
    }
}

enum Query {
    Whole(Vec<u8>),
    TooLong,
}

/// One query; nothing at the end of the stream.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Query>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(cause) => return Err(cause),
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length > QUERY_BYTES_MAX {
        return Ok(Some(Query::TooLong));
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(Query::Whole(query)))
}
