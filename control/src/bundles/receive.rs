//! Taking a content as it arrives.

use super::{BundleError, Bundles, OrgStore, in_turn};
use atoll_bundle::{BYTES_MAX, Digest};
use atoll_model::OrgName;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces between the connection and the disk; each is at most what the connection reads at once.
const PIECES: usize = 8;
/// A client that sends nothing for this long has gone.
const IDLE_MAX: Duration = Duration::from_secs(20);

enum Piece {
    Data(Bytes),
    End,
}

/// Bytes that count as the organization's, until it shows that they are not.
struct Claim {
    store: Arc<OrgStore>,
    bytes: u64,
}

impl Claim {
    fn grow(&mut self, bytes: u64, most: u64) -> Result<(), BundleError> {
        self.store.grow(bytes, most)?;
        self.bytes += bytes;
        Ok(())
    }

    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.store.shrink(self.bytes);
    }
}

impl Bundles {
    /// Takes the content `digest` from a body. It is on disk, whole and checked, when this returns; otherwise
    /// nothing of it is left. Gives its size.
    pub async fn receive<E>(
        &self,
        org: &OrgName,
        digest: Digest,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<u64, BundleError> {
        let turns = (self.place(org).await?, in_turn(&self.0.uploads).await?);
        let (pieces, arriving) = mpsc::channel(PIECES);
        let (bundles, org) = (self.clone(), org.clone());
        let writing = tokio::task::spawn_blocking(move || {
            let _turns = turns;
            bundles.write(&org, digest, arriving)
        });
        feed(body, pieces).await;
        let written = writing.await.map_err(|error| std::io::Error::other(error.to_string()))?;
        if let Ok(bytes) = written {
            self.0.metrics.uploads.inc();
            self.0.metrics.uploaded_bytes.inc_by(bytes);
        }
        written
    }

    fn write(
        &self,
        org: &OrgName,
        digest: Digest,
        mut arriving: mpsc::Receiver<Piece>,
    ) -> Result<u64, BundleError> {
        let store = self.of(org)?;
        let mut claim = Claim { store: store.clone(), bytes: 0 };
        let mut incoming = store.contents.incoming(digest, BYTES_MAX)?;
        loop {
            match arriving.blocking_recv() {
                Some(Piece::Data(bytes)) => {
                    claim.grow(bytes.len() as u64, self.0.config.org_bytes_max)?;
                    incoming.write(&bytes)?;
                }
                Some(Piece::End) => break,
                None => return Err(BundleError::Broken),
            }
        }
        let was_here = store.contents.touch(&digest).is_some();
        let bytes = incoming.finish()?;
        if !was_here {
            claim.keep();
        }
        Ok(bytes)
    }
}

/// Hands the body on, until it ends, breaks, or the writer wants no more.
async fn feed<E>(mut body: impl Stream<Item = Result<Bytes, E>> + Unpin, pieces: mpsc::Sender<Piece>) {
    loop {
        let piece = match tokio::time::timeout(IDLE_MAX, body.next()).await {
            Ok(Some(Ok(bytes))) => Piece::Data(bytes),
            Ok(None) => {
                let _writer_gone = pieces.send(Piece::End).await;
                return;
            }
            Ok(Some(Err(_))) | Err(_) => return,
        };
        if pieces.send(piece).await.is_err() {
            return;
        }
    }
}
