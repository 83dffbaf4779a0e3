//! `atoll drain`: a node or a region is to take nothing new, until it can be stopped.

use super::{api, api_to_change, interrupted};
use crate::api::{Api, encode};
use crate::args::{DrainArgs, Global};
use crate::failure::{Exit, Failure, Outcome};
use crate::out::{self, Column, Format};
use atoll_model::manifest::parse_duration_ms;
use http::Method;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(300);
/// From a node's word that it takes nothing new until edges and gateways have heard it.
const HEARD: Duration = Duration::from_millis(1_500);

pub(super) async fn run(args: DrainArgs, global: &Global) -> Outcome {
    let timeout_ms = parse_duration_ms(&args.timeout)
        .map_err(|error| Failure::usage(error.to_string()).place("--timeout"))?;
    let Some(name) = &args.name else { return list(&api(global)?, global).await };
    let api = api_to_change(global)?;
    let kind = kind_of(&api, name).await?;
    let path = format!("/v1/{kind}s/{}/drain", encode(name));
    let shown = out::harmless(name);
    if args.off {
        let answer = api.change(Method::DELETE, &path, None).await?;
        match answer["with_region"].as_str() {
            Some(region) => out::note(&format!(
                "{shown} is still drained with its region; `atoll drain {} --off` ends that",
                out::harmless(region)
            )),
            None => out::note(&format!("{shown} takes requests and instances again")),
        }
        if global.output == Format::Json {
            out::json(&answer);
        }
        return Ok(());
    }
    let answer = api.change(Method::PUT, &path, None).await?;
    if args.no_wait {
        out::note(&format!("the drain of {shown} is taken; `atoll drain` says how far it is"));
        if global.output == Format::Json {
            out::json(&answer);
        }
        return Ok(());
    }
    let until = Instant::now() + Duration::from_millis(timeout_ms);
    let drained = tokio::select! {
        drained = wait(&api, kind, name, until) => drained?,
        _ = tokio::signal::ctrl_c() => {
            out::note(&format!("\ndetached: the drain goes on; `atoll drain {shown} --off` ends it"));
            return Err(interrupted());
        }
    };
    conclude(&drained);
    if global.output == Format::Json {
        out::json(&drained);
    }
    Ok(())
}

/// `node` or `region`.
async fn kind_of(api: &Api, name: &str) -> Outcome<&'static str> {
    let nodes = api.list("/v1/nodes").await?;
    let live = || nodes.iter().filter(|node| node["removed"] != true);
    let is_node = live().any(|node| node["name"] == name);
    let is_region = live().any(|node| node["region"] == name);
    match (is_node, is_region) {
        (true, false) => Ok("node"),
        (false, true) => Ok("region"),
        (true, true) => Err(Failure::usage(format!(
            "`{}` is the name of a node and of a region: drain the region's nodes by their names",
            out::harmless(name)
        ))),
        (false, false) => {
            Err(Failure::failed(format!("there is no node or region `{}`", out::harmless(name)))
                .fix("`atoll nodes` lists them"))
        }
    }
}

/// Waits until every node that it concerns can be stopped; gives what the API says last.
async fn wait(api: &Api, kind: &str, name: &str, until: Instant) -> Outcome<Value> {
    let mut said = BTreeMap::<String, String>::new();
    let mut heard_since: Option<Instant> = None;
    loop {
        let all = match api.list("/v1/drains").await {
            Ok(all) => Some(all),
            // The drain goes on without control.
            Err(failure) if failure.exit == Exit::Unreachable && Instant::now() < until => None,
            Err(failure) => return Err(failure),
        };
        if let Some(all) = all {
            let found = all.into_iter().find(|drain| drain["kind"] == kind && drain["name"] == name);
            let Some(drain) = found else {
                return Err(Failure::failed(format!(
                    "someone has ended the drain of {}",
                    out::harmless(name)
                )));
            };
            let nodes: Vec<Value> = drain["nodes"].as_array().cloned().unwrap_or_default();
            for node in &nodes {
                let (name, text) = (out::cell(&node["name"]), progress(node));
                if said.get(&name) != Some(&text) {
                    out::note(&format!("{name}  {text}"));
                    said.insert(name, text);
                }
            }
            if nodes.iter().all(|node| node["safe"] == true) {
                if heard_since.get_or_insert_with(Instant::now).elapsed() >= HEARD {
                    return Ok(drain);
                }
            } else {
                heard_since = None;
            }
        }
        if Instant::now() > until {
            return Err(Failure::new(
                Exit::TimedOut,
                format!("{} cannot be stopped yet", out::harmless(name)),
            )
            .fix("the drain goes on: run the command again to wait on, or end it with --off"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How far a node is.
fn progress(node: &Value) -> String {
    let moving = node["moving"].as_u64().unwrap_or(0);
    match (node["alive"] == true, node["heard"] == true, moving) {
        (true, false, _) => "has not heard of it yet".to_owned(),
        (_, _, 0) => "takes nothing new".to_owned(),
        (_, _, 1) => "1 instance moves to another host".to_owned(),
        (_, _, count) => format!("{count} instances move to other hosts"),
    }
}

/// What stopping the nodes means now.
fn conclude(drain: &Value) {
    for node in drain["nodes"].as_array().into_iter().flatten() {
        let name = out::cell(&node["name"]);
        let lines = consequences(node);
        for line in &lines {
            out::note(&format!("{name}  {line}"));
        }
        let price = lines.iter().any(|line| line.starts_with("WARNING"));
        out::note(&format!("{name}  can be stopped{}", if price { ", at that price" } else { "" }));
    }
}

fn consequences(node: &Value) -> Vec<String> {
    let is = |role: &str| node["roles"].as_array().is_some_and(|roles| roles.iter().any(|r| r == role));
    let mut lines = Vec::new();
    if is("edge") {
        lines.push("DNS names it no more; clients that still know it may come for 30 s".to_owned());
    }
    let stay = || node["stay"].as_array().into_iter().flatten();
    let count = stay().count();
    if count > 0 {
        let region = out::cell(&node["region"]);
        let what = match count {
            1 => "1 instance stays".to_owned(),
            _ => format!("{count} instances stay"),
        };
        lines.push(format!("{what}: region {region} has no other host"));
    }
    let mut alone: Vec<&str> = stay()
        .filter(|stays| stays["elsewhere"] != true)
        .filter_map(|stays| stays["cluster"].as_str())
        .collect();
    alone.dedup();
    if !alone.is_empty() {
        lines.push(format!(
            "WARNING: {} runs nowhere else, and is down while the machine is",
            out::harmless(&alone.join(", "))
        ));
    }
    lines
}

async fn list(api: &Api, global: &Global) -> Outcome {
    let drains = api.list("/v1/drains").await?;
    if global.output == Format::Json {
        out::json(&Value::Array(drains));
        return Ok(());
    }
    let mut rows = Vec::new();
    for drain in &drains {
        for node in drain["nodes"].as_array().into_iter().flatten() {
            let mut row = node.clone();
            row["stay"] = node["stay"].as_array().map_or(0, Vec::len).into();
            row["by"] = drain["by"].clone();
            row["since_ms"] = drain["since_ms"].clone();
            row["wish"] = format!("{} {}", out::cell(&drain["kind"]), out::cell(&drain["name"])).into();
            rows.push(row);
        }
    }
    super::lists::for_people(&mut rows);
    out::table(
        &[
            Column("NODE", "name"),
            Column("DRAINED", "wish"),
            Column("BY", "by"),
            Column("SINCE", "since_ms"),
            Column("HEARD", "heard"),
            Column("MOVING", "moving"),
            Column("STAY", "stay"),
            Column("CAN BE STOPPED", "safe"),
        ],
        &rows,
        "nothing is drained; `atoll drain NODE` or `atoll drain REGION` does that",
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_stays_is_said() {
        let node = json!({ "roles": ["host", "edge"], "region": "fra", "stay": [
            { "cluster": "default/shop/web", "elsewhere": true },
            { "cluster": "default/blog/web", "elsewhere": false },
        ]});
        let lines = consequences(&node);
        assert!(lines[0].contains("DNS"));
        assert!(lines[1].starts_with("2 instances stay: region fra"));
        assert!(lines[2].contains("default/blog/web runs nowhere else"));
        assert!(consequences(&json!({ "roles": ["gateway"], "stay": [] })).is_empty());
    }

    #[test]
    fn progress_is_one_line() {
        assert_eq!(progress(&json!({ "alive": true, "heard": false })), "has not heard of it yet");
        assert_eq!(
            progress(&json!({ "alive": true, "heard": true, "moving": 2 })),
            "2 instances move to other hosts"
        );
        assert_eq!(progress(&json!({ "alive": false, "heard": false, "moving": 0 })), "takes nothing new");
    }
}
