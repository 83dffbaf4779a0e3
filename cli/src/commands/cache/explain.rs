//! `atoll cache explain`

use crate::api::encode;
use crate::args::{CacheExplainArgs, Global};
use crate::commands::api;
use crate::commands::upload::size;
use crate::failure::{Failure, Outcome};
use crate::out::{self, Format, cell};
use serde_json::Value;

pub(super) async fn run(args: CacheExplainArgs, global: &Global) -> Outcome {
    let CacheExplainArgs { url, headers } = args;
    let mut path = format!("/v1/cache/explain?url={}", encode(&url));
    for header in headers {
        if !header.contains(':') {
            return Err(Failure::usage(format!("`{}` is no field of a request", out::harmless(&header)))
                .place("-H")
                .fix("write it as in a request, such as -H 'Accept-Language: de'"));
        }
        path.push_str(&format!("&header={}", encode(&header)));
    }
    let answer = api(global)?.get(&path).await?;
    if global.output == Format::Json {
        out::json(&answer);
        return Ok(());
    }
    let edges = answer["edges"].as_array().map_or(&[][..], |edges| edges);
    if edges.is_empty() {
        out::note("no edge is alive; `atoll nodes` shows which nodes there are");
    }
    for edge in edges.iter().filter(|edge| edge["explanation"].is_object()) {
        lines(edge).iter().for_each(|line| out::data(line));
    }
    super::name_silent(edges);
    Ok(())
}

/// What one edge would do, in words.
fn lines(edge: &Value) -> Vec<String> {
    let said = &edge["explanation"];
    let would = said["would"].as_str().unwrap_or("unknown");
    let mut lines = vec![
        format!("{} ({}): {}", cell(&edge["edge"]), cell(&edge["site"]), in_words(would)),
        format!("  because  {}", cell(&said["why"])),
    ];
    let mut add = |name: &str, text: String| lines.push(format!("  {name:<8} {text}"));
    if let Some(reason) = said["reason"].as_str() {
        let reason = out::harmless(reason);
        add("reason", format!("{reason} (`atoll help {reason}` says more)"));
    }
    if !said["cache_status"].is_null() {
        add("field", format!("Cache-Status: {}", cell(&said["cache_status"])));
    }
    if !said["status"].is_null() {
        add("answer", cell(&said["status"]));
    }
    if said["stored"].is_object() {
        add("stored", stored(&said["stored"]));
    }
    lines
}

fn in_words(would: &str) -> String {
    match would {
        "hit" => "answers from memory",
        "validate" => "asks the instance whether what is stored still holds",
        "miss" => "asks the instance, and stores what may be stored",
        "pass" => "asks the instance, for this request alone",
        "bypass" => "asks the instance, past the cache",
        "refuse" => "answers with an error of its own",
        "unknown" => "can't say",
        // Of an edge of another version.
        other => return out::harmless(other),
    }
    .to_owned()
}

fn stored(stored: &Value) -> String {
    let seconds = |name: &str| format!("{} s", cell(&stored[name]));
    let guessed = if stored["lifetime_guessed"] == true { " (guessed)" } else { "" };
    let mut parts = vec![
        format!("status {}", cell(&stored["status"])),
        format!("{} old, fresh for {}{guessed}", seconds("age_s"), seconds("lifetime_s")),
        format!("body of {}", stored["body_bytes"].as_u64().map_or_else(|| "?".to_owned(), size)),
        format!("{} fields", cell(&stored["fields"])),
    ];
    for (member, name) in [("vary", "varies by"), ("tags", "tags")] {
        if stored[member].as_array().is_some_and(|names| !names.is_empty()) {
            parts.push(format!("{name} {}", cell(&stored[member])));
        }
    }
    match stored["purged"].as_str() {
        Some("yes") => parts.push("purged".to_owned()),
        Some("softly") => parts.push("purged softly".to_owned()),
        _ => {}
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_says_what_and_why() {
        let kept = json!({ "status": 200, "age_s": 18, "lifetime_s": 60, "lifetime_guessed": true, "body_bytes": 1536,
            "fields": 7, "vary": ["accept-language"], "tags": ["red", "p-1"], "purged": "softly" });
        let said = json!({ "would": "hit", "why": "it is fresh for 42 s more", "cache_status": "Atoll; hit; ttl=42",
            "status": 304, "stored": kept });
        let lines = lines(&json!({ "edge": "fra1-edge", "site": "fra1", "explanation": said }));
        assert_eq!(
            lines,
            [
                "fra1-edge (fra1): answers from memory",
                "  because  it is fresh for 42 s more",
                "  field    Cache-Status: Atoll; hit; ttl=42",
                "  answer   304",
                "  stored   status 200, 18 s old, fresh for 60 s (guessed), body of 1.5 KiB, 7 fields, varies by accept-language, tags red,p-1, purged softly",
            ]
        );
    }

    #[test]
    fn what_a_later_edge_says_is_shown_harmlessly() {
        let said = json!({ "would": "dance\u{1b}[2J", "why": "x", "reason": "not-cached" });
        let lines = lines(&json!({ "edge": "a", "site": "b", "explanation": said }));
        assert_eq!(lines[0], "a (b): dance\\u{1b}[2J");
        assert_eq!(lines[2], "  reason   not-cached (`atoll help not-cached` says more)");
    }
}
