//! The desired records of an app: virtual hosts, clusters, certificate versions, placements.

use super::Context;
use crate::store::objects::{Domain, Placement, PlacementState, Revision, Service};
use crate::store::{Change, StoreError};
use atoll_model::{AppName, Kind, NodeName, OrgName, RegionName, ServiceName, ServiceSpec};
use atoll_wire::record::{self, Denial};
use std::collections::{BTreeMap, BTreeSet};

/// Longest wait for a response head. Not yet a key of the manifest.
const RESPONSE_TIMEOUT_MS: u64 = 60_000;

/// The host name of each public service: `<app>.<zone>` for the one named `web`, or the only one;
/// `<service>--<app>.<zone>` for others.
#[must_use]
pub fn domain_of(
    app: &AppName,
    services: &BTreeMap<ServiceName, ServiceSpec>,
    zone: &str,
) -> BTreeMap<ServiceName, String> {
    let public: BTreeSet<&ServiceName> =
        services.iter().filter(|(_, spec)| spec.public).map(|(name, _)| name).collect();
    let only = public.len() == 1;
    public
        .into_iter()
        .map(|name| {
            let main = only || name.as_str() == "web";
            let domain = if main { format!("{app}.{zone}") } else { format!("{name}--{app}.{zone}") };
            (name.clone(), domain)
        })
        .collect()
}

/// Makes the desired records of an app what its services say; returns the newest revision among them.
pub fn publish(
    change: &mut Change<'_>,
    context: &Context,
    org: &OrgName,
    app: &AppName,
) -> Result<u64, StoreError> {
    let mut services = Vec::new();
    let mut specs = BTreeMap::new();
    for service in change.list::<Service>(&format!("{org}/{app}/")) {
        match target_of(change, &service) {
            Some(revision) => {
                specs.insert(service.cluster.service.clone(), revision.spec.clone());
                services.push((service, revision));
            }
            None => {
                change.undesire(Kind::CLUSTER, "", &service.cluster.to_string());
                change.undesire(Kind::VIRTUAL_HOST, "", service.id.as_str());
            }
        }
    }
    let domains = domain_of(app, &specs, &context.zone);
    let mut newest = 0;
    for (service, revision) in &services {
        newest = newest.max(cluster(change, service, revision));
        match domains.get(&service.cluster.service) {
            Some(domain) => {
                newest = newest.max(virtual_host(change, service, domain));
                newest = newest.max(certificate(change, context, service, domain)?);
            }
            None => change.undesire(Kind::VIRTUAL_HOST, "", service.id.as_str()),
        }
    }
    let kept: BTreeSet<&String> = domains.values().collect();
    for domain in change.list::<Domain>(&format!("{org}/")) {
        if domain.cluster.app == *app && !kept.contains(&domain.domain) {
            change.undesire(Kind::CERTIFICATE, "", &domain.domain);
            change.remove::<Domain>(&format!("{org}/{}", domain.domain));
        }
    }
    Ok(newest)
}

fn target_of(change: &Change<'_>, service: &Service) -> Option<Revision> {
    let id = service.target.as_ref()?;
    change.get::<Revision>(&Revision::tail(&service.cluster, id))
}

fn cluster(change: &mut Change<'_>, service: &Service, revision: &Revision) -> u64 {
    let mut regions: BTreeSet<String> = revision.spec.regions.keys().map(ToString::to_string).collect();
    // Until a deploy has ended, also where the revision before runs.
    let current =
        service.current.as_ref().and_then(|id| change.get::<Revision>(&Revision::tail(&service.cluster, id)));
    regions.extend(current.iter().flat_map(|current| current.spec.regions.keys().map(ToString::to_string)));
    let name = service.cluster.to_string();
    let body = record::Cluster {
        name: name.clone(),
        public: revision.spec.public,
        regions: regions.into_iter().collect(),
        protocol: record::Spec::from(&revision.spec).protocol,
        revision: revision.id.to_string(),
        response_timeout_ms: RESPONSE_TIMEOUT_MS,
    };
    change.desire(Kind::CLUSTER, "", &name, &body)
}

fn virtual_host(change: &mut Change<'_>, service: &Service, domain: &str) -> u64 {
    let cluster = &service.cluster;
    let body = record::VirtualHost {
        org: cluster.org.to_string(),
        app: cluster.app.to_string(),
        domains: vec![domain.to_owned()],
        routes: vec![record::Route {
            name: "all".to_owned(),
            path_prefix: "/".to_owned(),
            cluster: cluster.to_string(),
        }],
    };
    change.desire(Kind::VIRTUAL_HOST, "", service.id.as_str(), &body)
}

fn certificate(
    change: &mut Change<'_>,
    context: &Context,
    service: &Service,
    name: &str,
) -> Result<u64, StoreError> {
    let tail = format!("{}/{name}", service.cluster.org);
    let mut domain = match change.get::<Domain>(&tail) {
        Some(domain) if domain.not_after_ms > context.now_ms => domain,
        _ => context
            .certificates
            .issue(&service.cluster, name, context.now_ms)
            .map_err(|error| StoreError::Broken(format!("no certificate for {name}: {error}")))?,
    };
    // A domain can move to another service of its app.
    domain.cluster = service.cluster.clone();
    change.put(&domain)?;
    Ok(certificate_version(change, &domain))
}

/// Tells the edges which certificate a domain has.
pub fn certificate_version(change: &mut Change<'_>, domain: &Domain) -> u64 {
    let body = record::CertificateVersion {
        domain: domain.domain.clone(),
        fingerprint: domain.fingerprint.clone(),
        not_after_ms: domain.not_after_ms,
    };
    change.desire(Kind::CERTIFICATE, "", &domain.domain, &body)
}

/// Writes a placement, and tells its host.
pub fn place(change: &mut Change<'_>, placement: &Placement, spec: &ServiceSpec) -> Result<(), StoreError> {
    use record::placement::State;
    let mut body = record::Placement {
        instance: placement.instance.to_string(),
        host: placement.host.to_string(),
        cluster: placement.cluster.to_string(),
        revision: placement.revision.to_string(),
        state: 0,
        spec: Some(spec.into()),
    };
    body.set_state(match placement.state {
        PlacementState::Run => State::Run,
        PlacementState::Drain => State::Drain,
    });
    change.put(placement)?;
    change.desire(Kind::PLACEMENT, placement.region.as_str(), &placement.record_key(), &body);
    Ok(())
}

/// Removes a placement, and tells its host.
pub fn displace(change: &mut Change<'_>, placement: &Placement) {
    change.remove::<Placement>(&placement.tail());
    change.undesire(Kind::PLACEMENT, placement.region.as_str(), &placement.record_key());
}

/// Denies a node everywhere: hosts hear of it in their region's scope.
pub(crate) fn deny(change: &mut Change<'_>, regions: &[RegionName], name: &NodeName, denial: &Denial) {
    change.desire(Kind::DENIAL, "", name.as_str(), denial);
    for region in regions {
        change.desire(Kind::REGION_DENIAL, region.as_str(), name.as_str(), denial);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn names(list: &[(&str, bool)]) -> BTreeMap<String, String> {
        let services = list
            .iter()
            .map(|(name, public)| {
                let spec = ServiceSpec {
                    run: vec!["x".into()],
                    working_dir: "/".into(),
                    env: BTreeMap::new(),
                    labels: BTreeMap::new(),
                    protocol: atoll_model::Protocol::Http,
                    public: *public,
                    drain_ms: 0,
                    checks: Vec::new(),
                    regions: BTreeMap::new(),
                    ..ServiceSpec::default()
                };
                (name.parse().unwrap(), spec)
            })
            .collect();
        let domains = domain_of(&"shop".parse().unwrap(), &services, "localhost");
        domains.into_iter().map(|(name, domain)| (name.to_string(), domain)).collect()
    }

    #[test]
    fn the_main_service_has_the_apps_name() {
        assert_eq!(names(&[("api", true), ("db", false)])["api"], "shop.localhost");
        let two = names(&[("web", true), ("api", true)]);
        assert_eq!((two["web"].as_str(), two["api"].as_str()), ("shop.localhost", "api--shop.localhost"));
        let no_web = names(&[("one", true), ("two", true)]);
        assert_eq!(no_web["one"], "one--shop.localhost");
    }
}
