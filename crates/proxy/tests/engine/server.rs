//! HTTP/1.1 over raw TCP: what is refused, what a panic does, draining.

use super::support::*;
use atoll_process::drain::channel;
use atoll_proxy::server::{ConnectionEnd, HttpVersion, ServerLimits, serve_connection};
use atoll_proxy::{Body, BodyError, ConnectionInfo, Handler, ProxyMetrics};
use http::Response;
use http_body_util::BodyExt as _;
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

fn serve<H: Handler>(
    version: HttpVersion,
    limits: ServerLimits,
    handler: Rc<H>,
) -> (DuplexStream, atoll_process::DrainTrigger, JoinHandle<ConnectionEnd>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (trigger, drain) = channel();
    let address = "127.0.0.1:1".parse().unwrap();
    let info = Arc::new(ConnectionInfo { peer: address, local: address, tls: None, identity: None });
    let end = tokio::task::spawn_local(async move {
        let metrics = ProxyMetrics::unregistered();
        serve_connection(far, version, info, &limits, handler, &metrics, drain).await
    });
    (near, trigger, end)
}

/// Sends `input`, reads until the server closes or says nothing more; counts calls of the handler.
async fn exchange(input: &[u8]) -> (String, usize) {
    let calls = Rc::<Cell<usize>>::default();
    let counted = Rc::clone(&calls);
    let handler = handler(move |exchange| {
        counted.set(counted.get() + 1);
        async move {
            let content = read_all(exchange.request.into_body()).await.unwrap_or_default();
            Response::new(Body::full(content))
        }
    });
    let (mut client, _trigger, _end) = serve(HttpVersion::H1, ServerLimits::public(), handler);
    client.write_all(input).await.unwrap();
    let mut output = Vec::new();
    let _silent = tokio::time::timeout(Duration::from_millis(300), client.read_to_end(&mut output)).await;
    (String::from_utf8_lossy(&output).into_owned(), calls.get())
}

#[test]
fn smuggling_is_answered_with_400_and_a_closed_connection() {
    run(async {
        let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
        let heads = [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx\0y: b\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: y 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        ];
        for head in heads {
            let (output, calls) = exchange(format!("{head}{hidden}").as_bytes()).await;
            assert!(
                output.starts_with("HTTP/1.1 400") || output.starts_with("HTTP/1.0 400"),
                "{head:?}: {output}"
            );
            assert_eq!(output.matches("HTTP/1.").count(), 1, "{head:?}: {output}");
            assert_eq!(calls, 0, "{head:?}");
        }
    });
}

#[test]
fn a_second_request_on_a_connection_is_checked_too() {
    run(async {
        let first = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=\"\r\nabc\r\n0\r\nt: 1\r\n\r\n";
        let second = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        let bad =
            "POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        let (output, calls) = exchange(format!("{first}{second}{bad}{second}").as_bytes()).await;
        assert_eq!(calls, 2, "{output}");
        assert!(output.contains("abc") && output.contains("hello"), "{output}");
        assert_eq!(output.matches("HTTP/1.1 400").count(), 1, "{output}");
        assert!(output.contains("error=http_request_error; details=\"bad-request\""), "{output}");
    });
}

#[test]
fn methods_and_targets_that_are_refused() {
    run(async {
        let long = "a".repeat(9000);
        for (head, status) in [
            ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "405"),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(), "405"),
            (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "414"),
            (format!("GET / HTTP/1.1\r\nHost: a\r\nx: {long}{long}\r\n\r\n"), "431"),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(101)), "431"),
        ] {
            let (output, calls) = exchange(head.as_bytes()).await;
            assert!(output.starts_with(&format!("HTTP/1.1 {status}")), "{output}");
            assert_eq!(calls, 0);
        }
    });
}

#[test]
fn a_panic_is_one_answer() {
    run(async {
        let handler = handler(|exchange| async move {
            assert!(exchange.request.uri().path() != "/bad", "on purpose");
            Response::new(Body::full("fine"))
        });
        let (mut client, _trigger, _end) = serve(HttpVersion::H1, ServerLimits::public(), handler);
        let requests =
            "GET /bad HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        client.write_all(requests.as_bytes()).await.unwrap();
        let mut output = String::new();
        client.read_to_string(&mut output).await.unwrap();
        assert!(output.starts_with("HTTP/1.1 500") && output.ends_with("fine"), "{output}");
        assert!(output.contains("details=\"internal\""), "{output}");
    });
}

#[test]
fn a_drain_finishes_what_is_in_flight() {
    run(async {
        let gate = Rc::new(tokio::sync::Notify::new());
        let opened = Rc::clone(&gate);
        let called = Rc::<Cell<bool>>::default();
        let noted = Rc::clone(&called);
        let handler = handler(move |_| {
            noted.set(true);
            let opened = Rc::clone(&opened);
            async move {
                opened.notified().await;
                Response::new(Body::full("late"))
            }
        });
        let (mut client, trigger, end) = serve(HttpVersion::H1, ServerLimits::public(), handler);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        until("the request is under way", || called.get()).await;
        trigger.start();
        tokio::task::yield_now().await;
        gate.notify_one();
        let mut output = String::new();
        client.read_to_string(&mut output).await.unwrap();
        assert!(output.ends_with("late") && output.contains("connection: close"), "{output}");
        assert_eq!(end.await.unwrap(), ConnectionEnd::Drained);
    });
}

#[test]
fn a_forced_drain_cuts() {
    run(async {
        let called = Rc::<Cell<bool>>::default();
        let noted = Rc::clone(&called);
        let handler = handler(move |_| {
            noted.set(true);
            std::future::pending()
        });
        let (mut client, trigger, end) = serve(HttpVersion::H1, ServerLimits::public(), handler);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        until("the request is under way", || called.get()).await;
        trigger.start();
        trigger.force();
        assert_eq!(end.await.unwrap(), ConnectionEnd::Forced);
        let mut output = Vec::new();
        client.read_to_end(&mut output).await.unwrap();
        assert!(output.is_empty());
    });
}

#[test]
fn silence_ends_a_head_and_a_body() {
    run(async {
        let limits = ServerLimits {
            head_timeout: Duration::from_millis(50),
            body_idle_timeout: Duration::from_millis(50),
            ..ServerLimits::public()
        };
        let handler = handler(|exchange| async move {
            let failed = read_all(exchange.request.into_body()).await.unwrap_err();
            Response::new(Body::full(failed.to_string()))
        });
        for (input, wanted) in [
            ("GET / HTTP/1.1\r\nHost:", ""),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", "nothing of the body"),
        ] {
            let (mut client, _trigger, _end) = serve(HttpVersion::H1, limits.clone(), Rc::clone(&handler));
            client.write_all(input.as_bytes()).await.unwrap();
            let mut output = String::new();
            client.read_to_string(&mut output).await.unwrap();
            assert!(output.contains(wanted), "{output}");
        }
    });
}

#[test]
fn a_client_that_never_reads_is_let_go() {
    run(async {
        let limits = ServerLimits { take_timeout: Duration::from_millis(200), ..ServerLimits::public() };
        for content in [1 << 20, 65 << 10] {
            let held = Rc::new(());
            let guard = Rc::clone(&held);
            let handler = handler(move |_| {
                let guard = Rc::clone(&guard);
                async move { Response::new(Body::full(vec![7; content]).holding(guard)) }
            });
            let (mut client, _trigger, end) = serve(HttpVersion::H1, limits.clone(), handler);
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let end = tokio::time::timeout(Duration::from_secs(5), end).await.unwrap().unwrap();
            assert!(matches!(end, ConnectionEnd::Stalled | ConnectionEnd::Failed), "{end:?}");
            assert_eq!(Rc::strong_count(&held), 1, "the response's place is free again");
        }
    });
}

/// What answers the tests of streams that are not read: `/large` never fits, `/late` waits for `late`.
fn streams(held: &Rc<()>, late: &Rc<tokio::sync::Notify>) -> Rc<impl Handler> {
    let (held, late) = (Rc::downgrade(held), Rc::clone(late));
    handler(move |exchange| {
        let (guard, late) = (held.upgrade(), Rc::clone(&late));
        async move {
            match exchange.request.uri().path() {
                "/large" => {
                    let pieces = (0..1024).map(|_| Body::full(vec![7; 16 << 10]));
                    Response::new(Body::boxed(Chain(pieces.collect())).holding(guard))
                }
                "/late" => {
                    drop(guard);
                    late.notified().await;
                    Response::new(Body::full("late"))
                }
                _ => Response::new(Body::full("small")),
            }
        }
    })
}

type Client = hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>;

async fn http2_of(
    handler: Rc<impl Handler>,
) -> (Client, JoinHandle<ConnectionEnd>, atoll_process::DrainTrigger) {
    let limits = ServerLimits { take_timeout: Duration::from_millis(200), ..ServerLimits::public() };
    let (near, trigger, end) = serve(HttpVersion::H2, limits, handler);
    let io = hyper_util::rt::TokioIo::new(near);
    let (client, connection) = hyper::client::conn::http2::handshake(LocalExecutor, io).await.unwrap();
    tokio::task::spawn_local(connection);
    (client, end, trigger)
}

fn asking(path: &str) -> http::Request<http_body_util::Empty<bytes::Bytes>> {
    http::Request::get(format!("https://a{path}")).body(http_body_util::Empty::new()).unwrap()
}

#[test]
fn a_stream_that_is_not_read_is_given_up_and_the_others_go_on() {
    run(async {
        let (held, late) = (Rc::new(()), Rc::default());
        let (mut client, end, _trigger) = http2_of(streams(&held, &late)).await;
        let unread = client.send_request(asking("/large")).await.unwrap();
        assert_eq!(Rc::strong_count(&held), 2);
        let waiting = tokio::task::spawn_local(client.send_request(asking("/late")));
        until("it is given up", || Rc::strong_count(&held) == 1).await;
        // Its stream is reset, also though it was never read to where it stood.
        let read = async { unread.into_body().collect().await.map(|_| ()) };
        let error = tokio::time::timeout(Duration::from_secs(5), read).await.unwrap().unwrap_err();
        assert!(format!("{error:?}").contains("CANCEL"), "{error:?}");
        // The rest of the connection goes on: what is asked for later, and what was under way.
        let small = client.send_request(asking("/small")).await.unwrap();
        assert_eq!(small.into_body().collect().await.unwrap().to_bytes(), "small");
        late.notify_one();
        let waited = waiting.await.unwrap().unwrap();
        assert_eq!(waited.into_body().collect().await.unwrap().to_bytes(), "late");
        assert!(!end.is_finished());
    });
}

#[test]
fn a_connection_of_which_nothing_is_read_is_let_go() {
    run(async {
        let (held, late) = (Rc::new(()), Rc::default());
        let (mut client, end, _trigger) = http2_of(streams(&held, &late)).await;
        let _first = client.send_request(asking("/large")).await.unwrap();
        let _second = client.send_request(asking("/large")).await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(10), end).await.unwrap().unwrap();
        assert_eq!(end, ConnectionEnd::Stalled);
        until("their places are free again", || Rc::strong_count(&held) == 1).await;
    });
}

/// A client by h2 itself, with such a window for each stream.
pub async fn h2_client(
    handler: Rc<impl Handler>,
    limits: ServerLimits,
    window: u32,
) -> (h2::client::SendRequest<bytes::Bytes>, JoinHandle<ConnectionEnd>, atoll_process::DrainTrigger) {
    let (near, trigger, end) = serve(HttpVersion::H2, limits, handler);
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake(near).await.unwrap();
    tokio::task::spawn_local(async move { drop(connection.await) });
    (client, end, trigger)
}

#[test]
fn the_last_piece_is_waited_for_no_longer_than_another() {
    run(async {
        let held = Rc::new(());
        let handler = {
            let held = Rc::downgrade(&held);
            handler(move |_| {
                let guard = held.upgrade();
                async move { Response::new(Body::full(vec![7; 16 << 10]).holding(guard)) }
            })
        };
        let limits = ServerLimits { take_timeout: Duration::from_millis(200), ..ServerLimits::public() };
        // Room for one byte of the only piece.
        let (mut client, _end, _trigger) = h2_client(handler, limits, 1).await;
        let (response, _) =
            client.send_request(http::Request::get("https://a/").body(()).unwrap(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), [7][..]);
        assert_eq!(Rc::strong_count(&held), 2, "it waits for the rest");
        until("it is given up", || Rc::strong_count(&held) == 1).await;
        let error = body.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    });
}

#[test]
fn a_reader_who_takes_little_at_a_time_gets_all() {
    run(async {
        let handler = handler(move |_| async move { Response::new(Body::full(vec![7; 3_000])) });
        let limits = ServerLimits { take_timeout: Duration::from_secs(10), ..ServerLimits::public() };
        let (mut client, _end, _trigger) = h2_client(handler, limits, 100).await;
        let (response, _) =
            client.send_request(http::Request::get("https://a/").body(()).unwrap(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut all = 0;
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            assert!(piece.len() <= 100);
            all += piece.len();
            body.flow_control().release_capacity(piece.len()).unwrap();
        }
        assert!(all == 3_000 && body.is_end_stream());
    });
}

#[test]
fn a_connection_without_a_stream_is_closed_in_time() {
    run(async {
        let handler = handler(move |_| async move { Response::new(Body::empty()) });
        let short = Duration::from_millis(50);
        let limits = ServerLimits { idle_timeout: Some(short), keep_alive: short, ..ServerLimits::public() };
        let (mut client, end, _trigger) = h2_client(handler, limits, 100).await;
        let (response, _) =
            client.send_request(http::Request::get("https://a/").body(()).unwrap(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        // Who of the two ends it last is a matter of moments.
        let _end = tokio::time::timeout(Duration::from_secs(10), end).await.unwrap().unwrap();
    });
}

/// One body after the other.
struct Chain(std::collections::VecDeque<Body>);

impl http_body::Body for Chain {
    type Data = bytes::Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, BodyError>>> {
        while let Some(first) = self.0.front_mut() {
            match std::pin::Pin::new(first).poll_frame(context) {
                std::task::Poll::Ready(None) => drop(self.0.pop_front()),
                other => return other,
            }
        }
        std::task::Poll::Ready(None)
    }
}

#[derive(Clone)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
