//! Apps: list, show, deploy, delete.

use super::changes::{Request, change, decode};
use super::pages::Part;
use super::{Api, Problem};
use crate::apps::{Accepted, Caller, PlannedChange, Refusal, accept, accept_delete, plan_changes};
use crate::store::objects::{App, Revision, Service};
use atoll_model::manifest::CompiledApp;
use atoll_model::{AppName, HostSpec};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An app, in a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct AppView {
    id: String,
    app: String,
    org: String,
    created_ms: u64,
    /// The running or last deploy.
    deploy: String,
    services: Vec<String>,
}

/// An app with its specification, as it could be deployed again.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct AppDetail {
    #[serde(flatten)]
    app: AppView,
    /// What is to run now.
    #[schema(value_type = std::collections::BTreeMap<String, Object>)]
    spec: BTreeMap<String, Option<Revision>>,
    /// What is wanted of its domains.
    #[schema(value_type = Vec<super::schema::HostSpec>)]
    hosts: Vec<HostSpec>,
}

/// What a deploy would change.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Plan {
    changes: Vec<PlannedChange>,
}

/// A deploy that removes an app.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Removal {
    deploy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DeployOptions {
    dry_run: bool,
    confirm: Option<usize>,
}

fn view(api: &Api, app: App) -> AppView {
    let services = api.store.tails::<Service>(&format!("{}/{}/", app.org, app.app));
    AppView {
        id: app.id.to_string(),
        app: app.app.to_string(),
        org: app.org.to_string(),
        created_ms: app.created_ms,
        deploy: app.deploy.to_string(),
        services: services.iter().filter_map(|tail| Some(tail.rsplit_once('/')?.1.to_owned())).collect(),
    }
}

pub(super) fn app_name(text: &str) -> Result<AppName, Problem> {
    text.parse().map_err(|error: atoll_model::NameError| Problem::invalid("app", error.to_string()))
}

#[utoipa::path(get, path = "/v1/apps",
    params(("limit" = Option<u64>, Query, description = "how many at most; 1000 by default, and at most"),
        ("after" = Option<String>, Query, description = "only what comes after this; see the field `Link`")),
    responses((status = 200, body = Vec<AppView>, description =
        "where there is more, the field `Link` names the next page (`rel=\"next\"`)"),
        (status = 422, body = Problem)))]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(part): Query<Part>,
) -> Result<Response, Problem> {
    let page = part.of(&api.store, &caller)?;
    Ok(part.answer("/v1/apps", &caller, page, |app| view(&api, app)))
}

#[utoipa::path(get, path = "/v1/apps/{app}", params(("app" = String, Path,)),
    responses((status = 200, body = AppDetail), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn show(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(app): Path<String>,
) -> Result<Json<AppDetail>, Problem> {
    let app = app_name(&app)?;
    let found = api.store.get::<App>(&format!("{}/{app}", caller.org));
    let stored = found.ok_or_else(|| Problem::from(Refusal::NoApp(app.clone())))?;
    let services = api.store.list::<Service>(&format!("{}/{app}/", caller.org));
    let spec = services.into_iter().map(|service| {
        let id = service.target.as_ref();
        let revision = id.and_then(|id| api.store.get::<Revision>(&Revision::tail(&service.cluster, id)));
        (service.cluster.service.to_string(), revision)
    });
    Ok(Json(AppDetail { spec: spec.collect(), hosts: stored.hosts.clone(), app: view(&api, stored) }))
}

#[utoipa::path(put, path = "/v1/apps/{app}",
    params(("app" = String, Path,), ("dry_run" = Option<bool>, Query, description = "only say what would change"),
        ("confirm" = Option<u64>, Query, description = "how many services may be removed")),
    request_body = super::schema::AppSpec,
    responses((status = 202, body = Accepted), (status = 200, body = Plan, description = "with dry_run"),
        (status = 409, body = Problem), (status = 422, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn deploy(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(app): Path<String>,
    Query(options): Query<DeployOptions>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let app = app_name(&app)?;
    let compiled: CompiledApp = decode(&body)?;
    if compiled.app != app {
        return Err(Problem::invalid(
            "app",
            format!("the path names app `{app}`, the body `{}`", compiled.app),
        ));
    }
    let context = api.context();
    if options.dry_run {
        let org = caller.org.clone();
        let planned = api
            .store
            .change(move |change| plan_changes(change, &context, &org, &compiled).map_err(Problem::from));
        let (changes, _) = planned.await?;
        caller.asked.settle();
        return Ok(Json(Plan { changes }).into_response());
    }
    super::bundles::check(&api, &caller.org, &compiled).await?;
    let metrics = api.metrics.clone();
    let request =
        Request { caller: caller.clone(), headers: &headers, method: Method::PUT, uri: &uri, body: &body };
    change(&api, request, move |change| {
        let planned = plan_changes(change, &context, &caller.org, &compiled)?;
        let accepted = accept(change, &context, &caller, &compiled, options.confirm)?;
        for PlannedChange { action, object, name, detail } in &planned {
            let sep = if detail.is_empty() { "" } else { ": " };
            caller.asked.note(&format!("{action} {object} {name}{sep}{detail}"));
        }
        metrics.deploys.inc();
        Ok((StatusCode::ACCEPTED, accepted))
    })
    .await
}

#[utoipa::path(delete, path = "/v1/apps/{app}",
    params(("app" = String, Path,)),
    responses((status = 202, body = Removal), (status = 404, body = Problem)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(app): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let app = app_name(&app)?;
    let context = api.context();
    let request =
        Request { caller: caller.clone(), headers: &headers, method: Method::DELETE, uri: &uri, body: &[] };
    change(&api, request, move |change| {
        let deploy = accept_delete(change, &context, &caller, &app)?;
        caller.asked.note(&format!("remove app {app}, by deploy {deploy}"));
        Ok((StatusCode::ACCEPTED, Removal { deploy: deploy.to_string() }))
    })
    .await
}
