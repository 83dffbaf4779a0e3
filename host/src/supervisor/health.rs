//! From the outcomes of checks to health.

use super::Millis;

/// Until it first passes, a check is repeated at least this often, so that starts are quick.
const EAGER_MS: Millis = 100;

/// When a check asks and what its outcomes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two.
    pub every_ms: Millis,
    /// After the start, failures don't count for this long.
    pub grace_ms: Millis,
    /// Successes in a row that make it pass.
    pub up: u32,
    /// Failures in a row that make it fail.
    pub down: u32,
}

#[derive(Debug)]
struct Check {
    /// Nothing while an answer is awaited.
    due: Option<Millis>,
    ups: u32,
    downs: u32,
    passes: Option<bool>,
    error: String,
}

/// The checks of one running program.
#[derive(Debug)]
pub(super) struct Health {
    since: Millis,
    healthy_since: Option<Millis>,
    checks: Vec<Check>,
}

impl Health {
    pub(super) fn new(timings: &[Timing], now: Millis, healthy: bool) -> Self {
        let check = |_: &Timing| Check {
            due: Some(now),
            ups: 0,
            downs: 0,
            passes: healthy.then_some(true),
            error: String::new(),
        };
        Self {
            since: now,
            healthy_since: healthy.then_some(now),
            checks: timings.iter().map(check).collect(),
        }
    }

    /// The checks to ask now; they are not due again before their answer.
    pub(super) fn due(&mut self, now: Millis) -> Vec<usize> {
        let due = |(index, check): (usize, &mut Check)| {
            check.due.is_some_and(|at| at <= now).then(|| {
                check.due = None;
                index
            })
        };
        self.checks.iter_mut().enumerate().filter_map(due).collect()
    }

    pub(super) fn checked(
        &mut self,
        timings: &[Timing],
        now: Millis,
        index: usize,
        outcome: Result<(), String>,
    ) {
        let (Some(check), Some(timing)) = (self.checks.get_mut(index), timings.get(index)) else { return };
        let in_grace = now < self.since + timing.grace_ms;
        match outcome {
            Ok(()) => check.succeeded(timing),
            Err(why) => check.failed(timing, why, in_grace),
        }
        let pause = if check.passes.is_none() { timing.every_ms.min(EAGER_MS) } else { timing.every_ms };
        check.due = Some(now + pause);
        match (self.passes(), self.healthy_since) {
            (true, None) => self.healthy_since = Some(now),
            (false, Some(_)) => self.healthy_since = None,
            _ => {}
        }
    }

    pub(super) fn passes(&self) -> bool {
        self.verdict() == Some(true)
    }

    /// Nothing while it is too early to say.
    pub(super) fn verdict(&self) -> Option<bool> {
        if self.checks.iter().any(|check| check.passes == Some(false)) {
            return Some(false);
        }
        self.checks.iter().all(|check| check.passes == Some(true)).then_some(true)
    }

    pub(super) fn healthy_for(&self, now: Millis) -> Millis {
        self.healthy_since.map_or(0, |since| now.saturating_sub(since))
    }

    pub(super) fn timeout(&self) -> Option<Millis> {
        self.checks.iter().filter_map(|check| check.due).min()
    }

    /// What the first check that doesn't pass said last.
    pub(super) fn detail(&self) -> String {
        let bad = |wanted| self.checks.iter().find(|check| check.passes == wanted);
        bad(Some(false)).or_else(|| bad(None)).map_or_else(String::new, |check| check.error.clone())
    }
}

impl Check {
    fn succeeded(&mut self, timing: &Timing) {
        self.downs = 0;
        self.ups = self.ups.saturating_add(1);
        if self.ups >= timing.up {
            self.passes = Some(true);
            self.error.clear();
        }
    }

    fn failed(&mut self, timing: &Timing, why: String, in_grace: bool) {
        self.ups = 0;
        self.downs = self.downs.saturating_add(1);
        self.error = why;
        match self.passes {
            Some(true) if self.downs >= timing.down => self.passes = Some(false),
            // It has had all its grace without passing once.
            None if !in_grace => self.passes = Some(false),
            Some(_) | None => {}
        }
    }
}
