//! How deploys are doing, for whoever watches.

use super::verdict::Regions;
use crate::store::objects::{Cause, Deploy, DeployState};
use atoll_model::{AppName, NodeName, ObjectId, RevisionId, ServiceName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A deploy, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct DeployStatus {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ObjectId,
    /// The app.
    #[schema(value_type = String)]
    pub app: AppName,
    /// `running`, `serving`, `done`, `rolled-back` or `failed`.
    #[schema(value_type = String)]
    pub state: DeployState,
    /// Whether it removes the app.
    pub delete: bool,
    /// When it was accepted, ms since 1970.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// The desired state that edges must have, once instances are as wanted.
    pub version: u64,
    /// The new revision of each service; none: the service is removed.
    #[schema(value_type = std::collections::BTreeMap<String, Option<String>>)]
    pub services: BTreeMap<ServiceName, Option<RevisionId>>,
    /// Instances by region and service.
    #[schema(value_type = std::collections::BTreeMap<String, std::collections::BTreeMap<String, super::verdict::Counts>>)]
    pub regions: Regions,
    /// What each live edge says.
    #[schema(value_type = std::collections::BTreeMap<String, EdgeStatus>)]
    pub edges: BTreeMap<NodeName, EdgeStatus>,
    /// Where the public services answer.
    pub urls: Vec<String>,
    /// Why it failed.
    #[schema(value_type = Option<Object>)]
    pub cause: Option<Cause>,
}

/// Whether an edge serves a deploy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, utoipa::ToSchema)]
pub struct EdgeStatus {
    /// It does.
    pub serves: bool,
    /// Why not.
    pub detail: String,
}

impl DeployStatus {
    /// What the store says of a deploy; no counts.
    #[must_use]
    pub fn of(deploy: &Deploy, urls: Vec<String>) -> Self {
        Self {
            id: deploy.id.clone(),
            app: deploy.app.clone(),
            state: deploy.state,
            delete: deploy.delete,
            started_ms: deploy.started_ms,
            ended_ms: deploy.state.is_final().then_some(deploy.state_ms),
            version: deploy.version,
            services: deploy
                .services
                .iter()
                .map(|(name, change)| (name.clone(), change.to.clone()))
                .collect(),
            regions: Regions::new(),
            edges: BTreeMap::new(),
            urls,
            cause: deploy.cause.clone(),
        }
    }
}

/// The deploys that run now. Clones share it; bounded by the number of apps.
#[derive(Debug, Clone, Default)]
pub struct Progresses(Arc<Mutex<BTreeMap<ObjectId, watch::Sender<DeployStatus>>>>);

impl Progresses {
    /// Follows a running deploy, from `initial` if nothing is known yet.
    #[must_use]
    pub fn watch(&self, initial: DeployStatus) -> watch::Receiver<DeployStatus> {
        let mut all = self.lock();
        all.entry(initial.id.clone()).or_insert_with(|| watch::Sender::new(initial)).subscribe()
    }

    /// The newest status of a running deploy.
    #[must_use]
    pub fn latest(&self, id: &ObjectId) -> Option<DeployStatus> {
        self.lock().get(id).map(|sender| sender.borrow().clone())
    }

    /// Says how a deploy is doing. Unchanged news wake nobody.
    pub fn report(&self, status: DeployStatus) {
        let mut all = self.lock();
        let sender = all.entry(status.id.clone()).or_insert_with(|| watch::Sender::new(status.clone()));
        sender.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }

    /// Deploys that are being reported on.
    #[must_use]
    pub fn ids(&self) -> Vec<ObjectId> {
        self.lock().keys().cloned().collect()
    }

    /// A deploy has ended, or is gone: its watchers get the last status and then the end.
    pub fn end(&self, id: &ObjectId, last: Option<&Deploy>) {
        let Some(sender) = self.lock().remove(id) else { return };
        if let Some(deploy) = last {
            sender.send_modify(|status| {
                let ended = DeployStatus::of(deploy, std::mem::take(&mut status.urls));
                *status = DeployStatus {
                    regions: std::mem::take(&mut status.regions),
                    edges: std::mem::take(&mut status.edges),
                    ..ended
                };
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectId, watch::Sender<DeployStatus>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
