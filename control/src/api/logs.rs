//! An instance's output, read at its host.

use super::{Api, Problem};
use crate::apps::Caller;
use crate::attach::{Answers, AskError};
use crate::store::objects::Placement;
use atoll_model::InstanceId;
use atoll_wire::node::{NodeMessage, ReadLogs, node_message::Answer};
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use std::io;
use std::time::Duration;

const TAIL_LINES: u32 = 100;
const TAIL_LINES_MAX: u32 = 100_000;
/// Longest wait for the host's first word.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// With `follow` there may be nothing to say yet.
const FIRST_ANSWER_FOLLOWING: Duration = Duration::from_millis(500);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogOptions {
    tail: Option<u32>,
    follow: bool,
}

#[utoipa::path(get, path = "/v1/instances/{id}/logs",
    params(("id" = String, Path,), ("tail" = Option<u32>, Query, description = "last lines, 100 by default"),
        ("follow" = Option<bool>, Query, description = "go on with what is printed")),
    responses((status = 200, content_type = "text/plain"), (status = 404, body = Problem),
        (status = 502, body = Problem), (status = 504, body = Problem)))]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(options): Query<LogOptions>,
) -> Result<Response, Problem> {
    let id: InstanceId =
        id.parse().map_err(|_| Problem::invalid("id", "this is not the id of an instance"))?;
    let placements = api.store.list::<Placement>(&format!("{}/", caller.org));
    let placement = placements.into_iter().find(|placement| placement.instance == id);
    let placement = placement.ok_or_else(|| Problem::not_found(format!("there is no instance `{id}`")))?;
    let tail_lines = options.tail.unwrap_or(TAIL_LINES).min(TAIL_LINES_MAX);
    let ask =
        ReadLogs { instance: id.to_string(), tail_lines, follow: options.follow, ..ReadLogs::default() };
    let mut answers = api.attached.read_logs(&placement.host, ask).map_err(|error| unreachable(&error))?;
    let wait = if options.follow { FIRST_ANSWER_FOLLOWING } else { FIRST_ANSWER };
    let first = match tokio::time::timeout(wait, answers.next()).await {
        Ok(Some(message)) => Some(message),
        Ok(None) => return Err(unreachable(&AskError::Gone)),
        Err(_elapsed) if options.follow => None,
        Err(_elapsed) => return Err(unreachable(&AskError::Timeout)),
    };
    if let Some(NodeMessage { answer: Some(Answer::Error(error)), .. }) = &first {
        return Err(unreachable(&AskError::Node(error.clone())));
    }
    let mut response = Response::new(Body::from_stream(chunks(answers, first)));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

/// The host's answers as a body; when the reader goes away, the host is told.
fn chunks(
    answers: Answers,
    first: Option<NodeMessage>,
) -> impl futures_util::Stream<Item = Result<Bytes, io::Error>> {
    stream::unfold((answers, first, false), |(mut answers, waiting, over)| async move {
        if over {
            return None;
        }
        let message = match waiting {
            Some(message) => message,
            None => answers.next().await?,
        };
        let item = match message.answer {
            Some(Answer::LogChunk(chunk)) => Ok(Bytes::from(chunk.data)),
            Some(Answer::Error(error)) => Err(io::Error::other(error)),
            Some(Answer::Serve(_) | Answer::LogLines(_) | Answer::Stats(_)) | None => Ok(Bytes::new()),
        };
        let over = message.last || item.is_err();
        Some((item, (answers, None, over)))
    })
}

fn unreachable(error: &AskError) -> Problem {
    let detail = error.to_string();
    match error {
        AskError::Timeout => {
            Problem::new(StatusCode::GATEWAY_TIMEOUT, "host-timeout", "The host did not answer", detail)
        }
        AskError::Busy(_) => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "host-busy", "The host is busy", detail)
        }
        AskError::NotAttached(_) | AskError::Gone | AskError::Node(_) => {
            Problem::new(StatusCode::BAD_GATEWAY, "host-unreachable", "The host cannot be asked", detail)
        }
    }
}
