//! How a node becomes one: a token is burned and a node recorded, together or not at all.

use crate::api::{Deed, record_deed};
use crate::apps::records;
use crate::store::objects::{JoinToken, Node};
use crate::store::{Change, StoreError};
use atoll_identity::SpiffeId;
use atoll_mesh_ca::token::{JoinWish, TokenUse, check};
use atoll_mesh_ca::{CaError, MeshCa, NodeSubject, TokenRefusal, token};
use atoll_model::{NodeName, OrgName, RegionName, Role, Roles, SiteName};
use atoll_wire::node::JoinRequest;
use atoll_wire::record::Denial;
use std::sync::Mutex;
use std::sync::PoisonError;

/// What a node gets at join: its TLS chain and its record chain, DER.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) record_chain: Vec<Vec<u8>>,
}

/// Why a node can't join. For the log; the node is told one sentence.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("{0}")]
    Token(#[from] TokenRefusal),
    #[error("a node of this name has joined already: remove it first, or bind the token to the name")]
    NameTaken,
    #[error("this name is reserved")]
    Reserved,
    #[error("the token is for the region {0}")]
    Region(RegionName),
    #[error("{0}")]
    Ca(#[from] CaError),
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// What a node says that it is.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) node: NodeName,
    pub(super) site: SiteName,
    pub(super) region: RegionName,
    pub(super) roles: Roles,
}

impl Wish {
    /// Nothing where a name is malformed, or no role is asked for.
    pub(super) fn read(request: &JoinRequest) -> Option<Self> {
        let roles: Roles =
            request.roles.iter().map(|role| role.parse::<Role>().ok()).collect::<Option<_>>()?;
        let wish = Self {
            node: request.node.parse().ok()?,
            site: request.site.parse().ok()?,
            region: request.region.parse().ok()?,
            roles,
        };
        (!roles.is_empty()).then_some(wish)
    }
}

/// Burns the token and issues the identity, inside one store change.
#[expect(clippy::too_many_arguments, reason = "one step, all of whose inputs are named")]
pub(super) fn join(
    change: &mut Change<'_>,
    ca: &MeshCa,
    presented: &token::JoinToken,
    wish: &Wish,
    csr: &[u8],
    record_csr: &[u8],
    regions: &[RegionName],
    now_ms: u64,
) -> Result<Issued, JoinError> {
    let org = OrgName::default_org();
    let stored = change.get::<JoinToken>(&format!("{org}/{}", presented.id));
    let Wish { node, site, region, roles } = wish;
    let wish = JoinWish { node, roles: Some(*roles), site: Some(site) };
    check(stored.as_ref().map(|stored| &stored.record), presented, &wish, now_ms)?;
    let mut stored = stored.ok_or(TokenRefusal::Unknown)?;
    if stored.record.region != *region {
        return Err(JoinError::Region(stored.record.region));
    }
    if atoll_gossip::authority::is_reserved(node.as_str()) {
        return Err(JoinError::Reserved);
    }
    let before = change.get::<Node>(&format!("{org}/{node}"));
    let bound = stored.record.node.is_some();
    if before.as_ref().is_some_and(|before| !before.removed) && !bound {
        return Err(JoinError::NameTaken);
    }
    // Greater than any before it, also when the store was lost meanwhile.
    let epoch = before.as_ref().map_or(0, |before| before.epoch + 1).max(now_ms / 1000);
    let joined = Node {
        org,
        name: node.clone(),
        site: stored.record.site.clone(),
        region: stored.record.region.clone(),
        // No more than it asks for, where the token allows more.
        roles: *roles,
        epoch,
        joined_ms: now_ms,
        removed: false,
    };
    let subject = subject_of(&joined);
    let issued = Issued {
        chain: der(ca.issue_node(&subject, csr, now_ms)?),
        record_chain: der(ca.issue_record(&subject, record_csr, now_ms)?),
    };
    stored.record.used_by = Some(TokenUse { node: node.clone(), at_ms: now_ms });
    change.put(&stored)?;
    change.put(&joined)?;
    let detail = format!("roles {roles}, site {}, region {}", joined.site, joined.region);
    record_deed(change, Deed { node: node.as_str(), call: "join", token: &presented.id, detail }, now_ms)?;
    if let Some(before) = before {
        // Who still has a key from before gets no further with it than while the node was removed.
        let spiffe_id = SpiffeId::node(ca.trust_domain(), &before.site, node).to_string();
        let why = "it has joined again since".to_owned();
        records::deny(change, regions, node, &Denial { spiffe_id, why, before_epoch: epoch });
    }
    Ok(issued)
}

/// What the CA certifies of a node: what the store says, never what a request says.
pub(super) fn subject_of(node: &Node) -> NodeSubject {
    NodeSubject {
        node: node.name.clone(),
        site: node.site.clone(),
        region: node.region.clone(),
        roles: node.roles,
        epoch: node.epoch,
    }
}

pub(super) fn der(chain: Vec<atoll_identity::CertificateDer<'static>>) -> Vec<Vec<u8>> {
    chain.into_iter().map(|certificate| certificate.to_vec()).collect()
}

/// So many at once, then so many a second.
#[derive(Debug)]
pub(super) struct RateLimit {
    burst: u64,
    every_ms: u64,
    /// When the bucket will be full again.
    full_ms: Mutex<u64>,
}

impl RateLimit {
    pub(super) fn new(burst: u64, per_second: u64) -> Self {
        Self { burst, every_ms: 1000 / per_second.max(1), full_ms: Mutex::new(0) }
    }

    pub(super) fn admits(&self, now_ms: u64) -> bool {
        let mut full_ms = self.full_ms.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*full_ms).max(now_ms);
        if start - now_ms >= self.burst * self.every_ms {
            return false;
        }
        *full_ms = start + self.every_ms;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let limit = RateLimit::new(3, 10);
        assert_eq!((0..10).filter(|_| limit.admits(1_000)).count(), 3);
        assert!(limit.admits(1_100));
        assert!(!limit.admits(1_100));
        assert_eq!((0..10).filter(|_| limit.admits(9_000)).count(), 3);
    }
}
