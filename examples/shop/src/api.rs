//! What the web asks of the api: at the address in `API_URL`, by plain HTTP.

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The api, if this process was told where it is.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// `127.0.0.1:4000`
    authority: Option<String>,
}

impl Api {
    /// Reads `API_URL`.
    pub(crate) fn from_environment() -> Self {
        Self::at(std::env::var("API_URL").ok().as_deref())
    }

    fn at(url: Option<&str>) -> Self {
        let authority =
            url.and_then(|url| url.strip_prefix("http://")).map(|rest| rest.trim_end_matches('/'));
        Self { authority: authority.map(str::to_owned) }
    }

    /// Asks for a path. Nothing when nobody has said where the api is; an error is one line for people.
    pub(crate) async fn get(&self, path: &str, request_id: Option<&str>) -> Option<Result<Value, String>> {
        let authority = self.authority.as_ref()?;
        let asked = tokio::time::timeout(PATIENCE, ask(authority, path, request_id)).await;
        Some(asked.unwrap_or_else(|_| Err(format!("the api did not answer within {} s", PATIENCE.as_secs()))))
    }
}

async fn ask(authority: &str, path: &str, request_id: Option<&str>) -> Result<Value, String> {
    let text = |error: &dyn std::fmt::Display| format!("the api can't be asked: {error}");
    let stream = TcpStream::connect(authority).await.map_err(|error| text(&error))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| text(&error))?;
    tokio::spawn(connection);
    let mut request = Request::get(path).header(header::HOST, authority);
    if let Some(id) = request_id {
        request = request.header("x-request-id", id);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| text(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| text(&error))?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| text(&error))?.to_bytes();
    if head.status != StatusCode::OK {
        let why = head.headers.get("proxy-status").and_then(|value| value.to_str().ok()).unwrap_or_default();
        return Err(format!("the api answered {} {why}", head.status));
    }
    serde_json::from_slice(&body).map_err(|error| text(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_an_address_nothing_is_asked() {
        assert!(Api::at(None).get("/", None).await.is_none());
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let asked = Api::at(Some(&format!("http://{gone}"))).get("/", None).await;
        assert!(asked.unwrap().unwrap_err().starts_with("the api can't be asked"));
    }
}
