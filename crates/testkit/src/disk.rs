//! Disks that are full, read-only or slow, for one node at a time and while it runs: a small library that
//! nodes are started with (`tests/faults/disk.c`) stands between them and their files.

use crate::Platform;
use std::fs;
use std::path::Path;
use std::process::Command;

/// How a node's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// As it really is.
    Good,
    /// Writes arrive by half and then fail; nothing new has room.
    Full,
    /// Nothing can be changed.
    ReadOnly,
    /// Whatever waits for the disk waits 200 ms longer.
    Slow,
}

/// The disks of a platform's nodes.
#[derive(Debug)]
pub struct Disks;

impl Disks {
    /// Has the nodes of a platform, which is not started yet, go through the library.
    ///
    /// # Panics
    /// When the library can't be built.
    pub fn under(platform: &mut Platform) {
        let library = platform.scratch("disk").join("disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/faults/disk.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o"]).arg(&library);
        let built = compiler.arg(&source).arg("-ldl").output().expect("a C compiler is installed");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        platform.environment("LD_PRELOAD", &library.display().to_string());
        platform.environment("ATOLL_TEST_DISK", &platform.data().display().to_string());
    }
}

impl Platform {
    /// Makes the disk of a node so, at once.
    ///
    /// # Panics
    /// When the folder of the platform can't be written.
    pub fn disk(&self, node: &str, disk: Disk) {
        let modes = self.data().join("modes");
        fs::create_dir_all(&modes).unwrap();
        let letter = match disk {
            Disk::Good => "-",
            Disk::Full => "f",
            Disk::ReadOnly => "r",
            Disk::Slow => "s",
        };
        fs::write(modes.join(node), letter).unwrap();
    }
}
