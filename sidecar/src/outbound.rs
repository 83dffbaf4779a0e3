//! What the instance calls: listeners on loopback, and the way from there to an instance of the called service.

mod gateways;
mod http;
mod listeners;
mod mesh;
mod tcp;

use self::http::Caller;
use self::listeners::Listeners;
use self::mesh::Mesh;
use atoll_identity::Identity;
use atoll_model::ClusterName;
use atoll_process::Metrics;
use atoll_proxy::ProxyMetrics;
use atoll_proxy::admission::Admissions;
use atoll_proxy::sample::Sample;
use atoll_wire::sidecar::{SidecarState, SidecarStatus};
use std::rc::Rc;

/// The outbound half of a sidecar.
#[derive(Debug)]
pub(crate) struct Outbound {
    caller: Rc<Caller>,
    listeners: Listeners,
}

impl Outbound {
    pub(crate) fn new(
        identity: &Identity,
        own: ClusterName,
        requests_max: usize,
        connections_max: usize,
        metrics: &Metrics,
    ) -> Self {
        let metrics = ProxyMetrics::register(metrics, "sidecar_outbound");
        let caller = Rc::new(Caller {
            mesh: Rc::new(Mesh::new(identity, &metrics)),
            own,
            admissions: Admissions::new(requests_max),
            metrics,
            failures: Sample::default(),
        });
        let listeners = Listeners::new(Rc::clone(&caller), connections_max);
        Self { caller, listeners }
    }

    /// Follows the host.
    pub(crate) fn update(&mut self, state: &SidecarState) {
        self.caller.mesh.update(state);
        self.listeners.update(state);
    }

    /// Tries again to listen where that has failed.
    pub(crate) fn open_missing(&mut self) {
        self.listeners.open_missing();
    }

    /// Takes nothing new.
    pub(crate) fn drain(&self) {
        self.listeners.drain();
    }

    /// Calls under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.caller.admissions.in_flight()
    }

    /// Tells the host. True where it is news: counts are not.
    pub(crate) fn tell(&self, status: &mut SidecarStatus) -> bool {
        let (open, taken) = (self.listeners.open(), self.listeners.taken());
        let wants = self.caller.mesh.wants();
        let news = status.ports_open != open || status.ports_taken != taken || status.wants != wants;
        (status.ports_open, status.ports_taken, status.wants) = (open, taken, wants);
        let counts = &self.caller.mesh.counts;
        status.calls_near = counts.near.get();
        status.calls_by_gateway = counts.by_gateway.get();
        status.calls_failed = counts.failed.get();
        news
    }
}
