//! May a caller ask this service for that? Decided by who is called, at its sidecar.

use crate::path::NormalPath;
use atoll_model::{AllowRule, ClusterName, GrpcPermit, HttpPermit, Reason};
use std::fmt;

/// Who may call a service, as its sidecar is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    own: ClusterName,
    public: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    from: Vec<ClusterName>,
    http: Vec<HttpPermit>,
    grpc: Vec<GrpcPermit>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub enum Caller<'a> {
    /// A client of an edge, through the region's gateway.
    Public,
    /// An instance of a service, as a certificate says.
    Service(&'a ClusterName),
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// A request.
    Http {
        /// Its method.
        method: &'a str,
        /// Its path; `None` when it has no normal form.
        path: Option<&'a NormalPath<'a>>,
    },
    /// A stream of bytes.
    Bytes,
}

/// Why a caller may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// The service is public.
    Public,
    /// It is of the same app, and there are no rules.
    SameApp,
    /// The rule of that number (from 0) lets it.
    Rule(usize),
}

/// Why a caller may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Nobody outside the mesh may.
    NotPublic,
    /// Who may is not known yet.
    Unknown,
    /// It is of another organization.
    OtherOrganization,
    /// It is of another app, and there are no rules.
    OtherApp,
    /// There are rules, and none names it.
    NotListed,
    /// Rules name it, but not for this method and path.
    NotPermitted,
    /// Rules name it for certain paths, and this path can be read in more than one way.
    AmbiguousPath,
}

impl Refused {
    /// The code of the answer.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotPublic => Reason::NotPublic,
            Self::AmbiguousPath => Reason::AmbiguousPath,
            _ => Reason::NotAuthorized,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("the service is public"),
            Self::SameApp => f.write_str("it is of the same app, and the service has no [[allow]] rules"),
            Self::Rule(number) => write!(f, "[[allow]] rule {} lets it", number + 1),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPublic => "the service is not public",
            Self::Unknown => "who may call the service is not known here yet",
            Self::OtherOrganization => "it is of another organization",
            Self::OtherApp => "it is of another app, and the service has no [[allow]] rules",
            Self::NotListed => "no [[allow]] rule names it",
            Self::NotPermitted => "no [[allow]] rule that names it has this method and path",
            Self::AmbiguousPath => {
                "the path can be read in more than one way, and [[allow]] rules look at it"
            }
        })
    }
}

impl Policy {
    /// The policy of the service `own`.
    #[must_use]
    pub fn new(own: ClusterName, public: bool, allow: &[AllowRule]) -> Self {
        let rule = |rule: &AllowRule| Rule {
            from: rule.from.iter().map(|from| from.cluster(&own.org, &own.app)).collect(),
            http: rule.http.clone(),
            grpc: rule.grpc.clone(),
        };
        Self { rules: allow.iter().map(rule).collect(), public, own }
    }

    /// Whether a rule looks at paths.
    #[must_use]
    pub fn looks_at_paths(&self) -> bool {
        self.rules.iter().any(|rule| !rule.is_whole())
    }
}

/// Decides. Without a policy nobody of the mesh may call; what is public then is up to the gateway.
///
/// # Errors
/// Why it may not.
pub fn authorize(policy: Option<&Policy>, caller: Caller<'_>, asked: Asked<'_>) -> Result<Allowed, Refused> {
    match (caller, policy) {
        (Caller::Public, Some(policy)) if !policy.public => Err(Refused::NotPublic),
        (Caller::Public, _) => Ok(Allowed::Public),
        (Caller::Service(_), None) => Err(Refused::Unknown),
        (Caller::Service(caller), Some(policy)) => policy.service(caller, asked),
    }
}

impl Policy {
    fn service(&self, caller: &ClusterName, asked: Asked<'_>) -> Result<Allowed, Refused> {
        if caller.org != self.own.org {
            return Err(Refused::OtherOrganization);
        }
        if self.rules.is_empty() {
            return if caller.app == self.own.app { Ok(Allowed::SameApp) } else { Err(Refused::OtherApp) };
        }
        let mut refused = Refused::NotListed;
        for (number, rule) in self.rules.iter().enumerate() {
            if !rule.from.contains(caller) {
                continue;
            }
            match rule.permits(asked) {
                Ok(true) => return Ok(Allowed::Rule(number)),
                Err(ambiguous) => refused = ambiguous,
                Ok(false) if refused == Refused::NotListed => refused = Refused::NotPermitted,
                Ok(false) => {}
            }
        }
        Err(refused)
    }
}

impl Rule {
    /// Whether it lets its callers do everything.
    fn is_whole(&self) -> bool {
        self.http.is_empty() && self.grpc.is_empty()
    }

    fn permits(&self, asked: Asked<'_>) -> Result<bool, Refused> {
        if self.is_whole() {
            return Ok(true);
        }
        let Asked::Http { method, path } = asked else { return Ok(false) };
        let path = path.filter(|path| !path.is_ambiguous()).ok_or(Refused::AmbiguousPath)?.as_str();
        let by_http = |permit: &HttpPermit| {
            permit.method.as_deref().is_none_or(|wanted| wanted == method) && permit.path.matches(path)
        };
        Ok(self.http.iter().any(by_http)
            || (method == "POST" && self.grpc.iter().any(|permit| calls(permit, path))))
    }
}

/// Whether the path is that of a method which the permit names.
fn calls(permit: &GrpcPermit, path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return false;
    };
    let is_method = !method.is_empty() && !method.contains('/');
    service == permit.service && is_method && permit.method.as_deref().is_none_or(|wanted| wanted == method)
}

#[cfg(test)]
mod tests;
