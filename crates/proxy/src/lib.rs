//! The data-path engine: what edge, gateway and sidecar share to take, move and answer requests.
//!
//! It knows HTTP, connections, bodies and workers, and how to send a request to an instance of a region
//! ([`region`]) or to another region ([`regions`]). It does not know routes, caches, or who may ask for
//! what: those decisions are the roles'. Everything that runs on a worker may be `!Send`; one
//! connection and all of its requests stay on the thread that accepted it.

pub mod access_log;
pub mod admission;
pub mod answer;
pub mod body;
pub mod client;
pub mod delay;
pub mod exchange;
pub mod headers;
mod interim;
pub mod journal;
mod keep_alive;
pub mod listen;
pub mod metrics;
pub mod outgoing;
pub mod region;
pub mod regions;
pub mod replay;
pub mod sample;
mod send_body;
pub mod server;
pub mod sever;
pub mod tunnel;
mod turns;
pub mod workers;

pub use body::{Body, BodyError, BodyFault, ByteCount, Side};
pub use exchange::{ConnectionInfo, Exchange, Handler, TlsInfo};
pub use interim::Interim;
pub use metrics::ProxyMetrics;
pub use outgoing::{Destination, Outgoing, Tries};
pub use replay::Replay;
