//! The platform's zone, answered with authority over UDP and TCP: `<app>.<zone>` has the addresses of the edges.
//!
//! * `names`, `edges`, `zone`: what there is at one moment, never changed once made; [`answer`]: a question
//!   and a zone give an answer. `respond`: the same from bytes to bytes. All without I/O.
//! * `book`: what the node has heard, of which zones are made; `follow` feeds it from gossip.
//! * `server`: the sockets, with their limits.
//!
//! It does not resolve, transfer, sign or take updates, and it knows no zone but the platform's: everything else
//! is refused. Once an edge is known, a name that exists always has an address: when no edge is known to be
//! healthy, all are given.
//!
//! hickory-proto reads and writes the messages. The sockets are ours, because hickory-server would start a task
//! for each packet, without a bound, take any number of connections, and log each answer.

mod answer;
mod book;
mod config;
mod edges;
mod follow;
mod limit;
mod metrics;
mod names;
mod respond;
mod server;
#[cfg(test)]
mod testing;
mod zone;

pub use answer::{Answer, answer};
pub use config::Config;
pub use follow::Handles;
pub use server::{BindError, Bound, bind};
pub use zone::{NameServer, OriginError, Zone, origin};
