//! The role gateway: a region's ingress. It takes requests from edges over tunnels, picks an instance, and
//! hands them to that instance's sidecar; and it tells the other regions how its clusters do.
//!
//! [`Gateway::bind`] takes the socket; [`Bound::run`] serves until the drain is over.

mod config;
mod counts;
mod explain;
mod gateway;
mod records;
mod request;
mod serving;
mod summaries;
mod usage;
mod views;
mod worker;

pub use config::Config;
pub use gateway::{BindError, Bound, Gateway, Handles};
pub use serving::Serving;
