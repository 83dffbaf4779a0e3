//! Kinds of records. A kind's number says how far it spreads and which role may write it, so that a
//! node can check the authority of a kind it does not know.

/// How far a record spreads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScopeClass {
    /// To every edge, gateway and control node.
    Global,
    /// To the hosts and gateways of one region, and to control.
    Region,
}

/// Who may write a record of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// Any node, about itself.
    Node,
    /// A node with the role edge, about itself.
    Edge,
    /// A node with the role gateway.
    Gateway,
    /// A node with the role host.
    Host,
    /// The role control: desired state. Any control node's record key may sign.
    Control,
}

/// A kind's number: `scope << 16 | writer << 8 | index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u32);

const GLOBAL: u32 = 1 << 16;
const REGION: u32 = 2 << 16;

impl Kind {
    /// A node's facts, for the global scope. Key: the node's name. Body: `NodeFacts`.
    pub const NODE: Self = Self(GLOBAL | 1);
    /// A node's facts, for its region's scope. Key: the node's name. Body: `NodeFacts`.
    pub const REGION_NODE: Self = Self(REGION | 1);
    /// Health and capacity of a cluster in a region. Key: `region/cluster`. Body: `RegionSummary`.
    pub const SUMMARY: Self = Self(GLOBAL | 2 << 8 | 1);
    /// An instance. Key: `host/instance`. Body: `Instance`.
    pub const INSTANCE: Self = Self(REGION | 3 << 8 | 1);
    /// A virtual host. Key: its id. Body: `VirtualHost`.
    pub const VIRTUAL_HOST: Self = Self(GLOBAL | 4 << 8 | 1);
    /// A cluster. Key: its name. Body: `Cluster`.
    pub const CLUSTER: Self = Self(GLOBAL | 4 << 8 | 2);
    /// That a domain's certificate has a version; the key never travels here. Key: the domain. Body: `CertificateVersion`.
    pub const CERTIFICATE: Self = Self(GLOBAL | 4 << 8 | 3);
    /// A removed node, cut off everywhere. Key: the node's name. Body: `Denial`.
    pub const DENIAL: Self = Self(GLOBAL | 4 << 8 | 4);
    /// A removed node, for the region's scope, whose hosts are not in the global one. Key: the node's name.
    /// Body: `Denial`.
    pub const REGION_DENIAL: Self = Self(REGION | 4 << 8 | 2);
    /// What the hosts of a region must know of a cluster that runs there. Key: its name. Body: `RegionCluster`.
    pub const REGION_CLUSTER: Self = Self(REGION | 4 << 8 | 3);
    /// An operator wants a node, or all of a region, to take nothing new. Key: `node/NAME` or `region/NAME`.
    /// Body: `DrainWish`.
    pub const DRAIN: Self = Self(GLOBAL | 4 << 8 | 5);
    /// What of an app's stored responses is purged. Key: `org/app`. Body: `Purges`.
    pub const PURGES: Self = Self(GLOBAL | 4 << 8 | 6);
    /// The same for the region's scope, whose hosts are not in the global one.
    pub const REGION_DRAIN: Self = Self(REGION | 4 << 8 | 4);
    /// Where an instance is to run. Key: `host/instance`. Body: `Placement`.
    pub const PLACEMENT: Self = Self(REGION | 4 << 8 | 1);

    /// Every kind that this version knows. Gossip keeps others within a small quota: one that is not named here is
    /// lost where there is much of it.
    pub const KNOWN: [Self; 14] = [
        Self::NODE,
        Self::REGION_NODE,
        Self::SUMMARY,
        Self::INSTANCE,
        Self::VIRTUAL_HOST,
        Self::CLUSTER,
        Self::CERTIFICATE,
        Self::DENIAL,
        Self::REGION_DENIAL,
        Self::REGION_CLUSTER,
        Self::DRAIN,
        Self::PURGES,
        Self::REGION_DRAIN,
        Self::PLACEMENT,
    ];

    /// The scope class, or nothing for a number outside the scheme.
    #[must_use]
    pub const fn scope_class(self) -> Option<ScopeClass> {
        match self.0 >> 16 {
            1 => Some(ScopeClass::Global),
            2 => Some(ScopeClass::Region),
            _ => None,
        }
    }

    /// Who may write it, or nothing for a number outside the scheme.
    #[must_use]
    pub const fn writer(self) -> Option<Writer> {
        match (self.0 >> 8) & 0xff {
            0 => Some(Writer::Node),
            1 => Some(Writer::Edge),
            2 => Some(Writer::Gateway),
            3 => Some(Writer::Host),
            4 => Some(Writer::Control),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Gossip would lose most records of one that is forgotten there.
    #[test]
    fn every_kind_is_known() {
        let source = include_str!("kind.rs");
        let named: BTreeSet<&str> = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(": Self = Self("))
            .map(|(name, _)| name)
            .collect();
        let known: BTreeSet<&str> = source
            .lines()
            .filter_map(|line| line.strip_prefix("        Self::")?.strip_suffix(','))
            .collect();
        assert!(named.len() > 10 && named == known, "{named:?} {known:?}");
        assert_eq!(BTreeSet::from(Kind::KNOWN).len(), Kind::KNOWN.len(), "a number twice");
    }
}
