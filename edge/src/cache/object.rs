//! A stored response.

use super::encoding::Coding;
use super::encoding::accepted::Accepted;
use super::encoding::worth::worth;
use super::purge;
use super::rules::freshness::Freshness;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Bodies are kept in pieces of this size, but for the last.
const PIECE_BYTES: usize = 64 * 1024;
/// What an entry costs beside its bytes: the index, allocations, counters. Measured generously.
const OVERHEAD_BYTES: usize = 768;
/// Fields that are added to each answer that is made of it.
const ADDED_FIELDS: usize = 8;
/// What a header field costs beside its bytes.
const FIELD_BYTES: usize = 64;

/// Of which resource an entry is; shared by all its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// `org/app`.
    pub app: Arc<str>,
    /// The domain it was asked for at.
    pub host: Arc<str>,
    /// The same as the client wrote it, with a port where it did.
    pub authority: Arc<str>,
    /// Path with query, in their normal form.
    pub target: Arc<str>,
}

impl Resource {
    /// The organization whose it is.
    #[must_use]
    pub fn organization(&self) -> &str {
        self.app.split_once('/').map_or(&*self.app, |(organization, _)| organization)
    }
}

/// A response without its body.
#[derive(Debug, Clone)]
pub struct Head {
    /// Of which resource.
    pub resource: Resource,
    /// Its status.
    pub status: StatusCode,
    /// Its fields, as they are stored.
    pub headers: HeaderMap,
    /// How long it may be used.
    pub freshness: Freshness,
    /// The request's fields that it depends on.
    pub vary: Arc<[HeaderName]>,
    /// By which it can be purged.
    pub tags: Box<[Box<str>]>,
    /// The app's last purge that was known when it was asked for.
    pub asked_at: u64,
    /// Its kind of content is one that clients may get compressed.
    pub compressible: bool,
}

impl Head {
    /// Whether clients may get it compressed, with a body of that length, bytes.
    #[must_use]
    pub fn is_worth_compressing(&self, length: u64) -> bool {
        self.compressible && worth(self.status, &self.headers, length, false)
    }

    /// What purges look at.
    #[must_use]
    pub fn for_purges(&self) -> purge::Entry<'_> {
        purge::Entry {
            app: &self.resource.app,
            host: &self.resource.host,
            target: &self.resource.target,
            tags: &self.tags,
            asked_at: self.asked_at,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let fields: usize =
            self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 16).sum();
        let resource = &self.resource;
        fields + tags + resource.app.len() + resource.host.len() + resource.target.len()
    }
}

/// A body, in pieces.
#[derive(Debug, Clone)]
pub struct Pieces {
    /// The bytes. Shared by whoever sends them.
    pub bytes: Arc<[Bytes]>,
    /// How many.
    pub length: u64,
}

impl Pieces {
    /// Those.
    #[must_use]
    pub fn of(bytes: Arc<[Bytes]>) -> Self {
        let length = bytes.iter().map(|piece| piece.len() as u64).sum();
        Self { bytes, length }
    }
}

/// A complete stored response. Nothing in it changes but what purges it is known to have outlived; with a body more, compressed, it
/// is a new one.
#[derive(Debug)]
pub struct Object {
    /// All but the body; with the body's length.
    pub head: Head,
    /// The body as it came. Shared with what it becomes when it is validated.
    pub body: Pieces,
    /// The body compressed, by [`Coding::index`].
    encoded: [Option<Pieces>; Coding::ALL.len()],
    /// Codings that were tried, or are being: bits by [`Coding::index`].
    tried: AtomicU8,
    /// It was looked at in this state of the purges, which keep it.
    outlived: AtomicU64,
}

impl Object {
    /// A response that has come whole.
    #[must_use]
    pub fn new(mut head: Head, body: Arc<[Bytes]>) -> Self {
        let body = Pieces::of(body);
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.length));
        if head.status == StatusCode::OK && !head.headers.contains_key(ACCEPT_RANGES) {
            head.headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        // What each answer adds to a copy of them has its place.
        head.headers.reserve(ADDED_FIELDS);
        let tried = if head.is_worth_compressing(body.length) { 0 } else { u8::MAX };
        Self {
            head,
            body,
            encoded: Default::default(),
            tried: AtomicU8::new(tried),
            outlived: AtomicU64::new(0),
        }
    }

    /// The same bodies under another head: after a 304.
    #[must_use]
    pub fn with_head(&self, head: Head) -> Self {
        let tried = AtomicU8::new(self.tried.load(Ordering::Relaxed));
        Self { tried, encoded: self.encoded.clone(), ..Self::new(head, Arc::clone(&self.body.bytes)) }
    }

    /// The same with one more coding.
    #[must_use]
    pub fn with_coding(&self, coding: Coding, body: Arc<[Bytes]>) -> Self {
        let mut more = self.with_head(self.head.clone());
        more.encoded[coding.index()] = Some(Pieces::of(body));
        more.outlived = AtomicU64::new(self.outlived.load(Ordering::Relaxed));
        more
    }

    /// The best body for who accepts those codings, and its coding; nothing: the body as it came.
    #[must_use]
    pub fn encoded_for(&self, accepted: Accepted) -> Option<(Coding, &Pieces)> {
        let best = accepted.best()?;
        let coded = |coding: Coding| Some((coding, self.encoded[coding.index()].as_ref()?));
        coded(best)
            .or_else(|| Coding::ALL.into_iter().filter(|coding| accepted.accepts(*coding)).find_map(coded))
    }

    /// Whether clients may get it compressed.
    #[must_use]
    pub fn is_worth_compressing(&self) -> bool {
        self.tried.load(Ordering::Relaxed) != u8::MAX
    }

    /// The coding that who accepts those would like best, where it has not been tried. It counts as tried from then on.
    #[must_use]
    pub fn lacks(&self, accepted: Accepted) -> Option<Coding> {
        let best = accepted.best()?;
        let bit = 1 << best.index();
        // Most often it was: then nothing is written.
        let new = self.tried.load(Ordering::Relaxed) & bit == 0
            && self.tried.fetch_or(bit, Ordering::Relaxed) & bit == 0;
        new.then_some(best)
    }

    /// The coding may be tried again: there was no time for it.
    pub fn put_off(&self, coding: Coding) {
        self.tried.fetch_and(!(1 << coding.index()), Ordering::Relaxed);
    }

    /// Which codings there are, and their lengths.
    pub fn codings(&self) -> impl Iterator<Item = (Coding, u64)> + '_ {
        Coding::ALL
            .into_iter()
            .filter_map(|coding| Some((coding, self.encoded[coding.index()].as_ref()?.length)))
    }

    /// What purges make of it. Costs one comparison where there was none since the last look.
    #[must_use]
    pub fn fate(&self, purges: &purge::Purges) -> purge::Fate {
        if self.outlived.load(Ordering::Relaxed) >= purges.generation() {
            return purge::Fate::Kept;
        }
        let fate = purges.fate(self.head.for_purges());
        if fate == purge::Fate::Kept {
            self.outlived.fetch_max(purges.generation(), Ordering::Relaxed);
        }
        fate
    }

    /// What it takes of memory, bytes, with a key of this length.
    #[must_use]
    pub fn weight(&self, key_bytes: usize) -> u64 {
        let bodies = std::iter::once(&self.body).chain(self.encoded.iter().flatten());
        let bodies: u64 = bodies.map(|body| body.length + body.bytes.len() as u64 * 32).sum();
        bodies + (self.head.bytes() + key_bytes + OVERHEAD_BYTES) as u64
    }
}

/// Copies a body into pieces of its own: what came from a connection would hold on to that connection's buffers.
#[must_use]
pub fn compact(chunks: impl IntoIterator<Item = Bytes>, length: usize) -> Arc<[Bytes]> {
    let mut pieces = Vec::with_capacity(length.div_ceil(PIECE_BYTES));
    let mut left = length;
    let mut piece = BytesMut::with_capacity(left.min(PIECE_BYTES));
    for chunk in chunks {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let taken = rest.len().min(PIECE_BYTES - piece.len());
            piece.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if piece.len() == PIECE_BYTES {
                left = left.saturating_sub(PIECE_BYTES);
                pieces.push(
                    std::mem::replace(&mut piece, BytesMut::with_capacity(left.min(PIECE_BYTES))).freeze(),
                );
            }
        }
    }
    if !piece.is_empty() {
        pieces.push(piece.freeze());
    }
    pieces.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_kept_in_pieces_that_fit() {
        let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let whole = Bytes::from(bytes.clone());
        for size in [1usize, 1000, 65_536, 70_000, 200_000] {
            let chunks =
                (0..bytes.len()).step_by(size).map(|at| whole.slice(at..(at + size).min(bytes.len())));
            let body = compact(chunks, bytes.len());
            assert_eq!(body.concat(), bytes, "{size}");
            assert_eq!(body.len(), 4);
        }
        assert!(compact([], 0).is_empty());
        assert_eq!(compact([Bytes::from_static(b"ab")], 2).concat(), b"ab");
    }
}
