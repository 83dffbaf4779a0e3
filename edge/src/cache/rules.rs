//! What RFC 9111 and its companions say of a request, a response, a stored entry and a time. Pure: no clock, no store, no
//! network. Moments are milliseconds since 1970, spans are seconds where HTTP has them.

pub mod conditional;
pub mod date;
pub mod directives;
pub mod freshness;
pub mod invalidation;
pub mod policy;
pub mod range;
pub mod storing;
pub mod update;
pub mod vary;

#[cfg(test)]
mod model;
