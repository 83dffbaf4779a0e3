//! Why a request got no answer, and whether it may have been processed.

use crate::body::Body;
use http::Request;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendFault {
    /// No connection could be made.
    Connect,
    /// The peer said that it goes away, or refused the stream before it looked at it.
    Refused,
    /// Every connection has as many streams as it may have.
    Full,
    /// The stream or the connection was broken off.
    Reset,
    /// What came back is not HTTP.
    Protocol,
    /// No response head in time.
    Timeout,
    /// The request's own body failed: the client is gone.
    Client,
}

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct SendError {
    /// What went wrong.
    pub fault: SendFault,
    /// Whether the peer may have processed the request. False only when it certainly has not.
    pub sent: bool,
    /// The request, unread, when it never left. After a refused stream it is gone: for that, take its
    /// body from a [`crate::Replay`].
    pub request: Option<Box<Request<Body>>>,
    pub(crate) detail: String,
}

impl SendError {
    pub(crate) fn unsent(fault: SendFault, detail: impl Into<String>, request: Request<Body>) -> Self {
        Self { fault, sent: false, request: Some(Box::new(request)), detail: detail.into() }
    }

    pub(crate) fn sent(fault: SendFault, detail: impl Into<String>) -> Self {
        Self { fault, sent: true, request: None, detail: detail.into() }
    }

    /// Classifies what hyper says of a request that it had taken.
    pub(crate) fn from_hyper(error: &hyper::Error) -> Self {
        let fault = if error.is_user() || error.is_body_write_aborted() {
            SendFault::Client
        } else if error.is_parse() {
            SendFault::Protocol
        } else {
            SendFault::Reset
        };
        Self::sent(fault, chain(error))
    }

    /// Classifies what became of an HTTP/2 stream.
    pub(crate) fn of_stream(error: &h2::Error) -> Self {
        let refused =
            error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        let fault = if refused { SendFault::Refused } else { SendFault::Reset };
        Self { sent: !refused, ..Self::sent(fault, chain(error)) }
    }

    /// The request's own body has failed, and with it the stream.
    pub(crate) fn of_body(error: &h2::Error) -> Self {
        Self::sent(SendFault::Client, chain(error))
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}
