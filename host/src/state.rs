//! What a host must know of an instance after its own restart, one file each.

use crate::supervisor::Exit;
use atoll_model::{ClusterName, InstanceId, Protocol, ServiceSpec};
use atoll_process::files::write_atomic;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind};
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

/// A service that the instance calls, and the loopback port at which its sidecar listens for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCall {
    /// The variable that holds the listener's address.
    pub variable: String,
    /// The service.
    pub cluster: ClusterName,
    /// What it speaks.
    pub protocol: Protocol,
    /// The port; 0 before one was chosen.
    pub port: u16,
}

/// The content of a state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Of this format.
    pub version: u32,
    /// Of the system's start in which it was written: pids and start times mean nothing in another.
    pub boot: String,
    /// Which instance.
    pub instance: InstanceId,
    /// Of which service.
    pub cluster: ClusterName,
    /// Of which revision.
    pub revision: String,
    /// What it runs.
    pub spec: ServiceSpec,
    /// What it calls.
    #[serde(default)]
    pub calls: Vec<SavedCall>,
    /// The port of its sidecar's forward proxy; 0: none.
    #[serde(default)]
    pub proxy_port: u16,
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
    pub fn new(
        instance: InstanceId,
        cluster: ClusterName,
        revision: String,
        spec: ServiceSpec,
        calls: Vec<SavedCall>,
    ) -> Self {
        Self {
            version: VERSION,
            boot: boot_id(),
            instance,
            cluster,
            revision,
            spec,
            calls,
            proxy_port: 0,
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

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Nothing survives a restart of the machine; its pids belong to others now.
fn after_boot(mut saved: Saved) -> Saved {
    let boot = boot_id();
    if saved.boot != boot {
        saved.boot = boot;
        saved.program = None;
        saved.sidecar = None;
        saved.healthy = false;
    }
    saved
}

/// The folder of all instances' folders.
#[must_use]
pub fn instances_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("instances")
}

/// All that was saved, and the folders whose file is damaged or absent. That the disk fails, or that there are no
/// file descriptors, is an error: what is in such a folder may run.
pub fn load(data_dir: &Path) -> io::Result<(Vec<Saved>, Vec<PathBuf>)> {
    let (mut saved, mut unreadable) = (Vec::new(), Vec::new());
    let entries = match std::fs::read_dir(instances_dir(data_dir)) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok((saved, unreadable)),
        entries => entries?,
    };
    for entry in entries {
        let folder = entry?.path();
        let bytes = match std::fs::read(folder.join(FILE)) {
            Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            bytes => Some(bytes?),
        };
        let parsed = bytes.and_then(|bytes| serde_json::from_slice::<Saved>(&bytes).ok());
        match parsed.filter(|state| state.version == VERSION) {
            Some(state) => saved.push(after_boot(state)),
            None => unreadable.push(folder),
        }
    }
    Ok((saved, unreadable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_an_earlier_boot_are_forgotten() {
        let data_dir = tempfile::tempdir().unwrap();
        let spec: ServiceSpec = serde_json::from_value(serde_json::json!({
            "run": ["x"], "working_dir": "/", "env": {}, "labels": {}, "protocol": "http", "public": true,
            "drain_ms": 1, "checks": [], "regions": {},
        }))
        .unwrap();
        let instance = InstanceId::from_parts(1, 1);
        let folder = instances_dir(data_dir.path()).join(instance.as_str());
        std::fs::create_dir_all(&folder).unwrap();
        let call = SavedCall {
            variable: "API_URL".to_owned(),
            cluster: "default/shop/api".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 20_001,
        };
        let cluster = "default/shop/web".parse().unwrap();
        let mut saved = Saved::new(instance, cluster, "r-1".to_owned(), spec, vec![call]);
        saved.program = Some(SavedProcess { pid: 1, start_time: 2 });
        saved.write(&folder).unwrap();
        assert_eq!(load(data_dir.path()).unwrap(), (vec![saved.clone()], vec![]));
        saved.boot = "another".to_owned();
        saved.write(&folder).unwrap();
        assert_eq!(load(data_dir.path()).unwrap().0[0].program, None);
        std::fs::write(folder.join(FILE), "{").unwrap();
        assert_eq!(load(data_dir.path()).unwrap(), (vec![], vec![folder.clone()]));
        std::fs::remove_file(folder.join(FILE)).unwrap();
        assert_eq!(load(data_dir.path()).unwrap(), (vec![], vec![folder.clone()]));
        // Not to be read now, which says nothing of what runs.
        std::fs::create_dir(folder.join(FILE)).unwrap();
        assert!(load(data_dir.path()).is_err());
    }
}
