//! Deploys of what is stored already: an earlier revision, or the same one at another scale.

use super::accept::{Accepted, Refusal, Work, start, unfinished};
use super::validate::faults_of;
use super::{Context, records};
use crate::caller::Caller;
use crate::store::Change;
use crate::store::objects::{App, Revision, Service, ServiceChange};
use atoll_model::{AppName, RegionName, ServiceName};
use std::collections::BTreeMap;

/// Which revision is to run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one with that number.
    Number(u64),
    /// The newest before the one that runs, of those that did not fail.
    Previous,
}

/// Takes a deploy of earlier revisions: of one service, or of every service of the app.
pub fn accept_revision(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &AppName,
    service: Option<&ServiceName>,
    which: Which,
) -> Result<Accepted, Refusal> {
    let services = services_of(change, caller, app)?;
    let chosen: Vec<Service> = match service {
        Some(name) => vec![one(services, app, name)?],
        None if services.len() == 1 || which == Which::Previous => services,
        // Each service counts its own revisions.
        None => return Err(Refusal::WhichService { app: app.clone(), services: names(&services) }),
    };
    let mut changes = BTreeMap::new();
    for mut stored in chosen {
        let revision = find(change, &stored, which)?;
        let name = stored.cluster.service.clone();
        let faults = faults_of(&name, &revision.spec, context);
        if !faults.is_empty() {
            return Err(Refusal::Invalid(faults));
        }
        let from = stored.target.replace(revision.id.clone());
        change.put(&stored)?;
        changes.insert(name, ServiceChange { from, to: Some(revision.id) });
    }
    begin(change, context, caller, app, Work { services: changes, ..Work::default() })
}

/// Takes another number of instances for regions of a service; nothing for a region: the manifest's `min` again.
pub fn accept_scale(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &AppName,
    service: &ServiceName,
    regions: &BTreeMap<RegionName, Option<u32>>,
) -> Result<Accepted, Refusal> {
    let mut stored = one(services_of(change, caller, app)?, app, service)?;
    let target = stored.target.clone();
    let revision = target
        .as_ref()
        .and_then(|id| change.get::<Revision>(&Revision::tail(&stored.cluster, id)))
        .ok_or_else(|| Refusal::NoService {
            app: app.clone(),
            service: service.clone(),
            known: Vec::new(),
        })?;
    let before = stored.scale.clone();
    for (region, count) in regions {
        let Some(bounds) = revision.spec.regions.get(region).copied() else {
            let known = revision.spec.regions.keys().map(ToString::to_string).collect();
            return Err(Refusal::NotInRegion { service: service.clone(), region: region.clone(), known });
        };
        match count {
            None => drop(stored.scale.remove(region)),
            Some(count) if !(bounds.min..=bounds.max).contains(count) => {
                let (service, region) = (service.clone(), region.clone());
                return Err(Refusal::OutOfBounds { service, region, asked: *count, bounds });
            }
            Some(count) => drop(stored.scale.insert(region.clone(), *count)),
        }
    }
    change.put(&stored)?;
    let services = [(service.clone(), ServiceChange { from: target.clone(), to: target })].into();
    let scale_before = [(service.clone(), before)].into();
    begin(change, context, caller, app, Work { services, scale_before, ..Work::default() })
}

fn begin(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    app: &AppName,
    work: Work,
) -> Result<Accepted, Refusal> {
    let to = |(name, service): (&ServiceName, &ServiceChange)| Some((name.clone(), service.to.clone()?));
    let revisions = work.services.iter().filter_map(to).collect();
    let deploy = start(change, context, caller, app, work)?;
    records::publish(change, context, &caller.org, app)?;
    let domains = records::domains_now(change, context, &caller.org, app).into_values().collect();
    Ok(Accepted { deploy, revisions, version: change.revision(), domains })
}

/// The services that the app has, where nothing else is under way with it.
fn services_of(change: &Change<'_>, caller: &Caller, app: &AppName) -> Result<Vec<Service>, Refusal> {
    let org = &caller.org;
    let stored = change.get::<App>(&format!("{org}/{app}")).ok_or_else(|| Refusal::NoApp(app.clone()))?;
    if let Some(running) = unfinished(change, org, &stored.deploy) {
        return Err(Refusal::Running(running.id));
    }
    let mut services = change.list::<Service>(&format!("{org}/{app}/"));
    services.retain(|service| service.target.is_some());
    Ok(services)
}

fn one(services: Vec<Service>, app: &AppName, name: &ServiceName) -> Result<Service, Refusal> {
    let known = names(&services);
    let found = services.into_iter().find(|service| service.cluster.service == *name);
    found.ok_or_else(|| Refusal::NoService { app: app.clone(), service: name.clone(), known })
}

fn names(services: &[Service]) -> Vec<String> {
    services.iter().map(|service| service.cluster.service.to_string()).collect()
}

fn find(change: &Change<'_>, service: &Service, which: Which) -> Result<Revision, Refusal> {
    let kept = change.list::<Revision>(&format!("{}/", service.cluster));
    let name = service.cluster.service.clone();
    let numbers =
        || kept.iter().filter(|revision| !revision.failed).map(|revision| revision.number).collect();
    let found = match which {
        Which::Number(number) => kept.iter().find(|revision| revision.number == number),
        Which::Previous => {
            let running = kept.iter().find(|revision| Some(&revision.id) == service.target.as_ref());
            let before = running.map_or(u64::MAX, |running| running.number);
            let usable = kept.iter().filter(|revision| !revision.failed && revision.number < before);
            usable.max_by_key(|revision| revision.number)
        }
    };
    match found {
        Some(revision) if revision.failed => {
            Err(Refusal::RevisionFailed { service: name, number: revision.number, known: numbers() })
        }
        Some(revision) => Ok(revision.clone()),
        None => Err(Refusal::NoRevision { service: name, known: numbers() }),
    }
}
