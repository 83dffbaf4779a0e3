//! Challenges that are not stored: expiry, randomness, and our HMAC over both.

use crate::store::seal::random;
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign, verify};
use std::io;

const LIFE_MS: u64 = 60_000;
const RANDOM_BYTES: usize = 16;
const SIGNED_BYTES: usize = 8 + RANDOM_BYTES;

/// Makes and checks challenges; the key dies with the process.
#[derive(Debug)]
pub(super) struct Challenges(Key);

impl Challenges {
    pub(super) fn new() -> io::Result<Self> {
        let mut key = [0; 32];
        random(&mut key)?;
        Ok(Self(Key::new(HMAC_SHA256, &key)))
    }

    pub(super) fn make(&self, now_ms: u64) -> io::Result<Vec<u8>> {
        let mut nonce = (now_ms + LIFE_MS).to_be_bytes().to_vec();
        nonce.resize(SIGNED_BYTES, 0);
        random(&mut nonce[8..])?;
        let tag = sign(&self.0, &nonce);
        nonce.extend_from_slice(tag.as_ref());
        Ok(nonce)
    }

    pub(super) fn is_valid(&self, nonce: &[u8], now_ms: u64) -> bool {
        let Some((signed, tag)) = nonce.split_at_checked(SIGNED_BYTES) else { return false };
        let Some((expires, _)) = signed.split_first_chunk::<8>() else { return false };
        verify(&self.0, signed, tag).is_ok() && now_ms < u64::from_be_bytes(*expires)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_ours_and_only_for_a_while() {
        let challenges = Challenges::new().unwrap();
        let nonce = challenges.make(1_000).unwrap();
        assert!(challenges.is_valid(&nonce, 1_000));
        assert!(!challenges.is_valid(&nonce, 1_000 + LIFE_MS));
        assert!(!Challenges::new().unwrap().is_valid(&nonce, 1_000));
        let mut later = nonce;
        later[0] = 1;
        assert!(!challenges.is_valid(&later, 1_000));
        assert!(!challenges.is_valid(b"short", 0));
    }
}
