//! HTTP/1.1 connections to an instance.

use super::support::*;
use atoll_proxy::client::{H1Config, H1Pool, SendFault, SendTimeouts};
use atoll_proxy::{Body, Interim, ProxyMetrics};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// An origin that runs `serve` for each connection; counts them.
async fn origin<Fut: Future<Output = Option<()>> + 'static>(
    serve: impl Fn(TcpStream, usize) -> Fut + 'static,
) -> (SocketAddr, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Rc::<Cell<usize>>::default();
    let counted = Rc::clone(&connections);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.set(counted.get() + 1);
            tokio::task::spawn_local(serve(stream, counted.get()));
        }
    });
    (address, connections)
}

fn pool(address: SocketAddr) -> (H1Pool, ProxyMetrics) {
    let metrics = ProxyMetrics::unregistered();
    (H1Pool::new(H1Config::local(address), metrics.clone()), metrics)
}

async fn ask(pool: &H1Pool, request: http::Request<Body>) -> Result<bytes::Bytes, SendFault> {
    let response = pool
        .send(request, SendTimeouts::default(), &Interim::default())
        .await
        .map_err(|error| error.fault)?;
    Ok(read_all(response.into_body()).await.unwrap())
}

#[test]
fn a_connection_is_used_again() {
    run(async {
        let (address, connections) = origin(|mut stream, _| async move {
            loop {
                read_head(&mut stream).await?;
                stream.write_all(OK).await.ok()?;
            }
        })
        .await;
        let (pool, _) = pool(address);
        for _ in 0..5 {
            assert_eq!(ask(&pool, get("/")).await.unwrap(), "ok");
            until("the connection is idle", || pool.idle() == 1).await;
        }
        assert_eq!(connections.get(), 1);
        assert_eq!(pool.open(), 1);
    });
}

/// Answers one request on each connection, and closes at the second without a word.
async fn one_each() -> (SocketAddr, Rc<Cell<usize>>) {
    origin(|mut stream, _| async move {
        read_head(&mut stream).await?;
        stream.write_all(OK).await.ok()?;
        read_head(&mut stream).await?;
        Some(())
    })
    .await
}

#[test]
fn a_stale_connection_is_replaced_for_a_safe_request_only() {
    run(async {
        let (address, connections) = one_each().await;
        let (pool, metrics) = pool(address);
        assert_eq!(ask(&pool, get("/")).await.unwrap(), "ok");
        until("the connection is idle", || pool.idle() == 1).await;
        assert_eq!(ask(&pool, get("/")).await.unwrap(), "ok");
        until("the connection is idle", || pool.idle() == 1).await;
        assert_eq!((connections.get(), metrics.stale_retries.get()), (2, 1));
        // The instance may have acted on it: sending it again is not ours to decide.
        assert_eq!(ask(&pool, post("/", "")).await, Err(SendFault::Reset));
        assert_eq!(connections.get(), 2);
    });
}

#[test]
fn a_request_that_cannot_be_repeated_does_not_trust_an_old_connection() {
    run(async {
        let (address, connections) = origin(|mut stream, _| async move {
            loop {
                read_head(&mut stream).await?;
                stream.write_all(OK).await.ok()?;
            }
        })
        .await;
        for (trusted_idle, wanted) in [(Duration::from_secs(9), 1), (Duration::ZERO, 3)] {
            let config = H1Config { trusted_idle, ..H1Config::local(address) };
            let pool = H1Pool::new(config, ProxyMetrics::unregistered());
            assert_eq!(ask(&pool, get("/")).await.unwrap(), "ok");
            until("the connection is idle", || pool.idle() == 1).await;
            assert_eq!(ask(&pool, post("/", "")).await.unwrap(), "ok");
            assert_eq!(connections.get(), wanted);
        }
    });
}

#[test]
fn failures_have_names() {
    run(async {
        let (address, _) = origin(|mut stream, _| async move {
            let head = read_head(&mut stream).await?;
            let answer: &[u8] = if head.starts_with("GET /nonsense") {
                b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
            } else if head.starts_with("GET /half") {
                b"HTTP/1.1 200 OK\r\nContent-"
            } else if head.starts_with("GET /silent") {
                std::future::pending::<()>().await;
                b""
            } else {
                b""
            };
            stream.write_all(answer).await.ok()
        })
        .await;
        let (pool, _) = pool(address);
        for (path, fault, sent) in [
            ("/nonsense", SendFault::Protocol, true),
            ("/half", SendFault::Reset, true),
            ("/silent", SendFault::Timeout, true),
            ("/closed", SendFault::Reset, true),
        ] {
            // Only the silent one is not to be waited for.
            let head = Duration::from_millis(if path == "/silent" { 100 } else { 10_000 });
            let timeouts = SendTimeouts { head, body_idle: None };
            let error = pool.send(get(path), timeouts, &Interim::default()).await.unwrap_err();
            assert_eq!((error.fault, error.sent), (fault, sent), "{path}: {error}");
        }
        until("nothing is left open", || pool.open() == 0).await;
    });
}

#[test]
fn the_bound_holds() {
    run(async {
        let (address, connections) = origin(|mut stream, _| async move {
            read_head(&mut stream).await?;
            std::future::pending().await
        })
        .await;
        let config = H1Config { connections_max: 2, ..H1Config::local(address) };
        let pool = H1Pool::new(config, ProxyMetrics::unregistered());
        for _ in 0..2 {
            let pool = pool.clone();
            tokio::task::spawn_local(async move { ask(&pool, get("/")).await });
        }
        until("both are taken", || connections.get() == 2).await;
        let error = pool.send(get("/"), SendTimeouts::default(), &Interim::default()).await.unwrap_err();
        assert_eq!((error.fault, error.sent), (SendFault::Full, false));
    });
}

#[test]
fn a_program_that_lets_few_wait_is_asked_again_before_the_kernel_does() {
    run(async {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(1).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let address = listener.local_addr().unwrap();
        // Two wait: the next ones are dropped without an answer.
        let waiting =
            [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let (pool, _) = pool(address);
        let asked = tokio::task::spawn_local(async move { ask(&pool, get("/")).await });
        // The program is busy for a moment.
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert!(!asked.is_finished());
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(async move {
                    read_head(&mut stream).await?;
                    stream.write_all(OK).await.ok()
                });
            }
        });
        // The kernel's own second attempt would come when the patience for the connection ends.
        assert_eq!(asked.await.unwrap().unwrap(), "ok");
        drop(waiting);
    });
}

#[test]
fn what_a_burst_needed_is_used_again_by_the_next() {
    run(async {
        let arrived = Rc::<Cell<usize>>::default();
        let counted = Rc::clone(&arrived);
        let (address, connections) = origin(move |mut stream, _| {
            let arrived = Rc::clone(&counted);
            async move {
                loop {
                    read_head(&mut stream).await?;
                    arrived.set(arrived.get() + 1);
                    // All at the same time.
                    while !arrived.get().is_multiple_of(100) {
                        tokio::task::yield_now().await;
                    }
                    stream.write_all(OK).await.ok()?;
                }
            }
        })
        .await;
        let (pool, _) = pool(address);
        for _ in 0..2 {
            let answers = futures_util::future::join_all((0..100).map(|_| ask(&pool, get("/")))).await;
            assert!(answers.iter().all(|answer| answer.as_deref() == Ok(b"ok")));
            until("they are idle", || pool.idle() == 100).await;
        }
        assert_eq!(connections.get(), 100);
    });
}
