//! The client of the platform's API: HTTP/1.1, one connection a request, over TLS from the pinned CA
//! unless control is on loopback.

mod events;
mod problem;
mod transport;
mod upload;

pub use events::{Event, EventReader};
pub use transport::trusting;
pub use upload::Uploader;

use crate::contexts::Chosen;
use crate::failure::{Exit, Failure, Outcome};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use std::time::Duration;

/// Longest answer that is read into memory.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Longest wait for the head of an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long nothing is said of that we wait.
const QUIET_WAIT: Duration = Duration::from_secs(1);
/// How often a request is sent when control goes away in between (it may be restarting).
const TRIES: u32 = 3;

/// One platform's API.
#[derive(Debug, Clone)]
pub struct Api {
    name: String,
    base: Uri,
    token: Option<String>,
    transport: transport::Transport,
}

impl Api {
    /// A client for a platform. Refuses addresses over which the token would travel in the clear.
    pub fn new(chosen: &Chosen) -> Outcome<Self> {
        let wrong = |what: &str| {
            Failure::usage(format!("{what}: `{}`", crate::out::harmless(&chosen.context.api)))
                .place(format!("context {}", chosen.name))
                .fix("an API's address is https://HOST:PORT, or http://127.0.0.1:PORT on this machine")
        };
        let base: Uri = chosen.context.api.parse().map_err(|_| wrong("the API's address is no URL"))?;
        let transport =
            transport::Transport::new(&base, chosen.context.ca.as_deref()).map_err(|error| wrong(&error))?;
        Ok(Self { name: chosen.name.clone(), base, token: chosen.context.token.clone(), transport })
    }

    /// Reads an object.
    pub async fn get(&self, path: &str) -> Outcome<Value> {
        self.json(Method::GET, path, None, None).await
    }

    /// Reads the objects of a list, on as many pages as there are.
    pub async fn list(&self, path: &str) -> Outcome<Vec<Value>> {
        let (mut items, mut next) = (Vec::new(), Some(path.to_owned()));
        while let Some(path) = next.take() {
            let no_list = || Failure::failed(format!("the API's answer to {path} is no list"));
            let (page, following) = self.page(Method::GET, &path, None, None).await?;
            match page {
                Value::Array(page) => items.extend(page),
                Value::Object(mut fields) => match fields.remove("items") {
                    Some(Value::Array(page)) => items.extend(page),
                    _ => return Err(no_list()),
                },
                _ => return Err(no_list()),
            }
            next = following.filter(|following| *following != path);
        }
        Ok(items)
    }

    /// Reads objects that come one a line, on as many pages as there are.
    pub async fn lines_of_json(&self, path: &str) -> Outcome<Vec<Value>> {
        let (mut rows, mut next) = (Vec::new(), Some(path.to_owned()));
        while let Some(path) = next.take() {
            let answer = self.send(self.request(Method::GET, &path, None, None)?).await?;
            next = next_page(answer.headers());
            let bytes = whole(&path, answer).await?;
            for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let row = serde_json::from_slice(line);
                rows.push(
                    row.map_err(|error| {
                        Failure::failed(format!("the answer to {path} is no JSON: {error}"))
                    })?,
                );
            }
        }
        Ok(rows)
    }

    /// Changes something. Sent again, with the same idempotency key, when control goes away before it answers.
    pub async fn change(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Value> {
        let key = HEXLOWER.encode(&rand::random::<[u8; 16]>());
        self.json(method, path, body, Some(&key)).await
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Outcome<Value> {
        Ok(self.page(method, path, body, key).await?.0)
    }

    /// An answer, and where the next page is.
    async fn page(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Outcome<(Value, Option<String>)> {
        let mut tries = 0;
        loop {
            tries += 1;
            let request = self.request(method.clone(), path, body, key)?;
            let answer = async {
                let answer = self.send(request).await?;
                let next = next_page(answer.headers());
                read(path, answer).await.map(|value| (value, next))
            };
            let answered = said_to_wait(answer).await;
            match answered {
                Err(failure) if failure.exit == Exit::Unreachable && tries < TRIES => {
                    tokio::time::sleep(Duration::from_millis(300 * u64::from(tries))).await;
                }
                answered => return answered,
            }
        }
    }

    /// Opens a stream of events.
    pub async fn events(&self, path: &str) -> Outcome<EventReader> {
        let mut request = self.request(Method::GET, path, None, None)?;
        let media = "text/event-stream, application/problem+json";
        request.headers_mut().insert(header::ACCEPT, header::HeaderValue::from_static(media));
        let answer = self.send(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(match read(path, answer).await {
                Err(failure) => failure,
                Ok(_) => Failure::failed(format!("the API's answer to {path} is no stream")),
            });
        }
        Ok(EventReader::new(answer.into_body()))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Outcome<Request<Full<Bytes>>> {
        let authority = self.base.authority().map(ToString::to_string).unwrap_or_default();
        let mut builder = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json, application/problem+json")
            .header(header::USER_AGENT, concat!("atoll/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        if let Some(key) = key {
            builder = builder.header("idempotency-key", key);
        }
        let bytes = match body {
            Some(value) => {
                builder = builder.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(value.to_string())
            }
            None => Bytes::new(),
        };
        builder
            .body(Full::new(bytes))
            .map_err(|error| Failure::usage(format!("cannot ask for `{path}`: {error}")))
    }

    fn unreachable(&self, what: &str) -> Failure {
        Failure::new(Exit::Unreachable, format!("control cannot be reached: {what}"))
            .place(format!("{} (context {})", self.base, self.name))
            .fix("is the platform running? `atoll context show` says which one this is; `atoll dev` starts one here")
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Outcome<http::Response<Incoming>> {
        let mut sender = self.transport.connect().await.map_err(|what| self.unreachable(&what))?;
        match tokio::time::timeout(ANSWER_WAIT, sender.send_request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unreachable(&error.to_string())),
            Err(_) => Err(self.unreachable(&format!("no answer within {} s", ANSWER_WAIT.as_secs()))),
        }
    }
}

/// The page that a `Link` names as the next one (RFC 8288), on the same API.
fn next_page(headers: &http::HeaderMap) -> Option<String> {
    let link = headers.get(header::LINK)?.to_str().ok()?;
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.contains("rel=\"next\"") && target.starts_with("/v1/");
    is_next.then(|| target.to_owned())
}

/// Says that we wait, where that takes more than a moment.
async fn said_to_wait<T>(work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(QUIET_WAIT) => {}
    }
    crate::out::note(&crate::out::for_stderr(crate::out::Paint::Dim, "waiting for an answer of control …"));
    work.await
}

async fn read(path: &str, answer: http::Response<Incoming>) -> Outcome<Value> {
    let bytes = whole(path, answer).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::failed(format!("the answer to {path} is no JSON: {error}")))
}

/// The body of a good answer; the problem of another.
async fn whole(path: &str, answer: http::Response<Incoming>) -> Outcome<Bytes> {
    let status = answer.status();
    let collected =
        tokio::time::timeout(ANSWER_WAIT, Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect());
    let bytes = match collected.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            return Err(Failure::new(Exit::Unreachable, format!("the answer to {path} broke off: {error}")));
        }
        Err(_) => return Err(Failure::new(Exit::Unreachable, format!("the answer to {path} did not end"))),
    };
    if !status.is_success() {
        return Err(problem::failure(status, &bytes));
    }
    Ok(bytes)
}

/// Text as one segment of a path or one value of a query.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::contexts::Context;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn api(address: &str) -> Api {
        let context = Context { api: address.to_owned(), token: Some("secret".to_owned()), ca: None };
        Api::new(&Chosen { name: "test".to_owned(), context }).unwrap()
    }

    /// Answers the connections in turn; an empty answer closes the connection. Gives the requests' heads.
    async fn serve(answers: &'static [&'static str]) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let count = stream.read(&mut head).await.unwrap();
                heads.push(String::from_utf8_lossy(&head[..count]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            heads
        });
        (address, task)
    }

    #[tokio::test]
    async fn a_change_is_repeated_with_its_key_when_control_goes_away() {
        let (address, served) = serve(&["", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}"]).await;
        let answer = api(&address).change(Method::PUT, "/v1/apps/shop", Some(&Value::Null)).await.unwrap();
        assert_eq!(answer["a"], 1);
        let heads = served.await.unwrap();
        let key = |head: &String| head.lines().find(|l| l.starts_with("idempotency-key")).unwrap().to_owned();
        assert_eq!(key(&heads[0]), key(&heads[1]));
        assert!(heads[0].contains("authorization: Bearer secret"));
    }

    #[tokio::test]
    async fn nobody_listening_is_unreachable() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let failure = api(&format!("http://127.0.0.1:{port}")).get("/v1/apps").await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.place.unwrap().contains("context test"));
    }

    #[test]
    fn the_token_never_travels_in_the_clear() {
        for address in [
            "http://example.com",
            "http://10.0.0.1:80",
            "ftp://127.0.0.1",
            "127.0.0.1:80",
            "https://example.com",
        ] {
            let context = Context { api: address.to_owned(), token: None, ca: None };
            let refused = Api::new(&Chosen { name: "x".to_owned(), context });
            assert_eq!(refused.unwrap_err().exit, Exit::Usage, "{address}");
        }
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(encode("a/b c"), "a%2Fb%20c");
    }
}
