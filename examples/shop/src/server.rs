//! The listener, and an end that cuts nobody off.

use crate::Service;
use crate::answer::Shop;
use crate::api::Api;
use crate::page::Place;
use crate::whims::Whims;
use anyhow::{Context, Result};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Longest time that open requests get after SIGTERM.
const FINISH: Duration = Duration::from_secs(25);

/// Serves until SIGTERM or SIGINT, then finishes what is open.
pub(crate) async fn run(service: Service, address: SocketAddr) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    say(&format!("{service:?} listens on {}", listener.local_addr()?));
    let shop = Arc::new(Shop {
        service,
        place: Place::from_environment(),
        api: Api::from_environment(),
        whims: Whims::default(),
    });
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(Arc::clone(&shop), stream, closed.clone()));
                }
                // Out of file descriptors, most often: others must get a chance to close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    say(&format!("finishing {} connections", connections.len()));
    closing.send_replace(true);
    let _late =
        tokio::time::timeout(FINISH, async { while connections.join_next().await.is_some() {} }).await;
    say("bye");
    Ok(())
}

async fn connection(shop: Arc<Shop>, stream: TcpStream, mut closed: watch::Receiver<bool>) {
    let _unsupported = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shop = Arc::clone(&shop);
        async move { Ok::<_, Infallible>(shop.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    tokio::select! {
        _ended = &mut served => {}
        () = async { let _gone = closed.wait_for(|closed| *closed).await.is_err(); } => {
            served.as_mut().graceful_shutdown();
            // A client that went away is no news.
            let _ended = served.await;
        }
    }
}

/// One line to stdout; a closed stdout must not end a server.
fn say(line: &str) {
    let _closed = writeln!(std::io::stdout(), "{line}");
}
