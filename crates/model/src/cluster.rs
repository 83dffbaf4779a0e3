//! The name of a cluster that a service compiles to.

use crate::names::{AppName, NameError, OrgName, ServiceName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// `org/app/service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName {
    /// The owner of the app.
    pub org: OrgName,
    /// The app.
    pub app: AppName,
    /// The service.
    pub service: ServiceName,
}

/// A text that is not `org/app/service`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterNameError {
    /// Not three parts.
    #[error("a cluster is named `org/app/service`")]
    Parts,
    /// One of the parts is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.org, self.app, self.service)
    }
}

impl std::str::FromStr for ClusterName {
    type Err = ClusterNameError;
    fn from_str(text: &str) -> Result<Self, ClusterNameError> {
        let mut parts = text.split('/');
        let (Some(org), Some(app), Some(service), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ClusterNameError::Parts);
        };
        Ok(Self { org: org.parse()?, app: app.parse()?, service: service.parse()? })
    }
}

impl TryFrom<String> for ClusterName {
    type Error = ClusterNameError;
    fn try_from(text: String) -> Result<Self, ClusterNameError> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.to_string()
    }
}
