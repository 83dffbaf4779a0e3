#![allow(clippy::unwrap_used)]
use super::*;
use atoll_gossip::{RecordSigner, Scope};
use atoll_model::Roles;
use atoll_routing::region::Health;
use atoll_wire::Message;

fn entry(owner: &str, kind: Kind, key: &str, version: u64, body: Option<Vec<u8>>) -> Arc<Entry> {
    let region = owner.get(..3).unwrap();
    let owner = Owner::parse(owner).unwrap();
    let node = owner.as_str().parse().unwrap_or_else(|_| "control1".parse().unwrap());
    let signer = RecordSigner {
        node,
        site: format!("{region}1").parse().unwrap(),
        region: region.parse().unwrap(),
        roles: Roles::NONE.with(Role::Gateway),
        epoch: 1,
        public_key: [0; 32],
    };
    Arc::new(Entry {
        owner,
        kind,
        scope: Scope::Global,
        key: key.into(),
        epoch: 1,
        version,
        deleted: body.is_none(),
        body: body.unwrap_or_default().into(),
        signer: Arc::new(signer),
        written_ms: 0,
    })
}

fn host(domain: &str, cluster: &str) -> Vec<u8> {
    let route =
        record::Route { name: "r".to_owned(), path_prefix: "/".to_owned(), cluster: cluster.to_owned() };
    record::VirtualHost {
        domains: vec![domain.to_owned()],
        routes: vec![route],
        ..record::VirtualHost::default()
    }
    .encode_to_vec()
}

fn writer() -> (Views, ViewWriter) {
    let views = Views::default();
    let writer = ViewWriter::new(views.clone(), "fra1-edge".parse().unwrap(), Counts::default());
    (views, writer)
}

#[test]
fn a_record_that_cant_be_applied_leaves_the_last_good_one_and_is_shown() {
    let (views, mut writer) = writer();
    writer.apply(&[entry("control", Kind::VIRTUAL_HOST, "o-1", 5, Some(host("a.example", "o/a/s")))]);
    assert!(views.load().hosts.find("a.example").is_some());
    for bad in [host("a example", "o/a/s"), host("b.example", "no cluster"), vec![0xff]] {
        writer.apply(&[entry("control", Kind::VIRTUAL_HOST, "o-1", 6, Some(bad.clone()))]);
        assert!(views.load().hosts.find("a.example").is_some());
        assert_eq!(writer.errors().len(), 1);
        assert_eq!(views.load().desired, (1, 6));
    }
    writer.apply(&[entry("control", Kind::VIRTUAL_HOST, "o-1", 7, None)]);
    assert!(views.load().hosts.is_empty() && writer.errors().is_empty());
}

#[test]
fn a_gateway_is_where_its_certificate_says_and_changes_are_told() {
    let (views, mut writer) = writer();
    let facts = |address: &str| {
        record::NodeFacts {
            region: "sin".to_owned(),
            gateway_address: address.to_owned(),
            ..record::NodeFacts::default()
        }
        .encode_to_vec()
    };
    let mut gateways = views.gateways().changes();
    writer.apply(&[entry("was1-gateway", Kind::NODE, "was1-gateway", 1, Some(facts("127.0.0.1:7")))]);
    assert!(gateways.has_changed().unwrap());
    assert_eq!(gateways.borrow_and_update()[0].region.as_str(), "was", "not what its record says");
    writer.apply(&[entry("was1-gateway", Kind::NODE, "was1-gateway", 2, Some(facts("127.0.0.1:7")))]);
    assert!(!gateways.has_changed().unwrap(), "nothing that matters has changed");
    writer.apply(&[entry("was1-gateway", Kind::NODE, "was1-gateway", 3, None)]);
    assert!(gateways.borrow_and_update().is_empty());
}

#[test]
fn each_gateways_word_on_a_region_is_kept_apart() {
    let (views, mut writer) = writer();
    let summary = |health: record::region_summary::Health| {
        record::RegionSummary { health: health.into(), ..record::RegionSummary::default() }.encode_to_vec()
    };
    let none = summary(record::region_summary::Health::None);
    let full = summary(record::region_summary::Health::Full);
    writer.apply(&[
        entry("fra1-gateway-a", Kind::SUMMARY, "fra/o/a/s", 1, Some(none)),
        entry("fra1-gateway-b", Kind::SUMMARY, "fra/o/a/s", 1, Some(full)),
    ]);
    assert_eq!(views.load().summaries.of("o/a/s").unwrap().len(), 2);
    writer.apply(&[entry("fra1-gateway-a", Kind::SUMMARY, "fra/o/a/s", 2, None)]);
    let left = views.load().summaries.of("o/a/s").cloned().unwrap();
    assert_eq!((left.len(), left[0].health), (1, Health::Full));
    writer.apply(&[entry("fra1-gateway-b", Kind::SUMMARY, "fra/o/a/s", 2, None)]);
    assert!(views.load().summaries.of("o/a/s").is_none());
}
