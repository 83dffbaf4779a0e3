//! `atoll status`

use super::{api, lists};
use crate::api::encode;
use crate::args::{Global, StatusArgs};
use crate::failure::{Failure, Outcome};
use crate::out::{self, Column, Format};
use serde_json::Value;
use std::path::Path;

pub(super) async fn run(args: StatusArgs, global: &Global) -> Outcome {
    let Some(app) = args.app.or_else(app_of_this_folder) else {
        return lists::run(&lists::APPS, None, global).await;
    };
    let api = api(global)?;
    let mut status = api.get(&format!("/v1/status/{}", encode(&app))).await?;
    if !status.is_object() {
        return Err(Failure::failed("the API's answer is no status"));
    }
    match global.output {
        Format::Json => out::json(&status),
        Format::Table => {
            if let Some(instances) = status.get_mut("instances").and_then(Value::as_array_mut) {
                lists::number_revisions(&api, instances).await?;
            }
            show(&app, status);
        }
    }
    Ok(())
}

/// The app of `./atoll.toml`, if there is one that can be read.
pub(super) fn app_of_this_folder() -> Option<String> {
    let text = std::fs::read_to_string(Path::new("atoll.toml")).ok()?;
    let folder = std::env::current_dir().ok()?;
    atoll_model::manifest::parse(&text, "atoll.toml", &folder).ok().map(|manifest| manifest.app.to_string())
}

fn show(app: &str, mut status: Value) {
    out::data(&format!("app     {}", out::harmless(app)));
    out::data(&format!("deploy  {}", out::cell(&status["deploy"]["state"])));
    if let Some(cause) = out::lookup(&status, "deploy.cause.message").as_str() {
        out::data(&format!("failed  {}", out::harmless(cause)));
    }
    for url in status["urls"].as_array().into_iter().flatten() {
        out::data(&format!("url     {}", out::cell(url)));
    }
    let services = [
        Column("SERVICE", "service"),
        Column("REVISION", "number"),
        Column("PUBLIC", "public"),
        Column("HEALTHY/WANTED", "regions"),
    ];
    section(&mut status, "services", &services);
    let instances: Vec<Column> =
        std::iter::once(Column("INSTANCE", "id")).chain(lists::INSTANCE_COLUMNS).collect();
    section(&mut status, "instances", &instances);
    section(
        &mut status,
        "edges",
        &[Column("EDGE", "node"), Column("HTTPS", "https_address"), Column("HTTP", "http_address")],
    );
    out::note(
        "note: instances are plain processes of the host's user; nothing isolates them from each other",
    );
}

fn section(status: &mut Value, key: &str, columns: &[Column]) {
    let Some(rows) = status.get_mut(key).and_then(Value::as_array_mut) else { return };
    out::data("");
    lists::for_people(rows);
    out::table(columns, rows, &format!("no {key}"));
}
