//! From a request to its response, whatever HTTP version it came by.

use super::check::{Refusal, normalize};
use super::limits::ServerLimits;
use crate::answer;
use crate::body::Body;
use crate::exchange::{ConnectionInfo, Exchange, Handler};
use crate::interim::Interim;
use crate::metrics::ProxyMetrics;
use crate::workers::panic_text;
use atoll_model::Reason;
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, Version, request};
use prometheus_client::metrics::gauge::Gauge;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tracing::error;

/// What the requests of one connection share.
pub(super) struct Answering<H> {
    pub(super) info: Arc<ConnectionInfo>,
    pub(super) limits: ServerLimits,
    pub(super) handler: Rc<H>,
    pub(super) metrics: ProxyMetrics,
}

/// Counts a request while it is answered, and until its response's body is gone.
pub(super) struct InFlight(Gauge);

impl InFlight {
    pub(super) fn new(metrics: &ProxyMetrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics.in_flight.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<H: Handler> Answering<H> {
    /// Answers a request that came when it `started`. `is_ambiguous`: two readers could read it differently.
    pub(super) async fn answer(
        &self,
        mut head: request::Parts,
        body: Body,
        interim: Interim,
        (started, is_ambiguous): (Instant, bool),
    ) -> Response<Body> {
        let version = head.version;
        let checked = if is_ambiguous {
            Err(Refusal { reason: Reason::BadRequest, close: true })
        } else {
            normalize(&mut head)
        };
        let request = Request::from_parts(head, body);
        let exchange = Exchange { request, connection: Arc::clone(&self.info), started, interim };
        let response = match checked {
            Err(refusal) => self.refuse(Some(exchange), refusal, version),
            Ok(()) => self.handle(exchange, version).await,
        };
        self.metrics.answered(response.status().as_u16());
        self.metrics.head_seconds.observe(started.elapsed().as_secs_f64());
        response
    }

    async fn handle(&self, exchange: Exchange, version: Version) -> Response<Body> {
        match AssertUnwindSafe(self.handler.handle(exchange)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => {
                self.metrics.panics.inc();
                error!(panic = panic_text(panic.as_ref()), "a request's handler panicked");
                self.refuse(None, Refusal { reason: Reason::Internal, close: false }, version)
            }
        }
    }

    fn refuse(&self, exchange: Option<Exchange>, refusal: Refusal, version: Version) -> Response<Body> {
        let (hop, reason) = (self.limits.hop, refusal.reason);
        self.metrics.failed(hop, reason);
        let handled = exchange.and_then(|exchange| self.handler.refused(exchange, reason));
        let mut response = match handled {
            Some(response) => response,
            None if self.limits.internal => answer::internal(hop, reason, reason == Reason::Internal),
            None => answer::error_page(hop, reason, &HeaderMap::new(), ""),
        };
        if refusal.close && version < Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
