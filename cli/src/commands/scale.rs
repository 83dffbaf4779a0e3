//! `atoll scale`

use super::deploy::wait_to_the_end;
use super::{api, api_to_change};
use crate::api::{Api, encode};
use crate::args::{Global, ScaleArgs};
use crate::failure::{Failure, Outcome};
use crate::out::{self, Column, Format};
use http::Method;
use serde_json::{Map, Value, json};

pub(super) async fn run(args: ScaleArgs, global: &Global) -> Outcome {
    let (app, service) = app_and_service(&args.of)?;
    if args.counts.is_empty() {
        return show(&api(global)?, app, service, global).await;
    }
    let body = json!({ "regions": regions(&args.counts)? });
    let api = api_to_change(global)?;
    let path = format!("/v1/apps/{}/services/{}/scale", encode(app), encode(service));
    let answer = api
        .change(Method::PATCH, &path, Some(&body))
        .await
        .map_err(|failure| super::deploy::busy_fix(failure, app))?;
    wait_to_the_end(&api, answer, app, (args.no_wait, "scaled"), global).await
}

/// `APP/SERVICE`.
pub(super) fn app_and_service(text: &str) -> Outcome<(&str, &str)> {
    text.split_once('/').filter(|(app, service)| !app.is_empty() && !service.is_empty()).ok_or_else(|| {
        Failure::usage(format!("`{}` names no service", out::harmless(text)))
            .fix("write APP/SERVICE, such as shop/web; `atoll services` lists them")
    })
}

/// `fra=3 was=min` as the API takes it.
fn regions(counts: &[String]) -> Outcome<Map<String, Value>> {
    let mut regions = Map::new();
    for text in counts {
        let wrong = || {
            Failure::usage(format!("`{}` is no number of instances for a region", out::harmless(text)))
                .fix("write REGION=N, such as fra=3, or fra=min for what the manifest says")
        };
        let (region, count) = text.split_once('=').ok_or_else(wrong)?;
        let count = match count {
            "min" => Value::Null,
            number => json!(number.parse::<u32>().map_err(|_| wrong())?),
        };
        if region.is_empty() || regions.insert(region.to_owned(), count).is_some() {
            return Err(wrong());
        }
    }
    Ok(regions)
}

async fn show(api: &Api, app: &str, service: &str, global: &Global) -> Outcome {
    let services = api.list(&format!("/v1/services?app={}", encode(app))).await?;
    let found = services.into_iter().find(|row| row["service"] == service).ok_or_else(|| {
        Failure::failed(format!("there is no service {}/{}", out::harmless(app), out::harmless(service)))
            .fix("`atoll services` lists them")
    })?;
    if global.output == Format::Json {
        out::json(&found["regions"]);
        return Ok(());
    }
    let rows: Vec<Value> = found["regions"].as_object().into_iter().flatten().map(row).collect();
    out::table(
        &[
            Column("REGION", "region"),
            Column("WANTED", "wanted"),
            Column("HEALTHY", "healthy"),
            Column("MIN", "min"),
            Column("MAX", "max"),
        ],
        &rows,
        "it runs in no region",
    );
    Ok(())
}

fn row((region, counts): (&String, &Value)) -> Value {
    let mut row = counts.clone();
    row["region"] = json!(region);
    row
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn counts_are_read_as_they_are_written() {
        let read = |text: &str| regions(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(Value::Object(read("fra=3 was=min").unwrap()), json!({ "fra": 3, "was": null }));
        for wrong in ["fra", "fra=", "=3", "fra=-1", "fra=x", "fra=1 fra=2"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(app_and_service("shop/web").unwrap(), ("shop", "web"));
        assert!(app_and_service("shop").is_err() && app_and_service("/web").is_err());
    }
}
