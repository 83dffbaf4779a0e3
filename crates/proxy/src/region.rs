//! The instances of one region: one worker's connections to their sidecars, and sending a request to one
//! of them. For whoever is near enough to know each instance: gateways, and sidecars that call.

mod forward;
mod reach;
mod sidecars;

pub use forward::{Answered, forward};
pub use reach::{Ejection, Reach};
pub use sidecars::{Sidecar, Sidecars, seen};
