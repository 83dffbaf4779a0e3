//! `atoll cache …`

mod explain;
mod stats;

use super::api_to_change;
use crate::api::encode;
use crate::args::{CacheCommand, Global, PurgeArgs};
use crate::failure::{Exit, Failure, Outcome};
use crate::out::{self, Format};
use http::Method;
use serde_json::{Value, json};

pub(super) async fn run(command: CacheCommand, global: &Global) -> Outcome {
    match command {
        CacheCommand::Purge(args) => purge(args, global).await,
        CacheCommand::Stats(args) => stats::run(args, global).await,
        CacheCommand::Explain(args) => explain::run(args, global).await,
    }
}

/// Says which edges did not answer, and why.
fn name_silent(edges: &[Value]) {
    for edge in edges.iter().filter(|edge| !edge["why_not"].is_null()) {
        out::note(&format!("{} did not answer: {}", out::cell(&edge["edge"]), out::cell(&edge["why_not"])));
    }
}

/// Purges, and waits for every edge that is alive.
async fn purge(args: PurgeArgs, global: &Global) -> Outcome {
    let PurgeArgs { app, tags, urls, prefixes, all, soft } = args;
    let api = api_to_change(global)?;
    let body = json!({ "all": all, "tags": tags, "urls": urls, "prefixes": prefixes, "soft": soft });
    let path = format!("/v1/apps/{}/purges", encode(&app));
    let accepted = api.change(Method::POST, &path, Some(&body)).await?;
    let seq = accepted["seq"].as_u64();
    let seq = seq.ok_or_else(|| Failure::failed("the API's answer does not say which purge it is"))?;
    let state = api.get(&format!("{path}/{seq}")).await.map_err(|failure| {
        failure.fix("the purge is taken, and edges apply it; run the command again to see that they have")
    })?;
    if global.output == Format::Json {
        out::json(&state);
    }
    let edges = state["edges"].as_array().map_or(&[][..], |edges| edges);
    let behind: Vec<&Value> = edges.iter().filter(|edge| edge["applied"] != true).collect();
    if behind.is_empty() {
        out::note(&done(edges));
        return Ok(());
    }
    let lines =
        behind.iter().map(|edge| format!("{}: {}", out::cell(&edge["edge"]), out::cell(&edge["why_not"])));
    let what = format!("{} of {} edges are not known to have purged it", behind.len(), edges.len());
    Err(Failure::new(Exit::TimedOut, what)
        .details(lines)
        .fix("they apply it before anything else once they hear of it; run the command again to see that they have"))
}

fn done(edges: &[Value]) -> String {
    let Some(slowest) = edges.iter().max_by_key(|edge| edge["waited_ms"].as_u64()) else {
        return "the purge is taken; no edge is alive that could have anything stored".to_owned();
    };
    let count = if edges.len() == 1 { "1 edge".to_owned() } else { format!("{} edges", edges.len()) };
    format!(
        "purged on {count}; {} was the last, after {} ms",
        out::cell(&slowest["edge"]),
        slowest["waited_ms"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_where_and_how_fast() {
        let edge = |name: &str, ms: u64| json!({ "edge": name, "applied": true, "waited_ms": ms });
        assert_eq!(done(&[edge("a", 7)]), "purged on 1 edge; a was the last, after 7 ms");
        assert_eq!(done(&[edge("a", 7), edge("b", 9)]), "purged on 2 edges; b was the last, after 9 ms");
        assert!(done(&[]).contains("no edge is alive"));
    }
}
