//! Where responses come from: another edge whose cache may have them, and the regions.

use crate::cache::fetch::{Fetched, Origin};
use crate::cache::key::Key;
use crate::record::Record;
use crate::views::{Cluster, Snapshot};
use crate::worker::Worker;
use atoll_model::{Hop, Reason, Tier};
use atoll_proxy::answer::{self, InternalAnswer};
use atoll_proxy::{Body, Interim, Outgoing, Tries, headers};
use atoll_routing::tier::{self, Ask, Asker};
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, VARY};
use http::{Request, Response, request};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// How much longer than the called sidecar we wait for another edge.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(3);

/// The service's instances, in whichever region; other edges stand before them.
#[derive(Debug, Clone)]
pub(crate) struct Regional {
    pub(crate) worker: Rc<Worker>,
    pub(crate) cluster: Arc<Cluster>,
    /// Of the request on whose behalf it is asked.
    pub(crate) tries: Rc<Tries>,
    /// Which edges may stand before the regions.
    pub(crate) tier: Tier,
    /// On whose behalf.
    pub(crate) asker: Asker,
    /// Its way back for what comes before the response.
    pub(crate) interim: Interim,
}

impl Regional {
    /// Asks the regions.
    pub(crate) async fn forward(&self, outgoing: &Outgoing) -> Result<Fetched, InternalAnswer> {
        let Cluster { to, regions, .. } = &*self.cluster;
        let said = || self.worker.shared.views.load().summaries.of(&to.text).cloned();
        let answered = self.worker.regions.forward(said, regions, outgoing, &self.tries).await?;
        Ok(finish(answered.response))
    }

    /// Asks another edge. Nothing where there is none to ask, or it had nothing to say: then the regions are asked.
    async fn ask_edge(
        &self,
        head: &request::Parts,
        place: u64,
        purged: u64,
    ) -> Option<Result<Fetched, InternalAnswer>> {
        let peers = &self.worker.peers;
        let snapshot = Arc::clone(&*self.worker.shared.views.load());
        let Ask { edge, as_asker } = self.next(&snapshot, place)?;
        let edge = snapshot.edges.iter().find(|known| known.name == *edge)?;
        let changed = self.worker.shared.cache.as_ref().map(|cache| &cache.changed);
        let change = changed.and_then(|changed| changed.of(place));
        let mut asked = head.clone();
        if change.is_some() {
            // What it has may be from before a change that went past it.
            asked.headers.append(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        asked.headers.insert(headers::TIER, HeaderValue::from_static(word_of(as_asker)));
        asked.headers.insert(headers::PURGED, HeaderValue::from(purged));
        let request = Request::from_parts(asked, Body::empty());
        let patience = self.cluster.to.response_timeout + TIMEOUT_MARGIN;
        let counts = &self.worker.shared.cache_metrics;
        match peers.ask(&snapshot.edges, edge, request, (patience, &self.interim)).await {
            Err(error) => {
                debug!(edge = %edge.name, %error, "another edge did not answer: the region is asked");
                counts.tier_failed.inc();
                None
            }
            Ok(response) => match answer::read_internal(response.headers()) {
                // It had its reasons, which need not be ours.
                Some(made) if !made.sent => {
                    debug!(edge = %edge.name, reason = %made.reason, "another edge refused: the region is asked");
                    counts.tier_failed.inc();
                    None
                }
                Some(made) => {
                    self.tries.spend(1);
                    Some(Err(made))
                }
                None => {
                    counts.tier_answered.inc();
                    // It keeps this, so what it had before is gone; of other variants nobody can say.
                    let keeps = purged_of(response.headers()).is_some()
                        && !response.status().is_server_error()
                        && !response.headers().contains_key(VARY);
                    if let Some((changed, change)) = changed.zip(change).filter(|_| keeps) {
                        changed.forget(place, change);
                    }
                    Some(Ok(finish_of_edge(response)))
                }
            },
        }
    }

    fn next<'a>(&'a self, snapshot: &'a Snapshot, place: u64) -> Option<Ask<&'a atoll_model::NodeName>> {
        if snapshot.edges.is_empty() || !self.cluster.shareable.is_worth_asking() {
            return None;
        }
        let peers = &self.worker.peers;
        let edges = snapshot.edges.iter().filter(|edge| peers.can_be_asked(edge)).map(|edge| edge.at());
        tier::next(peers.own(), edges, place, self.tier, self.asker, &self.cluster.regions)
    }
}

impl Origin for Regional {
    async fn fetch(&self, head: request::Parts) -> Result<Fetched, InternalAnswer> {
        let (to, interim) = (Arc::clone(&self.cluster.to), self.interim.clone());
        self.forward(&Outgoing::new(head, Body::empty(), to, interim)).await
    }

    async fn fetch_shared(
        &self,
        head: request::Parts,
        key: &Key,
        purged: u64,
    ) -> Result<Fetched, InternalAnswer> {
        match self.ask_edge(&head, key.place(), purged).await {
            Some(answered) => answered,
            None => self.fetch(head).await,
        }
    }

    fn learn(&self, shared: bool) {
        self.cluster.shareable.learn(shared);
    }
}

/// How an asker is named between edges.
pub(crate) const fn word_of(asker: Asker) -> &'static str {
    match asker {
        Asker::Client => "client",
        Asker::Location => "location",
        Asker::Far => "far",
    }
}

/// An asker by its name.
pub(crate) fn asker_of(fields: &HeaderMap) -> Option<Asker> {
    let told = fields.get(headers::TIER)?;
    [Asker::Location, Asker::Far].into_iter().find(|asker| told == word_of(*asker))
}

/// The number in a field between edges.
pub(crate) fn purged_of(fields: &HeaderMap) -> Option<u64> {
    fields.get(headers::PURGED)?.to_str().ok()?.parse().ok()
}

/// The instance's answer without what the hops say, and that apart from it.
fn finish(mut response: Response<Body>) -> Fetched {
    let fields = response.headers_mut();
    let mut who = HeaderMap::new();
    for name in Record::TOLD {
        if let Some(value) = fields.remove(&name) {
            who.insert(name, value);
        }
    }
    headers::strip_hop_by_hop(fields);
    headers::strip_internal_from_answer(fields);
    Fetched { response, who, asked_at: None, of_edge: false }
}

fn finish_of_edge(response: Response<Body>) -> Fetched {
    let asked_at = purged_of(response.headers());
    Fetched { asked_at, of_edge: true, ..finish(response) }
}

/// What Atoll answers where another edge asks in a way that none of ours does.
pub(crate) const REFUSED: InternalAnswer =
    InternalAnswer { hop: Hop::Edge, reason: Reason::BadRequest, sent: false };
