//! Bundles: what is in one, and the contents that control has not got yet.

use super::{Api, Problem};
use crate::apps::Refusal;
use crate::apps::validate::Fault;
use crate::bundles::{BundleError, Bundles};
use crate::caller::Caller;
use atoll_bundle::{BYTES_MAX, Digest, Entry, List, StoreError};
use atoll_model::OrgName;
use atoll_model::manifest::CompiledApp;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where contents are uploaded.
pub(super) const CONTENT_PATH: &str = "/v1/blobs/{sha256}";
/// Longest upload of one content: 512 MiB at 160 KiB/s.
pub(super) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Longest description of a bundle. Its list has at most 8 MiB; JSON takes more room.
const BODY_BYTES_MAX: usize = 16 << 20;

/// What is in a bundle.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BundleRequest {
    /// Files `{kind: "file", path, executable, size, sha256}`, links `{kind: "link", path, target}` and folders
    /// without content `{kind: "folder", path}`; at most 20,000, and 512 MiB together.
    #[schema(value_type = Vec<Object>)]
    entries: Vec<Entry>,
}

/// A bundle, or what it lacks.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BundleView {
    /// The bundle's name: what a service's `bundle.digest` says.
    digest: String,
    /// Bytes of all files together: what `bundle.size` says.
    size: u64,
    /// SHA-256 of the contents to upload, by `PUT /v1/blobs/{sha256}`, before this is asked again.
    missing: Vec<String>,
}

/// A content that was taken.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ContentView {
    sha256: String,
    size: u64,
}

impl From<BundleError> for Problem {
    fn from(error: BundleError) -> Self {
        let detail = error.to_string();
        match error {
            BundleError::Store(StoreError::Mismatch { .. }) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "content-mismatch",
                "The content is another one",
                detail,
            ),
            BundleError::Size { .. } => Self::invalid("entries", detail),
            BundleError::Store(StoreError::TooLarge(_)) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
            }
            BundleError::Store(StoreError::Full) => crate::store::StoreError::Full.into(),
            BundleError::OrgFull(_) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "bundles-full",
                "The organization's bundles are full",
                detail,
            ),
            BundleError::Broken => Self::bad_request(detail),
            BundleError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Try again", detail),
            BundleError::Store(StoreError::Io(_)) => {
                tracing::error!(%error, "a bundle could not be kept");
                Self::internal("control's disk failed; its log says more")
            }
        }
    }
}

/// Offer a bundle: says which contents are missing, and with none missing makes it deployable
#[utoipa::path(post, path = "/v1/bundles",
    request_body(content = BundleRequest),
    responses((status = 200, body = BundleView, description = "with nothing missing it can be deployed"),
        (status = 422, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn offer(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Response, Problem> {
    let _place = api.bundles.place(&caller.org).await?;
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| {
        let detail = format!("a bundle is described in at most {} MiB: {error}", BODY_BYTES_MAX >> 20);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
    })?;
    let _turn = api.bundles.check_place().await?;
    let (bundles, org) = (api.bundles.clone(), caller.org.clone());
    let view = blocking(move || {
        let request: BundleRequest = super::changes::decode(&body)?;
        let list =
            List::new(request.entries).map_err(|error| Problem::invalid("entries", error.to_string()))?;
        let offer = bundles.offer(&org, &list)?;
        let missing = offer.missing.iter().map(Digest::to_string).collect();
        Ok(BundleView { digest: offer.digest.to_string(), size: list.size(), missing })
    })
    .await?;
    if !view.missing.is_empty() {
        // A question so far; nothing changed.
        caller.asked.settle();
    }
    Ok(Json(view).into_response())
}

/// Upload a content of a bundle: the bytes of a file, named by their SHA-256
#[utoipa::path(put, path = "/v1/blobs/{sha256}",
    params(("sha256" = String, Path, description = "of the body; 64 hexadecimal digits in lower case")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ContentView), (status = 422, body = Problem, description = "the body is another content"),
        (status = 413, body = Problem, description = "it has more than 512 MiB"), (status = 507, body = Problem)))]
pub(super) async fn upload(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(sha256): Path<String>,
    headers: http::HeaderMap,
    body: Body,
) -> Result<Json<ContentView>, Problem> {
    // Part of a deploy that is logged; by itself it changes nothing that anybody sees.
    caller.asked.settle();
    let digest: Digest = sha256
        .parse()
        .map_err(|error: atoll_bundle::DigestError| Problem::invalid("sha256", error.to_string()))?;
    let announced =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > BYTES_MAX) {
        return Err(BundleError::Store(StoreError::TooLarge(BYTES_MAX)).into());
    }
    let size = api.bundles.receive(&caller.org, digest, body.into_data_stream()).await?;
    Ok(Json(ContentView { sha256, size }))
}

/// Refuses an app that names bundles which its organization did not upload.
pub(super) async fn check(api: &Api, org: &OrgName, app: &CompiledApp) -> Result<(), Problem> {
    let named: Vec<_> =
        app.services.iter().filter_map(|(name, spec)| Some((name.clone(), spec.bundle.clone()?))).collect();
    if named.is_empty() {
        return Ok(());
    }
    let (bundles, org) = (api.bundles.clone(), org.clone());
    blocking(move || {
        let fault = |(name, bundle)| {
            let message = bundles.fault(&org, &bundle)?;
            Some(Fault { field: format!("services.{name}.bundle"), message })
        };
        let faults: Vec<Fault> = named.into_iter().filter_map(fault).collect();
        if faults.is_empty() { Ok(()) } else { Err(Refusal::Invalid(faults).into()) }
    })
    .await
}

/// Takes what an organization uploaded away from its name. Within the change that makes or removes it: so none
/// finds what another one of that name left, though control stopped in between.
pub(super) fn set_aside(bundles: &Bundles, org: &OrgName) -> Result<(), Problem> {
    bundles.set_aside(org).map_err(|error| BundleError::from(error).into())
}

/// Removes what was set aside. What can't be removed now is by a later sweep.
pub(super) async fn clear(api: &Api) {
    let bundles = api.bundles.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || bundles.clear()).await {
        tracing::warn!(%error, "bundles of an organization that is gone could not be removed");
    }
}

/// Disks and hashes, on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_panicked| Problem::internal("control failed; its log says why"))?
}
