//! The line to the host: states come in, statuses go out, each with its length before it.

use atoll_model::InstanceId;
use atoll_wire::Message as _;
use atoll_wire::sidecar::{SidecarState, SidecarStatus};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

/// A state is a few certificates and a key.
const STATE_BYTES_MAX: usize = 1024 * 1024;
const STATUS_EVERY: Duration = Duration::from_secs(1);
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Keeps the line up for ever: a host that restarts finds its sidecars again.
pub(crate) async fn keep_linked(
    socket: &Path,
    instance: &InstanceId,
    states: watch::Sender<Option<SidecarState>>,
    mut statuses: watch::Receiver<SidecarStatus>,
) {
    let mut backoff = BACKOFF_MIN;
    let mut told = false;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => {
                info!("linked to the host");
                told = false;
                let (reader, writer) = stream.into_split();
                let ended = tokio::select! {
                    ended = read_states(reader, instance, &states, &mut backoff) => ended,
                    ended = write_statuses(writer, &mut statuses) => ended,
                };
                if let Err(error) = ended {
                    debug!(%error, "the line to the host broke");
                }
                info!("the host is away; serving goes on");
            }
            Err(error) if !told => {
                told = true;
                warn!(%error, socket = %socket.display(), "can't reach the host; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn read_states(
    mut reader: OwnedReadHalf,
    instance: &InstanceId,
    states: &watch::Sender<Option<SidecarState>>,
    backoff: &mut Duration,
) -> io::Result<()> {
    loop {
        let length = reader.read_u32().await? as usize;
        if length > STATE_BYTES_MAX {
            return Err(invalid(format!("a state of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).await?;
        let state = SidecarState::decode(bytes.as_slice()).map_err(|error| invalid(error.to_string()))?;
        if state.instance != instance.as_str() {
            return Err(invalid(format!("a state of instance {:?}", state.instance)));
        }
        *backoff = BACKOFF_MIN;
        states.send_replace(Some(state));
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn write_statuses(
    mut writer: OwnedWriteHalf,
    statuses: &mut watch::Receiver<SidecarStatus>,
) -> io::Result<()> {
    let mut ticks = tokio::time::interval(STATUS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The first tick is at once, so the host hears of us as soon as it is there.
        tokio::select! {
            _ = ticks.tick() => {}
            changed = statuses.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
        }
        let message = statuses.borrow_and_update().encode_to_vec();
        let length = u32::try_from(message.len()).map_err(|_large| invalid("a status".to_owned()))?;
        let bytes = [&length.to_be_bytes()[..], &message].concat();
        tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&bytes)).await??;
    }
}
