//! Domains of an app: those in the platform's zone, which come with its services, and the organization's own.

use super::{Context, records};
use crate::caller::Caller;
use crate::certificates::upload::Uploaded;
use crate::store::objects::{App, Domain, DomainClaim, Revision, Service};
use crate::store::{Change, StoreError};
use atoll_model::{AppName, ClusterName, Kind, OrgName, Protocol, ServiceName};
use atoll_routing::hosts::wildcard_of;

/// Own domains of an app: they travel in its virtual hosts' records.
pub const OWN_DOMAINS_MAX: usize = 50;

/// Why a domain was not taken, or not found.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DomainRefusal {
    /// There is no such app.
    #[error("there is no app `{0}`")]
    NoApp(AppName),
    /// No service that could serve it.
    #[error("{0}")]
    NoService(String),
    /// Someone else has it, or what covers it.
    #[error("{0}")]
    Taken(String),
    /// Too many.
    #[error(
        "an app has at most {OWN_DOMAINS_MAX} domains of its own: a wildcard such as `*.example.com` covers many names"
    )]
    TooMany,
    /// The caller has no such domain.
    #[error("there is no own domain `{0}`; `atoll domains list` shows them")]
    Missing(String),
    /// It is not to be removed by itself.
    #[error("`{0}` comes with its app and goes with it")]
    OfPlatform(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A domain that was taken.
#[derive(Debug)]
pub struct Added {
    /// As it is stored.
    pub domain: Domain,
    /// It was there already, and has a new certificate.
    pub replaced: bool,
    /// The desired state that edges must have.
    pub version: u64,
}

/// Every domain of an app.
#[must_use]
pub fn of_app(change: &Change<'_>, org: &OrgName, app: &AppName) -> Vec<Domain> {
    change.filed::<Domain>(&format!("{org}/{app}/"))
}

/// Takes a domain with its certificate for a service, or a new certificate for one that is there.
pub fn add(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    (domain, app, service): (&str, &AppName, Option<&ServiceName>),
    uploaded: &Uploaded,
) -> Result<Added, DomainRefusal> {
    let org = &caller.org;
    if change.get::<App>(&format!("{org}/{app}")).is_none() {
        return Err(DomainRefusal::NoApp(app.clone()));
    }
    let cluster = serving(change, org, app, service)?;
    let tail = DomainClaim::tail(domain);
    let before = change.get::<DomainClaim>(&tail);
    refuse_taken(change, org, app, domain, before.as_ref())?;
    let present = of_app(change, org, app);
    let others = present.iter().filter(|other| other.own && other.domain != domain).count();
    if others >= OWN_DOMAINS_MAX {
        return Err(DomainRefusal::TooMany);
    }
    let stored = context
        .certificates
        .take(&cluster, domain, uploaded)
        .map_err(|error| StoreError::Broken(error.to_string()))?;
    change.put(&DomainClaim { domain: domain.to_owned(), org: org.clone(), app: app.clone() })?;
    change.put(&stored)?;
    let version = records::publish(change, context, org, app)?;
    tracing::info!(domain, %cluster, by = caller.name, replaced = before.is_some(), "own domain taken");
    Ok(Added { domain: stored, replaced: before.is_some(), version })
}

/// Gives a domain up.
pub fn remove(
    change: &mut Change<'_>,
    context: &Context,
    caller: &Caller,
    domain: &str,
) -> Result<(), DomainRefusal> {
    let org = &caller.org;
    let stored = change.get::<Domain>(&format!("{org}/{domain}"));
    let stored = stored.ok_or_else(|| DomainRefusal::Missing(domain.to_owned()))?;
    if !stored.own {
        return Err(DomainRefusal::OfPlatform(domain.to_owned()));
    }
    let app = &stored.cluster.app;
    forget(change, &stored);
    records::publish(change, context, org, app)?;
    tracing::info!(domain, %app, by = caller.name, "own domain removed");
    Ok(())
}

/// Removes a domain, its certificate and whose it was.
pub(super) fn forget(change: &mut Change<'_>, domain: &Domain) {
    change.undesire(Kind::CERTIFICATE, "", &domain.domain);
    change.remove::<Domain>(&format!("{}/{}", domain.org, domain.domain));
    if domain.own {
        change.remove::<DomainClaim>(&DomainClaim::tail(&domain.domain));
    }
}

/// A domain that another organization or app has, or one that covers another organization's: whoever holds a
/// wildcard would get its requests, or lose some of its own.
fn refuse_taken(
    change: &Change<'_>,
    org: &OrgName,
    app: &AppName,
    domain: &str,
    same: Option<&DomainClaim>,
) -> Result<(), DomainRefusal> {
    let taken = |text: String| Err(DomainRefusal::Taken(text));
    if let Some(claim) = same {
        if claim.org != *org {
            return taken(format!("`{domain}` is taken"));
        }
        if claim.app != *app {
            let of = &claim.app;
            return taken(format!(
                "`{domain}` belongs to app {of}: `atoll domains remove {domain}` takes it from there"
            ));
        }
    }
    let overlaps = match domain.strip_prefix("*.") {
        Some(parent) => {
            let below = change.list::<DomainClaim>(&format!("{}.", DomainClaim::tail(parent)));
            below
                .into_iter()
                .find(|claim| claim.org != *org && wildcard_of(&claim.domain).as_deref() == Some(domain))
        }
        None => wildcard_of(domain)
            .and_then(|wildcard| change.get::<DomainClaim>(&DomainClaim::tail(&wildcard)))
            .filter(|claim| claim.org != *org),
    };
    match overlaps {
        Some(_) => taken(format!("`{domain}` overlaps with a domain that is taken")),
        None => Ok(()),
    }
}

/// The public service that a domain leads to: the one that is named, else the app's main one.
fn serving(
    change: &Change<'_>,
    org: &OrgName,
    app: &AppName,
    wanted: Option<&ServiceName>,
) -> Result<ClusterName, DomainRefusal> {
    let is_public = |service: &Service| {
        let id = service.target.as_ref();
        let revision = id.and_then(|id| change.get::<Revision>(&Revision::tail(&service.cluster, id)));
        revision.is_some_and(|revision| revision.spec.public && revision.spec.protocol != Protocol::Tcp)
    };
    let mut public = change.list::<Service>(&format!("{org}/{app}/"));
    public.retain(is_public);
    let found = match wanted {
        Some(name) => public.iter().find(|service| service.cluster.service == *name),
        None => match public.as_slice() {
            [only] => Some(only),
            several => several.iter().find(|service| service.cluster.service.as_str() == "web"),
        },
    };
    if let Some(service) = found {
        return Ok(service.cluster.clone());
    }
    let names: Vec<&str> = public.iter().map(|service| service.cluster.service.as_str()).collect();
    Err(DomainRefusal::NoService(match (wanted, names.as_slice()) {
        (_, []) => format!("app {app} has no public service: set `public = true` in its manifest and deploy"),
        (Some(name), names) => {
            format!("app {app} has no public service `{name}`; it has {}", names.join(", "))
        }
        (None, names) => format!("say which service of {app} the domain leads to: {}", names.join(", ")),
    }))
}
