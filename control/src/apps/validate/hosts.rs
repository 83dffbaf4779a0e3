//! What hosts and their rules must be.

use super::{Fault, Faults};
use crate::apps::records::domain_of;
use crate::apps::{Context, domains};
use crate::store::Change;
use crate::store::objects::App;
use atoll_model::cache::{CACHE_RULES_MAX, HOST_DOMAINS_MAX, HOSTS_MAX};
use atoll_model::domain::normalise_domain;
use atoll_model::manifest::CompiledApp;
use atoll_model::{HostSpec, OrgName};
use atoll_wire::{Message, record};
use std::collections::BTreeSet;

/// Most of a virtual host's record that rules are: with as many own domains as there may be, the record fits into the
/// 64 KiB that gossip takes.
const RULES_BYTES_MAX: usize = 24 * 1024;

/// Faults of the hosts by themselves.
pub(super) fn check(hosts: &[HostSpec], faults: &mut Faults) {
    let rules: usize = hosts.iter().map(|host| host.cache.len()).sum();
    if hosts.len() > HOSTS_MAX {
        faults.add("hosts", format!("an app has at most {HOSTS_MAX} hosts"));
        return;
    }
    if rules > CACHE_RULES_MAX {
        faults.add("hosts", format!("an app has at most {CACHE_RULES_MAX} rules of the cache, not {rules}"));
        return;
    }
    for (i, host) in hosts.iter().enumerate() {
        let at = format!("hosts[{i}]");
        if host.domains.len() > HOST_DOMAINS_MAX {
            faults.add(format!("{at}.domains"), format!("a host names at most {HOST_DOMAINS_MAX} domains"));
        }
        for (j, domain) in host.domains.iter().enumerate().take(HOST_DOMAINS_MAX) {
            if normalise_domain(domain).as_ref() != Some(domain) {
                let shown: String = domain.escape_debug().take(80).collect();
                let what =
                    format!("`{shown}` is no domain in lower case, without a port and a dot at its end");
                faults.add(format!("{at}.domains[{j}]"), what);
            }
        }
        for (j, rule) in host.cache.iter().enumerate() {
            for (field, error) in rule.errors() {
                faults.add(format!("{at}.cache[{j}].{field}"), error.to_string());
            }
        }
    }
    let bytes = record_bytes(hosts);
    if bytes > RULES_BYTES_MAX {
        let (kib, most) = (bytes.div_ceil(1024), RULES_BYTES_MAX / 1024);
        let what = format!(
            "as edges get them the rules have {kib} KiB, each with its host's domains; at most {most} KiB fit: join rules, or leave `domains` out"
        );
        faults.add("hosts", what);
    }
}

/// Most bytes that the rules have in a virtual host's record.
fn record_bytes(hosts: &[HostSpec]) -> usize {
    let rules = hosts.iter().flat_map(|host| {
        host.cache.iter().map(|rule| record::CacheRule { domains: host.domains.clone(), ..rule.into() })
    });
    // Each with the tag and the length before it.
    rules.map(|rule| rule.encoded_len() + 4).sum()
}

/// Domains that the app has neither from the platform nor by `atoll domains add`.
pub(super) fn unknown_domains(
    change: &Change<'_>,
    context: &Context,
    org: &OrgName,
    app: &CompiledApp,
) -> Vec<Fault> {
    let own = domains::of_app(change, org, &app.app).into_iter().filter(|domain| domain.own);
    let known: BTreeSet<String> = domain_of(&app.app, &app.services, &context.zone)
        .into_values()
        .chain(own.map(|own| own.domain))
        .collect();
    let is_new = change.get::<App>(&format!("{org}/{}", app.app)).is_none();
    let mut faults = Faults::default();
    for (i, host) in app.hosts.iter().enumerate().take(HOSTS_MAX) {
        for (j, domain) in host.domains.iter().enumerate().take(HOST_DOMAINS_MAX) {
            if !known.contains(domain) {
                faults.add(
                    format!("hosts[{i}].domains[{j}]"),
                    unknown(domain, &known, is_new, app, &context.zone),
                );
            }
        }
    }
    faults.0
}

fn unknown(domain: &str, known: &BTreeSet<String>, is_new: bool, app: &CompiledApp, zone: &str) -> String {
    let (shown, app) = (domain.escape_debug().take(253).collect::<String>(), &app.app);
    let has = match known.is_empty() {
        true => "it has none, as no service is public".to_owned(),
        false => format!("it has {}", known.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    let fix = if domain.ends_with(&format!(".{zone}")) {
        format!("names in {zone} come with the app's public services")
    } else {
        let first = if is_new { "deploy without it first, then " } else { "" };
        format!("{first}`atoll domains add {shown} --app {app} …` adds it")
    };
    format!("`{shown}` is no domain of this app; {has}; {fix}")
}
