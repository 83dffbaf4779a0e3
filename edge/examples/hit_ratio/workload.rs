//! What is asked for, in which order, and how large it is. The same in every run.

use std::sync::Arc;

/// Objects that are asked for again; beyond them are those that are asked for once.
pub const OBJECTS: u32 = 1_000_000;

/// Numbers that look random (splitmix64).
pub struct Random(pub u64);

/// What is asked for more, the lower its number: the nth as often as `n` to the power of minus `skew`.
pub struct Zipf(Vec<f64>);

/// A list of requests, by object.
pub struct Workload {
    pub name: String,
    pub requests: Vec<u32>,
}

/// Of each object, bytes: lognormal around 12 KiB within 1 KiB and 1 MiB; one of a hundred larger than that, up to 32 MiB.
pub struct Sizes {
    each: Arc<[u32]>,
    /// Of the first [`OBJECTS`].
    pub total: u64,
}

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0, below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Zipf {
    pub fn new(objects: u32, skew: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=objects).map(|rank| {
            sum += f64::from(rank).powf(-skew);
            sum
        });
        Self(sums.collect())
    }

    pub fn draw(&self, random: &mut Random) -> u32 {
        let at = random.unit() * self.0.last().copied().unwrap_or(0.0);
        self.0.partition_point(|sum| *sum < at) as u32
    }
}

impl Sizes {
    pub fn new(requests: usize) -> Self {
        let each: Arc<[u32]> = (0..OBJECTS + requests as u32 + 1).map(size).collect();
        let total = each.iter().take(OBJECTS as usize).copied().map(u64::from).sum();
        Self { each, total }
    }

    pub fn of(&self, object: u32) -> u64 {
        u64::from(self.each[object as usize])
    }

    pub fn each(&self) -> Arc<[u32]> {
        Arc::clone(&self.each)
    }
}

fn size(object: u32) -> u32 {
    let mut random = Random(u64::from(object) ^ 0x5151_5151);
    let _first = random.next();
    if random.unit() < 0.01 {
        return (f64::from(1 << 20) / random.unit().max(1e-9)).min(f64::from(32 << 20)) as u32;
    }
    let normal =
        (-2.0 * random.unit().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * random.unit()).cos();
    ((12.0 * 1024.0 * (1.5 * normal).exp()) as u32).clamp(1 << 10, 1 << 20)
}

/// All but those that depend on the size of the cache.
pub fn all(requests: usize) -> Vec<Workload> {
    let zipf = Zipf::new(OBJECTS, 0.9);
    let mut all: Vec<Workload> = [0.7, 0.9, 1.1].into_iter().map(|skew| plain(requests, skew)).collect();
    all.push(scans(requests, &zipf));
    all.push(moving(requests, &zipf, "Zipf 0.9, another hot set 10 times", requests / 10, 50_000));
    all.push(moving(requests, &zipf, "Zipf 0.9, the hot set moves on by one each 500 requests", 500, 1));
    all.push(once(requests));
    all
}

fn plain(requests: usize, skew: f64) -> Workload {
    let (zipf, mut random) = (Zipf::new(OBJECTS, skew), Random(7));
    Workload {
        name: format!("Zipf {skew}"),
        requests: (0..requests).map(|_| zipf.draw(&mut random)).collect(),
    }
}

/// After 80,000 requests each time 20,000 for what is not asked for again.
fn scans(requests: usize, zipf: &Zipf) -> Workload {
    let (mut random, mut next) = (Random(8), OBJECTS);
    let draw = |n: usize| {
        if n % 100_000 < 80_000 {
            return zipf.draw(&mut random);
        }
        next += 1;
        next
    };
    Workload { name: "Zipf 0.9 with scans".into(), requests: (0..requests).map(draw).collect() }
}

fn moving(requests: usize, zipf: &Zipf, name: &str, each: usize, by: u32) -> Workload {
    let mut random = Random(9);
    let draw = |n: usize| (zipf.draw(&mut random) + (n / each) as u32 * by) % OBJECTS;
    Workload { name: name.into(), requests: (0..requests).map(draw).collect() }
}

/// A third of the requests are for what is asked for once: most of the objects.
fn once(requests: usize) -> Workload {
    let (zipf, mut random, mut next) = (Zipf::new(200_000, 0.9), Random(11), OBJECTS);
    let draw = |_| {
        if random.unit() > 0.35 {
            return zipf.draw(&mut random);
        }
        next += 1;
        next
    };
    Workload { name: "most objects asked for once".into(), requests: (0..requests).map(draw).collect() }
}

/// Around and around through a tenth more than the cache holds.
pub fn around(requests: usize, capacity: u64, sizes: &Sizes) -> Workload {
    let mut bytes = 0;
    let all = (0..OBJECTS).take_while(|object| {
        bytes += sizes.of(*object);
        bytes < capacity + capacity / 10
    });
    let all: Vec<u32> = all.collect();
    Workload {
        name: "a loop through 1.1 of the cache".into(),
        requests: all.iter().copied().cycle().take(requests).collect(),
    }
}
