//! The loopback ports at which the instance finds what it calls.

use super::http::{CallHandler, Caller, ProxyHandler};
use super::tcp;
use atoll_model::{ClusterName, Protocol};
use atoll_process::Drain;
use atoll_process::drain::{DrainTrigger, channel};
use atoll_proxy::exchange::ConnectionInfo;
use atoll_proxy::listen::{ConnectionCap, ConnectionPermit, accept_loop, bind_alone};
use atoll_proxy::server::{HttpVersion, STREAM_SILENCE_MAX, ServerLimits, serve_connection};
use atoll_proxy::workers::spawn_task;
use atoll_proxy::{Handler, ProxyMetrics};
use atoll_wire::sidecar::SidecarState;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tracing::{debug, error, info, warn};

/// How long a kept connection of the instance may wait for its next request. Closing early makes a client's
/// next request fail now and then; its own pool has a shorter patience.
const KEPT_MAX: Duration = Duration::from_secs(900);
/// For the first bytes, which tell HTTP/2 from HTTP/1.1.
const PREFACE_WAIT: Duration = Duration::from_secs(60);
/// The longest wait between two looks at a beginning that is not whole.
const PREFACE_LOOK_MAX: Duration = Duration::from_millis(100);
/// How HTTP/2 with prior knowledge begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a port is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Purpose {
    Http(ClusterName),
    Tcp(ClusterName),
    Proxy,
}

/// One that is open; dropped, it takes no more connections and lets those that there are finish.
#[derive(Debug)]
struct Listener {
    purpose: Purpose,
    trigger: DrainTrigger,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Listeners {
    caller: Rc<Caller>,
    cap: ConnectionCap,
    limits: Rc<ServerLimits>,
    wanted: BTreeMap<u16, Purpose>,
    open: BTreeMap<u16, Listener>,
}

impl Listeners {
    pub(crate) fn new(caller: Rc<Caller>, connections_max: usize) -> Self {
        let limits = ServerLimits {
            internal: false,
            head_timeout: KEPT_MAX,
            body_idle_timeout: STREAM_SILENCE_MAX,
            ..ServerLimits::sidecar()
        };
        let cap = ConnectionCap::new(connections_max);
        Self { caller, cap, limits: Rc::new(limits), wanted: BTreeMap::new(), open: BTreeMap::new() }
    }

    /// Opens and closes as the host says.
    pub(crate) fn update(&mut self, state: &SidecarState) {
        self.wanted = wanted(state);
        let wanted = &self.wanted;
        let closed = self.open.extract_if(.., |port, open| wanted.get(port) != Some(&open.purpose));
        for (_, listener) in closed.collect::<Vec<_>>() {
            close(listener, &self.caller.metrics);
        }
        self.open_missing();
    }

    /// Tries again what could not be opened.
    pub(crate) fn open_missing(&mut self) {
        for (port, purpose) in &self.wanted {
            if self.open.contains_key(port) {
                continue;
            }
            match bind_alone(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))) {
                Ok(socket) => {
                    info!(port, ?purpose, "listening for calls of the instance");
                    let (trigger, drain) = channel();
                    self.accept(socket, purpose.clone(), drain);
                    self.open.insert(*port, Listener { purpose: purpose.clone(), trigger });
                }
                Err(error) => debug!(port, %error, "the port is taken"),
            }
        }
    }

    /// Those on which it listens.
    pub(crate) fn open(&self) -> Vec<u32> {
        self.open.keys().copied().map(u32::from).collect()
    }

    /// Those that somebody else has.
    pub(crate) fn taken(&self) -> Vec<u32> {
        self.wanted.keys().filter(|port| !self.open.contains_key(port)).copied().map(u32::from).collect()
    }

    /// Takes nothing new; what is under way may finish until it is forced.
    pub(crate) fn drain(&self) {
        self.open.values().for_each(|listener| listener.trigger.start());
    }

    fn accept(&self, socket: std::net::TcpListener, purpose: Purpose, drain: Drain) {
        let (caller, limits) = (Rc::clone(&self.caller), Rc::clone(&self.limits));
        let during = drain.clone();
        let on_connection = move |stream: TcpStream, peer: SocketAddr, permit: ConnectionPermit| {
            let (caller, limits) = (Rc::clone(&caller), Rc::clone(&limits));
            let (purpose, drain) = (purpose.clone(), during.clone());
            let metrics = caller.metrics.clone();
            spawn_task("call connection", &metrics, async move {
                match purpose {
                    Purpose::Tcp(cluster) => {
                        tokio::select! {
                            () = tcp::carry(&caller, &cluster, stream) => {}
                            () = drain.forced() => {}
                        }
                    }
                    Purpose::Http(cluster) => {
                        let handler = CallHandler { caller: Rc::clone(&caller), cluster };
                        serve(stream, peer, handler, &limits, &caller.metrics, drain).await;
                    }
                    Purpose::Proxy => {
                        let handler = ProxyHandler { caller: Rc::clone(&caller) };
                        serve(stream, peer, handler, &limits, &caller.metrics, drain).await;
                    }
                }
                drop(permit);
            });
        };
        let (cap, metrics) = (self.cap.clone(), self.caller.metrics.clone());
        spawn_task("accept calls", &self.caller.metrics, async move {
            if let Err(error) = accept_loop(socket, cap, metrics, drain, on_connection).await {
                error!(%error, "connections of the instance are no longer taken");
            }
        });
    }
}

/// The first one has a port, where two want it.
fn wanted(state: &SidecarState) -> BTreeMap<u16, Purpose> {
    let mut wanted = BTreeMap::new();
    let mut add = |port: u32, purpose: Purpose| match u16::try_from(port) {
        Ok(0) => {}
        Ok(port) => drop(wanted.entry(port).or_insert(purpose)),
        Err(_) => warn!(port, "no port"),
    };
    for call in &state.calls {
        if let Ok(cluster) = call.cluster.parse::<ClusterName>() {
            let is_tcp = Protocol::from_name(&call.protocol) == Some(Protocol::Tcp);
            add(call.port, if is_tcp { Purpose::Tcp(cluster) } else { Purpose::Http(cluster) });
        }
    }
    add(state.proxy_port, Purpose::Proxy);
    wanted
}

/// What is open on a listener's connections may finish: a dropped trigger would cut them.
fn close(listener: Listener, metrics: &ProxyMetrics) {
    listener.trigger.start();
    spawn_task("old calls", metrics, async move {
        tokio::time::sleep(STREAM_SILENCE_MAX).await;
        drop(listener);
    });
}

async fn serve<H: Handler>(
    stream: TcpStream,
    peer: SocketAddr,
    handler: H,
    limits: &ServerLimits,
    metrics: &ProxyMetrics,
    drain: Drain,
) {
    let Ok(local) = stream.local_addr() else { return };
    let version = tokio::select! {
        version = tokio::time::timeout(PREFACE_WAIT, version_of(&stream)) => version,
        () = drain.draining() => return,
    };
    let Ok(Some(version)) = version else { return };
    let info = Arc::new(ConnectionInfo { peer, local, tls: None, identity: None });
    let end = serve_connection(stream, version, info, limits, Rc::new(handler), metrics, drain).await;
    debug!(?end, "a connection of the instance ended");
}

/// Which HTTP a client speaks, by its first bytes, which stay unread. `None` when it has gone.
async fn version_of(stream: &TcpStream) -> Option<HttpVersion> {
    let mut seen = [0; PREFACE.len()];
    let mut wait = Duration::from_millis(1);
    let mut before = 0;
    loop {
        let count = stream.peek(&mut seen).await.ok().filter(|count| *count > 0)?;
        if !PREFACE.starts_with(&seen[..count]) {
            return Some(HttpVersion::H1);
        }
        if count == PREFACE.len() {
            return Some(HttpVersion::H2);
        }
        if count == before {
            // What is there already makes the socket readable: nothing tells of the rest.
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(PREFACE_LOOK_MAX);
        }
        before = count;
    }
}
