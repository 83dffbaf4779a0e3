//! Plain HTTP: a redirect to the domain's HTTPS, and nothing else.

use crate::record::Record;
use crate::request::Refusal;
use crate::worker::Worker;
use atoll_model::Reason;
use atoll_proxy::exchange::Handler;
use atoll_proxy::{Body, Exchange};
use atoll_routing::hosts::normalise_host;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use std::rc::Rc;

/// A client's connection without TLS.
#[derive(Debug)]
pub(crate) struct PlainConnection {
    pub(crate) worker: Rc<Worker>,
}

impl Handler for PlainConnection {
    fn refused(&self, exchange: Exchange, reason: Reason) -> Option<Response<Body>> {
        Some(Record::refused_by_server(&self.worker.shared, exchange, reason))
    }

    async fn handle(&self, mut exchange: Exchange) -> Response<Body> {
        let record = Record::begin(&self.worker.shared, &mut exchange);
        match self.location(&exchange) {
            Some(location) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
                response.headers_mut().insert(header::LOCATION, location);
                record.answer(response)
            }
            None => record.refuse(Refusal::edge(Reason::UnknownHost), exchange.request.headers()),
        }
    }
}

impl PlainConnection {
    /// The same target over HTTPS; `None` for a host that no virtual host has.
    fn location(&self, exchange: &Exchange) -> Option<HeaderValue> {
        let shared = &self.worker.shared;
        let host = normalise_host(exchange.authority())?;
        shared.views.load().hosts.find_normal(&host)?;
        let port = match shared.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let target = exchange.request.uri().path_and_query().map_or("/", |target| target.as_str());
        let target = if target.starts_with('/') { target } else { "/" };
        HeaderValue::try_from(format!("https://{host}{port}{target}")).ok()
    }
}
