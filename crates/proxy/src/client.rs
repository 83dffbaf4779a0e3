//! Connections to the next hop: HTTP/2 over mutual TLS to a mesh peer, HTTP/1.1 or plain HTTP/2 to an instance.

mod connect;
mod error;
mod h1;
mod h2c;
mod h2peer;
mod head;
mod line;
mod slot;

pub use connect::{ConnectError, MeshConnector};
pub use error::{SendError, SendFault};
pub use h1::{H1Config, H1Pool};
pub use h2c::{H2cConfig, H2cPool};
pub use h2peer::{ConnectionHook, H2Peer, H2PeerConfig, PeerConnection};
pub use head::SendTimeouts;
