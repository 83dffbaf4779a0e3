//! What a service is to run, as a revision keeps it.

use crate::names::RegionName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many instances a service has in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Instances that always run.
    pub min: u32,
    /// The bound for scaling; at least `min`.
    pub max: u32,
}

/// What an instance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 in plain text.
    #[default]
    Http,
}

/// How a check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum CheckKind {
    /// `GET path` answers 200..=399.
    Http {
        /// Path and query, starting with `/`.
        path: String,
    },
    /// The port accepts a connection.
    Tcp,
}

/// One health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// How it asks.
    #[serde(flatten)]
    pub kind: CheckKind,
    /// Time between two checks, ms.
    pub every_ms: u64,
    /// Longest wait for one answer, ms.
    pub timeout_ms: u64,
    /// How long after the start failures are not counted, ms.
    pub grace_ms: u64,
    /// Successes in a row that make it healthy.
    pub up: u32,
    /// Failures in a row that make it unhealthy.
    pub down: u32,
}

/// A revision's content: all that a host needs to run an instance, and control to place it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Program and arguments; `$NAME`, `${NAME}` and `$$` are expanded by the host.
    pub run: Vec<String>,
    /// Working directory, absolute.
    pub working_dir: String,
    /// Environment added to the instance's.
    pub env: BTreeMap<String, String>,
    /// Labels of the revision.
    pub labels: BTreeMap<String, String>,
    /// What it speaks.
    pub protocol: Protocol,
    /// Whether the edges serve it.
    pub public: bool,
    /// How long an instance may finish what it has when it is replaced, ms.
    pub drain_ms: u64,
    /// Checks; with none, the port must accept.
    pub checks: Vec<Check>,
    /// Where it runs.
    pub regions: BTreeMap<RegionName, Scale>,
}

impl ServiceSpec {
    /// How many bytes of text it carries, each entry counted with eight more for what surrounds it.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let pairs = |map: &BTreeMap<String, String>| {
            map.iter().map(|(key, value)| key.len() + value.len() + 16).sum()
        };
        let run: usize = self.run.iter().map(|text| text.len() + 8).sum();
        let (env, labels): (usize, usize) = (pairs(&self.env), pairs(&self.labels));
        run + env + labels + self.working_dir.len()
    }
}
