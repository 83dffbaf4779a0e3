//! The two files that `atoll dev` keeps true: `run.json` for its own next start, `dev.json` for users,
//! scripts and tests.

use super::layout::Layout;
use super::procfs::{self, Process};
use crate::failure::{self, Outcome};
use atoll_model::Role;
use atoll_process::files;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// What the next start needs to know: which processes may be left, and which addresses were used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunFile {
    /// The boot in which the processes ran.
    pub boot_id: String,
    /// The nodes' processes, by name.
    pub nodes: BTreeMap<String, Process>,
    /// Addresses by purpose.
    pub addresses: BTreeMap<String, SocketAddr>,
}

impl RunFile {
    /// Reads it; one that is absent or unreadable is empty: the command lines still tell what was left.
    pub fn load(data: &Path) -> Self {
        let bytes = std::fs::read(data.join("run.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Writes it.
    pub fn save(&self, data: &Path) -> Outcome {
        let bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        write(&data.join("run.json"), &bytes)
    }

    /// Takes note of a process that was started.
    pub fn started(&mut self, name: &str, pid: u32) {
        self.boot_id = procfs::boot_id();
        if let Some(process) = Process::of(pid) {
            self.nodes.insert(name.to_owned(), process);
        }
    }
}

/// `dev.json`, as the design fixes it. `pids` are by node name.
pub fn dev_json(layout: &Layout, token: &str, pids: &BTreeMap<String, u32>) -> Value {
    let edges = layout.nodes.iter().filter(|node| node.config.roles.has(Role::Edge)).map(|node| {
        let first = |addresses: &[SocketAddr]| addresses.first().map(ToString::to_string);
        json!({
            "name": node.config.name,
            "site": node.config.site,
            "http": first(&node.config.edge.http),
            "https": first(&node.config.edge.https),
            "pid": pids.get(node.name()),
        })
    });
    let nodes = layout.nodes.iter().map(|node| {
        json!({
            "name": node.config.name,
            "site": node.config.site,
            "roles": node.config.roles,
            "pid": pids.get(node.name()),
            "admin": node.config.admin.listen.to_string(),
        })
    });
    json!({
        "api": layout.api_url(),
        "token": token,
        "dns": layout.control().and_then(|node| node.config.dns.listen.first()).map(ToString::to_string),
        "public_ca": layout.public_ca,
        "edges": edges.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

/// Writes `dev.json`.
pub fn save_dev_json(data: &Path, value: &Value) -> Outcome {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    write(&data.join("dev.json"), text.as_bytes())
}

/// Removes `dev.json`: nothing that it says is true any more.
pub fn remove_dev_json(data: &Path) {
    let _absent = std::fs::remove_file(data.join("dev.json"));
}

fn write(path: &Path, bytes: &[u8]) -> Outcome {
    files::write_atomic(path, bytes, 0o600)
        .map_err(|error| failure::io(format!("cannot write {}", path.display()), &error))
}
