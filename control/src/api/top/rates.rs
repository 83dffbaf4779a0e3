//! From what nodes have counted, asked twice, to what happens now. Shows nothing that was not measured.

use atoll_model::{NodeName, RegionName};
use atoll_wire::node::{ClusterStats, ProcessStats, Stats};
use serde::Serialize;
use std::collections::BTreeMap;

/// The first bucket of a gateway's times begins here, ms; four make a doubling.
const FIRST_MS: f64 = 0.1;

/// What is remembered of the last answers.
#[derive(Debug, Default)]
pub(super) struct Rates(BTreeMap<NodeName, Counted>);

#[derive(Debug)]
struct Counted {
    at_ms: u64,
    stats: Stats,
}

/// What happened to a cluster in a region between two answers of its gateways.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Traffic {
    pub(super) requests_per_s: f64,
    pub(super) failures_per_s: f64,
    pub(super) in_flight: u64,
    latency: Vec<u64>,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub(super) struct Load {
    /// CPUs: 0.5 is half of one.
    pub(super) cpu: f64,
    /// Resident memory, bytes.
    pub(super) memory_bytes: u64,
}

/// What is known of now.
#[derive(Debug, Default)]
pub(super) struct Now {
    /// By region and cluster.
    pub(super) traffic: BTreeMap<(RegionName, String), Traffic>,
    /// Regions in which a gateway has answered twice: what is not in `traffic` there is 0.
    pub(super) regions: Vec<RegionName>,
    /// Programs and sidecars by instance.
    pub(super) instances: BTreeMap<String, (Option<Load>, Option<Load>)>,
    pub(super) nodes: BTreeMap<NodeName, Load>,
}

/// An answer of a node.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) node: NodeName,
    pub(super) region: RegionName,
    pub(super) is_gateway: bool,
    /// When it came, ms of any clock that only goes on.
    pub(super) at_ms: u64,
    pub(super) stats: Stats,
}

impl Rates {
    /// What happened between the answers before and these. Nodes that did not answer are forgotten.
    pub(super) fn take(&mut self, answers: Vec<Answer>) -> Now {
        let (mut now, mut next) = (Now::default(), BTreeMap::new());
        for Answer { node, region, is_gateway, at_ms, stats } in answers {
            if let Some(before) = self.0.get(&node) {
                let seconds = at_ms.saturating_sub(before.at_ms).max(1) as f64 / 1000.0;
                if is_gateway {
                    now.add_traffic(&region, &before.stats, &stats, seconds);
                }
                now.add_loads(&node, &before.stats, &stats, seconds);
            }
            next.insert(node, Counted { at_ms, stats });
        }
        self.0 = next;
        now
    }
}

impl Now {
    fn add_traffic(&mut self, region: &RegionName, before: &Stats, stats: &Stats, seconds: f64) {
        if !self.regions.contains(region) {
            self.regions.push(region.clone());
        }
        let before: BTreeMap<&str, &ClusterStats> =
            before.clusters.iter().map(|stats| (stats.cluster.as_str(), stats)).collect();
        for cluster in &stats.clusters {
            // A gateway that began anew counts from 0; so does one that had not been asked for the cluster.
            let old = before.get(cluster.cluster.as_str()).filter(|old| old.requests <= cluster.requests);
            let traffic = self.traffic.entry((region.clone(), cluster.cluster.clone())).or_default();
            let grown = |now: u64, old: Option<u64>| now.saturating_sub(old.unwrap_or(0));
            let requests = grown(cluster.requests, old.map(|old| old.requests));
            traffic.requests_per_s += requests as f64 / seconds;
            traffic.failures_per_s += grown(cluster.failures, old.map(|old| old.failures)) as f64 / seconds;
            traffic.in_flight += u64::from(cluster.in_flight);
            traffic.latency.resize(traffic.latency.len().max(cluster.latency.len()), 0);
            for (bucket, count) in cluster.latency.iter().enumerate() {
                let old = old.and_then(|old| old.latency.get(bucket)).copied();
                traffic.latency[bucket] += grown(*count, old);
            }
        }
    }

    fn add_loads(&mut self, node: &NodeName, before: &Stats, stats: &Stats, seconds: f64) {
        if let (Some(old), Some(new)) = (&before.node, &stats.node) {
            self.nodes.insert(node.clone(), load(Some(old), new, seconds).unwrap_or_default());
        }
        let before: BTreeMap<&str, _> =
            before.instances.iter().map(|stats| (stats.instance.as_str(), stats)).collect();
        for stats in &stats.instances {
            let old = before.get(stats.instance.as_str());
            let program = stats.program.as_ref();
            let program =
                program.and_then(|new| load(old.and_then(|old| old.program.as_ref()), new, seconds));
            let sidecar = stats.sidecar.as_ref();
            let sidecar =
                sidecar.and_then(|new| load(old.and_then(|old| old.sidecar.as_ref()), new, seconds));
            self.instances.insert(stats.instance.clone(), (program, sidecar));
        }
    }
}

/// Nothing for a process that was not there before.
fn load(old: Option<&ProcessStats>, new: &ProcessStats, seconds: f64) -> Option<Load> {
    let used_ms = new.cpu_ms.saturating_sub(old?.cpu_ms);
    Some(Load { cpu: round(used_ms as f64 / 1000.0 / seconds), memory_bytes: new.memory_bytes })
}

impl Traffic {
    /// The time below which `share` of the answers took, ms, as exactly as buckets of 19 % are; nothing
    /// where there were none.
    pub(super) fn percentile_ms(&self, share: f64) -> Option<f64> {
        let all: u64 = self.latency.iter().sum();
        let wanted = (all as f64 * share).ceil().max(1.0);
        let mut seen = 0.0;
        let bucket = self.latency.iter().position(|count| {
            seen += *count as f64;
            seen >= wanted
        })?;
        Some(round(FIRST_MS * 2_f64.powf((bucket as f64 + 0.5) / 4.0)))
    }
}

/// To three digits after the point: more is not known.
pub(super) fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(at_ms: u64, requests: u64, failures: u64, cpu_ms: u64) -> Answer {
        let cluster = ClusterStats {
            cluster: "default/shop/web".into(),
            requests,
            failures,
            in_flight: 2,
            latency: vec![requests, 0, failures],
        };
        let node = Some(ProcessStats { cpu_ms, memory_bytes: 5 });
        let stats = Stats { clusters: vec![cluster], instances: Vec::new(), node };
        let (node, region) = ("fra1-gw".parse().unwrap(), "fra".parse().unwrap());
        Answer { node, region, is_gateway: true, at_ms, stats }
    }

    fn key() -> (RegionName, String) {
        ("fra".parse().unwrap(), "default/shop/web".to_owned())
    }

    #[test]
    fn two_answers_make_a_rate() {
        let mut rates = Rates::default();
        assert!(rates.take(vec![answer(1_000, 10, 0, 100)]).traffic.is_empty());
        let now = rates.take(vec![answer(3_000, 30, 1, 1_100)]);
        let traffic = &now.traffic[&key()];
        assert_eq!((traffic.requests_per_s, traffic.failures_per_s, traffic.in_flight), (10.0, 0.5, 2));
        assert_eq!((traffic.percentile_ms(0.5), traffic.percentile_ms(0.99)), (Some(0.109), Some(0.154)));
        assert_eq!(now.nodes.values().next(), Some(&Load { cpu: 0.5, memory_bytes: 5 }));
        let idle = rates.take(vec![answer(4_000, 30, 1, 1_100)]);
        assert_eq!(idle.traffic[&key()].percentile_ms(0.5), None);
    }

    #[test]
    fn a_gateway_that_began_anew_counts_from_nothing_and_one_that_was_away_is_not_measured() {
        let mut rates = Rates::default();
        rates.take(vec![answer(1_000, 1_000, 0, 100)]);
        let now = rates.take(vec![answer(2_000, 4, 0, 100)]);
        assert_eq!(now.traffic[&key()].requests_per_s, 4.0);
        assert!(rates.take(Vec::new()).regions.is_empty());
        assert!(rates.take(vec![answer(9_000, 1_000_000, 0, 100)]).traffic.is_empty());
    }
}
