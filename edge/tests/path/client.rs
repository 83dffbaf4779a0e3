//! A client that shows what is on the wire.

use super::world::{Node, RunningEdge};
use atoll_identity::{Identity, PeerPolicy};
use atoll_model::Kind;
use atoll_wire::record::NodeFacts;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

/// Longer than any answer takes: no test waits for ever.
const LONGEST: Duration = Duration::from_secs(60);

pub async fn connect(edge: &RunningEdge, name: &str, alpn: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(edge.root.clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    connect_to(edge.https, name, config).await
}

/// Over IPv6.
pub async fn connect_v6(edge: &RunningEdge, name: &str) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(edge.root.clone()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    connect_to(edge.https_v6, name, config).await
}

async fn connect_to(
    address: std::net::SocketAddr,
    name: &str,
    config: ClientConfig,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// Sends a request as it stands over a connection of its own, and reads to the end.
pub async fn https(edge: &RunningEdge, name: &str, request: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = connect(edge, name, &[b"http/1.1"]).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(LONGEST, asked).await.expect("the edge answers")
}

pub async fn http(edge: &RunningEdge, request: &str) -> String {
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(LONGEST, read).await.expect("the edge answers").unwrap();
    answer
}

pub fn get(host: &str, fields: &str) -> String {
    format!("GET /a?b=c HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n")
}

/// A POST over HTTP/2: its status, and the answer's content.
pub async fn post_http2(stream: TlsStream<TcpStream>, host: &str, content: Vec<u8>) -> (u16, String) {
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("https://{host}/up")).body(Full::new(Bytes::from(content))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let content = BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&content).into_owned())
}

type AnyBody = UnsyncBoxBody<Bytes, io::Error>;

/// A mesh peer of a gateway: whoever its certificate says, and with whatever fields it likes.
pub struct Mesh(SendRequest<AnyBody>);

impl Mesh {
    pub async fn connect(gateway: &Node, identity: Identity) -> Result<Self, String> {
        let facts = gateway.gossip.entries(Kind::NODE);
        let own = facts.iter().find(|entry| *entry.key == *gateway.name.as_str()).unwrap();
        let address = own.decode::<NodeFacts>().unwrap().gateway_address;
        let tcp = TcpStream::connect(address).await.unwrap();
        let tls = identity.client_config(&[b"h2"], PeerPolicy::AnyNode);
        let tls = TlsConnector::from(tls)
            .connect(atoll_identity::mesh_server_name(), tcp)
            .await
            .map_err(|error| error.to_string())?;
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(tls);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(executor, io).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    async fn send(
        &mut self,
        method: &str,
        cluster: &str,
        fields: &[(&str, &str)],
        body: AnyBody,
    ) -> Result<Response<Incoming>, String> {
        let mut request = Request::builder()
            .method(method)
            .uri("https://web.shop.internal/x")
            .header("atoll-cluster", cluster)
            .header("atoll-tries", "3");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.0.send_request(request.body(body).unwrap()).await.map_err(|error| error.to_string())
    }

    pub async fn get(&mut self, cluster: &str, fields: &[(&str, &str)]) -> Result<Response<String>, String> {
        read(self.send("GET", cluster, fields, Empty::new().map_err(|e| match e {}).boxed_unsync()).await?)
            .await
    }

    /// The request that opens a tunnel's control stream, as a sidecar passes it on for its instance: true when it
    /// is answered as a control stream is, with a body that goes on.
    pub async fn opens_control_stream(
        &mut self,
        cluster: Option<&str>,
        caller: &str,
    ) -> Result<bool, String> {
        let mut request = Request::post("https://mesh.atoll/atoll/tunnel").header("atoll-caller", caller);
        if let Some(cluster) = cluster {
            request = request.header("atoll-cluster", cluster);
        }
        let pending = StreamBody::new(tokio_stream::pending()).boxed_unsync();
        let answer = self.0.send_request(request.body(pending).unwrap()).await.map_err(|e| e.to_string())?;
        Ok(answer.status() == 200 && !answer.headers().contains_key("atoll-hops"))
    }

    pub async fn post(&mut self, cluster: &str, content: &str) -> Result<Response<String>, String> {
        let body = Full::new(Bytes::copy_from_slice(content.as_bytes())).map_err(|e| match e {});
        read(self.send("POST", cluster, &[], body.boxed_unsync()).await?).await
    }

    /// Opens a stream of bytes: what is sent to the one end goes out, the answer's body is what comes in.
    pub async fn stream(
        &mut self,
        cluster: &str,
    ) -> Result<(mpsc::Sender<&'static str>, Response<Incoming>), String> {
        let (out, pieces) = mpsc::channel(8);
        let frames = ReceiverStream::new(pieces)
            .map(|piece: &'static str| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
        let body = StreamBody::new(frames).boxed_unsync();
        Ok((out, self.send("POST", cluster, &[("atoll-protocol", "tcp")], body).await?))
    }
}

async fn read(response: Response<Incoming>) -> Result<Response<String>, String> {
    let (head, body) = response.into_parts();
    let content = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok(Response::from_parts(head, String::from_utf8_lossy(&content).into_owned()))
}
