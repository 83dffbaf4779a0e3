//! A node's configuration file: one TOML file, whose sections mirror the roles.
//!
//! A section that a role needs has defaults; a key that is not known is an error with its line.

use atoll_model::manifest::nearest;
use atoll_model::{NodeName, RegionName, Role, Roles, SiteName};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// `[control]`
pub use atoll_control::Config as ControlConfig;
/// `[gateway]`
pub use atoll_core_gateway::Config as GatewayConfig;
/// `[dns]`
pub use atoll_dns::Config as DnsConfig;
/// `[edge]`
pub use atoll_edge::Config as EdgeConfig;
/// `[host]`
pub use atoll_host::Config as HostConfig;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Unique in the trust domain.
    pub name: NodeName,
    /// Where it stands.
    pub site: SiteName,
    /// The site's region.
    pub region: RegionName,
    /// What it does.
    pub roles: Roles,
    /// Keys, certificates, known records, and what the roles keep. Made with mode 0700.
    pub data_dir: PathBuf,
    /// Degrees north; for maps and for the order of regions before anything is measured.
    #[serde(default)]
    pub latitude: f64,
    /// Degrees east.
    #[serde(default)]
    pub longitude: f64,
    /// How it comes into the mesh. Not needed by a control node that holds the CA.
    #[serde(default)]
    pub join: JoinConfig,
    /// Gossip.
    #[serde(default)]
    pub gossip: GossipConfig,
    /// Admin listener.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The role edge.
    #[serde(default)]
    pub edge: EdgeConfig,
    /// The role gateway.
    #[serde(default)]
    pub gateway: GatewayConfig,
    /// The role host.
    #[serde(default)]
    pub host: HostConfig,
    /// The role control.
    #[serde(default)]
    pub control: ControlConfig,
    /// DNS for the platform's zone, on nodes with the role control or edge.
    #[serde(default)]
    pub dns: DnsConfig,
    /// The mesh CA, which a control node holds.
    #[serde(default)]
    pub ca: CaConfig,
    /// How long SIGTERM lets work finish, ms.
    #[serde(default = "drain_ms")]
    pub drain_ms: u64,
}

fn drain_ms() -> u64 {
    30_000
}

/// `[join]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JoinConfig {
    /// Node-plane addresses of control nodes.
    pub control: Vec<SocketAddr>,
    /// File that holds the single-use token. Read only while the node has no identity.
    pub token_file: Option<PathBuf>,
}

/// `[gossip]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GossipConfig {
    /// UDP address. Port 0: the port used last if free, else any.
    pub listen: SocketAddr,
    /// Gossip addresses to begin with: control nodes, most often.
    pub seeds: Vec<SocketAddr>,
    /// Time between two exchanges, ms.
    pub interval_ms: u64,
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self { listen: loopback(), seeds: Vec::new(), interval_ms: 200 }
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Loopback TCP address for `/livez`, `/readyz` and `/metrics`. The unix socket is `DATA_DIR/admin.sock`.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: loopback() }
    }
}

/// `[ca]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaConfig {
    /// Name under which identities are issued. Fixed at the first start.
    pub trust_domain: String,
    /// Life of a node's certificate, s.
    pub node_certificate_s: u64,
    /// Life of a workload's certificate, s.
    pub workload_certificate_s: u64,
}

impl Default for CaConfig {
    fn default() -> Self {
        Self {
            trust_domain: "atoll.internal".to_owned(),
            node_certificate_s: 7 * 24 * 3600,
            workload_certificate_s: 48 * 3600,
        }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or a wrong key or value; the message has the line.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A rule across keys is broken.
    #[error("{path}: {message}")]
    Rule {
        /// The file.
        path: PathBuf,
        /// What, and what to do.
        message: String,
    },
}

impl NodeConfig {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|cause| ConfigError::Parse {
            path: path.to_owned(),
            message: with_nearest_key(&cause.to_string()),
        })?;
        config.check().map_err(|message| ConfigError::Rule { path: path.to_owned(), message })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.roles.is_empty() {
            return Err("`roles` is empty: name at least one of edge, gateway, host, control".to_owned());
        }
        if self.roles.has(Role::Edge) && self.edge.https.is_empty() {
            return Err("`edge.https` is empty: an edge needs an address to serve HTTPS on".to_owned());
        }
        if !self.roles.has(Role::Control) && self.join.control.is_empty() {
            return Err("`join.control` is empty: name the node-plane address of a control node".to_owned());
        }
        if !self.admin.listen.ip().is_loopback() {
            return Err("`admin.listen` must be a loopback address".to_owned());
        }
        if self.ca.node_certificate_s < 2 || self.ca.workload_certificate_s < 2 {
            return Err("certificates must live for at least 2 seconds".to_owned());
        }
        super::dns::check(self)
    }

    /// Whether `newer` differs in more than what a running node takes over: the drain time and the place.
    pub fn needs_restart(&self, newer: &Self) -> bool {
        let fixed = |config: &Self| Self { drain_ms: 0, latitude: 0.0, longitude: 0.0, ..config.clone() };
        fixed(self) != fixed(newer)
    }
}

/// A refusal of an unknown key, with the known one that is nearest instead of all that there are.
fn with_nearest_key(message: &str) -> String {
    let parts = message.split_once("unknown field `").and_then(|(before, rest)| {
        let (unknown, known) = rest.split_once("`, expected ")?;
        Some((before, unknown, known))
    });
    let Some((before, unknown, known)) = parts else { return message.to_owned() };
    // What stands between backquotes.
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    match nearest(unknown, known.iter().copied()) {
        Some(key) => format!("{before}there is no key `{unknown}` here; did you mean `{key}`?"),
        None => format!("{before}there is no key `{unknown}` here; there are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
        name = "fra1-edge"
        site = "fra1"
        region = "fra"
        roles = ["edge"]
        data_dir = "/tmp/x"
        [join]
        control = ["127.0.0.1:7000"]
        [edge]
        https = ["127.0.0.1:8443"]
    "#;

    #[test]
    fn the_least_file_is_taken() {
        let config: NodeConfig = toml::from_str(LEAST).unwrap();
        config.check().unwrap();
        assert_eq!(config.gossip.interval_ms, 200);
    }

    #[test]
    fn an_unknown_key_names_its_line() {
        let text = LEAST.replace("[edge]", "[edge]\nhtttps = 1");
        let message = toml::from_str::<NodeConfig>(&text).unwrap_err().to_string();
        assert!(message.contains("htttps") && message.contains("line"), "{message}");
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest() {
        let refused =
            |text: &str| with_nearest_key(&toml::from_str::<NodeConfig>(text).unwrap_err().to_string());
        let top = refused(&format!("drian_ms = 1\n{LEAST}"));
        assert!(
            top.contains("line 1") && top.contains("`drian_ms`") && top.contains("did you mean `drain_ms`?")
        );
        let section = refused(&LEAST.replace("[edge]", "[edge]\nhtttps = 1"));
        assert!(section.contains("did you mean `https`?"), "{section}");
        let far = refused(&LEAST.replace("[join]", "[join]\nsomething_else = 1"));
        assert!(far.contains("there are control, token_file"), "{far}");
        let value = refused(&LEAST.replace("[\"edge\"]", "7"));
        assert!(value.contains("line"), "{value}");
    }

    #[test]
    fn a_role_without_its_address_is_refused() {
        let text = LEAST.replace("https = [\"127.0.0.1:8443\"]", "");
        let config: NodeConfig = toml::from_str(&text).unwrap();
        assert!(config.check().unwrap_err().contains("edge.https"));
    }
}
