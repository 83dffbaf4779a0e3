//! The edge's end of a tunnel.

use super::frames::{FrameReader, FrameWriter, frame_body};
use super::rtt::Rtt;
use super::{CONTROL_AUTHORITY, CONTROL_PATH, WIRE_VERSION};
use crate::body::Body;
use crate::client::{
    ConnectionHook, H2Peer, H2PeerConfig, MeshConnector, PeerConnection, SendError, SendTimeouts,
};
use crate::interim::Interim;
use crate::metrics::ProxyMetrics;
use arc_swap::ArcSwap;
use atoll_wire::tunnel::{ClusterHeadroom, Headroom, Hello, Ping, frame::Frame};
use http::{Method, Request, Response, header};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

const PING_EVERY: Duration = Duration::from_millis(250);
/// No pong for so long, and the gateway counts as dead.
const DEAD_AFTER: Duration = Duration::from_millis(1500);
const PINGS_OUT_MAX: usize = 16;
/// Headroom entries that are kept; the frame's bound allows about as many.
const CLUSTERS_MAX: usize = 4096;

/// What a tunnel needs to know.
#[derive(Debug, Clone)]
pub struct TunnelConfig {
    /// The connections. [`H2PeerConfig::far`] has the defaults.
    pub peer: H2PeerConfig,
    /// Our node's name and region, for the gateway's log.
    pub node: String,
    /// Our region.
    pub region: String,
}

/// What is known of a tunnel. A snapshot.
#[derive(Debug, Clone, Default)]
pub struct TunnelState {
    /// At least one connection is open, its control stream answers, and it takes requests.
    pub connected: bool,
    /// The least round trip of the last ten seconds over all connections; kept while there is none.
    pub rtt: Option<Duration>,
    /// The gateway goes away.
    pub draining: bool,
    /// By cluster, as the gateway told last.
    pub headroom: Arc<HashMap<String, ClusterHeadroom>>,
}

/// A tunnel of one worker to one gateway. Clones share it. Stays on its worker.
#[derive(Debug, Clone)]
pub struct Tunnel {
    peer: H2Peer,
    state: Arc<ArcSwap<TunnelState>>,
}

impl Tunnel {
    /// Connects at once, and again, with backoff, whenever a connection is lost. Must be called on a
    /// worker.
    #[must_use]
    pub fn open(config: TunnelConfig, connector: MeshConnector, metrics: ProxyMetrics) -> Self {
        let state = Arc::new(ArcSwap::from_pointee(TunnelState::default()));
        let shared = Rc::new(Shared {
            node: config.node,
            region: config.region,
            live: std::cell::RefCell::default(),
            rtt: std::cell::RefCell::default(),
            state: Arc::clone(&state),
        });
        let hook: ConnectionHook = Rc::new(move |connection| {
            let shared = Rc::clone(&shared);
            Box::pin(async move { control(shared, connection).await })
        });
        let peer = H2Peer::open_with_hook(config.peer, connector, metrics, Some(hook));
        Self { peer, state }
    }

    /// What is known now.
    #[must_use]
    pub fn state(&self) -> Arc<TunnelState> {
        self.state.load_full()
    }

    /// A handle for other threads.
    #[must_use]
    pub fn shared_state(&self) -> Arc<ArcSwap<TunnelState>> {
        Arc::clone(&self.state)
    }

    /// The connections.
    #[must_use]
    pub fn peer(&self) -> &H2Peer {
        &self.peer
    }

    /// Sends a request through the tunnel.
    ///
    /// # Errors
    /// As [`H2Peer::send`].
    pub async fn send(
        &self,
        request: Request<Body>,
        timeouts: SendTimeouts,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        self.peer.send(request, timeouts, interim).await
    }
}

struct Shared {
    node: String,
    region: String,
    /// Of each connection whose control stream answers: its number and whether it drains.
    live: std::cell::RefCell<HashMap<u64, bool>>,
    /// Of the way, so one for all connections: a new one on a busy way would start without a good time.
    rtt: std::cell::RefCell<Rtt>,
    state: Arc<ArcSwap<TunnelState>>,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut TunnelState)) {
        let mut next = TunnelState::clone(&self.state.load());
        let live = self.live.borrow();
        next.connected = live.values().any(|draining| !draining);
        next.draining = !live.is_empty() && !next.connected;
        change(&mut next);
        self.state.store(Arc::new(next));
    }
}

/// Takes the connection out of the state however its control stream ends.
struct Live {
    shared: Rc<Shared>,
    id: u64,
}

impl Live {
    fn set(&self, draining: bool) {
        self.shared.live.borrow_mut().insert(self.id, draining);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.shared.live.borrow_mut().remove(&self.id);
        self.shared.update(|_| {});
    }
}

/// Runs a connection's control stream; when it returns the connection is cut.
async fn control(shared: Rc<Shared>, connection: PeerConnection) {
    let gateway = connection.peer.id.to_string();
    let (writer, body) = frame_body();
    writer.write(Frame::Hello(Hello {
        version_min: WIRE_VERSION,
        version_max: WIRE_VERSION,
        node: shared.node.clone(),
        region: shared.region.clone(),
    }));
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(CONTROL_PATH);
    let authority = http::HeaderValue::from_static(CONTROL_AUTHORITY);
    request.headers_mut().insert(header::HOST, authority);
    let answer = tokio::time::timeout(Duration::from_secs(5), connection.send(request)).await;
    let response = match answer {
        Ok(Ok(response)) if response.status().is_success() => response,
        Ok(Ok(response)) => {
            warn!(gateway, status = %response.status(), "the gateway refuses the tunnel");
            return;
        }
        Ok(Err(error)) => {
            debug!(gateway, %error, "the tunnel broke before its control stream answered");
            return;
        }
        Err(_elapsed) => {
            warn!(gateway, "the gateway does not answer the tunnel's control stream");
            return;
        }
    };
    let mut session = Session {
        live: Live { shared: Rc::clone(&shared), id: rand::random() },
        shared,
        connection,
        writer,
        out: VecDeque::new(),
        nonce: 0,
        silence: Silence::new(Instant::now()),
        draining: false,
    };
    let why = session.run(FrameReader::new(response.into_body())).await;
    info!(gateway, why, "a tunnel connection ended");
}

struct Session {
    live: Live,
    shared: Rc<Shared>,
    connection: PeerConnection,
    writer: FrameWriter,
    /// Pings without an answer, oldest first.
    out: VecDeque<(u64, Instant)>,
    nonce: u64,
    silence: Silence,
    draining: bool,
}

/// How long the gateway has been silent while this thread was there to listen. When the thread itself
/// was held up, the pongs wait in the socket: that time says nothing of the gateway.
struct Silence {
    last: Instant,
    total: Duration,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { last: now, total: Duration::ZERO }
    }

    fn broken(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// To be called every [`PING_EVERY`]; a call that comes late counts as one in time.
    fn at_tick(&mut self, now: Instant) -> Duration {
        self.total += now.saturating_duration_since(self.last).min(PING_EVERY);
        self.last = now;
        self.total
    }
}

impl Session {
    /// Until the connection is of no more use; says why.
    async fn run(&mut self, mut frames: FrameReader) -> &'static str {
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Frames first: after a pause of this thread the pongs are here already.
                biased;
                frame = frames.next() => match frame {
                    Ok(Some(frame)) => self.take(frame),
                    Ok(None) => return "the gateway closed the control stream",
                    Err(error) => {
                        debug!(%error, "the control stream broke");
                        return "the control stream broke";
                    }
                },
                _ = ticks.tick() => {
                    if self.silence.at_tick(Instant::now()) > DEAD_AFTER {
                        return "the gateway does not answer pings";
                    }
                    if self.draining && self.connection.in_flight() == 0 {
                        return "the gateway drains and nothing is in flight";
                    }
                    self.ping();
                }
            }
        }
    }

    fn ping(&mut self) {
        self.nonce += 1;
        if self.out.len() == PINGS_OUT_MAX {
            self.out.pop_front();
        }
        if self.writer.write(Frame::Ping(Ping { nonce: self.nonce })) {
            self.out.push_back((self.nonce, Instant::now()));
        }
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Pong(Ping { nonce }) => {
                let Some(at) = self.out.iter().position(|(sent, _)| *sent == nonce) else {
                    return;
                };
                let Some((_, sent)) = self.out.drain(..=at).next_back() else {
                    return;
                };
                let now = Instant::now();
                self.silence.broken(now);
                let rtt = self.shared.rtt.borrow_mut().add(now, now - sent);
                self.live.set(self.draining);
                self.shared.update(|state| state.rtt = Some(rtt));
            }
            Frame::Headroom(Headroom { clusters }) => {
                let headroom =
                    clusters.into_iter().take(CLUSTERS_MAX).map(|c| (c.cluster.clone(), c)).collect();
                self.shared.update(|state| state.headroom = Arc::new(headroom));
            }
            Frame::Drain(_) => {
                self.draining = true;
                self.connection.retire();
                self.live.set(true);
                self.shared.update(|_| {});
            }
            Frame::Ping(ping) => {
                self.writer.write(Frame::Pong(ping));
            }
            Frame::Hello(hello) => {
                debug!(node = hello.node, region = hello.region, "a tunnel is up");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_held_up_does_not_blame_the_gateway() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        assert!(silence.at_tick(start + Duration::from_secs(10)) <= PING_EVERY);
        let mut now = start + Duration::from_secs(10);
        while silence.at_tick(now) <= DEAD_AFTER {
            now += PING_EVERY;
            assert!(now < start + Duration::from_secs(12), "real silence is noticed");
        }
        silence.broken(now);
        assert!(silence.at_tick(now + PING_EVERY) <= PING_EVERY);
    }
}
