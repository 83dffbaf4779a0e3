//! The sidecar's life: learn who we are, listen, serve, follow the host, drain, end.

use crate::config::Config;
use crate::host_link::keep_linked;
use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::state::{apply_denied, apply_material, serving};
use atoll_identity::{Identity, PeerPolicy};
use atoll_model::{OrgName, RegionName, Role};
use atoll_process::Metrics;
use atoll_process::drain::{Drain, DrainTrigger, channel};
use atoll_process::signals::Terminations;
use atoll_proxy::ProxyMetrics;
use atoll_proxy::listen::{ConnectionCap, ConnectionPermit, accept_loop, bind_alone};
use atoll_proxy::sample::Sample;
use atoll_proxy::server::{MeshAcceptor, ServerLimits};
use atoll_proxy::workers::spawn_task;
use atoll_wire::sidecar::{SidecarState, SidecarStatus};
use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, LocalSet};
use tracing::{debug, error, info, warn};

/// Why a sidecar can't run.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// No socket.
    #[error("can't listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No runtime, or no signals.
    #[error("the process can't be set up")]
    Setup(#[source] io::Error),
    /// It was told to end before the host had said who it is.
    #[error("ended before the host sent a state")]
    NoState,
}

/// Runs a sidecar on this thread until SIGTERM or SIGINT, and then until it has drained; a second
/// signal ends it at once.
///
/// # Errors
/// When it can't be set up.
pub fn run_process(config: Config) -> Result<(), SidecarError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SidecarError::Setup)?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut signals = Terminations::listen().map_err(SidecarError::Setup)?;
        let (trigger, drain) = channel();
        let deadline = config.drain_timeout;
        spawn_task("signals", &ProxyMetrics::unregistered(), async move {
            info!(signal = signals.next().await, "draining");
            trigger.start();
            tokio::select! {
                _ = signals.next() => {}
                () = tokio::time::sleep(deadline) => {}
            }
            trigger.force();
        });
        let bound = Sidecar::bind(config, &Metrics::new(), drain.clone()).await?;
        bound.run(drain).await;
        Ok(())
    })
}

/// A sidecar.
#[derive(Debug)]
pub struct Sidecar;

/// A sidecar that knows who it is and listens.
#[derive(Debug)]
pub struct Bound {
    /// Where it takes mutual TLS.
    pub address: SocketAddr,
    config: Config,
    listener: TcpListener,
    identity: Identity,
    metrics: ProxyMetrics,
    states: watch::Receiver<Option<SidecarState>>,
    statuses: watch::Sender<SidecarStatus>,
    inbound: Rc<Inbound>,
    outbound: Outbound,
    peers: PeerPolicy,
    link: AbortHandle,
}

impl Sidecar {
    /// Links to the host, waits for a state that holds together, and listens. Must be called within a
    /// [`LocalSet`]; the link is kept up until the [`Bound`] has run.
    ///
    /// # Errors
    /// When there is no socket, or `drain` starts while there is no state.
    pub async fn bind(config: Config, metrics: &Metrics, drain: Drain) -> Result<Bound, SidecarError> {
        let registry = metrics;
        let metrics = ProxyMetrics::register(registry, "sidecar");
        let (state_sender, mut states) = watch::channel(None);
        let (statuses, status_receiver) = watch::channel(SidecarStatus {
            instance: config.instance.to_string(),
            pid: std::process::id(),
            ..SidecarStatus::default()
        });
        let (socket, instance) = (config.socket.clone(), config.instance.clone());
        let link = spawn_task("host link", &metrics, async move {
            keep_linked(&socket, &instance, state_sender, status_receiver).await;
        })
        .abort_handle();
        let known = tokio::select! {
            known = first_state(&mut states) => known,
            () = drain.draining() => None,
        };
        let Some((identity, serving)) = known else {
            link.abort();
            return Err(SidecarError::NoState);
        };
        let wanted = SocketAddr::new(config.listen, 0);
        let listen_error = |cause| SidecarError::Listen { address: wanted, cause };
        let listener = bind_alone(wanted).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        info!(%address, id = %identity.own_id(), "listening");
        let (own, requests_max) = (serving.cluster.clone(), config.requests_max);
        let peers = peers(&serving.region, &own.org);
        let outbound = Outbound::new(&identity, own, requests_max, config.calls_max, registry);
        let inbound = Rc::new(Inbound::new(serving, identity.own_id(), requests_max, metrics.clone()));
        Ok(Bound {
            address,
            config,
            listener,
            identity,
            metrics,
            states,
            statuses,
            inbound,
            outbound,
            peers,
            link,
        })
    }
}

async fn first_state(
    states: &mut watch::Receiver<Option<SidecarState>>,
) -> Option<(Identity, crate::state::Serving)> {
    loop {
        states.changed().await.ok()?;
        // Marked as unseen: draining, which it may ask for, is the running sidecar's to follow.
        let Some(state) = states.borrow_and_update().clone() else {
            continue;
        };
        match apply_material(None, &state).and_then(|made| Ok((made, serving(&state)?))) {
            Ok((Some(identity), serving)) => {
                apply_denied(&identity, &state);
                identity.clock().correct(state.clock_correction_ms);
                states.mark_changed();
                return Some((identity, serving));
            }
            Ok((None, _)) => {}
            Err(error) => error!(%error, "the host's state can't be used; waiting for another"),
        }
    }
}

/// Who may connect at all: the gateways of our region, and instances of our organization.
fn peers(region: &RegionName, org: &OrgName) -> PeerPolicy {
    let gateways = PeerPolicy::NodeOf(region.clone(), Role::Gateway);
    PeerPolicy::AnyOf(vec![gateways, PeerPolicy::WorkloadOf(org.clone())])
}

impl Bound {
    /// Serves until `drain` has started and nothing is in flight any more, or is forced.
    pub async fn run(mut self, drain: Drain) {
        let connections = Rc::new(RefCell::new(Epoch::new()));
        self.accept(Rc::clone(&connections));
        self.statuses.send_modify(|status| status.address = self.address.to_string());
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
        let mut phase = Phase::Serving;
        loop {
            tokio::select! {
                changed = self.states.changed() => {
                    if changed.is_err() {
                        warn!("the task that listens to the host is gone; serving goes on");
                        drain.draining().await;
                    } else {
                        let wanted = self.follow();
                        phase = self.turn(phase, wanted || drain.is_draining(), &connections);
                    }
                }
                () = drain.draining(), if phase == Phase::Serving => {
                    phase = self.turn(phase, true, &connections);
                }
                () = lame_duck_over(&phase), if matches!(phase, Phase::LameDuck(_)) => {
                    self.inbound.set_refusing(true);
                    connections.borrow().trigger.start();
                    phase = Phase::Finishing;
                }
                () = self.inbound.load.idle(), if phase == Phase::Finishing => {
                    phase = Phase::Drained;
                    info!("drained");
                }
                () = drain.forced() => {
                    connections.borrow().trigger.force();
                    break;
                }
                _ = ticks.tick() => self.outbound.open_missing(),
            }
            if drain.is_draining() {
                self.outbound.drain();
            }
            self.tell(&phase);
            let is_done = phase == Phase::Drained && self.outbound.in_flight() == 0;
            if is_done && drain.is_draining() {
                // One turn for the last frames, and for the host to read that we are done.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                break;
            }
        }
        self.link.abort();
    }

    fn accept(&self, connections: Rc<RefCell<Epoch>>) {
        let Ok(listener) = self.listener.try_clone() else {
            error!("can't take connections: no file descriptor is left");
            return;
        };
        let acceptor = MeshAcceptor::new(&self.identity, self.peers.clone());
        let limits = Rc::new(ServerLimits::sidecar());
        let (inbound, metrics) = (Rc::clone(&self.inbound), self.metrics.clone());
        let own_id = self.identity.own_id();
        let strangers = Rc::new(Sample::default());
        let on_connection = move |stream: TcpStream, peer: SocketAddr, permit: ConnectionPermit| {
            let (acceptor, limits, strangers) = (acceptor.clone(), Rc::clone(&limits), Rc::clone(&strangers));
            let (inbound, counted) = (Rc::clone(&inbound), metrics.clone());
            let drain = connections.borrow().drain.clone();
            let own_id = own_id.clone();
            spawn_task("mesh connection", &metrics, async move {
                match acceptor.accept(stream, peer).await {
                    Ok(connection) => {
                        let end = connection.serve(&limits, inbound, &counted, drain).await;
                        debug!(?end, "a connection of the mesh ended");
                    }
                    Err(error) => {
                        counted.handshake_errors.inc();
                        if let Some(left_out) = strangers.take(Instant::now()) {
                            warn!(%peer, own = %own_id, error = chain(&error), left_out, "a connection was not let in");
                        }
                    }
                }
                drop(permit);
            });
        };
        let cap = ConnectionCap::new(self.config.connections_max);
        let metrics = self.metrics.clone();
        // Never drained: while one drains, a gateway that connects is told so, in HTTP.
        let (trigger, always) = channel();
        spawn_task("accept", &self.metrics, async move {
            if let Err(error) = accept_loop(listener, cap, metrics, always, on_connection).await {
                error!(%error, "connections are no longer taken");
            }
            drop(trigger);
        });
    }

    /// Applies the host's state as far as it can be; says whether it asks to drain.
    fn follow(&mut self) -> bool {
        let Some(state) = self.states.borrow_and_update().clone() else {
            return false;
        };
        if let Err(error) = apply_material(Some(&self.identity), &state) {
            error!(error = chain(&error), "the new certificate can't be used; the old one stays");
        }
        apply_denied(&self.identity, &state);
        self.identity.clock().correct(state.clock_correction_ms);
        match serving(&state) {
            Ok(serving) => {
                self.inbound.update(serving);
                self.outbound.update(&state);
            }
            Err(error) => error!(error = chain(&error), "the host's state can't be used"),
        }
        state.draining
    }

    /// Begins a drain, or takes one back.
    fn turn(&self, phase: Phase, drain: bool, connections: &RefCell<Epoch>) -> Phase {
        match (drain, phase) {
            (true, Phase::Serving) => {
                info!("draining");
                Phase::LameDuck(tokio::time::Instant::now() + self.config.lame_duck)
            }
            (false, Phase::LameDuck(_)) => Phase::Serving,
            (false, Phase::Finishing | Phase::Drained) => {
                info!("the drain was taken back");
                self.inbound.set_refusing(false);
                self.retire(connections.replace(Epoch::new()));
                Phase::Serving
            }
            (_, phase) => phase,
        }
    }

    /// Lets the connections of a drain that was taken back finish.
    fn retire(&self, epoch: Epoch) {
        let load = Rc::clone(&self.inbound.load);
        spawn_task("old connections", &self.metrics, async move {
            // A dropped trigger would cut them.
            load.idle().await;
            drop(epoch);
        });
    }

    fn tell(&self, phase: &Phase) {
        let in_flight = u32::try_from(self.inbound.load.in_flight()).unwrap_or(u32::MAX);
        let drained = *phase == Phase::Drained;
        self.statuses.send_if_modified(|status| {
            // The host does not act on each request that comes and goes: the count goes with the ticks.
            let news = status.drained != drained;
            status.in_flight = in_flight;
            status.drained = drained;
            status.calls_refused = self.inbound.refused();
            self.outbound.tell(status) || news
        });
    }
}

/// The connections between two drains.
#[derive(Debug)]
struct Epoch {
    trigger: DrainTrigger,
    drain: Drain,
}

impl Epoch {
    fn new() -> Self {
        let (trigger, drain) = channel();
        Self { trigger, drain }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Draining, but new requests are served until then.
    LameDuck(tokio::time::Instant),
    Finishing,
    Drained,
}

async fn lame_duck_over(phase: &Phase) {
    if let Phase::LameDuck(until) = phase {
        tokio::time::sleep_until(*until).await;
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text = format!("{text}: {current}");
        cause = current.source();
    }
    text
}
