//! Deploys: how they are doing, once or as it goes.

use super::{Api, Problem};
use crate::apps::Caller;
use crate::reconciler::progress::DeployStatus;
use crate::store::objects::{Deploy, Domain};
use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::{Extension, Json};
use futures_util::{Stream, StreamExt, stream};
use std::convert::Infallible;
use tokio_stream::wrappers::WatchStream;

pub(super) fn status(api: &Api, caller: &Caller, id: &str) -> Result<DeployStatus, Problem> {
    let stored = api.store.get::<Deploy>(&format!("{}/{id}", caller.org));
    let deploy =
        stored.ok_or_else(|| Problem::not_found(format!("there is no deploy `{}`", id.escape_debug())))?;
    let domains = api.store.filed_tails::<Domain>(&format!("{}/{}/", deploy.org, deploy.app));
    let names = domains.iter().filter_map(|tail| Some(tail.split_once('/')?.1));
    let urls = names.filter(|name| !name.starts_with("*.")).map(|name| api.config.url(name));
    let mut status = DeployStatus::of(&deploy, urls.collect());
    if let Some(latest) = api.progresses.latest(&deploy.id) {
        status.regions = latest.regions;
        status.edges = latest.edges;
    }
    Ok(status)
}

#[utoipa::path(get, path = "/v1/deploys/{id}", params(("id" = String, Path,)),
    responses((status = 200, body = DeployStatus), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<DeployStatus>, Problem> {
    status(&api, &caller, &id).map(Json)
}

#[utoipa::path(get, path = "/v1/deploys/{id}/events", params(("id" = String, Path,)),
    responses((status = 200, content_type = "text/event-stream", description =
        "`progress` with the deploy's status each time it changes; last `done`, `failed` or `rolled-back`"),
        (status = 404, body = Problem)))]
pub(super) async fn events(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let now = status(&api, &caller, &id)?;
    let statuses = if now.state.is_final() {
        stream::iter([now]).boxed()
    } else {
        let watched = WatchStream::new(api.progresses.watch(now));
        // The watch closes when the deploy has ended, after its last status.
        watched.boxed()
    };
    let events = ended(statuses).map(|status| {
        let name = match status.state.is_final() {
            true => serde_json::to_value(status.state).ok().and_then(|name| Some(name.as_str()?.to_owned())),
            false => Some("progress".to_owned()),
        };
        let event = Event::default().event(name.unwrap_or_default());
        Ok(event
            .json_data(&status)
            .unwrap_or_else(|error| Event::default().event("error").data(error.to_string())))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// Ends after the first final status.
fn ended(statuses: impl Stream<Item = DeployStatus>) -> impl Stream<Item = DeployStatus> {
    statuses.scan(false, |over, status| {
        let item = (!*over).then_some(status);
        *over |= item.as_ref().is_some_and(|status| status.state.is_final());
        std::future::ready(item)
    })
}
