//! `atoll deploy`, `plan`, `delete`.

use super::progress::Progress;
use super::{api_to_change, chosen, interrupted, upload, watch};
use crate::api::{Api, encode};
use crate::args::{DeleteArgs, DeployArgs, Global, PlanArgs};
use crate::failure::{self, Exit, Failure, Outcome};
use crate::out::{self, Column, Format};
use crate::program::program_fault;
use atoll_model::manifest::{self, Manifest, ManifestError};
use atoll_model::{RegionName, ServiceName};
use http::Method;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

pub(super) async fn run(args: DeployArgs, global: &Global) -> Outcome {
    if let Some(revision) = &args.revision {
        return again(revision, &args, global).await;
    }
    let manifest = read_manifest(&args.file)?;
    if args.dry_run {
        return show_plan(&manifest, global, false).await;
    }
    let api = api_to_change(global)?;
    let query = args.confirm.map(|count| format!("?confirm={count}")).unwrap_or_default();
    let app = upload::upload(&api, &manifest).await?;
    let answer = watch::send(&api, &app, &query)
        .await
        .map_err(|failure| in_file(&manifest, failure))
        .map_err(|failure| busy_fix(failure, manifest.app.as_str()))?;
    wait_to_the_end(&api, answer, manifest.app.as_str(), (args.no_wait, "deployed"), global).await
}

/// Makes an earlier revision run again.
async fn again(revision: &str, args: &DeployArgs, global: &Global) -> Outcome {
    let number = match revision {
        "previous" => Value::Null,
        number => json!(number.parse::<u64>().map_err(|_| {
            Failure::usage(format!("`{}` is no revision", out::harmless(number)))
                .fix("give a number of `atoll revisions`, or `previous`")
        })?),
    };
    let of = match &args.of {
        Some(of) => of.clone(),
        None => super::status::app_of_this_folder().ok_or_else(|| {
            Failure::usage("which app's revision?").fix("name it: atoll deploy --revision 3 shop/web")
        })?,
    };
    let (app, service) = match of.split_once('/') {
        Some(_) => super::scale::app_and_service(&of).map(|(app, service)| (app, json!(service)))?,
        None => (of.as_str(), Value::Null),
    };
    let api = api_to_change(global)?;
    let path = format!("/v1/apps/{}/rollback", encode(app));
    let body = json!({ "service": service, "revision": number });
    let answer =
        api.change(Method::POST, &path, Some(&body)).await.map_err(|failure| busy_fix(failure, app))?;
    // Without their numbers they have their ids: the deploy goes on either way.
    let revisions = api.list(&format!("/v1/revisions?app={}", encode(app))).await.unwrap_or_default();
    for (service, id) in answer["revisions"].as_object().into_iter().flatten() {
        let number = revisions.iter().find(|row| row["id"] == *id).map_or(id, |row| &row["number"]);
        let (app, service) = (out::harmless(app), out::harmless(service));
        out::note(&format!("{app}/{service}  goes to revision {}", out::cell(number)));
    }
    wait_to_the_end(&api, answer, app, (args.no_wait, "deployed"), global).await
}

/// Follows what the platform has taken until it has ended. `done`: what the app is then.
pub(super) async fn wait_to_the_end(
    api: &Api,
    answer: Value,
    app: &str,
    (no_wait, done): (bool, &str),
    global: &Global,
) -> Outcome {
    let id = watch::deploy_id(&answer)?;
    let shown = out::harmless(app);
    if no_wait {
        out::note(&format!("deploy {id} of {shown} is taken; `atoll status {shown}` says how it goes"));
        if global.output == Format::Json {
            out::json(&answer);
        }
        return Ok(());
    }
    let last = wait(api, &id, app).await?;
    watch::outcome(&last, app)?;
    if global.output == Format::Json {
        out::json(&last);
        return Ok(());
    }
    out::note(&format!("{shown} is {done}"));
    let urls = [&last, &answer].into_iter().find_map(|value| out::lookup(value, "urls|domains").as_array());
    for url in urls.into_iter().flatten().filter_map(Value::as_str) {
        out::data(&out::harmless(url));
    }
    Ok(())
}

/// What to do where another deploy of the app runs.
pub(super) fn busy_fix(failure: Failure, app: &str) -> Failure {
    match failure.busy {
        true => {
            failure.fix(format!("`atoll status {app}` says how it stands; deploy again when it has ended"))
        }
        false => failure,
    }
}

/// Follows a deploy with a line for each step; Ctrl-C leaves it to go on by itself.
async fn wait(api: &Api, id: &str, app: &str) -> Outcome<Value> {
    let mut progress = Progress::new(app);
    tokio::select! {
        ended = watch::follow(api, id, Some(&mut progress)) => ended,
        _ = tokio::signal::ctrl_c() => {
            out::note(&format!("\ndetached: it goes on without this command; `atoll status {app}` says how it stands"));
            Err(interrupted())
        }
    }
}

pub(super) async fn plan(args: PlanArgs, global: &Global) -> Outcome {
    let manifest = read_manifest(&args.file)?;
    show_plan(&manifest, global, args.exit_code).await
}

async fn show_plan(manifest: &Manifest, global: &Global, exit_code: bool) -> Outcome {
    let api = Api::new(&chosen(global)?)?;
    let answer = watch::send(&api, &upload::planned(manifest).await?, "?dry_run=true")
        .await
        .map_err(|failure| in_file(manifest, failure))?;
    let none = Vec::new();
    let changes =
        out::lookup(&answer, "changes|plan").as_array().or_else(|| answer.as_array()).unwrap_or(&none);
    match global.output {
        Format::Json => out::json(&answer),
        Format::Table => out::table(
            &[
                Column("ACTION", "action"),
                Column("OBJECT", "object"),
                Column("NAME", "name"),
                Column("DETAIL", "detail"),
            ],
            changes,
            "no changes",
        ),
    }
    if exit_code && changes.iter().any(changes_desired_state) {
        Err(Failure::silent(Exit::Changes))
    } else {
        Ok(())
    }
}

/// Whether what is desired would differ. A deploy of the same specification starts its instances anew, which
/// is shown, but a script that asks whether the manifest was deployed has its answer: it was.
fn changes_desired_state(change: &Value) -> bool {
    change["action"] != "restart" && change["action"] != "keep"
}

pub(super) async fn delete(args: DeleteArgs, global: &Global) -> Outcome {
    let api = api_to_change(global)?;
    let answer = api.change(Method::DELETE, &format!("/v1/apps/{}", encode(&args.app)), None).await?;
    let shown = out::harmless(&args.app);
    if args.no_wait {
        out::note(&format!("the removal of {shown} is taken"));
    } else {
        let last = wait(&api, &watch::deploy_id(&answer)?, &args.app).await?;
        watch::outcome(&last, &args.app)?;
        out::note(&format!("{shown} is removed"));
    }
    if global.output == Format::Json {
        out::json(&json!({ "app": args.app, "deploy": answer["deploy"] }));
    }
    Ok(())
}

/// Reads and checks a manifest, the programs that it names included.
pub(super) fn read_manifest(file: &Path) -> Outcome<Manifest> {
    let shown = file.display().to_string();
    let missing = |error: &std::io::Error| {
        let mut failure = failure::io(format!("cannot read {shown}"), error);
        failure.exit = Exit::Usage;
        failure.fix("name the manifest with -f FILE, or write ./atoll.toml")
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|error| missing(&error))?;
    // One more byte than allowed, so that what is too long is seen and not cut.
    opened
        .take(manifest::MANIFEST_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| missing(&error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        Failure::usage("the manifest is not valid UTF-8").place(format!("{shown}:{line}"))
    })?;
    let folder =
        file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let folder = folder.canonicalize().map_err(|error| missing(&error))?;
    let manifest = manifest::parse(&text, &shown, &folder).map_err(|errors| invalid(&errors))?;
    let faults: Vec<ManifestError> = manifest
        .services
        .iter()
        // Those that bring their files along are looked at when these are packed.
        .filter(|(name, _)| !manifest.files.contains_key(*name))
        .filter_map(|(name, spec)| Some(manifest.run_error(name, program_fault(spec)?)))
        .collect();
    if faults.is_empty() { Ok(manifest) } else { Err(invalid(&faults)) }
}

fn invalid(errors: &[ManifestError]) -> Failure {
    let what = match errors {
        [only] => only.to_string(),
        _ => format!("the manifest has {} errors", errors.len()),
    };
    let failure = Failure::usage(out::harmless(&what));
    if errors.len() < 2 { failure } else { failure.details(errors.iter().map(ToString::to_string)) }
}

/// Gives what control found wrong its place in the file.
fn in_file(manifest: &Manifest, mut failure: Failure) -> Failure {
    let faults = std::mem::take(&mut failure.faults);
    let (placed, rest): (Vec<_>, Vec<_>) = faults
        .into_iter()
        .map(|(field, message)| (place_of(manifest, &field, &message), field, message))
        .partition(|fault| fault.0.is_some());
    failure.faults = rest.into_iter().map(|(_, field, message)| (field, message)).collect();
    if placed.is_empty() {
        return failure;
    }
    failure.exit = Exit::Usage;
    let mut lines: Vec<String> =
        placed.into_iter().filter_map(|(error, ..)| error.map(|error| error.to_string())).collect();
    // Several services in one unknown region is one mistake in the file.
    lines.dedup();
    match lines.as_slice() {
        [only] if failure.faults.is_empty() => failure.what = out::harmless(only),
        _ => failure.details.extend(lines),
    }
    failure
}

fn place_of(manifest: &Manifest, field: &str, message: &str) -> Option<ManifestError> {
    if let Some((number, _)) = field.strip_prefix("hosts[").and_then(|rest| rest.split_once("].domains")) {
        return Some(manifest.host_error(number.parse().ok()?, message));
    }
    let mut parts = field.split('.');
    let (Some("services"), Some(service), Some(what)) = (parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    match (what, parts.next()) {
        ("regions", Some(region)) => Some(manifest.region_error(&RegionName::new(region).ok()?, message)),
        ("bundle", _) => Some(manifest.files_error(&ServiceName::new(service).ok()?, message)),
        ("run", _) => Some(manifest.run_error(&ServiceName::new(service).ok()?, message)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const LEAST: &str =
        "manifest = 1\napp = \"shop\"\n[regions]\nxyz = { min = 1 }\n[service.web]\nrun = [\"/bin/sh\"]\n";

    fn write(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("atoll.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn control_s_faults_get_their_line() {
        let (_folder, path) = write(&format!("{LEAST}[[host]]\ndomains = [\"a.b\"]\n"));
        let manifest = read_manifest(&path).unwrap();
        let mut failure = Failure::failed("the app cannot be deployed as it is");
        failure.faults = vec![
            ("services.web.regions.xyz".to_owned(), "unknown region `xyz`; the regions are fra".to_owned()),
            ("services".to_owned(), "other".to_owned()),
            ("hosts[0].domains[0]".to_owned(), "no domain of this app".to_owned()),
        ];
        let failure = in_file(&manifest, failure);
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure.details[0]
                .ends_with("atoll.toml:4:1: regions.xyz: unknown region `xyz`; the regions are fra")
        );
        assert!(failure.details[1].ends_with("atoll.toml:8:11: host.domains: no domain of this app"));
        assert_eq!(failure.faults.len(), 1);
    }

    #[test]
    fn an_absent_program_is_found_before_anything_is_sent() {
        let (_folder, path) = write(&LEAST.replace("/bin/sh", "./not-there"));
        let failure = read_manifest(&path).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.what.contains("atoll.toml:6:1: service.web.run:"), "{failure}");
    }

    #[test]
    fn a_manifest_that_cannot_be_read_is_wrong_usage() {
        let (folder, path) = write("\u{0}");
        assert_eq!(read_manifest(&path).unwrap_err().exit, Exit::Usage);
        assert_eq!(read_manifest(&folder.path().join("none")).unwrap_err().exit, Exit::Usage);
        assert_eq!(read_manifest(folder.path()).unwrap_err().exit, Exit::Usage);
        std::fs::write(&path, b"a = 1\n\xff\xfe").unwrap();
        assert!(read_manifest(&path).unwrap_err().place.unwrap().ends_with(":2"));
    }
}
