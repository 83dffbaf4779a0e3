//! What the host says, checked.

use atoll_identity::{
    Identity, IdentityError, Material, MaterialError, SpiffeId, SpiffeIdError, TrustDomain,
};
use atoll_model::ClusterName;
use atoll_model::cluster::ClusterNameError;
use atoll_wire::sidecar::SidecarState;
use http::HeaderValue;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

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
}

/// How the instance is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serving {
    /// `org/app/service`, as gateways name it.
    pub(crate) cluster: String,
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
        cluster: cluster.to_string(),
        instance: value(&state.instance)?,
        revision: value(&state.revision)?,
        address: (port != 0).then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        response_timeout,
    })
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
