//! Who asks, and whether it may.

use crate::state::Serving;
use atoll_identity::{PeerIdentity, SpiffeId, SpiffeKind};
use atoll_model::{ClusterName, Protocol, Reason, Role};
use atoll_proxy::headers;
use atoll_routing::authorize::{Asked, Caller, Refused, authorize};
use atoll_routing::path::{NormalPath, normalise};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri, request};
use std::fmt;

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A client of an edge, as the region's gateway passes it on.
    Public,
    /// An instance of a service.
    Service(ClusterName),
}

/// Why a request is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The peer is neither a gateway of this region nor an instance.
    Peer,
    /// The gateway names no caller, or more than one.
    Caller,
    /// It is for another service.
    Cluster,
    /// Bytes for a service that speaks HTTP, or the other way round.
    Protocol,
    /// The policy.
    Policy(Refused),
}

impl Why {
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Policy(refused) => refused.reason(),
            Self::Peer | Self::Caller | Self::Cluster | Self::Protocol => Reason::NotAuthorized,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer => f.write_str("the peer is neither a gateway of this region nor an instance"),
            Self::Caller => f.write_str("the gateway does not name one caller"),
            Self::Cluster => f.write_str("it is for another service"),
            Self::Protocol => f.write_str("it is not what the service speaks (bytes or HTTP)"),
            Self::Policy(refused) => refused.fmt(f),
        }
    }
}

/// Decides. A path by which it was decided goes on in the form in which that was done.
pub(super) fn check(
    head: &mut request::Parts,
    peer: Option<&PeerIdentity>,
    own_id: &SpiffeId,
    serving: &Serving,
) -> Result<Origin, Why> {
    let origin = origin(&head.headers, peer.ok_or(Why::Peer)?, own_id, serving)?;
    if only(&head.headers, headers::CLUSTER.as_str()) != Some(serving.cluster.to_string().as_str()) {
        return Err(Why::Cluster);
    }
    let bytes = is_bytes(&head.headers);
    if bytes != (serving.protocol == Protocol::Tcp) {
        return Err(Why::Protocol);
    }
    let policy = serving.policy.as_ref();
    let caller = match &origin {
        Origin::Public => Caller::Public,
        Origin::Service(cluster) => Caller::Service(cluster),
    };
    let normal = match &origin {
        Origin::Service(_) if policy.is_some_and(|policy| policy.looks_at_paths()) => {
            normalise(head.uri.path()).ok()
        }
        _ => None,
    };
    let asked = if bytes {
        Asked::Bytes
    } else {
        Asked::Http { method: head.method.as_str(), path: normal.as_ref() }
    };
    authorize(policy, caller, asked).map_err(Why::Policy)?;
    if let Some(path) = normal.filter(NormalPath::is_changed) {
        head.uri = with_path(&head.uri, &path).ok_or(Why::Policy(Refused::AmbiguousPath))?;
    }
    Ok(origin)
}

/// Whether a request stands for a stream of bytes.
pub(super) fn is_bytes(fields: &HeaderMap) -> bool {
    only(fields, headers::PROTOCOL.as_str()) == Some("tcp")
}

fn origin(
    fields: &HeaderMap,
    peer: &PeerIdentity,
    own_id: &SpiffeId,
    serving: &Serving,
) -> Result<Origin, Why> {
    match peer.id.kind() {
        // What an instance says of a caller counts for nothing.
        SpiffeKind::Workload(cluster) => Ok(Origin::Service(cluster)),
        SpiffeKind::Node { .. } if is_own_gateway(peer, serving) => {
            if !fields.contains_key(headers::CALLER) {
                return Ok(Origin::Public);
            }
            let named = only(fields, headers::CALLER.as_str()).and_then(|text| SpiffeId::parse(text).ok());
            let of_ours = named.filter(|id| id.trust_domain() == own_id.trust_domain());
            match of_ours.map(|id| id.kind()) {
                Some(SpiffeKind::Workload(cluster)) => Ok(Origin::Service(cluster)),
                _ => Err(Why::Caller),
            }
        }
        SpiffeKind::Node { .. } | SpiffeKind::Other => Err(Why::Peer),
    }
}

/// The TLS verifier lets no other node in; this holds also should its policy ever be widened.
fn is_own_gateway(peer: &PeerIdentity, serving: &Serving) -> bool {
    peer.roles.has(Role::Gateway) && peer.region.as_ref() == Some(&serving.region)
}

/// The field, where there is exactly one.
fn only<'a>(fields: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = fields.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn with_path(uri: &Uri, path: &NormalPath<'_>) -> Option<Uri> {
    let text = match uri.query() {
        Some(query) => format!("{}?{query}", path.as_str()),
        None => path.as_str().to_owned(),
    };
    PathAndQuery::try_from(text).ok().map(Uri::from)
}
