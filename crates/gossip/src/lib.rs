//! What nodes tell each other: who is alive, and signed records of facts.
//!
//! * [`authority`]: who may write what; [`batch`]: signatures over batches.
//! * `records`: the replicated store, and [`membership`]: who is alive. Both without I/O and clock.
//! * `core`: what a node shares between its tasks; `persist`: the disk; `transport` and `driver`: QUIC.
//! * [`Gossip`]: the handle for everybody else.
//!
//! It does not interpret records (but for the addresses of peers), and it promises no order between
//! owners: each owner's records arrive in the order in which they were written, all of them or, of one key,
//! the newest.

pub mod authority;
pub mod batch;
mod core;
mod driver;
mod exchange;
mod gossip;
mod hub;
pub mod membership;
mod persist;
mod records;
mod scope;
mod signers;
mod standing;
mod stats;
mod transport;

pub use crate::core::{DesiredChange, PublishError};
pub use authority::Refusal;
pub use driver::Members;
pub use gossip::{Config, Gossip, StartError};
pub use hub::Subscription;
pub use membership::{Member, Pace};
pub use scope::{CONTROL_OWNER, Entry, Owner, Scope};
pub use signers::RecordSigner;
