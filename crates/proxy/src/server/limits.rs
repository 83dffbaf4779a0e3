//! What a server takes from a connection.

use atoll_model::Hop;
use std::time::Duration;

/// How long a stream may be silent in both directions, and its reader may take nothing: streams of events and of
/// bytes pause for long; one that does so for ever would hold its places at every hop.
pub const STREAM_SILENCE_MAX: Duration = Duration::from_secs(3600);

/// In a response's extensions: how long the peer may take nothing of it, in place of
/// [`ServerLimits::take_timeout`].
#[derive(Debug, Clone, Copy)]
pub struct TakeWithin(pub Duration);

/// Bounds of one connection, and how its own errors look.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Who we are in answers that the server makes by itself.
    pub hop: Hop,
    /// Errors go to another hop (`atoll-reason`), not to a client (a page).
    pub internal: bool,
    /// How long an HTTP/2 connection may be without a stream. HTTP/1.1 has `head_timeout` for that.
    pub idle_timeout: Option<Duration>,
    /// HTTP/2 streams at once.
    pub streams_max: u32,
    /// Unread bytes of one request.
    pub stream_window: u32,
    /// Unread bytes of all requests of a connection.
    pub connection_window: u32,
    /// Bytes of a response that wait for the connection.
    pub send_buffer_max: usize,
    /// The largest HTTP/2 frame that we take.
    pub frame_max: u32,
    /// Bytes of a head.
    pub head_bytes_max: usize,
    /// Fields of an HTTP/1.1 head.
    pub headers_max: usize,
    /// For a whole HTTP/1.1 head, from the end of the exchange before.
    pub head_timeout: Duration,
    /// For each piece of a request's body.
    pub body_idle_timeout: Duration,
    /// For each piece of a response, and of all that is written: how long the peer may take nothing.
    pub take_timeout: Duration,
    /// Streams that the peer may reset before we have looked at them, at once (rapid reset).
    pub pending_resets_max: usize,
    /// Streams that we may reset for errors of the peer before the connection is closed.
    pub local_resets_max: usize,
    /// HTTP/2 pings on a silent connection.
    pub keep_alive: Duration,
}

impl ServerLimits {
    /// For clients that nobody vouches for: at most 1 MiB unread a connection.
    #[must_use]
    pub fn public() -> Self {
        Self {
            hop: Hop::Edge,
            internal: false,
            streams_max: 128,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            send_buffer_max: 64 * 1024,
            frame_max: 16 * 1024,
            head_bytes_max: 16 * 1024,
            headers_max: 100,
            head_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            take_timeout: Duration::from_secs(60),
            idle_timeout: Some(Duration::from_secs(180)),
            pending_resets_max: 20,
            local_resets_max: 256,
            keep_alive: Duration::from_secs(20),
        }
    }

    /// For tunnels: windows for a long fat link, resets that don't close what others use.
    #[must_use]
    pub fn tunnel() -> Self {
        Self {
            hop: Hop::Gateway,
            internal: true,
            streams_max: 1000,
            stream_window: 512 * 1024,
            // Room for every stream: else a few instances that don't read their uploads would hold up
            // those of all others in the tunnel.
            connection_window: 1000 * 512 * 1024,
            frame_max: 64 * 1024,
            // Behind those of the hop before: it knows its clients, and ends the stream here too.
            idle_timeout: None,
            take_timeout: Duration::from_secs(90),
            body_idle_timeout: STREAM_SILENCE_MAX + Duration::from_secs(60),
            head_bytes_max: 64 * 1024,
            // Resets of all clients of the hop before come by the same few connections.
            pending_resets_max: 10_000,
            local_resets_max: 1 << 20,
            keep_alive: Duration::from_secs(5),
            ..Self::public()
        }
    }

    /// For a sidecar, whose memory is small.
    #[must_use]
    pub fn sidecar() -> Self {
        Self {
            hop: Hop::Sidecar,
            internal: true,
            streams_max: 1024,
            stream_window: 128 * 1024,
            connection_window: 1024 * 128 * 1024,
            ..Self::tunnel()
        }
    }
}
