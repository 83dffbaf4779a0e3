//! One HTTPS request to an edge, as a client out in the world makes it.

use crate::api::trusting;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const WAIT: Duration = Duration::from_secs(5);
const BODY_BYTES_MAX: usize = 64 * 1024;

/// `GET https://domain/path` at `edge`; only certificates of `ca` (a PEM file) are trusted.
pub async fn get(edge: SocketAddr, domain: &str, path: &str, ca: &Path) -> Result<Response<Bytes>, String> {
    match tokio::time::timeout(WAIT, ask(edge, domain, path, ca)).await {
        Ok(answered) => answered,
        Err(_) => Err(format!("no answer within {} s", WAIT.as_secs())),
    }
}

async fn ask(edge: SocketAddr, domain: &str, path: &str, ca: &Path) -> Result<Response<Bytes>, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let pem = std::fs::read(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
    let connector = TlsConnector::from(Arc::new(trusting(&pem)?));
    let name = ServerName::try_from(domain.to_owned()).map_err(|error| text(&error))?;
    let stream = TcpStream::connect(edge).await.map_err(|error| text(&error))?;
    let stream = connector.connect(name, stream).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    // Ends with the answer; what goes wrong with it shows there.
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    let host = if edge.port() == 443 { domain.to_owned() } else { format!("{domain}:{}", edge.port()) };
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| text(&error))?;
    let (head, body) = sender.send_request(request).await.map_err(|error| text(&error))?.into_parts();
    let body =
        Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok(Response::from_parts(head, body))
}
