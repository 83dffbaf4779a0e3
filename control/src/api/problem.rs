//! Errors as clients see them: RFC 9457.

use crate::apps::Refusal;
use crate::apps::validate::Fault;
use crate::store::StoreError;
use crate::store::objects::TokenRole;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// An error with a stable code. Small, because it is the error of most functions here.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Problem(Box<Fields>);

/// The members of a problem.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
struct Fields {
    /// `urn:atoll:problem:<code>`.
    #[serde(rename = "type")]
    kind: String,
    /// What kind of error.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The stable code.
    code: &'static str,
    /// What is wrong and what to do.
    detail: String,
    /// Where it is wrong.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    /// Everything that is wrong with the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
    /// The deploy that is in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    deploy: Option<String>,
    /// The least role that may do this.
    #[serde(skip_serializing_if = "Option::is_none")]
    needs: Option<TokenRole>,
}

impl Problem {
    /// Any problem.
    #[must_use]
    pub fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self(Box::new(Fields {
            kind: format!("urn:atoll:problem:{code}"),
            title,
            status: status.as_u16(),
            code,
            detail: detail.into(),
            place: None,
            errors: Vec::new(),
            deploy: None,
            needs: None,
        }))
    }

    /// 404.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let detail = "this path does not take that method; see /v1/openapi.json";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        let detail = "the request needs a valid token: `Authorization: Bearer …`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Not authorized", detail)
    }

    /// 403.
    #[must_use]
    pub fn role_needed(needs: TokenRole, name: &str, has: TokenRole) -> Self {
        let detail =
            format!("this needs the role `{}`; the token `{name}` has `{}`", needs.as_str(), has.as_str());
        let mut problem = Self::new(StatusCode::FORBIDDEN, "role-needed", "Not allowed", detail);
        problem.0.needs = Some(needs);
        problem
    }

    /// 409: something else is in the way.
    #[must_use]
    pub fn conflict(code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, title, detail)
    }

    /// 400: the body or a parameter can't be read.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request cannot be read", detail)
    }

    /// 422: it can be read and makes no sense.
    #[must_use]
    pub fn invalid(place: impl Into<String>, detail: impl Into<String>) -> Self {
        let title = "The request is not valid";
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title, detail);
        problem.0.place = Some(place.into());
        problem
    }

    /// 500.
    #[must_use]
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Control failed", detail)
    }

    /// The same with a code of its own.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.0.code = code;
        self.0.kind = format!("urn:atoll:problem:{code}");
        self
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// Refusals of the framework's own (a body that is too large, a query that can't be read) as problems.
pub(super) async fn from_plain(response: Response) -> Response {
    let status = response.status();
    let is_plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|media| media.as_bytes().starts_with(b"text/plain"));
    if !status.is_client_error() || !is_plain {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    let detail = String::from_utf8_lossy(&text).into_owned();
    let (code, title) = match status {
        StatusCode::PAYLOAD_TOO_LARGE => ("too-large", "The request is too large"),
        _ => ("bad-request", "The request cannot be read"),
    };
    Problem::new(status, code, title, detail).into_response()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self)).into_response();
        let media = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, media);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::Full => {
                let detail = "the control node's disk is full; nothing was changed: free some space there";
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "store-full", "The store is full", detail)
            }
            StoreError::Busy | StoreError::Closed | StoreError::Broken(_) | StoreError::InUse(_) => {
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store-unavailable",
                    "The store cannot be written",
                    detail,
                )
            }
            StoreError::Newer { .. } | StoreError::Damaged(_) => Self::internal(detail),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Invalid(errors) => {
                let all: Vec<String> =
                    errors.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
                let title = "The app is not valid";
                let mut problem =
                    Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-app", title, all.join("; "));
                problem.0.place = errors.first().map(|fault| fault.field.clone());
                problem.0.errors = errors;
                problem
            }
            Refusal::Running(deploy) => {
                let mut problem =
                    Self::new(StatusCode::CONFLICT, "deploy-running", "A deploy is running", text);
                problem.0.deploy = Some(deploy.to_string());
                problem
            }
            Refusal::NameTaken(_) => Self::conflict("name-taken", "The name is taken", text),
            Refusal::NoApp(_) | Refusal::NoService { .. } | Refusal::NoRevision { .. } => {
                Self::not_found(text)
            }
            Refusal::WhichService { .. } => Self::invalid("service", text),
            Refusal::NotInRegion { region, .. } => Self::invalid(format!("regions.{region}"), text),
            Refusal::OutOfBounds { region, .. } => {
                Self::invalid(format!("regions.{region}"), text).with_code("out-of-bounds")
            }
            Refusal::RevisionFailed { .. } => {
                Self::new(StatusCode::CONFLICT, "revision-failed", "The revision failed", text)
            }
            Refusal::MassRemoval { .. } => {
                Self::new(StatusCode::CONFLICT, "confirm-removal", "Much would be removed", text)
            }
            Refusal::Store(error) => error.into(),
        }
    }
}
