//! Sidecars between the mesh's mutual TLS and instances, each with a host on its unix socket.
#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod inbound;
mod world;
