//! What an operator sets for a control node.

use crate::bundles::BundlesConfig;
use atoll_model::{RegionName, SiteName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

/// The control role's section of a node's configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API listens: plain HTTP on loopback, HTTPS elsewhere.
    pub api_listen: SocketAddr,
    /// Names and addresses that the API's certificate covers, beside the listening address.
    pub api_names: Vec<String>,
    /// Where nodes reach control: gRPC over TLS.
    pub node_plane_listen: SocketAddr,
    /// Apps answer at `<app>.<zone>`.
    pub zone: String,
    /// Port in the URLs that are shown; 443 is left out of them.
    pub public_https_port: u16,
    /// Regions that apps may name.
    pub regions: Vec<RegionName>,
    /// The region of each known site, for join tokens that name none.
    pub sites: BTreeMap<SiteName, RegionName>,
    /// Who issues public certificates.
    pub public_ca: PublicCa,
    /// How long things may take.
    pub timing: Timing,
    /// How much bundles may take.
    pub bundles: BundlesConfig,
}

/// Who issues certificates for public domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublicCa {
    /// A CA of our own, for tests and development; its root is in `public-ca.pem` of the data folder.
    Test,
}

/// Waits and deadlines, all in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// A new instance must be healthy after this.
    pub healthy_deadline_ms: u64,
    /// From healthy until gateways have surely heard of it.
    pub settle_ms: u64,
    /// Added to a service's own drain time before its placement is removed without an answer.
    pub drain_grace_ms: u64,
    /// A host that has been dead this long loses its instances to other hosts of the region.
    pub host_gone_ms: u64,
    /// Every live edge must serve a deploy after this.
    pub serve_deadline_ms: u64,
    /// After a start: how long gossip may gather before anything is decided.
    pub warm_up_ms: u64,
    /// How often public certificates are looked at.
    pub certificate_check_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            healthy_deadline_ms: 60_000,
            settle_ms: 1_200,
            drain_grace_ms: 5_000,
            host_gone_ms: 30_000,
            serve_deadline_ms: 30_000,
            warm_up_ms: 2_000,
            certificate_check_ms: 600_000,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7400)),
            api_names: Vec::new(),
            node_plane_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7401)),
            zone: "localhost".to_owned(),
            public_https_port: 443,
            regions: Vec::new(),
            sites: BTreeMap::new(),
            public_ca: PublicCa::Test,
            timing: Timing::default(),
            bundles: BundlesConfig::default(),
        }
    }
}

impl Config {
    /// The URL of a public domain.
    #[must_use]
    pub fn url(&self, domain: &str) -> String {
        match self.public_https_port {
            443 => format!("https://{domain}"),
            port => format!("https://{domain}:{port}"),
        }
    }
}
