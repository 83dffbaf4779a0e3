//! SPIFFE ids, parsed strictly: there is one text for each id, and nothing to normalize.

use atoll_model::{ClusterName, NodeName, SiteName};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest id, in bytes (SPIFFE-ID, section 2.3).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Longest trust domain, in bytes (SPIFFE-ID, section 2.1).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE id. None of them repeats the text: it came from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than [`SPIFFE_ID_BYTES_MAX`].
    #[error("the SPIFFE id is longer than {SPIFFE_ID_BYTES_MAX} bytes")]
    TooLong,
    /// Another scheme, or none.
    #[error("the id does not start with `spiffe://`")]
    Scheme,
    /// Empty, too long, or with a character outside `a-z 0-9 . - _` (a port, user info, upper case).
    #[error("the trust domain must be 1 to {TRUST_DOMAIN_BYTES_MAX} of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain,
    /// The id names a trust domain and nothing in it.
    #[error("the SPIFFE id has no path")]
    NoPath,
    /// An empty segment, `.`, `..`, or a character outside `a-z A-Z 0-9 . - _` (a query, a fragment,
    /// percent-encoding, a wildcard).
    #[error("the path's segments must be of a-z, A-Z, 0-9, `.`, `-` and `_`, not empty, `.` or `..`")]
    Path,
}

/// The name under which a mesh CA issues identities.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks `text` and takes it.
    pub fn new(text: impl AsRef<str>) -> Result<Self, SpiffeIdError> {
        let text = text.as_ref();
        let chars_fit = text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX || !chars_fit {
            return Err(SpiffeIdError::TrustDomain);
        }
        Ok(Self(text.into()))
    }

    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        Self::new(text)
    }
}

/// What an id names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpiffeKind {
    /// `/node/<site>/<node>`
    Node {
        /// Where it is.
        site: SiteName,
        /// Its name.
        node: NodeName,
    },
    /// `/org/<org>/app/<app>/service/<service>`
    Workload(ClusterName),
    /// A well-formed id that is neither.
    Other,
}

/// One SPIFFE id with a path. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path starts (with its `/`).
    path_at: usize,
}

impl SpiffeId {
    /// Checks `text` and takes it as it is.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_once('/').map_or((rest, None), |(d, p)| (d, Some(p)));
        TrustDomain::new(domain)?;
        let path = path.ok_or(SpiffeIdError::NoPath)?;
        if !path.split('/').all(is_segment) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self { text: text.into(), path_at: SCHEME.len() + domain.len() })
    }

    /// The id of a node.
    #[must_use]
    pub fn node(trust_domain: &TrustDomain, site: &SiteName, node: &NodeName) -> Self {
        Self::of_path(trust_domain, &format!("/node/{site}/{node}"))
    }

    /// The id that all instances of a service share.
    #[must_use]
    pub fn workload(trust_domain: &TrustDomain, cluster: &ClusterName) -> Self {
        let ClusterName { org, app, service } = cluster;
        Self::of_path(trust_domain, &format!("/org/{org}/app/{app}/service/{service}"))
    }

    fn of_path(trust_domain: &TrustDomain, path: &str) -> Self {
        let domain = trust_domain.as_str();
        Self { text: format!("{SCHEME}{domain}{path}").into(), path_at: SCHEME.len() + domain.len() }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path_at]
    }

    /// The path, with its leading `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[self.path_at..]
    }

    /// What the id names.
    #[must_use]
    pub fn kind(&self) -> SpiffeKind {
        self.known_kind().unwrap_or(SpiffeKind::Other)
    }

    fn known_kind(&self) -> Option<SpiffeKind> {
        let segments: Vec<&str> = self.path()[1..].split('/').collect();
        match segments.as_slice() {
            ["node", site, node] => {
                Some(SpiffeKind::Node { site: site.parse().ok()?, node: node.parse().ok()? })
            }
            ["org", org, "app", app, "service", service] => Some(SpiffeKind::Workload(ClusterName {
                org: org.parse().ok()?,
                app: app.parse().ok()?,
                service: service.parse().ok()?,
            })),
            _ => None,
        }
    }

    /// The node that the id names, if it names one.
    #[must_use]
    pub fn node_name(&self) -> Option<NodeName> {
        match self.kind() {
            SpiffeKind::Node { node, .. } => Some(node),
            SpiffeKind::Workload(_) | SpiffeKind::Other => None,
        }
    }
}

fn is_segment(segment: &str) -> bool {
    let chars_fit = segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    chars_fit && !segment.is_empty() && segment != "." && segment != ".."
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nodes_and_workloads_are_told_apart() {
        let domain = TrustDomain::new("atoll.test").unwrap();
        let node = SpiffeId::node(&domain, &"fra1".parse().unwrap(), &"fra1-edge".parse().unwrap());
        assert_eq!(node.as_str(), "spiffe://atoll.test/node/fra1/fra1-edge");
        assert_eq!(
            node.kind(),
            SpiffeKind::Node { site: "fra1".parse().unwrap(), node: "fra1-edge".parse().unwrap() }
        );
        let cluster: ClusterName = "default/shop/web".parse().unwrap();
        let workload = SpiffeId::workload(&domain, &cluster);
        assert_eq!(workload.as_str(), "spiffe://atoll.test/org/default/app/shop/service/web");
        assert_eq!(workload.kind(), SpiffeKind::Workload(cluster));
        assert_eq!(SpiffeId::parse("spiffe://td/x").unwrap().kind(), SpiffeKind::Other);
        assert_eq!(SpiffeId::parse("spiffe://td/node/a/B").unwrap().kind(), SpiffeKind::Other);
        assert_eq!(SpiffeId::parse(node.as_str()).unwrap(), node);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for (text, why) in [
            ("", SpiffeIdError::Scheme),
            ("SPIFFE://td/x", SpiffeIdError::Scheme),
            ("https://td/x", SpiffeIdError::Scheme),
            ("spiffe:///x", SpiffeIdError::TrustDomain),
            ("spiffe://TD/x", SpiffeIdError::TrustDomain),
            ("spiffe://td:8443/x", SpiffeIdError::TrustDomain),
            ("spiffe://user@td/x", SpiffeIdError::TrustDomain),
            ("spiffe://*/x", SpiffeIdError::TrustDomain),
            ("spiffe://td", SpiffeIdError::NoPath),
            ("spiffe://td/", SpiffeIdError::Path),
            ("spiffe://td/x/", SpiffeIdError::Path),
            ("spiffe://td//x", SpiffeIdError::Path),
            ("spiffe://td/../x", SpiffeIdError::Path),
            ("spiffe://td/./x", SpiffeIdError::Path),
            ("spiffe://td/x?q", SpiffeIdError::Path),
            ("spiffe://td/x#f", SpiffeIdError::Path),
            ("spiffe://td/%2e%2e", SpiffeIdError::Path),
            ("spiffe://td/*", SpiffeIdError::Path),
            ("spiffe://td/ä", SpiffeIdError::Path),
            ("spiffe://td/x\0", SpiffeIdError::Path),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(why), "{text:?}");
        }
        let long = format!("spiffe://td/{}", "x".repeat(SPIFFE_ID_BYTES_MAX));
        assert_eq!(SpiffeId::parse(&long), Err(SpiffeIdError::TooLong));
        let long = format!("spiffe://{}/x", "t".repeat(TRUST_DOMAIN_BYTES_MAX + 1));
        assert_eq!(SpiffeId::parse(&long), Err(SpiffeIdError::TrustDomain));
    }

    proptest! {
        #[test]
        fn ids_come_back_as_they_went_in(domain in "[a-z0-9._-]{1,60}", path in "(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}){1,6}") {
            let text = format!("spiffe://{domain}{path}");
            let id = SpiffeId::parse(&text).unwrap();
            prop_assert_eq!(id.as_str(), &text);
            prop_assert_eq!(id.trust_domain(), &domain);
            prop_assert_eq!(id.path(), &path);
        }

        #[test]
        fn whatever_is_taken_holds_the_rules(text in "(spiffe|SPIFFE)://[a-zA-Z.:@]{0,4}[/a.?#%*]{0,8}|\\PC{0,40}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert!(!text.contains(['?', '#', '%', '@', '*', ' ']));
                prop_assert!(!id.path().split('/').skip(1).any(|s| s.is_empty() || s == "." || s == ".."));
                prop_assert!(!id.trust_domain().bytes().any(|b| b.is_ascii_uppercase() || b == b':'));
            }
        }
    }
}
