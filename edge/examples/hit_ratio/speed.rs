//! What a hit costs, for one thread and for two at once.

use super::workload::{Random, Zipf};
use atoll_edge::cache_store::Store;
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

const OBJECTS: u32 = 100_000;
const HITS: usize = 2_000_000;
/// Of so many runs the fastest: other work on the machine makes them slower, nothing makes them faster.
const RUNS: usize = 7;

/// As the edge's: bytes that clones share.
type Key = Arc<[u8]>;
type Value = Arc<u64>;

/// Nanoseconds a hit, and how often ours waited.
pub fn print() {
    let keys: Vec<Key> =
        (0..OBJECTS).map(|n| format!("host\0shop.example.com\0/articles/{n}").into_bytes().into()).collect();
    let ours: Store<Key, Value> = Store::new(1 << 40, OBJECTS as usize, 8);
    let moka: moka::sync::Cache<Key, Value> = moka::sync::Cache::new(u64::from(OBJECTS) * 2);
    for (n, key) in keys.iter().enumerate() {
        ours.insert(Arc::clone(key), Arc::new(n as u64), 100, "one");
        moka.insert(Arc::clone(key), Arc::new(n as u64));
    }
    moka.run_pending_tasks();
    let (zipf, mut random) = (Zipf::new(OBJECTS, 0.9), Random(3));
    let many: Vec<usize> = (0..1 << 20).map(|_| zipf.draw(&mut random) as usize).collect();
    println!(
        "\n| a hit | threads | moka, ns | ours, ns | ours waited, of {} hits |\n| --- | --- | --- | --- | --- |",
        HITS * RUNS
    );
    for (name, which) in [("one key", &[7][..]), ("Zipf 0.9 over 100,000 keys", &many)] {
        for threads in [1, 2] {
            let theirs = fastest(threads, which, |at| moka.get(&keys[at]).is_some());
            let before = ours.contended();
            let own = fastest(threads, which, |at| ours.get(&keys[at]).is_some());
            println!("| {name} | {threads} | {theirs:.0} | {own:.0} | {} |", ours.contended() - before);
        }
    }
}

fn fastest(threads: usize, which: &[usize], get: impl Fn(usize) -> bool + Sync) -> f64 {
    (0..RUNS).map(|_| time(threads, which, &get)).fold(f64::MAX, f64::min)
}

/// Nanoseconds that a thread needs for a hit, while all do the same.
fn time(threads: usize, which: &[usize], get: &(impl Fn(usize) -> bool + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let work = |thread: usize| {
        barrier.wait();
        let begun = Instant::now();
        for n in 0..HITS {
            assert!(black_box(get(which[(n + thread * 1_000) % which.len()])));
        }
        begun.elapsed().as_nanos() as f64 / HITS as f64
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let times = running.into_iter().map(|running| running.join().unwrap_or(f64::MAX));
        times.fold(0.0, f64::max)
    })
}
