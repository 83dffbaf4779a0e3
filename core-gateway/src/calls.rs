//! Where a call of one service to another goes: to an instance of this region, else to another region.

use crate::views::Cluster;
use crate::worker::Worker;
use atoll_model::{Hop, Reason};
use atoll_proxy::answer::InternalAnswer;
use atoll_proxy::region::{forward, seen};
use atoll_proxy::{Outgoing, Tries, region, regions};
use atoll_routing::endpoint::State;
use atoll_routing::placed::Endpoints;
use atoll_routing::retry::Retry;
use std::fmt;

/// Who answered.
#[derive(Debug)]
pub(crate) enum Answered {
    /// An instance of this region.
    Near(region::Answered),
    /// Another region.
    Far(regions::Answered),
}

/// What is asked, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// This region, and nothing else.
    NearOnly,
    /// This region, then others.
    NearFirst,
    /// Others, then this region.
    FarFirst,
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
    let far_healthy =
        || worker.regions.any_healthy(said().as_deref().unwrap_or_default(), &cluster.regions, name);
    let legs: &[bool] = match order(from_gateway, best, far_healthy) {
        Order::NearOnly => &[true],
        Order::NearFirst => &[true, false],
        Order::FarFirst => &[false, true],
    };
    let mut failed: Option<InternalAnswer> = None;
    let mut sent = false;
    for near in legs {
        let made = if *near {
            match forward(&worker.sidecars, endpoints, outgoing, tries).await {
                Ok(answered) => return Ok(Answered::Near(answered)),
                Err(made) => made,
            }
        } else {
            match worker.regions.forward(said, &cluster.regions, outgoing, tries).await {
                Ok(answered) => return Ok(Answered::Far(answered)),
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
}
