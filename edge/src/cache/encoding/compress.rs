//! The work of compressing a stored body.

use super::Coding;
use brotli::enc::BrotliEncoderParams;
use bytes::{Bytes, BytesMut};
use std::io::{self, Read, Write};

/// As for stored bodies.
const PIECE_BYTES: usize = 64 * 1024;

/// Levels: a variant is made once and sent often, but an edge has few processors. The next ones take 20 % (brotli) to three times as
/// long for 1 to 4 % less.
const GZIP_LEVEL: u32 = 6;
const BROTLI_QUALITY: i32 = 5;
/// Its window is 4 MiB; browsers take at most 8 (RFC 9659).
const ZSTD_LEVEL: i32 = 9;
/// 4 MiB. A window of 64 KiB or less makes the encoder choose a method that takes many times as long, even where the body is that
/// small.
const BROTLI_WINDOW_BITS: i32 = 22;

/// The body in that coding, in pieces of 64 KiB; nothing where that is not at least 5 % smaller. Takes the processor for 20-40 ms
/// for each MiB: not for a thread that serves. How the body is cut may change the bytes, not what they decode to.
#[must_use]
pub fn compress(coding: Coding, body: &[Bytes]) -> Option<Vec<Bytes>> {
    let length: usize = body.iter().map(Bytes::len).sum();
    let out = Pieces::new(length - length.div_ceil(20));
    let out = match coding {
        Coding::Gzip => gzip(body, out),
        Coding::Brotli => brotli(body, length, out),
        Coding::Zstd => zstd(body, length, out),
    };
    // The one thing that fails is that it grows too large.
    out.ok().map(Pieces::finish)
}

fn gzip(body: &[Bytes], out: Pieces) -> io::Result<Pieces> {
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL));
    body.iter().try_for_each(|piece| encoder.write_all(piece))?;
    encoder.finish()
}

fn brotli(body: &[Bytes], length: usize, mut out: Pieces) -> io::Result<Pieces> {
    let params = BrotliEncoderParams {
        quality: BROTLI_QUALITY,
        lgwin: BROTLI_WINDOW_BITS,
        size_hint: length,
        ..BrotliEncoderParams::default()
    };
    let mut body = Source { pieces: body, read: 0 };
    brotli::BrotliCompress(&mut body, &mut out, &params)?;
    Ok(out)
}

fn zstd(body: &[Bytes], length: usize, out: Pieces) -> io::Result<Pieces> {
    let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
    // By its length the tables are as small as they can be, and the client learns what to make room for.
    encoder.set_pledged_src_size(Some(length as u64))?;
    body.iter().try_for_each(|piece| encoder.write_all(piece))?;
    encoder.finish()
}

/// A body to read from.
struct Source<'a> {
    pieces: &'a [Bytes],
    /// Of the first piece.
    read: usize,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((piece, rest)) = self.pieces.split_first() {
            let left = &piece[self.read..];
            if !left.is_empty() {
                let taken = left.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&left[..taken]);
                self.read += taken;
                return Ok(taken);
            }
            (self.pieces, self.read) = (rest, 0);
        }
        Ok(0)
    }
}

/// Collects what is written, up to so many bytes.
#[derive(Debug)]
struct Pieces {
    full: Vec<Bytes>,
    last: BytesMut,
    left: usize,
}

impl Pieces {
    fn new(bytes_max: usize) -> Self {
        Self { full: Vec::new(), last: BytesMut::new(), left: bytes_max }
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.last.is_empty() {
            // A copy has no more room than it needs.
            self.full.push(Bytes::copy_from_slice(&self.last));
        }
        self.full
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            self.last.reserve(PIECE_BYTES - self.last.len());
            let (now, later) = rest.split_at(rest.len().min(PIECE_BYTES - self.last.len()));
            self.last.extend_from_slice(now);
            rest = later;
            if self.last.len() == PIECE_BYTES {
                self.full.push(std::mem::take(&mut self.last).freeze());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    /// 8 MiB.
    const ZSTD_WINDOW_BITS_MAX: u32 = 23;

    fn decoded(coding: Coding, body: &[Bytes]) -> Vec<u8> {
        let packed = body.concat();
        let mut plain = Vec::new();
        match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap(),
            Coding::Brotli => brotli::Decompressor::new(&packed[..], 4096).read_to_end(&mut plain).unwrap(),
            Coding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(&packed[..]).unwrap();
                decoder.window_log_max(ZSTD_WINDOW_BITS_MAX).unwrap();
                decoder.read_to_end(&mut plain).unwrap()
            }
        };
        plain
    }

    /// Nothing that compresses.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    fn pieces(body: &[u8], size: usize) -> Vec<Bytes> {
        body.chunks(size).map(Bytes::copy_from_slice).collect()
    }

    #[test]
    fn what_does_not_shrink_stays() {
        for coding in Coding::ALL {
            assert_eq!(compress(coding, &[]), None);
            assert_eq!(compress(coding, &[Bytes::new()]), None);
            assert_eq!(compress(coding, &[Bytes::from_static(b"a")]), None);
            assert_eq!(compress(coding, &pieces(&noise(100_000), 65_536)), None);
            // A little is too little.
            let mut body = noise(100_000);
            body.extend([0; 4000]);
            assert_eq!(compress(coding, &pieces(&body, 65_536)), None);
            body.extend([0; 4000]);
            assert!(compress(coding, &pieces(&body, 65_536)).is_some());
        }
    }

    #[test]
    fn pieces_are_full_and_the_last_has_no_spare_room() {
        let noise = noise(100_000);
        let body = pieces(&[&noise[..], &noise[..]].concat(), 65_536);
        for coding in [Coding::Brotli, Coding::Zstd] {
            let packed = compress(coding, &body).unwrap();
            assert_eq!(packed.len(), 2, "{coding:?}");
            assert_eq!(packed[0].len(), PIECE_BYTES);
            assert_eq!(decoded(coding, &packed), body.concat());
        }
    }

    #[test]
    fn long_bodies_fit_into_the_window_that_clients_have() {
        // What repeats is so far apart that a window that is too large would show.
        let body = pieces(&noise(64 * 1024).repeat(40), 65_536);
        for coding in [Coding::Gzip, Coding::Brotli, Coding::Zstd] {
            let Some(packed) = compress(coding, &body) else {
                assert_eq!(coding, Coding::Gzip, "its window is smaller than what repeats");
                continue;
            };
            assert_eq!(decoded(coding, &packed), body.concat());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Words in any order, in pieces of any size, some of them empty.
        #[test]
        fn decoders_give_the_body_back(
            words in proptest::collection::vec("[a-z]{1,8}|[ -~]{3}|\\PC{2}", 1..200),
            times in 1usize..40,
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        ) {
            let body = Bytes::from(words.concat().repeat(times));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len())).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let split: Vec<Bytes> = cuts.windows(2).map(|cut| body.slice(cut[0]..cut[1])).collect();
            for coding in Coding::ALL {
                if let Some(packed) = compress(coding, &split) {
                    let length: usize = packed.iter().map(Bytes::len).sum();
                    prop_assert!(length * 100 <= body.len() * 95);
                    prop_assert!(packed.iter().rev().skip(1).all(|piece| piece.len() == PIECE_BYTES));
                    prop_assert_eq!(decoded(coding, &packed), &body[..]);
                }
            }
        }
    }
}
