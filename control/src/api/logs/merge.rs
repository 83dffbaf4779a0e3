//! Lines of several instances, put in order of time as far as they are here.

use atoll_model::InstanceId;
use atoll_wire::node::LogLine;
use std::collections::{BTreeMap, VecDeque};

/// What waits of each instance. Whoever fills it asks an instance for more only once it has nothing left.
#[derive(Debug, Default)]
pub(super) struct Merge(BTreeMap<InstanceId, Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<LogLine>,
    /// More of its past is to come, so that lines of others must wait for it.
    behind: bool,
}

impl Merge {
    /// An instance whose past is (`behind`) or isn't waited for.
    pub(super) fn join(&mut self, instance: InstanceId, behind: bool) {
        self.0.insert(instance, Waiting { behind, ..Waiting::default() });
    }

    /// Lines of one that has joined, in order.
    pub(super) fn push(&mut self, instance: &InstanceId, lines: Vec<LogLine>) {
        if let Some(waiting) = self.0.get_mut(instance) {
            waiting.lines.extend(lines);
        }
    }

    /// Nobody waits for it any more: its past is told, or it can't be had.
    pub(super) fn release(&mut self, instance: &InstanceId) {
        if let Some(waiting) = self.0.get_mut(instance) {
            waiting.behind = false;
        }
    }

    /// Whether lines of it wait.
    pub(super) fn has(&self, instance: &InstanceId) -> bool {
        self.0.get(instance).is_some_and(|waiting| !waiting.lines.is_empty())
    }

    /// It leaves.
    pub(super) fn leave(&mut self, instance: &InstanceId) {
        self.0.remove(instance);
    }

    /// The earliest line, unless an earlier one may be on its way.
    pub(super) fn next(&mut self) -> Option<(InstanceId, LogLine)> {
        if self.0.values().any(|waiting| waiting.behind && waiting.lines.is_empty()) {
            return None;
        }
        let first = |waiting: &Waiting| waiting.lines.front().map(|line| line.at_ms);
        let times = self.0.iter().filter_map(|(instance, waiting)| Some((first(waiting)?, instance)));
        let instance = times.min()?.1.clone();
        let line = self.0.get_mut(&instance)?.lines.pop_front()?;
        Some((instance, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ms: u64) -> LogLine {
        LogLine { at_ms, ..LogLine::default() }
    }

    #[test]
    fn the_past_comes_in_order_and_the_present_as_it_comes() {
        let [a, b] = [1, 2].map(|number| InstanceId::from_parts(number, 0));
        let mut merge = Merge::default();
        merge.join(a.clone(), true);
        merge.join(b.clone(), true);
        merge.push(&a, vec![line(1), line(5)]);
        assert_eq!(merge.next(), None, "b may have an earlier one");
        merge.push(&b, vec![line(2), line(3)]);
        merge.release(&b);
        let all: Vec<_> = std::iter::from_fn(|| merge.next()).map(|(_, line)| line.at_ms).collect();
        assert_eq!(all, [1, 2, 3, 5]);
        merge.push(&b, vec![line(7)]);
        assert_eq!(merge.next(), None, "a has more of its past");
        merge.release(&a);
        assert_eq!(merge.next().unwrap().0, b);
        merge.push(&a, vec![line(6)]);
        assert!(merge.has(&a));
        merge.leave(&a);
        assert_eq!(merge.next(), None);
    }
}
