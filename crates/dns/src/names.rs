//! Which names of the zone exist.

use atoll_routing::shards::ShardedMap;
use hickory_proto::rr::Name;

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    /// A virtual host answers there, by that name or by a wildcard.
    Host,
    /// Nothing, but there is something below it.
    Empty,
    /// Nothing at all.
    Absent,
}

/// How many domains are at a name, and how many below.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    here: u32,
    below: u32,
}

/// The names of a zone's virtual hosts. A copy is cheap, and a change to one costs what it changes.
#[derive(Debug, Clone)]
pub struct Names {
    origin: String,
    counts: ShardedMap<Count>,
}

impl Names {
    /// No names, in the zone with that key (see [`key`]).
    #[must_use]
    pub fn new(origin: impl Into<String>) -> Self {
        Self { origin: origin.into(), counts: ShardedMap::new() }
    }

    /// How many names there are, those with nothing but names below included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Takes in a domain; lower case, without a dot at its end. One outside the zone changes nothing. To be
    /// called once for each time that a virtual host names it.
    pub fn add(&mut self, domain: &str) {
        self.change(domain, |n| n.saturating_add(1));
    }

    /// Takes out what [`Self::add`] took in.
    pub fn remove(&mut self, domain: &str) {
        self.change(domain, |n| n.saturating_sub(1));
    }

    /// What is at the name with this key, and whether by a wildcard, which stands for one label.
    #[must_use]
    pub fn find(&self, name: &Name) -> Existence {
        let own = key(name);
        match self.counts.get(&own) {
            Some(Count { here: 1.., .. }) => Existence::Host,
            Some(Count { below: 1.., .. }) => Existence::Empty,
            _ if own == self.origin => Existence::Empty,
            _ => {
                let wildcard = format!("*.{}", key(&name.base_name()));
                let covered = self.counts.get(&wildcard).is_some_and(|count| count.here > 0);
                if covered { Existence::Host } else { Existence::Absent }
            }
        }
    }

    fn change(&mut self, domain: &str, by: impl Fn(u32) -> u32) {
        let Some(above) = self.names_above(domain) else { return };
        self.set(domain, |count| Count { here: by(count.here), ..count });
        for name in above {
            self.set(name, |count| Count { below: by(count.below), ..count });
        }
    }

    fn set(&mut self, key: &str, change: impl Fn(Count) -> Count) {
        let count = change(self.counts.get(key).copied().unwrap_or_default());
        if count.here == 0 && count.below == 0 {
            self.counts.remove(key);
        } else {
            self.counts.insert(key, count);
        }
    }

    /// The names between a domain and the zone's own, that one included; nothing for a domain outside.
    fn names_above<'d>(&self, domain: &'d str) -> Option<Vec<&'d str>> {
        let mut above = Vec::new();
        let mut rest = domain;
        while rest != self.origin {
            rest = rest.split_once('.')?.1;
            above.push(rest);
        }
        Some(above)
    }
}

/// A name as text in lower case, without a dot at its end. What is no letter, digit, `-`, `_` or `*` is
/// written as `\DDD`, so that a dot inside a label is not taken for one between labels.
#[must_use]
pub fn key(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte.to_ascii_lowercase() {
                plain @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*') => text.push(char::from(plain)),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn names(domains: &[&str]) -> Names {
        let mut names = Names::new("zone.test");
        for domain in domains {
            names.add(domain);
        }
        names
    }

    #[test]
    fn names_are_found_whatever_their_case() {
        let names = names(&["shop.zone.test"]);
        assert_eq!(names.find(&name("sHoP.ZONE.test.")), Existence::Host);
        assert_eq!(names.find(&name("shop2.zone.test.")), Existence::Absent);
        assert_eq!(names.find(&name("zone.test.")), Existence::Empty);
        assert_eq!(names.find(&name("a.shop.zone.test.")), Existence::Absent);
    }

    #[test]
    fn a_wildcard_stands_for_one_label_and_yields_to_names() {
        let names = names(&["*.shop.zone.test", "x.deep.shop.zone.test"]);
        assert_eq!(names.find(&name("any.shop.zone.test.")), Existence::Host);
        assert_eq!(names.find(&name("a.b.shop.zone.test.")), Existence::Absent);
        assert_eq!(names.find(&name("shop.zone.test.")), Existence::Empty);
        assert_eq!(names.find(&name("deep.shop.zone.test.")), Existence::Empty);
        assert_eq!(names.find(&name("x.deep.shop.zone.test.")), Existence::Host);
    }

    #[test]
    fn domains_outside_the_zone_are_passed_over() {
        let names = names(&["shop.example", "zone.test.evil", "notzone.test", ""]);
        assert!(names.is_empty());
    }

    #[test]
    fn a_dot_inside_a_label_is_not_one_between_labels() {
        let names = names(&["a.shop.zone.test"]);
        let odd = Name::from_labels([&b"a.shop"[..], b"zone", b"test"]).unwrap();
        assert_eq!(key(&odd), "a\\046shop.zone.test");
        assert_eq!(names.find(&odd), Existence::Absent);
    }

    proptest! {
        #[test]
        fn it_knows_what_a_plain_list_knows(
            changes in proptest::collection::vec((proptest::bool::weighted(0.6), "[ab*](\\.[ab]){0,2}"), 0..60),
            asked in "[abc](\\.[abc]){0,3}",
        ) {
            let mut names = Names::new("zone.test");
            let mut model: BTreeMap<String, u32> = BTreeMap::new();
            for (add, below) in changes {
                let domain = format!("{below}.zone.test");
                let held = model.entry(domain.clone()).or_default();
                if add {
                    *held += 1;
                    names.add(&domain);
                } else if *held > 0 {
                    *held -= 1;
                    names.remove(&domain);
                }
            }
            model.retain(|_, held| *held > 0);
            let asked = format!("{asked}.zone.test");
            let (_, parent) = asked.split_once('.').unwrap();
            let below = format!(".{asked}");
            let expected = if model.contains_key(&asked) {
                Existence::Host
            } else if model.keys().any(|domain| domain.ends_with(&below)) {
                Existence::Empty
            } else if model.contains_key(&format!("*.{parent}")) {
                Existence::Host
            } else {
                Existence::Absent
            };
            prop_assert_eq!(names.find(&name(&format!("{asked}."))), expected);
            if model.is_empty() {
                prop_assert!(names.is_empty());
            }
        }
    }
}
