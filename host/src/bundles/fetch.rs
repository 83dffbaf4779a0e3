//! Bringing a bundle from control: goes on where it broke off, and asks again while control is away.

use super::{Bundles, Say, no_room};
use atoll_bundle::{Digest, LIST_BYTES_MAX, List, Store, StoreError};
use atoll_model::{Bundle, ClusterName};
use atoll_wire::node::{BundlePiece, FetchBundleRequest, WantedContent};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

/// Contents in one request.
const BATCH: usize = 1_024;
/// Pieces between the connection and the disk, of 128 KiB.
const PIECES: usize = 8;
/// A control that sends nothing for this long is asked again.
const STALLED: Duration = Duration::from_secs(30);
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often it is said how far a fetch is.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// Why nothing, or no more, comes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Control is away or busy: the same request can succeed later.
    #[error("control cannot send the service's files: {0}")]
    Away(String),
    /// Asking again changes nothing.
    #[error("{0}")]
    Refused(String),
}

/// Asks control for parts of a bundle.
pub type Fetch = Arc<
    dyn Fn(
            FetchBundleRequest,
        )
            -> BoxFuture<'static, Result<BoxStream<'static, Result<BundlePiece, FetchError>>, FetchError>>
        + Send
        + Sync,
>;

/// Which bundle, and in whose name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) cluster: &'a ClusterName,
    pub(super) digest: Digest,
    pub(super) bundle: &'a Bundle,
}

impl Ask<'_> {
    fn request(&self, contents: Vec<WantedContent>) -> FetchBundleRequest {
        FetchBundleRequest { cluster: self.cluster.to_string(), digest: self.digest.to_string(), contents }
    }
}

/// How long to wait before control is asked again.
struct Pauses {
    failures: u32,
}

impl Pauses {
    async fn wait(&mut self) {
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures += 1;
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

impl Bundles {
    pub(super) async fn fetch_list(&self, ask: Ask<'_>, say: &Say) -> Result<(), FetchError> {
        let mut pauses = Pauses { failures: 0 };
        let text = loop {
            match self.list_once(ask).await {
                Err(FetchError::Away(why)) => self.away(ask, &why, say),
                text => break text?,
            }
            pauses.wait().await;
        };
        let (lists, digest, size) = (Arc::clone(&self.lists), ask.digest, ask.bundle.size);
        let keep = move || {
            let damaged =
                || FetchError::Refused("control sent another list of files than it announced".to_owned());
            if Digest::of(&text) != digest {
                return Err(damaged());
            }
            let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
            let list = List::parse(text)
                .map_err(|error| FetchError::Refused(format!("its files are refused: {error}")))?;
            if list.size() != size {
                return Err(damaged());
            }
            lists.put(text.as_bytes()).map(|_| ()).map_err(|error| not_kept(&error, text.len() as u64))
        };
        tokio::task::spawn_blocking(keep)
            .await
            .map_err(|_panicked| FetchError::Refused("the host failed".to_owned()))?
    }

    async fn list_once(&self, ask: Ask<'_>) -> Result<Vec<u8>, FetchError> {
        let mut pieces = (self.fetch)(ask.request(Vec::new())).await?;
        let mut text = Vec::new();
        while let Some(piece) = next(&mut pieces).await? {
            text.extend_from_slice(&piece.data);
            if text.len() > LIST_BYTES_MAX {
                return Err(FetchError::Refused("the list of its files is too long".to_owned()));
            }
        }
        Ok(text)
    }

    /// Fetches contents, in order, into the store.
    pub(super) async fn fetch_contents(
        &self,
        ask: Ask<'_>,
        missing: Vec<(Digest, u64)>,
        say: &Say,
    ) -> Result<(), FetchError> {
        let missing: Arc<[(Digest, u64)]> = missing.into();
        let (pieces, arriving) = mpsc::channel(PIECES);
        let (store, of_writer) = (Arc::clone(&self.contents), Arc::clone(&missing));
        let writing = tokio::task::spawn_blocking(move || write(&store, &of_writer, arriving));
        let fed = self.feed(ask, &missing, pieces, say).await;
        let written = writing.await.map_err(|_panicked| FetchError::Refused("the host failed".to_owned()))?;
        // Where both say something, the disk is the cause and the other its consequence.
        match written {
            Ok(true) => fed,
            Ok(false) => {
                fed.and_then(|()| Err(FetchError::Refused("its files did not arrive whole".to_owned())))
            }
            Err(error) => Err(not_kept(&error, missing.iter().map(|(_, bytes)| bytes).sum())),
        }
    }

    /// Hands the bytes of all contents on, one after another, however often control has to be asked.
    async fn feed(
        &self,
        ask: Ask<'_>,
        missing: &[(Digest, u64)],
        pieces: mpsc::Sender<Bytes>,
        say: &Say,
    ) -> Result<(), FetchError> {
        let mut place = Place::new(missing);
        let mut pauses = Pauses { failures: 0 };
        while !place.is_done() {
            let before = place.bytes;
            match self.feed_once(ask, &mut place, &pieces, say).await {
                Ok(true) => {}
                // The writer has ended, and says why.
                Ok(false) => return Ok(()),
                Err(FetchError::Away(why)) => self.away(ask, &why, say),
                Err(refused) => return Err(refused),
            }
            if place.bytes > before {
                pauses.failures = 0;
            }
            if !place.is_done() {
                pauses.wait().await;
            }
        }
        Ok(())
    }

    /// One request. `false`: nobody takes its bytes any more.
    async fn feed_once(
        &self,
        ask: Ask<'_>,
        place: &mut Place<'_>,
        pieces: &mpsc::Sender<Bytes>,
        say: &Say,
    ) -> Result<bool, FetchError> {
        let first = place.index;
        let until = place.contents.len().min(first + BATCH);
        let wanted = place.contents[first..until].iter().enumerate().map(|(at, (digest, _))| WantedContent {
            sha256: digest.to_string(),
            offset: if at == 0 { place.offset } else { 0 },
        });
        let mut stream = (self.fetch)(ask.request(wanted.collect())).await?;
        let mut said = Instant::now();
        while place.index < until {
            let Some(piece) = next(&mut stream).await? else {
                return Err(FetchError::Away("it ended too early".to_owned()));
            };
            if first + piece.index as usize != place.index || !place.advance(piece.data.len() as u64) {
                return Err(FetchError::Refused("control sent other files than were asked for".to_owned()));
            }
            if pieces.send(piece.data.into()).await.is_err() {
                return Ok(false);
            }
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                let mib = |bytes: u64| bytes >> 20;
                say.send_replace(format!(
                    "fetching its files: {} of {} MiB",
                    mib(place.bytes),
                    mib(place.total)
                ));
            }
        }
        Ok(true)
    }

    fn away(&self, ask: Ask<'_>, why: &str, say: &Say) {
        self.metrics.fetch_failures.inc();
        warn!(cluster = %ask.cluster, bundle = %ask.digest, why, "a bundle could not be fetched; trying again");
        let why = format!("it waits for its files: {}", FetchError::Away(why.to_owned()));
        say.send_if_modified(|said| {
            let news = *said != why;
            *said = why;
            news
        });
    }
}

/// How far a fetch is.
struct Place<'a> {
    contents: &'a [(Digest, u64)],
    index: usize,
    offset: u64,
    bytes: u64,
    total: u64,
}

impl<'a> Place<'a> {
    fn new(contents: &'a [(Digest, u64)]) -> Self {
        let total = contents.iter().map(|(_, bytes)| bytes).sum();
        let mut place = Self { contents, index: 0, offset: 0, bytes: 0, total };
        place.pass();
        place
    }

    const fn is_done(&self) -> bool {
        self.index >= self.contents.len()
    }

    /// `false`: that is more than the content has.
    fn advance(&mut self, bytes: u64) -> bool {
        let Some((_, size)) = self.contents.get(self.index) else { return false };
        self.offset += bytes;
        self.bytes += bytes;
        let fits = bytes > 0 && self.offset <= *size;
        self.pass();
        fits
    }

    /// Goes on to the next content that lacks something; of an empty one nothing comes.
    fn pass(&mut self) {
        while self.contents.get(self.index).is_some_and(|(_, size)| self.offset >= *size) {
            self.index += 1;
            self.offset = 0;
        }
    }
}

async fn next(
    pieces: &mut BoxStream<'static, Result<BundlePiece, FetchError>>,
) -> Result<Option<BundlePiece>, FetchError> {
    match tokio::time::timeout(STALLED, pieces.next()).await {
        Ok(piece) => piece.transpose(),
        Err(_elapsed) => Err(FetchError::Away(format!("nothing came for {} s", STALLED.as_secs()))),
    }
}

/// Writes contents as their bytes come. `false`: they ended too early.
fn write(
    store: &Store,
    contents: &[(Digest, u64)],
    mut arriving: mpsc::Receiver<Bytes>,
) -> Result<bool, StoreError> {
    for (digest, size) in contents {
        let mut incoming = store.incoming(*digest, *size)?;
        while incoming.written() < *size {
            let Some(bytes) = arriving.blocking_recv() else { return Ok(false) };
            incoming.write(&bytes)?;
        }
        incoming.finish()?;
    }
    Ok(true)
}

fn not_kept(error: &StoreError, bytes: u64) -> FetchError {
    FetchError::Refused(match error {
        StoreError::Full => no_room(bytes),
        StoreError::Mismatch { .. } | StoreError::TooLarge(_) => {
            "control sent another content than it announced; its disk may be damaged".to_owned()
        }
        StoreError::Io(cause) => format!("this host cannot keep the service's files: {cause}"),
    })
}
