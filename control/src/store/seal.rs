//! Secrets at rest: AES-256-GCM with a key in a file of its own (mode 0600).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use data_encoding::BASE64;
use std::io;
use std::path::Path;
use std::sync::Arc;

const KEY_BYTES: usize = 32;

/// Seals and opens. Clones share the key.
#[derive(Debug, Clone)]
pub struct Sealer(Arc<LessSafeKey>);

/// A sealed text that does not open: another key, another purpose, or changed bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value cannot be opened: is the key file the one it was sealed with?")]
pub struct UnsealError;

impl Sealer {
    /// Reads the key file, or makes it.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        let key = match std::fs::read(path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = vec![0; KEY_BYTES];
                random(&mut key)?;
                atoll_process::files::write_atomic(path, &key, 0o600)?;
                key
            }
            Err(error) => return Err(error),
        };
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_short| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a key of 32 bytes", path.display()))
        })?;
        Ok(Self(Arc::new(LessSafeKey::new(key))))
    }

    /// Seals `plain` for `purpose`, which must be the same at opening. Base64 of nonce and ciphertext.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> io::Result<String> {
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let mut sealed = plain.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                &mut sealed,
            )
            .map_err(|_unspecified| io::Error::other("sealing failed"))?;
        Ok(BASE64.encode(&[&nonce[..], &sealed].concat()))
    }

    /// Opens what `seal` made.
    pub fn unseal(&self, purpose: &str, sealed: &str) -> Result<Vec<u8>, UnsealError> {
        let bytes = BASE64.decode(sealed.as_bytes()).map_err(|_no_base64| UnsealError)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(UnsealError)?;
        let mut sealed = sealed.to_vec();
        let plain = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose.as_bytes()), &mut sealed)
            .map_err(|_unspecified| UnsealError)?;
        Ok(plain.to_vec())
    }
}

/// Fills `bytes` from the system's generator.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_unspecified| io::Error::other("no randomness"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn opens_only_for_the_same_purpose_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let sealer = Sealer::open_or_create(&folder.path().join("key")).unwrap();
        let sealed = sealer.seal("a", b"secret").unwrap();
        assert!(!sealed.contains("secret"));
        assert_eq!(sealer.unseal("a", &sealed).unwrap(), b"secret");
        assert_eq!(sealer.unseal("b", &sealed), Err(UnsealError));
        let again = Sealer::open_or_create(&folder.path().join("key")).unwrap();
        assert_eq!(again.unseal("a", &sealed).unwrap(), b"secret");
        let other = Sealer::open_or_create(&folder.path().join("other")).unwrap();
        assert_eq!(other.unseal("a", &sealed), Err(UnsealError));
    }
}
