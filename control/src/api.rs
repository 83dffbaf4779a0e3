//! The user plane: REST with JSON under `/v1`.
//!
//! Every call but the description needs a bearer token; `routes` says who may call what. Errors are
//! `application/problem+json`. A change may carry an `Idempotency-Key`; the same request with it again gets the
//! first answer. Every change is in the audit log.

mod api_tokens;
mod apps;
mod audit;
mod auth;
mod bundles;
mod cache;
mod changes;
mod deploys;
mod domains;
mod drains;
mod lists;
mod logs;
mod nodes;
mod openapi;
mod orgs;
mod pages;
mod problem;
mod purges;
mod releases;
mod routes;
mod schema;
mod server;
mod sites;
mod status;
mod tokens;
mod top;
mod uses;

pub(crate) use audit::{Deed, record as record_deed};
pub use auth::{ADMIN_TOKEN_FILE, admin_token};
pub use problem::Problem;
pub use server::{ServerTls, serve};

use crate::apps::Context;
use crate::attach::Attached;
use crate::bundles::Bundles;
use crate::config::Config;
use crate::metrics::ControlMetrics;
use crate::publisher::Held;
use crate::reconciler::progress::Progresses;
use crate::store::seal::Sealer;
use crate::store::{Change, Store, StoreError};
use crate::world::World;
use atoll_mesh_ca::MeshCa;
use atoll_process::clock::unix_ms;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::map_response;
use std::sync::Arc;
use tokio::sync::watch;

/// The largest body of a request.
const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What the handlers work with. Clones share it.
#[derive(Debug, Clone)]
pub struct Api {
    parts: Arc<Parts>,
    uses: Arc<uses::Uses>,
}

/// The parts of an [`Api`].
#[derive(Debug)]
pub struct Parts {
    /// Desired state.
    pub store: Store,
    /// What is.
    pub world: watch::Receiver<Arc<World>>,
    /// Lines to nodes.
    pub attached: Attached,
    /// For deploys.
    pub context: Context,
    /// URLs, regions.
    pub config: Arc<Config>,
    /// Running deploys.
    pub progresses: Progresses,
    /// For answers that are kept.
    pub sealer: Sealer,
    /// The mesh CA.
    pub ca: Arc<MeshCa>,
    /// Removals that wait for a confirmation.
    pub held: Held,
    /// What is uploaded.
    pub bundles: Bundles,
    /// What is counted.
    pub metrics: ControlMetrics,
}

/// Forgets what has run out: kept answers, ended tokens, old entries of the audit log.
pub(crate) fn sweep(change: &mut Change<'_>, now_ms: u64) -> Result<(), StoreError> {
    changes::sweep(change, now_ms);
    api_tokens::sweep(change, now_ms);
    audit::sweep(change, now_ms)
}

impl std::ops::Deref for Api {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Api {
    /// An API over those parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), uses: Arc::default() }
    }

    fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    fn context(&self) -> Context {
        Context { now_ms: unix_ms(), ..self.context.clone() }
    }

    /// All routes.
    pub fn router(&self) -> Router {
        routes::router(self)
            .fallback(|| async { Problem::not_found("there is nothing at this path; see /v1/openapi.json") })
            .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(map_response(problem::from_plain))
            .with_state(self.clone())
    }
}

#[cfg(test)]
mod tests;
