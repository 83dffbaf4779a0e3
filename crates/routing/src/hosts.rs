//! Domain → virtual host → route.

use crate::path::normalise;
use crate::shards::ShardedMap;
use atoll_model::CacheRule;
use atoll_model::domain::normalise_domain;
use std::sync::Arc;

pub use atoll_model::domain::{HOST_BYTES_MAX, normalise_host};

/// A set of domains and their routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualHost {
    /// Its id.
    pub id: String,
    /// The store's version of it.
    pub version: u64,
    /// Where the routes lead by path.
    routes: Vec<Route>,
    /// Normalised; `*.` as first label stands for exactly one label.
    domains: Vec<String>,
    /// What its app says of caching, in the manifest's order.
    cache: Vec<HostRule>,
}

/// What an app says of caching some paths of some of its domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule {
    /// The domains, normalised; none: all.
    pub domains: Vec<String>,
    /// The rule.
    pub rule: Arc<CacheRule>,
}

impl HostRule {
    /// `domain` is the virtual host's that a request's host is found by.
    fn is_for(&self, domain: &str, path: &str) -> bool {
        let named = || self.domains.iter().any(|known| known == domain);
        self.rule.path.matches(path) && (self.domains.is_empty() || named())
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name, for people.
    pub name: String,
    /// Matches this path and what is below it, by whole segments; `/` is everything.
    pub path_prefix: String,
    /// Who serves it, as text: what tables are asked for with each request.
    pub cluster: Arc<str>,
}

/// A virtual host that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VirtualHostError {
    /// A domain is no host name, nor `*.` and a host name.
    #[error("virtual host {id}: `{domain}` is not a domain; write a host name, or `*.` before one")]
    Domain {
        /// The virtual host.
        id: String,
        /// What was given.
        domain: String,
    },
    /// A path prefix that no path in its normal form could have.
    #[error(
        "virtual host {id}: route `{route}`: the path prefix `{prefix}` must start with `/`, and have no `.`, `..` or `\\`"
    )]
    Prefix {
        /// The virtual host.
        id: String,
        /// The route.
        route: String,
        /// What was given.
        prefix: String,
    },
}

impl VirtualHost {
    /// Checks and normalises.
    ///
    /// # Errors
    /// The first domain or path prefix that is not well-formed.
    pub fn new(
        id: impl Into<String>,
        version: u64,
        domains: impl IntoIterator<Item = impl AsRef<str>>,
        routes: impl IntoIterator<Item = Route>,
    ) -> Result<Self, VirtualHostError> {
        let id = id.into();
        let mut normal = Vec::new();
        for domain in domains {
            let domain = domain.as_ref();
            let wrong = || VirtualHostError::Domain {
                id: id.clone(),
                domain: domain.escape_debug().take(80).collect(),
            };
            normal.push(normalise_domain(domain).ok_or_else(wrong)?);
        }
        normal.sort_unstable();
        normal.dedup();
        let mut routes: Vec<Route> = routes.into_iter().collect();
        for route in &mut routes {
            let Ok(prefix) = normalise(&route.path_prefix) else {
                return Err(VirtualHostError::Prefix {
                    id,
                    route: route.name.clone(),
                    prefix: route.path_prefix.escape_debug().take(80).collect(),
                });
            };
            // "/a/" and "/a" are the same prefix; "/" becomes "".
            route.path_prefix = prefix.as_str().trim_end_matches('/').to_owned();
        }
        // Longest first, so that the first that matches is the answer.
        routes
            .sort_by(|a, b| b.path_prefix.len().cmp(&a.path_prefix.len()).then_with(|| a.name.cmp(&b.name)));
        Ok(Self { id, version, routes, domains: normal, cache: Vec::new() })
    }

    /// The same with rules for caches.
    #[must_use]
    pub fn with_cache_rules(self, cache: Vec<HostRule>) -> Self {
        Self { cache, ..self }
    }

    /// The first rule for a path, in its normal form, of a host, normalised.
    #[must_use]
    pub fn cache_rule(&self, host: &str, path: &str) -> Option<&Arc<CacheRule>> {
        if self.cache.is_empty() {
            return None;
        }
        let is_exact = self.domains.iter().any(|domain| domain == host);
        let wildcard = if is_exact { None } else { wildcard_of(host) };
        let domain = wildcard.as_deref().unwrap_or(host);
        self.cache.iter().find(|rule| rule.is_for(domain, path)).map(|found| &found.rule)
    }

    /// Its rules for caches.
    #[must_use]
    pub fn cache_rules(&self) -> &[HostRule] {
        &self.cache
    }

    /// Its domains, normalised and sorted.
    #[must_use]
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// Its routes, the longest prefix first.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route of the longest prefix that matches `path`, which is in its normal form, by whole segments.
    #[must_use]
    pub fn route(&self, path: &str) -> Option<&Route> {
        self.routes.iter().find(|route| covers(&route.path_prefix, path))
    }
}

/// Whether `path` is `prefix` or below it. `prefix` has no trailing slash.
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty())
}

/// The domain that a certificate or virtual host for one label more would carry: `*.b.c` for `a.b.c`.
#[must_use]
pub fn wildcard_of(host: &str) -> Option<String> {
    let (_, rest) = host.split_once('.')?;
    Some(format!("*.{rest}"))
}

/// Every virtual host. Copies share what is equal, so a change of one among 100,000 is cheap: change
/// a clone and publish it.
#[derive(Debug, Clone, Default)]
pub struct HostTable {
    by_id: ShardedMap<Arc<VirtualHost>>,
    /// Who claims a domain, sorted by id. Control lets only one; the order keeps nodes that hear of
    /// changes in different orders agreed.
    by_domain: ShardedMap<Arc<[Arc<VirtualHost>]>>,
}

impl HostTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many virtual hosts it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Adds or replaces a virtual host.
    pub fn insert(&mut self, host: VirtualHost) {
        self.remove(&host.id);
        let host = Arc::new(host);
        for domain in &host.domains {
            let old = self.by_domain.get(domain).map_or(&[][..], |claims| &claims[..]);
            let mut claims = old.to_vec();
            claims.push(Arc::clone(&host));
            claims.sort_by(|a, b| a.id.cmp(&b.id));
            self.by_domain.insert(domain, claims.into());
        }
        self.by_id.insert(&host.id, Arc::clone(&host));
    }

    /// Removes a virtual host; one that is not there is fine.
    pub fn remove(&mut self, id: &str) {
        let Some(host) = self.by_id.remove(id) else {
            return;
        };
        for domain in &host.domains {
            let Some(claims) = self.by_domain.get(domain) else {
                continue;
            };
            let left: Arc<[_]> = claims.iter().filter(|claim| claim.id != id).cloned().collect();
            if left.is_empty() {
                self.by_domain.remove(domain);
            } else {
                self.by_domain.insert(domain, left);
            }
        }
    }

    /// The virtual host with that id.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&Arc<VirtualHost>> {
        self.by_id.get(id)
    }

    /// The virtual host of a host name as a client sends it (any case, port, trailing dot): the
    /// exact domain, else the wildcard for its first label.
    #[must_use]
    pub fn find(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        self.find_normal(&normalise_host(authority)?)
    }

    /// [`Self::find`] for what [`normalise_host`] returned.
    #[must_use]
    pub fn find_normal(&self, host: &str) -> Option<&Arc<VirtualHost>> {
        let claims = self.by_domain.get(host).or_else(|| self.by_domain.get(&wildcard_of(host)?));
        claims.and_then(|claims| claims.first())
    }
}

#[cfg(test)]
mod tests;
