//! What one owner's requests do to another's hits.

use super::workload::{Random, Zipf};
use atoll_edge::cache_store::Store;

const CAPACITY: u64 = 40_000_000;
const OBJECTS: u32 = 50_000;
const REQUESTS: u64 = 300_000;

/// Hits of an owner whose requests are Zipf 0.9, beside one that asks for everything once.
pub fn print() {
    println!(
        "\n| requests of one who scans, for each of the other's | the other's hits %, half of the store for each | shares | one owner, no shares |"
    );
    println!("| --- | --- | --- | --- |");
    for loud in [0, 1, 50] {
        let apart = hits(loud, CAPACITY / 2, None);
        let (shared, alone) = (hits(loud, CAPACITY, Some("loud")), hits(loud, CAPACITY, Some("quiet")));
        println!("| {loud} | {apart:.1} | {shared:.1} | {alone:.1} |");
    }
}

/// `scanner` scans in the same store as the owner `quiet`. None: elsewhere.
fn hits(loud: u64, capacity: u64, scanner: Option<&str>) -> f64 {
    let store: Store<u64, ()> = Store::new(capacity, 1_024, 8);
    let (zipf, mut random, mut next, mut hits) =
        (Zipf::new(OBJECTS, 0.9), Random(1), u64::from(OBJECTS), 0u64);
    for n in 0..REQUESTS {
        let hit = ask(&store, u64::from(zipf.draw(&mut random)), "quiet");
        hits += u64::from(hit && n >= REQUESTS / 3);
        for _ in 0..loud {
            next += 1;
            scanner.iter().for_each(|scanner| _ = ask(&store, next, scanner));
        }
    }
    100.0 * hits as f64 / (REQUESTS - REQUESTS / 3) as f64
}

fn ask(store: &Store<u64, ()>, object: u64, owner: &str) -> bool {
    let hit = store.get(&object).is_some();
    if !hit {
        store.insert(object, (), 1_000 + Random(object).next() % 9_000, owner);
    }
    hit
}
