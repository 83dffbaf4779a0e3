//! Processes whose clock is wrong: libfaketime, from the distribution's packages.

use std::path::{Path, PathBuf};

/// The library, if it is installed.
#[must_use]
pub fn faketime() -> Option<PathBuf> {
    let architectures = std::fs::read_dir("/usr/lib").ok()?;
    architectures
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
}

/// The environment of a process whose wall clock shows that time, as libfaketime reads it: `+1d`, `-3600`,
/// `@1970-01-02 00:00:00`. Clocks that only move forward and the times of files stay right, as on a machine whose
/// clock is wrong.
///
/// # Panics
/// When the library's path is not UTF-8.
#[must_use]
pub fn at_time<'a>(library: &'a Path, time: &'a str) -> [(&'static str, &'a str); 5] {
    [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME", time),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ]
}
