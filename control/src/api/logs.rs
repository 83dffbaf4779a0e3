//! What instances wrote: one stream of server-sent events over all that are meant, read at their hosts.

mod merge;
mod reader;

use super::{Api, Problem};
use crate::attach::Reading;
use crate::caller::Caller;
use crate::store::objects::{App, Placement, Service};
use atoll_model::{AppName, InstanceId, RegionName, ServiceName};
use axum::Extension;
use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, stream};
use http::StatusCode;
use reader::Reader;
use serde::Deserialize;
use std::convert::Infallible;

const TAIL_LINES: u32 = 100;
const TAIL_LINES_MAX: u32 = 10_000;
const GREP_BYTES_MAX: usize = 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    app: Option<String>,
    service: Option<String>,
    region: Option<String>,
    instance: Option<String>,
    tail: Option<u32>,
    since_ms: Option<u64>,
    grep: Option<String>,
    follow: bool,
}

/// Which instances are meant, and what of them.
#[derive(Debug, Clone)]
struct Asked {
    /// Of the placements that can be meant.
    prefix: String,
    service: Option<ServiceName>,
    region: Option<RegionName>,
    instance: Option<InstanceId>,
    tail: u32,
    since_ms: u64,
    grep: String,
    follow: bool,
}

impl Asked {
    fn means(&self, placement: &Placement) -> bool {
        let service = self.service.as_ref().is_none_or(|service| placement.cluster.service == *service);
        let region = self.region.as_ref().is_none_or(|region| placement.region == *region);
        let instance = self.instance.as_ref().is_none_or(|instance| placement.instance == *instance);
        service && region && instance
    }

    /// The instances that are there now, in the order in which people look for them.
    fn placements(&self, api: &Api) -> Vec<Placement> {
        let mut placements = api.store.list::<Placement>(&self.prefix);
        placements.retain(|placement| self.means(placement));
        placements
            .sort_by(|a, b| (&a.cluster, &a.region, &a.instance).cmp(&(&b.cluster, &b.region, &b.instance)));
        placements
    }
}

#[utoipa::path(get, path = "/v1/logs",
    params(
        ("app" = Option<String>, Query, description = "only this app"),
        ("service" = Option<String>, Query, description = "only services of this name"),
        ("region" = Option<String>, Query, description = "only instances in this region"),
        ("instance" = Option<String>, Query, description = "only this instance"),
        ("tail" = Option<u32>, Query, maximum = 10_000, description =
            "last lines of each instance, counted after `since_ms` and `grep`; 100 by default"),
        ("since_ms" = Option<u64>, Query, description =
            "only lines written at this time or later, ms since 1970"),
        ("grep" = Option<String>, Query, max_length = 1024, description =
            "only lines that contain this text"),
        ("follow" = Option<bool>, Query, description =
            "go on with what is written, also by instances that start meanwhile"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", description =
            "`line` {instance, app, service, region, at_ms, position, line, cut}, lines of the past in the order \
             of their times; `at_ms` is up to 250 ms or a 256th of the line's age late, `position` is where the \
             line ends in all that the instance wrote; `cut`: the line was longer than 16 KiB. \
             `dropped` {instance, …, count}: so many lines were overwritten before they could be read. \
             `gone` {instance, …}: an instance has ended. \
             `error` {instance, …, host, detail}: it can't be read now; the others go on, and with `follow` it \
             is tried again. `end` {instances}: everything was told, of so many. Comments keep the \
             connection alive. With `follow` it ends with its token."),
        (status = 404, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(options): Query<Options>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let asked = asked(&api, &caller, options)?;
    let place = api.attached.place(Reading::Logs, &caller.org).ok_or_else(too_many)?;
    let reader = Reader::start(api, caller, asked, place);
    let events = stream::unfold(reader, |mut reader| async move {
        let said = reader.next().await?;
        Some((Ok(said.event()), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// 429.
pub(super) fn too_many() -> Problem {
    let detail = "too many ask the nodes for such already; try again when one of them has ended";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-streams", "Too many streams", detail)
}

fn asked(api: &Api, caller: &Caller, options: Options) -> Result<Asked, Problem> {
    let unknown =
        |kind: &str, name: &str| Problem::not_found(format!("there is no {kind} `{}`", name.escape_debug()));
    let name = options.app.as_deref();
    let app: Option<AppName> = name.map(|app| app.parse().map_err(|_| unknown("app", app))).transpose()?;
    if let Some(app) = &app {
        let known = api.store.get::<App>(&format!("{}/{app}", caller.org));
        known.ok_or_else(|| unknown("app", app.as_str()))?;
    }
    let prefix = app.map_or_else(|| format!("{}/", caller.org), |app| format!("{}/{app}/", caller.org));
    let name = options.service.as_deref();
    let service: Option<ServiceName> =
        name.map(|service| service.parse().map_err(|_| unknown("service", service))).transpose()?;
    if let Some(service) = &service {
        let mut services = api.store.list::<Service>(&prefix).into_iter();
        services
            .find(|known| known.cluster.service == *service)
            .ok_or_else(|| unknown("service", service.as_str()))?;
    }
    let name = options.region.as_deref();
    let region = name.map(|region| {
        let mut regions = api.config.regions.iter();
        regions.find(|known| known.as_str() == region).cloned().ok_or_else(|| unknown("region", region))
    });
    let name = options.instance.as_deref();
    let instance: Option<InstanceId> =
        name.map(|id| id.parse().map_err(|_| unknown("instance", id))).transpose()?;
    let tail = options.tail.unwrap_or(TAIL_LINES);
    if tail > TAIL_LINES_MAX {
        return Err(Problem::invalid("tail", format!("at most {TAIL_LINES_MAX} lines of the past")));
    }
    let grep = options.grep.unwrap_or_default();
    if grep.len() > GREP_BYTES_MAX {
        return Err(Problem::invalid("grep", format!("at most {GREP_BYTES_MAX} bytes")));
    }
    let asked = Asked {
        prefix,
        service,
        region: region.transpose()?,
        instance,
        tail,
        since_ms: options.since_ms.unwrap_or(0),
        grep,
        follow: options.follow,
    };
    match &asked.instance {
        Some(instance) if asked.placements(api).is_empty() => Err(unknown("instance", instance.as_str())),
        _ => Ok(asked),
    }
}
