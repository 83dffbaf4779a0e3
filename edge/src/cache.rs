//! The edge's cache: what may be answered from memory, and who asks the origin for the rest.
//!
//! [`rules`] say what RFC 9111 says; [`index`] keeps, [`fill`] is what is on its way, [`serve`] puts them together. Restarts
//! begin empty: nothing is on disk.

pub(crate) mod answer;
#[cfg_attr(not(test), expect(dead_code, reason = "stored answers have no variants yet"))]
pub mod encoding;
pub(crate) mod fetch;
pub mod fill;
pub mod index;
pub mod key;
pub mod object;
#[cfg_attr(not(test), expect(dead_code, reason = "the index has a fixed capacity yet"))]
pub mod pressure;
pub mod purge;
mod report;
pub mod rules;
pub(crate) mod serve;
pub(crate) mod status;
pub mod store;

use arc_swap::ArcSwap;
use atoll_proxy::Body;
use atoll_wire::record;
use http::header::HeaderName;
use http::{Method, Request};
use http_body::Body as _;
use index::Index;
use purge::Purges;
use std::sync::Arc;

/// A request whose method can be overridden by a field may change things, whatever its own one is.
const OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Whether a request may be answered from the cache: a GET or HEAD, without a body, that is what it says.
pub(crate) fn is_for_cache(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.body().is_end_stream()
        && !OVERRIDES.iter().any(|name| request.headers().contains_key(name))
}

/// What all workers of an edge share of it.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) index: Arc<Index>,
    pub(crate) purges: ArcSwap<Purges>,
    /// The most that it may take of memory.
    pub(crate) bytes_max: u64,
}

impl Cache {
    /// At most so many bytes in all, and no body larger than `object_max`.
    pub(crate) fn new(bytes_max: u64, object_max: u64) -> Arc<Self> {
        let index = Arc::new(Index::new(bytes_max, object_max));
        Arc::new(Self { index, purges: ArcSwap::default(), bytes_max })
    }

    /// Applies what is new in an app's purges. One task calls it.
    pub(crate) fn purge(&self, app: &str, told: &record::Purges) {
        let mut purges = Purges::clone(&self.purges.load());
        purges.apply(app, told);
        self.purges.store(Arc::new(purges));
    }
}
