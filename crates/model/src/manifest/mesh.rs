//! `calls` of a service, and `[[allow]]`.

use super::error::Problems;
use super::section::{Section, nearest};
use crate::mesh::{AllowFrom, AllowRule, CallTarget, GrpcPermit, HttpPermit};
use crate::names::ServiceName;
use crate::spec::{Protocol, ServiceSpec};
use std::collections::BTreeMap;
use std::ops::Range;

/// Most services that one calls.
pub const CALLS_MAX: usize = 64;
/// Most `[[allow]]` rules of an app.
pub const RULES_MAX: usize = 256;
/// Most entries of one list in a rule.
pub const ENTRIES_MAX: usize = 64;

const RULE_KEYS: &[&str] = &["from", "to", "http", "grpc"];

/// Reads `calls`.
pub(super) fn read_calls(
    table: &Section<'_, '_>,
    env: &BTreeMap<String, String>,
    siblings: &[&str],
    problems: &mut Problems<'_>,
) -> Vec<CallTarget> {
    let key = table.path_of("calls");
    let mut calls: Vec<CallTarget> = Vec::new();
    for (call, at) in table.list::<CallTarget>("calls", CALLS_MAX, problems) {
        if call.app.is_none() && !siblings.contains(&call.service.as_str()) {
            problems.add(at, &key, no_service(call.service.as_str(), siblings));
        } else if env.contains_key(&call.variable()) {
            let what = format!("`{}` is set both by this call and under `env`; rename one", call.variable());
            problems.add(at, &key, what);
        } else if let Some(other) = calls.iter().find(|other| other.variable() == call.variable()) {
            let what = if *other == call {
                format!("`{call}` is listed twice")
            } else {
                format!("`{call}` and `{other}` would both set `{}`", call.variable())
            };
            problems.add(at, &key, what);
        } else {
            calls.push(call);
        }
    }
    calls
}

/// Reads each `[[allow]]` into the service that it opens.
pub(super) fn read_allow(
    root: &Section<'_, '_>,
    services: &mut BTreeMap<ServiceName, ServiceSpec>,
    siblings: &[&str],
    problems: &mut Problems<'_>,
) {
    let tables = root.tables("allow", problems);
    if tables.len() > RULES_MAX {
        problems.add(root.span(), "allow", format!("an app has at most {RULES_MAX} `[[allow]]` rules"));
        return;
    }
    for table in tables {
        table.check_keys(RULE_KEYS, &[], problems);
        let rule = read_rule(&table, siblings, problems);
        let Some((to, at)) = read_to(&table, siblings, problems) else { continue };
        // A service that was not read has its own error.
        let Some(spec) = services.get_mut(&to) else { continue };
        if spec.protocol == Protocol::Tcp && !(rule.http.is_empty() && rule.grpc.is_empty()) {
            let what = format!("`{to}` speaks tcp: a rule for it has neither `http` nor `grpc`");
            problems.add(at, &table.path_of("to"), what);
        }
        spec.allow.push(rule);
    }
}

fn read_to(
    table: &Section<'_, '_>,
    siblings: &[&str],
    problems: &mut Problems<'_>,
) -> Option<(ServiceName, Range<usize>)> {
    let key = table.path_of("to");
    if table.get("to").is_none() {
        problems.add(table.span(), &key, "`to` is missing: the service of this app that may be called");
        return None;
    }
    let (text, at) = table.string("to", problems)?;
    match text.parse::<ServiceName>() {
        Ok(name) if siblings.contains(&name.as_str()) => Some((name, at)),
        Ok(name) => {
            problems.add(at, &key, no_service(name.as_str(), siblings));
            None
        }
        Err(error) => {
            problems.add(at, &key, error.to_string());
            None
        }
    }
}

fn read_rule(table: &Section<'_, '_>, siblings: &[&str], problems: &mut Problems<'_>) -> AllowRule {
    if table.get("from").is_none() {
        let what = "`from` is missing: who may call, such as [\"web\", \"default/billing/worker\"]; [] lets nobody in";
        problems.add(table.span(), &table.path_of("from"), what);
    }
    let mut from = Vec::new();
    for (caller, at) in table.list::<AllowFrom>("from", ENTRIES_MAX, problems) {
        match &caller {
            AllowFrom::Sibling(name) if !siblings.contains(&name.as_str()) => {
                problems.add(at, &table.path_of("from"), no_service(name.as_str(), siblings));
            }
            _ => from.push(caller),
        }
    }
    let http = table.list::<HttpPermit>("http", ENTRIES_MAX, problems);
    let grpc = table.list::<GrpcPermit>("grpc", ENTRIES_MAX, problems);
    for (key, empty) in [("http", http.is_empty()), ("grpc", grpc.is_empty())] {
        // An empty list would read as nothing, and mean everything.
        if let Some(value) = table.get(key).filter(|value| empty && value.get_ref().is_array()) {
            let what = format!("`{key}` is empty; leave it out to allow everything");
            problems.add(value.span(), &table.path_of(key), what);
        }
    }
    let bare = |list: Vec<(GrpcPermit, _)>| list.into_iter().map(|(permit, _)| permit).collect();
    AllowRule { from, http: http.into_iter().map(|(permit, _)| permit).collect(), grpc: bare(grpc) }
}

fn no_service(name: &str, siblings: &[&str]) -> String {
    match nearest(name, siblings.iter().copied()) {
        Some(near) => format!("this app has no service `{name}`; did you mean `{near}`?"),
        None => format!("this app has no service `{name}`"),
    }
}
