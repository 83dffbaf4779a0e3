//! The other regions: one worker's tunnels to their gateways, the choice of a region, and sending a
//! request there. For edges, and for gateways whose own region can't serve a call.

mod board;
mod choice;
mod explain;
mod forward;
mod known;
mod tunnels;
mod view;

pub use board::{Board, Posted};
pub use explain::explain;
pub use forward::Answered;
pub use known::{BadAddress, Gateway, Gateways, RegionHealth, Summaries};
pub use tunnels::TunnelFacts;

use choice::Memory;
use tunnels::Tunnels;

/// The other regions, as one worker sees them. Stays on its worker.
#[derive(Debug)]
pub struct Regions {
    tunnels: Tunnels,
    memory: Memory,
}
