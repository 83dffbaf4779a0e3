//! Makes what runs match what is wanted.
//!
//! [`plan`] and [`verdict`] are pure: the store's wishes, what gossip says, what was noted before, and
//! the time go in; actions come out. [`Reconciler`] is the loop around them.

pub mod guard;
pub mod memory;
pub mod plan;
pub mod progress;
mod run;
pub mod verdict;
mod view;
mod wishes;

pub use run::Reconciler;

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod simulation;
