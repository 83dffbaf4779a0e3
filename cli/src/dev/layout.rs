//! Which nodes there are, where they listen, and the configuration file of each.

use super::ports::Ports;
use super::settings::Settings;
use crate::args::edge_ip;
use crate::failure::{self, Failure, Outcome};
use crate::node::config::{
    AdminConfig, CaConfig, ControlConfig, DnsConfig, EdgeConfig, GatewayConfig, GossipConfig, HostConfig,
    JoinConfig, NodeConfig,
};
use atoll_model::{NodeName, RegionName, Role, Roles, SiteName};
use atoll_process::files;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Simulated round trip inside a region with `--wan`, ms.
const WAN_NEAR_MS: u64 = 2;
/// Simulated round trip between regions of which we know nothing, ms.
const WAN_FAR_MS: u64 = 120;
/// Round trips as they are on the internet, ms.
const WAN_MS: [(&str, &str, u64); 3] = [("fra", "was", 90), ("fra", "sin", 160), ("was", "sin", 230)];
/// Where some regions are.
const PLACES: [(&str, f64, f64); 3] = [("fra", 50.11, 8.68), ("was", 38.9, -77.04), ("sin", 1.35, 103.82)];
/// How long SIGTERM lets a node finish, ms.
const DRAIN_MS: u64 = 3_000;
/// The zone that needs no DNS: `*.localhost` is this machine.
pub const ZONE: &str = "localhost";

/// One node.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// What is in its configuration file.
    pub config: NodeConfig,
    /// The file.
    pub config_path: PathBuf,
    /// Where its output goes.
    pub log_path: PathBuf,
}

impl NodePlan {
    /// The node's name.
    pub fn name(&self) -> &str {
        self.config.name.as_str()
    }
}

/// All nodes; the control node is the first.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Control, then for each region its edges, a gateway and a host.
    pub nodes: Vec<NodePlan>,
    /// Where the API listens.
    pub api: SocketAddr,
    /// The public test CA's certificate.
    pub public_ca: PathBuf,
    /// The addresses, by purpose, for the next start.
    pub addresses: BTreeMap<String, SocketAddr>,
}

impl Layout {
    /// Chooses addresses and fills in every node's configuration. Writes nothing.
    pub fn new(settings: &Settings, last: BTreeMap<String, SocketAddr>) -> Outcome<Self> {
        let mut ports = Ports::new(last);
        // The ports that users asked for come first, so that a taken one is said before anything else.
        let mut public = Vec::new();
        // The first edges of all sites have the addresses that they have where there are no others.
        let edges = (1..=settings.edges).flat_map(|n| settings.regions.iter().map(move |region| (region, n)));
        for (n, (region, number)) in edges.enumerate() {
            let (ip, name) = (edge_ip(n), numbered(region.as_str(), number));
            let https =
                ports.fixed_or_pick(&format!("{name}-https"), ip, settings.https_port, "--https-port")?;
            let http = ports.fixed_or_pick(&format!("{name}-http"), ip, settings.http_port, "--http-port")?;
            public.push((region, number, http, https));
        }
        let api = ports.pick("api", LOOPBACK)?;
        let node_plane = ports.pick("node-plane", LOOPBACK)?;
        let control_gossip = ports.pick("control-gossip", LOOPBACK)?;
        let public_ca = settings.data.join("public-ca.pem");

        let mut build = Builder { settings, ports, join: node_plane, seed: control_gossip };
        let first = settings.regions.first().ok_or_else(|| Failure::usage("no region"))?;
        let mut control = build.node(first, Role::Control)?;
        control.config.join = JoinConfig::default();
        control.config.gossip = GossipConfig { listen: control_gossip, ..GossipConfig::default() };
        control.config.control = ControlConfig {
            api_listen: api,
            node_plane_listen: node_plane,
            zone: ZONE.to_owned(),
            public_https_port: public.first().map_or(443, |(.., https)| https.port()),
            regions: settings.regions.clone(),
            ..ControlConfig::default()
        };
        control.config.dns = build.dns("dns", LOOPBACK)?;
        let ca = CaConfig::default();
        control.config.ca = CaConfig {
            node_certificate_s: settings.node_certificate_s.unwrap_or(ca.node_certificate_s),
            workload_certificate_s: settings.workload_certificate_s.unwrap_or(ca.workload_certificate_s),
            ..ca
        };
        let mut nodes = vec![control];
        for region in &settings.regions {
            for (_, number, http, https) in public.iter().filter(|(of, ..)| *of == region) {
                let mut edge = build.numbered_node(region, Role::Edge, *number)?;
                edge.config.edge = build.edge(&edge.config, *number, *http, *https)?;
                edge.config.dns =
                    build.dns(&format!("{}-dns", numbered(region.as_str(), *number)), https.ip())?;
                nodes.push(edge);
            }
            let mut gateway = build.node(region, Role::Gateway)?;
            let listen = build.ports.pick(&format!("{region}-gateway"), LOOPBACK)?;
            let (workers, wan) = (settings.workers, build.wan(region));
            gateway.config.gateway = GatewayConfig { listen, workers, wan, ..GatewayConfig::default() };
            nodes.push(gateway);
            let mut host = build.node(region, Role::Host)?;
            host.config.host = HostConfig { stop_instances_on_exit: true, ..HostConfig::default() };
            nodes.push(host);
        }
        let addresses = build.ports.given().clone();
        Ok(Self { nodes, api, public_ca, addresses })
    }

    /// Writes the configuration files and makes the folders.
    pub fn write(&self, data: &Path) -> Outcome {
        for folder in [data.join("nodes"), data.join("logs"), data.join("tokens")] {
            files::private_dir(&folder)
                .map_err(|error| failure::io(format!("cannot make {}", folder.display()), &error))?;
        }
        for node in &self.nodes {
            let text = toml::to_string(&node.config).map_err(|error| {
                Failure::failed(format!("cannot write the configuration of {}: {error}", node.name()))
            })?;
            files::write_atomic(&node.config_path, text.as_bytes(), 0o600).map_err(|error| {
                failure::io(format!("cannot write {}", node.config_path.display()), &error)
            })?;
        }
        Ok(())
    }

    /// The control node.
    pub fn control(&self) -> Option<&NodePlan> {
        self.nodes.first()
    }

    /// The API's address.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// The regions, in their order.
    pub fn regions(&self) -> Vec<RegionName> {
        let mut regions: Vec<RegionName> = self.edges().map(|(region, _)| region.clone()).collect();
        regions.dedup();
        regions
    }

    /// The edges: region and HTTPS address.
    pub fn edges(&self) -> impl Iterator<Item = (&RegionName, SocketAddr)> {
        self.nodes.iter().filter_map(|node| Some((&node.config.region, *node.config.edge.https.first()?)))
    }
}

struct Builder<'s> {
    settings: &'s Settings,
    ports: Ports,
    join: SocketAddr,
    seed: SocketAddr,
}

impl Builder<'_> {
    fn node(&mut self, region: &RegionName, role: Role) -> Outcome<NodePlan> {
        self.numbered_node(region, role, 1)
    }

    fn numbered_node(&mut self, region: &RegionName, role: Role, number: usize) -> Outcome<NodePlan> {
        let wrong = |error: atoll_model::NameError| Failure::usage(error.to_string()).place("--regions");
        let site = SiteName::new(format!("{region}1")).map_err(wrong)?;
        let name = NodeName::new(numbered(&format!("{site}-{role}"), number)).map_err(wrong)?;
        let data = &self.settings.data;
        let place = PLACES.iter().find(|(place, ..)| *place == region.as_str());
        let admin = self.ports.pick(&format!("{name}-admin"), LOOPBACK)?;
        let gossip = self.ports.pick(&format!("{name}-gossip"), LOOPBACK)?;
        Ok(NodePlan {
            config_path: data.join("nodes").join(format!("{name}.toml")),
            log_path: data.join("logs").join(format!("{name}.log")),
            config: NodeConfig {
                site,
                region: region.clone(),
                roles: Roles::NONE.with(role),
                data_dir: data.join("nodes").join(name.as_str()),
                latitude: place.map_or(0.0, |(_, latitude, _)| *latitude),
                longitude: place.map_or(0.0, |(.., longitude)| *longitude),
                join: JoinConfig {
                    control: vec![self.join],
                    token_file: Some(data.join("tokens").join(name.as_str())),
                },
                gossip: GossipConfig { listen: gossip, seeds: vec![self.seed], ..GossipConfig::default() },
                admin: AdminConfig { listen: admin },
                edge: EdgeConfig::default(),
                gateway: GatewayConfig::default(),
                host: HostConfig::default(),
                control: ControlConfig::default(),
                dns: DnsConfig::default(),
                ca: CaConfig::default(),
                drain_ms: DRAIN_MS,
                name,
            },
        })
    }

    fn dns(&mut self, purpose: &str, ip: IpAddr) -> Outcome<DnsConfig> {
        let listen = vec![self.ports.pick(purpose, ip)?];
        Ok(DnsConfig { listen, zone: Some(ZONE.to_owned()), ..DnsConfig::default() })
    }

    /// Simulated round trips to the regions' gateways.
    fn wan(&self, region: &RegionName) -> BTreeMap<RegionName, u64> {
        if self.settings.wan { wan(region, &self.settings.regions) } else { BTreeMap::new() }
    }

    fn edge(
        &mut self,
        node: &NodeConfig,
        number: usize,
        http: SocketAddr,
        https: SocketAddr,
    ) -> Outcome<EdgeConfig> {
        let (region, site) = (&node.region, numbered(node.site.as_str(), number));
        Ok(EdgeConfig {
            http: vec![http],
            https: vec![https],
            public_https_port: https.port(),
            workers: self.settings.workers,
            access_log: Some(self.settings.data.join("logs").join(format!("{site}-access.log"))),
            wan: self.wan(region),
            peer_listen: Some(self.ports.pick(&format!("{}-peers", node.name), LOOPBACK)?),
            ..EdgeConfig::default()
        })
    }
}

/// The n-th of that name: the first has it as it is.
fn numbered(name: &str, number: usize) -> String {
    if number == 1 { name.to_owned() } else { format!("{name}-{number}") }
}

/// Simulated round trips from one region to all, ms.
fn wan(from: &RegionName, regions: &[RegionName]) -> BTreeMap<RegionName, u64> {
    let ms = |to: &RegionName| {
        let between = |a: &str, b: &str| {
            (from.as_str() == a && to.as_str() == b) || (from.as_str() == b && to.as_str() == a)
        };
        let known = WAN_MS.iter().find(|(a, b, _)| between(a, b)).map(|(.., ms)| *ms);
        if from == to { WAN_NEAR_MS } else { known.unwrap_or(WAN_FAR_MS) }
    };
    regions.iter().map(|to| (to.clone(), ms(to))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn settings(data: &Path) -> Settings {
        Settings {
            data: data.to_owned(),
            regions: ["fra", "was", "sin"].map(|name| RegionName::new(name).unwrap()).to_vec(),
            https_port: 0,
            http_port: 0,
            demo: false,
            context: false,
            wan: true,
            edges: 1,
            workers: 1,
            node_certificate_s: Some(10),
            workload_certificate_s: None,
        }
    }

    #[test]
    fn ten_nodes_are_written_and_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(&settings(folder.path()), BTreeMap::new()).unwrap();
        layout.write(folder.path()).unwrap();
        assert_eq!(layout.nodes.len(), 10);
        for node in &layout.nodes {
            assert_eq!(NodeConfig::load(&node.config_path).unwrap(), node.config);
        }
        assert_eq!(layout.control().unwrap().config.ca.node_certificate_s, 10);
        let mut addresses: Vec<_> = layout.addresses.values().collect();
        let all = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), all);
    }

    #[test]
    fn edges_are_on_addresses_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(&settings(folder.path()), BTreeMap::new()).unwrap();
        let ips: Vec<String> = layout.edges().map(|(_, https)| https.ip().to_string()).collect();
        assert_eq!(ips, ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    }

    #[test]
    fn more_edges_leave_the_first_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let twice = Settings { edges: 2, ..settings(folder.path()) };
        let layout = Layout::new(&twice, BTreeMap::new()).unwrap();
        let edges = layout.nodes.iter().filter(|node| node.config.roles.has(Role::Edge));
        let edges: Vec<_> =
            edges.map(|node| (node.name(), node.config.edge.https[0].ip().to_string())).collect();
        assert_eq!(edges[0], ("fra1-edge", "127.0.0.1".to_owned()));
        assert_eq!(edges[1], ("fra1-edge-2", "127.0.0.4".to_owned()));
        assert_eq!(edges[2], ("was1-edge", "127.0.0.2".to_owned()));
        assert_eq!(edges.len(), 6);
    }

    #[test]
    fn the_next_start_uses_the_same_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let first = Layout::new(&settings(folder.path()), BTreeMap::new()).unwrap();
        let second = Layout::new(&settings(folder.path()), first.addresses.clone()).unwrap();
        assert_eq!(first.addresses, second.addresses);
    }

    #[test]
    fn distances_are_the_same_both_ways() {
        let regions = ["fra", "was", "sin", "xyz"].map(|name| RegionName::new(name).unwrap());
        for a in &regions {
            for b in &regions {
                assert_eq!(wan(a, &regions)[b], wan(b, &regions)[a]);
            }
        }
        assert_eq!(wan(&regions[1], &regions)["sin"], 230);
    }
}
