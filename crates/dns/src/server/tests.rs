use super::*;
use crate::testing::{name, zone};
use atoll_process::drain::{self, DrainTrigger};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

const WAIT: Duration = Duration::from_secs(5);

struct Served {
    address: SocketAddr,
    zone: CurrentZone,
    tasks: Tasks,
    trigger: DrainTrigger,
    metrics: Metrics,
}

/// The test zone at a free port.
fn served(change: impl Fn(&mut Config)) -> Served {
    let mut config = Config { listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))], ..Config::default() };
    change(&mut config);
    let metrics = Metrics::new();
    let bound = bind(config, &metrics).unwrap();
    let address = bound.addresses()[0];
    let (trigger, drain) = drain::channel();
    let tasks = Tasks::new(Handle::current());
    let zone: CurrentZone = Arc::new(ArcSwap::from_pointee(zone(&["shop.zone.test"])));
    bound.serve(&zone, &tasks, &drain);
    Served { address, zone, tasks, trigger, metrics }
}

impl Served {
    async fn udp(&self, packet: &[u8]) -> Option<Message> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        self.exchange(&socket, packet, WAIT).await
    }

    async fn exchange(&self, socket: &UdpSocket, packet: &[u8], wait: Duration) -> Option<Message> {
        socket.send(packet).await.unwrap();
        let mut answer = [0; 4096];
        let len = tokio::time::timeout(wait, socket.recv(&mut answer)).await.ok()?.unwrap();
        Some(Message::from_vec(&answer[..len]).unwrap())
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics.encode().lines().any(|have| have == line)
    }
}

fn query(text: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(text), kind));
    message.to_vec().unwrap()
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&u16::try_from(packet.len()).unwrap().to_be_bytes(), packet].concat()
}

async fn read_framed(stream: &mut TcpStream) -> Option<Message> {
    let read = async {
        let mut bytes = vec![0; usize::from(stream.read_u16().await.ok()?)];
        stream.read_exact(&mut bytes).await.ok()?;
        Some(Message::from_vec(&bytes).unwrap())
    };
    tokio::time::timeout(WAIT, read).await.expect("an answer or the end")
}

#[tokio::test]
async fn one_port_answers_over_udp_and_tcp() {
    let served = served(|_| {});
    let packet = query("shop.zone.test.", RecordType::A);
    assert_eq!(served.udp(&packet).await.unwrap().answers.len(), 2);
    let mut stream = served.connect().await;
    // Two at once, then one cut in two.
    stream
        .write_all(&[framed(&packet), framed(&query("no.zone.test.", RecordType::A))].concat())
        .await
        .unwrap();
    assert_eq!(read_framed(&mut stream).await.unwrap().answers.len(), 2);
    assert_eq!(read_framed(&mut stream).await.unwrap().response_code, ResponseCode::NXDomain);
    let (head, tail) = (framed(&packet)[..9].to_vec(), framed(&packet)[9..].to_vec());
    stream.write_all(&head).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(&tail).await.unwrap();
    assert_eq!(read_framed(&mut stream).await.unwrap().answers.len(), 2);
    assert!(served.metric("atoll_dns_queries_total{transport=\"udp\",outcome=\"found\"} 1"));
    assert!(served.metric("atoll_dns_queries_total{transport=\"tcp\",outcome=\"found\"} 2"));
}

#[tokio::test]
async fn a_new_zone_is_answered_from_at_once() {
    let served = served(|_| {});
    served.zone.store(Arc::new(zone(&["other.zone.test"])));
    let code = served.udp(&query("shop.zone.test.", RecordType::A)).await.unwrap().response_code;
    assert_eq!(code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn noise_is_counted_and_hurts_nobody() {
    let served = served(|_| {});
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(served.address).await.unwrap();
    for noise in [&[][..], &[0; 5], &[0xff; 600]] {
        socket.send(noise).await.unwrap();
    }
    let answer = served.exchange(&socket, &query("shop.zone.test.", RecordType::A), WAIT).await.unwrap();
    assert_eq!(answer.answers.len(), 2, "the noise got no answer, the query did");
    assert!(served.metric("atoll_dns_unanswered_total{reason=\"malformed\"} 3"));
    let mut stream = served.connect().await;
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).await.unwrap();
    assert!(read_framed(&mut stream).await.is_none(), "too long a query ends the connection");
}

#[tokio::test]
async fn over_its_share_a_network_is_sent_to_tcp() {
    let served = served(|config| config.responses_per_second = 1);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(served.address).await.unwrap();
    let packet = query("shop.zone.test.", RecordType::A);
    let mut truncated = None;
    for _ in 0..20 {
        let answer = served.exchange(&socket, &packet, Duration::from_millis(200)).await;
        truncated = truncated.or_else(|| answer.filter(|answer| answer.truncation));
    }
    assert!(truncated.expect("one of them says so").answers.is_empty());
    assert!(served.metrics.encode().contains("atoll_dns_unanswered_total{reason=\"limited\"}"));
    let mut stream = served.connect().await;
    stream.write_all(&framed(&packet)).await.unwrap();
    assert_eq!(read_framed(&mut stream).await.unwrap().answers.len(), 2);
}

#[tokio::test]
async fn idle_connections_end_and_one_address_has_a_quarter_of_the_places() {
    let served = served(|config| (config.tcp_connections_max, config.tcp_idle_ms) = (4, 300));
    let mut first = served.connect().await;
    first.write_all(&framed(&query("shop.zone.test.", RecordType::A))).await.unwrap();
    assert!(read_framed(&mut first).await.is_some());
    let mut second = served.connect().await;
    assert!(read_framed(&mut second).await.is_none(), "no place for a second one from here");
    assert!(served.metric("atoll_dns_tcp_connections_refused_total 1"));
    // A query that never ends counts as idle.
    first.write_all(&[0, 40, 1]).await.unwrap();
    assert!(read_framed(&mut first).await.is_none(), "closed by the server");
}

#[tokio::test]
async fn a_drain_ends_tcp_first_and_then_everything() {
    let served = served(|_| {});
    let mut open = served.connect().await;
    open.write_all(&framed(&query("shop.zone.test.", RecordType::A))).await.unwrap();
    assert!(read_framed(&mut open).await.is_some());
    served.trigger.start();
    assert!(read_framed(&mut open).await.is_none(), "the idle connection is closed");
    assert!(served.udp(&query("shop.zone.test.", RecordType::A)).await.is_some(), "UDP goes on");
    served.trigger.force();
    assert!(served.tasks.finished(WAIT).await);
}

#[tokio::test]
async fn a_taken_port_is_said() {
    let served = served(|_| {});
    let config = Config { listen: vec![served.address], ..Config::default() };
    let error = bind(config, &Metrics::new()).unwrap_err().to_string();
    assert!(error.contains(&served.address.to_string()) && error.contains("TCP"), "{error}");
}
