//! When tokens were last used: within the hour, so that no request costs a write.

use crate::store::Store;
use crate::store::objects::ApiToken;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// How exact it is.
const EVERY_MS: u64 = 3_600 * 1_000;
/// Tokens that are remembered; then all are forgotten, which costs one more write each.
const REMEMBERED_MAX: usize = 10_000;

/// Which tokens were seen lately.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<String, u64>>);

impl Uses {
    /// Writes down that a token is in use, unless that was done within the hour. Does not wait for it.
    pub(super) fn note(&self, store: &Store, token: &ApiToken, now_ms: u64) {
        let is_recent = |at_ms: &u64| now_ms.saturating_sub(*at_ms) < EVERY_MS;
        if token.used_ms.as_ref().is_some_and(is_recent) || !self.first(&token.hash, now_ms, is_recent) {
            return;
        }
        let (store, tail) = (store.clone(), format!("{}/{}", token.org, token.hash));
        tokio::spawn(async move {
            let written = store.change(move |change| match change.get::<ApiToken>(&tail) {
                Some(mut token) => {
                    token.used_ms = Some(now_ms);
                    change.put(&token)
                }
                None => Ok(()),
            });
            if let Err(error) = written.await {
                tracing::debug!(%error, "the use of a token was not written down");
            }
        });
    }

    /// Whether it was not seen within the hour; it is now.
    fn first(&self, hash: &str, now_ms: u64, is_recent: impl Fn(&u64) -> bool) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.get(hash).is_some_and(is_recent) {
            return false;
        }
        if seen.len() >= REMEMBERED_MAX {
            seen.clear();
        }
        seen.insert(hash.to_owned(), now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_an_hour() {
        let uses = Uses::default();
        let first = |now_ms: u64| uses.first("a", now_ms, |at| now_ms.saturating_sub(*at) < EVERY_MS);
        assert!(first(10));
        assert!(!first(10 + EVERY_MS - 1));
        assert!(first(10 + EVERY_MS));
    }
}
