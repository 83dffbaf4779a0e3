//! When a node whose certificate ran out may have a new one for a proof that it holds the old key.

use std::time::Duration;

/// How long after its end a certificate can be exchanged.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why an exchange is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryRefusal {
    /// The node was removed, or never joined.
    #[error("the node was removed; join it again with a new token")]
    Removed,
    /// It ran out too long ago.
    #[error("the certificate ran out more than 30 days ago; join the node again with a new token")]
    TooLate,
}

/// Whether a certificate that ends at `not_after_ms` may be exchanged at `now_ms`. One that has not
/// ended yet may: the node's clock can be ahead of ours.
pub fn may_recover(not_after_ms: u64, now_ms: u64, removed: bool) -> Result<(), RecoveryRefusal> {
    let window_ms = RECOVERY_WINDOW.as_secs() * 1000;
    if removed {
        return Err(RecoveryRefusal::Removed);
    }
    if now_ms > not_after_ms.saturating_add(window_ms) {
        return Err(RecoveryRefusal::TooLate);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_days_and_not_after_removal() {
        const DAY_MS: u64 = 86_400_000;
        let end = 1_000 * DAY_MS;
        assert_eq!(may_recover(end, end - 1, false), Ok(()));
        assert_eq!(may_recover(end, end + 30 * DAY_MS, false), Ok(()));
        assert_eq!(may_recover(end, end + 30 * DAY_MS + 1, false), Err(RecoveryRefusal::TooLate));
        assert_eq!(may_recover(end, end + 1, true), Err(RecoveryRefusal::Removed));
    }
}
