//! Serving one connection: HTTP/1.1 or HTTP/2, limits, draining.

mod check;
mod framing;
mod limits;
mod mesh;
mod patience;
mod serve;
mod unread;

pub use check::{Refusal, URI_BYTES_MAX, normalize};
pub use limits::{STREAM_SILENCE_MAX, ServerLimits, TakeWithin};
pub use mesh::{AcceptError, MeshAcceptor, MeshConnection};
pub use serve::{ConnectionEnd, HttpVersion, serve_connection};
