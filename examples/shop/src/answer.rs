//! From a request to its answer.

use crate::Service;
use crate::api::Api;
use crate::bodies::{AnyBody, download, echo, full};
use crate::page::{Place, headers_json};
use crate::whims::{Whims, duration};
use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Largest download that may be asked for: 64 GiB.
const DOWNLOAD_BYTES_MAX: u64 = 64 << 30;

/// The app.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) service: Service,
    pub(crate) place: Place,
    pub(crate) api: Api,
    pub(crate) whims: Whims,
}

impl Shop {
    /// Answers anything.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<AnyBody> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/healthz" => return self.health(),
            path if path.starts_with("/control/") => return self.control(&request),
            _ => tokio::time::sleep(self.whims.wait()).await,
        }
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path.as_str() {
            "/" if get && self.service == Service::Web => {
                let said = self.ask("/v1/products", &request).await;
                page(self.place.html(request.headers(), said))
            }
            "/products" if get && self.service == Service::Web => self.passed_on(&request).await,
            "/" | "/json" if get => self.json(&request),
            "/headers" if get => json_answer(StatusCode::OK, &headers_json(request.headers())),
            "/v1/products" if get && self.service == Service::Api => {
                json_answer(StatusCode::OK, &self.products())
            }
            "/download" if get => send_download(&request),
            "/sleep" if get => sleep(&request).await,
            "/upload" if matches!(*request.method(), Method::POST | Method::PUT) => {
                upload(request.into_body()).await
            }
            "/echo" => echoed(request),
            path => match path.strip_prefix("/status/") {
                Some(code) => status(code),
                None => text(StatusCode::NOT_FOUND, "there is nothing here\n"),
            },
        }
    }

    fn health(&self) -> Response<AnyBody> {
        if self.whims.is_healthy(Instant::now()) {
            text(StatusCode::OK, "well\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "told to be unhealthy\n")
        }
    }

    fn control(&self, request: &Request<Incoming>) -> Response<AnyBody> {
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "POST it\n");
        }
        let bad = |what: &'static str| text(StatusCode::BAD_REQUEST, what);
        match request.uri().path() {
            "/control/unhealthy" => match query(request, "for").map(|text| duration(&text)) {
                Some(None) => bad("`for` is a duration such as 10s\n"),
                time => {
                    self.whims.become_unhealthy(Instant::now(), time.flatten());
                    self.done("unhealthy")
                }
            },
            "/control/healthy" => {
                self.whims.become_healthy();
                self.done("healthy")
            }
            "/control/slow" => match query(request, "ms").and_then(|text| duration(&text)) {
                Some(wait) => {
                    self.whims.become_slow(wait);
                    self.done("slow")
                }
                None => bad("`ms` is a number of milliseconds\n"),
            },
            "/control/exit" => match query(request, "status").map_or(Ok(0), |text| text.parse::<u8>()) {
                Ok(status) => {
                    exit_soon(i32::from(status));
                    self.done("exit")
                }
                Err(_) => bad("`status` is a number from 0 to 255\n"),
            },
            _ => text(StatusCode::NOT_FOUND, "unhealthy, healthy, slow or exit\n"),
        }
    }

    fn done(&self, what: &str) -> Response<AnyBody> {
        json_answer(StatusCode::OK, &json!({ "instance": self.place.instance, "now": what }))
    }

    fn json(&self, request: &Request<Incoming>) -> Response<AnyBody> {
        let target = request.uri().to_string();
        json_answer(StatusCode::OK, &self.place.json(request.method().as_str(), &target, request.headers()))
    }

    async fn ask(&self, path: &str, request: &Request<Incoming>) -> Option<Result<Value, String>> {
        let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        self.api.get(path, id).await
    }

    /// The api's products, and who of the web asked for them.
    async fn passed_on(&self, request: &Request<Incoming>) -> Response<AnyBody> {
        let web = json!({ "region": self.place.region, "instance": self.place.instance });
        match self.ask("/v1/products", request).await {
            Some(Ok(api)) => json_answer(StatusCode::OK, &json!({ "web": web, "api": api })),
            Some(Err(why)) => json_answer(StatusCode::BAD_GATEWAY, &json!({ "web": web, "error": why })),
            None => text(StatusCode::NOT_FOUND, "this web calls no api: API_URL is not set\n"),
        }
    }

    fn products(&self) -> Value {
        json!({
            "region": self.place.region,
            "instance": self.place.instance,
            "products": [
                { "id": "p-1", "name": "Coral lamp", "price_cents": 4900 },
                { "id": "p-2", "name": "Reef mug", "price_cents": 1450 },
                { "id": "p-3", "name": "Lagoon towel", "price_cents": 2600 },
            ],
        })
    }
}

/// After the answer has left.
fn exit_soon(status: i32) {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::process::exit(status);
    });
}

/// Reads a body to its end, without holding it, and says what it was.
async fn upload(mut body: Incoming) -> Response<AnyBody> {
    let (mut digest, mut length) = (Context::new(&SHA256), 0_u64);
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => {
                digest.update(&data);
                length += data.len() as u64;
            }
            // Trailers.
            Ok(Err(_)) => {}
            Err(_) => return text(StatusCode::BAD_REQUEST, "the body broke off\n"),
        }
    }
    let sha256 = HEXLOWER.encode(digest.finish().as_ref());
    json_answer(StatusCode::OK, &json!({ "sha256": sha256, "length": length }))
}

fn send_download(request: &Request<Incoming>) -> Response<AnyBody> {
    let wanted = query(request, "bytes").and_then(|text| text.parse().ok());
    match wanted.filter(|bytes| *bytes <= DOWNLOAD_BYTES_MAX) {
        Some(bytes) => with_type(StatusCode::OK, "application/octet-stream", download(bytes)),
        None => text(StatusCode::BAD_REQUEST, "`bytes` is a number, at most 64 GiB\n"),
    }
}

async fn sleep(request: &Request<Incoming>) -> Response<AnyBody> {
    match query(request, "ms").and_then(|text| duration(&text)) {
        Some(wait) => {
            tokio::time::sleep(wait).await;
            text(StatusCode::OK, "slept\n")
        }
        None => text(StatusCode::BAD_REQUEST, "`ms` is a number of milliseconds\n"),
    }
}

fn echoed(request: Request<Incoming>) -> Response<AnyBody> {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut response = Response::new(echo(request.into_body()));
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn status(code: &str) -> Response<AnyBody> {
    match code
        .parse::<u16>()
        .ok()
        .filter(|code| (200..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
    {
        Some(code @ (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)) => {
            let mut response = Response::new(full(""));
            *response.status_mut() = code;
            response
        }
        Some(code) => text(code, "as you asked\n"),
        None => text(StatusCode::BAD_REQUEST, "a status from 200 to 599\n"),
    }
}

/// The value of a query's key, as it stands there.
fn query(request: &Request<Incoming>, key: &str) -> Option<String> {
    let pairs = request.uri().query()?.split('&');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
}

fn page(html: String) -> Response<AnyBody> {
    with_type(StatusCode::OK, "text/html; charset=utf-8", full(html))
}

fn json_answer(status: StatusCode, value: &Value) -> Response<AnyBody> {
    with_type(status, "application/json", full(format!("{value:#}\n")))
}

fn text(status: StatusCode, text: &'static str) -> Response<AnyBody> {
    with_type(status, "text/plain; charset=utf-8", full(text))
}

fn with_type(status: StatusCode, kind: &'static str, body: AnyBody) -> Response<AnyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
