//! Output files: bounded by rotation, and read from their end or as they grow.
//!
//! A program appends to one file for all its life, so that it depends on no process of ours. The file is
//! rotated by copying its end away and truncating it: every write is at the end of the file (`O_APPEND`),
//! so the next one starts at 0. What is written between copy and truncation is lost.

mod janitor;
mod reader;

pub use janitor::{Janitor, LogFile};
pub use reader::read;

/// Most of the last output that an exit's report carries, bytes.
const TAIL_BYTES: usize = 2 << 10;

/// A place in a program's output that stays findable after rotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    serial: u64,
    offset: u64,
}

/// `bytes` as text of at most `TAIL_BYTES`, cut at the front.
fn tail_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned();
    let mut start = text.len().saturating_sub(TAIL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}
