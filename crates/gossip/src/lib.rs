//! Membership and replicated, signed records.
pub mod authority;
pub mod batch;
pub mod membership;
mod records;
pub mod scope;
mod signers;
