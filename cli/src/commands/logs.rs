//! `atoll logs`

use super::{api, interrupted};
use crate::api::{Api, encode};
use crate::args::{Global, LogsArgs};
use crate::failure::{Failure, Outcome};
use crate::out::{self, Format};
use serde_json::{Value, json};

/// Most instances that are followed at once; each is a connection.
const FOLLOWED_MAX: usize = 64;

pub(super) async fn run(args: LogsArgs, global: &Global) -> Outcome {
    let api = api(global)?;
    let instances = instances(&api, &args).await?;
    let labelled = instances.len() > 1;
    let reading = instances.iter().map(|id| read(&api, id, &args, labelled, global.output));
    let all = async {
        if args.follow {
            futures_util::future::try_join_all(reading).await.map(|_| ())
        } else {
            // One after the other, so that their lines don't mix.
            for one in reading {
                one.await?;
            }
            Ok(())
        }
    };
    tokio::select! {
        ended = all => ended,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

/// The instances that are meant: one by id, or those of an app or of `app/service`.
async fn instances(api: &Api, args: &LogsArgs) -> Outcome<Vec<String>> {
    if args.of.parse::<atoll_model::InstanceId>().is_ok() {
        return Ok(vec![args.of.clone()]);
    }
    let (app, service) = match args.of.split_once('/') {
        Some((app, service)) => (app, Some(service)),
        None => (args.of.as_str(), None),
    };
    let rows = api.list(&format!("/v1/instances?app={}", encode(app))).await?;
    let wanted = |row: &&Value| {
        service.is_none_or(|service| row["service"] == service)
            && args.region.as_ref().is_none_or(|region| row["region"] == *region)
    };
    let ids = rows
        .iter()
        .filter(wanted)
        .filter_map(|row| out::lookup(row, "id|instance").as_str().map(str::to_owned));
    let ids: Vec<String> = ids.take(FOLLOWED_MAX).collect();
    if ids.is_empty() {
        return Err(Failure::failed(format!("no instance of `{}` runs", out::harmless(&args.of)))
            .fix("`atoll instances` lists the instances; name one, an app, or app/service"));
    }
    Ok(ids)
}

async fn read(api: &Api, id: &str, args: &LogsArgs, labelled: bool, format: Format) -> Outcome {
    let path = format!("/v1/instances/{}/logs?tail={}&follow={}", encode(id), args.tail, args.follow);
    let mut lines = api.lines(&path).await?;
    while let Some(line) = lines.next().await? {
        match (format, labelled) {
            (Format::Json, _) => out::data(&json!({ "instance": id, "line": line }).to_string()),
            (Format::Table, true) => out::data(&format!("{id}  {}", out::harmless(&line))),
            (Format::Table, false) => out::data(&out::harmless(&line)),
        }
        if out::stdout_gone() {
            break;
        }
    }
    Ok(())
}
