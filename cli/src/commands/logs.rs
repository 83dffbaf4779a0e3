//! `atoll logs`

use super::{api, interrupted};
use crate::api::{Api, encode};
use crate::args::{Global, LogsArgs};
use crate::failure::{Exit, Failure, Outcome};
use crate::out::{self, Format};
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Most instances that are read at once; each is a connection.
const INSTANCES_MAX: usize = 64;
/// How often the instances are looked at anew while they are followed: a deploy replaces them.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// An instance, and what its lines begin with.
#[derive(Debug, Clone)]
struct Source {
    id: String,
    region: String,
    service: String,
}

pub(super) async fn run(args: LogsArgs, global: &Global) -> Outcome {
    let api = api(global)?;
    let sources = sources(&api, &args).await?;
    if sources.is_empty() {
        return Err(Failure::failed(format!("no instance of `{}` runs", out::harmless(&args.of)))
            .fix("`atoll instances` lists the instances; name one, an app, or APP/SERVICE"));
    }
    let all = async {
        if args.follow {
            follow(&api, sources, &args, global.output).await
        } else {
            show(&api, &sources, &args, global.output).await
        }
    };
    tokio::select! {
        ended = all => ended,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

/// What there is, one instance after the other, so that their lines don't mix.
async fn show(api: &Api, sources: &[Source], args: &LogsArgs, format: Format) -> Outcome {
    let mut lines = 0;
    for source in sources {
        lines += read(api, source, args, sources.len() > 1, format).await?;
    }
    if lines == 0 {
        out::note(match sources.len() {
            1 => "the instance has written nothing yet",
            _ => "the instances have written nothing yet",
        });
    }
    Ok(())
}

/// What there is and what comes, also from instances that start meanwhile.
async fn follow(api: &Api, sources: Vec<Source>, args: &LogsArgs, format: Format) -> Outcome {
    let one = is_instance(&args.of);
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut reading = FuturesUnordered::new();
    let mut fresh = sources;
    loop {
        for source in fresh.drain(..) {
            if reading.len() < INSTANCES_MAX && known.insert(source.id.clone()) {
                reading.push(async move { read(api, &source, args, !one, format).await });
            }
        }
        tokio::select! {
            // An instance that was stopped, or whose host went away, ends its own lines only.
            Some(ended) = reading.next() => match ended {
                Err(failure) if failure.exit == Exit::NotAuthorized => return Err(failure),
                _ if one => return ended.map(|_| ()),
                _ => {}
            },
            () = tokio::time::sleep(LOOK_EVERY), if !one => {
                // Control may be away for a while; the lines of the others go on.
                fresh = self::sources(api, args).await.unwrap_or_default();
            }
        }
        if out::stdout_gone() {
            return Ok(());
        }
    }
}

fn is_instance(of: &str) -> bool {
    of.parse::<atoll_model::InstanceId>().is_ok()
}

/// The instances that are meant: one by id, or those of an app or of `app/service`.
async fn sources(api: &Api, args: &LogsArgs) -> Outcome<Vec<Source>> {
    if is_instance(&args.of) {
        return Ok(vec![Source { id: args.of.clone(), region: String::new(), service: String::new() }]);
    }
    let (app, service) = match args.of.split_once('/') {
        Some((app, service)) => (app, Some(service)),
        None => (args.of.as_str(), None),
    };
    let rows = api.list(&format!("/v1/instances?app={}", encode(app))).await?;
    let text = |row: &Value, key: &str| out::harmless(row[key].as_str().unwrap_or_default());
    let mut sources: Vec<Source> = rows
        .iter()
        .map(|row| Source { id: text(row, "id"), region: text(row, "region"), service: text(row, "service") })
        .filter(|source| service.is_none_or(|service| source.service == service))
        .filter(|source| args.region.as_ref().is_none_or(|region| source.region == *region))
        .collect();
    sources.sort_by(|a, b| (&a.service, &a.region, &a.id).cmp(&(&b.service, &b.region, &b.id)));
    if sources.len() > INSTANCES_MAX {
        out::note(&format!(
            "note: only the first {INSTANCES_MAX} of {} instances; --region or APP/SERVICE chooses others",
            sources.len()
        ));
        sources.truncate(INSTANCES_MAX);
    }
    Ok(sources)
}

/// Shows an instance's lines; gives how many.
async fn read(api: &Api, source: &Source, args: &LogsArgs, labelled: bool, format: Format) -> Outcome<usize> {
    let Source { id, region, service } = source;
    let path = format!("/v1/instances/{}/logs?tail={}&follow={}", encode(id), args.tail, args.follow);
    let mut lines = api.lines(&path).await?;
    let mut shown = 0;
    while let Some(line) = lines.next().await? {
        shown += 1;
        match (format, labelled) {
            (Format::Json, true) => {
                let object = json!({ "instance": id, "service": service, "region": region, "line": line });
                out::data(&object.to_string());
            }
            (Format::Json, false) => out::data(&json!({ "instance": id, "line": line }).to_string()),
            (Format::Table, true) => out::data(&format!("{service} {region} {id}  {}", out::harmless(&line))),
            (Format::Table, false) => out::data(&out::harmless(&line)),
        }
        if out::stdout_gone() {
            break;
        }
    }
    Ok(shown)
}
