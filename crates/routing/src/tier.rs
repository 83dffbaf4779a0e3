//! Which other edge is asked for a response before its region is: the edges of a location share what they keep by rendezvous
//! hashing, and an edge near the region may stand before it (a shield), so that instances see about one request for each
//! response, not one for each edge.

use crate::mix::{fnv, spread};
use atoll_model::{NodeName, RegionName, SiteName, Tier};

/// An edge, as far as this choice cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeAt<'a> {
    /// Its node.
    pub name: &'a NodeName,
    /// Where it stands.
    pub site: &'a SiteName,
    /// The site's region.
    pub region: &'a RegionName,
}

/// Who asked for a response: how far it has come already, so that no request goes around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// A client.
    Client,
    /// An edge of this location: this one is the response's own.
    Location,
    /// An edge of another location: this one is the shield.
    Far,
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask<N> {
    /// The edge.
    pub edge: N,
    /// What we are to it.
    pub as_asker: Asker,
}

/// A resource's place on the ring.
#[must_use]
pub fn place(key: &[u8]) -> u64 {
    fnv(&[key])
}

/// The edge to ask before a region; nothing: the region. `edges` are those that can be asked now, `own` not among them; `regions` are
/// those where the cluster runs (none: not known, so that there is no shield).
pub fn next<'a>(
    own: EdgeAt<'a>,
    edges: impl Iterator<Item = EdgeAt<'a>> + Clone,
    place: u64,
    tier: Tier,
    asker: Asker,
    regions: &[RegionName],
) -> Option<Ask<&'a NodeName>> {
    if tier == Tier::None || asker == Asker::Far {
        return None;
    }
    if asker == Asker::Client {
        let here = edges.clone().filter(|edge| edge.site == own.site);
        let owner = first(here.map(|edge| edge.name).chain([own.name]), place)?;
        if owner != own.name {
            return Some(Ask { edge: owner, as_asker: Asker::Location });
        }
    }
    if tier != Tier::Regional || regions.contains(own.region) {
        return None;
    }
    // The same region for all who ask, whatever is nearest to each of them.
    let shielded = regions.iter().filter(|region| edges.clone().any(|edge| edge.region == *region));
    let region = shielded.max_by_key(|region| weight(region.as_str(), place))?;
    let shield = first(edges.filter(|edge| edge.region == region).map(|edge| edge.name), place)?;
    Some(Ask { edge: shield, as_asker: Asker::Far })
}

fn first<'a>(names: impl Iterator<Item = &'a NodeName>, place: u64) -> Option<&'a NodeName> {
    names.max_by(|a, b| weight(a.as_str(), place).cmp(&weight(b.as_str(), place)).then_with(|| b.cmp(a)))
}

fn weight(name: &str, place: u64) -> u64 {
    spread(fnv(&[name.as_bytes(), &place.to_be_bytes()]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Edge(NodeName, SiteName, RegionName);

    fn edges(sites: &[(&str, usize)]) -> Vec<Edge> {
        let at = |region: &str, n: usize| {
            Edge(
                NodeName::new(format!("{region}1-edge{n}")).unwrap(),
                SiteName::new(format!("{region}1")).unwrap(),
                RegionName::new(region).unwrap(),
            )
        };
        sites.iter().flat_map(|(region, count)| (0..*count).map(move |n| at(region, n))).collect()
    }

    fn of(edge: &Edge) -> EdgeAt<'_> {
        EdgeAt { name: &edge.0, site: &edge.1, region: &edge.2 }
    }

    fn asked<'a>(
        all: &'a [Edge],
        own: &'a Edge,
        place: u64,
        tier: Tier,
        asker: Asker,
        regions: &[RegionName],
    ) -> Option<Ask<&'a NodeName>> {
        let others = all.iter().filter(|edge| edge.0 != own.0).map(of);
        next(of(own), others, place, tier, asker, regions)
    }

    fn regions(names: &[&str]) -> Vec<RegionName> {
        names.iter().map(|name| RegionName::new(*name).unwrap()).collect()
    }

    /// Follows a request from an edge to the one that asks the region.
    fn last<'a>(
        all: &'a [Edge],
        from: &'a Edge,
        place: u64,
        tier: Tier,
        to: &[RegionName],
    ) -> (&'a Edge, usize) {
        let (mut at, mut asker) = (from, Asker::Client);
        for hops in 0.. {
            match asked(all, at, place, tier, asker, to) {
                Some(ask) => {
                    assert!(ask.as_asker > asker, "it always comes nearer");
                    (at, asker) = (all.iter().find(|edge| edge.0 == *ask.edge).unwrap(), ask.as_asker);
                }
                None => return (at, hops),
            }
        }
        unreachable!()
    }

    proptest! {
        /// Of the edges of a location one asks the region, whoever was asked first.
        #[test]
        fn a_location_asks_once(place: u64, count in 1_usize..6, regional: bool) {
            let all = edges(&[("sin", count), ("fra", 2)]);
            let tier = if regional { Tier::Regional } else { Tier::Local };
            let ends: BTreeMap<&NodeName, usize> =
                all[..count].iter().map(|edge| last(&all, edge, place, tier, &regions(&["fra"]))).map(|(edge, hops)| (&edge.0, hops)).collect();
            prop_assert_eq!(ends.len(), 1);
            let region = if regional { "fra1" } else { "sin1" };
            prop_assert!(ends.keys().all(|name| name.as_str().starts_with(region)));
        }

        /// With a shield all locations ask through the same edge, wherever the cluster runs.
        #[test]
        fn a_shield_is_the_same_for_all(place: u64, fra in 1_usize..3, was in 1_usize..3) {
            let all = edges(&[("sin", 2), ("syd", 1), ("fra", fra), ("was", was)]);
            let to = regions(&["fra", "was"]);
            let ends = all[..3].iter().map(|edge| last(&all, edge, place, Tier::Regional, &to));
            let names: Vec<&NodeName> = ends.map(|(edge, hops)| { assert!(hops <= 2); &edge.0 }).collect();
            prop_assert!(names.iter().all(|name| *name == names[0]));
        }

        /// When an edge goes, only what was its own moves.
        #[test]
        fn only_a_gone_edges_share_moves(place: u64) {
            let all = edges(&[("sin", 5)]);
            let before = last(&all, &all[0], place, Tier::Local, &[]).0;
            for gone in 1..5 {
                let left: Vec<&Edge> = all.iter().filter(|edge| edge.0 != all[gone].0).collect();
                let others = left.iter().filter(|edge| edge.0 != all[0].0).map(|edge| of(edge));
                let now = next(of(&all[0]), others, place, Tier::Local, Asker::Client, &[]);
                let now = now.map_or(&all[0].0, |ask| ask.edge);
                prop_assert!(*now == before.0 || before.0 == all[gone].0);
            }
        }
    }

    #[test]
    fn an_edge_near_the_region_needs_no_shield_and_none_means_none() {
        let all = edges(&[("fra", 1), ("sin", 1)]);
        let to = regions(&["fra"]);
        assert_eq!(asked(&all, &all[0], 7, Tier::Regional, Asker::Client, &to), None);
        assert_eq!(asked(&all, &all[1], 7, Tier::None, Asker::Client, &to), None);
        assert_eq!(asked(&all, &all[1], 7, Tier::Regional, Asker::Client, &[]), None);
        assert_eq!(asked(&all, &all[1], 7, Tier::Local, Asker::Client, &to), None);
        let shield = asked(&all, &all[1], 7, Tier::Regional, Asker::Client, &to).unwrap();
        assert_eq!((shield.edge, shield.as_asker), (&all[0].0, Asker::Far));
        assert_eq!(asked(&all, &all[0], 7, Tier::Regional, Asker::Far, &to), None);
    }
}
