//! QUIC between nodes: one endpoint for all scopes, mutual TLS, connections kept and made again.
//!
//! Membership packets travel as datagrams, behind the scope's name; records on bidirectional streams.

mod frames;

use crate::core::Core;
use crate::membership::{PACKET_BYTES_MAX, Peer};
use crate::scope::Scope;
use crate::stats::Stats;
use atoll_identity::{ClientAuth, Identity, MESH_SERVER_NAME, PeerIdentity, PeerPolicy, SpiffeKind};
use atoll_model::NodeName;
use atoll_process::drain::Drain;
use atoll_process::tasks::Tasks;
use atoll_wire::gossip;
use bytes::{BufMut, Bytes, BytesMut};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, IdleTimeout, TransportConfig, VarInt};
use rand::RngExt;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};

const ALPN: &[u8] = b"atoll-gossip/1";
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait before an address that failed is tried again.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Addresses whose failures are remembered.
const BACKOFFS_MAX: usize = 10_000;
/// Exchanges served at a time, over all peers: each may hold one message of at most 8 MiB.
const SERVED_MAX: usize = 16;
/// Of those, for one peer: one that is slow or hostile does not hold up the others.
const SERVED_OF_PEER_MAX: usize = 4;

/// What the transport tells the driver.
#[derive(Debug)]
pub(crate) enum Event {
    /// A membership packet.
    Packet { peer: Arc<Peer>, scope: Scope, bytes: Bytes },
    /// A peer said where it is, and which generation.
    Introduced { peer: Arc<Peer>, address: SocketAddr, generation: u64 },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("it failed a moment ago")]
    BackingOff,
    #[error("connecting: {0}")]
    Connect(String),
    #[error("no answer within {DIAL_TIMEOUT:?}")]
    TimedOut,
    #[error("another node is there than was meant")]
    WrongPeer,
}

/// Why an exchange came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("no answer within {EXCHANGE_TIMEOUT:?}")]
    TimedOut,
    #[error(transparent)]
    Frame(#[from] frames::FrameError),
    #[error("the connection is lost: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("taking in what the peer sent failed")]
    Panicked,
}

/// How an exchange begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// With a hash: most likely nothing is new.
    Summary,
    /// With all watermarks: something is new.
    Watermarks,
}

/// A connection to a peer whose certificate was checked.
#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    pub(crate) peer: Arc<Peer>,
    /// What its certificate said, and when that was verified.
    identity: PeerIdentity,
    since: Instant,
    /// Exchanges that this peer may have served at a time.
    served: Arc<Semaphore>,
    /// Bytes sent and received that the metrics have.
    counted: Mutex<(u64, u64)>,
}

impl Link {
    /// Adds to the metrics what was sent and received since the last call.
    fn count(&self, stats: &Stats) {
        let now = self.connection.stats();
        let (sent, received) = (now.udp_tx.bytes, now.udp_rx.bytes);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        stats.bytes_sent.inc_by(sent.saturating_sub(counted.0));
        stats.bytes_received.inc_by(received.saturating_sub(counted.1));
        *counted = (sent, received);
    }

    /// The scopes among these that the peer may see.
    fn permitted(&self, scopes: &[Scope]) -> Vec<Scope> {
        let admits = |scope: &&Scope| scope.admits(self.peer.roles, Some(&self.peer.region));
        scopes.iter().filter(admits).cloned().collect()
    }
}

/// A pair of nodes may dial each other at once: one link each way is kept, the newer one used.
#[derive(Debug, Default)]
struct Links {
    newest: Option<Arc<Link>>,
    other: Option<Arc<Link>>,
}

#[derive(Debug)]
struct Backoff {
    failures: u32,
    until: Instant,
}

/// The endpoint and its connections.
pub(crate) struct Transport {
    endpoint: Endpoint,
    identity: Identity,
    pub(crate) core: Arc<Core>,
    stats: Arc<Stats>,
    tasks: Tasks,
    drain: Drain,
    events: mpsc::Sender<Event>,
    sender: gossip::Member,
    links: Mutex<HashMap<NodeName, Links>>,
    backoffs: Mutex<HashMap<SocketAddr, Backoff>>,
    served: Arc<Semaphore>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

fn transport_config() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(16))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(512 << 10))
        .receive_window(VarInt::from_u32(4 << 20))
        .send_window(4 << 20)
        .datagram_receive_buffer_size(Some(256 << 10))
        .datagram_send_buffer_size(256 << 10)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(8_000))))
        .keep_alive_interval(Some(Duration::from_millis(2_500)));
    Arc::new(config)
}

/// Opens the endpoint.
pub(crate) fn bind(identity: &Identity, listen: SocketAddr) -> std::io::Result<Endpoint> {
    let identity = identity.by_either_clock();
    let server = identity.server_config(&[ALPN], PeerPolicy::AnyNode, ClientAuth::Required);
    let server = QuicServerConfig::try_from(server).map_err(std::io::Error::other)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport_config());
    server.max_incoming(256);
    let mut endpoint = Endpoint::server(server, listen)?;
    let client = identity.client_config(&[ALPN], PeerPolicy::AnyNode);
    let client = QuicClientConfig::try_from(client).map_err(std::io::Error::other)?;
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport_config());
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

impl Transport {
    pub(crate) fn new(
        endpoint: Endpoint,
        identity: Identity,
        core: Arc<Core>,
        tasks: Tasks,
        drain: Drain,
        events: mpsc::Sender<Event>,
        sender: gossip::Member,
    ) -> Arc<Self> {
        let stats = Arc::clone(&core.stats);
        Arc::new(Self {
            endpoint,
            identity,
            core,
            stats,
            tasks,
            drain,
            events,
            sender,
            links: Mutex::default(),
            backoffs: Mutex::default(),
            served: Arc::new(Semaphore::new(SERVED_MAX)),
        })
    }

    fn links(&self) -> MutexGuard<'_, HashMap<NodeName, Links>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backoffs(&self) -> MutexGuard<'_, HashMap<SocketAddr, Backoff>> {
        self.backoffs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts connections until the endpoint is closed.
    pub(crate) async fn accept(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            // Under load, only who can receive at the address that it sends from costs a handshake.
            if !incoming.remote_address_validated() && self.endpoint.open_connections() > 2_000 {
                let _unable = incoming.retry();
                continue;
            }
            let transport = Arc::clone(&self);
            self.tasks.spawn("gossip accept", async move {
                let from = incoming.remote_address();
                match tokio::time::timeout(DIAL_TIMEOUT, incoming).await {
                    Ok(Ok(connection)) => drop(transport.adopt(connection)),
                    Ok(Err(why)) => tracing::debug!(%from, "a peer was refused: {why}"),
                    Err(_) => tracing::debug!(%from, "a peer did not finish its handshake"),
                }
            });
        }
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"closing");
        let _undelivered = tokio::time::timeout(Duration::from_millis(300), self.endpoint.wait_idle()).await;
    }

    /// A live connection to the node.
    pub(crate) fn link(&self, name: &NodeName) -> Option<Arc<Link>> {
        let links = self.links();
        let pair = links.get(name)?;
        [&pair.newest, &pair.other]
            .into_iter()
            .flatten()
            .find(|link| link.connection.close_reason().is_none())
            .cloned()
    }

    fn link_to(&self, address: SocketAddr) -> Option<Arc<Link>> {
        let links = self.links();
        let mut all = links.values().flat_map(|pair| [&pair.newest, &pair.other]).flatten();
        all.find(|link| {
            link.connection.remote_address() == address && link.connection.close_reason().is_none()
        })
        .cloned()
    }

    /// A connection to whoever is at the address; to `expected`, if that is given.
    pub(crate) async fn dial(
        self: &Arc<Self>,
        address: SocketAddr,
        expected: Option<&NodeName>,
    ) -> Result<Arc<Link>, DialError> {
        let existing = expected.map_or_else(|| self.link_to(address), |name| self.link(name));
        if let Some(link) = existing {
            return Ok(link);
        }
        if self.backoffs().get(&address).is_some_and(|backoff| backoff.until > Instant::now()) {
            return Err(DialError::BackingOff);
        }
        // Set before the attempt, so that others do not dial at the same time.
        self.fail(address);
        let link = self.connect(address, expected).await;
        match &link {
            Ok(_) => {
                self.backoffs().remove(&address);
            }
            Err(why) => {
                self.stats.dials_failed.inc();
                tracing::debug!(%address, "no connection to a peer: {why}");
            }
        }
        link
    }

    fn fail(&self, address: SocketAddr) {
        let mut backoffs = self.backoffs();
        if backoffs.len() >= BACKOFFS_MAX {
            let now = Instant::now();
            backoffs.retain(|_, backoff| backoff.until > now);
        }
        let backoff =
            backoffs.entry(address).or_insert_with(|| Backoff { failures: 0, until: Instant::now() });
        let ceiling = BACKOFF_MAX.min(Duration::from_millis(200) * (1 << backoff.failures.min(6)));
        backoff.failures += 1;
        backoff.until = Instant::now() + ceiling.mul_f64(rand::rng().random_range(0.5..1.0));
    }

    async fn connect(
        self: &Arc<Self>,
        address: SocketAddr,
        expected: Option<&NodeName>,
    ) -> Result<Arc<Link>, DialError> {
        let connecting = self
            .endpoint
            .connect(address, MESH_SERVER_NAME)
            .map_err(|why| DialError::Connect(why.to_string()))?;
        let connection = tokio::time::timeout(DIAL_TIMEOUT, connecting)
            .await
            .map_err(|_| DialError::TimedOut)?
            .map_err(|why| DialError::Connect(why.to_string()))?;
        let link = self.adopt(connection).ok_or(DialError::WrongPeer)?;
        if expected.is_some_and(|name| *name != link.peer.name) {
            return Err(DialError::WrongPeer);
        }
        Ok(link)
    }

    /// Takes a connection in: finds out who it is, and serves it until it ends.
    fn adopt(self: &Arc<Self>, connection: Connection) -> Option<Arc<Link>> {
        let refuse = |connection: &Connection, why: &str| {
            connection.close(VarInt::from_u32(1), why.as_bytes());
            tracing::debug!(from = %connection.remote_address(), "a connection was refused: {why}");
        };
        let certificates = connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
        let identity = certificates.and_then(|chain| Identity::peer_of(&chain).ok());
        let Some((identity, peer)) =
            identity.and_then(|identity| Some((identity.clone(), peer_of(&identity)?)))
        else {
            refuse(&connection, "not a node");
            return None;
        };
        if peer.name == self.core.name {
            refuse(&connection, "the same node");
            return None;
        }
        let guard = match self.identity.connections().admit(&identity) {
            Ok(guard) => guard,
            Err(why) => {
                refuse(&connection, &why.to_string());
                return None;
            }
        };
        let link = Arc::new(Link {
            connection,
            peer: Arc::new(peer),
            identity,
            since: Instant::now(),
            served: Arc::new(Semaphore::new(SERVED_OF_PEER_MAX)),
            counted: Mutex::default(),
        });
        self.keep(&link);
        let (transport, served) = (Arc::clone(self), Arc::clone(&link));
        self.tasks.spawn("gossip link", async move {
            transport.stats.connections.inc();
            transport.serve(&served, guard).await;
            transport.stats.connections.dec();
            served.count(&transport.stats);
            transport.forget(&served);
        });
        Some(link)
    }

    /// Brings the traffic of the open connections into the metrics.
    pub(crate) fn count_traffic(&self) {
        for link in self.links().values().flat_map(|pair| [&pair.newest, &pair.other]).flatten() {
            link.count(&self.stats);
        }
    }

    fn keep(&self, link: &Arc<Link>) {
        let mut links = self.links();
        let pair = links.entry(link.peer.name.clone()).or_default();
        let before = pair.newest.replace(Arc::clone(link));
        if let Some(oldest) = std::mem::replace(&mut pair.other, before) {
            oldest.connection.close(VarInt::from_u32(0), b"replaced");
        }
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut links = self.links();
        let Some(pair) = links.get_mut(&link.peer.name) else { return };
        if pair.newest.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, link)) {
            pair.newest = pair.other.take();
        } else if pair.other.as_ref().is_some_and(|other| Arc::ptr_eq(other, link)) {
            pair.other = None;
        }
        if pair.newest.is_none() {
            links.remove(&link.peer.name);
        }
    }

    /// Ends the connections to a node that is lost, so that the next attempt makes a new one.
    pub(crate) fn cut(&self, name: &NodeName) {
        if let Some(pair) = self.links().remove(name) {
            for link in [pair.newest, pair.other].into_iter().flatten() {
                link.connection.close(VarInt::from_u32(0), b"lost");
            }
        }
    }

    async fn serve(self: &Arc<Self>, link: &Arc<Link>, guard: atoll_identity::ConnectionGuard) {
        let connection = &link.connection;
        loop {
            tokio::select! {
                biased;
                () = guard.cut() => {
                    connection.close(VarInt::from_u32(2), b"denied");
                    return;
                }
                () = self.drain.forced() => return,
                stream = connection.accept_bi() => {
                    let Ok((send, receive)) = stream else { return };
                    let (transport, link) = (Arc::clone(self), Arc::clone(link));
                    // Bounded by the streams that a peer may open. Waiting for room is not done here: the
                    // connection must be cut at once when its peer is denied.
                    self.tasks.spawn("gossip serve", async move {
                        let answered = async {
                            let _own = link.served.acquire().await;
                            let _all = transport.served.acquire().await;
                            transport.answer(&link, send, receive).await
                        };
                        match tokio::time::timeout(EXCHANGE_TIMEOUT, answered).await {
                            Ok(Ok(())) => transport.stats.exchange("answered"),
                            Ok(Err(why)) => {
                                transport.stats.exchange("answer_failed");
                                tracing::debug!(peer = %link.peer.name, "an exchange failed: {why}");
                            }
                            Err(_) => transport.stats.exchange("answer_timed_out"),
                        }
                    });
                }
                datagram = connection.read_datagram() => {
                    let Ok(datagram) = datagram else { return };
                    self.receive(link, datagram);
                }
            }
        }
    }

    fn receive(&self, link: &Link, datagram: Bytes) {
        let Some((scope, bytes)) = split_packet(datagram) else {
            self.stats.packets_refused.inc();
            return;
        };
        let event = Event::Packet { peer: Arc::clone(&link.peer), scope, bytes };
        if self.events.try_send(event).is_err() {
            self.stats.packets_dropped.inc();
        }
    }

    /// Sends a membership packet, over a connection that is there or one that is made for it.
    pub(crate) fn send_packet(
        self: &Arc<Self>,
        to: &NodeName,
        address: SocketAddr,
        scope: &Scope,
        packet: &[u8],
    ) {
        let datagram = join_packet(scope, packet);
        if let Some(link) = self.link(to) {
            if link.connection.send_datagram(datagram).is_err() {
                self.stats.packets_dropped.inc();
            }
            return;
        }
        let (transport, to) = (Arc::clone(self), to.clone());
        self.tasks.spawn("gossip dial", async move {
            let sent = match transport.dial(address, Some(&to)).await {
                Ok(link) => link.connection.send_datagram(datagram).is_ok(),
                Err(_) => false,
            };
            if !sent {
                transport.stats.packets_dropped.inc();
            }
        });
    }

    /// Who we are, and what time our machine has.
    fn introduction(&self) -> gossip::Member {
        gossip::Member { now_ms: atoll_process::clock::unix_ms(), ..self.sender.clone() }
    }

    /// What a peer, whose certificate was verified, says its machine's time is.
    fn hear_time(&self, link: &Link, now_ms: u64) {
        if now_ms == 0 || !self.identity.hear_time(&link.identity, link.since.elapsed(), now_ms) {
            return;
        }
        match self.identity.clock().correction_ms() / 1000 {
            0 => tracing::info!("this machine's clock agrees with the other nodes' again"),
            seconds => tracing::error!(
                others_ahead_s = seconds,
                "this machine's clock is wrong, say most nodes: certificates are judged by their time; set the clock"
            ),
        }
    }

    fn introduced(&self, link: &Link, message: &gossip::Exchange) {
        let Some(sender) = &message.sender else { return };
        let Ok(mut address) = sender.address.parse::<SocketAddr>() else { return };
        if sender.name != link.peer.name.as_str() {
            self.stats.packets_refused.inc();
            return;
        }
        self.hear_time(link, sender.now_ms);
        if address.ip().is_unspecified() {
            address.set_ip(link.connection.remote_address().ip());
        }
        let (peer, generation) = (Arc::clone(&link.peer), sender.generation);
        let _full_comes_again = self.events.try_send(Event::Introduced { peer, address, generation });
    }

    /// One exchange: both have what the other had, but for what did not fit. True when something did not.
    pub(crate) async fn exchange(
        &self,
        link: &Arc<Link>,
        scopes: &[Scope],
        opening: Opening,
    ) -> Result<bool, ExchangeError> {
        let once = async {
            if opening == Opening::Summary && self.is_even(link, scopes).await? {
                return Ok(None);
            }
            self.exchange_once(link, scopes).await.map(Some)
        };
        let result = tokio::time::timeout(EXCHANGE_TIMEOUT, once).await;
        let result = result.unwrap_or(Err(ExchangeError::TimedOut));
        match &result {
            Ok(None) => self.stats.exchange("even"),
            Ok(Some(_)) => self.stats.exchange("done"),
            Err(why) => {
                self.stats.exchange("failed");
                tracing::debug!(peer = %link.peer.name, "an exchange failed: {why}");
                // A peer that was restarted does not know the connection any more.
                link.connection.close(VarInt::from_u32(3), b"exchange failed");
            }
        }
        result.map(|more| more.unwrap_or(false))
    }

    /// Asks a peer for its summary: true when both have the same.
    async fn is_even(&self, link: &Arc<Link>, scopes: &[Scope]) -> Result<bool, ExchangeError> {
        let scopes = link.permitted(scopes);
        let (mut send, mut receive) = link.connection.open_bi().await?;
        let request =
            gossip::Exchange { sender: Some(self.introduction()), ..self.core.summary_request(&scopes) };
        frames::write(&mut send, &request).await?;
        frames::finish(&mut send)?;
        let answer = frames::read(&mut receive).await?;
        self.introduced(link, &answer);
        Ok(answer.summary == request.summary)
    }

    async fn exchange_once(&self, link: &Arc<Link>, scopes: &[Scope]) -> Result<bool, ExchangeError> {
        let scopes = link.permitted(scopes);
        let (mut send, mut receive) = link.connection.open_bi().await?;
        let request = gossip::Exchange { sender: Some(self.introduction()), ..self.core.request(&scopes) };
        frames::write(&mut send, &request).await?;
        let answer = frames::read(&mut receive).await?;
        self.introduced(link, &answer);
        let mut last = gossip::Exchange::default();
        let more_to_send = self.core.deltas_for(&answer, &scopes, &mut last);
        let more_to_come = answer.deltas.iter().any(|delta| delta.more);
        frames::write(&mut send, &last).await?;
        frames::finish(&mut send)?;
        self.take(link, answer, scopes).await?;
        // The other side ends its half once it has taken all in.
        frames::read_end(&mut receive).await?;
        Ok(more_to_send || more_to_come)
    }

    async fn answer(
        &self,
        link: &Arc<Link>,
        mut send: quinn::SendStream,
        mut receive: quinn::RecvStream,
    ) -> Result<(), ExchangeError> {
        let request = frames::read(&mut receive).await?;
        self.introduced(link, &request);
        let theirs = crate::exchange::read_scopes(&request.scopes);
        let common: Vec<Scope> =
            self.core.scopes.iter().filter(|scope| theirs.contains(scope)).cloned().collect();
        let scopes = link.permitted(&common);
        if !request.summary.is_empty() {
            let answer = gossip::Exchange {
                sender: Some(self.introduction()),
                summary: self.core.summary(&scopes),
                ..gossip::Exchange::default()
            };
            frames::write(&mut send, &answer).await?;
            frames::finish(&mut send)?;
            return Ok(());
        }
        let mut answer = gossip::Exchange { sender: Some(self.introduction()), ..self.core.request(&scopes) };
        self.core.deltas_for(&request, &scopes, &mut answer);
        frames::write(&mut send, &answer).await?;
        let last = frames::read(&mut receive).await?;
        self.take(link, last, scopes).await?;
        frames::finish(&mut send)?;
        Ok(())
    }

    /// Verifying and merging is work for the processor, and a panic in it must stay in it.
    async fn take(
        &self,
        link: &Link,
        message: gossip::Exchange,
        scopes: Vec<Scope>,
    ) -> Result<(), ExchangeError> {
        if message.deltas.is_empty() && message.certificates.is_empty() {
            return Ok(());
        }
        let (core, from) = (Arc::clone(&self.core), link.peer.name.clone());
        let now_ms = atoll_process::clock::unix_ms();
        let taken = tokio::task::spawn_blocking(move || core.take(message, &scopes, &from, now_ms)).await;
        taken.map_err(|_| {
            tracing::error!(peer = %link.peer.name, "taking in a peer's records panicked; please report this");
            ExchangeError::Panicked
        })
    }
}

fn peer_of(identity: &PeerIdentity) -> Option<Peer> {
    let SpiffeKind::Node { site, node } = identity.id.kind() else { return None };
    Some(Peer { name: node, site, region: identity.region.clone()?, roles: identity.roles })
}

fn join_packet(scope: &Scope, packet: &[u8]) -> Bytes {
    let name = scope.as_str().as_bytes();
    let mut datagram = BytesMut::with_capacity(1 + name.len() + packet.len());
    datagram.put_u8(name.len() as u8);
    datagram.put_slice(name);
    datagram.put_slice(packet);
    datagram.freeze()
}

fn split_packet(mut datagram: Bytes) -> Option<(Scope, Bytes)> {
    let length = usize::from(*datagram.first()?);
    if datagram.len() < 1 + length || datagram.len() > 1 + length + PACKET_BYTES_MAX {
        return None;
    }
    let packet = datagram.split_off(1 + length);
    let scope = Scope::parse(std::str::from_utf8(&datagram[1..]).ok()?).ok()?;
    Some((scope, packet))
}
