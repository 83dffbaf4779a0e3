//! The role gateway: a region's ingress. It takes requests from edges over tunnels, picks an instance, and
//! hands them to that instance's sidecar; it tells the other regions how its clusters do; and it takes the calls
//! of the region's services that the region itself can't serve to another region's gateway, and says who calls.
//!
//! [`Gateway::bind`] takes the socket; [`Bound::run`] serves until the drain is over.

mod asking;
mod calls;
mod config;
mod counts;
mod explain;
mod gateway;
mod metrics;
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
