//! `atoll cache …`

use super::api_to_change;
use crate::api::encode;
use crate::args::{CacheCommand, Global, PurgeArgs};
use crate::failure::{Failure, Outcome};
use crate::out::{self, Format};
use http::Method;
use serde_json::{Value, json};

pub(super) async fn run(command: CacheCommand, global: &Global) -> Outcome {
    let CacheCommand::Purge(args) = command;
    purge(args, global).await
}

/// Purges, and waits for every edge that is alive.
async fn purge(args: PurgeArgs, global: &Global) -> Outcome {
    let PurgeArgs { app, tags, urls, prefixes, all, soft } = args;
    let api = api_to_change(global)?;
    let body = json!({ "all": all, "tags": tags, "urls": urls, "prefixes": prefixes, "soft": soft });
    let path = format!("/v1/apps/{}/purges", encode(&app));
    let accepted = api.change(Method::POST, &path, Some(&body)).await?;
    let seq = accepted["seq"].as_u64().unwrap_or(0);
    let state = api.get(&format!("{path}/{seq}")).await?;
    if global.output == Format::Json {
        out::json(&state);
    }
    let edges = state["edges"].as_array().map_or(&[][..], |edges| edges);
    let behind: Vec<&Value> = edges.iter().filter(|edge| edge["applied"] != true).collect();
    let slowest =
        edges.iter().filter(|edge| edge["applied"] == true).max_by_key(|edge| edge["waited_ms"].as_u64());
    if behind.is_empty() {
        let slowest = slowest.map(|edge| {
            format!("; {} was the last, after {} ms", out::cell(&edge["edge"]), edge["waited_ms"])
        });
        out::note(&format!("purged on {} edges{}", edges.len(), slowest.unwrap_or_default()));
        return Ok(());
    }
    let lines =
        behind.iter().map(|edge| format!("{}: {}", out::cell(&edge["edge"]), out::cell(&edge["why_not"])));
    Err(Failure::failed(format!("{} of {} edges are not known to have purged it", behind.len(), edges.len()))
        .details(lines)
        .fix("they apply it before anything else once they hear of it; ask again with the same command"))
}
