//! The edge's cache: what may be answered from memory, and who asks the origin for the rest.
//!
//! [`rules`] say what RFC 9111 says; [`index`] keeps, [`fill`] is what is on its way, [`serve`] puts them together. Restarts
//! begin empty: nothing is on disk.

pub(crate) mod answer;
mod changed;
mod compressing;
pub(crate) mod counts;
pub mod encoding;
pub(crate) mod fetch;
pub mod fill;
pub mod index;
pub mod key;
pub(crate) mod metrics;
pub mod object;
pub mod pressure;
pub mod purge;
mod report;
pub mod rules;
pub(crate) mod serve;
pub(crate) mod status;
pub mod store;
pub(crate) mod tags;

use arc_swap::ArcSwap;
use atoll_proxy::Body;
use atoll_wire::record;
use changed::Changed;
use counts::Counts;
use http::header::HeaderName;
use http::{Method, Request};
use http_body::Body as _;
use index::Index;
use object::Object;
use purge::{Fate, Purges};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// A request whose method can be overridden by a field may change things, whatever its own one is.
const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// Programs that get fields as environment variables take `_` for `-`.
fn may_override(name: &HeaderName) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    OVERRIDES
        .iter()
        .any(|known| known.len() == name.as_str().len() && known.bytes().eq(name.as_str().bytes().map(plain)))
}

/// Whether a request may be answered from the cache: a GET or HEAD, without a body, that is what it says.
pub(crate) fn is_for_cache(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.body().is_end_stream()
        && !request.headers().keys().any(may_override)
}

/// Requests of an edge that go on alone at a time after what they waited for has failed.
const ALONE_MAX: usize = 64;

/// What all workers of an edge share of it.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) index: Arc<Index>,
    pub(crate) purges: ArcSwap<Purges>,
    /// This edge was away and has not heard yet what was purged meanwhile: what it has is validated before it is used.
    pub(crate) behind: Arc<AtomicBool>,
    pub(crate) counts: Counts,
    /// What was changed by way of this edge, and other edges may have as it was.
    pub(crate) changed: Changed,
    /// Places for requests that go on alone, after what they waited for has failed.
    pub(crate) alone: Semaphore,
    /// Places for bodies that are being compressed.
    pub(crate) compressing: Arc<Semaphore>,
}

impl Cache {
    /// At most so many bytes in all, and no body larger than `object_max`.
    pub(crate) fn new(bytes_max: u64, object_max: u64, behind: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            index: Arc::new(Index::new(bytes_max, object_max)),
            purges: ArcSwap::default(),
            behind,
            counts: Counts::default(),
            changed: Changed::default(),
            alone: Semaphore::new(ALONE_MAX),
            compressing: Arc::new(Semaphore::new(compressing::AT_ONCE)),
        })
    }

    /// What purges make of a stored response, those included that this edge may have missed.
    pub(crate) fn fate(&self, object: &Object) -> Fate {
        let known = object.fate(&self.purges.load());
        if self.behind.load(Ordering::Acquire) { known.max(Fate::Stale) } else { known }
    }

    /// Applies what is new in an app's purges. One task calls it.
    /// `keyed` says how the app's rules have a host's path and query in keys, where that is not as it is.
    pub(crate) fn purge(
        &self,
        app: &str,
        told: &record::Purges,
        keyed: impl Fn(&str, &str) -> Option<String>,
    ) {
        let mut purges = Purges::clone(&self.purges.load());
        purges.apply(app, told, keyed);
        self.purges.store(Arc::new(purges));
    }
}
