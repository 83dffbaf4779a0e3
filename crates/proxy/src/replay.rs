//! A request body that can be sent again while nothing of it has been lost.

use crate::body::{Body, BodyError, BodyFault, Side};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// How much of a body is kept, in bytes. A thousand uploads in their first tries hold 64 MiB.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// How many pieces are kept: bounds what a body of one-byte pieces costs beside its bytes.
const REPLAY_PIECES_MAX: usize = 256;

/// The source of a request's body over several tries. Each [`Replay::body`] starts at the first byte
/// and takes the place of the one before it.
#[derive(Debug, Clone)]
pub struct Replay(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    source: Body,
    bytes_max: usize,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// The source's end has been read.
    ended: bool,
    failed: Option<BodyFault>,
    /// Something was read that is not kept.
    lost: bool,
    /// Nothing more is to be kept.
    released: bool,
    /// The body that may read; earlier ones get an error.
    generation: u64,
    length: Option<u64>,
}

impl Replay {
    /// Keeps up to [`REPLAY_BYTES_MAX`] of `source`.
    #[must_use]
    pub fn new(source: Body) -> Self {
        Self::with_limit(source, REPLAY_BYTES_MAX)
    }

    /// Keeps up to `bytes_max` of `source`.
    #[must_use]
    pub fn with_limit(source: Body, bytes_max: usize) -> Self {
        let ended = source.is_end_stream();
        let length = source.size_hint().exact();
        Self(Rc::new(RefCell::new(State {
            source,
            bytes_max,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            ended,
            failed: None,
            lost: false,
            released: false,
            generation: 0,
            length,
        })))
    }

    /// The body from its first byte, or `None` when some of it is lost or its source has failed.
    #[must_use]
    pub fn body(&self) -> Option<Body> {
        if !self.can_replay() {
            return None;
        }
        let mut state = self.0.borrow_mut();
        state.generation += 1;
        if state.ended && state.kept.is_empty() && state.trailers.is_none() {
            return Some(Body::empty());
        }
        let generation = state.generation;
        drop(state);
        Some(Body::replay(ReplayBody {
            shared: Rc::clone(&self.0),
            generation,
            piece: 0,
            given: 0,
            gave_trailers: false,
        }))
    }

    /// Whether another [`Replay::body`] can be had.
    #[must_use]
    pub fn can_replay(&self) -> bool {
        let state = self.0.borrow();
        !state.lost && state.failed.is_none()
    }

    /// How the source (the client) failed, if it did.
    #[must_use]
    pub fn source_failed(&self) -> Option<BodyFault> {
        self.0.borrow().failed
    }

    /// Keeps nothing more: there will be no other try. Frees what was kept once it has been read.
    pub fn release(&self) {
        self.0.borrow_mut().released = true;
    }
}

/// One reading of a [`Replay`].
#[derive(Debug)]
pub(crate) struct ReplayBody {
    shared: Rc<RefCell<State>>,
    generation: u64,
    piece: usize,
    given: u64,
    gave_trailers: bool,
}

impl HttpBody for ReplayBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut state = this.shared.borrow_mut();
        if state.generation != this.generation {
            let superseded =
                BodyError::new(Side::Local, "another try has taken over the body", BodyError::CANCEL);
            return Poll::Ready(Some(Err(superseded)));
        }
        if let Some(piece) = state.kept.get(this.piece).cloned() {
            this.piece += 1;
            this.given += piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if state.ended {
            if this.gave_trailers {
                return Poll::Ready(None);
            }
            this.gave_trailers = true;
            return Poll::Ready(state.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut state.source).poll_frame(context));
        Poll::Ready(match frame {
            None => {
                state.ended = true;
                None
            }
            Some(Err(error)) => {
                state.failed = Some(error.fault);
                Some(Err(error))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    this.given += data.len() as u64;
                    state.keep(&data);
                    // What was kept may have been dropped just now.
                    this.piece = state.kept.len();
                    Some(Ok(Frame::data(data)))
                }
                Err(frame) => {
                    state.ended = true;
                    this.gave_trailers = true;
                    state.trailers = frame.into_trailers().ok();
                    state.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers)))
                }
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.borrow();
        state.generation == self.generation
            && (state.ended || state.source.is_end_stream())
            && self.piece >= state.kept.len()
            && (state.trailers.is_none() || self.gave_trailers)
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.shared.borrow().length;
        length
            .map_or_else(SizeHint::default, |length| SizeHint::with_exact(length.saturating_sub(self.given)))
    }
}

impl State {
    fn keep(&mut self, data: &Bytes) {
        let full = self.kept_bytes + data.len() > self.bytes_max || self.kept.len() >= REPLAY_PIECES_MAX;
        if self.lost || self.released || full {
            self.lost = true;
            self.kept = Vec::new();
            self.kept_bytes = 0;
            return;
        }
        self.kept_bytes += data.len();
        self.kept.push(data.clone());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    struct Pieces(VecDeque<Result<Frame<Bytes>, BodyError>>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn source(pieces: &[Vec<u8>], trailers: bool) -> Body {
        let mut frames: VecDeque<_> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        if trailers {
            let mut map = HeaderMap::new();
            map.insert("t", "1".parse().unwrap());
            frames.push_back(Ok(Frame::trailers(map)));
        }
        Body::boxed(Pieces(frames))
    }

    fn read(body: &mut Body, frames: usize) -> Vec<u8> {
        let mut read = Vec::new();
        for _ in 0..frames {
            let Some(frame) = body.frame().now_or_never().unwrap() else { break };
            read.extend(frame.unwrap().into_data().unwrap_or_default());
        }
        read
    }

    proptest! {
        /// However much each try reads, a body that can still be had is the whole one.
        #[test]
        fn a_try_reads_all_or_there_is_none(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..12),
            trailers in any::<bool>(),
            tries in proptest::collection::vec(0_usize..14, 0..5),
            limit in 0_usize..150,
        ) {
            let whole = pieces.concat();
            let replay = Replay::with_limit(source(&pieces, trailers), limit);
            let mut read_most = 0;
            for frames in tries {
                let Some(mut body) = replay.body() else { break };
                let read = read(&mut body, frames);
                prop_assert!(whole.starts_with(&read));
                read_most = read_most.max(read.len());
            }
            prop_assert_eq!(replay.can_replay(), read_most <= limit);
            prop_assert!(replay.0.borrow().kept_bytes <= limit);
            if let Some(last) = replay.body() {
                let collected = last.collect().now_or_never().unwrap().unwrap();
                prop_assert_eq!(collected.trailers().is_some(), trailers);
                prop_assert_eq!(&collected.to_bytes()[..], &whole[..]);
            }
        }
    }

    #[test]
    fn an_earlier_try_gets_nothing_more() {
        let replay = Replay::new(source(&[vec![1], vec![2]], false));
        let mut first = replay.body().unwrap();
        assert_eq!(read(&mut first, 1), [1]);
        let mut second = replay.body().unwrap();
        let refused = first.frame().now_or_never().unwrap().unwrap().unwrap_err();
        assert_eq!(refused.side, Side::Local);
        assert_eq!(read(&mut second, 9), [1, 2]);
    }

    #[test]
    fn a_failed_source_ends_it() {
        let error = BodyError::new(Side::Client, "on purpose", BodyError::CANCEL);
        let replay = Replay::new(Body::boxed(Pieces(VecDeque::from([Err(error)]))));
        let mut body = replay.body().unwrap();
        assert!(body.frame().now_or_never().unwrap().unwrap().is_err());
        assert!(replay.source_failed() == Some(BodyFault::Broken) && replay.body().is_none());
    }

    #[test]
    fn a_released_body_is_not_kept_and_lengths_are_told() {
        let replay = Replay::new(Body::full("hello"));
        assert_eq!(replay.body().unwrap().size_hint().exact(), Some(5));
        replay.release();
        let mut body = replay.body().unwrap();
        assert_eq!(read(&mut body, 1), b"hello");
        assert!(body.is_end_stream() && !replay.can_replay());
        assert!(Replay::new(Body::empty()).body().unwrap().is_end_stream());
    }
}
