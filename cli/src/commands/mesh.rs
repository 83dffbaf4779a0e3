//! `atoll ca status`, `atoll tokens …`

use super::{api, api_to_change, lists};
use crate::api::encode;
use crate::args::{Global, TokenArgs, TokensCommand};
use crate::failure::{Failure, Outcome};
use crate::out::{self, Column, Format};
use atoll_model::manifest::parse_duration_ms;
use atoll_model::{RegionName, SiteName};
use http::Method;
use serde_json::{Value, json};

pub(super) async fn ca_status(global: &Global) -> Outcome {
    let status = api(global)?.get("/v1/ca").await?;
    match (global.output, &status) {
        (Format::Table, Value::Object(fields)) => {
            let shown = fields.iter().filter(|(key, _)| !key.ends_with("_pem")).map(shown);
            let rows: Vec<(String, String)> = shown.collect();
            let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
            for (key, value) in rows {
                out::data(&format!("{key:width$}  {value}"));
            }
        }
        _ => out::json(&status),
    }
    Ok(())
}

/// One line of the table: moments as dates, lifetimes with their unit.
fn shown((key, value): (&String, &Value)) -> (String, String) {
    match (key.strip_suffix("_ms"), key.strip_suffix("_s"), value.as_u64()) {
        (Some(name), _, Some(ms)) => (name.replace('_', " "), out::date(ms)),
        (_, Some(name), Some(seconds)) => (name.replace('_', " "), out::span(seconds)),
        _ => (key.replace('_', " "), out::cell(value)),
    }
}

pub(super) async fn tokens(command: TokensCommand, global: &Global) -> Outcome {
    match command {
        TokensCommand::Create(args) => create(args, global).await,
        TokensCommand::List => list(global).await,
        TokensCommand::Revoke { id } => {
            api_to_change(global)?
                .change(Method::DELETE, &format!("/v1/tokens/join/{}", encode(&id)), None)
                .await?;
            out::note(&format!("token {} can't be used any more", out::harmless(&id)));
            Ok(())
        }
        TokensCommand::Api(command) => super::access::api_tokens(command, global).await,
    }
}

/// What the API wants to know for a join token.
pub fn token_request(args: &TokenArgs) -> Outcome<Value> {
    let ttl_ms =
        parse_duration_ms(&args.ttl).map_err(|error| Failure::usage(error.to_string()).place("--ttl"))?;
    let region = match &args.region {
        Some(region) => region.clone(),
        None => region_of(&args.site)?,
    };
    let mut body = json!({ "roles": args.roles, "site": args.site, "region": region, "ttl_ms": ttl_ms });
    if let Some(node) = &args.node {
        body["node"] = json!(node);
    }
    Ok(body)
}

/// The region that a site's name stands for: `fra` of `fra1`.
fn region_of(site: &SiteName) -> Outcome<RegionName> {
    let digitless = site.as_str().trim_end_matches(|c: char| c.is_ascii_digit());
    RegionName::new(digitless.trim_end_matches('-')).map_err(|_| {
        Failure::usage(format!("the name of site `{site}` does not say its region"))
            .fix("give the region with --region")
    })
}

async fn create(args: TokenArgs, global: &Global) -> Outcome {
    let body = token_request(&args)?;
    let made = api_to_change(global)?.change(Method::POST, "/v1/tokens/join", Some(&body)).await?;
    match (global.output, made["token"].as_str()) {
        (Format::Table, Some(token)) => {
            out::data(token);
            out::note("shown this once; put it into the file that the node's `join.token_file` names");
        }
        _ => out::json(&made),
    }
    Ok(())
}

async fn list(global: &Global) -> Outcome {
    let mut rows = api(global)?.list("/v1/tokens/join").await?;
    if global.output == Format::Json {
        out::json(&Value::Array(rows));
        return Ok(());
    }
    lists::for_people(&mut rows);
    let columns = [
        Column("ID", "id"),
        Column("ROLES", "roles"),
        Column("SITE", "site"),
        Column("REGION", "region"),
        Column("NODE", "node"),
        Column("EXPIRES IN", "expires_ms"),
        Column("STATE", "state"),
        Column("USED BY", "used_by"),
    ];
    out::table(&columns, &rows, "no tokens; `atoll tokens create` makes one");
    Ok(())
}
