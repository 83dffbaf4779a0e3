//! Answers that Atoll itself makes: pages for people at the edge, bare heads between hops.

use crate::body::Body;
use crate::headers;
use atoll_model::{Hop, Reason};
use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, Response, StatusCode};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// An error for the client, as HTML, problem details or text, whichever it accepts.
#[must_use]
pub fn error_page(hop: Hop, reason: Reason, request: &HeaderMap, request_id: &str) -> Response<Body> {
    let (kind, content) = match preferred(request) {
        Format::Html => ("text/html; charset=utf-8", html(hop, reason, request_id)),
        Format::Problem => ("application/problem+json", problem(hop, reason, request_id)),
        Format::Plain => (
            "text/plain; charset=utf-8",
            format!("{} {}\n{}\n", status_of(reason), reason.code(), reason.text()),
        ),
    };
    let mut response = Response::new(Body::full(content));
    *response.status_mut() = status_of(reason);
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(PROXY_STATUS, headers::proxy_status(hop, reason));
    if reason == Reason::MethodRefused {
        let served = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        fields.insert(header::ALLOW, served);
    }
    response
}

/// An error for the hop before: no content, `atoll-reason` and `atoll-sent`.
#[must_use]
pub fn internal(hop: Hop, reason: Reason, sent: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status_of(reason);
    let text = HeaderValue::try_from(format!("{hop};{reason}")).expect("names and codes are plain ASCII");
    response.headers_mut().insert(headers::REASON, text);
    let sent = HeaderValue::from_static(if sent { "1" } else { "0" });
    response.headers_mut().insert(headers::SENT, sent);
    response
}

/// An answer that a hop made: which hop, why, and whether the request may have reached an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalAnswer {
    /// Who made it.
    pub hop: Hop,
    /// Why.
    pub reason: Reason,
    /// Whether the request may have reached an instance.
    pub sent: bool,
}

/// Reads `atoll-reason` and `atoll-sent`; `None` when the answer is the instance's. A reason of a
/// later version counts as an internal defect that may have reached an instance.
#[must_use]
pub fn read_internal(headers: &HeaderMap) -> Option<InternalAnswer> {
    let text = headers.get(headers::REASON)?.to_str().unwrap_or("");
    let (hop, code) = text.split_once(';').unwrap_or((text, ""));
    let sent = headers.get(headers::SENT).is_none_or(|sent| sent != "0");
    Some(InternalAnswer {
        hop: Hop::from_name(hop).unwrap_or(Hop::Gateway),
        reason: Reason::from_code(code).unwrap_or(Reason::Internal),
        sent,
    })
}

fn status_of(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[derive(Debug, PartialEq, Eq)]
enum Format {
    Html,
    Problem,
    Plain,
}

/// The first of the types named in `Accept` that we have; weights are not worth their code here.
fn preferred(request: &HeaderMap) -> Format {
    let accepted = request.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in accepted.flat_map(|value| value.split(',')) {
        match range.split(';').next().unwrap_or("").trim() {
            "text/html" | "application/xhtml+xml" => return Format::Html,
            "application/json" | "application/problem+json" => return Format::Problem,
            "text/plain" => return Format::Plain,
            _ => {}
        }
    }
    Format::Plain
}

fn problem(hop: Hop, reason: Reason, request_id: &str) -> String {
    let status = status_of(reason);
    serde_json::json!({
        "type": format!("urn:atoll:reason:{}", reason.code()),
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": reason.text(),
        "hop": hop.as_str(),
        "code": reason.code(),
        "request_id": request_id,
    })
    .to_string()
}

fn html(hop: Hop, reason: Reason, request_id: &str) -> String {
    let status = status_of(reason);
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>\
         <body style=\"font:16px/1.5 system-ui;max-width:36em;margin:15vh auto;padding:0 1em\">\
         <h1>{title}</h1><p>{text}</p><p><small>{hop}: <code>{code}</code> · request \
         <code>{id}</code></small></p></body></html>\n",
        text = escape(reason.text()),
        code = reason.code(),
        id = escape(request_id),
    )
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_format_follows_accept() {
        for (accept, format) in [
            ("text/html,application/xhtml+xml;q=0.9", Format::Html),
            ("application/json", Format::Problem),
            ("*/*", Format::Plain),
            ("image/png, application/problem+json;q=0.1", Format::Problem),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("accept", accept.parse().unwrap());
            assert_eq!(preferred(&headers), format, "{accept}");
        }
    }

    #[test]
    fn internal_answers_are_read_back() {
        for sent in [false, true] {
            let response = internal(Hop::Sidecar, Reason::InstanceReset, sent);
            let read = read_internal(response.headers()).unwrap();
            let wanted = InternalAnswer { hop: Hop::Sidecar, reason: Reason::InstanceReset, sent };
            assert_eq!(read, wanted);
        }
        assert_eq!(read_internal(&HeaderMap::new()), None);
        let mut headers = HeaderMap::new();
        headers.insert("atoll-reason", "later-hop;later-reason".parse().unwrap());
        assert!(read_internal(&headers).unwrap().sent);
    }

    #[test]
    fn a_page_escapes_what_came_from_outside() {
        let page = html(Hop::Edge, Reason::NoRoute, "<script>");
        assert!(!page.contains("<script>"));
    }
}
