//! Ports that stay the same over restarts where they can.
//!
//! A listener configured with port 0 first tries the port it had last time, so that peers which know
//! the old address find the node again without waiting for gossip.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use tracing::warn;

/// Ports by purpose, kept in the data folder.
#[derive(Debug)]
pub struct Ports {
    path: PathBuf,
    known: Known,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Known(BTreeMap<String, u16>);

/// What a port must be free for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP listener.
    Tcp,
    /// A UDP socket.
    Udp,
}

impl Ports {
    /// Reads what is known; a file that can't be read counts as empty.
    pub fn load(data_dir: &Path) -> Self {
        let path = data_dir.join("ports.json");
        let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, known: known.unwrap_or_default() }
    }

    /// `wanted`, with port 0 replaced by the port that `purpose` had last if that one is free now.
    pub fn prefer(&self, purpose: &str, wanted: SocketAddr, transport: Transport) -> SocketAddr {
        let last = self.known.0.get(purpose).copied().filter(|_| wanted.port() == 0);
        match last.map(|port| SocketAddr::new(wanted.ip(), port)) {
            Some(address) if is_free(address, transport) => address,
            _ => wanted,
        }
    }

    /// Keeps the port that `purpose` got.
    pub fn remember(&mut self, purpose: &str, address: SocketAddr) {
        if self.known.0.insert(purpose.to_owned(), address.port()) == Some(address.port()) {
            return;
        }
        let saved = serde_json::to_vec(&self.known)
            .map_err(std::io::Error::from)
            .and_then(|bytes| atoll_process::files::write_atomic(&self.path, &bytes, 0o600));
        if let Err(cause) = saved {
            warn!(%cause, path = %self.path.display(), "cannot keep the node's ports; it may get others at the next start");
        }
    }
}

fn is_free(address: SocketAddr, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => TcpListener::bind(address).is_ok(),
        Transport::Udp => UdpSocket::bind(address).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_kept_while_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let got = TcpListener::bind(any).unwrap().local_addr().unwrap();
        Ports::load(folder.path()).remember("gateway", got);
        let ports = Ports::load(folder.path());
        let holder = TcpListener::bind(got);
        assert!(holder.is_err() || ports.prefer("gateway", any, Transport::Tcp) == any);
        drop(holder);
        assert_eq!(ports.prefer("gateway", any, Transport::Tcp), got);
        assert_eq!(ports.prefer("other", any, Transport::Tcp), any);
    }
}
