//! The admin listener: `/livez`, `/readyz` and `/metrics` on a loopback address, and also `/state` on a
//! unix socket that only its owner may open.

use crate::{Drain, Metrics};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Most connections to each admin listener at a time.
const CONNECTIONS_MAX: usize = 64;

type ReadyCheck = Box<dyn Fn() -> Result<(), String> + Send + Sync>;
type StateView = Box<dyn Fn() -> serde_json::Value + Send + Sync>;
/// Answers a question, whose parameters it gets; nothing where it is not the one to ask.
type Answerer = Box<dyn Fn(&Parameters) -> Option<Result<serde_json::Value, String>> + Send + Sync>;

/// Longest query of a question, bytes.
const QUERY_BYTES_MAX: usize = 8 * 1024;

/// A query's parameters, decoded. Of a name that comes twice, the last one counts.
pub type Parameters = BTreeMap<String, String>;

/// What the admin listener shows.
pub struct Admin {
    metrics: Metrics,
    checks: Vec<(&'static str, ReadyCheck)>,
    views: Vec<(&'static str, StateView)>,
    explainers: Vec<Answerer>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("checks", &self.checks.len()).finish_non_exhaustive()
    }
}

impl Admin {
    /// Shows `metrics`, is always ready, and has no state.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, checks: Vec::new(), views: Vec::new(), explainers: Vec::new() }
    }

    /// `/readyz` is 200 only while every check is Ok; an error says what is missing.
    #[must_use]
    pub fn ready_check(
        mut self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((name, Box::new(check)));
        self
    }

    /// `/state` has this under `name`.
    #[must_use]
    pub fn state(
        mut self,
        name: &'static str,
        view: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        self.views.push((name, Box::new(view)));
        self
    }

    /// `/explain?…`, on the unix socket only: the first explainer that knows the question answers it. An
    /// error says what is wrong with the question.
    #[must_use]
    pub fn explain(
        mut self,
        explain: impl Fn(&Parameters) -> Option<Result<serde_json::Value, String>> + Send + Sync + 'static,
    ) -> Self {
        self.explainers.push(Box::new(explain));
        self
    }

    /// What is missing until the process is ready.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let failed =
            |(name, check): &(&'static str, ReadyCheck)| check().err().map(|why| format!("{name}: {why}"));
        self.checks.iter().filter_map(failed).collect()
    }

    /// Serves until the drain is forced. The unix socket, if wanted, is made with mode 0600.
    pub async fn serve(self, tcp: TcpListener, unix: Option<PathBuf>, drain: Drain) {
        let admin = Arc::new(self);
        let local = match unix.as_deref().map(bind_private).transpose() {
            Ok(listener) => listener,
            Err(cause) => {
                warn!(%cause, path = ?unix, "no admin socket");
                None
            }
        };
        tokio::select! {
            () = accept_tcp(&admin, tcp) => {}
            () = accept_unix(&admin, local) => {}
            () = drain.forced() => {}
        }
        if let Some(path) = unix {
            let _absent = std::fs::remove_file(path);
        }
    }

    fn answer(&self, request: &Request<Incoming>, private: bool) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".to_owned());
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "alive\n".to_owned()),
            "/readyz" => match self.missing() {
                missing if missing.is_empty() => text(StatusCode::OK, "ready\n".to_owned()),
                missing => text(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n"),
            },
            "/metrics" => with_type(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                self.metrics.encode(),
            ),
            "/state" if private => {
                let views = self.views.iter().map(|(name, view)| ((*name).to_owned(), view()));
                let state = serde_json::Value::Object(views.collect());
                with_type(StatusCode::OK, "application/json", state.to_string())
            }
            "/state" => {
                text(StatusCode::FORBIDDEN, "/state is served on the admin unix socket only\n".to_owned())
            }
            "/explain" if private => self.explained(request.uri().query().unwrap_or_default()),
            "/explain" => {
                text(StatusCode::FORBIDDEN, "/explain is served on the admin unix socket only\n".to_owned())
            }
            _ => text(StatusCode::NOT_FOUND, "the pages are /livez, /readyz, /metrics\n".to_owned()),
        }
    }
}

impl Admin {
    fn explained(&self, query: &str) -> Response<Full<Bytes>> {
        if query.len() > QUERY_BYTES_MAX {
            return text(
                StatusCode::BAD_REQUEST,
                format!("a question has at most {QUERY_BYTES_MAX} bytes\n"),
            );
        }
        let parameters = parameters(query);
        match self.explainers.iter().find_map(|explain| explain(&parameters)) {
            Some(Ok(answer)) => with_type(StatusCode::OK, "application/json", answer.to_string()),
            Some(Err(why)) => text(StatusCode::BAD_REQUEST, why + "\n"),
            None => {
                let why = "this node cannot explain that: ask an edge for `host` and `path`, or a gateway for `cluster`\n";
                text(StatusCode::NOT_FOUND, why.to_owned())
            }
        }
    }
}

/// Reads `a=b&c=d` with percent-encoding; what does not decode to UTF-8 is replaced.
fn parameters(query: &str) -> Parameters {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            let hex = after.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                None => {
                    bytes.push(if first == b'+' { b' ' } else { first });
                    rest = after;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body)
}

fn with_type(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept_tcp(admin: &Arc<Admin>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve_one(admin, stream, false, &slots),
            Err(cause) => pause(&cause).await,
        }
    }
}

async fn accept_unix(admin: &Arc<Admin>, listener: Option<UnixListener>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve_one(admin, stream, true, &slots),
            Err(cause) => pause(&cause).await,
        }
    }
}

/// Out of file descriptors, most often: others must get a chance to close theirs.
async fn pause(cause: &io::Error) {
    warn!(%cause, "admin listener cannot accept");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn serve_one<S>(admin: &Arc<Admin>, stream: S, private: bool, slots: &Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Over the limit the connection is closed at once.
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return };
    let admin = Arc::clone(admin);
    tokio::spawn(async move {
        let service = service_fn(|request| {
            let response = admin.answer(&request, private);
            async move { Ok::<_, Infallible>(response) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(cause) = served {
            debug!(%cause, "admin connection ended");
        }
        drop(slot);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn state_is_for_the_unix_socket_alone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, drain) = crate::drain::channel();
        let admin = Admin::new(Metrics::new())
            .ready_check("tunnels", || Err("none is open".to_owned()))
            .state("role", || serde_json::json!({"x": 1}))
            .explain(|asked| {
                let host = asked.get("host")?;
                Some(match asked.get("path") {
                    Some(path) => Ok(serde_json::json!({"host": host, "path": path})),
                    None => Err("which `path`?".to_owned()),
                })
            });
        let served = tokio::spawn(admin.serve(listener, Some(socket.clone()), drain));

        assert!(ask(TcpStream::connect(address).await.unwrap(), "/livez").await.starts_with("HTTP/1.1 200"));
        let ready = ask(TcpStream::connect(address).await.unwrap(), "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("tunnels: none is open"));
        assert!(ask(TcpStream::connect(address).await.unwrap(), "/state").await.starts_with("HTTP/1.1 403"));
        let state = ask(UnixStream::connect(&socket).await.unwrap(), "/state").await;
        assert!(state.contains(r#"{"role":{"x":1}}"#), "{state}");

        let question = "/explain?host=a.b&path=%2Fx%20y+z%&q";
        assert!(ask(TcpStream::connect(address).await.unwrap(), question).await.starts_with("HTTP/1.1 403"));
        let told = ask(UnixStream::connect(&socket).await.unwrap(), question).await;
        assert!(told.contains(r#"{"host":"a.b","path":"/x y z%"}"#), "{told}");
        let wrong = ask(UnixStream::connect(&socket).await.unwrap(), "/explain?host=a").await;
        assert!(wrong.starts_with("HTTP/1.1 400") && wrong.contains("which `path`?"), "{wrong}");
        let unknown = ask(UnixStream::connect(&socket).await.unwrap(), "/explain").await;
        assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");

        trigger.force();
        served.await.unwrap();
        assert!(!socket.exists());
    }
}
