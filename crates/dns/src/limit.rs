//! How many answers one network gets over UDP, where the sender's address is anybody's to write.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Networks share a bucket where their hashes meet; 16,384 of 16 bytes are 256 KiB, whoever asks.
const BUCKETS: usize = 16_384;
/// Of the queries over the limit one in so many is told to come over TCP, so that a client whose network
/// somebody else uses is not shut out. The others get nothing.
const SLIP: u32 = 2;

/// What to do with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it.
    Answer,
    /// Say that the answer did not fit: no longer than the query, and to be asked again over TCP.
    Truncate,
    /// Say nothing.
    Drop,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f32,
    over: u32,
    seen_ms: u64,
}

/// A token bucket for each network: IPv4 /24, IPv6 /56.
#[derive(Debug)]
pub struct Limiter {
    per_second: f32,
    buckets: Vec<Bucket>,
    // Keyed anew in each process: nobody can choose networks that share a bucket.
    hasher: RandomState,
}

impl Limiter {
    /// So many answers in a second, and twice that at once. 0: no limit.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let per_second = f32::from(u16::try_from(per_second).unwrap_or(u16::MAX));
        let full = Bucket { tokens: per_second * 2.0, over: 0, seen_ms: 0 };
        let size = if per_second > 0.0 { BUCKETS } else { 0 };
        Self { per_second, buckets: vec![full; size], hasher: RandomState::new() }
    }

    /// What to do with a query from `source` at `now`, which is counted from any fixed moment.
    pub fn admit(&mut self, source: IpAddr, now: Duration) -> Verdict {
        let hash = self.hasher.hash_one(network(source));
        let len = self.buckets.len() as u64;
        let slot = hash.checked_rem(len).and_then(|slot| usize::try_from(slot).ok());
        let Some(bucket) = slot.and_then(|slot| self.buckets.get_mut(slot)) else { return Verdict::Answer };
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let passed = Duration::from_millis(now_ms.saturating_sub(bucket.seen_ms)).as_secs_f32();
        bucket.tokens = (bucket.tokens + passed * self.per_second).min(self.per_second * 2.0);
        bucket.seen_ms = bucket.seen_ms.max(now_ms);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Verdict::Answer;
        }
        bucket.over = bucket.over.wrapping_add(1);
        if bucket.over.is_multiple_of(SLIP) { Verdict::Truncate } else { Verdict::Drop }
    }
}

fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !0 << 8)),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !0 << 72)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(limiter: &mut Limiter, source: &str, queries: usize, now_ms: u64) -> (usize, usize, usize) {
        let source = source.parse().unwrap();
        let verdicts: Vec<Verdict> =
            (0..queries).map(|_| limiter.admit(source, Duration::from_millis(now_ms))).collect();
        let count = |wanted| verdicts.iter().filter(|verdict| **verdict == wanted).count();
        (count(Verdict::Answer), count(Verdict::Truncate), count(Verdict::Drop))
    }

    #[test]
    fn a_network_gets_its_share_and_no_more() {
        let mut limiter = Limiter::new(10);
        assert_eq!(admitted(&mut limiter, "192.0.2.1", 40, 0), (20, 10, 10));
        assert_eq!(admitted(&mut limiter, "192.0.2.200", 2, 0), (0, 1, 1), "the same network");
        assert_eq!(admitted(&mut limiter, "192.0.3.1", 5, 0).0, 5, "another one");
        assert_eq!(admitted(&mut limiter, "192.0.2.1", 10, 500).0, 5, "half a second's worth");
        assert_eq!(admitted(&mut limiter, "192.0.2.1", 100, 3_600_000).0, 20, "no more is saved up");
    }

    #[test]
    fn an_ipv6_site_is_one_network() {
        let mut limiter = Limiter::new(1);
        assert_eq!(admitted(&mut limiter, "2001:db8:0:ff::1", 9, 0).0, 2);
        assert_eq!(admitted(&mut limiter, "2001:db8:0:1::9", 9, 0).0, 0);
        assert_eq!(admitted(&mut limiter, "2001:db8:0:100::9", 1, 0).0, 1);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert_eq!(network("::ffff:192.0.2.9".parse().unwrap()), "192.0.2.0".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn time_that_runs_backwards_gives_nothing_away() {
        let mut limiter = Limiter::new(1);
        assert_eq!(admitted(&mut limiter, "192.0.2.1", 5, 10_000).0, 2);
        assert_eq!(admitted(&mut limiter, "192.0.2.1", 5, 0).0, 0);
        assert_eq!(admitted(&mut limiter, "192.0.2.1", 5, 10_000).0, 0);
    }

    #[test]
    fn zero_is_no_limit() {
        assert_eq!(admitted(&mut Limiter::new(0), "192.0.2.1", 5_000, 0).0, 5_000);
    }
}
