//! Requests of other edges: for what this one's cache has, or fetches once for all of them.

use super::origin::{REFUSED, Regional, asker_of, purged_of};
use super::{Routed, route};
use crate::cache::answer::Asking;
use crate::cache::encoding::accepted::Accepted;
use crate::cache::fetch::{Fetched, Origin, Wish};
use crate::cache::is_for_cache;
use crate::cache::serve::{Answered, quick, respond};
use crate::worker::Worker;
use atoll_identity::{PeerIdentity, SpiffeKind};
use atoll_model::{Hop, Reason, Role};
use atoll_process::clock::unix_ms;
use atoll_proxy::admission::Admission;
use atoll_proxy::answer::{self, InternalAnswer};
use atoll_proxy::exchange::Handler;
use atoll_proxy::{Body, Exchange, Tries, headers};
use atoll_routing::hosts::normalise_host;
use atoll_routing::tier::Asker;
use http::Response;
use http::header::{HeaderMap, HeaderValue};
use std::rc::Rc;
use std::sync::Arc;

/// A connection of another edge.
#[derive(Debug)]
pub(crate) struct EdgeConnection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) peer: Arc<PeerIdentity>,
}

impl Handler for EdgeConnection {
    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        match self.serve(exchange).await {
            Ok(response) => response,
            Err(made) => answer::internal(made.hop, made.reason, made.sent),
        }
    }
}

impl EdgeConnection {
    /// The head is as the asking edge made it for an instance: it knows the client.
    async fn serve(&self, exchange: Exchange) -> Result<Response<Body>, InternalAnswer> {
        let unsent = |reason| InternalAnswer { hop: Hop::Edge, reason, sent: false };
        let shared = &self.worker.shared;
        let asker =
            asker_of(exchange.request.headers()).filter(|asker| self.may_ask(*asker)).ok_or(REFUSED)?;
        let cache = shared.cache.as_ref().ok_or(REFUSED)?;
        let known = purged_of(exchange.request.headers()).unwrap_or(u64::MAX);
        if !is_for_cache(&exchange.request) {
            return Err(REFUSED);
        }
        let host = normalise_host(exchange.authority()).ok_or(REFUSED)?.into_owned();
        let routed =
            route(shared, &host, exchange.request.uri().path()).map_err(|made| unsent(made.reason))?;
        let admission = shared.admissions.take().ok_or_else(|| unsent(Reason::EdgeFull))?;
        let (key, resource) = routed.resource(&exchange, &host);
        // It has heard of a purge that we have not: what we have may be what that one names.
        let is_behind = cache.purges.load().last_of(&resource.app) < known;
        let asking = Asking {
            method: exchange.request.method(),
            headers: exchange.request.headers(),
            accepted: Accepted::NONE,
            rule: routed.rule.as_deref(),
            is_edge: true,
            now_ms: unix_ms(),
        };
        if !is_behind && let Some(answered) = quick(cache, &key, asking) {
            return Ok(of_cache(answered, admission));
        }
        let Routed { cluster, rule, .. } = routed;
        let tier = rule.as_ref().map_or_else(Default::default, |rule| rule.tier);
        let interim = exchange.interim;
        let mut head = exchange.request.into_parts().0;
        for name in [headers::TIER, headers::PURGED, headers::TRIES] {
            head.headers.remove(name);
        }
        if let Ok(name) = HeaderValue::try_from(&*cluster.to.text) {
            head.headers.insert(headers::CLUSTER, name);
        }
        let (worker, tries) = (Rc::clone(&self.worker), Rc::<Tries>::default());
        let origin = Regional { worker, cluster, tries, tier, asker, interim };
        if is_behind {
            let Fetched { response, who, .. } = origin.fetch(head).await?;
            return Ok(told(response, &who, None, admission));
        }
        let wish = Wish { head, resource, key, rule, accepted: Accepted::NONE, is_edge: true };
        Ok(of_cache(respond(cache, &origin, wish, &shared.metrics).await?, admission))
    }

    /// What is asked for within a location is for its edges alone; any may be a shield.
    fn may_ask(&self, asker: Asker) -> bool {
        let here =
            matches!(self.peer.id.kind(), SpiffeKind::Node { site, .. } if site == self.worker.shared.site);
        self.peer.roles.has(Role::Edge) && (asker == Asker::Far || here)
    }
}

fn of_cache(answered: Answered, admission: Admission) -> Response<Body> {
    let did = answered.status.to_value_of("Atoll-Edge", None);
    told(answered.response, &answered.who, Some(did), admission)
}

/// An answer with who made it, and what the cache did, for the asking edge.
fn told(
    response: Response<Body>,
    who: &HeaderMap,
    did: Option<HeaderValue>,
    admission: Admission,
) -> Response<Body> {
    let mut response = response.map(|body| body.holding(admission));
    response.headers_mut().extend(who.iter().map(|(name, value)| (name.clone(), value.clone())));
    if let Some(did) = did {
        response.headers_mut().insert(headers::CACHE, did);
    }
    response
}
