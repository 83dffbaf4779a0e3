//! Serving one connection: HTTP/1.1 or HTTP/2, limits, draining.

mod answering;
mod check;
mod framing;
mod http1;
mod http2;
mod interject;
mod limits;
mod mesh;
mod patience;
mod serve;
mod unread;

pub use check::{Refusal, URI_BYTES_MAX, normalize};
pub use limits::{STREAM_SILENCE_MAX, ServerLimits, TakeWithin};
pub use mesh::{AcceptError, MeshAcceptor, MeshConnection};
pub use serve::{ConnectionEnd, HttpVersion, serve_connection};
