//! What travels with a deploy: packs the `files` of a manifest, and uploads what control has not got.

use crate::api::{Api, Uploader, encode};
use crate::failure::{Exit, Failure, Outcome};
use crate::out;
use crate::program::program_fault;
use atoll_bundle::{Digest, Entry, List, PackError, Packed, Source, pack};
use atoll_model::manifest::{CompiledApp, FilePattern, Manifest, ManifestError, variables_of};
use atoll_model::{Bundle, ServiceName, ServiceSpec};
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Contents that are uploaded at a time.
const UPLOADS: usize = 4;
/// How often a content is sent when control goes away in between.
const TRIES: u32 = 3;
/// How often control is asked what it lacks: a sweep there may take what was just said to be there.
const ROUNDS: usize = 3;
const SAY_AFTER: Duration = Duration::from_secs(1);
const SAY_EVERY: Duration = Duration::from_secs(2);

/// The app as it would be deployed, without uploading anything.
pub(super) async fn planned(manifest: &Manifest) -> Outcome<CompiledApp> {
    let packed = pack_all(manifest).await?;
    Ok(with_bundles(manifest, &packed))
}

/// Uploads what the app's services bring along; gives the app with the names of their bundles.
pub(super) async fn upload(api: &Api, manifest: &Manifest) -> Outcome<CompiledApp> {
    let packed = pack_all(manifest).await?;
    let mut sent: Vec<Digest> = Vec::new();
    for (service, packed) in &packed {
        let digest = packed.list.digest();
        if !sent.contains(&digest) {
            let done = upload_one(api, packed).await?;
            out::note(&format!("{service}  {}", done.text(&packed.list)));
            sent.push(digest);
        }
    }
    Ok(with_bundles(manifest, &packed))
}

type AllPacked = BTreeMap<ServiceName, Arc<Packed>>;

fn with_bundles(manifest: &Manifest, packed: &AllPacked) -> CompiledApp {
    let mut app = manifest.compile();
    for (service, packed) in packed {
        if let Some(spec) = app.services.get_mut(service) {
            spec.bundle = Some(Bundle { digest: packed.list.digest().to_string(), size: packed.list.size() });
        }
    }
    app
}

/// Packs what each service lists; services that list the same share it.
async fn pack_all(manifest: &Manifest) -> Outcome<AllPacked> {
    let mut all = AllPacked::new();
    let mut known: Vec<(&[FilePattern], Arc<Packed>)> = Vec::new();
    for (service, patterns) in &manifest.files {
        let same = known.iter().find(|(known, _)| known == patterns).map(|(_, packed)| Arc::clone(packed));
        let packed = match same {
            Some(packed) => packed,
            None => {
                let packed = pack_one(manifest.folder.clone(), patterns.clone()).await?;
                let packed = Arc::new(packed.map_err(|error| not_packed(manifest, service, &error))?);
                known.push((patterns, Arc::clone(&packed)));
                packed
            }
        };
        let fault = manifest.services.get(service).and_then(|spec| fault_of(spec, &packed.list));
        if let Some(what) = fault {
            return Err(wrong(&manifest.run_error(service, what)));
        }
        all.insert(service.clone(), packed);
    }
    Ok(all)
}

async fn pack_one(folder: PathBuf, patterns: Vec<FilePattern>) -> Outcome<Result<Packed, PackError>> {
    let read = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&read);
    let packing = tokio::task::spawn_blocking(move || {
        pack(&folder, &patterns, &mut |bytes| {
            count.fetch_add(bytes, Ordering::Relaxed);
        })
    });
    let packed = saying(packing, || format!("reading files: {}", size(read.load(Ordering::Relaxed)))).await;
    packed.map_err(|error| Failure::failed(format!("the files could not be packed: {error}")))
}

fn wrong(error: &ManifestError) -> Failure {
    Failure::usage(out::harmless(&error.to_string()))
}

fn not_packed(manifest: &Manifest, service: &ServiceName, error: &PackError) -> Failure {
    let mut failure = wrong(&manifest.files_error(service, error.to_string()));
    if matches!(error, PackError::Changes(_) | PackError::Io { .. }) {
        failure.exit = Exit::Failed;
    }
    failure
}

/// What is wrong with the program of a service that brings its files along.
fn fault_of(spec: &ServiceSpec, list: &List) -> Option<String> {
    let program = spec.run.first()?;
    if variables_of(program).is_ok_and(|names| !names.is_empty()) {
        return None;
    }
    let path = program.replace("$$", "$");
    if !path.contains('/') || path.starts_with('/') {
        return program_fault(spec);
    }
    match list.file(&path) {
        None => Some(format!("the program `{path}` is not among the service's `files`; list it there")),
        Some(Entry::File { executable: false, .. }) => {
            Some(format!("`{path}` is not executable; `chmod +x` makes it so"))
        }
        Some(_) => None,
    }
}

/// What an upload did.
#[derive(Debug, Default)]
struct Done {
    contents: usize,
    bytes: u64,
}

impl Done {
    fn text(&self, list: &List) -> String {
        let files = list.entries().iter().filter(|entry| matches!(entry, Entry::File { .. })).count();
        let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
        match self.contents {
            0 => format!("{files}, none new"),
            new => format!("{files}, {new} new, {} uploaded", size(self.bytes)),
        }
    }
}

async fn upload_one(api: &Api, packed: &Packed) -> Outcome<Done> {
    let entries =
        serde_json::to_value(packed.list.entries()).map_err(|error| Failure::failed(error.to_string()))?;
    let offer = json!({ "entries": entries });
    let mut done = Done::default();
    for _ in 0..ROUNDS {
        let answer = api.change(Method::POST, "/v1/bundles", Some(&offer)).await?;
        let missing = missing(&answer, packed)?;
        if missing.is_empty() {
            return Ok(done);
        }
        let total = missing.iter().map(|(_, source)| source.size).sum();
        done.contents += missing.len();
        done.bytes += total;
        send_all(api, missing, total).await?;
    }
    Err(Failure::failed("control has not got the files that it was sent").fix("deploy again"))
}

/// The contents that control asks for.
fn missing(answer: &Value, packed: &Packed) -> Outcome<Vec<(Digest, Source)>> {
    let odd = || Failure::failed("the API asks for files that are not in the bundle");
    let digests = answer["missing"].as_array().ok_or_else(odd)?;
    let source = |digest: &Value| {
        let digest: Digest = digest.as_str()?.parse().ok()?;
        Some((digest, packed.sources.get(&digest)?.clone()))
    };
    digests.iter().map(|digest| source(digest).ok_or_else(odd)).collect()
}

async fn send_all(api: &Api, contents: Vec<(Digest, Source)>, total: u64) -> Outcome {
    let sent = Arc::new(AtomicU64::new(0));
    let queue = Mutex::new(contents.into_iter());
    let sender = || async {
        let mut uploader = Uploader::new(api, Arc::clone(&sent));
        loop {
            let next = queue.lock().await.next();
            let Some((digest, source)) = next else { return Ok::<(), Failure>(()) };
            send(&mut uploader, digest, &source).await?;
        }
    };
    let sending = futures_util::future::try_join_all((0..UPLOADS).map(|_| sender()));
    let say = || format!("uploading: {} of {}", size(sent.load(Ordering::Relaxed).min(total)), size(total));
    saying(sending, say).await.map(|_| ())
}

async fn send(uploader: &mut Uploader, digest: Digest, source: &Source) -> Outcome {
    let changed = || {
        Failure::failed(format!("`{}` changed while it was uploaded", out::harmless(&source.path)))
            .fix("deploy again when it is finished")
    };
    let path = format!("/v1/blobs/{}", encode(&digest.to_string()));
    let mut tries = 0;
    loop {
        tries += 1;
        let file = source.open().map_err(|error| match error {
            PackError::Changes(_) => changed(),
            error => Failure::failed(out::harmless(&error.to_string())),
        })?;
        match uploader.put(&path, file, source.size).await {
            Err(failure) if failure.exit == Exit::Unreachable && tries < TRIES => {
                tokio::time::sleep(Duration::from_millis(300 * u64::from(tries))).await;
            }
            Err(failure) => return Err(failure),
            Ok(None) => return Err(changed()),
            Ok(Some(())) => return Ok(()),
        }
    }
}

/// Says how far something is, once it takes more than a second.
async fn saying<T>(work: impl Future<Output = T>, say: impl Fn() -> String) -> T {
    tokio::pin!(work);
    let mut due = tokio::time::interval_at(Instant::now() + SAY_AFTER, SAY_EVERY);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = due.tick() => out::note(&say()),
        }
    }
}

/// Bytes, for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{}.{} KiB", bytes >> 10, (bytes % 1_024) * 10 / 1_024),
        _ => format!("{}.{} MiB", bytes >> 20, (bytes % 1_048_576) * 10 / 1_048_576),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn manifest(folder: &Path, more: &str) -> Manifest {
        let text = format!(
            "manifest = 1\napp = \"shop\"\nregions = {{ fra = {{ min = 1 }} }}\n\
             [service.web]\n{more}\n[service.api]\nrun = [\"sh\"]\nfiles = [\"static/\"]\n"
        );
        atoll_model::manifest::parse(&text, "atoll.toml", folder).unwrap()
    }

    #[tokio::test]
    async fn the_program_must_be_among_the_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("static")).unwrap();
        std::fs::write(folder.path().join("static/x"), "x").unwrap();
        std::fs::write(folder.path().join("web"), "#!/bin/sh\n").unwrap();
        let plan = async |more: &str| planned(&manifest(folder.path(), more)).await;
        let run = "run = [\"./web\"]\nfiles = [\"web\", \"static/\"]";
        let why = plan(run).await.unwrap_err();
        assert_eq!(why.exit, Exit::Usage);
        assert!(why.what.contains("atoll.toml:5:1: service.web.run: `./web` is not executable"), "{why}");
        std::fs::set_permissions(folder.path().join("web"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let app = plan(run).await.unwrap();
        let bundle = |name: &str| app.services[&name.parse::<ServiceName>().unwrap()].bundle.clone().unwrap();
        assert_eq!(bundle("web").size, 11);
        assert_ne!(bundle("web").digest, bundle("api").digest);
        assert_eq!(app.services[&"web".parse::<ServiceName>().unwrap()].working_dir, "");
        let why = plan("run = [\"./web\"]\nfiles = [\"static/\"]").await.unwrap_err();
        assert!(why.what.contains("not among the service's `files`"), "{why}");
        let why = plan("run = [\"sh\"]\nfiles = [\"none/\"]").await.unwrap_err();
        assert!(why.what.contains("atoll.toml:6:1: service.web.files: `none/` matches nothing"), "{why}");
        assert!(plan("run = [\"./web\"]").await.is_ok(), "it runs in the manifest's folder");
    }

    #[test]
    fn sizes_are_short() {
        let shown: Vec<String> = [0, 1_023, 1_024, 1_536, 1_258_291, 5 << 30].map(size).into();
        assert_eq!(shown, ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "1.1 MiB", "5120.0 MiB"]);
    }
}
