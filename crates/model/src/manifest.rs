//! The manifest `atoll.toml`: text to a checked [`Manifest`], and from there to what the API takes.
//!
//! Every error says file, line, column and key. A key that is misspelt, or that belongs to a
//! capability that is not built yet, is an error; nothing is silently left out. Whether a region
//! exists and whether a program is there is the caller's to check; [`Manifest::region_error`] and
//! [`Manifest::run_error`] give such findings the same shape.

mod cache;
mod duration;
mod error;
mod expand;
mod files;
mod host;
mod mesh;
mod section;
mod service;

pub use duration::{DURATION_MS_MAX, DurationError, parse_duration_ms};
pub use error::{ManifestError, PROBLEMS_MAX, Position};
pub use expand::{VariableError, variables_of};
pub use files::{FilePattern, FilePatternError};
pub use mesh::{CALLS_MAX, ENTRIES_MAX, RULES_MAX};
pub use section::nearest;

use crate::cache::HostSpec;
use crate::names::{AppName, RegionName, ServiceName};
use crate::spec::{Scale, ServiceSpec};
use error::{Problems, Source};
use section::Section;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// Most text that a service's program, arguments, environment and labels have together, in bytes. Every
/// placement of the service carries it in one record, which has at most 64 KiB.
pub const SPEC_BYTES_MAX: usize = 48 * 1024;
/// Most services of an app.
pub const SERVICES_MAX: usize = 64;
/// Most regions that an app names.
pub const REGIONS_MAX: usize = 64;
/// Most instances of a service in a region.
pub const INSTANCES_MAX: u32 = 1000;
/// Longest label of a host name, in bytes (RFC 1035).
pub const LABEL_BYTES_MAX: usize = 63;

const ROOT_KEYS: &[&str] = &["manifest", "app", "regions", "env", "service", "allow", "host"];
const ROOT_LATER: &[&str] = &["traffic", "tcp", "udp"];
const SCALE_KEYS: &[&str] = &["min", "max"];

/// A manifest that has been checked as far as text alone allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The app's name.
    pub app: AppName,
    /// Its services, complete: defaults, the app's regions and environment are filled in.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// What travels to the hosts as a service's working directory, for the services that say so. Who deploys
    /// packs it, and sets [`ServiceSpec::bundle`].
    pub files: BTreeMap<ServiceName, Vec<FilePattern>>,
    /// What it says of the app's domains.
    pub hosts: Vec<HostSpec>,
    /// The file's name, as errors give it.
    pub file: String,
    /// The file's folder, absolute.
    pub folder: PathBuf,
    file_positions: BTreeMap<ServiceName, Position>,
    region_positions: BTreeMap<RegionName, (String, Position)>,
    run_positions: BTreeMap<ServiceName, Position>,
    host_positions: Vec<Position>,
}

/// What the API takes as an app's desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompiledApp {
    /// The app's name.
    pub app: AppName,
    /// Its services.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// What it says of its domains, in the order in which rules are looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostSpec>,
}

/// Reads a manifest. `file_name` is used in errors; `base_dir` is the absolute folder of the file
/// and becomes each service's working directory.
///
/// # Errors
/// Everything that is wrong, in the order of the file, at most [`PROBLEMS_MAX`] of it.
pub fn parse(text: &str, file_name: &str, base_dir: &Path) -> Result<Manifest, Vec<ManifestError>> {
    let mut problems = Problems::new(Source::new(text, file_name));
    if text.len() > MANIFEST_BYTES_MAX {
        problems.add(0..0, "", format!("the file has {} bytes; a manifest has at most 1 MiB", text.len()));
        return Err(problems.into_errors());
    }
    if let Some(at) = text.find('\0') {
        problems.add(at..at, "", "the file holds a NUL byte; a manifest is text");
        return Err(problems.into_errors());
    }
    let root = match DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            problems.add(
                error.span().unwrap_or(0..0),
                "",
                format!("not valid TOML: {}", error.message().trim()),
            );
            return Err(problems.into_errors());
        }
    };
    let root_section = Section::root(root.get_ref());
    let manifest = read_root(&root_section, base_dir, &mut problems);
    match manifest {
        Some(manifest) if problems.is_empty() => Ok(manifest),
        _ => Err(problems.into_errors()),
    }
}

fn read_root(root: &Section<'_, '_>, base_dir: &Path, problems: &mut Problems<'_>) -> Option<Manifest> {
    root.check_keys(ROOT_KEYS, ROOT_LATER, problems);
    check_version(root, problems);
    let app = read_app(root, problems);
    let defaults = service::Defaults {
        working_dir: working_dir(base_dir, problems),
        env: root.table("env", problems).map(|env| service::read_env(&env, problems)).unwrap_or_default(),
        regions: BTreeMap::new(),
        names_regions: root
            .get("regions")
            .is_some_and(|regions| regions.get_ref().as_table().is_none_or(|table| !table.is_empty())),
    };
    let mut region_positions = BTreeMap::new();
    let regions = match root.table("regions", problems) {
        Some(section) => read_regions(&section, 1, &mut region_positions, problems),
        None => BTreeMap::new(),
    };
    let defaults = service::Defaults { regions, ..defaults };

    let section = root.table("service", problems);
    if section.as_ref().is_none_or(|s| s.is_empty()) && root.is_absent_or_table("service") {
        problems.add(
            root.end(),
            "service",
            "an app needs at least one service: add `[service.web]` with `run = [\"./web\"]`",
        );
    }
    let mut services = BTreeMap::new();
    let (mut files, mut file_positions) = (BTreeMap::new(), BTreeMap::new());
    let mut run_positions = BTreeMap::new();
    if let Some(section) = section {
        if section.len() > SERVICES_MAX {
            problems.add(section.span(), "service", format!("an app has at most {SERVICES_MAX} services"));
            return None;
        }
        let siblings: Vec<&str> = section.keys().collect();
        for (key, at) in section.keys_with_spans() {
            let Some(name) = read_name::<ServiceName>(key, at.clone(), &section.path_of(key), problems)
            else {
                continue;
            };
            let Some(table) = section.table(key, problems) else {
                continue;
            };
            if let Some(app) = &app {
                check_label(app, &name, at, &table, problems);
            }
            if let Some(run) = table.span_of("run") {
                run_positions.insert(name.clone(), problems.position(run.start));
            }
            let patterns = files::read(&table, problems);
            let defaults = match patterns.is_empty() {
                true => &defaults,
                // Where the developer's copy of the files lies is no part of what runs.
                false => &service::Defaults { working_dir: String::new(), ..defaults.clone() },
            };
            if let Some(at) = table.span_of("files") {
                file_positions.insert(name.clone(), problems.position(at.start));
                files.insert(name.clone(), patterns);
            }
            if let Some(spec) = service::read(&table, defaults, &siblings, &mut region_positions, problems) {
                check_size(&spec, &table, problems);
                services.insert(name, spec);
            }
        }
        mesh::read_allow(root, &mut services, &siblings, problems);
    }
    let (hosts, host_positions) = host::read(root, problems);
    Some(Manifest {
        app: app?,
        services,
        files,
        hosts,
        file: problems.file().to_owned(),
        folder: base_dir.to_owned(),
        file_positions,
        region_positions,
        run_positions,
        host_positions,
    })
}

fn check_version(root: &Section<'_, '_>, problems: &mut Problems<'_>) {
    match root.get("manifest") {
        None => problems.add(
            0..0,
            "manifest",
            "`manifest = 1` is missing: it says which version of the format this is",
        ),
        Some(value) => match value.get_ref() {
            DeValue::Integer(number) if number.as_str() == "1" && number.radix() == 10 => {}
            DeValue::Integer(number) => problems.add(
                value.span(),
                "manifest",
                format!(
                    "this version of atoll reads manifests of version 1, not {number}; write `manifest = 1`"
                ),
            ),
            other => problems.add(
                value.span(),
                "manifest",
                format!("expected the number 1, found {}", section::describe(other)),
            ),
        },
    }
}

fn read_app(root: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<AppName> {
    if root.get("app").is_none() {
        problems.add(0..0, "app", "`app` is missing: give the app a name, such as `app = \"shop\"`");
        return None;
    }
    let (text, at) = root.string("app", problems)?;
    read_name(&text, at, "app", problems)
}

fn read_name<N: std::str::FromStr<Err = crate::names::NameError>>(
    text: &str,
    at: Range<usize>,
    key: &str,
    problems: &mut Problems<'_>,
) -> Option<N> {
    match text.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            problems.add(at, key, error.to_string());
            None
        }
    }
}

fn working_dir(base_dir: &Path, problems: &mut Problems<'_>) -> String {
    match base_dir.to_str() {
        Some(text) if base_dir.is_absolute() && !text.contains('\0') => text.to_owned(),
        Some(_) => {
            problems.add(0..0, "", "the manifest's folder must be given as an absolute path");
            String::new()
        }
        None => {
            problems.add(0..0, "", "the path of the manifest's folder is not valid UTF-8; move it");
            String::new()
        }
    }
}

/// Reads `[regions]`. `least` is the smallest `max` that is allowed: a service may leave out a
/// region with `max = 0`, the app as a whole just doesn't list it.
fn read_regions(
    section: &Section<'_, '_>,
    least: u32,
    positions: &mut BTreeMap<RegionName, (String, Position)>,
    problems: &mut Problems<'_>,
) -> BTreeMap<RegionName, Scale> {
    let mut regions = BTreeMap::new();
    if section.len() > REGIONS_MAX {
        problems.add(section.span(), section.path(), format!("an app names at most {REGIONS_MAX} regions"));
        return regions;
    }
    for (key, at) in section.keys_with_spans() {
        let path = section.path_of(key);
        let Some(name) = read_name::<RegionName>(key, at.clone(), &path, problems) else {
            continue;
        };
        positions.entry(name.clone()).or_insert_with(|| (path, problems.position(at.start)));
        let Some(table) = section.table(key, problems) else {
            continue;
        };
        if let Some(scale) = read_scale(&table, least, problems) {
            regions.insert(name, scale);
        }
    }
    regions
}

fn read_scale(table: &Section<'_, '_>, least: u32, problems: &mut Problems<'_>) -> Option<Scale> {
    table.check_keys(SCALE_KEYS, &[], problems);
    if table.get("min").is_none() {
        problems.add(
            table.span(),
            table.path(),
            "`min` is missing: say how many instances run here, such as `{ min = 1 }`",
        );
        return None;
    }
    let (min, min_at) = table.integer("min", 0, INSTANCES_MAX, problems)?;
    let (max, max_at) = match table.get("max") {
        Some(_) => table.integer("max", 0, INSTANCES_MAX, problems)?,
        None => (min, min_at.clone()),
    };
    if min > max {
        problems.add(min_at, &table.path_of("min"), format!("`min` ({min}) is more than `max` ({max})"));
        return None;
    }
    if max < least {
        problems.add(
            max_at,
            &table.path_of("max"),
            "no instance could run here; leave the region out instead",
        );
        return None;
    }
    if min == 0 && max > 0 {
        problems.add(
            min_at,
            &table.path_of("min"),
            "`min = 0` (a service that sleeps) is not supported yet; use at least 1",
        );
        return None;
    }
    Some(Scale { min, max })
}

fn check_label(
    app: &AppName,
    service: &ServiceName,
    at: Range<usize>,
    table: &Section<'_, '_>,
    problems: &mut Problems<'_>,
) {
    let label = joined_label(app, service);
    if label.len() > LABEL_BYTES_MAX {
        problems.add(
            at,
            table.path(),
            format!(
                "the names of service and app make the host name `{label}` of {} characters; it has at most {LABEL_BYTES_MAX}, shorten one of them",
                label.len()
            ),
        );
    }
}

fn check_size(spec: &ServiceSpec, table: &Section<'_, '_>, problems: &mut Problems<'_>) {
    let bytes = spec.text_bytes();
    if bytes > SPEC_BYTES_MAX {
        let what = format!(
            "arguments, environment and labels have {} KiB together; {} KiB is the most, put what is long into a file",
            bytes.div_ceil(1024),
            SPEC_BYTES_MAX / 1024
        );
        problems.add(table.span(), table.path(), what);
    }
}

fn joined_label(app: &AppName, service: &ServiceName) -> String {
    format!("{service}--{app}")
}

impl Manifest {
    /// What the API takes.
    #[must_use]
    pub fn compile(&self) -> CompiledApp {
        CompiledApp { app: self.app.clone(), services: self.services.clone(), hosts: self.hosts.clone() }
    }

    /// The regions that any service runs in.
    pub fn regions(&self) -> impl Iterator<Item = &RegionName> {
        let mut seen = std::collections::BTreeSet::new();
        self.services.values().flat_map(|spec| spec.regions.keys()).filter(move |name| seen.insert(*name))
    }

    /// Where the file first names a region.
    #[must_use]
    pub fn span_of_region(&self, region: &RegionName) -> Option<Position> {
        self.region_positions.get(region).map(|(_, position)| *position)
    }

    /// An error about a region, at the place where the file first names it.
    #[must_use]
    pub fn region_error(&self, region: &RegionName, what: impl Into<String>) -> ManifestError {
        let (key, position) = self.region_positions.get(region).cloned().unwrap_or_default();
        ManifestError { file: self.file.clone(), position, key, what: what.into() }
    }

    /// An error about what travels with a service, at its `files`.
    #[must_use]
    pub fn files_error(&self, service: &ServiceName, what: impl Into<String>) -> ManifestError {
        let position = self.file_positions.get(service).copied().unwrap_or_default();
        let key = format!("service.{service}.files");
        ManifestError { file: self.file.clone(), position, key, what: what.into() }
    }

    /// An error about the domains of the `[[host]]` of that number, from 0.
    #[must_use]
    pub fn host_error(&self, number: usize, what: impl Into<String>) -> ManifestError {
        let position = self.host_positions.get(number).copied().unwrap_or_default();
        ManifestError { file: self.file.clone(), position, key: "host.domains".to_owned(), what: what.into() }
    }

    /// An error about a service's program, at its `run`.
    #[must_use]
    pub fn run_error(&self, service: &ServiceName, what: impl Into<String>) -> ManifestError {
        let position = self.run_positions.get(service).copied().unwrap_or_default();
        ManifestError {
            file: self.file.clone(),
            position,
            key: format!("service.{service}.run"),
            what: what.into(),
        }
    }
}

impl CompiledApp {
    /// The first label of each public service's host name in the platform's zone: the app's name
    /// for `web` or for the only public service, `<service>--<app>` for the others.
    #[must_use]
    pub fn host_labels(&self) -> BTreeMap<ServiceName, String> {
        let public: Vec<&ServiceName> =
            self.services.iter().filter(|(_, spec)| spec.public).map(|(name, _)| name).collect();
        let label = |name: &ServiceName| {
            if name.as_str() == "web" || public.len() == 1 {
                self.app.to_string()
            } else {
                joined_label(&self.app, name)
            }
        };
        public.iter().map(|name| ((*name).clone(), label(name))).collect()
    }
}

#[cfg(test)]
mod tests;
