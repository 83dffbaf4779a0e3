//! How often something was asked for lately, roughly: a count-min sketch that forgets.

use std::array::from_fn;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// More is not counted; nor is what is asked for most written to any more, so that workers do not take its memory from each other.
pub(super) const COUNT_MAX: u8 = 15;
/// Entries to a block: eight counters each.
const BLOCK_ENTRIES: usize = 8;
/// All counters are halved after so many counts an entry, and after half of that again. Measured: twice that is a point or two better in
/// small caches where what is asked for stays the same, and up to six worse where it changes.
const SAMPLES: u64 = 5;

/// Four rows of sixteen counters. What is counted of one key is in one line of the processor's cache.
#[repr(align(64))]
struct Block([AtomicU8; 64]);

/// Counts by hash. Counting needs no lock: of counts that race some may get lost, which an estimate bears.
pub(super) struct Sketch {
    /// A power of two of them.
    blocks: Vec<Block>,
    /// Counts since the counters were halved, with half of those from before.
    samples: AtomicU64,
}

impl Sketch {
    /// For about so many entries.
    pub(super) fn new(entries: usize) -> Self {
        let blocks = entries.div_ceil(BLOCK_ENTRIES).next_power_of_two();
        Self { blocks: (0..blocks).map(|_| Block::new()).collect(), samples: AtomicU64::new(0) }
    }

    /// Entries that it is large enough for.
    pub(super) fn entries(&self) -> usize {
        self.blocks.len() * BLOCK_ENTRIES
    }

    /// Makes it twice as large. What was counted stays.
    pub(super) fn grow(&mut self) {
        let copies: Vec<Block> = self.blocks.iter().map(Block::copy).collect();
        self.blocks.extend(copies);
    }

    /// Counts one more.
    pub(super) fn count(&self, hash: u64) {
        let counters = self.counters(hash);
        let counts = counters.map(|counter| counter.load(Ordering::Relaxed));
        let least = counts.into_iter().min().unwrap_or(COUNT_MAX);
        if least >= COUNT_MAX {
            return;
        }
        // The others are too high already, by what they share with other keys.
        for (counter, _) in counters.iter().zip(counts).filter(|(_, count)| *count == least) {
            counter.store(least + 1, Ordering::Relaxed);
        }
        let most = SAMPLES * self.entries() as u64;
        // Exactly one of those who count sees this number.
        if self.samples.fetch_add(1, Ordering::Relaxed) + 1 == most {
            self.halve();
            self.samples.fetch_sub(most / 2, Ordering::Relaxed);
        }
    }

    /// How often it was counted lately, at most [`COUNT_MAX`].
    pub(super) fn estimate(&self, hash: u64) -> u8 {
        self.counters(hash).map(|counter| counter.load(Ordering::Relaxed)).into_iter().min().unwrap_or(0)
    }

    /// The low half of the hash says the block, the next 16 bits a counter in each row. What is above them says the shard.
    fn counters(&self, hash: u64) -> [&AtomicU8; 4] {
        let block = &self.blocks[(hash & 0xffff_ffff) as usize & (self.blocks.len() - 1)];
        from_fn(|row| &block.0[row * 16 + ((hash >> (32 + 4 * row)) & 15) as usize])
    }

    fn halve(&self) {
        for counter in self.blocks.iter().flat_map(|block| &block.0) {
            counter.store(counter.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
    }
}

impl Block {
    fn new() -> Self {
        Self(from_fn(|_| AtomicU8::new(0)))
    }

    fn copy(&self) -> Self {
        Self(from_fn(|at| AtomicU8::new(self.0[at].load(Ordering::Relaxed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasher, RandomState};

    #[test]
    fn what_is_counted_is_at_least_estimated_and_survives_growth() {
        let random = RandomState::new();
        let mut sketch = Sketch::new(1 << 10);
        for n in 0..300u64 {
            (0..n % 10).for_each(|_| sketch.count(random.hash_one(n)));
        }
        let low = |sketch: &Sketch| {
            (0..300u64).filter(|n| u64::from(sketch.estimate(random.hash_one(*n))) < n % 10).count()
        };
        assert_eq!(low(&sketch), 0);
        sketch.grow();
        assert_eq!((low(&sketch), sketch.entries()), (0, 1 << 11));
        let of_others = (1_000..2_000u64).filter(|n| sketch.estimate(random.hash_one(*n)) > 2).count();
        assert!(of_others < 200, "{of_others} that were never counted");
    }

    #[test]
    fn what_is_not_asked_for_any_more_is_forgotten() {
        let random = RandomState::new();
        let sketch = Sketch::new(64);
        let hot = random.hash_one("hot");
        (0..100).for_each(|_| sketch.count(hot));
        assert_eq!(sketch.estimate(hot), COUNT_MAX);
        for n in 0..100_000u64 {
            sketch.count(random.hash_one(n));
        }
        // Others share its counters: not nothing, but no more than they.
        assert!(sketch.estimate(hot) < COUNT_MAX);
    }
}
