//! Who asks, and may it: clients through edges, services of this region, and services of other regions through
//! their gateways.

use crate::views::Cluster;
use atoll_identity::{PeerIdentity, SpiffeId, SpiffeKind, TrustDomain};
use atoll_model::{ClusterName, NodeName, Reason, Role};
use atoll_proxy::headers;
use http::HeaderValue;
use http::header::HeaderMap;
use std::sync::Arc;

/// The peer of a connection, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// An edge, or a gateway.
    Node { name: NodeName, is_edge: bool, is_gateway: bool },
    /// An instance of a service, through its sidecar.
    Service { name: ClusterName, id: HeaderValue },
}

/// On whose behalf a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asking {
    /// A client's.
    Client,
    /// A service's.
    Call {
        caller: ClusterName,
        /// Its SPIFFE id.
        id: HeaderValue,
        /// Another region's gateway has brought it: it goes on to no other gateway.
        from_gateway: bool,
    },
}

impl Peer {
    /// `None` for who has no business here; the TLS policy lets no such in.
    pub(crate) fn of(peer: &PeerIdentity) -> Option<Self> {
        match peer.id.kind() {
            SpiffeKind::Node { node, .. } => Some(Self::Node {
                name: node,
                is_edge: peer.roles.has(Role::Edge),
                is_gateway: peer.roles.has(Role::Gateway),
            }),
            SpiffeKind::Workload(name) => {
                let id = HeaderValue::try_from(peer.id.as_str()).ok()?;
                Some(Self::Service { name, id })
            }
            SpiffeKind::Other => None,
        }
    }

    /// The node, where it is one.
    pub(crate) fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Node { name, .. } => Some(name),
            Self::Service { .. } => None,
        }
    }

    /// On whose behalf it asks. What it says of a caller is heard from gateways alone, and they must say it:
    /// once, and a service of our trust domain. A node that is both edge and gateway is the gateway when it
    /// names a caller, because its edge lets no client do so.
    pub(crate) fn asks(&self, ours: &TrustDomain, fields: &HeaderMap) -> Result<Asking, Reason> {
        let (is_edge, is_gateway) = match self {
            Self::Service { name, id } => {
                return Ok(Asking::Call { caller: name.clone(), id: id.clone(), from_gateway: false });
            }
            Self::Node { is_edge, is_gateway, .. } => (*is_edge, *is_gateway),
        };
        let mut named = fields.get_all(headers::CALLER).iter();
        match (named.next(), named.next()) {
            (Some(id), None) if is_gateway => {
                let caller = service_of(id, ours).ok_or(Reason::NotAuthorized)?;
                Ok(Asking::Call { caller, id: id.clone(), from_gateway: true })
            }
            (Some(_), _) if is_gateway => Err(Reason::NotAuthorized),
            _ if is_edge => Ok(Asking::Client),
            _ => Err(Reason::NotAuthorized),
        }
    }
}

/// The service that an id of our trust domain names.
fn service_of(id: &HeaderValue, ours: &TrustDomain) -> Option<ClusterName> {
    let id = SpiffeId::parse(id.to_str().ok()?).ok()?;
    match id.kind() {
        SpiffeKind::Workload(name) if id.trust_domain() == ours.as_str() => Some(name),
        _ => None,
    }
}

impl Asking {
    /// The cluster named `asked`, if it may be asked for: clients may for public ones, services for those of
    /// their own organization. Whether *this* service may call *that* one is decided at the called side.
    pub(crate) fn may(&self, asked: &str, known: Option<&Arc<Cluster>>) -> Result<Arc<Cluster>, Reason> {
        match self {
            Self::Client => known.filter(|cluster| cluster.public).cloned().ok_or(Reason::NotPublic),
            Self::Call { caller, .. } => {
                let same_org = asked.parse::<ClusterName>().is_ok_and(|asked| asked.org == caller.org);
                if !same_org {
                    return Err(Reason::NotAuthorized);
                }
                known.cloned().ok_or(Reason::NoRegion)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use atoll_model::Roles;
    use atoll_proxy::Destination;
    use std::time::Duration;

    const WEB: &str = "spiffe://atoll.test/org/default/app/shop/service/web";

    fn peer(path: &str, roles: &[Role]) -> Peer {
        let identity = PeerIdentity {
            id: SpiffeId::parse(&format!("spiffe://atoll.test/{path}")).unwrap(),
            roles: roles.iter().fold(Roles::NONE, |all, role| all.with(*role)),
            region: None,
            epoch: None,
            serial: Vec::new(),
            not_before_ms: 0,
            not_after_ms: 0,
        };
        Peer::of(&identity).unwrap()
    }

    fn asks(peer: &Peer, callers: &[&str]) -> Result<Asking, Reason> {
        let mut fields = HeaderMap::new();
        for caller in callers {
            fields.append(headers::CALLER, caller.parse().unwrap());
        }
        peer.asks(&TrustDomain::new("atoll.test").unwrap(), &fields)
    }

    fn call(from_gateway: bool) -> Result<Asking, Reason> {
        Ok(Asking::Call {
            caller: "default/shop/web".parse().unwrap(),
            id: HeaderValue::from_static(WEB),
            from_gateway,
        })
    }

    #[test]
    fn a_caller_is_believed_from_gateways_alone_and_only_in_one_form() {
        let admin = "spiffe://atoll.test/org/default/app/shop/service/admin";
        let web = peer("org/default/app/shop/service/web", &[]);
        let edge = peer("node/fra1/fra1-edge", &[Role::Edge]);
        let gateway = peer("node/was1/was1-gateway", &[Role::Gateway]);
        let both = peer("node/fra1/fra1", &[Role::Edge, Role::Gateway]);
        let host = peer("node/fra1/fra1-host", &[Role::Host]);
        for forged in [&[][..], &[admin], &[WEB, admin]] {
            assert_eq!(asks(&web, forged), call(false), "its certificate says who it is");
            assert_eq!(asks(&edge, forged), Ok(Asking::Client), "edges bring clients");
            assert_eq!(asks(&host, forged), Err(Reason::NotAuthorized));
        }
        assert_eq!(asks(&gateway, &[WEB]), call(true));
        assert_eq!(asks(&both, &[WEB]), call(true));
        assert_eq!(asks(&both, &[]), Ok(Asking::Client));
        for bad in [
            &[][..],
            &[WEB, WEB],
            &["spiffe://other.test/org/default/app/shop/service/web"],
            &["spiffe://atoll.test/node/fra1/fra1-edge"],
            &["spiffe://atoll.test/org/default/app/shop"],
            &["default/shop/web"],
            &[""],
        ] {
            assert_eq!(asks(&gateway, bad), Err(Reason::NotAuthorized), "{bad:?}");
            assert!(bad.is_empty() || asks(&both, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn clients_get_public_clusters_and_services_those_of_their_organization() {
        let cluster = |name: &str, public| {
            let to = Arc::new(Destination::new(name.parse().unwrap(), Duration::ZERO));
            let (in_flight, counts) = (Arc::default(), Arc::default());
            Arc::new(Cluster { public, to, regions: Vec::new(), in_flight, counts })
        };
        let (open, closed) = (cluster("default/shop/web", true), cluster("default/shop/api", false));
        let foreign = cluster("acme/shop/api", true);
        let may = |asking: &Asking, asked: &str, known| asking.may(asked, known).map(|_| ());
        assert_eq!(may(&Asking::Client, "default/shop/web", Some(&open)), Ok(()));
        assert_eq!(may(&Asking::Client, "default/shop/api", Some(&closed)), Err(Reason::NotPublic));
        assert_eq!(may(&Asking::Client, "x", None), Err(Reason::NotPublic));
        let web = call(false).unwrap();
        assert_eq!(may(&web, "default/shop/api", Some(&closed)), Ok(()));
        assert_eq!(may(&web, "default/none/such", None), Err(Reason::NoRegion));
        assert_eq!(may(&web, "acme/shop/api", Some(&foreign)), Err(Reason::NotAuthorized));
        assert_eq!(may(&web, "acme/none/such", None), Err(Reason::NotAuthorized), "says nothing of others");
        assert_eq!(may(&web, "%%", None), Err(Reason::NotAuthorized));
    }
}
