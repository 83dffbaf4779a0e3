//! The user plane: REST with JSON under `/v1`.
//!
//! Every call but the description needs a bearer token. Errors are `application/problem+json`. A change may
//! carry an `Idempotency-Key`; the same request with it again gets the first answer.

mod apps;
mod auth;
mod changes;
mod deploys;
mod lists;
mod logs;
mod nodes;
mod openapi;
mod problem;
mod server;
mod status;
mod tokens;

pub use auth::{ADMIN_TOKEN_FILE, admin_token};
pub(crate) use changes::sweep as sweep_answers;
pub use problem::Problem;
pub use server::{ServerTls, serve};

use crate::apps::Context;
use crate::attach::Attached;
use crate::config::Config;
use crate::metrics::ControlMetrics;
use crate::publisher::Held;
use crate::reconciler::progress::Progresses;
use crate::store::Store;
use crate::store::seal::Sealer;
use crate::world::World;
use atoll_mesh_ca::MeshCa;
use atoll_process::clock::unix_ms;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use std::sync::Arc;
use tokio::sync::watch;

/// The largest body of a request.
const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What the handlers work with. Clones share it.
#[derive(Debug, Clone)]
pub struct Api(Arc<Parts>);

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
    /// What is counted.
    pub metrics: ControlMetrics,
}

impl std::ops::Deref for Api {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Api {
    /// An API over those parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    fn context(&self) -> Context {
        Context { now_ms: unix_ms(), ..self.context.clone() }
    }

    /// All routes.
    pub fn router(&self) -> Router {
        let guarded = Router::new()
            .route("/v1/apps", get(apps::list))
            .route("/v1/apps/{app}", get(apps::show).put(apps::deploy).delete(apps::remove))
            .route("/v1/deploys/{id}", get(deploys::show))
            .route("/v1/deploys/{id}/events", get(deploys::events))
            .route("/v1/status/{app}", get(status::app))
            .route("/v1/services", get(lists::services))
            .route("/v1/revisions", get(lists::revisions))
            .route("/v1/instances", get(lists::instances))
            .route("/v1/instances/{id}/logs", get(logs::read))
            .route("/v1/domains", get(lists::domains))
            .route("/v1/nodes", get(nodes::list))
            .route("/v1/nodes/{name}", delete(nodes::remove))
            .route("/v1/tokens/join", get(tokens::list).post(tokens::create))
            .route("/v1/tokens/join/{id}", delete(tokens::remove))
            .route("/v1/ca", get(status::ca))
            .route("/v1/ready", get(status::ready))
            .route("/v1/held", get(status::held))
            .route("/v1/held/confirm", post(status::confirm_held))
            .route_layer(from_fn_with_state(self.clone(), auth::require));
        Router::new()
            .merge(guarded)
            .route("/v1/openapi.json", get(|| async { Json(openapi::document()) }))
            .fallback(|| async { Problem::not_found("there is nothing at this path; see /v1/openapi.json") })
            .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(map_response(problem::from_plain))
            .with_state(self.clone())
    }
}

#[cfg(test)]
mod tests;
