//! What a deploy would change.

mod hosts;

use super::accept::{Refusal, free};
use super::validate::all_faults;
use super::{Context, records};
use crate::store::Change;
use crate::store::objects::{App, Domain, Revision, Service};
use atoll_model::manifest::CompiledApp;
use atoll_model::{OrgName, RegionName, Scale, ServiceSpec};
use serde::Serialize;
use std::collections::BTreeMap;

/// One change that a deploy would make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PlannedChange {
    /// `create`, `replace`, `restart` (the same specification again), `remove`, or `keep` (said because it
    /// is not what the manifest says).
    pub action: &'static str,
    /// `app`, `service`, `host`, `domain`, `scale`.
    pub object: &'static str,
    /// Its name.
    pub name: String,
    /// What changes, for people.
    pub detail: String,
}

/// What a deploy would change; checks the app as [`accept`] does.
pub fn plan_changes(
    change: &Change<'_>,
    context: &Context,
    org: &OrgName,
    request: &CompiledApp,
) -> Result<Vec<PlannedChange>, Refusal> {
    let faults = all_faults(change, context, org, request);
    if !faults.is_empty() {
        return Err(Refusal::Invalid(faults));
    }
    let app = &request.app;
    let planned =
        |action, object, name: String, detail: String| PlannedChange { action, object, name, detail };
    let mut plan = Vec::new();
    let stored = change.get::<App>(&format!("{org}/{app}"));
    if stored.is_none() {
        free(change, org, app)?;
        plan.push(planned("create", "app", app.to_string(), String::new()));
    }
    let mut before = BTreeMap::new();
    for service in change.list::<Service>(&format!("{org}/{app}/")) {
        let id = service.target.as_ref();
        let revision = id.and_then(|id| change.get::<Revision>(&Revision::tail(&service.cluster, id)));
        before.insert(service.cluster.service.clone(), (service, revision.map(|revision| revision.spec)));
    }
    for (name, spec) in &request.services {
        let old = before.remove(name);
        let (action, detail) = service_change(spec, old.as_ref().and_then(|(_, spec)| spec.as_ref()));
        plan.push(planned(action, "service", name.to_string(), detail));
        for (region, count) in old.iter().flat_map(|(service, _)| &service.scale) {
            let (action, detail) = scale_change(region, *count, spec.regions.get(region).copied());
            plan.push(planned(action, "scale", format!("{name} {region}"), detail));
        }
    }
    for name in before.into_keys() {
        plan.push(planned("remove", "service", name.to_string(), String::new()));
    }
    for (name, domain) in records::domain_of(app, &request.services, &context.zone) {
        if change.get::<Domain>(&format!("{org}/{domain}")).is_none() {
            plan.push(planned("create", "domain", domain, format!("for service {name}")));
        }
    }
    let hosts = stored.map(|stored| stored.hosts).unwrap_or_default();
    for hosts::HostChange { action, name, detail } in hosts::changes(&hosts, &request.hosts) {
        plan.push(planned(action, "host", name, detail));
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
            ("restart", "unchanged specification: instances are replaced one by one".to_owned())
        }
        Some(old) if old.regions != spec.regions => {
            ("replace", format!("regions {} -> {}", regions(old), regions(spec)))
        }
        Some(old) => ("replace", format!("changed: {}", changed_fields(old, spec).join(", "))),
    }
}

/// What becomes of a region's scale: it is kept while the manifest's bounds allow it.
fn scale_change(region: &RegionName, count: u32, bounds: Option<Scale>) -> (&'static str, String) {
    match bounds {
        Some(bounds) if (bounds.min..=bounds.max).contains(&count) => {
            ("keep", format!("{count} in {region} by `atoll scale`; the manifest's min is {}", bounds.min))
        }
        Some(bounds) => {
            let Scale { min, max } = bounds;
            ("remove", format!("{count} in {region} by `atoll scale` is outside {min}..{max}: {min} run"))
        }
        None => ("remove", format!("{count} in {region} by `atoll scale`: it does not run there any more")),
    }
}

/// The names of what differs between two specifications.
#[must_use]
pub fn changed_fields(old: &ServiceSpec, new: &ServiceSpec) -> Vec<&'static str> {
    let all = [
        ("run", old.run != new.run),
        ("folder", old.working_dir != new.working_dir),
        ("env", old.env != new.env),
        ("labels", old.labels != new.labels),
        ("protocol", old.protocol != new.protocol),
        ("public", old.public != new.public),
        ("drain", old.drain_ms != new.drain_ms),
        ("check", old.checks != new.checks),
        ("regions", old.regions != new.regions),
        ("calls", old.calls != new.calls),
        ("allow", old.allow != new.allow),
        ("proxy_env", old.proxy_env != new.proxy_env),
        ("files", old.bundle != new.bundle),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}
