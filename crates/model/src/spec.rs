//! What a service is to run, as a revision keeps it.

use crate::mesh::{AllowRule, CallTarget};
use crate::names::RegionName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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
    /// HTTP/2 in plain text, with prior knowledge.
    Http2,
    /// gRPC: HTTP/2 in plain text.
    Grpc,
    /// Bytes.
    Tcp,
}

impl Protocol {
    /// As manifests and records name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    /// The protocol of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Http, Self::Http2, Self::Grpc, Self::Tcp]
            .into_iter()
            .find(|protocol| protocol.as_str() == name)
    }

    /// How the address of a service that speaks it begins.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Http | Self::Http2 | Self::Grpc => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// The files that an instance's working directory is made of: an archive, named by what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// SHA-256 of the bundle's manifest of files, hex.
    pub digest: String,
    /// Bytes of all files together.
    pub size: u64,
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

impl Check {
    /// Most checks of a service.
    pub const COUNT_MAX: usize = 8;
    /// Bounds of [`Self::every_ms`].
    pub const EVERY_MS: RangeInclusive<u64> = 50..=3_600_000;
    /// Bounds of [`Self::timeout_ms`].
    pub const TIMEOUT_MS: RangeInclusive<u64> = 10..=60_000;
    /// Bounds of [`Self::grace_ms`].
    pub const GRACE_MS: RangeInclusive<u64> = 0..=3_600_000;
    /// Bounds of [`Self::up`] and [`Self::down`].
    pub const TIMES: RangeInclusive<u32> = 1..=100;

    /// Whether a host can ask for that path.
    #[must_use]
    pub fn is_path(path: &str) -> bool {
        let clean = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        path.starts_with('/') && clean && path.len() <= 1024
    }
}

/// A revision's content: all that a host needs to run an instance, and control to place it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Program and arguments; `$NAME`, `${NAME}` and `$$` are expanded by the host.
    pub run: Vec<String>,
    /// Working directory, absolute. Empty where there is a bundle.
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
    /// The services that it calls; each instance finds a listener of its sidecar for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallTarget>,
    /// Who may call it. Not a part of what runs: a change replaces no instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<AllowRule>,
    /// Whether instances get `http_proxy`, by which they reach `*.internal`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy_env: bool,
    /// What the hosts unpack as the working directory, instead of using `working_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Bundle>,
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
