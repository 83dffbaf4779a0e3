//! Output files: bounded by rotation, and read from their end or as they grow.
//!
//! A program appends to one file for all its life, so that it depends on no process of ours. The file is
//! rotated by copying its end away and truncating it: every write is at the end of the file (`O_APPEND`),
//! so the next one starts at 0. What is written between copy and truncation is lost.
//!
//! A *position* counts the bytes of an instance's output since its first; it stays true over rotations and
//! restarts of the host, because the index of times beside the file keeps where the file begins.

mod file;
mod janitor;
mod reader;
mod split;
mod times;

pub use file::{LogFile, Mark};
pub use janitor::Janitor;
pub use reader::read;
