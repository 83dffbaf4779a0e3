//! `atoll orgs …`, `atoll tokens api …`, `atoll whoami`, `atoll audit`

use super::{api, api_to_change, lists, moments};
use crate::api::encode;
use crate::args::{ApiTokenArgs, ApiTokensCommand, AuditArgs, Global, OrgsCommand};
use crate::failure::{Failure, Outcome};
use crate::out::{self, Column, Format};
use atoll_model::manifest::parse_duration_ms;
use atoll_process::clock::unix_ms;
use http::Method;
use serde_json::{Value, json};

pub(super) async fn whoami(global: &Global) -> Outcome {
    let who = api(global)?.get("/v1/whoami").await?;
    if global.output == Format::Json {
        out::json(&who);
        return Ok(());
    }
    for key in ["org", "name", "role", "token", "expires_ms"] {
        let value = match who[key].as_u64() {
            Some(at_ms) if key.ends_with("_ms") => out::date(at_ms),
            _ => out::cell(&who[key]),
        };
        out::data(&format!("{:8}  {value}", key.trim_end_matches("_ms")));
    }
    Ok(())
}

pub(super) async fn orgs(command: OrgsCommand, global: &Global) -> Outcome {
    match command {
        OrgsCommand::List => {
            let rows = api(global)?.list("/v1/orgs").await?;
            let columns = [
                Column("ORGANIZATION", "name"),
                Column("APPS", "apps"),
                Column("TOKENS", "tokens"),
                Column("AGE", "created_ms"),
            ];
            show(rows, &columns, "no organizations", global);
        }
        OrgsCommand::Create { name } => {
            let body = json!({ "name": name });
            let made = api_to_change(global)?.change(Method::POST, "/v1/orgs", Some(&body)).await?;
            answer(
                &made,
                global,
                &format!(
                    "organization {name} is there; `atoll tokens api create NAME --org {name} --role admin` lets somebody in"
                ),
            );
        }
        OrgsCommand::Remove { name } => {
            let path = format!("/v1/orgs/{}", encode(name.as_str()));
            let removed = api_to_change(global)?.change(Method::DELETE, &path, None).await?;
            answer(
                &removed,
                global,
                &format!("organization {name} is gone, with its tokens and its audit log"),
            );
        }
    }
    Ok(())
}

pub(super) async fn api_tokens(command: ApiTokensCommand, global: &Global) -> Outcome {
    match command {
        ApiTokensCommand::Create(args) => create(args, global).await,
        ApiTokensCommand::List { org } => {
            let path = with_org("/v1/tokens/api", org.as_deref());
            let rows = api(global)?.list(&path).await?;
            let columns = [
                Column("ID", "id"),
                Column("NAME", "name"),
                Column("ROLE", "role"),
                Column("STATE", "state"),
                Column("USED", "used_ms"),
                Column("EXPIRES IN", "expires_ms"),
                Column("AGE", "created_ms"),
                Column("MADE BY", "by"),
            ];
            show(rows, &columns, "no tokens; `atoll tokens api create` makes one", global);
            Ok(())
        }
        ApiTokensCommand::Revoke { id, org } => {
            let path = with_org(&format!("/v1/tokens/api/{}", encode(&id)), org.as_deref());
            let revoked = api_to_change(global)?.change(Method::DELETE, &path, None).await?;
            answer(&revoked, global, &format!("token {} is worth nothing any more", out::harmless(&id)));
            Ok(())
        }
    }
}

async fn create(args: ApiTokenArgs, global: &Global) -> Outcome {
    let mut body = json!({ "name": args.name, "role": args.role });
    if let Some(ttl) = &args.ttl {
        let ttl_ms =
            parse_duration_ms(ttl).map_err(|error| Failure::usage(error.to_string()).place("--ttl"))?;
        body["ttl_ms"] = json!(ttl_ms);
    }
    if let Some(org) = &args.org {
        body["org"] = json!(org);
    }
    let made = api_to_change(global)?.change(Method::POST, "/v1/tokens/api", Some(&body)).await?;
    match (global.output, made["token"].as_str()) {
        (Format::Table, Some(token)) => {
            out::data(token);
            out::note("shown this once; use it as ATOLL_TOKEN, or with `atoll context add`");
        }
        _ => out::json(&made),
    }
    Ok(())
}

fn with_org(path: &str, org: Option<&str>) -> String {
    org.map_or_else(|| path.to_owned(), |org| format!("{path}?org={}", encode(org)))
}

fn show(mut rows: Vec<Value>, columns: &[Column], empty: &str, global: &Global) {
    if global.output == Format::Json {
        out::json(&Value::Array(rows));
        return;
    }
    lists::for_people(&mut rows);
    out::table(columns, &rows, empty);
}

/// What a change came to: the answer for programs, a sentence for people.
fn answer(made: &Value, global: &Global, sentence: &str) {
    match global.output {
        Format::Json => out::json(made),
        Format::Table => out::note(sentence),
    }
}

pub(super) async fn audit(args: AuditArgs, global: &Global) -> Outcome {
    let mut path = "/v1/audit?".to_owned();
    let mut add = |name: &str, value: Option<String>| {
        value.into_iter().for_each(|value| path.push_str(&format!("{name}={}&", encode(&value))));
    };
    add("org", args.org.clone());
    add("app", args.app.clone());
    add(
        "since_ms",
        args.since
            .as_deref()
            .map(|text| moments::parse(text, unix_ms()))
            .transpose()?
            .map(|ms| ms.to_string()),
    );
    match (args.all || args.since.is_some(), args.tail) {
        (true, None) => {}
        (_, tail) => add("tail", Some(tail.unwrap_or(TAIL).to_string())),
    }
    let mut rows = api(global)?.lines_of_json(path.trim_end_matches(['&', '?'])).await?;
    if global.output == Format::Json {
        out::json(&Value::Array(rows));
        return Ok(());
    }
    rows.iter_mut().for_each(describe);
    let columns = [
        Column("AT", "at"),
        Column("WHO", "who"),
        Column("ROLE", "role"),
        Column("WHAT", "what"),
        Column("OBJECT", "object"),
        Column("STATUS", "status"),
        Column("DETAIL", "detail"),
    ];
    out::table(&columns, &rows, "nothing was changed");
    Ok(())
}

/// What the table shows of an entry beside its fields.
fn describe(row: &mut Value) {
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let at = row["at_ms"].as_u64().map(out::date).unwrap_or_default();
    // Nodes have no path: their call says it all.
    let what = format!("{} {}", text("method"), text("path")).trim().to_owned();
    let who = match text("by_org") == text("org") {
        true => text("by"),
        false => format!("{} of {}", text("by"), text("by_org")),
    };
    for (key, value) in [("at", at), ("what", what), ("who", who)] {
        row[key] = Value::String(value);
    }
}

/// Entries that are shown where nothing else is asked for.
const TAIL: u32 = 50;
