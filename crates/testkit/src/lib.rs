//! What whole-system tests need: the platform as its own processes, real clients, constant load,
//! foreign certificates, and waiting for conditions.
//!
//! * [`Platform`]: `atoll dev` in a folder of its own, stopped and swept up when it is dropped.
//! * [`Atoll`], [`Curl`]: the CLI and curl as child processes, with what they answered.
//! * [`HeldDown`], [`OwnNode`]: a node that is kept down, or run in another way than `atoll dev` runs it.
//! * [`Load`]: so many requests a second, each counted, each failure kept with its detail.
//! * [`Ran`]: what a command came to that [`Platform::run_in`] ran in an instance.
//! * [`Origin`]: an HTTP server that keeps what it was asked.
//! * [`ForeignCa`], [`MeshClient`]: certificates from another CA, and a client that shows any certificate.
//! * [`Disks`]: disks that are full, read-only or slow.
//! * [`clock`]: processes whose clock is wrong.
//! * [`network`]: a network namespace of the test's own, in which packets vanish.
//! * [`wait_until`], [`processes`]: conditions with a deadline, and what `/proc` says.
//!
//! Everything here panics with what a reader of a failed test wants to know: it is for tests only.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that can't go on panics, and says why"
)]

mod binary;
mod cli;
pub mod clock;
mod curl;
mod disk;
mod keepers;
mod load;
mod mesh;
pub mod network;
mod origin;
mod platform;
mod probe;
pub mod processes;
pub mod rogue;
mod wait;
mod watchdog;

pub use binary::{atoll_binary, shop_binary};
pub use cli::{Atoll, CliOutput};
pub use curl::{Curl, CurlAnswer};
pub use disk::{Disk, Disks};
pub use keepers::{HeldDown, OwnNode};
pub use load::{Load, LoadFailure, LoadReport, LoadTarget, Version};
pub use mesh::{ForeignCa, MeshAnswer, MeshClient, MeshFailure};
pub use origin::{Origin, Seen};
pub use platform::{Edge, Node, Options, Platform};
pub use probe::{Ran, probe_words, write_probe};
pub use wait::{wait_for, wait_until};
