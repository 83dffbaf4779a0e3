//! Where a call of one service to another goes: to an instance of this region, else to another region.

use crate::views::Cluster;
use crate::worker::Worker;
use atoll_model::{Hop, Reason};
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::region::{forward, seen};
use atoll_proxy::{Outgoing, Tries, region, regions};
use atoll_routing::endpoint::State;
use atoll_routing::placed::{Endpoint, Endpoints};
use atoll_routing::retry::{MethodClass, Retry, TRIES_MAX};
use std::fmt;
use std::sync::Arc;

/// Who answered.
#[derive(Debug)]
pub(crate) enum Answered {
    /// An instance of this region.
    Near(region::Answered),
    /// Another region.
    Far(regions::Answered),
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    /// This region's instances, the healthy ones first.
    Near,
    /// Those of them that are healthy, and that we can connect to.
    Healthy,
    /// The others of them, rather than nobody.
    Poor,
    /// Other regions.
    Far,
}

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// This region, and nothing else.
    NearOnly,
    /// This region, then others.
    NearFirst,
    /// Others, then this region.
    FarFirst,
}

impl Order {
    const fn legs(self, best: Option<State>) -> &'static [Leg] {
        match (self, best) {
            (Self::NearOnly, _) => &[Leg::Near],
            (Self::NearFirst, Some(State::Healthy)) => &[Leg::Healthy, Leg::Far, Leg::Poor],
            (Self::NearFirst, _) => &[Leg::Poor, Leg::Far],
            (Self::FarFirst, _) => &[Leg::Far, Leg::Poor],
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NearOnly => "this region alone: another region's gateway has asked",
            Self::NearFirst => "this region first, then others",
            Self::FarFirst => "other regions first: none of this region's instances is healthy",
        })
    }
}

/// Another region first only where it is known to be better; a call that another gateway has brought goes to
/// no third one.
pub(crate) fn order(from_gateway: bool, best: Option<State>, far_healthy: impl FnOnce() -> bool) -> Order {
    match best {
        _ if from_gateway => Order::NearOnly,
        Some(State::Healthy) => Order::NearFirst,
        _ if far_healthy() => Order::FarFirst,
        _ => Order::NearFirst,
    }
}

/// The endpoints that a leg may ask.
fn part(leg: Leg, endpoints: Arc<Endpoints>, is_ejected: impl Fn(&str) -> bool) -> Arc<Endpoints> {
    let fits = |endpoint: &&Endpoint| {
        let healthy = seen(endpoint.state, is_ejected(&endpoint.key)) == State::Healthy;
        match leg {
            Leg::Healthy => healthy,
            Leg::Poor => !healthy,
            Leg::Near | Leg::Far => true,
        }
    };
    if endpoints.all.iter().all(|endpoint| fits(&endpoint)) {
        return endpoints;
    }
    let all = endpoints.all.iter().filter(fits).cloned().collect();
    Arc::new(Endpoints { all, expected: endpoints.expected })
}

/// The best state that an instance of this region is in; none when none runs.
pub(crate) fn best_of(endpoints: Option<&Endpoints>, is_ejected: impl Fn(&str) -> bool) -> Option<State> {
    let states = endpoints?.all.iter().map(|endpoint| seen(endpoint.state, is_ejected(&endpoint.key)));
    states.filter(|state| *state != State::Absent).min()
}

/// Forwards a call until an instance has answered, or no further try is allowed.
pub(crate) async fn forward_call(
    worker: &Worker,
    cluster: &Cluster,
    outgoing: &Outgoing,
    from_gateway: bool,
    tries: &Tries,
) -> Result<Answered, InternalAnswer> {
    let shared = &worker.shared;
    let name = &*cluster.to.text;
    let endpoints = || shared.views.load().endpoints.get(name).cloned();
    let said = || shared.views.load().summaries.of(name).cloned();
    let best = best_of(endpoints().as_deref(), |key| shared.reach.is_ejected(key));
    // A sidecar that has spent tries has asked this region's healthy instances itself.
    let asked = !from_gateway && tries.left() < TRIES_MAX;
    let best = best.filter(|best| !(asked && *best == State::Healthy));
    let far_healthy =
        || worker.regions.any_healthy(said().as_deref().unwrap_or_default(), &cluster.regions, name);
    let mut failed: Option<InternalAnswer> = None;
    let mut sent = false;
    for leg in order(from_gateway, best, far_healthy).legs(best) {
        // An instance that was asked as healthy may be among the poor by now.
        let might_repeat = *leg == Leg::Poor && sent && outgoing.method != MethodClass::Safe;
        if tries.left() == 0 || might_repeat {
            break;
        }
        let made = if *leg == Leg::Far {
            match worker.regions.forward(said, &cluster.regions, outgoing, tries).await {
                Ok(answered) => return Ok(Answered::Far(answered)),
                Err(made) => made,
            }
        } else {
            let part = || Some(part(*leg, endpoints()?, |key| shared.reach.is_ejected(key)));
            match forward(&worker.sidecars, part, outgoing, tries).await {
                Ok(answered) => return Ok(Answered::Near(answered)),
                Err(made) => made,
            }
        };
        sent |= made.sent;
        // That there was nobody to ask is said only where nothing else is to be said.
        failed = Some(failed.filter(|_| is_empty(made.reason)).unwrap_or(made));
        if !is_empty(made.reason) && matches!(outgoing.after(made.reason, sent, tries), Retry::Stop(_)) {
            break;
        }
    }
    let nobody = InternalAnswer { hop: Hop::Gateway, reason: Reason::NoInstance, sent };
    let failed = failed.unwrap_or(nobody);
    // Each region was asked.
    let reason = if is_empty(failed.reason) && !from_gateway { Reason::NoRegion } else { failed.reason };
    Err(InternalAnswer { reason, sent, ..failed })
}

/// Nobody was there to be asked.
fn is_empty(reason: Reason) -> bool {
    matches!(reason, Reason::NoInstance | Reason::NoRegion)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_regions_come_first_only_where_they_are_better() {
        let none = || -> bool { unreachable!("nothing is to be looked at") };
        assert_eq!(order(true, None, none), Order::NearOnly);
        assert_eq!(order(false, Some(State::Healthy), none), Order::NearFirst);
        for best in [None, Some(State::Ejected), Some(State::Unhealthy), Some(State::Draining)] {
            assert_eq!(order(false, best, || true), Order::FarFirst, "{best:?}");
            assert_eq!(order(false, best, || false), Order::NearFirst, "{best:?}");
        }
    }

    #[test]
    fn no_instance_is_asked_in_two_legs() {
        let endpoint = |key: &str, state| Endpoint {
            key: key.into(),
            address: "127.0.0.1:1".parse().expect("an address"),
            state,
        };
        let all = [("a", State::Healthy), ("b", State::Unhealthy), ("ejected", State::Healthy)];
        let all = all.map(|(key, state)| endpoint(key, state)).to_vec();
        let endpoints = Arc::new(Endpoints { all, expected: 3 });
        let keys = |leg| -> Vec<String> {
            let part = part(leg, Arc::clone(&endpoints), |key| key == "ejected");
            part.all.iter().map(|endpoint| endpoint.key.to_string()).collect()
        };
        assert_eq!(keys(Leg::Healthy), ["a"]);
        assert_eq!(keys(Leg::Poor), ["b", "ejected"]);
        for best in [None, Some(State::Healthy), Some(State::Unhealthy)] {
            for order in [Order::NearOnly, Order::NearFirst, Order::FarFirst] {
                let legs = order.legs(best);
                let near = legs.iter().filter(|leg| **leg == Leg::Near).count();
                assert!(near == 0 || legs.len() == 1, "{legs:?}");
                assert!(legs.iter().all(|leg| legs.iter().filter(|other| *other == leg).count() == 1));
            }
        }
    }
}
