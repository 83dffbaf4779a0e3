//! Frames of the control stream: a length (u32, big-endian), then a message.

use crate::body::{Body, BodyError};
use atoll_wire::Message as _;
use atoll_wire::tunnel::{Frame, frame};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, SizeHint};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// The largest message, in bytes.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Frames that wait for the connection; pings and headroom are skipped when it is full.
const QUEUE_FRAMES: usize = 16;

/// A control stream that broke the protocol, or broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes is larger than {FRAME_BYTES_MAX}")]
    TooLarge(usize),
    #[error("a frame is not understood")]
    Malformed(#[source] atoll_wire::DecodeError),
    #[error("the stream ended within a frame")]
    Cut,
    #[error("the stream broke")]
    Body(#[source] BodyError),
}

/// Reads frames from a body.
pub(crate) struct FrameReader {
    body: Body,
    buffer: BytesMut,
}

impl FrameReader {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next frame that this version knows; `None` at the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<frame::Frame>, FrameError> {
        loop {
            while let Some(message) = take_message(&mut self.buffer)? {
                let frame = Frame::decode(message).map_err(FrameError::Malformed)?;
                if let Some(known) = frame.frame {
                    return Ok(Some(known));
                }
            }
            let piece = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            match piece {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(FrameError::Cut),
                Some(Err(error)) => return Err(FrameError::Body(error)),
                Some(Ok(piece)) => {
                    if let Ok(data) = piece.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn take_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

pub(crate) fn encode(frame: frame::Frame) -> Bytes {
    let frame = Frame { frame: Some(frame) };
    let length = frame.encoded_len();
    let mut bytes = BytesMut::with_capacity(4 + length);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.put_slice(&frame.encode_to_vec());
    bytes.freeze()
}

/// Writes frames to a body that it also makes.
#[derive(Clone)]
pub(crate) struct FrameWriter(mpsc::Sender<Bytes>);

pub(crate) fn frame_body() -> (FrameWriter, Body) {
    let (sender, receiver) = mpsc::channel(QUEUE_FRAMES);
    (FrameWriter(sender), Body::boxed(FrameBody(receiver)))
}

impl FrameWriter {
    /// Queues a frame; false when the queue is full or the stream is gone.
    pub(crate) fn write(&self, frame: frame::Frame) -> bool {
        let bytes = encode(frame);
        bytes.len() <= 4 + FRAME_BYTES_MAX && self.0.try_send(bytes).is_ok()
    }

    /// Resolves when the stream is gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

struct FrameBody(mpsc::Receiver<Bytes>);

impl HttpBody for FrameBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use atoll_wire::tunnel::Ping;
    use proptest::prelude::*;

    fn read_all(bytes: Vec<Bytes>) -> Result<Vec<frame::Frame>, FrameError> {
        let (sender, receiver) = mpsc::channel(bytes.len().max(1));
        for piece in bytes {
            sender.try_send(piece).unwrap();
        }
        drop(sender);
        let mut reader = FrameReader::new(Body::boxed(FrameBody(receiver)));
        let mut frames = Vec::new();
        futures_util::FutureExt::now_or_never(async {
            while let Some(frame) = reader.next().await? {
                frames.push(frame);
            }
            Ok(frames)
        })
        .unwrap()
    }

    proptest! {
        #[test]
        fn frames_survive_any_splitting(nonces in proptest::collection::vec(any::<u64>(), 0..20), piece in 1_usize..40) {
            let sent: Vec<_> = nonces.iter().map(|nonce| frame::Frame::Ping(Ping { nonce: *nonce })).collect();
            let bytes: Vec<u8> = sent.iter().cloned().flat_map(encode).collect();
            let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
            prop_assert_eq!(read_all(pieces).unwrap(), sent);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = read_all(vec![Bytes::from(bytes)]);
        }
    }

    #[test]
    fn large_and_cut_frames_are_errors() {
        assert!(matches!(read_all(vec![Bytes::from_static(&[0, 2, 0, 0])]), Err(FrameError::TooLarge(_))));
        assert!(matches!(read_all(vec![Bytes::from_static(&[0, 0, 0, 9, 1])]), Err(FrameError::Cut)));
    }
}
