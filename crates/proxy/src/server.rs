//! Serving one connection: HTTP/1.1 or HTTP/2, limits, draining.

mod check;
mod limits;
mod serve;

pub use check::{Refusal, normalize};
pub use limits::ServerLimits;
pub use serve::{ConnectionEnd, HttpVersion, serve_connection};
