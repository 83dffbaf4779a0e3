//! Taking a deploy, or the removal of an app.

use super::validate::{Fault, all_faults};
use super::{Context, object_id, records};
use crate::caller::Caller;
use crate::reconciler::guard::must_confirm;
use crate::store::objects::{App, Cause, Deploy, DeployState, Org, Revision, Service, ServiceChange};
use crate::store::{Change, StoreError};
use atoll_model::manifest::CompiledApp;
use atoll_model::{
    AppName, ClusterName, HostSpec, ObjectId, OrgName, RegionName, RevisionId, Scale, ServiceName,
    ServiceSpec,
};
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
    /// Another organization has an app of this name.
    #[error("the name `{0}` is taken on this platform: choose another one for the app")]
    NameTaken(AppName),
    /// There is no such app.
    #[error("there is no app `{0}`")]
    NoApp(AppName),
    /// The app has no such service.
    #[error("app {app} has no service `{service}`; it has {}", listed(known))]
    NoService {
        /// The app.
        app: AppName,
        /// What was asked for.
        service: ServiceName,
        /// What there is.
        known: Vec<String>,
    },
    /// A revision's number alone does not say which service's.
    #[error("each service of {app} counts its own revisions: say which one, {}", listed(services))]
    WhichService {
        /// The app.
        app: AppName,
        /// Its services.
        services: Vec<String>,
    },
    /// No such revision is kept.
    #[error(
        "no such revision of {service} is kept; `atoll revisions` lists those that can run: {}",
        listed(known)
    )]
    NoRevision {
        /// The service.
        service: ServiceName,
        /// Those that can run.
        known: Vec<u64>,
    },
    /// Its deploy failed.
    #[error(
        "revision {number} of {service} failed when it was deployed; those that can run are {}",
        listed(known)
    )]
    RevisionFailed {
        /// The service.
        service: ServiceName,
        /// What was asked for.
        number: u64,
        /// Those that can run.
        known: Vec<u64>,
    },
    /// The service does not run in that region.
    #[error(
        "{service} does not run in region {region}, only in {}; add `{region}` under `[regions]` of its manifest and deploy",
        listed(known)
    )]
    NotInRegion {
        /// The service.
        service: ServiceName,
        /// What was asked for.
        region: RegionName,
        /// Where it runs.
        known: Vec<String>,
    },
    /// The manifest allows fewer, or wants more.
    #[error(
        "{service} runs between {} and {} instances in {region}, so not {asked}; to change that, set `{region} = {{ min = …, max = … }}` under `[regions]` of its manifest and deploy",
        bounds.min, bounds.max
    )]
    OutOfBounds {
        /// The service.
        service: ServiceName,
        /// The region.
        region: RegionName,
        /// What was asked for.
        asked: u32,
        /// What the manifest says.
        bounds: Scale,
    },
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

fn listed(items: &[impl ToString]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
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
        let revision = new_revision(change, context, caller, &app.app, name, spec)?;
        changes.entry(name.clone()).or_insert(ServiceChange { from: None, to: None }).to = Some(revision);
    }
    let new = |(name, service): (&ServiceName, &ServiceChange)| Some((name.clone(), service.to.clone()?));
    let revisions = changes.iter().filter_map(new).collect();
    let work = Work { services: changes, hosts: Some(app.hosts.clone()), ..Work::default() };
    let deploy = start(change, context, caller, &app.app, work)?;
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
    let work = Work { services: changes, delete: true, ..Work::default() };
    let id = start(change, context, caller, app, work)?;
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
    let faults = all_faults(change, context, org, app);
    if !faults.is_empty() {
        return Err(Refusal::Invalid(faults));
    }
    let Some(stored) = change.get::<App>(&format!("{org}/{}", app.app)) else {
        return free(change, org, &app.app);
    };
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

/// Refuses a new app's name that another organization has. Whose it is, is not the caller's business.
pub(super) fn free(change: &Change<'_>, org: &OrgName, app: &AppName) -> Result<(), Refusal> {
    let has = |other: OrgName| other != *org && change.get::<App>(&format!("{other}/{app}")).is_some();
    if Org::names(change.list("")).into_iter().any(has) {
        Err(Refusal::NameTaken(app.clone()))
    } else {
        Ok(())
    }
}

/// A deploy of the app that has not ended.
pub(super) fn unfinished(change: &Change<'_>, org: &OrgName, deploy: &ObjectId) -> Option<Deploy> {
    change.get::<Deploy>(&format!("{org}/{deploy}")).filter(|deploy| !deploy.state.is_final())
}

fn new_revision(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &AppName,
    name: &ServiceName,
    spec: &ServiceSpec,
) -> Result<RevisionId, StoreError> {
    let cluster = ClusterName { org: caller.org.clone(), app: app.clone(), service: name.clone() };
    let revisions = change.list::<Revision>(&format!("{cluster}/"));
    let revision = Revision {
        id: RevisionId::from_parts(context.now_ms, rand::random()),
        cluster: cluster.clone(),
        number: revisions.iter().map(|revision| revision.number).max().unwrap_or(0) + 1,
        spec: spec.clone(),
        created_ms: context.now_ms,
        failed: false,
        by: caller.name.clone(),
    };
    let mut service = change.get::<Service>(&cluster.to_string()).unwrap_or_else(|| Service {
        id: object_id(context.now_ms),
        cluster,
        target: None,
        current: None,
        scale: BTreeMap::new(),
    });
    service.target = Some(revision.id.clone());
    change.put(&revision)?;
    change.put(&service)?;
    Ok(revision.id)
}

/// What a deploy does.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// To each service.
    pub(super) services: BTreeMap<ServiceName, ServiceChange>,
    /// Whether the app goes.
    pub(super) delete: bool,
    /// The scale before it, where it changes that.
    pub(super) scale_before: BTreeMap<ServiceName, BTreeMap<RegionName, u32>>,
    /// What is wanted of the domains; nothing: what was.
    pub(super) hosts: Option<Vec<HostSpec>>,
}

/// Makes a deploy the app's running one.
pub(super) fn start(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &AppName,
    work: Work,
) -> Result<ObjectId, StoreError> {
    let Work { services, delete, scale_before, hosts } = work;
    let org = &caller.org;
    let id = object_id(context.now_ms);
    let mut stored = change.get::<App>(&format!("{org}/{app}")).unwrap_or_else(|| App {
        id: object_id(context.now_ms),
        org: org.clone(),
        app: app.clone(),
        created_ms: context.now_ms,
        deploy: id.clone(),
        past: Vec::new(),
        hosts: Vec::new(),
    });
    if stored.deploy != id {
        stored.past.push(std::mem::replace(&mut stored.deploy, id.clone()));
    }
    while stored.past.len() > DEPLOYS_KEPT {
        let oldest = stored.past.remove(0);
        change.remove::<Deploy>(&format!("{org}/{oldest}"));
    }
    let hosts_before =
        hosts.filter(|hosts| *hosts != stored.hosts).map(|hosts| std::mem::replace(&mut stored.hosts, hosts));
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
        scale_before,
        hosts_before,
    })?;
    Ok(id)
}
