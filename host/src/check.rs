//! Asking an instance whether it is well.

use crate::procfs::{self, Listener, NotOurs};
use atoll_model::CheckKind;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;

/// A program's port, and what was last seen to hold it.
#[derive(Debug, Clone)]
pub struct Target {
    port: u16,
    group: u32,
    // Looking for the listener costs a walk through /proc; whether it is still open costs one call.
    seen: Arc<Mutex<Option<Listener>>>,
}

/// Why a check failed, in one line.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The port is not the instance's.
    #[error(transparent)]
    Port(#[from] NotOurs),
    /// It does not accept.
    #[error("cannot connect to port {0}: {1}")]
    Connect(u16, std::io::Error),
    /// No HTTP answer.
    #[error("GET {path} on port {port} got no answer: {cause}")]
    Http {
        /// Asked for.
        path: String,
        /// Asked there.
        port: u16,
        /// What happened.
        cause: hyper::Error,
    },
    /// An answer outside 200..=399.
    #[error("GET {path} on port {port} answered {status}")]
    Status {
        /// Asked for.
        path: String,
        /// Asked there.
        port: u16,
        /// The answer.
        status: u16,
    },
    /// The path can't be asked for.
    #[error("`{0}` is no path for a check")]
    Path(String),
    /// No answer in time.
    #[error("no answer on port {0} within {1} ms")]
    Timeout(u16, u64),
}

impl Target {
    /// `port` counts only while a process of `group` listens there.
    #[must_use]
    pub fn new(port: u16, group: u32) -> Self {
        Self { port, group, seen: Arc::default() }
    }

    /// Asks once.
    pub async fn check(self, kind: CheckKind, timeout_ms: u64) -> Result<(), CheckError> {
        let port = self.port;
        let asked = async move {
            self.is_own().await?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let stream =
                TcpStream::connect(address).await.map_err(|cause| CheckError::Connect(port, cause))?;
            match kind {
                CheckKind::Tcp => Ok(()),
                CheckKind::Http { path } => http(stream, port, path).await,
            }
        };
        let late = |_| CheckError::Timeout(port, timeout_ms);
        tokio::time::timeout(Duration::from_millis(timeout_ms), asked).await.map_err(late)?
    }

    async fn is_own(&self) -> Result<(), CheckError> {
        let target = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let mut seen = target.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if !seen.as_ref().is_some_and(Listener::still_open) {
                *seen = None;
                *seen = Some(procfs::listener_of_group(target.port, target.group)?);
            }
            Ok::<(), NotOurs>(())
        });
        let failed = |cause: tokio::task::JoinError| NotOurs::Unknown(self.port, cause.to_string());
        Ok(looked.await.map_err(failed)??)
    }
}

async fn http(stream: TcpStream, port: u16, path: String) -> Result<(), CheckError> {
    let request = Request::get(path.as_str())
        .header(header::HOST, format!("127.0.0.1:{port}"))
        .header(header::USER_AGENT, "atoll-check")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| CheckError::Path(path.clone()))?;
    let failed = |cause| CheckError::Http { path: path.clone(), port, cause };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(sender.send_request(request));
    let response = tokio::select! {
        biased;
        response = &mut answer => response,
        // The connection may end as soon as it has handed over the answer's head.
        _ = &mut connection => answer.await,
    };
    let status = response.map_err(failed)?.status().as_u16();
    if (200..400).contains(&status) { Ok(()) } else { Err(CheckError::Status { path, port, status }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn origin(answer: &'static str) -> (Target, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _count = stream.read(&mut head).await;
                let _sent = stream.write_all(answer.as_bytes()).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            }
        });
        let group = procfs::stat(std::process::id()).unwrap().group;
        (Target::new(port, group), served)
    }

    fn path(path: &str) -> CheckKind {
        CheckKind::Http { path: path.to_owned() }
    }

    #[tokio::test]
    async fn an_answer_below_400_is_good() {
        for (answer, good) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.0 204 None\r\n\r\n", true),
            ("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", false),
            ("nonsense\r\n\r\n", false),
        ] {
            let (target, served) = origin(answer).await;
            let outcome = target.clone().check(path("/healthz?x=1"), 5_000).await;
            assert_eq!(outcome.is_ok(), good, "{answer}: {outcome:?}");
            assert!(target.check(CheckKind::Tcp, 5_000).await.is_ok());
            served.abort();
        }
    }

    #[tokio::test]
    async fn silence_and_strangers_are_bad() {
        let (target, served) = origin("").await;
        assert!(matches!(target.clone().check(path("/"), 50).await, Err(CheckError::Timeout(_, 50))));
        let stranger = Target::new(target.port, u32::MAX).check(CheckKind::Tcp, 5_000).await;
        assert!(matches!(stranger, Err(CheckError::Port(NotOurs::Other(_)))));
        served.abort();
    }
}
