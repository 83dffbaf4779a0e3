//! What a stored response is found by.

use aws_lc_rs::digest;
use std::fmt;
use std::sync::Arc;

/// Virtual host, authority, and path with query in their normal form; for one variant of several, a digest of that and of what the request
/// has in the fields of `Vary`. The method is not in it: only answers to GET are stored, and they answer HEAD too. Nor is the scheme: edges serve HTTPS
/// alone. Clones share the bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// Of a resource. `host` is the virtual host's id: two of them never share an entry. `authority` is as the client wrote it, because
    /// the instance sees it so and may answer by it.
    #[must_use]
    pub fn resource(host: &str, authority: &str, path_and_query: &str) -> Self {
        let parts = [host.as_bytes(), authority.as_bytes(), path_and_query.as_bytes()];
        Self(parts.join(&0).into())
    }

    /// Of one variant of the resource; `variant` is of [`super::rules::vary::variant`]. It is a digest: what clients put into the fields of
    /// `Vary` takes no memory.
    #[must_use]
    pub fn variant(&self, variant: &[u8]) -> Self {
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(&(self.0.len() as u64).to_be_bytes());
        digest.update(&self.0);
        digest.update(variant);
        Self(digest.finish().as_ref().into())
    }

    /// Of requests for it that say who asks.
    #[must_use]
    pub fn with_authorization(&self) -> Self {
        self.variant(b"authorization")
    }

    /// Where it is on the ring on which edges share what they keep: the same on all of them.
    #[must_use]
    pub fn place(&self) -> u64 {
        atoll_routing::tier::place(&self.0)
    }

    /// For people: its parts, with spaces between them; what is not visible ASCII is a question mark.
    #[must_use]
    pub fn to_text(&self) -> String {
        let shown = |byte: &u8| match byte {
            0 => ' ',
            0x20..=0x7e => char::from(*byte),
            _ => '?',
        };
        self.0.iter().map(shown).collect()
    }

    /// Its size in memory, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.escape_ascii())
    }
}
