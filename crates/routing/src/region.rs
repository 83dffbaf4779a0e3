//! Which region serves a request: the nearest healthy one by measured round-trip time.

use atoll_model::RegionName;
use std::fmt;
use std::time::Duration;

/// How healthy a cluster is in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// No healthy instance.
    None,
    /// Some instances are healthy.
    Some,
    /// All are.
    Full,
}

/// What is known of one region for one cluster.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The region.
    pub region: &'a RegionName,
    /// Measured round-trip time to its gateways; `None` when nothing was measured yet.
    pub rtt: Option<Duration>,
    /// The cluster's health there.
    pub health: Health,
    /// Whether a gateway of it can be reached.
    pub tunnel_up: bool,
    /// Whether all of its gateways that can be reached are shutting down.
    pub draining: bool,
    /// Not for this request: it was tried, or it has just said that it can't.
    pub excluded: bool,
    /// Whether it is the region of the one who chooses. Between regions that are as near as each other
    /// (within the hysteresis) it is preferred.
    pub home: bool,
}

/// How much better another region must be before the choice moves. Both must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hysteresis {
    /// By more than this part of the current region's time, in percent.
    pub percent: u32,
    /// By more than this.
    pub at_least: Duration,
}

impl Default for Hysteresis {
    fn default() -> Self {
        Self { percent: 20, at_least: Duration::from_millis(2) }
    }
}

impl Hysteresis {
    const fn half(self) -> Self {
        let at_least = Duration::from_nanos(self.at_least.as_nanos() as u64 / 2);
        Self { percent: self.percent / 2, at_least }
    }
}

/// What became of one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The nearest that can serve.
    Chosen,
    /// Was chosen before, and no other is enough better.
    Kept,
    /// The chooser's own region, and no other is enough nearer.
    Home,
    /// Chosen although no region is known to be healthy.
    ChosenInPanic,
    /// Lost: tried before, or it has just refused.
    Excluded,
    /// Lost: no gateway can be reached.
    NoTunnel,
    /// Lost: no healthy instance.
    Unhealthy,
    /// Lost: its gateways are shutting down, and another can serve.
    Draining,
    /// Lost: farther than the chosen one.
    Farther,
    /// Lost: nearer than the chosen one, but not by enough to move.
    NotEnoughNearer,
    /// Lost: no round-trip time yet.
    Unmeasured,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chosen => "chosen: the nearest that can serve",
            Self::Kept => "kept: no other is enough nearer",
            Self::Home => "chosen: the own region, and no other is enough nearer",
            Self::ChosenInPanic => "chosen although no region is known to be healthy",
            Self::Excluded => "tried already, or has just refused",
            Self::NoTunnel => "no gateway can be reached",
            Self::Unhealthy => "no healthy instance",
            Self::Draining => "its gateways are shutting down",
            Self::Farther => "farther",
            Self::NotEnoughNearer => "nearer, but not by enough to move",
            Self::Unmeasured => "no round-trip time measured yet",
        })
    }
}

/// A choice and its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Index of the chosen candidate; `None` when none can serve.
    pub chosen: Option<usize>,
    /// No region is known to be healthy: the choice is a guess.
    pub panic: bool,
    /// What became of each candidate, in their order.
    pub verdicts: Vec<Verdict>,
}

/// Chooses among `candidates`. `previous` is the region chosen last for this cluster.
///
/// A region serves when it is healthy, can be reached, and is not excluded; draining ones only when no
/// other serves. When *no* reachable region is healthy, what is known may be wrong: then any
/// reachable one will do, the nearest first.
#[must_use]
pub fn choose(
    candidates: &[Candidate<'_>],
    previous: Option<&RegionName>,
    hysteresis: Hysteresis,
) -> Decision {
    // An excluded one that is healthy counts: a retry must not turn into a panic.
    let panic = !candidates.iter().any(|c| c.tunnel_up && c.health != Health::None);
    let mut verdicts: Vec<Verdict> =
        candidates.iter().map(|c| disqualified(c, panic).unwrap_or(Verdict::Farther)).collect();
    let others = (0..candidates.len()).any(|i| verdicts[i] == Verdict::Farther && !candidates[i].draining);
    for (candidate, verdict) in candidates.iter().zip(&mut verdicts) {
        if others && candidate.draining && *verdict == Verdict::Farther {
            *verdict = Verdict::Draining;
        }
    }
    let fit = |i: &usize| verdicts[*i] == Verdict::Farther;
    let Some(nearest) =
        (0..candidates.len()).filter(fit).min_by(|a, b| nearer(&candidates[*a], &candidates[*b]))
    else {
        return Decision { chosen: None, panic, verdicts };
    };
    let current = (0..candidates.len()).filter(fit).find(|i| Some(candidates[*i].region) == previous);
    let holds = |i: &usize| !enough_nearer(&candidates[nearest], &candidates[*i], hysteresis);
    // Coming home asks for more than staying there does, else a time at the bound would move it to and fro.
    let returns = |i: &usize| {
        let away = current.is_some_and(|current| current != *i);
        let bound = if away { hysteresis.half() } else { hysteresis };
        !enough_nearer(&candidates[nearest], &candidates[*i], bound)
    };
    let home = (0..candidates.len()).filter(fit).find(|i| candidates[*i].home).filter(returns);
    let kept = home.or_else(|| current.filter(holds));
    let chosen = kept.unwrap_or(nearest);
    for i in 0..candidates.len() {
        if verdicts[i] == Verdict::Farther {
            verdicts[i] = loss(&candidates[i], &candidates[chosen]);
        }
    }
    verdicts[chosen] = match (panic, kept) {
        (true, _) => Verdict::ChosenInPanic,
        (false, Some(kept)) if kept != nearest && home.is_some() => Verdict::Home,
        (false, Some(kept)) if kept != nearest => Verdict::Kept,
        (false, _) => Verdict::Chosen,
    };
    Decision { chosen: Some(chosen), panic, verdicts }
}

fn disqualified(candidate: &Candidate<'_>, panic: bool) -> Option<Verdict> {
    if candidate.excluded {
        Some(Verdict::Excluded)
    } else if !candidate.tunnel_up {
        Some(Verdict::NoTunnel)
    } else if candidate.health == Health::None && !panic {
        Some(Verdict::Unhealthy)
    } else {
        None
    }
}

/// Measured before unmeasured, then by time, then by name so that equal ones don't flap.
fn nearer(a: &Candidate<'_>, b: &Candidate<'_>) -> std::cmp::Ordering {
    let key = |c: &Candidate<'_>| (c.rtt.is_none(), c.rtt);
    key(a).cmp(&key(b)).then_with(|| a.region.cmp(b.region))
}

fn enough_nearer(other: &Candidate<'_>, current: &Candidate<'_>, hysteresis: Hysteresis) -> bool {
    match (other.rtt, current.rtt) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(other), Some(current)) => {
            let gain = current.saturating_sub(other);
            gain > hysteresis.at_least && gain > current / 100 * hysteresis.percent
        }
    }
}

fn loss(loser: &Candidate<'_>, winner: &Candidate<'_>) -> Verdict {
    match (loser.rtt, winner.rtt) {
        (None, _) => Verdict::Unmeasured,
        (Some(loser), Some(winner)) if loser < winner => Verdict::NotEnoughNearer,
        _ => Verdict::Farther,
    }
}

#[cfg(test)]
mod tests;
