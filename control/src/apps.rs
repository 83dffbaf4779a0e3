//! What a deploy does to the store: accepting it, ending it well, undoing it, removing an app.
//!
//! All functions run inside one store change, so that each is whole or not at all.

pub mod accept;
pub mod again;
pub mod domains;
pub mod drains;
pub mod plan;
pub mod records;
pub mod validate;

pub use crate::caller::Caller;
pub use accept::{Accepted, Refusal, accept, accept_delete};
pub use again::{Which, accept_revision, accept_scale};
pub use plan::{PlannedChange, plan_changes};

use crate::certificates::Certificates;
use crate::store::objects::{App, AppPurges, Cause, Deploy, DeployState, Placement, Revision, Service};
use crate::store::{Change, StoreError};
use atoll_model::{AppName, Kind, ObjectId, OrgName, RevisionId};
use std::sync::Arc;

/// What changes of apps need beside the store.
#[derive(Debug, Clone)]
pub struct Context {
    /// Apps answer at `<app>.<zone>`.
    pub zone: Arc<str>,
    /// Regions that an app may name.
    pub regions: Arc<[atoll_model::RegionName]>,
    /// Issues and seals certificates.
    pub certificates: Certificates,
    /// Now, ms since 1970.
    pub now_ms: u64,
}

/// A new id of any object.
#[must_use]
pub fn object_id(now_ms: u64) -> ObjectId {
    ObjectId::from_parts(now_ms, rand::random())
}

/// Every instance is as wanted: what was deployed is now what the app is, what it no longer has goes.
/// The edges are asked next.
pub fn promote(
    change: &mut Change<'_>,
    context: &Context,
    org: &OrgName,
    deploy: &ObjectId,
) -> Result<(), StoreError> {
    let Some(mut deploy) = running(change, org, deploy) else { return Ok(()) };
    for service in deploy.services.iter() {
        let tail = format!("{}/{}/{}", deploy.org, deploy.app, service.0);
        if let Some(mut stored) = change.get::<Service>(&tail) {
            stored.target.clone_from(&service.1.to);
            stored.current.clone_from(&service.1.to);
            forget_scale_out_of_bounds(change, &mut stored);
            change.put(&stored)?;
        }
    }
    deploy.version = records::publish(change, context, &deploy.org, &deploy.app)?;
    deploy.state = DeployState::Serving;
    deploy.state_ms = context.now_ms;
    tracing::info!(app = %deploy.app, deploy = %deploy.id, version = deploy.version, "instances are as wanted");
    change.put(&deploy)
}

/// A scale that the new revision's bounds don't allow must not come back with a later one's.
fn forget_scale_out_of_bounds(change: &Change<'_>, service: &mut Service) {
    if service.scale.is_empty() {
        return;
    }
    let id = service.target.as_ref();
    let revision = id.and_then(|id| change.get::<Revision>(&Revision::tail(&service.cluster, id)));
    let regions = revision.map(|revision| revision.spec.regions).unwrap_or_default();
    service.scale.retain(|region, count| {
        regions.get(region).is_some_and(|bounds| (bounds.min..=bounds.max).contains(count))
    });
}

/// Ends a deploy that did what it should.
pub fn finish(
    change: &mut Change<'_>,
    now_ms: u64,
    org: &OrgName,
    deploy: &ObjectId,
) -> Result<(), StoreError> {
    let Some(mut deploy) = running(change, org, deploy) else { return Ok(()) };
    deploy.state = DeployState::Done;
    deploy.state_ms = now_ms;
    tracing::info!(app = %deploy.app, deploy = %deploy.id, "deploy is done");
    change.put(&deploy)?;
    if deploy.delete {
        let latest = change.get::<App>(&format!("{}/{}", deploy.org, deploy.app));
        // Not an app that was deployed anew meanwhile.
        return match latest.filter(|app| app.deploy == deploy.id) {
            Some(_) => purge(change, &deploy.org, &deploy.app),
            None => Ok(()),
        };
    }
    collect(change, &deploy.org, &deploy.app)
}

/// Ends a deploy that failed. While instances were being replaced it is undone: every service goes back to
/// what it ran before.
pub fn fail(
    change: &mut Change<'_>,
    context: &Context,
    org: &OrgName,
    deploy: &ObjectId,
    cause: Cause,
) -> Result<(), StoreError> {
    let Some(mut deploy) = running(change, org, deploy) else { return Ok(()) };
    let undo = deploy.state == DeployState::Running && !deploy.delete;
    tracing::warn!(
        app = %deploy.app, deploy = %deploy.id, undone = undo, cause = %cause.message,
        service = ?cause.service, region = ?cause.region, "deploy failed"
    );
    if undo {
        for (name, service) in &deploy.services {
            let tail = format!("{}/{}/{name}", deploy.org, deploy.app);
            if let Some(mut stored) = change.get::<Service>(&tail) {
                stored.target.clone_from(&service.from);
                if let Some(scale) = deploy.scale_before.get(name) {
                    stored.scale.clone_from(scale);
                }
                if service.to != service.from {
                    condemn(change, &stored, service.to.as_ref())?;
                }
                change.put(&stored)?;
            }
        }
        restore_hosts(change, &deploy)?;
        records::publish(change, context, &deploy.org, &deploy.app)?;
    }
    deploy.state = if undo { DeployState::RolledBack } else { DeployState::Failed };
    deploy.state_ms = context.now_ms;
    deploy.cause = Some(cause);
    change.put(&deploy)?;
    collect(change, &deploy.org, &deploy.app)
}

/// What was wanted of the app's domains before the deploy is wanted again.
fn restore_hosts(change: &mut Change<'_>, deploy: &Deploy) -> Result<(), StoreError> {
    let stored = change.get::<App>(&format!("{}/{}", deploy.org, deploy.app));
    match (stored, &deploy.hosts_before) {
        (Some(mut stored), Some(before)) => {
            stored.hosts.clone_from(before);
            change.put(&stored)
        }
        _ => Ok(()),
    }
}

fn condemn(change: &mut Change<'_>, service: &Service, id: Option<&RevisionId>) -> Result<(), StoreError> {
    let revision = id.and_then(|id| change.get::<Revision>(&Revision::tail(&service.cluster, id)));
    match revision {
        Some(mut revision) => {
            revision.failed = true;
            change.put(&revision)
        }
        None => Ok(()),
    }
}

fn running(change: &Change<'_>, org: &OrgName, deploy: &ObjectId) -> Option<Deploy> {
    change.get::<Deploy>(&format!("{org}/{deploy}")).filter(|deploy| !deploy.state.is_final())
}

/// Forgets services that are neither wanted nor placed any more, and revisions that nothing uses. An app
/// of which nothing is left goes too.
pub fn collect(change: &mut Change<'_>, org: &OrgName, app: &AppName) -> Result<(), StoreError> {
    let deploy = change.get::<App>(&format!("{org}/{app}")).map(|app| app.deploy);
    if deploy.is_none_or(|deploy| running(change, org, &deploy).is_some()) {
        return Ok(());
    }
    let prefix = format!("{org}/{app}/");
    let mut left = 0;
    for service in change.list::<Service>(&prefix) {
        let placed = change.list::<Placement>(&format!("{}/", service.cluster));
        let gone = service.target.is_none() && service.current.is_none() && placed.is_empty();
        let revisions = change.list::<Revision>(&format!("{}/", service.cluster));
        for revision in &revisions {
            let used = [&service.target, &service.current].into_iter().flatten().any(|id| *id == revision.id)
                || placed.iter().any(|placement| placement.revision == revision.id);
            if gone || (!used && is_old(&revisions, revision)) {
                change.remove::<Revision>(&Revision::tail(&service.cluster, &revision.id));
            }
        }
        if gone {
            change.remove::<Service>(&service.cluster.to_string());
        } else {
            left += 1;
        }
    }
    if left == 0 {
        purge(change, org, app)?;
    }
    Ok(())
}

/// Revisions of a service that are kept to go back to, beside those that run.
const REVISIONS_KEPT: usize = 10;
/// Failed ones, kept for people to look at.
const FAILED_KEPT: usize = 3;

/// Failed revisions must not push out those that can run: each kind is counted by itself.
fn is_old(all: &[Revision], revision: &Revision) -> bool {
    let alike = all.iter().filter(|other| other.failed == revision.failed);
    let newer = alike.filter(|other| other.number > revision.number).count();
    newer >= if revision.failed { FAILED_KEPT } else { REVISIONS_KEPT }
}

/// Removes all that an app owns. The last deploy stays, so that who asked can see how it ended.
fn purge(change: &mut Change<'_>, org: &OrgName, app: &AppName) -> Result<(), StoreError> {
    let prefix = format!("{org}/{app}/");
    for service in change.list::<Service>(&prefix) {
        change.remove::<Service>(&service.cluster.to_string());
    }
    for revision in change.list::<Revision>(&prefix) {
        change.remove::<Revision>(&Revision::tail(&revision.cluster, &revision.id));
    }
    for domain in domains::of_app(change, org, app) {
        domains::forget(change, &domain);
    }
    change.remove::<AppPurges>(&format!("{org}/{app}"));
    change.undesire(Kind::PURGES, "", &format!("{org}/{app}"));
    if let Some(stored) = change.get::<App>(&format!("{org}/{app}")) {
        for deploy in &stored.past {
            change.remove::<Deploy>(&format!("{org}/{deploy}"));
        }
        change.remove::<App>(&format!("{org}/{app}"));
        tracing::info!(%app, "app is gone");
    }
    Ok(())
}
