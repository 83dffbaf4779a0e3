#![allow(clippy::unwrap_used, reason = "tests")]

mod clients;
mod purges;

use super::super::encoding::accepted::Accepted;
use super::super::object::Resource;
use super::*;
use atoll_model::CacheRule;
use atoll_wire::record;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::request;
use http_body::{Body as _, Frame};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;

/// An answer of the stand-in for the regions.
enum Script {
    Answer(u16, &'static str, &'static str),
    /// Its head at once; its body as it is sent.
    Slowly(&'static str, mpsc::Receiver<Result<Bytes, ()>>),
    Refuse(Reason),
}

#[derive(Clone, Default)]
struct Stand(Rc<Inner>);

#[derive(Default)]
struct Inner {
    scripts: RefCell<VecDeque<Script>>,
    seen: RefCell<Vec<HeaderMap>>,
    /// Answers wait for this, where they are to.
    gate: Notify,
    gated: std::cell::Cell<bool>,
    /// As another edge would say it.
    asked_at: std::cell::Cell<Option<u64>>,
    who: RefCell<HeaderMap>,
    learned: RefCell<Vec<bool>>,
}

impl Stand {
    fn with(scripts: impl IntoIterator<Item = Script>) -> Self {
        let stand = Self::default();
        stand.0.scripts.borrow_mut().extend(scripts);
        stand
    }

    fn gated(self) -> Self {
        self.0.gated.set(true);
        self
    }

    fn asked(&self) -> usize {
        self.0.seen.borrow().len()
    }
}

struct Receiving(mpsc::Receiver<Result<Bytes, ()>>);

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = atoll_proxy::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|next| {
            next.map(|next| {
                next.map(Frame::data)
                    .map_err(|()| atoll_proxy::BodyError::new(atoll_proxy::Side::Upstream, "gone", 8))
            })
        })
    }
}

impl Origin for Stand {
    async fn fetch(&self, head: request::Parts) -> Result<Fetched, InternalAnswer> {
        self.0.seen.borrow_mut().push(head.headers);
        if self.0.gated.get() {
            self.0.gate.notified().await;
        }
        let script = self.0.scripts.borrow_mut().pop_front().expect("an answer is left");
        let (status, fields, body) = match script {
            Script::Refuse(reason) => return Err(InternalAnswer { hop: Hop::Gateway, reason, sent: true }),
            Script::Answer(status, fields, body) => (status, fields, Body::full(body)),
            Script::Slowly(fields, pieces) => (200, fields, Body::boxed(Receiving(pieces))),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status.try_into().unwrap();
        for line in fields.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            response
                .headers_mut()
                .append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Ok(Fetched {
            response,
            who: self.0.who.borrow().clone(),
            asked_at: self.0.asked_at.get(),
            of_edge: false,
        })
    }

    async fn fetch_shared(&self, head: request::Parts, _: &Key, _: u64) -> Result<Fetched, InternalAnswer> {
        self.fetch(head).await
    }

    fn learn(&self, shared: bool) {
        self.0.learned.borrow_mut().push(shared);
    }
}

fn wish(method: Method, fields: &[(&'static str, &str)]) -> Wish {
    let mut request = http::Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = "/p".parse().unwrap();
    for (name, value) in fields {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let resource =
        Resource { app: "o/a".into(), host: "h".into(), authority: "h".into(), target: "/p".into() };
    let head = request.into_parts().0;
    let accepted = Accepted::of(&head.headers);
    Wish { head, resource, key: Key::resource("id", "h", "/p"), rule: None, accepted, is_edge: false }
}

fn rule(edit: impl FnOnce(&mut CacheRule)) -> Option<Arc<CacheRule>> {
    let mut rule = CacheRule::new("/**".parse().unwrap());
    edit(&mut rule);
    Some(Arc::new(rule))
}

fn get(fields: &[(&'static str, &str)]) -> Wish {
    wish(Method::GET, fields)
}

/// What a client saw: status, `Cache-Status`, body; an error for one that broke off.
type Saw = Result<(u16, String, String), InternalAnswer>;

async fn ask(cache: &Arc<Cache>, stand: &Stand, wish: Wish) -> Saw {
    let answered = respond(cache, stand, wish, &ProxyMetrics::unregistered()).await?;
    let status = answered.response.status().as_u16();
    let mut body = answered.response.into_body();
    let mut text = String::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame {
            Ok(frame) => text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap()),
            Err(_) => text.push_str("<broken>"),
        }
    }
    Ok((status, answered.status.to_value(None).to_str().unwrap().to_owned(), text))
}

fn cache() -> Arc<Cache> {
    Cache::new(1 << 20, 1 << 16, Arc::default())
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

/// Lets all tasks run until they wait.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Until it holds.
async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await.unwrap();
}

const FRESH: &str = "cache-control: max-age=60\netag: \"a\"";

fn mark(seq: u64) -> record::Purges {
    let what = Some(record::purge::What::All(true));
    record::Purges { floor: 0, marks: vec![record::Purge { seq, what, soft: false }] }
}

#[tokio::test]
async fn the_second_is_answered_from_memory() {
    local(async {
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, FRESH, "hello")]));
        let first = ask(&cache, &stand, get(&[])).await.unwrap();
        assert_eq!((first.0, first.2.as_str()), (200, "hello"));
        assert!(first.1.contains("fwd=uri-miss") && first.1.contains("stored"), "{}", first.1);
        settle().await;
        let second = ask(&cache, &stand, get(&[])).await.unwrap();
        assert_eq!((second.0, second.2.as_str()), (200, "hello"));
        assert!(second.1.starts_with("Atoll; hit; ttl="), "{}", second.1);
        assert_eq!(ask(&cache, &stand, wish(Method::HEAD, &[])).await.unwrap().0, 200);
        assert_eq!(ask(&cache, &stand, get(&[("if-none-match", "\"a\"")])).await.unwrap().0, 304);
        let part = ask(&cache, &stand, get(&[("range", "bytes=1-2")])).await.unwrap();
        assert_eq!((part.0, part.2.as_str()), (206, "el"));
        let parts = ask(&cache, &stand, get(&[("range", "bytes=0-0,4-4")])).await.unwrap();
        assert!(parts.2.contains("Content-Range: bytes 4-4/5\r\n\r\no"), "{}", parts.2);
        assert_eq!(ask(&cache, &stand, get(&[("range", "bytes=9-")])).await.unwrap().0, 416);
        assert_eq!(stand.asked(), 1);
    })
    .await;
}

#[tokio::test]
async fn many_who_wait_cost_one_question() {
    local(async {
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, FRESH, "hello")]).gated());
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let (cache, stand) = (Arc::clone(&cache), stand.clone());
                tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
            })
            .collect();
        settle().await;
        stand.0.gate.notify_one();
        let mut collapsed = 0;
        for client in clients {
            let (status, said, body) = client.await.unwrap().unwrap();
            assert_eq!((status, body.as_str()), (200, "hello"));
            collapsed += usize::from(said.contains("collapsed"));
        }
        assert_eq!((stand.asked(), collapsed), (1, 99));
    })
    .await;
}

#[tokio::test]
async fn all_read_it_as_it_comes_and_the_first_may_go() {
    local(async {
        let (send, pieces) = mpsc::channel(4);
        let (cache, stand) = (cache(), Stand::with([Script::Slowly(FRESH, pieces)]));
        let asks = |cache: &Arc<Cache>| {
            let (cache, stand) = (Arc::clone(cache), stand.clone());
            tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
        };
        let first = asks(&cache);
        send.send(Ok(Bytes::from_static(b"one "))).await.unwrap();
        settle().await;
        let second = asks(&cache);
        settle().await;
        first.abort();
        settle().await;
        send.send(Ok(Bytes::from_static(b"two"))).await.unwrap();
        drop(send);
        assert_eq!(second.await.unwrap().unwrap().2, "one two");
        settle().await;
        assert!(asks(&cache).await.unwrap().unwrap().1.contains("hit"));
        assert_eq!(stand.asked(), 1);
    })
    .await;
}

#[tokio::test]
async fn what_breaks_off_is_not_stored_and_not_whole() {
    local(async {
        let (send, pieces) = mpsc::channel(4);
        send.send(Ok(Bytes::from_static(b"half"))).await.unwrap();
        send.send(Err(())).await.unwrap();
        let (cache, stand) =
            (cache(), Stand::with([Script::Slowly(FRESH, pieces), Script::Answer(200, FRESH, "whole")]));
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "half<broken>");
        settle().await;
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "whole");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_falls_silent_does_not_hold_its_place() {
    local(async {
        let (send, pieces) = mpsc::channel(4);
        let scripts = [Script::Slowly(FRESH, pieces), Script::Answer(200, FRESH, "whole")];
        let (cache, stand) = (cache(), Stand::with(scripts));
        let asks = || {
            let (cache, stand) = (Arc::clone(&cache), stand.clone());
            tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
        };
        send.send(Ok(Bytes::from_static(b"ha"))).await.unwrap();
        let first = asks();
        until(|| stand.asked() == 1).await;
        let key = Key::resource("id", "h", "/p");
        until(|| matches!(cache.index.join(&key, &key), Place::Lead(_))).await;
        assert_eq!(asks().await.unwrap().unwrap().2, "whole");
        send.send(Ok(Bytes::from_static(b"lf"))).await.unwrap();
        drop(send);
        assert_eq!(first.await.unwrap().unwrap().2, "half", "who reads it gets what comes yet");
        // One that nobody reads ends.
        let (send, pieces) = mpsc::channel(4);
        let (cache, stand) = (self::cache(), Stand::with([Script::Slowly(FRESH, pieces)]));
        send.send(Ok(Bytes::from_static(b"ha"))).await.unwrap();
        let first = tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await });
        settle().await;
        first.abort();
        until(|| send.is_closed()).await;
    })
    .await;
}

#[tokio::test]
async fn readers_of_a_fetch_that_is_cut_off_hear_of_it() {
    let (cache, stand) = (cache(), Stand::default());
    let (send, pieces) = mpsc::channel(4);
    stand.0.scripts.borrow_mut().push_back(Script::Slowly(FRESH, pieces));
    send.send(Ok(Bytes::from_static(b"ha"))).await.unwrap();
    // As where a worker ends while another one's clients read.
    let tasks = LocalSet::new();
    let answered =
        tasks.run_until(respond(&cache, &stand, get(&[]), &ProxyMetrics::unregistered())).await.unwrap();
    drop(tasks);
    let mut body = answered.response.into_body();
    let read = async { while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), read).await.unwrap();
}

#[tokio::test]
async fn a_stale_one_is_validated() {
    local(async {
        let (cache, stand) = (
            cache(),
            Stand::with([
                Script::Answer(
                    200,
                    "cache-control: no-cache\netag: \"a\"\nx: old\ncontent-length: 5",
                    "hello",
                ),
                Script::Answer(304, "etag: \"a\"\nx: new", ""),
                Script::Answer(200, "cache-control: max-age=60\netag: \"b\"", "other"),
            ]),
        );
        ask(&cache, &stand, get(&[])).await.unwrap();
        settle().await;
        let answered = respond(&cache, &stand, get(&[]), &ProxyMetrics::unregistered()).await.unwrap();
        assert_eq!(answered.response.headers()["x"], "new", "the fields of the 304 take their place");
        let said = answered.status.to_value(None);
        assert!(said.to_str().unwrap().contains("fwd=stale; fwd-status=304"), "{said:?}");
        assert_eq!(answered.response.headers()["content-length"], "5");
        assert_eq!(stand.0.seen.borrow()[1]["if-none-match"], "\"a\"");
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "other");
        settle().await;
        assert!(ask(&cache, &stand, get(&[])).await.unwrap().1.contains("hit"));
    })
    .await;
}

#[tokio::test]
async fn stale_while_it_is_asked_and_where_the_origin_fails() {
    local(async {
        let early = "cache-control: max-age=1, stale-while-revalidate=60\nage: 5\netag: \"a\"";
        let (cache, stand) =
            (cache(), Stand::with([Script::Answer(200, early, "old"), Script::Answer(200, FRESH, "new")]));
        ask(&cache, &stand, get(&[])).await.unwrap();
        settle().await;
        let (_, said, body) = ask(&cache, &stand, get(&[])).await.unwrap();
        assert!(body == "old" && said.contains("hit; ttl=-"), "{said}");
        settle().await;
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "new");

        let early = "cache-control: max-age=1, stale-if-error=60\nage: 5";
        let scripts = [
            Script::Answer(200, early, "old"),
            Script::Answer(503, "x: y", "sorry"),
            Script::Refuse(Reason::NoRegion),
        ];
        let (cache, stand) = (self::cache(), Stand::with(scripts));
        ask(&cache, &stand, get(&[])).await.unwrap();
        settle().await;
        for _ in 0..2 {
            let (status, said, body) = ask(&cache, &stand, get(&[])).await.unwrap();
            assert_eq!((status, body.as_str()), (200, "old"));
            assert!(said.contains("detail=stale-if-error"), "{said}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_tried_once_more_for_the_others() {
    local(async {
        let scripts = [Script::Refuse(Reason::NoRegion), Script::Answer(200, FRESH, "hello")];
        let (cache, stand) = (cache(), Stand::with(scripts).gated());
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let (cache, stand) = (Arc::clone(&cache), stand.clone());
                tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
            })
            .collect();
        settle().await;
        stand.0.gate.notify_one();
        settle().await;
        stand.0.gate.notify_one();
        let mut saw = Vec::new();
        for client in clients {
            saw.push(client.await.unwrap());
        }
        assert_eq!(saw[0].as_ref().unwrap_err().reason, Reason::NoRegion);
        assert!(saw[1..].iter().all(|saw| saw.as_ref().unwrap().2 == "hello"));
        assert_eq!(stand.asked(), 2);
    })
    .await;
}

#[tokio::test]
async fn another_edge_gets_all_fields_with_a_304() {
    local(async {
        let said = "cache-control: max-age=60\netag: \"a\"\nlocation: /new";
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, said, "hello")]));
        ask(&cache, &stand, get(&[])).await.unwrap();
        settle().await;
        for is_edge in [false, true] {
            let wish = Wish { is_edge, ..get(&[("if-none-match", "\"a\"")]) };
            let response =
                respond(&cache, &stand, wish, &ProxyMetrics::unregistered()).await.unwrap().response;
            assert_eq!(response.status(), 304);
            assert_eq!(response.headers().contains_key("location"), is_edge, "clients have it");
            assert!(!response.headers().contains_key("content-length"));
        }
    })
    .await;
}

#[tokio::test]
async fn variants_do_not_mix() {
    local(async {
        let of = |text| Script::Answer(200, "cache-control: max-age=60\nvary: x", text);
        let (cache, stand) = (cache(), Stand::with([of("a"), of("b"), of("c")]));
        for (value, body) in [("a", "a"), ("b", "b"), ("a", "a"), ("b", "b")] {
            assert_eq!(ask(&cache, &stand, get(&[("x", value)])).await.unwrap().2, body);
            settle().await;
        }
        assert_eq!(stand.asked(), 2);
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "c");
    })
    .await;
}

#[tokio::test]
async fn only_if_cached_goes_nowhere() {
    local(async {
        let (cache, stand) = (cache(), Stand::default());
        let refused = ask(&cache, &stand, get(&[("cache-control", "only-if-cached")])).await.unwrap_err();
        assert_eq!(refused.reason, Reason::NotCached);
    })
    .await;
}

#[tokio::test]
async fn a_part_of_what_is_not_stored_is_asked_for_as_it_is() {
    local(async {
        let scripts = [
            Script::Answer(200, "cache-control: no-store", "hello"),
            Script::Answer(206, "content-range: bytes 1-2/5", "el"),
        ];
        let (cache, stand) = (cache(), Stand::with(scripts));
        assert_eq!(ask(&cache, &stand, get(&[("range", "bytes=1-2")])).await.unwrap().0, 206);
        let seen = stand.0.seen.borrow();
        assert!(!seen[0].contains_key("range") && seen[1].contains_key("range"));
    })
    .await;
}

#[tokio::test]
async fn a_rules_ttl_holds_and_browsers_hear_their_own() {
    local(async {
        let silent = || Script::Answer(200, "content-type: text/plain", "hello");
        let (cache, stand) = (cache(), Stand::with([silent(), silent()]));
        let ruled = || Wish {
            rule: rule(|rule| (rule.ttl_s, rule.browser_ttl_s) = (Some(3600), Some(5))),
            ..get(&[])
        };
        for _ in 0..2 {
            let answered = respond(&cache, &stand, ruled(), &ProxyMetrics::unregistered()).await.unwrap();
            assert_eq!(answered.response.headers()["cache-control"], "max-age=5");
            assert!(!answered.response.headers().contains_key("age"));
            settle().await;
        }
        assert_eq!(stand.asked(), 1);
        assert_eq!(*stand.0.learned.borrow(), [true]);
    })
    .await;
}

#[tokio::test]
async fn what_fails_is_asked_for_by_few() {
    local(async {
        let fails = || Script::Answer(503, "content-length: 0", "");
        let (cache, stand) = (cache(), Stand::with((0..500).map(|_| fails())).gated());
        let clients: Vec<_> = (0..400)
            .map(|_| {
                let (cache, stand) = (Arc::clone(&cache), stand.clone());
                tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
            })
            .collect();
        for _ in 0..3 {
            settle().await;
            stand.0.gate.notify_one();
        }
        settle().await;
        stand.0.gated.set(false);
        stand.0.gate.notify_waiters();
        let mut refused = 0;
        for client in clients {
            match client.await.unwrap() {
                Err(made) => {
                    assert_eq!(made.reason, Reason::FetchFailed);
                    refused += 1;
                }
                Ok((status, ..)) => assert_eq!(status, 503),
            }
        }
        assert!(refused > 300 && stand.asked() <= 2 + 64, "{refused} {}", stand.asked());
    })
    .await;
}

#[tokio::test]
async fn what_ends_where_the_connection_does_is_not_stored() {
    local(async {
        let (cache, stand) =
            (cache(), Stand::with([Script::Answer(200, FRESH, "hel"), Script::Answer(200, FRESH, "hello")]));
        stand.0.who.borrow_mut().insert(atoll_proxy::headers::UNTIL_CLOSE, HeaderValue::from_static("1"));
        let first = ask(&cache, &stand, get(&[])).await.unwrap();
        assert!(first.2 == "hel" && first.1.contains("detail=until-close"), "{first:?}");
        settle().await;
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "hello");
    })
    .await;
}

#[tokio::test]
async fn bodies_are_compressed_behind_the_first_hit_that_would_like_it() {
    local(async {
        let body = "the same line again and again\n".repeat(200).leak();
        let fields = "cache-control: max-age=60\netag: \"a\"\ncontent-type: text/plain\ncontent-length: 6000";
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, fields, body)]));
        let of = |fields: &[(&'static str, &str)]| {
            let (cache, stand, wish) = (Arc::clone(&cache), stand.clone(), get(fields));
            async move { respond(&cache, &stand, wish, &ProxyMetrics::unregistered()).await.unwrap().response }
        };
        let first = of(&[("accept-encoding", "gzip")]).await;
        assert_eq!(first.headers()["vary"], "Accept-Encoding");
        drop(first);
        settle().await;
        let mut coded = of(&[("accept-encoding", "gzip")]).await;
        let compressed = async {
            while !coded.headers().contains_key("content-encoding") {
                tokio::task::yield_now().await;
                coded = of(&[("accept-encoding", "gzip")]).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), compressed).await.unwrap();
        assert_eq!(coded.headers()["etag"], "W/\"a\"");
        assert!(coded.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap() < 300);
        let plain = of(&[]).await;
        assert_eq!((&plain.headers()["etag"], &plain.headers()["vary"]), (&"\"a\"".parse().unwrap(), &"Accept-Encoding".parse().unwrap()));
        assert!(cache.index.bytes() > body.len() as u64);
        assert_eq!(stand.asked(), 1);
    })
    .await;
}
