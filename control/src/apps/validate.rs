//! What an app must be before anything changes. The manifest's own checks are the client's; these hold for
//! whoever calls the API.

mod hosts;

use super::Context;
use crate::apps::records::domain_of;
use crate::store::Change;
use atoll_model::manifest::{
    CALLS_MAX, CompiledApp, INSTANCES_MAX, LABEL_BYTES_MAX, SERVICES_MAX, SPEC_BYTES_MAX,
};
use atoll_model::names::NAME_BYTES_MAX;
use atoll_model::{
    AllowRule, CallTarget, Check, CheckKind, OrgName, Protocol, RegionName, ServiceName, ServiceSpec,
};
use atoll_wire::{Message, record};
use serde::Serialize;

/// Longest drain, ms.
const DRAIN_MS_MAX: u64 = 3_600_000;
/// Most of a record that comes from the specification: gossip takes 64 KiB, names and ids go around it.
const RECORD_BYTES_MAX: usize = 62 * 1024;
/// `org/app/service`.
const CLUSTER_BYTES_MAX: usize = 3 * NAME_BYTES_MAX + 2;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Fault {
    /// Where, as a path into the request.
    pub field: String,
    /// What, and what to do.
    pub message: String,
}

/// Every fault of an app; none: it can be deployed.
#[must_use]
pub fn faults(app: &CompiledApp, context: &Context) -> Vec<Fault> {
    let mut faults = Faults::default();
    if app.services.is_empty() {
        faults.add("services", "an app needs at least one service");
    }
    if app.services.len() > SERVICES_MAX {
        faults.add("services", format!("an app has at most {SERVICES_MAX} services"));
    }
    for (name, spec) in &app.services {
        service(name, spec, context, &mut faults);
    }
    for (name, domain) in domain_of(&app.app, &app.services, &context.zone) {
        if domain.split('.').next().unwrap_or_default().len() > LABEL_BYTES_MAX {
            let message = format!(
                "its host name `{domain}` has a label of more than {LABEL_BYTES_MAX} characters: shorten a name"
            );
            faults.add(format!("services.{name}"), message);
        }
    }
    hosts::check(&app.hosts, &mut faults);
    faults.0
}

/// [`faults`], and domains that the app has not got.
#[must_use]
pub fn all_faults(change: &Change<'_>, context: &Context, org: &OrgName, app: &CompiledApp) -> Vec<Fault> {
    let mut all = faults(app, context);
    all.extend(hosts::unknown_domains(change, context, org, app));
    all
}

/// Faults of one service alone.
#[must_use]
pub fn faults_of(name: &ServiceName, spec: &ServiceSpec, context: &Context) -> Vec<Fault> {
    let mut faults = Faults::default();
    service(name, spec, context, &mut faults);
    faults.0
}

fn service(name: &ServiceName, spec: &ServiceSpec, context: &Context, faults: &mut Faults) {
    let at = |field: &str| format!("services.{name}.{field}");
    if spec.run.first().is_none_or(String::is_empty) {
        faults.add(at("run"), "there is no program to run");
    }
    if spec.bundle.is_none() && !spec.working_dir.starts_with('/') {
        faults.add(at("working_dir"), "the working directory must be absolute");
    }
    if spec.drain_ms > DRAIN_MS_MAX {
        faults.add(at("drain_ms"), "an instance may drain for an hour at most");
    }
    let bytes = spec.text_bytes();
    if bytes > SPEC_BYTES_MAX {
        let most = SPEC_BYTES_MAX / 1024;
        let message =
            format!("its command, environment and labels have {bytes} bytes; at most {most} KiB fit");
        faults.add(format!("services.{name}"), message);
    }
    if spec.regions.is_empty() {
        faults.add(at("regions"), "it runs in no region: name at least one");
    }
    for (region, scale) in &spec.regions {
        let at = at(&format!("regions.{region}"));
        if !context.regions.contains(region) {
            let known: Vec<&str> = context.regions.iter().map(RegionName::as_str).collect();
            faults
                .add(at.clone(), format!("unknown region `{region}`; the regions are {}", known.join(", ")));
        }
        if scale.min > scale.max {
            faults.add(at.clone(), format!("min ({}) is greater than max ({})", scale.min, scale.max));
        }
        if scale.max > INSTANCES_MAX {
            faults.add(at.clone(), format!("max is {INSTANCES_MAX} at most"));
        }
        if scale.max == 0 {
            faults.add(at, "max must be at least 1; leave the region out to run nothing there");
        }
    }
    if spec.checks.len() > Check::COUNT_MAX {
        faults.add(at("checks"), format!("a service has at most {} checks", Check::COUNT_MAX));
    }
    for (i, check) in spec.checks.iter().enumerate().take(Check::COUNT_MAX) {
        check_faults(check, &at(&format!("checks[{i}]")), faults);
    }
    if spec.calls.len() > CALLS_MAX {
        faults.add(at("calls"), format!("a service calls at most {CALLS_MAX} others"));
    }
    // What gossip does not take would never be heard of; of `allow`, the rules before it would stay in force.
    let (calls, rules) = (!spec.calls.is_empty(), !spec.allow.is_empty());
    for (field, has, bytes) in [("calls", calls, placement_bytes(spec)), ("allow", rules, policy_bytes(spec))]
    {
        if has && bytes > RECORD_BYTES_MAX {
            let most = RECORD_BYTES_MAX / 1024;
            faults.add(at(field), format!("with it the service has {bytes} bytes; at most {most} KiB fit"));
        }
    }
}

fn check_faults(check: &Check, at: &str, faults: &mut Faults) {
    if let CheckKind::Http { path } = &check.kind
        && !Check::is_path(path)
    {
        let what =
            "a path starts with `/` and holds at most 1024 printable ASCII characters, no spaces and no `#`";
        faults.add(format!("{at}.path"), what);
    }
    let mut within = |field: &str, value: u64, least: u64, most: u64| {
        if !(least..=most).contains(&value) {
            faults.add(format!("{at}.{field}"), format!("{value} is not between {least} and {most}"));
        }
    };
    for (field, value, bounds) in [
        ("every_ms", check.every_ms, Check::EVERY_MS),
        ("timeout_ms", check.timeout_ms, Check::TIMEOUT_MS),
        ("grace_ms", check.grace_ms, Check::GRACE_MS),
    ] {
        within(field, value, *bounds.start(), *bounds.end());
    }
    for (field, value) in [("up", check.up), ("down", check.down)] {
        within(field, value.into(), (*Check::TIMES.start()).into(), (*Check::TIMES.end()).into());
    }
}

/// Most bytes that a placement's record has for this specification.
fn placement_bytes(spec: &ServiceSpec) -> usize {
    let call = |target: &CallTarget| record::Call {
        variable: target.variable(),
        cluster: "x".repeat(CLUSTER_BYTES_MAX),
        protocol: Protocol::Http2.as_str().to_owned(),
    };
    record::Spec { calls: spec.calls.iter().map(call).collect(), ..spec.into() }.encoded_len()
}

/// Most bytes that the record which says who may call the service has for this specification.
fn policy_bytes(spec: &ServiceSpec) -> usize {
    let rule = |rule: &AllowRule| record::AllowRule {
        from: rule.from.iter().map(|_| "x".repeat(CLUSTER_BYTES_MAX)).collect(),
        http: rule.http.iter().map(ToString::to_string).collect(),
        grpc: rule.grpc.iter().map(ToString::to_string).collect(),
    };
    let allow = spec.allow.iter().map(rule).collect();
    record::RegionCluster { allow, ..record::RegionCluster::default() }.encoded_len()
}

#[derive(Debug, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault { field: field.into(), message: message.into() });
    }
}
