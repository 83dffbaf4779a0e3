//! Taking a deploy, or the removal of an app.

use super::validate::{Fault, faults};
use super::{Context, object_id, records};
use crate::reconciler::guard::must_confirm;
use crate::store::objects::{App, Cause, Deploy, DeployState, Domain, Revision, Service, ServiceChange};
use crate::store::{Change, StoreError};
use atoll_model::manifest::CompiledApp;
use atoll_model::{AppName, ClusterName, ObjectId, OrgName, RevisionId, ServiceName, ServiceSpec};
use serde::Serialize;
use std::collections::BTreeMap;

/// Deploys that are kept of each app.
const DEPLOYS_KEPT: usize = 20;

/// A deploy that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Accepted {
    /// The deploy.
    #[schema(value_type = String)]
    pub deploy: ObjectId,
    /// The new revision of each service.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub revisions: BTreeMap<ServiceName, RevisionId>,
    /// The store's revision with which it was accepted.
    pub version: u64,
    /// Host names of the public services.
    pub domains: Vec<String>,
}

/// Why a deploy was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The app is not well-formed.
    #[error("the app cannot be deployed as it is")]
    Invalid(Vec<Fault>),
    /// Another deploy of the app has not ended.
    #[error("deploy {0} of this app is running: wait until it has ended")]
    Running(ObjectId),
    /// There is no such app.
    #[error("there is no app `{0}`")]
    NoApp(AppName),
    /// Much would be removed by accident.
    #[error("it removes {removed} of {total} services of the app: confirm that with `?confirm={removed}`")]
    MassRemoval {
        /// Services that would go.
        removed: usize,
        /// Services that there are.
        total: usize,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One change that a deploy would make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PlannedChange {
    /// `create`, `replace` or `remove`.
    pub action: &'static str,
    /// `app`, `service`, `domain`.
    pub object: &'static str,
    /// Its name.
    pub name: String,
    /// What changes, for people.
    pub detail: String,
}

/// Who asks, and for which organization.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The organization.
    pub org: OrgName,
    /// The token's name.
    pub name: String,
}

/// Takes a deploy. Nothing is placed yet: the reconciler does that.
pub fn accept(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &CompiledApp,
    confirmed: Option<usize>,
) -> Result<Accepted, Refusal> {
    let org = &caller.org;
    check(change, context, org, app, confirmed)?;
    let mut changes = BTreeMap::new();
    for stored in change.list::<Service>(&format!("{org}/{}/", app.app)) {
        // What a deploy leaves out goes when the rest has settled: see `promote`.
        let gone = ServiceChange { from: stored.target.clone(), to: None };
        changes.insert(stored.cluster.service.clone(), gone);
    }
    for (name, spec) in &app.services {
        let revision = new_revision(change, context, org, &app.app, name, spec)?;
        changes.entry(name.clone()).or_insert(ServiceChange { from: None, to: None }).to = Some(revision);
    }
    let new = |(name, service): (&ServiceName, &ServiceChange)| Some((name.clone(), service.to.clone()?));
    let revisions = changes.iter().filter_map(new).collect();
    let deploy = start(change, context, caller, &app.app, changes, false)?;
    records::publish(change, context, org, &app.app)?;
    let domains = records::domain_of(&app.app, &app.services, &context.zone).into_values().collect();
    Ok(Accepted { deploy, revisions, version: change.revision(), domains })
}

/// Takes the removal of an app: it is named, so nothing needs to be confirmed.
pub fn accept_delete(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &AppName,
) -> Result<ObjectId, Refusal> {
    let org = &caller.org;
    let stored = change.get::<App>(&format!("{org}/{app}")).ok_or_else(|| Refusal::NoApp(app.clone()))?;
    // A deploy that runs is given up: what it placed goes with the rest.
    if let Some(mut running) = unfinished(change, org, &stored.deploy) {
        if running.delete {
            return Ok(running.id);
        }
        running.state = DeployState::Failed;
        running.state_ms = context.now_ms;
        running.cause = Some(Cause { message: "the app was deleted".to_owned(), ..Cause::default() });
        change.put(&running)?;
    }
    let mut changes = BTreeMap::new();
    for mut service in change.list::<Service>(&format!("{org}/{app}/")) {
        let from = service.target.take();
        service.current = None;
        change.put(&service)?;
        changes.insert(service.cluster.service.clone(), ServiceChange { from, to: None });
    }
    let id = start(change, context, caller, app, changes, true)?;
    records::publish(change, context, org, app)?;
    Ok(id)
}

fn check(
    change: &Change<'_>,
    context: &Context,
    org: &OrgName,
    app: &CompiledApp,
    confirmed: Option<usize>,
) -> Result<(), Refusal> {
    let faults = faults(app, context);
    if !faults.is_empty() {
        return Err(Refusal::Invalid(faults));
    }
    let Some(stored) = change.get::<App>(&format!("{org}/{}", app.app)) else { return Ok(()) };
    if let Some(running) = unfinished(change, org, &stored.deploy) {
        return Err(Refusal::Running(running.id));
    }
    let services = change.list::<Service>(&format!("{org}/{}/", app.app));
    let removed = services.iter().filter(|s| !app.services.contains_key(&s.cluster.service)).count();
    if must_confirm(removed, services.len(), confirmed == Some(removed)) {
        return Err(Refusal::MassRemoval { removed, total: services.len() });
    }
    Ok(())
}

fn unfinished(change: &Change<'_>, org: &OrgName, deploy: &ObjectId) -> Option<Deploy> {
    change.get::<Deploy>(&format!("{org}/{deploy}")).filter(|deploy| !deploy.state.is_final())
}

fn new_revision(
    change: &mut Change<'_>,
    context: &Context,
    org: &OrgName,
    app: &AppName,
    name: &ServiceName,
    spec: &ServiceSpec,
) -> Result<RevisionId, StoreError> {
    let cluster = ClusterName { org: org.clone(), app: app.clone(), service: name.clone() };
    let revisions = change.list::<Revision>(&format!("{cluster}/"));
    let revision = Revision {
        id: RevisionId::from_parts(context.now_ms, rand::random()),
        cluster: cluster.clone(),
        number: revisions.iter().map(|revision| revision.number).max().unwrap_or(0) + 1,
        spec: spec.clone(),
        created_ms: context.now_ms,
        failed: false,
    };
    let mut service = change.get::<Service>(&cluster.to_string()).unwrap_or_else(|| Service {
        id: object_id(context.now_ms),
        cluster,
        target: None,
        current: None,
    });
    service.target = Some(revision.id.clone());
    change.put(&revision)?;
    change.put(&service)?;
    Ok(revision.id)
}

fn start(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &AppName,
    services: BTreeMap<ServiceName, ServiceChange>,
    delete: bool,
) -> Result<ObjectId, StoreError> {
    let org = &caller.org;
    let id = object_id(context.now_ms);
    let mut stored = change.get::<App>(&format!("{org}/{app}")).unwrap_or_else(|| App {
        id: object_id(context.now_ms),
        org: org.clone(),
        app: app.clone(),
        created_ms: context.now_ms,
        deploy: id.clone(),
        past: Vec::new(),
    });
    if stored.deploy != id {
        stored.past.push(std::mem::replace(&mut stored.deploy, id.clone()));
    }
    while stored.past.len() > DEPLOYS_KEPT {
        let oldest = stored.past.remove(0);
        change.remove::<Deploy>(&format!("{org}/{oldest}"));
    }
    change.put(&stored)?;
    tracing::info!(%app, deploy = %id, by = caller.name, delete, services = services.len(), "deploy accepted");
    change.put(&Deploy {
        id: id.clone(),
        org: org.clone(),
        app: app.clone(),
        state: DeployState::Running,
        delete,
        services,
        started_ms: context.now_ms,
        state_ms: context.now_ms,
        version: 0,
        cause: None,
        by: caller.name.clone(),
    })?;
    Ok(id)
}

/// What a deploy would change; checks the app as [`accept`] does.
pub fn plan_changes(
    change: &Change<'_>,
    context: &Context,
    org: &OrgName,
    request: &CompiledApp,
) -> Result<Vec<PlannedChange>, Refusal> {
    let faults = faults(request, context);
    if !faults.is_empty() {
        return Err(Refusal::Invalid(faults));
    }
    let app = &request.app;
    let planned =
        |action, object, name: String, detail: String| PlannedChange { action, object, name, detail };
    let mut plan = Vec::new();
    if change.get::<App>(&format!("{org}/{app}")).is_none() {
        plan.push(planned("create", "app", app.to_string(), String::new()));
    }
    let mut before = BTreeMap::new();
    for service in change.list::<Service>(&format!("{org}/{app}/")) {
        let id = service.target.as_ref();
        let revision = id.and_then(|id| change.get::<Revision>(&Revision::tail(&service.cluster, id)));
        before.insert(service.cluster.service.clone(), revision.map(|revision| revision.spec));
    }
    for (name, spec) in &request.services {
        let old = before.remove(name).flatten();
        let (action, detail) = service_change(spec, old.as_ref());
        plan.push(planned(action, "service", name.to_string(), detail));
    }
    for name in before.into_keys() {
        plan.push(planned("remove", "service", name.to_string(), String::new()));
    }
    for (name, domain) in records::domain_of(app, &request.services, &context.zone) {
        if change.get::<Domain>(&format!("{org}/{domain}")).is_none() {
            plan.push(planned("create", "domain", domain, format!("for service {name}")));
        }
    }
    Ok(plan)
}

fn service_change(spec: &ServiceSpec, old: Option<&ServiceSpec>) -> (&'static str, String) {
    let regions = |spec: &ServiceSpec| {
        let each =
            spec.regions.iter().map(|(region, scale)| format!("{region}={}..{}", scale.min, scale.max));
        each.collect::<Vec<_>>().join(" ")
    };
    match old {
        None => ("create", format!("regions {}", regions(spec))),
        Some(old) if old == spec => {
            ("replace", "same specification: instances are replaced one by one".to_owned())
        }
        Some(old) if old.regions != spec.regions => {
            ("replace", format!("regions {} -> {}", regions(old), regions(spec)))
        }
        Some(_) => ("replace", "the specification changed".to_owned()),
    }
}
