//! Nothing is emptied by accident: a change that removes much, and that no call asked for by name, waits.

/// A change may always remove fewer objects of a kind than this.
const REMOVED_MIN: usize = 20;

/// Whether a change that removes `removed` of `total` objects of one kind has to be confirmed first.
/// `named`: the call that asked for it names what it removes.
#[must_use]
pub fn must_confirm(removed: usize, total: usize, named: bool) -> bool {
    !named && removed >= REMOVED_MIN && removed.saturating_mul(5) > total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_count() {
        assert!(!must_confirm(19, 19, false));
        assert!(must_confirm(20, 20, false));
        assert!(!must_confirm(20, 100, false));
        assert!(must_confirm(21, 100, false));
        assert!(!must_confirm(100, 100, true));
    }
}
