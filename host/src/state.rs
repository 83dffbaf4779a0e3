//! What a host must know of an instance after its own restart, one file each.

use crate::supervisor::Exit;
use atoll_model::{ClusterName, InstanceId, ServiceSpec};
use atoll_process::files::write_atomic;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// A process that may have outlived the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedProcess {
    /// Its pid.
    pub pid: u32,
    /// With the pid it names the process: another one of the same pid started later.
    pub start_time: u64,
}

/// The content of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Of this format.
    pub version: u32,
    /// Which instance.
    pub instance: InstanceId,
    /// Of which service.
    pub cluster: ClusterName,
    /// Of which revision.
    pub revision: String,
    /// What it runs.
    pub spec: ServiceSpec,
    /// The program.
    pub program: Option<SavedProcess>,
    /// The program's port.
    pub port: u16,
    /// When the program was started, ms since 1970.
    pub started_ms: u64,
    /// Its checks passed.
    pub healthy: bool,
    /// The sidecar.
    pub sidecar: Option<SavedProcess>,
    /// Where the sidecar listens.
    pub sidecar_address: String,
    /// How often the program was started again.
    pub restarts: u32,
    /// How it last ended.
    pub last_exit: Option<Exit>,
}

impl Saved {
    /// An instance that was never started.
    #[must_use]
    pub fn new(instance: InstanceId, cluster: ClusterName, revision: String, spec: ServiceSpec) -> Self {
        Self {
            version: VERSION,
            instance,
            cluster,
            revision,
            spec,
            program: None,
            port: 0,
            started_ms: 0,
            healthy: false,
            sidecar: None,
            sidecar_address: String::new(),
            restarts: 0,
            last_exit: None,
        }
    }

    /// Writes it into an instance's folder, whole or not at all.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        write_atomic(&folder.join(FILE), &serde_json::to_vec_pretty(self)?, 0o600)
    }
}

/// The folder of all instances' folders.
#[must_use]
pub fn instances_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("instances")
}

/// All that was saved, and the folders whose file can't be read.
pub fn load(data_dir: &Path) -> io::Result<(Vec<Saved>, Vec<PathBuf>)> {
    let (mut saved, mut unreadable) = (Vec::new(), Vec::new());
    let entries = match std::fs::read_dir(instances_dir(data_dir)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok((saved, unreadable)),
        entries => entries?,
    };
    for entry in entries {
        let folder = entry?.path();
        let parsed = std::fs::read(folder.join(FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Saved>(&bytes).ok());
        match parsed.filter(|state| state.version == VERSION) {
            Some(state) => saved.push(state),
            None => unreadable.push(folder),
        }
    }
    Ok((saved, unreadable))
}
