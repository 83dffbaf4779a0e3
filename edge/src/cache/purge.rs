//! Purges as ordered marks: an entry that was asked for before a mark that names it is not used after it, wherever it was then. Marks are
//! applied when an entry is looked at, not by a walk through the store.

use atoll_wire::record;
use std::collections::HashMap;

/// Marks of one app beyond which the oldest are folded into one that names all of the app.
const MARKS_MAX: usize = 10_000;

/// What a purge names, within one app.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum What {
    /// Everything.
    All,
    /// What carries this tag.
    Tag(Box<str>),
    /// Domain and path with query, exactly.
    Url(Box<str>, Box<str>),
    /// Paths that begin so, on every domain of the app.
    Prefix(Box<str>),
}

/// What purges look at in an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// `org/app`.
    pub(crate) app: &'a str,
    /// The domain it was asked for at.
    pub(crate) host: &'a str,
    /// Path with query.
    pub(crate) target: &'a str,
    /// Its tags.
    pub(crate) tags: &'a [Box<str>],
    /// The app's last mark that was known here when it was asked for at the origin.
    pub(crate) asked_at: u64,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// No purge names it.
    Kept,
    /// A soft one does: to be validated.
    Stale,
    /// It is gone.
    Gone,
}

/// The marks that are known here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Purges {
    /// Grows with each change.
    generation: u64,
    apps: HashMap<Box<str>, Marks>,
}

/// Of each thing that was named the last mark, hard and soft apart.
#[derive(Debug, Clone, Default)]
struct Marks {
    last: u64,
    hard: Named,
    soft: Named,
}

#[derive(Debug, Clone, Default)]
struct Named {
    all: u64,
    exact: HashMap<What, u64>,
    prefixes: Vec<(Box<str>, u64)>,
}

impl Purges {
    /// Grows with each change: what was looked at in this one needs no other look.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The app's last mark that was taken; 0 for none.
    pub(crate) fn last_of(&self, app: &str) -> u64 {
        self.apps.get(app).map_or(0, |marks| marks.last)
    }

    /// Takes what is new in an app's record. An address also means what `keyed` makes of its host and target: what is stored there, where
    /// the app leaves parameters out of its keys.
    pub(crate) fn apply(
        &mut self,
        app: &str,
        record: &record::Purges,
        keyed: impl Fn(&str, &str) -> Option<String>,
    ) {
        let before = self.last_of(app);
        if before < record.floor {
            self.take(app, What::All, record.floor, false);
        }
        for mark in record.marks.iter().filter(|mark| mark.seq > before) {
            use record::purge::What as Told;
            let what = match &mark.what {
                Some(Told::Tag(tag)) => What::Tag(tag.as_str().into()),
                Some(Told::Url(url)) => {
                    if let Some(target) = keyed(&url.host, &url.target) {
                        self.take(
                            app,
                            What::Url(url.host.as_str().into(), target.into()),
                            mark.seq,
                            mark.soft,
                        );
                    }
                    What::Url(url.host.as_str().into(), url.target.as_str().into())
                }
                Some(Told::Prefix(prefix)) => What::Prefix(prefix.as_str().into()),
                // Of a later version, and we can't tell what: too much rather than too little.
                Some(Told::All(_)) | None => What::All,
            };
            self.take(app, what, mark.seq, mark.soft);
        }
    }

    fn take(&mut self, app: &str, what: What, seq: u64, soft: bool) {
        self.generation += 1;
        let marks = self.apps.entry(app.into()).or_default();
        marks.last = marks.last.max(seq);
        let named = if soft { &mut marks.soft } else { &mut marks.hard };
        named.take(what, seq);
    }

    /// What marks after `asked_at` make of an entry.
    pub(crate) fn fate(&self, entry: Entry<'_>) -> Fate {
        let Some(marks) = self.apps.get(entry.app) else { return Fate::Kept };
        if marks.hard.last(entry) > entry.asked_at {
            Fate::Gone
        } else if marks.soft.last(entry) > entry.asked_at {
            Fate::Stale
        } else {
            Fate::Kept
        }
    }
}

impl Named {
    fn take(&mut self, what: What, seq: u64) {
        match what {
            What::All => self.all = self.all.max(seq),
            What::Prefix(prefix) => match self.prefixes.iter_mut().find(|(known, _)| *known == prefix) {
                Some((_, last)) => *last = seq.max(*last),
                None => self.prefixes.push((prefix, seq)),
            },
            exact => {
                let last = self.exact.entry(exact).or_default();
                *last = seq.max(*last);
            }
        }
        self.forget_old();
    }

    /// Too many: the older half becomes one that names everything, which purges too much rather than too little.
    fn forget_old(&mut self) {
        if self.exact.len() + self.prefixes.len() <= MARKS_MAX {
            return;
        }
        let mut all: Vec<u64> =
            self.exact.values().copied().chain(self.prefixes.iter().map(|(_, seq)| *seq)).collect();
        all.sort_unstable();
        let cut = all[all.len() / 2];
        self.exact.retain(|_, seq| *seq > cut);
        self.prefixes.retain(|(_, seq)| *seq > cut);
        self.all = self.all.max(cut);
    }

    /// The last mark that names the entry.
    fn last(&self, entry: Entry<'_>) -> u64 {
        let mut last = self.all;
        if !self.exact.is_empty() {
            let url = What::Url(entry.host.into(), entry.target.into());
            last = last.max(self.exact.get(&url).copied().unwrap_or(0));
            for tag in entry.tags {
                last = last.max(self.exact.get(&What::Tag(tag.clone())).copied().unwrap_or(0));
            }
        }
        let named = self.prefixes.iter().filter(|(prefix, _)| entry.target.starts_with(&**prefix));
        named.map(|(_, seq)| *seq).max().unwrap_or(0).max(last)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    const APP: &str = "default/shop";

    fn entry(asked_at: u64) -> Entry<'static> {
        static TAGS: std::sync::LazyLock<Vec<Box<str>>> =
            std::sync::LazyLock::new(|| vec!["red".into(), "42".into()]);
        Entry { app: APP, host: "shop.example", target: "/p/1?x=2", tags: &TAGS, asked_at }
    }

    fn with(marks: &[(u64, What, bool)]) -> Purges {
        let mut purges = Purges::default();
        for (seq, what, soft) in marks {
            purges.take(APP, what.clone(), *seq, *soft);
        }
        purges
    }

    #[test]
    fn each_form_names_its_own() {
        for (what, named) in [
            (What::All, true),
            (What::Tag("42".into()), true),
            (What::Tag("4".into()), false),
            (What::Url("shop.example".into(), "/p/1?x=2".into()), true),
            (What::Url("shop.example".into(), "/p/1".into()), false),
            (What::Url("other.example".into(), "/p/1?x=2".into()), false),
            (What::Prefix("/p/".into()), true),
            (What::Prefix("/q/".into()), false),
        ] {
            let purges = with(&[(5, what.clone(), false)]);
            assert_eq!(purges.fate(entry(4)), if named { Fate::Gone } else { Fate::Kept }, "{what:?}");
            assert_eq!(purges.fate(entry(5)), Fate::Kept, "asked for after it: {what:?}");
            assert_eq!(purges.fate(Entry { app: "acme/shop", ..entry(4) }), Fate::Kept);
        }
    }

    #[test]
    fn an_address_means_what_is_kept_of_it() {
        let url = record::PurgedUrl { host: "shop.example".to_owned(), target: "/p/1?utm=1&x=2".to_owned() };
        let mark = record::Purge { seq: 5, what: Some(record::purge::What::Url(url)), soft: false };
        let mut purges = Purges::default();
        purges.apply(APP, &record::Purges { floor: 0, marks: vec![mark] }, |host, target| {
            (host == "shop.example").then(|| target.replace("utm=1&", ""))
        });
        assert_eq!(purges.fate(entry(4)), Fate::Gone);
        assert_eq!(purges.fate(Entry { target: "/p/1?utm=1&x=2", ..entry(4) }), Fate::Gone);
        assert_eq!(purges.fate(Entry { target: "/p/1", ..entry(4) }), Fate::Kept);
    }

    #[test]
    fn a_hard_one_outweighs_a_soft_one() {
        let purges = with(&[(7, What::All, true), (6, What::Tag("red".into()), false)]);
        assert_eq!(purges.fate(entry(4)), Fate::Gone);
        assert_eq!(purges.fate(entry(6)), Fate::Stale);
        assert_eq!(purges.last_of(APP), 7);
    }

    #[test]
    fn who_missed_marks_that_are_no_longer_told_forgets_all() {
        let mark =
            |seq| record::Purge { seq, what: Some(record::purge::What::Tag("none".to_owned())), soft: false };
        let told = record::Purges { floor: 5, marks: vec![mark(6), mark(7)] };
        let none = |_: &str, _: &str| None;
        let mut late = Purges::default();
        late.apply(APP, &told, none);
        assert_eq!(
            (late.fate(entry(4)), late.fate(entry(5)), late.last_of(APP)),
            (Fate::Gone, Fate::Kept, 7)
        );
        let mut in_time = Purges::default();
        in_time.apply(APP, &record::Purges { floor: 0, marks: vec![mark(5)] }, none);
        in_time.apply(APP, &told, none);
        assert_eq!((in_time.fate(entry(4)), in_time.last_of(APP)), (Fate::Kept, 7));
        let generation = in_time.generation();
        in_time.apply(APP, &told, none);
        assert_eq!(in_time.generation(), generation, "nothing new");
    }

    proptest! {
        /// The order in which marks come makes no difference.
        #[test]
        fn marks_commute(seqs in proptest::collection::vec(1u64..1000, 1..40), asked_at in 0u64..1000) {
            let of = |n: u64| match n % 3 {
                0 => What::Tag("42".into()),
                1 => What::Prefix("/p".into()),
                _ => What::Tag("none".into()),
            };
            let marks: Vec<_> = seqs.iter().map(|seq| (*seq, of(*seq), false)).collect();
            let backwards: Vec<_> = marks.iter().rev().cloned().collect();
            let fate = with(&marks).fate(entry(asked_at));
            prop_assert_eq!(fate, with(&backwards).fate(entry(asked_at)));
            prop_assert_eq!(fate == Fate::Gone, seqs.iter().any(|seq| *seq > asked_at && seq % 3 != 2));
        }
    }

    #[test]
    fn many_marks_are_folded_and_stay_true() {
        let marks: Vec<_> =
            (1..=(MARKS_MAX as u64 + 2)).map(|seq| (seq, What::Tag(seq.to_string().into()), false)).collect();
        let purges = with(&marks);
        let tags: Vec<Box<str>> = vec!["3".into()];
        assert_eq!(purges.fate(Entry { tags: &tags, ..entry(2) }), Fate::Gone);
        assert_eq!(purges.fate(entry(MARKS_MAX as u64)), Fate::Kept);
    }
}
