//! Bundles for hosts: a host gets those of the services that are placed on it, and no others.

use crate::bundles::Bundles;
use crate::store::Store;
use crate::store::objects::{Node, Placement, Revision};
use atoll_bundle::{Digest, List};
use atoll_model::{ClusterName, NodeName, OrgName};
use atoll_wire::node::{BundlePiece, FetchBundleRequest};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

/// Hosts that are sent to at a time, each by a thread with a MiB; the others ask again.
const FETCHES_MAX: usize = 64;
/// Of them for one host; it asks for four.
const OF_HOST_MAX: usize = 8;
/// Contents in one request.
const CONTENTS_MAX: usize = 1_024;
const PIECE: usize = 128 * 1024;
/// Pieces on their way.
const PIECES: usize = 8;
/// A host that takes nothing for this long has gone.
const STALLED: Duration = Duration::from_secs(30);

pub(super) type Pieces = mpsc::Receiver<Result<BundlePiece, Status>>;

/// Held for as long as a stream runs: among the host's own, and among all.
type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What sends bundles.
#[derive(Debug)]
pub(super) struct Sending {
    bundles: Bundles,
    places: Arc<Semaphore>,
    of_hosts: Mutex<HashMap<NodeName, Weak<Semaphore>>>,
}

impl Sending {
    pub(super) fn new(bundles: Bundles) -> Self {
        let places = Arc::new(Semaphore::new(FETCHES_MAX));
        Self { bundles, places, of_hosts: Mutex::default() }
    }

    /// A place for a host, if there is one.
    fn place(&self, node: &NodeName) -> Option<Place> {
        let of_host = {
            let mut of_hosts = self.of_hosts.lock().unwrap_or_else(PoisonError::into_inner);
            of_hosts.retain(|_, places| places.strong_count() > 0);
            of_hosts.get(node).and_then(Weak::upgrade).unwrap_or_else(|| {
                let places = Arc::new(Semaphore::new(OF_HOST_MAX));
                of_hosts.insert(node.clone(), Arc::downgrade(&places));
                places
            })
        };
        Some((of_host.try_acquire_owned().ok()?, self.places.clone().try_acquire_owned().ok()?))
    }

    /// Sends what a host asks for, if it may have it.
    pub(super) fn send(
        &self,
        store: &Store,
        node: &Node,
        request: &FetchBundleRequest,
    ) -> Result<Pieces, Status> {
        let (Ok(cluster), Ok(digest)) =
            (request.cluster.parse::<ClusterName>(), request.digest.parse::<Digest>())
        else {
            return Err(Status::invalid_argument("the cluster or the digest is not well formed"));
        };
        if request.contents.len() > CONTENTS_MAX {
            return Err(Status::invalid_argument(format!("at most {CONTENTS_MAX} contents at once")));
        }
        let wanted: Result<Vec<(Digest, u64)>, _> =
            request.contents.iter().map(|want| Ok((want.sha256.parse()?, want.offset))).collect();
        let wanted =
            wanted.map_err(|error: atoll_bundle::DigestError| Status::invalid_argument(error.to_string()))?;
        if !is_placed(store, node, &cluster, &digest) {
            return Err(Status::permission_denied(format!(
                "no instance of {cluster} with that bundle is placed on this host"
            )));
        }
        let Some(place) = self.place(&node.name) else {
            return Err(Status::resource_exhausted("control sends bundles to many hosts now: ask again"));
        };
        let (pieces, sent) = mpsc::channel(PIECES);
        let line = Line { pieces, runtime: Handle::current(), bundles: self.bundles.clone(), _place: place };
        tokio::task::spawn_blocking(move || line.run(&cluster.org, &digest, &wanted));
        Ok(sent)
    }
}

/// Whether an instance on this node runs, or is to run, with that bundle.
fn is_placed(store: &Store, node: &Node, cluster: &ClusterName, digest: &Digest) -> bool {
    let digest = digest.to_string();
    let here: HashSet<_> = store
        .list::<Placement>(&format!("{cluster}/"))
        .into_iter()
        .filter(|placement| placement.host == node.name)
        .map(|placement| placement.revision)
        .collect();
    here.iter().any(|revision| {
        let revision = store.get::<Revision>(&Revision::tail(cluster, revision));
        revision.and_then(|revision| revision.spec.bundle).is_some_and(|bundle| bundle.digest == digest)
    })
}

/// One answer.
struct Line {
    pieces: mpsc::Sender<Result<BundlePiece, Status>>,
    runtime: Handle,
    bundles: Bundles,
    _place: Place,
}

impl Line {
    fn run(self, org: &OrgName, digest: &Digest, wanted: &[(Digest, u64)]) {
        let Some(list) = self.bundles.list(org, digest) else {
            tracing::error!(%org, bundle = %digest, "a bundle that is in use is not here");
            self.give(Err(Status::not_found(format!(
                "control has not got the bundle {digest}: deploy again"
            ))));
            return;
        };
        if wanted.is_empty() {
            let mut text = Bytes::from(list.text().to_owned());
            while !text.is_empty() {
                let data = text.split_to(text.len().min(PIECE));
                if !self.give(Ok(BundlePiece { index: 0, data: data.into() })) {
                    return;
                }
            }
            return;
        }
        if let Err(status) = self.contents(org, &list, wanted) {
            self.give(Err(status));
        }
    }

    fn contents(&self, org: &OrgName, list: &List, wanted: &[(Digest, u64)]) -> Result<(), Status> {
        let listed: HashSet<Digest> = list.contents().into_iter().map(|(digest, _)| digest).collect();
        for (index, (digest, offset)) in (0..).zip(wanted) {
            if !listed.contains(digest) {
                return Err(Status::invalid_argument("that content is not in the bundle"));
            }
            let failed = |error: std::io::Error| {
                tracing::error!(%org, content = %digest, %error, "a content of a bundle cannot be read");
                Status::data_loss(
                    "control cannot read a content of the bundle; its log says why. Deploy again",
                )
            };
            let mut file = self.bundles.content(org, digest).map_err(failed)?;
            file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
            loop {
                let mut data = Vec::new();
                (&mut file).take(PIECE as u64).read_to_end(&mut data).map_err(failed)?;
                if data.is_empty() {
                    break;
                }
                self.bundles.count_fetched(data.len() as u64);
                if !self.give(Ok(BundlePiece { index, data })) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// `false`: nobody takes it any more.
    fn give(&self, piece: Result<BundlePiece, Status>) -> bool {
        let sending = tokio::time::timeout(STALLED, self.pieces.send(piece));
        matches!(self.runtime.block_on(sending), Ok(Ok(())))
    }
}
