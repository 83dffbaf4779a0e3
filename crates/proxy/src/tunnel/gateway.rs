//! The gateway's end of a tunnel's control stream.

use super::frames::{FrameReader, FrameWriter, frame_body};
use super::{CONTROL_AUTHORITY, CONTROL_PATH, WIRE_VERSION};
use crate::body::Body;
use crate::exchange::Exchange;
use crate::headers;
use crate::metrics::ProxyMetrics;
use crate::workers::spawn_task;
use atoll_process::Drain;
use atoll_wire::tunnel::{self, ClusterHeadroom, Headroom, Hello, frame::Frame};
use http::{Method, Response};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tracing::debug;

const HEADROOM_EVERY: Duration = Duration::from_millis(100);
/// Unchanged headroom is told again after so many intervals.
const REPEAT_AFTER: u32 = 20;
/// Clusters in one frame; at most 130 bytes each they stay under a frame's bound.
const CLUSTERS_MAX: usize = 480;

/// What a gateway tells on its control streams.
#[derive(Clone)]
pub struct ControlStream {
    /// Our node's name.
    pub node: String,
    /// Our region.
    pub region: String,
    /// The headroom of the clusters that this edge has used lately, called every 100 ms.
    pub headroom: Rc<dyn Fn() -> Vec<ClusterHeadroom>>,
    /// Told to the edge as soon as it starts.
    pub drain: Drain,
    /// Counts panics.
    pub metrics: ProxyMetrics,
}

impl std::fmt::Debug for ControlStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlStream").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Whether the request opens a control stream. What is passed on for somebody else never does, whatever authority
/// and path it names: it is for a cluster, and whoever passes it on says so.
#[must_use]
pub fn is_control_stream(exchange: &Exchange) -> bool {
    !exchange.request.headers().contains_key(headers::CLUSTER)
        && exchange.request.method() == Method::POST
        && exchange.request.uri().path() == CONTROL_PATH
        && exchange.authority() == CONTROL_AUTHORITY
}

/// Answers the request that opens a control stream, and serves the stream until it ends.
#[must_use]
pub fn serve_control_stream(exchange: Exchange, control: ControlStream) -> Response<Body> {
    let (writer, body) = frame_body();
    let metrics = control.metrics.clone();
    let frames = FrameReader::new(exchange.request.into_body());
    spawn_task("control stream", &metrics, async move {
        run(frames, writer, control).await;
    });
    Response::new(body)
}

async fn run(mut frames: FrameReader, writer: FrameWriter, control: ControlStream) {
    writer.write(Frame::Hello(Hello {
        version_min: WIRE_VERSION,
        version_max: WIRE_VERSION,
        node: control.node.clone(),
        region: control.region.clone(),
    }));
    let mut ticks = tokio::time::interval(HEADROOM_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Vec::new();
    let mut unchanged = 0;
    let mut draining = false;
    loop {
        tokio::select! {
            frame = frames.next() => match frame {
                Ok(Some(Frame::Ping(ping))) => {
                    writer.write(Frame::Pong(ping));
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    debug!(%error, "a control stream broke");
                    return;
                }
            },
            _ = ticks.tick() => {
                let mut now = (control.headroom)();
                now.truncate(CLUSTERS_MAX);
                unchanged += 1;
                if (now != told || unchanged >= REPEAT_AFTER)
                    && writer.write(Frame::Headroom(Headroom { clusters: now.clone() }))
                {
                    told = now;
                    unchanged = 0;
                }
            }
            () = control.drain.draining(), if !draining => {
                // A full queue empties as soon as the edge reads; then the next round tells it.
                draining = writer.write(Frame::Drain(tunnel::Drain {}));
                if !draining {
                    tokio::task::yield_now().await;
                }
            }
            () = writer.closed() => return,
        }
    }
}
