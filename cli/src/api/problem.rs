//! `application/problem+json` (RFC 9457) as a failure of a command.

use crate::failure::{Exit, Failure};
use crate::out::harmless;
use http::StatusCode;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: String,
    detail: String,
    code: String,
    #[serde(alias = "where")]
    field: Option<String>,
    fix: Option<String>,
    errors: Vec<Fault>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fault {
    field: String,
    message: String,
}

pub(super) fn failure(status: StatusCode, body: &[u8]) -> Failure {
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let what = match (problem.title.is_empty(), problem.detail.is_empty() || !problem.errors.is_empty()) {
        // The API speaks of header fields; who uses the CLI has a token or none.
        _ if status == StatusCode::UNAUTHORIZED => {
            "the token is missing, or this platform does not know it".to_owned()
        }
        (_, false) => problem.detail,
        (false, true) => problem.title,
        (true, true) => format!("the API answered {status}"),
    };
    let exit = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::NotAuthorized,
        StatusCode::SERVICE_UNAVAILABLE => Exit::Unreachable,
        StatusCode::UNPROCESSABLE_ENTITY => Exit::Usage,
        _ => Exit::Failed,
    };
    let mut failure = Failure::new(exit, harmless(&what));
    failure.place = problem.field.filter(|text| !text.is_empty()).map(|text| harmless(&text).into());
    failure.fix = problem.fix.filter(|text| !text.is_empty()).map(|text| harmless(&text).into());
    failure.faults =
        problem.errors.into_iter().map(|fault| (harmless(&fault.field), harmless(&fault.message))).collect();
    // A place that a fault names already is said with it.
    if !failure.faults.is_empty() {
        failure.place = None;
    }
    if failure.fix.is_none() {
        failure.fix = match (status, problem.code.as_str()) {
            (StatusCode::UNAUTHORIZED, _) => {
                Some("`atoll context show` says which platform this is; `atoll context add`, or ATOLL_TOKEN, gives its token".into())
            }
            (StatusCode::CONFLICT, "deploy-running") => {
                failure.busy = true;
                Some("`atoll status APP` says how it stands; `atoll delete APP` gives it up".into())
            }
            _ => None,
        };
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_its_exit_code() {
        for (status, exit) in [
            (401, Exit::NotAuthorized),
            (403, Exit::NotAuthorized),
            (404, Exit::Failed),
            (409, Exit::Failed),
            (422, Exit::Usage),
            (500, Exit::Failed),
            (503, Exit::Unreachable),
        ] {
            let status = StatusCode::from_u16(status).unwrap_or_default();
            assert_eq!(failure(status, b"oops").exit, exit, "{status}");
        }
    }

    #[test]
    fn a_problem_is_shown_as_it_says() {
        let body = br#"{"title":"Conflict","detail":"busy\u001b","where":"apps/shop","fix":"wait"}"#;
        let failure = failure(StatusCode::CONFLICT, body);
        assert_eq!(failure.what, "busy\\u{1b}");
        assert_eq!(failure.place.as_deref(), Some("apps/shop"));
        assert_eq!(failure.fix.as_deref(), Some("wait"));
    }
}
