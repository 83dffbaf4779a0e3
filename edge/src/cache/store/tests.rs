#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::thread;

type Plain = Store<u64, u64>;

const OWNERS: [&str; 3] = ["a", "b", "c"];

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Asks for it, and stores it where it is not there. Whether it was.
fn ask(store: &Plain, key: u64, weight: u64, owner: &str) -> bool {
    let found = store.get(&key);
    assert!(found.is_none_or(|value| value == key));
    if found.is_none() {
        store.insert(key, key, weight, owner);
    }
    found.is_some()
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64, u64, usize),
    Get(u64),
    Remove(u64),
    Capacity(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..40u64;
    prop_oneof![
        6 => (key.clone(), 0..60u64, 0..OWNERS.len()).prop_map(|(key, weight, owner)| Step::Insert(key, weight, owner)),
        6 => key.clone().prop_map(Step::Get),
        1 => key.prop_map(Step::Remove),
        1 => (0..500u64).prop_map(Step::Capacity),
    ]
}

proptest! {
    #[test]
    fn it_is_a_map_that_forgets_within_its_bound(steps in prop::collection::vec(step(), 1..300)) {
        let store = Store::new(300, 8, 8);
        let mut model: HashMap<u64, (usize, u64, usize)> = HashMap::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert(key, weight, owner) => {
                    if store.insert(key, n, weight, OWNERS[owner]) {
                        prop_assert_eq!(store.peek(&key), Some(n));
                        model.insert(key, (n, weight.max(1), owner));
                    } else {
                        prop_assert_eq!(store.peek(&key), None);
                        model.remove(&key);
                    }
                }
                Step::Get(key) => {
                    let got = store.get(&key);
                    prop_assert!(got.is_none() || got == model.get(&key).map(|entry| entry.0));
                }
                Step::Remove(key) => {
                    prop_assert_eq!(store.remove(&key), model.remove(&key).is_some());
                    prop_assert_eq!(store.get(&key), None);
                }
                Step::Capacity(capacity) => {
                    store.set_capacity(capacity);
                    prop_assert_eq!(store.capacity(), capacity);
                }
            }
            model.retain(|key, _| store.peek(key).is_some());
            let weighs = |owner: Option<usize>| -> u64 {
                model.values().filter(|entry| owner.is_none_or(|owner| entry.2 == owner)).map(|entry| entry.1).sum()
            };
            prop_assert!(store.bytes() <= store.capacity());
            prop_assert_eq!((store.bytes(), store.len()), (weighs(None), model.len() as u64));
            for (owner, name) in OWNERS.iter().enumerate() {
                prop_assert_eq!(store.bytes_of(name), weighs(Some(owner)));
            }
            prop_assert_eq!(store.owners().iter().map(|owned| owned.bytes).sum::<u64>(), store.bytes());
            prop_assert_eq!(store.owners().iter().map(|owned| owned.entries).sum::<u64>(), store.len());
            prop_assert!(store.owners().iter().all(|owned| owned.entries > 0), "who has none is forgotten");
        }
    }
}

#[test]
fn what_is_there_is_found_until_it_is_removed() {
    let store = Store::new(1_000, 8, 8);
    assert!(store.insert("a", 1, 100, "o") && store.insert("b", 2, 50, "o"));
    assert_eq!((store.get(&"a"), store.peek(&"b"), store.get(&"c")), (Some(1), Some(2), None));
    assert!(store.insert("a", 3, 10, "p"), "another value, by another owner");
    assert_eq!(
        (store.get(&"a"), store.bytes(), store.bytes_of("o"), store.bytes_of("p")),
        (Some(3), 60, 50, 10)
    );
    assert!(store.remove(&"a") && !store.remove(&"a"));
    assert_eq!((store.get(&"a"), store.bytes(), store.len(), store.owners().len()), (None, 50, 1, 1));
    assert!(!store.insert("b", 4, 126, "o"), "more than an eighth");
    assert_eq!((store.get(&"b"), store.is_empty(), store.refused()), (None, true, 1));
}

#[test]
fn room_is_used() {
    let store = Plain::new(100_000, 8, 8);
    for key in 0..1_000 {
        ask(&store, key, 100, "o");
    }
    assert!(store.bytes() > 99_000, "{}", store.bytes());
}

#[test]
fn what_is_asked_for_once_does_not_sweep_out_what_is_asked_for_often() {
    let store = Plain::new(100_000, 64, 8);
    for key in (0..80).cycle().take(800) {
        ask(&store, key, 1_000, "o");
    }
    for key in 1_000..6_000 {
        ask(&store, key, 1_000, "o");
        ask(&store, key % 80, 1_000, "o");
    }
    let left = (0..80).filter(|key| store.peek(key).is_some()).count();
    assert!(left >= 75, "{left} of 80");
}

#[test]
fn a_large_one_does_not_sweep_out_many_small_ones() {
    let store = Plain::new(100_000, 64, 8);
    for key in (0..100).cycle().take(500) {
        ask(&store, key, 1_000, "o");
    }
    for _ in 0..3 {
        for key in 0..10 {
            ask(&store, 1_000 + key, 12_000, "o");
        }
    }
    let left = (0..100).filter(|key| store.peek(key).is_some()).count();
    assert!(left >= 90, "{left} of 100");
}

#[test]
fn who_scans_does_not_push_out_what_others_ask_for() {
    let store = Plain::new(1_000_000, 64, 8);
    let mut next = 10_000;
    let mut hits = 0;
    for round in 0..2_000u64 {
        // One of 300 hot ones, 300 kB of a share of 500, beside fifty that are asked for twice.
        hits += u64::from(ask(&store, round % 300, 1_000, "quiet")) * u64::from(round >= 300);
        for _ in 0..50 {
            ask(&store, next, 1_000, "loud");
            ask(&store, next, 1_000, "loud");
            next += 1;
        }
    }
    assert_eq!(hits, 1_700, "none of them went");
    assert_eq!(store.bytes_of("quiet"), 300_000);
    assert!(store.bytes_of("loud") > 600_000, "the rest may be used");
}

#[test]
fn who_comes_late_gets_its_share() {
    let store = Plain::new(1_000_000, 64, 8);
    for key in (0..1_000).cycle().take(10_000) {
        ask(&store, key, 1_000, "first");
    }
    assert!(store.bytes_of("first") > 990_000);
    for key in 10_000..11_000 {
        ask(&store, key, 1_000, "second");
    }
    let (first, second) = (store.bytes_of("first"), store.bytes_of("second"));
    assert!((480_000..=500_000).contains(&second), "{second}, though nothing was asked for twice");
    assert!((500_000..=520_000).contains(&first), "{first}");
    // And the third from both.
    for key in 20_000..21_000 {
        ask(&store, key, 1_000, "third");
    }
    assert!(
        store.owners().iter().all(|owned| (310_000..=350_000).contains(&owned.bytes)),
        "{:?}",
        store.owners()
    );
}

#[test]
fn a_new_owner_may_take_more_than_its_share_from_who_has_more() {
    let store = Plain::new(1_000_000, 64, 8);
    for owner in 0..100 {
        ask(&store, owner, 10, &owner.to_string());
    }
    for key in 1_000..2_100 {
        ask(&store, key, 1_000, "all");
    }
    assert!(store.insert(1, 1, 100_000, "1"), "its share is 10 kB, but most is one other's");
    assert_eq!(store.bytes_of("1"), 100_000);
    assert!((0..100).filter(|key| *key != 1).all(|key| store.peek(&key).is_some()));
}

#[test]
fn the_capacity_is_lowered_and_raised() {
    let store = Plain::new(1_000_000, 64, 8);
    for key in 0..1_000 {
        ask(&store, key, 1_000, OWNERS[key as usize % 3]);
    }
    store.set_capacity(100_500);
    assert_eq!(store.usage(), Usage { bytes: 100_000, entries: 100, capacity: 100_500 });
    assert!(store.owners().iter().all(|owned| (33..=34).contains(&owned.entries)), "{:?}", store.owners());
    store.set_capacity(0);
    assert!(store.is_empty() && !store.insert(1, 1, 1, "a"));
    store.set_capacity(10_000);
    assert!(store.insert(1, 1, 1_000, "a") && store.bytes() == 1_000);
}

/// Many threads at once; whatever they see holds.
#[test]
fn the_bound_holds_whatever_threads_do() {
    const MOST: u64 = 200_000;
    let store = Plain::new(MOST, 64, 8);
    let done = AtomicBool::new(false);
    let work = |seed: u64| {
        let mut random = Random(seed);
        for _ in 0..20_000 {
            let key = random.below(400);
            match random.below(20) {
                0 => {
                    store.remove(&key);
                }
                1 => store.set_capacity(MOST / 2 + random.below(MOST / 2)),
                2..10 => {
                    store.insert(key, key, random.below(3_000), OWNERS[random.below(3) as usize]);
                }
                _ => assert!(store.get(&key).is_none_or(|value| value == key)),
            }
            assert!(store.bytes() <= MOST);
        }
    };
    let watch = || {
        while !done.load(Ordering::Relaxed) {
            let Usage { bytes, capacity, .. } = store.usage();
            assert!(bytes <= capacity, "{bytes} of {capacity}");
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        scope.spawn(watch);
        let workers: Vec<_> = (1..=3).map(|seed| scope.spawn(move || work(seed))).collect();
        let ended: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    let usage = store.usage();
    assert!(usage.bytes <= usage.capacity);
    assert_eq!((usage.bytes, usage.entries), (store.bytes(), store.len()));
    assert_eq!((0..400).filter(|key| store.peek(key).is_some()).count() as u64, usage.entries);
    assert_eq!(store.owners().iter().map(|owned| owned.bytes).sum::<u64>(), usage.bytes);
    for key in 0..400 {
        store.remove(&key);
    }
    assert_eq!((store.bytes(), store.len(), store.owners()), (0, 0, Vec::new()));
}
