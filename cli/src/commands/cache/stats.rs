//! `atoll cache stats`

use crate::api::encode;
use crate::args::{CacheStatsArgs, Global};
use crate::commands::api;
use crate::commands::upload::size;
use crate::failure::Outcome;
use crate::out::{self, Column, Format};
use serde_json::{Map, Value, json};

const COLUMNS: [Column; 9] = [
    Column("EDGE", "edge"),
    Column("SITE", "site"),
    Column("HITS", "hits"),
    Column("MISSES", "misses"),
    Column("OTHER", "other"),
    Column("HIT RATIO", "hit_ratio"),
    Column("STORED", "entries"),
    Column("MEMORY", "memory"),
    Column("OF WHOLE EDGE", "whole"),
];

pub(super) async fn run(args: CacheStatsArgs, global: &Global) -> Outcome {
    let filter = args.app.map(|app| format!("?app={}", encode(&app))).unwrap_or_default();
    let answer = api(global)?.get(&format!("/v1/cache/stats{filter}")).await?;
    if global.output == Format::Json {
        out::json(&answer);
        return Ok(());
    }
    let edges = answer["edges"].as_array().map_or(&[][..], |edges| edges);
    let mut rows: Vec<Value> = edges.iter().map(row).collect();
    if rows.len() > 1 {
        rows.push(counted("all", "", answer["total"]["requests"].as_object()));
    }
    out::table(&COLUMNS, &rows, "no edge is alive; `atoll nodes` shows which nodes there are");
    super::name_silent(edges);
    Ok(())
}

/// What one edge says; a dash for what it does not.
fn row(edge: &Value) -> Value {
    let stats = &edge["stats"];
    let apps = stats["apps"].as_array().map_or(&[][..], |apps| apps);
    let (name, site) = (edge["edge"].as_str().unwrap_or_default(), edge["site"].as_str().unwrap_or_default());
    let mut requests = Map::new();
    for (word, count) in apps.iter().filter_map(|app| app["requests"].as_object()).flatten() {
        let sum = requests.get(word).map_or(0, number) + number(count);
        requests.insert(word.clone(), sum.into());
    }
    let mut row = counted(name, site, stats.is_object().then_some(&requests));
    if let Some(entries) = stats["organization"]["entries"].as_u64() {
        row["entries"] = entries.into();
    }
    row["memory"] = stats["organization"]["bytes"].as_u64().map(size).into();
    row["whole"] = match (stats["bytes"].as_u64(), stats["bytes_max"].as_u64()) {
        (Some(_), Some(0)) => "no cache".into(),
        (Some(bytes), Some(most)) => format!("{} of {}", size(bytes), size(most)).into(),
        _ => Value::Null,
    };
    row
}

/// Requests as hits, misses and the rest.
fn counted(edge: &str, site: &str, requests: Option<&Map<String, Value>>) -> Value {
    let Some(requests) = requests else { return json!({ "edge": edge, "site": site }) };
    let of = |word: &str| requests.get(word).map_or(0, number);
    let all: u64 = requests.values().map(number).sum();
    // Stale ones that may be used come from memory, too.
    let (hits, misses) = (of("hit") + of("stale"), of("miss"));
    let ratio = (all > 0).then(|| format!("{:.1} %", hits as f64 * 100.0 / all as f64));
    json!({
        "edge": edge,
        "site": site,
        "hits": hits,
        "misses": misses,
        "other": all - hits - misses,
        "hit_ratio": ratio,
    })
}

fn number(count: &Value) -> u64 {
    count.as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edges_apps_are_one_row() {
        let app = |hits: u64| json!({ "requests": { "hit": hits, "stale": 0, "miss": 1, "pass": 2 } });
        let own = json!({ "entries": 8, "bytes": 2048 });
        let stats =
            json!({ "apps": [app(3), app(10)], "organization": own, "bytes": 4096, "bytes_max": 8192 });
        let row = row(&json!({ "edge": "fra1-edge", "site": "fra1", "stats": stats }));
        assert_eq!(
            row,
            json!({
                "edge": "fra1-edge", "site": "fra1", "hits": 13, "misses": 2, "other": 4, "hit_ratio": "68.4 %",
                "entries": 8, "memory": "2.0 KiB", "whole": "4.0 KiB of 8.0 KiB",
            })
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let silent = row(&json!({ "edge": "a", "site": "b", "stats": null, "why_not": "it is away" }));
        assert_eq!(silent, json!({ "edge": "a", "site": "b", "memory": null, "whole": null }));
        let idle =
            row(&json!({ "edge": "a", "site": "b", "stats": { "apps": [], "bytes": 0, "bytes_max": 0 } }));
        assert_eq!(
            (&idle["hits"], &idle["hit_ratio"], &idle["whole"]),
            (&json!(0), &Value::Null, &json!("no cache"))
        );
    }
}
