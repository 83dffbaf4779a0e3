//! What an app must be before anything changes. The manifest's own checks are the client's; these hold for
//! whoever calls the API.

use super::Context;
use crate::apps::records::domain_of;
use atoll_model::manifest::{CompiledApp, INSTANCES_MAX, LABEL_BYTES_MAX, SERVICES_MAX, SPEC_BYTES_MAX};
use atoll_model::{CheckKind, RegionName, ServiceName, ServiceSpec};
use serde::Serialize;

/// Longest drain, ms.
const DRAIN_MS_MAX: u64 = 3_600_000;

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
    faults.0
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
    for (i, check) in spec.checks.iter().enumerate() {
        if let CheckKind::Http { path } = &check.kind
            && !path.starts_with('/')
        {
            faults.add(at(&format!("checks[{i}].path")), "a path starts with `/`");
        }
    }
}

#[derive(Debug, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault { field: field.into(), message: message.into() });
    }
}
