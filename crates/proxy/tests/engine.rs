//! The engine over real sockets.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "engine/flow.rs"]
mod flow;
#[path = "engine/interim.rs"]
mod interim;
#[path = "engine/peer.rs"]
mod peer;
#[path = "engine/pool.rs"]
mod pool;
#[path = "engine/server.rs"]
mod server;
#[path = "engine/support.rs"]
mod support;
#[path = "engine/tunnel.rs"]
mod tunnel;
