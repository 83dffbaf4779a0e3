//! What the node says of itself: addresses, roles, drain, and how far it has applied desired state.

use super::config::NodeConfig;
use super::reload::Live;
use super::roles::ApplyErrors;
use atoll_gossip::{Gossip, Scope};
use atoll_identity::Identity;
use atoll_model::{Kind, Role};
use atoll_process::Drain;
use atoll_process::clock::unix_ms;
use atoll_wire::record::{ApplyError, NodeFacts};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;

/// How often the facts are looked at; what has not changed is not said again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where the node can be reached, as far as its roles go.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Tunnels (TCP).
    pub gateway: Option<SocketAddr>,
    /// Other edges (TCP).
    pub edge_peers: Option<SocketAddr>,
    /// Plain HTTP.
    pub edge_http: Option<SocketAddr>,
    /// HTTPS.
    pub edge_https: Option<SocketAddr>,
    /// By which clients reach the edge.
    pub public: Vec<IpAddr>,
    /// At which the node answers DNS.
    pub dns: Vec<IpAddr>,
    /// Admin (loopback).
    pub admin: Option<SocketAddr>,
}

/// When the facts change by themselves.
#[derive(Debug)]
pub struct Phases {
    /// The node says that it drains, before it does.
    pub leaving: Drain,
    /// An operator wants it to take nothing new.
    pub wished: watch::Receiver<bool>,
    /// Its end.
    pub drain: Drain,
}

/// Publishes the facts until the drain is forced.
pub async fn run(
    live: Live,
    addresses: Addresses,
    gossip: Gossip,
    identity: Identity,
    apply_errors: ApplyErrors,
    phases: Phases,
) {
    let Phases { leaving, mut wished, drain } = phases;
    let config = live.load();
    let base = facts(&config, &addresses, &gossip);
    let mut said: Vec<(Kind, Scope, NodeFacts)> = gossip
        .scopes()
        .iter()
        .filter_map(|scope| kind_for(&config, scope))
        .map(|(kind, scope)| (kind, scope, base.clone()))
        .collect();
    let mut said_draining = false;
    loop {
        let config = live.load();
        for (kind, scope, facts) in &mut said {
            (facts.latitude, facts.longitude) = (config.latitude, config.longitude);
            facts.certificate_not_after_ms = identity.not_after_ms();
            facts.clock_correction_ms = identity.clock().correction_ms();
            facts.draining = leaving.is_draining() || *wished.borrow();
            // Roles apply what arrives within milliseconds; what they could not apply they name.
            let (_, applied) = gossip.desired_version(scope);
            facts.apply_errors = apply_errors()
                .into_iter()
                .take(16)
                .map(|(record, error)| ApplyError { record, error })
                .collect();
            if applied != facts.applied_version || facts.applied_ms == 0 {
                facts.applied_version = applied;
                facts.applied_ms = unix_ms();
            }
            gossip.publish(*kind, scope, config.name.as_str(), facts);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = leaving.draining(), if !said_draining => said_draining = true,
            // Who sends the wish ends with the node: from then on the wait alone counts.
            Ok(()) = wished.changed() => {}
            () = drain.forced() => return,
        }
    }
}

/// A node in the scope as a mere reader (control in a region) says nothing there.
fn kind_for(config: &NodeConfig, scope: &Scope) -> Option<(Kind, Scope)> {
    match scope {
        Scope::Global => Some((Kind::NODE, Scope::Global)),
        Scope::Region(region) => {
            let at_home = *region == config.region;
            let takes_part = config.roles.has(Role::Gateway) || config.roles.has(Role::Host);
            (at_home && takes_part).then(|| (Kind::REGION_NODE, scope.clone()))
        }
    }
}

fn facts(config: &NodeConfig, addresses: &Addresses, gossip: &Gossip) -> NodeFacts {
    let text = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    NodeFacts {
        name: config.name.to_string(),
        site: config.site.to_string(),
        region: config.region.to_string(),
        roles: config.roles.iter().map(|role| role.to_string()).collect(),
        gossip_address: gossip.local_addr().to_string(),
        gateway_address: text(addresses.gateway),
        edge_http_address: text(addresses.edge_http),
        edge_peer_address: text(addresses.edge_peers),
        edge_https_address: text(addresses.edge_https),
        public_addresses: addresses.public.iter().map(ToString::to_string).collect(),
        dns_addresses: addresses.dns.iter().map(ToString::to_string).collect(),
        admin_address: text(addresses.admin),
        wire_version_min: 1,
        wire_version_max: 1,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_ms: unix_ms(),
        pid: std::process::id(),
        latitude: config.latitude,
        longitude: config.longitude,
        ..NodeFacts::default()
    }
}
