//! Which addresses clients are given, and in what order.

use atoll_model::NodeName;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most addresses of one family in an answer: 8 of each fit 512 bytes, and no client tries more.
pub const ADDRESSES_MAX: usize = 8;

/// A point on the earth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    latitude: f64,
    longitude: f64,
}

impl Place {
    /// In degrees. Nothing where they are none, or where both are 0, which is what a node says that has not been told.
    #[must_use]
    pub fn new(latitude: f64, longitude: f64) -> Option<Self> {
        let on_earth = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        let told = latitude != 0.0 || longitude != 0.0;
        (on_earth && told).then_some(Self { latitude, longitude })
    }

    /// Grows with the distance: the haversine, of which only the order matters.
    fn distance(self, other: Self) -> f64 {
        let (a, b) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half = |from: f64, to: f64| ((to - from) / 2.0).sin().powi(2);
        let across = half(self.longitude.to_radians(), other.longitude.to_radians());
        half(a, b) + a.cos() * b.cos() * across
    }
}

/// An edge as this node knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    /// The node.
    pub name: NodeName,
    /// Where clients reach it; none that is unspecified.
    pub addresses: Vec<IpAddr>,
    /// Where it stands, if that is known.
    pub place: Option<Place>,
    /// Whether gossip has it as alive.
    pub alive: bool,
    /// Whether it says that it takes nothing new.
    pub draining: bool,
}

impl Edge {
    /// Whether clients are to be sent there.
    #[must_use]
    pub const fn healthy(&self) -> bool {
        self.alive && !self.draining
    }
}

/// From where it is looked: the node that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Viewpoint {
    /// The node.
    pub name: NodeName,
    /// Where it stands, if that is known.
    pub place: Option<Place>,
}

/// The addresses that clients are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serving {
    /// At most [`ADDRESSES_MAX`], the best first.
    pub v4: Vec<Ipv4Addr>,
    /// At most [`ADDRESSES_MAX`], the best first.
    pub v6: Vec<Ipv6Addr>,
    /// None of them is known to be healthy: they are given because no answer would be worse.
    pub failed_open: bool,
}

impl Serving {
    /// Whether there is no address at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// Chooses: the healthy edges; where there is none, all that are known, the ones that are alive first, then
/// those in `last_good`. An edge puts itself first; the others follow by their distance from it.
#[must_use]
pub fn serving(edges: &[Edge], from: &Viewpoint, last_good: &BTreeSet<NodeName>) -> Serving {
    let reachable = || edges.iter().filter(|edge| !edge.addresses.is_empty());
    let mut chosen: Vec<&Edge> = reachable().filter(|edge| edge.healthy()).collect();
    let failed_open = chosen.is_empty();
    if failed_open {
        chosen = reachable().collect();
    }
    // Among healthy ones the distance alone orders.
    let hopeless = |edge: &Edge| failed_open.then(|| (!edge.alive, !last_good.contains(&edge.name)));
    chosen.sort_by(|a, b| hopeless(a).cmp(&hopeless(b)).then_with(|| nearer(a, b, from)));
    let mut serving = Serving { failed_open, ..Serving::default() };
    for address in chosen.iter().flat_map(|edge| &edge.addresses) {
        match *address {
            IpAddr::V4(v4) => take(&mut serving.v4, v4),
            IpAddr::V6(v6) => take(&mut serving.v6, v6),
        }
    }
    serving
}

/// Anycast edges share addresses.
fn take<T: PartialEq>(addresses: &mut Vec<T>, address: T) {
    if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
        addresses.push(address);
    }
}

fn nearer(a: &Edge, b: &Edge, from: &Viewpoint) -> Ordering {
    let other = |edge: &Edge| edge.name != from.name;
    let distance = |edge: &Edge| match (edge.place, from.place) {
        (Some(there), Some(here)) => here.distance(there),
        _ => f64::INFINITY,
    };
    other(a)
        .cmp(&other(b))
        .then_with(|| distance(a).total_cmp(&distance(b)))
        .then_with(|| a.name.cmp(&b.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRA: (f64, f64) = (50.11, 8.68);
    const WAS: (f64, f64) = (38.9, -77.04);
    const SIN: (f64, f64) = (1.35, 103.82);

    fn edge(name: &str, address: &str, (latitude, longitude): (f64, f64)) -> Edge {
        Edge {
            name: name.parse().unwrap(),
            addresses: vec![address.parse().unwrap()],
            place: Place::new(latitude, longitude),
            alive: true,
            draining: false,
        }
    }

    fn three() -> Vec<Edge> {
        vec![
            edge("sin-edge", "10.0.0.3", SIN),
            edge("was-edge", "10.0.0.2", WAS),
            edge("fra-edge", "10.0.0.1", FRA),
        ]
    }

    fn seen_from(name: &str, (latitude, longitude): (f64, f64)) -> Viewpoint {
        Viewpoint { name: name.parse().unwrap(), place: Place::new(latitude, longitude) }
    }

    fn last_octets(serving: &Serving) -> Vec<u8> {
        serving.v4.iter().map(|address| address.octets()[3]).collect()
    }

    #[test]
    fn the_nearest_come_first() {
        let none = BTreeSet::new();
        let from = |name, place| last_octets(&serving(&three(), &seen_from(name, place), &none));
        assert_eq!(from("fra-control", FRA), [1, 2, 3]);
        assert_eq!(from("sin-control", SIN), [3, 1, 2]);
        assert_eq!(from("nowhere", (0.0, 0.0)), [1, 3, 2], "by name where no distance is known");
        assert_eq!(from("was-edge", FRA), [2, 1, 3], "an edge puts itself first, wherever it says it is");
    }

    #[test]
    fn the_date_line_is_no_border() {
        let (fiji, samoa) = ((-17.7, 178.0), (-13.8, -172.1));
        let edges = [edge("far", "10.0.0.9", SIN), edge("near", "10.0.0.8", samoa)];
        assert_eq!(last_octets(&serving(&edges, &seen_from("x", fiji), &BTreeSet::new())), [8, 9]);
    }

    #[test]
    fn the_dead_and_the_draining_are_left_out_until_there_is_nothing_else() {
        let (mut edges, from) = (three(), seen_from("fra-control", FRA));
        edges[2].alive = false;
        assert_eq!(last_octets(&serving(&edges, &from, &BTreeSet::new())), [2, 3]);
        edges[1].draining = true;
        assert_eq!(last_octets(&serving(&edges, &from, &BTreeSet::new())), [3]);
        edges[0].alive = false;
        let last_good = BTreeSet::from(["sin-edge".parse().unwrap()]);
        let all = serving(&edges, &from, &last_good);
        assert_eq!(
            last_octets(&all),
            [2, 3, 1],
            "the draining one is alive; then the one that was good last"
        );
        assert!(all.failed_open);
    }

    #[test]
    fn shared_addresses_are_said_once() {
        let mut edges = three();
        for edge in &mut edges {
            edge.addresses = vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        }
        let serving = serving(&edges, &seen_from("x", FRA), &BTreeSet::new());
        assert_eq!((serving.v4.len(), serving.v6.len()), (1, 1));
    }

    #[test]
    fn places_that_are_none_are_not_taken() {
        assert!(Place::new(f64::NAN, 1.0).is_none());
        assert!(Place::new(91.0, 1.0).is_none());
        assert!(Place::new(0.0, 0.0).is_none());
    }

    fn any_edge() -> impl Strategy<Value = Edge> {
        ("[a-c]", proptest::collection::vec(0..12_u8, 0..3), any::<(bool, bool)>(), -90.0..90.0).prop_map(
            |(name, addresses, (alive, draining), latitude)| Edge {
                name: name.parse().unwrap(),
                addresses: addresses.into_iter().map(|n| IpAddr::from([10, 0, 0, n])).collect(),
                place: Place::new(latitude, 5.0),
                alive,
                draining,
            },
        )
    }

    proptest! {
        #[test]
        fn never_empty_while_an_address_is_known(edges in proptest::collection::vec(any_edge(), 0..20)) {
            let from = seen_from("a", FRA);
            let serving = serving(&edges, &from, &BTreeSet::new());
            let all: BTreeSet<IpAddr> = edges.iter().flat_map(|edge| edge.addresses.clone()).collect();
            let healthy: BTreeSet<IpAddr> =
                edges.iter().filter(|edge| edge.healthy()).flat_map(|edge| edge.addresses.clone()).collect();
            prop_assert_eq!(serving.is_empty(), all.is_empty());
            prop_assert_eq!(serving.failed_open, healthy.is_empty());
            let expected = if healthy.is_empty() { all } else { healthy };
            prop_assert_eq!(serving.v4.len(), expected.len().min(ADDRESSES_MAX));
            prop_assert!(serving.v4.iter().all(|address| expected.contains(&IpAddr::V4(*address))));
        }
    }
}
