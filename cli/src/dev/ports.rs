//! Ports for the nodes of `atoll dev`.

use crate::failure::{Failure, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

/// Ports are taken from below the range that the kernel gives to outgoing connections, so that none
/// of those takes the port of a node that is being restarted.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
const TRIES: usize = 2_000;

/// Hands out ports, no port twice, and those of the last start again where they are free.
#[derive(Debug, Default)]
pub struct Ports {
    last: BTreeMap<String, SocketAddr>,
    given: BTreeMap<String, SocketAddr>,
    taken: BTreeSet<SocketAddr>,
}

impl Ports {
    /// Begins with the addresses of the last start, by purpose.
    pub fn new(last: BTreeMap<String, SocketAddr>) -> Self {
        Self { last, ..Self::default() }
    }

    /// A free address for a purpose; TCP and UDP.
    pub fn pick(&mut self, purpose: &str, ip: IpAddr) -> Outcome<SocketAddr> {
        let last =
            self.last.get(purpose).copied().filter(|address| address.ip() == ip && address.port() != 0);
        let random = (0..TRIES).map(|_| SocketAddr::new(ip, rand::random_range(RANGE)));
        let free =
            last.into_iter().chain(random).find(|address| !self.taken.contains(address) && is_free(*address));
        let address = free.ok_or_else(|| Failure::failed(format!("no free port on {ip} for {purpose}")))?;
        self.keep(purpose, address);
        Ok(address)
    }

    /// The address that the user wants, or a free one for port 0. `flag` is what changes it.
    pub fn fixed_or_pick(&mut self, purpose: &str, ip: IpAddr, port: u16, flag: &str) -> Outcome<SocketAddr> {
        if port == 0 {
            return self.pick(purpose, ip);
        }
        let address = SocketAddr::new(ip, port);
        if let Err(error) = TcpListener::bind(address) {
            let other = format!("choose another port with {flag} PORT ({flag} 0 picks a free one)");
            let (reason, fix) = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    ("another program listens there".to_owned(), format!("stop that program, or {other}"))
                }
                std::io::ErrorKind::PermissionDenied => {
                    ("this user may not listen on ports below 1024".to_owned(), other)
                }
                _ => (error.to_string(), other),
            };
            return Err(Failure::failed(format!("{address} can't be used: {reason}")).fix(fix));
        }
        self.keep(purpose, address);
        Ok(address)
    }

    /// What was given, by purpose.
    pub fn given(&self) -> &BTreeMap<String, SocketAddr> {
        &self.given
    }

    fn keep(&mut self, purpose: &str, address: SocketAddr) {
        self.taken.insert(address);
        self.given.insert(purpose.to_owned(), address);
    }
}

fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::net::Ipv4Addr;

    const IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_last_port_is_kept_while_it_is_free() {
        let mut first = Ports::default();
        let a = first.pick("a", IP).unwrap();
        let b = first.pick("b", IP).unwrap();
        assert_ne!(a, b);
        assert_eq!(Ports::new(first.given().clone()).pick("a", IP).unwrap(), a);
        let _taken = TcpListener::bind(a).unwrap();
        assert_ne!(Ports::new(first.given().clone()).pick("a", IP).unwrap(), a);
    }

    #[test]
    fn a_taken_port_names_itself_and_the_flag() {
        let holder = TcpListener::bind((IP, 0)).unwrap();
        let port = holder.local_addr().unwrap().port();
        let failure = Ports::default().fixed_or_pick("x", IP, port, "--https-port").unwrap_err();
        assert!(failure.what.contains(&format!("127.0.0.1:{port}")), "{failure}");
        assert!(failure.fix.unwrap().contains("--https-port"));
    }
}
