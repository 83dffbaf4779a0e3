//! How far a record spreads, who owns it, and the record as its readers see it.

use crate::signers::RecordSigner;
use atoll_model::{Kind, NameError, NodeName, RegionName, Role, Roles, ScopeClass};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// The owner's name on the wire of what the role control owns. No node may have this name.
pub const CONTROL_OWNER: &str = "control";

/// A set of nodes that share records.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every edge, gateway and control node.
    Global,
    /// The gateways and hosts of one region, and control.
    Region(RegionName),
}

impl Scope {
    /// The scope's name on the wire: empty for the global one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Global => "",
            Self::Region(region) => region.as_str(),
        }
    }

    /// Reads the wire's name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() { Ok(Self::Global) } else { RegionName::new(text).map(Self::Region) }
    }

    /// The class that a kind's number names.
    #[must_use]
    pub fn class(&self) -> ScopeClass {
        match self {
            Self::Global => ScopeClass::Global,
            Self::Region(_) => ScopeClass::Region,
        }
    }

    /// Whether a node with these roles in this region takes part in the scope.
    #[must_use]
    pub fn admits(&self, roles: Roles, region: Option<&RegionName>) -> bool {
        match self {
            Self::Global => [Role::Edge, Role::Gateway, Role::Control].iter().any(|role| roles.has(*role)),
            Self::Region(own) => {
                roles.has(Role::Control)
                    || (region == Some(own) && (roles.has(Role::Gateway) || roles.has(Role::Host)))
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Region(region) => write!(f, "region {region}"),
        }
    }
}

/// Whose fact a record is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// One node, about itself or what it runs.
    Node(NodeName),
    /// The role control: desired state.
    Control,
}

impl Owner {
    /// The owner's name on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Node(name) => name.as_str(),
            Self::Control => CONTROL_OWNER,
        }
    }

    /// Reads the wire's name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text == CONTROL_OWNER { Ok(Self::Control) } else { NodeName::new(text).map(Self::Node) }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One record, verified, as its readers see it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Whose fact it is.
    pub owner: Owner,
    /// What it is about.
    pub kind: Kind,
    /// How far it spreads.
    pub scope: Scope,
    /// Which one of its kind.
    pub key: Arc<str>,
    /// Orders before `version`.
    pub epoch: u64,
    /// A node's counter, or the store's revision.
    pub version: u64,
    /// The fact is no longer so; `body` is empty.
    pub deleted: bool,
    /// The protobuf message that `kind` names.
    pub body: Bytes,
    /// Whose key signed it.
    pub signer: Arc<RecordSigner>,
    /// The writer's wall clock, ms since 1970. For people; never compared.
    pub written_ms: u64,
}

impl Entry {
    /// Decodes the body as the message that [`Self::kind`] stands for.
    pub fn decode<M: atoll_wire::Message + Default>(&self) -> Result<M, atoll_wire::DecodeError> {
        M::decode(self.body.clone())
    }

    /// The same record, as no longer so. What readers see when a record is dropped rather than deleted.
    #[must_use]
    pub(crate) fn dropped(&self) -> Self {
        Self { deleted: true, body: Bytes::new(), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_scope_admits_only_its_own() {
        let fra = RegionName::new("fra").unwrap();
        let was = RegionName::new("was").unwrap();
        let region = Scope::Region(fra.clone());
        let only = |role| Roles::NONE.with(role);
        assert!(region.admits(only(Role::Host), Some(&fra)));
        assert!(region.admits(only(Role::Gateway), Some(&fra)));
        assert!(!region.admits(only(Role::Edge), Some(&fra)));
        assert!(!region.admits(only(Role::Host), Some(&was)));
        assert!(!region.admits(only(Role::Host), None));
        assert!(region.admits(only(Role::Control), Some(&was)));
        assert!(Scope::Global.admits(only(Role::Edge), Some(&fra)));
        assert!(!Scope::Global.admits(only(Role::Host), Some(&fra)));
    }
}
