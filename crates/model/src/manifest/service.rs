//! `[service.NAME]` and what is below it.

use super::error::{Position, Problems};
use super::expand::{is_variable, variables_of};
use super::mesh;
use super::section::Section;
use crate::mesh::CallTarget;
use crate::names::RegionName;
use crate::spec::{Check, CheckKind, Protocol, Scale, ServiceSpec};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use toml::de::DeValue;

const KEYS: &[&str] = &[
    "run",
    "public",
    "labels",
    "env",
    "regions",
    "drain",
    "check",
    "protocol",
    "calls",
    "proxy_env",
    "files",
];
const LATER: &[&str] = &[
    "image",
    "endpoints",
    "discover",
    "where",
    "balance",
    "concurrency",
    "sleep",
    "outlier",
    "breaker",
    "retry",
    "timeout",
    "release",
];
const CHECK_KEYS: &[&str] = &["kind", "path", "every", "timeout", "grace", "up", "down"];
const CHECK_LATER: &[&str] = &["gates"];

/// What each instance finds in its environment without asking.
const GIVEN: &[&str] =
    &["PORT", "ATOLL_APP", "ATOLL_SERVICE", "ATOLL_REGION", "ATOLL_SITE", "ATOLL_INSTANCE", "ATOLL_REVISION"];

const ARGUMENTS_MAX: usize = 256;
const ENV_MAX: usize = 256;
const LABELS_MAX: usize = 32;
const HOUR_MS: u64 = 3_600_000;
const DRAIN_DEFAULT_MS: u64 = 30_000;

/// What the app says for all of its services.
#[derive(Debug, Clone)]
pub(super) struct Defaults {
    pub(super) working_dir: String,
    pub(super) env: BTreeMap<String, String>,
    pub(super) regions: BTreeMap<RegionName, Scale>,
    /// Whether the app has `[regions]`, even if what it says there is wrong.
    pub(super) names_regions: bool,
}

/// Reads one service; `siblings` are the names of all services of the app.
pub(super) fn read(
    table: &Section<'_, '_>,
    defaults: &Defaults,
    siblings: &[&str],
    region_positions: &mut BTreeMap<RegionName, (String, Position)>,
    problems: &mut Problems<'_>,
) -> Option<ServiceSpec> {
    refuse_port(table, problems);
    let later_or_known: Vec<&str> = KEYS.iter().copied().chain(std::iter::once("port")).collect();
    table.check_keys(&later_or_known, LATER, problems);
    let mut env = defaults.env.clone();
    if let Some(section) = table.table("env", problems) {
        env.extend(read_env(&section, problems));
    }
    let calls = mesh::read_calls(table, &env, siblings, problems);
    let proxy_env = match table.get("proxy_env") {
        Some(_) => table.boolean("proxy_env", problems),
        None => Some(false),
    };
    let run = read_run(table, &Variables { env: &env, calls: &calls, siblings }, problems);
    let regions = read_regions(table, defaults, region_positions, problems);
    let public = match table.get("public") {
        Some(_) => table.boolean("public", problems),
        None => Some(false),
    };
    let labels = table.table("labels", problems).map(|section| read_labels(&section, problems));
    let drain_ms = table.duration_ms("drain", DRAIN_DEFAULT_MS, 0, HOUR_MS, problems);
    let protocol = read_protocol(table, problems);
    let checks = read_checks(table, problems);
    if protocol == Some(Protocol::Tcp) {
        check_tcp(table, public == Some(true), &checks, problems);
    }
    Some(ServiceSpec {
        run: run?,
        working_dir: defaults.working_dir.clone(),
        env,
        labels: labels.unwrap_or_default(),
        protocol: protocol?,
        public: public?,
        drain_ms: drain_ms?,
        checks,
        regions,
        calls,
        allow: Vec::new(),
        proxy_env: proxy_env?,
        bundle: None,
    })
}

/// What can't be asked of a service that speaks bytes.
fn check_tcp(table: &Section<'_, '_>, public: bool, checks: &[Check], problems: &mut Problems<'_>) {
    if public {
        let at = table.span_of("public").unwrap_or_else(|| table.span());
        let what = "a service that speaks tcp is reached inside the mesh only: its edges would need `[[tcp]]`, which is not supported yet";
        problems.add(at, &table.path_of("public"), what);
    }
    if checks.iter().any(|check| matches!(check.kind, CheckKind::Http { .. })) {
        let at = table.span_of("check").unwrap_or_else(|| table.span());
        problems.add(
            at,
            &table.path_of("check"),
            "a service that speaks tcp has checks of kind \"tcp\", not \"http\"",
        );
    }
}

fn refuse_port(table: &Section<'_, '_>, problems: &mut Problems<'_>) {
    if let Some(at) = table.span_of("port") {
        let what = "a fixed port is refused: instances of a service run side by side on a machine without isolation, \
                    and would take it from each other; listen on `$PORT`, which the host picks for each";
        problems.add(at, &table.path_of("port"), what);
    }
}

fn read_protocol(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Protocol> {
    if table.get("protocol").is_none() {
        return Some(Protocol::Http);
    }
    let (text, at) = table.string("protocol", problems)?;
    if let Some(protocol) = Protocol::from_name(&text) {
        return Some(protocol);
    }
    let what = if text == "udp" {
        "protocol \"udp\" is not supported yet; \"http\", \"http2\", \"grpc\" and \"tcp\" are".to_owned()
    } else {
        let shown: String = text.escape_debug().take(40).collect();
        format!("\"{shown}\" is no protocol; use \"http\", \"http2\", \"grpc\" or \"tcp\"")
    };
    problems.add(at, &table.path_of("protocol"), what);
    None
}

/// What an argument may name.
struct Variables<'a> {
    env: &'a BTreeMap<String, String>,
    calls: &'a [CallTarget],
    siblings: &'a [&'a str],
}

fn read_run(
    table: &Section<'_, '_>,
    variables: &Variables<'_>,
    problems: &mut Problems<'_>,
) -> Option<Vec<String>> {
    let key = table.path_of("run");
    let Some(value) = table.get("run") else {
        problems.add(
            table.span(),
            &key,
            "`run` is missing: the program and its arguments, such as `run = [\"./web\"]`",
        );
        return None;
    };
    let DeValue::Array(items) = value.get_ref() else {
        let what = "`run` is a list of the program and its arguments, such as [\"./web\", \"--listen\", \"127.0.0.1:$PORT\"]; there is no shell";
        problems.add(value.span(), &key, what);
        return None;
    };
    if items.is_empty() || items.len() > ARGUMENTS_MAX {
        let what = if items.is_empty() {
            "`run` is empty; it needs at least the program".to_owned()
        } else {
            format!("`run` has at most {ARGUMENTS_MAX} entries")
        };
        problems.add(value.span(), &key, what);
        return None;
    }
    let mut run = Vec::new();
    for item in items.iter() {
        let text = table.text_of("run", item, problems)?;
        if let Some(what) = wrong_variable(&text, variables) {
            problems.add(item.span(), &key, what);
        }
        run.push(text);
    }
    if run[0].is_empty() {
        problems.add(value.span(), &key, "the program's name is empty");
        return None;
    }
    Some(run)
}

/// What is wrong with the variables of one argument.
fn wrong_variable(text: &str, variables: &Variables<'_>) -> Option<String> {
    let names = match variables_of(text) {
        Ok(names) => names,
        Err(error) => return Some(error.to_string()),
    };
    let called: Vec<String> = variables.calls.iter().map(CallTarget::variable).collect();
    let is_set = |name: &str| {
        GIVEN.contains(&name) || variables.env.contains_key(name) || called.iter().any(|url| url == name)
    };
    let unknown = names.into_iter().find(|name| !is_set(name))?;
    let of_sibling = variables.siblings.iter().find(|sibling| {
        let prefix = sibling.to_uppercase().replace('-', "_");
        unknown.strip_suffix("_URL") == Some(prefix.as_str())
    });
    if let Some(sibling) = of_sibling {
        return Some(format!(
            "`${unknown}` is set only for who calls that service: add `calls = [\"{sibling}\"]`"
        ));
    }
    let near = GIVEN
        .iter()
        .copied()
        .chain(variables.env.keys().map(String::as_str))
        .chain(called.iter().map(String::as_str))
        .map(|candidate| (strsim::osa_distance(unknown, candidate), candidate))
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance);
    Some(match near {
        Some((_, near)) => format!("nothing sets `${unknown}`; did you mean `${near}`?"),
        None => {
            format!("nothing sets `${unknown}`; set it under `[env]`, or write `$$` for a `$` of your own")
        }
    })
}

fn read_regions(
    table: &Section<'_, '_>,
    defaults: &Defaults,
    positions: &mut BTreeMap<RegionName, (String, Position)>,
    problems: &mut Problems<'_>,
) -> BTreeMap<RegionName, Scale> {
    let mut regions = defaults.regions.clone();
    // Where the app's regions are wrong, that they are missing is no second mistake.
    let mut any_named = defaults.names_regions;
    if let Some(section) = table.table("regions", problems) {
        any_named |= !section.is_empty();
        regions.extend(super::read_regions(&section, 0, positions, problems));
    }
    regions.retain(|_, scale| scale.max > 0);
    if regions.is_empty() && !any_named {
        let what = "no region says where this runs: add `[regions]` with a line such as `fra = { min = 1 }`";
        problems.add(table.span(), table.path(), what);
    } else if regions.is_empty() && problems.is_empty() {
        problems.add(
            table.span(),
            table.path(),
            "every region has `max = 0`, so that this would run nowhere",
        );
    }
    regions
}

/// Reads `[env]` of the app or of a service.
pub(super) fn read_env(section: &Section<'_, '_>, problems: &mut Problems<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if section.len() > ENV_MAX {
        problems.add(section.span(), section.path(), format!("at most {ENV_MAX} variables"));
        return env;
    }
    for (key, at) in section.keys_with_spans() {
        let path = section.path_of(key);
        if !is_variable(key) {
            problems.add(
                at,
                &path,
                "the name of a variable is letters, digits and `_`, and starts with no digit",
            );
            continue;
        }
        if key == "PORT" || key.starts_with("ATOLL_") {
            problems.add(at, &path, format!("`{key}` is set by the platform for each instance"));
            continue;
        }
        let secret = section.get(key).filter(|value| {
            value.get_ref().as_table().is_some_and(|t| t.keys().any(|k| k.get_ref() == "secret"))
        });
        if let Some(value) = secret {
            problems.add(value.span(), &path, "`secret` is not supported yet by this version of atoll");
            continue;
        }
        if let Some((text, _)) = section.string(key, problems) {
            env.insert(key.to_owned(), text);
        }
    }
    env
}

fn read_labels(section: &Section<'_, '_>, problems: &mut Problems<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    if section.len() > LABELS_MAX {
        problems.add(section.span(), section.path(), format!("a service has at most {LABELS_MAX} labels"));
        return labels;
    }
    let well_formed = |text: &str| {
        (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
    };
    for (key, at) in section.keys_with_spans() {
        let Some((value, value_at)) = section.string(key, problems) else {
            continue;
        };
        let wrong = if !well_formed(key) {
            Some(at)
        } else if !well_formed(&value) {
            Some(value_at)
        } else {
            None
        };
        if let Some(at) = wrong {
            let what = "labels are 1 to 63 of the characters a-z A-Z 0-9 - _ . /";
            problems.add(at, &section.path_of(key), what);
            continue;
        }
        labels.insert(key.to_owned(), value);
    }
    labels
}

fn read_checks(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<Check> {
    let tables = table.tables("check", problems);
    if tables.len() > Check::COUNT_MAX {
        problems.add(
            table.span(),
            &table.path_of("check"),
            format!("a service has at most {} checks", Check::COUNT_MAX),
        );
        return Vec::new();
    }
    tables.iter().filter_map(|check| read_check(check, problems)).collect()
}

fn read_check(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Check> {
    table.check_keys(CHECK_KEYS, CHECK_LATER, problems);
    let kind = read_check_kind(table, problems);
    let mut duration = |key: &str, usual: u64, bounds: RangeInclusive<u64>| {
        table.duration_ms(key, usual, *bounds.start(), *bounds.end(), problems)
    };
    let every_ms = duration("every", 1_000, Check::EVERY_MS);
    let timeout_ms = duration("timeout", 2_000, Check::TIMEOUT_MS);
    let grace_ms = duration("grace", 10_000, Check::GRACE_MS);
    let (least, most) = (*Check::TIMES.start(), *Check::TIMES.end());
    let up = if table.get("up").is_some() {
        table.integer("up", least, most, problems).map(|(n, _)| n)
    } else {
        Some(1)
    };
    let down = if table.get("down").is_some() {
        table.integer("down", least, most, problems).map(|(n, _)| n)
    } else {
        Some(3)
    };
    Some(Check {
        kind: kind?,
        every_ms: every_ms?,
        timeout_ms: timeout_ms?,
        grace_ms: grace_ms?,
        up: up?,
        down: down?,
    })
}

fn read_check_kind(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<CheckKind> {
    let key = table.path_of("kind");
    if table.get("kind").is_none() {
        problems.add(table.span(), &key, "`kind` is missing: \"http\" or \"tcp\"");
        return None;
    }
    let (kind, at) = table.string("kind", problems)?;
    match kind.as_str() {
        "http" => read_check_path(table, problems).map(|path| CheckKind::Http { path }),
        "tcp" => {
            if let Some(at) = table.span_of("path") {
                problems.add(at, &table.path_of("path"), "`path` has no meaning for a check of kind \"tcp\"");
            }
            Some(CheckKind::Tcp)
        }
        "grpc" | "exec" => {
            problems.add(
                at,
                &key,
                format!("a check of kind \"{kind}\" is not supported yet; use \"http\" or \"tcp\""),
            );
            None
        }
        other => {
            let shown: String = other.escape_debug().take(40).collect();
            problems.add(at, &key, format!("\"{shown}\" is no kind of check; use \"http\" or \"tcp\""));
            None
        }
    }
}

fn read_check_path(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<String> {
    if table.get("path").is_none() {
        problems.add(
            table.span(),
            &table.path_of("path"),
            "`path` is missing: what to ask for, such as \"/healthz\"",
        );
        return None;
    }
    let (path, at) = table.string("path", problems)?;
    if !Check::is_path(&path) {
        let what =
            "a path starts with `/` and holds at most 1024 printable ASCII characters, no spaces and no `#`";
        problems.add(at, &table.path_of("path"), what);
        return None;
    }
    Some(path)
}
