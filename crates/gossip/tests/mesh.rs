//! Real nodes over QUIC on loopback, with certificates from a real mesh CA.
#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_gossip::{Config, DesiredChange, Entry, Gossip, Scope};
use atoll_identity::{Identity, Material, RecordIdentity, RecordKey, TlsKey, TrustDomain};
use atoll_mesh_ca::{Lifetimes, MeshCa, NodeSubject};
use atoll_model::{Kind, Role, Roles};
use atoll_process::clock::unix_ms;
use atoll_process::drain::{self, DrainTrigger};
use atoll_process::metrics::Metrics;
use atoll_wire::Message;
use atoll_wire::record::{Cluster, Instance, NodeFacts, Placement};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(15);

struct Node {
    gossip: Gossip,
    metrics: Metrics,
    drain: DrainTrigger,
    identity: Identity,
}

fn ca() -> (MeshCa, TempDir) {
    let dir = TempDir::new().unwrap();
    let domain = TrustDomain::new("atoll.test").unwrap();
    (MeshCa::open_or_create(dir.path(), domain, Lifetimes::default(), unix_ms()).unwrap(), dir)
}

fn subject(name: &str, region: &str, roles: &[Role]) -> NodeSubject {
    NodeSubject {
        node: name.parse().unwrap(),
        site: format!("{region}1").parse().unwrap(),
        region: region.parse().unwrap(),
        roles: roles.iter().copied().collect(),
        epoch: 1,
    }
}

fn identity(ca: &MeshCa, subject: &NodeSubject) -> Identity {
    let key = TlsKey::generate().unwrap();
    let chain = ca.issue_node(subject, &key.csr().unwrap(), unix_ms()).unwrap();
    let (roots, trust_domain) = (ca.roots(), ca.trust_domain().clone());
    Identity::new(Material { chain, key: key.to_pkcs8(), roots, trust_domain }).unwrap()
}

/// The record key is kept in `dir`, as a node does.
fn record(ca: &MeshCa, subject: &NodeSubject, dir: &Path) -> RecordIdentity {
    if let Some(kept) = atoll_identity::load_record(dir).unwrap() {
        return kept;
    }
    let key = RecordKey::generate().unwrap();
    let chain = ca.issue_record(subject, &key.csr().unwrap(), unix_ms()).unwrap();
    let record = RecordIdentity::new(key, chain).unwrap();
    atoll_identity::save_record(dir, &record).unwrap();
    record
}

fn scopes(roles: Roles, region: &str) -> Vec<Scope> {
    let region = region.parse().unwrap();
    let all = [Scope::Global, Scope::Region("fra".parse().unwrap()), Scope::Region("was".parse().unwrap())];
    all.into_iter().filter(|scope| scope.admits(roles, Some(&region))).collect()
}

async fn start(
    ca: &MeshCa,
    name: &str,
    region: &str,
    roles: &[Role],
    seeds: &[SocketAddr],
    dir: &Path,
) -> Node {
    let subject = subject(name, region, roles);
    let identity = identity(ca, &subject);
    let record = record(ca, &subject, dir);
    let scopes = scopes(subject.roles, region);
    let mut config = Config::new(subject.node, scopes, "127.0.0.1:0".parse().unwrap(), dir, record);
    config.seeds = seeds.to_vec();
    let metrics = Metrics::new();
    let (trigger, drain) = drain::channel();
    let gossip = Gossip::start(config, identity.clone(), &metrics, drain).await.unwrap();
    let facts = NodeFacts {
        name: name.into(),
        gossip_address: gossip.local_addr().to_string(),
        ..NodeFacts::default()
    };
    for scope in gossip.scopes() {
        match scope {
            Scope::Global => gossip.publish(Kind::NODE, scope, name, &facts),
            Scope::Region(_) => gossip.publish(Kind::REGION_NODE, scope, name, &facts),
        }
    }
    Node { gossip, metrics, drain: trigger, identity }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < until, "not so in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || std::future::ready(holds())).await;
}

fn cluster(name: &str, revision: u64) -> DesiredChange {
    let body = Cluster { name: name.into(), revision: revision.to_string(), ..Cluster::default() };
    let body = Some(body.encode_to_vec().into());
    DesiredChange { kind: Kind::CLUSTER, scope: Scope::Global, key: name.into(), revision, body }
}

fn keys(entries: &[std::sync::Arc<Entry>]) -> Vec<String> {
    entries.iter().map(|entry| entry.key.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_reach_whom_they_are_for_and_outlive_control() {
    let (ca, _ca_dir) = ca();
    let dirs: Vec<TempDir> = (0..5).map(|_| TempDir::new().unwrap()).collect();
    let control = start(&ca, "ctl", "fra", &[Role::Control], &[], dirs[0].path()).await;
    let seeds = [control.gossip.local_addr()];
    let edge = start(&ca, "fra1-edge", "fra", &[Role::Edge], &seeds, dirs[1].path()).await;
    let gateway = start(&ca, "fra1-gw", "fra", &[Role::Gateway], &seeds, dirs[2].path()).await;
    let host = start(&ca, "fra1-host", "fra", &[Role::Host], &seeds, dirs[3].path()).await;
    let far = start(&ca, "was1-gw", "was", &[Role::Gateway], &seeds, dirs[4].path()).await;
    let fra = Scope::Region("fra".parse().unwrap());

    until("all are members", || {
        let seen = |node: &Node, scope: &Scope| node.gossip.members().borrow().alive(scope).len();
        seen(&edge, &Scope::Global) == 3 && seen(&host, &fra) == 2 && seen(&gateway, &fra) == 2
    })
    .await;

    let placement = Placement { instance: "i-1".into(), host: "fra1-host".into(), ..Placement::default() };
    let place = DesiredChange {
        kind: Kind::PLACEMENT,
        scope: fra.clone(),
        key: "fra1-host/i-1".into(),
        revision: 2,
        body: Some(placement.encode_to_vec().into()),
    };
    control.gossip.publish_desired(1, vec![cluster("default/shop/web", 1), place]).await.unwrap();
    let instance = Instance { instance: "i-1".into(), ..Instance::default() };
    host.gossip.publish(Kind::INSTANCE, &fra, "fra1-host/i-1", &instance);
    until("desired state is where it is needed", || {
        edge.gossip.get(Kind::CLUSTER, &Scope::Global, "default/shop/web").is_some()
            && far.gossip.get(Kind::CLUSTER, &Scope::Global, "default/shop/web").is_some()
            && host.gossip.get(Kind::PLACEMENT, &fra, "fra1-host/i-1").is_some()
    })
    .await;
    until("the region knows its instance", || !gateway.gossip.entries(Kind::INSTANCE).is_empty()).await;
    assert_eq!(edge.gossip.desired_version(&Scope::Global), (1, 1));
    assert_eq!(host.gossip.desired_version(&fra), (1, 2));
    // Nobody else does.
    assert!(edge.gossip.entries(Kind::INSTANCE).is_empty());
    assert!(far.gossip.entries(Kind::INSTANCE).is_empty());
    assert!(host.gossip.entries(Kind::CLUSTER).is_empty());

    // Only control may.
    assert!(edge.gossip.publish_desired(1, vec![cluster("x", 9)]).await.is_err());

    // A change and a deletion arrive in a subscription that began with what there was.
    let mut changes = edge.gossip.subscribe(&[Kind::CLUSTER]);
    assert_eq!(keys(&changes.next().await.unwrap()), ["default/shop/web"]);
    control.gossip.publish_desired(1, vec![cluster("default/shop/api", 3)]).await.unwrap();
    assert_eq!(keys(&changes.next().await.unwrap()), ["default/shop/api"]);
    let deletion = DesiredChange { body: None, ..cluster("default/shop/api", 4) };
    control.gossip.publish_desired(1, vec![deletion]).await.unwrap();
    let gone = changes.next().await.unwrap();
    assert!(gone[0].deleted && &*gone[0].key == "default/shop/api");

    // Control goes, and the edge starts anew without seeds: it has what it had, and finds its peers.
    control.gossip.close().await;
    edge.gossip.close().await;
    assert!(changes.next().await.is_none());
    let edge = start(&ca, "fra1-edge", "fra", &[Role::Edge], &[], dirs[1].path()).await;
    assert_eq!(keys(&edge.gossip.entries(Kind::CLUSTER)), ["default/shop/web"]);
    assert_eq!(edge.gossip.desired_version(&Scope::Global), (1, 4));
    gateway.gossip.publish(Kind::SUMMARY, &Scope::Global, "fra/default/shop/web", &Instance::default());
    until("news come without control", || !edge.gossip.entries(Kind::SUMMARY).is_empty()).await;
    gateway.gossip.withdraw(Kind::SUMMARY, &Scope::Global, "fra/default/shop/web");
    until("withdrawals, too", || edge.gossip.entries(Kind::SUMMARY).is_empty()).await;

    // A node on everybody's deny-list is cut off.
    for node in [&gateway, &edge] {
        node.identity.connections().set_denied([far.identity.own_id()]);
    }
    until("the denied one is lost", || {
        gateway.gossip.members().borrow().find(&"was1-gw".parse().unwrap()).is_none()
    })
    .await;
    for node in [&edge, &gateway, &host, &far] {
        node.drain.force();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_from_another_ca_gets_nowhere() {
    let (ca_a, _dir_a) = ca();
    let (ca_b, _dir_b) = ca();
    let dirs: Vec<TempDir> = (0..3).map(|_| TempDir::new().unwrap()).collect();
    let gateway = start(&ca_a, "fra1-gw", "fra", &[Role::Gateway], &[], dirs[0].path()).await;
    let seeds = [gateway.gossip.local_addr()];
    let edge = start(&ca_a, "fra1-edge", "fra", &[Role::Edge], &seeds, dirs[1].path()).await;
    let stranger = start(&ca_b, "was1-edge", "was", &[Role::Edge], &seeds, dirs[2].path()).await;
    until("the two know each other", || edge.gossip.entries(Kind::NODE).len() == 2).await;
    until("the stranger was refused, more than once", || failed_dials(&stranger.metrics) >= 2).await;
    assert_eq!(keys(&gateway.gossip.entries(Kind::NODE)), ["fra1-edge", "fra1-gw"]);
    assert_eq!(keys(&stranger.gossip.entries(Kind::NODE)), ["was1-edge"]);
    assert!(stranger.gossip.members().borrow().alive(&Scope::Global).is_empty());
    for node in [&gateway, &edge, &stranger] {
        node.drain.force();
    }
}

fn failed_dials(metrics: &Metrics) -> u64 {
    let text = metrics.encode();
    let line = text.lines().find_map(|line| line.strip_prefix("atoll_gossip_dials_failed_total "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_takes_up_where_it_was() {
    let (ca, _ca_dir) = ca();
    let (kept, lost, identity_only) =
        (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let edge = start(&ca, "fra1-edge", "fra", &[Role::Edge], &[], kept.path()).await;
    let seeds = [edge.gossip.local_addr()];
    let gateway = start(&ca, "fra1-gw", "fra", &[Role::Gateway], &seeds, lost.path()).await;
    for n in 0..40 {
        let body = Instance { restarts: n, ..Instance::default() };
        gateway.gossip.publish(Kind::SUMMARY, &Scope::Global, "fra/c", &body);
        until("each is seen", || {
            let entry = edge.gossip.get(Kind::SUMMARY, &Scope::Global, "fra/c");
            entry.is_some_and(|entry| entry.decode::<Instance>().unwrap().restarts == n)
        })
        .await;
    }
    gateway.gossip.publish(Kind::SUMMARY, &Scope::Global, "fra/old", &Instance::default());
    until("the old one is seen", || edge.gossip.get(Kind::SUMMARY, &Scope::Global, "fra/old").is_some())
        .await;
    gateway.gossip.close().await;
    // The same record key, but no records and no counter.
    let kept_key = atoll_identity::load_record(lost.path()).unwrap().unwrap();
    atoll_identity::save_record(identity_only.path(), &kept_key).unwrap();
    let gateway = start(&ca, "fra1-gw", "fra", &[Role::Gateway], &seeds, identity_only.path()).await;
    let body = Instance { restarts: 1000, ..Instance::default() };
    gateway.gossip.publish(Kind::SUMMARY, &Scope::Global, "fra/c", &body);
    until("what it says now counts", || {
        let entry = edge.gossip.get(Kind::SUMMARY, &Scope::Global, "fra/c");
        let old = edge.gossip.get(Kind::SUMMARY, &Scope::Global, "fra/old");
        old.is_none() && entry.is_some_and(|entry| entry.decode::<Instance>().unwrap().restarts == 1000)
    })
    .await;
    for node in [&edge, &gateway] {
        node.drain.force();
    }
}

fn exchanges(metrics: &Metrics, result: &str) -> u64 {
    let (text, prefix) = (metrics.encode(), format!("atoll_gossip_exchanges_total{{result=\"{result}\"}} "));
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nothing_changes_only_summaries_are_compared() {
    let (ca, _ca_dir) = ca();
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let gateway = start(&ca, "fra1-gw", "fra", &[Role::Gateway], &[], dirs[0].path()).await;
    let seeds = [gateway.gossip.local_addr()];
    let edge = start(&ca, "fra1-edge", "fra", &[Role::Edge], &seeds, dirs[1].path()).await;
    until("the two know each other", || {
        edge.gossip.entries(Kind::NODE).len() == 2 && gateway.gossip.entries(Kind::NODE).len() == 2
    })
    .await;
    let before = exchanges(&edge.metrics, "even");
    until("they find that they are even", || exchanges(&edge.metrics, "even") >= before + 3).await;
    let done = exchanges(&edge.metrics, "done");
    let before = exchanges(&edge.metrics, "even");
    until("and go on so", || exchanges(&edge.metrics, "even") >= before + 3).await;
    assert_eq!(exchanges(&edge.metrics, "done"), done);
    // One that is behind notices.
    gateway.gossip.publish(Kind::SUMMARY, &Scope::Global, "fra/c", &Instance::default());
    until("a change is still heard", || !edge.gossip.entries(Kind::SUMMARY).is_empty()).await;
    until("traffic is counted", || {
        let text = edge.metrics.encode();
        let sent = text.lines().find_map(|line| line.strip_prefix("atoll_gossip_sent_bytes_total "));
        sent.and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 0)
    })
    .await;
    for node in [&edge, &gateway] {
        node.drain.force();
    }
}
