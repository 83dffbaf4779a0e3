//! Whole-system tests: each file of `tests/` starts `atoll dev` on free ports and uses real clients.
//! What they share is in `atoll-testkit`.
