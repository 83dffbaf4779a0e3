//! Who calls whom inside the mesh: what a service calls, and who may call it.

use crate::cluster::{ClusterName, ClusterNameError};
use crate::names::{AppName, NameError, OrgName, ServiceName};
use crate::pattern::{PATTERN_BYTES_MAX, PathPattern};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A text that is no call, caller or permit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// Neither `service` nor `app/service`.
    #[error("`{0}` is neither a service of this app (`api`) nor of another one (`billing/api`)")]
    Call(String),
    /// Neither `service` nor `org/app/service`.
    #[error("`{0}` is neither a service of this app (`web`) nor one of another (`org/app/service`)")]
    Caller(String),
    /// No method and path.
    #[error("`{0}` is not a method and a path, such as \"GET /v1/**\" or \"* /v1/items/*\"")]
    Http(String),
    /// No gRPC service and method.
    #[error("`{0}` is not a gRPC service and method, such as \"shop.v1.Cart/*\" or \"shop.v1.Cart/Add\"")]
    Grpc(String),
    /// One of the names in it.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// A service that another one calls: `api`, or `billing/api` of another app of the organization.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallTarget {
    /// The other app; nothing: the caller's own.
    pub app: Option<AppName>,
    /// The service.
    pub service: ServiceName,
}

impl CallTarget {
    /// The variable that gives the caller the listener's address: `API_URL`, `BILLING_API_URL`.
    #[must_use]
    pub fn variable(&self) -> String {
        let upper = |text: &str| text.to_uppercase().replace('-', "_");
        match &self.app {
            Some(app) => format!("{}_{}_URL", upper(app.as_str()), upper(self.service.as_str())),
            None => format!("{}_URL", upper(self.service.as_str())),
        }
    }

    /// The cluster that a service of `org/app` means by it.
    #[must_use]
    pub fn cluster(&self, org: &OrgName, app: &AppName) -> ClusterName {
        ClusterName {
            org: org.clone(),
            app: self.app.as_ref().unwrap_or(app).clone(),
            service: self.service.clone(),
        }
    }
}

/// A service that may call: `web` of the same app, or `org/app/service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowFrom {
    /// Of the called service's app.
    Sibling(ServiceName),
    /// Any other.
    Service(ClusterName),
}

impl AllowFrom {
    /// The caller that a rule of a service of `org/app` means.
    #[must_use]
    pub fn cluster(&self, org: &OrgName, app: &AppName) -> ClusterName {
        match self {
            Self::Sibling(service) => {
                ClusterName { org: org.clone(), app: app.clone(), service: service.clone() }
            }
            Self::Service(cluster) => cluster.clone(),
        }
    }
}

/// `GET /v1/**`: a method (`*`: each) and a pattern of paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpPermit {
    /// The method; nothing: each.
    pub method: Option<String>,
    /// The pattern.
    pub path: PathPattern,
}

/// `shop.v1.Cart/Add`: a gRPC service and a method (`*`: each).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrpcPermit {
    /// The full name of the service.
    pub service: String,
    /// The method; nothing: each.
    pub method: Option<String>,
}

/// Lets callers in. A service without rules is open to its own app; with rules, to those that they list and no other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowRule {
    /// Who; none: nobody.
    pub from: Vec<AllowFrom>,
    /// What of HTTP; with none here and in `grpc`, everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpPermit>,
    /// What of gRPC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<GrpcPermit>,
}

impl FromStr for CallTarget {
    type Err = MeshError;
    fn from_str(text: &str) -> Result<Self, MeshError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(service), None, None) => Ok(Self { app: None, service: service.parse()? }),
            (Some(app), Some(service), None) => {
                Ok(Self { app: Some(app.parse()?), service: service.parse()? })
            }
            _ => Err(MeshError::Call(shown(text))),
        }
    }
}

impl FromStr for AllowFrom {
    type Err = MeshError;
    fn from_str(text: &str) -> Result<Self, MeshError> {
        if !text.contains('/') {
            return Ok(Self::Sibling(text.parse()?));
        }
        match text.parse::<ClusterName>() {
            Ok(cluster) => Ok(Self::Service(cluster)),
            Err(ClusterNameError::Name(error)) => Err(error.into()),
            Err(ClusterNameError::Parts) => Err(MeshError::Caller(shown(text))),
        }
    }
}

impl FromStr for HttpPermit {
    type Err = MeshError;
    fn from_str(text: &str) -> Result<Self, MeshError> {
        let wrong = || MeshError::Http(shown(text));
        let (method, path) = text.split_once(' ').ok_or_else(wrong)?;
        let is_method = (1..=32).contains(&method.len()) && method.bytes().all(|b| b.is_ascii_uppercase());
        if !(method == "*" || is_method) {
            return Err(wrong());
        }
        let path = path.parse().map_err(|_| wrong())?;
        Ok(Self { method: (method != "*").then(|| method.to_owned()), path })
    }
}

impl FromStr for GrpcPermit {
    type Err = MeshError;
    fn from_str(text: &str) -> Result<Self, MeshError> {
        let wrong = || MeshError::Grpc(shown(text));
        let (service, method) = text.split_once('/').ok_or_else(wrong)?;
        let word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let fits = service.split('.').all(word) && (method == "*" || word(method));
        if !fits || text.len() > PATTERN_BYTES_MAX {
            return Err(wrong());
        }
        Ok(Self { service: service.to_owned(), method: (method != "*").then(|| method.to_owned()) })
    }
}

fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

impl fmt::Display for CallTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.app {
            Some(app) => write!(f, "{app}/{}", self.service),
            None => self.service.fmt(f),
        }
    }
}

impl fmt::Display for AllowFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sibling(service) => service.fmt(f),
            Self::Service(cluster) => cluster.fmt(f),
        }
    }
}

impl fmt::Display for HttpPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method.as_deref().unwrap_or("*"), self.path)
    }
}

impl fmt::Display for GrpcPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.method.as_deref().unwrap_or("*"))
    }
}

macro_rules! as_text {
    ($($type:ident)+) => {
        $(
            impl TryFrom<String> for $type {
                type Error = MeshError;
                fn try_from(text: String) -> Result<Self, MeshError> {
                    text.parse()
                }
            }

            impl From<$type> for String {
                fn from(value: $type) -> Self {
                    value.to_string()
                }
            }
        )+
    };
}

as_text!(CallTarget AllowFrom HttpPermit GrpcPermit);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn calls_and_callers() {
        let (org, app): (OrgName, AppName) = ("default".parse().unwrap(), "shop".parse().unwrap());
        let own: CallTarget = "cart-api".parse().unwrap();
        assert_eq!(own.variable(), "CART_API_URL");
        assert_eq!(own.cluster(&org, &app).to_string(), "default/shop/cart-api");
        let other: CallTarget = "billing/api".parse().unwrap();
        assert_eq!(other.variable(), "BILLING_API_URL");
        assert_eq!(other.cluster(&org, &app).to_string(), "default/billing/api");
        assert!("a/b/c".parse::<CallTarget>().is_err() && "".parse::<CallTarget>().is_err());
        let sibling: AllowFrom = "web".parse().unwrap();
        assert_eq!(sibling.cluster(&org, &app).to_string(), "default/shop/web");
        let far: AllowFrom = "acme/billing/worker".parse().unwrap();
        assert_eq!(far.cluster(&org, &app).to_string(), "acme/billing/worker");
        assert!("billing/worker".parse::<AllowFrom>().is_err());
    }

    #[test]
    fn permits_are_read_and_written_alike() {
        for text in ["GET /v1/**", "* /", "POST /a/*/b", "PUT /a/"] {
            assert_eq!(text.parse::<HttpPermit>().unwrap().to_string(), text);
        }
        for text in ["shop.v1.Cart/*", "Cart/Add"] {
            assert_eq!(text.parse::<GrpcPermit>().unwrap().to_string(), text);
        }
        for text in [
            "GET",
            "get /x",
            "GET x",
            "GET /a/**/b",
            "GET /a*b",
            "GET /a/../b",
            "GET /a//b",
            "GET /%41",
            "GET /a?b",
            " /x",
        ] {
            assert!(text.parse::<HttpPermit>().is_err(), "{text}");
        }
        for text in ["Cart", "/Add", "a..b/C", "a/b/c", "a/"] {
            assert!(text.parse::<GrpcPermit>().is_err(), "{text}");
        }
    }
}
