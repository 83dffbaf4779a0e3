#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::signers::{RecordSigner, test_signer};
use atoll_identity::RecordKey;
use atoll_model::{Role, Roles};
use atoll_process::metrics::Metrics;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;

/// A node's record key; its "certificate" is what a certificate would say, as text.
pub(crate) struct TestNode {
    name: String,
    roles: Roles,
    region: String,
    key: RecordKey,
}

impl TestNode {
    pub(crate) fn new(name: &str, region: &str, roles: &[Role]) -> Self {
        let roles = roles.iter().copied().collect();
        Self { name: name.into(), roles, region: region.into(), key: RecordKey::generate().unwrap() }
    }

    fn signer(&self) -> BatchSigner {
        let key = self.key.public_key().map(|byte| format!("{byte:02x}")).concat();
        let text = format!("{}|{}|{}|{key}", self.name, self.region, self.roles);
        BatchSigner::for_tests(RecordKey::from_pkcs8(&self.key.to_pkcs8()).unwrap(), text.into_bytes())
    }
}

struct TextCheck;

impl CertificateCheck for TextCheck {
    fn check(&self, chain: &[Vec<u8>]) -> Result<RecordSigner, String> {
        let text = std::str::from_utf8(&chain[0]).map_err(|why| why.to_string())?;
        let parts: Vec<&str> = text.split('|').collect();
        let [name, region, roles, key] = parts[..] else { return Err("not four parts".into()) };
        let roles: Roles = roles.split(',').map(|role| role.parse::<Role>().unwrap()).collect();
        let mut signer = test_signer(name, region, &roles);
        for (n, byte) in signer.public_key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&key[2 * n..2 * n + 2], 16).unwrap();
        }
        Ok(signer)
    }
}

fn scopes(node: &TestNode) -> Vec<Scope> {
    let all = ["", "fra", "was", "sin"].map(|name| Scope::parse(name).unwrap());
    let region = node.region.parse().unwrap();
    all.into_iter().filter(|scope| scope.admits(node.roles, Some(&region))).collect()
}

pub(crate) fn core_for(node: &TestNode, limits: Limits, next_version: u64) -> Core {
    let stats = Arc::new(Stats::new(&Metrics::new()));
    let name = node.name.parse().unwrap();
    Core::new(name, scopes(node), node.signer(), Box::new(TextCheck), stats, limits, next_version).unwrap()
}

pub(crate) fn desired(key: &str, revision: u64, body: Option<&'static [u8]>) -> DesiredChange {
    let body = body.map(Bytes::from_static);
    DesiredChange { kind: Kind::CLUSTER, scope: Scope::Global, key: key.into(), revision, body }
}

/// One exchange as the transport makes it; each of its messages may be lost.
fn exchange(a: &Core, b: &Core, now: u64, mut lost: impl FnMut() -> bool) {
    let common: Vec<Scope> = a.scopes.iter().filter(|scope| b.scopes.contains(scope)).cloned().collect();
    let request = a.request(&common);
    if lost() {
        return;
    }
    let mut answer = b.request(&common);
    b.deltas_for(&request, &common, &mut answer);
    if lost() {
        return;
    }
    let mut last = gossip::Exchange::default();
    a.deltas_for(&answer, &common, &mut last);
    a.take(answer, &common, &b.name, now);
    if !lost() {
        b.take(last, &common, &a.name, now);
    }
}

#[test]
fn a_host_can_not_speak_of_another_hosts_instance() {
    let good = core_for(&TestNode::new("host-a", "fra", &[Role::Host]), Limits::default(), 1);
    let gateway = core_for(&TestNode::new("fra1-gw", "fra", &[Role::Gateway]), Limits::default(), 1);
    let evil_node = TestNode::new("host-b", "fra", &[Role::Host]);
    let evil = core_for(&evil_node, Limits::default(), 1);
    let fra = Scope::parse("fra").unwrap();
    good.publish(Kind::INSTANCE, &fra, "host-a/i-1", Bytes::from_static(b"healthy"));
    good.flush(0);
    exchange(&good, &gateway, 0, || false);
    // Its own gossip does not even sign it; so the message is made by hand.
    evil.publish(Kind::INSTANCE, &fra, "host-a/i-1", Bytes::from_static(b"dead"));
    evil.flush(0);
    assert!(evil.entries(Kind::INSTANCE).is_empty());
    for (owner, refusal) in [("host-b", Refusal::Key), ("host-a", Refusal::Owner)] {
        let record = Record {
            owner: owner.into(),
            kind: Kind::INSTANCE.0,
            scope: "fra".into(),
            key: "host-a/i-1".into(),
            epoch: 1,
            version: 99,
            ..Record::default()
        };
        let signer = evil_node.signer();
        let delta = gossip::Delta {
            owner: owner.into(),
            scope: "fra".into(),
            epoch: 1,
            records: signer.sign(&[record]),
            reset: true,
            ..gossip::Delta::default()
        };
        let certificates = vec![signer.certificate().clone()];
        let message = gossip::Exchange { deltas: vec![delta], certificates, ..gossip::Exchange::default() };
        gateway.take(message, std::slice::from_ref(&fra), &evil.name, 0);
        assert_eq!(gateway.stats.refused(refusal), 1);
    }
    let entry = gateway.find(Kind::INSTANCE, &fra, "host-a/i-1").unwrap();
    assert_eq!(entry.body, Bytes::from_static(b"healthy"));
}

#[test]
fn a_replayed_message_brings_nothing_back() {
    let control = core_for(&TestNode::new("ctl", "fra", &[Role::Control]), Limits::default(), 1);
    let edge = core_for(&TestNode::new("fra1-edge", "fra", &[Role::Edge]), Limits::default(), 1);
    control.publish_desired(1, vec![desired("a", 1, Some(b"old"))], 0).unwrap();
    let mut old = gossip::Exchange::default();
    control.deltas_for(&gossip::Exchange::default(), &[Scope::Global], &mut old);
    edge.take(old.clone(), &[Scope::Global], &control.name, 0);
    assert!(edge.find(Kind::CLUSTER, &Scope::Global, "a").is_some());
    control.publish_desired(1, vec![desired("a", 2, None)], 0).unwrap();
    exchange(&edge, &control, 0, || false);
    assert!(edge.find(Kind::CLUSTER, &Scope::Global, "a").is_none());
    edge.take(old, &[Scope::Global], &control.name, 0);
    assert!(edge.find(Kind::CLUSTER, &Scope::Global, "a").is_none());
    assert_eq!(edge.desired_version(&Scope::Global), (1, 2));
}

#[test]
fn a_removed_nodes_records_go_and_stay_away() {
    let control = core_for(&TestNode::new("ctl", "fra", &[Role::Control]), Limits::default(), 1);
    let edge = core_for(&TestNode::new("fra1-edge", "fra", &[Role::Edge]), Limits::default(), 1);
    let gone = core_for(&TestNode::new("was1-gw", "was", &[Role::Gateway]), Limits::default(), 1);
    gone.publish(Kind::NODE, &Scope::Global, "was1-gw", Bytes::from_static(b"facts"));
    gone.flush(0);
    exchange(&edge, &gone, 0, || false);
    assert_eq!(edge.entries(Kind::NODE).len(), 1);
    let denial = |body: Option<&[u8]>, revision| DesiredChange {
        kind: Kind::DENIAL,
        scope: Scope::Global,
        key: "was1-gw".into(),
        revision,
        body: body.map(Bytes::copy_from_slice),
    };
    control.publish_desired(1, vec![denial(Some(b"\xffremoved"), 1)], 0).unwrap();
    exchange(&edge, &control, 0, || false);
    assert!(edge.entries(Kind::NODE).is_empty());
    exchange(&edge, &gone, 0, || false);
    assert!(edge.entries(Kind::NODE).is_empty());
    assert!(edge.stats.refused(Refusal::Denied) > 0);
    // It may join again; what it said before stays denied.
    let before = |before_epoch| {
        let denial = Denial { before_epoch, ..Denial::default() };
        atoll_wire::Message::encode_to_vec(&denial)
    };
    for (before_epoch, revision, known) in [(2, 2, 0), (1, 3, 1), (2, 4, 0)] {
        control.publish_desired(1, vec![denial(Some(&before(before_epoch)), revision)], 0).unwrap();
        exchange(&edge, &control, 0, || false);
        exchange(&edge, &gone, 0, || false);
        assert_eq!(edge.entries(Kind::NODE).len(), known, "before {before_epoch}");
    }
    control.publish_desired(1, vec![denial(None, 5)], 0).unwrap();
    exchange(&edge, &control, 0, || false);
    exchange(&edge, &gone, 0, || false);
    assert_eq!(edge.entries(Kind::NODE).len(), 1);
}

/// 60 nodes in three regions; a fifth of all messages lost; a region cut off for a while.
#[test]
fn sixty_nodes_agree_despite_loss_and_a_partition() {
    let mut rng = StdRng::seed_from_u64(20);
    let mut nodes = vec![TestNode::new("ctl", "fra", &[Role::Control])];
    for n in 0..59 {
        let region = ["fra", "was", "sin"][n % 3];
        let role = [Role::Gateway, Role::Host, Role::Edge, Role::Host][n / 3 % 4];
        nodes.push(TestNode::new(&format!("{region}-{n}"), region, &[role]));
    }
    let cores: Vec<Core> = nodes.iter().map(|node| core_for(node, Limits::default(), 1)).collect();
    let mut revision = 0;
    for round in 0..110u64 {
        let cut_off = (20..50).contains(&round);
        if round < 60 {
            let writer = rng.random_range(1..60);
            write_something(&nodes[writer], &cores[writer], round);
            revision += 1;
            cores[0]
                .publish_desired(1, vec![desired(&format!("k{}", revision % 9), revision, Some(b"v"))], round)
                .unwrap();
        }
        for a in 0..60 {
            for scope in &cores[a].scopes {
                let peers: Vec<usize> =
                    (0..60).filter(|b| *b != a && cores[*b].scopes.contains(scope)).collect();
                let b = peers[rng.random_range(0..peers.len())];
                let parted = (nodes[a].region == "sin") != (nodes[b].region == "sin");
                if !(cut_off && parted) {
                    exchange(&cores[a], &cores[b], round, || rng.random::<f64>() < 0.2);
                }
            }
        }
    }
    for scope in ["", "fra", "was", "sin"].map(|name| Scope::parse(name).unwrap()) {
        let views: Vec<_> =
            cores.iter().filter(|core| core.scopes.contains(&scope)).map(|core| view(core, &scope)).collect();
        assert!(!views[0].is_empty());
        assert!(views.iter().all(|other| *other == views[0]), "{scope} differs");
    }
    assert_eq!(cores.iter().filter(|core| core.desired_version(&Scope::Global) == (1, 60)).count(), 31);
}

fn write_something(node: &TestNode, core: &Core, round: u64) {
    let scope = core.scopes[0].clone();
    let kind = match scope {
        Scope::Global => Kind::NODE,
        Scope::Region(_) => Kind::REGION_NODE,
    };
    core.publish(kind, &scope, &node.name, Bytes::from(round.to_string()));
    if node.roles.has(Role::Host) {
        let key = format!("{}/i-{}", node.name, round % 3);
        if round.is_multiple_of(5) {
            core.withdraw(Kind::INSTANCE, &scope, &key);
        } else {
            core.publish(Kind::INSTANCE, &scope, &key, Bytes::from(round.to_string()));
        }
    }
    core.flush(round);
}

fn view(core: &Core, scope: &Scope) -> BTreeMap<(u32, String, String), (u64, Bytes)> {
    let kinds = [Kind::NODE, Kind::REGION_NODE, Kind::INSTANCE, Kind::CLUSTER];
    let all = kinds.into_iter().flat_map(|kind| core.entries(kind)).filter(|entry| entry.scope == *scope);
    all.map(|entry| {
        ((entry.kind.0, entry.owner.to_string(), entry.key.to_string()), (entry.version, entry.body.clone()))
    })
    .collect()
}
