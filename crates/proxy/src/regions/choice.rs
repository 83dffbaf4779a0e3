//! One worker's choice of region, and what it remembers between requests.

use super::known::RegionHealth;
use super::tunnels::Tunnels;
use super::view::RegionView;
use crate::tunnel::Tunnel;
use atoll_model::{NodeName, RegionName};
use atoll_routing::endpoint::State;
use atoll_routing::region::{self, Candidate, Decision, Hysteresis};
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tracing::debug;

/// How long a region that said `no-instance` is left out, before one request asks again.
const NO_INSTANCE_FOR: Duration = Duration::from_secs(1);
/// Clusters remembered; beyond it the memory starts anew. About 100 bytes each.
const CLUSTERS_MAX: usize = 100_000;

/// How long a choice holds for the first tries of further requests, while the region's tunnel is up and nothing fails:
/// shorter than what tunnels tell is old. A busy edge so decides a few times a second, not for each request.
const HOLDS_FOR: Duration = Duration::from_millis(20);

/// The region that was chosen last.
#[derive(Debug)]
struct Chosen {
    region: RegionName,
    /// Until when it holds without another look.
    until: Instant,
}

/// What a worker remembers.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The region chosen last for a cluster's first tries.
    chosen: RefCell<HashMap<String, Chosen>>,
    /// Until when a region is left out for a cluster.
    refused: RefCell<HashMap<String, Vec<(RegionName, Instant)>>>,
}

/// What one request has tried.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) gateways: Vec<NodeName>,
    pub(super) regions: Vec<RegionName>,
}

/// Where a try goes.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) region: RegionName,
    pub(super) gateway: NodeName,
    pub(super) tunnel: Tunnel,
}

/// Chooses among regions as they are seen now; also what `explain` shows.
pub(super) fn decide(
    regions: &[RegionView],
    home: &RegionName,
    previous: Option<&RegionName>,
    excluded: impl Fn(&RegionView) -> bool,
) -> Decision {
    let candidates: Vec<Candidate<'_>> = regions
        .iter()
        .map(|view| Candidate {
            region: &view.region,
            rtt: view.rtt,
            health: view.health,
            tunnel_up: view.tunnel_up,
            draining: view.draining,
            excluded: excluded(view),
            home: view.region == *home,
        })
        .collect();
    region::choose(&candidates, previous, Hysteresis::default())
}

impl Memory {
    /// Chooses for the next try; `None` when no region can serve.
    pub(super) fn choose(
        &self,
        tunnels: &Tunnels,
        said: &[RegionHealth],
        (name, among): (&str, &[RegionName]),
        tried: &Tried,
        now: Instant,
    ) -> Option<Target> {
        let first_try = tried.gateways.is_empty() && tried.regions.is_empty();
        if let Some(region) = self.held(name, now).filter(|_| first_try)
            && let Some((gateway, tunnel, State::Healthy)) = tunnels.pick(&region, &[], rand::random())
        {
            return Some(Target { region, gateway, tunnel });
        }
        let regions = tunnels.regions(said, name, among);
        let refused = self.refused_now(name, now);
        let is_tried = |region: &RegionName| {
            tried.regions.contains(region) || !tunnels.has_untried(region, &tried.gateways)
        };
        let previous = self.chosen.borrow().get(name).map(|chosen| chosen.region.clone());
        let choose = |heed: bool| {
            let excluded = |view: &RegionView| {
                (view.tunnel_up && is_tried(&view.region)) || (heed && refused.contains(&view.region))
            };
            decide(&regions, &tunnels.facts().region, previous.as_ref(), excluded)
        };
        let mut decision = choose(true);
        if decision.chosen.is_none() && !refused.is_empty() {
            // Nothing else is left: what was refused a moment ago may be back.
            decision = choose(false);
        }
        let Some(chosen) = decision.chosen.and_then(|index| regions.get(index)) else {
            for (view, verdict) in regions.iter().zip(&decision.verdicts) {
                debug!(cluster = name, region = %view.region, why = %verdict, "a region can't serve");
            }
            return None;
        };
        let region = chosen.region.clone();
        // A retry's detour is no reason to stay there, and a guess none to stop looking.
        if first_try {
            self.remember(name, &region, if decision.panic { now } else { now + HOLDS_FOR });
        }
        let (gateway, tunnel, _) = tunnels.pick(&region, &tried.gateways, rand::random())?;
        Some(Target { region, gateway, tunnel })
    }

    /// The region of a choice that still holds.
    fn held(&self, cluster: &str, now: Instant) -> Option<RegionName> {
        let chosen = self.chosen.borrow();
        chosen.get(cluster).filter(|chosen| now < chosen.until).map(|chosen| chosen.region.clone())
    }

    fn remember(&self, cluster: &str, region: &RegionName, until: Instant) {
        let mut all = self.chosen.borrow_mut();
        if let Some(chosen) = all.get_mut(cluster) {
            chosen.until = until;
            if chosen.region != *region {
                chosen.region = region.clone();
            }
            return;
        }
        if all.len() >= CLUSTERS_MAX {
            all.clear();
        }
        all.insert(cluster.to_owned(), Chosen { region: region.clone(), until });
    }

    /// A try has failed: the next request is decided anew.
    pub(super) fn note_failure(&self, cluster: &str, now: Instant) {
        if let Some(chosen) = self.chosen.borrow_mut().get_mut(cluster) {
            chosen.until = now;
        }
    }

    /// A region has said that it has no instance of the cluster.
    pub(super) fn note_refusal(&self, cluster: &str, region: &RegionName, now: Instant) {
        let mut refused = self.refused.borrow_mut();
        if refused.len() >= CLUSTERS_MAX {
            refused.clear();
        }
        let of_cluster = refused.entry(cluster.to_owned()).or_default();
        of_cluster.retain(|(known, until)| known != region && *until > now);
        of_cluster.push((region.clone(), now + NO_INSTANCE_FOR));
    }

    /// A region has answered for the cluster.
    pub(super) fn note_answer(&self, cluster: &str, region: &RegionName) {
        let mut refused = self.refused.borrow_mut();
        let Some(of_cluster) = refused.get_mut(cluster) else { return };
        of_cluster.retain(|(known, _)| known != region);
        if of_cluster.is_empty() {
            refused.remove(cluster);
        }
    }

    fn refused_now(&self, cluster: &str, now: Instant) -> Vec<RegionName> {
        let refused = self.refused.borrow();
        let of_cluster = refused.get(cluster).map_or(&[][..], Vec::as_slice);
        of_cluster.iter().filter(|(_, until)| *until > now).map(|(region, _)| region.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_choice_holds_for_moments_and_not_beyond_a_failure() {
        let (memory, start) = (Memory::default(), Instant::now());
        let (fra, was) = ("fra".parse().unwrap(), "was".parse().unwrap());
        assert_eq!(memory.held("c", start), None);
        memory.remember("c", &fra, start + HOLDS_FOR);
        assert_eq!(memory.held("c", start).as_ref(), Some(&fra));
        assert_eq!(memory.held("other", start), None);
        assert_eq!(memory.held("c", start + HOLDS_FOR), None);
        memory.remember("c", &was, start + HOLDS_FOR);
        assert_eq!(memory.held("c", start).as_ref(), Some(&was));
        memory.note_failure("c", start);
        assert_eq!(memory.held("c", start), None);
        // It is still what the next decision compares with.
        assert_eq!(memory.chosen.borrow()["c"].region, was);
    }
}
