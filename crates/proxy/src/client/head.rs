//! Waiting for a response head.

use crate::body::{Body, ByteCount};
use http::Request;
use http_body::Body as _;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// How long one request may wait.
#[derive(Debug, Clone, Copy)]
pub struct SendTimeouts {
    /// For the response head; starts again whenever some of the request's body has left.
    pub head: Duration,
    /// For each piece of the response's body; `None` for streams that may be silent.
    pub body_idle: Option<Duration>,
}

impl Default for SendTimeouts {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), body_idle: None }
    }
}

/// Counts the request's body if it has one, so that an upload that moves isn't taken for a peer that
/// doesn't answer.
pub(crate) fn count_upload(request: &mut Request<Body>) -> Option<ByteCount> {
    (!request.body().is_end_stream()).then(|| request.body_mut().counted())
}

/// `answer`, or `None` when it did not come in time.
pub(crate) async fn within<F: Future>(
    head: Duration,
    upload: Option<&ByteCount>,
    answer: F,
) -> Option<F::Output> {
    let mut answer = pin!(answer);
    let mut seen = 0;
    loop {
        if let Ok(output) = tokio::time::timeout(head, answer.as_mut()).await {
            return Some(output);
        }
        let moved = upload.map_or(0, ByteCount::bytes);
        if moved == seen {
            return None;
        }
        seen = moved;
    }
}
