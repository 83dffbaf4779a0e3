//! Free ports for instances.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Below it live well-known programs.
const LOWEST: u16 = 20_000;
const TRIES: usize = 64;

/// The ports that instances of this host and their sidecars have, whether they listen yet or not.
#[derive(Debug, Default)]
pub struct Ports {
    held: Mutex<BTreeMap<String, u16>>,
}

impl Ports {
    /// A port on 127.0.0.1 that nothing uses now, for `holder`: an instance, or `INSTANCE#WHAT`. The one it had
    /// is free again.
    ///
    /// Ports below the range from which the system takes those of outgoing connections are preferred:
    /// a program may open its port late, and a busy machine would have given it away by then.
    pub fn take(&self, holder: &str) -> io::Result<u16> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(holder);
        let below = lowest_ephemeral();
        for attempt in 0..TRIES {
            let wanted =
                if below > LOWEST && attempt < TRIES / 2 { rand::random_range(LOWEST..below) } else { 0 };
            let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) else { continue };
            let port = listener.local_addr()?.port();
            if !held.values().any(|other| *other == port) {
                held.insert(holder.to_owned(), port);
                return Ok(port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no free port on 127.0.0.1"))
    }

    /// `holder` has `port` from an earlier run.
    pub fn hold(&self, holder: &str, port: u16) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(holder.to_owned(), port);
    }

    /// `instance` is gone, with all that was its own.
    pub fn release(&self, instance: &str) {
        let is_its = |holder: &str| holder.split('#').next() == Some(instance);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|holder, _| !is_its(holder));
    }
}

fn lowest_ephemeral() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_instances_share_a_port() {
        let ports = Ports::default();
        let taken: std::collections::BTreeSet<u16> =
            (0..50).map(|i| ports.take(&i.to_string()).unwrap()).collect();
        assert_eq!(taken.len(), 50);
        ports.take("1#API_URL").unwrap();
        ports.release("1");
        assert_eq!(ports.held.lock().unwrap().len(), 49);
    }
}
