//! The admin listener: `/livez`, `/readyz` and `/metrics` on a loopback address, and also `/state` on a
//! unix socket that only its owner may open.

use crate::{Drain, Metrics};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
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

/// What the admin listener shows.
pub struct Admin {
    metrics: Metrics,
    checks: Vec<(&'static str, ReadyCheck)>,
    views: Vec<(&'static str, StateView)>,
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
        Self { metrics, checks: Vec::new(), views: Vec::new() }
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
            _ => text(StatusCode::NOT_FOUND, "the pages are /livez, /readyz, /metrics\n".to_owned()),
        }
    }
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
            .state("role", || serde_json::json!({"x": 1}));
        let served = tokio::spawn(admin.serve(listener, Some(socket.clone()), drain));

        assert!(ask(TcpStream::connect(address).await.unwrap(), "/livez").await.starts_with("HTTP/1.1 200"));
        let ready = ask(TcpStream::connect(address).await.unwrap(), "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("tunnels: none is open"));
        assert!(ask(TcpStream::connect(address).await.unwrap(), "/state").await.starts_with("HTTP/1.1 403"));
        let state = ask(UnixStream::connect(&socket).await.unwrap(), "/state").await;
        assert!(state.contains(r#"{"role":{"x":1}}"#), "{state}");

        trigger.force();
        served.await.unwrap();
        assert!(!socket.exists());
    }
}
