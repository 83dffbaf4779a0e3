//! Over UDP: one packet after the other, each answered before the next is taken.

use super::Responder;
use crate::limit::{Limiter, Verdict};
use crate::metrics::Unanswered;
use crate::respond::Transport;
use atoll_process::Drain;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tracing::debug;

/// Longer than any query; what is longer is cut, and does not parse.
const PACKET_BYTES_MAX: usize = 4096;
/// After an error of the socket, so that one that lasts does not take a core.
const PAUSE: Duration = Duration::from_millis(10);

/// Answers until the drain is forced.
pub(super) async fn serve(socket: UdpSocket, responder: Responder, per_second: u32, drain: Drain) {
    let mut limiter = Limiter::new(per_second);
    let began = Instant::now();
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut packet) => received,
            () = drain.forced() => return,
        };
        let (len, source) = match received {
            Ok(received) => received,
            Err(cause) => {
                debug!(%cause, "the socket received nothing");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Nothing can be sent to port 0.
        if source.port() == 0 {
            responder.metrics.unanswered(Unanswered::Malformed);
            continue;
        }
        let truncate = match limiter.admit(source.ip(), began.elapsed()) {
            Verdict::Answer => false,
            Verdict::Truncate => true,
            Verdict::Drop => {
                responder.metrics.unanswered(Unanswered::Limited);
                continue;
            }
        };
        let Some(reply) = responder.answer(&packet[..len], Transport::Udp, truncate) else { continue };
        // Not waited for: a client asks again, and others wait behind this one.
        if let Err(cause) = socket.try_send_to(&reply.bytes, source) {
            responder.metrics.unanswered(Unanswered::Unsent);
            debug!(%cause, "an answer was not sent");
        }
    }
}
