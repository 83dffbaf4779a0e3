//! Running an earlier revision again, and another number of instances: deploys of what is stored already.

use super::apps::app_name;
use super::changes::{Request, change, decode};
use super::{Api, Problem};
use crate::apps::{Accepted, Caller, Which, accept_revision, accept_scale};
use atoll_model::{NameError, RegionName, ServiceName};
use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Which revision is to run again.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackWish {
    /// Of which service; needed with `revision` where the app has several.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    service: Option<ServiceName>,
    /// Its number. Without one: the newest before what runs now, of those that did not fail.
    #[serde(default)]
    revision: Option<u64>,
}

/// How many instances are to run.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScaleWish {
    /// By region; null: as many as the manifest's `min` again. Regions that are left out stay as they are.
    #[schema(value_type = std::collections::BTreeMap<String, Option<u32>>)]
    regions: BTreeMap<RegionName, Option<u32>>,
}

#[utoipa::path(post, path = "/v1/apps/{app}/rollback",
    params(("app" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    request_body = RollbackWish,
    responses((status = 202, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn rollback(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(app): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let app = app_name(&app)?;
    let RollbackWish { service, revision } = decode(&body)?;
    let which = revision.map_or(Which::Previous, Which::Number);
    let (context, metrics) = (api.context(), api.metrics.clone());
    let request =
        Request { caller: caller.clone(), headers: &headers, method: Method::POST, uri: &uri, body: &body };
    change(&api, request, move |change| {
        let accepted = accept_revision(change, &context, &caller, &app, service.as_ref(), which)?;
        metrics.deploys.inc();
        let to = accepted.revisions.iter().map(|(name, id)| format!("{name} to {id}"));
        caller.asked.note(&to.collect::<Vec<_>>().join(", "));
        Ok((StatusCode::ACCEPTED, accepted))
    })
    .await
}

#[utoipa::path(patch, path = "/v1/apps/{app}/services/{service}/scale",
    params(("app" = String, Path,), ("service" = String, Path,), ("Idempotency-Key" = Option<String>, Header,)),
    request_body = ScaleWish,
    responses((status = 202, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn scale(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path((app, service)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let app = app_name(&app)?;
    let service: ServiceName =
        service.parse().map_err(|error: NameError| Problem::invalid("service", error.to_string()))?;
    let ScaleWish { regions } = decode(&body)?;
    if regions.is_empty() {
        return Err(Problem::invalid(
            "regions",
            "name at least one region and how many instances it is to have",
        ));
    }
    let context = api.context();
    let request =
        Request { caller: caller.clone(), headers: &headers, method: Method::PATCH, uri: &uri, body: &body };
    change(&api, request, move |change| {
        let accepted = accept_scale(change, &context, &caller, &app, &service, &regions)?;
        let asked = regions.iter().map(|(region, count)| match count {
            Some(count) => format!("{region}={count}"),
            None => format!("{region}=min"),
        });
        caller.asked.note(&asked.collect::<Vec<_>>().join(" "));
        Ok((StatusCode::ACCEPTED, accepted))
    })
    .await
}

#[cfg(test)]
mod tests;
