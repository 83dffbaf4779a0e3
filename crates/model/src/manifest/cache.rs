//! `[[host.cache]]`: how edges cache the answers of some paths.

use super::error::Problems;
use super::section::{Section, nearest};
use crate::cache::{
    CacheRule, CacheRuleError, LIFETIME_S_MAX, QUERY_NAMES_MAX, QueryKey, Tier, check_query_name,
    check_tags_field,
};
use crate::condition::Condition;
use crate::pattern::{PathPattern, PatternError};
use toml::de::DeValue;

const KEYS: &[&str] = &[
    "match",
    "off",
    "ttl",
    "force",
    "browser_ttl",
    "key",
    "tags",
    "stale_while_revalidate",
    "stale_if_error",
    "tier",
    "bypass",
    "compress",
];
const MATCH_KEYS: &[&str] = &["path"];
const MATCH_LATER: &[&str] = &["methods", "headers", "query", "when"];
const KEY_KEYS: &[&str] = &["query", "ignore_query", "sort_query"];
const KEY_LATER: &[&str] = &["headers", "cookies"];
const TAGS_KEYS: &[&str] = &["field", "show"];

/// Reads one rule.
pub(super) fn read(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<CacheRule> {
    table.check_keys(KEYS, &[], problems);
    let path = read_path(table, problems);
    if table.boolean("off", problems) == Some(true) {
        refuse_beside_off(table, problems);
        return path.map(|path| CacheRule { off: true, ..CacheRule::new(path) });
    }
    let ttl_s = read_ttl(table, problems);
    let force = read_force(table, problems);
    let browser_ttl_s = lifetime(table, "browser_ttl", problems);
    let (query, sort_query) = read_key(table, problems);
    let (tags, show_tags) = read_tags(table, problems);
    Some(CacheRule {
        off: false,
        ttl_s,
        force,
        browser_ttl_s,
        query,
        sort_query,
        tags,
        show_tags,
        stale_while_revalidate_s: lifetime(table, "stale_while_revalidate", problems),
        stale_if_error_s: lifetime(table, "stale_if_error", problems),
        tier: read_tier(table, problems),
        bypass: read_bypass(table, problems),
        compress: table.boolean("compress", problems).unwrap_or(true),
        path: path?,
    })
}

fn read_path(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<PathPattern> {
    if table.get("match").is_none() {
        let what =
            "`match` is missing: which paths the rule is for, such as `match = { path = \"/assets/**\" }`";
        problems.add(table.span(), &table.path_of("match"), what);
        return None;
    }
    let matched = table.table("match", problems)?;
    matched.check_keys(MATCH_KEYS, MATCH_LATER, problems);
    if matched.get("path").is_none() {
        let what = "`path` is missing: which paths the rule is for, such as \"/assets/**\"; \"/**\" is all";
        problems.add(matched.span(), &matched.path_of("path"), what);
        return None;
    }
    let (text, at) = matched.string("path", problems)?;
    text.parse()
        .map_err(|error: PatternError| problems.add(at, &matched.path_of("path"), error.to_string()))
        .ok()
}

fn refuse_beside_off(table: &Section<'_, '_>, problems: &mut Problems<'_>) {
    for (key, at) in table.keys_with_spans() {
        if KEYS.contains(&key) && key != "match" && key != "off" {
            let what = format!("`{key}` has no meaning beside `off = true`");
            problems.add(at, &table.path_of(key), what);
        }
    }
}

fn read_ttl(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<u64> {
    match table.get("ttl").and_then(|value| value.get_ref().as_str()) {
        Some("origin") => None,
        _ => lifetime(table, "ttl", problems),
    }
}

fn read_force(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> bool {
    let force = table.boolean("force", problems).unwrap_or(false);
    // A `ttl` that is wrong has its own error.
    if force && table.get("ttl").is_none_or(|ttl| ttl.get_ref().as_str() == Some("origin")) {
        let at = table.span_of("force").unwrap_or_else(|| table.span());
        problems.add(at, &table.path_of("force"), CacheRuleError::Force.to_string());
    }
    force
}

/// A duration in whole seconds; nothing where the key is absent.
fn lifetime(table: &Section<'_, '_>, key: &str, problems: &mut Problems<'_>) -> Option<u64> {
    let value = table.get(key)?;
    let ms = table.duration_ms(key, 0, 0, LIFETIME_S_MAX * 1000, problems)?;
    if !ms.is_multiple_of(1000) {
        problems.add(value.span(), &table.path_of(key), "caches count in whole seconds, such as \"1s\"");
        return None;
    }
    Some(ms / 1000)
}

fn read_key(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> (QueryKey, bool) {
    let Some(key) = table.table("key", problems) else { return (QueryKey::All, false) };
    key.check_keys(KEY_KEYS, KEY_LATER, problems);
    let sort = key.boolean("sort_query", problems).unwrap_or(false);
    if let (Some(_), Some(at)) = (key.get("query"), key.span_of("ignore_query")) {
        let what =
            "`query` names the parameters that count, `ignore_query` those that don't: give one of them";
        problems.add(at, &key.path_of("ignore_query"), what);
        return (QueryKey::All, sort);
    }
    let query = match key.get("query").map(|value| (value, value.get_ref())) {
        Some((value, DeValue::String(word))) => match word.as_ref() {
            "all" => QueryKey::All,
            "none" => QueryKey::Only(Vec::new()),
            other => {
                let shown: String = other.escape_debug().take(40).collect();
                let what = format!(
                    "\"{shown}\" is neither \"all\" nor \"none\"; a parameter is named in a list: [\"v\"]"
                );
                problems.add(value.span(), &key.path_of("query"), what);
                QueryKey::All
            }
        },
        Some(_) => QueryKey::Only(read_names(
            &key,
            "query",
            "is empty; write \"none\" where no parameter counts",
            problems,
        )),
        None if key.get("ignore_query").is_some() => {
            QueryKey::AllBut(read_names(&key, "ignore_query", "is empty; leave it out", problems))
        }
        None => QueryKey::All,
    };
    (query, sort)
}

fn read_names(table: &Section<'_, '_>, key: &str, empty: &str, problems: &mut Problems<'_>) -> Vec<String> {
    let path = table.path_of(key);
    if let Some(value) = table.get(key)
        && value.get_ref().as_array().is_some_and(|names| names.is_empty())
    {
        problems.add(value.span(), &path, format!("`{key}` {empty}"));
    }
    let mut names = Vec::new();
    for (name, at) in table.list::<String>(key, QUERY_NAMES_MAX, problems) {
        match check_query_name(&name) {
            Ok(()) => names.push(name),
            Err(error) => problems.add(at, &path, error.to_string()),
        }
    }
    names
}

/// `tags = "Surrogate-Key"`, or with `show`.
fn read_tags(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> (Option<String>, bool) {
    match table.get("tags").map(|value| (value, value.get_ref())) {
        None => (None, false),
        Some((_, DeValue::String(_))) => (read_field(table, "tags", problems), false),
        Some((_, DeValue::Table(_))) => {
            let Some(tags) = table.table("tags", problems) else { return (None, false) };
            tags.check_keys(TAGS_KEYS, &[], problems);
            if tags.get("field").is_none() {
                let what =
                    "`field` is missing: the header field that holds the tags, such as \"Surrogate-Key\"";
                problems.add(tags.span(), &tags.path_of("field"), what);
            }
            (read_field(&tags, "field", problems), tags.boolean("show", problems).unwrap_or(false))
        }
        Some((value, other)) => {
            let expected = "the name of a header field, or { field = \"Surrogate-Key\", show = true }";
            table.wrong_type("tags", value.span(), expected, other, problems);
            (None, false)
        }
    }
}

fn read_field(table: &Section<'_, '_>, key: &str, problems: &mut Problems<'_>) -> Option<String> {
    let (text, at) = table.string(key, problems)?;
    let field = text.to_ascii_lowercase();
    match check_tags_field(&field) {
        Ok(()) => Some(field),
        Err(error) => {
            problems.add(at, &table.path_of(key), error.to_string());
            None
        }
    }
}

fn read_tier(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Tier {
    let Some((text, at)) = table.string("tier", problems) else { return Tier::default() };
    Tier::from_name(&text).unwrap_or_else(|| {
        let shown: String = text.escape_debug().take(40).collect();
        let hint = match nearest(&text, ["none", "local", "regional"]) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "use \"none\", \"local\" or \"regional\"".to_owned(),
        };
        problems.add(at, &table.path_of("tier"), format!("\"{shown}\" is no tier; {hint}"));
        Tier::default()
    })
}

fn read_bypass(table: &Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Condition> {
    let (text, at) = table.string("bypass", problems)?;
    match Condition::parse(&text) {
        Ok(condition) => Some(condition),
        Err(error) => {
            let at = problems.within(at, &text, error.at);
            problems.add(at, &table.path_of("bypass"), error.to_string());
            None
        }
    }
}
