#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::records::proof::{Batch, Proof};
use crate::signers::test_signer;
use atoll_model::Roles;
use bytes::Bytes;
use proptest::prelude::*;

pub(crate) fn log_id(owner: &str) -> LogId {
    LogId { owner: Owner::parse(owner).unwrap(), scope: Scope::Global }
}

pub(crate) fn verified(id: &LogId, epoch: u64, version: u64, key: &str, body: Option<u64>) -> Verified {
    let kind = Kind::CLUSTER;
    let entry = Entry {
        owner: id.owner.clone(),
        kind,
        scope: id.scope.clone(),
        key: key.into(),
        epoch,
        version,
        deleted: body.is_none(),
        body: body.map_or_else(Bytes::new, |body| Bytes::copy_from_slice(&body.to_be_bytes())),
        signer: Arc::new(test_signer("ctl", "fra", &Roles::NONE)),
        written_ms: 0,
    };
    let batch = Arc::new(Batch { signer: [0; 32], leaf_count: 1, signature: [0; 64] });
    let record = Bytes::from_static(&[0; 100]);
    let proof = Proof { record, batch, leaf_index: 0, path: Box::default() };
    Verified { entry: Arc::new(entry), proof: Arc::new(proof) }
}

fn view(store: &Store) -> Vec<(String, String, Bytes)> {
    let mut view: Vec<_> = store
        .entries(Kind::CLUSTER)
        .map(|entry| (entry.owner.to_string(), entry.key.to_string(), entry.body.clone()))
        .collect();
    view.sort();
    view
}

/// `to` asks `from`, with at most `budget` bytes an answer.
fn pull(from: &Store, to: &mut Store, budget: usize, now_ms: u64) -> bool {
    let scopes = [Scope::Global];
    let (deltas, more) = from.deltas(&to.digest(&scopes), &scopes, budget);
    for delta in deltas {
        let applied = to.apply(delta, now_ms);
        assert!(applied.refused.is_empty(), "{:?}", applied.refused);
    }
    more
}

fn store() -> Store {
    Store::new(Limits { tombstones: 3, tombstone_ms: 1000, ..Limits::default() })
}

#[test]
fn a_deletion_outlives_its_record_and_a_replay_brings_nothing_back() {
    let id = log_id("control");
    let (mut a, mut b) = (store(), store());
    a.write(&id, 1, vec![verified(&id, 1, 1, "x", Some(1))], 0);
    pull(&a, &mut b, 1 << 20, 0);
    let old = Delta {
        log: id.clone(),
        epoch: 1,
        after: 0,
        reset: false,
        floor: 0,
        more: false,
        records: vec![verified(&id, 1, 1, "x", Some(1))],
    };
    a.write(&id, 1, vec![verified(&id, 1, 2, "x", None)], 0);
    pull(&a, &mut b, 1 << 20, 0);
    assert!(view(&b).is_empty());
    let applied = b.apply(old.clone(), 0);
    assert_eq!(applied.refused, vec![Refusal::Outdated]);
    assert!(applied.changes.is_empty() && view(&b).is_empty());
    // Nor after the deletion was collected: something newer stands for the watermark then.
    a.write(&id, 1, vec![verified(&id, 1, 3, "y", Some(3))], 0);
    pull(&a, &mut b, 1 << 20, 0);
    assert_eq!(b.collect(2000).len(), 1);
    assert_eq!(b.apply(old, 2000).refused, vec![Refusal::Outdated]);
    assert_eq!(view(&b).len(), 1);
}

#[test]
fn who_is_behind_the_floor_is_reset_without_an_empty_moment() {
    let id = log_id("control");
    let (mut a, mut b) = (store(), store());
    let first: Vec<_> = (1..=40).map(|n| verified(&id, 1, n, &format!("k{n:02}"), Some(n))).collect();
    a.write(&id, 1, first, 0);
    pull(&a, &mut b, 1 << 20, 0);
    a.write(&id, 1, (41..=60).map(|n| verified(&id, 1, n, &format!("k{:02}", n - 40), None)).collect(), 0);
    a.write(&id, 1, vec![verified(&id, 1, 61, "new", Some(61))], 0);
    assert!(!a.collect(5000).is_empty());
    // In small pieces: what stays is never missing in between.
    let mut rounds = 0;
    while pull(&a, &mut b, 600, 5000) {
        rounds += 1;
        assert!(b.find(Kind::CLUSTER, &Scope::Global, "k30").is_some());
        assert!(rounds < 100);
    }
    assert!(rounds > 2);
    assert_eq!(view(&a), view(&b));
    assert_eq!(view(&b).len(), 21);
    assert!(!pull(&a, &mut b, 600, 5000));
    assert_eq!(b.watermark(&id).unwrap().version, 61);
    assert!(!b.watermark(&id).unwrap().resyncing);
}

#[test]
fn a_higher_epoch_replaces_what_was() {
    let id = log_id("control");
    let (mut a, mut b) = (store(), store());
    a.write(&id, 1, (1..=5).map(|n| verified(&id, 1, n, &format!("k{n}"), Some(n))).collect(), 0);
    pull(&a, &mut b, 1 << 20, 0);
    a.write(&id, 2, vec![verified(&id, 2, 1, "k1", Some(9)), verified(&id, 2, 2, "z", Some(9))], 0);
    assert_eq!(view(&a).len(), 2);
    pull(&a, &mut b, 1 << 20, 0);
    assert_eq!(view(&a), view(&b));
    // The lower epoch comes back from somebody who slept.
    let mut sleeper = store();
    sleeper.write(&id, 1, (1..=9).map(|n| verified(&id, 1, n, &format!("k{n}"), Some(n))).collect(), 0);
    pull(&sleeper, &mut b, 1 << 20, 0);
    assert_eq!(view(&a), view(&b));
}

#[test]
fn a_version_is_never_parted() {
    let id = log_id("control");
    let (mut a, mut b) = (store(), store());
    let same: Vec<_> = (0..50).map(|n| verified(&id, 1, 7, &format!("k{n}"), Some(n))).collect();
    a.write(&id, 1, same, 0);
    a.write(&id, 1, vec![verified(&id, 1, 8, "last", Some(1))], 0);
    assert!(pull(&a, &mut b, 1, 0));
    assert_eq!(view(&b).len(), 50);
    assert!(!pull(&a, &mut b, 1, 0));
    assert_eq!(view(&a), view(&b));
}

#[test]
fn a_watermark_is_not_believed_without_a_record() {
    let id = log_id("fra1-gw");
    let mut b = store();
    let empty = Delta {
        log: id.clone(),
        epoch: 9,
        after: 0,
        reset: true,
        floor: u64::MAX,
        more: false,
        records: Vec::new(),
    };
    assert!(!b.apply(empty, 0).moved);
    assert_eq!(b.watermark(&id), None);
    let gap = Delta {
        log: id.clone(),
        epoch: 1,
        after: 4,
        reset: false,
        floor: 0,
        more: false,
        records: vec![verified(&id, 1, 5, "k", Some(1))],
    };
    assert_eq!(b.apply(gap, 0).refused, vec![Refusal::Outdated]);
    assert_eq!(b.watermark(&id), None);
}

#[test]
fn unknown_kinds_have_a_quota_and_do_not_stop_the_rest() {
    let id = log_id("host-a");
    let mut b = Store::new(Limits { opaque_records: 2, ..Limits::default() });
    let opaque = |version: u64| {
        let mut record = verified(&id, 1, version, &format!("k{version}"), Some(1));
        Arc::make_mut(&mut record.entry).kind = Kind(1 << 16 | 3 << 8 | 200);
        record
    };
    let records = vec![opaque(1), opaque(2), opaque(3), verified(&id, 1, 4, "known", Some(1)), opaque(5)];
    let delta = Delta { log: id.clone(), epoch: 1, after: 0, reset: true, floor: 0, more: false, records };
    let applied = b.apply(delta, 0);
    assert_eq!(applied.refused, vec![Refusal::Quota, Refusal::Quota]);
    assert_eq!(b.len(), 3);
    assert_eq!(b.watermark(&id).unwrap().version, 5);
}

/// What a reset leaves out is taken for deleted; who lies about that must not let a removed node in.
#[test]
fn a_reset_that_withholds_a_denial_does_not_take_it_back() {
    let id = log_id("control");
    let denial = |epoch| {
        let mut record = verified(&id, epoch, 1, "edge-a", Some(1));
        Arc::make_mut(&mut record.entry).kind = Kind::DENIAL;
        record
    };
    let delta = |epoch, reset, floor, records| Delta {
        log: id.clone(),
        epoch,
        after: 0,
        reset,
        floor,
        more: false,
        records,
    };
    let mut b = store();
    b.apply(delta(1, false, 0, vec![denial(1), verified(&id, 1, 2, "k", Some(1))]), 0);
    let newest = vec![verified(&id, 1, 3, "l", Some(1))];
    assert_eq!(b.apply(delta(1, true, u64::MAX, newest), 0).dropped.len(), 1, "it is `k`");
    assert!(b.find(Kind::DENIAL, &Scope::Global, "edge-a").is_some());
    // It is handed on, too.
    let mut c = store();
    pull(&b, &mut c, usize::MAX, 0);
    assert!(c.find(Kind::DENIAL, &Scope::Global, "edge-a").is_some());
    // Another store of control's knows nothing of it.
    b.apply(delta(2, true, 0, vec![verified(&id, 2, 1, "k", Some(1))]), 0);
    assert!(b.find(Kind::DENIAL, &Scope::Global, "edge-a").is_none());
}

#[test]
fn a_nodes_records_have_a_quota_in_bytes_and_controls_have_not() {
    let size = verified(&log_id("host-a"), 1, 1, "k", Some(1)).bytes();
    for (owner, kept) in [("host-a", 2), ("control", 4)] {
        let id = log_id(owner);
        let mut b = Store::new(Limits { node_bytes: 2 * size, ..Limits::default() });
        let mut take = |after: u64, records: Vec<Verified>| {
            let delta =
                Delta { log: id.clone(), epoch: 1, after, reset: false, floor: 0, more: false, records };
            let refused = b.apply(delta, 0).refused.len();
            (refused, b.len())
        };
        let told = (1..=4).map(|version| verified(&id, 1, version, &format!("k{version}"), Some(1)));
        assert_eq!(take(0, told.collect()), (4 - kept, kept));
        // What it has it may change and take back.
        let changed = vec![verified(&id, 1, 5, "k1", Some(2)), verified(&id, 1, 6, "k2", None)];
        assert_eq!(take(4, changed), (0, kept));
    }
}

/// It was on its way when what it tells was deleted, and comes between two parts of a reset by one who no longer has the deletion.
#[test]
fn what_is_told_late_into_a_reset_does_not_outlive_its_deletion() {
    let id = log_id("control");
    let (mut a, mut b) = (store(), store());
    let write = |a: &mut Store, version, key, body| {
        a.write(&id, 1, vec![verified(&id, 1, version, key, body)], 0);
    };
    write(&mut a, 1, "kept", Some(1));
    write(&mut a, 2, "deleted", Some(2));
    let late = Delta { more: true, ..a.deltas(&[], &[Scope::Global], usize::MAX).0.remove(0) };
    write(&mut a, 3, "deleted", None);
    write(&mut a, 4, "other", None);
    assert_eq!(a.collect(2000).len(), 1);
    assert!(pull(&a, &mut b, 1, 2000), "it has a first part");
    assert_eq!(b.apply(late, 2000).kept.len(), 1);
    while pull(&a, &mut b, usize::MAX, 2000) {}
    assert_eq!(view(&b), view(&a));
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        owner: usize,
        key: u8,
        body: Option<u64>,
    },
    NewEpoch {
        owner: usize,
    },
    Exchange {
        from: usize,
        to: usize,
        budget: usize,
    },
    /// Remembered, to be delivered late.
    Answer {
        from: usize,
        to: usize,
    },
    Deliver {
        index: usize,
        to: usize,
    },
    Collect {
        node: usize,
    },
    Restart {
        node: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..2usize, 0..6u8, proptest::option::weighted(0.6, any::<u64>()))
            .prop_map(|(owner, key, body)| Step::Write { owner, key, body }),
        1 => (0..2usize).prop_map(|owner| Step::NewEpoch { owner }),
        5 => (0..4usize, 0..4usize, 1..900usize).prop_map(|(from, to, budget)| Step::Exchange { from, to, budget }),
        3 => (0..4usize, 0..4usize).prop_map(|(from, to)| Step::Answer { from, to }),
        3 => (0..20usize, 0..4usize).prop_map(|(index, to)| Step::Deliver { index, to }),
        2 => (0..4usize).prop_map(|node| Step::Collect { node }),
        1 => (2..4usize).prop_map(|node| Step::Restart { node }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// Nodes 0 and 1 own a log each. Whatever is lost, repeated, cut or late: at the end all hold what
    /// the owners wrote last, and nothing else.
    #[test]
    fn any_order_loss_and_repetition_ends_in_the_model(steps in proptest::collection::vec(step(), 0..120)) {
        let ids = [log_id("fra1-a"), log_id("control")];
        let mut stores: Vec<Store> = (0..4).map(|_| store()).collect();
        let mut model: Vec<BTreeMap<String, u64>> = vec![BTreeMap::new(); 2];
        let mut place = [(1u64, 0u64); 2];
        let mut late: Vec<Delta> = Vec::new();
        for (now, step) in steps.into_iter().enumerate() {
            let now = now as u64 * 400;
            match step {
                Step::Write { owner, key, body } => {
                    let key = format!("k{key}");
                    place[owner].1 += 1;
                    let (epoch, version) = place[owner];
                    let record = verified(&ids[owner], epoch, version, &key, body);
                    stores[owner].write(&ids[owner], epoch, vec![record], now);
                    match body {
                        Some(body) => model[owner].insert(key, body),
                        None => model[owner].remove(&key),
                    };
                }
                Step::NewEpoch { owner } => {
                    place[owner] = (place[owner].0 + 1, 1);
                    let (epoch, version) = place[owner];
                    let record = verified(&ids[owner], epoch, version, "start", Some(epoch));
                    stores[owner].write(&ids[owner], epoch, vec![record], now);
                    model[owner] = BTreeMap::from([("start".to_owned(), epoch)]);
                }
                Step::Exchange { from, to, budget } => {
                    let mut target = std::mem::take(&mut stores[to]);
                    if from != to {
                        pull(&stores[from], &mut target, budget, now);
                    }
                    stores[to] = target;
                }
                Step::Answer { from, to } => {
                    let digest = stores[to].digest(&[Scope::Global]);
                    late.extend(stores[from].deltas(&digest, &[Scope::Global], 400).0);
                }
                Step::Deliver { index, to } => {
                    if let Some(delta) = late.get(index) {
                        stores[to].apply(delta.clone(), now);
                    }
                }
                Step::Collect { node } => { stores[node].collect(now); }
                Step::Restart { node } => {
                    let before = view(&stores[node]);
                    let mut fresh = store();
                    for (id, log) in stores[node].logs() {
                        fresh.begin_restore(id, log.watermark());
                        log.records().for_each(|record| fresh.restore_record(record.clone(), now));
                        fresh.end_restore(id, log.watermark(), true);
                    }
                    let resyncing = stores[node].logs().any(|(_, log)| log.watermark().resyncing);
                    if !resyncing {
                        prop_assert_eq!(before, view(&fresh));
                    }
                    stores[node] = fresh;
                }
            }
        }
        // Quiet: everybody asks everybody until nothing moves, and as the driver does goes on with one that has more: else one who is
        // behind could end, each time, what another has begun.
        for _ in 0..40 {
            for to in 0..4 {
                for from in (0..4).filter(|from| *from != to) {
                    let mut target = std::mem::take(&mut stores[to]);
                    while pull(&stores[from], &mut target, 700, 1_000_000) {}
                    stores[to] = target;
                }
            }
        }
        let mut wanted: Vec<(String, String, Bytes)> = Vec::new();
        for (owner, entries) in model.iter().enumerate() {
            for (key, body) in entries {
                let body = Bytes::copy_from_slice(&body.to_be_bytes());
                wanted.push((ids[owner].owner.to_string(), key.clone(), body));
            }
        }
        wanted.sort();
        for store in &stores {
            prop_assert_eq!(&view(store), &wanted);
        }
    }
}
