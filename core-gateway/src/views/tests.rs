#![allow(clippy::unwrap_used)]
use super::*;
use atoll_gossip::{RecordSigner, Scope};
use atoll_model::{Role, Roles};
use atoll_routing::endpoint::State;
use atoll_wire::Message;
use record::instance::State as Told;

const CLUSTER: &str = "default/shop/web";

fn entry(owner: &str, kind: Kind, key: &str, body: Option<Vec<u8>>) -> Arc<Entry> {
    let owner = Owner::parse(owner).unwrap();
    let signer = RecordSigner {
        node: "a-node".parse().unwrap(),
        site: "fra1".parse().unwrap(),
        region: "fra".parse().unwrap(),
        roles: Roles::NONE.with(Role::Host),
        epoch: 1,
        public_key: [0; 32],
    };
    Arc::new(Entry {
        owner,
        kind,
        scope: Scope::Region("fra".parse().unwrap()),
        key: key.into(),
        epoch: 1,
        version: 1,
        deleted: body.is_none(),
        body: body.unwrap_or_default().into(),
        signer: Arc::new(signer),
        written_ms: 0,
    })
}

fn instance(host: &str, key: &str, cluster: &str, state: Told) -> Arc<Entry> {
    let body = record::Instance {
        cluster: cluster.to_owned(),
        state: state.into(),
        sidecar_address: "127.0.0.1:9".to_owned(),
        ..record::Instance::default()
    };
    entry(host, Kind::INSTANCE, key, Some(body.encode_to_vec()))
}

fn placement(host: &str, key: &str, cluster: &str, drains: bool) -> Arc<Entry> {
    let state = if drains { record::placement::State::Drain } else { record::placement::State::Run };
    let body = record::Placement {
        host: host.to_owned(),
        cluster: cluster.to_owned(),
        state: state.into(),
        ..record::Placement::default()
    };
    entry("control", Kind::PLACEMENT, key, Some(body.encode_to_vec()))
}

fn writer() -> (Views, ViewWriter) {
    let views = Views::default();
    let writer = ViewWriter::new(views.clone(), "fra1-gateway".parse().unwrap(), "fra".parse().unwrap());
    (views, writer)
}

fn states(views: &Views) -> Vec<State> {
    let snapshot = views.load();
    snapshot.endpoints.get(CLUSTER).map(|e| e.all.iter().map(|e| e.state).collect()).unwrap_or_default()
}

#[test]
fn an_instance_is_used_only_where_control_has_placed_it() {
    let (views, mut writer) = writer();
    writer.apply(&[instance("h1", "h1/i-1", CLUSTER, Told::Healthy)]);
    assert!(states(&views).is_empty(), "no placement");
    writer.apply(&[placement("h2", "h1/i-1", CLUSTER, false)]);
    assert!(states(&views).is_empty(), "another host's");
    writer.apply(&[placement("h1", "h1/i-1", "default/other/web", false)]);
    assert!(states(&views).is_empty(), "another service's");
    let touched = writer.apply(&[placement("h1", "h1/i-1", CLUSTER, false)]);
    assert!(touched.contains(CLUSTER) && touched.contains("default/other/web"));
    assert_eq!(states(&views), [State::Healthy]);
    writer.apply(&[placement("h1", "h1/i-1", CLUSTER, true)]);
    assert_eq!(states(&views), [State::Draining]);
    writer.apply(&[entry("control", Kind::PLACEMENT, "h1/i-1", None)]);
    assert!(states(&views).is_empty());
    writer.apply(&[entry("h1", Kind::INSTANCE, "h1/i-1", None)]);
    assert!(views.load().endpoints.get(CLUSTER).is_none());
}

#[test]
fn those_that_start_or_drain_are_not_expected_to_serve() {
    let (views, mut writer) = writer();
    for (key, state, drains) in [
        ("h1/a", Told::Healthy, false),
        ("h1/b", Told::Starting, false),
        ("h1/c", Told::Exited, false),
        ("h1/d", Told::Healthy, true),
        ("h1/e", Told::Unhealthy, false),
    ] {
        writer.apply(&[instance("h1", key, CLUSTER, state), placement("h1", key, CLUSTER, drains)]);
    }
    assert_eq!(views.load().endpoints.get(CLUSTER).unwrap().expected, 3);
    use State::{Absent, Draining, Healthy, Unhealthy};
    assert_eq!(states(&views), [Healthy, Absent, Absent, Draining, Unhealthy]);
}

#[test]
fn a_policy_that_changes_keeps_its_count() {
    let (views, mut writer) = writer();
    let cluster = |public| {
        let body = record::Cluster { public, ..record::Cluster::default() };
        entry("control", Kind::CLUSTER, CLUSTER, Some(body.encode_to_vec()))
    };
    writer.apply(&[cluster(true)]);
    let before = Arc::clone(views.load().clusters.get(CLUSTER).unwrap());
    writer.apply(&[cluster(false)]);
    let after = Arc::clone(views.load().clusters.get(CLUSTER).unwrap());
    assert!(before.public && !after.public && Arc::ptr_eq(&before.in_flight, &after.in_flight));
}
