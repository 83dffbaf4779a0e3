//! The sockets: UDP and TCP at each address.

mod seats;
mod tcp;
mod udp;

use crate::config::Config;
use crate::metrics::{DnsMetrics, Unanswered};
use crate::respond::{Reply, Transport, respond};
use crate::zone::Zone;
use arc_swap::ArcSwap;
use atoll_process::{Drain, Metrics, Tasks};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket};

/// Tries to find a port that is free for both UDP and TCP.
const PORT_TRIES: usize = 64;
const BACKLOG: i32 = 128;
const UDP_RECEIVE_BYTES: usize = 1 << 20;

/// An address that can't be listened at.
#[derive(Debug, thiserror::Error)]
#[error("DNS can't listen at {address} ({transport}): {source}; is another name server using the port?")]
pub struct BindError {
    address: SocketAddr,
    transport: &'static str,
    source: io::Error,
}

/// The zone of the moment, which a single writer replaces.
pub(crate) type CurrentZone = Arc<ArcSwap<Zone>>;

/// Sockets that are open; nothing is answered yet.
#[derive(Debug)]
pub struct Bound {
    sockets: Vec<(UdpSocket, TcpListener)>,
    addresses: Vec<SocketAddr>,
    config: Config,
    metrics: DnsMetrics,
}

/// Opens UDP and TCP at each of the configured addresses, with the same port. To be called on the runtime that
/// is to answer.
pub fn bind(config: Config, metrics: &Metrics) -> Result<Bound, BindError> {
    let mut sockets = Vec::with_capacity(config.listen.len());
    let mut addresses = Vec::with_capacity(config.listen.len());
    for address in &config.listen {
        let (udp, tcp) = pair(*address)?;
        addresses.push(local(&tcp, *address)?);
        sockets.push((udp, tcp));
    }
    Ok(Bound { sockets, addresses, config, metrics: DnsMetrics::new(metrics) })
}

impl Bound {
    /// Where it listens, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(crate) fn metrics(&self) -> DnsMetrics {
        self.metrics.clone()
    }

    /// Answers until the drain is forced; takes no new connections once it has begun.
    pub(crate) fn serve(self, zone: &CurrentZone, tasks: &Tasks, drain: &Drain) {
        let responder = Responder { zone: Arc::clone(zone), metrics: self.metrics };
        let seats = seats::Seats::new(self.config.tcp_connections_max);
        for (udp, tcp) in self.sockets {
            let limit = self.config.responses_per_second;
            tasks.spawn_vital("dns udp", udp::serve(udp, responder.clone(), limit, drain.clone()));
            let serving = tcp::Serving {
                responder: responder.clone(),
                seats: seats.clone(),
                idle: self.config.tcp_idle(),
                tasks: tasks.clone(),
                drain: drain.clone(),
            };
            tasks.spawn_vital("dns tcp", tcp::serve(tcp, serving));
        }
    }
}

/// Answers packets and counts.
#[derive(Debug, Clone)]
struct Responder {
    zone: CurrentZone,
    metrics: DnsMetrics,
}

impl Responder {
    fn answer(&self, packet: &[u8], transport: Transport, truncate: bool) -> Option<Reply> {
        let zone = self.zone.load();
        // The parser is not ours, and its input is anybody's: what breaks it costs one answer, not the node.
        let answered = catch_unwind(AssertUnwindSafe(|| respond(&zone, packet, transport, truncate)));
        match answered {
            Ok(Ok(reply)) => {
                self.metrics.answered(transport, reply.code, reply.nodata);
                if reply.truncated {
                    self.metrics.truncated.inc();
                }
                Some(reply)
            }
            Ok(Err(_)) => {
                self.metrics.unanswered(Unanswered::Malformed);
                None
            }
            Err(_) => {
                self.metrics.unanswered(Unanswered::Panicked);
                None
            }
        }
    }
}

/// UDP and TCP with the same port; with port 0 any that is free for both.
fn pair(address: SocketAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let mut tries = PORT_TRIES;
    loop {
        let tcp = tcp_listener(address).map_err(|source| BindError { address, transport: "TCP", source })?;
        let same_port = local(&tcp, address)?;
        match udp_socket(same_port) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries > 0 => {
                tries -= 1;
            }
            Err(source) => return Err(BindError { address: same_port, transport: "UDP", source }),
        }
    }
}

fn local(tcp: &TcpListener, address: SocketAddr) -> Result<SocketAddr, BindError> {
    tcp.local_addr().map_err(|source| BindError { address, transport: "TCP", source })
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // Closed connections of the run before do not hold the port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    // A burst of some thousand queries waits rather than is lost. The kernel may give less.
    socket.set_recv_buffer_size(UDP_RECEIVE_BYTES)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // So that `0.0.0.0` and `[::]` can stand side by side.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
