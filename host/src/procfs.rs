//! What `/proc` says: which process is which, who is in a group, and who listens on a port.

use std::fs;
use std::io;
use std::path::PathBuf;

/// The parts of `/proc/<pid>/stat` that tell one process from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The process group.
    pub group: u32,
    /// Clock ticks since boot when it started. With the pid it names a process for good.
    pub start_time: u64,
    /// It has ended, and its parent has not asked for its status.
    pub ended: bool,
}

/// What is known of a process, if it exists.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses, and may hold anything, also `)`.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        ended: matches!(*fields.first()?, "Z" | "X" | "x"),
        group: fields.get(2)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// Whether the process of this pid is the one that started at `start_time`, and has not ended.
#[must_use]
pub fn is_alive(pid: u32, start_time: u64) -> bool {
    stat(pid).is_some_and(|stat| stat.start_time == start_time && !stat.ended)
}

/// The pids of a process group that have not ended.
#[must_use]
pub fn group_members(group: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.group == group && !stat.ended))
        .collect()
}

/// The living processes that were started with `NAME=value` in their environment, whatever group they
/// have moved to. Only those that we may look into.
#[must_use]
pub fn with_environment(name: &str, value: &str) -> Vec<u32> {
    let wanted = format!("{name}={value}");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
            environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
        })
        .collect()
}

/// A listening socket in a process's hands. As long as the descriptor is the same socket, the process
/// still listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    descriptor: PathBuf,
    socket: String,
}

impl Listener {
    /// Whether the process still has the socket open.
    #[must_use]
    pub fn still_open(&self) -> bool {
        fs::read_link(&self.descriptor).is_ok_and(|target| target.as_os_str() == self.socket.as_str())
    }
}

/// Why a port does not count as an instance's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// No socket listens there.
    #[error("nothing listens on 127.0.0.1:{0} yet")]
    Nobody(u16),
    /// A socket that no process of the group holds.
    #[error("port {0} belongs to another program")]
    Other(u16),
    /// `/proc` could not be read.
    #[error("cannot tell who listens on port {0}: {1}")]
    Unknown(u16, String),
}

/// The socket that takes connections to `127.0.0.1:port`, if a process of `group` holds it, and no
/// other process shares the port.
pub fn listener_of_group(port: u16, group: u32) -> Result<Listener, NotOurs> {
    let mut wanted = listening(port).map_err(|cause| NotOurs::Unknown(port, cause.to_string()))?;
    if wanted.is_empty() {
        return Err(NotOurs::Nobody(port));
    }
    let mut found = None;
    for pid in group_members(group) {
        // A process that ended meanwhile has no descriptors.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(place) = wanted.iter().position(|socket| target.as_os_str() == socket.as_str()) else {
                continue;
            };
            let socket = wanted.swap_remove(place);
            found = Some(Listener { descriptor: descriptor.path(), socket });
        }
        if wanted.is_empty() {
            break;
        }
    }
    found.filter(|_| wanted.is_empty()).ok_or(NotOurs::Other(port))
}

/// Whether any socket takes connections to `127.0.0.1:port`.
#[must_use]
pub fn is_taken(port: u16) -> bool {
    listening(port).is_ok_and(|sockets| !sockets.is_empty())
}

/// The sockets that listen on `port` and take connections to 127.0.0.1, as `/proc/<pid>/fd` names them.
fn listening(port: u16) -> io::Result<Vec<String>> {
    let mut sockets = listening_in(&fs::read_to_string("/proc/self/net/tcp")?, port);
    // Absent where IPv6 is switched off.
    if let Ok(text) = fs::read_to_string("/proc/self/net/tcp6") {
        sockets.extend(listening_in(&text, port));
    }
    Ok(sockets)
}

fn listening_in(text: &str, port: u16) -> Vec<String> {
    let loopback = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
    let mapped = format!("{:016}{:08X}{loopback}", 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]));
    let mut sockets = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
            continue;
        };
        let Some((address, at)) = local.split_once(':') else { continue };
        if u16::from_str_radix(at, 16) != Ok(port) {
            continue;
        }
        let any = address.bytes().all(|digit| digit == b'0');
        if any || address == loopback || address == mapped {
            sockets.push(format!("socket:[{inode}]"));
        }
    }
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_name_with_parentheses_is_no_field() {
        let tail = "S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        let stat = parse_stat(&format!("9 (a) (b) {tail}")).unwrap();
        assert_eq!(stat, Stat { group: 77, start_time: 12345, ended: false });
        assert!(parse_stat("9 (x").is_none());
    }

    #[test]
    fn a_port_belongs_to_the_group_that_listens() {
        let own_group = stat(std::process::id()).unwrap().group;
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let held = listener_of_group(port, own_group).unwrap();
            assert!(held.still_open(), "{address}");
            assert_eq!(listener_of_group(port, u32::MAX), Err(NotOurs::Other(port)), "{address}");
            drop(listener);
            assert!(!held.still_open());
            assert_eq!(listener_of_group(port, own_group), Err(NotOurs::Nobody(port)), "{address}");
        }
    }
}
