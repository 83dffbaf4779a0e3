//! What a region says to the others about a cluster, and which gateway says it.

use crate::mix::{fnv, spread};
use crate::region::Health;
use atoll_model::NodeName;

/// A region's summary of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// None, some or all of those that should serve do.
    pub health: Health,
    /// ceil(log2(healthy instances)) + 1; 0 for none.
    pub capacity_bucket: u32,
}

impl Summary {
    /// No healthy instance.
    pub const NONE: Self = Self { health: Health::None, capacity_bucket: 0 };

    /// Of `healthy` instances among `expected` that should serve (those that start or drain are not
    /// expected to).
    #[must_use]
    pub const fn of(healthy: u32, expected: u32) -> Self {
        let health = match healthy {
            0 => Health::None,
            _ if healthy < expected => Health::Some,
            _ => Health::Full,
        };
        Self { health, capacity_bucket: bucket(healthy) }
    }
}

const fn bucket(healthy: u32) -> u32 {
    match healthy {
        0 => 0,
        // ceil(log2(n)) is the number of bits of n - 1.
        _ => u32::BITS - (healthy - 1).leading_zeros() + 1,
    }
}

/// The gateway that writes `cluster`'s summary among those alive: rendezvous hashing, so that all
/// agree without talking, and only a gone one's clusters move.
pub fn writer<'a>(cluster: &str, gateways: impl IntoIterator<Item = &'a NodeName>) -> Option<&'a NodeName> {
    let weight = |gateway: &NodeName| spread(fnv(&[gateway.as_str().as_bytes(), cluster.as_bytes()]));
    gateways.into_iter().max_by(|a, b| weight(a).cmp(&weight(b)).then_with(|| b.cmp(a)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let buckets: Vec<u32> = [0, 1, 2, 3, 4, 5, 8, 9, u32::MAX].into_iter().map(bucket).collect();
        assert_eq!(buckets, [0, 1, 2, 3, 3, 4, 4, 5, 33]);
    }

    proptest! {
        #[test]
        fn a_summary_says_what_it_counts(healthy in 0_u32..2_000, more in 0_u32..50) {
            let summary = Summary::of(healthy, healthy + more);
            prop_assert_eq!(summary.health == Health::None, healthy == 0);
            prop_assert_eq!(summary.health == Health::Full, healthy > 0 && more == 0);
            prop_assert!(healthy == 0 || 1_u64 << (summary.capacity_bucket - 1) >= u64::from(healthy));
        }

        #[test]
        fn only_a_gone_writers_clusters_move(count in 2_usize..8, gone in 0_usize..8, clusters in proptest::collection::vec("[a-z/]{1,20}", 1..40)) {
            let gateways: Vec<NodeName> = (0..count).map(|n| NodeName::new(format!("gw{n}")).unwrap()).collect();
            let gone = &gateways[gone % count];
            for cluster in clusters {
                let before = writer(&cluster, &gateways).unwrap();
                let after = writer(&cluster, gateways.iter().rev().filter(|g| *g != gone)).unwrap();
                prop_assert!(before == gone || before == after);
            }
        }
    }

    #[test]
    fn the_work_is_spread() {
        let gateways: Vec<NodeName> = (0..4).map(|n| NodeName::new(format!("gw{n}")).unwrap()).collect();
        let mut counts = [0_u32; 4];
        for n in 0..4_000 {
            let name = writer(&format!("default/app{n}/web"), &gateways).unwrap();
            counts[gateways.iter().position(|g| g == name).unwrap()] += 1;
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
        assert_eq!(writer("x", []), None);
    }
}
