//! `atoll domains …`, `atoll certs`, `atoll routes`

use super::{api, api_to_change, interrupted, lists};
use crate::api::{Api, encode};
use crate::args::{DomainArgs, DomainsArgs, DomainsCommand, Global};
use crate::failure::{self, Exit, Failure, Outcome};
use crate::out::{self, Column, Format};
use http::Method;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Longest PEM file.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// How long edges may take to serve a domain.
const SERVE_WAIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn run(args: DomainsArgs, global: &Global) -> Outcome {
    match args.command {
        None => list(None, global).await,
        Some(DomainsCommand::List { app }) => list(app, global).await,
        Some(DomainsCommand::Add(args)) => add(args, global).await,
        Some(DomainsCommand::Remove { domain }) => {
            let api = api_to_change(global)?;
            let answer =
                api.change(Method::DELETE, &format!("/v1/domains/{}", encode(&domain)), None).await?;
            out::note(&format!("{} is given up; the edges stop serving it", out::harmless(&domain)));
            if global.output == Format::Json {
                out::json(&answer);
            }
            Ok(())
        }
    }
}

fn of_app(path: &str, app: Option<&String>) -> String {
    app.map_or_else(|| path.to_owned(), |app| format!("{path}?app={}", encode(app)))
}

async fn list(app: Option<String>, global: &Global) -> Outcome {
    let mut rows = api(global)?.list(&of_app("/v1/domains", app.as_ref())).await?;
    warn(&rows);
    if global.output == Format::Json {
        out::json(&Value::Array(rows));
        return Ok(());
    }
    lists::for_people(&mut rows);
    out::table(
        &[
            Column("DOMAIN", "domain"),
            Column("APP", "app"),
            Column("SERVICE", "service"),
            Column("OWN", "own"),
            Column("SERVED", "served"),
            Column("CERTIFICATE", "certificate_state"),
            Column("FOR", "certificate_not_after_ms"),
        ],
        &rows,
        "no domains yet; each public service gets one, and `atoll domains add` adds your own",
    );
    Ok(())
}

/// What somebody has to do something about.
fn warn(rows: &[Value]) {
    for row in rows {
        let domain = out::cell(&row["domain"]);
        match row["certificate_state"].as_str() {
            Some("expired") => {
                out::note(&format!(
                    "WARNING: the certificate of {domain} has expired; `atoll domains add` replaces it"
                ));
            }
            Some("expiring") => out::note(&format!(
                "WARNING: the certificate of {domain} runs out on {}; `atoll domains add` replaces it",
                out::date(row["certificate_not_after_ms"].as_u64().unwrap_or(0))
            )),
            _ => {}
        }
        if row["own"] == true && row["served"] == false {
            let (app, service) = (out::cell(&row["app"]), out::cell(&row["service"]));
            out::note(&format!("WARNING: {domain} is not served: {app} has no public service {service} now"));
        }
    }
}

async fn add(args: DomainArgs, global: &Global) -> Outcome {
    let body = json!({
        "app": args.app,
        "service": args.service,
        "certificate_pem": read(&args.cert)?,
        "key_pem": read(&args.key)?,
    });
    let api = api_to_change(global)?;
    let path = format!("/v1/domains/{}", encode(&args.domain));
    let taken =
        api.change(Method::PUT, &path, Some(&body)).await.map_err(|failure| in_files(failure, &args))?;
    let domain = out::cell(&taken["domain"]);
    if !args.no_wait {
        let version = taken["version"].as_u64().unwrap_or(0);
        tokio::select! {
            served = wait(&api, &domain, version) => served?,
            _ = tokio::signal::ctrl_c() => {
                out::note("\ndetached: the edges go on without this command");
                return Err(interrupted());
            }
        }
    }
    let verb = if taken["replaced"] == true { "has a new certificate" } else { "is served" };
    out::note(&format!(
        "{domain} {verb}, good until {}; nobody but you can renew it",
        out::date(taken["certificate_not_after_ms"].as_u64().unwrap_or(0))
    ));
    if let Some(target) = taken["target"].as_str().filter(|_| taken["replaced"] != true) {
        out::note(&format!("point it here in its DNS: {domain} CNAME {}", out::harmless(target)));
    }
    match global.output {
        Format::Json => out::json(&taken),
        Format::Table => out::data(&out::cell(&taken["url"])),
    }
    Ok(())
}

/// Gives what control found wrong with a certificate its place.
fn in_files(mut failure: Failure, args: &DomainArgs) -> Failure {
    failure.place = match failure.place.as_deref() {
        Some("key_pem") => Some(args.key.display().to_string().into()),
        Some("certificate_pem") => Some(args.cert.display().to_string().into()),
        _ => failure.place,
    };
    failure
}

/// Until every live edge serves it.
async fn wait(api: &Api, domain: &str, version: u64) -> Outcome {
    let until = Instant::now() + SERVE_WAIT;
    let path = format!("/v1/domains/{}?version={version}", encode(domain));
    let mut said = None;
    loop {
        let now = match api.get(&path).await {
            // It is stored, and the edges go on without control.
            Err(failure) if failure.exit == Exit::Unreachable && Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            now => now?,
        };
        let edges = now["edges"].as_object().cloned().unwrap_or_default();
        let serve = edges.values().filter(|edge| edge["serves"] == true).count();
        if said != Some(serve) {
            out::note(&format!("{domain}  edges that serve it: {serve}/{}", edges.len()));
            said = Some(serve);
        }
        if serve == edges.len() {
            return Ok(());
        }
        if Instant::now() > until {
            let missing = edges.iter().filter(|(_, edge)| edge["serves"] != true);
            let lines = missing.map(|(name, edge)| format!("{name}: {}", out::cell(&edge["detail"])));
            return Err(Failure::new(Exit::TimedOut, format!("not every edge serves {domain} yet"))
                .details(lines)
                .fix("it is stored, and they go on: `atoll domains list` and `atoll nodes` say more"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn read(path: &Path) -> Outcome<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| Failure {
        exit: Exit::Usage,
        ..failure::io(format!("cannot read {}", path.display()), &error)
    })?;
    Ok(text)
}

/// Certificates of domains and of the mesh's authority.
pub(super) async fn certificates(app: Option<String>, global: &Global) -> Outcome {
    let api = api(global)?;
    let domains = api.list(&of_app("/v1/domains", app.as_ref())).await?;
    warn(&domains);
    let of_domain = |row: &Value| {
        json!({
            "kind": if row["own"] == true { "own domain" } else { "domain" },
            "name": row["domain"],
            "state": row["certificate_state"],
            "not_after_ms": row["certificate_not_after_ms"],
            "fingerprint": row["certificate_fingerprint"],
        })
    };
    let mut rows: Vec<Value> = domains.iter().map(of_domain).collect();
    if app.is_none() {
        match api.get("/v1/ca").await {
            Ok(ca) => rows.extend(of_mesh(&ca)),
            // Domains are the organization's, the mesh is the platform's.
            Err(failure) if failure.exit == Exit::NotAuthorized => {}
            Err(failure) => return Err(failure),
        }
    }
    if global.output == Format::Json {
        out::json(&Value::Array(rows));
        return Ok(());
    }
    lists::for_people(&mut rows);
    out::table(
        &[
            Column("KIND", "kind"),
            Column("NAME", "name"),
            Column("STATE", "state"),
            Column("FOR", "not_after_ms"),
            Column("FINGERPRINT", "fingerprint"),
        ],
        &rows,
        "no certificates yet; each public service gets one for its domain",
    );
    Ok(())
}

fn of_mesh(ca: &Value) -> Vec<Value> {
    let now_ms = atoll_process::clock::unix_ms();
    let row = |what: &str| {
        let not_after_ms = ca[format!("{what}_not_after_ms")].as_u64().unwrap_or(0);
        json!({
            "kind": format!("mesh {what}"),
            "name": ca["trust_domain"],
            "state": if not_after_ms > now_ms { "valid" } else { "expired" },
            "not_after_ms": not_after_ms,
            "fingerprint": ca[format!("{what}_fingerprint")],
        })
    };
    vec![row("root"), row("intermediate")]
}
