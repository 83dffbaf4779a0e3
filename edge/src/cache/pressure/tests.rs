use super::*;
use proptest::prelude::*;
use tokio::sync::mpsc;

const LIMIT: u64 = 1000;

fn reading(used: u64) -> Reading {
    Reading { used, limit: LIMIT }
}

#[test]
fn what_is_over_is_given_back_and_comes_again_slowly() {
    let mut pressure = Pressure::new(160);
    assert_eq!(pressure.next(reading(850), 160), 160);
    assert_eq!(pressure.next(reading(870), 160), 140);
    assert_eq!(pressure.next(reading(870), 160), 140, "not given back yet");
    assert_eq!(pressure.next(reading(850), 140), 140);
    assert_eq!(pressure.next(reading(800), 140), 140, "neither short nor plenty");
    assert_eq!(pressure.next(reading(799), 140), 150);
    assert_eq!(pressure.next(reading(100), 140), 160);
    assert_eq!(pressure.next(reading(100), 160), 160);
    assert_eq!(pressure.next(reading(949), 160), 61);
    assert_eq!(pressure.next(reading(950), 160), 10);
    assert_eq!(pressure.next(reading(u64::MAX), 0), 10);
    assert_eq!(pressure.next(Reading { used: 5, limit: 0 }, 10), 10);
    // What is not filled yet must fit into what is free.
    let mut pressure = Pressure::new(1600);
    assert_eq!(pressure.next(reading(700), 0), 150);
    assert_eq!(pressure.next(reading(840), 140), 150);
}

#[tokio::test]
async fn a_full_process_has_a_small_cache() {
    let (apply, mut applied) = mpsc::channel(1);
    let following = follow(1600, 1, move |capacity| apply.try_send(capacity).unwrap(), || 1600);
    tokio::select! {
        () = following => unreachable!("it never ends"),
        capacity = applied.recv() => assert_eq!(capacity, Some(100)),
    }
}

/// A process whose cache is filled up to its capacity, and at most by so much between two readings.
fn run(pressure: &mut Pressure, cache: &mut u64, other: u64, wanted: u64, filled: u64, limit: u64) -> u64 {
    let capacity = pressure.next(Reading { used: other + *cache, limit }, *cache);
    *cache = (*cache + filled).min(wanted).min(capacity);
    capacity
}

proptest! {
    #[test]
    fn bounds_hold(max: u64, steps in proptest::collection::vec(any::<(u64, u64, u64)>(), 0..50)) {
        let mut pressure = Pressure::new(max);
        for (used, limit, bytes) in steps {
            let capacity = pressure.next(Reading { used, limit }, bytes);
            prop_assert!((max / PART..=max).contains(&capacity));
        }
    }

    /// The more is used, the less the cache gets.
    #[test]
    fn more_used_is_less_cache(
        max in 0u64..2000, before in proptest::collection::vec((0u64..1100, 0u64..2000), 0..10),
        (less, more) in (0u64..1100, 0u64..1100), bytes in 0u64..2000,
    ) {
        let mut pressure = Pressure::new(max);
        for (used, bytes) in before {
            pressure.next(reading(used), bytes);
        }
        let was = pressure.capacity;
        let of = |used| pressure.clone().next(reading(used), bytes);
        let (low, high) = (of(less.max(more)), of(less.min(more)));
        prop_assert!(low <= high);
        prop_assert!(less.max(more) <= 850 || low <= was);
        prop_assert!(high <= was || high - was <= max.div_ceil(PART));
    }

    #[test]
    fn it_recovers(max in 0u64..1_000_000, used in proptest::collection::vec(0u64..1100, 0..20)) {
        let mut pressure = Pressure::new(max);
        for used in used {
            pressure.next(reading(used), max);
        }
        for _ in 0..PART {
            pressure.next(Reading { used: 0, limit: u64::MAX }, 0);
        }
        prop_assert_eq!(pressure.capacity, max);
    }

    /// Whatever the rest of the process and the clients want, as long as they stay so the capacity settles; and where the rest
    /// leaves room for the smallest cache, memory is not short then.
    #[test]
    fn it_settles(
        max in 16u64..200_000, phases in proptest::collection::vec((0u64..110_000, 0u64..200_000, 1u64..50_000), 1..5),
    ) {
        let limit = 100_000;
        let mut pressure = Pressure::new(max);
        let mut cache = 0;
        for (other, wanted, filled) in phases {
            for _ in 0..200_000 / filled.max(1000) + 200 {
                run(&mut pressure, &mut cache, other, wanted, filled.max(1000), limit);
            }
            let settled = pressure.capacity;
            for _ in 0..50 {
                prop_assert_eq!(run(&mut pressure, &mut cache, other, wanted, filled.max(1000), limit), settled);
            }
            let used = other + cache;
            prop_assert!(used <= percent(limit, HIGH) || settled == max / PART, "{} used", used);
        }
    }
}
