//! Output files: bounded, and read from their end or as they grow.
//!
//! A program appends to one file for all its life, so that it depends on no process of ours. What is too old in it is
//! made a hole (`FALLOC_FL_PUNCH_HOLE`): the file seems to grow for ever, its blocks are given back, and no byte that
//! is written meanwhile is lost. Where a filesystem can't do that, the file is truncated, and what was kept is lost.
//!
//! A *position* counts the bytes of an instance's output since its first; it stays true over truncations and
//! restarts of the host, because the index of times beside the file keeps where the file begins.

mod file;
mod janitor;
mod reader;
mod split;
mod times;

pub use file::{LogFile, Mark};
pub use janitor::Janitor;
pub use reader::read;
