//! The services that are called, and sending a request to one of their instances: in this region straight to
//! its sidecar, else by way of a gateway.

use super::gateways::Gateways;
use atoll_identity::Identity;
use atoll_model::{ClusterName, Hop, Reason};
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::region::{self, Reach, Sidecars};
use atoll_proxy::{Body, Destination, Outgoing, ProxyMetrics, Tries};
use atoll_routing::endpoint::State;
use atoll_routing::placed::{Endpoint, Endpoints};
use atoll_routing::retry::Retry;
use atoll_wire::sidecar::{self, SidecarState};
use http::Response;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Where nobody says otherwise.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Services asked for by name whose instances the host is asked for; calls of others go by way of a gateway.
const WANTS_MAX: usize = 64;

/// A service and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Called {
    pub(crate) to: Arc<Destination>,
    /// Those that pass their checks.
    healthy: Arc<Endpoints>,
    /// The others: asked when nothing better is left.
    poor: Arc<Endpoints>,
}

/// How calls have gone, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Answered by an instance of this region, asked without a gateway.
    pub(crate) near: Cell<u64>,
    /// Answered by way of a gateway.
    pub(crate) by_gateway: Cell<u64>,
    /// Not answered by an instance.
    pub(crate) failed: Cell<u64>,
}

/// The mesh as this sidecar sees it.
#[derive(Debug)]
pub(crate) struct Mesh {
    sidecars: Sidecars,
    reach: Reach,
    gateways: Gateways,
    called: RefCell<BTreeMap<ClusterName, Called>>,
    wants: RefCell<BTreeSet<String>>,
    pub(crate) counts: Counts,
}

impl Mesh {
    pub(crate) fn new(identity: &Identity, metrics: &ProxyMetrics) -> Self {
        let reach = Reach::default();
        Self {
            sidecars: Sidecars::new(Hop::Sidecar, identity.clone(), metrics.clone(), reach.clone()),
            reach,
            gateways: Gateways::new(identity.clone(), metrics.clone()),
            called: RefCell::default(),
            wants: RefCell::default(),
            counts: Counts::default(),
        }
    }

    /// Follows the host.
    pub(crate) fn update(&self, state: &SidecarState) {
        self.gateways.update(&state.gateways);
        let named = state.calls.iter().filter_map(|call| match call.cluster.parse::<ClusterName>() {
            Ok(cluster) => Some((cluster.clone(), called(cluster, call))),
            Err(error) => {
                warn!(cluster = call.cluster, %error, "a call of a service that can't be named");
                None
            }
        });
        let called: BTreeMap<ClusterName, Called> = named.collect();
        self.sidecars.keep(|cluster, key, address| {
            let is_it = |endpoint: &&Endpoint| *endpoint.key == *key && endpoint.address == address;
            called.get(cluster).is_some_and(|called| called.all().any(|e| is_it(&e)))
        });
        *self.called.borrow_mut() = called;
    }

    /// What is known of a service. One that the host did not speak of is asked for from now on.
    pub(crate) fn called(&self, cluster: &ClusterName) -> Called {
        if let Some(called) = self.called.borrow().get(cluster) {
            return called.clone();
        }
        let mut wants = self.wants.borrow_mut();
        if wants.len() < WANTS_MAX {
            wants.insert(cluster.to_string());
        }
        called(cluster.clone(), &sidecar::Call::default())
    }

    /// Services that were asked for by name.
    pub(crate) fn wants(&self) -> Vec<String> {
        self.wants.borrow().iter().cloned().collect()
    }

    /// Forwards until an instance has answered, or no further try is allowed.
    ///
    /// # Errors
    /// What is to be answered instead.
    pub(crate) async fn forward(
        &self,
        called: &Called,
        outgoing: &Outgoing,
    ) -> Result<Response<Body>, InternalAnswer> {
        let answered = self.tried(called, outgoing, &Tries::default()).await;
        if answered.is_err() {
            self.counts.failed.set(self.counts.failed.get() + 1);
        }
        answered
    }

    async fn tried(
        &self,
        called: &Called,
        outgoing: &Outgoing,
        tries: &Tries,
    ) -> Result<Response<Body>, InternalAnswer> {
        let near = || Some(self.reachable(&called.healthy));
        let mut made = match region::forward(&self.sidecars, near, outgoing, tries).await {
            Ok(answered) => return Ok(self.answered_near(answered.response)),
            Err(made) => made,
        };
        if may_go_on(&made, outgoing, tries) {
            made = match self.gateways.forward(outgoing, tries, made).await {
                Ok(response) => {
                    self.counts.by_gateway.set(self.counts.by_gateway.get() + 1);
                    return Ok(response);
                }
                Err(made) => made,
            };
        }
        // Nobody has a healthy instance: then rather one that fails its checks, or is to end, than none.
        let nobody =
            !made.sent && matches!(made.reason, Reason::NoInstance | Reason::NoRegion | Reason::TunnelLost);
        if nobody && !called.poor.all.is_empty() && tries.left() > 0 {
            let poor = || Some(Arc::clone(&called.poor));
            if let Ok(answered) = region::forward(&self.sidecars, poor, outgoing, tries).await {
                return Ok(self.answered_near(answered.response));
            }
        }
        Err(made)
    }

    fn answered_near(&self, response: Response<Body>) -> Response<Body> {
        self.counts.near.set(self.counts.near.get() + 1);
        response
    }

    /// Without those that can't be connected to from here.
    fn reachable(&self, healthy: &Arc<Endpoints>) -> Arc<Endpoints> {
        if !healthy.all.iter().any(|endpoint| self.reach.is_ejected(&endpoint.key)) {
            return Arc::clone(healthy);
        }
        let left = healthy.all.iter().filter(|endpoint| !self.reach.is_ejected(&endpoint.key));
        Arc::new(Endpoints { all: left.cloned().collect(), expected: healthy.expected })
    }
}

impl Called {
    fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.healthy.all.iter().chain(&self.poor.all)
    }
}

/// Whether another region may be asked, which may mean the same instance by way of the gateway.
fn may_go_on(made: &InternalAnswer, outgoing: &Outgoing, tries: &Tries) -> bool {
    matches!(outgoing.after(made.reason, made.sent, tries), Retry::Again { same_too: true })
}

fn called(cluster: ClusterName, call: &sidecar::Call) -> Called {
    let response_timeout = match call.response_timeout_ms {
        0 => RESPONSE_TIMEOUT,
        ms => Duration::from_millis(ms),
    };
    let (healthy, poor): (Vec<Endpoint>, Vec<Endpoint>) =
        call.endpoints.iter().filter_map(endpoint).partition(|endpoint| endpoint.state == State::Healthy);
    let endpoints = |all| Arc::new(Endpoints { all, expected: 0 });
    Called {
        to: Arc::new(Destination::new(cluster, response_timeout)),
        healthy: endpoints(healthy),
        poor: endpoints(poor),
    }
}

fn endpoint(told: &sidecar::Endpoint) -> Option<Endpoint> {
    use sidecar::endpoint::State as Told;
    let state = match told.state() {
        Told::Absent => State::Absent,
        Told::Healthy => State::Healthy,
        Told::Unhealthy => State::Unhealthy,
        Told::Draining => State::Draining,
    };
    Some(Endpoint { key: told.key.as_str().into(), address: told.address.parse().ok()?, state })
}

/// Only what a service may be named by in the mesh: `SERVICE.APP.internal`.
pub(crate) fn cluster_of(host: &str, own: &ClusterName) -> Option<ClusterName> {
    let host = host.to_ascii_lowercase();
    let name = host.strip_suffix('.').unwrap_or(&host).strip_suffix(".internal")?;
    let (service, app) = name.split_once('.')?;
    Some(ClusterName { org: own.org.clone(), app: app.parse().ok()?, service: service.parse().ok()? })
}

/// The mesh name of a service.
pub(crate) fn host_of(cluster: &ClusterName) -> String {
    format!("{}.{}.internal", cluster.service, cluster.app)
}

/// Shared by all that handle a call.
pub(crate) type SharedMesh = Rc<Mesh>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_names_of_the_mesh_name_services() {
        let own: ClusterName = "acme/shop/web".parse().unwrap();
        let of = |host: &str| cluster_of(host, &own).map(|cluster| cluster.to_string());
        assert_eq!(of("api.shop.internal").as_deref(), Some("acme/shop/api"));
        assert_eq!(of("API.Billing.INTERNAL.").as_deref(), Some("acme/billing/api"));
        assert_eq!(host_of(&"acme/shop/api".parse().unwrap()), "api.shop.internal");
        for host in [
            "example.com",
            "internal",
            "shop.internal",
            "a.b.c.internal",
            "api.shop.internal.evil",
            "..internal",
            "a..internal",
        ] {
            assert_eq!(of(host), None, "{host}");
        }
    }
}
