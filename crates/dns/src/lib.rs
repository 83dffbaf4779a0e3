//! The platform's zone, answered with authority.

mod answer;
mod config;
mod edges;
mod names;
#[cfg(test)]
mod testing;
mod zone;

pub use answer::{Answer, answer};
pub use config::Config;
pub use zone::{NameServer, Zone, origin};
