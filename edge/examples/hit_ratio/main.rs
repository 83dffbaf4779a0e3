//! How often the cache's store has what is asked for, beside LRU and moka's default, and what a hit costs. For docs/performance.md:
//!
//!     cargo run --release -p atoll-edge --example hit_ratio
//!
//! Objects are names and sizes; nothing of them is in memory. `REQUESTS` says how many there are in a workload (2,000,000).
#![allow(clippy::print_stdout, reason = "what it is for")]

mod rivals;
mod shares;
mod speed;
mod workload;

use rivals::{Cache, Lru, Moka, Ours};
use workload::Workload;

/// The cache's size, as a part of the bytes of all objects: one in so many.
const PARTS: [(u64, &str); 3] = [(1_000, "0.1 %"), (100, "1 %"), (20, "5 %")];

/// Hits of a hundred requests, and hit bytes of a hundred.
struct Ratio {
    objects: f64,
    bytes: f64,
}

fn main() {
    let requests = std::env::var("REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000_000);
    let sizes = workload::Sizes::new(requests);
    println!(
        "{} objects, {} GiB; {requests} requests, the first quarter not counted",
        workload::OBJECTS,
        sizes.total >> 30
    );
    println!("\n| workload | cache | LRU: objects, bytes % | moka | ours |\n| --- | --- | --- | --- | --- |");
    for workload in workload::all(requests) {
        for (part, label) in PARTS {
            row(&workload, label, sizes.total / part, &sizes);
        }
    }
    for (part, label) in PARTS {
        row(&workload::around(requests, sizes.total / part, &sizes), label, sizes.total / part, &sizes);
    }
    shares::print();
    speed::print();
}

fn row(workload: &Workload, label: &str, capacity: u64, sizes: &workload::Sizes) {
    print!("| {} | {label} |", workload.name);
    let lru = run(&mut Lru::new(capacity), workload, sizes);
    let moka = run(&mut Moka::new(capacity, sizes), workload, sizes);
    let ours = run(&mut Ours::new(capacity), workload, sizes);
    println!(
        " {:.1}, {:.1} | {:.1}, {:.1} | {:.1}, {:.1} |",
        lru.objects, lru.bytes, moka.objects, moka.bytes, ours.objects, ours.bytes
    );
}

fn run(cache: &mut impl Cache, workload: &Workload, sizes: &workload::Sizes) -> Ratio {
    let (mut hits, mut hit_bytes, mut bytes) = (0u64, 0, 0);
    let first = workload.requests.len() / 4;
    for (n, object) in workload.requests.iter().enumerate() {
        let size = sizes.of(*object);
        let hit = cache.get(*object);
        if !hit {
            cache.insert(*object, size);
        }
        if n >= first {
            bytes += size;
            hits += u64::from(hit);
            hit_bytes += size * u64::from(hit);
        }
    }
    let counted = workload.requests.len() - first;
    Ratio { objects: 100.0 * hits as f64 / counted as f64, bytes: 100.0 * hit_bytes as f64 / bytes as f64 }
}
