//! The socket on which sidecars get their state and say how they are.
//!
//! Who connects is told by the kernel (SO_PEERCRED): a connection belongs to the instance whose sidecar's
//! process group the peer is in. Nobody can ask for another instance's key.

use crate::metrics::HostMetrics;
use crate::procfs;
use atoll_model::InstanceId;
use atoll_process::files::private_dir;
use atoll_wire::Message;
use atoll_wire::sidecar::{SidecarState, SidecarStatus};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

/// Longest path of a unix socket that every system takes, bytes.
const SOCKET_PATH_MAX: usize = 100;
/// Largest message from a sidecar, bytes.
const STATUS_BYTES_MAX: u32 = 16 << 10;
/// A sidecar may be faster to connect than the host is to note its pid.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const CONNECTIONS_MAX: usize = 4_096;

/// Where one sidecar's messages come from and go to.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Whose sidecar it is.
    pub instance: InstanceId,
    /// What it is to know; nothing is sent before there is a certificate in it.
    pub state: watch::Receiver<SidecarState>,
    /// Where what it says goes; the last word counts.
    pub said: watch::Sender<SidecarStatus>,
}

/// The sidecars that may connect, by their process group.
#[derive(Debug)]
pub struct Sidecars {
    path: PathBuf,
    slots: Mutex<HashMap<u32, Slot>>,
    metrics: HostMetrics,
}

impl Sidecars {
    /// Listens in `data_dir`, or, where that path is too long for a socket, in a folder of our own that has
    /// the same name after every restart.
    pub fn bind(data_dir: &Path, metrics: HostMetrics) -> io::Result<(Arc<Self>, UnixListener)> {
        let path = socket_path(data_dir)?;
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok((Arc::new(Self { path, slots: Mutex::default(), metrics }), listener))
    }

    /// Where sidecars connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the sidecar that leads `group` connect.
    pub fn register(&self, group: u32, slot: Slot) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(group, slot);
    }

    /// The sidecar has ended.
    pub fn forget(&self, group: u32) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let sidecars = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(cause) = sidecars.connection(stream).await {
                            debug!(%cause, "a sidecar's connection ended");
                        }
                        drop(place);
                    });
                }
                Err(cause) => {
                    warn!(%cause, "cannot take sidecars' connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: UnixStream) -> io::Result<()> {
        let slot = self.slot_of(&stream).await.inspect_err(|cause| {
            self.metrics.sidecar_refusals.inc();
            warn!(%cause, "a connection to the sidecars' socket was refused");
        })?;
        let (reader, writer) = stream.into_split();
        tokio::select! {
            ended = tell(writer, slot.state) => ended,
            ended = listen(reader, slot.instance, slot.said, &self.metrics) => ended,
        }
    }

    async fn slot_of(&self, stream: &UnixStream) -> io::Result<Slot> {
        let peer = stream.peer_cred()?;
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if peer.uid() != rustix::process::geteuid().as_raw() {
            return refuse(format!("the peer is of user {}", peer.uid()));
        }
        let Some(pid) = peer.pid().and_then(|pid| u32::try_from(pid).ok()) else {
            return refuse("the peer's pid is not known".to_owned());
        };
        let find = async {
            loop {
                let group = procfs::stat(pid).map_or(0, |stat| stat.group);
                let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&group).cloned();
                if let Some(slot) = slot {
                    return slot;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match tokio::time::timeout(UNKNOWN_PATIENCE, find).await {
            Ok(slot) => Ok(slot),
            Err(_) => refuse(format!("process {pid} is no sidecar of this host")),
        }
    }
}

/// Sends the state now and each time it changes.
async fn tell(mut writer: OwnedWriteHalf, mut state: watch::Receiver<SidecarState>) -> io::Result<()> {
    loop {
        let bytes = {
            let state = state.borrow_and_update();
            if state.chain.is_empty() { Vec::new() } else { state.encode_to_vec() }
        };
        if !bytes.is_empty() {
            let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            writer.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
        }
        if state.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Passes on what changes in what the sidecar says.
async fn listen(
    mut reader: OwnedReadHalf,
    instance: InstanceId,
    said: watch::Sender<SidecarStatus>,
    metrics: &HostMetrics,
) -> io::Result<()> {
    let mut counted: Option<SidecarStatus> = None;
    loop {
        let length = reader.read_u32().await?;
        if length > STATUS_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        reader.read_exact(&mut bytes).await?;
        let status = SidecarStatus::decode(bytes.as_slice()).map_err(io::Error::other)?;
        if status.instance != instance.as_str() {
            let why = format!("it is the sidecar of {instance}, and speaks of {:?}", status.instance);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        // The first one on a line says what was counted before.
        metrics.called(counted.as_ref().unwrap_or(&status), &status);
        let news = without_counts(&status);
        counted = Some(status);
        said.send_if_modified(|before| {
            let changed = *before != news;
            *before = news;
            changed
        });
    }
}

/// What comes and goes with each request is no news for the instance.
fn without_counts(status: &SidecarStatus) -> SidecarStatus {
    SidecarStatus {
        in_flight: 0,
        calls_near: 0,
        calls_by_gateway: 0,
        calls_failed: 0,
        calls_refused: 0,
        ..status.clone()
    }
}

fn socket_path(data_dir: &Path) -> io::Result<PathBuf> {
    let data_dir = std::path::absolute(data_dir)?;
    let run = data_dir.join("run");
    let path = run.join("sidecars.sock");
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        private_dir(&run)?;
        return Ok(path);
    }
    let own = rustix::process::geteuid().as_raw();
    let short =
        |base: &Path| base.join(format!("atoll-{own}-{:016x}", fnv(data_dir.as_os_str().as_encoded_bytes())));
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    let folder = runtime
        .map(|base| short(&base))
        .filter(|folder| folder.as_os_str().len() + 14 <= SOCKET_PATH_MAX)
        .unwrap_or_else(|| short(Path::new("/tmp")));
    private_dir(&folder)?;
    // In a folder that all may write, somebody else may have been first.
    let found = std::fs::symlink_metadata(&folder)?;
    if !found.is_dir() || found.uid() != own {
        let why = format!("{} is not a folder of ours; remove it", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(folder.join("sidecars.sock"))
}

/// FNV-1a: the same in every build, unlike the standard library's.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_process::Metrics;

    #[test]
    fn a_long_folder_gets_a_short_socket() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120));
        let path = socket_path(&long).unwrap();
        assert!(path.as_os_str().len() <= SOCKET_PATH_MAX, "{path:?}");
        assert_eq!(socket_path(&long).unwrap(), path);
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
        assert!(socket_path(folder.path()).unwrap().starts_with(folder.path()));
    }

    #[tokio::test]
    async fn only_the_registered_process_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let (sidecars, listener) = Sidecars::bind(folder.path(), HostMetrics::new(&Metrics::new())).unwrap();
        let served = tokio::spawn(Arc::clone(&sidecars).serve(listener));
        let mut stranger = UnixStream::connect(sidecars.path()).await.unwrap();
        assert!(stranger.read_u32().await.is_err(), "closed without a word");

        let instance = InstanceId::from_parts(1, 1);
        let (state, receiver) = watch::channel(SidecarState::default());
        let (said, mut heard) = watch::channel(SidecarStatus::default());
        let own_group = procfs::stat(std::process::id()).unwrap().group;
        sidecars.register(own_group, Slot { instance: instance.clone(), state: receiver, said });
        let mut stream = UnixStream::connect(sidecars.path()).await.unwrap();
        let status = SidecarStatus {
            instance: instance.to_string(),
            address: "127.0.0.1:9".to_owned(),
            ..Default::default()
        };
        let bytes = status.encode_to_vec();
        for _ in 0..2 {
            stream.write_u32(u32::try_from(bytes.len()).unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
        heard.changed().await.unwrap();
        assert_eq!(heard.borrow_and_update().address, "127.0.0.1:9");

        // Nothing is sent before there is a certificate.
        state.send_modify(|state| state.instance_port = 1);
        state.send_modify(|state| state.chain = vec![vec![1]]);
        let mut frame = vec![0; stream.read_u32().await.unwrap() as usize];
        stream.read_exact(&mut frame).await.unwrap();
        let got = SidecarState::decode(frame.as_slice()).unwrap();
        assert_eq!((got.instance_port, got.chain.len()), (1, 1));
        assert!(!heard.has_changed().unwrap(), "said twice, passed on once");
        served.abort();
    }
}
