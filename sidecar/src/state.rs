//! What the host says, checked.

use atoll_identity::{
    Identity, IdentityError, Material, MaterialError, SpiffeId, SpiffeIdError, TrustDomain,
};
use atoll_model::cluster::ClusterNameError;
use atoll_model::{AllowRule, ClusterName, NameError, Protocol, RegionName};
use atoll_routing::authorize::Policy;
use atoll_wire::record::{self, RegionCluster};
use atoll_wire::sidecar::SidecarState;
use http::HeaderValue;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;
use tracing::error;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A state that can't be applied; the one before stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("the cluster's name is not valid")]
    Cluster(#[from] ClusterNameError),
    #[error("the trust domain is not valid")]
    TrustDomain(#[from] SpiffeIdError),
    #[error("the certificate, key and roots don't fit together")]
    Material(#[from] MaterialError),
    #[error("the identity can't be used")]
    Identity(#[from] IdentityError),
    #[error("the certificate is for {found}, the instance is of {wanted}")]
    OtherService { found: SpiffeId, wanted: SpiffeId },
    #[error("{0} is no port")]
    Port(u32),
    #[error("the instance's name or revision can't stand in a header field")]
    Name,
    #[error("the region's name is not valid")]
    Region(#[from] NameError),
    #[error("{0:?} is no protocol that this version knows")]
    Protocol(String),
}

/// How the instance is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serving {
    /// The instance's service.
    pub(crate) cluster: ClusterName,
    /// Where it is.
    pub(crate) region: RegionName,
    pub(crate) protocol: Protocol,
    /// Who may call it; nobody of the mesh while that is not known.
    pub(crate) policy: Option<Policy>,
    pub(crate) instance: HeaderValue,
    pub(crate) revision: HeaderValue,
    /// `None` while the instance is between two programs.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) response_timeout: Duration,
}

pub(crate) fn serving(state: &SidecarState) -> Result<Serving, StateError> {
    let cluster: ClusterName = state.cluster.parse()?;
    let port = u16::try_from(state.instance_port).map_err(|_| StateError::Port(state.instance_port))?;
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| StateError::Name);
    let response_timeout = match state.response_timeout_ms {
        0 => RESPONSE_TIMEOUT,
        ms => Duration::from_millis(ms),
    };
    Ok(Serving {
        region: state.region.parse()?,
        protocol: protocol(&state.protocol)?,
        policy: state.policy.as_ref().and_then(|told| policy(&cluster, told)),
        cluster,
        instance: value(&state.instance)?,
        revision: value(&state.revision)?,
        address: (port != 0).then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        response_timeout,
    })
}

/// A host of an earlier version says nothing: then it is HTTP.
fn protocol(name: &str) -> Result<Protocol, StateError> {
    match name {
        "" => Ok(Protocol::Http),
        name => Protocol::from_name(name).ok_or_else(|| StateError::Protocol(name.to_owned())),
    }
}

/// A policy that can't be read whole lets nobody in: a rule that is left out might have been the one that
/// narrows.
fn policy(own: &ClusterName, told: &RegionCluster) -> Option<Policy> {
    let rules: Result<Vec<AllowRule>, String> = told.allow.iter().map(rule).collect();
    match rules {
        Ok(rules) => Some(Policy::new(own.clone(), told.public, &rules)),
        Err(why) => {
            error!(cluster = %own, why, "who may call the service can't be read; nobody of the mesh may");
            None
        }
    }
}

fn rule(told: &record::AllowRule) -> Result<AllowRule, String> {
    Ok(AllowRule { from: all(&told.from)?, http: all(&told.http)?, grpc: all(&told.grpc)? })
}

fn all<T: FromStr>(texts: &[String]) -> Result<Vec<T>, String> {
    texts.iter().map(|text| text.parse().map_err(|_| format!("{text:?} is not understood"))).collect()
}

/// The state's certificate, key and roots. They must be those of the state's own service.
pub(crate) fn material(state: &SidecarState) -> Result<Material, StateError> {
    let trust_domain = TrustDomain::new(&state.trust_domain)?;
    let cluster: ClusterName = state.cluster.parse()?;
    let wanted = SpiffeId::workload(&trust_domain, &cluster);
    let material = Material::from_der(
        state.chain.iter().cloned(),
        state.key.clone(),
        state.roots.iter().cloned(),
        trust_domain,
    );
    let found = material.check()?.id;
    if found != wanted {
        return Err(StateError::OtherService { found, wanted });
    }
    Ok(material)
}

/// A first identity, or new material for the one that there is.
pub(crate) fn apply_material(
    identity: Option<&Identity>,
    state: &SidecarState,
) -> Result<Option<Identity>, StateError> {
    let material = material(state)?;
    match identity {
        Some(identity) => {
            identity.replace(material)?;
            Ok(None)
        }
        None => Ok(Some(Identity::new(material)?)),
    }
}

/// Cuts the connections of removed nodes, and takes no new ones. An id that can't be read is none that a
/// certificate could have.
pub(crate) fn apply_denied(identity: &Identity, state: &SidecarState) {
    let denied = state.denied.iter().filter_map(|denied| {
        let before = if denied.before_epoch == 0 { u64::MAX } else { denied.before_epoch };
        SpiffeId::parse(&denied.spiffe_id).ok().map(|id| (id, before))
    });
    identity.connections().set_denied_before(denied);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use atoll_routing::authorize::{Asked, Caller, authorize};

    #[test]
    fn a_policy_that_is_not_understood_lets_nobody_in() {
        let (own, web): (ClusterName, ClusterName) = ("o/a/api".parse().unwrap(), "o/a/web".parse().unwrap());
        let told = |http: &str| RegionCluster {
            allow: vec![record::AllowRule {
                from: vec![web.to_string()],
                http: vec![http.to_owned()],
                ..record::AllowRule::default()
            }],
            ..RegionCluster::default()
        };
        let may = |told: &RegionCluster| {
            let path = atoll_routing::path::normalise("/v1/x").unwrap();
            let asked = Asked::Http { method: "GET", path: Some(&path) };
            authorize(policy(&own, told).as_ref(), Caller::Service(&web), asked).is_ok()
        };
        assert!(may(&told("GET /v1/*")));
        assert!(!may(&told("GET /v2/*")));
        assert!(!may(&told("GET /v1/* unless it rains")));
        assert!(may(&RegionCluster::default()), "its own app, without rules");
    }
}
