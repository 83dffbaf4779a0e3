//! DNS on a node: control and edges answer for the platform's zone where `[dns]` says so.

use super::config::NodeConfig;
use super::roles::Ground;
use anyhow::Context;
use atoll_model::Role;
use std::net::{IpAddr, SocketAddr};

/// Sockets that are open, and what answering needs.
#[derive(Debug)]
pub struct Dns {
    bound: atoll_dns::Bound,
    handles: atoll_dns::Handles,
}

impl Dns {
    /// Opens the sockets; nothing where none is configured.
    pub fn bind(ground: &Ground) -> anyhow::Result<Option<Self>> {
        let config = &ground.config;
        let Some(zone) = zone(config).filter(|_| config.dns.is_on()) else { return Ok(None) };
        let zone =
            atoll_dns::origin(zone).with_context(|| format!("the zone {zone:?} cannot be answered for"))?;
        let bound = atoll_dns::bind(config.dns.clone(), &ground.metrics)?;
        for address in bound.addresses() {
            tracing::info!(%address, %zone, "answering DNS over UDP and TCP");
        }
        let handles = atoll_dns::Handles {
            name: config.name.clone(),
            zone,
            gossip: ground.gossip.clone(),
            tasks: ground.tasks.clone(),
            drain: ground.drain.clone(),
        };
        Ok(Some(Self { bound, handles }))
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.bound.addresses()
    }

    /// Starts to answer.
    pub fn run(self) {
        self.bound.run(self.handles);
    }
}

/// The zone that the node is to answer for: control's own, or the one that it is told.
fn zone(config: &NodeConfig) -> Option<&str> {
    let of_control = config.roles.has(Role::Control).then_some(config.control.zone.as_str());
    of_control.or(config.dns.zone.as_deref())
}

/// What is wrong with `[dns]` beside the rest of the configuration.
pub fn check(config: &NodeConfig) -> Result<(), String> {
    config.dns.check()?;
    if !config.dns.is_on() {
        return Ok(());
    }
    if !config.roles.has(Role::Control) && !config.roles.has(Role::Edge) {
        return Err("`dns.listen` is for nodes with the role control or edge: remove it here".to_owned());
    }
    let Some(zone) = zone(config) else {
        return Err("`dns.zone` is missing: name the zone that `control.zone` names on control".to_owned());
    };
    atoll_dns::origin(zone).map_err(|why| format!("`control.zone` = {zone:?}: {why}"))?;
    match &config.dns.zone {
        Some(told) if !same_zone(told, zone) => Err(format!(
            "`dns.zone` is {told:?} and `control.zone` is {zone:?}: leave `dns.zone` out on control"
        )),
        _ => Ok(()),
    }
}

fn same_zone(a: &str, b: &str) -> bool {
    a.trim_end_matches('.').eq_ignore_ascii_case(b.trim_end_matches('.'))
}

/// The addresses by which the world reaches what listens there: those that are configured, or those that it
/// listens on.
pub fn advertised(config: &NodeConfig, listening: &[SocketAddr]) -> Vec<IpAddr> {
    if listening.is_empty() {
        return Vec::new();
    }
    if !config.dns.advertise.is_empty() {
        return config.dns.advertise.clone();
    }
    let mut addresses: Vec<IpAddr> =
        listening.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> NodeConfig {
        let text = format!(
            r#"
            name = "fra1-edge"
            site = "fra1"
            region = "fra"
            roles = ["edge"]
            data_dir = "/tmp/x"
            [join]
            control = ["127.0.0.1:7000"]
            [edge]
            https = ["127.0.0.1:8443"]
            {extra}
        "#
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn it_is_off_unless_asked_for() {
        assert!(!config("").dns.is_on());
        check(&config("")).unwrap();
        check(&config("[dns]\nlisten = [\"127.0.0.1:53\"]\nzone = \"apps.example.com\"")).unwrap();
    }

    #[test]
    fn an_edge_must_be_told_the_zone_and_it_must_be_one() {
        let wrong = |extra: &str| check(&config(extra)).unwrap_err();
        assert!(wrong("[dns]\nlisten = [\"127.0.0.1:53\"]").contains("dns.zone"));
        assert!(wrong("[dns]\nzone = \"a b\"").contains("dns.zone"));
        assert!(wrong("[dns]\nadvertise = [\"0.0.0.0\"]").contains("dns.advertise"));
    }

    #[test]
    fn a_control_node_knows_its_zone_and_no_other() {
        let mut node = config("[dns]\nlisten = [\"127.0.0.1:53\"]\n[control]\nzone = \"apps.example.com\"");
        node.roles = node.roles.with(Role::Control);
        check(&node).unwrap();
        node.dns.zone = Some("Apps.example.com.".to_owned());
        check(&node).unwrap();
        node.dns.zone = Some("other.example".to_owned());
        assert!(check(&node).unwrap_err().contains("control.zone"));
    }

    #[test]
    fn other_roles_do_not_answer() {
        let mut node = config("[dns]\nlisten = [\"127.0.0.1:53\"]\nzone = \"apps.example.com\"");
        node.roles = atoll_model::Roles::NONE.with(Role::Host);
        assert!(check(&node).unwrap_err().contains("role control or edge"));
    }

    #[test]
    fn what_is_advertised_is_what_is_reached() {
        let listening = ["0.0.0.0:443", "192.0.2.1:443", "192.0.2.1:444"].map(|text| text.parse().unwrap());
        assert_eq!(advertised(&config(""), &listening), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let told = config("[dns]\nadvertise = [\"203.0.113.5\"]");
        assert_eq!(advertised(&told, &listening), ["203.0.113.5".parse::<IpAddr>().unwrap()]);
        assert!(advertised(&told, &[]).is_empty());
    }
}
