//! The desired records of an app: virtual hosts, clusters, their regions' policies, certificate versions,
//! placements.

use super::{Context, domains};
use crate::store::objects::{App, Domain, Placement, PlacementState, Revision, Service};
use crate::store::{Change, StoreError};
use atoll_model::{
    AllowRule, AppName, CallTarget, ClusterName, HostSpec, Kind, NodeName, OrgName, RegionName, ServiceName,
    ServiceSpec,
};
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

/// The host names that an app's services have in the platform's zone, as they are wanted now.
#[must_use]
pub fn domains_now(
    change: &Change<'_>,
    context: &Context,
    org: &OrgName,
    app: &AppName,
) -> BTreeMap<ServiceName, String> {
    let services = change.list::<Service>(&format!("{org}/{app}/"));
    let specs = services
        .iter()
        .filter_map(|service| Some((service.cluster.service.clone(), target_of(change, service)?.spec)));
    domain_of(app, &specs.collect(), &context.zone)
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
                region_cluster(change, context, &service, None);
                change.undesire(Kind::VIRTUAL_HOST, "", service.id.as_str());
            }
        }
    }
    let names = domain_of(app, &specs, &context.zone);
    let present = domains::of_app(change, org, app);
    let hosts = change.get::<App>(&format!("{org}/{app}")).map(|app| app.hosts).unwrap_or_default();
    let mut newest = 0;
    for (service, revision) in &services {
        newest = newest.max(cluster(change, service, revision));
        newest = newest.max(region_cluster(change, context, service, Some(revision)));
        match names.get(&service.cluster.service) {
            Some(domain) => {
                let own = present.iter().filter(|other| other.own && other.cluster == service.cluster);
                let domains = std::iter::once(domain).chain(own.map(|own| &own.domain)).cloned().collect();
                newest = newest.max(virtual_host(change, service, domains, &hosts));
                newest = newest.max(certificate(change, context, service, domain)?);
            }
            None => change.undesire(Kind::VIRTUAL_HOST, "", service.id.as_str()),
        }
    }
    for domain in present.iter().filter(|domain| domain.own) {
        // One of its own stays the app's while nothing serves it.
        match names.contains_key(&domain.cluster.service) {
            true => newest = newest.max(certificate_version(change, domain)),
            false => change.undesire(Kind::CERTIFICATE, "", &domain.domain),
        }
    }
    let kept: BTreeSet<&String> = names.values().collect();
    for domain in present.iter().filter(|domain| !domain.own && !kept.contains(&domain.domain)) {
        domains::forget(change, domain);
    }
    Ok(newest)
}

fn target_of(change: &Change<'_>, service: &Service) -> Option<Revision> {
    let id = service.target.as_ref()?;
    change.get::<Revision>(&Revision::tail(&service.cluster, id))
}

/// Where instances of the service may be: until a deploy has ended, also where the revision before runs.
fn regions_of(change: &Change<'_>, service: &Service, revision: &Revision) -> BTreeSet<RegionName> {
    let current =
        service.current.as_ref().and_then(|id| change.get::<Revision>(&Revision::tail(&service.cluster, id)));
    let both = [Some(revision), current.as_ref()];
    both.into_iter().flatten().flat_map(|revision| revision.spec.regions.keys().cloned()).collect()
}

fn cluster(change: &mut Change<'_>, service: &Service, revision: &Revision) -> u64 {
    let regions = regions_of(change, service, revision);
    let name = service.cluster.to_string();
    let body = record::Cluster {
        name: name.clone(),
        public: revision.spec.public,
        regions: regions.iter().map(ToString::to_string).collect(),
        protocol: revision.spec.protocol.as_str().to_owned(),
        revision: revision.id.to_string(),
        response_timeout_ms: RESPONSE_TIMEOUT_MS,
    };
    change.desire(Kind::CLUSTER, "", &name, &body)
}

/// Tells the hosts of each region where the service is who may call it; takes that back elsewhere.
fn region_cluster(
    change: &mut Change<'_>,
    context: &Context,
    service: &Service,
    revision: Option<&Revision>,
) -> u64 {
    let name = service.cluster.to_string();
    let regions = revision.map(|revision| regions_of(change, service, revision)).unwrap_or_default();
    for region in context.regions.iter().filter(|region| !regions.contains(*region)) {
        change.undesire(Kind::REGION_CLUSTER, region.as_str(), &name);
    }
    let Some(revision) = revision else { return 0 };
    let body = record::RegionCluster {
        name: name.clone(),
        public: revision.spec.public,
        protocol: revision.spec.protocol.as_str().to_owned(),
        response_timeout_ms: RESPONSE_TIMEOUT_MS,
        allow: revision.spec.allow.iter().map(|rule| allow_rule(rule, &service.cluster)).collect(),
    };
    let desire = |region: &RegionName| change.desire(Kind::REGION_CLUSTER, region.as_str(), &name, &body);
    regions.iter().map(desire).max().unwrap_or(0)
}

fn allow_rule(rule: &AllowRule, called: &ClusterName) -> record::AllowRule {
    record::AllowRule {
        from: rule.from.iter().map(|from| from.cluster(&called.org, &called.app).to_string()).collect(),
        http: rule.http.iter().map(ToString::to_string).collect(),
        grpc: rule.grpc.iter().map(ToString::to_string).collect(),
    }
}

/// Says anew what the hosts of each region must know of services. A store of a version that did not say
/// so is brought up to date by it; in any other nothing changes.
pub fn publish_region_clusters(change: &mut Change<'_>, context: &Context) {
    for service in change.list::<Service>("") {
        let revision = target_of(change, &service);
        region_cluster(change, context, &service, revision.as_ref());
    }
}

fn virtual_host(change: &mut Change<'_>, service: &Service, domains: Vec<String>, hosts: &[HostSpec]) -> u64 {
    let cluster = &service.cluster;
    let body = record::VirtualHost {
        org: cluster.org.to_string(),
        app: cluster.app.to_string(),
        cache: cache_rules(hosts, &domains),
        domains,
        routes: vec![record::Route {
            name: "all".to_owned(),
            path_prefix: "/".to_owned(),
            cluster: cluster.to_string(),
        }],
    };
    change.desire(Kind::VIRTUAL_HOST, "", service.id.as_str(), &body)
}

/// The rules for these domains, in their order; each with those of them that it is for.
fn cache_rules(hosts: &[HostSpec], domains: &[String]) -> Vec<record::CacheRule> {
    let mut rules = Vec::new();
    for host in hosts {
        let (mut of_host, every) = (host.domains.clone(), host.domains.is_empty());
        of_host.retain(|domain| domains.contains(domain));
        if every || !of_host.is_empty() {
            let rule = |rule| record::CacheRule { domains: of_host.clone(), ..rule };
            rules.extend(host.cache.iter().map(record::CacheRule::from).map(rule));
        }
    }
    rules
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
        spec: Some(record::Spec { calls: calls_of(change, placement, spec), ..spec.into() }),
    };
    body.set_state(match placement.state {
        PlacementState::Run => State::Run,
        PlacementState::Drain => State::Drain,
    });
    change.put(placement)?;
    change.desire(Kind::PLACEMENT, placement.region.as_str(), &placement.record_key(), &body);
    Ok(())
}

/// What the service calls, with what it speaks as far as it is known: a service may be deployed after who calls it.
fn calls_of(change: &Change<'_>, placement: &Placement, spec: &ServiceSpec) -> Vec<record::Call> {
    let caller = &placement.cluster;
    let call = |target: &CallTarget| {
        let cluster = target.cluster(&caller.org, &caller.app);
        let called = change.get::<Service>(&cluster.to_string());
        let revision = called.and_then(|service| target_of(change, &service));
        let protocol = revision.map(|revision| revision.spec.protocol).unwrap_or_default();
        record::Call {
            variable: target.variable(),
            cluster: cluster.to_string(),
            protocol: protocol.as_str().to_owned(),
        }
    };
    spec.calls.iter().map(call).collect()
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
    use crate::testing::{Platform, shop};
    use http::Method;
    use serde_json::{Value, json};

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

    /// The records of a kind by scope and key, as the store has them.
    fn desired<T: atoll_wire::Message + Default>(platform: &Platform, kind: Kind) -> BTreeMap<String, T> {
        let all = platform.store.desired().into_iter().filter(|record| record.kind == kind);
        let decode = |body: Vec<u8>| T::decode(body.as_slice()).unwrap();
        all.filter_map(|r| Some((format!("{}:{}", r.scope, r.key), decode(r.body?)))).collect()
    }

    /// `shop` whose `web` calls `api` and another app's, and whose `api` has a rule.
    fn shop_that_calls(region: &str) -> Value {
        let mut app = shop(&[(region, 1)]);
        let mut api = app["services"]["web"].clone();
        api["public"] = json!(false);
        api["protocol"] = json!("grpc");
        api["allow"] = json!([{ "from": ["web", "acme/x/y"], "http": ["GET /v1/**"] }]);
        app["services"]["web"]["calls"] = json!(["api", "billing/tax"]);
        app["services"]["api"] = api;
        app
    }

    /// Runs `change` and publishes the app anew.
    async fn republish(platform: &Platform, edit: impl FnOnce(&mut Change<'_>) + Send + 'static) {
        let context = Context { now_ms: 1, ..platform.parts.context.clone() };
        let published = platform.store.change(move |change| {
            edit(change);
            publish(change, &context, &OrgName::default_org(), &"shop".parse().unwrap())
        });
        published.await.unwrap();
    }

    #[tokio::test]
    async fn the_hosts_of_a_region_hear_who_may_call_and_what_is_called() {
        let platform = Platform::start().await;
        let (status, answer) =
            platform.call(Method::PUT, "/v1/apps/shop", None, shop_that_calls("fra")).await;
        assert_eq!(status, 202, "{answer}");

        let policies = desired::<record::RegionCluster>(&platform, Kind::REGION_CLUSTER);
        assert_eq!(policies.keys().collect::<Vec<_>>(), ["fra:default/shop/api", "fra:default/shop/web"]);
        let api = &policies["fra:default/shop/api"];
        assert_eq!((api.public, api.protocol.as_str()), (false, "grpc"));
        assert_eq!(api.allow[0].from, ["default/shop/web", "acme/x/y"]);
        assert_eq!(api.allow[0].http, ["GET /v1/**"]);

        republish(&platform, |change| {
            let service = change.get::<Service>("default/shop/web").unwrap();
            let revision = target_of(change, &service).unwrap();
            let placement = Placement {
                instance: atoll_model::InstanceId::from_parts(1, 1),
                cluster: service.cluster,
                revision: revision.id,
                region: "fra".parse().unwrap(),
                host: "fra1-host".parse().unwrap(),
                state: PlacementState::Run,
                placed_ms: 1,
                state_ms: 1,
            };
            place(change, &placement, &revision.spec).unwrap();
        })
        .await;
        let placements = desired::<record::Placement>(&platform, Kind::PLACEMENT);
        let calls = &placements.values().next().unwrap().spec.as_ref().unwrap().calls;
        let call =
            |n: usize| (calls[n].variable.as_str(), calls[n].cluster.as_str(), calls[n].protocol.as_str());
        assert_eq!(call(0), ("API_URL", "default/shop/api", "grpc"));
        assert_eq!(call(1), ("BILLING_TAX_URL", "default/billing/tax", "http"), "it is not deployed yet");
    }

    #[tokio::test]
    async fn a_service_that_moves_is_known_in_both_regions_until_its_deploy_has_ended() {
        let platform = Platform::start().await;
        assert_eq!(platform.call(Method::PUT, "/v1/apps/shop", None, shop_that_calls("fra")).await.0, 202);
        let scopes = || {
            let policies = desired::<record::RegionCluster>(&platform, Kind::REGION_CLUSTER);
            policies.into_keys().filter(|key| key.ends_with("/web")).collect::<Vec<_>>()
        };
        republish(&platform, |change| {
            let mut service = change.get::<Service>("default/shop/web").unwrap();
            let mut revision = target_of(change, &service).unwrap();
            service.current = service.target.take();
            revision.id = atoll_model::RevisionId::from_parts(9, 9);
            revision.spec.regions = [("was".parse().unwrap(), atoll_model::Scale { min: 1, max: 1 })].into();
            service.target = Some(revision.id.clone());
            change.put(&revision).unwrap();
            change.put(&service).unwrap();
        })
        .await;
        assert_eq!(scopes(), ["fra:default/shop/web", "was:default/shop/web"]);
        republish(&platform, |change| {
            let mut service = change.get::<Service>("default/shop/web").unwrap();
            service.current.clone_from(&service.target);
            change.put(&service).unwrap();
        })
        .await;
        assert_eq!(scopes(), ["was:default/shop/web"]);
        republish(&platform, |change| {
            let mut service = change.get::<Service>("default/shop/web").unwrap();
            service.target = None;
            change.put(&service).unwrap();
        })
        .await;
        assert_eq!(scopes(), Vec::<String>::new());
    }
}
