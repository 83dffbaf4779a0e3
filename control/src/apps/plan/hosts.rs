//! What a deploy would change of an app's domains.

use atoll_model::{CacheRule, HostSpec};
use std::collections::BTreeMap;

/// Most changes of rules that are said of a host.
const SAID_MAX: usize = 10;

/// One host that would change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HostChange {
    pub(super) action: &'static str,
    /// Its domains.
    pub(super) name: String,
    pub(super) detail: String,
}

/// The changes between two lists of hosts. Those with the same domains are the same host, the first the first.
pub(super) fn changes(old: &[HostSpec], new: &[HostSpec]) -> Vec<HostChange> {
    let mut before: BTreeMap<&[String], Vec<&HostSpec>> = BTreeMap::new();
    for host in old.iter().rev() {
        before.entry(&host.domains).or_default().push(host);
    }
    let mut changes = Vec::new();
    for host in new {
        let (action, detail) = match before.get_mut(host.domains.as_slice()).and_then(Vec::pop) {
            Some(old) if old == host => continue,
            Some(old) => ("replace", rules_change(&old.cache, &host.cache)),
            None => ("create", counted(host.cache.len())),
        };
        changes.push(HostChange { action, name: name(host), detail });
    }
    for host in before.into_values().flatten() {
        changes.push(HostChange { action: "remove", name: name(host), detail: counted(host.cache.len()) });
    }
    // Which rule is looked at first is a change, too.
    let is_moved = changes.is_empty() && old != new;
    changes.extend(is_moved.then(|| HostChange {
        action: "replace",
        name: new.iter().map(name).collect::<Vec<_>>().join("; "),
        detail: "their order".to_owned(),
    }));
    changes
}

fn name(host: &HostSpec) -> String {
    match host.domains.as_slice() {
        [] => "(every domain)".to_owned(),
        domains => domains.join(", "),
    }
}

fn counted(rules: usize) -> String {
    match rules {
        1 => "1 rule of the cache".to_owned(),
        rules => format!("{rules} rules of the cache"),
    }
}

/// What differs, by the rules' paths.
fn rules_change(old: &[CacheRule], new: &[CacheRule]) -> String {
    let mut before: BTreeMap<&str, Vec<&CacheRule>> = BTreeMap::new();
    for rule in old.iter().rev() {
        before.entry(rule.path.as_str()).or_default().push(rule);
    }
    let mut said = Vec::new();
    for rule in new {
        let path = rule.path.as_str();
        match before.get_mut(path).and_then(Vec::pop) {
            Some(old) if old == rule => {}
            Some(old) => said.push(format!("cache {path}: {}", changed_keys(old, rule).join(", "))),
            None => said.push(format!("cache {path} added")),
        }
    }
    said.extend(before.into_values().flatten().map(|rule| format!("cache {} removed", rule.path)));
    if said.is_empty() {
        return "the order of the rules of the cache".to_owned();
    }
    let more = said.len().saturating_sub(SAID_MAX);
    said.truncate(SAID_MAX);
    if more > 0 {
        said.push(format!("and {more} more"));
    }
    said.join("; ")
}

/// The manifest's names of what differs between two rules.
fn changed_keys(old: &CacheRule, new: &CacheRule) -> Vec<&'static str> {
    let all = [
        ("off", old.off != new.off),
        ("ttl", old.ttl_s != new.ttl_s),
        ("force", old.force != new.force),
        ("browser_ttl", old.browser_ttl_s != new.browser_ttl_s),
        ("key", old.query != new.query || old.sort_query != new.sort_query),
        ("tags", old.tags != new.tags || old.show_tags != new.show_tags),
        ("stale_while_revalidate", old.stale_while_revalidate_s != new.stale_while_revalidate_s),
        ("stale_if_error", old.stale_if_error_s != new.stale_if_error_s),
        ("tier", old.tier != new.tier),
        ("bypass", old.bypass != new.bypass),
        ("compress", old.compress != new.compress),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn rule(path: &str, ttl_s: Option<u64>) -> CacheRule {
        CacheRule { ttl_s, ..CacheRule::new(path.parse().unwrap()) }
    }

    fn host(domains: &[&str], cache: &[CacheRule]) -> HostSpec {
        HostSpec { domains: domains.iter().map(ToString::to_string).collect(), cache: cache.to_vec() }
    }

    fn said(old: &[HostSpec], new: &[HostSpec]) -> Vec<String> {
        let each = changes(old, new).into_iter();
        each.map(|change| format!("{} {}: {}", change.action, change.name, change.detail)).collect()
    }

    #[test]
    fn what_changes_is_said_by_path_and_key() {
        let a = host(&["a.b"], &[rule("/x/**", None), rule("/y", Some(1))]);
        let all = host(&[], &[rule("/", Some(1))]);
        assert_eq!(said(&[], std::slice::from_ref(&a)), ["create a.b: 2 rules of the cache"]);
        assert_eq!(
            said(&[a.clone(), all.clone()], std::slice::from_ref(&a)),
            ["remove (every domain): 1 rule of the cache"]
        );
        assert_eq!(said(std::slice::from_ref(&a), std::slice::from_ref(&a)), [""; 0]);
        let changed = host(&["a.b"], &[CacheRule { off: true, ..rule("/x/**", Some(2)) }, rule("/z", None)]);
        assert_eq!(
            said(std::slice::from_ref(&a), &[changed]),
            ["replace a.b: cache /x/**: off, ttl; cache /z added; cache /y removed"]
        );
        let turned = host(&["a.b"], &[rule("/y", Some(1)), rule("/x/**", None)]);
        assert_eq!(
            said(std::slice::from_ref(&a), &[turned]),
            ["replace a.b: the order of the rules of the cache"]
        );
        assert_eq!(said(&[a.clone(), all.clone()], &[all, a]), ["replace (every domain); a.b: their order"]);
    }
}
