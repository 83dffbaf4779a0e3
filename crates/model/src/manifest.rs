//! The manifest `atoll.toml`.
