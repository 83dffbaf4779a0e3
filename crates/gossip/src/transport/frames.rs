//! Messages on a stream: length (u32, big-endian), then protobuf.

use atoll_wire::gossip::Exchange;
use atoll_wire::{DecodeError, Message};
use bytes::Bytes;
use quinn::{RecvStream, SendStream};

/// Longest message.
pub(crate) const FRAME_BYTES_MAX: usize = 8 << 20;
/// Read at a time, so that a length alone does not cost memory.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a message of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("a message can't be read: {0}")]
    Decode(#[from] DecodeError),
    #[error("reading: {0}")]
    Read(String),
    #[error("writing: {0}")]
    Write(String),
}

pub(crate) async fn write(stream: &mut SendStream, message: &Exchange) -> Result<(), FrameError> {
    let length = message.encoded_len();
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let mut frame = Vec::with_capacity(4 + length);
    frame.extend_from_slice(&(length as u32).to_be_bytes());
    frame.extend_from_slice(&message.encode_to_vec());
    stream.write_chunk(frame.into()).await.map_err(|why| FrameError::Write(why.to_string()))
}

pub(crate) fn finish(stream: &mut SendStream) -> Result<(), FrameError> {
    stream.finish().map_err(|why| FrameError::Write(why.to_string()))
}

pub(crate) async fn read(stream: &mut RecvStream) -> Result<Exchange, FrameError> {
    let reading = |why: quinn::ReadExactError| FrameError::Read(why.to_string());
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(reading)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let mut frame = Vec::new();
    while frame.len() < length {
        let from = frame.len();
        frame.resize(length.min(from + CHUNK_BYTES), 0);
        stream.read_exact(&mut frame[from..]).await.map_err(reading)?;
    }
    Ok(Exchange::decode(Bytes::from(frame))?)
}

pub(crate) async fn read_end(stream: &mut RecvStream) -> Result<(), FrameError> {
    stream.read_to_end(0).await.map(drop).map_err(|why| FrameError::Read(why.to_string()))
}
