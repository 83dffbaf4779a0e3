//! What the cache did, for each app.

use super::status::CacheStatus;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The words of [`CacheStatus::word`].
pub(crate) const WORDS: [&str; 8] =
    ["hit", "stale", "miss", "collapsed", "revalidated", "expired", "pass", "bypass"];

/// An app's requests, by what the cache did.
#[derive(Debug, Default)]
pub(crate) struct AppCounts([AtomicU64; WORDS.len()]);

impl AppCounts {
    pub(crate) fn count(&self, status: &CacheStatus) {
        let word = status.word();
        if let Some(place) = WORDS.iter().position(|known| *known == word) {
            self.0[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each word and its requests.
    pub(crate) fn read(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        WORDS.into_iter().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// The counts of the apps that the edge knows. They live as long as a cluster of the app does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Arc<Mutex<HashMap<Arc<str>, Weak<AppCounts>>>>);

impl Counts {
    /// Those of an app (`org/app`).
    pub(crate) fn of(&self, app: &str) -> Arc<AppCounts> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = known.get(app).and_then(Weak::upgrade) {
            return counts;
        }
        if known.len() == known.capacity() {
            known.retain(|_, counts| counts.strong_count() > 0);
        }
        let counts = Arc::default();
        known.insert(app.into(), Arc::downgrade(&counts));
        counts
    }

    /// The apps whose name begins so, with their counts.
    pub(crate) fn beginning(&self, prefix: &str) -> Vec<(Arc<str>, Arc<AppCounts>)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = known.iter().filter(|(app, _)| app.starts_with(prefix));
        let mut found: Vec<_> =
            named.filter_map(|(app, counts)| Some((Arc::clone(app), counts.upgrade()?))).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }
}

/// How much of what a service is asked for can be kept for all: whether it is worth to ask another edge first.
#[derive(Debug)]
pub(crate) struct Shareable(AtomicU32);

/// All of it, in the units of [`Shareable`].
const ALL: u32 = 1 << 16;
/// Each answer moves the estimate by this part of the way.
const STEP: u32 = 16;
/// Below this part another edge is not asked: it would be a detour, most times.
const WORTH: u32 = ALL / 8;

impl Default for Shareable {
    /// Nothing is known: it is tried.
    fn default() -> Self {
        Self(AtomicU32::new(ALL))
    }
}

impl Shareable {
    /// Learns from one answer. Two at once may count as one.
    pub(crate) fn learn(&self, shared: bool) {
        let known = self.0.load(Ordering::Relaxed);
        let next = if shared { known + (ALL - known).div_ceil(STEP) } else { known - known.div_ceil(STEP) };
        self.0.store(next.min(ALL), Ordering::Relaxed);
    }

    /// Whether another edge is worth asking.
    pub(crate) fn is_worth_asking(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= WORTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::status::Forwarded;

    #[test]
    fn counts_live_as_long_as_their_app() {
        let all = Counts::default();
        let shop = all.of("o/shop");
        shop.count(&CacheStatus::hit(1));
        shop.count(&CacheStatus::forwarded(Forwarded::Method));
        let _other = all.of("acme/x");
        let read: HashMap<_, _> = all.of("o/shop").read().collect();
        assert_eq!((read["hit"], read["bypass"], read["miss"]), (1, 1, 0));
        assert_eq!(all.beginning("o/").len(), 1);
        drop(shop);
        assert!(all.beginning("o/").is_empty());
    }

    #[test]
    fn every_word_is_counted() {
        let forwarded = [
            Forwarded::Bypass,
            Forwarded::Method,
            Forwarded::UriMiss,
            Forwarded::VaryMiss,
            Forwarded::Stale,
            Forwarded::Request,
        ];
        let each = forwarded.map(CacheStatus::forwarded);
        let variants = each.iter().flat_map(|status| {
            [
                *status,
                CacheStatus { stored: true, ..*status },
                CacheStatus { collapsed: true, ..*status },
                CacheStatus { forwarded_status: Some(304), ..*status },
            ]
        });
        for status in variants.chain([CacheStatus::hit(1), CacheStatus::hit(-1)]) {
            assert!(WORDS.contains(&status.word()), "{status:?}");
        }
    }

    #[test]
    fn what_is_mostly_for_one_client_goes_no_detour_until_it_changes() {
        let learned = Shareable::default();
        assert!(learned.is_worth_asking());
        (0..200).for_each(|_| learned.learn(false));
        assert!(!learned.is_worth_asking());
        (0..3).for_each(|_| learned.learn(true));
        assert!(learned.is_worth_asking());
        (0..1_000).for_each(|_| learned.learn(true));
        (0..20).for_each(|_| learned.learn(false));
        assert!(learned.is_worth_asking(), "a few are no rule");
    }
}
