//! `[[host]]`: what an app says of its domains.

use super::cache;
use super::error::{Position, Problems};
use super::section::Section;
use crate::cache::{CACHE_RULES_MAX, HOST_DOMAINS_MAX, HOSTS_MAX, HostSpec};
use crate::domain::normalise_domain;

const KEYS: &[&str] = &["domains", "cache"];
const LATER: &[&str] = &["advertise", "tls", "route", "limit", "auth"];

/// Reads each `[[host]]`, with the place of its domains.
pub(super) fn read(root: &Section<'_, '_>, problems: &mut Problems<'_>) -> (Vec<HostSpec>, Vec<Position>) {
    let tables = root.tables("host", problems);
    if tables.len() > HOSTS_MAX {
        problems.add(tables[HOSTS_MAX].span(), "host", format!("an app has at most {HOSTS_MAX} `[[host]]`"));
        return (Vec::new(), Vec::new());
    }
    let (mut hosts, mut positions, mut rules) = (Vec::new(), Vec::new(), 0);
    for table in tables {
        table.check_keys(KEYS, LATER, problems);
        let at = table.get("domains").map_or_else(|| table.span(), toml::Spanned::span);
        positions.push(problems.position(at.start));
        let domains = read_domains(&table, problems);
        let cache = table.tables("cache", problems);
        rules += cache.len();
        if let Some(rule) = cache.first().filter(|_| rules > CACHE_RULES_MAX) {
            let what = format!("an app has at most {CACHE_RULES_MAX} `[[host.cache]]`");
            problems.add(rule.span(), rule.path(), what);
            break;
        }
        let cache = cache.iter().filter_map(|rule| cache::read(rule, problems)).collect();
        hosts.push(HostSpec { domains, cache });
    }
    (hosts, positions)
}

fn read_domains(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<String> {
    let key = table.path_of("domains");
    let mut domains = Vec::new();
    for (text, at) in table.list::<String>("domains", HOST_DOMAINS_MAX, problems) {
        let shown: String = text.escape_debug().take(80).collect();
        match normalise_domain(&text) {
            Some(domain) if domains.contains(&domain) => {
                problems.add(at, &key, format!("`{domain}` is listed twice"));
            }
            Some(domain) => domains.push(domain),
            None if text.rsplit_once(':').is_some_and(|(host, _)| normalise_domain(host).is_some()) => {
                problems.add(
                    at,
                    &key,
                    format!("`{shown}`: a port is not supported yet by this version of atoll"),
                );
            }
            None => {
                let what = format!(
                    "`{shown}` is no domain; write a host name, or `*.` before one for one label more"
                );
                problems.add(at, &key, what);
            }
        }
    }
    if let Some(value) =
        table.get("domains").filter(|value| value.get_ref().as_array().is_some_and(|all| all.is_empty()))
    {
        problems.add(value.span(), &key, "`domains` is empty; leave it out to mean every domain of the app");
    }
    domains
}

#[cfg(test)]
mod tests;
